/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who follows what happens to leases. The core's events go to each watcher's socket as they come; what
 * it doesn't take is lost and counted, and nothing is kept for it. Main loop, but for watch_ended().
 *
 * An event of the core's has its lease's held_lease for a cookie. So while anybody watches, one that has
 * ended is kept until all events have been taken that were there then: server->ended, and `ending` of
 * those the ones whose events are being taken. Before anybody watches no event is looked at.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon.h"

#define AT_ONCE	 256 /* events before others have their turn */
#define WATCHERS 8   /* of one user */

struct watcher {
	LIST_ENTRY(watcher) link;
	struct holder *h;
	struct pl_watch_msg m;
	uint64_t lost; /* to be told of */
};

/* --------------------------------------------------------------------------------------- telling -- */

static void lose(struct watcher *w, uint64_t n)
{
	w->lost += n;
	w->h->server->events_lost += n;
}

static void tell(struct watcher *w, union pl_message *m)
{
	m->head.serial = w->m.head.serial;
	if (w->h->full || w->lost || holder_send(w->h, m))
		lose(w, 1);
}

/* `hl` NULL: about a change, which only root sees, as it isn't known whose. */
static bool fits(const struct watcher *w, const struct pl_event_msg *e, const struct held_lease *hl)
{
	uid_t uid = w->h->user->uid;

	if (uid && (!hl || hl->of.uid != uid))
		return false;
	if (w->m.pid && w->m.pid != e->pid)
		return false;
	return !w->m.file_ino || (e->file_ino == w->m.file_ino && e->file_dev == w->m.file_dev);
}

static void tell_all(struct server *s, union pl_message *m, const struct held_lease *hl)
{
	struct watcher *w;

	LIST_FOREACH(w, &s->watchers, link)
	if (fits(w, &m->event, hl))
		tell(w, m);
}

void watch_send(struct holder *h)
{
	struct watcher *w = h->watcher;
	union pl_message m;

	if (!w || !w->lost || h->full)
		return;
	pl_message_init(&m, PL_EVENT);
	m.head.serial = w->m.head.serial;
	m.event.what = PINL_EV_DROPPED;
	m.event.op = PINL_OP_NR;
	m.event.bytes = w->lost;
	if (!holder_send(h, &m))
		w->lost = 0;
}

/* ---------------------------------------------------------------------------------------- events -- */

static void whose(const struct held_lease *hl, struct pl_event_msg *e)
{
	e->lease = hl->number;
	e->pid = hl->of.pid;
	e->uid = hl->of.uid;
	memcpy(e->program, hl->of.name, sizeof e->program);
	memcpy(e->device, hl->device, sizeof e->device);
}

static void describe(const struct pinl_event *ev, union pl_message *m)
{
	struct pl_event_msg *e = &m->event;

	pl_message_init(m, PL_EVENT);
	e->what = ev->type;
	e->op = ev->op;
	e->outcome = ev->outcome;
	e->err = ev->err;
	e->time_ns = ev->time_ns;
	e->deadline_ns = ev->deadline_ns;
	e->waited_ns = ev->waited_ns;
	e->change = ev->change_id;
	e->start = ev->start;
	e->end = ev->end;
	e->file_dev = ev->file_dev;
	e->file_ino = ev->file_ino;
	e->file_start = ev->file_start;
	e->file_end = ev->file_end;
	e->bytes = ev->bytes;
	e->actor_pid = ev->actor_pid;
	e->actor_tid = ev->actor_tid;
	memcpy(e->source, ev->source, sizeof e->source);
	e->outside = pl_foreign_outside(ev);
	if (ev->cookie)
		whose(ev->cookie, e);
}

/* The arbiter sees no mapping change; the holder's own library may. */
static bool is_mappings(const struct pinl_event *ev)
{
	return ev->type == PINL_EV_DEGRADED && ev->err == -EOPNOTSUPP && ev->op < PINL_OP_NR &&
	       !(PINL_OPS_FILE & PINL_OPBIT(ev->op));
}

