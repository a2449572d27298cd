/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the link says to pinleased: what was asked for, answers to notices, and after a connection broke
 * the leases of before. Invariants: s->lock held; none of this waits; of what is told again only
 * PL_REMOTE_UNANSWERED wait for a reply, as pinleased ends a connection that has no room for one.
 */
#include "source/remote.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "proto/wire.h"

static int raw_open(const char *path, int flags)
{
	int fd = syscall(SYS_openat, AT_FDCWD, path, flags);

	return fd < 0 ? -errno : fd;
}

static int send_with(struct pl_remote *s, union pl_message *m, const char *path, int flags)
{
	int fd = -1, err;

	if (path && *path) {
		fd = raw_open(path, flags);
		if (fd < 0 && (flags & O_ACCMODE) == O_RDWR) /* then it may be enough to read */
			fd = raw_open(path, (flags & ~O_ACCMODE) | O_RDONLY);
		if (fd < 0)
			return fd;
	}
	m->head.serial = ++s->serial;
	err = pl_message_send(s->sock, m, fd);
	if (fd >= 0)
		pl_remote_close_fd(fd);
	return err;
}

static void set_head(union pl_message *m, enum pl_type type)
{
	union pl_message empty;

	pl_message_init(&empty, type);
	m->head = empty.head;
}

static int send_released(struct pl_remote *s, const struct pl_released_msg *said)
{
	union pl_message m;

	pl_message_init(&m, PL_RELEASED);
	m.released = *said;
	set_head(&m, PL_RELEASED);
	return send_with(s, &m, NULL, 0);
}

/* What is off its device since a time when that couldn't be said. */
static int send_taken(struct pl_remote *s, const struct pl_remote_lease *r)
{
	const struct pl_remote_taken *t = &r->taken;
	struct pl_released_msg m = {.lease = r->msg.lease, .outcome = t->outcome};
	int err = 0;

	if (t->whole) {
		m.whole = 1;
		return send_released(s, &m);
	}
	for (int i = 0; !err && i < t->n_parts; i++) {
		m.start = t->parts[i].start;
		m.end = t->parts[i].end;
		err = send_released(s, &m);
	}
	return err;
}

/* The answer counts for the arbiter that has asked only; but another may think that it is leased. */
static int send_done(struct pl_remote *s, const struct pl_remote_notice *n)
{
	struct pl_released_msg m = {.lease = n->lease,
				    .seq = n->seq,
				    .start = n->va.start,
				    .end = n->va.end,
				    .whole = n->whole,
				    .outcome = n->outcome};
	const struct pl_remote_lease *r;

	if (n->what != PL_NOTICE_RECALL || n->silent || s->sock < 0)
		return 0;
	if (n->connection == s->connection)
		return send_released(s, &m);
	r = pl_remote_find(s, n->lease);
	if (!r || !r->told || r->ended || n->lease >= s->untold) /* or it is told with the lease */
		return 0;
	return send_taken(s, r);
}

static bool send_answer(struct pl_remote *s)
{
	struct pl_remote_notice *n = s->answers;

	if (!n || send_done(s, n) == -EAGAIN)
		return false;
	s->answers = n->next;
	if (!s->answers)
		s->answers_tail = &s->answers;
	n->next = s->free;
	s->free = n;
	return true;
}

static int send_all_told(struct pl_remote *s)
{
	union pl_message m;

	pl_message_init(&m, PL_ALL_TOLD);
	return send_with(s, &m, NULL, 0);
}

static int send_still(struct pl_remote *s, const struct pl_remote_lease *r)
{
	union pl_message m;

	pl_message_init(&m, PL_STILL);
	m.still.lease = r->msg.lease;
	return send_with(s, &m, NULL, 0);
}

/* In full; the handle, if that isn't said next anyway. */
static int send_lease(struct pl_remote *s, struct pl_remote_lease *r, bool with_handle)
{
	union pl_message m = {.lease = r->msg};
	char path[64];
	int err;

	set_head(&m, PL_LEASE);
	snprintf(path, sizeof path, "/proc/self/task/%d/fd/%d", getpid(), r->lease->on->mem.fd);
	err = send_with(s, &m, path, r->how);
	r->serial[0] = m.head.serial;
	s->unanswered += !err;
	if (!err && with_handle && r->handle.lease) {
		m.handle = r->handle;
		set_head(&m, PL_HANDLE);
		err = send_with(s, &m, NULL, 0);
		r->serial[1] = m.head.serial;
		s->unanswered += !err;
	}
	if (!err)
		r->told = s->connections;
	return err;
}

