/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: the nodes of the list are in ascending order and don't overlap, each is within one of the
 * ranges. The head stands for address 0 and for the end of all.
 */
#include "backend/iova.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#define PAGE 4096ull
#define HUGE (2ull << 20)

int pl_iova_open(struct pl_iova_space *s, const struct pl_iova_range *ranges, unsigned nr,
		 uint64_t first, uint64_t last)
{
	*s = (struct pl_iova_space){.ranges = calloc(nr ? nr : 1, sizeof *ranges)};
	if (!s->ranges)
		return -ENOMEM;
	for (unsigned i = 0; i < nr; i++) {
		struct pl_iova_range r = {ranges[i].first > first ? ranges[i].first : first,
					  ranges[i].last < last ? ranges[i].last : last};

		if (r.first > r.last || r.first > UINT64_MAX - PAGE)
			continue;
		r.first = (r.first + PAGE - 1) & ~(PAGE - 1);
		if (r.first <= r.last && r.last - r.first >= PAGE - 1)
			s->ranges[s->nr++] = r;
	}
	s->taken.next = s->taken.prev = s->cursor = &s->taken;
	if (s->nr)
		return 0;
	pl_iova_close(s);
	return -ENOSPC;
}

void pl_iova_close(struct pl_iova_space *s)
{
	free(s->ranges);
	s->ranges = NULL;
}

/* The first address in [low, high] for len bytes that is `rest` modulo `align`. */
static bool fit(uint64_t low, uint64_t high, size_t len, uint64_t align, uint64_t rest, uint64_t *at)
{
	uint64_t up = (rest - low) & (align - 1);

	if (low > high || up > high - low || len - 1 > high - low - up)
		return false;
	*at = low + up;
	return true;
}

struct wanted {
	size_t len;
	uint64_t align, rest;
};

/* In the gap behind a node, from `from` on. */
static bool fit_behind(const struct pl_iova_space *s, const struct pl_iova *node, uint64_t from,
		       const struct wanted *w, uint64_t *at)
{
	uint64_t low = node == &s->taken ? 0 : node->last + 1;
	uint64_t high = node->next == &s->taken ? UINT64_MAX : node->next->first - 1;

	if (low < from)
		low = from;
	if (node->next->first == 0 && node->next != &s->taken) /* no gap */
		return false;
	if (node != &s->taken && node->last == UINT64_MAX)
		return false;
	for (unsigned i = 0; i < s->nr; i++) {
		const struct pl_iova_range *r = &s->ranges[i];

		if (fit(low > r->first ? low : r->first, high < r->last ? high : r->last, w->len,
			w->align, w->rest, at))
			return true;
	}
	return false;
}

/* Behind the cursor first, then from the beginning up to it. */
static struct pl_iova *find(const struct pl_iova_space *s, const struct wanted *w, uint64_t *at)
{
	struct pl_iova *node = s->cursor;

	if (fit_behind(s, node, s->from, w, at))
		return node;
	do {
		node = node->next;
		if (fit_behind(s, node, 0, w, at))
			return node;
	} while (node != s->cursor);
	return NULL;
}

int pl_iova_take(struct pl_iova_space *s, uint64_t va, size_t len, struct pl_iova *iova)
{
	struct wanted w = {len, len >= HUGE ? HUGE : PAGE, len >= HUGE ? va & (HUGE - 1) : 0};
	struct pl_iova *behind = find(s, &w, &iova->first);

	if (!behind && w.align != PAGE) {
		w = (struct wanted){len, PAGE, 0};
		behind = find(s, &w, &iova->first);
	}
	if (!behind)
		return -ENOSPC;
	iova->last = iova->first + len - 1;
	iova->prev = behind;
	iova->next = behind->next;
	behind->next->prev = iova;
	behind->next = iova;
	s->cursor = iova;
	s->from = iova->last + 1;
	return 0;
}

void pl_iova_give(struct pl_iova_space *s, struct pl_iova *iova)
{
	iova->prev->next = iova->next;
	iova->next->prev = iova->prev;
	if (s->cursor == iova)
		s->cursor = iova->prev;
}
