/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Memory whose content is changed by nobody that the kernel hears of (pinl_invalidate): a device that is
 * told at registration which generation of a page it gets, and an allocator that makes new ones.
 * examples/pool-memory.c is the same as a program.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <pinlease/cache.h>
#include <pinlease/device.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "check.h"

#define PAGE 4096ul

enum { PAGES = 8, ROUNDS = 20000 };

static char *base;
static atomic_ulong generation[PAGES]; /* what is there now */
static atomic_int n_stops;
static struct pinl_ctx *ctx;
static struct pinl_device *dev;

/* ------------------------------------------------------------------------------- the device -- */

static size_t number(uintptr_t at)
{
	return (at - (uintptr_t)base) / PAGE;
}

static int dev_open(const void *arg, struct pinl_device_info *info, void **priv)
{
	*info = (struct pinl_device_info){.device_class = PINL_DEV_FAULTING,
					  .caps = PINL_DEVCAP_ONDEMAND};
	*priv = NULL;
	return 0;
}

/* Its addresses are those of the generations that it was given, one per page. */
static int dev_map(void *priv, struct pinl_mapping *m, struct pinl_addr *addrs)
{
	size_t n = (m->end - m->start) / PAGE;
	unsigned long *given = aligned_alloc(PAGE, n * PAGE);

	if (!given)
		return pinl_set_error(-ENOMEM, "out of memory");
	for (size_t i = 0; i < n; i++)
		given[i * PAGE / sizeof *given] = generation[number(m->start) + i];
	m->priv = given;
	for (size_t i = 0; addrs && i < n; i++)
		addrs[i].addr = (uintptr_t)given + i * PAGE;
	return 0;
}

static int dev_stop(void *priv, struct pinl_mapping *m)
{
	n_stops++;
	return 0;
}

static int dev_drain(void *priv, struct pinl_mapping *m, uint64_t deadline_ns)
{
	return 0;
}

static int dev_invalidate(void *priv, struct pinl_mapping *m, uintptr_t start, uintptr_t end)
{
	return 0;
}

static void dev_unmap(void *priv, struct pinl_mapping *m)
{
}

static void dev_forget(void *priv, struct pinl_mapping *m)
{
	free(m->priv);
}

static const struct pinl_device_ops ops = {
	.size = sizeof ops,
	.name = "test",
	.open = dev_open,
	.map = dev_map,
	.stop = dev_stop,
	.drain = dev_drain,
	.invalidate = dev_invalidate,
	.unmap = dev_unmap,
	.forget = dev_forget,
};

static int setup(void **state)
{
	struct pinl_opts o = {.size = sizeof o, .ceiling_ms = 600000, .summary_fd = -1};

	base = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_ptr_not_equal(base, MAP_FAILED);
	n_stops = 0;
	assert_ok(pinl_open(&o, &ctx));
	assert_ok(pinl_device_open_ops(ctx, &ops, NULL, &dev));
	return 0;
}

static int teardown(void **state)
{
	pinl_close(ctx);
	munmap(base, PAGES * PAGE);
	return 0;
}

static void use_cache(struct pinl_policy policy)
{
	struct pinl_cache_opts opts = {
		.size = sizeof opts, .policy = policy, .max_merge = 1, .no_huge = 1};

	assert_ok(pinl_cache_open(dev, &opts));
}

static const struct pinl_reg *get(size_t page, size_t n)
{
	const struct pinl_reg *reg;
	int err;

	do
		err = pinl_get(dev, base + page * PAGE, n * PAGE, 0, &reg);
	while (err == -EAGAIN); /* a change is under way */
	assert_ok(err);
	return reg;
}

/* What the device has of the page. */
static unsigned long seen(const struct pinl_reg *reg, size_t page)
{
	return *(unsigned long *)(uintptr_t)pinl_reg_addr(reg, base + page * PAGE);
}

static int next_generation(void *arg)
{
	generation[(size_t)arg]++;
	return 0;
}

static int recycle(size_t page)
{
	return pinl_invalidate(ctx, base + page * PAGE, PAGE, next_generation, (void *)page);
}

