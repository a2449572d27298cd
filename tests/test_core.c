/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The pure parts of the core: the revoke state machine and the interval index. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>

#include "core/index.h"
#include "core/revoke.h"

static void released_is_final(void **state)
{
	for (int in = 0; in < PL_IN_NR; in++)
		assert_int_equal(pl_revoke(PINL_RELEASED, in).next, PINL_RELEASED);
}

static void force_ends_only_when_done(void **state)
{
	for (int in = 0; in < PL_IN_NR; in++) {
		struct pl_transition t = pl_revoke(PINL_FORCING, in);

		if (in == PL_IN_DONE_PART || in == PL_IN_DONE_WHOLE)
			assert_int_equal(t.step, PL_STEP_SETTLE);
		else
			assert_int_equal(t.next, PINL_FORCING);
	}
}

static void notice_comes_before_force(void **state)
{
	/* From ACTIVE no change and no deadline gets to FORCING without a notice; only the holder does.
	 */
	assert_int_equal(pl_revoke(PINL_ACTIVE, PL_IN_CHANGE).next, PINL_NOTICED);
	assert_int_equal(pl_revoke(PINL_ACTIVE, PL_IN_CHANGE).step, PL_STEP_NOTIFY);
	assert_int_equal(pl_revoke(PINL_ACTIVE, PL_IN_DEADLINE).next, PINL_ACTIVE);
	assert_int_equal(pl_revoke(PINL_ACTIVE, PL_IN_QUIESCED).next, PINL_FORCING);
	/* A second change never moves the deadline. */
	assert_int_equal(pl_revoke(PINL_NOTICED, PL_IN_CHANGE).step, PL_STEP_WIDEN);
}

static void wrong_inputs_change_nothing(void **state)
{
	for (int s = PINL_ACTIVE; s <= PINL_RELEASED; s++)
		for (int in = 0; in < PL_IN_NR; in++)
			if (pl_revoke(s, in).step == PL_STEP_WRONG)
				assert_int_equal(pl_revoke(s, in).next, s);
}

#define NODES 400

static int overlaps(const struct pl_node *n, uintptr_t start, uintptr_t end)
{
	return n->start < end && n->end > start;
}

static void check_query(struct pl_index *x, struct pl_node *nodes, const char *in, uintptr_t start,
			uintptr_t end)
{
	int expect = 0, got = 0;
	uintptr_t last = 0;

	for (int i = 0; i < NODES; i++)
		expect += in[i] && overlaps(&nodes[i], start, end);
	for (struct pl_node *n = pl_index_first(x, start, end); n;
	     n = pl_index_next(n, start, end), got++) {
		assert_true(overlaps(n, start, end));
		assert_true(n->start >= last);
		last = n->start;
	}
	assert_int_equal(got, expect);
}

static void index_finds_what_a_scan_finds(void **state)
{
	static struct pl_node nodes[NODES];
	static char in[NODES];
	struct pl_index x = {0};
	unsigned seed = 20261121;

	for (int step = 0; step < 20000; step++) {
		int i = rand_r(&seed) % NODES;
		uintptr_t start = rand_r(&seed) % 3000, len = 1 + rand_r(&seed) % 200;
		struct pl_node *near;
		int j;

		if (in[i]) {
			pl_index_remove(&x, &nodes[i]);
		} else {
			nodes[i].start = start;
			nodes[i].end = start + len;
			j = rand_r(&seed) % NODES;
			near = rand_r(&seed) % 2 ? pl_index_first(&x, start / 2, start) : &nodes[j];
			pl_index_insert_near(&x, &nodes[i], near != &nodes[j] || in[j] ? near : NULL);
		}
		in[i] = !in[i];
		check_query(&x, nodes, in, start, start + len);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(released_is_final),
		cmocka_unit_test(force_ends_only_when_done),
		cmocka_unit_test(notice_comes_before_force),
		cmocka_unit_test(wrong_inputs_change_nothing),
		cmocka_unit_test(index_finds_what_a_scan_finds),
	};

	return cmocka_run_group_tests_name("core", tests, NULL, NULL);
}
