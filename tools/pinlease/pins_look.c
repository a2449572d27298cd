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
#define MANY_SITES 8192 /* from then on those of processes that have ended are only summed up */

static int read_counts(struct live *l)
{
	int cpus = libbpf_num_possible_cpus();
	uint64_t *each = cpus > 0 ? calloc(cpus, sizeof *each) : NULL;

	if (!each)
		return -ENOMEM;
	for (uint32_t i = 0; i < LIVE_NR_COUNTS; i++) {
		l->counts[i] = 0;
		if (!bpf_map_lookup_elem(bpf_map__fd(l->bpf->maps.counts), &i, each))
			for (int j = 0; j < cpus; j++)
				l->counts[i] += each[j];
	}
	free(each);
	return 0;
}

int live_each_folio(struct live *l,
		    void (*each)(uint64_t folio, const struct live_slot *slot, void *arg), void *arg)
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
			for (int j = 0; j < LIVE_SLOTS; j++)
				if (folios[i].slots[j].site && folios[i].slots[j].n > 0)
					each(keys[i], &folios[i].slots[j], arg);
	}
	free(keys);
	free(folios);
	return err == -ENOENT ? 0 : err;
}

static uint64_t leased_of(const struct census *c, const struct live_slot *slot)
{
	uint64_t at = slot->addr / PINS_PAGE * PINS_PAGE, end = at + (uint64_t)slot->pages * PINS_PAGE,
		 leased = 0;

	for (uint64_t len; at < end; at += len) {
		len = end - at;
		if (pins_lease_at(c, (int32_t)slot->tgid, at, &len))
			leased += len;
	}
	return leased;
}

static void note_held(uint64_t folio, const struct live_slot *slot, void *arg)
{
	struct live *l = arg;
	struct live_known *k = live_known(l, slot->site);

	if (!k)
		return;
	if (!k->oldest_ns || slot->since_ns < k->oldest_ns)
		k->oldest_ns = slot->since_ns;
	if (slot->longterm && l->c->leases.n)
		k->leased += leased_of(l->c, slot);
}

static void add_up(struct live_group *g, const struct live_known *k)
{
	const struct live_site *s = &k->now;

	g->calls += s->calls;
	g->pages += s->pages;
	g->released += s->released;
	g->leased += k->leased;
	g->held += s->held > 0 ? s->held : 0;
	g->held_pages += s->held_pages > 0 ? s->held_pages : 0;
	if (k->oldest_ns && (!g->oldest_ns || k->oldest_ns < g->oldest_ns))
		g->oldest_ns = k->oldest_ns;
	for (int i = 0; i < LIVE_BUCKETS; i++)
		g->histogram[i] += s->histogram[i];
}

/* Sites that nobody can add to any more give their place to others. */
static bool fold_one(struct live *l, struct live_known *k)
{
	if (!k->gone_ns || k->now.held > 0 ||
	    bpf_map_delete_elem(bpf_map__fd(l->bpf->maps.sites), &k->id))
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

		k->oldest_ns = k->leased = 0;
		bpf_map_lookup_elem(fd, &k->id, &k->now);
		if (!k->gone_ns && live_is_gone(&k->now))
			k->gone_ns = tool_now();
	}
}

static int by_held(const void *a, const void *b)
{
	const struct live_known *x = *(struct live_known *const *)a, *y = *(struct live_known *const *)b;

	if (x->now.held_pages != y->now.held_pages)
		return x->now.held_pages < y->now.held_pages ? 1 : -1;
	if (x->now.pages != y->now.pages)
		return x->now.pages < y->now.pages ? 1 : -1;
	return x->id != y->id ? (x->id < y->id ? -1 : 1) : 0;
}

int live_look(struct live *l)
{
	int err = read_counts(l);

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
