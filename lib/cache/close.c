/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The end of a cache, and of parts of what it has. */
#include <errno.h>

#include "cache/cache.h"

#define PAGE 4096ul

/* cache->lock held. What is valid, in the tree, and in the range. */
static void kill_range(struct pl_cache *c, uintptr_t start, uintptr_t end, bool used)
{
	struct pl_region *r = pl_tree_find(&c->tree, start);

	if (!r || r->reg.end <= start)
		r = pl_tree_next(&c->tree, start);
	for (; r && r->reg.start < end; r = pl_tree_next(&c->tree, start)) {
		start = r->reg.end;
		if (!used && pl_users(c, r))
			continue;
		pl_region_kill(r);
		pl_region_unlink(c, r);
	}
}

static void stop_cleaner(struct pl_cache *c)
{
	atomic_store(&c->stop, true);
	pl_ring_bell(c, true);
	pthread_join(c->cleaner, NULL);
}

/* What somebody has still is left on the device, which reports it as a leak. */
void pl_cache_close(struct pl_cache *c)
{
	stop_cleaner(c);
	pthread_mutex_lock(&c->lock);
	kill_range(c, 0, UINTPTR_MAX, true);
	while (pl_clean_wait(c))
		;
	for (struct pl_region *r = c->parted; r; r = pl_rest(r)->next)
		if (r->reg.lease)
			pl_cached_part(r->reg.lease);
	pthread_mutex_unlock(&c->lock);
	pl_tables_part(c);
	atomic_store(&c->dev->cache, NULL);
	pl_cache_free(c);
}

int pinl_cache_drop(struct pinl_device *dev, const void *addr, size_t len)
{
	PL_CALL(call);
	uintptr_t start = len ? (uintptr_t)addr : 0, end = len ? start + len : UINTPTR_MAX;
	struct pl_cache *c;
	int err;

	if (!pl_alive(dev->ctx))
		return pl_stale();
	if (end < start)
		return pinl_set_error(-EINVAL, "the range overflows");
	c = atomic_load(&dev->cache);
	if (!c)
		return 0;
	err = pl_wait_settled(c);
	if (err)
		return err;
	pthread_mutex_lock(&c->lock);
	kill_range(c, start, end, false);
	while (pl_clean_wait(c))
		;
	pthread_mutex_unlock(&c->lock);
	return 0;
}
