/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Between change.c (all leases under a change), recall.c (one of them) and gate.c. ctx->lock held, but
 * for what is said otherwise. */
#ifndef PL_CORE_CHANGE_H
#define PL_CORE_CHANGE_H

#include "core/foreign.h"

struct pl_verdict pl_recall_ask(const struct pinl_lease *lease, const struct pinl_change *change,
				enum pl_effect *effect);
void pl_recall_over(struct pinl_lease *lease);
void pl_recall_make(struct pinl_lease *lease, const struct pinl_change *change,
		    const struct pl_range *va, enum pl_effect effect, struct pl_recall *recall);
void pl_recall_tell(struct pinl_lease *lease, const struct pl_recall *recall, enum pl_tell what);
void pl_recall_rearm(struct pinl_lease *lease, uint64_t deadline_ns); /* in state NOTICED */
void pl_recall_put_off(struct pinl_lease *lease, uint64_t until_ns);  /* not the deadline; the same */
bool pl_recall_pending(const struct pinl_lease *lease);
void pl_recall_apply(struct pinl_lease *lease, struct pinl_change *change, const struct pl_range *va);
void pl_recall_detached(struct pinl_lease *lease, const struct pinl_change *change,
			const struct pl_range *part);
/*
 * The first held change that `is`, which may set the time: its actor waits no more since then, which is
 * told. Its source wants the answer still, when it is due. False: there is none. Takes ctx->lock, under
 * which it asks.
 */
bool pl_change_gone(struct pinl_ctx *ctx, bool (*is)(const struct pinl_change *change, void *arg),
		    void *arg, const uint64_t *when_ns);
/* Is there one, of which it is to be told that it goes on? As above. */
bool pl_change_held(struct pinl_ctx *ctx, bool (*is)(const struct pinl_change *change, void *arg),
		    void *arg);
/* For one that is told of before it is submitted; with PL_HAS_NUMBER, as its id. Takes ctx->lock. */
uint64_t pl_change_number(struct pinl_ctx *ctx);
/* All held changes that are: nobody waits for them since then, which is said when they are answered. As
 * above. */
void pl_change_over(struct pinl_ctx *ctx, bool (*is)(const struct pinl_change *change, void *arg),
		    void *arg, uint64_t when_ns);
/* As pinl_change_submit(), of an actor who waits since then. Takes ctx->lock. */
void pl_change_submit_since(struct pinl_ctx *ctx, struct pinl_change *change, uint64_t since_ns);
/* The kernel has refused it, as a lease's policy says: that is told. Takes ctx->lock. */
void pl_change_was_refused(struct pinl_ctx *ctx, struct pinl_change *change);
/* It has been refused, as who makes it can't be held; that is told. The leases are recalled for it all
 * the same, so that it can be made later: held till then, and nothing more is said of it. Takes
 * ctx->lock. */
void pl_change_could_not_wait(struct pinl_ctx *ctx, struct pinl_change *change);
void pl_gate_join(struct pinl_lease *lease);
void pl_gate_add(struct pinl_ctx *ctx, const struct pinl_change *change);

#endif
