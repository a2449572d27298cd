/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The worker: deadlines and all work on devices that a recall needs. It allocates nothing and holds no
 * lock while it works on a lease; `busy` keeps everyone else off the lease meanwhile.
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "core/change.h"
#include "core/foreign.h"
#include "core/order.h"

#define AHEAD	      256 /* leases that a look ahead goes over */
#define HEAR_AGAIN_NS 2000000u

void pl_job_add(struct pinl_lease *l, unsigned jobs)
{
	struct pinl_ctx *ctx = l->ctx;

	l->jobs |= jobs;
	if (jobs & ~PL_JOB_FOLLOW)
		atomic_store(&l->changed, true);
	if (l->queued || l->busy) /* whoever clears busy queues it again */
		return;
	l->queued = true;
	pl_more(l)->job_next = NULL;
	*ctx->jobs_tail = l;
	ctx->jobs_tail = &pl_more(l)->job_next;
	pthread_cond_signal(&ctx->work);
}

static struct pinl_lease *job_pop(struct pinl_ctx *ctx)
{
	struct pinl_lease *l = ctx->jobs;

	if (!l)
		return NULL;
	ctx->jobs = l->more->job_next;
	if (!ctx->jobs)
		ctx->jobs_tail = &ctx->jobs;
	l->queued = false;
	return l;
}

/* Who was stopped at the deadline may have been forced from outside meanwhile: that is heard first. */
static bool is_to_hear(struct pinl_lease *l, uint64_t now)
{
	struct pinl_ctx *ctx = l->ctx;
	struct pl_recall *r = &pl_more(l)->recall;

	if (!r->outside_ns || now < r->outside_ns || !ctx->caught_up)
		return false;
	if (!r->late_ns)
		r->late_ns = now;
	return now < r->late_ns + PL_HEAR_NS && ctx->caught_up(ctx->caught_up_arg, r->late_ns) <= 0;
}

/* Returns the next deadline, UINT64_MAX for none. */
static uint64_t expire(struct pinl_ctx *ctx)
{
	uint64_t now = pl_clock_ns();
	struct pl_node *first;

	while ((first = pl_index_first(&ctx->noticed, 0, UINTPTR_MAX)) && first->start <= now)
		if (is_to_hear(pl_lease_of_notice_node(first), now))
			pl_recall_put_off(pl_lease_of_notice_node(first), now + HEAR_AGAIN_NS);
		else
			pl_lease_input(pl_lease_of_notice_node(first),
				       PL_IN_DEADLINE); /* takes it out */
	return first ? first->start : UINT64_MAX;
}

static uint64_t earliest(uint64_t a, uint64_t b, uint64_t c)
{
	a = a < b ? a : b;
	return a < c ? a : c;
}

static void sleep_until(struct pinl_ctx *ctx, uint64_t when)
{
	struct timespec t = {.tv_sec = when / 1000000000u, .tv_nsec = when % 1000000000u};

	if (when == UINT64_MAX)
		pthread_cond_wait(&ctx->work, &ctx->lock);
	else
		pthread_cond_timedwait(&ctx->work, &ctx->lock, &t);
}

/* A foreign one's answer says who did it: the holder, or its library at its own deadline. */
static bool by_force(const struct pl_recall *r)
{
	return !r->quiesced || r->outcome > PINL_OUT_QUIESCED;
}

static void taken_events(struct pinl_lease *l, const struct pl_recall *r, const struct pl_taken *taken)
{
	struct pinl_event ev;

	pl_event_lease(l, by_force(r) ? PINL_EV_FORCED : PINL_EV_QUIESCED, r, &ev);
	pl_foreign_mark(l, r, &ev);
	ev.outcome = taken->outcome;
	ev.err = taken->err;
	pl_event_push(l->ctx, &ev);
	ev.type = PINL_EV_RELEASED;
	ev.time_ns = 0;
	pl_event_push(l->ctx, &ev);
}

/*
 * A foreign lease whose force hasn't worked is not off its device: it goes on waiting for its holder.
 * Who waits for it goes on at the ceiling and a grace, as ever.
 */
