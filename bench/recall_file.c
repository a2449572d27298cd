/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Recalls of a file on disk: ftruncate and hole punch by another process, and pinl_ftruncate() by the
 * holder. A private mapping, pinned by the ring, for ftruncate; a shared one, on demand on the soft
 * device, for punch, which leaves pinned private pages alone, and for FOLLOW. The lease is on all but
 * the first page of the file.
 *
 * After a change the library keeps a file closed to new leases until it has seen that the change is
 * over; so a few files take turns.
 */
#include "recall.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const struct trigger {
	const char *name;
	enum pinl_op op;
	enum act act;
	bool call; /* by the holder, with a pinl_ call */
	bool soft;
} triggers[] = {
	{"ftruncate", PINL_OP_TRUNCATE, ACT_TRUNCATE, false, false},
	{"punch", PINL_OP_PUNCH, ACT_PUNCH, false, true},
	{"pinl_ftruncate", PINL_OP_TRUNCATE, ACT_TRUNCATE, true, false},
};

struct scene {
	const struct bench *b;
	const struct trigger *t;
	const struct variant *v; /* NULL: no lease */
	const char *name;	 /* of the variant */
	struct actor *actor;
	struct rig rig;
	int fd[FILES];
	char path[FILES][128];
	struct latency l;
};

static bool on_demand(const struct scene *s)
{
	return s->t->soft || s->v->kind == PINL_FOLLOW;
}

/* What this device can't do, or doesn't do for this operation. */
static bool applies(const struct trigger *t, const struct variant *v)
{
	return !t->soft || (v->kind != PINL_KEEP && v->then != PINL_THEN_COPY);
}

static struct pinl_lease *lease_for(struct scene *s, char *at)
{
	struct pinl_policy policy = recall_policy(s->v, s->t->op);
	unsigned flags = PINL_WRITE | (on_demand(s) ? 0 : PINL_PIN);
	struct pinl_device *dev = on_demand(s) ? s->rig.soft : s->rig.uring;
	struct pinl_lease *lease = NULL;
	int err;

	while ((err = lease_on(dev, at, RECALL_SIZE, flags, &policy, &lease)) == -EBUSY)
		usleep(200);
	if (err)
		fail("%s: %s", s->name, pinl_error());
	return lease;
}

/* begin and end of the change; 0 or its -errno. */
static int fire(struct scene *s, int i, uint64_t *begin, uint64_t *end)
{
	int err;

	if (s->t->call && s->v) {
		*begin = now_ns();
		err = pinl_ftruncate(s->rig.ctx, s->fd[i], PAGE);
		*end = now_ns();
		return err;
	}
	err = actor_do(s->actor, s->t->act, i, NULL, 1);
	*begin = actor_begin(s->actor);
	*end = actor_ended(s->actor);
	return err;
}

static void once(struct scene *s, int i, bool keep)
{
	int how = s->v && !on_demand(s) ? MAP_PRIVATE : MAP_SHARED, err;
	struct pinl_lease *lease = NULL;
	uint64_t begin, end;
	char *at;

	file_fill(s->fd[i], PAGE + RECALL_SIZE);
	at = must_map(mmap(NULL, RECALL_SIZE, PROT_READ | PROT_WRITE, how, s->fd[i], PAGE), "mmap");
	touch(at, RECALL_SIZE);
	if (s->v)
		lease = lease_for(s, at);
	err = fire(s, i, &begin, &end);
	if (err != (s->v && s->v->kind == PINL_REFUSE ? -EBUSY : 0))
		fail("%s under %s: %s", s->t->name, s->name, strerror(-err));
	if (keep && s->v)
		sample(&s->l.device, rig_await(&s->rig, s->v->event) - begin);
	if (keep)
		sample(&s->l.actor, end - begin);
	if (lease)
		rig_end(&s->rig, lease);
	munmap(at, RECALL_SIZE);
}

static void samples_of(struct scene *s)
{
	for (int i = 0; i < FILES; i++)
		must(actor_do(s->actor, ACT_OPEN, i, s->path[i], 1), "open");
	for (unsigned i = 0; i < s->b->n + WARM_UP; i++)
		once(s, i % FILES, i >= WARM_UP);
	for (int i = 0; i < FILES; i++)
		actor_do(s->actor, ACT_CLOSE, i, NULL, 1);
	latency_result(s->b, s->t->name, s->name, &s->l);
}

static void measure(struct scene *s, const struct variant *v)
{
	s->v = v;
	s->name = v->name;
	rig_open(s->b, &s->rig, v->answers);
	must(pinl_watch_fs(s->rig.ctx, s->b->dir), "pinl_watch_fs");
	samples_of(s);
	rig_close(&s->rig);
}

static void measure_without(struct scene *s)
{
	struct floor_monitor *f;
	const char *why;

	s->v = NULL;
	s->name = "plain";
	samples_of(s);
	f = floor_fanotify(s->b, &why);
	if (!f)
		fail("%s", why);
	for (int i = 0; i < FILES; i++)
		must(floor_mark(f, s->path[i]), "fanotify_mark");
	s->name = "floor";
	samples_of(s);
	floor_end(f);
}

static const char *missing(const struct bench *b)
{
	const char *why = NULL;
	struct rig r;

	rig_open(b, &r, false);
	why = files_missing(b, &r);
	rig_close(&r);
	return why;
}

static void scene_end(struct scene *s)
{
	for (int i = 0; i < FILES; i++) {
		close(s->fd[i]);
		unlink(s->path[i]);
	}
	actor_end(s->actor);
	free(s->l.device.ns);
	free(s->l.actor.ns);
}

void group_recall_file(const struct bench *b)
{
	struct scene s = {.b = b, .actor = actor_new(b)};
	const char *why = missing(b);

	if (why) {
		left_out(b, "recalls of files", why);
		actor_end(s.actor);
		return;
	}
	for (int i = 0; i < FILES; i++)
		s.fd[i] = must(file_new(b, s.path[i], PAGE + RECALL_SIZE), b->dir);
	for (size_t t = 0; t < sizeof triggers / sizeof *triggers; t++) {
		s.t = &triggers[t];
		if (!s.t->call)
			measure_without(&s);
		for (int i = 0; i < n_recall_variants; i++)
			if (applies(s.t, recall_variant(b, i)))
				measure(&s, recall_variant(b, i));
	}
	scene_end(&s);
}
