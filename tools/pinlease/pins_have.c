/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which processes have an object that holds pages: all of them must let go before its pages are free. Of
 * most objects that is one; those that several have are grouped by who they are.
 */
#include <string.h>

#include "pins.h"

struct have {
	uint64_t object;
	int32_t pid, pad;
};

struct group { /* one after the other in `haves` */
	size_t first, n;
};

void pins_have(struct census *c, uint64_t object, int32_t pid)
{
	c->haves.size = sizeof(struct have);
	pins_add(&c->haves, &(struct have){.object = object, .pid = pid});
}

static int by_object(const void *a, const void *b)
{
	const struct have *x = a, *y = b;

	if (x->object != y->object)
		return x->object < y->object ? -1 : 1;
	return x->pid != y->pid ? (x->pid < y->pid ? -1 : 1) : 0;
}

/* A process has it by several descriptors, threads, mappings. */
static bool same(const struct have *x, const struct have *y, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (x[i].pid != y[i].pid)
			return false;
	return true;
}

static struct group of_object(const struct census *c, uint64_t object)
{
	const struct have *h = c->haves.items;
	size_t low = 0, high = c->haves.n, end;

	while (low < high) {
		size_t mid = (low + high) / 2;

		if (h[mid].object < object)
			low = mid + 1;
		else
			high = mid;
	}
	for (end = low; end < c->haves.n && h[end].object == object; end++)
		;
	return (struct group){low, end - low};
}

/* Its number, from 1 on. */
static uint32_t number_of(struct census *c, const struct group *g)
{
	const struct have *h = c->haves.items;

	for (size_t i = c->groups.n; i > 0; i--) { /* mostly it is the last */
		const struct group *known = pins_at(&c->groups, struct group, i - 1);

		if (known->n == g->n && same(&h[known->first], &h[g->first], g->n))
			return (uint32_t)i;
	}
	pins_add(&c->groups, g);
	return (uint32_t)c->groups.n;
}

/* 0: of one process, or of none. */
static uint32_t group_of(struct census *c, uint64_t object)
{
	struct group g = of_object(c, object);

	return g.n > 1 ? number_of(c, &g) : 0;
}

void pins_group_holds(struct census *c)
{
	c->groups.size = sizeof(struct group);
	pins_order(&c->haves, by_object);
	pins_drop_doubles(&c->haves, by_object);
	for (size_t i = 0; i < c->holds.n; i++) {
		struct pins_hold *hold = pins_at(&c->holds, struct pins_hold, i);

		hold->group = group_of(c, hold->object);
	}
	for (size_t i = 0; i < c->regions.n; i++) {
		struct pins_region *region = pins_at(&c->regions, struct pins_region, i);

		region->group = group_of(c, region->object);
	}
}

size_t pins_group_size(const struct census *c, uint32_t group)
{
	return group ? pins_at(&c->groups, struct group, group - 1)->n : 1;
}

int32_t pins_group_pid(const struct census *c, uint32_t group, size_t i)
{
	return pins_at(&c->haves, struct have, pins_at(&c->groups, struct group, group - 1)->first + i)
		->pid;
}

bool pins_group_has(const struct census *c, uint32_t group, int32_t pid)
{
	for (size_t i = 0; group && i < pins_group_size(c, group); i++)
		if (pins_group_pid(c, group, i) == pid)
			return true;
	return false;
}
