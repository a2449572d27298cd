/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a blocked thread is doing to the address space: from its system call. */
#ifndef PL_SOURCE_UFFD_SCAN_H
#define PL_SOURCE_UFFD_SCAN_H

#include <pinlease/pinlease.h>
#include <stdint.h>
#include <stdbool.h>

#include "os/task.h"

/* What a system call does to a range of addresses. */
struct pl_uffd_range {
	enum pinl_op op;
	uintptr_t start, end;
	uint64_t newer_than; /* only for leases made after this; 0: all */
};

/*
 * How many ranges (0, 1, 2) a system call changes that makes userfaultfd events; 0 also if the kernel
 * will refuse it or it makes none. -ENODATA: it may change something, the arguments don't say what.
 * -ENOMSG: it makes an event, but takes nothing away. `brk`: the end of the heap before the call. Pure.
 */
int pl_uffd_decode(const struct pl_syscall *call, uintptr_t brk, struct pl_uffd_range out[2]);

/* 1: the thread waits for a userfaultfd event to be read, 0: it doesn't, -ENODATA: not known. */
int pl_uffd_waits(pid_t tid);

/*
 * Is the thread blocked by userfaultfd, and in what? Number of ranges, 0: none or not known which.
 * -EAGAIN: it runs, -ENOENT: it isn't. `wchan`: pl_uffd_waits() works here; without it only a call that
 * is known to make events counts.
 */
int pl_uffd_look(pid_t tid, bool wchan, struct pl_syscall *call, struct pl_uffd_range range[2]);

/* A thread that was let go on into madvise of `len` bytes, until it is out of it. */
struct pl_uffd_thread {
	pid_t tid;
	struct pl_syscall call;
	uint64_t until_ns, until_thread_ns;
};

void pl_uffd_let_go(struct pl_uffd_thread *l, pid_t tid, const struct pl_syscall *call, size_t len);
bool pl_uffd_has_left(const struct pl_uffd_thread *l);

#endif
