/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a change does to one lease: asked of its policy, noticed with a deadline, remembered for the
 * worker. All under ctx->lock; what the worker makes of it is in worker.c and take.c.
 */
#include <errno.h>

#include "core/cached.h"
#include "core/change.h"
#include "core/foreign.h"
#include "core/order.h"

struct pl_verdict pl_recall_ask(const struct pinl_lease *l, const struct pinl_change *ch,
				enum pl_effect *effect)
{
	struct pl_question q = {
		.op = ch->op,
		.also = ch->also,
		.can = ch->can,
		.effect = pl_op_effect(ch->op, l->on->mem.kind, l->on->mem.shared, l->flags & PINL_PIN),
		.policy = l->policy.kind,
		.refuse = l->policy.refuse,
		.pinned = l->flags & PINL_PIN,
	};

	if (pl_is_order(ch)) {
		*effect = PL_NO_EFFECT;
		return pl_order_ask(l);
	}
	for (int op = 0; op < PINL_OP_NR && q.effect == PL_NO_EFFECT; op++)
		if (ch->also & PINL_OPBIT(op))
			q.effect = pl_op_effect(op, l->on->mem.kind, l->on->mem.shared, q.pinned);
	*effect = q.effect;
	return pl_policy_decide(&q);
}

bool pl_recall_pending(const struct pinl_lease *l)
{
	return l->jobs || l->queued || l->busy || l->state == PINL_NOTICED || l->state == PINL_FORCING;
}

static uint64_t grace_of(struct pinl_lease *l, uint64_t now)
{
	return l->dev->foreign ? l->dev->foreign->grace(l, now) : l->policy.grace_ms * 1000000ull;
}

/* Nobody waits for it any more, or for what it was recalled for till now. */
void pl_recall_over(struct pinl_lease *l)
{
	if (!l->more->recall.since_ns)
		return;
	if (l->dev->foreign)
		l->dev->foreign->held(l, l->more->recall.since_ns);
	pl_more(l)->recall.since_ns = 0;
}

void pl_recall_make(struct pinl_lease *l, const struct pinl_change *ch, const struct pl_range *va,
		    enum pl_effect effect, struct pl_recall *r)
{
	uint64_t now = pl_clock_ns(), deadline;

	if (!pl_order_has_deadline(ch, &deadline))
		deadline = now + grace_of(l, now);
	*r = (struct pl_recall){
		.va = *va,
		.op = ch->op,
		.also = ch->also,
		.effect = effect,
		.late = !(ch->can & PINL_CAN_BEFORE),
		.held = ch->can & PINL_CAN_HOLD,
		.deadline_ns = deadline < ch->ceiling_ns ? deadline : ch->ceiling_ns,
		.since_ns = ch->since_ns,
		.change_id = ch->id,
		.last_id = ch->id,
		.ceiling_ns = ch->ceiling_ns,
		.outside_ns = ch->outside_ns,
		.actor_pid = ch->actor_pid,
		.actor_tid = ch->actor_tid,
		.source = ch->source,
	};
	r->force_ns = pl_order_force_ns(ch, now, r->deadline_ns);
	if (ch->force_by_ns && ch->force_by_ns < r->deadline_ns)
		r->deadline_ns = ch->force_by_ns;
	if (l->more->stuck && !pl_is_order(ch)) /* to be forced again only when nobody waits any more */
		r->deadline_ns = ch->ceiling_ns + 2 * l->ctx->opts.ceiling_ms * 1000000ull;
	if (effect == PL_GONE && r->late)
		r->gone = *va;
}

static void merge_recall(struct pl_recall *r, const struct pl_recall *more)
{
	pl_range_widen(&r->va, &more->va);
	r->late |= more->late;
	if (!r->since_ns)
		r->since_ns = more->since_ns;
	pl_range_widen(&r->gone, &more->gone);
	if (more->effect == PL_GONE)
		r->effect = PL_GONE;
	if (more->deadline_ns < r->deadline_ns)
		r->deadline_ns = more->deadline_ns;
	if (more->ceiling_ns < r->ceiling_ns)
		r->ceiling_ns = more->ceiling_ns;
	if (more->last_id > r->last_id)
		r->last_id = more->last_id;
}

