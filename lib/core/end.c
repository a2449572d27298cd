/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Ending leases: by their holder, as a leak when their device is closed, or in part by a quiesce. Who
 * ends one has it busy: no worker is on it, and changes of its memory wait for the end.
 */
#include <errno.h>
#include <stdlib.h>

#include "core/change.h"
#include "core/export.h"
#include "core/extent.h"
#include "core/fault.h"
#include "core/order.h"

static void unpublish_locked(struct pinl_lease *l)
{
	struct pinl_ctx *ctx = l->ctx;

	pl_change_leave(l);
	if (l->more->translated)
		pl_translate_end(l);
	pl_index_remove(&ctx->index, &l->node);
	if (l->more->inode)
		pl_index_remove(&l->more->inode->leases, &pl_more(l)->file_node);
	*l->dev_prev = l->dev_next;
	if (l->dev_next)
		l->dev_next->dev_prev = l->dev_prev;
	ctx->counters.leases--;
	ctx->others -= !l->alone;
	ctx->counters.unmapped++;
	ctx->counters.bytes -= l->m.end - l->m.start;
	if (!ctx->counters.leases)
		atomic_store(&ctx->wants_hold, 0);
	pl_extent_put(l);
}

/* Leave the index and let waiting changes look again. */
void pl_lease_withdraw(struct pinl_lease *l)
{
	struct pinl_ctx *ctx = l->ctx;
	struct pinl_change *answered = NULL;

	pthread_mutex_lock(&ctx->lock);
	if (l->state == PINL_NOTICED)
		pl_lease_input(l, PL_IN_UNMAP);
	if (l->more->gone)
		pl_order_gone(l);
	pl_recall_over(l);
	unpublish_locked(l);
	pl_lost_put(ctx, &l->more->lost);
	pl_settle(ctx, &answered);
	pthread_cond_broadcast(pl_settled(l));
	pthread_mutex_unlock(&ctx->lock);
	pl_answer_all(ctx, answered);
}

void pl_lease_free(struct pinl_lease *l)
{
	pl_lease_unstage(l);
	pl_inode_put(l);
	pl_import_free(l);
	if (!l->in_slab) {
		free(l);
		return;
	}
	/* as a rule it has been put where the lease left the index, and needs no lock for that */
	if (l->by_extent && l->on != &pl_more_none.ground) {
		pthread_mutex_lock(&l->ctx->lock);
		pl_extent_put(l);
		pthread_mutex_unlock(&l->ctx->lock);
	}
	pl_more_leave(&l->ctx->mores, l);
	pl_slab_free(&l->ctx->slab, l);
}

/* Take the lease for ourselves: the worker is off it and stays off. */
static enum pinl_state claim(struct pinl_lease *l, bool leaked)
{
	struct pinl_ctx *ctx = l->ctx;
	enum pinl_state before;

	pthread_mutex_lock(&ctx->lock);
	while (l->busy || l->queued)
		pthread_cond_wait(pl_settled(l), &ctx->lock);
	before = l->state;
	pl_lease_input(l, PL_IN_UNMAP);
	l->busy = true;
	if (leaked && l->dev->foreign)
		pl_more(l)->gone = true;
	l->inside_ns = pl_clock_ns();
	if (ctx->held)
		pthread_cond_signal(&ctx->work); /* a change may have to be let go earlier now */
	pthread_mutex_unlock(&ctx->lock);
	return before;
}

/* drained: what came of taking the device off. pinleased's are told by its own events. */
static void say_ended(struct pinl_lease *l, enum pinl_state before, bool leaked, int drained)
{
	struct pinl_event ev;

	if (drained == -ETIMEDOUT && !l->dev->foreign) {
		pl_event_lease(l, PINL_EV_DEGRADED, NULL, &ev);
		ev.err = drained;
		pl_event_push(l->ctx, &ev);
	}
	if (before == PINL_NOTICED && !l->more->gone) {
		pl_event_lease(l, PINL_EV_QUIESCED, &l->more->recall, &ev);
		ev.outcome = PINL_OUT_QUIESCED;
		pl_event_push(l->ctx, &ev);
		ev.type = PINL_EV_RELEASED;
		ev.time_ns = 0;
		pl_event_push(l->ctx, &ev);
	}
	if (!leaked)
		return;
	pl_event_lease(l, PINL_EV_LEAK, NULL, &ev);
	ev.bytes = l->m.end - l->m.start;
	pl_event_push(l->ctx, &ev);
}

/* What went since the lease was claimed, while the device was on it still. Who is held from before his
 * change to the lease's end takes nothing from it. */
