/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the measurements share. The program runs one group once and prints one JSON object per result;
 * bench/run.py repeats it, interleaved with the other groups. Invariants:
 * - a measured call stands alone between two readings of the clock; preparing and ending a lease is
 *   outside;
 * - the thread that makes the measured calls runs on actor_cpu, every thread of the library's and of the
 *   floors' monitors on lib_cpu;
 * - what can't be measured here is printed as left out with its reason, never as a number.
 */
#ifndef BENCH_H
#define BENCH_H

#include <liburing.h>
#include <pinlease/pinlease.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#define PAGE 4096ul
#define KIB  1024ul
#define MIB  (1024 * KIB)

struct bench {
	const char *group;
	const char *dir;   /* a directory on ext4, XFS or btrfs, if possible */
	const char *place; /* "same" or "across" */
	int actor_cpu, lib_cpu;
	unsigned n, few;  /* samples: where cheap, where not */
	size_t max_size;  /* largest lease */
	unsigned regions; /* most of them in a cache */
	bool backwards;	  /* variants in reverse order, every other round */
};

/* -------------------------------------------------------------------------------- results -- */

struct samples {
	uint64_t *ns;
	unsigned n, max;
};

static inline uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + t.tv_nsec;
}

void sample(struct samples *s, uint64_t ns);

/* Print median and 99th percentile, each divided by `per`, and empty s. */
void result(const struct bench *b, const char *what, const char *variant, const char *metric,
	    struct samples *s, double per);

/* The same for what is one number: its median and 99th percentile are that. */
void value(const struct bench *b, const char *what, const char *variant, const char *metric, double v);

/* The 99.9th percentile. */
double worst_of_1000(struct samples *s);

void left_out(const struct bench *b, const char *what, const char *why);

/* Print a sentence and end the program with status 1. */
void fail(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));

/* For calls that can't fail on a machine that got this far: -errno or -1 ends the program. */
long must(long ret, const char *what);
void *must_map(void *p, const char *what);

/* -------------------------------------------------------------------- threads and memory -- */

void pin_to(int cpu);

/* Anonymous memory of 4 KiB pages, all of them touched. */
char *anon_new(size_t size);
void touch(char *at, size_t size);

/* A new file of `size` bytes, cached; its path in `path` (128 bytes). -1: the directory is no good. */
int file_new(const struct bench *b, char *path, size_t size);
void file_fill(int fd, size_t size);

/* --------------------------------------------------------------------------------- a rig -- */

struct rig {
	struct pinl_ctx *ctx;
	struct io_uring ring;
	struct pinl_device *uring, *soft;
	/* Set by the callback, if the rig has one. */
	bool answers;
	_Atomic uint64_t released_ns;
};

/* A context with both devices; answers: a callback answers each notice at once. */
void rig_open(const struct bench *b, struct rig *r, bool answers);
void rig_close(struct rig *r);

/* When the next event of this type was; earlier ones are dropped. */
uint64_t rig_await(struct rig *r, enum pinl_event_type type);

/* Ends the lease and takes all events and completions out. */
void rig_end(struct rig *r, struct pinl_lease *lease);

struct pinl_policy policy_of(enum pinl_policy_kind kind, enum pinl_then then);
int lease_on(struct pinl_device *dev, char *at, size_t size, unsigned flags,
	     const struct pinl_policy *policy, struct pinl_lease **lease);

/* NULL, or why changes of files in b->dir can't be held. */
const char *files_missing(const struct bench *b, struct rig *r);

/* ---------------------------------------------------------------------- another process -- */

#define FILES	   8
#define MAX_OP_LOG 4096

enum act { ACT_OPEN, ACT_CLOSE, ACT_TRUNCATE, ACT_PUNCH, ACT_READS, ACT_WRITES, ACT_TRUNCATES };

struct actor;

/* Before any context: the child inherits nothing. */
struct actor *actor_new(const struct bench *b);
void actor_end(struct actor *a);

/* Do `act` on file number `file` (ACT_OPEN: opens path). 0 or the call's -errno. */
int actor_do(struct actor *a, enum act act, int file, const char *path, unsigned n);

/* Without waiting, and the waiting. */
void actor_order(struct actor *a, enum act act, int file, const char *path, unsigned n);
int actor_reply(struct actor *a);

/* Begin and end of the last single call; times of the last ACT_READS, WRITES or TRUNCATES. */
uint64_t actor_begin(const struct actor *a);
uint64_t actor_ended(const struct actor *a);
void actor_samples(const struct actor *a, unsigned n, struct samples *s);

/* -------------------------------------------------------------------------------- floors -- */

/*
 * The least that anyone who wants to hear of a change pays: a thread that reads the kernel's event and
 * lets the caller go, no lease, no bookkeeping.
 */
struct floor_monitor;

/* NULL, why: the kernel doesn't give it. */
struct floor_monitor *floor_uffd(const struct bench *b, const char **why);
void floor_watch(struct floor_monitor *f, void *at, size_t size);
struct floor_monitor *floor_fanotify(const struct bench *b, const char **why);
int floor_mark(struct floor_monitor *f, const char *path);
void floor_end(struct floor_monitor *f);

/* -------------------------------------------------------------------------------- groups -- */

void group_reference(const struct bench *b);
void group_recall_mem(const struct bench *b);
void group_recall_file(const struct bench *b);
void group_map(const struct bench *b);
void group_calls(const struct bench *b);
void group_touch(const struct bench *b);
void group_files(const struct bench *b);
void group_arbiter_hold(const struct bench *b);
void group_arbiter_files(const struct bench *b);
void group_arbiter_force(const struct bench *b);
void group_arbiter_fair(const struct bench *b);
void group_arbiter_many(const struct bench *b);
void group_pins(const struct bench *b);

#endif
