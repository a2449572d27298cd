/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Holders: one connection each, its leases, and what it is told. Invariants: a held_lease lives from
 * LEASE to UNLEASE or the holder's end, and the core knows its lease all that time. notice.c has what he
 * is told, file.c what he shows.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daemon.h"
#include "source/sources.h"

#define READER_MS 1000 /* the longest grace of who can only read the file */
#define ENDING_MS 1000

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

static struct held_lease *find(struct holder *h, uint64_t number)
{
	return (struct held_lease *)pl_index_first(&h->leases, number, number + 1);
}

/* --------------------------------------------------------------------------------------- sending -- */

int holder_send(struct holder *h, const union pl_message *m)
{
	int err = pl_message_send(h->sock, m, -1);

	h->full |= err == -EAGAIN; /* until it is said to be writable: notices wait for that */
	sd_event_source_set_io_events(h->io, EPOLLIN | (h->full ? EPOLLOUT : 0));
	return err;
}

/* A holder that doesn't read loses his replies, not ours to keep: he is let go. */
static int reply(struct holder *h, const struct pl_head *to, int err, uint64_t value)
{
	union pl_message m;

	pl_message_init(&m, PL_REPLY);
	m.head.serial = to->serial;
	m.reply.err = err;
	m.reply.value = value;
	if (err)
		snprintf(m.reply.text, sizeof m.reply.text, "%s", pinl_error());
	return holder_send(h, &m);
}

/* ---------------------------------------------------------------------------------------- leases -- */

static uint64_t coverage(struct server *s, const struct pinl_memory *mem)
{
	void *files = pl_source_priv(s->ctx, &pl_files_ops);
	uint64_t all = 0;

	for (int op = 0; files && op < PINL_OP_NR; op++)
		all |= (uint64_t)pl_files_ops.coverage(files, mem, op) << (4 * op);
	return all;
}

static int on_cover(struct holder *h, const struct pl_cover_msg *m, int fd)
{
	struct pinl_memory mem = {0};
	struct stat st;
	uint64_t all = 0;
	bool reader;
	int err;

	err = file_look(fd, false, &st, &mem.fs_magic, &reader);
	if (!err) {
		mem.fd = file_path_only(fd);
		mem.dev = st.st_dev;
		mem.ino = st.st_ino;
		mem.kind = file_kind(mem.fs_magic, true);
		err = mem.fd < 0 ? mem.fd : 0;
	}
	if (!err) {
		all = coverage(h->server, &mem);
		close(mem.fd);
	}
	return reply(h, &m->head, err, all);
}

static void describe(struct holder *h, const struct pl_lease_msg *m, struct pl_foreign *f)
{
	*f = (struct pl_foreign){
		.offset = m->file_offset,
		.start = m->start,
		.end = m->end,
		.shared = m->shared,
		.flags = m->flags,
		.policy = {.size = sizeof f->policy,
			   .kind = m->policy,
			   .then = m->then,
			   .grace_ms = m->grace_ms,
			   .refuse = m->refuse},
		.owner = h->pid,
		.owner_thread = m->thread,
		.since_ns = m->since_ns,
		.cookie = h->making,
	};
	if (m->grace_ms < UINT32_MAX - m->agent_ms)
		f->policy.grace_ms += m->agent_ms;
}

/* R12: who may not change a file may not keep its owner from it, nor wait long. */
static int bound_reader(struct pinl_policy *p)
{
	if (p->kind == PINL_REFUSE)
		return pinl_set_error(-EACCES, "REFUSE needs the right to write to the file: show a "
					       "descriptor that is open for writing");
	if (p->grace_ms > READER_MS)
		p->grace_ms = READER_MS;
	return 0;
}

