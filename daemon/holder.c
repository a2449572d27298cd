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
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daemon.h"
#include "os/clock.h"
#include "source/sources.h"

#define READER_MS 1000 /* the longest grace of who can only read the file */
#define ENDING_MS 1000

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

struct held_lease *holder_find(struct holder *h, uint64_t number)
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

/* It goes to logs and terminals. */
static void copy_text(char *to, const char *from, size_t len)
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

/* ---------------------------------------------------------------------------------------- leases -- */

static uint64_t coverage(struct server *s, const struct pinl_memory *mem)
{
	void *files = pl_source_priv(s->ctx, &pl_files_ops);
	uint64_t all = 0;

	for (int op = 0; files && op < PINL_OP_NR; op++)
		all |= (uint64_t)pl_files_ops.coverage(files, mem, op) << (4 * op);
	if (mem->kind == PINL_MEM_SHMEM || mem->kind == PINL_MEM_HUGETLB)
		all |= PL_SUPERVISED;
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
	return holder_reply(h, &m->head, err, all);
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
		.resumed = h->returning,
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

/* Before anybody is told that it is leased. */
static void keep(struct holder *h, struct held_lease *hl, const struct pl_lease_msg *m,
		 unsigned grace_ms)
{
	struct pl_lease_msg msg = *m;
	struct stored_holder sh = {.session = h->session, .pid = h->pid, .uid = h->user->uid};

	if (!h->stored) {
		sh.started = process_started(h->pid);
		memcpy(sh.name, h->name, sizeof sh.name);
		h->stored = store_holder(&h->server->store, &sh);
	}
	msg.grace_ms = grace_ms;
	msg.agent_ms = 0;
	hl->stored =
		store_lease(&h->server->store, h->stored, &msg, hl->lease->mem.dev, hl->lease->mem.ino);
}

/* What is adopted has been proved before; the descriptor only says which file it is. */
static int look(const struct pl_lease_msg *m, int fd, bool adopted, struct stat *st,
		struct pl_foreign *f)
{
	struct statfs fs;
	bool reader;
	int err;

	if (adopted) {
		if (fstat(fd, st) || fstatfs(fd, &fs))
			return -errno;
		f->fs_magic = fs.f_type;
		return 0;
	}
	err = file_look(fd, (m->flags & PINL_WRITE) && m->shared, st, &f->fs_magic, &reader);
	return !err && reader ? bound_reader(&f->policy) : err;
}

static int lease(struct holder *h, const struct pl_lease_msg *m, int fd, bool adopted)
{
	struct held_lease *hl = h->making;
	struct pl_foreign f;
	struct stat st;
	int err;

	describe(h, m, &f);
	err = look(m, fd, adopted, &st, &f);
	if (!err && !adopted && f.policy.kind == PINL_RECALL && f.policy.then == PINL_THEN_KILL)
		err = kill_prepare(h);
	if (err)
		return err;
	if (change_under_way(h->server, m, &st))
		return pinl_set_error(-EBUSY, "a change of these bytes is under way; try again");
	f.file = &st;
	f.kind = file_kind(f.fs_magic, m->shared);
	f.fd = file_path_only(fd);
	if (f.fd < 0)
		return f.fd;
	hl->of.dev = st.st_dev;
	hl->of.ino = st.st_ino;
	hl->of.offset = m->file_offset;
	err = adopted ? 0 : share_descriptor(h->server, h->user, f.fd);
	if (err) {
		close(f.fd);
		return err;
	}
	err = pl_foreign_lease(h->device, &f, &hl->lease);
	if (!err && !adopted)
		keep(h, hl, m, f.policy.grace_ms);
	return err;
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
	store_drop_lease(&h->server->store, hl->stored);
	pl_index_remove(&h->leases, &hl->node);
	user_discharge(h->server, h->user, hl->bytes);
	if (hl->ring)
		ring_put(h, hl->ring);
	watch_ended(hl, h->server);
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

int holder_make_lease(struct holder *h, const struct pl_lease_msg *m, int fd, bool adopted)
{
	struct server *s = h->server;
	struct held_lease *hl;
	int err = check_numbers(m);

	if (!err)
		err = share_may_lease(s, h->user);
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
	hl->then = m->policy == PINL_RECALL ? m->then : PINL_THEN_FAIL;
	hl->grace_ms = m->grace_ms;
	hl->agent_ms = m->agent_ms;
	copy_text(hl->device, m->device, sizeof hl->device);
	hl->bytes = m->end - m->start;
	hl->node.start = m->lease;
	hl->node.end = m->lease + 1;
	hl->of.pid = h->pid;
	hl->of.uid = h->user->uid;
	memcpy(hl->of.name, h->name, sizeof hl->of.name);
	h->making = hl;
	pl_index_insert(&h->leases, &hl->node);
	err = lease(h, m, fd, adopted);
	h->making = NULL;
	if (err) /* something may have been told of it already */
		forget(h, hl);
	return err;
}

/* Told again after a connection broke. */
static bool is_same(const struct held_lease *hl, const struct pl_lease_msg *m, int fd)
{
	struct stat st;

	return !fstat(fd, &st) && hl->lease->mem.dev == st.st_dev && hl->lease->mem.ino == st.st_ino &&
	       hl->lease->m.start == m->start && hl->lease->m.end == m->end &&
	       hl->lease->mem.offset == m->file_offset;
}

void holder_end_lease(struct held_lease *hl)
{
	pinl_unmap_range(hl->lease);
	forget(hl->holder, hl);
}

static int on_lease(struct holder *h, const struct pl_lease_msg *m, int fd)
{
	struct held_lease *hl = holder_find(h, m->lease);
	bool known;
	int err;

	if (hl && !is_same(hl, m, fd)) {
		holder_end_lease(hl);
		hl = NULL;
	}
	known = hl;
	err = hl ? 0 : holder_make_lease(h, m, fd, false);
	if (!err) {
		hl = holder_find(h, m->lease);
		hl->told = true;
		if (hl->then == PINL_THEN_KILL) /* it was adopted, and is there still */
			kill_prepare(h);
	}
	if (!err && !known)
		watch_leased(hl);
	return holder_reply(h, &m->head, err, err ? 0 : coverage(h->server, &hl->lease->mem));
}

static int on_still(struct holder *h, const struct pl_still_msg *m)
{
	struct held_lease *hl = holder_find(h, m->lease);

	if (!hl)
		return holder_reply(h, &m->head, pinl_set_error(-ENOENT, "no such lease"), 0);
	hl->told = true;
	return 0;
}

static int on_unlease(struct holder *h, const struct pl_unlease_msg *m)
{
	struct held_lease *hl = holder_find(h, m->lease);

	if (hl)
		holder_end_lease(hl);
	return 0;
}

/* What is said again is the same, or wrong: a force may be at it. */
int holder_take_handle(struct held_lease *hl, const struct pl_handle_msg *m)
{
	struct ring *ring = NULL;
	int err = 0;

	if (hl->made)
		return 0;
	if (m->kind == PL_HANDLE_URING)
		err = ring_get(hl->holder, m->fd, &ring);
	hl->buf = (struct pl_outside_buf){
		.slot = m->slot, .start = hl->lease->m.start, .end = hl->lease->m.end, .tag = m->tag};
	if (ring)
		atomic_store(&hl->ring, ring);
	hl->made = true;
	return err;
}

static int on_handle(struct holder *h, const struct pl_handle_msg *m)
{
	struct held_lease *hl = holder_find(h, m->lease);
	int err;

	if (!hl)
		return holder_reply(h, &m->head, pinl_set_error(-ENOENT, "no such lease"), 0);
	if (m->kind > PL_HANDLE_URING)
		return holder_reply(h, &m->head, pinl_set_error(-EINVAL, "no such kind of handle"), 0);
	if (hl->stored && !hl->made)
		hl->stored->handle = *m;
	err = holder_take_handle(hl, m);
	if (err && !h->unforced++) /* once, as it is the holder who says how often */
		fprintf(stderr, "pinleased: lease %lu of %s (%d) can't be forced from outside: %s\n",
			hl->number, h->name, h->pid, pinl_error());
	if (pl_foreign_lost(hl->lease)) /* before the device had it: it may have got what came after */
		return holder_reply(h, &m->head,
				    pinl_set_error(-EBUSY,
						   "the memory was taken back while it was being "
						   "leased; try again"),
				    0);
	return holder_reply(h, &m->head, 0, 0);
}

static int on_released(struct holder *h, const struct pl_released_msg *m)
{
	struct held_lease *hl = holder_find(h, m->lease);
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

static int on_truncate(struct holder *h, const struct pl_truncate_msg *m, int fd)
{
	int err = later_take(h, m, fd), gone = holder_reply(h, &m->head, err, 0);

	if (!err)
		later_begin(h->server);
	return gone;
}

/* ------------------------------------------------------------------------------------- receiving -- */

/* h may be gone afterwards, its socket another holder's: who takes up where he left. */
static int on_hello(struct holder *h, const struct pl_hello *m)
{
	struct holder *old = NULL;
	union pl_message w;
	int err;

	if (m->version != PL_PROTO_VERSION) {
		holder_reply(h, &m->head,
			     pinl_set_error(
				     -EPROTONOSUPPORT,
				     "pinleased speaks version %d of the protocol, not %u; install the "
				     "same release of both",
				     PL_PROTO_VERSION, m->version),
			     0);
		return -EPROTONOSUPPORT;
	}
	if (m->resume && (old = resume_session(h, m->resume)))
		h = old;
	h->welcome = true;
	h->returning = m->resume;
	copy_text(h->name, m->name, sizeof h->name);
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
	case PL_STILL:
		return on_still(h, &m->still);
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
	case PL_CHANGE:
		return change_begin(h, &m->change, fd);
	case PL_DONE:
		change_done(h, &m->done);
		return 0;
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

void holder_free(struct holder *h)
{
	if (h->user)
		user_put(h->server, h->user, true);
	if (h->pidfd >= 0)
		close(h->pidfd);
	kill_free(h->killing);
	free(h->pool);
	list_free(h->listing);
	free(h);
}

/* Without a connection. */
struct holder *holder_alloc(struct server *s, uid_t uid, pid_t pid, int pidfd)
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
	if (notices_init(h) || !(h->user = user_get(s, uid)) ||
	    pinl_device_open_ops(s->ctx, &holder_device_ops, h, &h->device)) {
		holder_free(h);
		return NULL;
	}
	pl_device_foreign(h->device, &holder_foreign_ops);
	return h;
}

struct holder *holder_new(struct server *s, int sock)
{
	struct ucred cred;
	struct holder *h;
	int pidfd = -1;

	h = identify(sock, &cred, &pidfd) ? NULL : holder_alloc(s, cred.uid, cred.pid, pidfd);
	if (!h) {
		say_no(sock);
		close(sock);
		return NULL;
	}
	h->sock = sock;
	if (share_descriptor(s, h->user, sock)) {
		pinl_device_close(h->device);
		holder_free(h);
		say_no(sock);
		close(sock);
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

	h->left = h->leases.root && h->pidfd >= 0 && !poll(&p, 1, 0);
	sd_event_source_disable_unref(h->exit);
	sd_event_source_disable_unref(h->patience);
	recall_pass(h);
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

	recall_gone(h);
	watch_gone(h);
	list_free(h->listing);
	h->listing = NULL;
	changes_leave(h);
	sd_event_source_disable_unref(h->io);
	close(h->sock);
	h->sock = -1;
	h->full = true;
	laters_forget(s, h);
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
	store_drop_holder(&h->server->store, h->stored);
	holder_free(h);
}
