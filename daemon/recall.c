/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Recalls that a command asks for. A request goes over the holders' leases as they are, with a place
 * where it is, no list of them: what is made after it began isn't meant. So many of its orders
 * (core/order.h) are under way at a time, and it goes on as they end and the asker takes what is said of
 * them. Invariant: a target is with the core, on server->done (lock), or on its request's `ready`; a
 * request lives until the core has answered all of its orders. All else is the main loop's.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/change.h"
#include "daemon.h"
#include "os/clock.h"
#include "os/wake.h"

#define UNDER_WAY 32  /* orders of one request with the core */
#define AT_ONCE	  256 /* leases looked at before others have their turn */
#define REQUESTS  4   /* of one user */

#define RECALL_FLAGS (PL_RECALL_ONE | PL_RECALL_GRACE | PL_RECALL_FORCE | PL_RECALL_NO_WAIT)

struct target {
	struct target *next;
	struct pl_order order;
	struct request *request;
	union pl_message said;
};

struct request {
	LIST_ENTRY(request) link;
	struct server *server;
	struct holder *asker; /* NULL: gone; then nothing more is begun */
	struct user *user;    /* the asker's, also when he has gone */
	struct pl_recall_msg m;
	uint64_t newest;   /* leases up to this are meant */
	struct holder *at; /* the first that isn't done with; NULL: all are */
	uint64_t next;	   /* of its leases, from this number on */
	unsigned under_way;
	uint64_t matched;
	struct target *ready, **ready_tail;
};

/* ------------------------------------------------------------------------------------- what fits -- */

static bool may(const struct holder *asker, const struct holder *of)
{
	return !asker->user->uid || of->user == asker->user;
}

#define MINE   1u
#define OTHERS 2u

/* Whose a process is that is known here. */
static unsigned owners(const struct holder *asker, pid_t pid)
{
	const struct holder *h;
	unsigned who = 0;

	LIST_FOREACH(h, &asker->server->holders, link)
	who |= h->pid != pid ? 0 : may(asker, h) ? MINE : OTHERS;
	LIST_FOREACH(h, &asker->server->leaving, link)
	who |= h->pid != pid ? 0 : may(asker, h) ? MINE : OTHERS;
	return who;
}

static int check(const struct holder *asker, const struct pl_recall_msg *m)
{
	unsigned who = m->pid ? owners(asker, m->pid) : 0;

	if ((m->flags & ~RECALL_FLAGS) || m->pid < 0 || (!m->pid && (m->flags & PL_RECALL_ONE)) ||
	    ((m->flags & PL_RECALL_GRACE) && (m->flags & PL_RECALL_FORCE)))
		return pinl_set_error(-EINVAL, "no such way to recall a lease");
	if (!m->pid && !m->file_ino)
		return pinl_set_error(-EINVAL, "say which leases: of which process, of which file");
	if (m->file_end && m->file_start >= m->file_end)
		return pinl_set_error(-EINVAL, "an empty range");
	return who == OTHERS ? pinl_set_error(-EPERM,
					      "process %d is another user's: only root may recall its "
					      "leases",
					      m->pid)
			     : 0;
}

static bool fits(const struct request *r, const struct held_lease *hl)
{
	const struct pinl_lease *l = hl->lease;
	uint64_t end = r->m.file_end ? r->m.file_end : UINT64_MAX;

	if (l->id > r->newest || ((r->m.flags & PL_RECALL_ONE) && hl->number != r->m.lease))
		return false;
	if (r->m.file_ino && (l->on->mem.ino != r->m.file_ino || l->on->mem.dev != r->m.file_dev))
		return false;
	return l->on->mem.offset < end && l->on->mem.offset + hl->bytes > r->m.file_start;
}

/* Those who have lost their connection come last. */
static void pass(struct request *r)
{
	bool connected = r->at->sock >= 0;

	r->at = LIST_NEXT(r->at, link);
	if (!r->at && connected)
		r->at = LIST_FIRST(&r->server->leaving);
	r->next = r->m.flags & PL_RECALL_ONE ? r->m.lease : 0;
}

