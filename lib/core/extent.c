/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "core/extent.h"

#include <stdlib.h>

#include "os/vma.h"

/* To unwatch walks the page table; from here on the event is cheaper. */
#define MAX_LEAVE (64 * 4096ul)

static bool covers(const struct pl_extent *e, uintptr_t start, uintptr_t end, unsigned flags)
{
	return start < end && e->va.start <= start && end <= e->va.end &&
	       (e->ground->mem.writable || !(flags & PINL_WRITE));
}

static struct pl_extent *find(struct pinl_ctx *ctx, uintptr_t start, uintptr_t end, unsigned flags)
{
	for (int i = 0; i < PL_EXTENTS; i++) {
		int at = (ctx->last_extent + i) % PL_EXTENTS;

		if (covers(&ctx->extent[at], start, end, flags)) {
			ctx->last_extent = at;
			return &ctx->extent[at];
		}
	}
	return NULL;
}

bool pl_extent_take(struct pinl_lease *l)
{
	struct pl_extent *e = find(l->ctx, l->m.start, l->m.end, l->flags);

	pl_extent_put(l);
	if (!e)
		return false;
	e->ground->users++;
	l->on = e->ground;
	return true;
}

static void ground_put(struct pinl_ctx *ctx, struct pl_ground *g)
{
	if (--g->users)
		return;
	g->next = ctx->grounds;
	ctx->grounds = g;
}

void pl_extent_put(struct pinl_lease *l)
{
	if (!l->by_extent || l->on == &pl_more_none.ground)
		return;
	ground_put(l->ctx, (struct pl_ground *)l->on);
	l->on = &pl_more_none.ground;
}

void pl_extents_free(struct pinl_ctx *ctx)
{
	for (int i = 0; i < PL_EXTENTS; i++)
		free(ctx->extent[i].ground);
	while (ctx->grounds) {
		struct pl_ground *g = ctx->grounds;

		ctx->grounds = g->next;
		free(g);
	}
}

/* What is cut out of the middle leaves the larger part. */
static void cut(struct pl_range *va, uintptr_t start, uintptr_t end)
{
	uintptr_t below = start > va->start ? start - va->start : 0;
	uintptr_t above = end < va->end ? va->end - end : 0;

	if (start >= va->end || end <= va->start)
		return;
	if (below >= above)
		va->end = va->start + below;
	else
		va->start = va->end - above;
}

void pl_extents_cut(struct pinl_ctx *ctx, uintptr_t start, uintptr_t end)
{
	ctx->extent_cuts++;
	for (int i = 0; i < PL_EXTENTS; i++)
		cut(&ctx->extent[i].va, start, end);
}

/* What only discards pages leaves the mapping as it is. */
void pl_extents_changed(struct pinl_ctx *ctx, const struct pinl_change *ch)
{
	const unsigned discards = PINL_OPBIT(PINL_OP_DONTNEED) | PINL_OPBIT(PINL_OP_FREE) |
				  PINL_OPBIT(PINL_OP_REMOVE) | PINL_OPBIT(PINL_OP_GUARD);

	if (!ch->on_file && ((PINL_OPBIT(ch->op) | ch->also) & ~discards))
		pl_extents_cut(ctx, ch->start, ch->end);
}

unsigned long pl_extent_cuts(struct pinl_ctx *ctx)
{
	unsigned long n;

	pthread_mutex_lock(&ctx->lock);
	n = ctx->extent_cuts;
	pthread_mutex_unlock(&ctx->lock);
	return n;
}

static bool has_whole(const struct pl_source *s, const struct pinl_memory *mem)
{
	return s->ops->size > offsetof(struct pinl_source_ops, whole) && s->ops->whole &&
	       s->ops->whole(s->priv, mem);
}

/* Who has it has all of it, but for what has been mapped there since (pl_vma_one). */
static bool is_watched_whole(struct pinl_lease *l)
{
	for (int i = 0; i < l->ctx->n_sources; i++)
		if ((l->on->watched & (1u << i)) && !has_whole(&l->ctx->sources[i], &l->on->mem))
			return false;
	return l->on->watched;
}

/* The oldest. ctx->lock held. */
static void replace(struct pinl_ctx *ctx, const struct pinl_lease *l, struct pl_ground *g)
{
	struct pl_extent *e = &ctx->extent[ctx->next_extent++ % PL_EXTENTS];

	*g = *l->on;
	g->users = 1;
	if (e->ground)
		ground_put(ctx, e->ground);
	e->va = (struct pl_range){g->mem.vma_start, g->mem.vma_end};
	e->ground = g;
}

/*
 * A mapping is watched as a whole or not at all. So if the lease's part is, all of the mapping it lies
 * in is; a page that was unmapped before the first watch and mapped again since is a mapping of its own.
 */
void pl_extent_keep(struct pinl_lease *l, unsigned long cuts)
{
	struct pinl_ctx *ctx = l->ctx;
	struct pl_ground *g;

	if (l->on->mem.kind != PINL_MEM_ANON || l->on->mem.shared || l->more->import ||
	    l->dev->foreign ||
	    l->on->mem.vma_end - l->on->mem.vma_start <= 2 * (l->m.end - l->m.start) ||
	    !is_watched_whole(l) || !pl_vma_one(ctx->maps, &l->on->mem) || !pl_lease_is_watched(l))
		return;
	g = malloc(sizeof *g);
	pthread_mutex_lock(&ctx->lock);
	if (g && ctx->extent_cuts == cuts &&
	    !find(ctx, l->on->mem.vma_start, l->on->mem.vma_end, l->flags)) {
		replace(ctx, l, g);
		g = ctx->grounds;
		ctx->grounds = g ? g->next : NULL;
	}
	pthread_mutex_unlock(&ctx->lock);
	free(g);
}

/* ---------------------------------------------------------------------------- explicit calls -- */

bool pl_extent_can_leave(struct pinl_ctx *ctx, uintptr_t start, uintptr_t end)
{
	bool can;

	if (end - start > MAX_LEAVE)
		return false;
	pthread_mutex_lock(&ctx->lock);
	can = find(ctx, start, end, 0);
	pthread_mutex_unlock(&ctx->lock);
	return can;
}

void pl_extent_leave(struct pinl_ctx *ctx, uintptr_t start, uintptr_t end)
{
	pl_sources_suspend(ctx, start, end, 1);
}

/* Cut once more: the mapping may have been looked at after the question, and what comes to these
 * addresses now isn't watched. */
void pl_extent_left(struct pinl_ctx *ctx, uintptr_t start, uintptr_t end, bool unmapped)
{
	if (!unmapped)
		pl_sources_suspend(ctx, start, end, 0);
	pthread_mutex_lock(&ctx->lock);
	pl_extents_cut(ctx, start, end);
	pthread_mutex_unlock(&ctx->lock);
}
