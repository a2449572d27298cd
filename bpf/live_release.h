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

static __always_inline void count_release(struct walk *w, __s64 n, __s64 pages, __u64 held)
{
	__u64 id = w->site;
	struct live_site *s = bpf_map_lookup_elem(&sites, &id);
	__u32 in = bucket_of(held);

	if (!s)
		return;
	__sync_fetch_and_add(&s->held, -n);
	__sync_fetch_and_add(&s->held_pages, -pages);
	__sync_fetch_and_add(&s->released, n);
	if (in < LIVE_BUCKETS)
		__sync_fetch_and_add(&s->histogram[in], n);
	tell(LIVE_RELEASE, w, pages, held);
}

/* One of its pins, or all. */
SEPARATE int end_slot(struct live_slot *slot, struct walk *w, int all)
{
	__s64 n, pages;

	if (!slot || !w)
		return 0;
	n = slot->n;
	pages = slot->pages;
	w->site = slot->site;
	if (!w->site || n <= 0)
		return 0;
	w->addr = slot->addr;
	w->index = slot->index;
	if (!all && n > 1) {
		pages = (__u64)pages / (__u64)n;
		n = 1;
	}
	__sync_fetch_and_add(&slot->pages, -pages);
	__sync_fetch_and_add(&slot->n, -n);
	count_release(w, n, pages, w->now - slot->since_ns);
	if (slot->n <= 0)
		slot->site = 0;
	return 0;
}

SEPARATE int noted(const struct live_folio *f)
{
	__s64 n = 0;

	for (int i = 0; f && i < LIVE_SLOTS; i++)
		n += f->slots[i].site && f->slots[i].n > 0 ? f->slots[i].n : 0;
	return n;
}

/* Whose pin it was can't be seen. Most likely one that is transient, then one of who is here. */
SEPARATE int likely(const struct live_folio *f, __u32 tgid)
{
	__u32 best = 0, found = LIVE_SLOTS;

	if (!f)
		return LIVE_SLOTS;
	for (__u32 i = 0; i < LIVE_SLOTS; i++) {
		__u32 likelihood = (f->slots[i].longterm ? 1 : 3) + (f->slots[i].tgid == tgid);

		if (f->slots[i].site && f->slots[i].n > 0 && likelihood > best) {
			best = likelihood;
			found = i;
		}
	}
	return found;
}

SEPARATE int end_likely(struct live_folio *f, struct walk *w)
{
	__u32 slot;

	if (!f || !w)
		return 0;
	slot = likely(f, w->tgid);
	return slot < LIVE_SLOTS ? end_slot(&f->slots[slot], w, 0) : 0;
}

/* Below they are written out, since Linux 6.1 takes no loop around a call. */
_Static_assert(LIVE_SLOTS == 4, "release() names each");

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
	if (!left) {
		end_slot(&f->slots[0], w, 1);
		end_slot(&f->slots[1], w, 1);
		end_slot(&f->slots[2], w, 1);
		end_slot(&f->slots[3], w, 1);
	} else {
		if (count > left)
			end_likely(f, w);
		if (count > left + 1)
			end_likely(f, w);
		if (count > left + 2)
			end_likely(f, w);
		if (count > left + 3)
			end_likely(f, w);
	}
	if (!noted(f))
		bpf_map_delete_elem(&folios, &head);
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
		enter(w, page);
	}
	w->run++;
	return 0;
}

static __always_inline int unpin(struct walk *w, __u64 nr)
{
	w->now = bpf_ktime_get_ns();
	w->tgid = bpf_get_current_pid_tgid() >> 32;
	add(LIVE_UNPINNED_PAGES, nr);
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
	struct walk w = {.now = bpf_ktime_get_ns(), .are_folios = 1};

	w.tgid = bpf_get_current_pid_tgid() >> 32;
	add(LIVE_UNPINNED_PAGES, nr);
	enter(&w, folio);
	w.run = nr;
	return release(&w);
}

#endif
