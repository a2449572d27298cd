/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A second look at pages that no process has in its page table: mostly those of a process that ended
 * meanwhile, whose memory goes first and whose pins follow. What is pinned then, too, stays; the other
 * pins are only counted.
 */
#include <errno.h>
#include <stdlib.h>

#include "pins.h"

#define NEAR 4096 /* pages between two that are looked at together: that costs less than another run */

static bool same(const struct census_pin *x, const struct census_pin *y)
{
	return x->pfn == y->pfn && x->memory == y->memory && x->inode == y->inode && x->ino == y->ino &&
	       x->index == y->index;
}

static int scan(struct census *c, const bool *mapped, struct pins_vec *now)
{
	uint64_t first = 0, end = 0;
	int err = 0;

	for (size_t i = 0; i < c->pins.n && !err; i++) {
		const struct census_pin *p = pins_at(&c->pins, struct census_pin, i);

		if (mapped[i] || !p->pins)
			continue;
		if (end && p->pfn > end + NEAR) {
			err = pins_scan_range(c, first, end - first, false, now);
			end = 0;
		}
		first = end ? first : p->pfn;
		end = p->pfn + p->nr_pages;
	}
	return err || !end ? err : pins_scan_range(c, first, end - first, false, now);
}

/* Both are sorted by page. */
static void settle(struct census *c, const bool *mapped, const struct pins_vec *now)
{
	size_t at = 0;

	for (size_t i = 0; i < c->pins.n; i++) {
		struct census_pin *p = pins_at(&c->pins, struct census_pin, i);
		const struct census_pin *again;
		uint32_t pins = 0;

		if (mapped[i] || !p->pins)
			continue;
		while (at < now->n && pins_at(now, struct census_pin, at)->pfn < p->pfn)
			at++;
		again = at < now->n ? pins_at(now, struct census_pin, at) : NULL;
		if (again && same(p, again))
			pins = again->pins < p->pins ? again->pins : p->pins;
		c->gone += p->pins - pins;
		p->pins = pins;
	}
}

int pins_look_again(struct census *c)
{
	bool *mapped = calloc(c->pins.n + 1, sizeof *mapped);
	struct pins_vec now = {.size = sizeof(struct census_pin)};
	int err;

	if (!mapped) {
		pins_say("out of memory");
		return -ENOMEM;
	}
	for (size_t i = 0; i < c->maps.n; i++) {
		const struct pins_map *map = pins_at(&c->maps, struct pins_map, i);

		mapped[map->pin] = mapped[map->pin] || map->touched;
	}
	err = scan(c, mapped, &now);
	if (!err)
		settle(c, mapped, &now);
	pins_free(&now);
	free(mapped);
	return err;
}
