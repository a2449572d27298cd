/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What holder, arbiter and who watches are told of a recall is what has happened: who took the device
 * off, and how much time the holder has.
 */
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "told_scene.h"

static void what_the_holders_library_forces_is_forced(void **state)
{
	static const enum pinl_then thens[] = {PINL_THEN_FAIL, PINL_THEN_SCRATCH, PINL_THEN_COPY};
	static const enum pinl_outcome outcomes[] = {PINL_OUT_FAIL, PINL_OUT_SCRATCH, PINL_OUT_COPY};
	struct pl_event_msg e;
	struct holder h;
	struct asker c;
	struct actor t;

	for (int i = 0; i < 3; i++) {
		struct lending what = lending_recall(thens[i], 1);
		unsigned counts[64] = {0};

		what.uring = true;
		what.drain_ms = 60000;
		start(&h, &c, &what, patient);
		actor_start(&t, &a);
		e = asker_count(&c, PINL_EV_FORCED, counts);
		assert_int_equal(e.outcome, outcomes[i]);
		assert_int_equal(e.outside, 0);
		asker_count(&c, PINL_EV_RELEASED, counts);
		assert_int_equal(counts[PINL_EV_QUIESCED], 0);
		assert_int_equal(actor_join(&t), 0);
		assert_int_equal(status().forced, 1);
		assert_int_equal(status().outside, 0);
		assert_int_equal(status().quiesced, 0);
		finish(&h, &c);
	}
}

static void what_the_holder_answers_is_quiesced(void **state)
{
	struct lending what = lending_recall(PINL_THEN_FAIL, 60000);
	struct pl_event_msg e;
	struct holder h;
	struct asker c;
	struct actor t;

	start(&h, &c, &what, patient);
	actor_start(&t, &a);
	asker_event(&c, PINL_EV_NOTICE);
	h.s->quiesce = 1;
	e = asker_event(&c, PINL_EV_QUIESCED);
	assert_int_equal(e.outcome, PINL_OUT_QUIESCED);
	assert_int_equal(actor_join(&t), 0);
	assert_int_equal(status().forced, 0);
	assert_int_equal(status().quiesced, 1);
	finish(&h, &c);
}

static void what_is_forced_from_outside_is_said_to_be(void **state)
{
	struct lending what = lending_recall(PINL_THEN_FAIL, 50);
	struct pl_event_msg e;
	struct holder h;
	struct asker c;
	struct actor t;

	what.uring = true;
	start(&h, &c, &what, patient);
	holder_stop(&h);
	actor_start(&t, &a);
	e = asker_event(&c, PINL_EV_FORCED);
	assert_int_equal(e.err, 0);
	assert_int_equal(e.outside, 1);
	assert_int_equal(actor_join(&t), 0);
	assert_int_equal(status().forced, 1);
	assert_int_equal(status().outside, 1);
	kill(h.pid, SIGCONT);
	holder_wait(&h, PINL_EV_RELEASED, 1);
	finish(&h, &c);
}

/* Whichever of its messages comes first. */
static void a_holder_that_ends_its_lease_has_answered(void **state)
{
	struct lending what = lending_recall(PINL_THEN_FAIL, 60000);
	struct pl_event_msg e;
	struct holder h;
	struct asker c, d;

	for (int i = 0; i < 20; i++) {
		start(&h, &c, &what, patient);
		asker_open(&d, &a);
		asker_recall(&d, h.pid);
		asker_event(&c, PINL_EV_NOTICE);
		holder_wait(&h, PINL_EV_NOTICE, 1);
		h.s->unmap = 1;
		e = asker_event(&d, PL_EVENT_RECALLED);
		assert_int_equal(e.err, 0);
		assert_int_equal(e.outcome, PINL_OUT_QUIESCED);
		asker_event(&c, PL_EVENT_ENDED);
		assert_int_equal(status().quiesced, 1);
		asker_close(&d);
		finish(&h, &c);
	}
}

/* Its ring has a request in flight that nobody ends: it takes a while to see what became of the pins. */
static void the_leases_of_a_killed_holder_are_listed_until_they_end(void **state)
{
	struct lending what = lending_recall(PINL_THEN_FAIL, 60000);
	uint64_t listed, counted;
	struct holder h;
	struct asker c;

	what.uring = what.flight = true;
	start(&h, &c, &what, patient);
	kill(h.pid, SIGKILL);
	assert_int_equal(waitpid(h.pid, NULL, 0), h.pid);
	do {
		listed = entry().lease != 0;
		counted = status().leases;
		assert_true(listed >= counted);
	} while (counted);
	asker_event(&c, PL_EVENT_ENDED);
	assert_int_equal(status().holders, 0);
	munmap(h.s, sizeof *h.s);
	asker_close(&c);
	arbiter_stop(&a);
}

/* Half of it, where the ceiling leaves no more than the library wants for itself. */
static void a_low_ceiling_leaves_some_grace(void **state)
{
	struct lending what = lending_recall(PINL_THEN_FAIL, 60000);
	struct pl_event_msg e;
	struct asker c, d;
	struct holder h;

	start(&h, &c, &what, (const char *[]){"--ceiling", "1000", NULL});
	asker_open(&d, &a);
	asker_recall(&d, h.pid);
	e = asker_event(&c, PINL_EV_NOTICE);
	holder_wait(&h, PINL_EV_NOTICE, 1);
	assert_true(e.deadline_ns - h.s->last[PINL_EV_NOTICE].deadline_ns <= 500000000);
	asker_event(&d, PL_EVENT_RECALLED);
	asker_close(&d);
	finish(&h, &c);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_the_holders_library_forces_is_forced),
		cmocka_unit_test(what_the_holder_answers_is_quiesced),
		cmocka_unit_test(what_is_forced_from_outside_is_said_to_be),
		cmocka_unit_test(a_holder_that_ends_its_lease_has_answered),
		cmocka_unit_test(the_leases_of_a_killed_holder_are_listed_until_they_end),
		cmocka_unit_test(a_low_ceiling_leaves_some_grace),
	};

	alarm(HANG_S);
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("told", tests, NULL, NULL);
}
