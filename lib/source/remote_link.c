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

#define RETRY_MS 100

static int raw_open(const char *path, int flags)
{
	int fd = syscall(SYS_openat, AT_FDCWD, path, flags);

	return fd < 0 ? -errno : fd;
}

static void raw_close(int fd)
{
	syscall(SYS_close, fd);
}

/* ------------------------------------------------------------------------------------ connection -- */

static int wait_for_welcome(struct pl_remote *s)
{
	struct pollfd p = {.fd = s->sock, .events = POLLIN};
	uint64_t until = pl_clock_ns() + 1000000000ull;
	union pl_message m;
	const char *why;
	int fd, err;

	do {
		if (pl_clock_ns() > until)
			return -ETIMEDOUT;
		poll(&p, 1, 100);
		err = pl_message_receive(s->sock, &m, &fd, &why);
		if (fd >= 0)
			raw_close(fd);
	} while (err == -EAGAIN);
	if (!err && m.head.type == PL_REPLY)
		err = m.reply.err ? m.reply.err : -EPROTO;
	else if (!err && (m.head.type != PL_WELCOME || m.welcome.version != PL_PROTO_VERSION))
		err = -EPROTO;
	if (!err && (m.welcome.boot != s->boot || m.welcome.session != s->session))
		s->connection++;
	if (!err) {
		s->boot = m.welcome.boot;
		s->session = m.welcome.session;
		s->resumed = m.welcome.resumed;
	}
	return err;
}

static int hello(struct pl_remote *s)
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
	return err ? err : wait_for_welcome(s);
}

static int make_connection(struct pl_remote *s)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int err = 0;

	snprintf(addr.sun_path, sizeof addr.sun_path, "%s", s->path);
	s->sock = syscall(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (s->sock < 0)
		return -errno;
	if (syscall(SYS_connect, s->sock, &addr, sizeof addr))
		err = -errno;
	if (!err)
		err = hello(s);
	if (err) {
		raw_close(s->sock);
		s->sock = -1;
		return err;
	}
	return 0;
}

static void finish(struct pl_remote *s, struct pl_remote_ask *a, int err)
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
		finish(s, a, -ENOTCONN);
	}
	s->untold = 0;
	memset(s->fs, 0, sizeof s->fs);
	for (struct pl_remote_later *l = s->laters; l < s->laters + PL_REMOTE_LATER; l++)
		end_later(l, -ENOTCONN);
	s->connected = false;
	s->lost_ns = pl_clock_ns();
	s->lost = true;
	pthread_cond_signal(&s->work);
}

static void disconnect(struct pl_remote *s)
{
	raw_close(s->sock);
	s->sock = -1;
	pthread_mutex_lock(&s->lock);
	forget_connection(s);
	pthread_mutex_unlock(&s->lock);
}

/* --------------------------------------------------------------------------------------- sending -- */

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
		raw_close(fd);
	return err;
}

static void set_head(union pl_message *m, enum pl_type type)
{
	union pl_message empty;

	pl_message_init(&empty, type);
	m->head = empty.head;
}

/* The oldest ask; false: there is none, or no room for it. lock held, as the ask may be given up. */
static bool send_ask(struct pl_remote *s)
{
	struct pl_remote_ask *a = s->asks;
	int err;

	if (!a)
		return false;
	set_head(&a->m, a->m.head.type);
	err = s->sock < 0 ? -ENOTCONN : send_with(s, &a->m, a->path, a->flags);
	if (err == -EAGAIN)
		return false;
	s->asks = a->next;
	if (!s->asks)
		s->asks_tail = &s->asks;
	if (err == -EPIPE || err == -ECONNRESET)
		err = -ENOTCONN;
	if (err && err != -ENOTCONN)
		snprintf(a->text, sizeof a->text, "the file can't be shown to pinleased: %s",
			 strerror(-err));
	if (err || !a->reply) {
		finish(s, a, err);
		return true;
	}
	a->next = s->waiting;
	s->waiting = a;
	return true;
}

