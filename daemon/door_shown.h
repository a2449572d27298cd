/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Of what a client shows: what can be seen before a doorman has, and what is said of it. Main loop. */
#ifndef PL_DAEMON_DOOR_SHOWN_H
#define PL_DAEMON_DOOR_SHOWN_H

#include <stdbool.h>

#include "proto/wire.h"

struct holder;

/* The first message: does it show anything, and may it? 0; -errno: the connection is over; -EAGAIN. */
int door_peek(int sock, union pl_message *m, bool *shows);
int door_explain(int err);		    /* a doorman's verdict: err, with its sentence */
void door_complain(const struct holder *h); /* his doorman hangs; once a minute, as he says how often */

#endif
