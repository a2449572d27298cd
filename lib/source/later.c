/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Deferred changes: by pinleased where it holds changes of the file, else by two threads of this
 * process, made at the first of them, which make one after the other.
 *
 *	caller -> socket -> doer -> job -> asker: waits for the leases -> doer: the call -> asker: event
 *
 * The doer has a descriptor table of its own, as closing a descriptor in the program's would drop the
 * program's locks (os/aside.h). The socket is the queue, and the descriptors come by it. The asker has
 * the program's table, in which the library's own descriptors are.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/ctx.h"
#include "os/aside.h"
#include "os/forked.h"
#include "source/later.h"
#include "source/sources.h"

struct pl_later {
	struct pinl_ctx *ctx;
	int in;	 /* in the program's table */
	int out; /* in the doer's */
	pthread_t doer, asker;
	sem_t ready, go, done; /* a job is there; it may be made; it is made, or the doer has started */
	struct pl_later_job job;
	int err; /* what has come of it */
};

static pthread_mutex_t making = PTHREAD_MUTEX_INITIALIZER;

/* ----------------------------------------------------------------------------------- the threads -- */

void pl_later_done(struct pinl_ctx *ctx, const struct pl_later_job *j, int err)
{
	struct pinl_event ev = {.size = sizeof ev,
				.type = PINL_EV_DEFERRED_DONE,
				.op = j->op,
				.err = err,
				.change_id = j->id,
				.actor_pid = getpid(),
				.actor_tid = j->tid,
				.file_dev = j->dev,
				.file_ino = j->ino,
				.file_start = j->start,
				.file_end = j->end,
				.source = "later"};

	pl_event_push(ctx, &ev);
}

/* False: that was the last one. */
static bool next(struct pl_later *t, struct pl_later_job *j, int *fd)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))];
	struct iovec iov = {j, sizeof *j};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = control,
			     .msg_controllen = sizeof control};
	struct cmsghdr *c;
	ssize_t n;

	do
		n = syscall(SYS_recvmsg, t->out, &msg, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n != sizeof *j || !j->id)
		return false;
	c = CMSG_FIRSTHDR(&msg);
	*fd = -EMFILE; /* of all the table's, and the system's */
	if (c)
		memcpy(fd, CMSG_DATA(c), sizeof *fd);
	return true;
}

static int do_it(const struct pl_later_job *j, int fd)
{
	int err;

	if (fd < 0)
		return fd;
	err = j->mode ? fallocate(fd, j->mode, j->offset, j->len) : ftruncate(fd, j->len);
	return err ? -errno : 0;
}

static void wait_for(sem_t *sem)
{
	while (sem_wait(sem))
		;
}

/* Its last job has the number 0. No source asks about what it does: that has been asked. */
static void *doer(void *arg)
{
	struct pl_later *t = arg;
	int fd, slot = pl_exempt_enter(t->ctx);
	bool more;

	prctl(PR_SET_NAME, "pinl-later");
	t->err = pl_own_table(t->out, t->out);
	more = !t->err;
	sem_post(&t->done);
	while (more) {
		more = next(t, &t->job, &fd);
		t->job.id = more ? t->job.id : 0;
		sem_post(&t->ready);
		if (!more)
			break;
		wait_for(&t->go);
		if (!t->err)
			t->err = do_it(&t->job, fd);
		sem_post(&t->done);
		if (fd >= 0)
			syscall(SYS_close, fd);
	}
	pl_exempt_leave(t->ctx, slot);
	return NULL;
}

/* Of the asker's: the doer makes the call. */
static int have_it_done(void *arg)
{
	struct pl_later *t = arg;

	t->err = 0;
	sem_post(&t->go);
	wait_for(&t->done);
	return t->err;
}

static void *asker(void *arg)
{
	struct pl_later *t = arg;
	struct pl_later_job j;
	bool done;
	int err;

	prctl(PR_SET_NAME, "pinl-asker");
	for (;;) {
		wait_for(&t->ready);
		j = t->job;
		if (!j.id)
			return NULL;
		err = pl_later_make(t->ctx, &j, have_it_done, t, &done);
		if (!done) {
			t->err = err;
			sem_post(&t->go);
			wait_for(&t->done);
		}
		pl_later_done(t->ctx, &j, err);
	}
}

/* --------------------------------------------------------------------------------- start and end -- */

static int start_threads(struct pl_later *t)
{
	struct pl_later_job last = {.id = 0};
	int err = pl_thread_start(&t->doer, doer, t);

	if (err)
		return err;
	wait_for(&t->done);
	err = t->err;
	if (!err) {
		err = pl_thread_start(&t->asker, asker, t);
		if (!err)
			return 0;
		send(t->in, &last, sizeof last, MSG_NOSIGNAL);
	}
	pthread_join(t->doer, NULL);
	return err;
}

static int start(struct pl_later *t)
{
	int pair[2], err;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return -errno;
	t->in = pair[0];
	t->out = pair[1];
	err = pl_forked_add(t->in);
	if (!err)
		err = start_threads(t);
	close(pair[1]);
	if (err)
		pl_forked_close(t->in);
	return err;
}

static void destroy(struct pl_later *t)
{
	sem_destroy(&t->ready);
	sem_destroy(&t->go);
	sem_destroy(&t->done);
	free(t);
}

