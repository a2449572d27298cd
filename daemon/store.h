/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What outlives pinleased (I6): the fanotify groups and a memfd with the changes held, the holders and
 * their leases, given to the service manager (its fd store) and got back at the next start. What happens
 * is written into shared memory before it can be seen from outside, so it is there however this ends.
 */
#ifndef PL_DAEMON_STORE_H
#define PL_DAEMON_STORE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/foreign.h"
#include "proto/messages.h"
#include "source/files.h"

#define STORE_HOLDERS 16384
#define STORE_LEASES  1048576

struct stored_holder {
	uint64_t session;   /* 0: free */
	uint64_t started;   /* of the process, in ticks since boot: its number may be another's by now */
	uint64_t stack;	    /* where its stack begins: elsewhere in another program; 0: not known */
	uint32_t accounted; /* pins of its rings were seen to be accounted to it */
	int32_t pid;
	uint32_t uid;
	char name[32];
};

enum stored_state {
	STORED_FREE,
	STORED_LIVE,
	STORED_TAKEN /* a force has begun: it may be over */
};

#define STORE_ORPHANS 4

struct stored_lease {
	uint32_t state;
	uint32_t holder;
	uint64_t dev, ino;
	int64_t fs_magic;
	struct pl_lease_msg msg;
	struct pl_handle_msg handle; /* its lease 0: none */
	uint32_t n_orphans, unused;
	struct pl_foreign_orphan orphans[STORE_ORPHANS]; /* if there are more, the last covers them */
};

struct store_image {
	struct pl_files_table files;
	uint64_t layout;
	uint32_t holders_used, leases_used; /* none beyond these has ever been */
	struct stored_holder holders[STORE_HOLDERS];
	struct stored_lease leases[STORE_LEASES];
};

/* Slots that have been given back. */
struct slots {
	uint32_t *free, n_free, room;
};

struct store {
	struct store_image *image; /* NULL: nothing is kept */
	bool resumed;		   /* there is something of an earlier process in it */
	pthread_mutex_t lock;	   /* the slots */
	struct slots holders, leases;
	bool full; /* said */
};

/*
 * Finds what was kept, or begins anew and gives it away. Returns how many sockets the service manager
 * has passed, of which the first is *socket. With `closed` false nothing is kept, and what was is thrown
 * away: who waits goes on.
 */
int store_open(struct store *st, bool closed, int *socket);
void store_groups_taken(struct store *st); /* the source has them */
void store_close(struct store *st);

/* 0: there is none, or it couldn't be looked at. */
struct process_seen {
	pid_t pid;
	uint64_t started, stack; /* as in stored_holder */
};

struct process_seen process_look(pid_t pid);

/* NULL: not kept. Any thread. */
struct stored_holder *store_holder(struct store *st, const struct stored_holder *what);
struct stored_lease *store_lease(struct store *st, const struct stored_holder *of,
				 const struct pl_lease_msg *msg, const struct pinl_memory *mem);
/* NULL: it has none any more. ctx->lock keeps callers apart. */
void store_orphan(struct stored_lease *l, const struct pl_foreign_orphan *orphan);
void store_drop_holder(struct store *st, struct stored_holder *h);
void store_drop_lease(struct store *st, struct stored_lease *l);

#endif
