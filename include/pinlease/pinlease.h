/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * pinlease: DMA pins that can be taken back.
 *
 * A lease lends one range of this process's memory to one device under one policy. When the file
 * behind the range or the mapping itself is about to change, the lease is recalled: the holder gets a
 * notice, has a grace to finish, and after the deadline the library takes the pages away from the
 * device by force. The change goes on only when the device can no longer reach the old pages, or it
 * is refused, as the policy says.
 *
 *	struct pinl_ctx *ctx;
 *	struct pinl_device *dev;
 *	struct pinl_lease *lease;
 *	struct pinl_uring_arg arg = { .size = sizeof arg, .ring = &ring };
 *	struct pinl_policy policy = { .size = sizeof policy, .kind = PINL_RECALL,
 *				      .then = PINL_THEN_COPY, .grace_ms = 100 };
 *
 *	pinl_open(NULL, &ctx);
 *	pinl_device_open(ctx, "uring", &arg, &dev);
 *	pinl_map_range(dev, start, end, PINL_WRITE | PINL_PIN, &policy, NULL, &lease);
 *	... I/O with fixed buffer pinl_lease_key(lease); each completion through pinl_uring_cqe()
 *	first; poll pinl_fd(ctx) ...
 *	pinl_unmap_range(lease);
 *	pinl_close(ctx);
 *
 * Conventions
 * - A call that can fail returns 0 or a negative errno value; outputs come last and are untouched on
 *   failure. pinl_error() then has one sentence with the cause and the remedy.
 * - Calls that end or release something return void and can't fail.
 * - Addresses are byte addresses, ranges are [start, end) and page aligned, times are nanoseconds of
 *   CLOCK_MONOTONIC unless a name says otherwise, sizes are bytes.
 * - Objects and places for output must not be NULL; the calls that end an object accept NULL.
 * - Structures whose first member is `size` are set to sizeof by the caller, so that they can grow.
 * - Any thread may call anything. No call is async-signal-safe. pinl_close() and pinl_device_close()
 *   must be the last call on their object.
 * - The explicit calls, pinl_munmap() to pinl_fallocate(), are no cancellation points, although they
 *   wait: a thread that is cancelled meanwhile ends after the change.
 * - The library owns nothing it did not take: it never unmaps memory, closes descriptors or drops
 *   file locks (fcntl(2), flock(2)) of yours, with one exception that is its purpose: a forced SCRATCH
 *   or COPY replaces the recalled part of the leased range by private memory at the same address.
 *   That memory is yours afterwards.
 * - fork: a child inherits no lease. In the child every call on an inherited object returns -ESTALE,
 *   and pinl_unmap_range(), pinl_device_close() and pinl_close() do nothing. A raw clone() behaves
 *   the same way (MADV_WIPEONFORK). The library's own descriptors are closed in a child of fork(). It
 *   does inherit *your ring*, and with it keeps the pins alive until it execs (open rings
 *   close-on-exec) or leaves it: by io_uring_queue_exit(), since a mapping of the ring counts as much
 *   as its descriptor; io_uring_ring_dontfork() in the parent leaves only the descriptor to close.
 */
#ifndef PINLEASE_PINLEASE_H
#define PINLEASE_PINLEASE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

struct pinl_ctx;
struct pinl_device;
struct pinl_lease;
struct io_uring;
struct ibv_pd;
struct ibv_qp;
struct ibv_send_wr;

/* ------------------------------------------------------------------ what can happen to memory -- */

/*
 * Operations that can detach memory from a device. Those up to PINL_OP_INSERT act on a file range,
 * the others on a range of addresses of this process.
 */
enum pinl_op {
	PINL_OP_TRUNCATE, /* truncate, ftruncate, O_TRUNC: from the new size to the end */
	PINL_OP_PUNCH,	  /* fallocate PUNCH_HOLE */
	PINL_OP_ZERO,	  /* fallocate ZERO_RANGE */
	PINL_OP_COLLAPSE, /* fallocate COLLAPSE_RANGE: from the offset to the end */
	PINL_OP_INSERT,	  /* fallocate INSERT_RANGE: from the offset to the end */
	PINL_OP_UNMAP,	  /* munmap, brk; shmdt: only PINL_SOURCE_GENERATION sees it */
	PINL_OP_OVERMAP,  /* mmap(MAP_FIXED), or mremap(MREMAP_FIXED) onto the range */
	PINL_OP_REMAP,	  /* mremap of the range to somewhere else */
	PINL_OP_DONTNEED, /* madvise MADV_DONTNEED, MADV_DONTNEED_LOCKED */
	PINL_OP_FREE,	  /* madvise MADV_FREE */
	PINL_OP_REMOVE,	  /* madvise MADV_REMOVE: a hole punch through a mapping */
	PINL_OP_GUARD,	  /* madvise MADV_GUARD_INSTALL: raw, only PINL_SOURCE_GENERATION sees it */
	PINL_OP_NR,	  /* in an event: none. Source "recall": someone has asked for the memory by
			     pinlease(1) recall, nothing changes it */
};

