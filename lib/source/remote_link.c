/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The thread of the remote source that talks to pinleased. Invariants:
 * - what is asked is done once: answered, failed for want of a connection, or given up by who asked;
 * - a notice taken from the pool goes to the reporter, comes back by `answers`, is sent, and is free;
 *   messages are only read while one is free;
 * - the thread allocates nothing and calls nothing of the core's; descriptors are this table's own.
 */
#include "source/remote.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "os/aside.h"
#include "os/clock.h"
#include "proto/wire.h"

#define RETRY_MS     100
#define RECONNECT_NS 1000000000u

/* ------------------------------------------------------------------------------------ connection -- */

/* A refusal may stand behind the end of the connection: then the first look gets only that. */
static int wait_for_answer(struct pl_remote *s, uint64_t until, union pl_message *m)
{
	struct pollfd p = {.fd = s->sock, .events = POLLIN};
	bool ended = false, again;
	const char *why;
	int fd, err;

	do {
		if (pl_clock_ns() > until)
			return -ETIMEDOUT;
		poll(&p, 1, 100);
		err = pl_message_receive(s->sock, m, &fd, &why);
		if (fd >= 0)
			pl_remote_close_fd(fd);
		again = err == -EAGAIN || (err == -EPIPE && !ended);
		ended = err == -EPIPE;
	} while (again);
	return err;
}

static int wait_for_welcome(struct pl_remote *s, uint64_t until)
{
	union pl_message m;
	int err = wait_for_answer(s, until, &m);

	*s->refused = 0;
	if (!err && m.head.type == PL_REPLY) {
		err = m.reply.err ? m.reply.err : -EPROTO;
		memcpy(s->refused, m.reply.text, sizeof s->refused);
	} else if (!err && (m.head.type != PL_WELCOME || m.welcome.version != PL_PROTO_VERSION))
		err = -EPROTO;
	if (!err && (m.welcome.boot != s->boot || m.welcome.session != s->session))
		s->connection++;
	if (!err) {
		s->boot = m.welcome.boot;
		s->session = m.welcome.session;
		s->ceiling_ns = m.welcome.ceiling_ms * 1000000ull;
		s->resumed = m.welcome.resumed;
		s->connections++;
	}
	return err;
}

static int hello(struct pl_remote *s, uint64_t until)
{
	union pl_message m;
	int err;

	pl_message_init(&m, PL_HELLO);
	m.hello.version = PL_PROTO_VERSION;
	m.hello.role = PL_ROLE_HOLDER;
	m.hello.resume = s->session;
	prctl(PR_GET_NAME, m.hello.name);
	snprintf(m.hello.name, sizeof m.hello.name, "%s", program_invocation_short_name);
	err = pl_message_send(s->sock, &m, -1);
	return err && err != -EPIPE ? err : wait_for_welcome(s, until); /* it may have said why */
}

static void note_listening(struct pl_remote *s, int err)
{
	pthread_mutex_lock(&s->lock);
	s->listens = !err || err == -EAGAIN;
	pthread_cond_broadcast(&s->done); /* who waits for a connection waits longer, or not at all */
	pthread_mutex_unlock(&s->lock);
}

static int make_connection(struct pl_remote *s, uint64_t until)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int err = 0;

	snprintf(addr.sun_path, sizeof addr.sun_path, "%s", s->path);
	s->sock = syscall(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (s->sock < 0)
		return -errno;
	if (syscall(SYS_connect, s->sock, &addr, sizeof addr))
		err = -errno;
	note_listening(s, err);
	if (!err)
		err = hello(s, until);
	if (err) {
		pl_remote_close_fd(s->sock);
		s->sock = -1;
		return err;
	}
	return 0;
}

void pl_remote_finish(struct pl_remote *s, struct pl_remote_ask *a, int err)
{
	a->err = err;
	if (err == -ENOTCONN)
		snprintf(a->text, sizeof a->text,
			 "the connection to pinleased is broken; is it running?");
	a->done = true;
	pthread_cond_broadcast(&s->done);
}

/* lock held; the reporter says it. */
static void end_later(struct pl_remote_later *l, int err)
{
	if (l->state != LATER_ASKED)
		return;
	l->state = LATER_DONE;
	l->err = err;
}

/* lock held; every lease is to be told anew. */
static void forget_connection(struct pl_remote *s)
{
	struct pl_remote_ask *a;

	while ((a = s->waiting)) {
		s->waiting = a->next;
		pl_remote_finish(s, a, -ENOTCONN);
	}
	pl_remote_keep_stale(s);
	s->untold = 0;
	s->unanswered = 0;
	s->missing = false;
	memset(s->fs, 0, sizeof s->fs);
	for (struct pl_remote_later *l = s->laters; l < s->laters + PL_REMOTE_LATER; l++)
		end_later(l, -ENOTCONN);
	s->connected = false;
	s->lost_ns = pl_clock_ns();
	s->unsaid = true;
	pthread_cond_signal(&s->work);
}

