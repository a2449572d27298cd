/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a hit costs, and an insertion: N registrations of a page each, looked up in runs of get and put.
 * "same": always one address; "random": any of the N. With two threads both do the same work on CPUs of
 * their own. An insertion is the first lookup of a page, all in the order of a shuffled arena; what it
 * costs to end them isn't measured here. Pages are only read before, so N may exceed the memory.
 */
#include "cache.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

struct run {
	const struct cache *cache;
	char *arena;
	const uint32_t *order;
	int cpu;
	unsigned samples, length;
	struct samples ns;
	pthread_barrier_t *start;
	pthread_t thread;
};

uint32_t *cache_order(unsigned n, uint64_t seed)
{
	uint32_t *order = malloc((n > RUN ? n : RUN) * sizeof *order);
	uint64_t x = 88172645463325252ull * seed;

	for (unsigned i = 0; i < n || i < RUN; i++)
		order[i] = seed ? i % n : n / 2;
	for (unsigned i = n - 1; seed && i > 0; i--) {
		uint32_t t = order[i], j;

		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		j = x % (i + 1);
		order[i] = order[j];
		order[j] = t;
	}
	return order;
}

char *cache_arena(unsigned n)
{
	char *at = must_map(mmap(NULL, n * STRIDE, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0),
			    "mmap");

	madvise(at, n * STRIDE, MADV_NOHUGEPAGE);
	for (unsigned i = 0; i < n; i++)
		(void)*(volatile char *)(at + i * STRIDE);
	return at;
}

static void *run_hits(void *arg)
{
	struct run *r = arg;
	unsigned runs = r->length / RUN ? r->length / RUN : 1;

	pin_to(r->cpu);
	r->cache->hits(r->arena, r->order, RUN);
	pthread_barrier_wait(r->start);
	for (unsigned i = 0; i < r->samples; i++) {
		uint64_t t = now_ns();

		r->cache->hits(r->arena, r->order + i % runs * RUN, RUN);
		sample(&r->ns, now_ns() - t);
	}
	return NULL;
}

static void measure_hits(const struct bench *b, const struct cache *c, char *arena, unsigned n,
			 bool random, unsigned threads)
{
	uint32_t *order = cache_order(n, random ? LOOKED_UP : 0);
	pthread_barrier_t start;
	struct run run[2];
	char what[48];

	pthread_barrier_init(&start, NULL, threads);
	for (unsigned i = 0; i < threads; i++) {
		run[i] = (struct run){c, arena, order, i ? b->lib_cpu : b->actor_cpu, threads * b->n,
				      n, {0},	&start};
		if (pthread_create(&run[i].thread, NULL, run_hits, &run[i]))
			fail("pthread_create");
	}
	for (unsigned i = 0; i < threads; i++)
		pthread_join(run[i].thread, NULL);
	snprintf(what, sizeof what, "%u thread%s, %s of %u", threads, threads > 1 ? "s" : "",
		 random ? "random" : "same", n);
	result(b, what, c->variant, "hit", &run[0].ns, RUN);
	pthread_barrier_destroy(&start);
	for (unsigned i = 0; i < threads; i++)
		free(run[i].ns.ns);
	free(order);
}

/* How much more memory the process has then. */
static unsigned long insert(const struct bench *b, const struct cache *c, char *arena, unsigned n)
{
	unsigned some = n < 100 ? n : 100;
	uint32_t *order = cache_order(n, INSERTED);
	unsigned long before = cache_resident();
	struct samples ns = {0};
	char what[48];

	for (unsigned i = 0; i + some <= n; i += some) {
		uint64_t t = now_ns();

		c->hits(arena, order + i, some);
		sample(&ns, now_ns() - t);
	}
	before = cache_resident() - before;
	snprintf(what, sizeof what, "insert %u", n);
	result(b, what, c->variant, "insert", &ns, some);
	free(ns.ns);
	free(order);
	return before;
}

void cache_fill(const struct cache *c, char *arena, unsigned n)
{
	uint32_t *order = cache_order(n, INSERTED);

	c->hits(arena, order, n);
	free(order);
}

static void *run_insert(void *arg)
{
	struct run *r = arg;

	pin_to(r->cpu);
	pthread_barrier_wait(r->start);
	for (unsigned i = 0; i + 100 <= r->length; i += 100) {
		uint64_t t = now_ns();

		r->cache->hits(r->arena, r->order + i, 100);
		sample(&r->ns, now_ns() - t);
	}
	return NULL;
}