/* About all of it. */
static struct pinl_event lease_event(struct held_lease *hl, enum pinl_event_type type)
{
	return (struct pinl_event){
		.size = sizeof(struct pinl_event),
		.type = type,
		.op = PINL_OP_NR,
		.cookie = hl,
		.start = hl->of.start,
		.end = hl->of.start + hl->bytes,
		.file_dev = hl->of.dev,
		.file_ino = hl->of.ino,
		.file_start = hl->of.offset,
		.file_end = hl->of.offset + hl->bytes,
		.bytes = hl->bytes,
	};
}

/* What the gate holds is seen. */
static unsigned unseen_ops(const struct held_lease *hl)
{
	unsigned ops = hl->unseen;

	for (int op = 0; op < PINL_OP_NR && hl->lease->policy.kind == PINL_RECALL; op++)
		if (hl->lease->on->supervised[op])
			ops &= ~PINL_OPBIT(op);
	return ops;
}

/* That it is leased, and what of it nobody sees. */
static void show(struct server *s, struct held_lease *hl, bool lives, uint64_t when_ns)
{
	struct pinl_event ev = lease_event(hl, (enum pinl_event_type)PL_EVENT_LEASED);
	unsigned unseen = lives ? unseen_ops(hl) : hl->unseen;
	union pl_message m;

	hl->shown = true;
	if (LIST_EMPTY(&s->watchers))
		return;
	ev.time_ns = when_ns;
	describe(&ev, &m);
	if (lives)
		list_path(hl, m.event.path, sizeof m.event.path);
	tell_all(s, &m, hl);
	ev.type = PINL_EV_DEGRADED;
	ev.err = -EOPNOTSUPP;
	for (int op = 0; op < PINL_OP_NR; op++) {
		if (!(unseen & PINL_OPBIT(op)))
			continue;
		ev.op = op;
		describe(&ev, &m);
		tell_all(s, &m, hl);
	}
}

/* No other thread can end it now. */
static bool is_in(const struct server *s, const struct held_lease *hl)
{
	struct holder *h;

	LIST_FOREACH(h, &s->holders, link)
	if (h == hl->holder)
		return lease_find(h, hl->number) == hl;
	return false;
}

/* What isn't whole yet is said to be leased when it is, or when something happens to it; what comes to
 * nothing before that is not mentioned. False: not now. */
static bool may_tell(struct server *s, struct held_lease *hl, const struct pinl_event *ev)
{
	if (hl->shown)
		return true;
	if (ev->type == PINL_EV_DEGRADED && !ev->change_id && ev->op < PINL_OP_NR)
		hl->unseen |= PINL_OPBIT(ev->op);
	else if (ev->type != (enum pinl_event_type)PL_EVENT_ENDED)
		show(s, hl, is_in(s, hl), ev->time_ns);
	return hl->shown;
}

static void take(struct server *s, const struct pinl_event *ev)
{
	struct watcher *w;
	union pl_message m;

	if (ev->type == PINL_EV_DROPPED) {
		LIST_FOREACH(w, &s->watchers, link)
		lose(w, ev->bytes);
		return;
	}
	if (is_mappings(ev) || (ev->cookie && !may_tell(s, ev->cookie, ev)))
		return;
	describe(ev, &m);
	tell_all(s, &m, ev->cookie);
}

static void free_leases(struct held_lease *hl)
{
	struct held_lease *next;

	for (; hl; hl = next) {
		next = hl->ended_next;
		free(hl);
	}
}

static struct held_lease *take_ended(struct server *s)
{
	struct held_lease *ended;

	pthread_mutex_lock(&s->lock);
	ended = s->ended;
	s->ended = NULL;
	pthread_mutex_unlock(&s->lock);
	return ended;
}

/* The core's events, at most so many. */
static void take_events(struct server *s, unsigned limit)
{
	struct pinl_event ev = {.size = sizeof ev};
	struct watcher *w;
	int err = 0;

	if (!s->ending)
		s->ending = take_ended(s);
	while (limit-- && !(err = pinl_next_event(s->ctx, &ev)))
		take(s, &ev);
	if (err) { /* there are none left */
		free_leases(s->ending);
		s->ending = NULL;
	}
	LIST_FOREACH(w, &s->watchers, link)
	watch_send(w->h);
}

