/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Guesses where the region is that begins at an address: a hash table beside the index, so that a lookup
 * waits for memory twice (a bucket, the region) instead of once more for each level of the index that is
 * not near the processor. Only guesses: a region that isn't found here may be in the index, and what is
 * found must be looked at. So readers need no lock, nor a version: whatever they read is a number of a
 * region that exists.
 */
#ifndef PL_CACHE_GUESS_H
#define PL_CACHE_GUESS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PL_BUCKET	8u
#define PL_GUESS_BITS	25 /* of a region's number, and one; the others are of the hash */
#define PL_GUESS_TABLES 24

struct pl_guesses {
	_Atomic uintptr_t table; /* its address, plus the logarithm of its number of buckets */
	uintptr_t old[PL_GUESS_TABLES];
	unsigned n_old;
};

struct pl_bucket {
	_Alignas(32) _Atomic uint32_t guess[PL_BUCKET]; /* 0: none */
};

static inline unsigned pl_guesses_log(uintptr_t table)
{
	return table & 31;
}

static inline struct pl_bucket *pl_guesses_at(uintptr_t table)
{
	return (struct pl_bucket *)(table & ~(uintptr_t)31);
}

static inline uint64_t pl_guess_hash(uintptr_t start)
{
	return (start >> 12) * 0x9e3779b97f4a7c15ull;
}

static inline struct pl_bucket *pl_guess_bucket(uintptr_t table, uint64_t hash)
{
	return pl_guesses_at(table) + (hash >> (64 - pl_guesses_log(table)));
}

/* What is left of the hash below the bucket's number. */
static inline uint32_t pl_guess_tag(uintptr_t table, uint64_t hash)
{
	return (uint32_t)(hash << pl_guesses_log(table) >> 32) >> PL_GUESS_BITS << PL_GUESS_BITS;
}

static inline bool pl_guess_fits(uint32_t guess, uint32_t tag)
{
	return (guess ^ tag) - 1 < (1u << PL_GUESS_BITS) - 1;
}

/* A bit for each that may be it. */
static inline unsigned pl_guess_among(const struct pl_bucket *b, uint32_t tag)
{
	unsigned found = 0;

	for (unsigned i = 0; i < PL_BUCKET; i++)
		found |= (unsigned)pl_guess_fits(
				 atomic_load_explicit(&b->guess[i], memory_order_relaxed), tag)
			 << i;
	return found;
}

/* False: not any more. */
static inline bool pl_guess_get(const struct pl_bucket *b, unsigned i, uint32_t tag, size_t *number)
{
	uint32_t guess = atomic_load_explicit(&b->guess[i], memory_order_acquire);

	*number = (guess & ((1u << PL_GUESS_BITS) - 1)) - 1;
	return pl_guess_fits(guess, tag);
}

/* One writer at a time. -ENOMEM. */
int pl_guesses_init(struct pl_guesses *g);
void pl_guesses_end(struct pl_guesses *g);

/* For so many, a power of two. True: it is another table, with nothing in it: add each again, when there
 * is time. What is there already isn't added. */
bool pl_guesses_grow(struct pl_guesses *g, size_t n);
void pl_guess_add(struct pl_guesses *g, uintptr_t start, size_t number);
void pl_guess_remove(struct pl_guesses *g, uintptr_t start, size_t number);

#endif
