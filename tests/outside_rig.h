/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A holder: a process with a ring, a fixed buffer over a memfd, and I/O. And a witness: a second pin of
 * the same pages, which shows what is in them after the file has let them go. */
#ifndef OUTSIDE_RIG_H
#define OUTSIDE_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <liburing.h>
#include <stdatomic.h>

#include "../daemon/outside.h"

#define PAGE  4096ul
#define PAGES 64
#define SIZE  (PAGES * PAGE)
#define SLOT  1u
#define TAG   0x70696e6c00000007ull

#define PATIENCE 20000 /* ms: for what is to succeed, however slow the machine */

enum {
	FLIGHT = 1,    /* one request waits in flight for a byte from a pipe */
	SPIN = 2,      /* loops until ctl->wake, then does I/O */
	DEADLOCK = 4,  /* waits in a futex until ctl->wake, then does I/O */
	HEIR = 8,      /* has forked a child that has the ring */
	HEIR_MAP = 16, /* ... has only its mappings */
	UNTAGGED = 32,
	LOCKED = 64, /* hangs in a fault under the ring's lock */
	RESTRICTED = 128,
	ENABLE = 256,	  /* a ring that was set up disabled is enabled */
	THREAD = 512,	  /* all is done by a second thread */
	HUGE_ANON = 1024, /* the buffer is on huge pages, not on the memfd */
	PRIVILEGED = 2048 /* keeps CAP_IPC_LOCK: from some Linux on its pins aren't accounted */
};

/* Shared with the holder. */
struct ctl {
	atomic_int ready, wake, loops, bad, signals, error;
	atomic_uint futex;
	int ring, quiet[2];
	pid_t heir;
};

struct holder {
	struct ctl *ctl;
	pid_t pid;
	int pidfd, memfd, what;
	unsigned setup; /* IORING_SETUP_* */
	void *at;	/* where the buffer shall be in the holder; NULL: anywhere */
	size_t size;
	struct pl_outside_buf buf;
	struct pl_outside *o;

	char *mem; /* the memfd here, and the witness */
	struct io_uring witness;
};

uint64_t in_ms(unsigned ms);
void pause_ms(unsigned ms);

/* Start a holder, take a handle on its ring. */
void rig_start(struct holder *h);
void rig_open(struct holder *h);
void rig_stop(struct holder *h);
void rig_suspend(struct holder *h); /* SIGSTOP; all its threads stand still */

/* Fill the pages through the file, cut the file, let the holder go on; nothing of its I/O may be in the
 * pages. */
void rig_truncate(struct holder *h);
void rig_wake(struct holder *h);
void wait_for_loops(const struct holder *h, int loops); /* so much I/O in all */
void assert_old_pages_untouched(struct holder *h);

/* pl_outside_drained(), where a slow machine gets more time than another needs. */
int rig_drained(struct holder *h, unsigned flags);

int64_t vmpin(pid_t pid); /* pages; -1: no such process */
void assert_pins(const struct holder *h,
		 int64_t pages);		     /* a tag is posted a moment before the unpinning */
void wait_until_in(pid_t pid, const char *function); /* of the kernel's, asleep */

/* A test: no descriptor and no child is left after it. */
#define RIG_TEST(f) cmocka_unit_test_setup_teardown(f, rig_before, rig_after)
int rig_before(void **state);
int rig_after(void **state);

#endif