/* All that was taken is done first; the leases have ended, so none waits for this process. */
static void later_free(struct pl_later *t)
{
	struct pl_later_job last = {.id = 0};

	while (send(t->in, &last, sizeof last, MSG_NOSIGNAL) < 0 && errno == EINTR)
		;
	pthread_join(t->asker, NULL);
	pthread_join(t->doer, NULL);
	pl_forked_close(t->in);
	destroy(t);
}

static int make(struct pinl_ctx *ctx)
{
	struct pl_later *t = calloc(1, sizeof *t);
	int err;

	if (!t)
		return -ENOMEM;
	t->ctx = ctx;
	sem_init(&t->ready, 0, 0);
	sem_init(&t->go, 0, 0);
	sem_init(&t->done, 0, 0);
	err = start(t);
	if (err) {
		destroy(t);
		return err;
	}
	ctx->later_free = later_free;
	ctx->later = t;
	return 0;
}

static int need_thread(struct pinl_ctx *ctx)
{
	int err = 0;

	pthread_mutex_lock(&making);
	if (!ctx->later)
		err = make(ctx);
	pthread_mutex_unlock(&making);
	return err ? pinl_set_error(err, "no thread for deferred changes: %s", strerror(-err)) : 0;
}

/* -------------------------------------------------------------------------------------- the calls -- */

static int hand_over(struct pinl_ctx *ctx, const struct pl_later_job *j, int fd)
{
	_Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec iov = {(void *)j, sizeof *j};
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = control,
			     .msg_controllen = sizeof control};
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
	int err = need_thread(ctx);
	ssize_t n;

	if (err)
		return err;
	*c = (struct cmsghdr){
		.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
	memcpy(CMSG_DATA(c), &fd, sizeof fd);
	do
		n = sendmsg(ctx->later->in, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0 && (errno == EAGAIN || errno == ENOBUFS || errno == ETOOMANYREFS))
		return pinl_set_error(-EAGAIN, "too many deferred changes wait already; wait until some "
					       "are done");
	return n < 0 ? pinl_set_error(-errno, "the change can't be deferred: %s", strerror(errno)) : 0;
}

static int check(int fd, struct pl_later_job *j, struct stat *st)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || fstat(fd, st))
		return pinl_set_error(-errno, "a deferred change: %s", strerror(errno));
	if (flags & O_PATH)
		return pinl_set_error(-EBADF, "the descriptor was made with O_PATH");
	if (!S_ISREG(st->st_mode))
		return pinl_set_error(-EINVAL, "only changes of regular files are deferred");
	if ((flags & O_ACCMODE) == O_RDONLY)
		return pinl_set_error(-EINVAL, "the descriptor is not open for writing");
	if (j->offset < 0 || j->len < 0 || j->len > INT64_MAX - j->offset)
		return pinl_set_error(-EINVAL, "a size or an offset below zero, or beyond all files");
	j->dev = st->st_dev;
	j->ino = st->st_ino;
	j->tid = gettid();
	pl_later_plan(fd, st, j);
	return 0;
}

static int later(struct pinl_ctx *ctx, int fd, struct pl_later_job *j, uint64_t *id)
{
	void *remote = pl_source_priv(ctx, &pl_remote_ops);
	struct stat st;
	int err = check(fd, j, &st);

	if (err)
		return err;
	pthread_mutex_lock(&ctx->lock);
	j->id = ++ctx->next_id;
	pthread_mutex_unlock(&ctx->lock);
	err = remote ? pl_remote_later(remote, fd, j) : -EOPNOTSUPP;
	if (err && err != -EAGAIN && err != -EDQUOT && err != -ETIMEDOUT)
		err = hand_over(ctx, j, fd);
	if (!err)
		*id = j->id;
	return err;
}

int pinl_ftruncate_later(struct pinl_ctx *ctx, int fd, off_t size, uint64_t *id)
{
	PL_CALL(call);
	struct pl_later_job j = {.op = PINL_OP_TRUNCATE, .len = size};

	return pl_alive(ctx) ? later(ctx, fd, &j, id) : pl_stale();
}

static enum pinl_op op_of(int mode)
{
	switch (mode & ~FALLOC_FL_KEEP_SIZE) {
	case FALLOC_FL_PUNCH_HOLE:
		return PINL_OP_PUNCH;
	case FALLOC_FL_ZERO_RANGE:
		return PINL_OP_ZERO;
	case FALLOC_FL_COLLAPSE_RANGE:
		return PINL_OP_COLLAPSE;
	case FALLOC_FL_INSERT_RANGE:
		return PINL_OP_INSERT;
	}
	return PINL_OP_NR;
}

int pinl_fallocate_later(struct pinl_ctx *ctx, int fd, int mode, off_t offset, off_t len, uint64_t *id)
{
	PL_CALL(call);
	struct pl_later_job j = {.op = op_of(mode), .mode = mode, .offset = offset, .len = len};

	if (!pl_alive(ctx))
		return pl_stale();
	if (j.op == PINL_OP_NR || !len || (j.op == PINL_OP_PUNCH && !(mode & FALLOC_FL_KEEP_SIZE)))
		return pinl_set_error(-EINVAL,
				      "mode %#x takes no pages from a device, or the range is "
				      "empty: call fallocate",
				      mode);
	return later(ctx, fd, &j, id);
}