/* Put it among the deadlines. */
static void arm(struct pinl_lease *l)
{
	struct pl_more *more = pl_more(l);
	struct pl_index *noticed = &l->ctx->noticed;

	more->notice_node.start = more->recall.deadline_ns;
	more->notice_node.end = more->recall.deadline_ns + 1;
	pl_index_insert(noticed, &more->notice_node);
	if (pl_index_first(noticed, 0, UINTPTR_MAX) == &more->notice_node)
		pthread_cond_signal(&l->ctx->work);
}

static void disarm(struct pinl_lease *l)
{
	pl_index_remove(&l->ctx->noticed, &pl_more(l)->notice_node);
}

void pl_recall_put_off(struct pinl_lease *l, uint64_t until_ns)
{
	struct pl_more *more = pl_more(l);

	disarm(l);
	more->notice_node.start = until_ns;
	more->notice_node.end = until_ns + 1;
	pl_index_insert(&l->ctx->noticed, &more->notice_node);
}

void pl_recall_rearm(struct pinl_lease *l, uint64_t deadline_ns)
{
	disarm(l);
	pl_more(l)->recall.deadline_ns = deadline_ns;
	arm(l);
}

/* A holder elsewhere is told of each change: it answers each. */
void pl_recall_tell(struct pinl_lease *l, const struct pl_recall *r, enum pl_tell what)
{
	if (l->dev->foreign)
		l->dev->foreign->tell(l, r, what);
}

static void notice(struct pinl_lease *l)
{
	struct pinl_event ev;

	arm(l);
	pl_recall_tell(l, &l->more->recall, PL_TELL_RECALL);
	l->ctx->counters.notices += !l->more->recall.again;
	pl_event_lease(l, PINL_EV_NOTICE, &l->more->recall, &ev);
	ev.deadline_ns = pl_foreign_deadline(l);
	pl_event_push(l->ctx, &ev);
}

/* Every input to the state machine goes through here. */
void pl_lease_input(struct pinl_lease *l, enum pl_input input)
{
	struct pl_transition t = pl_revoke(l->state, input);

	if (l->state == PINL_NOTICED && t.next != PINL_NOTICED)
		disarm(l);
	l->state = t.next;
	if (t.next != PINL_ACTIVE)
		atomic_store(&l->changed, true);
	if (t.step == PL_STEP_NOTIFY)
		notice(l);
	else if (t.step == PL_STEP_TAKE && input != PL_IN_UNMAP)
		pl_job_add(l, PL_JOB_TAKE);
}

static void recall(struct pinl_lease *l, const struct pl_recall *r)
{
	struct pl_more *more = pl_more(l);

	if (l->state == PINL_FORCING) {
		/* Held changes are looked at again; those that can't wait are kept for after the force.
		 */
		bool keep = r->late || !r->held;

		if (keep && !more->has_next)
			more->next = *r;
		else if (keep)
			merge_recall(&more->next, r);
		more->has_next |= keep;
		return;
	}
	if (l->state == PINL_ACTIVE) {
		more->recall = *r;
	} else {
		disarm(l);
		merge_recall(&more->recall, r);
		arm(l);
		pl_recall_tell(l, r, PL_TELL_RECALL);
	}
	pl_lease_input(l, PL_IN_CHANGE);
	pthread_cond_signal(&l->ctx->work); /* the deadline may be an earlier one now */
}

/* What the device writes after its holder has been told is to count, so the baseline comes first. */
static void late_recall(struct pinl_lease *l, const struct pl_recall *r)
{
	struct pl_more *more = pl_more(l);

	if (more->has_late)
		merge_recall(&more->late, r);
	else
		more->late = *r;
	more->has_late = true;
	pl_lost_add(l, r);
}

void pl_recall_late(struct pinl_lease *l)
{
	struct pl_recall r = l->more->late;

	if (!l->more->has_late)
		return;
	pl_more(l)->has_late = false;
	pl_lease_cut_detached(l, &r.va);
	if (l->state != PINL_RELEASED && r.va.start < r.va.end)
		recall(l, &r);
}