static struct pinl_policy policy(enum pinl_policy_kind kind)
{
	return (struct pinl_policy){.size = sizeof(struct pinl_policy),
				    .kind = kind,
				    .then = PINL_THEN_FAIL,
				    .refuse = kind == PINL_REFUSE ? PINL_OPBIT(PINL_OP_UNMAP) : 0};
}

/* --------------------------------------------------------------------------------- the tests -- */

static void nothing_stale_is_found(void **state)
{
	const struct pinl_reg *reg;

	use_cache(policy(PINL_FOLLOW));
	for (int i = 0; i < ROUNDS; i++) {
		size_t page = i % PAGES;

		reg = get(page, 1);
		assert_int_equal(seen(reg, page), generation[page]);
		pinl_put(reg);
		assert_ok(recycle(page));
		reg = get(page, 1);
		assert_int_equal(seen(reg, page), generation[page]);
		pinl_put(reg);
	}
}

static void a_part_ends_all_of_a_registration(void **state)
{
	const struct pinl_reg *reg;

	use_cache(policy(PINL_FOLLOW));
	for (int i = 0; i < 200; i++) {
		pinl_put(get(0, PAGES));
		assert_ok(recycle(3));
		reg = get(0, PAGES);
		for (size_t page = 0; page < PAGES; page++)
			assert_int_equal(seen(reg, page), generation[page]);
		pinl_put(reg);
	}
}

static uint64_t misses(void)
{
	uint64_t n;

	assert_ok(pinl_cache_stat(dev, "registered", &n));
	return n;
}

static void the_neighbours_stay_registered(void **state)
{
	const struct pinl_reg *reg;
	uint64_t before;

	use_cache(policy(PINL_FOLLOW));
	for (size_t page = 0; page < 3; page++)
		pinl_put(get(page, 1));
	before = misses();
	for (int i = 0; i < 100; i++)
		assert_ok(recycle(1));
	for (size_t page = 0; page < 3; page += 2) {
		reg = get(page, 1);
		assert_int_equal(seen(reg, page), generation[page]);
		pinl_put(reg);
	}
	assert_int_equal(misses(), before);
}

static atomic_int n_users;

static int while_nobody_uses_it(void *arg)
{
	generation[(size_t)arg]++;
	return n_users ? -EADDRINUSE : 0;
}

static atomic_bool over;

static void *use_and_answer(void *arg)
{
	struct pinl_event ev = {.size = sizeof ev};
	const struct pinl_reg *reg = get(0, 1);

	n_users++;
	while (pinl_next_event(ctx, &ev) || ev.type != PINL_EV_NOTICE)
		sched_yield();
	n_users--;
	pinl_put(reg);
	return NULL;
}

/* RECALL: who uses it is told, and the change waits for him. */
static void it_waits_for_who_uses_it(void **state)
{
	struct pinl_policy p = policy(PINL_RECALL);
	struct pinl_event ev = {.size = sizeof ev};
	pthread_t user;
	int err;

	p.grace_ms = 300000;
	use_cache(p);
	for (int i = 0; i < 50; i++) {
		while (!pinl_next_event(ctx, &ev))
			;
		assert_int_equal(pthread_create(&user, NULL, use_and_answer, NULL), 0);
		while (!n_users)
			sched_yield();
		err = pinl_invalidate(ctx, base, PAGE, while_nobody_uses_it, NULL);
		pthread_join(user, NULL);
		assert_ok(err);
	}
}

static void who_has_it_at_the_deadline_is_stopped_first(void **state)
{
	const struct pinl_reg *reg;

	use_cache(policy(PINL_RECALL));
	for (int i = 1; i <= 50; i++) {
		reg = get(0, 1);
		assert_ok(recycle(0));
		assert_true(n_stops >= i);
		pinl_put(reg);
	}
}

static void a_refusal_keeps_the_memory(void **state)
{
	struct pinl_policy p = policy(PINL_REFUSE);
	struct pinl_lease *lease;
	unsigned long before = generation[0];

	assert_ok(pinl_map_range(dev, (uintptr_t)base, (uintptr_t)base + PAGE, PINL_COOPERATIVE, &p,
				 NULL, &lease));
	assert_int_equal(recycle(0), -EBUSY);
	assert_int_equal(generation[0], before);
	pinl_unmap_range(lease);
	assert_ok(recycle(0));
	assert_int_equal(generation[0], before + 1);
}