#define PINL_OPBIT(op) (1u << (op))
#define PINL_OPS_FILE                                                                                   \
	(PINL_OPBIT(PINL_OP_TRUNCATE) | PINL_OPBIT(PINL_OP_PUNCH) | PINL_OPBIT(PINL_OP_ZERO) |          \
	 PINL_OPBIT(PINL_OP_COLLAPSE) | PINL_OPBIT(PINL_OP_INSERT))
#define PINL_OPS_VA                                                                                     \
	(PINL_OPBIT(PINL_OP_UNMAP) | PINL_OPBIT(PINL_OP_OVERMAP) | PINL_OPBIT(PINL_OP_REMAP) |          \
	 PINL_OPBIT(PINL_OP_DONTNEED) | PINL_OPBIT(PINL_OP_FREE) | PINL_OPBIT(PINL_OP_REMOVE) |         \
	 PINL_OPBIT(PINL_OP_GUARD))
#define PINL_OPS_ALL (PINL_OPS_FILE | PINL_OPS_VA)

/* What a source can do about one operation on one kind of memory (pinl_lease_info.coverage). */
#define PINL_CAN_TELL	0x1u /* reports it, at the latest after it happened */
#define PINL_CAN_BEFORE 0x2u /* reports it before it takes effect */
#define PINL_CAN_HOLD	0x4u /* keeps the caller waiting until the recall is over */
#define PINL_CAN_REFUSE 0x8u /* can make it fail */

/* Kinds of memory, found by PROCMAP_QUERY or /proc/self/smaps. */
enum pinl_memory_kind {
	PINL_MEM_ANON,	       /* private anonymous */
	PINL_MEM_SHMEM,	       /* tmpfs, memfd, shared anonymous */
	PINL_MEM_HUGETLB,      /* hugetlbfs, MAP_HUGETLB */
	PINL_MEM_FILE_PRIVATE, /* MAP_PRIVATE of a file on disk */
	PINL_MEM_FILE_SHARED,  /* MAP_SHARED of a file on disk */
	PINL_MEM_DAX,	       /* MAP_SHARED of a file on a DAX file system */
	PINL_MEM_DEVICE,       /* a driver's mmap (VM_IO, VM_PFNMAP) */
	PINL_MEM_SECRET,       /* memfd_secret */
	PINL_MEM_NR,
};

/* ------------------------------------------------------------------------------------ policies -- */

enum pinl_policy_kind {
	PINL_KEEP,   /* let the change go on, keep the pin, report the orphan */
	PINL_RECALL, /* notice, grace, then force */
	PINL_REFUSE, /* make the operations in `refuse` fail with EBUSY; keep under all others */
	PINL_FOLLOW, /* on-demand devices: invalidate, let the device fault again */
};

enum pinl_then {
	PINL_THEN_FAIL,	   /* the device gets errors */
	PINL_THEN_SCRATCH, /* the device goes on in memory of no meaning */
	PINL_THEN_COPY,	   /* device and CPU go on in one private copy of the content */
	/*
	 * As FAIL; and if that can't be done, neither by this library nor by pinleased from outside, as
	 * with a program that hangs and a ring that takes orders from its own thread only, pinleased
	 * kills this process and lets the change go on when its pins are verified gone. Only with
	 * pinleased, on files whose changes it holds.
	 */
	PINL_THEN_KILL,
};

struct pinl_policy {
	size_t size;
	enum pinl_policy_kind kind;
	enum pinl_then then; /* RECALL: what to do at the deadline */
	unsigned grace_ms;   /* RECALL: from notice to deadline; cut to pinl_opts.ceiling_ms */
	unsigned refuse;     /* REFUSE: PINL_OPBIT()s */
};

/* Flags of pinl_map_range(). */
#define PINL_WRITE 0x1u /* the device writes to the memory */
#define PINL_PIN   0x2u /* pin now; without it only an on-demand device can map */
/*
 * The program promises to change the range only by the pinl_ calls below. What no source can see or
 * refuse is then accepted at map time instead of being refused; it is still reported when found.
 */
#define PINL_COOPERATIVE 0x4u
/* Refuse the lease unless every operation that a source can be asked to hold is held. */
#define PINL_STRICT 0x8u
/* REFUSE on a memfd that allows sealing: put F_SEAL_SHRINK and F_SEAL_FUTURE_WRITE on it. Seals stay
 * for the life of the file, longer than the lease. */
#define PINL_SEAL 0x10u
/*
 * Where the kernel doesn't let a device pin a shared file mapping (ext4, XFS, btrfs since Linux 6.5,
 * DAX), lease it by a staged copy: the device works at addresses of its own (addrs[]), and the copy and
 * the file are brought together in map, pinl_lease_sync(), pinl_quiesced(), before a recall takes the
 * device off, and in pinl_unmap_range(), not in between. What the device changed is written to the file
 * by aligned words of 8 bytes; of others' stores only those to the very same words are lost. Costs twice
 * the range in memory, once of it pinned, and copying. Where memory can be pinned itself, the flag does
 * nothing.
 */
#define PINL_STAGE 0x20u
/*
 * While the lease lives nobody takes the file's name: to unlink any name of it, to rename another file
 * over one, or to exchange it with another's fails with EBUSY, whoever does it. To rename it to a name
 * that is free is allowed. Whatever the policy is, until all of the lease was taken back; by pinleased's
 * gate only, on tmpfs, hugetlbfs, ext4 and XFS, for the file's owner and root; of a file that has a
 * name, so not of a memfd.
 */
