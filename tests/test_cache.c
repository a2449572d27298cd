/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the registration cache promises about finding and having: test_cache_*.c have the rest. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <sys/wait.h>

#include "cache_rig.h"

/* --------------------------------------------------------------------------------- finding -- */

static void the_second_get_finds_the_first_ones(void **state)
{
	char *at = pages_new(4);
	const struct pinl_reg *a, *b;
	struct rig r;

	rig_open(&r, NULL);
	a = got(&r, at + 100, 8000, PINL_WRITE);
	b = got(&r, at + 5000, 100, PINL_WRITE);
	assert_ptr_equal(a, b);
	assert_int_equal(a->start, (uintptr_t)at);
	assert_int_equal(a->end, (uintptr_t)at + 2 * PAGE);
	assert_int_equal(pinl_reg_addr(a, at + 77), (uintptr_t)at + 77);
	assert_int_equal(r.tagger.maps, 1);
	assert_int_equal(stat_of(&r, "misses"), 1);
	assert_int_equal(stat_of(&r, "hits"), 1);
	pinl_put(a);
	pinl_put(b);
	rig_close(&r);
	munmap(at, 4 * PAGE);
}

static void reading_is_not_writing(void **state)
{
	char *at = pages_new(1);
	const struct pinl_reg *a, *b, *c;
	struct rig r;

	rig_open(&r, NULL);
	a = got(&r, at, 8, 0);
	b = got(&r, at, 8, PINL_WRITE);
	assert_ptr_not_equal(a, b); /* and the first one stays as long as it is in use */
	c = got(&r, at, 8, 0);
	assert_ptr_equal(b, c);
	assert_int_equal(r.tagger.maps, 2);
	pinl_put(a);
	pinl_put(b);
	pinl_put(c);
	settled(&r);
	assert_int_equal(stat_of(&r, "regions"), 1);
	rig_close(&r);
	munmap(at, PAGE);
}

static void bad_arguments_have_a_sentence(void **state)
{
	struct pinl_cache_opts opts = {.size = sizeof opts, .flags = PINL_WRITE};
	const struct pinl_reg *reg = (void *)1;
	char *at = pages_new(1);
	uint64_t value;
	struct rig r;

	rig_open(&r, NULL);
	assert_int_equal(pinl_get(r.dev, at, 0, 0, &reg), -EINVAL);
	assert_int_equal(pinl_get(r.dev, at, SIZE_MAX, 0, &reg), -EINVAL);
	assert_int_equal(pinl_get(r.dev, at, 1, 64, &reg), -EINVAL);
	assert_int_equal(pinl_cache_open(r.dev, &opts), -EINVAL);
	tag_at(&r, at);
	assert_int_equal(pinl_get(r.dev, at, 0, 0, &reg), -EINVAL);
	assert_int_equal(pinl_get(r.dev, at, SIZE_MAX, 0, &reg), -EINVAL);
	assert_int_equal(pinl_cache_open(r.dev, NULL), -EEXIST);
	assert_int_equal(pinl_cache_stat(r.dev, "nonsense", &value), -ENOENT);
	assert_ptr_equal(reg, (void *)1);
	munmap(at, PAGE);
	assert_int_equal(pinl_get(r.dev, at, 1, 0, &reg), -ENOMEM);
	assert_true(strlen(pinl_error()) > 10);
	rig_close(&r);
}

/* A policy that no registration can have is said at once, and FOLLOW isn't pinned unasked. */
static void a_policy_is_taken_as_it_is_or_not_at_all(void **state)
{
	struct pinl_cache_opts opts = {.size = sizeof opts, .policy = {.kind = PINL_RECALL}};
	char *at = pages_new(1);
	struct rig r;

	rig_open(&r, NULL);
	assert_int_equal(pinl_cache_open(r.dev, &opts), -EINVAL);
	opts.policy = (struct pinl_policy){.size = sizeof opts.policy, .kind = PINL_FOLLOW};
	assert_int_equal(pinl_cache_open(r.dev, &opts), -EOPNOTSUPP); /* it can but pin */
	pinl_device_close(r.dev);
	assert_ok(pinl_device_open(r.ctx, "soft", NULL, &r.dev));
	opts.flags = PINL_PIN;
	assert_int_equal(pinl_cache_open(r.dev, &opts), -EOPNOTSUPP);
	opts.flags = 0;
	assert_ok(pinl_cache_open(r.dev, &opts));
	pinl_put(got(&r, at, 8, 0));
	rig_close(&r);
	munmap(at, PAGE);
}