static void lost_meanwhile(struct pinl_lease *l)
{
	struct pl_lost_list lost;

	pthread_mutex_lock(&l->ctx->lock);
	lost = pl_lost_take(l);
	pthread_mutex_unlock(&l->ctx->lock);
	for (const struct pl_lost *it = lost.first; it; it = it->next)
		if (it->recall.late || !it->recall.held)
			pl_lost_live(l, &it->recall);
	pl_lost_live(l, &lost.crowd);
	pthread_mutex_lock(&l->ctx->lock);
	pl_lost_put(l->ctx, &lost);
	pthread_mutex_unlock(&l->ctx->lock);
}

/* ctx->lock held. False: another thread ends it already. */
bool pl_lease_begin_end(struct pinl_lease *l)
{
	if (l->ending)
		return false;
	l->ending = true;
	l->dev->enders++;
	return true;
}

/* What couldn't be stopped may be when its transfers have ended; pinleased's has had all its time. */
static int take_off(struct pinl_lease *l, uint64_t deadline)
{
	int err = pl_lease_stop(l, true);
	int drained = l->dev->ops.drain(l->dev->priv, &l->dm, deadline);

	if (!err || err == -EOPNOTSUPP || l->dev->foreign)
		return drained;
	return pl_lease_stop(l, true) ? -ETIMEDOUT : drained;
}

/* After pl_lease_begin_end(). */
void pl_lease_end(struct pinl_lease *l, bool leaked)
{
	struct pinl_ctx *ctx = l->ctx;
	struct pinl_device *dev = l->dev;
	enum pinl_state before;
	struct pl_inside in;
	uint64_t deadline;
	int drained;

	pl_inside_begin(ctx, &in);
	pl_wait_applied(ctx); /* a change whose caller has been let go is this lease's to report */
	before = claim(l, leaked);
	deadline = pl_clock_ns() + ctx->opts.drain_ms * 1000000ull;
	if (before != PINL_RELEASED && !l->idle && !atomic_load(&l->more->taken_outside))
		pl_orphan_check(l);
	l->dm.holder_done = !leaked;
	drained = take_off(l, deadline);
	if (before != PINL_RELEASED) {
		pl_lease_flush(l, NULL);
		lost_meanwhile(l);
	}
	pl_orphan_end(l);
	l->dev->ops.unmap(l->dev->priv, &l->dm);
	pl_import_detach(l);
	say_ended(l, before, leaked, drained);
	pthread_mutex_lock(&ctx->lock);
	ctx->counters.leaks += leaked;
	ctx->counters.quiesced += before == PINL_NOTICED && !l->more->gone;
	ctx->counters.drains_unconfirmed += drained == -ETIMEDOUT;
	pthread_mutex_unlock(&ctx->lock);
	pl_lease_withdraw(l);
	pl_lease_unwatch(l);
	l->dev->ops.forget(l->dev->priv, &l->dm);
	pl_lease_free(l);
	pl_inside_end(ctx, &in);
	pthread_mutex_lock(&ctx->lock);
	dev->enders--; /* device and context may be closed from here on */
	pthread_cond_broadcast(&ctx->ended);
	pthread_mutex_unlock(&ctx->lock);
}

void pinl_unmap_range(struct pinl_lease *lease)
{
	PL_CALL(call);
	bool mine;

	if (!lease || !pl_alive(lease->ctx))
		return;
	pthread_mutex_lock(&lease->ctx->lock);
	mine = pl_lease_begin_end(lease);
	pthread_mutex_unlock(&lease->ctx->lock);
	if (mine)
		pl_lease_end(lease, false);
}

int pinl_quiesced(struct pinl_lease *l)
{
	PL_CALL(call);
	struct pinl_ctx *ctx = l->ctx;
	int err = 0;

	if (!pl_alive(ctx))
		return pl_stale();
	pthread_mutex_lock(&ctx->lock);
	if (l->state == PINL_FORCING || l->state == PINL_RELEASED) {
		err = -EALREADY;
	} else {
		if (l->state == PINL_ACTIVE)
			pl_more(l)->recall =
				(struct pl_recall){.va = {l->m.start, l->m.end}, .op = PINL_OP_NR};
		pl_more(l)->recall.quiesced = true;
		pl_lease_input(l, PL_IN_QUIESCED);
		while (l->state == PINL_FORCING)
			pthread_cond_wait(pl_settled(l), &ctx->lock);
	}
	pthread_mutex_unlock(&ctx->lock);
	return err ? pinl_set_error(err, "the lease has been taken back already") : 0;
}