static int lease(struct holder *h, const struct pl_lease_msg *m, int fd)
{
	struct held_lease *hl = h->making;
	struct pl_foreign f;
	struct stat st;
	bool reader;
	int err;

	describe(h, m, &f);
	err = file_look(fd, (m->flags & PINL_WRITE) && m->shared, &st, &f.fs_magic, &reader);
	if (!err && reader)
		err = bound_reader(&f.policy);
	if (err)
		return err;
	f.file = &st;
	f.kind = file_kind(f.fs_magic, m->shared);
	f.fd = file_path_only(fd);
	if (f.fd < 0)
		return f.fd;
	return pl_foreign_lease(h->device, &f, &hl->lease);
}

static struct held_lease *lease_alloc(void)
{
	struct held_lease *hl = calloc(1, sizeof *hl + sizeof *hl->own);

	if (hl)
		hl->own = (struct notice *)(hl + 1);
	return hl;
}

/* The lease is the core's no more, so nothing is told of it from here on. */
static void forget(struct holder *h, struct held_lease *hl)
{
	notices_drop(h, hl);
	pl_index_remove(&h->leases, &hl->node);
	user_discharge(h->server, h->user, hl->bytes);
	if (hl->ring)
		ring_put(h, hl->ring);
	free(hl);
}

/* What the core doesn't look at, as no mapping of its own process can be like that. */
static int check_numbers(const struct pl_lease_msg *m)
{
	if (m->flags & ~(PINL_WRITE | PINL_PIN))
		return pinl_set_error(-EINVAL, "unknown flags %#x", m->flags);
	if (m->start >= m->end)
		return pinl_set_error(-EINVAL, "an empty range");
	if (m->lease == UINT64_MAX) /* nothing is after it, so it would never be found */
		return pinl_set_error(-EINVAL, "%lu is no number for a lease", m->lease);
	if (m->file_offset % 4096)
		return pinl_set_error(-EINVAL, "file offset %#lx is not page aligned", m->file_offset);
	if (m->file_offset > INT64_MAX || m->end - m->start > INT64_MAX - m->file_offset)
		return pinl_set_error(-EINVAL, "the range reaches beyond the largest file");
	return 0;
}

static int make_lease(struct holder *h, const struct pl_lease_msg *m, int fd)
{
	struct server *s = h->server;
	struct held_lease *hl;
	int err = check_numbers(m);

	if (!err)
		err = user_charge(s, h->user, m->end - m->start);
	if (err)
		return err;
	hl = lease_alloc();
	if (!hl) {
		user_discharge(s, h->user, m->end - m->start);
		return pinl_set_error(-ENOMEM, "pinleased is out of memory");
	}
	hl->holder = h;
	hl->number = m->lease;
	hl->then = m->then;
	memcpy(hl->device, m->device, sizeof hl->device);
	hl->bytes = m->end - m->start;
	hl->node.start = m->lease;
	hl->node.end = m->lease + 1;
	h->making = hl;
	pl_index_insert(&h->leases, &hl->node);
	err = lease(h, m, fd);
	h->making = NULL;
	if (err) /* something may have been told of it already */
		forget(h, hl);
	return err;
}

static int on_lease(struct holder *h, const struct pl_lease_msg *m, int fd)
{
	struct held_lease *hl = find(h, m->lease);
	int err;

	if (hl) /* told again after a connection broke */
		err = 0;
	else
		err = make_lease(h, m, fd);
	if (!err)
		hl = find(h, m->lease);
	return reply(h, &m->head, err, err ? 0 : coverage(h->server, &hl->lease->mem));
}

static int on_unlease(struct holder *h, const struct pl_unlease_msg *m)
{
	struct held_lease *hl = find(h, m->lease);

	if (!hl)
		return 0;
	pinl_unmap_range(hl->lease);
	forget(h, hl);
	return 0;
}

