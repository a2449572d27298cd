/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who has been stopped by the gate's programs (bpf/gate_wait.h), or is at his page, in the kernel's
 * maps: let through, continued, and that also when pinleased is gone. Who has to wait for what is
 * gate_wait.c's. Main loop, but for gate_stop_never(): one thread at a time.
 */
#ifndef PL_DAEMON_GATE_STOP_H
#define PL_DAEMON_GATE_STOP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "bpf/gate.h"
#include "daemon/gate_page.h"

#define GATE_PASS_MS  5000  /* so long a pass is good */
#define GATE_ASKED_MS 60000 /* and that leases have been asked for who couldn't wait */

struct gate_programs;

/* What of the programs this is about. */
struct gate_stops {
	int stops, passes, asked, holders; /* maps */
	struct gate_state *state;
	struct gate_page page; /* they wait there, if it is open */
	pid_t guard;	       /* who continues them when we can't, and has the pages; 0: nobody */
	int pidfd;	       /* of the guard; -1 */
	bool tried;	       /* it works, while there is a guard */
	char why_not[256];     /* nobody waits; "": who can, does */
};

/* gate_guard.c: a process that lives as long as this one and a moment more. -errno and a sentence. */
int gate_guard_start(struct gate_stops *s);
void gate_guard_end(struct gate_stops *s);

/* The thread may make that call once, within GATE_PASS_MS; or is refused then. -errno and a sentence. */
int gate_stop_pass(const struct gate_stops *s, const struct gate_refusal *call, bool refuse);
bool gate_stop_may_go(const struct gate_stops *s, const struct gate_refusal *call); /* not yet in it */
void gate_stop_take_pass(const struct gate_stops *s, const struct gate_refusal *call);

/* It has been continued for this one, or nothing is to be. */
void gate_stop_is_over(const struct gate_stops *s, const struct gate_refusal *call);

/* The leases of now have been asked for it, so its process may make it, for GATE_ASKED_MS. -errno and a
 * sentence. */
int gate_stop_asked(const struct gate_stops *s, const struct gate_refusal *call);

/* Not this process, or it again. -errno and a sentence. */
int gate_stop_never(const struct gate_stops *s, pid_t pid, bool never);

/* Nobody waits from now on, for that reason. */
void gate_stop_nobody(struct gate_stops *s, const char *why);

/* Nobody is stopped from now on, and all who are go on. */
void gate_stop_end(const struct gate_stops *s);

/* The same for a map that another process has left: stops is its descriptor. */
void gate_stop_let_go(int stops);

/* Threads wait at their pages, else their processes are stopped. */
static inline bool gate_stop_by_page(const struct gate_stops *s)
{
	return s->page.device >= 0;
}

/* gate_try.c: does it work here? -errno and a sentence. The programs are attached, and nothing is
 * guarded. */
int gate_stop_try(struct gate_programs *g);

#endif