static void stuck(struct pinl_lease *l, const struct pl_recall *r, const struct pl_taken *taken)
{
	struct pinl_event ev;

	pl_event_lease(l, PINL_EV_FORCED, r, &ev);
	pl_foreign_mark(l, r, &ev);
	ev.err = taken->err;
	pl_event_push(l->ctx, &ev);
	pl_more(l)->stuck = true;
	pl_lease_input(l, PL_IN_DONE_PART);
}

/* ctx->lock held. */
static void apply_taken(struct pinl_lease *l, const struct pl_recall *r, const struct pl_taken *taken)
{
	struct pl_more *more = pl_more(l);
	struct pinl_ctx *ctx = l->ctx;

	pl_recall_over(l);
	if (l->dev->foreign && !r->quiesced && taken->err) {
		stuck(l, r, taken);
		return;
	}
	l->outcome = taken->outcome;
	more->taken_ns = pl_clock_ns();
	if (l->dev->foreign)
		pl_order_taken(l, !r->quiesced);
	more->unproven = taken->err != 0;
	more->stuck = false;
	if (!taken->whole || taken->switched)
		pl_lease_detach(l, &r->va);
	more->va_lost |= r->effect == PL_GONE || taken->va_lost;
	if (by_force(r))
		ctx->counters.forced++;
	else
		ctx->counters.quiesced++;
	if (taken->err == -ETIMEDOUT)
		ctx->counters.drains_unconfirmed++;
	taken_events(l, r, taken);
	if (!r->quiesced)
		pl_recall_tell(l, r, PL_TELL_FORCED);
	if (taken->whole || !pl_lease_live_bytes(l))
		pl_lease_input(l, PL_IN_DONE_WHOLE);
	else
		pl_lease_input(l, PL_IN_DONE_PART);
	if (l->state == PINL_RELEASED && l->dev->foreign && l->dev->foreign->taken)
		l->dev->foreign->taken(l);
	if (more->has_next && l->state == PINL_ACTIVE) {
		more->has_next = false;
		more->recall = more->next;
		pl_lease_cut_detached(l, &more->recall.va);
		if (more->recall.va.start < more->recall.va.end)
			pl_lease_input(l, PL_IN_CHANGE);
	}
}

static void follow(struct pinl_lease *l, const struct pl_range *va)
{
	struct pl_recall r = {.va = *va, .op = PINL_OP_NR};
	struct pinl_event ev;
	int err;

	pl_lease_suspend(l, va, 0); /* what has been mapped there meanwhile is to be watched, too */
	err = l->dev->ops.invalidate(l->dev->priv, &l->dm, va->start, va->end);
	pl_event_lease(l, PINL_EV_FOLLOWED, &r, &ev);
	ev.err = err;
	pl_event_push(l->ctx, &ev);
}

static void answer_unlocked(struct pinl_ctx *ctx, struct pinl_change **answered)
{
	pthread_mutex_unlock(&ctx->lock);
	pl_answer_all(ctx, *answered);
	*answered = NULL;
	pthread_mutex_lock(&ctx->lock);
}

/* ctx->lock held; dropped meanwhile. The lease is queued, so it stays. */
static void stop_ahead(struct pinl_ctx *ctx, struct pinl_lease *l)
{
	uint64_t drain_by = pl_clock_ns() + ctx->opts.drain_ms * 1000000ull;
	bool quiesced = l->more->recall.quiesced;
	int err;

	l->busy = true;
	l->dm.holder_done = l->dev->foreign && quiesced;
	pthread_mutex_unlock(&ctx->lock);
	err = pl_lease_stop(l, quiesced);
	pthread_mutex_lock(&ctx->lock);
	l->dm.holder_done = 0;
	l->busy = false;
	pl_more(l)->stopped = true;
	pl_more(l)->stop_err = err;
	pl_more(l)->drain_by = drain_by;
	pthread_cond_broadcast(pl_settled(l));
}

/*
 * Forces are done one after the other, but their waiting for transfers to end may not add up: the
 * devices of all that are queued are stopped first, and the time to drain runs for all at once. Foreign
 * ones are then looked at in turn (draining.c).
 */