#define PINL_KEEP_NAME 0x40u

/* -------------------------------------------------------------------------------------- context -- */

struct pinl_event;

struct pinl_opts {
	size_t size;
	unsigned ceiling_ms; /* no change waits longer for a notice; 0 = 10000 */
	unsigned drain_ms;   /* force: bound for in-flight I/O to end; 0 = 1000 */
	int summary_fd;	     /* pinl_close() and exit write the orphan summary there; 0 = stderr,
				-1 = nowhere (the counters still have it) */
	unsigned sources;    /* PINL_SOURCE_*; 0 = PINL_SOURCE_ALL */
	/*
	 * Called for every event from a thread of the library's own, no lock held, so it may call any
	 * pinl_ function but pinl_close(). All signals are blocked there, as in every thread of the
	 * library's, and so in a program that it starts unless it opens them. Events that went here are
	 * not seen by pinl_next_event().
	 */
	void (*on_event)(const struct pinl_event *event, void *arg);
	void *on_event_arg;
};

#define PINL_SOURCE_UFFD   0x1u /* userfaultfd: changes of mappings */
#define PINL_SOURCE_FILES  0x2u /* fanotify: holds and refuses changes of files on ext4, XFS, btrfs */
#define PINL_SOURCE_NOTIFY 0x4u /* inotify and hole scans: tells of changes of files afterwards */
#define PINL_SOURCE_ARBITER                                                                             \
	0x8u /* pinleased, where it runs: changes of files by and for all programs; else the next two   \
	      */
#define PINL_SOURCE_FAULTS                                                                              \
	0x10u /* the kernel's log: transfers that an IOMMU has stopped (PINL_EV_FAULT) */
#define PINL_SOURCE_ALL 0x1fu
/*
 * By pinleased, where its kernel can: all changes of mappings are counted before they take effect, also
 * those that userfaultfd doesn't see (mprotect, guard pages, truncation by others, shmdt), and told of.
 * Only if asked for: it takes one of few places on the machine, and a little of each munmap there. One
 * context of a process can have it.
 */
#define PINL_SOURCE_GENERATION 0x20u

/*
 * pinl_open - make a context: threads, sources, event queue.
 *
 * opts may be NULL. A source that this kernel or these privileges don't give is left out; that is
 * not an error here, but pinl_sources() says it and pinl_map_range() counts on what is there. Where
 * something listens at pinleased's socket its welcome is waited for, ten seconds: it may be starting,
 * and busy; and up to a minute where it breaks off again and again.
 * Errors: -EINVAL opts->size or a flag unknown; -ENOMEM; -EMFILE/-ENFILE no descriptors left;
 * -EAGAIN no thread could be started.
 */
int pinl_open(const struct pinl_opts *opts, struct pinl_ctx **ctx);

/* Ends every lease and device of the context, writes the orphan summary, waits for the threads. */
void pinl_close(struct pinl_ctx *ctx);

/* The sentence for the last failed call of this thread; "" before any. Valid until the next one. */
const char *pinl_error(void);

/* Which sources run, and why the others don't: one line each. As snprintf: returns the length. */
int pinl_sources(struct pinl_ctx *ctx, char *buf, size_t len);

/*
 * pinl_watch_fs - prepare the file system of `path` for holding changes on files leased later.
 *
 * fanotify reports punch, collapse and the like only from descriptors opened while the file system
 * had a mark. The first lease on a file system sets that mark; programs that open their files before
 * that call this first. Truncation is always seen. Errors: -EOPNOTSUPP when the files source is
 * missing or the file system can't be watched; any errno of opening `path`.
 */
int pinl_watch_fs(struct pinl_ctx *ctx, const char *path);

/* -------------------------------------------------------------------------------------- devices -- */

/*
 * Argument of the "uring" device. When a force has to cancel requests in flight, it can pick them by
 * kind only: fixed-buffer requests of this ring may then end with -ECANCELED whichever buffer they use;
 * submit them again. Facility: io_uring_register(2), IORING_REGISTER_BUFFERS_UPDATE. */
struct pinl_uring_arg {
	size_t size;
	struct io_uring *ring; /* yours, stays yours; must outlive the device */
	unsigned slots;	       /* sparse table to make; 0 = 1024. Ignored if first_slot/nr_slots given */
	unsigned first_slot;   /* the part of an existing table of yours that leases may use */
	unsigned nr_slots;     /* 0 = no table yet, make one */
};

/* Argument of the "soft" device: a DMA engine thread with its own page table. NULL = all defaults. */
struct pinl_soft_arg {
	size_t size;
	int device_class; /* enum pinl_device_class of device.h + 1; 0 = FAULTING */
};

/* How a memory region is taken away (pinl_verbs_arg.means). In the end it is always deregistered, which
 * waits for transfers; these say how new ones are stopped. */
#define PINL_VERBS_REREG 0x1u /* rights and protection domain are taken from it */
#define PINL_VERBS_DEREG 0x2u /* it is deregistered at once */
#define PINL_VERBS_QP	 0x4u /* the queue pairs in `qps` go to the error state; ends all they do */
/*
 * Peers get to a pinned lease only by a memory window of its own (type 2), which the program binds to it
 * by pinl_verbs_bind() on the queue pair that the peer is connected to; and the window is taken away, at
 * once and without effect on other leases or the queue pair. Leases without PINL_PIN have none; those
 * with one can't be taken back from outside by pinleased, and can't be given a COPY.
 */
