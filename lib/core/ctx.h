/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The core's objects and their locks.
 *
 * ctx->lock covers: the lease index, the files and their leases, every lease's state, recall and job
 * fields, the held changes, the gates, the device list, the extents and the counters. It is held only
 * for short work on these: nothing is allocated, freed, mapped or unmapped under it, no callback,
 * backend or source is called under it (I8), so a source thread may take it at any time. events->lock
 * covers the event ring, mores.lock which leases have a pl_more; both are taken inside ctx->lock, never
 * the other way round. lease->busy: whoever set it (the worker or the thread in unmap) may call the
 * backend for this lease; it replaces a per-lease lock and is waited for on pl_settled(lease).
 *
 * Every exported call that takes a lock or has a cancellation point begins with PL_CALL (os/thread.h): a
 * signal handler that changes watched memory with a lock taken would wait for a source thread that needs
 * that lock, and a cancelled thread would leave it taken.
 *
 * Lifetimes: a lease lives from map to unmap; the worker touches it only while it is queued or busy,
 * and unmap waits for both to end.
 */
#ifndef PL_CORE_CTX_H
#define PL_CORE_CTX_H

#include <pinlease/device.h>
#include <pinlease/source.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#include "core/counted.h"
#include "core/index.h"
#include "core/lease.h"
#include "core/more.h"
#include "core/slab.h"
#include "os/aside.h"
#include "os/clock.h"
#include "os/stage.h"
#include "os/swap.h"
#include "os/thread.h"

/* Beside PINL_CAN_* in pinl_change.can. It is in a pl_order; order.h. */
#define PL_CAN_ORDER 0x100u
/* It has waited for leases already, of which a process knew that isn't there any more. */
#define PL_HAS_WAITED 0x200u
/* Its number is pl_change_number()'s, given before. */
#define PL_HAS_NUMBER 0x400u
/* What becomes of it is said of another one that is held, and that is the same to the actor. */
#define PL_IS_SAID 0x800u

/* Beside PINL_CAN_* in what a source says of supervised processes: those are all but the lease's own. */
#define PL_ALL_OTHERS 0x10u

/* Counted, by a source that tells of everything: heard by the leases only that no other source tells of
 * it. */
#define PL_IS_COUNTED 0x1000u

#define PL_HEAR_NS 2000000000u /* who has nothing to say by then is gone */

#define PL_MAX_SOURCES 8
#define PL_MAX_GATES   2048
#define PL_SETTLED     64
#define PL_MAX_EXEMPT  256
#define PL_MAX_SUMMARY 16
#define PL_MAX_PAST    32
#define PL_EXTENTS     16

/* Where an IOMMU translates, or did, a lease's addresses; fault.c. */
struct pl_past {
	uint64_t dev; /* its number; 0: none */
	uint64_t iova, last;
	struct pinl_event event;
};

/* Where all of a mapping is watched; extent.h. */
struct pl_extent {
	struct pl_range va; /* what is left of the mapping */
	struct pl_ground *ground;
};

struct pl_foreign_ops;
struct pl_cache;

struct pl_source {
	const struct pinl_source_ops *ops;
	void *priv;
};

struct pinl_device {
	struct pinl_ctx *ctx;
	struct pinl_device *next;
	uint64_t number;		     /* from 1 on, no other's in this context, ever */
	const struct pinl_device_ops *given; /* as opened, for pinl_device_priv */
	struct pinl_device_ops ops;	     /* defaults filled in */
	struct pinl_device_info info;
	void *priv;
	const struct pl_foreign_ops *foreign; /* leases of another process, which is told by these */
	struct pinl_lease *leases;	      /* visible ones; ctx->lock */
	bool closing;
	unsigned enders; /* threads in pl_lease_end for a lease of this device */
	struct pl_cache
		*_Atomic cache; /* lib/cache; made by the first that asks, ended with the device */
	void (*cache_close)(struct pl_cache *cache);
};

/* The records: those on a lease's list, those on `free`, and those from `used` on. */
struct pl_losses {
	struct pl_lost *pool, *free;
	unsigned used;
};

/* A file with leases; inode.c. */
struct pl_inode {
	struct pl_node node; /* ctx->inodes, by number */
	struct pl_index leases;
	uint64_t dev, ino;
	unsigned refs;
	int fd;	  /* every lease's mem.fd, O_PATH; -1: can't be opened */
	int real; /* the same file, open in the table of ctx->aside */
};

/* A change that was allowed and may not have happened yet: no new lease on its range. */
struct pl_gate {
	uint64_t id;
	enum pinl_op op;
	pid_t actor_tid;
	bool on_file;
	uint64_t dev, ino, start, end;
};

