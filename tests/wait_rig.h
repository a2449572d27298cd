/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* pinleased with its gate, leases of files in memory, and processes that change these and wait. */
#ifndef WAIT_RIG_H
#define WAIT_RIG_H

#include "arbiter_rig.h"

#include "gate_rig.h"

#define WAIT_DIRECTORY "/sys/fs/bpf/pinlease-test"
#define WAIT_NEVER_MS  120000

/* Nobody is let go because a ceiling is over; everybody is, soon. */
extern const char *const wait_patient[], *const wait_hasty[];

extern struct arbiter wait_arbiter;
extern struct pinl_ctx *wait_ctx;
extern struct pinl_device *wait_dev;
extern bool wait_by_page; /* threads wait alone, and no process is stopped */

/* What $PINLEASE_COMMAND status says, with one blank between words, before and after. */
void wait_status(char *said, size_t len);
bool wait_others_do(void);

/* The test is skipped where nobody waits. */
void wait_open(const char *const *options);
int wait_ctx_open(void); /* wait_ctx, in which no grace is cut */
void wait_close(void);
int wait_teardown(void **state);

void wait_target(enum gate_place place, struct gate_target *t); /* or the test is skipped */
struct pinl_lease *wait_lease(const struct gate_target *t, unsigned from, unsigned to,
			      unsigned grace_ms);

/* A process that does it, by a descriptor that is older than the lease, to that page. */
const struct gate_op *wait_op(const char *name);
pid_t wait_begin(const struct gate_op *op, const struct gate_target *t, unsigned page);
void wait_await(pid_t pid); /* till it waits; at a page also if it has ended, seen by what it has done */
void wait_await_or_end(pid_t pid);
void wait_await_stop(pid_t pid);
char *wait_shown(pid_t pid, const char *file, char *text, size_t len); /* in /proc; "" */
bool wait_is_at_page(pid_t pid);
bool wait_is_stopped(pid_t pid);
bool wait_has_ended(pid_t pid);
int wait_result(pid_t pid); /* 0 or -errno */

pid_t wait_guard_of(pid_t pinleased); /* 0: it has none */

#endif