static int fails(void *arg)
{
	return -ENOSPC;
}

/* A system call in the change isn't asked about again. */
static int discards(void *arg)
{
	return madvise(base, PAGES * PAGE, MADV_DONTNEED) ? -errno : 0;
}

static void what_the_change_returns_is_returned(void **state)
{
	use_cache(policy(PINL_FOLLOW));
	pinl_put(get(PAGES - 1, 1));
	assert_int_equal(pinl_invalidate(ctx, base, PAGE, fails, NULL), -ENOSPC);
	assert_ok(pinl_invalidate(ctx, base, PAGE, NULL, NULL));
	assert_ok(pinl_invalidate(ctx, base, PAGES * PAGE, discards, NULL));
	pinl_put(get(0, 1)); /* nothing is left closed */
}

static void *try_to_get(void *arg)
{
	const struct pinl_reg *reg;
	int err = pinl_get(dev, base, PAGE, 0, &reg);

	if (!err)
		pinl_put(reg);
	return (void *)(intptr_t)err;
}

static int lets_another_try(void *arg)
{
	pthread_t other;
	void *err;

	if (pthread_create(&other, NULL, try_to_get, NULL))
		return -EAGAIN;
	pthread_join(other, &err);
	generation[0]++;
	return (intptr_t)err == -EAGAIN ? 0 : -EADDRINUSE;
}

/* What it gets would be of neither generation. */
static int tries_itself(void *arg)
{
	int err = (intptr_t)try_to_get(NULL);

	generation[0]++;
	return err == -EAGAIN ? 0 : -EADDRINUSE;
}

static void nobody_registers_it_meanwhile(void **state)
{
	const struct pinl_reg *reg;

	use_cache(policy(PINL_FOLLOW));
	for (int i = 0; i < 3; i++) {
		pinl_put(get(0, 2));
		assert_ok(pinl_invalidate(ctx, base, PAGE, i == 1 ? tries_itself : lets_another_try,
					  NULL));
		reg = get(0, 1);
		assert_int_equal(seen(reg, 0), generation[0]);
		pinl_put(reg);
	}
}

static void arguments(void **state)
{
	assert_int_equal(pinl_invalidate(ctx, base + 1, PAGE, fails, NULL), -EINVAL);
	assert_int_equal(pinl_invalidate(ctx, base, 0, fails, NULL), -EINVAL);
	assert_int_equal(pinl_invalidate(ctx, base, -PAGE, fails, NULL), -EINVAL);
	assert_int_equal(pinl_invalidate(ctx, base, 1, fails, NULL), -ENOSPC);
}

/* A lookup that begins after a generation is there finds no older one, also while it is recycled. */
static void *look_up(void *arg)
{
	unsigned seed = (uintptr_t)arg;

	while (!over) {
		size_t page = rand_r(&seed) % PAGES;
		unsigned long before = generation[page];
		const struct pinl_reg *reg = get(page, 1);
		bool stale = seen(reg, page) < before;

		pinl_put(reg);
		if (stale)
			return "stale";
	}
	return NULL;
}

static void lookups_while_it_is_recycled(void **state)
{
	pthread_t two[2];
	void *failed;
	bool stale = false;

	alarm(200);
	over = false;
	use_cache(policy(PINL_FOLLOW));
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&two[i], NULL, look_up, (void *)(uintptr_t)(i + 1)), 0);
	for (int i = 0; i < ROUNDS; i++)
		assert_ok(recycle(i % PAGES));
	over = true;
	for (int i = 0; i < 2; i++) {
		pthread_join(two[i], &failed);
		stale |= failed != NULL;
	}
	alarm(0);
	assert_false(stale);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(nothing_stale_is_found),
		TEST(a_part_ends_all_of_a_registration),
		TEST(the_neighbours_stay_registered),
		TEST(it_waits_for_who_uses_it),
		TEST(who_has_it_at_the_deadline_is_stopped_first),
		TEST(a_refusal_keeps_the_memory),
		TEST(what_the_change_returns_is_returned),
		TEST(nobody_registers_it_meanwhile),
		TEST(arguments),
		TEST(lookups_while_it_is_recycled),
	};

	return cmocka_run_group_tests_name("invalidate", tests, NULL, NULL);
}