/*
 * A thread of the application's that works on a lease. What it frees or unmaps is the library's own and
 * must not wait for a lease, least of all its own. Inside a PL_CALL: with a lease busy it must neither
 * be cancelled nor run a signal handler.
 */
struct pl_inside {
	int slot;
};

struct pl_events;
struct pl_later;

struct pinl_ctx {
	pthread_mutex_t lock;
	/* A lease left busy/queued, or its state changed; several, so that few wake for others' leases.
	 */
	pthread_cond_t settled[PL_SETTLED];
	pthread_cond_t ended; /* a thread has left pl_lease_end */
	pthread_cond_t work;  /* the worker has something to do */
	int maps;	      /* /proc/self/maps, to ask what is mapped; -1: read its text */
	uint8_t *alive;	      /* one page, wiped in a forked child */
	unsigned long serial; /* no other context's of this process or the one it was forked from */
	pid_t pid;
	struct pinl_opts opts;

	struct pl_source sources[PL_MAX_SOURCES];
	int n_sources;
	char source_notes[1024]; /* why the missing ones are missing */

	struct pl_index index, inodes, noticed;
	struct pinl_device *devices;
	struct pinl_lease *jobs, **jobs_tail;
	struct pinl_lease *draining, **draining_tail; /* by job_next, too */
	struct pinl_change *held;
	struct pl_gate gates[PL_MAX_GATES];
	int n_gates;
	struct pl_past past[PL_MAX_PAST];
	unsigned n_past;    /* ever */
	uint64_t n_devices; /* ever */
	struct pl_losses losses;
	struct pl_slab slab; /* of leases of the cache */
	struct pl_mores mores;
	struct pl_ground *grounds; /* that no lease stands on any more */
	size_t others;		   /* leases that aren't the cache's, or that move memory */
	struct pl_extent extent[PL_EXTENTS];
	int last_extent, next_extent;
	unsigned long extent_cuts; /* ever */
	unsigned wide_gates;	   /* that found no room in gates */
	uint64_t next_id;
	/* By a source, which is waited for no longer than PL_HEAR_NS: 1 if all have been told that it
	 * had by then; 0: not yet, and it will have them told; -ENOTCONN: nor will it, for nobody is
	 * there. ctx->lock held: no call of the core's. */
	int (*caught_up)(void *src, uint64_t since_ns);
	void *caught_up_arg;
	bool stopping, worker_started;
	pthread_t worker;

	struct pl_aside *aside; /* for calls on descriptors of files */
	struct pl_swap *swap;
	struct pl_bounce *bounce; /* made for the first staged lease */
	struct pl_events *events;
	struct pinl_exporter *exporters;
	uint64_t exported;	/* bytes, ever; for their numbers */
	struct pl_later *later; /* made for the first deferred change; source/later.c */
	void (*later_free)(struct pl_later *later);
	struct pinl_counters counters;
	char (*summary)[256];
	int n_summary;

	/* Read by every lookup in the cache, so on a line of their own. `mark`: memory of the kernel's,
	 * which has a bit of mark_bit while there are changes that the reader hasn't begun to take; or
	 * zero. */
	char before_sequence[64];
	atomic_uint_fast64_t sequence;
	const _Atomic(unsigned) *_Atomic mark;
	_Atomic unsigned mark_bit;
	const struct pl_counts *_Atomic counts;
	char after_sequence[64];
	atomic_int changing;
	atomic_int unmarked;	    /* of those, without a mark */
	atomic_uint_fast64_t round; /* of the source that has the mark; odd: it is in one */
	atomic_uint counts_life;    /* another one: what is counted began at zero again */
	const struct pinl_source_ops *counting;
	atomic_uint applying;		     /* odd: reports are being taken */
	atomic_uint wants_hold;		     /* PINL_OPBITs wanted held by any lease so far */
	_Atomic pid_t exempt[PL_MAX_EXEMPT]; /* negative: inside the library, what it frees is told */

	struct pinl_ctx *next_open; /* for the exit summary */
};

static inline pid_t pl_lease_owner(const struct pinl_lease *lease)
{
	return lease->dev->foreign ? lease->more->owner : lease->ctx->pid;
}

/* Changes are counted that the source hasn't taken, or has taken and not submitted. */
static inline bool pl_counts_behind(const struct pinl_ctx *ctx)
{
	const struct pl_counts *c = atomic_load_explicit(&ctx->counts, memory_order_acquire);

	return atomic_load_explicit(&c->told, memory_order_acquire) !=
	       atomic_load_explicit(&c->applied, memory_order_acquire);
}

static inline pthread_cond_t *pl_settled(struct pinl_lease *lease)
{
	return &lease->ctx->settled[lease->id % PL_SETTLED];
}

