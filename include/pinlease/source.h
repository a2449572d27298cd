/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For authors of sources. A source sees that memory is about to change, or has changed, says so to the
 * core as a `pinl_change`, and passes the core's answer on to whoever makes the change. It never
 * decides; it says honestly what it can do (coverage) and what it can do this time (change.can).
 *
 * Threads of a source may block nobody but their own actors: they allocate nothing, free nothing and
 * take no lock of the application's, because the application may be waiting for them.
 */
#ifndef PINLEASE_SOURCE_H
#define PINLEASE_SOURCE_H

#include <pinlease/pinlease.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/*
 * Beside PINL_CAN_* in pinl_change.can: the source calls pinl_change_done() once the allowed change has
 * happened or been given up. Implied for on_file changes with PINL_CAN_BEFORE.
 */
#define PINL_WILL_SAY_DONE 0x10u

/* The memory under a lease. Owned by the lease; `fd` is the library's own and the same for all leases of
 * the file, open as long as one of them lives. It is made with O_PATH: fstat() and
 * names in /proc/self/fd work, reading doesn't. Who opens the file anew mustn't close that where it
 * could drop the program's locks, see fcntl(2). */
struct pinl_memory {
	enum pinl_memory_kind kind;
	uintptr_t start, end;	      /* the leased range */
	uintptr_t vma_start, vma_end; /* the mapping(s) around it */
	uint64_t dev, ino;	      /* of the file; 0: none */
	uint64_t offset;	      /* file offset of `start` */
	long fs_magic;		      /* statfs f_type; 0: no file or not reachable */
	int fd;			      /* an O_PATH descriptor of the file, or -1 */
	int shared;		      /* MAP_SHARED */
	int writable;		      /* PROT_WRITE */
	int is_memfd;
	int is_sysv;	  /* by shmat(): shmdt() unmaps it, of which userfaultfd says nothing */
	uint64_t map_dev; /* the file's device as /proc/self/maps has it; differs from `dev` on btrfs */
};

struct pinl_handle; /* device.h */

struct pinl_change {
	/* Set by the source. */
	enum pinl_op op;
	unsigned also; /* PINL_OPBIT()s: it may be one of these instead, nobody knows; 0: it is op */
	uint64_t newer_than; /* only leases made after this (pinl_newest) are meant; 0: all */
	unsigned can;	     /* PINL_CAN_*: what is still possible for this very change */
	int on_file;	     /* file_* are set, else start and end */
	uintptr_t start, end;
	uint64_t file_dev, file_ino, file_start, file_end;
	pid_t actor_pid, actor_tid; /* 0: not known */
	const char *source;
	/* Called exactly once, by any thread, no lock held. 0: goes on; -errno: refused (only if
	 * PINL_CAN_REFUSE). The core is done with the structure when this is called. */
	void (*answer)(struct pinl_change *change, int err);
	void *arg;

	/* The core's. */
	struct pinl_change *next;
	uint64_t id, since_ns, ceiling_ns;
	int recalled;
	struct pinl_lease *waits_for;

	/* Set by the source: no grace lasts longer than until this (CLOCK_MONOTONIC), as it then does
	 * something itself; 0: as long as it is. */
	uint64_t force_by_ns;

	/* Set by the source: since when nobody waits for it any more, though leases are to be taken back
	 * for it; 0: somebody does, or it can't be held. */
	uint64_t over_ns;

	/* Of the library's own sources: from then on somebody else may have forced the leases, which is
	 * heard of first; 0: nobody does. */
	uint64_t outside_ns;
};

struct pinl_source_ops {
	size_t size;
	const char *name;

	/* -errno and a sentence (pinl_set_error) when this machine doesn't give it. */
	int (*open)(struct pinl_ctx *ctx, const void *arg, void **src);
	void (*close)(void *src);

	/* What this source can do about raw `op`s on this memory: PINL_CAN_*. Probed, never guessed. */
	unsigned (*coverage)(void *src, const struct pinl_memory *mem, enum pinl_op op);

	/* Start and stop watching for a lease. Called in map and unmap, no lock held, balanced. watch
	 * may fail with -EBUSY and such; a source that has no business with this memory returns 0. */
	int (*watch)(void *src, const struct pinl_memory *mem);
	void (*unwatch)(void *src, const struct pinl_memory *mem);

	/* Around a forced replacement of [start, end): stop (1) and start again (0) reporting changes of
	 * these addresses. The caller is the core's worker and would wait for itself otherwise. 0 alone:
	 * what is mapped there may be new; 1 alone: the memory is the library's own. */
	void (*suspend)(void *src, uintptr_t start, uintptr_t end, int suspended);

