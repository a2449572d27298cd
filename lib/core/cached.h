/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Leases of the registration cache (lib/cache): like any other, but the cache hears first of what
 * happens to their memory; they may overlap each other on one device, since a larger one is made while a
 * smaller one is in use; and whatever their policy is, their memory must be watched.
 */
#ifndef PL_CORE_CACHED_H
#define PL_CORE_CACHED_H

#include "core/ctx.h"

struct pl_cached {
	/*
	 * A change that matters to the lease, before anything is made of it. ctx->lock held: note it,
	 * wake somebody, nothing else. False: somebody uses the registration. `refuses`: then there will
	 * be no change; and true is certain.
	 */
	bool (*changed)(struct pl_cached *cached, bool refuses);
};

struct pl_lease_how {
	uintptr_t start, end;
	unsigned flags;
	const struct pinl_policy *policy;
	const void *caller;
	void *cookie;
	struct pl_cached *cached;
	struct pinl_lease
		*near; /* at lower addresses, and there until the call returns; NULL: none known */
};

/* As pinl_map_range(), but -EAGAIN for what is only "try again", in a PL_CALL and a context that is
 * alive. */
int pl_lease_map(struct pinl_device *device, const struct pl_lease_how *how, struct pinl_addr *addrs,
		 struct pinl_lease **lease);

/* Tells the cache; ctx->lock held. True: nothing else is to be done, nobody has the lease. */
bool pl_cached_changed(struct pinl_lease *lease);

/* True: nobody has it, so it refuses nothing, and is out of the cache; ctx->lock held. */
bool pl_cached_unused(struct pinl_lease *lease);

/* It turned out to be in use when it was changed: the last look (check.c) is to be at it. */
void pl_cached_used(struct pinl_lease *lease);

/* The cache lets go of it; it stays leased. */
void pl_cached_part(struct pinl_lease *lease);

/* -EBUSY: a lease of the cache's is in use over part of the range, under SCRATCH or COPY. */
int pl_say_in_use(const struct pl_range *range, uint64_t lease_id);

/*
 * Whatever a source has been told of by now is applied when the round that _next() says is over: the one
 * that begins next. The one that is under way may have looked for the last time already.
 */
uint64_t pl_round_next(struct pinl_ctx *ctx);
bool pl_round_is_over(struct pinl_ctx *ctx, uint64_t round);

/* Something seems to be changing: asks the sources to see whether that is so. */
void pl_cached_look(struct pinl_ctx *ctx);

/* A change that was told of may not have taken place yet: what is leased there now may soon be stale. */
bool pl_cached_going(struct pinl_ctx *ctx, const struct pl_range *range, bool look);

#endif