static int on_handle(struct holder *h, const struct pl_handle_msg *m)
{
	struct held_lease *hl = find(h, m->lease);
	struct ring *ring = NULL;
	int err = 0;

	if (!hl)
		return reply(h, &m->head, pinl_set_error(-ENOENT, "no such lease"), 0);
	if (m->kind > PL_HANDLE_URING)
		return reply(h, &m->head, pinl_set_error(-EINVAL, "no such kind of handle"), 0);
	if (m->kind == PL_HANDLE_URING && !hl->made)
		err = ring_get(h, m->fd, &ring);
	if (!hl->made)
		hl->buf = (struct pl_outside_buf){.slot = m->slot,
						  .start = hl->lease->m.start,
						  .end = hl->lease->m.end,
						  .tag = m->tag};
	if (ring)
		atomic_store(&hl->ring, ring);
	hl->made = true;	   /* what is said again is the same, or wrong: a force may be at it */
	if (err && !h->unforced++) /* once, as it is the holder who says how often */
		fprintf(stderr, "pinleased: lease %lu of %s (%d) can't be forced from outside: %s\n",
			hl->number, h->name, h->pid, pinl_error());
	if (pl_foreign_lost(hl->lease)) /* before the device had it: it may have got what came after */
		return reply(h, &m->head,
			     pinl_set_error(-EBUSY, "the memory was taken back while it was being "
						    "leased; try again"),
			     0);
	return reply(h, &m->head, 0, 0);
}

static int on_released(struct holder *h, const struct pl_released_msg *m)
{
	struct held_lease *hl = find(h, m->lease);
	struct pl_range va = {m->start, m->end};

	if (!hl)
		return 0;
	if (m->outcome > PINL_OUT_COPY)
		return -EPROTO;
	if (va.start > va.end || (va.start | va.end) % 4096)
		return -EPROTO;
	if ((va.start || va.end) && !m->whole &&
	    (va.start == va.end || va.start < hl->lease->m.start || va.end > hl->lease->m.end))
		return -EPROTO;
	pl_foreign_answer(hl->lease, m->seq, &va, m->whole, m->outcome);
	return 0;
}

/* ------------------------------------------------------------------------------------- receiving -- */

static int on_hello(struct holder *h, const struct pl_hello *m)
{
	union pl_message w;

	if (m->version != PL_PROTO_VERSION) {
		reply(h, &m->head,
		      pinl_set_error(-EPROTONOSUPPORT,
				     "pinleased speaks version %d of the protocol, not %u; install the "
				     "same release of both",
				     PL_PROTO_VERSION, m->version),
		      0);
		return -EPROTONOSUPPORT;
	}
	h->welcome = true;
	for (size_t i = 0; i < sizeof h->name; i++) /* it goes to logs and terminals */
		h->name[i] = m->name[i] && (m->name[i] < ' ' || m->name[i] > '~') ? '?' : m->name[i];
	pl_message_init(&w, PL_WELCOME);
	w.head.serial = m->head.serial;
	w.welcome.version = PL_PROTO_VERSION;
	w.welcome.ceiling_ms = h->server->limits.ceiling_ms;
	w.welcome.boot = h->server->boot;
	w.welcome.max_leases = h->server->limits.leases;
	w.welcome.max_bytes = h->server->limits.bytes;
	return holder_send(h, &w);
}

static int dispatch(struct holder *h, const union pl_message *m, int fd)
{
	if (!h->welcome && m->head.type != PL_HELLO)
		return -EPROTO;
	switch (m->head.type) {
	case PL_HELLO:
		return h->welcome ? -EPROTO : on_hello(h, &m->hello);
	case PL_COVER:
		return on_cover(h, &m->cover, fd);
	case PL_LEASE:
		return on_lease(h, &m->lease, fd);
	case PL_HANDLE:
		return on_handle(h, &m->handle);
	case PL_UNLEASE:
		return on_unlease(h, &m->unlease);
	case PL_RELEASED:
		return on_released(h, &m->released);
	case PL_LIST:
		return list_begin(h, &m->list);
	default:
		return -EPROTO;
	}
}

/* One message at a time, so that nobody keeps the loop from the others. */
int holder_receive(struct holder *h)
{
	union pl_message m;
	const char *why;
	int fd, err;

	err = pl_message_receive(h->sock, &m, &fd, &why);
	if (err == -EAGAIN)
		return 0;
	if (!err)
		err = dispatch(h, &m, fd);
	if (fd >= 0)
		close(fd);
	return err;
}