	/* The device has the memory: the object by which it could be taken away from outside of this
	 * process. -errno: the memory may have changed meanwhile, no lease is made. Called in map, no
	 * lock held. */
	int (*pinned)(void *src, const struct pinl_memory *mem, const struct pinl_handle *handle);

	/* True if the kernel has something for the source that it hasn't begun to take. Any thread. */
	int (*pending)(void *src);

	/* As coverage, for changes by processes that are supervised (pinlease run); those that are not
	 * get what coverage says. NULL: no difference. */
	unsigned (*supervised)(void *src, const struct pinl_memory *mem, enum pinl_op op);

	/* A lease has been made at addresses that an IOMMU translates; whoever watches its memory.
	 * Called in map, no lock held. */
	void (*translated)(void *src);

	/* False if part of what was to be watched has been mapped anew before or while that began, and
	 * isn't watched. Asked in map, between watching and giving the memory to the device. NULL: it
	 * always is. */
	int (*watching)(void *src, const struct pinl_memory *mem);

	/* True if a change of [start, end) that was told of before it took effect, its caller not held,
	 * may still be to come. look: find out, else as it was last found out; what was told of since
	 * counts as to come. Threads of the application's only; NULL: there are none such. */
	int (*going)(void *src, uintptr_t start, uintptr_t end, int look);

	/* A lookup waits for a change to be applied: see whether there is one. As often as it likes, by
	 * any thread of the application's. NULL: this source needs no asking. */
	void (*look)(void *src);

	/* True if all of mem->vma_start to vma_end, not only start to end, is watched from now on until
	 * a change of it is reported or `suspend`. Then watch, unwatch, watching and pinned aren't
	 * called for other registrations of the cache there. Asked with mem watched. NULL: never. */
	int (*whole)(void *src, const struct pinl_memory *mem);

	/* True if the source can keep the file's names while it watches for a lease with PINL_KEEP_NAME;
	 * an error of watch is one of the lease then. NULL: never. */
	int (*keeps_name)(void *src, const struct pinl_memory *mem);

	/* Why it tells of nothing at the moment, for pinl_sources(), a string that stays; NULL: it does.
	 * Any thread, no lock. The member NULL: it always does. */
	const char *(*away)(void *src);
};

/* Before the first lease. -ENOSPC: too many; else what open says. */
int pinl_source_add(struct pinl_ctx *ctx, const struct pinl_source_ops *ops, const void *arg);

/* Report a change; see pinl_change.answer. One without PINL_CAN_HOLD, or that touches no lease, is
 * answered within the call. */
void pinl_change_submit(struct pinl_ctx *ctx, struct pinl_change *change);

/* After a change that was allowed: it has happened, or will not. Until then new leases on its range are
 * refused with -EBUSY. change_id is pinl_change.id, set by submit. */
void pinl_change_done(struct pinl_ctx *ctx, uint64_t change_id);

/* The actor of a change that is not answered yet had to be let go: say so, it is not silent. */
void pinl_change_cut(struct pinl_ctx *ctx, const struct pinl_change *change);

/* The sequence: a reader raises it before it takes a change from the kernel, lowers it when the
 * change is applied. While raised, pinl_lease_check() says -EAGAIN. */
void pinl_changing_begin(struct pinl_ctx *ctx);
void pinl_changing_end(struct pinl_ctx *ctx);

/* Around taking after-the-fact reports from the kernel and submitting them: as soon as a report is taken
 * its caller runs on and may lease the same addresses anew; pinl_map_range() waits for the end of this,
 * so that an old report never hits a new lease. Short: nothing is held inside. */
void pinl_applying_begin(struct pinl_ctx *ctx);
void pinl_applying_end(struct pinl_ctx *ctx);

/* Leases made from now on are newer than this. */
uint64_t pinl_newest(struct pinl_ctx *ctx);

/* True while any lease would want the operations in `ops` held. Cheap, no lock. */
int pinl_wants_hold(struct pinl_ctx *ctx, unsigned ops);

/*
 * Never hold this thread. ASKED: it acts for the core or has asked already, so its changes are no news.
 * INSIDE: it is in a pinl_ call and may have a lease busy; tell what it frees. 0: any other.
 */
#define PINL_EXEMPT_ASKED  1
#define PINL_EXEMPT_INSIDE 2
int pinl_tid_exempt(struct pinl_ctx *ctx, pid_t tid);

/*
 * pinl_script_run - the script source: report the changes listed in `script`, one per line, each
 * answered before the next. For tests and for replaying a recorded sequence; lib/source/script.c has the
 * form. Stops at the first line that is refused (-EBUSY) or not understood (-EINVAL).
 */
int pinl_script_run(struct pinl_ctx *ctx, const char *script);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
