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

#define HANG_S 500 /* nothing takes as long, however busy the machine */

struct arbiter {
	char dir[64], socket[96], file[96];
	pid_t pid;
	int ready; /* what systemd would listen on */
	bool kept; /* its descriptors are kept over its death, by: */
	struct keeper keeper;
};

void arbiter_start(struct arbiter *a, const char *const *options);
void arbiter_kill(struct arbiter *a); /* kill -9 */
void arbiter_restart(struct arbiter *a,
		     const char *const *options); /* after a kill; returns when it is ready */
void skip_unless_changes_are_held(void);
off_t arbiter_file_size(const struct arbiter *a);
void arbiter_stop(struct arbiter *a); /* also removes the directory; it must have ended with 0 */

/* What holder and test share. */
struct shared {
	atomic_int leased;	   /* 1, or a negative errno */
	atomic_int events[16];	   /* how many of each type the holder has seen */
	atomic_int outcome;	   /* of the last force */
	atomic_long pinned_before; /* kB, by the ring itself */
	atomic_int connected;	   /* "remote" is among its sources */
	atomic_int quiesce, end;   /* the test's orders */
	atomic_int leave;	   /* 1: close the context, 2: the ring, too; then 0, and live on */
	atomic_int quiesced;	   /* what pinl_quiesced() gave, + 1 */
	char error[256];
	struct pinl_event last[16]; /* of each type; set before it is counted */
	atomic_int unmap;	    /* the test's order; then 0 */
	atomic_int cut;		    /* DEGRADED with -EINTR: a change was let go */
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
	bool flight; /* the ring has a request in flight, which waits for a byte that never comes */
	int leases;  /* 0: one of the whole file; else so many of a page each */
	bool pinned; /* the soft device, too: in a private mapping */
	unsigned drain_ms; /* 0: the default */
};

struct lending lending_recall(enum pinl_then then, unsigned grace_ms);

/* A process that leases the arbiter's file and tells what it sees. */
void holder_start(struct holder *h, const struct arbiter *a, const struct lending *what);
void holder_lease(struct holder *h, const struct arbiter *a, const struct lending *what); /* it must */
void holder_assert_leased(
	const struct holder *h);	  /* or the test is skipped, where no kernel holds changes */
void holder_stop(const struct holder *h); /* SIGSTOP */
void holder_wait(const struct holder *h, enum pinl_event_type type, int count);
void holder_end(struct holder *h);
bool is_connected(struct pinl_ctx *ctx);       /* pinleased watches its files */
long process_pinned_kb(pid_t pid);	       /* -1: there is none */
long holder_pinned_kb(const struct holder *h); /* by the lease */
/* The same when it is no more than that: a ring says a moment before that a buffer is unpinned. */
long holder_pinned_down_to(const struct holder *h, long kb);

/* A process that truncates the file to nothing; -1: still at it. */
struct actor {
	pid_t pid;
	int fd;
};
void actor_start(struct actor *t, const struct arbiter *a);
void actor_start_to(struct actor *t, const struct arbiter *a, off_t size); /* to that size */
int actor_join(struct actor *t);					   /* 0 or -errno */
bool actor_waits(const struct actor *t);
void wait_until_held(
	pid_t pid); /* until the kernel has stopped it for fanotify: whoever is there to answer */

#endif
