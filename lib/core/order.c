/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "core/order.h"

#include <errno.h>

#include "core/change.h"

static const struct pl_order *order_of(const struct pinl_change *ch)
{
	return (const struct pl_order *)((const char *)ch - offsetof(struct pl_order, change));
}

void pl_order_init(struct pl_order *o, const struct pinl_lease *l, uint64_t start, uint64_t end,
		   bool wait)
{
	uint64_t from = l->on->mem.offset, to = from + (l->m.end - l->m.start);

	*o = (struct pl_order){
		.change = {.op = PINL_OP_NR,
			   .can = PL_CAN_ORDER | PINL_CAN_TELL | PINL_CAN_BEFORE |
				  (wait ? PINL_CAN_HOLD : 0),
			   .on_file = 1,
			   .file_dev = l->on->mem.dev,
			   .file_ino = l->on->mem.ino,
			   .file_start = start > from ? start : from,
			   .file_end = end < to ? end : to,
			   .source = PL_ORDER_SOURCE},
		.lease_id = l->id,
	};
}

bool pl_order_means(const struct pinl_change *ch, const struct pinl_lease *l)
{
	return !pl_is_order(ch) || !order_of(ch)->lease_id || order_of(ch)->lease_id == l->id;
}

/* NULL: it isn't one of this lease alone. */
static struct pl_order *order_for(const struct pinl_change *ch, const struct pinl_lease *l)
{
	return pl_is_order(ch) && order_of(ch)->lease_id == l->id ? (struct pl_order *)order_of(ch)
								  : NULL;
}

void pl_order_taken(const struct pinl_lease *l, bool outside)
{
	for (struct pinl_change *ch = l->ctx->held; ch; ch = ch->next)
		if (order_for(ch, l))
			order_for(ch, l)->taken =
				(struct pl_order_result){.outcome = l->outcome, .outside = outside};
}

void pl_order_gone(const struct pinl_lease *l)
{
	for (struct pinl_change *ch = l->ctx->held; ch; ch = ch->next)
		if (order_for(ch, l))
			order_for(ch, l)->gone = true;
}

/* A device that only its holder can take off would be said to be off it. */
struct pl_verdict pl_order_ask(const struct pinl_lease *l)
{
	bool can = l->dev->info.device_class >= PINL_DEV_REVOCABLE;

	return (struct pl_verdict){.action = can ? PL_RECALL : PL_ALLOW};
}

bool pl_order_has_deadline(const struct pinl_change *ch, uint64_t *deadline_ns)
{
	if (!pl_is_order(ch) || !order_of(ch)->lease_id)
		return false;
	*deadline_ns = order_of(ch)->deadline_ns;
	return true;
}

/* The library's time is what it asks for, and half of what there is where the ceiling leaves less. */
uint64_t pl_order_force_ns(const struct pinl_change *ch, uint64_t now, uint64_t deadline)
{
	uint64_t left = deadline > now ? deadline - now : 0, agent;

	if (!pl_is_order(ch) || !order_of(ch)->grace_until_ns)
		return 0;
	agent = order_of(ch)->agent_ns < left / 2 ? order_of(ch)->agent_ns : left / 2;
	deadline -= agent;
	return deadline < order_of(ch)->grace_until_ns ? deadline : order_of(ch)->grace_until_ns;
}

static struct pinl_lease *find(struct pinl_ctx *ctx, const struct pl_order *o)
{
	struct pinl_lease *l = pl_lease_first(ctx, &o->change);

	while (l && l->id != o->lease_id)
		l = pl_lease_next(l, &o->change);
	return l;
}

void pl_order_result(struct pinl_ctx *ctx, const struct pl_order *o, struct pl_order_result *out)
{
	const struct pinl_lease *l;
	struct pl_range va;

	*out = (struct pl_order_result){.outcome = PINL_OUT_QUIESCED};
	pthread_mutex_lock(&ctx->lock);
	l = find(ctx, o); /* NULL: its holder has ended it */
	if (l && l->state != PINL_RELEASED && pl_lease_overlap(l, &o->change, &va)) {
		out->outcome = PINL_OUT_NONE;
		out->err =
			l->more->stuck || l->more->followed >= o->change.id ? -EOPNOTSUPP : -ETIMEDOUT;
	} else if (l) {
		out->outcome = l->outcome;
		out->outside = !l->more->recall.quiesced;
	} else if (o->taken.outcome) {
		*out = o->taken;
	} else if (o->gone) {
		out->outcome = PINL_OUT_NONE;
	}
	pthread_mutex_unlock(&ctx->lock);
}
