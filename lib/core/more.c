/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: there is room for as many as there are leases of the cache, and each has one at most; so
 * whoever needs one gets it. What was used before is used first, so a room has the memory of the most
 * that were in use there at once. When none is in use anywhere, all but KEEP of each room goes back.
 *
 * Who needs one may be a source's thread and have ctx->lock, so m->lock is never held while the kernel
 * frees pages. Places whose pages are going (from `limit` on) are nobody's meanwhile; who has nothing
 * else left waits for one STEP.
 */
#include "core/more.h"

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "core/ctx.h"

#define PAGE  4096ul
#define FIRST 1024	  /* in the first room */
#define KEEP  (1ul << 20) /* bytes of a room that don't go back */
#define STEP  (4ul << 20) /* that go back at once */
#define HEAD  64ul

struct pl_more_room {
	struct pl_more_room *next;
	size_t n, fresh, touched; /* not in use since it was empty; never written to from there on */
	size_t limit;		  /* pages are being given back from there on; n: none are */
};

_Static_assert(sizeof(struct pl_more_room) <= HEAD, "a room's head has its place");

const struct pl_more pl_more_none = {.ground.mem.fd = -1};

void pl_mores_init(struct pl_mores *m)
{
	pthread_mutex_init(&m->lock, NULL);
	pthread_cond_init(&m->given, NULL);
}

static size_t size_of(size_t n)
{
	return (HEAD + n * sizeof(struct pl_more) + PAGE - 1) & ~(PAGE - 1);
}

static struct pl_more *place(struct pl_more_room *room, size_t i)
{
	return (struct pl_more *)((char *)room + HEAD) + i;
}

/*
 * A page that nobody may touch is on either side, so that it is never merged into a mapping of the
 * application's: that one may be watched, and then giving back would wait for a source. It isn't locked
 * with all that a program maps (MCL_FUTURE): it would be there at once and couldn't be given back.
 */
static struct pl_more_room *room_map(size_t n)
{
	size_t len = size_of(n);
	char *map = mmap(NULL, len + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			 -1, 0);

	if (map == MAP_FAILED)
		return NULL;
	munlock(map, len + 2 * PAGE);
	madvise(map, len + 2 * PAGE, MADV_NOHUGEPAGE); /* they come and go one by one */
	if (mprotect(map + PAGE, len, PROT_READ | PROT_WRITE)) {
		munmap(map, len + 2 * PAGE);
		return NULL;
	}
	return (struct pl_more_room *)(map + PAGE);
}

void pl_mores_end(struct pl_mores *m)
{
	while (m->rooms) {
		struct pl_more_room *room = m->rooms;

		m->rooms = room->next;
		munmap((char *)room - PAGE, size_of(room->n) + 2 * PAGE);
	}
	pthread_cond_destroy(&m->given);
	pthread_mutex_destroy(&m->lock);
}

/* As much again, or what there is memory for; two threads at once make more than is needed. */
static bool more_room(struct pl_mores *m)
{
	size_t n = atomic_load(&m->room);
	struct pl_more_room *room;

	n = n > FIRST ? n : FIRST;
	while (!(room = room_map(n))) {
		if (n == FIRST)
			return false;
		n = n / 2 > FIRST ? n / 2 : FIRST;
	}
	room->n = room->limit = n;
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
			pl_more_unreserve(m);
			return false;
		}
	return true;
}

void pl_more_unreserve(struct pl_mores *m)
{
	atomic_fetch_sub(&m->leases, 1);
}

/* ------------------------------------------------------------------------------- in and out -- */

static struct pl_more_room *with_fresh(const struct pl_mores *m)
{
	struct pl_more_room *room = m->rooms;

	while (room && room->fresh == room->limit)
		room = room->next;
	return room;
}

static struct pl_more *take_fresh(struct pl_mores *m)
{
	struct pl_more_room *room = with_fresh(m);

	if (room->fresh == room->touched)
		room->touched++;
	return place(room, room->fresh++);
}

/* If there is one. */
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

/* Who writes to a lease has it busy, or ctx->lock, or the remote's (remote_link.c): three may come at
 * the same time, and one of them while another one waits. */
struct pl_more *pl_more(struct pinl_lease *l)
{
	struct pl_mores *m = &l->ctx->mores;

	if (atomic_load_explicit(&l->more, memory_order_acquire) == &pl_more_none) {
		pthread_mutex_lock(&m->lock);
		while (l->more == &pl_more_none && !m->free && !with_fresh(m))
			pthread_cond_wait(&m->given, &m->lock);
		if (l->more == &pl_more_none)
			pl_more_join(l, take(m));
		pthread_mutex_unlock(&m->lock);
	}
	return (struct pl_more *)l->more;
}

static size_t touched_bytes(const struct pl_more_room *room)
{
	return size_of(room->touched);
}

static struct pl_more_room *with_much(const struct pl_mores *m)
{
	struct pl_more_room *room = m->rooms;

	while (room && touched_bytes(room) <= KEEP)
		room = room->next;
	return room;
}

/* The last of it. m->lock held, but not while it goes; no place of the room is in use. */
static bool give_back_some(struct pl_mores *m, struct pl_more_room *room)
{
	size_t end = touched_bytes(room), from = end > KEEP + STEP ? end - STEP : KEEP;
	int err;

	room->limit = (from - HEAD) / sizeof(struct pl_more);
	pthread_mutex_unlock(&m->lock);
	err = madvise((char *)room + from, end - from, MADV_DONTNEED);
	pthread_mutex_lock(&m->lock);
	if (!err)
		room->touched = room->limit;
	room->limit = room->n;
	pthread_cond_broadcast(&m->given);
	return !err;
}

/* One thread at a time; it goes on for whoever finds it at it. */
static void give_back(struct pl_mores *m)
{
	struct pl_more_room *room;

	pthread_mutex_lock(&m->lock);
	if (!m->giving) {
		m->giving = true;
		while (!m->out && (room = with_much(m)) && give_back_some(m, room))
			;
		m->giving = false;
	}
	pthread_mutex_unlock(&m->lock);
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
	pl_more_unreserve(m);
}
