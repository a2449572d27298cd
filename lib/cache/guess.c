/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cache/guess.h"

#include <errno.h>

#include "os/chunk.h"

#define FIRST_LOG 7		  /* a page of buckets */
#define FULL	  (PL_BUCKET / 2) /* on average */

static size_t size_of(uintptr_t table)
{
	return sizeof(struct pl_bucket) << pl_guesses_log(table);
}

static uintptr_t table_new(unsigned log)
{
	size_t size = sizeof(struct pl_bucket) << log;
	void *at = pl_chunk_map(size, size >= PL_CHUNK_SIZE);

	return at ? (uintptr_t)at + log : 0;
}

int pl_guesses_init(struct pl_guesses *g)
{
	uintptr_t table = table_new(FIRST_LOG);

	if (!table)
		return -ENOMEM;
	atomic_store(&g->table, table);
	return 0;
}

void pl_guesses_end(struct pl_guesses *g)
{
	uintptr_t table = atomic_load(&g->table);

	if (table)
		pl_chunk_unmap(pl_guesses_at(table), size_of(table));
	while (g->n_old--)
		pl_chunk_unmap(pl_guesses_at(g->old[g->n_old]), size_of(g->old[g->n_old]));
}

/* Who still reads in the old one finds nothing there: its addresses stay. */
bool pl_guesses_grow(struct pl_guesses *g, size_t n)
{
	uintptr_t old = atomic_load(&g->table), table;

	if (n <= (size_t)FULL << pl_guesses_log(old) || g->n_old == PL_GUESS_TABLES)
		return false;
	table = table_new(__builtin_ctzl(n / FULL));
	if (!table)
		return false;
	atomic_store_explicit(&g->table, table, memory_order_release);
	pl_chunk_empty(pl_guesses_at(old), size_of(old));
	g->old[g->n_old++] = old;
	return true;
}

/* One that finds no room is found by the index. */
void pl_guess_add(struct pl_guesses *g, uintptr_t start, size_t number)
{
	uintptr_t table = atomic_load_explicit(&g->table, memory_order_relaxed);
	uint64_t hash = pl_guess_hash(start);
	uint32_t guess = pl_guess_tag(table, hash) + (uint32_t)number + 1;
	struct pl_bucket *b = pl_guess_bucket(table, hash);
	unsigned room = PL_BUCKET;

	for (unsigned i = 0; i < PL_BUCKET; i++) {
		uint32_t there = atomic_load_explicit(&b->guess[i], memory_order_relaxed);

		if (there == guess)
			return;
		room = there ? room : i;
	}
	if (room < PL_BUCKET)
		atomic_store_explicit(&b->guess[room], guess, memory_order_release);
}

void pl_guess_remove(struct pl_guesses *g, uintptr_t start, size_t number)
{
	uintptr_t table = atomic_load_explicit(&g->table, memory_order_relaxed);
	uint64_t hash = pl_guess_hash(start);
	uint32_t guess = pl_guess_tag(table, hash) + (uint32_t)number + 1;
	struct pl_bucket *b = pl_guess_bucket(table, hash);

	for (unsigned i = 0; i < PL_BUCKET; i++)
		if (atomic_load_explicit(&b->guess[i], memory_order_relaxed) == guess)
			atomic_store_explicit(&b->guess[i], 0, memory_order_relaxed);
}
