/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Changes that a supervisor (pinlease run) has stopped and tells of: the source "seccomp" of pinleased's
 * core. Invariants:
 * - a change lives from CHANGE until its end is known: refused; DONE; the supervisor's connection over;
 * or FORGET_MS after it was let go, so that nobody keeps a range closed to new leases;
 * - it is on its connection's list, or on `alone` when nobody is to hear the answer any more, and the
 *   core has it until `answered` is called, whatever becomes of the connection;
 * - only the main loop touches it, but for `err` and `next`, which are the answering thread's.
 */
#include <errno.h>
#include <linux/falloc.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "core/change.h"
#include "daemon.h"
#include "gate.h"
#include "os/clock.h"
#include "os/wake.h"
#include "source/files_op.h"

#define FORGET_MS 1000

struct change {
	LIST_ENTRY(change) link;
	struct change *next; /* on server->answered */
	struct pinl_change core;
	struct server *server;
	struct holder *by; /* NULL: alone */
	struct user *user;
	uint64_t serial;
	int err;
	bool going; /* let go, not known to have happened */
	sd_event_source *forget;
};

/* ------------------------------------------------------------------------ what it takes away -- */

static const int modes[PINL_OP_NR] = {
	[PINL_OP_PUNCH] = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
	[PINL_OP_ZERO] = FALLOC_FL_ZERO_RANGE,
	[PINL_OP_COLLAPSE] = FALLOC_FL_COLLAPSE_RANGE,
	[PINL_OP_INSERT] = FALLOC_FL_INSERT_RANGE,
};

static int check(const struct pl_change_msg *m)
{
	if (m->op != PINL_OP_TRUNCATE && m->op != PINL_OP_REMOVE &&
	    (m->op >= PINL_OP_NR || !modes[m->op]))
		return pinl_set_error(-EINVAL, "%u is no operation on a file", m->op);
	if (m->start > INT64_MAX || m->end > INT64_MAX ||
	    (m->op != PINL_OP_TRUNCATE && m->start >= m->end))
		return pinl_set_error(-EINVAL, "no range of a file");
	return 0;
}

/* As the actor's call, which the source "files" can judge. False: every page stays where it is. */
static bool decode(const struct pl_change_msg *m, const struct stat *st, long magic,
		   struct pl_file_op *op)
{
	bool memory = magic == TMPFS_MAGIC || magic == HUGETLBFS_MAGIC;
	struct pl_file_event ev = {
		.size = st->st_size,
		.page = magic == HUGETLBFS_MAGIC ? st->st_blksize : sysconf(_SC_PAGESIZE),
		.keeps_edges = memory || magic == EXT4_SUPER_MAGIC,
		.ranged = true,
		.offset = m->start,
		.count = m->end - m->start,
	};
	struct pl_syscall sc = {.nr = SYS_fallocate};

	if (m->op == PINL_OP_TRUNCATE) {
		sc.nr = SYS_ftruncate;
		sc.args[1] = m->start;
	} else if (m->op == PINL_OP_REMOVE) {
		sc.nr = SYS_madvise;
		sc.args[2] = MADV_REMOVE;
	} else {
		sc.args[1] = modes[m->op];
		sc.args[2] = m->start;
		sc.args[3] = m->end - m->start;
	}
	return pl_file_decode(&sc, &ev, op);
}

/* ----------------------------------------------------------------------------------- life of a change
 * --
 */

/* From any thread, and from inside pinl_change_submit(). */
static void answered(struct pinl_change *core, int err)
{
	struct change *c = core->arg;
	struct server *s = c->server;

	pthread_mutex_lock(&s->answers);
	c->err = err;
	c->next = s->answered;
	s->answered = c;
	pthread_mutex_unlock(&s->answers);
	if (!pthread_equal(pthread_self(), s->main)) /* else it looks by itself, soon */
		pl_wake(s->wake);
}

static void change_free(struct change *c)
{
	LIST_REMOVE(c, link);
	sd_event_source_disable_unref(c->forget);
	user_changed(c->server, c->user);
	free(c);
}

/* It has happened, or that is to be taken for granted. */
static void end(struct change *c)
{
	pinl_change_done(c->server->ctx, c->core.id);
	change_free(c);
}

static bool is_of(const struct pinl_change *ch, void *arg)
{
	return ch == &((struct change *)arg)->core;
}

static void set_alone(struct change *c)
{
	pl_change_over(c->server->ctx, is_of, c, pl_clock_ns());
	LIST_REMOVE(c, link);
	LIST_INSERT_HEAD(&c->server->alone, c, link);
	c->by = NULL;
}

static int on_forget(sd_event_source *source, uint64_t usec, void *arg)
{
	end(arg);
	return 0;
}