/* ctx.c */
int pl_open_core(const struct pinl_opts *opts, struct pinl_ctx **ctx);
/* For a change that an earlier process has let go, and that hasn't happened; until pinl_change_done().
 */
void pl_gate_close(struct pinl_ctx *ctx, struct pinl_change *change);
void *pl_source_priv(struct pinl_ctx *ctx, const struct pinl_source_ops *ops);
bool pl_alive(const struct pinl_ctx *ctx);
int pl_stale(void);
/* By a source: where the kernel says that it has changes for it. NULL: nowhere. */
void pl_mark_set(struct pinl_ctx *ctx, const _Atomic(unsigned) *word, unsigned bit);
/*
 * By the same source, around taking changes: as pinl_changing_begin() and _end(), and it says when it
 * has taken all there were. Each round takes all that were there when it began. step: another round
 * begins, and nobody sees a moment in between in which nothing changes.
 */
void pl_round_begin(struct pinl_ctx *ctx);
void pl_round_step(struct pinl_ctx *ctx);
void pl_round_end(struct pinl_ctx *ctx);
bool pl_wait_applied(struct pinl_ctx *ctx);	/* false: there was nothing to wait for */
int pl_exempt_enter(struct pinl_ctx *ctx);	/* a thread that changes nothing else */
int pl_exempt_enter_call(struct pinl_ctx *ctx); /* any thread; no lock */
pid_t pl_self_tid(const struct pinl_ctx *ctx);	/* gettid() without a system call; ctx is alive */
void pl_inside_begin(struct pinl_ctx *ctx, struct pl_inside *in);
void pl_inside_end(struct pinl_ctx *ctx, const struct pl_inside *in);
void pl_exempt_leave(struct pinl_ctx *ctx, int slot);

/* parts.c (ctx->lock held, or lease busy) */
void pl_range_widen(struct pl_range *range,
		    const struct pl_range *more); /* by an empty one: not at all */
bool pl_lease_overlap(const struct pinl_lease *lease, const struct pinl_change *change,
		      struct pl_range *va);
void pl_lease_cut_detached(const struct pinl_lease *lease, struct pl_range *va);
size_t pl_lease_live_bytes(const struct pinl_lease *lease);
void pl_lease_detach(struct pinl_lease *lease, const struct pl_range *va);
struct pl_range pl_lease_part(const struct pinl_lease *lease, uintptr_t at, uintptr_t end, bool *live);

/* lease.c */
int pl_lease_args(uintptr_t start, uintptr_t end, unsigned flags, const struct pinl_policy *policy);
struct pinl_lease *pl_lease_alloc(struct pinl_device *dev, uintptr_t start, uintptr_t end,
				  unsigned flags, const struct pinl_policy *policy);
/* Uses it up on failure. near: as in pl_lease_how; NULL. */
int pl_lease_start(struct pinl_lease *lease, struct pinl_lease *near, struct pinl_addr *addrs);

/* end.c */
bool pl_lease_begin_end(struct pinl_lease *lease); /* ctx->lock held */
void pl_lease_end(struct pinl_lease *lease, bool leaked);
void pl_lease_withdraw(struct pinl_lease *lease);
void pl_lease_free(struct pinl_lease *lease);

/* inode.c */
struct pl_inode *pl_inode_find(struct pinl_ctx *ctx, uint64_t dev, uint64_t ino); /* ctx->lock held */
int pl_inode_real(struct pinl_ctx *ctx, const struct pinl_memory *mem); /* of a leased file; or -1 */
int pl_inode_under(struct pinl_lease *lease, uintptr_t start, uintptr_t end); /* fills lease->on->mem */
bool pl_inode_known(struct pinl_lease *lease); /* the file has leases: the descriptor is theirs */
int pl_inode_of(struct pinl_lease *lease);     /* by lease->on->mem, whose fd becomes the inode's */
void pl_inode_put(struct pinl_lease *lease);

/* query.c (ctx->lock held); all but size */
void pl_lease_snapshot(const struct pinl_lease *lease, struct pinl_lease_info *info);

/* watch.c */
int pl_lease_watch(struct pinl_lease *lease);
bool pl_source_keeps_name(const struct pl_source *source, const struct pinl_memory *mem);
bool pl_lease_is_watched(const struct pinl_lease *lease);
void pl_lease_unwatch(struct pinl_lease *lease);
void pl_sources_suspend(struct pinl_ctx *ctx, uintptr_t start, uintptr_t end, int suspended);
int pl_lease_validate(struct pinl_lease *lease);
int pl_lease_seal(struct pinl_lease *lease);