/* The next lease that fits, within `looks`; NULL with *looks left: there is none. */
static struct held_lease *next_lease(struct request *r, int *looks)
{
	uint64_t last = r->m.flags & PL_RECALL_ONE ? r->m.lease + 1 : UINT64_MAX;
	struct held_lease *hl;

	while (r->at && *looks > 0) {
		bool wanted = may(r->asker, r->at) && (!r->m.pid || r->at->pid == r->m.pid);

		--*looks;
		hl = wanted ? (struct held_lease *)pl_index_first(&r->at->leases, r->next, last) : NULL;
		if (!hl) {
			pass(r);
			continue;
		}
		r->next = hl->number + 1;
		if (fits(r, hl) && !pl_foreign_released(hl->lease))
			return hl;
	}
	return NULL;
}

/* ---------------------------------------------------------------------------------------- orders -- */

/* server->lock or the main loop's */
static void append(struct target **tail[], struct target *t)
{
	t->next = NULL;
	**tail = t;
	*tail = &t->next;
}

/* From any thread. */
static void answer(struct pinl_change *ch, int err)
{
	struct target *t = ch->arg;
	struct server *s = t->request->server;
	struct pl_event_msg *e = &t->said.event;
	struct pl_order_result result;

	if (ch->can & PINL_CAN_HOLD) {
		pl_order_result(s->ctx, &t->order, &result);
		e->outcome = result.outcome;
		e->outside = result.outside;
		e->err = result.err;
	}
	e->waited_ns = pl_clock_ns() - e->time_ns;
	pthread_mutex_lock(&s->lock);
	t->next = s->done;
	s->done = t;
	pthread_mutex_unlock(&s->lock);
	pl_wake(s->wake);
}

static void describe(const struct request *r, const struct held_lease *hl, struct pl_event_msg *e)
{
	union pl_message m;

	list_entry(hl, &m);
	e->head.serial = r->m.head.serial;
	e->what = PL_EVENT_RECALLED;
	e->op = PINL_OP_NR;
	e->time_ns = pl_clock_ns();
	e->lease = hl->number;
	e->start = m.entry.start;
	e->end = m.entry.end;
	e->bytes = hl->bytes;
	e->file_dev = m.entry.file_dev;
	e->file_ino = m.entry.file_ino;
	e->file_start = m.entry.file_offset;
	e->file_end = e->file_start + hl->bytes;
	e->pid = m.entry.pid;
	e->uid = m.entry.uid;
	e->actor_pid = r->asker->pid;
	strcpy(e->source, PL_ORDER_SOURCE);
	memcpy(e->device, m.entry.device, sizeof e->device);
	memcpy(e->program, m.entry.program, sizeof e->program);
	memcpy(e->path, m.entry.path, sizeof e->path);
}

static void set_times(const struct request *r, const struct held_lease *hl, struct pl_order *o)
{
	uint64_t grace = r->m.flags & PL_RECALL_FORCE	? 0
			 : r->m.flags & PL_RECALL_GRACE ? r->m.grace_ms
							: hl->grace_ms;

	o->grace_until_ns = pl_clock_ns() + grace * 1000000ull;
	o->agent_ns = hl->agent_ms * 1000000ull;
	o->deadline_ns = o->grace_until_ns + o->agent_ns;
}

/* 0, or -ENOMEM. */
static int begin(struct request *r, struct held_lease *hl)
{
	struct target *t = calloc(1, sizeof *t);
	uint64_t end = r->m.file_end ? r->m.file_end : UINT64_MAX;

	if (!t)
		return -ENOMEM;
	t->request = r;
	pl_message_init(&t->said, PL_EVENT);
	describe(r, hl, &t->said.event);
	r->matched++;
	if (hl->lease->policy.kind != PINL_RECALL && !(r->m.flags & PL_RECALL_FORCE)) {
		t->said.event.err = -EPERM;
		append(&r->ready_tail, t);
		return 0;
	}
	pl_order_init(&t->order, hl->lease, r->m.file_start, end, !(r->m.flags & PL_RECALL_NO_WAIT));
	set_times(r, hl, &t->order);
	t->said.event.deadline_ns = t->order.deadline_ns;
	t->order.change.actor_pid = r->asker->pid;
	t->order.change.answer = answer;
	t->order.change.arg = t;
	r->under_way++;
	pinl_change_submit(r->server->ctx, &t->order.change);
	return 0;
}

