/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Changes: from a source's report to its answer.
 *
 * A change is decided once, for all leases it overlaps: if one refuses, nothing else happens; else each
 * lease gets its own action and the change is held while any of them is not done and the source can
 * hold. Invariant: a change on ctx->held overlaps a lease that is NOTICED, FORCING or has a job, so
 * somebody will settle it; pl_settle() runs after everything that could end that.
 */
#include <errno.h>
#include <string.h>

#include "core/cached.h"
#include "core/change.h"
#include "core/export.h"
#include "core/extent.h"
#include "core/order.h"

/* Walk the leases a change may touch, in the order of their addresses or of their file offsets. */
struct pinl_lease *pl_lease_first(struct pinl_ctx *ctx, const struct pinl_change *ch)
{
	if (ch->on_file) {
		struct pl_inode *i = pl_inode_find(ctx, ch->file_dev, ch->file_ino);

		return i ? pl_lease_of_file_node(
				   pl_index_first(&i->leases, ch->file_start, ch->file_end))
			 : NULL;
	}
	return (struct pinl_lease *)pl_index_first(&ctx->index, ch->start, ch->end);
}

struct pinl_lease *pl_lease_next(struct pinl_lease *l, const struct pinl_change *ch)
{
	if (ch->on_file)
		return pl_lease_of_file_node(
			pl_index_next(&l->more->file_node, ch->file_start, ch->file_end));
	return (struct pinl_lease *)pl_index_next(&l->node, ch->start, ch->end);
}

#define for_each_lease(l, ctx, ch) for (l = pl_lease_first(ctx, ch); l; l = pl_lease_next(l, ch))

static struct pinl_lease *refuser(struct pinl_ctx *ctx, const struct pinl_change *ch,
				  struct pl_range *va)
{
	struct pinl_lease *l;
	enum pl_effect effect;

	for_each_lease(l, ctx, ch) if (l->state != PINL_RELEASED && pl_lease_overlap(l, ch, va) &&
				       pl_recall_ask(l, ch, &effect).action == PL_REFUSE &&
				       !pl_cached_unused(l)) return l;
	return NULL;
}

static void say_refused(struct pinl_lease *l, struct pinl_change *ch, const struct pl_range *va)
{
	struct pinl_ctx *ctx = l->ctx;
	struct pl_recall r;
	struct pinl_event ev;

	pl_recall_make(l, ch, va, PL_NO_EFFECT, &r);
	pl_event_lease(l, PINL_EV_REFUSED, &r, &ev);
	ev.deadline_ns = 0;
	ev.err = -EBUSY;
	pl_event_push(ctx, &ev);
	pl_recall_tell(l, &r, PL_TELL_REFUSED);
	ctx->counters.refused++;
}

static bool refused(struct pinl_ctx *ctx, struct pinl_change *ch)
{
	struct pl_range va;
	struct pinl_lease *l = refuser(ctx, ch, &va);

	if (l)
		say_refused(l, ch, &va);
	return l;
}

static bool blocks(const struct pinl_lease *l, const struct pinl_change *ch)
{
	struct pl_range va;

	return l->state != PINL_RELEASED && pl_recall_pending(l) && pl_lease_overlap(l, ch, &va);
}

/*
 * Is there a lease that the change has to wait for? One is remembered, and from it the search goes on:
 * while that one is pending there is nothing to search, and all the searches while the leases under a
 * change end one after the other take no longer than two walks.
 */
static bool blocked(struct pinl_ctx *ctx, struct pinl_change *ch)
{
	struct pinl_lease *from = ch->waits_for, *l;

	for (l = from; l && !blocks(l, ch);)
		l = pl_lease_next(l, ch);
	if (!l)
		for (l = pl_lease_first(ctx, ch); l && (l == from || !blocks(l, ch));)
			l = l == from ? NULL : pl_lease_next(l, ch);
	ch->waits_for = l;
	return l;
}

/* Nothing may remember a lease that leaves the index. */
void pl_change_leave(struct pinl_lease *l)
{
	for (struct pinl_change *ch = l->ctx->held; ch; ch = ch->next)
		if (ch->waits_for == l)
			ch->waits_for = pl_lease_next(l, ch);
}