static void every_figure_has_a_name_and_a_value(void **state)
{
	struct rig r;
	unsigned n = 0;

	rig_open(&r, unmerged());
	for (; pinl_cache_stat_name(n); n++)
		assert_int_equal(stat_of(&r, pinl_cache_stat_name(n)), 0);
	assert_true(n > 10);
	rig_close(&r);
}

/* ---------------------------------------------------------------------------------- in use -- */

static void what_is_in_use_stays_and_is_reported(void **state)
{
	struct pinl_event ev = {.size = sizeof ev};
	char *at = pages_new(1);
	const struct pinl_reg *reg;
	bool orphan = false;
	struct rig r;

	rig_open(&r, NULL);
	reg = got(&r, at, 8, PINL_WRITE);
	munmap(at, PAGE);
	while (!orphan)
		while (!pinl_next_event(r.ctx, &ev))
			orphan |= ev.type == PINL_EV_ORPHAN && ev.cookie == reg;
	assert_int_equal(r.tagger.unmaps, 0);
	pinl_put(reg);
	settled(&r);
	assert_int_equal(r.tagger.unmaps, 1);
	rig_close(&r);
}

static void what_nobody_has_goes_without_a_word(void **state)
{
	struct pinl_event ev = {.size = sizeof ev};
	char *at = pages_new(1);
	struct rig r;

	rig_open(&r, NULL);
	tag_at(&r, at);
	munmap(at, PAGE);
	settled(&r);
	assert_int_equal(r.tagger.unmaps, 1);
	while (!pinl_next_event(r.ctx, &ev))
		assert_true(ev.type != PINL_EV_ORPHAN && ev.type != PINL_EV_NOTICE);
	rig_close(&r);
}

static void *put_it(void *reg)
{
	pinl_put(reg);
	return NULL;
}

static void another_thread_may_put(void **state)
{
	char *at = pages_new(1);
	const struct pinl_reg *reg;
	pthread_t thread;
	struct rig r;

	rig_open(&r, NULL);
	for (int i = 0; i < 100; i++) {
		reg = got(&r, at, 8, 0);
		pthread_create(&thread, NULL, put_it, (void *)reg);
		pthread_join(thread, NULL);
	}
	munmap(at, PAGE);
	settled(&r);
	assert_int_equal(r.tagger.unmaps, 1);
	rig_close(&r);
}

struct getter {
	struct rig *r;
	char *at;
	const struct pinl_reg *reg;
};

static void *get_it(void *arg)
{
	struct getter *g = arg;

	for (int i = 0; i < 3; i++)
		g->reg = got(g->r, g->at, 8, 0);
	return NULL;
}

/* What a thread had is not lost with it. */
static void a_thread_may_end_with_what_it_has(void **state)
{
	char *at = pages_new(1);
	struct getter g;
	pthread_t thread;
	struct rig r;

	rig_open(&r, NULL);
	g = (struct getter){&r, at, NULL};
	pthread_create(&thread, NULL, get_it, &g);
	pthread_join(thread, NULL);
	assert_int_equal(stat_of(&r, "hits"), 2);
	munmap(at, PAGE);
	pinl_put(g.reg);
	pinl_put(g.reg);
	dropped(&r, NULL, 0);
	assert_int_equal(r.tagger.unmaps, 0);
	pinl_put(g.reg);
	settled(&r);
	assert_int_equal(r.tagger.unmaps, 1);
	rig_close(&r);
}

/* More than a thread's table has places for. */
static void many_may_be_in_use(void **state)
{
	enum { N = 3000 };
	static const struct pinl_reg *reg[N];
	char *at = pages_new(N);
	struct rig r;

	rig_open(&r, unmerged());
	for (int turn = 0; turn < 2; turn++) {
		for (int i = 0; i < N; i++) {
			set_tag(at + i * PAGE, i);
			reg[i] = got(&r, at + i * PAGE, PAGE, 0);
			assert_int_equal(reg[i]->key, i);
		}
		for (int i = turn ? 0 : N; i < N; i++)
			pinl_put(reg[i]);
	}
	munmap(at, N * PAGE);
	dropped(&r, NULL, 0);
	assert_int_equal(r.tagger.unmaps, 0);
	for (int i = 0; i < N; i++)
		pinl_put(reg[i]);
	settled(&r);
	assert_int_equal(r.tagger.unmaps, N);
	rig_close(&r);
}

