/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Deferred changes (TRUNCATE): asked of the core like any other, with nobody waiting, and made here when
 * no lease is under them.
 *
 *	main loop: TRUNCATE -> laters -> core -> answered() -> ready -> doer: the call -> over
 *
 * Those of one file are asked one after the other, so their order is that of the messages. Who has asked
 * may go: what was taken is done. Only files whose changes are held here are taken, that is of file
 * systems of this machine, so a call by the doer ends.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon.h"
#include "os/thread.h"
#include "os/wake.h"
#include "source/sources.h"

#define PAGE	    4096ull
#define ROUND_UP(x) (((x) + PAGE - 1) & ~(PAGE - 1))
#define MOST	    64 /* of one user */

struct later {
	TAILQ_ENTRY(later) link; /* laters->all; main loop */
	TAILQ_ENTRY(later) next; /* laters->ready or over; lock */
	struct pinl_change change;
	struct laters *laters;
	struct holder *holder; /* to be told; NULL: gone */
	struct user *user;
	uint64_t number;
	int fd, mode, err;
	off_t offset, len;
	bool asked, over; /* main loop */
};

TAILQ_HEAD(later_list, later);

struct laters {
	struct server *server;
	struct later_list all, ready, done;
	pthread_mutex_t lock;
	pthread_cond_t work;
	bool stop;
	pthread_t doer;
};

/* ---------------------------------------------------------------------------------- the doer -- */

static int call(const struct later *l)
{
	int err = l->mode ? fallocate(l->fd, l->mode, l->offset, l->len) : ftruncate(l->fd, l->len);

	return err ? -errno : 0;
}

static void *doer(void *arg)
{
	struct laters *t = arg;
	struct pinl_ctx *ctx = t->server->ctx;
	int slot = pl_exempt_enter(ctx); /* nobody is asked twice */
	struct later *l;

	pthread_mutex_lock(&t->lock);
	while (!t->stop) {
		l = TAILQ_FIRST(&t->ready);
		if (!l) {
			pthread_cond_wait(&t->work, &t->lock);
			continue;
		}
		TAILQ_REMOVE(&t->ready, l, next);
		pthread_mutex_unlock(&t->lock);
		if (!l->err) {
			l->err = call(l);
			pinl_change_done(ctx, l->change.id);
		}
		pthread_mutex_lock(&t->lock);
		TAILQ_INSERT_TAIL(&t->done, l, next);
		pl_wake(t->server->wake);
	}
	pthread_mutex_unlock(&t->lock);
	pl_exempt_leave(ctx, slot);
	return NULL;
}

/* From any thread, and from inside pinl_change_submit(). */
static void answered(struct pinl_change *ch, int err)
{
	struct later *l = ch->arg;
	struct laters *t = l->laters;

	pthread_mutex_lock(&t->lock);
	l->err = err;
	TAILQ_INSERT_TAIL(&t->ready, l, next);
	pthread_cond_signal(&t->work);
	pthread_mutex_unlock(&t->lock);
}

/* ----------------------------------------------------------------------------- the main loop -- */

static bool same_file(const struct later *a, const struct later *b)
{
	return a->change.file_ino == b->change.file_ino && a->change.file_dev == b->change.file_dev;
}

/* Unless one of the same file is before it. */
static void ask_if_first(struct laters *t, struct later *l)
{
	struct later *other;

	TAILQ_FOREACH(other, &t->all, link)
	if (same_file(other, l) && !other->over)
		break;
	if (other != l || l->asked)
		return;
	l->asked = true;
	pinl_change_submit(t->server->ctx, &l->change);
}

static bool tell(struct later *l)
{
	union pl_message m;

	if (!l->holder)
		return true;
	if (l->holder->full)
		return false;
	pl_message_init(&m, PL_CHANGED);
	m.changed.number = l->number;
	m.changed.err = l->err;
	return holder_send(l->holder, &m) != -EAGAIN;
}

