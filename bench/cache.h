/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A registration cache as the measurements see it: ours and its peers', each with a device that does
 * nothing. A peer has a program of its own, because some change the process that they are in.
 */
#ifndef BENCH_CACHE_H
#define BENCH_CACHE_H

#include "bench.h"

struct cache {
	const char *variant;
	void (*open)(void);
	void (*close)(void);
	/* Get and put n times, each time what `order` says: the index of a page of the arena's. Who
	 * finds something else than that page ends the program. */
	void (*hits)(char *arena, const uint32_t *order, unsigned n);
	int (*unmap)(void *at, size_t len); /* the cache's own call; NULL: it has none */
};

/* The pages are STRIDE apart, so that no two are neighbours. */
#define STRIDE (2 * PAGE)

void cache_measure(const struct bench *b, const struct cache *cache);
void cache_measure_hits(const struct bench *b, const struct cache *cache); /* of one thread, no more */
void cache_measure_huge(const struct bench *b, const struct cache *cache); /* b->regions at once */
void cache_measure_plain(const struct bench *b); /* before any cache was there */

/* cache_measure.c: n pages that take no memory; the indices of all of them in an order of its own for
 * each seed, or RUN and more of one (0). Who looks up in the order in which he inserted finds the next
 * region beside the last one. */
#define RUN 2000 /* lookups per sample */
char *cache_arena(unsigned n);
uint32_t *cache_order(unsigned n, uint64_t seed);
#define INSERTED  1 /* seeds */
#define LOOKED_UP 2
void cache_open_on(const struct bench *b, const struct cache *c);
void cache_fill(const struct cache *c, char *arena, unsigned n);

/* cache_around.c: what it costs others, and what others cost. */
void cache_measure_around(const struct bench *b, const struct cache *cache);
void cache_measure_around_plain(const struct bench *b);
unsigned long cache_resident(void);

void group_cache_hit(const struct bench *b);
void group_huge_cache(const struct bench *b);

#endif
