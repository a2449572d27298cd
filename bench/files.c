/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * I9: what another process pays for reading, writing and truncating a file that nobody leases, while
 * pinlease watches its file system and another file there is leased; and what it pays on the leased
 * file, beside the leased range. The same while pinleased runs, and the leases are there.
 */
#include "arbiter.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define FILE_SIZE (128 * KIB)
#define LEASED	  (64 * KIB)

enum { UNLEASED, THE_LEASED };

static const struct {
	const char *name;
	enum act act;
} acts[] = {{"read", ACT_READS}, {"write", ACT_WRITES}, {"truncate", ACT_TRUNCATES}};

struct scene {
	const struct bench *b;
	struct actor *actor;
	int fd[2];
	char path[2][128];
};

/* All three on one file, by descriptors opened now. */
static void measure(struct scene *s, int file, const char *variant)
{
	unsigned n = s->b->n < MAX_OP_LOG ? s->b->n : MAX_OP_LOG;
	struct samples ns = {0};

	must(actor_do(s->actor, ACT_OPEN, 0, s->path[file], 1), "open");
	for (size_t i = 0; i < sizeof acts / sizeof *acts; i++) {
		must(actor_do(s->actor, acts[i].act, 0, NULL, n / 10 + 1), acts[i].name);
		must(actor_do(s->actor, acts[i].act, 0, NULL, n), acts[i].name);
		actor_samples(s->actor, n, &ns);
		result(s->b, acts[i].name, variant, "call", &ns, 1);
	}
	actor_do(s->actor, ACT_CLOSE, 0, NULL, 1);
	free(ns.ns);
}

static void measure_on(struct scene *s, struct rig *r)
{
	struct pinl_policy policy = policy_of(PINL_RECALL, PINL_THEN_FAIL);
	struct pinl_lease *lease;
	char *at = must_map(mmap(NULL, LEASED, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd[THE_LEASED], 0),
			    "mmap");

	measure(s, UNLEASED, "watched");
	if (lease_on(r->soft, at, LEASED, PINL_WRITE, &policy, &lease))
		fail("lease: %s", pinl_error());
	measure(s, UNLEASED, "unleased");
	measure(s, THE_LEASED, "leased");
	rig_end(r, lease);
	munmap(at, LEASED);
}

static void measure_beside(struct scene *s)
{
	struct pinl_policy policy = policy_of(PINL_RECALL, PINL_THEN_FAIL);
	struct pinl_lease *lease;
	struct arbiter a;
	struct rig r;
	char *at = must_map(mmap(NULL, LEASED, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd[THE_LEASED], 0),
			    "mmap");

	arbiter_start(s->b, &a, "10000");
	measure(s, UNLEASED, "running");
	arbiter_rig(s->b, &r, false);
	if (lease_on(r.soft, at, LEASED, PINL_WRITE, &policy, &lease))
		fail("lease: %s", pinl_error());
	measure(s, UNLEASED, "unleased");
	measure(s, THE_LEASED, "leased");
	rig_end(&r, lease);
	rig_close(&r);
	arbiter_stop(&a);
	munmap(at, LEASED);
}

void group_arbiter_files(const struct bench *b)
{
	struct scene s = {.b = b, .actor = actor_new(b)};
	const char *why = arbiter_missing(b);

	if (why)
		left_out(b, "pinleased: files of other programs", why);
	for (int i = 0; !why && i < 2; i++)
		s.fd[i] = must(file_new(b, s.path[i], FILE_SIZE), b->dir);
	for (int i = 0; !why && i < 2; i++) {
		if (i == b->backwards)
			measure(&s, UNLEASED, "plain");
		else
			measure_beside(&s);
	}
	for (int i = 0; !why && i < 2; i++) {
		close(s.fd[i]);
		unlink(s.path[i]);
	}
	actor_end(s.actor);
}

void group_files(const struct bench *b)
{
	struct scene s = {.b = b, .actor = actor_new(b)};
	const char *why;
	struct rig r;

	for (int i = 0; i < 2; i++)
		s.fd[i] = must(file_new(b, s.path[i], FILE_SIZE), b->dir);
	if (!b->backwards)
		measure(&s, UNLEASED, "plain");
	rig_open(b, &r, false);
	why = files_missing(b, &r);
	if (why)
		left_out(b, "files with the arbiter on", why);
	else
		measure_on(&s, &r);
	rig_close(&r);
	if (b->backwards)
		measure(&s, UNLEASED, "plain");
	for (int i = 0; i < 2; i++) {
		close(s.fd[i]);
		unlink(s.path[i]);
	}
	actor_end(s.actor);
}