static void later_free(struct laters *t, struct later *l)
{
	TAILQ_REMOVE(&t->all, l, link);
	pthread_mutex_lock(&t->server->lock);
	l->user->laters--;
	pthread_mutex_unlock(&t->server->lock);
	user_put(t->server, l->user, false);
	free(l);
}

static void ask_next(struct laters *t, const struct later *after)
{
	struct later *l;

	TAILQ_FOREACH(l, &t->all, link)
	if (same_file(l, after) && !l->over) {
		ask_if_first(t, l);
		return;
	}
}

/* Whoever reads is told; for who doesn't, it is tried again when he does. */
static void tell_all(struct laters *t)
{
	struct later *l, *next;

	for (l = TAILQ_FIRST(&t->all); l; l = next) {
		next = TAILQ_NEXT(l, link);
		if (l->over && tell(l))
			later_free(t, l);
	}
}

void laters_look(struct server *s)
{
	struct laters *t = s->laters;
	struct later *l;

	pthread_mutex_lock(&t->lock);
	while ((l = TAILQ_FIRST(&t->done))) {
		TAILQ_REMOVE(&t->done, l, next);
		pthread_mutex_unlock(&t->lock);
		close(l->fd);
		l->over = true;
		ask_next(t, l);
		pthread_mutex_lock(&t->lock);
	}
	pthread_mutex_unlock(&t->lock);
	tell_all(t);
}

void laters_forget(struct server *s, const struct holder *h)
{
	struct later *l;

	TAILQ_FOREACH(l, &s->laters->all, link)
	if (l->holder == h)
		l->holder = NULL;
	tell_all(s->laters);
}

static int op_of(const struct pl_truncate_msg *m, enum pinl_op *op)
{
	static const struct {
		uint32_t mode;
		enum pinl_op op;
	} modes[] = {
		{0, PINL_OP_TRUNCATE},
		{FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PINL_OP_PUNCH},
		{FALLOC_FL_ZERO_RANGE, PINL_OP_ZERO},
		{FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, PINL_OP_ZERO},
		{FALLOC_FL_COLLAPSE_RANGE, PINL_OP_COLLAPSE},
		{FALLOC_FL_INSERT_RANGE, PINL_OP_INSERT},
	};

	for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
		if (modes[i].mode == m->mode) {
			*op = modes[i].op;
			return 0;
		}
	return pinl_set_error(-EINVAL, "mode %#x is none that takes pages away", m->mode);
}

/* As an explicit call of his own would be: lib/source/calls.c. The edges of a range are not left out. */
static void describe(struct later *l, const struct pl_truncate_msg *m, enum pinl_op op,
		     const struct stat *st)
{
	bool all = op == PINL_OP_COLLAPSE || op == PINL_OP_INSERT;
	uint64_t start = m->mode ? (uint64_t)m->offset & ~(PAGE - 1) : ROUND_UP((uint64_t)m->len);

	l->change = (struct pinl_change){
		.op = op,
		.can = PINL_CAN_TELL | PINL_CAN_BEFORE | PINL_CAN_HOLD | PINL_CAN_REFUSE |
		       PINL_WILL_SAY_DONE,
		.on_file = 1,
		.file_dev = st->st_dev,
		.file_ino = st->st_ino,
		.file_start = start,
		.file_end = !m->mode || all ? UINT64_MAX : ROUND_UP((uint64_t)(m->offset + m->len)),
		.actor_pid = l->holder->pid,
		.actor_tid = m->thread,
		.source = "later",
		.answer = answered,
		.arg = l,
	};
}