static struct change *change_new(struct holder *h, const struct pl_change_msg *m, const struct stat *st,
				 const struct pl_file_op *op)
{
	struct change *c = calloc(1, sizeof *c);

	if (!c)
		return NULL;
	c->server = h->server;
	c->by = h;
	c->user = h->user;
	c->serial = m->head.serial;
	c->core = (struct pinl_change){
		.op = m->op, /* the actor's name for it; the range is op's */
		.can = PINL_CAN_TELL | PINL_CAN_BEFORE | PINL_CAN_HOLD | PINL_CAN_REFUSE,
		.on_file = 1,
		.file_dev = st->st_dev,
		.file_ino = st->st_ino,
		.file_start = op->start,
		.file_end = op->end,
		.actor_pid = m->pid,
		.actor_tid = m->tid,
		.source = "seccomp",
		.answer = answered,
		.arg = c,
	};
	LIST_INSERT_HEAD(&h->changes, c, link);
	return c;
}

int change_begin(struct holder *h, const struct pl_change_msg *m, int fd)
{
	struct pl_file_op op;
	struct change *c;
	struct stat st;
	bool reader;
	long magic;
	int err = check(m);

	if (!err)
		err = file_look(fd, true, &st, &magic, &reader);
	if (err || !decode(m, &st, magic, &op))
		return holder_reply_to(h, m->head.serial, err, 0);
	err = user_change(h->server, h->user);
	if (err)
		return holder_reply_to(h, m->head.serial, err, 0);
	c = change_new(h, m, &st, &op);
	if (!c) {
		user_changed(h->server, h->user);
		return holder_reply_to(h, m->head.serial,
				       pinl_set_error(-ENOMEM, "pinleased is out of memory"), 0);
	}
	pinl_change_submit(h->server->ctx, &c->core);
	return 0;
}

void change_done(struct holder *h, const struct pl_done_msg *m)
{
	struct change *c;

	LIST_FOREACH(c, &h->changes, link)
	if (c->serial == m->change)
		break;
	if (!c)
		return;
	if (c->going)
		end(c);
	else
		set_alone(c); /* the core still has it */
}

/* A supervisor that doesn't read is as good as gone; the loop hears of that. */
static void tell(struct change *c, int err, uint64_t value)
{
	if (holder_reply_to(c->by, c->serial, err, value))
		shutdown(c->by->sock, SHUT_RDWR);
}

static void on_answer(struct change *c)
{
	if (c->err) {
		if (c->by)
			tell(c, pinl_set_error(c->err, "a lease of these bytes refuses it"), 0);
		change_free(c);
	} else if (!c->by) {
		end(c);
	} else {
		c->going = true;
		if (c->core.recalled)
			gate_was_asked(c->server, &c->core);
		tell(c, 0, 1);
		if (sd_event_add_time_relative(c->server->event, &c->forget, CLOCK_MONOTONIC,
					       FORGET_MS * 1000, 0, on_forget, c) < 0)
			end(c);
	}
}

void changes_answer(struct server *s)
{
	struct change *c, *next;
	bool recalled = false;

	pthread_mutex_lock(&s->answers);
	c = s->answered;
	s->answered = NULL;
	pthread_mutex_unlock(&s->answers);
	for (next = c; next; next = next->next)
		recalled |= next->core.recalled;
	if (recalled) /* whose lease has been taken hears it before he can see the change */
		notices_send(s);
	for (; c; c = next) {
		next = c->next;
		on_answer(c);
	}
}

/* Who waits goes on unheld, or has gone: nobody knows. */
void changes_leave(struct holder *h)
{
	struct change *c, *next;

	changes_answer(h->server);
	for (c = LIST_FIRST(&h->changes); c; c = next) {
		next = LIST_NEXT(c, link);
		if (c->going) {
			end(c);
			continue;
		}
		pinl_change_cut(h->server->ctx, &c->core);
		set_alone(c);
	}
}

/* The core has answered all that it had. */
void changes_free(struct server *s)
{
	while (!LIST_EMPTY(&s->alone))
		change_free(LIST_FIRST(&s->alone));
}

/* Its own actor is back from the change. */
static bool meets(const struct change *c, const struct pl_lease_msg *m, const struct stat *st)
{
	return c->going && c->core.actor_tid != m->thread && c->core.file_dev == st->st_dev &&
	       c->core.file_ino == st->st_ino && c->core.file_end > m->file_offset &&
	       c->core.file_start < m->file_offset + (m->end - m->start);
}

/* The core would wait for it to happen, and who says that it has is heard by this very loop. */
bool change_under_way(struct server *s, const struct pl_lease_msg *m, const struct stat *st)
{
	struct holder *h;
	struct change *c;

	LIST_FOREACH(h, &s->holders, link)
	LIST_FOREACH(c, &h->changes, link)
	if (meets(c, m, st))
		return true;
	return false;
}
