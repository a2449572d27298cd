/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Waiting for changes to be applied: all of them, or those that had been told of when the wait began.
 * Where others change memory all the time there may be no moment without a change, so a lookup of what
 * is registered waits for the second only. A round of the source's that begins after the lookup reads,
 * and applies, whatever was unread then.
 */
#include <errno.h>
#include <sched.h>
#include <time.h>

#include "cache/cache.h"

#define YIELDS 100

struct until {
	bool quiet; /* nothing less will do */
	uint64_t round;
	struct pl_counts_at counted;
};

static bool is_over(struct pinl_ctx *ctx, const struct until *u)
{
	if (u->quiet)
		return !pl_changing(ctx);
	/* The counts first, as in pl_changing(): who counts anew or no more marks that before. */
	return (pl_counts_reached(ctx, &u->counted) || !pl_counts_behind(ctx)) &&
	       (pl_round_is_over(ctx, u->round) || !pl_marked(ctx));
}

static int wait_until(struct pl_cache *c, const struct until *u)
{
	uint64_t end = pl_clock_ns() + PL_WAIT_NS;
	struct timespec pause = {0, PL_PAUSE_NS};

	if (is_over(c->ctx, u))
		return 0;
	pl_count(c, waited);
	for (int i = 0; !is_over(c->ctx, u); i++) {
		if (i >= YIELDS / 4)
			pl_cached_look(c->ctx);
		if (i < YIELDS)
			sched_yield();
		else if (pl_clock_ns() < end)
			nanosleep(&pause, NULL);
		else
			return pinl_set_error(-EAGAIN,
					      "a change of mappings has been under way for 100 ms, "
					      "perhaps held by a recall; try again");
	}
	return 0;
}

int pl_wait_settled(struct pl_cache *c)
{
	return wait_until(c, &(struct until){.quiet = true});
}

/* As a hit, but that the wait stands where that one looks whether anything is changing: the region is
 * counted after it, and its gen looked at last. */
int pl_get_told(struct pl_cache *c, struct pl_table *t, const struct pl_want *want,
		struct pl_region **out)
{
	struct until told = {.round = pl_round_next(c->ctx), .counted = pl_counts_now(c->ctx)};
	uint64_t need = pl_gen_found(want->access), gen;
	struct pl_region *r;
	int err;

	if (!t || !pl_changing(c->ctx))
		return 0;
	r = pl_tree_find(&c->tree, want->start);
	if (!r)
		return 0;
	gen = atomic_load(&r->gen);
	if ((gen & need) != need || __atomic_load_n(&r->reg.start, __ATOMIC_ACQUIRE) > want->start ||
	    __atomic_load_n(&r->reg.end, __ATOMIC_ACQUIRE) < want->end)
		return 0;
	err = wait_until(c, &told);
	if (err || atomic_load(&r->gen) != gen) /* what has changed is nobody's to count */
		return err;
	pl_pin(t, r);
	atomic_signal_fence(memory_order_seq_cst);
	if (atomic_load(&r->gen) == gen) {
		pl_count_hit(t, r);
		*out = r;
	} else {
		pl_unpin(t, r);
		pl_ring_bell(c, false);
	}
	return 0;
}
