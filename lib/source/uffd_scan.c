/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: a range that comes out of pl_uffd_decode() is what the kernel will tell in its events, or
 * contains it; a call that the kernel refuses for its arguments alone comes out as nothing. No state, no
 * lock, no allocation: the callers may be stopped inside the allocator.
 */
#include "source/uffd_scan.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "os/clock.h"
#include "os/compat.h"

#define LEAVING_NS 2000000000u /* a caller that was let go gets no processor for so long */
#define ZAP_NS	   4000u       /* processor time to discard a page, and */
#define ENTRY_NS   500000u     /* to get to it: a running thread that used more is out of its call */

static int add(struct pl_uffd_range *out, int nr, enum pinl_op op, uintptr_t start, size_t len)
{
	uintptr_t page = sysconf(_SC_PAGESIZE);
	size_t whole = (len + page - 1) & ~(page - 1);

	if ((start & (page - 1)) || !len || whole < len || start + whole < start)
		return nr;
	out[nr] = (struct pl_uffd_range){op, start, start + whole};
	return nr + 1;
}

static size_t page_up(size_t len)
{
	size_t page = sysconf(_SC_PAGESIZE);

	return (len + page - 1) & ~(page - 1);
}

static int decode_mremap(const unsigned long *a, struct pl_uffd_range out[2])
{
	size_t old_len = page_up(a[1]), new_len = page_up(a[2]);
	int nr = 0;

	if (!new_len || (a[3] & ~(unsigned long)(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP)))
		return 0;
	if ((a[3] & (MREMAP_FIXED | MREMAP_DONTUNMAP)) && !(a[3] & MREMAP_MAYMOVE))
		return 0;
	if (!old_len && a[3] == MREMAP_MAYMOVE) /* a second mapping of shared pages; told of as a move */
		return a[0] % sysconf(_SC_PAGESIZE) ? 0 : -ENOMSG;
	if (a[3] & (MREMAP_FIXED | MREMAP_DONTUNMAP) || ((a[3] & MREMAP_MAYMOVE) && new_len > old_len))
		nr = add(out, nr, PINL_OP_REMAP, a[0], old_len);
	else if (new_len < old_len)
		nr = add(out, nr, PINL_OP_UNMAP, a[0] + new_len, old_len - new_len);
	if (a[3] & MREMAP_FIXED)
		nr = add(out, nr, PINL_OP_OVERMAP, a[4], new_len);
	return nr;
}

static int decode_madvise(const unsigned long *a, struct pl_uffd_range out[2])
{
	switch ((int)a[2]) {
	case MADV_DONTNEED:
	case MADV_DONTNEED_LOCKED:
		return add(out, 0, PINL_OP_DONTNEED, a[0], a[1]);
	case MADV_FREE:
		return add(out, 0, PINL_OP_FREE, a[0], a[1]);
	case MADV_REMOVE:
		return add(out, 0, PINL_OP_REMOVE, a[0], a[1]);
	}
	return 0;
}

int pl_uffd_decode(const struct pl_syscall *call, uintptr_t brk, struct pl_uffd_range out[2])
{
	const unsigned long *a = call->args;
	uintptr_t end;

	switch (call->nr) {
	case SYS_munmap:
		return add(out, 0, PINL_OP_UNMAP, a[0], a[1]);
	case SYS_mremap:
		return decode_mremap(a, out);
	case SYS_madvise:
		return decode_madvise(a, out);
#ifdef SYS_mmap
	case SYS_mmap:
		if (!(a[3] & MAP_FIXED) || (a[3] & MAP_FIXED_NOREPLACE))
			return 0;
		return add(out, 0, PINL_OP_OVERMAP, a[0], a[1]);
#endif
	case SYS_brk:
		end = page_up(a[0]);
		return a[0] && end < brk ? add(out, 0, PINL_OP_UNMAP, end, brk - end) : 0;
	case SYS_shmdt:
	case SYS_shmat: /* SHM_REMAP */
	case SYS_remap_file_pages:
#ifdef SYS_process_madvise
	case SYS_process_madvise:
#endif
		return -ENODATA;
	}
	return 0;
}

int pl_uffd_waits(pid_t tid)
{
	char path[48], name[64];
	ssize_t len;
	int fd;

	snprintf(path, sizeof path, "/proc/self/task/%d/wchan", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -ENODATA;
	len = read(fd, name, sizeof name - 1);
	close(fd);
	if (len <= 0 || name[0] == '0')
		return -ENODATA;
	name[len] = 0;
	/* Not somebody who reads a userfaultfd, or who waits for a lock in one of its ioctls. */
	return strstr(name, "userfaultfd") &&
	       (strstr(name, "_wait") || strstr(name, "_complete") || strstr(name, "_remove"));
}

int pl_uffd_look(pid_t tid, bool wchan, struct pl_syscall *call, struct pl_uffd_range range[2])
{
	int waits = wchan ? pl_uffd_waits(tid) : 1, err, nr;

	if (!waits)
		return -ENOENT;
	err = pl_task_syscall(getpid(), tid, call);
	if (err == -ENODATA)
		memset(call, 0, sizeof *call); /* an io_uring worker, perhaps in madvise */
	else if (err)
		return err == -EAGAIN ? err : -ENOENT;
	if (waits < 0) /* was going to sleep; before it says the call, the kernel waits for that */
		waits = pl_uffd_waits(tid);
	nr = err ? err : pl_uffd_decode(call, (uintptr_t)sbrk(0), range);
	if (!wchan && (!nr || nr == -ENODATA))
		return -ENOENT;
	if (waits != 1)
		return waits ? -EAGAIN : -ENOENT;
	return nr < 0 ? 0 : nr;
}

/* Processor time of a thread; UINT64_MAX: it is gone. */
static uint64_t thread_ns(pid_t tid)
{
	clockid_t clock = ~(unsigned)tid << 3 | 6; /* CPUCLOCK_PERTHREAD | CPUCLOCK_SCHED */
	struct timespec t;

	if (clock_gettime(clock, &t))
		return UINT64_MAX;
	return (uint64_t)t.tv_sec * 1000000000u + t.tv_nsec;
}

void pl_uffd_let_go(struct pl_uffd_thread *l, pid_t tid, const struct pl_syscall *call, size_t len)
{
	l->tid = tid;
	l->call = *call;
	l->until_ns = pl_clock_ns() + LEAVING_NS;
	l->until_thread_ns = thread_ns(tid) + ENTRY_NS + len / sysconf(_SC_PAGESIZE) * ZAP_NS;
}

bool pl_uffd_has_left(const struct pl_uffd_thread *l)
{
	struct pl_syscall call = {0};
	int err = pl_task_syscall(getpid(), l->tid, &call);

	if (err == -EAGAIN)
		return thread_ns(l->tid) > l->until_thread_ns || pl_clock_ns() > l->until_ns;
	return err || memcmp(&call, &l->call, sizeof call);
}