/* lock held */
static bool send_answer(struct pl_remote *s)
{
	struct pl_remote_notice *n = s->answers;
	union pl_message m;

	if (!n)
		return false;
	if (n->what == PL_NOTICE_RECALL && !n->silent && n->connection == s->connection &&
	    s->sock >= 0) {
		pl_message_init(&m, PL_RELEASED);
		m.released.lease = n->lease;
		m.released.seq = n->seq;
		m.released.start = n->va.start;
		m.released.end = n->va.end;
		m.released.whole = n->whole;
		m.released.outcome = n->outcome;
		if (send_with(s, &m, NULL, 0) == -EAGAIN)
			return false;
	}
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

static int send_lease(struct pl_remote *s, const struct pl_remote_lease *r)
{
	union pl_message m = {.lease = r->msg};
	char path[64];
	int err;

	if (s->resumed)
		return send_still(s, r);
	set_head(&m, PL_LEASE);
	snprintf(path, sizeof path, "/proc/self/task/%d/fd/%d", getpid(), r->lease->mem.fd);
	err = send_with(s, &m, path, r->how);
	if (!err && r->handle.lease) {
		m.handle = r->handle;
		set_head(&m, PL_HANDLE);
		err = send_with(s, &m, NULL, 0);
	}
	return err;
}

/*
 * A lease from before the connection broke; its descriptor lives as long as it is in the index. One that
 * is new may be told twice: twice the same lease is the same lease. False: no more of them, or no room
 * now.
 */
static bool send_untold(struct pl_remote *s)
{
	struct pl_node *n;
	int err;

	if (s->sock < 0 || s->untold == UINT64_MAX)
		return false;
	n = pl_index_first(&s->leases, s->untold, UINTPTR_MAX);
	err = n ? send_lease(s, (struct pl_remote_lease *)n) : send_all_told(s);
	if (err == -EAGAIN || err == -ETOOMANYREFS) /* until some of it is answered */
		return false;
	s->untold = n ? n->end : UINT64_MAX;
	return n;
}

/* True: something is left to be sent. */
static bool send_all(struct pl_remote *s)
{
	bool left;

	pthread_mutex_lock(&s->lock);
	while (send_untold(s))
		;
	while (send_answer(s))
		;
	while (send_ask(s))
		;
	left = s->asks || s->answers;
	pthread_mutex_unlock(&s->lock);
	return left;
}

/* ------------------------------------------------------------------------------------- receiving -- */

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
		finish(s, a, m->err);
	} else if (m->err == -ENOENT && s->resumed) { /* not known after all: all are told in full */
		s->resumed = false;
		s->untold = 0;
	} else if (m->err) { /* of a lease told again: it isn't guarded */
		s->lost = true;
		pthread_cond_signal(&s->work);
	}
	pthread_mutex_unlock(&s->lock);
}

/* The arbiter's deadline is that of the device's force, which this library needs the time to do. */
static void fill_order(struct pl_remote *s, struct pl_remote_notice *n, const struct pinl_lease *l,
		       const struct pl_notice_msg *m)
{
	uint64_t force_ns = s->ctx->opts.drain_ms * 1000000ull;
	uint64_t start = l->mem.offset + (m->start - l->m.start);

	pl_order_init(&n->order, l, start, start + (m->end - m->start), true);
	n->order.deadline_ns = m->deadline_ns > force_ns ? m->deadline_ns - force_ns : 0;
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
	mem = &r->lease->mem;
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
	};
	return true;
}

/* Nothing of what is there may be copied, and there is no time to wait for. lock held */
static void end_at_once(struct pl_remote *s, struct pl_remote_notice *n, const struct pl_notice_msg *m)
{
	struct pinl_lease *l = pl_remote_find(s, m->lease)->lease;

	atomic_store(&l->va_lost, true);
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
	n->outcome = PINL_OUT_QUIESCED;
	n->connection = s->connection;
	n->next = NULL;
	lives = fill_change(s, n, m);
	if (lives && m->what == PL_NOTICE_FORCED)
		end_at_once(s, n, m);
	if (lives) {
		*s->reports_tail = n;
		s->reports_tail = &n->next;
		pthread_cond_signal(&s->work);
	} else {
		*s->answers_tail = n;
		s->answers_tail = &n->next;
	}
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

/* False: the connection is over. */
static bool receive_all(struct pl_remote *s)
{
	union pl_message m;
	const char *why;
	int fd, err;

	while (s->free) {
		err = pl_message_receive(s->sock, &m, &fd, &why);
		if (fd >= 0)
			raw_close(fd);
		if (err)
			return err == -EAGAIN;
		if (m.head.type == PL_REPLY)
			on_reply(s, &m.reply);
		else if (m.head.type == PL_NOTICE)
			on_notice(s, &m.notice);
		else if (m.head.type == PL_CHANGED)
			on_changed(s, &m.changed);
		else
			return false;
	}
	return true;
}

/* ---------------------------------------------------------------------------- life of the thread -- */

/* What listens and then breaks off is being restarted. */
static int start(struct pl_remote *s)
{
	uint64_t until = pl_clock_ns() + PL_REMOTE_RESTART_MS * 1000000ull;
	int err = pl_own_table(s->wake, s->wake);

	if (err)
		return err;
	while ((err = make_connection(s)) == -ECONNRESET || err == -EPIPE) {
		if (pl_clock_ns() > until)
			break;
		poll(NULL, 0, RETRY_MS);
	}
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
	if (make_connection(s))
		return;
	pthread_mutex_lock(&s->lock);
	s->connected = true;
	pthread_cond_broadcast(&s->done);
	pthread_mutex_unlock(&s->lock);
}

static void loop(struct pl_remote *s)
{
	struct pollfd fds[2] = {{.fd = s->wake, .events = POLLIN}, {0}};
	uint64_t woken;
	bool left;

	while (!stopping(s)) {
		if (s->sock < 0)
			reconnect(s);
		left = send_all(s);
		fds[1].fd = s->sock;
		fds[1].events = (s->free ? POLLIN : 0) | (left ? POLLOUT : 0);
		poll(fds, 2, s->sock < 0 ? RETRY_MS : -1);
		if (fds[0].revents & POLLIN)
			syscall(SYS_read, s->wake, &woken, sizeof woken);
		if (s->sock >= 0 && fds[1].revents && !receive_all(s))
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
		raw_close(s->sock);
	pthread_mutex_lock(&s->lock);
	for (struct pl_remote_ask *a; (a = s->asks); s->asks = a->next)
		finish(s, a, -ENOTCONN);
	pthread_mutex_unlock(&s->lock);
	return NULL;
}
