/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The source "gate": BPF programs refuse what leases with REFUSE refuse, where fanotify hears of nothing
 * (files in memory, descriptors from before), and have others wait for those with RECALL on files in
 * memory.
 */
#ifndef PL_DAEMON_GATE_H
#define PL_DAEMON_GATE_H

#include <pinlease/source.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct held_lease;
struct server;
struct pl_lease_msg;
struct stat;

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
void gate_answer(struct server *s);    /* those of whom the core has said so go on */
bool gate_has_others_wait(struct server *s, const struct pinl_memory *mem); /* for RECALL */
bool gate_is_waited_at(struct server *s);				    /* by whom, if can be */
bool gate_stays_closed(struct server *s); /* to who waits there, after a crash */
/* He has a lease with RECALL to answer for, wherever its memory is, so his process isn't stopped. */
void gate_hold(struct held_lease *hl);
void gate_let_go(struct held_lease *hl);
/* Leases have been asked for it by another source, which doesn't stop it any more. */
void gate_was_asked(struct server *s, const struct pinl_change *ch);
bool gate_keeps_name(struct server *s, const struct pinl_memory *mem);
/* As change_under_way(). */
bool gate_under_way(struct server *s, const struct pl_lease_msg *m, const struct stat *st);
uint64_t gate_unread(const struct server *s); /* what it has refused and nobody could be told of */
void gate_describe(struct server *s, char *text, size_t len); /* after "gate: running" */

#endif