#define PINL_VERBS_MW 0x8u

/* Flags of pinl_verbs_arg. */
/*
 * Every transfer of a lease without PINL_PIN begins at a page boundary and has whole pages, and its path
 * MTU is the page size: then on-demand regions may be used where they work only so (soft-RoCE).
 */
#define PINL_VERBS_WHOLE_PAGES 0x1u
/*
 * Pin each pinned lease's pages a second time, by an io_uring, to read them back: then there is COPY,
 * after which the lease has new keys (PINL_EV_KEYS), and what peers write to orphans is known. Counts
 * against RLIMIT_MEMLOCK twice; memory that io_uring can't pin, as read-only mappings, can't be leased.
 */
#define PINL_VERBS_READ 0x2u

/*
 * Argument of the "verbs" device: an RDMA device, seen through one protection domain. A lease is a
 * memory region: with PINL_PIN a pinned one, without it an on-demand one (ODP). When it is taken back,
 * peers that still use its key get "remote access error", which ends their queue pair; a new lease has
 * new keys (addrs[], PINL_EV_KEYS). Opening tries on memory of its own what the device can do. Facility:
 * the kernel's uverbs commands REG_MR, REREG_MR, DEREG_MR, on a duplicate of the context's descriptor.
 */
struct pinl_verbs_arg {
	size_t size;
	struct ibv_pd *pd; /* yours, stays yours; it and its context must outlive the device */
	unsigned access;   /* of peers: IBV_ACCESS_REMOTE_READ, _WRITE, _ATOMIC;
			      IBV_ACCESS_RELAXED_ORDERING. Leases without PINL_WRITE get those of it that
			      don't write */
	unsigned means;	   /* PINL_VERBS_* to choose from, what works of MW, REREG, DEREG, QP in this
			      order; 0 = REREG or DEREG */
	unsigned flags;
	unsigned n_qps; /* for PINL_VERBS_QP */
	struct ibv_qp *const *qps;
};

/* Flag of the devices behind an IOMMU ("vfio", "iommufd"): don't pin each lease's pages a second time,
 * by an io_uring, which is how they are read back. Then there is no COPY, and what the device writes to
 * orphans isn't known; but memory that io_uring can't pin, as read-only mappings, can be leased. */
#define PINL_DMA_NO_READ 0x1u

/*
 * Argument of the "vfio" device: a VFIO container with a type1 IOMMU, and with at least one group in it.
 * Leases are mappings in the container, for all its devices; their addresses (addrs[].addr) are taken
 * from [iova_first, iova_last], which the program's own mappings leave alone. Say a range that the
 * device can address. A force unmaps: what the device then sends there faults in the IOMMU, also a
 * transfer that had begun, and whether the device notices is the device's. Other pages at the same
 * addresses (SCRATCH, COPY) take an unmap and a map, 0.1 to 0.4 ms in which all of the lease faults.
 * Facility: linux/vfio.h.
 */
struct pinl_vfio_arg {
	size_t size;
	int container; /* of /dev/vfio/vfio; yours, stays yours */
	unsigned flags;
	uint64_t iova_first, iova_last; /* 0, 0: all that the IOMMU translates, but page 0 */
};

struct pinl_iova_range {
	uint64_t first, last;
};

/*
 * Argument of the "iommufd" device: an address space (IOAS) of /dev/iommu, with its devices attached,
 * for all of which leases are mappings as in a VFIO container. With `devices` SCRATCH and COPY give them
 * other pages in one step: for a moment they are attached to a second address space, which has the
 * leases and `own`. Without, or where that can't be done, by an unmap and a map. Facility:
 * linux/iommufd.h.
 */
struct pinl_iommufd_arg {
	size_t size;
	int iommufd;	  /* of /dev/iommu; yours, stays yours */
	uint32_t ioas_id; /* of IOMMU_IOAS_ALLOC */
	unsigned flags;	  /* PINL_DMA_NO_READ */
	unsigned nr_devices;
	uint64_t iova_first, iova_last; /* as above */
	/* Every device attached to the IOAS, as a descriptor of /dev/vfio/devices/. They are used, not
	 * duplicated, since the kernel takes a device away only when all its descriptors are closed.
	 * From the first that is closed on it is by an unmap and a map. */
	const int *devices;
	const struct pinl_iova_range *own; /* all that the program itself has mapped there, for good */
	unsigned nr_own;
};

/*
 * pinl_device_open - open a device of `kind` ("uring", "verbs", "vfio", "iommufd", "soft") with its
 * argument.
 *
 * Errors: -EINVAL unknown kind or argument; -EOPNOTSUPP the device can't be revoked from another
 * thread (IORING_SETUP_SINGLE_ISSUER), the kernel or this build lacks what the backend needs, or none of
 * pinl_verbs_arg.means works; -EBADF closed ring, no container, no iommufd; -EBUSY the ring has a buffer
 * table and no slot range was given; -ENODEV the RDMA device is gone, a container without a group and
 * its IOMMU; -ENOMEM.
 */