static void a_leak_is_reported(void **state)
{
	struct pinl_event ev = {.size = sizeof ev};
	char *at = pages_new(2);
	struct rig r;
	int leaks = 0;

	rig_open(&r, unmerged());
	got(&r, at, 8, 0);
	tag_at(&r, at + PAGE);
	pinl_device_close(r.dev);
	while (!pinl_next_event(r.ctx, &ev))
		leaks += ev.type == PINL_EV_LEAK;
	assert_int_equal(leaks, 1);
	assert_int_equal(r.tagger.unmaps, 2);
	pinl_close(r.ctx);
	munmap(at, 2 * PAGE);
}

struct unmapper {
	struct rig *r;
	char *at;
	atomic_bool done;
};

static void *unmap_it(void *arg)
{
	struct unmapper *u = arg;

	assert_int_equal(munmap(u->at, PAGE), 0);
	u->done = true;
	return NULL;
}

static void a_recall_is_answered_by_put(void **state)
{
	struct pinl_cache_opts opts = {.size = sizeof opts,
				       .policy = {.size = sizeof opts.policy,
						  .kind = PINL_RECALL,
						  .then = PINL_THEN_FAIL,
						  .grace_ms = 8000}};
	struct pinl_event ev = {.size = sizeof ev};
	char *at = pages_new(2);
	const struct pinl_reg *reg;
	struct unmapper u;
	pthread_t thread;
	struct rig r;

	rig_needs_uffd();
	rig_open(&r, &opts);
	tag_at(&r, at + PAGE);
	assert_ok(pinl_munmap(r.ctx, at + PAGE, PAGE)); /* nobody has it: the cache answers */
	assert_int_equal(r.tagger.unmaps, 1);
	while (!pinl_next_event(r.ctx, &ev))
		assert_int_not_equal(ev.type, PINL_EV_FORCED);
	reg = got(&r, at, 8, 0);
	u = (struct unmapper){&r, at};
	pthread_create(&thread, NULL, unmap_it, &u);
	do
		while (pinl_next_event(r.ctx, &ev))
			sched_yield();
	while (ev.type != PINL_EV_NOTICE || ev.cookie != reg);
	assert_false(u.done);
	pinl_put(reg);
	pthread_join(thread, NULL);
	assert_int_equal(r.tagger.unmaps, 2);
	rig_close(&r);
}

static void only_what_is_in_use_refuses(void **state)
{
	struct pinl_cache_opts opts = {.size = sizeof opts,
				       .flags = PINL_PIN | PINL_COOPERATIVE,
				       .max_merge = 1,
				       .policy = {.size = sizeof opts.policy,
						  .kind = PINL_REFUSE,
						  .refuse = PINL_OPBIT(PINL_OP_UNMAP)}};
	char *at = pages_new(2);
	const struct pinl_reg *reg;
	struct rig r;

	rig_open(&r, &opts);
	reg = got(&r, at, 8, 0);
	tag_at(&r, at + PAGE);
	assert_int_equal(pinl_munmap(r.ctx, at, PAGE), -EBUSY);
	assert_ptr_equal(got(&r, at, 8, 0), reg);
	assert_ok(pinl_munmap(r.ctx, at + PAGE, PAGE));
	pinl_put(reg);
	assert_int_equal(pinl_munmap(r.ctx, at, PAGE), -EBUSY);
	pinl_put(reg);
	assert_ok(pinl_munmap(r.ctx, at, PAGE));
	settled(&r);
	assert_int_equal(r.tagger.unmaps, 2);
	rig_close(&r);
}

/* -------------------------------------------------------------------------------- the rest -- */

