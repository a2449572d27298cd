/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "core/counted.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "core/cached.h"
#include "core/extent.h"

#define WAIT_NS 100000000u

static const struct pl_counts no_counts;

void pl_counts_set(struct pinl_ctx *ctx, const struct pl_counts *counts)
{
	atomic_store(&ctx->counts, counts ? counts : &no_counts);
}

void pl_counting_set(struct pinl_ctx *ctx, const struct pinl_source_ops *ops)
{
	ctx->counting = ops;
}

struct pl_counts_at pl_counts_now(struct pinl_ctx *ctx)
{
	struct pl_counts_at at = {.life = atomic_load(&ctx->counts_life)};

	at.told = atomic_load(&atomic_load(&ctx->counts)->told);
	return at;
}

bool pl_counts_reached(struct pinl_ctx *ctx, const struct pl_counts_at *at)
{
	return atomic_load(&atomic_load(&ctx->counts)->applied) >= at->told ||
	       atomic_load(&ctx->counts_life) != at->life;
}

bool pl_counts_wait(struct pinl_ctx *ctx)
{
	struct timespec pause = {0, 20000};
	struct pl_counts_at at;
	uint64_t until;

	if (!pl_counts_behind(ctx))
		return false;
	at = pl_counts_now(ctx);
	until = pl_clock_ns() + WAIT_NS;
	while (!pl_counts_reached(ctx, &at) && pl_clock_ns() < until) {
		pl_cached_look(ctx);
		nanosleep(&pause, NULL);
	}
	return true;
}

static bool is_going(const struct pinl_lease *l)
{
	const struct pinl_source_ops *ops = l->ctx->counting;

	return ops->going(pl_source_priv(l->ctx, ops), l->m.start, l->m.end, true);
}

int pl_counted_settle(struct pinl_lease *l)
{
	uint64_t until = pl_clock_ns() + WAIT_NS;
	struct timespec pause = {0, 20000};

	if (!l->on->counted || l->by_extent || l->cached || (l->flags & PINL_COOPERATIVE))
		return 0; /* the cache looks itself, before and afterwards */
	while (is_going(l)) {
		if (pl_clock_ns() >= until)
			return pinl_set_error(
				-EBUSY,
				"[%#lx, %#lx) is being changed, perhaps by another process; "
				"try again when that is done",
				l->m.start, l->m.end);
		nanosleep(&pause, NULL);
	}
	return 0;
}

/* ctx->lock held */
static void stale(struct pinl_ctx *ctx, uintptr_t start, uintptr_t end)
{
	struct pl_node *n = pl_index_first(&ctx->index, start, end);

	pl_extents_cut(ctx, start, end);
	for (; n; n = pl_index_next(n, start, end)) {
		struct pinl_lease *l = (struct pinl_lease *)n;

		if (l->cached && l->state != PINL_RELEASED)
			pl_cached_changed(l);
	}
}

void pl_counted_protected(struct pinl_ctx *ctx, uintptr_t start, uintptr_t end)
{
	pthread_mutex_lock(&ctx->lock);
	stale(ctx, start, end);
	pthread_mutex_unlock(&ctx->lock);
}

void pl_counted_unknown(struct pinl_ctx *ctx)
{
	pl_counted_protected(ctx, 0, UINTPTR_MAX);
}

/* ctx->lock held. Of those that stand on a ground of their own: the cache's others end. */
static void tell_or_not(struct pinl_lease *l, bool tells)
{
	unsigned ops = l->by_extent ? 0 : l->on->counted;
	struct pinl_event ev;

	for (int op = 0; op < PINL_OP_NR; op++) {
		if (!(ops & PINL_OPBIT(op)))
			continue;
		if (tells) {
			pl_more(l)->ground.coverage[op] |= PINL_CAN_TELL;
			continue;
		}
		pl_more(l)->ground.coverage[op] &= ~PINL_CAN_TELL;
		if (l->cached || l->state == PINL_RELEASED)
			continue;
		pl_event_lease(l, PINL_EV_DEGRADED, NULL, &ev);
		ev.op = op;
		ev.err = -EOPNOTSUPP;
		strcpy(ev.source, "generation");
		pl_event_push(l->ctx, &ev);
	}
}

static void all(struct pinl_ctx *ctx, bool tells)
{
	struct pl_node *n;

	pthread_mutex_lock(&ctx->lock);
	atomic_fetch_add(&ctx->counts_life, 1);
	stale(ctx, 0, UINTPTR_MAX);
	n = pl_index_first(&ctx->index, 0, UINTPTR_MAX);
	for (; n; n = pl_index_next(n, 0, UINTPTR_MAX))
		tell_or_not((struct pinl_lease *)n, tells);
	pthread_mutex_unlock(&ctx->lock);
}

void pl_counted_anew(struct pinl_ctx *ctx)
{
	all(ctx, true);
}

void pl_counted_ended(struct pinl_ctx *ctx)
{
	all(ctx, false);
}
