/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * For authors of device backends. A backend makes one kind of device obey the core: it maps memory
 * for the device and takes it away again. It never decides; policy, order and deadlines are the core's.
 *
 * Only open, close, map and forget may allocate or free: whoever makes a change may have the allocator's
 * lock, and waits for the others. No backend may hold a lock of its own while it writes to memory that
 * isn't its own, which may be in a range that is being switched.
 *
 * The core promises: no lock is held in any call; for one lease calls never overlap, except that
 * `read` may run beside nothing but itself; map comes first, unmap and then forget come last and exactly
 * once.
 *
 * From map's return to forget nothing may be allocated or freed: who makes a change that waits for this
 * lease may hold the allocator's lock. What stop, drain, read, drop, retarget and invalidate need is
 * made in map; what unmap is through with is freed in forget. Members that are NULL behave as their
 * default (lib/backend/default_ops.c): -EOPNOTSUPP, or nothing.
 *
 * Forced SCRATCH:  the VA has new pages -> retarget -> drain
 * Forced COPY:     stop -> drain -> the VA has new pages, filled by `read` -> retarget
 * FAIL, quiesced:  stop -> drain
 */
#ifndef PINLEASE_DEVICE_H
#define PINLEASE_DEVICE_H

#include <pinlease/pinlease.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

enum pinl_device_class {
	PINL_DEV_NONE,	       /* can't be taken anything away from */
	PINL_DEV_QUIESCE_ONLY, /* can be drained by its holder, not revoked */
	PINL_DEV_REVOCABLE,    /* loses access in bounded time */
	PINL_DEV_FAULTING,     /* its page table can be invalidated at any time */
};

#define PINL_DEVCAP_PIN	     0x1u  /* maps with PINL_PIN */
#define PINL_DEVCAP_ONDEMAND 0x2u  /* maps without PINL_PIN */
#define PINL_DEVCAP_READ     0x4u  /* `read` works: COPY, and what was written to orphans */
#define PINL_DEVCAP_RETARGET 0x8u  /* `retarget` works: SCRATCH and COPY */
#define PINL_DEVCAP_FOLLOWS  0x10u /* it does for leases without PINL_PIN: SCRATCH */
#define PINL_DEVCAP_IMPORT                                                                              \
	0x20u /* `import` works: memory of other devices. With RETARGET `dummy`, too */

/* `retarget` works for pinned leases that have been stopped and drained, and gives them new keys: COPY.
 */
#define PINL_DEVCAP_REKEYS 0x40u

struct pinl_device_info {
	enum pinl_device_class device_class;
	unsigned caps;
	const char *why;	/* why not more: one clause, static; NULL = nothing is missing */
	const char *why_pinned; /* the same, for leases with PINL_PIN; NULL: as `why` */
};

/* One lease as its backend sees it. */
struct pinl_mapping {
	uintptr_t start, end;
	unsigned flags;	 /* PINL_WRITE, PINL_PIN */
	uint32_t key;	 /* set by map, and retarget of a device that REKEYS */
	uint32_t rkey;	 /* the same; 0: none. Else the device's addresses are start to end */
	int holder_done; /* the holder itself ends the lease: it says nothing of its own is in flight */
	void *priv;	 /* the backend's own */
	int reads; /* at stop: `read` will be called before drop; else the pages need not be kept */
};

/* A device's object in this process, as another process with the right to could reach it. */
enum pinl_handle_kind {
	PINL_HANDLE_NONE,
	PINL_HANDLE_URING,   /* fd: the ring; key: the slot of its buffer table */
	PINL_HANDLE_VFIO,    /* fd: the container; tag: the first device address */
	PINL_HANDLE_IOMMUFD, /* fd: the iommufd; key: the address space's id; tag: as of VFIO */
	PINL_HANDLE_VERBS, /* fd: the RDMA context; key: the region's handle; twin: its lkey; tag: as of
			      VFIO, and PINL_HANDLE_REKEYS */
};

/* In `tag`: another region may have taken its place, so that it isn't there proves nothing. */
#define PINL_HANDLE_REKEYS 1u

struct pinl_handle {
	enum pinl_handle_kind kind;
	int fd;
	uint32_t key;
	uint32_t twin; /* IOMMUFD: another address space that has it now and then; 0: none */
	uint64_t tag;  /* URING: with which the buffer was registered; 0: none */
};