/* About the change, not about one of its leases. */
static struct pinl_event change_event(const struct pinl_change *ch, enum pinl_event_type type)
{
	struct pinl_event ev = {
		.size = sizeof ev,
		.type = type,
		.op = ch->op,
		.change_id = ch->id,
		.actor_pid = ch->actor_pid,
		.actor_tid = ch->actor_tid,
		.start = ch->start,
		.end = ch->end,
		.file_dev = ch->file_dev,
		.file_ino = ch->file_ino,
		.file_start = ch->file_start,
		.file_end = ch->file_end,
	};

	strncpy(ev.source, ch->source, sizeof ev.source - 1);
	if (ch->on_file && ch->file_dev == PL_EXPORT_DEV)
		ev.file_dev = ev.file_ino = ev.file_start = ev.file_end = 0;
	return ev;
}

/*
 * A lease whose holder had it before these changes began: it is recalled as if they had known of it. It
 * can't refuse any more.
 */
void pl_change_join(struct pinl_lease *l)
{
	struct pl_range va;

	for (struct pinl_change *ch = l->ctx->held; ch; ch = ch->next) {
		unsigned can = ch->can, recalled = ch->recalled;

		if (!pl_lease_overlap(l, ch, &va))
			continue;
		ch->can &= ~PINL_CAN_REFUSE;
		pl_recall_apply(l, ch, &va);
		ch->can = can;
		if (can & PL_IS_SAID)
			ch->recalled = recalled; /* its actor was refused, and waits for nobody */
	}
	pl_gate_join(l);
}

/* Who was only told of hasn't waited. */
static void answered_event(struct pinl_ctx *ctx, const struct pinl_change *ch, uint64_t when)
{
	struct pinl_event ev = change_event(ch, PINL_EV_ANSWERED);

	if ((ch->can & PINL_CAN_HOLD) && when > ch->since_ns)
		ev.waited_ns = when - ch->since_ns;
	pl_event_push(ctx, &ev);
	ctx->counters.answered++;
}

/* The change may go on: gate its range and hand it to the caller to answer without the lock. */
static void let_go(struct pinl_ctx *ctx, struct pinl_change *ch, struct pinl_change **answered)
{
	struct pinl_lease *l;

	if (!ch->on_file)
		for_each_lease(l, ctx, ch) for (int i = 0; i < l->more->n_detached; i++)
			pl_recall_detached(l, ch, &l->more->detached[i]);
	if (ch->recalled && !pl_is_order(ch)) /* by an order nothing changes */
		answered_event(ctx, ch, ch->over_ns ? ch->over_ns : pl_clock_ns());
	pl_gate_add(ctx, ch);
	ch->next = *answered;
	*answered = ch;
}

/* ctx->lock held */
static struct pinl_change *held_that(struct pinl_ctx *ctx,
				     bool (*is)(const struct pinl_change *change, void *arg), void *arg)
{
	struct pinl_change *ch = ctx->held;

	while (ch && (!ch->recalled || !is(ch, arg)))
		ch = ch->next;
	return ch;
}

bool pl_change_gone(struct pinl_ctx *ctx, bool (*is)(const struct pinl_change *change, void *arg),
		    void *arg, const uint64_t *when_ns)
{
	struct pinl_change *ch;

	pthread_mutex_lock(&ctx->lock);
	ch = held_that(ctx, is, arg);
	if (ch) {
		answered_event(ctx, ch, *when_ns);
		ch->recalled = 0; /* so that no other end of it is told */
	}
	pthread_mutex_unlock(&ctx->lock);
	return ch;
}

bool pl_change_held(struct pinl_ctx *ctx, bool (*is)(const struct pinl_change *change, void *arg),
		    void *arg)
{
	bool held;

	pthread_mutex_lock(&ctx->lock);
	held = held_that(ctx, is, arg);
	pthread_mutex_unlock(&ctx->lock);
	return held;
}

uint64_t pl_change_number(struct pinl_ctx *ctx)
{
	uint64_t id;

	pthread_mutex_lock(&ctx->lock);
	id = ++ctx->next_id;
	pthread_mutex_unlock(&ctx->lock);
	return id;
}

