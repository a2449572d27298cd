/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Gate. */
#include "source/files_peek.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#define LOOK_TRIES 8 /* 1.3 ms in all; on a busy processor it takes longer: files_unseen.c */

struct question {
	struct pl_files_whom whom;
	struct pl_syscall call; /* CALL: the answer; OPEN: the question */
	struct pl_files_task task;
};

static int look_at_task(void *arg)
{
	struct question *q = arg;

	return pl_files_look_at_task(&q->whom, &q->task);
}

static int look_at_call(void *arg)
{
	struct question *q = arg;

	return pl_task_syscall(0, q->whom.tid, &q->call);
}

static int open_target(void *arg)
{
	struct question *q = arg;

	return pl_files_open_target(q->whom.tid, &q->call);
}

static int ask(struct pl_peek *p, int (*fn)(void *arg), struct question *q)
{
	return p->there ? pl_peek_ask(p, q->whom.tid, fn, q, sizeof *q) : fn(q);
}

/*
 * The event can be here before its task has gone to sleep, and until then the kernel says nothing about
 * it: give it the processor.
 */
static int ask_some(struct pl_peek *p, int (*fn)(void *arg), struct question *q, enum pl_files_look look)
{
	struct timespec wait = {.tv_nsec = 10000};
	int tries = look == PL_FILES_FIRST ? LOOK_TRIES : 0, err;

	for (int i = 0; (err = ask(p, fn, q)) == -EAGAIN && i < tries; i++) {
		nanosleep(&wait, NULL);
		if (wait.tv_nsec < 1000000)
			wait.tv_nsec *= 2;
	}
	return err;
}

int pl_files_peek_task(struct pl_peek *p, const struct pl_files_whom *whom, enum pl_files_look look,
		       struct pl_files_task *out)
{
	struct question q = {.whom = *whom, .task = *out};
	int err;

	q.whom.aside = p->there;
	err = ask_some(p, look_at_task, &q, look);
	*out = q.task;
	return err;
}

int pl_files_peek_call(struct pl_peek *p, pid_t tid, enum pl_files_look look, struct pl_syscall *sc)
{
	struct question q = {.whom = {.tid = tid}};
	int err = ask_some(p, look_at_call, &q, look);

	*sc = q.call;
	return err;
}

int pl_files_peek_open(struct pl_peek *p, pid_t tid, const struct pl_syscall *sc)
{
	struct question q = {.whom = {.tid = tid}, .call = *sc};
	int fd = ask(p, open_target, &q);

	return fd < 0 || !p->there ? fd : pl_peek_take(p, fd);
}
