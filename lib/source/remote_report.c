/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The thread of the remote source that calls the core. Invariant: each notice that came in is submitted
 * once, as a change of the lease's bytes that can be held, and answered once to the link; what became of
 * the lease is read when the core has answered. Nothing is allocated here.
 */
#include "source/remote.h"

#include <errno.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "core/cached.h"
#include "core/change.h"

/* The device has followed, or there was nothing to do. */
static bool lives_on(const struct pinl_lease *l, const struct pl_range *va)
{
	struct pl_range left = *va;

	pl_lease_cut_detached(l, &left);
	return left.start == va->start && left.end == va->end;
}

/* A lease that has gone meanwhile is off its device. */
static void look(struct pl_remote_notice *n)
{
	const struct pinl_lease *l = NULL;
	struct pl_remote_lease *r;

	pthread_mutex_lock(&n->src->ctx->lock);
	pthread_mutex_lock(&n->src->lock);
	r = pl_remote_find(n->src, n->lease);
	if (r)
		l = r->lease;
	n->whole = !l || l->state == PINL_RELEASED || l->ending;
	if (l && !n->whole && lives_on(l, &n->va))
		n->va = (struct pl_range){0, 0};
	n->outcome = l && l->state == PINL_RELEASED ? l->outcome : PINL_OUT_QUIESCED;
	if (l && !n->whole) /* of what was taken of it */
		n->outcome = l->outcome;
	if (r)
		pl_remote_look_at(r);
	n->silent = l && l->more->unproven && l->policy.then == PINL_THEN_KILL;
	pthread_mutex_unlock(&n->src->lock);
	pthread_mutex_unlock(&n->src->ctx->lock);
}

static void done_with(struct pl_remote_notice *n)
{
	struct pl_remote *s = n->src;

	pthread_mutex_lock(&s->lock);
	n->next = NULL;
	*s->answers_tail = n;
	s->answers_tail = &n->next;
	pl_remote_wake(s);
	pthread_mutex_unlock(&s->lock);
}

/* From any thread, and from inside pinl_change_submit(). */
void pl_remote_answer(struct pinl_change *change, int err)
{
	struct pl_remote_notice *n = change->arg;

	look(n);
	if (!pl_is_order(change))
		pinl_change_done(n->src->ctx,
				 change->id); /* the arbiter's gate is the one that counts */
	done_with(n);
}

/* ctx->lock held. Pinleased doesn't know which of the cache's registrations are in use: who is refused
 * for one that isn't finds it gone when he tries again. */
static void *refuser_of(struct pl_remote_notice *n)
{
	struct pl_remote_lease *r;
	void *cookie;

	pthread_mutex_lock(&n->src->lock);
	r = pl_remote_find(n->src, n->lease);
	cookie = r ? r->lease->cookie : NULL;
	if (r)
		pl_cached_unused(r->lease);
	pthread_mutex_unlock(&n->src->lock);
	return cookie;
}

static void say_refused(struct pl_remote_notice *n)
{
	const struct pinl_change *ch = &n->order.change;
	struct pinl_event ev = {.size = sizeof ev,
				.type = PINL_EV_REFUSED,
				.op = ch->op,
				.err = -EBUSY,
				.lease_id = n->lease,
				.change_id = pl_change_number(n->src->ctx),
				.holder = getpid(),
				.actor_pid = ch->actor_pid,
				.actor_tid = ch->actor_tid,
				.start = n->va.start,
				.end = n->va.end,
				.file_dev = ch->file_dev,
				.file_ino = ch->file_ino,
				.file_start = ch->file_start,
				.file_end = ch->file_end,
				.bytes = n->va.end - n->va.start};

	strncpy(ev.source, ch->source, sizeof ev.source - 1);
	pthread_mutex_lock(&n->src->ctx->lock);
	ev.cookie = refuser_of(n);
	n->src->ctx->counters.refused++;
	pthread_mutex_unlock(&n->src->ctx->lock);
	pl_event_push(n->src->ctx, &ev);
}

static bool take_off(uint8_t *can, unsigned what)
{
	bool had = *can & what;

	*can &= ~what;
	return had;
}

/* Others wait no more, but for those under `pinlease run`; or nothing is refused any more. */
static bool is_weaker(struct pinl_lease *l, enum pinl_op op, bool waits)
{
	return waits ? take_off(&pl_more(l)->ground.supervised[op], PL_ALL_OTHERS)
		     : take_off(&pl_more(l)->ground.coverage[op], PINL_CAN_REFUSE);
}

