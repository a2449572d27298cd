/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A command's connection to pinleased: what is told to who watches, asks, recalls. */
#ifndef TOLD_RIG_H
#define TOLD_RIG_H

#include "arbiter_rig.h"
#include "proto/wire.h"

struct asker {
	int sock;
	uint64_t serial;
};

void asker_open(struct asker *c, const struct arbiter *a);
void asker_truncates(struct asker *c, const struct arbiter *a); /* as pinlease run; not waited for */
bool asker_goes_on(struct asker *c); /* who truncates; false: it was refused, or not heard in time */
void asker_close(struct asker *c);
void asker_watch(struct asker *c);
/* The next event of that kind; others are passed over. */
struct pl_event_msg asker_event(struct asker *c, unsigned what);
/* All up to the next of that kind; how many there are of each is counted. */
struct pl_event_msg asker_count(struct asker *c, unsigned what, unsigned counts[64]);
struct pl_status_msg asker_status(struct asker *c);
struct pl_entry_msg asker_entry(struct asker *c); /* the only lease there is; lease 0: there is none */
void asker_recall(struct asker *c, pid_t pid);	  /* of all leases of this holder; asker_event() */

#endif
