/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: there is room for as many as there are leases of the cache, and each has one at most; so
 * whoever needs one gets it. What was used before is used first, so the memory is that of the most that
 * were in use at once; when none is, it goes back.
 */
#include "core/more.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "core/ctx.h"

#define FIRST 1024	   /* in the first room */
#define KEEP  (1ul << 20)  /* bytes of a room that don't go back */
#define STEP  (16ul << 20) /* that go back at once: others may want the lock */
#define HEAD  64ul

struct pl_more_room {
	struct pl_more_room *next;
	size_t n, fresh, touched; /* not in use since it was empty; never written to from there on */
};

const struct pl_more pl_more_none = {.ground.mem.fd = -1};

void pl_mores_init(struct pl_mores *m)
{
	pthread_mutex_init(&m->lock, NULL);
}

static size_t size_of(size_t n)
{
	return HEAD + n * sizeof(struct pl_more);
}

static struct pl_more *place(struct pl_more_room *room, size_t i)
{
	return (struct pl_more *)((char *)room + HEAD) + i;
}

void pl_mores_end(struct pl_mores *m)
{
	while (m->rooms) {
		struct pl_more_room *room = m->rooms;

		m->rooms = room->next;
		munmap(room, size_of(room->n));
	}
	pthread_mutex_destroy(&m->lock);
}

/* As much again; two threads that do so at once make more than is needed. Shared as pl_buffer() is: it
 * is given back while leases are being ended. */
static bool more_room(struct pl_mores *m)
{
	size_t n = atomic_load(&m->room);
	struct pl_more_room *room;

	n = n ? n : FIRST;
	room = mmap(NULL, size_of(n), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE,
		    -1, 0);
	if (room == MAP_FAILED)
		return false;
	room->n = n;
	pthread_mutex_lock(&m->lock);
	room->next = m->rooms;
	m->rooms = room;
	pthread_mutex_unlock(&m->lock);
	atomic_fetch_add(&m->room, n);
	return true;
}

bool pl_more_reserve(struct pl_mores *m)
{
	size_t leases = atomic_fetch_add(&m->leases, 1) + 1;

	while (leases > atomic_load(&m->room))
		if (!more_room(m)) {
			atomic_fetch_sub(&m->leases, 1);
			return false;
		}
	return true;
}

/* ------------------------------------------------------------------------------- in and out -- */

static struct pl_more *take_fresh(struct pl_mores *m)
{
	struct pl_more_room *room = m->rooms;

	while (room->fresh == room->n)
		room = room->next;
	if (room->fresh == room->touched)
		room->touched++;
	return place(room, room->fresh++);
}

static struct pl_more *take(struct pl_mores *m)
{
	struct pl_more *more = m->free;

	if (more)
		m->free = more->next_free;
	else
		more = take_fresh(m);
	m->out++;
	memset(more, 0, sizeof *more);
	return more;
}

void pl_more_join(struct pinl_lease *l, struct pl_more *more)
{
	more->lease = l;
	more->ground.mem.fd = -1;
	atomic_store_explicit(&l->more, more, memory_order_release);
}

/* Of two who write to a lease at the same time, one has it busy and one has ctx->lock. */
struct pl_more *pl_more(struct pinl_lease *l)
{
	struct pl_mores *m = &l->ctx->mores;

	if (atomic_load_explicit(&l->more, memory_order_acquire) == &pl_more_none) {
		pthread_mutex_lock(&m->lock);
		if (l->more == &pl_more_none)
			pl_more_join(l, take(m));
		pthread_mutex_unlock(&m->lock);
	}
	return (struct pl_more *)l->more;
}

/* m->lock held; none is out. True: there may be more to give back. */
static bool give_back_some(struct pl_mores *m)
{
	for (struct pl_more_room *room = m->rooms; room; room = room->next) {
		size_t end = (size_of(room->touched) + 4095) & ~4095ul,
		       from = end > STEP ? end - STEP : 0;

		from = from > KEEP ? from : KEEP;
		if (end <= from)
			continue;
		if (madvise((char *)room + from, end - from, MADV_REMOVE))
			return false;
		room->touched = (from - HEAD) / sizeof(struct pl_more);
		return true;
	}
	return false;
}

static void give_back(struct pl_mores *m)
{
	bool again = true;

	while (again) {
		pthread_mutex_lock(&m->lock);
		again = !m->out && give_back_some(m);
		pthread_mutex_unlock(&m->lock);
	}
}

static bool put(struct pl_mores *m, struct pl_more *more)
{
	bool last;

	pthread_mutex_lock(&m->lock);
	more->next_free = m->free;
	m->free = more;
	last = !--m->out;
	if (last) {
		m->free = NULL;
		for (struct pl_more_room *room = m->rooms; room; room = room->next)
			room->fresh = 0;
	}
	pthread_mutex_unlock(&m->lock);
	return last;
}

void pl_more_leave(struct pl_mores *m, struct pinl_lease *l)
{
	if (l->more != &pl_more_none && put(m, (struct pl_more *)l->more))
		give_back(m);
	atomic_fetch_sub(&m->leases, 1);
}
