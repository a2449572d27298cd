/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Pins that nobody can use or release: their holder has gone, or doesn't map them any more. The programs
 * only give the suspicion, since a release can be missed; a census says whether the pages are pinned
 * still, and who has the object that holds them.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common.h"
#include "pins_live.h"

struct looking {
	struct live *l;
	struct census census;
	struct pins_vec before; /* leaks that have been told */
	struct pins_vec places; /* struct place: of each pin, in order */
	uint64_t longest;	/* pages of one pin */
	bool all;
};

/* Of a file's memory in the file; of other memory where it was touched first. */
struct place {
	uint64_t ino, index;
	uint32_t memory, dev, pin; /* in the census' `pins` */
};

/* What its process had is given back a little later than that ends. */
static bool is_left_over(const struct live_known *k)
{
	return k->gone_ns && tool_now() - k->gone_ns > LIVE_LEAK_NS;
}

/* What is left of one site is one leak. */
static struct live_leak *find(const struct pins_vec *leaks, uint64_t site, enum live_leaked how)
{
	for (size_t i = 0; i < leaks->n; i++) {
		struct live_leak *k = pins_at(leaks, struct live_leak, i);

		if (k->site == site && k->how == how)
			return k;
	}
	return NULL;
}

/* What has pages of this folio; NULL: nothing known. */
static const struct pins_hold *hold_of(const struct census *c, const struct census_pin *p)
{
	for (size_t i = 0; i < c->pieces.n; i++) {
		const struct pins_piece *piece = pins_at(&c->pieces, struct pins_piece, i);
		const struct pins_hold *h = pins_at(&c->holds, struct pins_hold, piece->hold);

		if (h->counted && piece->pfn < p->pfn + p->nr_pages && p->pfn < piece->pfn + piece->nr)
			return h;
	}
	return NULL;
}

/* Pages of both ranges. */
static uint64_t common(uint64_t at, uint64_t nr, uint64_t other, uint64_t nr_other)
{
	uint64_t start = at > other ? at : other,
		 end = at + nr < other + nr_other ? at + nr : other + nr_other;

	return end > start ? end - start : 0;
}

static int by_place(const void *a, const void *b)
{
	const struct place *x = a, *y = b;

	if (x->memory != y->memory)
		return x->memory < y->memory ? -1 : 1;
	if (x->dev != y->dev)
		return x->dev < y->dev ? -1 : 1;
	if (x->ino != y->ino)
		return x->ino < y->ino ? -1 : 1;
	return (x->index > y->index) - (x->index < y->index);
}

static void order_places(struct looking *look)
{
	look->places = (struct pins_vec){.size = sizeof(struct place)};
	for (size_t i = 0; i < look->census.pins.n; i++) {
		const struct census_pin *p = pins_at(&look->census.pins, struct census_pin, i);
		bool file = p->memory == CENSUS_FILE;
		struct place place = {.ino = file ? p->ino : 0,
				      .index = p->index,
				      .memory = p->memory,
				      .dev = file ? p->dev : 0,
				      .pin = (uint32_t)i};

		if (!p->pins)
			continue;
		pins_add(&look->places, &place);
		look->longest = p->nr_pages > look->longest ? p->nr_pages : look->longest;
	}
	pins_order(&look->places, by_place);
}

