/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a holder is to be told, from the core's word to the socket. In order, one record a change while
 * there are records, and then one a lease, in which its changes are merged. Under ctx->lock.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon.h"
#include "gate.h"
#include "os/clock.h"
#include "os/wake.h"

#define NOTICES	 128 /* of one holder's, each for itself; beyond that, one for each lease */
#define AGAIN_NS 60000000000ull

_Static_assert((int)PL_TELL_FORCED == PL_NOTICE_FORCED && (int)PL_TELL_RECALL == PL_NOTICE_RECALL &&
		       (int)PL_TELL_LOST == PL_NOTICE_LOST && (int)PL_TELL_REFUSED == PL_NOTICE_REFUSED,
	       "the strongest comes first in both");

#ifndef TAILQ_FOREACH_SAFE
#define TAILQ_FOREACH_SAFE(var, head, field, next)                                                      \
	for ((var) = TAILQ_FIRST(head); (var) && ((next) = TAILQ_NEXT(var, field), 1); (var) = (next))
#endif

int notices_init(struct holder *h)
{
	TAILQ_INIT(&h->notices);
	TAILQ_INIT(&h->unused);
	h->pool = calloc(NOTICES, sizeof *h->pool);
	for (int i = 0; h->pool && i < NOTICES; i++)
		TAILQ_INSERT_TAIL(&h->unused, &h->pool[i], link);
	return h->pool ? 0 : -ENOMEM;
}

/* A record for one more change, or the lease's own, which several share when there is no other. */
static struct notice *notice_for(struct holder *h, struct held_lease *hl)
{
	struct notice *n = TAILQ_FIRST(&h->unused);

	if (n) {
		TAILQ_REMOVE(&h->unused, n, link);
	} else if (hl->own->hl) {
		return hl->own;
	} else {
		n = hl->own;
	}
	*n = (struct notice){.hl = hl, .what = PL_NOTICE_REFUSED};
	TAILQ_INSERT_TAIL(&h->notices, n, link);
	return n;
}

/* For the log, too: of several one that matters most. */
static void gone(const struct pinl_lease *l, struct notice *n)
{
	struct held_lease *hl = l->cookie;
	struct holder *h = hl->holder;
	bool pinned = l->flags & PINL_PIN;

	n->gone_ns = pl_clock_ns();
	if (!h->cut || pinned) {
		h->cut = hl;
		h->cut_pinned = pinned;
	}
	atomic_store(&h->server->cut, true);
}

/* Also for the recall that waits here to be told: who hears of that is not to force anything. */
static void taken(struct held_lease *hl, struct notice *forced, uint64_t when_ns)
{
	struct notice *pool = hl->holder->pool;

	forced->taken_ns = when_ns;
	for (int i = 0; i < NOTICES; i++)
		if (pool[i].hl == hl && pool[i].what == PL_NOTICE_RECALL)
			pool[i].taken_ns = when_ns;
}

/* A refusal, with another or with what matters more. */
static bool loses_refusal(const struct notice *n, enum pl_tell what)
{
	bool shared = n->va.start < n->va.end;

	return shared && (what == PL_TELL_REFUSED || n->what == PL_NOTICE_REFUSED);
}

/* ctx->lock held, by the core. */
static void tell(struct pinl_lease *l, const struct pl_recall *r, enum pl_tell how)
{
	enum pl_tell what = how == PL_TELL_GONE ? PL_TELL_LOST : how;
	struct held_lease *hl = l->cookie;
	struct notice *n = notice_for(hl->holder, hl);

	if (n->what == PL_NOTICE_WEAKER) /* of the whole lease; a recall isn't */
		n->va = (struct pl_range){0, 0};
	if (what == PL_TELL_RECALL && !r->again)
		share_noticed(hl->holder->user);
	if (what == PL_TELL_FORCED)
		hl->holder->server->outside++;
	hl->holder->server->merged += loses_refusal(n, what);
	n->at_gate =
		(n->at_gate || n->va.start >= n->va.end) && r->held && !strcmp(r->source, gate_ops.name);
	pl_range_widen(&n->va, &r->va);
	if ((enum pl_notice_what)what < n->what)
		n->what = (enum pl_notice_what)what;
	n->source = r->source;
	if (n->what == (enum pl_notice_what)what) { /* else an answer to this one would end no recall */
		n->seq = r->last_id;
		n->deadline_ns = r->deadline_ns;
		n->force_ns = r->force_ns;
		n->since_ns = r->since_ns;
	}
	if (how == PL_TELL_GONE)
		gone(l, n);
	if (what == PL_TELL_FORCED)
		taken(hl, n, l->more->taken_ns);
	n->op = r->op;
	n->also = r->also;
	n->actor_pid = r->actor_pid;
	n->actor_tid = r->actor_tid;
	pl_wake(hl->holder->server->wake);
}

void notice_weaker(struct held_lease *hl, unsigned ops)
{
	struct notice *n;

	pthread_mutex_lock(&hl->holder->server->ctx->lock);
	n = notice_for(hl->holder, hl);
	if (n->va.start >= n->va.end) { /* else there is something to be told that matters more */
		n->what = PL_NOTICE_WEAKER;
		n->va = hl->lease->m;
		n->op = (enum pinl_op)__builtin_ctz(ops);
		n->also = ops;
		n->source = "arbiter";
		pl_wake(hl->holder->server->wake);
	}
	pthread_mutex_unlock(&hl->holder->server->ctx->lock);
}

