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
#include <unistd.h>

#include "os/compat.h"

static int add(struct pl_uffd_range *out, int nr, enum pinl_op op, uintptr_t start, size_t len)
{
	uintptr_t page = sysconf(_SC_PAGESIZE);
	size_t whole = (len + page - 1) & ~(page - 1);

	if ((start & (page - 1)) || !len || whole < len || start + whole < start)
		return nr;
	out[nr] = (struct pl_uffd_range){ op, start, start + whole };
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
	return strstr(name, "userfaultfd") != NULL;
}
