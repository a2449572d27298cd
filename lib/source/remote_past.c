/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What has happened without this library: changes that were let go although leases were not off their
 * devices, by pinleased at its limit or by the kernel at pinleased's end; and, to be told to the next
 * pinleased, what was taken while there was none. The reporter's; no lock is held but as said.
 */
#include <poll.h>
#include <string.h>

#include "core/change.h"
#include "source/remote.h"

#define LOOKS	 256 /* at leases, before others need the locks */
#define FORCE_MS 2   /* between looks whether a force is over, which it soon is */

/* ------------------------------------------------------------------------------ what is taken -- */

/* Of one that is being ended the end is told. */
void pl_remote_look_at(struct pl_remote_lease *r)
{
	const struct pinl_lease *l = r->lease;

	if (l->ending || (l->more->unproven && l->policy.then == PINL_THEN_KILL))
		return;
	r->taken.whole = l->state == PINL_RELEASED;
	r->taken.outcome = l->outcome;
	r->taken.n_parts = l->more->n_detached;
	memcpy(r->taken.parts, l->more->detached, sizeof r->taken.parts);
}

void pl_remote_look(struct pl_remote *s)
{
	struct pl_node *n;

	pthread_mutex_lock(&s->ctx->lock);
	pthread_mutex_lock(&s->lock);
	n = pl_index_first(&s->leases, s->unseen, UINTPTR_MAX);
	for (int i = 0; n && i < LOOKS; i++) {
		pl_remote_look_at((struct pl_remote_lease *)n);
		s->unseen = n->end;
		n = pl_index_first(&s->leases, s->unseen, UINTPTR_MAX);
	}
	if (!n) {
		s->unseen = UINT64_MAX;
		pl_remote_wake(s);
	}
	pthread_mutex_unlock(&s->lock);
	pthread_mutex_unlock(&s->ctx->lock);
}

/* ------------------------------------------------------------------------------ what has gone -- */

/* A change that was let go. */
struct past {
	struct pl_remote *src;
	const struct pl_remote_notice *notice; /* that says so; NULL: none does */
	unsigned connection;		       /* by which it came; or after which */
	uint64_t lease, when_ns, lost_ns;
	bool made; /* or may be */
	struct pl_range va;
	struct pinl_change change; /* its source is a constant's */
};

/* The core remembers it for longer than the notice lives. */
static const char *lasting(const char *source)
{
	static const char *const known[] = {"files", "seccomp", "later", "restart", PL_ORDER_SOURCE};

	for (size_t i = 0; i < sizeof known / sizeof *known; i++)
		if (!strncmp(source, known[i], 11))
			return known[i];
	return "arbiter";
}

static const struct pl_remote_notice *ours(const struct past *p, const struct pinl_change *ch)
{
	const struct pl_remote_notice *n = ch->answer == pl_remote_answer ? ch->arg : NULL;

	return n && n->src == p->src ? n : NULL;
}

/* ctx->lock held; the part that it still has. */
static struct pl_range left(const struct past *p, const struct pinl_lease *l)
{
	struct pl_range va = p->va;

	if (l->state == PINL_RELEASED || l->ending)
		return (struct pl_range){0, 0};
	pl_lease_cut_detached(l, &va);
	return va;
}

/* ctx->lock held. Of what it still has the worker takes the baseline, before it goes on. */
static void lost(const struct past *p, struct pinl_lease *l, const struct pl_range *va, uint64_t until)
{
	struct pinl_change ch = p->change;
	bool live = va->start < va->end;
	struct pl_recall r;

	ch.can = PINL_CAN_TELL;
	pl_recall_make(l, &ch, live ? va : &p->va, PL_NO_EFFECT, &r);
	r.lost_ns = p->when_ns;
	if (live)
		pl_lost_add(l, &r);
	else
		pl_orphan_past(l, &r, p->when_ns, until);
}