/* Nobody held changes for a while, or nobody does. lock held */
static void say_lost(struct pl_remote *s)
{
	s->lost |= s->unsaid;
	s->unsaid = false;
	pthread_cond_signal(&s->work);
}

static void disconnect(struct pl_remote *s)
{
	pl_remote_close_fd(s->sock);
	s->sock = -1;
	pthread_mutex_lock(&s->lock);
	forget_connection(s);
	pthread_mutex_unlock(&s->lock);
}

/* ------------------------------------------------------------------------------------- receiving -- */

/* lock held. Here, not by who asks: the connection may be another before he looks. */
static void note_told(struct pl_remote *s, const struct pl_remote_ask *a)
{
	struct pl_remote_lease *r = NULL;

	if (a->m.head.type == PL_LEASE && !a->err)
		r = pl_remote_find(s, a->m.lease.lease);
	if (!r)
		return;
	r->told = s->connections;
	r->others = a->value & PL_OTHERS;
}

/* One of the leases from that number on. */
static struct pl_remote_lease *told_from(struct pl_remote *s, uint64_t from, uint64_t serial)
{
	struct pl_node *n = pl_index_first(&s->leases, from, UINTPTR_MAX);

	for (; n; n = pl_index_next(n, from, UINTPTR_MAX)) {
		struct pl_remote_lease *r = (struct pl_remote_lease *)n;

		if (r->serial[0] == serial || r->serial[1] == serial)
			return r;
	}
	return NULL;
}

/* lock held; NULL: no lease was told again by that. */
static struct pl_remote_lease *told_by(struct pl_remote *s, uint64_t serial)
{
	struct pl_remote_lease *r = told_from(s, s->answered, serial);

	if (!r)
		r = told_from(s, 0, serial);
	if (r)
		s->answered = r->msg.lease;
	return r;
}

/* lock held. Of what was told again: STILL has no REPLY but this. */
static void on_told(struct pl_remote *s, const struct pl_reply *m)
{
	struct pl_remote_lease *r = m->err ? told_by(s, m->head.serial) : NULL;

	if (m->err == -ENOENT && !r && s->resumed) {
		s->missing = true;
		pl_remote_pass_on_stale(s);
		if (s->untold == UINT64_MAX)
			pl_remote_tell_in_full(s);
		return;
	}
	s->unanswered -= s->unanswered > 0;
	if (r && m->err == -EBUSY &&
	    r->taken.n_parts) /* of its handle: what is off it was said before */
		return;
	if (r && !r->ended)
		pl_remote_unguarded(s, r);
}

static void on_reply(struct pl_remote *s, const struct pl_reply *m)
{
	struct pl_remote_ask **p, *a;

	pthread_mutex_lock(&s->lock);
	for (p = &s->waiting; (a = *p) && a->m.head.serial != m->head.serial;)
		p = &a->next;
	if (a) {
		*p = a->next;
		a->value = m->value;
		memcpy(a->text, m->text, sizeof a->text);
		pl_remote_finish(s, a, m->err);
		note_told(s, a);
	} else {
		on_told(s, m);
	}
	pthread_mutex_unlock(&s->lock);
}

/* At the arbiter's deadline it forces the device from outside, for which nothing can be copied. So this
 * library begins before, by the time of a drain, or in the midst of what the ceiling leaves of it. */
static uint64_t before_outside(const struct pl_remote *s, uint64_t deadline_ns)
{
	uint64_t now = pl_clock_ns(), force_ns = s->ctx->opts.drain_ms * 1000000ull;
	uint64_t left = deadline_ns > now ? deadline_ns - now : 0;

	return deadline_ns - (left / 2 < force_ns ? left / 2 : force_ns);
}

static void fill_order(struct pl_remote *s, struct pl_remote_notice *n, const struct pinl_lease *l,
		       const struct pl_notice_msg *m)
{
	uint64_t start = l->on->mem.offset + (m->start - l->m.start);

	pl_order_init(&n->order, l, start, start + (m->end - m->start), true);
	n->order.deadline_ns = m->force_ns ? m->force_ns : before_outside(s, m->deadline_ns);
	n->order.change.actor_pid = m->actor_pid;
	n->order.change.actor_tid = m->actor_tid;
}

