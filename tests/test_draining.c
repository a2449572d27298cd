/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Holders that hang, as pinleased's core sees them: their devices are stopped from outside, and whether
 * they are off shows later. Nobody waits for one after the other, and nobody's recall for another's.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <pinlease/device.h>
#include <pinlease/source.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/foreign.h"

#include "check.h"

#define PG	4096ul
#define HOLDERS 300 /* more than one look ahead has */
#define LONG_MS 100000

/* A holder: its device is off the pages when `off` says so. */
struct hung {
	struct scene *scene;
	struct pinl_device *dev;
	struct pinl_lease *lease;
	bool (*off)(struct hung *h);
	bool looked;
	atomic_bool stopped, over;
	int taken; /* how often it was said that all is; ctx->lock */
};

struct scene {
	struct pinl_ctx *ctx;
	struct hung hung[HOLDERS];
	int n;
	atomic_int looked, failed;
	atomic_bool hang;
};

struct cut {
	struct pinl_change change;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool answered;
	int err;
};

/* --------------------------------------------------------------------------------------- holders -- */

static int hung_open(const void *arg, struct pinl_device_info *info, void **dev)
{
	info->device_class = PINL_DEV_REVOCABLE;
	info->caps = PINL_DEVCAP_PIN | PINL_DEVCAP_ONDEMAND;
	*dev = (void *)arg;
	return 0;
}

static int hung_map(void *dev, struct pinl_mapping *m, struct pinl_addr *addrs)
{
	m->priv = dev;
	return 0;
}

static int hung_stop(void *dev, struct pinl_mapping *m)
{
	atomic_store(&((struct hung *)dev)->stopped, true);
	return 0;
}

/* Never waits: who is asked before it is off has failed. */
static int hung_drain(void *dev, struct pinl_mapping *m, uint64_t deadline_ns)
{
	struct hung *h = dev;

	if (m->holder_done || atomic_load(&h->over))
		return 0;
	atomic_fetch_add(&h->scene->failed, 1);
	return -ETIMEDOUT;
}

static const struct pinl_device_ops hung_ops = {.size = sizeof hung_ops,
						.name = "hung",
						.open = hung_open,
						.map = hung_map,
						.stop = hung_stop,
						.drain = hung_drain};

static void tell(struct pinl_lease *l, const struct pl_recall *r, enum pl_tell what)
{
}

static uint64_t no_grace(struct pinl_lease *l, uint64_t now)
{
	return 0;
}

static void held(struct pinl_lease *l, uint64_t since)
{
}

static void orphan(struct pinl_lease *l, const struct pl_recall *lost, uint64_t since_ns)
{
}

static void taken(struct pinl_lease *l)
{
	((struct hung *)l->dm.priv)->taken++;
}

static int drained(struct pinl_lease *l, uint64_t deadline_ns)
{
	struct hung *h = l->dm.priv;

	if (!atomic_load(&h->stopped))
		atomic_fetch_add(&h->scene->failed, 1);
	if (!h->looked)
		atomic_fetch_add(&h->scene->looked, 1);
	h->looked = true;
	if (!h->off(h))
		return -EAGAIN;
	atomic_store(&h->over, true);
	return 0;
}

static const struct pl_foreign_ops foreign_ops = {.tell = tell,
						  .grace = no_grace,
						  .held = held,
						  .taken = taken,
						  .orphan = orphan,
						  .drained = drained};

static void scene_open(struct scene *s)
{
	struct pinl_opts opts = {
		.size = sizeof opts, .ceiling_ms = LONG_MS, .drain_ms = LONG_MS, .summary_fd = -1};

	memset(s, 0, sizeof *s);
	assert_ok(pl_open_core(&opts, &s->ctx));
}

/* On a file of the number `ino`. */
static struct hung *lend(struct scene *s, ino_t ino, bool (*off)(struct hung *h))
{
	struct hung *h = &s->hung[s->n++];
	struct stat st = {.st_dev = 1, .st_ino = ino};
	struct pl_foreign f = {
		.file = &st,
		.fd = open("/dev/null", O_PATH | O_CLOEXEC),
		.start = PG,
		.end = 2 * PG,
		.kind = PINL_MEM_FILE_SHARED,
		.shared = true,
		.flags = PINL_PIN,
		.policy = {.size = sizeof f.policy, .kind = PINL_RECALL, .then = PINL_THEN_FAIL}};

	h->scene = s;
	h->off = off;
	assert_ok(pinl_device_open_ops(s->ctx, &hung_ops, h, &h->dev));
	pl_device_foreign(h->dev, &foreign_ops);
	assert_ok(pl_foreign_lease(h->dev, &f, &h->lease));
	return h;
}

static void scene_close(struct scene *s)
{
	for (int i = 0; i < s->n; i++) {
		if (s->hung[i].lease)
			pinl_unmap_range(s->hung[i].lease);
		pinl_device_close(s->hung[i].dev);
	}
	pinl_close(s->ctx);
}

