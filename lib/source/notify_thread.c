/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The thread of the notify source. Invariants: it owns an inode only while that is in `scanning`, and
 * holds neither the lock nor the inode when it calls the core; it allocates and frees nothing. Without
 * leases on files it sleeps; with files that inotify tells everything about, too.
 *
 * `lock` covers all of struct pl_notify below it.
 */
#include "source/notify.h"

#include "core/ctx.h"
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

static bool stopping(struct pl_notify *s)
{
	bool stop;

	pthread_mutex_lock(&s->lock);
	stop = s->stop;
	pthread_mutex_unlock(&s->lock);
	return stop;
}

/*
 * It may be that pinleased had the file's leases taken from outside before it let the change go, as it
 * does while this process is stopped: that is to be heard first. A lease made meanwhile is told of what
 * was found, too: rather too often than too seldom.
 */
static void hear_first(struct pl_notify *s)
{
	struct pinl_ctx *ctx = s->ctx;
	uint64_t found = pl_clock_ns();
	bool hear = true;

	while (hear && pl_clock_ns() < found + PL_HEAR_NS) {
		pthread_mutex_lock(&ctx->lock);
		hear = ctx->caught_up && !ctx->caught_up(ctx->caught_up_arg, found);
		pthread_mutex_unlock(&ctx->lock);
		hear = hear && !stopping(s);
		if (hear)
			poll(NULL, 0, 1);
	}
}

/* Scan one dirty inode, or part of it; false: there is none, or nothing to report with. */
static bool scan_one(struct pl_notify *s)
{
	struct pl_told *mine, *found = NULL, *t;
	struct pl_noted *n;
	enum pl_scanned scanned;

	pthread_mutex_lock(&s->lock);
	while (s->waiting && !s->stop)
		pthread_cond_wait(&s->idle, &s->lock);
	n = TAILQ_FIRST(&s->dirty);
	if (!n || s->stop) {
		pthread_mutex_unlock(&s->lock);
		return false;
	}
	TAILQ_REMOVE(&s->dirty, n, dirty_link);
	n->dirty = false;
	s->scanning = n;
	mine = s->free;
	s->free = NULL;
	pthread_mutex_unlock(&s->lock);

	scanned = pl_noted_scan(s->ctx->aside, n, &mine, &found);
	if (found)
		hear_first(s);

	pthread_mutex_lock(&s->lock);
	if (scanned != PL_SCANNED)
		pl_noted_dirty(s, n);
	s->scanning = NULL;
	while ((t = mine)) {
		mine = t->next;
		t->next = s->free;
		s->free = t;
	}
	pthread_cond_broadcast(&s->idle);
	pthread_mutex_unlock(&s->lock);
	submit_all(s, found);
	return scanned != PL_SCAN_NO_REPORTS || found;
}

/*
 * wd < 0: the queue overflowed, it could be any. The file's time doesn't count then: a change sets it
 * when it begins, and before Linux 6.13 to that of the last tick, so it may be that of the last scan. A
 * range that is zeroed changes nothing else.
 */
static void mark_written(struct pl_notify *s, int wd)
{
	uintptr_t first = wd < 0 ? 0 : wd, end = wd < 0 ? UINTPTR_MAX : first + 1;

	pthread_mutex_lock(&s->lock);
	for (struct pl_node *n = pl_index_first(&s->by_wd, first, end); n;
	     n = pl_index_next(n, first, end)) {
		pl_noted_of_wd(n)->seen = false;
		pl_noted_dirty(s, pl_noted_of_wd(n));
	}
	pthread_mutex_unlock(&s->lock);
}

static void mark_often(struct pl_notify *s, bool period)
{
	uint64_t now = pl_clock_ns();
	struct pl_noted *n, *next;

	pthread_mutex_lock(&s->lock);
	for (n = LIST_FIRST(&s->often); n; n = next) {
		next = LIST_NEXT(n, often_link);
		if (now < n->young_until || (period && n->periodic))
			pl_noted_dirty(s, n);
		if (now < n->young_until || n->periodic)
			continue;
		LIST_REMOVE(n, often_link);
		n->often = false;
	}
	pthread_mutex_unlock(&s->lock);
}

static void read_inotify(struct pl_notify *s)
{
	_Alignas(struct inotify_event) char buf[4096];
	ssize_t n = read(s->inotify, buf, sizeof buf);

	for (ssize_t at = 0; at < n;) {
		const struct inotify_event *e = (void *)(buf + at);

		if (e->mask & (IN_MODIFY | IN_Q_OVERFLOW))
			mark_written(s, e->mask & IN_Q_OVERFLOW ? -1 : e->wd);
		at += sizeof *e + e->len;
	}
}

static bool is_young(struct pl_notify *s)
{
	bool young;

	pthread_mutex_lock(&s->lock);
	young = pl_clock_ns() < s->young_until;
	pthread_mutex_unlock(&s->lock);
	return young;
}

void *pl_notify_thread(void *src)
{
	struct pl_notify *s = src;
	struct pollfd fds[3] = {{s->wake, POLLIN, 0}, {s->timer, POLLIN, 0}, {s->inotify, POLLIN, 0}};
	uint64_t count;

	prctl(PR_SET_NAME, "pinl-notify");
	while (!stopping(s)) {
		bool young = is_young(s), busy = fds[2].revents & POLLIN, period;

		/* After a written file, events gather for a moment. */
		poll(fds, busy ? 2 : 3, young || busy ? GAP_MS : -1);
		if (busy)
			fds[2].revents = 0;
		if ((fds[0].revents & POLLIN) && read(s->wake, &count, sizeof count) < 0)
			continue;
		period = (fds[1].revents & POLLIN) && read(s->timer, &count, sizeof count) > 0;
		if (young || period)
			mark_often(s, period);
		if (fds[2].revents & POLLIN)
			read_inotify(s);
		while (scan_one(s))
			;
	}
	return NULL;
}
