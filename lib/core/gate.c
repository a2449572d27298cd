/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Gates: from the answer to a change until its source says that it is done, no lease is made of its
 * range, but by the thread that makes the change. Nor is one while a change of it is held.
 */

#include "core/change.h"
#include "core/order.h"

static struct pl_gate gate_of(const struct pinl_change *ch)
{
	return (struct pl_gate){.id = ch->id,
				.op = ch->op,
				.actor_tid = ch->actor_tid,
				.on_file = ch->on_file,
				.dev = ch->file_dev,
				.ino = ch->file_ino,
				.start = ch->on_file ? ch->file_start : ch->start,
				.end = ch->on_file ? ch->file_end : ch->end};
}

/* Without room for its range no lease at all is made until it is done. */
void pl_gate_add(struct pinl_ctx *ctx, const struct pinl_change *ch)
{
	if (!(ch->can & PINL_WILL_SAY_DONE))
		return;
	if (ctx->n_gates == PL_MAX_GATES) {
		ctx->wide_gates++;
		return;
	}
	ctx->gates[ctx->n_gates++] = gate_of(ch);
}

void pl_gate_close(struct pinl_ctx *ctx, struct pinl_change *ch)
{
	pthread_mutex_lock(&ctx->lock);
	ch->id = ++ctx->next_id;
	pl_gate_add(ctx, ch);
	pthread_mutex_unlock(&ctx->lock);
}

void pinl_change_done(struct pinl_ctx *ctx, uint64_t change_id)
{
	int i = 0;

	pthread_mutex_lock(&ctx->lock);
	while (i < ctx->n_gates && ctx->gates[i].id != change_id)
		i++;
	if (i < ctx->n_gates)
		ctx->gates[i] = ctx->gates[--ctx->n_gates];
	else if (change_id && ctx->wide_gates)
		ctx->wide_gates--;
	pthread_mutex_unlock(&ctx->lock);
}

/* Has the range, of the file or of addresses, anything of the lease's memory? */
static bool meets(const struct pl_gate *g, const struct pinl_lease *l)
{
	const struct pinl_memory *mem = &l->on->mem;
	uint64_t len = l->m.end - l->m.start;

	if (!g->on_file)
		return g->start < l->m.end && g->end > l->m.start;
	return mem->ino && g->dev == mem->dev && g->ino == mem->ino && g->start < mem->offset + len &&
	       g->end > mem->offset;
}

/* Its own actor is back from the change, unless it is in what pinl_invalidate() calls. */
static bool is_back(struct pinl_ctx *ctx, const struct pl_gate *g, pid_t tid)
{
	return g->actor_tid == tid && pinl_tid_exempt(ctx, tid) != PINL_EXEMPT_ASKED;
}

bool pl_gate_blocks(const struct pinl_lease *l)
{
	struct pinl_ctx *ctx = l->ctx;

	if (ctx->wide_gates)
		return true;
	for (int i = 0; i < ctx->n_gates; i++)
		if (meets(&ctx->gates[i], l) && !is_back(ctx, &ctx->gates[i], l->owner_thread))
			return true;
	return false;
}

/* What has been let go without asking the lease is told to it as what it is by now: too late. */
void pl_gate_join(struct pinl_lease *l)
{
	struct pl_range va;

	for (int i = 0; i < l->ctx->n_gates; i++) {
		const struct pl_gate *g = &l->ctx->gates[i];
		struct pinl_change ch = {.op = g->op,
					 .can = PINL_CAN_TELL,
					 .id = g->id,
					 .on_file = 1,
					 .file_dev = g->dev,
					 .file_ino = g->ino,
					 .file_start = g->start,
					 .file_end = g->end,
					 .ceiling_ns = pl_clock_ns(),
					 .actor_tid = g->actor_tid,
					 .source = "restart"};

		if (g->on_file && pl_lease_overlap(l, &ch, &va))
			pl_recall_apply(l, &ch, &va);
	}
}

bool pl_change_pending_on(const struct pinl_lease *l)
{
	for (const struct pinl_change *ch = l->ctx->held; ch; ch = ch->next) {
		struct pl_gate range = gate_of(ch);

		if (!pl_is_order(ch) && meets(&range, l))
			return true;
	}
	return false;
}
