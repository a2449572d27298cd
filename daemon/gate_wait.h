/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who waits at the gate: changes that its programs have wait, or couldn't, as changes of the core. Main
 * loop, but for what the core answers.
 */
#ifndef PL_DAEMON_GATE_WAIT_H
#define PL_DAEMON_GATE_WAIT_H

#include <pthread.h>
#include <stdbool.h>
#include <systemd/sd-event.h>

#include "bpf/gate.h"
#include "core/ctx.h"

struct gate_stops;
struct server;
struct waiter;

struct gate_waiting {
	struct server *server;
	struct gate_stops *stops;
	void (*listen)(void *arg); /* has us told what the programs have said by now */
	void *arg;
	struct pl_index waiters; /* by thread */
	struct pl_index refused; /* they don't wait; by the first byte */
	struct waiter *alone;	 /* nobody is to hear what the core says of them */
	unsigned n;
	uint64_t ever, lost;	/* have waited; couldn't, for want of room */
	sd_event_source *guard; /* its end */
	sd_event_source *page;	/* somebody has come to his */
	pthread_mutex_t lock;	/* the next one; nothing is called under it */
	struct waiter *answered;
};

void gate_waiting_init(struct gate_waiting *g, struct server *s, struct gate_stops *stops,
		       void (*listen)(void *arg), void *arg);
void gate_waiting_start(struct gate_waiting *g); /* the loop runs from now on */
void gate_waiting_stop(struct gate_waiting *g);	 /* and from now on not any more */
void gate_waiting_free(struct gate_waiting *g);	 /* the core has answered all */

/* What the programs say of a call. change: of a file with leases, else NULL. It is copied. */
void gate_waiting_told(struct gate_waiting *g, const struct gate_refusal *call,
		       const struct pinl_change *change);

/* gate_able.c: the guard is watched; looked for once in a while, if there is none; what won't mend. */
void gate_waiting_watch(struct gate_waiting *g);
void gate_waiting_renew(struct gate_waiting *g);
void gate_waiting_never(struct gate_waiting *g, const char *why);

/* Those that the core has answered go on. */
void gate_waiting_answer(struct gate_waiting *g);

/* Is one going on that takes something of these bytes, by another thread? */
bool gate_waiting_under_way(const struct gate_waiting *g, uint64_t dev, uint64_t ino, uint64_t start,
			    uint64_t end, pid_t thread);

#endif
