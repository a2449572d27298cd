/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The way of a hit. Its order is what I1 rests on:
 *
 *	count the region in the own table      so that it isn't ended
 *	  (no barrier: who ends regions makes all threads pass one)
 *	is anything changing? then not here    every change whose caller has gone on is applied below
 *	is gen still what it was?              so the region was valid after that
 */
#include <errno.h>

#include "cache/cache.h"

#define FAR	    8192 /* so many regions aren't near the processor */
#define load(place) __atomic_load_n(&(place), __ATOMIC_ACQUIRE)

/* Of a slot that somebody else's region has: what is there moves to that region's refs. */
static void take_over(struct pl_pin *p, struct pl_region *r, long count)
{
	struct pl_region *other = atomic_load_explicit(&p->region, memory_order_relaxed);

	if (count) {
		atomic_fetch_add(&pl_rest(other)->refs, count);
		atomic_store_explicit(&p->count, 0, memory_order_release);
	}
	atomic_store_explicit(&p->region, r, memory_order_release);
}

void pl_pin(struct pl_table *t, struct pl_region *r)
{
	struct pl_pin *p = t ? &t->pin[pl_pin_index(r)] : NULL;
	long count;

	if (!p) {
		atomic_fetch_add(&pl_rest(r)->refs, 1);
		return;
	}
	count = atomic_load_explicit(&p->count, memory_order_relaxed);
	if (atomic_load_explicit(&p->region, memory_order_relaxed) != r) {
		take_over(p, r, count);
		count = 0;
	}
	atomic_store_explicit(&p->count, count + 1, memory_order_release);
}

void pl_unpin(struct pl_table *t, struct pl_region *r)
{
	struct pl_pin *p = t ? &t->pin[pl_pin_index(r)] : NULL;
	long count = p ? atomic_load_explicit(&p->count, memory_order_relaxed) : 0;

	if (count && atomic_load_explicit(&p->region, memory_order_relaxed) == r)
		atomic_store_explicit(&p->count, count - 1, memory_order_release);
	else
		atomic_fetch_sub(&pl_rest(r)->refs, 1);
}

/* What a thread finds again and again. */
static inline struct pl_hit *hit_of(struct pl_table *t, uintptr_t at)
{
	return &t->hit[(at >> 12) * 0x9e3779b97f4a7c15ull >> 54];
}

static inline bool covers(uintptr_t start, uintptr_t end, uintptr_t at, size_t len)
{
	return start <= at && at < end && len - 1 < end - at;
}

/* The region is counted and valid after all that had happened when the lookup began; else it isn't. */
static inline bool settle(struct pl_cache *c, struct pl_table *t, struct pl_region *r, uint64_t gen)
{
	pl_pin(t, r);
	atomic_signal_fence(memory_order_seq_cst);
	if (!pl_changing(c->ctx) && atomic_load_explicit(&r->gen, memory_order_acquire) == gen) {
		pl_count_hit(t, r);
		return true;
	}
	pl_unpin(t, r);
	return false;
}

static inline void fetch_homes(const struct pl_cache *c, uint64_t hash)
{
	size_t top = atomic_load_explicit(&c->top, memory_order_acquire);

	if (top < FAR)
		return;
	for (unsigned k = 0; k < PL_HOMES; k++)
		__builtin_prefetch(pl_region_at(c, pl_region_home(top, hash, k)));
}

/* The one that begins with this page, as a rule: elsewhere in a region, the index knows. */
static inline struct pl_region *guess(const struct pl_cache *c, uintptr_t at, uint64_t need)
{
	uintptr_t table = atomic_load_explicit(&c->guesses.table, memory_order_acquire);
	uintptr_t page = at & ~(uintptr_t)4095;
	uint64_t hash = pl_guess_hash(page);
	const struct pl_bucket *b = pl_guess_bucket(table, hash);
	uint32_t tag = pl_guess_tag(table, hash);
	size_t number;

	fetch_homes(c, hash);
	for (unsigned among = pl_guess_among(b, tag); among; among &= among - 1) {
		struct pl_region *r;

		if (!pl_guess_get(b, __builtin_ctz(among), tag, &number))
			continue;
		r = pl_region_at(c, number);
		if (load(r->reg.start) == page &&
		    (atomic_load_explicit(&r->gen, memory_order_relaxed) & need) == need)
			return r;
	}
	return NULL;
}

static struct pl_region *find(struct pl_cache *c, struct pl_table *t, uintptr_t at, size_t len,
			      uint64_t need)
{
	struct pl_region *r = guess(c, at, need);
	uintptr_t start, end;
	struct pl_hit *h;
	uint64_t gen;

	if (!r)
		r = pl_tree_find(&c->tree, at);
	if (!r)
		return NULL;
	gen = atomic_load_explicit(&r->gen, memory_order_acquire);
	start = load(r->reg.start);
	end = load(r->reg.end);
	if ((gen & need) != need || !covers(start, end, at, len) || !settle(c, t, r, gen))
		return NULL;
	h = hit_of(t, at);
	*h = (struct pl_hit){start, end, r, gen};
	return r;
}

static inline struct pl_region *hit(struct pl_cache *c, uintptr_t at, size_t len, unsigned access)
{
	struct pl_table *t = pl_tables[c->slot];
	uint64_t need = pl_gen_found(access);
	struct pl_hit *h;

	if (!t || atomic_load_explicit(&t->id, memory_order_relaxed) != c->id ||
	    !__atomic_load_n(c->alive, __ATOMIC_RELAXED))
		return NULL;
	h = hit_of(t, at);
	if (covers(h->start, h->end, at, len) && (h->gen & need) == need &&
	    settle(c, t, h->region, h->gen))
		return h->region;
	return find(c, t, at, len, need);
}

int pinl_get(struct pinl_device *dev, const void *addr, size_t len, unsigned access,
	     const struct pinl_reg **out)
{
	struct pl_cache *c = atomic_load_explicit(&dev->cache, memory_order_acquire);
	struct pl_region *r = c && !(access & ~PINL_WRITE) ? hit(c, (uintptr_t)addr, len, access) : NULL;
	struct pl_want want;

	if (r) {
		*out = &r->reg;
		return 0;
	}
	want = (struct pl_want){(uintptr_t)addr, (uintptr_t)addr + len, access,
				__builtin_return_address(0)};
	return pl_cache_miss(dev, &want, out);
}

void pinl_put(const struct pinl_reg *reg)
{
	struct pl_region *r = pl_region_of(reg);
	struct pl_cache *c = pl_caches[r->cache];
	struct pl_table *t = pl_tables[r->cache];

	if (!__atomic_load_n(c->alive, __ATOMIC_RELAXED))
		return;
	if (t && atomic_load_explicit(&t->id, memory_order_relaxed) != c->id)
		t = NULL;
	pl_unpin(t, r);
	atomic_signal_fence(memory_order_seq_cst);
	if (!(atomic_load_explicit(&r->gen, memory_order_acquire) & PL_GEN_VALID))
		pl_ring_bell(c, true);
}