/* Each of two threads one half of an arena. */
static void insert_both(const struct bench *b, const struct cache *c, unsigned n)
{
	char *arena = cache_arena(n), what[48];
	uint32_t *order = cache_order(n, INSERTED);
	pthread_barrier_t start;
	struct run run[2];

	cache_open_on(b, c);
	pthread_barrier_init(&start, NULL, 2);
	for (int i = 0; i < 2; i++) {
		run[i] = (struct run){
			c,   arena, order + i * (n / 2), i ? b->lib_cpu : b->actor_cpu, 0, n / 2,
			{0}, &start};
		if (pthread_create(&run[i].thread, NULL, run_insert, &run[i]))
			fail("pthread_create");
	}
	for (int i = 0; i < 2; i++)
		pthread_join(run[i].thread, NULL);
	snprintf(what, sizeof what, "2 threads, insert %u", n);
	result(b, what, c->variant, "insert", &run[0].ns, 100);
	c->close();
	pthread_barrier_destroy(&start);
	free(run[0].ns.ns);
	free(run[1].ns.ns);
	free(order);
	munmap(arena, n * STRIDE);
}

/* Of a page in use, which is registered, or isn't. */
static void measure_unmap(const struct bench *b, const struct cache *c, const char *what,
			  int (*unmap)(void *at, size_t len), bool registered)
{
	unsigned n = b->n + 20;
	char *arena = cache_arena(n);
	struct samples ns = {0};

	for (uint32_t i = 0; i < n; i++) {
		char *at = arena + i * STRIDE;
		uint64_t t;

		*(volatile char *)at = 1;
		if (registered)
			c->hits(arena, &i, 1);
		t = now_ns();
		must(unmap(at, PAGE), "munmap");
		if (i >= 20)
			sample(&ns, now_ns() - t);
	}
	result(b, what, c ? c->variant : "plain", "call", &ns, 1);
	free(ns.ns);
	munmap(arena, n * STRIDE);
}

/* Its threads inherit their CPU from the thread that opens. */
void cache_open_on(const struct bench *b, const struct cache *c)
{
	pin_to(b->lib_cpu);
	c->open();
	pin_to(b->actor_cpu);
}

/* With so many others cached in another mapping. */
static void measure_unmaps(const struct bench *b, const struct cache *c, unsigned others)
{
	char *arena = cache_arena(others), what[48];

	cache_open_on(b, c);
	cache_fill(c, arena, others);
	snprintf(what, sizeof what, "munmap, cached, %u others", others);
	measure_unmap(b, c, what, munmap, true);
	snprintf(what, sizeof what, "explicit call, cached, %u others", others);
	if (c->unmap)
		measure_unmap(b, c, what, c->unmap, true);
	c->close();
	munmap(arena, others * STRIDE);
}

void cache_measure_plain(const struct bench *b)
{
	measure_unmap(b, NULL, "munmap", munmap, false);
	cache_measure_around_plain(b);
}

static void measure_size(const struct bench *b, const struct cache *c, unsigned n)
{
	char *arena = cache_arena(n);

	cache_open_on(b, c);
	insert(b, c, arena, n);
	for (unsigned threads = 1; threads <= (b->lib_cpu == b->actor_cpu ? 1 : 2); threads++)
		for (int random = 0; random < 2; random++)
			measure_hits(b, c, arena, n, random, threads);
	c->close();
	munmap(arena, n * STRIDE);
	if (b->lib_cpu != b->actor_cpu && n >= 1000)
		insert_both(b, c, n);
}

void cache_measure(const struct bench *b, const struct cache *c)
{
	static const unsigned others[] = {1, 1000, 30000};

	for (size_t i = 0; i < sizeof others / sizeof *others && others[i] <= b->regions; i++)
		measure_unmaps(b, c, others[i]);
	cache_measure_around(b, c);
	for (unsigned n = 10; n <= b->regions; n *= 10)
		if (b->lib_cpu == b->actor_cpu || (n >= 1000 && n != 10000))
			measure_size(b, c, n);
}

void cache_measure_hits(const struct bench *b, const struct cache *c)
{
	for (unsigned n = 1000; n <= b->regions; n *= 10) {
		char *arena = cache_arena(n);

		cache_open_on(b, c);
		cache_fill(c, arena, n);
		for (int random = 0; random < 2; random++)
			measure_hits(b, c, arena, n, random, 1);
		c->close();
		munmap(arena, n * STRIDE);
	}
}

void cache_measure_huge(const struct bench *b, const struct cache *c)
{
	unsigned n = b->regions;
	char *arena = cache_arena(n);
	unsigned long more;
	char what[48];

	cache_open_on(b, c);
	more = insert(b, c, arena, n);
	snprintf(what, sizeof what, "memory per registration of %u", n);
	value(b, what, c->variant, "bytes", more / (double)n);
	for (int random = 0; random < 2; random++)
		measure_hits(b, c, arena, n, random, 1);
	c->close();
	munmap(arena, n * STRIDE);
}
