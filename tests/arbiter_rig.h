/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An arbiter for a test: pinleased in a process of its own, on a socket in a directory of its own, as
 * systemd would start it; holders and actors in further processes. $PINLEASED says where it is.
 */
#ifndef ARBITER_RIG_H
#define ARBITER_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <liburing.h>
#include <pinlease/pinlease.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "check.h"
#include "keeper.h"

#define PG    4096ul
#define PAGES 16
#define SIZE  (PAGES * PG)

struct arbiter {
	char dir[64], socket[96], file[96];
	pid_t pid;
	int ready; /* what systemd would listen on */
	bool kept; /* its descriptors are kept over its death, by: */
	struct keeper keeper;
};

/* Skips the test where files can't be held. */
void arbiter_start(struct arbiter *a, const char *const *options);
void arbiter_kill(struct arbiter *a); /* kill -9 */
void arbiter_restart(struct arbiter *a,
		     const char *const *options); /* after a kill; returns when it is ready */
off_t arbiter_file_size(const struct arbiter *a);
void arbiter_stop(struct arbiter *a); /* also removes the directory; it must have ended with 0 */

/* What holder and test share. */
struct shared {
	atomic_int leased;	   /* 1, or a negative errno */
	atomic_int events[16];	   /* how many of each type the holder has seen */
	atomic_long pinned_before; /* kB, by the ring itself */
	atomic_int connected;	   /* "remote" is among its sources */
	atomic_int quiesce, end;   /* the test's orders */
	atomic_int quiesced;	   /* what pinl_quiesced() gave, + 1 */
	char error[256];
};

struct holder {
	pid_t pid;
	struct shared *s;
};

struct lending {
	struct pinl_policy policy;
	unsigned flags;
	bool uring; /* a ring, pinned, private mapping; else the soft device, shared */
	unsigned setup;
	int leases; /* 0: one of the whole file; else so many of a page each */
};

struct lending lending_recall(enum pinl_then then, unsigned grace_ms);

/* A process that leases the arbiter's file and tells what it sees. */
void holder_start(struct holder *h, const struct arbiter *a, const struct lending *what);
void holder_lease(struct holder *h, const struct arbiter *a, const struct lending *what); /* it must */
void holder_assert_leased(const struct holder *h);
void holder_stop(const struct holder *h); /* SIGSTOP */
void holder_wait(const struct holder *h, enum pinl_event_type type, int count);
void holder_end(struct holder *h);
long process_pinned_kb(pid_t pid);	       /* -1: there is none */
long holder_pinned_kb(const struct holder *h); /* by the lease */

/* A process that truncates the file to nothing; -1: still at it. */
struct actor {
	pid_t pid;
	int fd;
};
void actor_start(struct actor *t, const struct arbiter *a);
int actor_join(struct actor *t); /* 0 or -errno */
bool actor_waits(const struct actor *t);

#endif
