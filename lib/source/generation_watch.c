/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which areas of the address space are watched, and what may just be going there. An area is watched
 * from before its first lease is looked at again until after its last one has ended; addresses that
 * differ by a multiple of all areas share one. Who begins to watch while the kernel is at a change: the
 * kernel looks once more when that is over, and tells of it then.
 */
#include <sys/mman.h>

#include "os/clock.h"
#include "source/generation.h"

#define WHOLE_AREAS 4096 /* of a mapping that is watched as a whole, at most: 8 GiB */

static size_t areas_of(uintptr_t start, uintptr_t end)
{
	size_t n = ((end - 1) >> GENERATION_AREA_SHIFT) - (start >> GENERATION_AREA_SHIFT) + 1;

	return n < GENERATION_AREAS ? n : GENERATION_AREAS;
}

static void count(struct pl_generation *g, uintptr_t start, uintptr_t end, int more)
{
	size_t first = start >> GENERATION_AREA_SHIFT, n = areas_of(start, end);

	for (size_t i = first; i < first + n; i++) {
		size_t area = i & (GENERATION_AREAS - 1);

		g->area[area] += more;
		__atomic_exchange_n(&g->counts->watched[area], g->area[area] != 0, __ATOMIC_SEQ_CST);
	}
}

void pl_generation_watch(struct pl_generation *g, uintptr_t start, uintptr_t end)
{
	pthread_mutex_lock(&g->lock);
	count(g, start, end, 1);
	pthread_mutex_unlock(&g->lock);
}

void pl_generation_unwatch(struct pl_generation *g, uintptr_t start, uintptr_t end)
{
	pthread_mutex_lock(&g->lock);
	count(g, start, end, -1);
	pthread_mutex_unlock(&g->lock);
}

/* Registrations in it come and go unasked, so it stays watched. */
bool pl_generation_watch_whole(struct pl_generation *g, uintptr_t start, uintptr_t end)
{
	bool can = areas_of(start, end) <= WHOLE_AREAS;

	if (can)
		pl_generation_watch(g, start, end);
	return can;
}

void pl_generation_watch_again(struct pl_generation *g)
{
	for (size_t i = 0; i < GENERATION_AREAS; i++)
		if (g->area[i])
			__atomic_store_n(&g->counts->watched[i], 1, __ATOMIC_SEQ_CST);
}

/* ----------------------------------------------------------------------------------------- going -- */

/* Up to which change a thread has looked, in the last call with `look`; the next one is its own. */
static _Thread_local struct {
	const struct pl_generation *of;
	uint64_t serial;
} looked __attribute__((tls_model("initial-exec")));

void pl_generation_recent_add(struct pl_generation *g, uintptr_t start, uintptr_t end)
{
	struct pl_generation_recent *r = &g->recent;

	pthread_mutex_lock(&r->lock);
	r->serial++;
	r->change[r->serial % PL_RECENT].start = start;
	r->change[r->serial % PL_RECENT].end = end;
	pthread_mutex_unlock(&r->lock);
}

/* Told of and taken since the look: it may have been before the lease could be found. */
static bool was_told(struct pl_generation *g, uintptr_t start, uintptr_t end)
{
	struct pl_generation_recent *r = &g->recent;
	uint64_t from;
	bool told;

	pthread_mutex_lock(&r->lock);
	from = looked.of == g ? looked.serial : 0;
	told = r->serial - from >= PL_RECENT;
	while (!told && from < r->serial) {
		from++;
		told = r->change[from % PL_RECENT].start < end &&
		       r->change[from % PL_RECENT].end > start;
	}
	pthread_mutex_unlock(&r->lock);
	return told;
}

static void note_look(struct pl_generation *g)
{
	pthread_mutex_lock(&g->recent.lock);
	looked.of = g;
	looked.serial = g->recent.serial;
	pthread_mutex_unlock(&g->recent.lock);
}

static bool is_at_it(const struct generation_going *e, uintptr_t start, uintptr_t end, uint64_t now)
{
	uint64_t since = __atomic_load_n(&e->since_ns, __ATOMIC_ACQUIRE);

	return since && now < since + GENERATION_GOING_NS &&
	       __atomic_load_n(&e->start, __ATOMIC_RELAXED) < end &&
	       __atomic_load_n(&e->end, __ATOMIC_RELAXED) > start;
}

bool pl_generation_going(struct pl_generation *g, uintptr_t start, uintptr_t end, bool look)
{
	uint64_t now = pl_clock_ns();
	bool going;

	if (look)
		note_look(g);
	going = !look && was_told(g, start, end);
	going |= __atomic_load_n(&g->counts->crowded_until_ns, __ATOMIC_ACQUIRE) > now;
	for (int i = 0; i < GENERATION_GOING && !going; i++)
		going = is_at_it(&g->counts->going[i], start, end, now);
	return going;
}