/* lock held; false: it has ended */
static bool fill_change(struct pl_remote *s, struct pl_remote_notice *n, const struct pl_notice_msg *m)
{
	const struct pl_remote_lease *r = pl_remote_find(s, m->lease);
	const struct pinl_memory *mem;

	if (!r || m->start < r->msg.start || m->end > r->msg.end || m->start >= m->end ||
	    m->op > PINL_OP_NR)
		return false;
	if (m->op == PINL_OP_NR) {
		fill_order(s, n, r->lease, m);
		return true;
	}
	mem = &r->lease->on->mem;
	n->order.change = (struct pinl_change){
		.op = m->op,
		.also = m->also & PINL_OPS_ALL,
		.can = PINL_CAN_TELL | PINL_CAN_BEFORE |
		       (m->what == PL_NOTICE_RECALL ? PINL_CAN_HOLD : 0),
		.on_file = 1,
		.file_dev = mem->dev,
		.file_ino = mem->ino,
		.file_start = mem->offset + (m->start - r->msg.start),
		.file_end = mem->offset + (m->end - r->msg.start),
		.actor_pid = m->actor_pid,
		.actor_tid = m->actor_tid,
		.source = n->source,
		.force_by_ns = m->what == PL_NOTICE_RECALL ? before_outside(s, m->deadline_ns) : 0,
	};
	return true;
}

/* There is no time to wait for. lock held */
static void end_at_once(struct pl_remote *s, struct pl_remote_notice *n, const struct pl_notice_msg *m)
{
	struct pinl_lease *l = pl_remote_find(s, m->lease)->lease;

	atomic_store(&pl_more(l)->taken_outside, true);
	fill_order(s, n, l, m);
	n->order.deadline_ns = 0;
	n->order.change.source = n->source;
}

static void on_notice(struct pl_remote *s, const struct pl_notice_msg *m)
{
	struct pl_remote_notice *n;
	bool lives;

	pthread_mutex_lock(&s->lock);
	n = s->free;
	s->free = n->next;
	n->lease = m->lease;
	n->seq = m->seq;
	n->va = (struct pl_range){m->start, m->end};
	n->what = m->what;
	memcpy(n->source, m->source, sizeof n->source);
	n->whole = true;
	n->silent = false;
	n->since_ns = m->since_ns ? m->since_ns : UINT64_MAX;
	n->latest_ns = m->deadline_ns && s->ceiling_ns ? m->deadline_ns + 2 * s->ceiling_ns : UINT64_MAX;
	n->gone_ns = m->gone_ns;
	n->over_ns = m->taken_ns;
	n->closed = m->closed;
	n->outcome = PINL_OUT_QUIESCED;
	n->connection = s->connection;
	lives = fill_change(s, n, m);
	if (lives && m->what == PL_NOTICE_FORCED)
		end_at_once(s, n, m);
	if (lives && m->what == PL_NOTICE_RECALL && pl_remote_find(s, m->lease)->handle.kind)
		n->order.change.outside_ns = m->deadline_ns;
	if (lives && (m->taken_ns || m->what == PL_NOTICE_FORCED)) /* nothing there may be copied */
		atomic_store(&pl_more(pl_remote_find(s, m->lease)->lease)->va_lost, true);
	pl_remote_note_over(s, m);
	pl_remote_append(lives ? &s->got_tail : &s->answers_tail, n);
	pthread_mutex_unlock(&s->lock);
}

static void on_changed(struct pl_remote *s, const struct pl_changed_msg *m)
{
	pthread_mutex_lock(&s->lock);
	for (struct pl_remote_later *l = s->laters; l < s->laters + PL_REMOTE_LATER; l++)
		if (l->job.id == m->number)
			end_later(l, m->err);
	pthread_cond_signal(&s->work);
	pthread_mutex_unlock(&s->lock);
}

/* -EAGAIN: that was all. */
static int receive_one(struct pl_remote *s)
{
	union pl_message m;
	const char *why;
	int fd, err = pl_message_receive(s->sock, &m, &fd, &why);

	if (fd >= 0)
		pl_remote_close_fd(fd);
	if (err)
		return err;
	if (m.head.type == PL_REPLY)
		on_reply(s, &m.reply);
	else if (m.head.type == PL_NOTICE)
		on_notice(s, &m.notice);
	else if (m.head.type == PL_CHANGED)
		on_changed(s, &m.changed);
	else
		err = -EPROTO;
	return err;
}

/* False: the connection is over. */
static bool receive_all(struct pl_remote *s)
{
	int err = 0;

	while (!err && pl_remote_has_room(s))
		err = receive_one(s);
	pl_remote_pass_on(s, err && err != -EAGAIN);
	return !err || err == -EAGAIN;
}

