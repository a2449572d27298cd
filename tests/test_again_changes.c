/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a holder takes a change for that was under way when its connection broke: whether who waits for
 * it went on, was let go, or is told of again.
 */
#include <errno.h>

#include "again_rig.h"

/* What was let go when the library had taken the device off was no orphan. */
static void what_was_let_go_before_the_force_was_an_orphan_until_then(void **state)
{
	uint64_t began = now();
	union pl_message m;

	begin_pinned(0);
	notify(PL_NOTICE_RECALL, began, 0);
	for (next(&m); m.head.type != PL_RELEASED; next(&m))
		answer(&m);
	assert_int_equal(m.released.whole, 1);
	assert_int_equal(m.released.outcome, PINL_OUT_FAIL);
	notify(PL_NOTICE_LOST, began, now());
	notify(PL_NOTICE_LOST, began, began + 1);
	while (!a.s->orphan_ends)
		usleep(1000);
	assert_int_equal(a.s->let_go, 1);
	assert_int_equal(a.s->orphans, 1);
	until_it_ends();
}

/* Nobody waits for it any more. */
static void what_is_left_unheard_by_one_that_knows_nothing_was_let_go(void **state)
{
	a.ceiling_ms = 1;
	leave_a_recall_unheard();
	a.ceiling_ms = 0;
	welcome(false);
	until_it_is_released();
	while (!a.s->orphan_ends)
		usleep(1000);
	assert_int_equal(a.s->let_go, 1);
	assert_int_equal(a.s->orphans, 1);
	assert_int_not_equal(a.s->change[PINL_EV_NOTICE], 0);
	assert_int_equal(a.s->change[PINL_EV_DEGRADED], a.s->change[PINL_EV_NOTICE]);
	assert_int_equal(a.s->change[PINL_EV_ORPHAN], a.s->change[PINL_EV_NOTICE]);
	while (!a.s->answered)
		usleep(1000);
	assert_int_equal(a.s->waited_ns, 2000000); /* not until it was heard of */
	until_it_ends();
}

/* It tells of the recall again, or that it has been forced. */
static void what_is_left_unheard_is_told_again(void **state)
{
	leave_a_recall_unheard();
	welcome(true);
	until_all_told(PL_STILL, 1);
	assert_int_equal(a.s->answered, 0);
	notify(PL_NOTICE_RECALL, now(), 0);
	until_it_is_released();
	while (!a.s->answered)
		usleep(1000);
	assert_int_equal(a.s->answered, 1);
	until_it_ends();
}

/* But not of a lease that it couldn't take over. */
static void what_is_left_unheard_of_an_unknown_lease_is_done(void **state)
{
	union pl_message m;

	leave_a_recall_unheard();
	welcome(true);
	next(&m);
	assert_int_equal(m.head.type, PL_STILL);
	reply(&m, -ENOENT, 0);
	until_it_is_released();
	until_it_ends();
}

static void who_is_told_of_again_goes_on_once(void **state)
{
	uint64_t since = now();

	start_patient_holder();
	notify_patiently(PL_NOTICE_RECALL, 5, since, 0);
	until_it_is_noticed();
	break_off(true);
	until_all_told(PL_STILL, 1);
	notify_patiently(PL_NOTICE_RECALL, 1, since, 0);
	until_all_is_heard();
	assert_int_equal(a.s->answered, 0);
	quiesce();
	assert_int_equal(a.s->answered, 1);
	assert_int_equal(a.s->change[PINL_EV_ANSWERED], a.s->change[PINL_EV_NOTICE]);
	until_it_ends();
}

/* In vain, so that it was told of twice. */
static void what_was_let_go_is_what_was_noticed(void **state)
{
	uint64_t since = now();

	start_patient_holder();
	notify_patiently(PL_NOTICE_RECALL, 5, since, 0);
	until_it_is_noticed();
	notify_patiently(PL_NOTICE_RECALL, 5, since, 0);
	notify_patiently(PL_NOTICE_LOST, 5, since, now());
	until_all_is_heard();
	assert_int_equal(a.s->let_go, 1);
	assert_int_equal(a.s->answered, 1);
	assert_int_equal(a.s->change[PINL_EV_ANSWERED], a.s->change[PINL_EV_NOTICE]);
	assert_int_equal(a.s->change[PINL_EV_DEGRADED], a.s->change[PINL_EV_NOTICE]);
	quiesce();
	assert_int_equal(a.s->answered, 1);
	until_it_ends();
}

static void each_who_is_let_go_goes_on(void **state)
{
	uint64_t since = now();

	start_patient_holder();
	notify_patiently(PL_NOTICE_RECALL, 5, since, 0);
	notify_patiently(PL_NOTICE_RECALL, 6, since + 1, 0);
	notify_patiently(PL_NOTICE_LOST, 6, since + 1, now());
	until_all_is_heard();
	assert_int_equal(a.s->answered, 1);
	assert_int_not_equal(a.s->change[PINL_EV_ANSWERED], a.s->change[PINL_EV_NOTICE]);
	notify_patiently(PL_NOTICE_LOST, 5, since, now());
	until_all_is_heard();
	assert_int_equal(a.s->answered, 2);
	assert_int_equal(a.s->change[PINL_EV_ANSWERED], a.s->change[PINL_EV_NOTICE]);
	quiesce();
	assert_int_equal(a.s->answered, 2);
	until_it_ends();
}

/* pinleased numbers its changes for itself. */
static void what_was_refused_is_another_change(void **state)
{
	start_patient_holder();
	notify_patiently(PL_NOTICE_RECALL, 5, now(), 0);
	until_it_is_noticed();
	notify_patiently(PL_NOTICE_REFUSED, a.s->change[PINL_EV_NOTICE], now(), 0);
	while (!a.s->refused)
		usleep(1000);
	assert_int_not_equal(a.s->change[PINL_EV_REFUSED], a.s->change[PINL_EV_NOTICE]);
	until_it_ends();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_let_go_before_the_force_was_an_orphan_until_then),
		cmocka_unit_test(what_is_left_unheard_by_one_that_knows_nothing_was_let_go),
		cmocka_unit_test(what_is_left_unheard_is_told_again),
		cmocka_unit_test(what_is_left_unheard_of_an_unknown_lease_is_done),
		cmocka_unit_test(who_is_told_of_again_goes_on_once),
		cmocka_unit_test(what_was_let_go_is_what_was_noticed),
		cmocka_unit_test(each_who_is_let_go_goes_on),
		cmocka_unit_test(what_was_refused_is_another_change),
	};

	return cmocka_run_group_tests_name("again_changes", tests, NULL, NULL);
}
