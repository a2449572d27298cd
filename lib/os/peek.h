/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Looking at tasks of others, who may have made it wait: done by a child that is left alone when it
 * takes too long. Only where children may be made: not in somebody's program.
 */
#ifndef PL_OS_PEEK_H
#define PL_OS_PEEK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PL_PEEK_MEN 64
#define PL_PEEK_ARG 1024 /* bytes */

struct pl_peek_slot;

struct pl_peek_man {
	pid_t pid; /* 0: none */
	bool late; /* with a task of uid's, that isn't looked at until until_ns, nor while the child is
		      there */
	int cpu;   /* where it may run; -1: anywhere */
	uid_t uid;
	uint64_t until_ns;
};

/* One thread's, but for opening it. */
struct pl_peek {
	atomic_bool there;
	struct pl_peek_slot *slots; /* [PL_PEEK_MEN], shared with them; before there */
	struct pl_peek_man men[PL_PEEK_MEN];
	unsigned now, n_late; /* now: the one that is asked */
};

int pl_peek_open(struct pl_peek *p);
void pl_peek_end(struct pl_peek *p);  /* the thread that asks */
void pl_peek_free(struct pl_peek *p); /* when that is over */

/*
 * Have fn look at something of the task `whose`, and wait for it: what it returns. -ETIMEDOUT: nobody
 * knows, and arg is as it was. fn gets a copy of arg's len bytes, which comes back; it makes system
 * calls only, never sleeps, and finds no descriptor of ours.
 */
int pl_peek_ask(struct pl_peek *p, pid_t whose, int (*fn)(void *arg), void *arg, size_t len);

/* A descriptor that fn has just left open, which is then closed there: one of the caller's table, or
 * -errno. */
int pl_peek_take(struct pl_peek *p, int theirs);

#endif