/* ctx->lock held. False: a force is at it, which is to be waited for. */
static bool say_of(const struct past *p, struct pinl_lease *l)
{
	uint64_t until = l->ending && l->state != PINL_RELEASED ? pl_clock_ns() : l->more->taken_ns;
	struct pl_range va = left(p, l);

	if (l->state == PINL_FORCING && !l->ending)
		return false;
	if (va.start >= va.end && until <= p->when_ns) /* it was off by then */
		return true;
	pinl_change_cut(l->ctx, &p->change);
	if (l->flags & PINL_PIN)
		lost(p, l, &va, until);
	return true;
}

/* What the device has there is an orphan, or was one until it was taken off. */
static void say(const struct past *p)
{
	struct pl_remote *s = p->src;
	struct pl_remote_lease *r;
	bool said = false, stop;

	while (!said) {
		pthread_mutex_lock(&s->ctx->lock);
		pthread_mutex_lock(&s->lock);
		r = pl_remote_find(s, p->lease);
		stop = s->stop;
		pthread_mutex_unlock(&s->lock);
		said = stop || !r || say_of(p, r->lease);
		pthread_mutex_unlock(&s->ctx->lock);
		if (!said)
			poll(NULL, 0, FORCE_MS);
	}
}

static bool is_of_notice(const struct pinl_change *ch, void *arg)
{
	struct past *p = arg;
	const struct pl_remote_notice *n = ours(p, ch);

	return n && !pl_is_order(ch) && n->lease == p->lease && n->va.start < p->va.end &&
	       n->va.end > p->va.start && (n->connection != p->connection || n->seq <= p->notice->seq);
}

/* Each actor has begun to wait at a time of his own, by which he is known to the next pinleased, too. */
static bool is_same(const struct pinl_change *ch, void *arg)
{
	struct past *p = arg;
	const struct pl_remote_notice *n = ours(p, ch);

	if (!n || pl_is_order(ch) || n->lease != p->lease || n->since_ns != p->notice->since_ns ||
	    n->since_ns == UINT64_MAX)
		return false;
	p->change.id = ch->id;
	return true;
}

bool pl_remote_is_held(struct pl_remote_notice *n)
{
	struct past p = {.src = n->src, .notice = n, .lease = n->lease};

	return pl_change_held(p.src->ctx, is_same, &p);
}

void pl_remote_gone(struct pl_remote_notice *n)
{
	struct past p = {.src = n->src,
			 .notice = n,
			 .connection = n->connection,
			 .lease = n->lease,
			 .when_ns = n->gone_ns,
			 .va = n->va,
			 .change = n->order.change};

	p.change.source = lasting(n->source);
	if (pl_change_gone(p.src->ctx, is_same, &p, &p.when_ns)) {
		n->order.change.can |= PL_IS_SAID;
	} else {
		p.change.id = n->order.change.id = pl_change_number(p.src->ctx);
		n->order.change.can |= PL_HAS_NUMBER;
	}
	if (!pl_is_order(&p.change))
		say(&p);
}

void pl_remote_over(struct pl_remote_notice *n)
{
	struct past p = {
		.src = n->src, .notice = n, .connection = n->connection, .lease = n->lease, .va = n->va};

	pl_change_over(n->src->ctx, is_of_notice, &p, n->over_ns);
}

static bool is_earlier(const struct pinl_change *ch, void *arg)
{
	struct past *p = arg;
	const struct pl_remote_notice *n = ours(p, ch);

	if (!n || n->connection == p->connection || ch->over_ns)
		return false;
	p->lease = n->lease;
	p->va = n->va;
	p->when_ns = pl_remote_went_on(n, p->lost_ns);
	p->made = pl_remote_may_be_made(n);
	p->change = *ch;
	p->change.source = lasting(n->source);
	return true;
}

/* By an order no page goes. */
void pl_remote_let_go(struct pl_remote *s, unsigned connection, uint64_t lost_ns)
{
	struct past p = {.src = s, .connection = connection, .lost_ns = lost_ns};

	while (pl_change_gone(s->ctx, is_earlier, &p, &p.when_ns))
		if (!pl_is_order(&p.change) && p.made)
			say(&p);
}
