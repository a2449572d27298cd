/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a site has of a folio: taken, ended in part or whole, and dropped where a release was missed. */
#ifndef PINLEASE_LIVE_SLOT_H
#define PINLEASE_LIVE_SLOT_H

#include "live_maps.h"

/* Two who don't see each other: one frees the slot while the other takes it. Each looks again. */
static __always_inline void keep_owner(struct live_slot *slot, __u64 site)
{
	if (slot->pins > 0)
		__sync_val_compare_and_swap(&slot->site, 0, site);
}

/* 1: noted; 0: it is another site's. */
SEPARATE int take_slot(struct live_slot *slot, const struct walk *w, __u64 pages)
{
	__u64 owner;

	if (!slot || !w)
		return 0;
	owner = slot->site;
	if (owner != w->site) {
		if (owner || __sync_val_compare_and_swap(&slot->site, 0, w->site) != 0)
			return 0;
		slot->since_ns = w->now;
		slot->addr = w->addr;
		slot->index = w->index;
		slot->first = pages;
		slot->tgid = w->tgid;
		slot->longterm = w->longterm;
		slot->flags = 0;
	} else if (slot->pins > 0)
		slot->flags |= LIVE_UNTIMED;
	slot->last_ns = w->now;
	slot->last_pins = w->run;
	__sync_fetch_and_add(&slot->calls, 1);
	__sync_fetch_and_add(&slot->pages, pages);
	__sync_fetch_and_add(&slot->whole, w->run);
	__sync_fetch_and_add(&slot->pins, w->run);
	keep_owner(slot, w->site);
	return 1;
}

static __always_inline struct live_folio *folio_at(__u64 head)
{
	static const struct live_folio none;
	struct live_folio *f = bpf_map_lookup_elem(&folios, &head);

	if (f)
		return f;
	__sync_fetch_and_add(noted_of(head),
			     1); /* before it is there, so that no release passes it by */
	if (bpf_map_update_elem(&folios, &head, &none, 1 /* BPF_NOEXIST */))
		__sync_fetch_and_add(noted_of(head), -1);
	return bpf_map_lookup_elem(&folios, &head);
}

static __always_inline void forget_folio(__u64 head)
{
	if (!bpf_map_delete_elem(&folios, &head))
		__sync_fetch_and_add(noted_of(head), -1);
}

/* The slot of this site, else of nobody; LIVE_SLOTS: there is none. */
SEPARATE int slot_for(const struct live_folio *f, __u64 site)
{
	__u32 found = LIVE_SLOTS;

	if (!f)
		return LIVE_SLOTS;
	for (__u32 i = 0; i < LIVE_SLOTS; i++) {
		if (f->slots[i].site == site)
			return i;
		if (found == LIVE_SLOTS && !f->slots[i].site)
			found = i;
	}
	return found;
}

/* All of them, or so many of its calls as these pins are likely to be of. */
static __always_inline __s64 calls_of(const struct live_slot *slot, __u64 before, __u64 gone)
{
	__u64 calls = slot->calls, whole = slot->whole, left;

	if (gone >= before || !whole)
		return calls;
	left = (calls * (before - gone) + whole - 1) / whole;
	return left < calls ? calls - left : 0;
}

/* 1: this program, and no other that runs now, ends these. */
static __always_inline int claim(struct live_slot *slot, __s64 before, __u64 gone)
{
	return __sync_val_compare_and_swap(&slot->pins, before, before - (__s64)gone) == before;
}

/* Its calls, with their pages; those that remain are at least as old as the last. */
static __always_inline __u64 take_calls(struct live_slot *slot, __s64 calls)
{
	__u64 pages = slot->pages, whole = slot->whole;

	if (calls < slot->calls && slot->calls > 0) {
		pages = pages * (__u64)calls / (__u64)slot->calls;
		whole = whole * (__u64)calls / (__u64)slot->calls;
		slot->since_ns = slot->last_ns;
	}
	__sync_fetch_and_add(&slot->pages, -pages);
	__sync_fetch_and_add(&slot->whole, -whole);
	__sync_fetch_and_add(&slot->calls, -calls);
	return pages;
}

static __always_inline void free_slot(struct live_slot *slot, __u64 site)
{
	__sync_val_compare_and_swap(&slot->site, site, 0);
	keep_owner(slot, site);
}

SEPARATE int noted(const struct live_folio *f)
{
	__s64 n = 0;

	for (int i = 0; f && i < LIVE_SLOTS; i++)
		n += f->slots[i].site && f->slots[i].pins > 0 ? f->slots[i].pins : 0;
	return n;
}

/* Pins whose release was missed: it isn't known when. How many were dropped. */
SEPARATE int drop(struct live_slot *slot, __s64 gone, __u32 longterm)
{
	struct live_site *s;
	__s64 before, calls;
	__u64 site;

	if (!slot || slot->longterm != longterm)
		return 0;
	site = slot->site;
	before = slot->pins;
	if (!site || before <= 0 || gone <= 0)
		return 0;
	if (gone > before)
		gone = before;
	if (!claim(slot, before, gone))
		return 0;
	slot->flags |= LIVE_UNTIMED;
	calls = calls_of(slot, before, gone);
	take_calls(slot, calls);
	if (gone == before)
		free_slot(slot, site);
	s = bpf_map_lookup_elem(&sites, &site);
	if (s) {
		__sync_fetch_and_add(&s->released, calls);
		__sync_fetch_and_add(&s->untimed, calls);
	}
	add(LIVE_LOST_RELEASES, gone);
	return gone;
}

/* Written out, since Linux 6.1 takes no loop around a call. */
_Static_assert(LIVE_SLOTS == 4, "drop_of() names each");

/* How many are to be dropped still. */
static __always_inline __s64 drop_of(struct live_folio *f, __s64 excess, __u32 longterm)
{
	excess -= drop(&f->slots[0], excess, longterm);
	excess -= drop(&f->slots[1], excess, longterm);
	excess -= drop(&f->slots[2], excess, longterm);
	return excess - drop(&f->slots[3], excess, longterm);
}

/* A folio can't have fewer pins than are remembered, with `more` that are to be. Transient ones are
 * first. */
SEPARATE int mend(struct live_folio *f, __u64 head, __u64 more)
{
	__s64 excess;

	if (!f)
		return 0;
	excess = noted(f) + more;
	excess -= pins_of(head);
	if (excess <= 0)
		return 0;
	excess = drop_of(f, excess, 0);
	drop_of(f, excess, 1);
	return 0;
}

#endif
