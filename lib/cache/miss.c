/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The way of a miss: with the lock, after every change that has happened is applied. A region is valid
 * before its lease can be found by a change, and in the tree only after the lease is made: so one that
 * has changed meanwhile is never found by anybody else.
 */
#include <errno.h>
#include <stdlib.h>

#include "cache/cache.h"
#include "cache/merge.h"
#include "core/sentence.h"

#define PAGE  4096ul
#define TRIES 64

/* ---------------------------------------------------------------------------------- the making -- */

/* In a row, as pinl_reg_addr() needs it. */
static int set_addrs(struct pl_region *r, const struct pinl_addr *a, size_t n)
{
	for (size_t i = 1; i < n; i++)
		if (a[i].addr != a->addr + i * PAGE || a[i].key != a->key)
			return pinl_set_error(-EOPNOTSUPP,
					      "the device gives the pages of one lease addresses "
					      "that are not in a row, which the cache can't pass on");
	r->reg.addr = a->addr;
	r->reg.key = a->key;
	r->reg.rkey = a->rkey;
	return 0;
}

static int make_lease(struct pl_cache *c, struct pl_region *r, const struct pl_union *plan,
		      const void *caller)
{
	struct pl_lease_how how = {.start = plan->range.start,
				   .end = plan->range.end,
				   .flags = c->opts.flags | plan->access,
				   .policy = &c->opts.policy,
				   .caller = caller,
				   .cookie = &r->reg,
				   .cached = &pl_rest(r)->cached,
				   .near = plan->before ? plan->before->reg.lease : NULL};
	size_t n = (how.end - how.start) / PAGE;
	struct pinl_addr one, *addrs = n == 1 ? &one : calloc(n, sizeof *addrs);
	struct pinl_lease *lease;
	int err;

	if (!addrs)
		return pinl_set_error(-ENOMEM, "out of memory for the addresses of %zu pages", n);
	err = pl_lease_map(c->dev, &how, addrs, &lease);
	if (!err) {
		err = set_addrs(r, addrs, n);
		if (err)
			pinl_unmap_range(lease);
		else
			r->reg.lease = lease;
	}
	if (addrs != &one)
		free(addrs);
	return err;
}

/* On failure a region that a change has found meanwhile is on the garbage list, and freed from there. */
static int make_region(struct pl_cache *c, const struct pl_union *plan, const void *caller,
		       struct pl_region **out)
{
	struct pl_region *r = pl_region_new(c, plan->range.start);
	int err;

	if (!r)
		return pinl_set_error(-ENOMEM, "out of memory for a registration");
	pl_region_start(r, &plan->range, plan->access);
	err = make_lease(c, r, plan, caller);
	if (err) {
		if (pl_region_cancel(r))
			pl_region_free(c, r);
		return err;
	}
	c->regions++;
	c->bytes += r->reg.end - r->reg.start;
	pl_count(c, registered);
	*out = r;
	return 0;
}

/*
 * Pages that are just being discarded are registered for this caller only. `going`: there were such
 * before the lease was made; what was told of since, and before a change could find the lease, is asked
 * for here.
 */
static int publish(struct pl_cache *c, struct pl_region *r, const struct pl_union *plan, bool going)
{
	int err;

	if (going || pl_cached_going(c->ctx, &plan->range, false)) {
		pl_count(c, transient);
		pl_region_kill(r);
		return 0;
	}
	pl_union_clear(c, plan);
	err = pl_region_link(c, r);
	if (err)
		pl_region_kill(r);
	return err ? pinl_set_error(err, "out of memory for the cache's index") : 0;
}

/* ---------------------------------------------------------------------------------- the range -- */

static bool moves_memory(const struct pl_cache *c)
{
	return c->opts.policy.kind == PINL_RECALL && pl_then_moves(c->opts.policy.then);
}

/* -EALREADY: the lock was dropped, look again. */
static int try_plan(struct pl_cache *c, const struct pl_union *plan, const void *caller,
		    struct pl_region **out)
{
	int err = make_region(c, plan, caller, out);

	if (pl_lacks_room(c, &plan->range, err) && pl_make_room(c, c->regions / 4 + 1)) {
		pl_count(c, retried);
		return -EALREADY;
	}
	return err;
}

static bool is_wider(const struct pl_union *plan, const struct pl_want *want)
{
	return plan->range.start != want->start || plan->range.end != want->end;
}

static void narrow(struct pl_union *plan, const struct pl_want *want)
{
	*plan = (struct pl_union){.range = {want->start, want->end}, .access = want->access};
}

/* SCRATCH or COPY take the memory from under all that is registered there: what nobody has goes first,
 * and what somebody has stays as it is. -EALREADY: the lock was dropped, look again. */
static int clear_way(struct pl_cache *c, const struct pl_want *want, struct pl_union *plan)
{
	struct pl_region *used = pl_union_used(c, plan);

	if (used && is_wider(plan, want)) {
		narrow(plan, want);
		used = pl_union_used(c, plan);
	}
	if (used)
		return pl_say_in_use(&plan->range, used->reg.lease->id);
	return pl_union_clear(c, plan) && pl_clean_wait(c) ? -EALREADY : 0;
}

