/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a change is, from the system call that makes it. Where that doesn't say, it is the one that
 * discards pages of the memory in question, whichever that is: mappings go by few calls, which are all
 * here.
 */
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "os/compat.h"
#include "source/generation.h"

#define BIT(op) PINL_OPBIT(PINL_OP_##op)
#define DISCARDS                                                                                        \
	(BIT(TRUNCATE) | BIT(PUNCH) | BIT(ZERO) | BIT(COLLAPSE) | BIT(INSERT) | BIT(DONTNEED) |         \
	 BIT(REMOVE))

struct change {
	enum pinl_op op;
	unsigned also;
};

static struct change by_advice(unsigned advice)
{
	switch (advice) {
	case MADV_DONTNEED:
	case MADV_DONTNEED_LOCKED:
		return (struct change){PINL_OP_DONTNEED};
	case MADV_REMOVE:
		return (struct change){PINL_OP_REMOVE};
	case MADV_FREE:
		return (struct change){PINL_OP_FREE};
	case MADV_GUARD_INSTALL:
		return (struct change){PINL_OP_GUARD};
	}
	return (struct change){PINL_OP_DONTNEED, BIT(REMOVE) | BIT(GUARD)};
}

static struct change by_mode(unsigned mode)
{
	if (mode & FALLOC_FL_COLLAPSE_RANGE)
		return (struct change){PINL_OP_COLLAPSE};
	if (mode & FALLOC_FL_INSERT_RANGE)
		return (struct change){PINL_OP_INSERT};
	if (mode & FALLOC_FL_ZERO_RANGE)
		return (struct change){PINL_OP_ZERO};
	if (mode & FALLOC_FL_PUNCH_HOLE)
		return (struct change){PINL_OP_PUNCH};
	return (struct change){PINL_OP_PUNCH, BIT(ZERO) | BIT(COLLAPSE) | BIT(INSERT)};
}

/* A call that changes nothing but files, or none at all, as of an io_uring's own thread. */
static struct change other(bool own)
{
	return own ? (struct change){PINL_OP_DONTNEED, DISCARDS | BIT(GUARD)}
		   : (struct change){PINL_OP_TRUNCATE, DISCARDS};
}

static struct change zapped(const struct generation_record *r, bool own)
{
	switch (r->nr) {
	case SYS_munmap:
	case SYS_brk:
	case SYS_shmdt:
		return (struct change){PINL_OP_UNMAP};
	case SYS_mremap: /* what it cuts off, or maps over; what it moves has its own record */
		return (struct change){PINL_OP_UNMAP, BIT(OVERMAP)};
	case SYS_mmap:
	case SYS_shmat:
		return (struct change){PINL_OP_OVERMAP};
	case SYS_madvise:
	case SYS_process_madvise:
		return by_advice(r->how);
	case SYS_fallocate:
		return by_mode(r->how);
	case SYS_truncate:
	case SYS_ftruncate:
#ifdef SYS_open
	case SYS_open:
	case SYS_creat:
#endif
	case SYS_openat:
		return (struct change){PINL_OP_TRUNCATE};
	}
	return other(own);
}

void pl_generation_decode(const struct generation_record *r, bool own, enum pinl_op *op, unsigned *also)
{
	struct change c = r->what == GENERATION_MOVE   ? (struct change){PINL_OP_REMAP}
			  : r->what == GENERATION_FREE ? (struct change){PINL_OP_FREE}
						       : zapped(r, own);

	*op = c.op;
	*also = c.also;
}