static int on_events(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
	take_events(arg, AT_ONCE);
	return 0;
}

/* ---------------------------------------------------------------------------------------- leases -- */

void watch_catch_up(struct server *s)
{
	if (!LIST_EMPTY(&s->watchers))
		take_events(s, UINT32_MAX);
}

void watch_leased(struct held_lease *hl)
{
	struct server *s = hl->holder->server;

	watch_catch_up(s); /* the number may have been another lease's */
	if (!hl->shown)
		show(s, hl, true, pl_clock_ns());
}

void watch_ending(const struct held_lease *hl)
{
	if (!hl->shown)
		watch_catch_up(hl->holder->server);
}

/* Any thread. Ends it; the core knows it no more. */
void watch_ended(struct held_lease *hl, struct server *s)
{
	struct pinl_event ev = lease_event(hl, (enum pinl_event_type)PL_EVENT_ENDED);

	pthread_mutex_lock(&s->lock);
	if (s->watched && hl->lease) {
		pl_event_push(s->ctx, &ev);
		hl->ended_next = s->ended;
		s->ended = hl;
		hl = NULL;
	}
	pthread_mutex_unlock(&s->lock);
	free(hl);
}

/* -------------------------------------------------------------------------------------- watchers -- */

static void set_watched(struct server *s, bool watched)
{
	pthread_mutex_lock(&s->lock);
	s->watched = watched;
	pthread_mutex_unlock(&s->lock);
	sd_event_source_set_enabled(s->events, watched ? SD_EVENT_ON : SD_EVENT_OFF);
}

static int start(struct server *s)
{
	struct pinl_event ev = {.size = sizeof ev};
	int err = 0;

	if (s->watched)
		return 0;
	if (!s->events)
		err = sd_event_add_io(s->event, &s->events, pinl_fd(s->ctx), EPOLLIN, on_events, s);
	if (err < 0)
		return pinl_set_error(err, "no events: %s", strerror(-err));
	set_watched(s, true);
	while (!pinl_next_event(s->ctx, &ev)) /* of before; their leases may be gone */
		;
	return 0;
}

static bool too_many(const struct holder *h)
{
	const struct watcher *w;
	int n = 0;

	LIST_FOREACH(w, &h->server->watchers, link)
	n += w->h->user == h->user;
	return n >= WATCHERS;
}

int watch_begin(struct holder *h, const struct pl_watch_msg *m)
{
	struct server *s = h->server;
	struct watcher *w = NULL;
	int err = 0;

	if (h->watcher)
		err = pinl_set_error(-EBUSY, "this connection watches already");
	else if (too_many(h))
		err = pinl_set_error(-EDQUOT, "user %u watches %d times already; end one of these",
				     h->user->uid, WATCHERS);
	else if (!(w = calloc(1, sizeof *w)))
		err = pinl_set_error(-ENOMEM, "pinleased is out of memory");
	if (!err)
		err = start(s);
	if (err) {
		free(w);
		return holder_reply(h, &m->head, err, 0);
	}
	w->h = h;
	w->m = *m;
	h->watcher = w;
	LIST_INSERT_HEAD(&s->watchers, w, link);
	s->n_watchers++;
	return holder_reply(h, &m->head, 0, 0);
}

void watch_gone(struct holder *h)
{
	struct server *s = h->server;

	if (!h->watcher)
		return;
	LIST_REMOVE(h->watcher, link);
	free(h->watcher);
	h->watcher = NULL;
	s->n_watchers--;
	if (LIST_EMPTY(&s->watchers))
		watch_stop(s);
}

/* Nobody looks at an event from here on. */
void watch_stop(struct server *s)
{
	if (s->events)
		set_watched(s, false);
	free_leases(take_ended(s));
	free_leases(s->ending);
	s->ending = NULL;
}
