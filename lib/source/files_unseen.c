/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Events whose tasks aren't asleep yet. The kernel queues an event before it puts its task to sleep, and
 * says nothing of what a task is doing while it runs. On a busy processor, or in a group that has used
 * up its share, it can be long before it sleeps; what it is about to do must not be taken for a change
 * (a holder's own open of its file would wait for itself), and must not go on as if it were none.
 * So such an event is kept aside, nobody waits for it, and it is looked at again until its task sleeps;
 * after PATIENCE_NS it is a change.
 */
#include "source/files.h"

#include <errno.h>
#include <string.h>

#include "os/clock.h"

#define PATIENCE_NS 5000000000u

/* At the end: they came in this order. */
static void append(struct pl_files *s, struct pl_held *h)
{
	struct pl_held **p = &s->unseen;

	while (*p)
		p = &(*p)->next;
	h->next = NULL;
	*p = h;
}

/* 1, or -EBUSY: there is no place for it. lost: see pl_held. */
int pl_files_defer(struct pl_files *s, const struct fanotify_event_metadata *m, bool lost)
{
	struct pl_held *h = m->event_len <= sizeof h->event ? pl_files_take(s, m) : NULL;

	if (!h)
		return -EBUSY;
	memcpy(h->event, m, m->event_len);
	h->lost = lost;
	h->read_ns = pl_clock_ns();
	atomic_signal_fence(memory_order_release);
	h->state = PL_HELD_UNSEEN;
	append(s, h);
	s->poll_ms = 1;
	return 1;
}

/* One of an earlier process's. */
void pl_files_defer_held(struct pl_files *s, struct pl_held *h)
{
	h->lost = true;
	h->read_ns = pl_clock_ns();
	append(s, h);
	s->poll_ms = 1;
}

static bool take_up(struct pl_files *s, struct pl_held *h, enum pl_files_look how)
{
	if (!pl_files_take_up_event(s, (void *)h->event, how))
		return false;
	h->fd = -1; /* another has it, or it is closed */
	pl_files_free(s, h);
	return true;
}

static bool look(struct pl_files *s, struct pl_held *h, enum pl_files_look how)
{
	struct pl_files_seen seen;

	switch (pl_files_look(&s->peek, (void *)h->event, &seen, how)) {
	case PL_FILES_AGAIN:
		return false;
	case PL_FILES_CHANGE:
		pl_files_ask_core(s, h, &seen);
		return true;
	case PL_FILES_PASS:
		break;
	}
	pl_files_respond(s, h->fd, 0);
	pl_files_free(s, h);
	return true;
}

void pl_files_look_again(struct pl_files *s)
{
	struct pl_held *h = s->unseen, *next;
	uint64_t now = pl_clock_ns();

	s->unseen = NULL;
	for (; h; h = next) {
		enum pl_files_look how = now - h->read_ns > PATIENCE_NS ? PL_FILES_LAST : PL_FILES_NEXT;

		next = h->next;
		if (!(h->lost ? take_up(s, h, how) : look(s, h, how)))
			append(s, h);
	}
}
