/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What goes when there are too many: a clock. Its hand goes round over all regions; one that was found
 * since the hand was there is spared this time. Finding a region writes to it only once per round, so
 * hits don't take the line from each other.
 */
#include "cache/cache.h"

static bool is_evictable(struct pl_cache *c, struct pl_region *r)
{
	if (!pl_rest(r)->in_tree || !(atomic_load(&r->gen) & PL_GEN_VALID))
		return false;
	if (atomic_load_explicit(&r->used, memory_order_relaxed)) {
		atomic_store_explicit(&r->used, 0, memory_order_relaxed);
		return false;
	}
	return !pl_users(c, r);
}

size_t pl_evict(struct pl_cache *c, size_t n)
{
	size_t done = 0;

	for (size_t i = 0; i < 2 * atomic_load(&c->top) && done < n; i++) {
		struct pl_region *r = pl_region_at(c, c->hand);

		c->hand = (c->hand + 1) % atomic_load(&c->top);
		if (!is_evictable(c, r) || !pl_region_kill(r))
			continue;
		pl_region_unlink(c, r);
		pl_count(c, evicted);
		done++;
	}
	return done;
}