/* Of what this lease could count on. */
static void say_weaker(struct pl_remote_notice *n)
{
	unsigned ops = PINL_OPBIT(n->order.change.op) | n->order.change.also;
	struct pl_remote_lease *r;
	struct pinl_event ev;
	bool waits;

	pthread_mutex_lock(&n->src->ctx->lock);
	pthread_mutex_lock(&n->src->lock);
	r = pl_remote_find(n->src, n->lease);
	waits = r && r->lease->policy.kind == PINL_RECALL;
	if (waits)
		r->others = false;
	for (int op = 0; r && op < PINL_OP_NR; op++) {
		if (!(ops & PINL_OPBIT(op)) || !is_weaker(r->lease, op, waits))
			continue;
		pl_event_lease(r->lease, PINL_EV_DEGRADED, NULL, &ev);
		ev.op = op;
		ev.err = waits ? -EAGAIN : -EBUSY;
		strcpy(ev.source, "arbiter");
		pl_event_push(n->src->ctx, &ev);
	}
	pthread_mutex_unlock(&n->src->lock);
	pthread_mutex_unlock(&n->src->ctx->lock);
}

static void tell_core(struct pl_remote_notice *n)
{
	if (n->what == PL_NOTICE_WEAKER) {
		say_weaker(n);
		done_with(n);
		return;
	}
	if (n->what == PL_NOTICE_REFUSED) {
		say_refused(n);
		done_with(n);
		return;
	}
	if (n->what == PL_NOTICE_FORCED && n->over_ns)
		pl_remote_over(n);
	if (n->gone_ns)
		pl_remote_gone(n);
	if (n->gone_ns && n->what == PL_NOTICE_LOST) {
		done_with(n);
		return;
	}
	if (n->what == PL_NOTICE_RECALL && !pl_is_order(&n->order.change) && pl_remote_is_held(n))
		n->order.change.can |= PL_IS_SAID;
	n->order.change.answer = pl_remote_answer;
	n->order.change.arg = n;
	pl_change_submit_since(n->src->ctx, &n->order.change,
			       n->since_ns); /* from here on it may be the link's */
}

static void say_lost(struct pl_remote *s)
{
	struct pinl_event ev = {
		.size = sizeof ev, .type = PINL_EV_DEGRADED, .op = PINL_OP_NR, .err = -ENOTCONN};

	strcpy(ev.source, "arbiter");
	pl_event_push(s->ctx, &ev);
}

/* lock held. The next that isn't known to pinleased any more. */
static bool next_unguarded(struct pl_remote *s, uint64_t *id)
{
	struct pl_node *n;

	for (; s->unguarded != UINT64_MAX; s->unguarded = n ? n->end : UINT64_MAX) {
		struct pl_remote_lease *r;

		n = pl_index_first(&s->leases, s->unguarded, UINTPTR_MAX);
		r = (struct pl_remote_lease *)n;
		if (!r || !r->unguarded)
			continue;
		r->unguarded = false;
		*id = r->msg.lease;
		return true;
	}
	return false;
}

/* If it hasn't ended meanwhile. */
static void say_unguarded(struct pl_remote *s, uint64_t id)
{
	const struct pl_remote_lease *r;
	struct pinl_event ev;

	pthread_mutex_lock(&s->ctx->lock);
	pthread_mutex_lock(&s->lock);
	r = pl_remote_find(s, id);
	if (r)
		pl_event_lease(r->lease, PINL_EV_DEGRADED, NULL, &ev);
	pthread_mutex_unlock(&s->lock);
	pthread_mutex_unlock(&s->ctx->lock);
	if (!r)
		return;
	ev.err = -ENOTCONN;
	strcpy(ev.source, "arbiter");
	pl_event_push(s->ctx, &ev);
}

/* lock held. One that is over. */
static bool next_later(struct pl_remote *s, struct pl_remote_later *out)
{
	for (struct pl_remote_later *l = s->laters; l < s->laters + PL_REMOTE_LATER; l++) {
		if (l->state != LATER_DONE)
			continue;
		*out = *l;
		l->state = LATER_FREE;
		return true;
	}
	return false;
}

void *pl_remote_reporter(void *src)
{
	struct pl_remote *s = src;
	struct pl_remote_notice *n;
	struct pl_remote_later over;
	bool lost, later, some, unseen;
	uint64_t unguarded, lost_ns;
	unsigned let_go;

	prctl(PR_SET_NAME, "pinl-remote");
	pthread_mutex_lock(&s->lock);
	while (!s->stop) {
		lost = s->lost;
		s->lost = false;
		n = s->reports;
		if (n && !(s->reports = n->next))
			s->reports_tail = &s->reports;
		later = next_later(s, &over);
		some = next_unguarded(s, &unguarded);
		unseen = s->unseen != UINT64_MAX;
		let_go = unseen ? 0
				: s->let_go; /* it may wait for a force; the link waits for the look */
		s->let_go = unseen ? s->let_go : 0;
		lost_ns = s->lost_ns;
		if (!n)
			s->told_ns = s->read_ns;
		if (!n && !lost && !later && !some && !unseen && !let_go) {
			pthread_cond_wait(&s->work, &s->lock);
			continue;
		}
		pthread_mutex_unlock(&s->lock);
		if (lost)
			say_lost(s);
		if (let_go)
			pl_remote_let_go(s, let_go, lost_ns);
		if (unseen)
			pl_remote_look(s);
		if (some)
			say_unguarded(s, unguarded);
		if (later)
			pl_later_done(s->ctx, &over.job, over.err);
		if (n)
			tell_core(n);
		pthread_mutex_lock(&s->lock);
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}
