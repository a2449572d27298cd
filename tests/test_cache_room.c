/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How much the cache keeps: its limits, and what goes when there is no room. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <linux/capability.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "cache_rig.h"

static void limits_are_kept_and_the_used_stay(void **state)
{
	struct pinl_cache_opts opts = {.size = sizeof opts, .max_merge = 1, .max_regions = 100};
	char *at = pages_new(5000);
	struct rig r;

	rig_open(&r, &opts);
	for (int i = 0; i < 20; i++) /* used again and again */
		tag_at(&r, at + i * PAGE);
	for (int i = 20; i < 5000; i++) {
		tag_at(&r, at + i * PAGE);
		assert_true(stat_of(&r, "regions") <= 100);
		tag_at(&r, at + i % 20 * PAGE);
	}
	assert_int_equal(stat_of(&r, "misses"), 5000);
	assert_true(stat_of(&r, "evicted") >= 4900);
	rig_close(&r);
	munmap(at, 5000 * PAGE);
}

/* Nothing is spared for ever. */
static void what_was_used_goes_too(void **state)
{
	struct pinl_cache_opts opts = {.size = sizeof opts, .max_merge = 1, .max_regions = 100};
	char *at = pages_new(500);
	struct rig r;

	rig_open(&r, &opts);
	for (int i = 0; i < 1000; i++) {
		tag_at(&r, at + i / 2 * PAGE);
		assert_true(stat_of(&r, "regions") <= 100);
	}
	rig_close(&r);
	munmap(at, 500 * PAGE);
}

static void bytes_are_a_limit_too(void **state)
{
	struct pinl_cache_opts opts = {.size = sizeof opts, .max_merge = 1, .max_bytes = 64 * PAGE};
	char *at = pages_new(1024);
	struct rig r;

	rig_open(&r, &opts);
	for (int i = 0; i < 1024; i += 4) {
		pinl_put(got(&r, at + i * PAGE, 3 * PAGE, 0));
		assert_true(stat_of(&r, "bytes") <= 64 * PAGE);
	}
	rig_close(&r);
	munmap(at, 1024 * PAGE);
}

static void what_is_in_use_goes_beyond_the_limit(void **state)
{
	struct pinl_cache_opts opts = {.size = sizeof opts, .max_merge = 1, .max_regions = 8};
	const struct pinl_reg *reg[32];
	char *at = pages_new(32);
	struct rig r;

	rig_open(&r, &opts);
	for (int i = 0; i < 32; i++)
		reg[i] = got(&r, at + i * PAGE, 8, 0);
	assert_int_equal(stat_of(&r, "regions"), 32);
	assert_int_equal(stat_of(&r, "over_limit"), 24);
	for (int i = 0; i < 32; i++)
		pinl_put(reg[i]);
	rig_close(&r);
	munmap(at, 32 * PAGE);
}

/* CAP_IPC_LOCK: who has it may pin beyond RLIMIT_MEMLOCK. Who hasn't keeps it so. */
static void cap_lock(bool on)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];

	assert_int_equal(syscall(SYS_capget, &head, data), 0);
	data[0].effective &= ~(1u << CAP_IPC_LOCK);
	if (on)
		data[0].effective |= data[0].permitted & (1u << CAP_IPC_LOCK);
	assert_int_equal(syscall(SYS_capset, &head, data), 0);
}

/* As with RLIMIT_MEMLOCK: what isn't in use makes room, and only then it is an error. */
static void full_makes_room(int err)
{
	const struct pinl_reg *held[64];
	char *at = pages_new(1024);
	struct rig r;

	rig_open(&r, unmerged());
	r.tagger.room = 64 * PAGE;
	r.tagger.full = err;
	for (int i = 0; i < 1024; i++)
		tag_at(&r, at + i * PAGE);
	assert_true(stat_of(&r, "retried") > 0);
	for (int i = 0; i < 64; i++)
		held[i] = got(&r, at + i * PAGE, 8, 0);
	assert_int_equal(pinl_get(r.dev, at + 64 * PAGE, 8, 0, &held[0]), err);
	assert_non_null(strstr(pinl_error(), "pinl_put()"));
	for (int i = 0; i < 64; i++)
		pinl_put(held[i]);
	tag_at(&r, at + 64 * PAGE);
	rig_close(&r);
	munmap(at, 1024 * PAGE);
}

static void no_memory_makes_room(void **state)
{
	full_makes_room(-ENOMEM);
}

static void no_slot_makes_room(void **state)
{
	full_makes_room(-ENOSPC);
}

