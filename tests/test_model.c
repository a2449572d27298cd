/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The revoke table that model/recall.pml is checked with is the library's: each state and input has one
 * row, and pl_revoke() says the same. `make model` does the rest. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/revoke.h"

static const struct {
	enum pinl_state state;
	enum pl_input input;
	struct pl_transition to;
} rows[] = {
#define R(S, I, N, T) {PINL_##S, PL_IN_##I, {PINL_##N, PL_STEP_##T}},
#include "../model/revoke.def"
#undef R
};

#define N_STATES (PINL_RELEASED + 1)
#define N_ROWS	 (sizeof rows / sizeof *rows)

static void each_pair_has_one_row(void **state)
{
	int n[N_STATES][PL_IN_NR] = {{0}};

	assert_int_equal(N_ROWS, N_STATES * PL_IN_NR);
	for (size_t i = 0; i < N_ROWS; i++)
		assert_int_equal(n[rows[i].state][rows[i].input]++, 0);
}

static void rows_are_the_code(void **state)
{
	for (size_t i = 0; i < N_ROWS; i++) {
		struct pl_transition t = pl_revoke(rows[i].state, rows[i].input);

		if (t.next != rows[i].to.next || t.step != rows[i].to.step)
			fail_msg("model/revoke.def row %zu: state %d, input %d: %d, %d; "
				 "lib/core/revoke.c: "
				 "%d, %d",
				 i + 1, rows[i].state, rows[i].input, rows[i].to.next, rows[i].to.step,
				 t.next, t.step);
	}
}

/* recall.pml has numbers of its own; they are those of the enumerations, in this order. */
static void numbers_are_the_models(void **state)
{
	assert_int_equal(PINL_ACTIVE, 0);
	assert_int_equal(PINL_NOTICED, 1);
	assert_int_equal(PINL_FORCING, 2);
	assert_int_equal(PINL_RELEASED, 3);
	assert_int_equal(PL_IN_CHANGE, 0);
	assert_int_equal(PL_IN_QUIESCED, 1);
	assert_int_equal(PL_IN_UNMAP, 2);
	assert_int_equal(PL_IN_DEADLINE, 3);
	assert_int_equal(PL_IN_DONE_PART, 4);
	assert_int_equal(PL_IN_DONE_WHOLE, 5);
	assert_int_equal(PL_IN_NR, 6);
	assert_int_equal(PL_STEP_NONE, 0);
	assert_int_equal(PL_STEP_NOTIFY, 1);
	assert_int_equal(PL_STEP_WIDEN, 2);
	assert_int_equal(PL_STEP_TAKE, 3);
	assert_int_equal(PL_STEP_SETTLE, 4);
	assert_int_equal(PL_STEP_WRONG, 5);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_pair_has_one_row),
		cmocka_unit_test(rows_are_the_code),
		cmocka_unit_test(numbers_are_the_models),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
