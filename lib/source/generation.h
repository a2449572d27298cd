/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Inside of the generation source: changes that pinleased has the kernel count before they take effect.
 * generation.c is the side the core calls, generation_link.c the thread, which talks to pinleased and
 * takes what is counted (generation_take.c), record by record (generation_ring.c, generation_decode.c);
 * generation_watch.c says which areas are of interest, and what may still be going.
 *
 *	kernel -> told + 1, record ---> thread -> core -> applied + 1
 *	lookups: told == applied? then nothing has changed that they don't know of
 *
 * Invariant: applied = records submitted + losses dealt with, so it is told's value if and only if all
 * that was told of is applied. Who finds told at N and waits until applied has come to N has waited for
 * each change whose record was there by then: records are taken in their order, and a loss ends all that
 * was registered. One without a record then hasn't taken a page yet. What lookups read is at the same
 * addresses for as long as the source is open: another pinleased's maps are put over those of the one
 * before, in one step and with the sequence raised.
 *
 * The thread has the program's descriptors, as it calls the core; forked children close what is its own,
 * and don't have the mappings. It allocates nothing, frees nothing and takes no lock of the
 * application's.
 */
#ifndef PL_SOURCE_GENERATION_H
#define PL_SOURCE_GENERATION_H

#include <pinlease/source.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "bpf/generation.h"

#define PL_RECENT 256

/* What is laid out as the kernel's is: a page for the reader, one for the writer, the data, which is
 * mapped twice in a row. */
struct pl_generation_ring {
	_Atomic unsigned long *consumer;
	const _Atomic unsigned long *producer;
	const uint8_t *data;
	size_t size; /* a power of two */
};

/* For tests: memory laid out as the maps are, filled by who opens the source. What was put there is
 * looked for when the core asks (`look`), or soon. */
struct pl_generation_given {
	struct generation_counts *counts;
	void *ring;
};

/* Changes that have been told of, newest last: who registers meanwhile may have what goes. */
struct pl_generation_recent {
	pthread_mutex_t lock; /* nothing is called under it */
	uint64_t serial;      /* of the last */
	struct {
		uintptr_t start, end;
	} change[PL_RECENT];
};

struct pl_generation {
	struct pinl_ctx *ctx;
	const struct pl_generation_given *given;
	pthread_t thread;
	int kick; /* eventfd */
	atomic_bool stop;
	atomic_bool live; /* changes are counted */
	char path[108];
	struct pl_generation_recent recent;

	/* The same as long as the source is open, whatever is there. */
	struct generation_counts *counts;
	struct pl_generation_ring ring;
	void *at;
	size_t counts_len, ring_len;

	pthread_mutex_t lock; /* all up to `area`, and writing to counts->watched; nothing is called
				 under it but for mmap() */
	pthread_cond_t done;
	bool answered;
	int err;
	char text[216];
	uint32_t area[GENERATION_AREAS]; /* so many watches have to do with it */

	/* The thread's own. */
	enum { PL_GEN_AWAY, PL_GEN_GREETING, PL_GEN_ASKING, PL_GEN_THERE } stage;
	int sock, ring_fd, map_fd[2];
	uint64_t away_ns; /* since then there is no connection that counts for us */
	uint64_t next_ns; /* then it is tried again */
	uint64_t taken, lost, said_ns;
};

/* generation_ring.c: the next record. BUSY: it is there and not written yet. */
enum pl_generation_next { PL_GENERATION_NONE, PL_GENERATION_BUSY, PL_GENERATION_TAKEN };
enum pl_generation_next pl_generation_next(const struct pl_generation_ring *ring,
					   struct generation_record *record);
void pl_generation_ring_at(struct pl_generation_ring *ring, void *at);

/* generation_decode.c: what sort of change, and what it may be instead. own: a thread of this process
 * makes it. */
void pl_generation_decode(const struct generation_record *record, bool own, enum pinl_op *op,
			  unsigned *also);

/* generation_take.c: the thread's. False: some is on its way still. */
bool pl_generation_take(struct pl_generation *g);
/* What is there at an end: leases hear of it, and no lookup goes on. */
void pl_generation_take_left(struct pl_generation *g);

/* generation_watch.c */
void pl_generation_watch(struct pl_generation *g, uintptr_t start, uintptr_t end);
void pl_generation_unwatch(struct pl_generation *g, uintptr_t start, uintptr_t end);
bool pl_generation_watch_whole(struct pl_generation *g, uintptr_t start, uintptr_t end);
void pl_generation_watch_again(struct pl_generation *g); /* in other maps; lock held */
void pl_generation_recent_add(struct pl_generation *g, uintptr_t start, uintptr_t end);
bool pl_generation_going(struct pl_generation *g, uintptr_t start, uintptr_t end, bool look);

/* generation_link.c */
void *pl_generation_link(void *generation);

/* The memory for the maps, empty, and without descriptors in it. -errno. */
int pl_generation_reserve(struct pl_generation *g);

#endif