static void degraded(struct pinl_lease *l, const struct pl_recall *r, int err)
{
	struct pinl_event ev;

	pl_event_lease(l, PINL_EV_DEGRADED, r, &ev);
	ev.err = err;
	pl_event_push(l->ctx, &ev);
}

/* What a foreign lease follows, its holder invalidates, and says when. */
static bool is_recalled(const struct pinl_lease *l, enum pl_action action)
{
	return action == PL_RECALL || (action == PL_FOLLOW && l->dev->foreign);
}

void pl_recall_apply(struct pinl_lease *l, struct pinl_change *ch, const struct pl_range *va)
{
	enum pl_effect effect;
	struct pl_verdict v = pl_recall_ask(l, ch, &effect);
	struct pl_recall r;

	if (v.action == PL_ALLOW || l->state == PINL_RELEASED)
		return;
	/* who would have refused was found to be nobody's, and who looks it up now will see that it's
	 * gone */
	if (l->cached && (pl_cached_changed(l) || v.action == PL_REFUSE))
		return;
	if ((ch->can & PL_IS_COUNTED) && !((PINL_OPBIT(ch->op) | ch->also) & l->on->counted))
		return;
	if (atomic_load(&l->more->taken_outside) &&
	    !(ch->can & PINL_CAN_BEFORE)) { /* it was when that happened */
		atomic_store(&l->changed, true);
		return;
	}
	pl_recall_make(l, ch, va, effect, &r);
	ch->recalled = 1;
	if (v.degraded)
		degraded(l, &r, l->policy.kind == PINL_REFUSE ? -EBUSY : -EALREADY);
	if (v.action == PL_FOLLOW && !l->dev->foreign) {
		pl_range_widen(&pl_more(l)->follow, va);
		pl_job_add(l, PL_JOB_FOLLOW);
	} else if (v.action == PL_ORPHAN) {
		pl_recall_tell(l, &r, PL_TELL_LOST);
		pl_lost_add(l, &r);
	} else if (is_recalled(l, v.action)) {
		if (v.late)
			late_recall(l, &r);
		else
			recall(l, &r);
	}
}

/* After a force in part, held changes may reach pages of the same lease that live on. What was told of
 * late has been kept by recall() or late_recall(). */
void pl_recall_rest(struct pinl_lease *l)
{
	uint64_t told = l->more->stuck ? l->more->recall.last_id : 0;
	struct pl_range va;
	enum pl_effect effect;
	struct pl_recall r;

	for (struct pinl_change *ch = l->ctx->held; ch; ch = ch->next) {
		if (l->state == PINL_RELEASED || l->ctx->stopping || ch->id <= l->more->followed ||
		    !(ch->can & PINL_CAN_BEFORE) || (l->more->stuck && pl_is_order(ch)) ||
		    !pl_lease_overlap(l, ch, &va))
			continue;
		if (!is_recalled(l, pl_recall_ask(l, ch, &effect).action))
			continue;
		pl_recall_make(l, ch, &va, effect, &r);
		r.again = ch->id <= told;
		recall(l, &r);
	}
}

/*
 * What has been replaced by SCRATCH or COPY is the program's own, and no change of it is recalled. But
 * where it goes, the device must not be given that address again; and where a COPY is discarded, CPU and
 * device part: that is an orphan.
 */
void pl_recall_detached(struct pinl_lease *l, const struct pinl_change *ch, const struct pl_range *part)
{
	struct pl_range va = {ch->start > part->start ? ch->start : part->start,
			      ch->end < part->end ? ch->end : part->end};
	enum pl_effect effect;
	struct pl_recall r;

	if (va.start >= va.end || l->id <= ch->newer_than)
		return;
	pl_recall_ask(l, ch, &effect);
	pl_more(l)->va_lost |= effect == PL_GONE;
	if (effect != PL_DISCARD || l->outcome != PINL_OUT_COPY ||
	    l->more->va_lost) /* the device alone has it */
		return;
	pl_recall_make(l, ch, &va, effect, &r);
	if (l->jobs & PL_JOB_PARTED)
		pl_range_widen(&pl_more(l)->parted.va, &va);
	else
		pl_more(l)->parted = r;
	pl_job_add(l, PL_JOB_PARTED);
}
