/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A call has pinned: its site, and what is remembered of it. */
#ifndef PINLEASE_LIVE_PIN_H
#define PINLEASE_LIVE_PIN_H

#include "live_maps.h"
#include "live_slot.h"

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

static __always_inline void tell(__u32 what, const struct walk *w, __u64 pages, __u64 reach, __u64 held)
{
	struct live_event *e;
	__u64 task = bpf_get_current_pid_tgid();

	if (!events || task >> 32 == self)
		return;
	e = bpf_ringbuf_reserve(&ring, sizeof(*e), 0);
	if (!e) {
		__sync_fetch_and_add(&lost_events, 1);
		return;
	}
	e->lost = lost_events;
	e->ns = w->now;
	e->site = w->site;
	e->addr = w->addr;
	e->index = w->index;
	e->pages = pages;
	e->reach = reach;
	e->held_ns = held;
	e->what = what;
	e->tid = (__u32)task;
	e->tgid = task >> 32;
	e->untimed = w->untimed;
	bpf_get_current_comm(e->program, sizeof(e->program));
	bpf_ringbuf_submit(e, 0);
}

SEPARATE int hold(struct walk *w, __u64 pages)
{
	struct live_folio *f;
	__u64 head;
	__u32 slot;

	if (!w)
		return 0;
	head = w->head;
	if (!pins_of(head)) /* of the zero page none are counted */
		return 0;
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

	if (tgid == self && !follow_self)
		return 0;
	if (c->flags & foll_longterm)
		return 1;
	if (only && tgid != only && tgid != self)
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
	tell(LIVE_PIN, &w, pages, pages, 0);
	follow(&w, c, page, nr, pages);
	return 0;
}

#endif
