/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * From hold to release: another process truncates a file, pinleased holds it and tells the holder, whose
 * callback answers at once. Three processes, and a ring that has the pages pinned.
 */
#include "arbiter.h"
#include "recall.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct scene {
	const struct bench *b;
	struct actor *actor;
	struct rig *rig; /* NULL: no lease */
	int fd[FILES];
	char path[FILES][128];
	struct latency l;
};

static struct pinl_lease *lease_for(struct scene *s, char *at)
{
	struct pinl_policy policy = policy_of(PINL_RECALL, PINL_THEN_FAIL);
	struct pinl_lease *lease;
	int err;

	policy.grace_ms = 5000;
	while ((err = lease_on(s->rig->uring, at, RECALL_SIZE, PINL_WRITE | PINL_PIN, &policy,
			       &lease)) == -EBUSY)
		usleep(200);
	if (err)
		fail("lease: %s", pinl_error());
	return lease;
}

static void once(struct scene *s, int i, bool keep)
{
	struct pinl_lease *lease = NULL;
	char *at;

	file_fill(s->fd[i], PAGE + RECALL_SIZE);
	at = must_map(mmap(NULL, RECALL_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, s->fd[i], PAGE),
		      "mmap");
	touch(at, RECALL_SIZE);
	if (s->rig)
		lease = lease_for(s, at);
	must(actor_do(s->actor, ACT_TRUNCATE, i, NULL, 1), "ftruncate");
	if (keep && lease)
		sample(&s->l.device, rig_await(s->rig, PINL_EV_RELEASED) - actor_begin(s->actor));
	if (keep)
		sample(&s->l.actor, actor_ended(s->actor) - actor_begin(s->actor));
	if (lease)
		rig_end(s->rig, lease);
	munmap(at, RECALL_SIZE);
}

static void measure(struct scene *s, const char *name)
{
	for (int i = 0; i < FILES; i++)
		must(actor_do(s->actor, ACT_OPEN, i, s->path[i], 1), "open");
	for (unsigned i = 0; i < s->b->n + WARM_UP; i++)
		once(s, i % FILES, i >= WARM_UP);
	for (int i = 0; i < FILES; i++)
		actor_do(s->actor, ACT_CLOSE, i, NULL, 1);
	latency_result(s->b, "ftruncate", name, &s->l);
}

static void measure_floor(struct scene *s)
{
	const char *why;
	struct floor_monitor *f = floor_fanotify(s->b, &why);

	for (int i = 0; i < FILES; i++)
		must(floor_mark(f, s->path[i]), "fanotify_mark");
	measure(s, "floor");
	floor_end(f);
}

/* By the holder's own library, and by pinleased. */
static void measure_leased(struct scene *s, bool arbiter)
{
	struct arbiter a;
	struct rig r;

	if (arbiter) {
		arbiter_start(s->b, &a, "10000");
		arbiter_rig(s->b, &r, true);
	} else {
		rig_open(s->b, &r, true);
		must(pinl_watch_fs(r.ctx, s->b->dir), "pinl_watch_fs");
	}
	s->rig = &r;
	measure(s, arbiter ? "pinleased" : "one process");
	s->rig = NULL;
	rig_close(&r);
	if (arbiter)
		arbiter_stop(&a);
}

void group_arbiter_hold(const struct bench *b)
{
	struct scene s = {.b = b, .actor = actor_new(b)};
	const char *why = arbiter_missing(b);

	if (why) {
		left_out(b, "pinleased: hold and release", why);
		actor_end(s.actor);
		return;
	}
	for (int i = 0; i < FILES; i++)
		s.fd[i] = must(file_new(b, s.path[i], PAGE + RECALL_SIZE), b->dir);
	measure(&s, "plain");
	measure_floor(&s);
	for (int i = 0; i < 2; i++)
		measure_leased(&s, i != b->backwards);
	for (int i = 0; i < FILES; i++) {
		close(s.fd[i]);
		unlink(s.path[i]);
	}
	actor_end(s.actor);
	free(s.l.device.ns);
	free(s.l.actor.ns);
}
