/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a lease has lost and the worker has yet to take the baseline of. Who reports it holds ctx->lock,
 * so the list is a mapping of its own, made new for each round of the worker and never a block of the
 * allocator's: that one may wait for a source in free().
 *
 * Each loss is kept apart, with its actor; what lies between two of them is no orphan. Only where there
 * is no room left are they merged into `crowd`, and more is called an orphan than is one.
 */
#include <sys/mman.h>

#include "core/ctx.h"

#ifndef MAP_32BIT
#define MAP_32BIT 0
#endif

#define PAGE  4096ul
#define LEAST (256ul << 10) /* bytes of a list, of which only what is written takes memory */
#define MOST  (16ul << 20)

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

/* There may be as many losses as pages, and some again. */
static struct pl_lost *list_new(const struct pinl_lease *l)
{
	size_t len = (l->m.end - l->m.start) / PAGE * sizeof(struct pl_recall);
	struct pl_lost *list;

	len = len < LEAST ? LEAST : len > MOST ? MOST : (len + PAGE - 1) & ~(PAGE - 1);
	list = pl_buffer(len);
	if (list) {
		list->len = len;
		list->most = (len - sizeof *list) / sizeof *list->list;
	}
	return list;
}

void pl_lost_add(struct pinl_lease *l, const struct pl_recall *r)
{
	if (!l->lost)
		l->lost = list_new(l);
	if (l->lost && l->lost->n < l->lost->most)
		l->lost->list[l->lost->n++] = *r;
	else if (l->crowd.va.start < l->crowd.va.end)
		pl_range_widen(&l->crowd.va, &r->va);
	else
		l->crowd = *r;
	pl_job_add(l, PL_JOB_ORPHAN);
}

void pl_lost_take(struct pinl_lease *l, struct pl_lost **list, struct pl_recall *crowd)
{
	*list = l->lost;
	*crowd = l->crowd;
	l->lost = NULL;
	l->crowd.va = (struct pl_range){0, 0};
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

void pl_lost_begin(struct pinl_lease *l, const struct pl_lost *list, const struct pl_recall *crowd)
{
	for (int i = 0; list && i < list->n; i++)
		pl_lost_live(l, &list->list[i]);
	pl_lost_live(l, crowd);
}

void pl_lost_free(struct pl_lost *list)
{
	if (list)
		munmap(list, list->len);
}
