/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Pins go: of which site, and how long they were held. */
#ifndef PINLEASE_LIVE_RELEASE_H
#define PINLEASE_LIVE_RELEASE_H

#include "live_maps.h"
#include "live_pin.h"

SEPARATE int bucket_of(__u64 ns)
{
	__u32 n = 0;

	for (int i = 0; i < 6; i++) { /* the place of the highest bit */
		__u32 half_of = 32 >> i;

		if (ns >> half_of) {
			ns >>= half_of;
			n += half_of;
		}
	}
	return n < LIVE_BUCKETS ? n : LIVE_BUCKETS - 1;
}

static __always_inline void count_release(struct walk *w, __s64 calls, __u64 pages, __u64 since)
{
	__u64 id = w->site, held = w->now > since ? w->now - since : 0;
	struct live_site *s = bpf_map_lookup_elem(&sites, &id);
	__u32 in = bucket_of(held);

	if (!s)
		return;
	__sync_fetch_and_add(&s->released, calls);
	if (w->untimed)
		__sync_fetch_and_add(&s->untimed, calls);
	else if (in < LIVE_BUCKETS)
		__sync_fetch_and_add(&s->histogram[in], calls);
	tell(LIVE_RELEASE, w, pages, w->first, w->untimed ? 0 : held);
}

/* All pins of a call but one: what is one folio needs no more. */
static __always_inline int is_coalescing(struct live_slot *slot, const struct walk *w, __u64 left)
{
	__u64 gone = w->run;

	if (!left || w->run + 1 != slot->last_pins)
		return 0;
	slot->last_pins = 1;
	__sync_fetch_and_add(&slot->whole, -gone);
	return 1;
}

/* How many of its pins it were. */
SEPARATE int end_pins(struct live_slot *slot, struct walk *w, __u64 gone)
{
	__u64 since, pages;
	__s64 before, calls;
	__u32 late;

	if (!slot || !w)
		return 0;
	before = slot->pins;
	w->site = slot->site;
	if (!w->site || before <= 0 || !gone)
		return 0;
	if (gone > before)
		gone = before;
	if (!claim(slot, before, gone))
		return 0;
	calls = is_coalescing(slot, w, before - gone) ? 0 : calls_of(slot, before, gone);
	if (!calls)
		return gone;
	late = w->untimed;
	w->addr = slot->addr;
	w->index = slot->index;
	w->first = slot->first;
	w->untimed = late || slot->flags || calls < slot->calls;
	since = slot->since_ns;
	pages = take_calls(slot, calls);
	count_release(w, calls, pages, since);
	w->untimed = late;
	if (gone == before)
		free_slot(slot, w->site);
	return gone;
}

static __always_inline void doubt(struct live_folio *f, __u32 flags)
{
	for (__u32 i = 0; i < LIVE_SLOTS; i++)
		if (f->slots[i].site)
			f->slots[i].flags |= flags;
}

/* Whose pin it was can't be seen. Most likely one that is transient, then one of who is here. */
SEPARATE int likely(struct live_folio *f, __u32 tgid)
{
	__u32 best = 0, found = LIVE_SLOTS, as_likely = 0;

	if (!f)
		return LIVE_SLOTS;
	for (__u32 i = 0; i < LIVE_SLOTS; i++) {
		__u32 likelihood = (f->slots[i].longterm ? 1 : 3) + (f->slots[i].tgid == tgid);

		if (!f->slots[i].site || f->slots[i].pins <= 0 || likelihood < best)
			continue;
		if (likelihood == best) {
			as_likely = 1;
			continue;
		}
		as_likely = 0;
		best = likelihood;
		found = i;
	}
	if (as_likely)
		doubt(f, best == 1 ? LIVE_DOUBT | LIVE_UNTIMED : LIVE_UNTIMED);
	return found;
}

SEPARATE int end_likely(struct live_folio *f, struct walk *w, __u64 gone)
{
	__u32 slot;

	if (!f || !w || !gone)
		return 0;
	slot = likely(f, w->tgid);
	return slot < LIVE_SLOTS ? end_pins(&f->slots[slot], w, gone) : 0;
}

/* Below they are written out, since Linux 6.1 takes no loop around a call. */
_Static_assert(LIVE_SLOTS == 4, "end_surplus() names each");

/* What was remembered beyond those that are left goes, of one after the other. */
static __always_inline void end_surplus(struct live_folio *f, struct walk *w, __u64 surplus)
{
	surplus -= end_likely(f, w, surplus);
	surplus -= end_likely(f, w, surplus);
	surplus -= end_likely(f, w, surplus);
	end_likely(f, w, surplus);
}

/* `w->run` pins of this folio go; those that are left have to be as many as are remembered. */
SEPARATE int release(struct walk *w)
{
	struct live_folio *f;
	__u64 head, left, count;

	if (!w)
		return 0;
	head = w->head;
	f = bpf_map_lookup_elem(&folios, &head);
	if (!f)
		return 0;
	left = pins_of(head);
	left = left > w->run ? left - w->run : 0;
	count = noted(f);
	w->untimed = count > left + w->run;
	if (w->untimed)
		add(LIVE_LOST_RELEASES, count - left - w->run);
	if (count > left)
		end_surplus(f, w, count - left);
	if (left && count < left + w->run) /* one that isn't remembered, or one that is */
		doubt(f, LIVE_UNTIMED | LIVE_DOUBT);
	if (!noted(f))
		forget_folio(head);
	return 0;
}

static long release_page(__u64 i, void *arg)
{
	struct walk *w = arg;
	__u64 page = next_page(w, i);

	if (!page)
		return 0;
	if (page < w->head || page >= w->end) {
		if (w->run)
			release(w);
		if (!is_noted(w->are_folios ? page : head_of(page))) {
			w->run = w->head = w->end = nothing;
			return 0;
		}
		enter(w, page);
	}
	w->run++;
	return 0;
}

static __always_inline void count_unpinned(const struct walk *w, __u64 nr)
{
	add(w->tgid == self ? LIVE_OWN_UNPINNED_PAGES : LIVE_UNPINNED_PAGES, nr);
}

static __always_inline int unpin(struct walk *w, __u64 nr)
{
	w->now = bpf_ktime_get_ns();
	w->tgid = bpf_get_current_pid_tgid() >> 32;
	count_unpinned(w, nr);
	bpf_loop(nr, release_page, w, 0);
	if (w->run)
		release(w);
	return 0;
}

static __always_inline int unpin_pages(__u64 array, __u64 nr, __u32 are_folios)
{
	struct walk w = {.at = array, .are_folios = are_folios, .run = nothing};

	return unpin(&w, nr);
}

static __always_inline int unpin_row(__u64 page, __u64 nr)
{
	struct walk w = {.at = page, .is_row = 1, .run = nothing};

	return unpin(&w, nr);
}

static __always_inline int unpin_one_folio(__u64 folio, __u64 nr)
{
	struct walk w = {.are_folios = 1};

	w.tgid = bpf_get_current_pid_tgid() >> 32;
	count_unpinned(&w, nr);
	if (!is_noted(folio))
		return 0;
	w.now = bpf_ktime_get_ns();
	enter(&w, folio);
	w.run = nr;
	return release(&w);
}

#endif