void pl_change_over(struct pinl_ctx *ctx, bool (*is)(const struct pinl_change *change, void *arg),
		    void *arg, uint64_t when_ns)
{
	pthread_mutex_lock(&ctx->lock);
	for (struct pinl_change *ch = ctx->held; ch; ch = ch->next)
		if (ch->recalled && !ch->over_ns && is(ch, arg))
			ch->over_ns = when_ns;
	pthread_mutex_unlock(&ctx->lock);
}

void pl_settle(struct pinl_ctx *ctx, struct pinl_change **answered)
{
	for (struct pinl_change **p = &ctx->held; *p;) {
		struct pinl_change *ch = *p;

		if (!ctx->stopping && blocked(ctx, ch)) {
			p = &ch->next;
			continue;
		}
		*p = ch->next;
		let_go(ctx, ch, answered);
	}
}

/*
 * A thread that makes or ends a lease may wait for the allocator's lock, and the actor may have that:
 * then each waits for the other. So a change for which nothing is left to wait for but such threads goes
 * on when a drain should be over twice. UINT64_MAX: it waits for something else too.
 */
static uint64_t inside_limit(struct pinl_ctx *ctx, const struct pinl_change *ch)
{
	uint64_t latest = 0;
	struct pinl_lease *l = ch->waits_for;
	struct pl_range va;

	if (l && pl_recall_pending(l) && !l->inside_ns) /* the usual case, not worth a walk */
		return UINT64_MAX;
	for_each_lease(l, ctx, ch)
	{
		if (l->state == PINL_RELEASED || !pl_recall_pending(l) || !pl_lease_overlap(l, ch, &va))
			continue;
		if (!l->inside_ns || l->state == PINL_NOTICED)
			return UINT64_MAX;
		latest = l->inside_ns > latest ? l->inside_ns : latest;
	}
	return latest + 2ull * ctx->opts.drain_ms * 1000000;
}

/* What a holder elsewhere still has then is an orphan, of which he is told. */
static void cut_foreign(struct pinl_ctx *ctx, struct pinl_change *ch)
{
	struct pl_range va;
	struct pinl_lease *l;
	struct pl_recall r;

	for_each_lease(l, ctx, ch)
	{
		if (!l->dev->foreign || !blocks(l, ch) || !pl_lease_overlap(l, ch, &va))
			continue;
		pl_recall_make(l, ch, &va, PL_NO_EFFECT, &r);
		pl_recall_tell(l, &r, PL_TELL_GONE);
		if (l->flags & PINL_PIN)
			pl_lost_add(l, &r);
		if (l->state == PINL_NOTICED && l->more->stuck) /* that was put off for who waited */
			pl_recall_rearm(l, pl_clock_ns());
		pl_recall_over(l);
	}
}

void pl_foreign_let_go(struct pinl_ctx *ctx)
{
	pthread_mutex_lock(&ctx->lock);
	for (struct pinl_change *ch = ctx->held; ch; ch = ch->next)
		if (!pl_is_order(ch) && ch->recalled) {
			cut_foreign(ctx, ch);
			pinl_change_cut(ctx, ch);
			answered_event(ctx, ch, pl_clock_ns());
			ch->recalled = 0; /* that was its end */
		}
	pthread_mutex_unlock(&ctx->lock);
}

/* Who was refused may make it from now on. By an order no page goes. */
static void cut(struct pinl_ctx *ctx, struct pinl_change *ch)
{
	if (pl_is_order(ch))
		return;
	if (ch->recalled || ch->can & PL_IS_SAID)
		cut_foreign(ctx, ch);
	if (ch->recalled)
		pinl_change_cut(ctx, ch);
}

/* I2 is bounded even where a backend hangs: the ceiling and one grace, then the actor goes on. */
uint64_t pl_cut_overdue(struct pinl_ctx *ctx, struct pinl_change **answered)
{
	uint64_t now = pl_clock_ns(), next = UINT64_MAX;

	for (struct pinl_change **p = &ctx->held; *p;) {
		struct pinl_change *ch = *p;
		uint64_t limit = ch->ceiling_ns + ctx->opts.ceiling_ms * 1000000ull,
			 inside = inside_limit(ctx, ch);

		limit = inside < limit ? inside : limit;
		if (limit > now) {
			next = limit < next ? limit : next;
			p = &ch->next;
			continue;
		}
		*p = ch->next;
		cut(ctx, ch);
		let_go(ctx, ch, answered);
	}
	return next;
}

