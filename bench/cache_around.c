/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a cache costs those who don't look anything up: other memory's munmap and madvise, first touches
 * beside what is cached, mappings and memory. And what others cost a lookup: a thread on another CPU
 * that maps a page, looks it up and unmaps it, as fast as it can.
 */
#include "cache.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define FILLED 1000
#define PAGES  512

/* ---------------------------------------------------------------------------- others' calls -- */

static int discard(void *at, size_t len)
{
	return madvise(at, len, MADV_DONTNEED);
}

static void measure_other(const struct bench *b, const char *variant, const char *what,
			  int (*change)(void *at, size_t len))
{
	unsigned n = b->n + 20;
	char *arena = cache_arena(n);
	struct samples ns = {0};

	for (unsigned i = 0; i < n; i++) {
		char *at = arena + i * STRIDE;
		uint64_t t;

		*(volatile char *)at = 1;
		t = now_ns();
		must(change(at, PAGE), what);
		if (i >= 20)
			sample(&ns, now_ns() - t);
	}
	result(b, what, variant, "call", &ns, 1);
	free(ns.ns);
	munmap(arena, n * STRIDE);
}

static void measure_others(const struct bench *b, const char *variant)
{
	measure_other(b, variant, "munmap, other memory", munmap);
	measure_other(b, variant, "madvise, other memory", discard);
}

/* ---------------------------------------------------------------------------- first touches -- */

static uint64_t touch_pages(char *at, bool write)
{
	uint64_t t = now_ns();

	for (unsigned i = 0; i < PAGES; i++)
		if (write)
			*(volatile char *)(at + i * PAGE) = 1;
		else
			(void)*(volatile char *)(at + i * PAGE);
	return now_ns() - t;
}

static char *map_for_touch(int fd)
{
	char *at = must_map(mmap(NULL, 2 * PAGES * PAGE, PROT_READ | PROT_WRITE,
				 fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0),
			    "mmap");

	madvise(at, 2 * PAGES * PAGE, MADV_NOHUGEPAGE);
	return at;
}

/* The second half of a mapping, whose first page is cached if there is a cache. */
static void measure_touch(const struct bench *b, const struct cache *c, const char *what, int fd)
{
	struct samples ns = {0};
	uint32_t first = 0;

	for (unsigned i = 0; i < b->n / 4 + 2; i++) {
		char *at = map_for_touch(fd);

		*(volatile char *)at = 1;
		if (c)
			c->hits(at, &first, 1);
		sample(&ns, touch_pages(at + PAGES * PAGE, fd < 0));
		munmap(at, 2 * PAGES * PAGE);
	}
	result(b, what, c ? c->variant : "plain", "touch", &ns, PAGES);
	free(ns.ns);
}

static void measure_touches(const struct bench *b, const struct cache *c)
{
	int fd = must(memfd_create("bench", MFD_CLOEXEC), "memfd_create");
	char path[128];

	measure_touch(b, c, "anonymous memory", -1);
	file_fill(fd, 2 * PAGES * PAGE);
	measure_touch(b, c, "memfd", fd);
	close(fd);
	if (geteuid()) { /* the library's source for it isn't to be had */
		left_out(b, "disk file, cached", "not root");
		return;
	}
	fd = must(file_new(b, path, 2 * PAGES * PAGE), b->dir);
	unlink(path);
	measure_touch(b, c, "disk file", fd);
	close(fd);
}

/* -------------------------------------------------------------------------- what it takes -- */

static unsigned mappings_in(const char *start, const char *end)
{
	FILE *f = fopen("/proc/self/maps", "re");
	unsigned long from, to;
	char line[512];
	unsigned n = 0;

	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "%lx-%lx", &from, &to) == 2 && to > (uintptr_t)start &&
		    from < (uintptr_t)end)
			n++;
	if (f)
		fclose(f);
	return n;
}

unsigned long cache_resident(void)
{
	FILE *f = fopen("/proc/self/statm", "re");
	unsigned long all, pages;

	if (!f || fscanf(f, "%lu %lu", &all, &pages) != 2)
		fail("/proc/self/statm can't be read");
	fclose(f);
	return pages * PAGE;
}

static void measure_room(const struct bench *b, const struct cache *c)
{
	unsigned n = b->regions < 100000 ? b->regions : 100000;
	char *arena = cache_arena(n);
	unsigned long before;

	cache_open_on(b, c);
	before = cache_resident();
	cache_fill(c, arena, n);
	value(b, "memory per registration", c->variant, "bytes",
	      (cache_resident() - before) / (double)n);
	value(b, "mappings more", c->variant, "mappings", mappings_in(arena, arena + n * STRIDE) - 1);
	c->close();
	munmap(arena, n * STRIDE);
}

