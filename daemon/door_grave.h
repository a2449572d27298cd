/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Sockets of connections that are over, and have descriptors in them. Main loop. */
#ifndef PL_DAEMON_DOOR_GRAVE_H
#define PL_DAEMON_DOOR_GRAVE_H

#include <stdbool.h>
#include <sys/queue.h>

struct grave {
	TAILQ_ENTRY(grave) link;
	int sock;
};

TAILQ_HEAD(graves, grave);

/* sock has been shut down, so nothing comes any more. NULL: it had no descriptors, and is closed. */
struct grave *grave_new(int sock);
struct grave *grave_unseen(int sock);	    /* not looked at: a doorman has it */
struct grave *grave_again(struct grave *g); /* look now; NULL as above */
void grave_free(struct grave *g);	    /* somebody else has the socket, or nothing is in it */

#endif
