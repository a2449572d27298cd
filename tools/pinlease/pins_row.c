/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Pages become uses (who has which part of a page, by which device), and uses become rows. Pins that an
 * object has in its own list are its, of pages or of addresses; what is left of a page's pins is said to
 * be of a process that maps it: one that has a device open which keeps no list, or else nobody knows by
 * what. What this command pins itself is left out everywhere.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "arbiter.h"
#include <census.skel.h>
#include "pins.h"
#include "ps.h"

struct use {
	const struct census_pin *pin;
	enum pins_device device;
	bool sure, mapped;
	int32_t pid;
	uint32_t group;
	uint64_t page, nr; /* of the folio */
	uint64_t addr;	   /* of the first of them in the process; 0: none */
	uint64_t pins, refs;
};

struct left { /* of a page */
	uint64_t pins, refs;
};

struct making {
	struct census *c;
	const struct pins_filter *filter;
	struct left *left;     /* by number of the page's record */
	struct pins_vec shown; /* struct pins_range: numbers of pages */
	int32_t asked;	       /* the process that `device` is of */
	int device;
};

/* ----------------------------------------------------------------------------------------- leases -- */

static int keep_lease(const union pl_message *m, void *arg)
{
	struct census *c = arg;

	if (m->head.type == PL_ENTRY && m->entry.state != PINL_RELEASED)
		pins_add(&c->leases,
			 &(struct pins_lease){.pid = m->entry.pid,
					      .start = m->entry.start,
					      .end = m->entry.end,
					      .policy = ps_policy_words(&m->entry),
					      .taken_back = pins_takes_back(m->entry.policy)});
	return 0;
}

static int by_begin(const void *a, const void *b)
{
	const struct pins_lease *x = a, *y = b;

	if (x->pid != y->pid)
		return x->pid < y->pid ? -1 : 1;
	return x->start != y->start ? (x->start < y->start ? -1 : 1) : 0;
}

/* Without pinleased nothing is known of leases, which is said. */
void pins_list_leases(struct census *c)
{
	struct arbiter a = {.quiet = true};
	union pl_message m;

	c->leases.size = sizeof(struct pins_lease);
	c->leases.n = 0;
	c->have_leases = false;
	if (arbiter_open(&a))
		return;
	pl_message_init(&m, PL_LIST);
	c->have_leases = !arbiter_ask(&a, &m, keep_lease, c, ARBITER_PATIENCE_MS, NULL);
	arbiter_close(&a);
	pins_order(&c->leases, by_begin);
	for (size_t i = 0; i < c->leases.n; i++) {
		struct pins_lease *l = pins_at(&c->leases, struct pins_lease, i);

		l->reach = i && l[-1].pid == l->pid && l[-1].reach > l->end ? l[-1].reach : l->end;
	}
}

const struct pins_lease *pins_lease_at(const struct census *c, int32_t pid, uint64_t addr, uint64_t *len)
{
	const struct pins_lease *all = c->leases.items;
	size_t low = 0, high = c->leases.n;

	while (low < high) { /* the first that begins behind it */
		size_t mid = (low + high) / 2;

		if (all[mid].pid < pid || (all[mid].pid == pid && all[mid].start <= addr))
			low = mid + 1;
		else
			high = mid;
	}
	if (low < c->leases.n && all[low].pid == pid && all[low].start - addr < *len)
		*len = all[low].start - addr;
	for (; low > 0 && all[low - 1].pid == pid && all[low - 1].reach > addr; low--)
		if (all[low - 1].end > addr) {
			*len = *len < all[low - 1].end - addr ? *len : all[low - 1].end - addr;
			return &all[low - 1];
		}
	return NULL;
}

/* ------------------------------------------------------------------------------------------- rows -- */

bool pins_wanted(const struct pins_filter *f, int32_t pid, enum pins_device device,
		 const struct pins_memory *m)
{
	if (pid == getpid() || (f->pid && pid != f->pid) ||
	    (f->device >= 0 && device != (unsigned)f->device))
		return false;
	return !f->by_file || (m->kind == CENSUS_FILE && m->ino == f->file_ino &&
			       makedev(m->dev >> 20, m->dev & 0xfffff) == f->file_dev);
}

/* What another has, too, is also his. */
static bool wanted(const struct making *m, const struct use *u)
{
	const struct pins_filter *f = m->filter;

	return pins_wanted(f, pins_group_has(m->c, u->group, f->pid) ? f->pid : u->pid, u->device,
			   &(struct pins_memory){u->pin->ino, u->pin->dev, u->pin->memory});
}

