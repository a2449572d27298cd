/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the contract tests run on: a fixture is one backend in one mode, a rig is one device of it and
 * four pages of a memfd. Only dev_io() and the transfer in flight know which backend it is.
 */
#ifndef CONTRACT_RIG_H
#define CONTRACT_RIG_H

#include <errno.h>
#include <liburing.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include <pinlease/pinlease.h>

#include "check.h"
#include "edu_rig.h"
#include "proc.h"

#define LONG  20000 /* ms: nothing takes as long */
#define PAGE  4096u
#define PAGES 4u
#define SIZE  (PAGES * PAGE)

/* What a fixture has, and what a test needs to be run on it. */
#define REVOCABLE     0x01u
#define COPIES	      0x02u
#define READS	      0x04u
#define ONDEMAND      0x08u
#define PINS	      0x10u
#define TRACKS_DIRTY  0x20u
#define CHECKS_WRITES 0x40u
#define SCRATCHES     0x80u
#define PINS_READONLY 0x100u /* on newer kernels */
#define HALTS	      0x200u /* a transfer can be kept in flight, and its end tells how it went */
#define ATOMIC	      0x400u /* given other pages, a device that isn't stopped meets no error */

struct fixture {
	const char *name;
	const char *kind;
	int device_class; /* of soft; means of verbs */
	unsigned flags;	  /* PINL_PIN */
	unsigned can;	  /* REVOCABLE ... */
	int counted;	  /* so often a pinned page counts; 0: once */
};

struct rig {
	const struct fixture *f;
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct pinl_lease *lease;
	struct pinl_addr addrs[PAGES];
	int fd;
	char *va;
	struct io_uring ring; /* the application's, of a uring fixture */
	int bounce;
	void *verbs; /* contract_verbs.c */
	struct io_uring witness;
	int witnessing;
	struct edu edu; /* of a device behind an IOMMU */
};

uint64_t now_ns(void);
void assert_filled(const char *what, const char *buf, char c, size_t len);
int is_uring(const struct rig *r);
int is_verbs(const struct rig *r);
int is_edu(const struct rig *r);
enum edu_space space_of(const struct fixture *f);

long leased_kb(void);
void await_pinned(long kb);

/* The device moves whole pages [first, first + n), each by its own address; stops at the first error. */
int dev_io(struct rig *r, unsigned first, unsigned n, char *buf, int write);
int dev_write(struct rig *r, unsigned first, unsigned n, char c);

/* The result of the next request of the test's own on the application's ring. */
int reap(struct rig *r);

/* Device and CPU see each other's stores in these pages. */
void assert_coherent(struct rig *r, unsigned first, unsigned n);

/*
 * The witness pins the pages independently of the library: it still sees them, and can still poison
 * them, after the file has let them go.
 */
void witness_start(struct rig *r);
void poison_old_pages(struct rig *r);
void assert_old_pages_untouched(struct rig *r);

struct pinl_policy recall_policy(enum pinl_then then, unsigned grace_ms);
struct pinl_policy plain_policy(enum pinl_policy_kind kind);
int try_map(struct rig *r, const struct pinl_policy *policy, unsigned flags);
void map(struct rig *r, struct pinl_policy policy);
void unmap(struct rig *r);

/* Why a policy was refused has to be said. */
void assert_refused(struct rig *r, struct pinl_policy policy);
struct pinl_event await_event(struct rig *r, enum pinl_event_type type);

/* The rig has one; for tests that want it opened under other conditions. */
void open_device(struct rig *r);
void close_device(struct rig *r);

int rig_up(void **state);
int rig_down(void **state);

/* contract_recall.c */
void impossible_policies_are_refused(void **state);
void recall_fail(void **state);
void recall_scratch(void **state);
void recall_copy(void **state);
void part_scratch(void **state);
void part_copy(void **state);
void fail_unpins(void **state);
void scratch_unpins(void **state);
void copy_unpins(void **state);
void keep_leaves_a_readable_orphan(void **state);
void follow(void **state);
void part_fail_ends_a_flight(void **state);
void flight_fail(void **state);
void flight_scratch(void **state);
void flight_copy(void **state);
void flight_at_unmap(void **state);
void load_fail(void **state);
void load_scratch(void **state);
void load_copy(void **state);

#endif
