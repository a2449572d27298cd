/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the programs have counted, read without stopping them: sums of sites that went on meanwhile. */
#include <bpf/bpf.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <live.skel.h>
#include "common.h"
#include "pins_live.h"

#define AT_ONCE	   1024
#define MEND_MS	   2000
#define MANY_SITES 8192 /* from then on those of processes that have ended are only summed up */

int live_read_counts(struct live *l)
{
	int cpus = libbpf_num_possible_cpus();
	uint64_t *each = cpus > 0 ? calloc(cpus, sizeof *each) : NULL;

	if (!each) {
		pins_say("no memory to read what is counted");
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < LIVE_NR_COUNTS; i++) {
		l->counts[i] = 0;
		if (!bpf_map_lookup_elem(bpf_map__fd(l->bpf->maps.counts), &i, each))
			for (int j = 0; j < cpus; j++)
				l->counts[i] += each[j];
	}
	l->counts[LIVE_LOST_EVENTS] = l->bpf->bss->lost_events;
	free(each);
	return 0;
}

struct live_seen live_seen(const struct live *l)
{
	const uint64_t *n = l->counts;

	return (struct live_seen){n[LIVE_LONG_PAGES] + n[LIVE_SHORT_PAGES] + n[LIVE_OWN_LONG_PAGES] +
					  n[LIVE_OWN_SHORT_PAGES],
				  n[LIVE_UNPINNED_PAGES] + n[LIVE_OWN_UNPINNED_PAGES]};
}

/* Else what a release that was missed left would stay until the page is pinned again. */
static void mend(struct live *l)
{
	LIBBPF_OPTS(bpf_test_run_opts, opts);

	if (tool_now() - l->mended_ns < MEND_MS * 1000000ull)
		return;
	bpf_prog_test_run_opts(bpf_program__fd(l->bpf->progs.mend_all), &opts);
	l->mended_ns = tool_now();
}

int live_each_folio(struct live *l, void (*each)(uint64_t folio, const struct live_folio *f, void *arg),
		    void *arg)
{
	uint64_t *keys = malloc(AT_ONCE * sizeof *keys);
	struct live_folio *folios = malloc(AT_ONCE * sizeof *folios);
	uint32_t batch, n, *from = NULL;
	int err = keys && folios ? 0 : -ENOMEM, fd = bpf_map__fd(l->bpf->maps.folios);

	while (!err) {
		n = AT_ONCE;
		err = bpf_map_lookup_batch(fd, from, &batch, keys, folios, &n, NULL);
		from = &batch;
		for (uint32_t i = 0; i < n && (!err || err == -ENOENT); i++)
			each(keys[i], &folios[i], arg);
	}
	free(keys);
	free(folios);
	err = err == -ENOENT ? 0 : err;
	if (err)
		pins_say("can't read the table of what is pinned (%s)", strerror(-err));
	return err;
}

void live_add_leased(struct live_leased *sum, const struct live_leased *more)
{
	sum->back += more->back;
	sum->kept += more->kept;
	sum->unknown += more->unknown;
}

bool live_knows_leased(const struct live *l, const struct live_leased *leased, uint64_t held)
{
	return l->c->have_leases && (!leased->unknown || leased->unknown < held);
}

static void find_leases(const struct census *c, const struct live_slot *slot, struct live_leased *leased)
{
	uint64_t at = slot->addr / PINS_PAGE * PINS_PAGE, end = at + (uint64_t)slot->pages * PINS_PAGE;

	for (uint64_t len; at < end; at += len) {
		const struct pins_lease *lease;

		len = end - at;
		lease = pins_lease_at(c, (int32_t)slot->tgid, at, &len);
		if (lease)
			*(lease->taken_back ? &leased->back : &leased->kept) += len;
	}
}

