/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Changes that the kernel counts before it makes them, and a source takes one by one: while it has taken
 * fewer than are counted, something may have changed that nobody here knows of.
 */
#ifndef PL_CORE_COUNTED_H
#define PL_CORE_COUNTED_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct pinl_ctx;
struct pinl_lease;
struct pinl_source_ops;

/* `told` is the kernel's; `applied` the source's: raised when all that was taken is submitted. */
struct pl_counts {
	_Atomic uint64_t told, applied;
};

struct pl_counts_at {
	unsigned life;
	uint64_t told;
};

/* By the source, when it is opened. What it points to stays readable as long as the context lives. */
void pl_counts_set(struct pinl_ctx *ctx, const struct pl_counts *counts);
void pl_counting_set(struct pinl_ctx *ctx, const struct pinl_source_ops *ops);

/* What was counted last, and whether all up to then has been taken since; also if it is counted anew. */
struct pl_counts_at pl_counts_now(struct pinl_ctx *ctx);
bool pl_counts_reached(struct pinl_ctx *ctx, const struct pl_counts_at *at);

/* Until all is taken that is counted by now, but not for ever. False: there was nothing to wait for. */
bool pl_counts_wait(struct pinl_ctx *ctx);

/*
 * Of a lease that is published and not pinned yet, if it hears of some changes only as they are counted:
 * what was told of before is heard by nobody there, so it has to be over. -EBUSY: it takes too long.
 */
int pl_counted_settle(struct pinl_lease *lease);

/* By the source's thread; no lock. Of all that follows, nothing is reported to who has leased it. */

/* Of this range what may be done with the memory has changed: the cache's registrations are stale. */
void pl_counted_protected(struct pinl_ctx *ctx, uintptr_t start, uintptr_t end);
/* Nobody knows what has changed: all of the cache's are. */
void pl_counted_unknown(struct pinl_ctx *ctx);
/* It counts from zero again, with the sequence raised: what it told of is told of again; the same. */
void pl_counted_anew(struct pinl_ctx *ctx);
/* Nothing is counted any more: so leases are told what nobody tells them of now; the same. */
void pl_counted_ended(struct pinl_ctx *ctx);

#endif