void pl_answer_all(struct pinl_ctx *ctx, struct pinl_change *answered)
{
	while (answered) {
		struct pinl_change *ch = answered;

		answered = ch->next;
		ch->answer(ch, 0);
	}
}

void pl_change_submit_since(struct pinl_ctx *ctx, struct pinl_change *ch, uint64_t since_ns)
{
	struct pinl_lease *l;
	struct pinl_change *answered = NULL;
	struct pl_range va;
	uint64_t now = pl_clock_ns();
	bool no, hold;

	pthread_mutex_lock(&ctx->lock);
	if (!(ch->can & PL_HAS_NUMBER))
		ch->id = ++ctx->next_id;
	ch->since_ns = since_ns < now ? since_ns : now;
	ch->ceiling_ns = now + ctx->opts.ceiling_ms * 1000000ull;
	ch->recalled = !!(ch->can & PL_HAS_WAITED); /* they may be off by now; that it goes on is said */
	ch->waits_for = NULL;
	if (ch->on_file && (ch->can & PINL_CAN_BEFORE) && !pl_is_order(ch))
		ch->can |= PINL_WILL_SAY_DONE;
	pl_extents_changed(ctx, ch);
	no = refused(ctx, ch);
	if (!no) {
		for_each_lease(l, ctx, ch) if (pl_lease_overlap(l, ch, &va)) pl_recall_apply(l, ch, &va);
		hold = (ch->can & PINL_CAN_HOLD) && ch->recalled && !ctx->stopping && blocked(ctx, ch);
		if (ch->can & PL_IS_SAID)
			ch->recalled = 0;
		if (hold) {
			ch->next = ctx->held;
			ctx->held = ch;
			pthread_cond_signal(&ctx->work);
		} else {
			let_go(ctx, ch, &answered);
		}
	}
	pthread_mutex_unlock(&ctx->lock);
	if (no)
		ch->answer(ch, -EBUSY);
	else
		pl_answer_all(ctx, answered);
}

void pinl_change_submit(struct pinl_ctx *ctx, struct pinl_change *ch)
{
	pl_change_submit_since(ctx, ch, UINT64_MAX);
}

void pinl_change_cut(struct pinl_ctx *ctx, const struct pinl_change *ch)
{
	struct pinl_event ev = change_event(ch, PINL_EV_DEGRADED);

	ev.err = -EINTR;
	pl_event_push(ctx, &ev);
}

uint64_t pinl_newest(struct pinl_ctx *ctx)
{
	uint64_t id;

	pthread_mutex_lock(&ctx->lock);
	id = ctx->next_id;
	pthread_mutex_unlock(&ctx->lock);
	return id;
}

void pl_change_was_refused(struct pinl_ctx *ctx, struct pinl_change *ch)
{
	pthread_mutex_lock(&ctx->lock);
	ch->id = ++ctx->next_id;
	refused(ctx, ch);
	pthread_mutex_unlock(&ctx->lock);
}

void pl_change_could_not_wait(struct pinl_ctx *ctx, struct pinl_change *ch)
{
	enum pl_effect effect;
	struct pinl_lease *l;
	struct pl_range va;

	pthread_mutex_lock(&ctx->lock);
	ch->id = ++ctx->next_id;
	for_each_lease(l, ctx, ch) if (l->state != PINL_RELEASED && pl_lease_overlap(l, ch, &va) &&
				       pl_recall_ask(l, ch, &effect).action == PL_RECALL)
	{
		say_refused(l, ch, &va);
		break;
	}
	pthread_mutex_unlock(&ctx->lock);
	ch->can |= PL_IS_SAID | PL_HAS_NUMBER;
	pl_change_submit_since(ctx, ch, UINT64_MAX);
}

/* So that of several changes of one call none recalls before another is refused. Of now, no promise. */
bool pl_would_refuse(struct pinl_ctx *ctx, const struct pinl_change *ch)
{
	struct pl_range va;
	bool no;

	pthread_mutex_lock(&ctx->lock);
	no = refuser(ctx, ch, &va);
	pthread_mutex_unlock(&ctx->lock);
	return no;
}