static struct pins_row *row_of(struct census *c, const struct use *u, const struct pins_lease *lease)
{
	struct pins_row row = {.pid = u->pid,
			       .device = u->device,
			       .group = u->group,
			       .sure = u->sure,
			       .mapped = u->mapped,
			       .physical = u->pin->memory != CENSUS_FILE && !u->addr,
			       .memory = u->pin->memory,
			       .dev = u->pin->dev,
			       .ino = u->pin->ino,
			       .inode = u->pin->inode,
			       .lease = lease ? lease->policy : NULL,
			       .taken_back = lease && lease->taken_back,
			       .lease_known =
				       c->have_leases && (lease || pins_leases_are_told(u->pin->memory)),
			       .ranges = {.size = sizeof(struct pins_range)}};

	for (size_t i = c->rows.n; i > 0; i--) { /* mostly it is the last */
		struct pins_row *r = pins_at(&c->rows, struct pins_row, i - 1);

		if (r->pid == row.pid && r->device == row.device && r->group == row.group &&
		    r->sure == row.sure && r->mapped == row.mapped && r->physical == row.physical &&
		    r->memory == row.memory && r->dev == row.dev && r->ino == row.ino &&
		    r->lease == row.lease)
			return r;
	}
	return pins_add(&c->rows, &row);
}

/* Of a file: its offsets. Else the process' addresses; where there are none, the machine's. */
static void add_part(struct census *c, const struct use *u, uint64_t at, uint64_t len,
		     const struct pins_lease *lease)
{
	struct pins_row *row = row_of(c, u, lease);
	uint64_t first = u->pin->memory == CENSUS_FILE ? (u->pin->index + u->page) * PINS_PAGE
			 : u->addr		       ? u->addr
						       : (u->pin->pfn + u->page) * PINS_PAGE;
	struct pins_range *last =
		row->ranges.n ? pins_at(&row->ranges, struct pins_range, row->ranges.n - 1) : NULL;

	if (!at) {
		row->pins += u->pins;
		row->refs += u->refs;
	}
	if (last && last->end == first + at)
		last->end += len;
	else
		pins_add(&row->ranges, &(struct pins_range){first + at, first + at + len});
}

static void add_use(struct making *m, const struct use *u)
{
	uint64_t total = u->nr * PINS_PAGE, first = u->pin->pfn + u->page;

	if (!wanted(m, u))
		return;
	pins_add(&m->shown, &(struct pins_range){first, first + u->nr});
	for (uint64_t at = 0, len; at < total; at += len) {
		const struct pins_lease *lease = NULL;

		len = total - at;
		if (u->addr && m->c->leases.n && u->device != PINS_VMSPLICE)
			lease = pins_lease_at(m->c, u->pid, u->addr + at, &len);
		add_part(m->c, u, at, len, lease);
	}
}

/* ------------------------------------------------------------------------------------------- uses -- */

/* The first process from `pid` on that maps it. */
static const struct pins_map *map_of(const struct census *c, uint32_t pin, int32_t pid)
{
	size_t low = 0, high = c->maps.n;

	while (low < high) {
		size_t mid = (low + high) / 2;
		const struct pins_map *map = pins_at(&c->maps, struct pins_map, mid);

		if (map->pin < pin || (map->pin == pin && map->pid < pid))
			low = mid + 1;
		else
			high = mid;
	}
	if (low == c->maps.n || pins_at(&c->maps, struct pins_map, low)->pin != pin)
		return NULL;
	return pins_at(&c->maps, struct pins_map, low);
}

bool pins_is_mapped(const struct census *c, uint32_t pin, int32_t pid)
{
	const struct pins_map *map = map_of(c, pin, pid);

	return map && (!pid || map->pid == pid);
}

/* Of the process that was asked for last it is known. */
static int device_of(struct making *m, int32_t pid)
{
	const struct census *c = m->c;

	if (m->asked == pid)
		return m->device;
	m->asked = pid;
	m->device = -1;
	for (size_t i = 0; i < c->files.n; i++) {
		const struct census_file *f = pins_at(&c->files, struct census_file, i);
		int device = f->pid == pid ? pins_device_of(f) : -1;

		m->device = device > m->device ? device : m->device;
	}
	return m->device;
}

