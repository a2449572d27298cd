/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who has which addresses of a device's address space. Nothing is allocated: a taken range is a node of
 * its owner's. What is given back comes last again, so that a transfer to an address that was let go
 * soon meets no other lease.
 */
#ifndef PL_BACKEND_IOVA_H
#define PL_BACKEND_IOVA_H

#include <stddef.h>
#include <stdint.h>

struct pl_iova_range {
	uint64_t first, last;
};

/* A range that is taken. */
struct pl_iova {
	struct pl_iova *next, *prev; /* by address */
	uint64_t first, last;
};

struct pl_iova_space {
	struct pl_iova_range *ranges; /* ascending, apart from each other */
	unsigned nr;
	struct pl_iova taken;	/* the list's head */
	struct pl_iova *cursor; /* the search begins behind this one, */
	uint64_t from;		/* and not below this address */
};

/* Of `ranges`, the part in [first, last]. -ENOMEM, -ENOSPC: no page of it. */
int pl_iova_open(struct pl_iova_space *s, const struct pl_iova_range *ranges, unsigned nr,
		 uint64_t first, uint64_t last);
void pl_iova_close(struct pl_iova_space *s);

/* Page-aligned len; where that is possible, `va` and the device address are the same modulo 2 MiB if so
 * much is taken: huge pages stay huge. -ENOSPC. */
int pl_iova_take(struct pl_iova_space *s, uint64_t va, size_t len, struct pl_iova *iova);
void pl_iova_give(struct pl_iova_space *s, struct pl_iova *iova);

#endif
