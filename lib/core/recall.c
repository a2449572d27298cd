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
#include <unistd.h>

#include "core/ctx.h"

/* Walk the leases a change may touch, in the order of their addresses or of their file offsets. */
static struct pinl_lease *first_lease(struct pinl_ctx *ctx, const struct pinl_change *ch)
{
	if (ch->on_file) {
		struct pl_inode *i = pl_inode_find(ctx, ch->file_dev, ch->file_ino);

		return i ? pl_lease_of_file_node(
				   pl_index_first(&i->leases, ch->file_start, ch->file_end))
			 : NULL;
	}
	return (struct pinl_lease *)pl_index_first(&ctx->index, ch->start, ch->end);
}

static struct pinl_lease *next_lease(struct pinl_lease *l, const struct pinl_change *ch)
{
	if (ch->on_file)
		return pl_lease_of_file_node(pl_index_next(&l->file_node, ch->file_start, ch->file_end));
	return (struct pinl_lease *)pl_index_next(&l->node, ch->start, ch->end);
}

#define for_each_lease(l, ctx, ch) for (l = first_lease(ctx, ch); l; l = next_lease(l, ch))

static struct pl_verdict ask(const struct pinl_lease *l, const struct pinl_change *ch,
			     enum pl_effect *effect)
{
	struct pl_question q = {
		.op = ch->op,
		.also = ch->also,
		.can = ch->can,
		.effect = pl_op_effect(ch->op, l->mem.kind, l->mem.shared, l->flags & PINL_PIN),
		.policy = l->policy.kind,
		.refuse = l->policy.refuse,
		.device_class = l->dev->info.device_class,
		.pinned = l->flags & PINL_PIN,
	};

	for (int op = 0; op < PINL_OP_NR && q.effect == PL_NO_EFFECT; op++)
		if (ch->also & PINL_OPBIT(op))
			q.effect = pl_op_effect(op, l->mem.kind, l->mem.shared, q.pinned);
	*effect = q.effect;
	return pl_policy_decide(&q);
}

static bool lease_pending(const struct pinl_lease *l)
{
	return l->jobs || l->queued || l->busy || l->state == PINL_NOTICED || l->state == PINL_FORCING;
}

static void widen(struct pl_range *r, const struct pl_range *more)
{
	if (r->start == r->end) {
		*r = *more;
		return;
	}
	if (more->start < r->start)
		r->start = more->start;
	if (more->end > r->end)
		r->end = more->end;
}

static void make_recall(const struct pinl_lease *l, const struct pinl_change *ch,
			const struct pl_range *va, enum pl_effect effect, struct pl_recall *r)
{
	uint64_t deadline = pl_clock_ns() + l->policy.grace_ms * 1000000ull;

	*r = (struct pl_recall){
		.va = *va,
		.op = ch->op,
		.effect = effect,
		.late = !(ch->can & PINL_CAN_BEFORE),
		.held = ch->can & PINL_CAN_HOLD,
		.deadline_ns = deadline < ch->ceiling_ns ? deadline : ch->ceiling_ns,
		.change_id = ch->id,
		.actor_pid = ch->actor_pid,
		.actor_tid = ch->actor_tid,
		.source = ch->source,
	};
	if (effect == PL_GONE && r->late)
		r->gone = *va;
}

static void merge_recall(struct pl_recall *r, const struct pl_recall *more)
{
	widen(&r->va, &more->va);
	r->late |= more->late;
	r->held &= more->held;
	if (more->gone.start < more->gone.end)
		widen(&r->gone, &more->gone);
	if (more->effect == PL_GONE)
		r->effect = PL_GONE;
	if (more->deadline_ns < r->deadline_ns)
		r->deadline_ns = more->deadline_ns;
}

/* Put it among the deadlines. */
static void arm(struct pinl_lease *l)
{
	struct pl_index *noticed = &l->ctx->noticed;

	l->notice_node.start = l->recall.deadline_ns;
	l->notice_node.end = l->recall.deadline_ns + 1;
	pl_index_insert(noticed, &l->notice_node);
	if (pl_index_first(noticed, 0, UINTPTR_MAX) == &l->notice_node)
		pthread_cond_signal(&l->ctx->work);
}

static void disarm(struct pinl_lease *l)
{
	pl_index_remove(&l->ctx->noticed, &l->notice_node);
}

static void notice(struct pinl_lease *l)
{
	struct pinl_event ev;

	arm(l);
	l->ctx->counters.notices++;
	pl_event_lease(l, PINL_EV_NOTICE, &l->recall, &ev);
	pl_event_push(l->ctx, &ev);
}

/* Every input to the state machine goes through here. */
void pl_lease_input(struct pinl_lease *l, enum pl_input input)
{
	struct pl_transition t = pl_revoke(l->state, input);

	if (l->state == PINL_NOTICED && t.next != PINL_NOTICED)
		disarm(l);
	l->state = t.next;
	if (t.step == PL_STEP_NOTIFY)
		notice(l);
	else if (t.step == PL_STEP_TAKE && input != PL_IN_UNMAP)
		pl_job_add(l, PL_JOB_TAKE);
}