/* --------------------------------------------------------------------------------------- changes -- */

static void answer(struct pinl_change *change, int err)
{
	struct cut *c = change->arg;

	pthread_mutex_lock(&c->lock);
	c->answered = true;
	c->err = err;
	pthread_cond_broadcast(&c->cond);
	pthread_mutex_unlock(&c->lock);
}

static void cut_begin(struct cut *c, struct scene *s, ino_t ino)
{
	*c = (struct cut){
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.cond = PTHREAD_COND_INITIALIZER,
		.change = {.op = PINL_OP_TRUNCATE,
			   .can = PINL_CAN_TELL | PINL_CAN_BEFORE | PINL_CAN_HOLD | PINL_CAN_REFUSE,
			   .on_file = 1,
			   .file_dev = 1,
			   .file_ino = ino,
			   .file_end = UINT64_MAX,
			   .source = "test",
			   .answer = answer,
			   .arg = c}};
	pinl_change_submit(s->ctx, &c->change);
}

static void cut_end(struct cut *c)
{
	pthread_mutex_lock(&c->lock);
	while (!c->answered)
		pthread_cond_wait(&c->cond, &c->lock);
	pthread_mutex_unlock(&c->lock);
	assert_int_equal(c->err, 0);
}

static bool cut_waits(struct cut *c)
{
	bool waits;

	pthread_mutex_lock(&c->lock);
	waits = !c->answered;
	pthread_mutex_unlock(&c->lock);
	return waits;
}

/* ----------------------------------------------------------------------------------------- tests -- */

static bool when_all_were_looked_at(struct hung *h)
{
	return atomic_load(&h->scene->looked) == HOLDERS;
}

static bool when_told(struct hung *h)
{
	return !atomic_load(&h->scene->hang);
}

static bool at_once(struct hung *h)
{
	return true;
}

/* The time of all runs at once: no drain is waited for before each has been begun. */
static void all_of_a_file_drain_together(void **state)
{
	struct scene *s = malloc(sizeof *s);
	struct cut c;

	scene_open(s);
	for (int i = 0; i < HOLDERS; i++)
		lend(s, 7, when_all_were_looked_at);
	cut_begin(&c, s, 7);
	cut_end(&c);
	assert_int_equal(atomic_load(&s->failed), 0);
	for (int i = 0; i < HOLDERS; i++)
		assert_true(atomic_load(&s->hung[i].over));
	for (int i = 0; i < HOLDERS; i++) {
		pthread_mutex_lock(&s->ctx->lock);
		assert_int_equal(s->hung[i].taken, 1);
		pthread_mutex_unlock(&s->ctx->lock);
	}
	scene_close(s);
	free(s);
}

/* I7: while one hangs, others are taken, quiesced and made. */
static void one_that_hangs_keeps_nobody_else_waiting(void **state)
{
	struct scene *s = malloc(sizeof *s);
	struct cut slow, fast;

	scene_open(s);
	atomic_store(&s->hang, true);
	lend(s, 7, when_told);
	lend(s, 8, at_once);
	cut_begin(&slow, s, 7);
	while (!atomic_load(&s->looked) && !atomic_load(&s->failed))
		sched_yield();
	cut_begin(&fast, s, 8);
	cut_end(&fast);
	lend(s, 9, at_once);
	assert_ok(pinl_quiesced(s->hung[2].lease));
	assert_true(cut_waits(&slow));
	atomic_store(&s->hang, false);
	cut_end(&slow);
	assert_int_equal(atomic_load(&s->failed), 0);
	scene_close(s);
	free(s);
}

static void *end_it(void *arg)
{
	struct hung *h = arg;

	pinl_unmap_range(h->lease);
	return NULL;
}

/* Whoever ends a lease that is being drained waits for that, too. */
static void a_lease_ends_when_it_is_drained(void **state)
{
	struct scene *s = malloc(sizeof *s);
	pthread_t thread;
	struct cut c;

	scene_open(s);
	atomic_store(&s->hang, true);
	lend(s, 7, when_told);
	cut_begin(&c, s, 7);
	while (!atomic_load(&s->looked) && !atomic_load(&s->failed))
		sched_yield();
	assert_int_equal(pthread_create(&thread, NULL, end_it, &s->hung[0]), 0);
	assert_true(cut_waits(&c));
	atomic_store(&s->hang, false);
	pthread_join(thread, NULL);
	s->hung[0].lease = NULL;
	cut_end(&c);
	scene_close(s);
	free(s);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_of_a_file_drain_together),
		cmocka_unit_test(one_that_hangs_keeps_nobody_else_waiting),
		cmocka_unit_test(a_lease_ends_when_it_is_drained),
	};

	alarm(120);
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("draining", tests, NULL, NULL);
}
