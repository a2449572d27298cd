/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* How much memory registrations of the cache take: each, when many are recalled at once, and of
 * addresses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <sys/resource.h>

#include "cache_rig.h"

#define MANY 20000ul
#define SOME 10000ul

static size_t resident(void)
{
	FILE *f = fopen("/proc/self/statm", "re");
	size_t all, pages;

	assert_non_null(f);
	assert_int_equal(fscanf(f, "%zu %zu", &all, &pages), 2);
	fclose(f);
	return pages * PAGE;
}

/* Some of what was there may have been swapped out. */
static size_t grown(size_t before)
{
	size_t now = resident();

	return now > before ? now - before : 0;
}

static void assert_small(size_t bytes, size_t most)
{
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* these have their own */
	assert_in_range(bytes, 0, most);
#endif
}

/* None beside another. */
static void fill(struct rig *r, char *at, size_t n)
{
	for (size_t i = 0; i < n; i++)
		tag_at(r, at + 2 * i * PAGE);
}

static void a_registration_takes_little(void **state)
{
	char *at = pages_new(2 * MANY);
	size_t before;
	struct rig r;

	rig_open(&r, unmerged());
	tag_at(&r, at);
	before = resident();
	fill(&r, at, MANY);
	assert_small(grown(before), MANY * 1000);
	rig_close(&r);
	munmap(at, 2 * MANY * PAGE);
}

/* Recalled before, or in the place of one that was, or not: they are the same. And what they took while
 * they were being recalled isn't kept. */
static void many_may_be_recalled_at_once(void **state)
{
	struct pinl_cache_opts opts = {.size = sizeof opts,
				       .max_merge = 1,
				       .policy = {.size = sizeof opts.policy,
						  .kind = PINL_RECALL,
						  .then = PINL_THEN_FAIL,
						  .grace_ms = 60000}};
	struct pinl_lease_info info = {.size = sizeof info};
	const struct pinl_reg *reg;
	size_t before;
	struct rig r;

	rig_open(&r, &opts);
	before = resident();
	for (int round = 1; round <= 3; round++) {
		char *at = pages_new(2 * SOME);

		fill(&r, at, SOME);
		reg = got(&r, at + 2 * PAGE, 8, 0);
		assert_int_equal(pinl_lease_check(reg->lease), 0);
		assert_ok(pinl_lease_info(reg->lease, &info));
		assert_int_equal(info.state, PINL_ACTIVE);
		assert_int_equal(info.memory, PINL_MEM_ANON);
		pinl_put(reg);
		assert_ok(pinl_munmap(r.ctx, at, 2 * SOME * PAGE));
		assert_int_equal(r.tagger.unmaps, round * SOME);
	}
	dropped(&r, NULL, 0); /* who ends the last of them is through */
	assert_small(grown(before), SOME * 1300);
	rig_close(&r);
}

#if !defined(__SANITIZE_ADDRESS__) &&                                                                   \
	!defined(__SANITIZE_THREAD__) /* these need much of it themselves */
static size_t mapped(void)
{
	FILE *f = fopen("/proc/self/statm", "re");
	size_t pages;

	assert_non_null(f);
	assert_int_equal(fscanf(f, "%zu", &pages), 1);
	fclose(f);
	return pages * PAGE;
}

/* What is mapped for many, in case they are recalled, needn't be as much again as there is. */
static void little_room_is_used(void **state)
{
	const size_t before = 16000, more = 2000;
	char *at = pages_new(2 * (before + more));
	struct rlimit was, limit;
	struct rig r;

	rig_open(&r, unmerged());
	fill(&r, at, before);
	assert_int_equal(getrlimit(RLIMIT_AS, &was), 0);
	limit = (struct rlimit){mapped() + (20ul << 20), was.rlim_max};
	assert_int_equal(setrlimit(RLIMIT_AS, &limit), 0);
	fill(&r, at, before + more);
	assert_int_equal(setrlimit(RLIMIT_AS, &was), 0);
	assert_int_equal(stat_of(&r, "retried"), 0);
	assert_int_equal(stat_of(&r, "regions"), before + more);
	rig_close(&r);
	munmap(at, 2 * (before + more) * PAGE);
}
#endif

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_registration_takes_little),
		cmocka_unit_test(many_may_be_recalled_at_once),
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
		cmocka_unit_test(little_room_is_used),
#endif
	};

	return cmocka_run_group_tests_name("cache_memory", tests, NULL, NULL);
}
