/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A call has pinned: its site, and what is remembered of it. */
#ifndef PINLEASE_LIVE_PIN_H
#define PINLEASE_LIVE_PIN_H

#include "live_maps.h"

#define HUGETLBFS 0x958458f6

static __always_inline __u64 index_of(struct folio *folio, struct inode *inode)
{
	__u64 index = (__u64)BPF_CORE_READ(folio, index);

	if (!huge_index || !inode || BPF_CORE_READ(inode, i_sb, s_magic) != HUGETLBFS)
		return index;
	return index * half((__u64)folio + off_nr_pages);
}

static __always_inline void describe(struct live_key *site, __u64 page, __u64 head, __u64 *index)
{
	struct folio *folio = (void *)head;
	__u64 mapping = (__u64)BPF_CORE_READ(folio, mapping);
	struct address_space *space = (void *)(mapping & ~3ull);
	struct inode *inode = 0;

	site->memory = CENSUS_NONE;
	if ((mapping & 3) == 1)
		site->memory = CENSUS_ANON;
	else if ((mapping & 3) == 3)
		site->memory = CENSUS_KSM;
	else if (mapping && !(mapping & 3))
		inode = BPF_CORE_READ(space, host);
	if (inode) {
		site->memory = CENSUS_FILE;
		site->inode = (__u64)inode;
		site->ino = BPF_CORE_READ(inode, i_ino);
		site->dev = BPF_CORE_READ(inode, i_sb, s_dev);
	}
	*index = index_of(folio, inode) + (page - head) / CENSUS_PAGE_SIZE;
}

static __always_inline __u64 mix(__u64 hash, __u64 with)
{
	hash = (hash ^ with) * 0x9e3779b97f4a7c15ull;
	return hash ^ hash >> 29;
}

static __always_inline __u64 id_of(const struct live_key *s)
{
	__u64 id = mix(s->started_ns, s->tgid);

	id = mix(id, (__u64)(__u32)s->stack << 32 | s->dev);
	id = mix(id, s->ino);
	id = mix(id, s->memory << 2 | s->longterm << 1 | s->write);
	return id ? id : 1;
}

static __always_inline struct live_site *note_site(const struct live_key *key, __u64 *id, __u64 now)
{
	static const struct live_site none;
	struct live_site *site;

	*id = id_of(key);
	site = bpf_map_lookup_elem(&sites, id);
	if (site)
		return site;
	bpf_map_update_elem(&sites, id, &none, 1 /* BPF_NOEXIST */);
	site = bpf_map_lookup_elem(&sites, id);
	if (!site) {
		add(LIVE_LOST_SITES, 1);
		return site;
	}
	site->key = *key;
	site->first_ns = now;
	BPF_CORE_READ_STR_INTO(&site->program, (struct task_struct *)bpf_get_current_task(),
			       group_leader, comm); /* a thread may have another name */
	return site;
}

static __always_inline void tell(__u32 what, const struct walk *w, __u64 pages, __u64 held)
{
	struct live_event *e;
	__u64 task = bpf_get_current_pid_tgid();

	if (!events)
		return;
	e = bpf_ringbuf_reserve(&ring, sizeof(*e), 0);
	if (!e) {
		add(LIVE_LOST_EVENTS, 1);
		return;
	}
	e->ns = w->now;
	e->site = w->site;
	e->addr = w->addr;
	e->index = w->index;
	e->pages = pages;
	e->held_ns = held;
	e->what = what;
	e->tid = (__u32)task;
	e->tgid = task >> 32;
	e->untimed = w->untimed;
	bpf_get_current_comm(e->program, sizeof(e->program));
	bpf_ringbuf_submit(e, 0);
}

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
	bpf_map_update_elem(&folios, &head, &none, 1 /* BPF_NOEXIST */);
	return bpf_map_lookup_elem(&folios, &head);
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

SEPARATE int hold(struct walk *w, __u64 pages)
{
	struct live_folio *f;
	__u64 head;
	__u32 slot;

	if (!w)
		return 0;
	head = w->head;
	f = folio_at(head);
	if (!f) {
		add(LIVE_LOST_FOLIOS, 1);
		return 0;
	}
	mend(f, head, w->run);
	slot = slot_for(f, w->site);
	if (slot >= LIVE_SLOTS || !take_slot(&f->slots[slot], w, pages)) {
		add(LIVE_LOST_HOLDERS, 1);
		return 0;
	}
	if (bpf_map_lookup_elem(&folios, &head) != f) /* it was removed meanwhile */
		add(LIVE_LOST_FOLIOS, 1);
	return 0;
}

