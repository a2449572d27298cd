/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Device addresses for leases: never twice, never outside, none lost; compared with a map of bits. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "backend/iova.h"

#define PAGE   4096ull
#define PAGES  600u
#define FIRST  0x100000ull
#define HUGE   (2ull << 20)
#define LEASES 200

static void none_is_given_twice(void **state)
{
	/* Two ranges with a gap, their ends not on pages, cut by the program's own wish. */
	const struct pl_iova_range ranges[] = {{0, FIRST + 200 * PAGE - 2},
					       {FIRST + 300 * PAGE + 1, UINT64_MAX}};
	static struct pl_iova nodes[LEASES];
	char used[PAGES] = {0};
	struct pl_iova_space s;
	int live[LEASES] = {0};
	unsigned taken = 0;

	(void)state;
	srand(7);
	assert_int_equal(pl_iova_open(&s, ranges, 2, FIRST, FIRST + PAGES * PAGE - 1), 0);
	for (int round = 0; round < 20000; round++) {
		int i = rand() % LEASES;
		unsigned pages = 1 + rand() % 9;
		uint64_t first, last;

		if (live[i]) {
			pl_iova_give(&s, &nodes[i]);
		} else if (pl_iova_take(&s, 0, pages * PAGE, &nodes[i])) {
			continue;
		}
		first = (nodes[i].first - FIRST) / PAGE;
		last = (nodes[i].last + 1 - FIRST) / PAGE;
		assert_true(live[i] || last - first == pages);
		assert_true(nodes[i].first % PAGE == 0 && first < last && last <= PAGES);
		for (uint64_t p = first; p < last; p++) {
			assert_true(p < 199 || p >= 301);
			assert_int_equal(used[p], live[i]);
			used[p] = !live[i];
		}
		taken += live[i] ? -(last - first) : last - first;
		live[i] = !live[i];
	}
	for (int i = 0; i < LEASES; i++)
		if (live[i])
			pl_iova_give(&s, &nodes[i]);
	/* And all of them can be had again. */
	assert_int_equal(pl_iova_take(&s, 0, 299 * PAGE, &nodes[0]), 0);
	assert_int_equal(pl_iova_take(&s, 0, 199 * PAGE, &nodes[1]), 0);
	assert_int_equal(pl_iova_take(&s, 0, PAGE, &nodes[2]), -ENOSPC);
	pl_iova_close(&s);
	assert_true(taken < PAGES);
}

static void what_is_given_back_comes_last(void **state)
{
	const struct pl_iova_range all = {FIRST, FIRST + 8 * PAGE - 1};
	struct pl_iova a, b;
	struct pl_iova_space s;
	uint64_t was;

	(void)state;
	assert_int_equal(pl_iova_open(&s, &all, 1, 0, UINT64_MAX), 0);
	for (int i = 0; i < 40; i++) {
		assert_int_equal(pl_iova_take(&s, 0, PAGE, &a), 0);
		was = a.first;
		pl_iova_give(&s, &a);
		assert_int_equal(pl_iova_take(&s, 0, PAGE, &b), 0);
		assert_true(b.first != was);
		pl_iova_give(&s, &b);
	}
	pl_iova_close(&s);
}

static void huge_pages_stay_huge(void **state)
{
	const struct pl_iova_range all = {0, 16 * HUGE - 1};
	const uint64_t va = 0x7f0000123000;
	struct pl_iova a, b, c;
	struct pl_iova_space s;

	(void)state;
	assert_int_equal(pl_iova_open(&s, &all, 1, PAGE, UINT64_MAX), 0);
	assert_int_equal(pl_iova_take(&s, va, 3 * HUGE, &a), 0);
	assert_int_equal(a.first % HUGE, va % HUGE);
	/* Where that doesn't fit, any place does. */
	assert_int_equal(pl_iova_take(&s, a.last + 1, 16 * HUGE - a.last - 1, &b), 0);
	assert_int_equal(b.first, a.last + 1);
	pl_iova_give(&s, &a);
	assert_int_equal(pl_iova_take(&s, 5, b.first - PAGE, &c), 0);
	assert_int_equal(c.first, PAGE);
	pl_iova_close(&s);
}

static void the_ends_of_the_world(void **state)
{
	const struct pl_iova_range all = {0, UINT64_MAX}, tiny = {1, PAGE};
	struct pl_iova_space s;
	struct pl_iova a, b;

	(void)state;
	assert_int_equal(pl_iova_open(&s, &all, 1, UINT64_MAX - 2 * PAGE + 1, UINT64_MAX), 0);
	assert_int_equal(pl_iova_take(&s, 0, PAGE, &a), 0);
	assert_int_equal(pl_iova_take(&s, 0, PAGE, &b), 0);
	assert_true(b.last == UINT64_MAX);
	assert_int_equal(pl_iova_take(&s, 0, PAGE, &b), -ENOSPC);
	pl_iova_close(&s);
	assert_int_equal(pl_iova_open(&s, &tiny, 1, 0, UINT64_MAX), -ENOSPC);
	assert_int_equal(pl_iova_open(&s, &all, 1, 0, PAGE - 2), -ENOSPC);
	assert_int_equal(pl_iova_open(&s, NULL, 0, 0, UINT64_MAX), -ENOSPC);
	assert_int_equal(pl_iova_open(&s, &all, 1, 0, UINT64_MAX), 0);
	assert_int_equal(pl_iova_take(&s, 0, PAGE, &a), 0);
	assert_int_equal(a.first, 0);
	pl_iova_close(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(none_is_given_twice),
		cmocka_unit_test(what_is_given_back_comes_last),
		cmocka_unit_test(huge_pages_stay_huge),
		cmocka_unit_test(the_ends_of_the_world),
	};

	return cmocka_run_group_tests_name("iova", tests, NULL, NULL);
}
