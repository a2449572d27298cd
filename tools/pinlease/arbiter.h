/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Asking pinleased. Errors are printed, with what would help. */
#ifndef PINLEASE_ARBITER_H
#define PINLEASE_ARBITER_H

#include <pinlease/pinlease.h>

#include "proto/wire.h"

#define ARBITER_PATIENCE_MS 30000 /* for an answer that comes at once */

/* Zeroed, but for what it says. */
struct arbiter {
	int sock;
	const char *path;
	bool quiet; /* set before: what is wrong is not printed, it is in `why` */
	char why[320];
};

/* A connection; 0 or -errno. One that fails needs no closing. */
int arbiter_open(struct arbiter *a);
void arbiter_close(struct arbiter *a);

/*
 * Ask, and call `each` for what comes before the REPLY, whose value goes to *value (which may be NULL).
 * Stops when `each` returns an error. patience_ms -1: as long as it takes. 0 or -errno.
 */
int arbiter_ask(struct arbiter *a, const union pl_message *request,
		int (*each)(const union pl_message *m, void *arg), void *arg, int patience_ms,
		uint64_t *value);

/* What the arbiter does about changes of the file that `fd` shows: COVER's value. 0 or -errno. */
int arbiter_cover(struct arbiter *a, int fd, uint64_t *value);

/* The next message; -ETIMEDOUT is not printed, all else is. */
int arbiter_next(struct arbiter *a, union pl_message *m, int patience_ms);

/* Calls `each` for every lease that fits; stops when it returns an error. 0 or -errno. */
int arbiter_list(const struct pl_list_msg *filter, int (*each)(const union pl_message *m, void *arg),
		 void *arg);

/* The PID and FILE that commands are given: 0, or prints and ends by way of argp. */
struct argp_state;
int32_t arbiter_pid(const char *arg, struct argp_state *state);
void arbiter_file(const char *path, uint64_t *dev, uint64_t *ino, struct argp_state *state);

const char *arbiter_path(void);

/* A connection to it that has said HELLO and has not waited for the answer; -errno. */
int arbiter_connect(enum pl_role role, int flags);

#endif