static void note_slot(struct live *l, const struct live_slot *slot)
{
	struct live_known *k = slot->site && slot->pins > 0 ? live_known(l, slot->site) : NULL;

	if (!k)
		return;
	k->held += slot->calls;
	k->held_pages += slot->pages;
	if (!k->oldest_ns || slot->since_ns < k->oldest_ns)
		k->oldest_ns = slot->since_ns;
	if (!slot->longterm)
		return;
	if (!pins_leases_are_told(k->now.key.memory))
		k->leased.unknown += (uint64_t)slot->pages * PINS_PAGE;
	else if (l->c->leases.n && slot->addr && slot->calls == 1)
		find_leases(l->c, slot, &k->leased);
	else if (l->c->leases.n)
		k->leased.unknown += (uint64_t)slot->pages * PINS_PAGE;
}

static void note_held(uint64_t folio, const struct live_folio *f, void *arg)
{
	for (int i = 0; i < LIVE_SLOTS; i++)
		note_slot(arg, &f->slots[i]);
}

static void add_up(struct live_group *g, const struct live_known *k)
{
	const struct live_site *s = &k->now;

	g->calls += s->calls;
	g->pages += s->pages;
	g->released += s->released;
	g->untimed += s->untimed;
	live_add_leased(&g->leased, &k->leased);
	g->held += k->held;
	g->held_pages += k->held_pages;
	if (k->oldest_ns && (!g->oldest_ns || k->oldest_ns < g->oldest_ns))
		g->oldest_ns = k->oldest_ns;
	for (int i = 0; i < LIVE_BUCKETS; i++)
		g->histogram[i] += s->histogram[i];
}

/* Sites that nobody can add to any more give their place to others. */
static bool fold_one(struct live *l, struct live_known *k)
{
	if (!k->gone_ns || k->held > 0 || bpf_map_delete_elem(bpf_map__fd(l->bpf->maps.sites), &k->id))
		return false;
	if (live_wanted(l, k))
		add_up(&l->folded[k->device][k->now.key.longterm], k);
	live_drop(l, k);
	return true;
}

static void fold(struct live *l)
{
	size_t to = 0;

	if (l->order.n <= MANY_SITES)
		return;
	for (size_t i = 0; i < l->order.n; i++) {
		struct live_known *k = *pins_at(&l->order, struct live_known *, i);

		if (!fold_one(l, k))
			*pins_at(&l->order, struct live_known *, to++) = k;
	}
	l->order.n = to;
}

static void read_sites(struct live *l)
{
	uint64_t id, *before = NULL;
	int fd = bpf_map__fd(l->bpf->maps.sites);

	for (; !bpf_map_get_next_key(fd, before, &id); before = &id)
		live_known(l, id);
	for (size_t i = 0; i < l->order.n; i++) {
		struct live_known *k = *pins_at(&l->order, struct live_known *, i);

		k->oldest_ns = 0;
		k->leased = (struct live_leased){0};
		k->held = k->held_pages = 0;
		bpf_map_lookup_elem(fd, &k->id, &k->now);
		if (!k->gone_ns && live_is_gone(&k->now))
			k->gone_ns = tool_now();
	}
}

static int by_held(const void *a, const void *b)
{
	const struct live_known *x = *(struct live_known *const *)a, *y = *(struct live_known *const *)b;

	if (x->held_pages != y->held_pages)
		return x->held_pages < y->held_pages ? 1 : -1;
	if (x->now.pages != y->now.pages)
		return x->now.pages < y->now.pages ? 1 : -1;
	return x->id != y->id ? (x->id < y->id ? -1 : 1) : 0;
}

int live_look(struct live *l)
{
	int err;

	err = live_read_counts(
		l); /* first, so that no pin counts as seen that the kernel hasn't counted */
	l->have_kernel = l->have_kernel && !pins_counters(&l->kernel_now);
	mend(l);
	read_sites(l);
	pins_list_leases(l->c);
	if (!err)
		err = live_each_folio(l, note_held, l);
	fold(l);
	memcpy(l->groups, l->folded, sizeof l->groups);
	for (size_t i = 0; i < l->order.n; i++) {
		const struct live_known *k = *pins_at(&l->order, struct live_known *, i);

		if (live_wanted(l, k))
			add_up(&l->groups[k->device][k->now.key.longterm], k);
	}
	pins_order(&l->order, by_held);
	live_read_cost(l);
	return err;
}