/* ------------------------------------------------------------------------------- coming and going -- */

static int identify(struct holder *h, uid_t *uid)
{
	socklen_t len = sizeof(struct ucred);
	struct ucred cred;

	if (getsockopt(h->sock, SOL_SOCKET, SO_PEERCRED, &cred, &len))
		return -errno;
	h->pid = cred.pid;
	*uid = cred.uid;
	len = sizeof h->pidfd; /* of who connected, whose number may be another's by now; since 6.5 */
	if (getsockopt(h->sock, SOL_SOCKET, SO_PEERPIDFD, &h->pidfd, &len))
		h->pidfd = syscall(SYS_pidfd_open, cred.pid, 0);
	return 0;
}

/* The only message that is no answer. */
static void say_no(int sock)
{
	union pl_message m;

	pl_message_init(&m, PL_REPLY);
	m.reply.err = -EDQUOT;
	strcpy(m.reply.text,
	       "pinleased serves no more connections of this user; close some, or have its "
	       "limits raised");
	pl_message_send(sock, &m, -1);
}

struct holder *holder_new(struct server *s, int sock)
{
	struct holder *h = calloc(1, sizeof *h);
	uid_t uid = 0;

	if (!h)
		goto no;
	h->server = s;
	h->sock = sock;
	h->pidfd = -1;
	if (notices_init(h))
		goto no;
	if (identify(h, &uid) || !(h->user = user_get(s, uid)))
		goto no;
	if (pinl_device_open_ops(s->ctx, &holder_device_ops, h, &h->device))
		goto user;
	pl_device_foreign(h->device, &holder_foreign_ops);
	LIST_INSERT_HEAD(&s->holders, h, link);
	return h;
user:
	user_put(s, h->user, true);
no:
	say_no(sock);
	if (h && h->pidfd >= 0)
		close(h->pidfd);
	if (h)
		free(h->pool);
	free(h);
	close(sock);
	return NULL;
}

/* To the reaper. */
void holder_leave(struct holder *h)
{
	struct pollfd p = {.fd = h->pidfd, .events = POLLIN};
	struct server *s = h->server;

	h->left = h->leases.root && h->pidfd >= 0 && !poll(&p, 1, 0);
	sd_event_source_disable_unref(h->exit);
	sd_event_source_disable_unref(h->patience);
	LIST_REMOVE(h, link);
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

/* Who is about to end has its connection closed a little before. */
static bool waits_for_exit(struct holder *h)
{
	sd_event *event = h->server->event;

	return h->leases.root && h->pidfd >= 0 &&
	       sd_event_add_io(event, &h->exit, h->pidfd, EPOLLIN, on_exit_seen, h) >= 0 &&
	       sd_event_add_time_relative(event, &h->patience, CLOCK_MONOTONIC, ENDING_MS * 1000, 0,
					  on_patience_over, h) >= 0;
}

void holder_gone(struct holder *h)
{
	struct server *s = h->server;

	sd_event_source_disable_unref(h->io);
	close(h->sock);
	h->sock = -1;
	h->full = true;
	LIST_REMOVE(h, link);
	LIST_INSERT_HEAD(&s->leaving, h, link);
	if (!waits_for_exit(h))
		holder_leave(h);
}

void holder_end(struct holder *h)
{
	if (h->left)
		fprintf(stderr,
			"pinleased: %s (%d) lives and has left its connection with leases on it: files "
			"are "
			"no longer guarded for it\n",
			h->name, h->pid);
	pinl_device_close(h->device); /* with the leases that are left */
	while (h->leases.root)
		forget(h, (struct held_lease *)h->leases.root);
	user_put(h->server, h->user, true);
	if (h->pidfd >= 0)
		close(h->pidfd);
	free(h->pool);
	list_free(h->listing);
	free(h);
}