int pinl_device_open(struct pinl_ctx *ctx, const char *kind, const void *arg, struct pinl_device **dev);

/* Ends the leases that are left on the device (reported as leaks with their owners), then the device. */
void pinl_device_close(struct pinl_device *dev);

/*
 * Every completion of a ring given to a "uring" device must go through here first. True: it is
 * pinlease's own (the last request on a buffer's old content has ended), skip it; its user_data has
 * 0x70696e6c in the upper half, which yours must not have. A holder that leaves this out takes them for
 * completions of its own, and drains are then only confirmed while the completion is unread.
 */
int pinl_uring_cqe(struct pinl_device *dev, uint64_t user_data);

/*
 * pinl_verbs_bind - fill in the request that binds a lease's memory window (PINL_VERBS_MW).
 *
 * Sets wr's opcode and bind_mw; wr_id, next and send_flags are yours. Post it by ibv_post_send() on the
 * queue pair whose peer is to use the lease; when it has completed, tell the peer the lease's rkey. Once
 * for a lease: a window is bound to one queue pair, and when that has failed a new lease is needed.
 * Peers of other queue pairs have no access (type 2B). Errors: -EOPNOTSUPP the lease has no window:
 * its rkey works as it is.
 */
int pinl_verbs_bind(struct pinl_lease *lease, struct ibv_send_wr *wr);

/*
 * pinl_soft_dma - one transfer by the soft device, between device address `daddr` and `buf`; waits
 * for it. write != 0: the device writes to the leased memory. Errors: -EFAULT the device's page
 * table has no (writable) entry and it can't fault one in; -EINVAL not a soft device; -ENODEV it is
 * closed.
 */
int pinl_soft_dma(struct pinl_device *dev, uint64_t daddr, void *buf, size_t len, int write);

/*
 * Stop (1) or let go (0) the soft device's engine between two pages of a transfer: how tests and
 * programs get a transfer that is in flight for as long as they like.
 */
int pinl_soft_pause(struct pinl_device *dev, int paused);

/* Write-protect the device's pages of [start, end), or read and clear their dirty bits: one byte per
 * page, 1 = the device wrote it since the last call. N2, N3. -EOPNOTSUPP: the device can't. */
int pinl_device_protect(struct pinl_lease *lease, uintptr_t start, uintptr_t end);
int pinl_device_dirty(struct pinl_lease *lease, uintptr_t start, uintptr_t end, uint8_t *dirty);

/* --------------------------------------------------------------------------------------- leases -- */

/* One per page. uring: addr = the VA, or that of the staged copy, key = the fixed buffer's index. verbs:
 * the same address, key and rkey for the program itself and for peers. soft: addr = device address.
 * vfio, iommufd: addr = IOVA. */
struct pinl_addr {
	uint64_t addr;
	uint32_t key;
	uint32_t rkey; /* verbs; else 0 */
};

/*
 * pinl_map_range - lease [start, end) to a device.
 *
 * addrs, if not NULL, gets one entry per page. The lease is watched before the device may use it.
 * Errors:
 * -EINVAL      not page aligned, empty, overflowing, above user space, two mappings of different
 *              kinds, unknown flag or policy
 * -ENOMEM      part of the range is not mapped; RLIMIT_MEMLOCK (the sentence names it); out of memory
 * -EACCES      PINL_WRITE on a mapping without write permission
 * -EEXIST      overlaps a lease on the same device; vfio, iommufd: the program has a mapping of its
 *              own there
 * -EOPNOTSUPP  the policy can't be kept with this device, memory and sources, or this memory can't be
 *              pinned (the sentence says which part, and what would do); SCRATCH or COPY where another
 *              device leases the same addresses; KILL without pinleased, or where it may not
 * -EBUSY       another userfaultfd owns the mapping, or a change of the range is under way
 * -ENOSPC      the device's table is full, or none of its addresses are left
 * -EDQUOT      pinleased has enough leases of this user
 * -ENOTCONN, -ETIMEDOUT  pinleased went away, or doesn't answer, in the middle of it: try again
 * -EBADF, -ENODEV        the ring is closed, the device is dead
 * -EMFILE, -ENFILE       no descriptors left
 * -EIO         what is mapped there can't be found out
 */
int pinl_map_range(struct pinl_device *dev, uintptr_t start, uintptr_t end, unsigned flags,
		   const struct pinl_policy *policy, struct pinl_addr *addrs, struct pinl_lease **lease);

/* Pages that follow each other at the device, too: one scatter/gather element. `at` is the first page's
 * entry, len is in bytes. */
struct pinl_run {
	struct pinl_addr at;
	uint64_t len;
};

/*
 * pinl_addrs_coalesce - the n entries of addrs, which pinl_map_range() has filled, as runs, however
 * large or small the pages of memory behind them are.
 *
 * Fills runs[0] to runs[max - 1] and sets *found to how many there are: more than max means that the
 * rest is missing. Errors: -EINVAL a pointer is missing.
 */
int pinl_addrs_coalesce(const struct pinl_addr *addrs, size_t n, struct pinl_run *runs, size_t max,
			size_t *found);

/* Takes the memory from the device (bounded by pinl_opts.drain_ms) and ends the lease and the handle.
 * Data the device wrote is in the file's dirty pages or the private memory as after any store. */