static __always_inline __u64 folio_pages(const struct walk *w)
{
	return (w->end - w->head) / CENSUS_PAGE_SIZE;
}

static __always_inline void advance(struct walk *w, __u64 pages)
{
	if (w->addr)
		w->addr += pages * CENSUS_MEMORY_PAGE;
	w->index += pages;
}

/* A folio that was got as such has one pin, however large it is. */
static __always_inline void end_run(struct walk *w)
{
	__u64 pages = w->are_folios ? folio_pages(w) : w->run;

	if (!w->run)
		return;
	hold(w, pages);
	advance(w, pages);
	w->run = nothing;
}

static long hold_page(__u64 i, void *arg)
{
	struct walk *w = arg;
	__u64 page = next_page(w, i);

	if (!page || page < w->head || page >= w->end) {
		end_run(w);
		enter(w, page);
	}
	if (page)
		w->run++;
	else
		advance(w, 1);
	return 0;
}

static long count_page(__u64 i, void *arg)
{
	struct walk *w = arg;
	__u64 page = next_page(w, i);

	if (page < w->head || page >= w->end)
		return 1;
	w->run++;
	return 0;
}

/* Pins of the first folio. */
static __always_inline void count_first(struct walk *w, __u64 page, __u64 nr)
{
	__u64 most = (w->end - page) / CENSUS_PAGE_SIZE;

	w->run = 1;
	if (w->are_folios)
		return;
	most = most < nr ? most : nr;
	if (next_page(w, most - 1) == page + (most - 1) * CENSUS_PAGE_SIZE) {
		w->run = most;
		return;
	}
	w->run = nothing;
	bpf_loop(nr, count_page, w, 0);
}

static __always_inline void follow(struct walk *w, const struct call *c, __u64 page, __u64 nr,
				   __u64 pages)
{
	w->at = c->pages;
	if (!exact) {
		enter(w, page);
		count_first(w, page, nr);
		hold(w, pages);
		return;
	}
	w->run = nothing;
	bpf_loop(nr, hold_page, w, 0);
	end_run(w);
}

/* Of transient calls one in `sample`, of this command none. All long-term ones, so that none is taken
 * for another's. */
static __always_inline __u32 is_followed(const struct call *c)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;

	if (tgid == self)
		return 0;
	if (c->flags & foll_longterm)
		return 1;
	if (only && tgid != only)
		return 0;
	return sample <= 1 || !(bpf_get_prandom_u32() % sample);
}

static __always_inline void count_call(const struct call *c, __s64 nr, __u64 pages)
{
	__u32 longterm = (c->flags & foll_longterm) != 0;

	if (bpf_get_current_pid_tgid() >> 32 == self) {
		if (nr > 0)
			add(longterm ? LIVE_OWN_LONG_PAGES : LIVE_OWN_SHORT_PAGES, pages);
		return;
	}
	if (nr <= 0) {
		add(LIVE_FAILED_CALLS, 1);
		return;
	}
	add(longterm ? LIVE_LONG_CALLS : LIVE_SHORT_CALLS, 1);
	add(longterm ? LIVE_LONG_PAGES : LIVE_SHORT_PAGES, pages);
}

static __always_inline void set_process(struct live_key *site)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	site->tgid = bpf_get_current_pid_tgid() >> 32;
	site->started_ns = BPF_CORE_READ(task, group_leader, start_boottime);
}

/* `nr` of what was asked for were got, which are so many pages. */
SEPARATE int pinned(struct call *c, __s64 nr, __u64 pages)
{
	struct live_key s = {};
	struct live_site *site;
	struct walk w = {};
	__u64 page;

	if (!c)
		return 0;
	w.now = bpf_ktime_get_ns();
	w.addr = c->start;
	w.are_folios = c->are_folios;
	s.stack = c->stack;
	s.longterm = (c->flags & foll_longterm) != 0;
	s.write = c->flags & 1;
	page = word(c->pages);
	if (nr <= 0 || !page)
		return 0;
	set_process(&s);
	describe(&s, page, c->are_folios ? page : head_of(page), &w.index);
	if (c->are_folios)
		w.index = c->first;
	if (s.stack < 0)
		add(LIVE_LOST_STACKS, 1);
	site = note_site(&s, &w.site, w.now);
	if (!site)
		return 0;
	__sync_fetch_and_add(&site->calls, 1);
	__sync_fetch_and_add(&site->pages, pages);
	site->last_ns = w.now;
	w.tgid = s.tgid;
	w.longterm = s.longterm;
	tell(LIVE_PIN, &w, pages, 0);
	follow(&w, c, page, nr, pages);
	return 0;
}

#endif
