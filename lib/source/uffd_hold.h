/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who is blocked in which change of the address space, and which of them may go on. A userfaultfd event
 * says what happened only to a reader who thereby lets the caller go, so a caller that has to be held is
 * found by looking at the process's threads instead.
 */
#ifndef PL_SOURCE_UFFD_HOLD_H
#define PL_SOURCE_UFFD_HOLD_H

#include <pinlease/source.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "source/uffd_scan.h"

#define PL_UFFD_CALLERS 16
#define PL_UFFD_ASKS	64

/* A change that the core was asked about. */
struct pl_uffd_ask {
	struct pinl_change change;
	struct pl_uffd_asks *asks;
	atomic_int state;
};

/*
 * All of a source's. Outlives the source while an answer is missing: refs counts the source and every
 * ask under way. `kick` is an eventfd, written when an answer came.
 */
struct pl_uffd_asks {
	struct pinl_ctx *ctx;
	pthread_t reader; /* needs no kick */
	int kick;
	atomic_int refs;
	struct pl_uffd_ask ask[PL_UFFD_ASKS];
};

struct pl_uffd_asks *pl_uffd_asks_new(struct pinl_ctx *ctx);
void pl_uffd_asks_put(struct pl_uffd_asks *asks);

/* Tell of a change nobody is held for; tid 0: not known. */
void pl_uffd_tell(struct pl_uffd_asks *asks, const struct pl_uffd_range *range, pid_t tid);

/* A thread that is blocked until its event is read. */
struct pl_uffd_caller {
	pid_t tid;
	struct pl_syscall call;
	struct pl_uffd_range range[2];
	struct pl_uffd_ask *ask[2]; /* NULL: not asked */
	int nr;			    /* of ranges; 0: not known what it changes */
	unsigned group;
	uint64_t since_ns, seen_ns;
	bool seen, gone; /* by the last scan */
	uint64_t mark;	 /* leases made later were not asked about */
	int exempt;	 /* pinl_tid_exempt(): never held; 1: its events are no news */
	bool idle;	 /* no lease cares about it */
	bool read;	 /* its event was */
};

/* A change that has been allowed and may not have happened yet. */
struct pl_uffd_leaving {
	struct pl_uffd_thread thread;
	uint64_t change_id;
};

/* The reader thread's own; no lock. */
struct pl_uffd_hold {
	struct pl_uffd_asks *asks;
	bool wchan; /* pl_uffd_waits() works here */
	bool overflow;
	bool one; /* of the callers may go; which one the event will say */
	unsigned group;
	int nr, n_leaving;
	uint64_t next_look_ns;
	struct pl_uffd_caller caller[PL_UFFD_CALLERS]; /* oldest first */
	struct pl_uffd_leaving leaving[PL_UFFD_CALLERS];
};

/* Look at all threads; `ask` the core about those newly blocked. */
void pl_uffd_hold_scan(struct pl_uffd_hold *hold, bool ask);

/* How many of the oldest callers may go on now; 0: nobody yet. Needs at least one caller. */
int pl_uffd_hold_ready(struct pl_uffd_hold *hold);

/*
 * Which of the oldest `nr` callers an event with this range is from. PL_UFFD_KNOWN: the core knows of it
 * already; PL_UFFD_SEEN: op and tid are set to what the caller does; PL_UFFD_UNSEEN: don't know.
 */
enum pl_uffd_found { PL_UFFD_UNSEEN, PL_UFFD_SEEN, PL_UFFD_KNOWN };
enum pl_uffd_found pl_uffd_hold_find(struct pl_uffd_hold *hold, int nr, struct pl_uffd_range *range,
				     pid_t *tid);

/* The events of the oldest `nr` callers were read; of the one that hold_find() found. */
void pl_uffd_hold_drop(struct pl_uffd_hold *hold, int nr);
void pl_uffd_hold_drop_read(struct pl_uffd_hold *hold);

/* Finish what can be finished of those leaving. Cheap to call often. */
void pl_uffd_hold_leave(struct pl_uffd_hold *hold);

#endif
