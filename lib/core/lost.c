/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a lease has lost and the worker has yet to take the baseline of. Who reports it holds ctx->lock,
 * so the records are made when the context is opened; the kernel gives memory for those that are used.
 *
 * Each loss is kept apart, with its actor; what lies between two of them is no orphan. Only when all
 * records are in use are they merged into `crowd`, and more is called an orphan than is one.
 */
#include <sys/mman.h>

#include "core/ctx.h"

#ifndef MAP_32BIT
#define MAP_32BIT 0
#endif

#define RECORDS 16384u

/*
 * Shared, so that it is never merged into a mapping of the application's: that one may be watched, and
 * then unmapping this would wait for a source, which may be waiting for the lease that is busy here. And
 * low, where there is room, not in a hole that was a lease's a moment ago: the device may be going to
 * get pages of its own at those addresses.
 */
void *pl_buffer(size_t len)
{
	const int flags = MAP_SHARED | MAP_ANONYMOUS;
	void *map = mmap(NULL, len, PROT_READ | PROT_WRITE, flags | MAP_32BIT, -1, 0);

	if (map == MAP_FAILED && MAP_32BIT)
		map = mmap(NULL, len, PROT_READ | PROT_WRITE, flags, -1, 0);
	return map == MAP_FAILED ? NULL : map;
}

bool pl_lost_new(struct pl_losses *all)
{
	all->pool = pl_buffer(RECORDS * sizeof *all->pool);
	return all->pool;
}

void pl_lost_free(struct pl_losses *all)
{
	if (all->pool)
		munmap(all->pool, RECORDS * sizeof *all->pool);
}

/* One that has been used before, if there is one: it has its page. */
static struct pl_lost *record(struct pl_losses *all)
{
	struct pl_lost *lost = all->free;

	if (lost)
		all->free = lost->next;
	else if (all->used < RECORDS)
		lost = &all->pool[all->used++];
	return lost;
}

void pl_lost_add(struct pinl_lease *l, const struct pl_recall *r)
{
	struct pl_lost *lost = record(&l->ctx->losses);
	struct pl_lost_list *list = &pl_more(l)->lost;

	if (lost) {
		*lost = (struct pl_lost){.recall = *r};
		if (list->first)
			list->last->next = lost;
		else
			list->first = lost;
		list->last = lost;
	} else if (list->crowd.va.start < list->crowd.va.end) {
		pl_range_widen(&list->crowd.va, &r->va);
	} else {
		list->crowd = *r;
	}
	pl_job_add(l, PL_JOB_ORPHAN);
}

struct pl_lost_list pl_lost_take(struct pinl_lease *l)
{
	struct pl_lost_list list = l->more->lost;

	if (pl_has_more(l)) {
		pl_more(l)->lost.first = NULL;
		pl_more(l)->lost.crowd.va = (struct pl_range){0, 0};
	}
	return list;
}

void pl_lost_put(struct pinl_ctx *ctx, const struct pl_lost_list *list)
{
	if (!list->first)
		return;
	list->last->next = ctx->losses.free;
	ctx->losses.free = list->first;
}

/* A force may have taken the pages meanwhile, or some of them. */
void pl_lost_live(struct pinl_lease *l, const struct pl_recall *r)
{
	struct pl_recall lost = *r;
	uintptr_t at = r->va.start;
	bool live;

	for (; at < r->va.end; at = lost.va.end) {
		lost.va = pl_lease_part(l, at, r->va.end, &live);
		if (live)
			pl_orphan_begin(l, &lost);
	}
}

void pl_lost_begin(struct pinl_lease *l, const struct pl_lost_list *list)
{
	for (const struct pl_lost *lost = list->first; lost; lost = lost->next)
		pl_lost_live(l, &lost->recall);
	pl_lost_live(l, &list->crowd);
}
