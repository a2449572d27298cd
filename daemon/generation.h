/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Counting changes of holders' address spaces (COUNT). Main loop; what takes long is the worker's, which
 * wakes the loop when it has something for it.
 */
#ifndef PL_DAEMON_GENERATION_H
#define PL_DAEMON_GENERATION_H

#include "daemon.h"

/* At the start: what an earlier pinleased has left goes on till its holders have had the time to ask. */
void generation_start(struct server *s);
void generation_stop(struct server *s); /* all are told that it is over, and nothing is left */

int generation_ask(struct holder *h, const struct pl_count_msg *m); /* as holder_receive() */
void generation_answer(struct server *s);
void generation_forget(struct holder *h); /* its connection is over */

/* A line of pinl_sources(); empty: nobody has asked. */
void generation_describe(struct server *s, char *text, size_t len);

#endif