static size_t first_pin(const struct census *c, uint64_t pfn)
{
	size_t low = 0, high = c->pins.n;

	while (low < high) {
		size_t mid = (low + high) / 2;
		const struct census_pin *p = pins_at(&c->pins, struct census_pin, mid);

		if (p->pfn + p->nr_pages <= pfn)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static uint64_t take(uint64_t *left, uint64_t wanted)
{
	uint64_t taken = wanted < *left ? wanted : *left;

	*left -= taken;
	return taken;
}

/* What an object's piece has of a page: at most what is left of its pins. */
static void use_piece(struct making *m, const struct pins_piece *piece, uint32_t number)
{
	struct census *c = m->c;
	const struct pins_hold *h = pins_at(&c->holds, struct pins_hold, piece->hold);
	const struct census_pin *p = pins_at(&c->pins, struct census_pin, number);
	uint64_t begin = piece->pfn > p->pfn ? piece->pfn : p->pfn, end = piece->pfn + piece->nr,
		 all = p->pfn + p->nr_pages, count;
	struct use u = {.pin = p, .device = h->device, .sure = true, .pid = h->pid, .group = h->group};

	u.nr = (end < all ? end : all) - begin;
	u.page = begin - p->pfn;
	u.mapped = pins_is_mapped(c, number, h->pid);
	u.addr = h->addr ? h->addr / PINS_PAGE * PINS_PAGE + piece->offset / PINS_PAGE * PINS_PAGE +
				   (begin - piece->pfn) * PINS_PAGE
			 : 0;
	if (u.mapped && (!u.addr || p->memory != CENSUS_FILE)) /* it may have been moved since */
		u.addr = map_of(c, number, h->pid)->addr +
			 (u.page - map_of(c, number, h->pid)->page) * PINS_PAGE;
	count = h->each_page ? u.nr : 1;
	if (h->counted) {
		u.pins = take(&m->left[number].pins, count);
		if (!u.pins)
			return;
	} else {
		u.refs = count; /* also where something else explains them */
		take(&m->left[number].refs, count);
	}
	add_use(m, &u);
}

static int by_addr(const void *a, const void *b)
{
	const struct pins_piece *x = a, *y = b;

	if (x->hold != y->hold)
		return x->hold < y->hold ? -1 : 1;
	return x->offset != y->offset ? (x->offset < y->offset ? -1 : 1) : 0;
}

static void use_pieces(struct making *m)
{
	struct census *c = m->c;

	pins_order(&c->pieces, by_addr);
	for (size_t i = 0; i < c->pieces.n; i++) {
		const struct pins_piece *piece = pins_at(&c->pieces, struct pins_piece, i);

		for (size_t j = first_pin(c, piece->pfn); j < c->pins.n; j++) {
			const struct census_pin *p = pins_at(&c->pins, struct census_pin, j);

			if (p->pfn >= piece->pfn + piece->nr)
				break;
			use_piece(m, piece, (uint32_t)j);
		}
	}
}

static void use_region(struct making *m, const struct pins_map *map, const struct pins_region *r)
{
	const struct census_pin *p = pins_at(&m->c->pins, struct census_pin, map->pin);
	uint64_t base = map->addr - map->page * PINS_PAGE, last = base + p->nr_pages * PINS_PAGE,
		 start = r->start > base ? r->start : base, end = r->end < last ? r->end : last;
	struct use u = {.pin = p,
			.device = r->device,
			.sure = true,
			.mapped = true,
			.pid = r->pid,
			.group = r->group,
			.addr = start};

	if (start >= end)
		return;
	u.page = (start - base) / PINS_PAGE;
	u.nr = (end - start) / PINS_PAGE;
	u.pins = take(&m->left[map->pin].pins, u.nr);
	if (u.pins)
		add_use(m, &u);
}

static void use_regions(struct making *m)
{
	struct census *c = m->c;
	const struct pins_region *r = c->regions.items;

	pins_sort_regions(c);
	for (size_t i = 0; i < c->maps.n; i++) {
		const struct pins_map *map = pins_at(&c->maps, struct pins_map, i);
		const struct census_pin *p = pins_at(&c->pins, struct census_pin, map->pin);
		uint64_t base = map->addr - map->page * PINS_PAGE;
		size_t at = pins_regions_before(c, map->pid, base + p->nr_pages * PINS_PAGE);

		while (at && r[at - 1].pid == map->pid && r[at - 1].reach > base &&
		       m->left[map->pin].pins)
			use_region(m, map, &r[--at]);
	}
}

/* The first process after `pid` that has touched it. */
static const struct pins_map *touched_by(const struct census *c, uint32_t pin, int32_t pid)
{
	const struct pins_map *map = map_of(c, pin, pid + 1);

	while (map && !map->touched) /* of a process' mappings, one that was touched is the first */
		map = map_of(c, pin, map->pid + 1);
	return map;
}

/* Whose pins they are that no list has: of those that map the page, one with a device; the only one;
 * nobody known. */
static void use_rest(struct making *m, uint32_t number, uint64_t pins)
{
	const struct census *c = m->c;
	const struct census_pin *p = pins_at(&c->pins, struct census_pin, number);
	const struct pins_map *first = touched_by(c, number, 0), *with = NULL, *map = first;
	struct use u = {.pin = p,
			.device = PINS_OTHER,
			.nr = p->nr_pages,
			.pins = pins,
			.mapped = map_of(c, number, 0)};

	for (; map && !with; map = touched_by(c, number, map->pid))
		if (device_of(m, map->pid) >= 0)
			with = map;
	if (with)
		u.device = device_of(m, with->pid);
	else if (first && !touched_by(c, number, first->pid))
		with = first;
	if (with) {
		u.pid = with->pid;
		u.addr = with->addr - with->page * PINS_PAGE;
	}
	add_use(m, &u);
}

/* -------------------------------------------------------------------------------------------- all -- */

static int by_start(const void *a, const void *b)
{
	const struct pins_range *x = a, *y = b;

	return x->start != y->start ? (x->start < y->start ? -1 : 1) : 0;
}

/* How much that is together. */
static uint64_t merge(struct pins_vec *ranges)
{
	struct pins_range *r = ranges->items;
	uint64_t sum = 0;
	size_t to = 0;

	pins_order(ranges, by_start);
	for (size_t i = 1; i < ranges->n; i++)
		if (r[i].start <= r[to].end)
			r[to].end = r[i].end > r[to].end ? r[i].end : r[to].end;
		else
			r[++to] = r[i];
	ranges->n = ranges->n ? to + 1 : 0;
	for (size_t i = 0; i < ranges->n; i++)
		sum += r[i].end - r[i].start;
	return sum;
}

static void name(struct census *c, struct pins_row *row)
{
	char path[40];
	FILE *f;

	row->bytes = merge(&row->ranges);
	row->path = row->memory == CENSUS_FILE ? pins_path(c, row->inode, row->dev, row->ino) : NULL;
	snprintf(path, sizeof path, "/proc/%d/comm", row->pid);
	f = row->pid ? fopen(path, "re") : NULL;
	if (f && fgets(row->program, sizeof row->program, f))
		row->program[strcspn(row->program, "\n")] = 0;
	if (f)
		fclose(f);
}

/* Ours are in the kernel's counters, too. */
static void leave_out_own(struct census *c, uint64_t own)
{
	c->found -= own;
	c->before.acquired -= own;
	c->after.acquired -= own;
}

static uint64_t own_pins(const struct census *c)
{
	uint64_t own = 0;

	for (size_t i = 0; i < c->pieces.n; i++) {
		const struct pins_piece *piece = pins_at(&c->pieces, struct pins_piece, i);
		const struct pins_hold *h = pins_at(&c->holds, struct pins_hold, piece->hold);

		if (h->pid == getpid() && h->counted)
			own += h->each_page ? piece->nr : 1;
	}
	return own;
}

int pins_make_rows(struct census *c, const struct pins_filter *filter)
{
	struct making m = {.c = c,
			   .filter = filter,
			   .left = calloc(c->pins.n + 1, sizeof *m.left),
			   .shown = {.size = sizeof(struct pins_range)},
			   .device = -1};

	if (!m.left) {
		pins_say("out of memory");
		return -ENOMEM;
	}
	pins_list_leases(c);
	for (size_t i = 0; i < c->pins.n; i++) {
		const struct census_pin *p = pins_at(&c->pins, struct census_pin, i);

		m.left[i] = (struct left){p->pins, p->refs};
	}
	leave_out_own(c, own_pins(c));
	use_pieces(&m);
	use_regions(&m);
	for (uint32_t i = 0; i < c->pins.n; i++) {
		if (m.left[i].pins)
			use_rest(&m, i, m.left[i].pins);
		c->unexplained += m.left[i].refs != 0;
	}
	for (size_t i = 0; i < c->rows.n; i++)
		name(c, pins_at(&c->rows, struct pins_row, i));
	c->shown_bytes = merge(&m.shown) * PINS_PAGE;
	pins_free(&m.shown);
	free(m.left);
	return 0;
}
