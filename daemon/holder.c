/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Holders: one connection each, from its first message to the end of its process. lease.c has its
 * leases, notice.c what it is told.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daemon.h"
#include "gate.h"
#include "generation.h"
#include "os/clock.h"

#define ENDING_MS 1000

static const char too_many[] =
	"pinleased serves no more connections of this user; close some, or have its limits raised";

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

/* --------------------------------------------------------------------------------------- sending -- */

int holder_send(struct holder *h, const union pl_message *m)
{
	int err = pl_message_send(h->sock, m, -1);

	h->full |= err == -EAGAIN; /* until it is said to be writable: notices wait for that */
	sd_event_source_set_io_events(h->io, EPOLLIN | (h->full ? EPOLLOUT : 0));
	return err;
}

void holder_copy_text(char *to, const char *from, size_t len)
{
	for (size_t i = 0; i < len; i++)
		to[i] = from[i] && (from[i] < ' ' || from[i] > '~') ? '?' : from[i];
}

/* A holder that doesn't read loses his replies, not ours to keep: he is let go. */
int holder_reply_to(struct holder *h, uint64_t serial, int err, uint64_t value)
{
	union pl_message m;

	pl_message_init(&m, PL_REPLY);
	m.head.serial = serial;
	m.reply.err = err;
	m.reply.value = value;
	if (err)
		snprintf(m.reply.text, sizeof m.reply.text, "%s", pinl_error());
	return holder_send(h, &m);
}

int holder_reply(struct holder *h, const struct pl_head *to, int err, uint64_t value)
{
	return holder_reply_to(h, to->serial, err, value);
}

static int on_truncate(struct holder *h, const struct pl_truncate_msg *m, int fd)
{
	int err = later_take(h, m, fd), gone = holder_reply(h, &m->head, err, 0);

	if (!err)
		later_begin(h->server);
	return gone;
}

/* ------------------------------------------------------------------------------------- receiving -- */

/* 0, or the error that it is told. */
static int admit(struct holder *h, const struct pl_hello *m)
{
	int err = 0;

	if (m->version != PL_PROTO_VERSION)
		err = pinl_set_error(-EPROTONOSUPPORT,
				     "pinleased speaks version %d of the protocol, not %u; install the "
				     "same release of both",
				     PL_PROTO_VERSION, m->version);
	else if (!user_may_come(h->server, h->user, m->role))
		err = pinl_set_error(-EDQUOT, "%s", too_many);
	if (err)
		holder_reply(h, &m->head, err, 0);
	return err;
}

/* Afterwards its socket may be another holder's: the one who takes up where he left. */
static int on_hello(struct holder *h, const struct pl_hello *m)
{
	struct holder *old = NULL;
	union pl_message w;
	int err = admit(h, m);

	if (err)
		return err;
	if (m->resume && (old = resume_session(h, m->resume)))
		h = old;
	h->welcome = true;
	h->returning = m->resume;
	holder_copy_text(h->name, m->name, sizeof h->name);
	pl_message_init(&w, PL_WELCOME);
	w.welcome.session = h->session;
	w.welcome.resumed = old != NULL;
	w.head.serial = m->head.serial;
	w.welcome.version = PL_PROTO_VERSION;
	w.welcome.ceiling_ms = h->server->limits.ceiling_ms;
	w.welcome.boot = h->server->boot;
	w.welcome.max_leases = h->server->limits.leases;
	w.welcome.max_bytes = h->server->limits.bytes;
	err = holder_send(h, &w);
	return old ? 0 : err; /* which the next event says again */
}

static int dispatch(struct holder *h, const union pl_message *m, int fd)
{
	if (!h->welcome && m->head.type != PL_HELLO)
		return -EPROTO;
	switch (m->head.type) {
	case PL_HELLO:
		return h->welcome ? -EPROTO : on_hello(h, &m->hello);
	case PL_ALL_TOLD:
		resume_told(h);
		return 0;
	case PL_TRUNCATE:
		return on_truncate(h, &m->truncate, fd);
	case PL_LIST:
		return list_begin(h, &m->list);
	case PL_RECALL_LEASES:
		return recall_begin(h, &m->recall);
	case PL_WATCH:
		return watch_begin(h, &m->watch);
	case PL_ASK_STATUS:
		return status_begin(h, &m->ask_status);
	case PL_COUNT:
		return generation_ask(h, &m->count);
	case PL_CHANGE:
		return change_begin(h, &m->change, fd);
	case PL_DONE:
		change_done(h, &m->done);
		return 0;
	default:
		return lease_message(h, m, fd);
	}
}

/* One message at a time, so that nobody keeps the loop from the others. */
int holder_receive(struct holder *h)
{
	union pl_message m;
	const char *why;
	int fd, err;

	err = door_pass(h);
	if (err)
		return err == -EAGAIN ? 0 : err;
	err = pl_message_receive(h->sock, &m, &fd, &why);
	if (err == -EAGAIN)
		return 0;
	if (!err)
		err = dispatch(h, &m, fd);
	if (fd >= 0)
		close(fd);
	gate_drop(h->server);	   /* before anybody is told that he may go on */
	changes_answer(h->server); /* when the file is not open here any more */
	return err;
}

/* ------------------------------------------------------------------------------- coming and going -- */

static int identify(int sock, struct ucred *cred, int *pidfd)
{
	socklen_t len = sizeof *cred;

	if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, cred, &len))
		return -errno;
	len = sizeof *pidfd; /* of who connected, whose number may be another's by now; since 6.5 */
	if (getsockopt(sock, SOL_SOCKET, SO_PEERPIDFD, pidfd, &len))
		*pidfd = syscall(SYS_pidfd_open, cred->pid, 0);
	return 0;
}

