/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Force from outside: the arbiter's handle to a holder's io_uring, to the address space of a device
 * behind an IOMMU, or to an RDMA context, and what it does with it at the deadline, whether the holder
 * runs, is stopped, loops or is deadlocked.
 *
 *     lease made      open, check                      keep the handle with the lease
 *     deadline        scratch (or empty), drained      0: the old pages are unpinned, the change goes on
 *     still pinned    kill, if the policy says so      0: verified gone
 *     lease ended     close
 *
 * All block at most until their deadline (CLOCK_MONOTONIC, ns), whatever the holder does: what could
 * wait for the ring's lock, or for the holder, is done by a child that is left behind at the deadline.
 * Any thread, but for one object one at a time. 0 or -errno with a sentence (pinl_error()).
 *
 * Needs CAP_SYS_PTRACE and kernel.yama.ptrace_scope < 3, CAP_KILL for kill, LimitMEMLOCK=infinity, the
 * holder's pid in this /proc.
 */
#ifndef PL_DAEMON_OUTSIDE_H
#define PL_DAEMON_OUTSIDE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct pl_outside;

enum pl_outside_kind { PL_OUTSIDE_RING, PL_OUTSIDE_VFIO, PL_OUTSIDE_IOMMUFD, PL_OUTSIDE_VERBS };

/* What of the ring, or the address space, a lease has. */
struct pl_outside_buf {
	unsigned slot; /* or the id of the iommufd's address space, the handle of a memory region */
	uintptr_t start, end;
	uint64_t tag; /* the buffer was registered with; 0 = none, then VmPin alone is the proof, and of
			 a process with CAP_IPC_LOCK there is none. Or its first device address */
	unsigned
		twin; /* the id of another address space where it may be, too; 0: none. The region's lkey
		       */
	bool pending; /* pl_outside's own: taken from the device, not yet verified */
	struct pl_outside_drain {
		uint64_t deadline_ns, cancel_at, step_at;
		int cancels, steps; /* to be done yet */
	} drain;		    /* the same */
};

struct pl_outside_heir {
	pid_t pid;
	char name[16];
	bool mapped_only; /* has the ring's memory mapped but no descriptor: that keeps it, too */
};

/*
 * Takes a handle: pidfd_getfd. Proves that pidfd is of `pid` and alive, and that remote_fd is an
 * io_uring (the kernel's name for it, which no file can have). -ESRCH, -EBADF, -EPERM.
 *
 * The handle keeps the ring, and so its pins, alive: close it when the lease ends or when
 * pl_outside_held() says no. pidfd is duplicated.
 */
int pl_outside_open(int pidfd, pid_t pid, int remote_fd, uint64_t deadline_ns, struct pl_outside **o);
void pl_outside_close(struct pl_outside *o);

/*
 * The same with a device's address space: remote_fd is a VFIO container, an iommufd, or an RDMA context
 * with a memory region, which is found out when it is emptied. Scratch: -EOPNOTSUPP. Emptied is
 * unmapped, verified, and so drained; -EPERM: this kernel doesn't do that for another process. To be
 * killed needs no proof but that. `check` and `heirs` are of rings only.
 */
int pl_outside_open_space(int pidfd, pid_t pid, int remote_fd, enum pl_outside_kind kind,
			  uint64_t deadline_ns, struct pl_outside **o);

/* The same with a descriptor of it that somebody else has taken and looked at: this one's from now on;
 * or why he could not, -errno. */
int pl_outside_open_taken(int pidfd, pid_t pid, int remote_fd, enum pl_outside_kind kind, int taken,
			  uint64_t deadline_ns, struct pl_outside **o);
uint64_t pl_outside_device(enum pl_outside_kind kind); /* number of the device file; 0: none */
bool pl_outside_is_of(enum pl_outside_kind kind, uint64_t device, int fd);

/* Can the buffer's be device addresses? -EINVAL: what is there could not be told, so nothing that is
 * said of such is believed. Of a ring: always 0. -EOPNOTSUPP: memory regions, and this build has no
 * verbs. */
int pl_outside_numbers(enum pl_outside_kind kind, const struct pl_outside_buf *b);

/* NULL, or, if there was time to try, why this ring takes no change from another task: then only kill
 * works. */
