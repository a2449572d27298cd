/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a holder takes a change for whose maker waits at a gate that stays closed over the connection's
 * end, and what it counts on where the next pinleased has no place for it there.
 */
#include "again_rig.h"

/* With a pinleased that knows nothing. */
static void begin_anew(void)
{
	a.boot++;
	break_off(false);
	until_all_told(PL_LEASE, 1);
}

/* That stays closed: nothing has happened. */
static void who_was_refused_took_nothing(void **state)
{
	start_patient_holder();
	a.gate = true;
	notify_patiently(PL_NOTICE_RECALL, 5, now(), 0);
	until_it_is_noticed();
	a.gate = false;
	begin_anew();
	until_all_is_heard();
	assert_int_equal(a.s->answered, 1);
	assert_int_equal(a.s->let_go, 0);
	assert_int_equal(a.s->orphans, 0);
	quiesce();
	until_it_ends();
}

static void nor_if_that_is_left_unheard(void **state)
{
	a.gate = true;
	leave_a_recall_unheard();
	a.gate = false;
	welcome(false);
	until_it_is_released();
	until_all_is_heard();
	assert_int_equal(a.s->let_go, 0);
	assert_int_equal(a.s->orphans, 0);
	until_it_ends();
}

#define TOLD_ONLY 0x33333333333ull
#define OPS	  (PINL_OPS_FILE | PINL_OPBIT(PINL_OP_REMOVE))

static void lease_at_the_gate(bool has_place)
{
	int looks;

	a.cover = TOLD_ONLY | PL_SUPERVISED | PL_OTHERS;
	a.value = has_place ? a.cover : a.cover & ~PL_OTHERS;
	begin(1);
	for (looks = a.s->looks; a.s->looks == looks;)
		usleep(1000);
	assert_int_equal(a.s->others_wait, has_place);
}

static void who_finds_no_place_counts_on_nobody(void **state)
{
	for (int has_place = 0; has_place < 2; has_place++) {
		lease_at_the_gate(has_place);
		until_it_ends();
	}
	a.cover = a.value = 0;
}

static void nor_does_whom_the_next_one_has_no_place_for(void **state)
{
	union pl_message m;

	lease_at_the_gate(true);
	begin_anew();
	pl_message_init(&m, PL_NOTICE);
	m.notice.lease = a.last;
	m.notice.start = a.lease.start;
	m.notice.end = a.lease.end;
	m.notice.what = PL_NOTICE_WEAKER;
	m.notice.op = PINL_OP_TRUNCATE;
	m.notice.also = OPS;
	for (int i = 0; i < 2; i++) /* once is enough */
		assert_int_equal(pl_message_send(a.sock, &m, -1), 0);
	while (a.s->unwaited != OPS || a.s->others_wait)
		usleep(1000);
	assert_int_equal(a.s->let_go, 0);
	until_it_ends();
	a.cover = a.value = 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(who_was_refused_took_nothing),
		cmocka_unit_test(nor_if_that_is_left_unheard),
		cmocka_unit_test(who_finds_no_place_counts_on_nobody),
		cmocka_unit_test(nor_does_whom_the_next_one_has_no_place_for),
	};

	return cmocka_run_group_tests_name("again_gate", tests, NULL, NULL);
}