void pinl_unmap_range(struct pinl_lease *lease);

/*
 * pinl_quiesced - the holder's answer to a notice: no I/O of mine uses the lease any more. The
 * library takes the range from the device and lets the change go on. Also fine without a notice.
 * -EALREADY: the deadline was first.
 */
int pinl_quiesced(struct pinl_lease *lease);

/*
 * pinl_lease_sync - bring a staged lease's copy and its file together in [offset, offset+len) of the
 * lease.
 *
 * PINL_FOR_CPU: after the device has written; the file has its data then, as after a store.
 * PINL_FOR_DEVICE: before the device reads what the CPU has stored; no transfer may write to the range
 * meanwhile. Both may be given. A lease that isn't staged is coherent anyway: 0. Errors: -EINVAL not
 * inside the lease; -ESTALE taken back; -ENODATA some of what the device wrote has no place in the file
 * any more (truncated): read it by pinl_lease_read(), it is reported as an orphan.
 */
#define PINL_FOR_CPU	0x1u
#define PINL_FOR_DEVICE 0x2u
int pinl_lease_sync(struct pinl_lease *lease, size_t offset, size_t len, unsigned direction);

/* The index or key that goes with the lease's addresses (uring: buf_index; verbs: lkey). */
uint32_t pinl_lease_key(struct pinl_lease *lease);

/* The key that peers use with the lease's addresses; verbs only, else 0. */
uint32_t pinl_lease_rkey(struct pinl_lease *lease);

/*
 * 0: nothing had happened to the range when the call began; -EAGAIN: a change is being applied, perhaps
 * of other memory; -ESTALE: recalled. The kernel makes an unmapped range free for others a moment (some
 * instructions) before it reports that; only the explicit calls close this gap. Costs a poll(2).
 */
int pinl_lease_check(struct pinl_lease *lease);

/* A pointer of yours; comes back in events. Set before it is needed; not locked. */
void pinl_lease_set_cookie(struct pinl_lease *lease, void *cookie);

enum pinl_state {
	PINL_ACTIVE,   /* the device may use it */
	PINL_NOTICED,  /* the holder has been told, the deadline is armed */
	PINL_FORCING,  /* quiesced or past the deadline: being taken from the device */
	PINL_RELEASED, /* the device can't reach the old pages any more */
};

enum pinl_outcome {
	PINL_OUT_NONE,
	PINL_OUT_QUIESCED, /* by the holder, in time */
	PINL_OUT_FAIL,	   /* forced; requests now fail */
	PINL_OUT_SCRATCH,
	PINL_OUT_COPY,
	PINL_OUT_KILLED, /* with its process; seen by pinleased only */
};

struct pinl_lease_info {
	size_t size;
	uint64_t id; /* unique in this context */
	pid_t owner; /* process */
	pid_t owner_thread;
	const void *caller; /* return address of pinl_map_range: who took it */
	uintptr_t start, end;
	uint64_t since_ns, age_ns;
	enum pinl_state state;
	enum pinl_outcome outcome;
	enum pinl_memory_kind memory;
	uint64_t file_dev, file_ino, file_offset; /* 0 where there is no file */
	struct pinl_policy policy;
	unsigned flags;
	uint64_t detached_bytes; /* now on scratch or copy */
	uint64_t orphan_bytes;	 /* the device still has, file or mapping let go */
	uint8_t coverage[16];	 /* per enum pinl_op: PINL_CAN_*, for changes made raw by anyone */
	uintptr_t stage;	 /* where the device's copy is; 0: it has the memory itself */
	unsigned detaching;	 /* PINL_OPBIT()s of what takes pages from this lease; a policy has to
				    cover all of them but PINL_OP_GUARD */
	int device_class;	 /* enum pinl_device_class, as the backend found it */
	struct pinl_device *device;
	char device_kind[16]; /* "uring", "verbs", "soft" */
	void *cookie;
	uint8_t supervised[16]; /* as coverage, for processes under `pinlease run`, or at pinleased's
				   gate */
	char exporter[64]; /* whose device memory it is (exporter.h), file_offset is in that; "": memory
			    */
};

int pinl_lease_info(struct pinl_lease *lease, struct pinl_lease_info *info);

/*
 * Which leases: those that fit everything that is set here. Zeroed but for `size`: all that a device can
 * still reach.
 */
struct pinl_filter {
	size_t size;
	uintptr_t start, end;	       /* have one of these addresses; end 0: any */
	uint64_t file_dev, file_ino;   /* are on this file (pinl_filter_file); file_ino 0: any */
	uint64_t file_start, file_end; /* and have one of these bytes of it; file_end 0: to its end */
	struct pinl_device *device;    /* are on this device; NULL: any */
	pid_t pid, tid;		       /* of who took it, its process and thread; 0: any */
	unsigned policies;	       /* PINL_POLICYBIT()s; 0: any */
	unsigned states;	       /* PINL_STATEBIT()s; 0: all but PINL_RELEASED */
};

#define PINL_POLICYBIT(kind) (1u << (kind))
#define PINL_STATEBIT(state) (1u << (state))