static int check(struct holder *h, const struct pl_truncate_msg *m, int fd, struct stat *st)
{
	struct pinl_memory mem = {.fd = -1};
	void *files = pl_source_priv(h->server->ctx, &pl_files_ops);
	bool reader, holds = false;
	int err;

	if (m->offset < 0 || m->len < 0 || m->len > INT64_MAX - m->offset - (int64_t)PAGE ||
	    (m->mode && !m->len))
		return pinl_set_error(-EINVAL, "an empty range, or one beyond all files");
	err = file_look(fd, true, st, &mem.fs_magic, &reader);
	if (err)
		return err;
	mem.dev = st->st_dev;
	mem.ino = st->st_ino;
	mem.kind = file_kind(mem.fs_magic, true);
	mem.fd = file_path_only(fd);
	if (mem.fd >= 0) {
		holds = files && pl_files_ops.coverage(files, &mem, PINL_OP_TRUNCATE) & PINL_CAN_HOLD;
		close(mem.fd);
	}
	return holds ? 0
		     : pinl_set_error(-EOPNOTSUPP,
				      "changes of this file are not held here, so the program "
				      "has to defer them itself");
}

static int charge(struct server *s, struct user *u)
{
	int err = 0;

	pthread_mutex_lock(&s->lock);
	if (u->laters == MOST) {
		err = pinl_set_error(-EDQUOT,
				     "user %u has %d deferred changes under way; wait until some are "
				     "done",
				     u->uid, MOST);
	} else {
		u->laters++;
		u->refs++;
	}
	pthread_mutex_unlock(&s->lock);
	return err;
}

int later_take(struct holder *h, const struct pl_truncate_msg *m, int fd)
{
	struct laters *t = h->server->laters;
	enum pinl_op op = PINL_OP_NR;
	struct later *l;
	struct stat st;
	int err = op_of(m, &op);

	if (!err)
		err = check(h, m, fd, &st);
	if (!err)
		err = charge(h->server, h->user);
	if (err)
		return err;
	l = calloc(1, sizeof *l);
	if (!l) {
		pthread_mutex_lock(&h->server->lock);
		h->user->laters--;
		pthread_mutex_unlock(&h->server->lock);
		user_put(h->server, h->user, false);
		return pinl_set_error(-ENOMEM, "pinleased is out of memory");
	}
	l->laters = t;
	l->holder = h;
	l->user = h->user;
	l->number = m->number;
	l->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	l->mode = m->mode;
	l->offset = m->offset;
	l->len = m->len;
	TAILQ_INSERT_TAIL(&t->all, l, link);
	if (l->fd < 0) {
		err = pinl_set_error(-errno, "no descriptor left in pinleased: %s", strerror(errno));
		later_free(t, l);
		return err;
	}
	describe(l, m, op, &st);
	return 0;
}

/* After the REPLY: what comes of it comes after that. */
void later_begin(struct server *s)
{
	struct later *l = TAILQ_LAST(&s->laters->all, later_list);

	if (l)
		ask_if_first(s->laters, l);
}

/* ----------------------------------------------------------------------------- start and end -- */

int laters_new(struct server *s)
{
	struct laters *t = calloc(1, sizeof *t);
	int err;

	if (!t)
		return -ENOMEM;
	t->server = s;
	TAILQ_INIT(&t->all);
	TAILQ_INIT(&t->ready);
	TAILQ_INIT(&t->done);
	pthread_mutex_init(&t->lock, NULL);
	pthread_cond_init(&t->work, NULL);
	err = pl_thread_start(&t->doer, doer, t);
	if (err) {
		free(t);
		return err;
	}
	s->laters = t;
	return 0;
}

/* No lease is left, so none of them waits any more: what was taken is done. */
void laters_free(struct server *s)
{
	struct laters *t = s->laters;

	if (!t)
		return;
	for (laters_look(s); !TAILQ_EMPTY(&t->all); laters_look(s))
		usleep(1000);
	pthread_mutex_lock(&t->lock);
	t->stop = true;
	pthread_cond_signal(&t->work);
	pthread_mutex_unlock(&t->lock);
	pthread_join(t->doer, NULL);
	pthread_cond_destroy(&t->work);
	pthread_mutex_destroy(&t->lock);
	free(t);
}
