/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Gates: from the answer to a change until its source says that it is done, no lease is made of its
 * range, but by the thread that makes the change. Nor is one while a change of it is held.
 */
#include <unistd.h>

#include "core/change.h"

/* Without room for its range no lease at all is made until it is done. */
void pl_gate_add(struct pinl_ctx *ctx, const struct pinl_change *ch)
{
	if (!(ch->can & PINL_WILL_SAY_DONE))
		return;
	if (ctx->n_gates == PL_MAX_GATES) {
		ctx->wide_gates++;
		return;
	}
	ctx->gates[ctx->n_gates++] = (struct pl_gate){ch->id,
						      ch->actor_tid,
						      ch->on_file,
						      ch->file_dev,
						      ch->file_ino,
						      ch->on_file ? ch->file_start : ch->start,
						      ch->on_file ? ch->file_end : ch->end};
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

bool pl_gate_blocks(struct pinl_ctx *ctx, const struct pinl_memory *mem)
{
	uint64_t len = mem->end - mem->start;

	if (ctx->wide_gates)
		return true;
	for (int i = 0; i < ctx->n_gates; i++) {
		const struct pl_gate *g = &ctx->gates[i];

		if (g->actor_tid == gettid()) /* back from its own change */
			continue;
		if (!g->on_file && g->start < mem->end && g->end > mem->start)
			return true;
		if (g->on_file && mem->ino && g->dev == mem->dev && g->ino == mem->ino &&
		    g->start < mem->offset + len && g->end > mem->offset)
			return true;
	}
	return false;
}

bool pl_change_pending_on(struct pinl_ctx *ctx, const struct pinl_memory *mem)
{
	uint64_t len = mem->end - mem->start;

	for (const struct pinl_change *ch = ctx->held; ch; ch = ch->next) {
		if (!ch->on_file && ch->start < mem->end && ch->end > mem->start)
			return true;
		if (ch->on_file && mem->ino && ch->file_dev == mem->dev && ch->file_ino == mem->ino &&
		    ch->file_start < mem->offset + len && ch->file_end > mem->offset)
			return true;
	}
	return false;
}
