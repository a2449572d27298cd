/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Events: a ring made at open, so that reporting allocates nothing. When it is full the oldest are
 * lost and counted; the next event read says how many. The counters and the orphan summary don't
 * depend on it.
 *
 * With a callback, a thread of its own takes the events out: a callback may block, free watched memory
 * or call back into the library without stopping a recall.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "core/ctx.h"
#include "os/thread.h"
#include "os/wake.h"

#define RING 4096

struct pl_events {
	pthread_mutex_t lock;
	int fd; /* eventfd: counts one while the ring is not empty */
	unsigned head, count;
	uint64_t dropped;
	void (*on_event)(const struct pinl_event *event, void *arg);
	void *arg;
	int stop;
	bool started;
	pthread_t dispatcher;
	struct pinl_event ring[RING];
};

static int pop(struct pl_events *e, struct pinl_event *event)
{
	struct pinl_event oldest;
	eventfd_t n;
	int err = -EAGAIN;

	pthread_mutex_lock(&e->lock);
	if (e->dropped) {
		oldest = (struct pinl_event){.size = sizeof oldest,
					     .type = PINL_EV_DROPPED,
					     .time_ns = pl_clock_ns(),
					     .bytes = e->dropped};
		e->dropped = 0;
		err = 0;
	} else if (e->count) {
		oldest = e->ring[e->head];
		e->head = (e->head + 1) % RING;
		e->count--;
		err = 0;
	}
	if (!e->count)
		eventfd_read(e->fd, &n);
	pthread_mutex_unlock(&e->lock);
	if (!err)
		*event = oldest;
	return err;
}

static void *dispatch(void *arg)
{
	struct pl_events *e = arg;
	struct pollfd p[2] = {{e->fd, POLLIN, 0}, {e->stop, POLLIN, 0}};
	struct pinl_event event;

	while (!(p[1].revents & POLLIN)) {
		if (poll(p, 2, -1) < 0)
			continue;
		while (!pop(e, &event))
			e->on_event(&event, e->arg);
	}
	return NULL;
}

struct pl_events *pl_events_new(const struct pinl_opts *opts)
{
	struct pl_events *e = calloc(1, sizeof *e);

	if (!e)
		return NULL;
	pthread_mutex_init(&e->lock, NULL);
	e->on_event = opts->on_event;
	e->arg = opts->on_event_arg;
	e->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	e->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (e->fd < 0 || e->stop < 0)
		goto fail;
	if (e->on_event) {
		errno = -pl_thread_start(&e->dispatcher, dispatch, e);
		if (errno)
			goto fail;
		e->started = true;
	}
	return e;
fail:
	pl_events_free(e);
	return NULL;
}

void pl_events_stop(struct pl_events *e)
{
	if (!e || !e->started)
		return;
	pl_wake(e->stop);
	pthread_join(e->dispatcher, NULL);
	e->started = false;
}

void pl_events_free(struct pl_events *e)
{
	int saved = errno;

	if (!e)
		return;
	if (e->fd >= 0)
		close(e->fd);
	if (e->stop >= 0)
		close(e->stop);
	pthread_mutex_destroy(&e->lock);
	free(e);
	errno = saved;
}

void pl_event_push(struct pinl_ctx *ctx, const struct pinl_event *event)
{
	struct pl_events *e = ctx->events;
	struct pinl_event *slot;

	pthread_mutex_lock(&e->lock);
	if (e->count == RING) {
		e->head = (e->head + 1) % RING;
		e->count--;
		e->dropped++;
	}
	slot = &e->ring[(e->head + e->count++) % RING];
	*slot = *event;
	slot->size = sizeof *slot;
	if (!slot->time_ns)
		slot->time_ns = pl_clock_ns();
	pl_wake(e->fd);
	pthread_mutex_unlock(&e->lock);
}

void pl_event_lease(const struct pinl_lease *lease, enum pinl_event_type type, const struct pl_recall *r,
		    struct pinl_event *ev)
{
	*ev = (struct pinl_event){
		.size = sizeof *ev,
		.type = type,
		.lease_id = lease->id,
		.cookie = lease->cookie,
		.holder = pl_lease_owner(lease),
		.start = lease->m.start,
		.end = lease->m.end,
		.file_dev = lease->on->mem.dev,
		.file_ino = lease->on->mem.ino,
		.op = PINL_OP_NR,
	};
	if (r) {
		ev->op = r->op;
		ev->start = r->va.start;
		ev->end = r->va.end;
		ev->deadline_ns = r->deadline_ns;
		ev->change_id = r->change_id;
		ev->actor_pid = r->actor_pid;
		ev->actor_tid = r->actor_tid;
		if (r->source)
			strncpy(ev->source, r->source, sizeof ev->source - 1);
	}
	if (lease->more->import) { /* its numbers mean nothing to anybody else */
		ev->file_dev = ev->file_ino = 0;
	} else if (lease->on->mem.ino) {
		ev->file_start = lease->on->mem.offset + (ev->start - lease->m.start);
		ev->file_end = ev->file_start + (ev->end - ev->start);
	}
	ev->bytes = ev->end - ev->start;
}

/* Of a lease that is reached by keys: the first, or others than before. */
void pl_event_keys(const struct pinl_lease *lease)
{
	struct pinl_event ev;

	if (!lease->dm.rkey)
		return;
	pl_event_lease(lease, PINL_EV_KEYS, NULL, &ev);
	ev.addr = lease->dm.start;
	ev.key = lease->dm.key;
	ev.rkey = lease->dm.rkey;
	pl_event_push(lease->ctx, &ev);
}

int pinl_fd(struct pinl_ctx *ctx)
{
	return pl_alive(ctx) ? ctx->events->fd : pl_stale();
}

/* What a program knows that was built with a version that had less, or more. */
size_t pl_event_known(const struct pinl_event *event)
{
	return event->size < sizeof *event ? event->size : sizeof *event;
}

int pinl_next_event(struct pinl_ctx *ctx, struct pinl_event *event)
{
	PL_CALL(call);
	struct pinl_event oldest;
	int err;

	if (!pl_alive(ctx))
		return pl_stale();
	if (event->size < PL_EVENT_LEAST)
		return pinl_set_error(-EINVAL,
				      "the event's size is %zu; set it to sizeof(struct pinl_event)",
				      event->size);
	err = pop(ctx->events, &oldest);
	if (err)
		return err;
	oldest.size = pl_event_known(event);
	memcpy(event, &oldest, oldest.size);
	return 0;
}