/* What is new says so itself, and what has ended isn't there: the arbiter may know neither. */
static int send_again(struct pl_remote *s, struct pl_remote_lease *r)
{
	int err;

	if (!r->told || r->ended)
		return 0;
	err = s->resumed ? send_still(s, r) : send_lease(s, r, true);
	return err ? err : send_taken(s, r);
}

/* As where its file can't be opened any more, by a program that has given up its privileges. Said once
 * for a connection. */
void pl_remote_unguarded(struct pl_remote *s, struct pl_remote_lease *r)
{
	if (r->missed == s->connections)
		return;
	r->missed = s->connections;
	r->unguarded = true;
	if (s->unguarded > r->msg.lease)
		s->unguarded = r->msg.lease;
	pthread_cond_signal(&s->work);
}

/* Not all are known after all. */
void pl_remote_tell_in_full(struct pl_remote *s)
{
	s->resumed = false;
	s->missing = false;
	s->untold = 0;
}

static bool is_broken(int err)
{
	return err == -EPIPE || err == -ECONNRESET || err == -ENOTCONN;
}

/*
 * A lease from before the connection broke; its descriptor lives as long as it is in the index. One
 * may be told twice: twice the same lease is the same lease. False: no more of them, or not now. One
 * that can't be told keeps nobody else from being told.
 */
static bool send_untold(struct pl_remote *s, bool *full)
{
	struct pl_node *n;
	int err;

	if (s->sock < 0 || s->untold == UINT64_MAX || s->unanswered >= PL_REMOTE_UNANSWERED)
		return false;
	n = pl_index_first(&s->leases, s->untold, UINTPTR_MAX);
	err = n ? send_again(s, (struct pl_remote_lease *)n) : send_all_told(s);
	*full = err == -EAGAIN;
	if (*full || err == -ETOOMANYREFS || is_broken(err)) /* until some of it is read, if ever */
		return false;
	if (err && n)
		pl_remote_unguarded(s, (struct pl_remote_lease *)n);
	s->untold = n ? n->end : UINT64_MAX;
	if (!n && s->missing)
		pl_remote_tell_in_full(s);
	return s->untold != UINT64_MAX;
}

/* Its handle comes after the lease itself, also if that was told of by an earlier connection; and from
 * its end on, said or not, it isn't told again. */
static int before(struct pl_remote *s, const struct pl_remote_ask *a)
{
	struct pl_remote_lease *r = NULL;

	if (a->m.head.type == PL_HANDLE)
		r = pl_remote_find(s, a->m.handle.lease);
	if (r)
		return r->told != s->connections && s->sock >= 0 ? send_lease(s, r, false) : 0;
	if (a->m.head.type == PL_UNLEASE)
		r = pl_remote_find(s, a->m.unlease.lease);
	if (r)
		r->ended = true;
	return 0;
}

/* The oldest ask; false: there is none, or no room for it. */
static bool send_ask(struct pl_remote *s)
{
	struct pl_remote_ask *a = s->asks;
	int err;

	if (!a)
		return false;
	set_head(&a->m, a->m.head.type);
	err = before(s, a);
	if (!err)
		err = s->sock < 0 ? -ENOTCONN : send_with(s, &a->m, a->path, a->flags);
	if (err == -EAGAIN)
		return false;
	s->asks = a->next;
	if (!s->asks)
		s->asks_tail = &s->asks;
	if (is_broken(err))
		err = -ENOTCONN;
	if (err && err != -ENOTCONN)
		snprintf(a->text, sizeof a->text, "the file can't be shown to pinleased: %s",
			 strerror(-err));
	if (err || !a->reply) {
		pl_remote_finish(s, a, err);
		return true;
	}
	a->next = s->waiting;
	s->waiting = a;
	return true;
}

/* True: something is left to be sent. */
bool pl_remote_send_all(struct pl_remote *s)
{
	bool left, full = false;

	pthread_mutex_lock(&s->lock);
	if (s->sock >= 0 && s->unseen != UINT64_MAX) { /* the reporter wakes */
		pthread_mutex_unlock(&s->lock);
		return false;
	}
	while (send_untold(s, &full))
		;
	while (send_answer(s))
		;
	while (send_ask(s))
		;
	left = full || s->asks || s->answers;
	pthread_mutex_unlock(&s->lock);
	return left;
}