/* Device memory (exporter.h) in the forms that its exporter has: one of them, or both. They stay as they
 * are until import returns; what is needed longer, the backend takes a reference or a mapping of. */
struct pinl_import {
	size_t size;
	int fd;		 /* the handle; -1: none */
	uint64_t offset; /* of the mapping's first byte in it */
	void *addr; /* the same bytes, mapped in this process by VM_PFNMAP or VM_IO; NULL: nowhere */
	const char *name;
};

struct pinl_device_ops {
	size_t size;
	const char *name;

	/* Probe and open. Sentences for errors: pinl_set_error(). */
	int (*open)(const void *arg, struct pinl_device_info *info, void **dev);
	void (*close)(void *dev);

	/* Give the device the pages now mapped at [start, end); addrs may be NULL. Memory that can't be
	 * pinned: -EOPNOTSUPP with a sentence. */
	int (*map)(void *dev, struct pinl_mapping *m, struct pinl_addr *addrs);

	/* Let everything go, also after stop, also when the device is dead. Can't fail. */
	void (*unmap)(void *dev, struct pinl_mapping *m);

	/* From the return on no *new* transfer reaches the pages; if m->reads they stay readable by
	 * `read`. What keeps them longer than transfers do keeps them while this process is stopped,
	 * too. On an error but -EOPNOTSUPP drain is called all the same, and then this once more. */
	int (*stop)(void *dev, struct pinl_mapping *m);

	/* Wait until no transfer uses pages from before the last stop or retarget; cancel what doesn't
	 * end by itself. -ETIMEDOUT at the deadline: not confirmed. */
	int (*drain)(void *dev, struct pinl_mapping *m, uint64_t deadline_ns);

	/* Content of the pages from before the last retarget, from the device's own pins: during a COPY
	 * [start, end) itself is being filled by this and must not be touched by address. */
	int (*read)(void *dev, struct pinl_mapping *m, size_t offset, size_t len, void *buf);

	/* After stop and drain, and no retarget to come: `read` is no longer needed, let the pages go.
	 */
	void (*drop)(void *dev, struct pinl_mapping *m);

	/* Give the device what is mapped at [start, end) now, at the same device addresses. Atomic for
	 * the device, if not stopped: each transfer has the old pages or the new ones. */
	int (*retarget)(void *dev, struct pinl_mapping *m);

	/* FAULTING: drop the entries of [start, end) and wait for transfers using them. */
	int (*invalidate)(void *dev, struct pinl_mapping *m, uintptr_t start, uintptr_t end);

	int (*protect)(void *dev, struct pinl_mapping *m, uintptr_t start, uintptr_t end);
	int (*dirty)(void *dev, struct pinl_mapping *m, uintptr_t start, uintptr_t end, uint8_t *dirty);

	/* How this mapping could be taken away by another process; stays as it is until unmap. */
	void (*handle)(void *dev, const struct pinl_mapping *m, struct pinl_handle *handle);

	/* After unmap, when nothing waits for the lease any more: free what map has allocated. */
	void (*forget)(void *dev, struct pinl_mapping *m);

	/* As map, for device memory: never pinned, and [start, end) is no addresses, only a length.
	 * What follows is stop, drain, drop, dummy, unmap, forget. -EOPNOTSUPP with a sentence: not in
	 * this form. */
	int (*import)(void *dev, struct pinl_mapping *m, const struct pinl_import *from,
		      struct pinl_addr *addrs);

	/* After import: as retarget, but to `pages`, memory of no meaning that stays until forget. If it
	 * is less than the mapping it is given again and again. */
	int (*dummy)(void *dev, struct pinl_mapping *m, void *pages, size_t len);

	/* After handle: 0, another process has taken the mapping away by it. Asked where pages seem to
	 * have become orphans. */
	int (*holds)(void *dev, const struct pinl_mapping *m);
};

/* pinl_device_open() with operations of your own. */
int pinl_device_open_ops(struct pinl_ctx *ctx, const struct pinl_device_ops *ops, const void *arg,
			 struct pinl_device **dev);

/* The backend's object, for a backend's own extra calls; NULL if dev is not of these ops. */
void *pinl_device_priv(struct pinl_device *dev, const struct pinl_device_ops *ops);

/* Set this thread's error sentence and return err. printf-like. */
int pinl_set_error(int err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
