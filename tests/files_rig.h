/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the tests of files run on: a rig is a file with its context, device and lease, and another
 * process (the actor) that changes the file. The actor is forked before the context is opened and does
 * one order at a time; everything waits for messages and events, nothing for time.
 */
#ifndef FILES_RIG_H
#define FILES_RIG_H

#include <liburing.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <cmocka.h>

#include <pinlease/pinlease.h>

#include "check.h"

#define P     4096ul
#define PAGES 16
#define SIZE  (PAGES * P)
#define FIRST 4 /* leased pages */
#define LAST  12
#define LONG  20000 /* ms: nothing takes as long */

enum act {
	OPEN, /* what FD commands use */
	TRUNCATE,
	FTRUNCATE,
	FTRUNCATE_UNALIGNED,
	O_TRUNC_OPEN,
	O_TRUNC_OPENAT2,
	PUNCH,
	ZERO,
	COLLAPSE,
	INSERT,
	REMOVE,
	URING_PUNCH,
	URING_FTRUNCATE,
	URING_O_TRUNC,
	LAST_CHANGE = URING_O_TRUNC,
	GROW,
	PUNCH_ELSEWHERE,
	READ,
	WRITE,
	MAP,
	ALLOCATE,
	PLAIN_OPEN,
	URING_READ,
	URING_WORKER_READ,
	QUIT,
};

struct act_name {
	const char *name;
	enum pinl_op op;
};
extern const struct act_name acts[];

struct rig {
	char path[256];
	int fd, sock;
	pid_t actor;
	char *va;
	size_t len; /* of the mapping */
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct pinl_lease *lease;
	struct io_uring ring;
	int has_ring;
};

int setup(void **state);
int teardown(void **state);

/* Where the files are: $PINLEASE_TEST_DIR or /var/tmp. */
const char *test_dir(void);

/* A context; skips the test where changes of files in `dir` can't be held. */
void open_ctx(struct rig *r, const char *dir);

/* The line of a source that is missing, from pinl_sources(); or NULL. */
const char *missing(struct pinl_ctx *ctx, const char *source);

void start_actor(struct rig *r);
void make_file(struct rig *r, const char *dir);

/* All of that, the actor's descriptor opened after pinl_watch_fs() and before any lease, and a mapping.
 */
void start(struct rig *r, const char *dir, int map_flags);

/* A start() with pages FIRST to LAST leased on demand to a soft device. */
void lease_shared(struct rig *r, const struct pinl_policy *policy);
void open_uring(struct rig *r);
struct pinl_policy recall(unsigned grace_ms);
int map(struct rig *r, int first, int last, unsigned flags, const struct pinl_policy *policy,
	struct pinl_lease **lease);

/* Tell the actor what to do, and don't wait. */
void send_order(struct rig *r, enum act act);

/* The errno of the actor's call; -1: not done yet, within `ms`. */
int reply(struct rig *r, int ms);

/* Have it done without being held. */
void order(struct rig *r, enum act act);

int next_event(struct rig *r, struct pinl_event *ev, int ms);

/* The next event of this type; prints the others. */
void await(struct rig *r, enum pinl_event_type type, struct pinl_event *ev);

off_t size_of(struct rig *r);
void assert_file_unchanged(struct rig *r);

/* The actor has its order and is held; the notice says who and what. */
void assert_held(struct rig *r, enum pinl_op op, struct pinl_event *ev);

#endif