/*
 * pinl_query - who has this leased, since when, under which policy.
 *
 * Fills infos[0] to infos[max - 1] with the leases that fit `filter`, in the order of their addresses
 * (of their offsets when asked by file), and sets *found to how many fit: more than max means that the
 * rest is missing. infos[0].size is set by the caller, as the distance from one to the next, too; infos
 * may be NULL if max is 0. It is one moment's picture: no lease comes, goes or changes while it is
 * taken, and recalls wait for it, about a tenth of a microsecond for each lease that is looked at. These
 * are the leases whose addresses, or whose file and bytes, fit, or else all.
 *
 * A part of a lease that has been moved to scratch or copy is not on the file any more. A lease that has
 * been released is there until it is unmapped, and asked for by `states`.
 *
 * Only leases of this context are known, so `pid` is this process or finds nothing. Errors: -EINVAL a
 * size or a bit is unknown, a range ends before it starts; -ENOMEM.
 */
int pinl_query(struct pinl_ctx *ctx, const struct pinl_filter *filter, struct pinl_lease_info *infos,
	       size_t max, size_t *found);

/* Set file_dev and file_ino to those of an open file, or of the file at `path`. Any errno of fstat,
 * stat. */
int pinl_filter_file(struct pinl_filter *filter, int fd);
int pinl_filter_path(struct pinl_filter *filter, const char *path);

/* The lease in words: range, file, device, policy, what is held and what is only told. As snprintf. */
int pinl_lease_describe(struct pinl_lease *lease, char *buf, size_t len);

/*
 * The content the device holds, page by page, wherever file and mapping have gone: how a holder
 * rescues orphaned bytes. `offset` from the lease's start. -EOPNOTSUPP: the device can't be read.
 * -ENODATA: the lease has been quiesced or failed, the pages are let go: read before that.
 */
int pinl_lease_read(struct pinl_lease *lease, size_t offset, size_t len, void *buf);

/* --------------------------------------------------------------------------------------- events -- */

enum pinl_event_type {
	PINL_EV_NOTICE,	    /* quiesce before deadline_ns, then pinl_quiesced() or pinl_unmap_range() */
	PINL_EV_QUIESCED,   /* the holder answered in time */
	PINL_EV_FORCED,	    /* the deadline passed: outcome says what was done, err if it fell short */
	PINL_EV_RELEASED,   /* the device is off the old pages; I3 holds from here */
	PINL_EV_ANSWERED,   /* the actor goes on, as far as this process is concerned; waited_ns says how
			       long it was held, 0: it wasn't, the change was only told of */
	PINL_EV_REFUSED,    /* the actor got err */
	PINL_EV_FOLLOWED,   /* an on-demand device was invalidated */
	PINL_EV_ORPHAN,	    /* the device has pages that file or mapping let go; err -ENODATA: bytes
			       that a staged device wrote have no place in the file any more */
	PINL_EV_ORPHAN_END, /* they are released; bytes = what the device wrote there since they were
			       found, waited_ns how long they were orphans; err: what was written isn't
			       known */
	PINL_EV_DEGRADED,   /* a guarantee is weaker than asked for: err -EBUSY could not be refused,
			       -EAGAIN other processes wait no more for a lease with RECALL, -EALREADY
			       told only after it took effect, -EOPNOTSUPP op is not seen raw, -EINTR
			       let go before the recall was over (start, end or file_*: the change),
			       -ETIMEDOUT the lease has ended, and its device may be at its memory
			       still, -ENOTCONN the connection to pinleased broke; with a lease: pinleased
			       can't be told of that one again, as its file can't be opened any more;
			       -EOVERFLOW source "generation" couldn't tell of all that it counted */
	PINL_EV_LEAK,	    /* the device or context was closed with this lease on it */
	PINL_EV_DROPPED,    /* bytes = events lost because nobody read them: the oldest; pinl_query() has
			       the leases that wait for an answer (PINL_NOTICED) */
	PINL_EV_DEFERRED_DONE, /* the deferred change change_id was made, or err says why not */
	PINL_EV_FAULT, /* an IOMMU has stopped a transfer of `device` at device_addr; the lease, if any,
			  that is or was there, and its page. Told by the kernel's log, which leaves
			  out many: none of these events doesn't mean no fault */
	/*
	 * verbs: from now on the lease is reached by `key` (the program's own requests) and `rkey`
	 * (peers) from `addr` on, and by no keys it had before: of a new lease, whose cookie isn't set
	 * yet, and after a COPY that has changed them. Told before pinl_map_range() returns, though a
	 * NOTICE may be told still earlier: tell the peers.
	 */
	PINL_EV_KEYS,
};

struct pinl_event {
	size_t size;
	enum pinl_event_type type;
	enum pinl_op op;
	enum pinl_outcome outcome;
	int err;
	uint64_t time_ns;
	uint64_t deadline_ns;
	uint64_t waited_ns;
	uint64_t lease_id; /* 0 where an event is about a change, not a lease */
	uint64_t change_id;
	void *cookie;
	pid_t holder;
	pid_t actor_pid, actor_tid; /* 0: not known */
	uintptr_t start, end;	    /* the part of the lease concerned */
	uint64_t file_dev, file_ino, file_start, file_end;
	uint64_t bytes;
	char source[12]; /* who saw it */
	/* FAULT: */
	unsigned access;      /* PINL_WRITE, or 0: it would have read */
	uint64_t device_addr; /* or of its page, where only that is known */
	char device[24];      /* of PCI, as 0000:00:04.0 */
	/* KEYS: */
	uint64_t addr; /* of `start`, for the device */
	uint32_t key, rkey;
};

