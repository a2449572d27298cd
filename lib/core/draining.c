/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Foreign leases whose device has been stopped, and may not be off yet. The worker waits for none of
 * them: it looks at one after the other, so the time runs for all at once, and works on others between.
 * One that is through goes back to the jobs; until then it is `queued`, though not there.
 *
 * ctx->lock held everywhere.
 */
#include <errno.h>

#include "core/change.h"

#define LOOK_NS 200000u

static void append(struct pinl_ctx *ctx, struct pinl_lease *l)
{
	pl_more(l)->job_next = NULL;
	*ctx->draining_tail = l;
	ctx->draining_tail = &pl_more(l)->job_next;
}

static struct pinl_lease *pop(struct pinl_ctx *ctx)
{
	struct pinl_lease *l = ctx->draining;

	ctx->draining = l->more->job_next;
	if (!ctx->draining)
		ctx->draining_tail = &ctx->draining;
	return l;
}

bool pl_draining_add(struct pinl_lease *l)
{
	if (!l->dev->foreign || !(l->jobs & PL_JOB_TAKE) || l->more->recall.quiesced ||
	    !l->more->stopped || l->more->stop_err || l->more->drained)
		return false;
	l->queued = true;
	pl_more(l)->look_ns = 0;
	append(l->ctx, l);
	return true;
}

uint64_t pl_draining_next(const struct pinl_ctx *ctx)
{
	return ctx->draining ? ctx->draining->more->look_ns : UINT64_MAX;
}

/* Those that were looked at last are last, so the first is the one that is due. */
bool pl_draining_look(struct pinl_ctx *ctx)
{
	struct pinl_lease *l;
	int err;

	if (pl_draining_next(ctx) > pl_clock_ns())
		return false;
	l = pop(ctx);
	l->busy = true;
	pthread_mutex_unlock(&ctx->lock);
	err = l->dev->foreign->drained(l, l->more->drain_by);
	pthread_mutex_lock(&ctx->lock);
	l->busy = false;
	if (err == -EAGAIN) {
		pl_more(l)->look_ns = pl_clock_ns() + LOOK_NS;
		append(ctx, l);
		return true;
	}
	pl_more(l)->drained = true;
	l->queued = false;
	pl_job_add(l, 0);
	return true;
}
