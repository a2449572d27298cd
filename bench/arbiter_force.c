/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A holder that is stopped (SIGSTOP): how long after the deadline does the actor go on? Its ring has a
 * slot and a lease per file; the files are truncated one after the other. The deadline is pinleased's
 * ceiling, counted from the beginning of the call, so the way from the call to pinleased is in the time.
 */
#include "arbiter.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define CEILING	   "20"
#define CEILING_NS 20000000ull
#define LEASED	   (64 * KIB)
#define MAX_FORCES 64
#define GRACE_MS   60000

static const struct variant {
	const char *name;
	enum pinl_then then;
	bool large; /* the holder has a soft device, too, whose own ring has 16384 slots */
} variants[] = {
	{"FAIL", PINL_THEN_FAIL, false},
	{"SCRATCH", PINL_THEN_SCRATCH, false},
	{"FAIL, large tables", PINL_THEN_FAIL, true},
};
#define N_VARIANTS (int)(sizeof variants / sizeof *variants)

struct scene {
	const struct bench *b;
	struct actor *actor;
	int n;
	char path[MAX_FORCES][128];
	int fd[MAX_FORCES];
};

static void __attribute__((noreturn)) hold(struct scene *s, const struct variant *v, int ready)
{
	struct pinl_policy policy = policy_of(PINL_RECALL, v->then);
	struct pinl_lease *lease;
	struct rig r;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	policy.grace_ms = GRACE_MS;
	arbiter_rig(s->b, &r, false);
	if (!v->large)
		pinl_device_close(r.soft);
	for (int i = 0; i < s->n; i++) {
		char *at = must_map(
			mmap(NULL, LEASED, PROT_READ | PROT_WRITE, MAP_PRIVATE, s->fd[i], PAGE), "mmap");

		touch(at, LEASED);
		if (lease_on(r.uring, at, LEASED, PINL_WRITE | PINL_PIN, &policy, &lease))
			fail("lease: %s", pinl_error());
	}
	if (write(ready, "", 1) != 1)
		_exit(1);
	for (;;)
		pause();
}

static pid_t stopped_holder(struct scene *s, const struct variant *v)
{
	int ready[2], status;
	pid_t pid;
	char c;

	must(pipe2(ready, O_CLOEXEC), "pipe");
	fflush(stdout);
	pid = must(fork(), "fork");
	if (!pid) {
		close(ready[0]);
		hold(s, v, ready[1]);
	}
	close(ready[1]);
	if (read(ready[0], &c, 1) != 1)
		fail("no holder");
	close(ready[0]);
	kill(pid, SIGSTOP);
	must(waitpid(pid, &status, WUNTRACED), "waitpid");
	return pid;
}

static uint64_t after_deadline(struct scene *s, int i)
{
	uint64_t took;

	must(actor_do(s->actor, ACT_OPEN, 0, s->path[i], 1), "open");
	must(actor_do(s->actor, ACT_TRUNCATE, 0, NULL, 1), "ftruncate");
	took = actor_ended(s->actor) - actor_begin(s->actor);
	actor_do(s->actor, ACT_CLOSE, 0, NULL, 1);
	if (took < CEILING_NS)
		fail("the change went on before the deadline: the file was not held");
	return took - CEILING_NS;
}

static void measure(struct scene *s, const struct variant *v)
{
	struct samples ns = {0};
	struct arbiter a;
	pid_t pid;

	for (int i = 0; i < s->n; i++)
		file_fill(s->fd[i], PAGE + LEASED);
	arbiter_start(s->b, &a, CEILING);
	pid = stopped_holder(s, v);
	for (int i = 0; i < s->n; i++)
		sample(&ns, after_deadline(s, i));
	result(s->b, "force", v->name, "late", &ns, 1);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	arbiter_stop(&a);
	free(ns.ns);
}

void group_arbiter_force(const struct bench *b)
{
	struct scene s = {.b = b, .actor = actor_new(b), .n = b->few < MAX_FORCES ? b->few : MAX_FORCES};
	const char *why = arbiter_missing(b);

	if (why) {
		left_out(b, "pinleased: force of a stopped holder", why);
		actor_end(s.actor);
		return;
	}
	for (int i = 0; i < s.n; i++)
		s.fd[i] = must(file_new(b, s.path[i], PAGE + LEASED), b->dir);
	for (int i = 0; i < N_VARIANTS; i++)
		measure(&s, &variants[b->backwards ? N_VARIANTS - 1 - i : i]);
	for (int i = 0; i < s.n; i++) {
		close(s.fd[i]);
		unlink(s.path[i]);
	}
	actor_end(s.actor);
}
