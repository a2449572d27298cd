/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A registration that begins or ends inside of a huge page costs the device as much as one of all of it,
 * or more, and the next one in that page costs it again. So it is extended to the huge pages that are
 * there now; none is made for it. To look costs more than all the rest of a miss, so where none was
 * found every other miss looks, then every fourth and so on.
 */
#include <sys/mman.h>

#include "cache/cache.h"
#include "os/compat.h"

#define PAGE	    4096ul
#define HUGE	    (2ul << 20)
#define MOST_PASSED 63

static bool mapping_at(struct pl_cache *c, uintptr_t at, struct pl_procmap_query *q)
{
	*q = (struct pl_procmap_query){.size = sizeof *q, .query_addr = at};
	return !ioctl(c->ctx->maps, PL_PROCMAP_QUERY, q);
}

/* Are these addresses one huge page? */
static bool is_huge(struct pl_cache *c, uintptr_t start)
{
	struct pl_page_region found = {0};
	struct pl_pagemap_scan scan = {
		.size = sizeof scan,
		.start = start,
		.end = start + HUGE,
		.vec = (uintptr_t)&found,
		.vec_len = 1,
		.category_mask = PL_PAGE_IS_HUGE,
		.return_mask = PL_PAGE_IS_HUGE,
	};

	return ioctl(c->pagemap, PL_PAGEMAP_SCAN, &scan) == 1 && found.start == start &&
	       found.end == start + HUGE;
}

static struct pl_small *small_of(struct pl_cache *c, uintptr_t huge)
{
	return &c->small[huge / HUGE % PL_SMALL];
}

/* It was made of small pages when last looked at, and that isn't so many misses ago. */
static bool passed_over(struct pl_cache *c, uintptr_t huge)
{
	struct pl_small *s = small_of(c, huge);

	if (s->at != huge) {
		*s = (struct pl_small){.at = huge};
		return false;
	}
	if (s->left) {
		s->left--;
		return true;
	}
	s->next = s->next < MOST_PASSED ? 2 * s->next + 1 : s->next;
	s->left = s->next;
	return false;
}

/* The page that `at` is in. */
static struct pl_range page_around(struct pl_cache *c, uintptr_t at)
{
	struct pl_range page = {at & ~(PAGE - 1), (at & ~(PAGE - 1)) + PAGE};
	uintptr_t huge = at & ~(HUGE - 1);
	struct pl_procmap_query q;

	if (passed_over(c, huge) || !mapping_at(c, at, &q))
		return page;
	if (q.vma_page_size > PAGE) {
		small_of(c, huge)->at = 0;
		return (struct pl_range){at & ~(q.vma_page_size - 1),
					 (at & ~(q.vma_page_size - 1)) + q.vma_page_size};
	}
	if (huge >= q.vma_start && huge + HUGE <= q.vma_end && is_huge(c, huge)) {
		small_of(c, huge)->at = 0;
		return (struct pl_range){huge, huge + HUGE};
	}
	return page;
}

void pl_extend_huge(struct pl_cache *c, struct pl_range *range)
{
	struct pl_range first, last;

	if (c->opts.no_huge || c->ctx->maps < 0 || c->pagemap < 0)
		return;
	first = page_around(c, range->start);
	last = range->end <= first.end ? first : page_around(c, range->end - 1);
	pl_range_widen(range, &first);
	pl_range_widen(range, &last);
}
