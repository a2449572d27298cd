/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Room for more. What goes when there are too many: a clock. Its hand goes round over all regions; one
 * that was found since the hand was there is spared this time. Finding a region writes to it only once
 * per round, so hits don't take the line from each other.
 */
#include <errno.h>
#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

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

static size_t evict(struct pl_cache *c, size_t n)
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

/* True: something was ended, and the lock dropped. */
bool pl_make_room(struct pl_cache *c, size_t n)
{
	evict(c, n);
	return pl_clean_wait(c);
}

static bool over_limit(const struct pl_cache *c, size_t more)
{
	return (c->opts.max_regions && c->regions + 1 > c->opts.max_regions) ||
	       (c->opts.max_bytes && c->bytes + more > c->opts.max_bytes);
}

bool pl_keep_limits(struct pl_cache *c, const struct pl_range *range)
{
	if (!over_limit(c, range->end - range->start))
		return false;
	if (pl_make_room(c, c->regions / 32 + 1)) /* so many at a time, for one barrier */
		return true;
	pl_count(c, over_limit);
	return false;
}

/* RLIMIT_MEMLOCK bounds what this process pins. */
static bool is_bounded(void)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];

	return !syscall(SYS_capget, &head, data) &&
	       !(data[CAP_TO_INDEX(CAP_IPC_LOCK)].effective & CAP_TO_MASK(CAP_IPC_LOCK));
}

/* It alone is more than may be pinned. */
static bool is_too_large(const struct pl_cache *c, const struct pl_range *range)
{
	struct rlimit limit;

	return c->opts.flags & PINL_PIN && !getrlimit(RLIMIT_MEMLOCK, &limit) &&
	       range->end - range->start > limit.rlim_cur && is_bounded();
}

bool pl_lacks_room(struct pl_cache *c, const struct pl_range *range, int err)
{
	if (err != -ENOMEM && err != -EPERM && err != -ENOSPC && err != -EDQUOT)
		return false;
	return !is_too_large(c, range) && pl_vma_mapped(c->ctx->maps, range->start, range->end);
}
