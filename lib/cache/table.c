/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Every thread's table for every cache that it uses. A table is written to by its thread alone, apart
 * from `id` when the cache ends. It lives as long as the thread, which may find it useful for another
 * cache in the same slot.
 */
#include <stdlib.h>
#include <string.h>

#include "cache/cache.h"

pthread_mutex_t pl_tables_lock = PTHREAD_MUTEX_INITIALIZER;
_Thread_local struct pl_table *pl_tables[PL_CACHES] __attribute__((tls_model("initial-exec")));

static pthread_key_t key;
static bool have_key;

/* pl_tables_lock held. */
static void unlink_table(struct pl_table *t)
{
	*t->prev = t->next;
	if (t->next)
		t->next->prev = t->prev;
}

/* What the thread has is others' to put now. First to refs, then off the table: who sums up the tables
 * before refs counts it once too often, never too little. */
static void give_up(struct pl_cache *c, struct pl_table *t)
{
	for (int i = 0; i < PL_PINS; i++) {
		long n = atomic_load_explicit(&t->pin[i].count, memory_order_relaxed);
		struct pl_region *r = atomic_load_explicit(&t->pin[i].region, memory_order_relaxed);

		if (n)
			atomic_fetch_add(&pl_rest(r)->refs, n);
		atomic_store_explicit(&t->pin[i].count, 0, memory_order_release);
	}
	atomic_fetch_add(&c->hits, atomic_load_explicit(&t->hits, memory_order_relaxed));
	unlink_table(t);
}

static void thread_ends(void *arg)
{
	struct pl_table **tables = arg;
	PL_CALL(call);

	for (int i = 0; i < PL_CACHES; i++) {
		struct pl_table *t = tables[i];

		if (!t)
			continue;
		pthread_mutex_lock(&pl_tables_lock);
		if (atomic_load_explicit(&t->id, memory_order_relaxed))
			give_up(pl_caches[i], t);
		pthread_mutex_unlock(&pl_tables_lock);
		tables[i] = NULL;
		free(t);
	}
}

/* A child has none of the threads that could hold it. */
static void lock_for_fork(void)
{
	pthread_mutex_lock(&pl_tables_lock);
}

static void unlock_after_fork(void)
{
	pthread_mutex_unlock(&pl_tables_lock);
}

static void make_key(void)
{
	pthread_atfork(lock_for_fork, unlock_after_fork, unlock_after_fork);
	have_key = !pthread_key_create(&key, thread_ends);
}

/* Closed by dlclose(), the library isn't there any more when a thread ends. */
static void __attribute__((destructor)) delete_key(void)
{
	if (have_key)
		pthread_key_delete(key);
}

static struct pl_table *table_new(unsigned slot)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct pl_table *t;

	pthread_once(&once, make_key);
	if (!have_key || pthread_setspecific(key, pl_tables))
		return NULL;
	t = aligned_alloc(64, (sizeof *t + 63) & ~63ul);
	if (t)
		memset(t, 0, sizeof *t);
	pl_tables[slot] = t;
	return t;
}

struct pl_table *pl_table_of(struct pl_cache *c)
{
	struct pl_table *t = pl_tables[c->slot];

	if (t && atomic_load_explicit(&t->id, memory_order_relaxed) == c->id)
		return t;
	if (!t)
		t = table_new(c->slot);
	if (!t)
		return NULL;
	memset(t, 0, sizeof *t); /* of a cache that has ended */
	pthread_mutex_lock(&pl_tables_lock);
	t->next = c->tables;
	t->prev = &c->tables;
	if (t->next)
		t->next->prev = &t->next;
	c->tables = t;
	pthread_mutex_unlock(&pl_tables_lock);
	atomic_store_explicit(&t->id, c->id, memory_order_relaxed);
	return t;
}

void pl_tables_part(struct pl_cache *c)
{
	pthread_mutex_lock(&pl_tables_lock);
	while (c->tables) {
		struct pl_table *t = c->tables;

		atomic_store_explicit(&t->id, 0, memory_order_relaxed);
		unlink_table(t);
	}
	pthread_mutex_unlock(&pl_tables_lock);
}

/*
 * How many have the region: exact if it isn't valid any more and every thread has passed a barrier
 * since, or more, if somebody puts it just now. The tables first: what moves goes from them to refs.
 */
long pl_users(struct pl_cache *c, const struct pl_region *r)
{
	long n = 0;

	pthread_mutex_lock(&pl_tables_lock);
	for (struct pl_table *t = c->tables; t; t = t->next) {
		struct pl_pin *p = &t->pin[pl_pin_index(r)];
		long count = atomic_load_explicit(&p->count, memory_order_acquire);

		if (atomic_load_explicit(&p->region, memory_order_acquire) == r)
			n += count;
	}
	n += atomic_load(&pl_rest(r)->refs);
	pthread_mutex_unlock(&pl_tables_lock);
	return n;
}

uint64_t pl_table_hits(struct pl_cache *c)
{
	uint64_t n;

	pthread_mutex_lock(&pl_tables_lock);
	n = atomic_load(&c->hits);
	for (struct pl_table *t = c->tables; t; t = t->next)
		n += atomic_load_explicit(&t->hits, memory_order_relaxed);
	pthread_mutex_unlock(&pl_tables_lock);
	return n;
}
