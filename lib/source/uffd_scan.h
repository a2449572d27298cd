/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a blocked thread is doing to the address space: from its system call. */
#ifndef PL_SOURCE_UFFD_SCAN_H
#define PL_SOURCE_UFFD_SCAN_H

#include <pinlease/pinlease.h>

#include "os/task.h"

/* What a system call does to a range of addresses. */
struct pl_uffd_range {
	enum pinl_op op;
	uintptr_t start, end;
};

/*
 * How many ranges (0, 1, 2) a system call changes that makes userfaultfd events; 0 also if the kernel
 * will refuse it or it makes none. -ENODATA: it may change something, the arguments don't say what.
 * `brk`: the end of the heap before the call. Pure.
 */
int pl_uffd_decode(const struct pl_syscall *call, uintptr_t brk, struct pl_uffd_range out[2]);

/* 1: the thread waits for a userfaultfd event to be read, 0: it doesn't, -ENODATA: not known. */
int pl_uffd_waits(pid_t tid);

#endif
