/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What leases have the gate guard, each in a place of its file's in the kernel. Any thread. */
#ifndef PL_DAEMON_GATE_PART_H
#define PL_DAEMON_GATE_PART_H

#include <pthread.h>
#include <stdbool.h>
#include <sys/queue.h>

#include "core/ctx.h"

struct gate_file;
struct gate_range;
struct gate_programs;
struct server;

struct gate_parts {
	struct server *server;
	pthread_mutex_t lock; /* the rest */
	struct gate_programs *programs;
	struct pl_index files, by_lease, holdings;
	LIST_HEAD(, part) over; /* the kernel couldn't be told that they ended */
};

void gate_parts_init(struct gate_parts *g, struct server *s, struct gate_programs *programs);
void gate_parts_free(struct gate_parts *g);

/* As `how` says, but for the bytes, which are those leased. -errno and a sentence. */
int gate_parts_add(struct gate_parts *g, const struct pinl_lease *l, const struct pinl_memory *mem,
		   const struct gate_range *how);
void gate_parts_end(struct gate_parts *g, uint64_t lease_id); /* if it hasn't been before */

/* One lease more, or less, for which that process has to answer: it is never stopped. -errno: it may be.
 */
int gate_parts_hold(struct gate_parts *g, pid_t pid);
void gate_parts_let_go(struct gate_parts *g, pid_t pid);

/* Once in a while. */
void gate_parts_renew(struct gate_parts *g);

/* As the kernel knows it; false: nothing of it is guarded here. */
bool gate_parts_find(struct gate_parts *g, uint64_t dev, uint64_t ino, struct gate_file *file);

/* Which file the change is of; false: none that is guarded here. */
bool gate_parts_know(struct gate_parts *g, const struct gate_file *file, struct pinl_change *ch);

#endif