static void recall(struct pinl_lease *l, const struct pl_recall *r)
{
	if (l->state == PINL_FORCING) {
		/* Held changes are looked at again; those that can't wait are kept for after the force.
		 */
		bool keep = r->late || !r->held;

		if (keep && !l->has_next)
			l->next = *r;
		else if (keep)
			merge_recall(&l->next, r);
		l->has_next |= keep;
		return;
	}
	if (l->state == PINL_ACTIVE) {
		l->recall = *r;
	} else {
		disarm(l);
		merge_recall(&l->recall, r);
		arm(l);
	}
	pl_lease_input(l, PL_IN_CHANGE);
	pthread_cond_signal(&l->ctx->work); /* the deadline may be an earlier one now */
}

/* Apart, where they don't touch: what lies between is no orphan. */
static void orphaned(struct pinl_lease *l, const struct pl_recall *r)
{
	int i = 0;

	if (!(l->jobs & PL_JOB_ORPHAN)) {
		l->lost = *r;
		l->n_lost = 0;
	}
	while (i < l->n_lost && i < PL_MAX_LOST - 1 &&
	       (r->va.start > l->lost_va[i].end || r->va.end < l->lost_va[i].start))
		i++;
	if (i == l->n_lost)
		l->lost_va[l->n_lost++] = r->va;
	else
		widen(&l->lost_va[i], &r->va);
	pl_job_add(l, PL_JOB_ORPHAN);
}

/* What the device writes after its holder has been told is to count, so the baseline comes first. */
static void late_recall(struct pinl_lease *l, const struct pl_recall *r)
{
	if (l->has_late)
		merge_recall(&l->late, r);
	else
		l->late = *r;
	l->has_late = true;
	orphaned(l, r);
}