static int64_t clock_of(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (int64_t)t.tv_sec * 1000000000u + t.tv_nsec;
}

/* The processor's time of all threads but this one, and some hundred nanoseconds more or less: two
 * clocks can't be read at once. */
static int64_t taken_by_others(void)
{
	return clock_of(CLOCK_PROCESS_CPUTIME_ID) - clock_of(CLOCK_THREAD_CPUTIME_ID);
}

/* What they take in a second in which nothing happens. */
static void measure_idle(const struct bench *b, const struct cache *c)
{
	unsigned n = b->regions < 10000 ? b->regions : 10000;
	struct timespec settles = {0, 200000000}, whole = {2 * b->n / 1000, 2 * b->n % 1000 * 1000000};
	char *arena = cache_arena(n);
	uint64_t began;
	int64_t taken;

	cache_open_on(b, c);
	cache_fill(c, arena, n);
	nanosleep(&settles, NULL);
	began = now_ns();
	taken = taken_by_others();
	nanosleep(&whole, NULL);
	taken = taken_by_others() - taken;
	value(b, "idle", c->variant, "idle", (taken > 0 ? taken : 0) / ((now_ns() - began) / 1e9));
	c->close();
	munmap(arena, n * STRIDE);
}

/* ------------------------------------------------------------------------------------ churn -- */

struct churn {
	const struct cache *cache;
	int cpu;
	unsigned long done;
	atomic_bool stop;
};

static void *run_churn(void *arg)
{
	struct churn *churn = arg;
	uint32_t first = 0;

	pin_to(churn->cpu);
	for (; !atomic_load(&churn->stop); churn->done++) {
		char *at = must_map(
			mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
			"mmap");

		*(volatile char *)at = 1;
		churn->cache->hits(at, &first, 1);
		munmap(at, PAGE);
	}
	return NULL;
}

static void lookups(const struct bench *b, const struct cache *c, char *arena, const uint32_t *order,
		    const char *what)
{
	unsigned runs = b->n * 2;
	struct samples ns = {0};
	uint64_t t = now_ns();

	for (unsigned i = 0; i < runs; i++)
		c->hits(arena, order, FILLED);
	value(b, what, c->variant, "average", (now_ns() - t) / (double)runs / FILLED);
	for (unsigned i = 0; i < runs * FILLED; i++) {
		t = now_ns();
		c->hits(arena, order + i % FILLED, 1);
		sample(&ns, now_ns() - t);
	}
	value(b, what, c->variant, "p99.9", worst_of_1000(&ns));
	free(ns.ns);
}

/* The library's threads are where the other thread is, which they serve. */
static void measure_churn(const struct bench *b, const struct cache *c)
{
	struct churn churn = {.cache = c, .cpu = b->lib_cpu};
	char *arena = cache_arena(FILLED);
	uint32_t *order = cache_order(FILLED, LOOKED_UP);
	pthread_t thread;
	uint64_t t;

	cache_open_on(b, c);
	cache_fill(c, arena, FILLED);
	lookups(b, c, arena, order, "nothing else");
	t = now_ns();
	if (pthread_create(&thread, NULL, run_churn, &churn))
		fail("pthread_create");
	lookups(b, c, arena, order, "while another thread maps and unmaps");
	atomic_store(&churn.stop, true);
	pthread_join(thread, NULL);
	value(b, "that thread", c->variant, "round", (now_ns() - t) / (churn.done + 1.0));
	c->close();
	free(order);
	munmap(arena, FILLED * STRIDE);
}

/* -------------------------------------------------------------------------------------- all -- */

void cache_measure_around_plain(const struct bench *b)
{
	measure_others(b, "plain");
	measure_touches(b, NULL);
}

void cache_measure_around(const struct bench *b, const struct cache *c)
{
	char *arena = cache_arena(FILLED);

	if (b->lib_cpu != b->actor_cpu) {
		measure_churn(b, c);
		munmap(arena, FILLED * STRIDE);
		return;
	}
	cache_open_on(b, c);
	cache_fill(c, arena, FILLED);
	measure_others(b, c->variant);
	measure_touches(b, c);
	c->close();
	munmap(arena, FILLED * STRIDE);
	measure_room(b, c);
	measure_idle(b, c);
}