/* change.c (ctx->lock held) */
struct pinl_lease *pl_lease_first(struct pinl_ctx *ctx, const struct pinl_change *place);
struct pinl_lease *pl_lease_next(struct pinl_lease *lease, const struct pinl_change *place);
void pl_settle(struct pinl_ctx *ctx, struct pinl_change **answered);
uint64_t pl_cut_overdue(struct pinl_ctx *ctx, struct pinl_change **answered);
void pl_answer_all(struct pinl_ctx *ctx, struct pinl_change *answered); /* no lock */
void pl_change_leave(struct pinl_lease *lease);
void pl_change_join(struct pinl_lease *lease);				      /* a resumed one */
bool pl_would_refuse(struct pinl_ctx *ctx, const struct pinl_change *change); /* takes ctx->lock */

/* gate.c (ctx->lock held) */
bool pl_gate_blocks(const struct pinl_lease *lease);
bool pl_change_pending_on(const struct pinl_lease *lease);

/* recall.c (ctx->lock held) */
void pl_lease_input(struct pinl_lease *lease, enum pl_input input);
void pl_recall_late(struct pinl_lease *lease);
void pl_recall_rest(struct pinl_lease *lease);

/* worker.c */
void *pl_worker(void *ctx);
void pl_job_add(struct pinl_lease *lease, unsigned jobs); /* ctx->lock held */

/* draining.c; ctx->lock held */
bool pl_draining_add(
	struct pinl_lease *lease); /* what was taken from the jobs; false: it is to be done now */
bool pl_draining_look(struct pinl_ctx *ctx); /* at the next; the lock is dropped if that is true */
uint64_t pl_draining_next(const struct pinl_ctx *ctx);

/* lost.c */
void *pl_buffer(size_t len); /* NULL: no memory; ends by munmap() */
bool pl_lost_new(struct pl_losses *losses);
void pl_lost_free(struct pl_losses *losses);
void pl_lost_add(struct pinl_lease *lease, const struct pl_recall *lost); /* this and two more: */
struct pl_lost_list pl_lost_take(struct pinl_lease *lease);		  /* ctx->lock held */
void pl_lost_put(struct pinl_ctx *ctx, const struct pl_lost_list *list);
void pl_lost_live(struct pinl_lease *lease, const struct pl_recall *lost);     /* lease busy, no lock */
void pl_lost_begin(struct pinl_lease *lease, const struct pl_lost_list *list); /* same */

/* take.c, orphan.c (lease busy, no lock) */
int pl_lease_stop(struct pinl_lease *lease, bool quiesced);
struct pl_taken {
	enum pinl_outcome outcome;
	bool whole;
	bool va_lost;  /* some of the addresses turned out to be unmapped */
	bool switched; /* the program has other memory there, whatever became of the device */
	int err;       /* what fell short */
};
int pl_replace(struct pinl_lease *lease, const struct pl_recall *recall, struct pl_taken *taken);
bool pl_stops_first(const struct pinl_lease *lease);
void pl_take(struct pinl_lease *lease, const struct pl_recall *recall, struct pl_taken *taken);
void pl_lease_suspend(struct pinl_lease *lease, const struct pl_range *va, int suspended);
void pl_orphan_begin(struct pinl_lease *lease, const struct pl_recall *lost);
void pl_orphan_end(struct pinl_lease *lease);
/* Found when they are over; ctx->lock held. */
void pl_orphan_past(struct pinl_lease *lease, const struct pl_recall *lost, uint64_t since_ns,
		    uint64_t until_ns);
void pl_orphan_unwritten(struct pinl_lease *lease, const struct pl_recall *why, uint64_t bytes);
void pl_orphan_mark(struct pinl_lease *lease);
void pl_orphan_check(struct pinl_lease *lease);
void pl_orphan_summary(struct pinl_ctx *ctx);

/* stage.c (lease busy, no lock) */
int pl_lease_stage(struct pinl_lease *lease, struct pinl_addr *addrs);
int pl_lease_sync(struct pinl_lease *lease, size_t offset, size_t len, unsigned direction);
void pl_lease_flush(struct pinl_lease *lease, const struct pl_recall *why);
void pl_lease_unstage(struct pinl_lease *lease);

/* event.c */
struct pl_events *pl_events_new(const struct pinl_opts *opts);
void pl_events_stop(struct pl_events *events); /* the callback has returned, and isn't called any more */
void pl_events_free(struct pl_events *events);
void pl_event_push(struct pinl_ctx *ctx, const struct pinl_event *event);

/* How much of an event its caller has; the least is what the first version had. */
#define PL_EVENT_LEAST offsetof(struct pinl_event, access)
size_t pl_event_known(const struct pinl_event *event);
void pl_event_keys(const struct pinl_lease *lease);
void pl_event_lease(const struct pinl_lease *lease, enum pinl_event_type type,
		    const struct pl_recall *recall, struct pinl_event *event);

#endif
