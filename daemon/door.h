/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a user's doorman is asked, and says. Shared by door.c, door_take.c and doorman.c only. */
#ifndef PL_DAEMON_DOOR_H
#define PL_DAEMON_DOOR_H

#include <stdint.h>

#include "outside.h"

enum door_what {
	DOOR_MESSAGE, /* along with it: the holder's socket. May its first message be received? */
	DOOR_GRAVE,   /* a socket: keep it to the end */
	DOOR_TAKE, /* a pidfd: take this descriptor, and keep it until DOOR_DROP if it is of that kind */
	DOOR_DROP,
};

struct door_order {
	uint32_t what;
	int32_t fd;
	uint32_t kind;	 /* enum pl_outside_kind */
	uint64_t number; /* of the device file */
};

struct door_verdict {
	int32_t err;
	int32_t fd; /* DOOR_TAKE: its number in the doorman's table */
};

/* Both are small, so a socket of either side always has room for one. Sent by pl_packet_send(). */
int door_receive(int sock, void *what, unsigned size, int *fd, int flags); /* 0; -errno; -EPIPE */

/* The child: sock is its end. It has no descriptor but that, and shares no table. */
void doorman(int sock) __attribute__((noreturn));

#endif
