/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The doormen as processes: started, killed, counted while they hang. Main loop. */
#ifndef PL_DAEMON_DOOR_MAN_H
#define PL_DAEMON_DOOR_MAN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>
#include <systemd/sd-event.h>

struct man {
	LIST_ENTRY(man) link;
	struct men *men;
	uid_t uid;
	int sock, pidfd;
	int theirs; /* its end, until it has it; -1 */
	pid_t pid;
	sd_event_source *exit;
	bool ended;
	uint64_t late_ns; /* not gone by then: it is stuck, too */
	bool takes;	  /* handles: door_take.c's */
};

struct men {
	sd_event *event;
	LIST_HEAD(, man) all;
	unsigned n;
	int (*died)(struct man *man, void *arg);     /* one that wasn't told to */
	void (*freed)(struct men *men, void *arg);   /* a place is */
	bool (*idle)(struct man *man, void *arg);    /* a door's, which does nothing */
	void (*dismiss)(struct man *man, void *arg); /* end that */
	void *arg;
};

struct man *man_new(struct men *men, uid_t uid);       /* NULL: too many are stuck, or no room */
bool men_are_ending(const struct men *men, uid_t uid); /* then there may be room soon */
void man_is_there(struct man *man);		       /* it has answered */
void man_end(struct man *man, bool stuck);
void men_free(struct men *men);

/* door.c, and door_take.c */
struct server;
struct men *doors_men(struct server *s);
void men_end_taker(struct men *men, uid_t uid);

#endif