/* ctx->lock held, by the core. */
static void orphan(struct pinl_lease *l, const struct pl_recall *lost, uint64_t since_ns)
{
	const struct held_lease *hl = l->cookie;
	struct pl_foreign_orphan o;

	if (!hl->stored)
		return;
	if (lost)
		o = (struct pl_foreign_orphan){.start = lost->va.start,
					       .end = lost->va.end,
					       .since_ns = since_ns,
					       .op = lost->op,
					       .actor_pid = lost->actor_pid};
	store_orphan(hl->stored, lost ? &o : NULL);
}

/* ctx->lock held, by the core. */
static void all_taken(struct pinl_lease *l)
{
	struct held_lease *hl = l->cookie;
	struct server *s = hl->holder->server;

	if ((l->policy.kind != PINL_REFUSE && l->policy.kind != PINL_RECALL &&
	     !(l->flags & PINL_KEEP_NAME)) ||
	    hl->refuses_no_more)
		return;
	hl->refuses_no_more = true;
	hl->taken_id = l->id;
	LIST_INSERT_HEAD(&s->refuse_no_more, hl, no_more);
	pl_wake(s->wake);
}

const struct pl_foreign_ops holder_foreign_ops = {.tell = tell,
						  .grace = share_grace,
						  .held = share_held,
						  .orphan = orphan,
						  .taken = all_taken,
						  .drained = holder_drained};

static void describe_notice(const struct notice *n, union pl_message *m)
{
	pl_message_init(m, PL_NOTICE);
	m->notice.lease = n->hl->number;
	m->notice.seq = n->seq;
	m->notice.start = n->va.start;
	m->notice.end = n->va.end;
	m->notice.deadline_ns = n->deadline_ns;
	m->notice.what = n->what;
	m->notice.op = n->op;
	m->notice.also = n->also;
	m->notice.actor_pid = n->actor_pid;
	m->notice.actor_tid = n->actor_tid;
	strncpy(m->notice.source, n->source, 11);
	m->notice.since_ns = n->since_ns;
	m->notice.gone_ns = n->gone_ns;
	m->notice.force_ns = n->force_ns;
	m->notice.taken_ns = n->taken_ns;
	m->notice.closed = n->at_gate && gate_stays_closed(n->hl->holder->server);
}

/* ctx->lock held */
static void notice_free(struct holder *h, struct notice *n)
{
	TAILQ_REMOVE(&h->notices, n, link);
	if (n != n->hl->own)
		TAILQ_INSERT_TAIL(&h->unused, n, link);
	n->hl = NULL;
}

/* The socket doesn't block, so the lock may be held: who has a notice in the list can't be told less. */
int holder_send_notices(struct holder *h)
{
	struct notice *n;
	union pl_message m;
	int err = 0;

	pthread_mutex_lock(&h->server->ctx->lock);
	while (!h->full && !err && (n = TAILQ_FIRST(&h->notices))) {
		describe_notice(n, &m);
		err = holder_send(h, &m);
		if (!err)
			notice_free(h, n);
	}
	pthread_mutex_unlock(&h->server->ctx->lock);
	return err == -EAGAIN ? 0 : err;
}

void notices_send(struct server *s)
{
	struct holder *h;

	LIST_FOREACH(h, &s->holders, link)
	holder_send_notices(h);
}

void notices_drop(struct holder *h, struct held_lease *hl)
{
	struct notice *n, *next;

	pthread_mutex_lock(&h->server->ctx->lock);
	TAILQ_FOREACH_SAFE(n, &h->notices, link, next)
	if (n->hl == hl)
		notice_free(h, n);
	if (h->cut == hl)
		h->cut = NULL;
	if (hl->refuses_no_more)
		LIST_REMOVE(hl, no_more);
	hl->refuses_no_more = false;
	pthread_mutex_unlock(&h->server->ctx->lock);
}

/* The number of one that it is time to say it of, and whether its device has pages of its own. */
static bool take_cut(struct holder *h, uint64_t *number, bool *pinned)
{
	uint64_t now = pl_clock_ns();
	bool some;

	pthread_mutex_lock(&h->server->ctx->lock);
	some = h->cut && (!h->cut_said_ns || now - h->cut_said_ns > AGAIN_NS);
	if (some) {
		*number = h->cut->number;
		*pinned = h->cut_pinned;
		h->cut_said_ns = now;
	}
	h->cut = NULL;
	pthread_mutex_unlock(&h->server->ctx->lock);
	return some;
}

static void complain(struct holder *h)
{
	uint64_t number;
	bool pinned;

	if (take_cut(h, &number, &pinned))
		fprintf(stderr,
			"pinleased: a change was let go although lease %lu of %s (%d) is on the file: "
			"%s%s\n",
			number, h->name, h->pid,
			h->server->ends ? "pinleased ends"
					: "the holder doesn't answer, and its device can't be taken off "
					  "from outside",
			pinned ? "; it may have pages that the file has let go" : "");
}

/* A stopped one may have been adopted, and have no connection. */
void notices_complain(struct server *s)
{
	struct holder *h;

	if (!atomic_exchange(&s->cut, false))
		return;
	LIST_FOREACH(h, &s->holders, link)
	complain(h);
	LIST_FOREACH(h, &s->leaving, link)
	complain(h);
}