/* The only message that is no answer. */
void holder_refuse(int sock)
{
	union pl_message m;

	pl_message_init(&m, PL_REPLY);
	m.reply.err = -EDQUOT;
	strcpy(m.reply.text, too_many);
	pl_message_send(sock, &m, -1);
}

void holder_free(struct holder *h)
{
	if (h->user) {
		user_adopted(h, false);
		user_put(h->server, h->user, true);
	}
	if (h->pidfd >= 0)
		close(h->pidfd);
	kill_free(h->killing);
	free(h->pool);
	list_free(h->listing);
	free(h);
}

/* Without a connection. */
struct holder *holder_alloc(struct server *s, uid_t uid, bool besides, pid_t pid, int pidfd)
{
	struct holder *h = calloc(1, sizeof *h);

	if (!h) {
		close(pidfd);
		return NULL;
	}
	h->server = s;
	h->sock = -1;
	h->pid = pid;
	h->pidfd = pidfd;
	while (!h->session)
		if (getrandom(&h->session, sizeof h->session, 0) < 0)
			h->session = pl_clock_ns();
	if (notices_init(h) || !(h->user = user_get(s, uid, besides)) ||
	    pinl_device_open_ops(s->ctx, &holder_device_ops, h, &h->device)) {
		holder_free(h);
		return NULL;
	}
	pl_device_foreign(h->device, &holder_foreign_ops);
	return h;
}

/* For commands of who runs this: the oldest of those who have said nothing yet has to go. */
static bool make_room(struct server *s, uid_t uid)
{
	struct holder *h, *oldest = NULL;

	LIST_FOREACH(h, &s->holders, link)
	if (!h->welcome && h->user->uid == uid)
		oldest = h;
	if (oldest)
		holder_gone(oldest);
	return oldest;
}

struct holder *holder_new(struct server *s, int sock)
{
	struct ucred cred;
	struct holder *h = NULL;
	int pidfd = -1;

	if (!identify(sock, &cred, &pidfd)) {
		bool besides = user_is_locked_out(s, cred.uid) && make_room(s, cred.uid);

		h = holder_alloc(s, cred.uid, besides, cred.pid, pidfd);
	}
	if (!h) {
		holder_refuse(sock);
		door_refuse(s, sock);
		return NULL;
	}
	h->sock = sock;
	if (share_descriptor(s, h->user, sock) || door_come(h, cred.uid)) {
		pinl_device_close(h->device);
		holder_free(h);
		holder_refuse(sock);
		door_refuse(s, sock);
		return NULL;
	}
	LIST_INSERT_HEAD(&s->holders, h, link);
	return h;
}

/* To the reaper. */
void holder_leave(struct holder *h)
{
	struct pollfd p = {.fd = h->pidfd, .events = POLLIN};
	struct server *s = h->server;

	h->exit = sd_event_source_disable_unref(h->exit);
	h->patience = sd_event_source_disable_unref(h->patience);
	h->leaves = h->endings;
	if (h->leaves)
		return;
	h->left = h->leases.root && h->pidfd >= 0 && !poll(&p, 1, 0);
	recall_pass(h);
	LIST_REMOVE(h, link);
	pthread_mutex_lock(&s->reaping);
	LIST_INSERT_HEAD(&s->reaped, h, link);
	pthread_mutex_unlock(&s->reaping);
	pthread_mutex_lock(&s->lock);
	h->reap_next = s->reap;
	s->reap = h;
	pthread_cond_signal(&s->work);
	pthread_mutex_unlock(&s->lock);
}

static int on_exit_seen(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
	holder_leave(arg);
	return 0;
}

static int on_patience_over(sd_event_source *source, uint64_t usec, void *arg)
{
	holder_leave(arg);
	return 0;
}

bool holder_watch_exit(struct holder *h)
{
	return h->pidfd >= 0 &&
	       sd_event_add_io(h->server->event, &h->exit, h->pidfd, EPOLLIN, on_exit_seen, h) >= 0;
}

/* Who is about to end has its connection closed a little before. */
static bool waits_for_exit(struct holder *h)
{
	sd_event *event = h->server->event;

	return h->leases.root && holder_watch_exit(h) &&
	       sd_event_add_time_relative(event, &h->patience, CLOCK_MONOTONIC, ENDING_MS * 1000, 0,
					  on_patience_over, h) >= 0;
}

void holder_gone(struct holder *h)
{
	struct server *s = h->server;

	generation_forget(h);
	recall_gone(h);
	watch_gone(h);
	list_free(h->listing);
	h->listing = NULL;
	changes_leave(h);
	h->io = sd_event_source_disable_unref(h->io);
	door_leave(h);
	h->full = true;
	laters_forget(s, h);
	LIST_REMOVE(h, link);
	LIST_INSERT_HEAD(&s->leaving, h, link);
	if (!waits_for_exit(h))
		holder_leave(h);
}

void holder_end(struct holder *h)
{
	if (h->left && !h->server->ends)
		fprintf(stderr,
			"pinleased: %s (%d) has closed its connection with leases on it and hasn't "
			"ended "
			"within a second: files are no longer guarded for it\n",
			h->name, h->pid);
	pinl_device_close(h->device); /* with the leases that are left */
	pthread_mutex_lock(&h->server->reaping);
	LIST_REMOVE(h, link);
	pthread_mutex_unlock(&h->server->reaping);
	while (h->leases.root)
		lease_forget(h, (struct held_lease *)h->leases.root);
	store_drop_holder(&h->server->store, h->stored);
	holder_free(h);
}
