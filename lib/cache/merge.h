/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef PL_CACHE_MERGE_H
#define PL_CACHE_MERGE_H

#include "cache/cache.h"

#define PL_MAX_MERGE (16ul << 20)

struct pl_union {
	struct pl_range range;
	unsigned access;
	bool alone;		  /* nothing in the tree overlaps it */
	struct pl_region *before; /* what comes before it in the tree; NULL: that isn't known */
};

/* What to register instead of what is wanted. cache->lock held, here and below. */
void pl_union_of(struct pl_cache *c, const struct pl_want *want, struct pl_union *plan);

/* What the plan covers and somebody has. */
struct pl_region *pl_union_used(struct pl_cache *c, const struct pl_union *plan);

/* Take what the plan covers out of the tree; the lock was held since that was made. How many. */
size_t pl_union_clear(struct pl_cache *c, const struct pl_union *plan);

#endif
