/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Room for what few leases of the cache need besides the little that all have (struct pl_more in
 * lease.h). Who needs it holds ctx->lock as a rule, and may be a source's thread. So there is room for
 * every lease before it is made, as addresses that the kernel puts memory at when they are written to.
 */
#ifndef PL_CORE_MORE_H
#define PL_CORE_MORE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

struct pinl_lease;
struct pl_more;
struct pl_more_room;

struct pl_mores {
	atomic_size_t leases, room; /* of the cache; for so many there is room */
	pthread_mutex_t lock;	    /* all below, and that a lease gets its own */
	struct pl_more_room *rooms; /* newest first */
	struct pl_more *free;	    /* used before */
	size_t out;
	bool giving;	      /* a thread gives back what was used */
	pthread_cond_t given; /* some of it has gone */
};

void pl_mores_init(struct pl_mores *mores);
void pl_mores_end(struct pl_mores *mores);

/* A lease of the cache's is going to be made. No lock. False: no memory. */
bool pl_more_reserve(struct pl_mores *mores);
void pl_more_unreserve(struct pl_mores *mores); /* it isn't made */
/* It has ended, with what it had. No lock. */
void pl_more_leave(struct pl_mores *mores, struct pinl_lease *lease);

/* What every lease has that needs nothing; no lease is written to there. */
extern const struct pl_more pl_more_none;

/* To be written to, by who may write to the lease: never NULL, and no other one later. */
struct pl_more *pl_more(struct pinl_lease *lease);
void pl_more_join(struct pinl_lease *lease, struct pl_more *more); /* one of its own, when it is made */

#endif
