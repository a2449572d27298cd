/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Orders: leases are to be recalled because somebody says so, not because their memory changes. An order
 * is a change (of PINL_OP_NR, no operation) that means one lease alone, or all that import memory of one
 * exporter, asks no policy and shuts out no new lease; all the rest is the recall of a change: notice,
 * deadline, force, one change held until then.
 */
#ifndef PL_CORE_ORDER_H
#define PL_CORE_ORDER_H

#include "core/ctx.h"

#define PL_ORDER_SOURCE "recall" /* pinl_change.source, and that of its notices and events */

struct pl_order_result {
	enum pinl_outcome outcome; /* NONE without err: a foreign holder has gone, and so its lease */
	bool outside;		   /* taken from outside of its holder */
	int err; /* 0: released; -EOPNOTSUPP: the device can't be taken off; -ETIMEDOUT */
};

struct pl_order {
	struct pinl_change change; /* set by pl_order_init; then submitted like any other */
	uint64_t lease_id;	   /* 0: all in its range */
	uint64_t deadline_ns; /* of one lease, cut to the ceiling; all in a range have their graces */
	uint64_t grace_until_ns,
		agent_ns;	      /* of a foreign one: its holder's, if there is that much time */
	struct pl_order_result taken; /* the lease, while it was held; it may have ended since */
	bool gone;		      /* so it has, with its holder, who hasn't answered */
};

/* Of the bytes [start, end) of the lease's file. `wait`: answered when the recall is over, else at once.
 * The lease must be there. */
void pl_order_init(struct pl_order *order, const struct pinl_lease *lease, uint64_t start, uint64_t end,
		   bool wait);
void pl_order_result(struct pinl_ctx *ctx, const struct pl_order *order, struct pl_order_result *out);

/* For the core; ctx->lock held. */
bool pl_order_means(const struct pinl_change *change, const struct pinl_lease *lease);
void pl_order_taken(const struct pinl_lease *lease, bool outside); /* for those that are held for it */
void pl_order_gone(const struct pinl_lease *lease);		   /* the same */
struct pl_verdict pl_order_ask(const struct pinl_lease *lease);
bool pl_order_has_deadline(const struct pinl_change *change, uint64_t *deadline_ns);
/* When the holder's own library forces, if its arbiter does at the deadline; 0: it isn't said. */
uint64_t pl_order_force_ns(const struct pinl_change *change, uint64_t now_ns, uint64_t deadline_ns);

static inline bool pl_is_order(const struct pinl_change *change)
{
	return change->can & PL_CAN_ORDER;
}

#endif