/* The first that may have pages from `from` on. */
static size_t first_place(const struct looking *look, const struct place *from)
{
	size_t low = 0, high = look->places.n;
	struct place start = *from;

	start.index -= start.index < look->longest ? start.index : look->longest;
	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (by_place(pins_at(&look->places, struct place, middle), &start) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static bool is_mapped_by(const struct census *c, const struct census_pin *p, int32_t pid)
{
	return pins_is_mapped(c, (uint32_t)(p - (struct census_pin *)c->pins.items), pid);
}

/*
 * How much of what the slot stands for the census finds pinned; `unmapped`: and not mapped by its
 * process, private memory by nobody. A file's pages are known by their place in it, private ones by the
 * address that they were touched at, which is another's where memory was moved: then the first page is
 * all that is known.
 */
static uint64_t found(const struct looking *look, const struct live_slot *slot,
		      const struct live_key *key, const struct census_pin *first, bool unmapped)
{
	const struct census *c = &look->census;
	bool file = key->memory == CENSUS_FILE;
	uint64_t at = file ? slot->index : slot->addr / PINS_PAGE, pages = slot->first, n = 0;
	struct place from = {.ino = file ? key->ino : 0,
			     .index = at,
			     .memory = key->memory,
			     .dev = file ? key->dev : 0},
		     end = from;

	end.index += pages;
	for (size_t i = first_place(look, &from); i < look->places.n; i++) {
		const struct place *place = pins_at(&look->places, struct place, i);
		const struct census_pin *p = pins_at(&c->pins, struct census_pin, place->pin);

		if (by_place(place, &end) >= 0)
			break;
		if (!unmapped || !is_mapped_by(c, p, file ? (int32_t)key->tgid : 0))
			n += common(at, pages, p->index, p->nr_pages);
	}
	if (!n && (!unmapped || !is_mapped_by(c, first, (int32_t)key->tgid)))
		n = first->nr_pages;
	return n < pages ? n : pages;
}

static void add(struct looking *look, const struct live_slot *slot, enum live_leaked how,
		const struct census_pin *p, uint64_t confirmed)
{
	struct live_leak *k = find(&look->l->leaks, slot->site, how);
	uint64_t pages = (uint64_t)slot->pages;
	const struct pins_hold *h;
	struct live_leak new = {.site = slot->site,
				.since_ns = slot->since_ns,
				.addr = slot->addr,
				.index = slot->index,
				.addr_end = slot->addr + slot->first * PINS_PAGE,
				.index_end = slot->index + slot->first,
				.pages = pages,
				.confirmed = confirmed,
				.how = how};

	if (!k) {
		h = hold_of(&look->census, p);
		new.has = h ? h->pid : 0;
		new.others = h ? pins_group_size(&look->census, h->group) - 1 : 0;
		pins_add(&look->l->leaks, &new);
		return;
	}
	k->pages += pages;
	k->confirmed += confirmed;
	k->since_ns = new.since_ns < k->since_ns ? new.since_ns : k->since_ns;
	k->addr = new.addr < k->addr ? new.addr : k->addr;
	k->index = new.index < k->index ? new.index : k->index;
	k->addr_end = new.addr_end > k->addr_end ? new.addr_end : k->addr_end;
	k->index_end = new.index_end > k->index_end ? new.index_end : k->index_end;
}

/* Pins of the folio that processes have which live. */
static uint64_t living(struct live *l, const struct live_folio *f)
{
	uint64_t n = 0;

	for (int i = 0; i < LIVE_SLOTS; i++) {
		const struct live_slot *slot = &f->slots[i];
		const struct live_known *k =
			slot->site && slot->pins > 0 ? live_known(l, slot->site) : NULL;

		n += k && !k->gone_ns ? (uint64_t)slot->pins : 0;
	}
	return n;
}

/* Whose of several pins was released isn't always known. */
static void judge_slot(struct looking *look, const struct live_folio *f, const struct live_slot *slot,
		       const struct census_pin *p)
{
	uint64_t pages;
	struct live_known *k = slot->site && slot->pins > 0 ? live_known(look->l, slot->site) : NULL;

	if (!k || !slot->longterm || !live_wanted(look->l, k) || (!look->all && !is_left_over(k)))
		return;
	if (!p || !p->pins) {
		look->l->unseen++;
		return;
	}
	look->l->confirmed++;
	if (slot->flags & LIVE_DOUBT)
		return;
	if (is_left_over(k) && p->pins > living(look->l, f) && live_is_gone(&k->now)) {
		add(look, slot, LIVE_HOLDER_GONE, p, found(look, slot, &k->now.key, p, false));
		return;
	}
	if (k->gone_ns || !slot->addr) /* pinned by its file */
		return;
	pages = found(look, slot, &k->now.key, p, true);
	if (pages && !live_is_gone(&k->now)) /* not even by now */
		add(look, slot, LIVE_UNMAPPED, p, pages);
}

static void judge(uint64_t folio, const struct live_folio *f, void *arg)
{
	struct looking *look = arg;
	const struct census *c = &look->census;
	const struct census_pin *p = pins_find(c, pins_pfn_of_page(c, folio), c->pins.n);

	for (int i = 0; i < LIVE_SLOTS; i++)
		judge_slot(look, f, &f->slots[i], p);
}

/* Those that are new, or have become more. */
static void tell(struct live *l, const struct pins_vec *before)
{
	for (size_t i = 0; i < l->leaks.n; i++) {
		const struct live_leak *k = pins_at(&l->leaks, struct live_leak, i),
				       *old = find(before, k->site, k->how);

		if (!old || old->pages < k->pages)
			live_print_leak(l, k);
	}
}

/* Only what has changed since a census looked. */
static bool suspicious(struct live *l)
{
	bool found = false;

	for (size_t i = 0; i < l->order.n; i++) {
		struct live_known *k = *pins_at(&l->order, struct live_known *, i);

		if (!k->now.key.longterm || !live_wanted(l, k) || !is_left_over(k))
			continue;
		found = found || k->held != k->checked;
		k->checked = k->held;
	}
	return found;
}

int live_find_leaks(struct live *l, bool all)
{
	struct looking look = {.l = l, .before = l->leaks, .all = all};
	int err;

	if (!all && !suspicious(l))
		return 0;
	l->leaks = (struct pins_vec){.size = sizeof(struct live_leak)};
	l->confirmed = l->unseen = 0;
	pins_start(&look.census);
	err = pins_take(&look.census, &l->o->filter);
	l->at_end = live_sum_of(&look.census);
	if (!err) {
		order_places(&look);
		err = live_each_folio(l, judge, &look);
	}
	pins_free(&look.places);
	pins_end(&look.census);
	if (!all) /* else the last picture has them */
		tell(l, &look.before);
	pins_free(&look.before);
	return err;
}
