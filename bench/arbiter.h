/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * pinleased for a measurement: started by a process that keeps its descriptors over its death, as
 * systemd does (keeper.c), in a directory of its own, on lib_cpu. $PINLEASED says which. The contexts
 * that are opened between arbiter_start() and arbiter_stop() are connected to it, all others to none.
 */
#ifndef BENCH_ARBITER_H
#define BENCH_ARBITER_H

#include <sys/types.h>

#include "bench.h"

#define NOBODY "/nonexistent/pinleased.sock"

struct arbiter {
	char dir[128];
	pid_t keeper, pid;
	int to;		       /* the keeper */
	uint64_t began, ready; /* of its last start: when it was ordered, when it was ready */
	unsigned resumed;      /* leases that it has known then, of an earlier one */
};

/* NULL, or why nothing can be measured with it. */
const char *arbiter_missing(const struct bench *b);

void arbiter_start(const struct bench *b, struct arbiter *a, const char *ceiling_ms);
void arbiter_restart(struct arbiter *a); /* kill -9, and again; began is before the kill */
void arbiter_stop(struct arbiter *a);

/* As rig_open(), and the context must have found the arbiter. */
void arbiter_rig(const struct bench *b, struct rig *r, bool answers);

/* Bytes of memory that are this process's own: anonymous and shared, without files. */
uint64_t own_memory(pid_t pid);

/* ------------------------------------------------------------------------------- for keeper.c -- */

struct keeper_reply {
	pid_t pid;
	uint64_t began, ready;
	unsigned resumed;
};

/* The keeper's life: orders come by `from` (L launch, K kill and launch, end of file: stop and exit). */
void keeper_live(const char *dir, const char *const *argv, int from) __attribute__((noreturn));

#endif