static void a_child_has_nothing(void **state)
{
	const struct pinl_reg *reg, *held;
	char *at = pages_new(1);
	uint64_t value;
	struct rig r;
	int status;
	pid_t pid;

	rig_open(&r, NULL);
	held = got(&r, at, 8, 0);
	pid = fork();
	if (!pid) {
		struct rig own __attribute__((unused));
		bool stale = pinl_get(r.dev, at, 8, 0, &reg) == -ESTALE &&
			     pinl_cache_stat(r.dev, "hits", &value) == -ESTALE &&
			     pinl_cache_drop(r.dev, NULL, 0) == -ESTALE;

		pinl_put(held);
#ifndef __SANITIZE_THREAD__ /* it lets no child start threads */
		rig_open(&own, NULL);
		set_tag(at, 9);
		stale &= tag_at(&own, at) == 9;
		rig_close(&own);
#endif
		_exit(!stale);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status) && !WEXITSTATUS(status));
	assert_ptr_equal(got(&r, at, 8, 0), held);
	pinl_put(held);
	pinl_put(held);
	rig_close(&r);
	munmap(at, PAGE);
}

/* Slots are used again, and so is the thread's table. */
static void caches_do_not_meet(void **state)
{
	char *at = pages_new(1);
	struct pinl_device *other;
	struct tagger g = {0};
	struct rig r;

	for (int i = 0; i < 40; i++) {
		rig_open(&r, NULL);
		assert_ok(pinl_device_open_ops(r.ctx, &tagger_ops, &g, &other));
		set_tag(at, 1000 + i);
		if (i % 2)
			pinl_put(got_of(other, at, 8, 0));
		set_tag(at, i + 1);
		assert_int_equal(tag_at(&r, at), i + 1);
		assert_int_equal(tag_at(&r, at), i + 1);
		pinl_device_close(other);
		assert_int_equal(tag_at(&r, at), i + 1);
		rig_close(&r);
	}
	munmap(at, PAGE);
}

enum { GROWN = 1 << 14 };

struct growing {
	struct rig r;
	char *at;
	atomic_uint made; /* pages that are registered */
};

static void *look_up(void *arg)
{
	struct growing *g = arg;
	const struct pinl_reg *reg;

	for (unsigned i = 1, made; (made = g->made) < GROWN; i = i * 1664525 + 1013904223) {
		char *page = g->at + (i >> 8) % (made + 1) * PAGE;

		reg = got(&g->r, page, 8, 0);
		assert_ptr_equal((char *)reg->start, page);
		pinl_put(reg);
	}
	return NULL;
}

/* Places of registrations and what guesses where they are grow by doubling, while others look them up.
 */
static void what_grows_is_found(void **state)
{
	static struct growing g;
	pthread_t thread[2];

	rig_open(&g.r, unmerged());
	g.at = pages_new(GROWN + 1);
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, look_up, &g), 0);
	for (unsigned i = 0; i < GROWN; i++) {
		pinl_put(got(&g.r, g.at + i * PAGE, 8, 0));
		g.made = i + 1;
	}
	for (int i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	assert_true(stat_of(&g.r, "regions") >= GROWN);
	for (unsigned i = 0; i < GROWN; i++) {
		const struct pinl_reg *reg = got(&g.r, g.at + i * PAGE, 8, 0);

		assert_ptr_equal((char *)reg->start, g.at + i * PAGE);
		pinl_put(reg);
	}
	assert_true(stat_of(&g.r, "regions") <= GROWN + 1);
	rig_close(&g.r);
	munmap(g.at, (GROWN + 1) * PAGE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_second_get_finds_the_first_ones),
		cmocka_unit_test(reading_is_not_writing),
		cmocka_unit_test(bad_arguments_have_a_sentence),
		cmocka_unit_test(a_policy_is_taken_as_it_is_or_not_at_all),
		cmocka_unit_test(every_figure_has_a_name_and_a_value),
		cmocka_unit_test(what_is_in_use_stays_and_is_reported),
		cmocka_unit_test(what_nobody_has_goes_without_a_word),
		cmocka_unit_test(another_thread_may_put),
		cmocka_unit_test(a_thread_may_end_with_what_it_has),
		cmocka_unit_test(many_may_be_in_use),
		cmocka_unit_test(a_leak_is_reported),
		cmocka_unit_test(a_recall_is_answered_by_put),
		cmocka_unit_test(only_what_is_in_use_refuses),
		cmocka_unit_test(a_child_has_nothing),
		cmocka_unit_test(caches_do_not_meet),
		cmocka_unit_test(what_grows_is_found),
	};

	return cmocka_run_group_tests_name("cache", tests, NULL, NULL);
}