/* Readable while events wait. Only to poll; never read or close it. */
int pinl_fd(struct pinl_ctx *ctx);

/*
 * Takes the oldest event. event->size is set by the caller, and so much of it is filled in: a program
 * that was built with an older header has the members it knows, and size then says how many bytes of it
 * are set. Errors: -EAGAIN there is none; -EINVAL size is none that ever was (0, say), and nothing is
 * taken.
 */
int pinl_next_event(struct pinl_ctx *ctx, struct pinl_event *event);

/* The event in one line of words, event->size bytes of it. As snprintf. */
int pinl_event_format(const struct pinl_event *event, char *buf, size_t len);

const char *pinl_op_name(enum pinl_op op);
const char *pinl_state_name(enum pinl_state state);
const char *pinl_outcome_name(enum pinl_outcome outcome);
const char *pinl_memory_name(enum pinl_memory_kind kind);

struct pinl_counters {
	size_t size;
	uint64_t leases, mapped, unmapped; /* now; ever */
	uint64_t bytes;			   /* leased now */
	uint64_t notices, quiesced, forced, refused, answered, followed;
	uint64_t orphans, orphan_bytes, orphan_bytes_written; /* ever */
	uint64_t leaks, events_dropped, drains_unconfirmed;
	uint64_t sequence; /* odd: a change is being applied */
	uint64_t faults;   /* told by PINL_EV_FAULT, ever */
};

int pinl_counters(struct pinl_ctx *ctx, struct pinl_counters *counters);

/* ------------------------------------------------------------------------------- explicit calls -- */

/*
 * The system calls of the same names, with every policy kept exactly on every kind of memory: told
 * before, held until recalled, refused with -EBUSY. -errno of the system call otherwise. Memory and
 * files without leases are passed on at once. The calls may be made by the holder itself, also from
 * an event callback: its own changes recall its leases like anyone's.
 *
 * MADV_REMOVE asks about the pages of the file, by whatever mapping they are leased, and makes its hole
 * by a descriptor of the library's own where it can have one: then also where the mapping is locked.
 */
int pinl_munmap(struct pinl_ctx *ctx, void *addr, size_t len);
int pinl_mremap(struct pinl_ctx *ctx, void *addr, size_t old_len, size_t new_len, int flags,
		void *new_addr, void **out);
int pinl_madvise(struct pinl_ctx *ctx, void *addr, size_t len, int advice);
int pinl_ftruncate(struct pinl_ctx *ctx, int fd, off_t size);
int pinl_fallocate(struct pinl_ctx *ctx, int fd, int mode, off_t offset, off_t len);

/*
 * pinl_invalidate - what devices find by these addresses becomes something else, although no system call
 * changes the mapping: an allocator takes back memory that isn't the kernel's, as that of a GPU, and
 * will give out the addresses again (docs/device-allocators.md).
 *
 * Asked and told as pinl_munmap(): when change(arg) is called no device has what was there, no
 * pinl_get() finds it, and none can lease the range until it has returned; what is leased from then on
 * is what is there then. So the memory is given back in `change`, which may not lease the range itself.
 * NULL: it can be reused at any time after the return, if until then nobody registers it.
 *
 * Nothing is done to the mapping, but leases with SCRATCH or COPY put memory there as with any change:
 * use FAIL or FOLLOW. Whole pages: addr is page aligned, len is rounded up. Returns what `change`
 * returned. Errors, and then it wasn't called: -EINVAL; -EBUSY a lease refuses, the memory has to stay.
 */
int pinl_invalidate(struct pinl_ctx *ctx, void *addr, size_t len, int (*change)(void *arg), void *arg);

/*
 * pinl_ftruncate_later, pinl_fallocate_later - the same, and the caller doesn't wait: the change is made
 * as soon as no lease of anybody's is under it any more, quiesced or forced, and then an event
 * PINL_EV_DEFERRED_DONE with *id in change_id says so, or that it could not be made: -EBUSY refused by a
 * lease, another errno of the system call, -ENOTCONN pinleased has gone and may have made it or not.
 *
 * Changes of one file are made in the order of the calls. What has become of the file meanwhile doesn't
 * matter: the size or the range is applied as given then. fd can be closed at once. Where pinleased
 * holds changes of the file it makes them, also if this process ends; else a thread of this process
 * does, one after the other, and pinl_close() waits for them.
 *
 * mode is one that takes pages away: with FALLOC_FL_PUNCH_HOLE, ZERO_RANGE, COLLAPSE_RANGE or
 * INSERT_RANGE. Errors: -EBADF, -EINVAL not a regular file open for writing, a mode or range that can't
 * be; -EAGAIN, -EDQUOT too many are under way; -ENOMEM, -EMFILE no thread could be made.
 */
int pinl_ftruncate_later(struct pinl_ctx *ctx, int fd, off_t size, uint64_t *id);
int pinl_fallocate_later(struct pinl_ctx *ctx, int fd, int mode, off_t offset, off_t len, uint64_t *id);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