/* ---------------------------------------------------------------------------- life of the thread -- */

/*
 * What listens and then breaks off is being restarted, perhaps again and again; what listens and says
 * nothing is slow. Watching files beside it instead is what to avoid: a gate of ours waits for its
 * answers when it ends.
 */
static int start(struct pl_remote *s)
{
	uint64_t now = pl_clock_ns(), last = now + PL_REMOTE_STARTS_MS * 1000000ull;
	int err = pl_own_table(s->wake, s->wake);

	if (err)
		return err;
	do {
		err = make_connection(s, now + PL_REMOTE_START_MS * 1000000ull);
		if (err != -ECONNRESET && err != -EPIPE && err != -EAGAIN)
			break;
		poll(NULL, 0, RETRY_MS);
		now = pl_clock_ns();
	} while (now < last);
	return err;
}

static bool stopping(struct pl_remote *s)
{
	bool stop;

	pthread_mutex_lock(&s->lock);
	stop = s->stop;
	pthread_mutex_unlock(&s->lock);
	return stop;
}

static void reconnect(struct pl_remote *s)
{
	if (make_connection(s, pl_clock_ns() + RECONNECT_NS))
		return;
	pl_remote_pass_on_left(s);
	pthread_mutex_lock(&s->lock);
	s->connected = true;
	if (!s->resumed) {
		s->let_go = s->connection;
		say_lost(s);
	}
	s->unseen = s->untold == UINT64_MAX ? UINT64_MAX : 0;
	pthread_cond_signal(&s->work);
	s->unsaid = false; /* its leases were guarded all the time */
	pthread_cond_broadcast(&s->done);
	pthread_mutex_unlock(&s->lock);
}

/* No longer than who asks for something waits. */
static void look_for_loss(struct pl_remote *s)
{
	bool over;

	pthread_mutex_lock(&s->lock);
	over = s->unsaid && pl_clock_ns() >= pl_remote_restarted_by(s);
	pthread_mutex_unlock(&s->lock);
	if (!over)
		return;
	pl_remote_pass_on(s, false); /* the recalls as they are */
	pthread_mutex_lock(&s->lock);
	say_lost(s);
	pthread_mutex_unlock(&s->lock);
}

/* Nothing that came before now is unread: the core asks for that. False: the connection is over. */
static bool catch_up(struct pl_remote *s)
{
	uint64_t now = pl_clock_ns();
	bool asked;

	pthread_mutex_lock(&s->lock);
	asked = s->to_catch_up;
	pthread_mutex_unlock(&s->lock);
	if (!asked || s->sock < 0)
		return true;
	if (!receive_all(s))
		return false;
	pthread_mutex_lock(&s->lock);
	if (s->free) {
		s->to_catch_up = false;
		s->read_ns = now;
	}
	pthread_cond_signal(&s->work);
	pthread_mutex_unlock(&s->lock);
	return true;
}

static void loop(struct pl_remote *s)
{
	struct pollfd fds[2] = {{.fd = s->wake, .events = POLLIN}, {0}};
	uint64_t woken;
	bool left;

	while (!stopping(s)) {
		if (s->sock < 0)
			reconnect(s);
		if (s->sock < 0)
			look_for_loss(s);
		left = pl_remote_send_all(s);
		fds[1].fd = s->sock;
		fds[1].events = (pl_remote_has_room(s) ? POLLIN : 0) | (left ? POLLOUT : 0);
		poll(fds, 2, s->sock < 0 ? RETRY_MS : -1);
		if (fds[0].revents & POLLIN)
			syscall(SYS_read, s->wake, &woken, sizeof woken);
		if (s->sock >= 0 && fds[1].revents && !receive_all(s))
			disconnect(s);
		if (!catch_up(s))
			disconnect(s);
	}
}

void *pl_remote_link(void *src)
{
	struct pl_remote *s = src;
	int err;

	prctl(PR_SET_NAME, "pinl-arbiter");
	err = start(s);
	pthread_mutex_lock(&s->lock);
	s->start_err = err;
	s->started = true;
	s->connected = !err;
	pthread_cond_broadcast(&s->done);
	pthread_mutex_unlock(&s->lock);
	if (err)
		return NULL;
	loop(s);
	if (s->sock >= 0)
		pl_remote_close_fd(s->sock);
	pthread_mutex_lock(&s->lock);
	for (struct pl_remote_ask *a; (a = s->asks); s->asks = a->next)
		pl_remote_finish(s, a, -ENOTCONN);
	pthread_mutex_unlock(&s->lock);
	return NULL;
}
