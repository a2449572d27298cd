/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A call has pinned: its site, and what is remembered of it. */
#ifndef PINLEASE_LIVE_PIN_H
#define PINLEASE_LIVE_PIN_H

#include "live_maps.h"

static __always_inline void describe(struct live_key *site, __u64 page, __u64 head, __u64 *index)
{
	struct folio *folio = (void *)head;
	__u64 mapping = (__u64)BPF_CORE_READ(folio, mapping);
	struct address_space *space = (void *)(mapping & ~3ull);
	struct inode *inode;

	*index = (__u64)BPF_CORE_READ(folio, index) + (page - head) / CENSUS_PAGE_SIZE;
	site->memory = CENSUS_NONE;
	if ((mapping & 3) == 1)
		site->memory = CENSUS_ANON;
	else if ((mapping & 3) == 3)
		site->memory = CENSUS_KSM;
	else if (mapping && !(mapping & 3)) {
		inode = BPF_CORE_READ(space, host);
		if (!inode)
			return;
		site->memory = CENSUS_FILE;
		site->inode = (__u64)inode;
		site->ino = BPF_CORE_READ(inode, i_ino);
		site->dev = BPF_CORE_READ(inode, i_sb, s_dev);
	}
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
	bpf_get_current_comm(site->program, sizeof(site->program));
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
	e->pad = 0;
	bpf_get_current_comm(e->program, sizeof(e->program));
	bpf_ringbuf_submit(e, 0);
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
	}
	__sync_fetch_and_add(&slot->n, 1);
	__sync_fetch_and_add(&slot->pages, pages);
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

SEPARATE int hold(struct walk *w, __u64 pages)
{
	struct live_folio *f;
	struct live_site *s;
	__u64 head, site;
	__u32 slot;

	if (!w)
		return 0;
	head = w->head;
	site = w->site;
	f = folio_at(head);
	if (!f) {
		add(LIVE_LOST_FOLIOS, 1);
		return 0;
	}
	slot = slot_for(f, site);
	if (slot >= LIVE_SLOTS || !take_slot(&f->slots[slot], w, pages)) {
		add(LIVE_LOST_HOLDERS, 1);
		return 0;
	}
	if (bpf_map_lookup_elem(&folios, &head) != f) { /* it was removed meanwhile */
		add(LIVE_LOST_FOLIOS, 1);
		return 0;
	}
	s = bpf_map_lookup_elem(&sites, &site);
	if (s) {
		__sync_fetch_and_add(&s->held, 1);
		__sync_fetch_and_add(&s->held_pages, pages);
	}
	return 0;
}

static long hold_page(__u64 i, void *arg)
{
	struct walk *w = arg;
	__u64 page = next_page(w, i);

	if (!page)
		return 0;
	if (page < w->head || page >= w->end) {
		if (w->run)
			hold(w, w->run);
		enter(w, page);
		w->index += w->run;
		w->addr += w->run * CENSUS_MEMORY_PAGE;
	}
	w->run += w->are_folios ? (w->end - w->head) / CENSUS_PAGE_SIZE : 1;
	return 0;
}

static __always_inline void follow(struct walk *w, const struct call *c, __u64 page, __u64 nr,
				   __u64 pages)
{
	if (!exact) {
		enter(w, page);
		hold(w, pages);
		return;
	}
	w->at = c->pages;
	w->run = nothing;
	bpf_loop(nr, hold_page, w, 0);
	if (w->run)
		hold(w, w->run);
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
	if (bpf_get_current_pid_tgid() >> 32 == self) /* a census of ours */
		return 0;
	if (nr <= 0) {
		add(LIVE_FAILED_CALLS, 1);
		return 0;
	}
	add(s.longterm ? LIVE_LONG_CALLS : LIVE_SHORT_CALLS, 1);
	add(s.longterm ? LIVE_LONG_PAGES : LIVE_SHORT_PAGES, pages);
	page = word(c->pages);
	if (!page || (!s.longterm && sample > 1 && bpf_get_prandom_u32() % sample))
		return 0;
	set_process(&s);
	describe(&s, page, c->are_folios ? page : head_of(page), &w.index);
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