/* -EALREADY: the lock was dropped, look again. */
static int make(struct pl_cache *c, const struct pl_want *want, struct pl_union *plan,
		struct pl_region **out, bool *going)
{
	int err;

	pl_union_of(c, want, plan);
	if (pl_keep_limits(c, &plan->range))
		return -EALREADY;
	err = moves_memory(c) ? clear_way(c, want, plan) : 0;
	if (err)
		return err;
	*going = pl_cached_going(c->ctx, &plan->range, true);
	err = try_plan(c, plan, want->caller, out);
	if (err && err != -EALREADY && is_wider(plan, want)) {
		narrow(plan, want);
		err = try_plan(c, plan, want->caller, out);
	}
	/* in the way is what has changed and is still being ended */
	return err == -EBUSY && moves_memory(c) && pl_clean_wait(c) ? -EALREADY : err;
}

/* ---------------------------------------------------------------------------------- the way -- */

static struct pl_region *find_locked(struct pl_cache *c, const struct pl_want *want)
{
	struct pl_region *r = pl_tree_find(&c->tree, want->start);
	uint64_t need = pl_gen_need(want->access);

	return r && r->reg.end >= want->end && (atomic_load(&r->gen) & need) == need ? r : NULL;
}

/* With the region counted for the caller, if it is what he wanted. */
static int get_locked(struct pl_cache *c, struct pl_table *t, const struct pl_want *want,
		      struct pl_region **out)
{
	struct pl_region *r = find_locked(c, want);
	uint64_t need = pl_gen_need(want->access);
	bool made = !r, going = false;
	struct pl_union plan;
	int err = 0;

	if (pl_changing(c->ctx))
		return -EALREADY;
	if (made)
		err = make(c, want, &plan, &r, &going);
	if (err)
		return err;
	pl_pin(t, r);
	atomic_signal_fence(memory_order_seq_cst);
	if ((atomic_load(&r->gen) & need) == need)
		err = made ? publish(c, r, &plan, going) : 0;
	else
		err = -EALREADY;
	if (err)
		pl_unpin(t, r);
	else
		*out = r;
	return err;
}

static int check_want(struct pinl_device *dev, struct pl_want *w)
{
	if (!pl_alive(dev->ctx))
		return pl_stale();
	if (w->end <= w->start || w->end > PL_VA_MAX)
		return pinl_set_error(-EINVAL, "%#lx to %#lx is empty or beyond user space", w->start,
				      w->end);
	if (w->access & ~PINL_WRITE)
		return pinl_set_error(-EINVAL, "access %#x is neither 0 nor PINL_WRITE", w->access);
	w->start &= ~(PAGE - 1);
	w->end = (w->end + PAGE - 1) & ~(PAGE - 1);
	return 0;
}

struct trying {
	unsigned n;
	uint64_t until;
};

/* -EAGAIN: somebody is at it, who isn't waited for with the lock held. */
static bool is_worth_a_try(int err, struct trying *t)
{
	struct timespec pause = {0, PL_PAUSE_NS};

	if (err == -EALREADY)
		return ++t->n < TRIES;
	if (err != -EAGAIN)
		return false;
	if (!t->until)
		t->until = pl_clock_ns() + PL_WAIT_NS;
	nanosleep(&pause, NULL);
	return pl_clock_ns() < t->until;
}

/* What says "lease" or "unmap" to others, in terms of the cache. */
static int say_failed(struct pl_cache *c, const struct pl_want *want, int err)
{
	const struct pl_range range = {want->start, want->end};
	struct pl_sentence why;

	pl_count(c, failed);
	pl_sentence_keep(&why);
	if (pl_lacks_room(c, &range, err))
		return pinl_set_error(
			err, "%s (all that the cache has still is in use: pinl_put() some)", why.text);
	if (err == -EBUSY || err == -EOPNOTSUPP)
		return pinl_set_error(err, "%s (the cache leases by pinl_cache_opts.flags and .policy)",
				      why.text);
	return err;
}

int pl_cache_miss(struct pinl_device *dev, const struct pl_want *asked, const struct pinl_reg **out)
{
	PL_CALL(call);
	struct pl_want want = *asked;
	struct pl_region *r = NULL;
	struct trying trying = {0};
	struct pl_table *t;
	struct pl_cache *c;
	int err = check_want(dev, &want);

	if (!err)
		err = pl_cache_of(dev, &c);
	if (err)
		return err;
	t = pl_table_of(c);
	err = pl_get_told(c, t, &want, &r);
	if (err)
		return err;
	if (r) {
		*out = &r->reg;
		return 0;
	}
	pl_count(c, misses);
	do {
		err = pl_wait_settled(c);
		if (err)
			return err;
		pthread_mutex_lock(&c->lock);
		err = get_locked(c, t, &want, &r);
		pthread_mutex_unlock(&c->lock);
		if (atomic_load(&c->garbage)) /* what was merged */
			pl_ring_bell(c, false);
	} while (is_worth_a_try(err, &trying));
	if (err == -EALREADY)
		err = pinl_set_error(-EAGAIN, "%#lx to %#lx changes all the time; try again", want.start,
				     want.end);
	if (err)
		return say_failed(c, &want, err);
	*out = &r->reg;
	return 0;
}