static void look_ahead(struct pinl_ctx *ctx)
{
	struct pinl_lease *l = ctx->jobs;

	for (int i = 0; l && i < AHEAD; i++, l = l->more->job_next) {
		if (l->more->seen || l->busy || l->jobs != PL_JOB_TAKE)
			continue;
		pl_more(l)->seen = true;
		if (pl_stops_first(l))
			stop_ahead(ctx, l);
	}
}

/* ctx->lock held; dropped while working. */
static void do_jobs(struct pinl_ctx *ctx, struct pinl_lease *l)
{
	struct pl_recall recall = l->more->recall, parted = l->more->parted;
	struct pl_range follow_va = l->more->follow;
	struct pinl_change *answered = NULL;
	struct pl_taken taken = {0};
	uint32_t rkey = l->dm.rkey;
	unsigned jobs = l->jobs;
	bool released = l->state == PINL_RELEASED;
	struct pl_lost_list lost;

	lost = pl_lost_take(l);
	l->jobs = 0;
	l->busy = true;
	pl_more(l)->follow = (struct pl_range){0, 0};
	pthread_mutex_unlock(&ctx->lock);

	if (jobs & PL_JOB_ORPHAN)
		pl_lost_begin(l, &lost);
	if ((jobs & PL_JOB_ORPHAN) &&
	    released) /* it came during the force: an orphan until that ended */
		pl_orphan_end(l);
	if (jobs & PL_JOB_PARTED)
		pl_orphan_begin(l, &parted);
	if (jobs & PL_JOB_FOLLOW)
		follow(l, &follow_va);
	if (jobs & PL_JOB_TAKE) {
		if (l->more->n_detached == PL_MAX_DETACHED &&
		    !recall.part) /* no room for another part: all of it */
			recall.va = (struct pl_range){l->m.start, l->m.end};
		pl_take(l, &recall, &taken);
	}

	pthread_mutex_lock(&ctx->lock);
	if (jobs & PL_JOB_FOLLOW)
		ctx->counters.followed++;
	l->busy = false;
	pl_lost_put(ctx, &lost);
	if (jobs & PL_JOB_TAKE)
		pl_more(l)->seen = pl_more(l)->stopped = pl_more(l)->drained = false;
	if (jobs & PL_JOB_TAKE)
		apply_taken(l, &recall, &taken);
	if (l->dm.rkey != rkey)
		pl_event_keys(l);
	if (jobs & PL_JOB_ORPHAN)
		pl_recall_late(l);
	if (jobs & PL_JOB_TAKE)
		pl_recall_rest(l);
	if (l->jobs)
		pl_job_add(l, 0);
	pl_settle(ctx, &answered);
	pthread_cond_broadcast(pl_settled(l));
	answer_unlocked(ctx, &answered);
}

void *pl_worker(void *arg)
{
	struct pinl_ctx *ctx = arg;
	struct pinl_change *answered = NULL;
	struct pinl_lease *l;
	uint64_t next, cut;
	bool looked;

	pinl_set_error(0, "%s", ""); /* its thread-local memory may be allocated at first use */
	pl_exempt_enter(ctx);
	pthread_mutex_lock(&ctx->lock);
	while (!ctx->stopping) {
		next = expire(ctx);
		cut = pl_cut_overdue(ctx, &answered);
		if (answered) {
			answer_unlocked(ctx, &answered);
			continue;
		}
		if (ctx->jobs && !ctx->jobs->more->seen)
			look_ahead(ctx);
		looked = pl_draining_look(ctx);
		l = job_pop(ctx);
		if (l && !l->busy && !pl_draining_add(l))
			do_jobs(ctx, l);
		else if (!l && !looked) /* else the lock was dropped, and there may be more to do */
			sleep_until(ctx, earliest(cut, next, pl_draining_next(ctx)));
	}
	pl_settle(ctx, &answered);
	pthread_mutex_unlock(&ctx->lock);
	pl_answer_all(ctx, answered);
	return NULL;
}
