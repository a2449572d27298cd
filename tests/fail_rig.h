/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a life is lived with: memory, device I/O, a witness of the old pages, and counts of what a
 * process has. Inside of the failure sweeps; see fail_life.h. */
#ifndef FAIL_RIG_H
#define FAIL_RIG_H

#include <liburing.h>
#include <pthread.h>
#include <stdatomic.h>

#include <pinlease/exporter.h>

#include "fail_life.h"

#define PAGE  4096ul
#define PAGES 4
#define SIZE  (PAGES * PAGE)

/* What the kernel says this process has. */
struct has {
	long fds, threads, mapped, pinned_kb;
	long aside; /* files that the library has open in a table of its own */
};

struct run {
	const struct life *l;
	const struct life_report *healthy;
	struct life_report *report;
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct pinl_lease *lease;
	struct pinl_addr addrs[PAGES];
	char *va;
	struct pinl_exporter *exporter; /* of EXPORTED memory, which is other's */
	struct io_uring other;
	int fd, bounce;
	struct io_uring ring, witness; /* the program's, for device "uring"; the witness's */
	void *verbs;		       /* fail_verbs.c */
	bool witnessing, unmapped;
	bool lasting; /* the failure */
	bool weaker;  /* and it was said */
	int events[PINL_EV_KEYS + 1];
	struct pinl_event taken; /* FORCED or QUIESCED */
	struct has before;
	struct { /* the thread that makes the change */
		pthread_t thread;
		atomic_int done;
		int err;
		char sentence[256];
	} actor;
};

void wrong(struct run *r, const char *fmt, ...) __attribute__((format(printf, 2, 3), noreturn));

void rig_up(struct run *r);
void rig_down(struct run *r);
bool is_uring(const struct run *r);
bool is_verbs(const struct run *r);
bool is_staged(const struct run *r);

/* The device writes `c` to all it was given. 0 or the first error. */
int dev_write(struct run *r, char c);
int dev_write_page(struct run *r, int page, char c);

/* fail_verbs.c: a peer of the same host. Why there is none, NULL: there is one. */
const char *verbs_missing(void);
void verbs_up(struct run *r);
void verbs_down(struct run *r);
int verbs_open_device(struct run *r);
int verbs_write(struct run *r, const struct pinl_addr *a, const char *page); /* -EFAULT */

/* Completions nobody waits for. */
void reap_all(struct run *r);

/* The witness pins the pages too, and can still see and poison them when nobody else can. */
void poison_old_pages(struct run *r);
void check_old_pages(struct run *r);

void take_stock(struct has *has);

/* Compare, and wait a while for what the kernel does later. */
void check_stock(struct run *r, const char *when, bool pins_only);

#endif