/* -------------------------------------------------------------------------------------- requests -- */

static void drop_ready(struct request *r)
{
	struct target *t;

	while ((t = r->ready)) {
		r->ready = t->next;
		free(t);
	}
	r->ready_tail = &r->ready;
}

/* False: the asker takes no more now. */
static bool say_ready(struct request *r)
{
	struct target *t;

	while ((t = r->ready)) {
		if (r->asker->full || holder_send(r->asker, &t->said))
			return false;
		r->ready = t->next;
		free(t);
	}
	r->ready_tail = &r->ready;
	return true;
}

static void end(struct request *r)
{
	if (r->asker)
		r->asker->request = NULL;
	LIST_REMOVE(r, link);
	drop_ready(r);
	user_put(r->server, r->user, false);
	free(r);
}

/* All that can be done now without keeping others waiting. */
static void go_on(struct request *r)
{
	struct held_lease *hl;
	int looks = AT_ONCE, err = 0;

	while (r->asker && say_ready(r) && r->at && r->under_way < UNDER_WAY && looks > 0) {
		hl = next_lease(r, &looks);
		err = hl ? begin(r, hl) : 0;
		if (err)
			r->at = NULL;
	}
	if (!r->asker && !r->under_way)
		end(r);
	else if (r->asker && r->at && looks <= 0)
		pl_wake(r->server->wake);
	else if (r->asker && !r->at && !r->under_way && !r->ready && !r->asker->full &&
		 !holder_reply(r->asker, &r->m.head, err, r->matched))
		end(r);
}

static bool too_many(const struct holder *h)
{
	const struct request *r;
	int n = 0;

	LIST_FOREACH(r, &h->server->requests, link)
	n += r->user == h->user;
	return n >= REQUESTS;
}

int recall_begin(struct holder *h, const struct pl_recall_msg *m)
{
	struct request *r;
	int err = check(h, m);

	if (!err && (h->request || too_many(h)))
		err = pinl_set_error(-EBUSY, "a recall is under way that this user has asked for; wait "
					     "for it");
	if (!err && !(r = calloc(1, sizeof *r)))
		err = pinl_set_error(-ENOMEM, "pinleased is out of memory");
	if (err)
		return holder_reply(h, &m->head, err, 0);
	r->server = h->server;
	r->asker = h;
	r->user = h->user;
	user_keep(h->server, r->user);
	r->m = *m;
	r->newest = pinl_newest(h->server->ctx);
	r->at = LIST_FIRST(&h->server->holders);
	r->next = m->flags & PL_RECALL_ONE ? m->lease : 0;
	r->ready_tail = &r->ready;
	h->request = r;
	LIST_INSERT_HEAD(&h->server->requests, r, link);
	go_on(r);
	return 0;
}

void recall_send(struct holder *h)
{
	if (h->request)
		go_on(h->request);
}

static void take_done(struct server *s)
{
	struct target *t, *next;

	pthread_mutex_lock(&s->lock);
	t = s->done;
	s->done = NULL;
	pthread_mutex_unlock(&s->lock);
	for (; t; t = next) {
		next = t->next;
		t->request->under_way--;
		append(&t->request->ready_tail, t);
	}
}

void recall_go_on(struct server *s)
{
	struct request *r, *next;

	take_done(s);
	for (r = LIST_FIRST(&s->requests); r; r = next) {
		next = LIST_NEXT(r, link);
		go_on(r);
	}
}

void recall_pass(struct holder *h)
{
	struct request *r;

	LIST_FOREACH(r, &h->server->requests, link)
	if (r->at == h)
		pass(r);
}

static bool is_of(const struct pinl_change *ch, void *arg)
{
	return pl_is_order(ch) && ((const struct target *)ch->arg)->request == arg;
}

void recall_gone(struct holder *h)
{
	struct request *r = h->request;

	recall_pass(h);
	if (!r)
		return;
	h->request = NULL;
	r->asker = NULL;
	pl_change_over(h->server->ctx, is_of, r, pl_clock_ns());
	drop_ready(r);
	go_on(r);
}