void pl_recall_late(struct pinl_lease *l)
{
	struct pl_recall r = l->late;

	if (!l->has_late)
		return;
	l->has_late = false;
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

static void apply(struct pinl_lease *l, struct pinl_change *ch, const struct pl_range *va)
{
	enum pl_effect effect;
	struct pl_verdict v = ask(l, ch, &effect);
	struct pl_recall r;

	if (v.action == PL_ALLOW || l->state == PINL_RELEASED)
		return;
	make_recall(l, ch, va, effect, &r);
	ch->recalled = 1;
	if (v.degraded)
		degraded(l, &r, l->policy.kind == PINL_REFUSE ? -EBUSY : -EALREADY);
	if (v.action == PL_FOLLOW) {
		widen(&l->follow, va);
		pl_job_add(l, PL_JOB_FOLLOW);
	} else if (v.action == PL_ORPHAN) {
		orphaned(l, &r);
	} else if (v.action == PL_RECALL) {
		if (v.late)
			late_recall(l, &r);
		else
			recall(l, &r);
	}
}

static struct pinl_lease *refuser(struct pinl_ctx *ctx, const struct pinl_change *ch,
				  struct pl_range *va)
{
	struct pinl_lease *l;
	enum pl_effect effect;

	for_each_lease(l, ctx, ch) if (l->state != PINL_RELEASED && pl_lease_overlap(l, ch, va) &&
				       ask(l, ch, &effect).action == PL_REFUSE) return l;
	return NULL;
}

static bool refused(struct pinl_ctx *ctx, struct pinl_change *ch)
{
	struct pinl_event ev;
	struct pl_range va;
	struct pinl_lease *l = refuser(ctx, ch, &va);

	if (!l)
		return false;
	pl_event_lease(l, PINL_EV_REFUSED, NULL, &ev);
	ev.op = ch->op;
	ev.start = va.start;
	ev.end = va.end;
	ev.change_id = ch->id;
	ev.actor_pid = ch->actor_pid;
	ev.actor_tid = ch->actor_tid;
	ev.err = -EBUSY;
	strncpy(ev.source, ch->source, sizeof ev.source - 1);
	pl_event_push(ctx, &ev);
	ctx->counters.refused++;
	return true;
}

static bool blocks(const struct pinl_lease *l, const struct pinl_change *ch)
{
	struct pl_range va;

	return l->state != PINL_RELEASED && lease_pending(l) && pl_lease_overlap(l, ch, &va);
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
		l = next_lease(l, ch);
	if (!l)
		for (l = first_lease(ctx, ch); l && (l == from || !blocks(l, ch));)
			l = l == from ? NULL : next_lease(l, ch);
	ch->waits_for = l;
	return l;
}

/* Nothing may remember a lease that leaves the index. */
void pl_change_leave(struct pinl_lease *l)
{
	for (struct pinl_change *ch = l->ctx->held; ch; ch = ch->next)
		if (ch->waits_for == l)
			ch->waits_for = next_lease(l, ch);
}

static void change_degraded(struct pinl_ctx *ctx, const struct pinl_change *ch, int err)
{
	struct pinl_event ev = {
		.size = sizeof ev,
		.type = PINL_EV_DEGRADED,
		.op = ch->op,
		.err = err,
		.change_id = ch->id,
		.actor_pid = ch->actor_pid,
		.actor_tid = ch->actor_tid,
		.start = ch->start,
		.end = ch->end,
	};

	strncpy(ev.source, ch->source, sizeof ev.source - 1);
	pl_event_push(ctx, &ev);
}

/* Without room for its range no lease at all is made until it is done. */
static void gate_add(struct pinl_ctx *ctx, const struct pinl_change *ch)
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

static void answered_event(struct pinl_ctx *ctx, const struct pinl_change *ch)
{
	struct pinl_event ev = {
		.size = sizeof ev,
		.type = PINL_EV_ANSWERED,
		.op = ch->op,
		.change_id = ch->id,
		.waited_ns = pl_clock_ns() - ch->since_ns,
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
	pl_event_push(ctx, &ev);
	ctx->counters.answered++;
}

/*
 * What has been replaced by SCRATCH or COPY is the program's own, and no change of it is recalled. But
 * where it goes, the device must not be given that address again; and where a COPY is discarded, CPU and
 * device part: that is an orphan.
 */
static void lose_detached(struct pinl_lease *l, struct pinl_change *ch, const struct pl_range *part)
{
	struct pl_range va = {ch->start > part->start ? ch->start : part->start,
			      ch->end < part->end ? ch->end : part->end};
	enum pl_effect effect;
	struct pl_recall r;

	if (va.start >= va.end || l->id <= ch->newer_than)
		return;
	ask(l, ch, &effect);
	l->va_lost |= effect == PL_GONE;
	if (effect != PL_DISCARD || l->outcome != PINL_OUT_COPY ||
	    l->va_lost) /* the device alone has it */
		return;
	make_recall(l, ch, &va, effect, &r);
	if (l->jobs & PL_JOB_PARTED)
		widen(&l->parted.va, &va);
	else
		l->parted = r;
	pl_job_add(l, PL_JOB_PARTED);
}

/* The change may go on: gate its range and hand it to the caller to answer without the lock. */
static void let_go(struct pinl_ctx *ctx, struct pinl_change *ch, struct pinl_change **answered)
{
	struct pinl_lease *l;

	if (!ch->on_file)
		for_each_lease(l, ctx, ch) for (int i = 0; i < l->n_detached; i++)
			lose_detached(l, ch, &l->detached[i]);
	if (ch->recalled)
		answered_event(ctx, ch);
	gate_add(ctx, ch);
	ch->next = *answered;
	*answered = ch;
}

/* After a force in part, a held change may reach pages of the same lease that live on. */
void pl_recall_rest(struct pinl_lease *l)
{
	struct pl_range va;
	enum pl_effect effect;
	struct pl_recall r;

	for (struct pinl_change *ch = l->ctx->held; ch; ch = ch->next) {
		if (l->state != PINL_ACTIVE || l->policy.kind != PINL_RECALL || l->ctx->stopping ||
		    !pl_lease_overlap(l, ch, &va))
			continue;
		if (ask(l, ch, &effect).action != PL_RECALL)
			continue;
		make_recall(l, ch, &va, effect, &r);
		recall(l, &r);
	}
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

/* I2 is bounded even where a backend hangs: the ceiling and one grace, then the actor goes on. */
uint64_t pl_cut_overdue(struct pinl_ctx *ctx, struct pinl_change **answered)
{
	uint64_t now = pl_clock_ns(), next = UINT64_MAX;

	for (struct pinl_change **p = &ctx->held; *p;) {
		struct pinl_change *ch = *p;
		uint64_t limit = ch->ceiling_ns + ctx->opts.ceiling_ms * 1000000ull;

		if (limit > now) {
			next = limit < next ? limit : next;
			p = &ch->next;
			continue;
		}
		*p = ch->next;
		pinl_change_cut(ctx, ch);
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

void pinl_change_submit(struct pinl_ctx *ctx, struct pinl_change *ch)
{
	struct pinl_lease *l;
	struct pinl_change *answered = NULL;
	struct pl_range va;
	bool no;

	pthread_mutex_lock(&ctx->lock);
	ch->id = ++ctx->next_id;
	ch->since_ns = pl_clock_ns();
	ch->ceiling_ns = ch->since_ns + ctx->opts.ceiling_ms * 1000000ull;
	ch->recalled = 0;
	ch->waits_for = NULL;
	if (ch->on_file && (ch->can & PINL_CAN_BEFORE))
		ch->can |= PINL_WILL_SAY_DONE;
	no = refused(ctx, ch);
	if (!no) {
		for_each_lease(l, ctx, ch) if (pl_lease_overlap(l, ch, &va)) apply(l, ch, &va);
		if ((ch->can & PINL_CAN_HOLD) && ch->recalled && !ctx->stopping && blocked(ctx, ch)) {
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

void pinl_change_cut(struct pinl_ctx *ctx, const struct pinl_change *ch)
{
	change_degraded(ctx, ch, -EINTR);
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

uint64_t pinl_newest(struct pinl_ctx *ctx)
{
	uint64_t id;

	pthread_mutex_lock(&ctx->lock);
	id = ctx->next_id;
	pthread_mutex_unlock(&ctx->lock);
	return id;
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
