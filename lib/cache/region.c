/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Regions: where they are, and how one comes to its end. */
#include <errno.h>

#include "cache/cache.h"

#define FIRST	256 /* places */
#define GUESSES 4   /* for each registration that is new */

#define store(place, what) __atomic_store_n(&(place), what, __ATOMIC_RELEASE)

/* ctx->lock held, so neither a source's thread nor the cache's own waits for anything here. */
static bool changed(struct pl_cached *cached, bool refuses)
{
	struct pl_region *r =
		pl_region_of_rest((struct pl_rest *)((char *)cached - offsetof(struct pl_rest, cached)));
	struct pl_cache *c = pl_caches[r->cache];
	bool used;

	if (refuses && pl_users(c, r))
		return false;
	if (pl_region_kill(r))
		pl_count(c, invalidated);
	if (refuses)
		pl_barrier_everywhere();
	used = pl_users(c, r) != 0;
	pl_ring_bell(c, c->opts.policy.kind == PINL_RECALL);
	return !used;
}

/* Of the first chunk; the others have huge pages, as a rule. */
static void fill(struct pl_cache *c, size_t top)
{
	struct pl_region *first = pl_region_at(c, c->top);

	pl_chunk_fill(first, (top - c->top) * sizeof(*first));
	pl_chunk_fill(pl_rest(first), (top - c->top) * sizeof(struct pl_rest));
}

/* What the table before this one had comes into it a few at a time: nobody waits for all of it. */
_Static_assert(PL_CHUNKS *PL_CHUNK < 1u << PL_GUESS_BITS,
	       "a guess has room for a region's number, and one");

static void guess_some(struct pl_cache *c)
{
	for (unsigned n = 0; n < GUESSES && c->guessed < c->to_guess; n++, c->guessed++) {
		struct pl_region *r = pl_region_at(c, c->guessed);

		if (pl_rest(r)->in_tree)
			pl_guess_add(&c->guesses, r->reg.start, r->number);
	}
}

/* Twice as many places. */
static void more_regions(struct pl_cache *c)
{
	size_t top = c->top ? 2 * c->top : FIRST, chunks = (top + PL_CHUNK - 1) / PL_CHUNK;

	if (chunks > PL_CHUNKS)
		return;
	for (; c->n_chunks < chunks; c->n_chunks++) {
		bool whole = (c->n_chunks + 1) * PL_CHUNK <= top; /* else it is for a few places */

		c->chunk[c->n_chunks] = pl_chunk_new(c->n_chunks && whole);
		if (!c->chunk[c->n_chunks])
			return;
	}
	if (top <= PL_CHUNK)
		fill(c, top);
	if (pl_guesses_grow(&c->guesses, top)) {
		c->guessed = 0;
		c->to_guess = c->top;
	}
	atomic_store_explicit(&c->top, top, memory_order_release);
}

static size_t take_place(struct pl_cache *c, uintptr_t start)
{
	uint64_t hash = pl_guess_hash(start);

	for (unsigned k = 0; k < PL_HOMES; k++) {
		size_t i = pl_region_home(c->top, hash, k);

		if (!pl_rest(pl_region_at(c, i))->taken)
			return i;
	}
	do
		c->sweep = (c->sweep + 1) % c->top;
	while (pl_rest(pl_region_at(c, c->sweep))->taken);
	return c->sweep;
}

struct pl_region *pl_region_new(struct pl_cache *c, uintptr_t start)
{
	struct pl_region *r;
	size_t i;

	if (c->taken >= c->top / 32 * 31)
		more_regions(c);
	if (c->taken == c->top)
		return NULL;
	i = take_place(c, start);
	r = pl_region_at(c, i);
	c->taken++;
	r->number = i;
	r->cache = c->slot;
	pl_rest(r)->cached.changed = changed;
	pl_rest(r)->taken = true;
	pl_rest(r)->seen = pl_rest(r)->in_tree = false;
	r->reg.size = sizeof r->reg;
	r->reg.lease = NULL;
	atomic_store_explicit(&pl_rest(r)->refs, 0, memory_order_relaxed);
	atomic_store_explicit(&r->used, 0, memory_order_relaxed);
	return r;
}

void pl_region_free(struct pl_cache *c, struct pl_region *r)
{
	pl_rest(r)->taken = false;
	c->taken--;
}

/* Valid from here on, though nobody finds it yet: a change of its memory is to find it so. */
void pl_region_start(struct pl_region *r, const struct pl_range *range, unsigned access)
{
	uint64_t gen = atomic_load_explicit(&r->gen, memory_order_relaxed);

	store(r->reg.start, range->start);
	store(r->reg.end, range->end);
	gen = (gen & ~(uint64_t)(PL_GEN_STEP - 1)) + PL_GEN_STEP;
	atomic_store_explicit(&r->gen, gen | pl_gen_need(access), memory_order_release);
}

bool pl_region_cancel(struct pl_region *r)
{
	return atomic_fetch_and(&r->gen, ~(uint64_t)PL_GEN_VALID) & PL_GEN_VALID;
}

bool pl_region_kill(struct pl_region *r)
{
	struct pl_cache *c = pl_caches[r->cache];

	if (!pl_region_cancel(r))
		return false;
	pl_rest(r)->next = atomic_load_explicit(&c->garbage, memory_order_relaxed);
	while (!atomic_compare_exchange_weak(&c->garbage, &pl_rest(r)->next, r))
		;
	return true;
}

/* A guess of the place's last region may find it before the index does, so its gen has the bit first. */
int pl_region_link(struct pl_cache *c, struct pl_region *r)
{
	int err;

	if (!(atomic_fetch_or(&r->gen, PL_GEN_INDEX) & PL_GEN_VALID))
		return 0;
	err = pl_tree_insert(&c->tree, r->reg.start, r->reg.end, r);
	if (err)
		return err;
	pl_guess_add(&c->guesses, r->reg.start, r->number);
	pl_rest(r)->in_tree = true;
	guess_some(c);
	return 0;
}

void pl_region_unlink(struct pl_cache *c, struct pl_region *r)
{
	if (!pl_rest(r)->in_tree)
		return;
	pl_rest(r)->in_tree = false;
	pl_tree_remove(&c->tree, r->reg.start);
	pl_guess_remove(&c->guesses, r->reg.start, r->number);
}