/* Eviction helps those only who lack room. */
static void what_no_room_helps_costs_nobody_his(void **state)
{
	enum { N = 100 };
	const struct pinl_reg *reg;
	char *at = pages_new(2 * N), *hole = pages_new(4);
	struct rig r;

	rig_open(&r, unmerged());
	munmap(hole + PAGE, PAGE);
	for (int i = 0; i < N; i++)
		tag_at(&r, at + 2 * i * PAGE);
	assert_int_equal(pinl_get(r.dev, NULL, PAGE, 0, &reg), -ENOMEM);
	assert_int_equal(pinl_get(r.dev, hole, 4 * PAGE, 0, &reg), -ENOMEM);
	assert_int_equal(stat_of(&r, "evicted"), 0);
	for (int i = 0; i < N; i++)
		tag_at(&r, at + 2 * i * PAGE);
	assert_int_equal(stat_of(&r, "hits"), N);
	rig_close(&r);
	munmap(at, 2 * N * PAGE);
	munmap(hole, PAGE);
	munmap(hole + 2 * PAGE, 2 * PAGE);
}

/* More than RLIMIT_MEMLOCK at once. */
static void too_much_costs_nobody_his(void **state)
{
	const size_t much = 64;
	struct rlimit was, limit;
	const struct pinl_reg *reg;
	char *at = pages_new(much + 2);
	struct rig r;

	assert_int_equal(getrlimit(RLIMIT_MEMLOCK, &was), 0);
	rig_open(&r, unmerged());
	tag_at(&r, at);
	limit = (struct rlimit){(much - 1) * PAGE, was.rlim_max};
	if (limit.rlim_cur > was.rlim_max)
		limit.rlim_cur = was.rlim_max;
	assert_int_equal(setrlimit(RLIMIT_MEMLOCK, &limit), 0);
	r.tagger.room = limit.rlim_cur;
	cap_lock(false);
	assert_int_equal(pinl_get(r.dev, at + 2 * PAGE, much * PAGE, 0, &reg), -ENOMEM);
	cap_lock(true);
	assert_int_equal(setrlimit(RLIMIT_MEMLOCK, &was), 0);
	assert_int_equal(stat_of(&r, "evicted"), 0);
	rig_close(&r);
	munmap(at, (much + 2) * PAGE);
}

/* What is registered beside what was asked for isn't worth failing. */
static void without_room_for_more_it_is_what_was_asked_for(void **state)
{
	const struct pinl_reg *first, *second;
	char *at = pages_new(8);
	struct rig r;

	rig_open(&r, unmerged());
	r.tagger.room = 8 * PAGE;
	first = got(&r, at, 4 * PAGE, 0);
	second = got(&r, at + 3 * PAGE, 3 * PAGE, 0);
	assert_int_equal(second->start, (uintptr_t)at + 3 * PAGE);
	assert_int_equal(second->end, (uintptr_t)at + 6 * PAGE);
	pinl_put(first);
	pinl_put(second);
	settled(&r);
	rig_close(&r);
	munmap(at, 8 * PAGE);
}

static void drop_gives_back_what_nobody_has(void **state)
{
	char *at = pages_new(3);
	const struct pinl_reg *reg;
	struct rig r;

	rig_open(&r, unmerged());
	tag_at(&r, at);
	reg = got(&r, at + PAGE, 8, 0);
	tag_at(&r, at + 2 * PAGE);
	dropped(&r, at, 2 * PAGE);
	assert_int_equal(r.tagger.unmaps, 1);
	dropped(&r, NULL, 0);
	assert_int_equal(r.tagger.unmaps, 2);
	assert_ptr_equal(got(&r, at + PAGE, 8, 0), reg);
	pinl_put(reg);
	pinl_put(reg);
	rig_close(&r);
	munmap(at, 3 * PAGE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(limits_are_kept_and_the_used_stay),
		cmocka_unit_test(what_was_used_goes_too),
		cmocka_unit_test(bytes_are_a_limit_too),
		cmocka_unit_test(what_is_in_use_goes_beyond_the_limit),
		cmocka_unit_test(no_memory_makes_room),
		cmocka_unit_test(no_slot_makes_room),
		cmocka_unit_test(what_no_room_helps_costs_nobody_his),
		cmocka_unit_test(too_much_costs_nobody_his),
		cmocka_unit_test(without_room_for_more_it_is_what_was_asked_for),
		cmocka_unit_test(drop_gives_back_what_nobody_has),
	};

	return cmocka_run_group_tests_name("cache_room", tests, NULL, NULL);
}
