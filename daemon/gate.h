/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The source "gate": BPF programs refuse what leases with REFUSE refuse, where fanotify hears of nothing
 * (files in memory, descriptors from before). It holds nobody and tells of nothing but what was refused.
 */
#ifndef PL_DAEMON_GATE_H
#define PL_DAEMON_GATE_H

#include <pinlease/source.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct server;

struct gate_options {
	struct server *server;
	const char *dir; /* where the programs are pinned; NULL: nowhere */
	unsigned keep_ms;
};

extern const struct pinl_source_ops gate_ops; /* arg: struct gate_options */

/* The rest: main loop. Where the source isn't there gate_start() sweeps what an earlier one has left. */
void gate_start(struct server *s);     /* the leases that were kept are there, others can come */
void gate_drop(struct server *s);      /* what was taken is guarded no more, as it isn't refused */
void gate_stop(struct server *s);      /* before the core is closed */
void gate_hand_over(struct server *s); /* the process ends now, and the next takes over */
void gate_describe(struct server *s, char *text, size_t len); /* after "gate: running" */

#endif