const char *pl_outside_why(const struct pl_outside *o);

/* Does the holder have this ring still, under the same number? */
bool pl_outside_held(const struct pl_outside *o);

/*
 * Is the lease's range in its slot, and are that many pages accounted to the holder (VmPin)? -ENOENT:
 * the slot has something else. -EPERM: they are not this process's pins; a ring that it inherited or
 * took from another. -ETIMEDOUT: the ring's lock was taken.
 */
int pl_outside_check(const struct pl_outside *o, const struct pl_outside_buf *b, uint64_t deadline_ns);

/*
 * From the return on new requests reach scratch memory, zeroed and of the slot's size, or, emptied, fail
 * with EFAULT. Atomic for the device. Scratch is charged to the arbiter's memory cgroup until the
 * holder takes it out or ends. -EOPNOTSUPP: pl_outside_why(). -ENOMEM: empty it instead. -ETIMEDOUT: the
 * ring's lock was taken; a change may still happen as soon as it is free.
 */
int pl_outside_scratch(struct pl_outside *o, struct pl_outside_buf *b, uint64_t deadline_ns);
int pl_outside_empty(struct pl_outside *o, struct pl_outside_buf *b, uint64_t deadline_ns);

#define PL_OUTSIDE_STEP 1u /* may step a stopped holder, up to 4 instructions per thread */

/*
 * After scratch or empty: 0 when the pages from before are verified unpinned. Requests that don't end
 * by half time are cancelled. A stopped holder (SIGSTOP) doesn't let go of any request in flight, not
 * even of a cancelled one, until it runs: with PL_OUTSIDE_STEP its threads are stepped inside of the
 * stop. -ETIMEDOUT: not verified. After a cancelled request is no danger any more, but its pages are
 * held.
 */
int pl_outside_drained(struct pl_outside *o, struct pl_outside_buf *b, unsigned flags,
		       uint64_t deadline_ns);

/* The same for who waits for several at once: begin, then look while that gives -EAGAIN. */
void pl_outside_drain_begin(struct pl_outside_buf *b, uint64_t deadline_ns);
int pl_outside_drain_look(struct pl_outside *o, struct pl_outside_buf *b, unsigned flags);

/* Who else has the ring, the holder and this process left out. The number of them; up to n are filled.
 */
int pl_outside_heirs(const struct pl_outside *o, struct pl_outside_heir *heirs, int n);

/* A handle to a process of which no ring is known: it can be killed, and that is all. */
int pl_outside_open_process(int pidfd, pid_t pid, struct pl_outside **o);

/* What the machine had pinned before this process was killed by another handle. */
void pl_outside_pins_were(struct pl_outside *o, int64_t pages);

int64_t pl_outside_all_pins(void);     /* pages; -1: not to be known */
int64_t pl_outside_pins_of(pid_t pid); /* accounted to a process; the same */

/* fn(arg) in a child that has no descriptor but fd: 0 or -errno; -ETIMEDOUT: it was left behind */
int pl_outside_try(struct pl_outside *o, int fd, int (*fn)(const void *arg), const void *arg,
		   uint64_t deadline_ns);

/* outside_aside.c: pl_peek_ask(), and pl_peek_take() of what it has left open; any thread */
int pl_outside_ask(pid_t whose, int (*fn)(void *arg), void *arg, size_t len);
int pl_outside_taken(int theirs);
void pl_outside_asked(void); /* this thread asks no more, or anew */

/* As pl_outside_kill() when the process has ended, by itself or not, or has left the ring to others. */
int pl_outside_gone(struct pl_outside *o, const struct pl_outside_buf *bufs, int n,
		    uint64_t deadline_ns);

/*
 * SIGKILL, then wait until the pins are verified gone: 0. -EBUSY: the sentence names the processes that
 * still have the ring. -ETIMEDOUT. Can be called again. The proof is the tags' completions; without
 * them, or if the ring can't be changed from outside, the whole machine's count of pins, which another
 * program may spoil either way. The handle may be given up on the way.
 */
int pl_outside_kill(struct pl_outside *o, const struct pl_outside_buf *bufs, int n,
		    uint64_t deadline_ns);

#endif
