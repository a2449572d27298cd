/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The thread of the notify source. Invariants: it owns an inode only while that is in `scanning`, and
 * holds neither the lock nor the inode when it calls the core; it allocates and frees nothing. Without
 * leases on files it sleeps; with files that inotify tells everything about, too.
 *
 * `lock` covers all of struct pl_notify below it.
 */
#include "source/notify.h"

#include "os/clock.h"
#include "os/wake.h"

#include <errno.h>
#include <poll.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define GAP_MS 2 /* between two scans of files that are written all the time */

void pl_notify_wake(struct pl_notify *s)
{
	pl_wake(s->wake);
}

static void answer(struct pinl_change *change, int err)
{
	struct pl_told *t = change->arg;
	struct pl_notify *s = t->src;

	pthread_mutex_lock(&s->lock);
	if (!s->free)
		pl_notify_wake(s); /* a scan may have run out of them */
	t->next = s->free;
	s->free = t;
	pthread_mutex_unlock(&s->lock);
}

static void submit_all(struct pl_notify *s, struct pl_told *found)
{
	for (struct pl_told *next; found; found = next) {
		next = found->next;
		found->change.answer = answer;
		found->change.arg = found;
		pinl_change_submit(s->ctx, &found->change);
	}
}

/* Scan one dirty inode; false: there is none, or nothing to report with. */
static bool scan_one(struct pl_notify *s)
{
	struct pl_told *mine, *found = NULL, *t;
	struct pl_noted *n;
	bool again;

	pthread_mutex_lock(&s->lock);
	for (n = s->noted; n && !n->dirty; n = n->next)
		;
	if (!n || s->stop) {
		pthread_mutex_unlock(&s->lock);
		return false;
	}
	n->dirty = false;
	s->scanning = n;
	mine = s->free;
	s->free = NULL;
	pthread_mutex_unlock(&s->lock);

	again = pl_noted_scan(n, &mine, &found);

	pthread_mutex_lock(&s->lock);
	n->dirty |= again;
	s->scanning = NULL;
	while ((t = mine)) {
		mine = t->next;
		t->next = s->free;
		s->free = t;
	}
	pthread_cond_broadcast(&s->idle);
	pthread_mutex_unlock(&s->lock);
	again = again && !found;
	submit_all(s, found);
	return !again;
}

/* wd < 0: the queue overflowed, it could be any. */
static void mark_dirty(struct pl_notify *s, int wd, bool periodic)
{
	pthread_mutex_lock(&s->lock);
	for (struct pl_noted *n = s->noted; n; n = n->next)
		n->dirty |= periodic ? n->periodic || s->young_until : wd < 0 || n->wd == wd;
	pthread_mutex_unlock(&s->lock);
}

static void read_inotify(struct pl_notify *s)
{
	_Alignas(struct inotify_event) char buf[4096];
	ssize_t n = read(s->inotify, buf, sizeof buf);

	for (ssize_t at = 0; at < n;) {
		const struct inotify_event *e = (void *)(buf + at);

		if (e->mask & (IN_MODIFY | IN_Q_OVERFLOW))
			mark_dirty(s, e->mask & IN_Q_OVERFLOW ? -1 : e->wd, false);
		at += sizeof *e + e->len;
	}
}

static bool is_young(struct pl_notify *s)
{
	bool young;

	pthread_mutex_lock(&s->lock);
	if (s->young_until && pl_clock_ns() > s->young_until)
		s->young_until = 0;
	young = s->young_until;
	pthread_mutex_unlock(&s->lock);
	return young;
}

static bool stopping(struct pl_notify *s)
{
	bool stop;

	pthread_mutex_lock(&s->lock);
	stop = s->stop;
	pthread_mutex_unlock(&s->lock);
	return stop;
}

void *pl_notify_thread(void *src)
{
	struct pl_notify *s = src;
	struct pollfd fds[3] = {{s->wake, POLLIN, 0}, {s->timer, POLLIN, 0}, {s->inotify, POLLIN, 0}};
	uint64_t count;

	prctl(PR_SET_NAME, "pinl-notify");
	while (!stopping(s)) {
		bool young = is_young(s), busy = fds[2].revents & POLLIN;

		/* After a written file, events gather for a moment. */
		poll(fds, busy ? 2 : 3, young || busy ? GAP_MS : -1);
		if (busy)
			fds[2].revents = 0;
		if ((fds[0].revents & POLLIN) && read(s->wake, &count, sizeof count) < 0)
			continue;
		if (young || ((fds[1].revents & POLLIN) && read(s->timer, &count, sizeof count) > 0))
			mark_dirty(s, -1, true);
		if (fds[2].revents & POLLIN)
			read_inotify(s);
		while (scan_one(s))
			;
	}
	return NULL;
}
