/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What becomes one registration in the cache: neighbours, what overlaps, huge pages; and what does not.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "cache_rig.h"

static void overlapping_ones_become_one(void **state)
{
	char *at = pages_new(6);
	const struct pinl_reg *reg;
	struct rig r;

	rig_open(&r, unmerged());
	tag_at(&r, at);
	tag_at(&r, at + 4 * PAGE);
	reg = got(&r, at + PAGE / 2, 4 * PAGE, 0);
	assert_int_equal(reg->start, (uintptr_t)at);
	assert_int_equal(reg->end, (uintptr_t)at + 5 * PAGE);
	pinl_put(reg);
	settled(&r);
	assert_int_equal(stat_of(&r, "regions"), 1);
	assert_int_equal(stat_of(&r, "bytes"), 5 * PAGE);
	assert_int_equal(stat_of(&r, "merged"), 2);
	rig_close(&r);
	munmap(at, 6 * PAGE);
}

/* Page by page: not one registration each, nor all of it anew each time. */
static void neighbours_are_merged_in_time(void **state)
{
	enum { N = 256 };
	char *at = pages_new(N);
	struct rig r;

	rig_open(&r, NULL);
	for (int i = 0; i < N; i++)
		tag_at(&r, at + i * PAGE);
	settled(&r);
	assert_true(stat_of(&r, "regions") <= 10);
	assert_int_equal(stat_of(&r, "bytes"), N * PAGE);
	assert_true(r.tagger.mapped <= 10 * N * PAGE);
	rig_close(&r);
	munmap(at, N * PAGE);
}

static unsigned access_at(int page)
{
	return page % 2 ? PINL_WRITE : 0;
}

/* Neighbours of another access stay apart, so there are enough for an index of some nodes. What was
 * between two of them is looked for in the node of what came after it, which may have neither. */
static void what_touches_is_found_wherever_the_index_has_it(void **state)
{
	enum { N = 64 };
	char *at = pages_new(N);
	const struct pinl_reg *reg;
	struct rig r;

	rig_open(&r, NULL);
	for (int gone = 1; gone < N - 1; gone++) {
		for (int i = 0; i < N; i++)
			pinl_put(got(&r, at + i * PAGE, 8, access_at(i)));
		settled(&r);
		assert_int_equal(stat_of(&r, "regions"), N);
		dropped(&r, at + gone * PAGE, 2 * PAGE);
		reg = got(&r, at + gone * PAGE, 8, access_at(gone - 1));
		assert_ptr_equal((char *)reg->start, at + (gone - 1) * PAGE);
		pinl_put(reg);
		dropped(&r, NULL, 0);
	}
	rig_close(&r);
	munmap(at, N * PAGE);
}

static void what_cannot_be_one_stays_apart(void **state)
{
	char *at = pages_new(3);
	const struct pinl_reg *reg;
	struct rig r;

	rig_open(&r, NULL);
	tag_at(&r, at);
	munmap(at + PAGE, PAGE);
	tag_at(&r, at + 2 * PAGE);
	assert_int_equal(mprotect(at, PAGE, PROT_READ), 0);
	pinl_put(got(&r, at + 2 * PAGE, 8, PINL_WRITE));
	reg = got(&r, at, 8, 0);
	assert_int_equal(reg->end, (uintptr_t)at + PAGE);
	pinl_put(reg);
	rig_close(&r);
	munmap(at, PAGE);
	munmap(at + 2 * PAGE, PAGE);
}

/* Into one huge page; somebody may have a page just now, and no huge one may be free. */
static bool collapsed(char *at, size_t huge)
{
	for (int i = 0; i < 50; i++, usleep(100000))
		if (!madvise(at, huge, 25))
			return true;
		else if (errno == EINVAL)
			return false;
	return false;
}

static void huge_pages_are_taken_whole(void **state)
{
	size_t huge = 2 << 20;
	char *map = mmap(NULL, 2 * huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
	     *at;
	const struct pinl_reg *reg;
	struct rig r;

	at = (char *)(((uintptr_t)map + huge - 1) & ~(huge - 1));
	rig_open(&r, NULL);
	if (madvise(at, huge, MADV_HUGEPAGE) || (memset(at, 1, huge), !collapsed(at, huge))) {
		print_message("skip: transparent huge pages on demand (MADV_COLLAPSE)\n");
		rig_close(&r);
		munmap(map, 2 * huge);
		skip();
	}
	reg = got(&r, at + 123456, 8, 0);
	assert_int_equal(reg->start, (uintptr_t)at);
	assert_int_equal(reg->end, (uintptr_t)at + huge);
	pinl_put(reg);
	rig_close(&r);
	munmap(map, 2 * huge);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(overlapping_ones_become_one),
		cmocka_unit_test(neighbours_are_merged_in_time),
		cmocka_unit_test(what_touches_is_found_wherever_the_index_has_it),
		cmocka_unit_test(what_cannot_be_one_stays_apart),
		cmocka_unit_test(huge_pages_are_taken_whole),
	};

	return cmocka_run_group_tests_name("cache_merge", tests, NULL, NULL);
}
