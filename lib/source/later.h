/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A change of a file that nobody waits for. */
#ifndef PL_SOURCE_LATER_H
#define PL_SOURCE_LATER_H

#include <pinlease/pinlease.h>
#include <stdbool.h>

struct pl_later_job {
	uint64_t id; /* 0: no more come */
	enum pinl_op op;
	int mode; /* fallocate's; 0: the file gets the size `len` */
	off_t offset, len;
	uint64_t dev, ino;
	unsigned also;	     /* as pinl_change.also */
	uint64_t start, end; /* what is asked about */
	pid_t tid;	     /* of who asked */
};

struct stat;

/* calls.c: which bytes that touches; and, as an explicit call does it, ask, wait, have it made. done:
 * `make` was called. */
void pl_later_plan(int fd, const struct stat *st, struct pl_later_job *job);
int pl_later_make(struct pinl_ctx *ctx, const struct pl_later_job *job, int (*make)(void *arg),
		  void *arg, bool *done);

/* It is done, or why not. Any thread. */
void pl_later_done(struct pinl_ctx *ctx, const struct pl_later_job *job, int err);

/*
 * remote.c: pinleased is to do it. -EAGAIN, -EDQUOT: not now; -ETIMEDOUT: nobody knows; another error:
 * it doesn't, as where it doesn't hold changes of the file, or the descriptor can't be opened anew.
 */
int pl_remote_later(void *remote, int fd, const struct pl_later_job *job);

#endif
