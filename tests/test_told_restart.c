/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What of a lease is left, and what is told of its recall, after the arbiter was away: what was taken
 * meanwhile or afterwards, who waited over it, and who comes back at all.
 */
#include <unistd.h>

#include "told_scene.h"

/* By who makes the file so small. */
static void restart_in_a_recall_to(struct holder *h, struct asker *c, unsigned grace_ms, off_t size)
{
	struct lending what = lending_recall(PINL_THEN_SCRATCH, grace_ms);
	struct actor t;

	what.pinned = true;
	start(h, c, &what, patient);
	actor_start_to(&t, &a, size);
	holder_wait(h, PINL_EV_NOTICE, 1);
	asker_close(c);
	arbiter_kill(&a);
	assert_int_equal(actor_join(&t), 0);
}

static void restart_in_a_recall(struct holder *h, struct asker *c, unsigned grace_ms)
{
	restart_in_a_recall_to(h, c, grace_ms, 0);
}

static void come_back(struct holder *h, struct asker *c)
{
	arbiter_restart(&a, patient);
	asker_open(c, &a);
	asker_watch(c);
	holder_wait(h, PINL_EV_DEGRADED, 1);
}

static void await_state(enum pinl_state state)
{
	struct pl_entry_msg e = entry();

	while (!e.lease || e.state != state)
		e = entry();
}

static void what_was_taken_meanwhile_is_known(void **state)
{
	struct holder h;
	struct asker c;

	restart_in_a_recall(&h, &c, 60000);
	h.s->quiesce = 1;
	holder_wait(&h, PINL_EV_RELEASED, 1);
	come_back(&h, &c);
	await_state(PINL_RELEASED);
	assert_int_equal(status().forced, 0);
	assert_int_equal(status().quiesced, 1);
	finish(&h, &c);
	restart_in_a_recall(&h, &c, 1);
	holder_wait(&h, PINL_EV_RELEASED, 1);
	come_back(&h, &c);
	await_state(PINL_RELEASED);
	assert_int_equal(status().forced, 1);
	finish(&h, &c);
}

static void parts_that_were_taken_meanwhile_are_known(void **state)
{
	struct holder h;
	struct asker c;

	restart_in_a_recall_to(&h, &c, 1, SIZE / 2);
	holder_wait(&h, PINL_EV_RELEASED, 1);
	come_back(&h, &c);
	await_state(PINL_ACTIVE);
	while (entry().detached != SIZE / 2)
		;
	assert_int_equal(entry().state, PINL_ACTIVE);
	finish(&h, &c);
}

/* By its own library, for a change of before, which this pinleased knows nothing of. */
static void what_is_taken_afterwards_is_known(void **state)
{
	struct holder h;
	struct asker c;

	restart_in_a_recall(&h, &c, 60000);
	come_back(&h, &c);
	await_state(PINL_ACTIVE);
	h.s->quiesce = 1;
	holder_wait(&h, PINL_EV_RELEASED, 1);
	await_state(PINL_RELEASED);
	finish(&h, &c);
}

/* The kernel has let the actor go when pinleased died, and the device was on its pages. */
static void nobody_has_waited_for_a_pinleased_that_is_gone(void **state)
{
	struct pinl_event *answered;
	struct holder h;
	struct asker c;
	uint64_t waited, began = now_ns();

	restart_in_a_recall(&h, &c, 60000);
	usleep(500000 +
	       (h.s->last[PINL_EV_NOTICE].time_ns - began) / 1000); /* more than his notice took */
	come_back(&h, &c);
	holder_wait(&h, PINL_EV_ANSWERED, 1);
	answered = &h.s->last[PINL_EV_ANSWERED];
	waited = answered->waited_ns;
	assert_true(waited < answered->time_ns - h.s->last[PINL_EV_NOTICE].time_ns);
	assert_int_equal(h.s->events[PINL_EV_RELEASED], 0);
	holder_wait(&h, PINL_EV_ORPHAN, 1);
	h.s->quiesce = 1;
	holder_wait(&h, PINL_EV_ORPHAN_END, 1);
	holder_wait(&h, PINL_EV_RELEASED, 1);
	assert_int_equal(h.s->events[PINL_EV_ANSWERED], 1);
	assert_int_equal(h.s->cut, 1);
	finish(&h, &c);
}

/* Where descriptors are kept, so that it is told by STILL. */
static void what_was_taken_meanwhile_is_known_where_all_is_kept(void **state)
{
	struct lending what = lending_recall(PINL_THEN_FAIL, 60000);
	struct holder h;
	struct asker c;

	a.kept = true;
	start(&h, &c, &what, patient);
	asker_recall(&c, h.pid);
	holder_wait(&h, PINL_EV_NOTICE, 1);
	asker_close(&c);
	arbiter_kill(&a);
	h.s->quiesce = 1;
	holder_wait(&h, PINL_EV_RELEASED, 1);
	arbiter_restart(&a, patient);
	await_state(PINL_RELEASED);
	holder_end(&h);
	arbiter_stop(&a);
	a.kept = false;
}

/* His place is kept for him, and he needs one to come back. */
static void who_has_all_connections_he_may_have_comes_back(void **state)
{
	static const char *const one[] = {"--ceiling", "100000", "--max-connections", "1", NULL};
	struct lending what = lending_recall(PINL_THEN_FAIL, 60000);
	struct holder h;
	struct asker c;

	a.kept = true;
	start(&h, &c, &what, one);
	asker_close(&c);
	arbiter_kill(&a);
	arbiter_restart(&a, one);
	asker_open(&c, &a);
	asker_recall(&c, h.pid);
	asker_close(&c); /* who asks has taken a place, too */
	holder_wait(&h, PINL_EV_NOTICE, 1);
	holder_end(&h);
	arbiter_stop(&a);
	a.kept = false;
}

static void who_waits_over_a_restart_has_waited_all_the_time(void **state)
{
	struct lending what = lending_recall(PINL_THEN_FAIL, 60000);
	struct pl_event_msg e;
	const struct pinl_event *answered;
	struct holder h;
	struct asker c;
	struct actor t;
	uint64_t told;

	a.kept = true;
	start(&h, &c, &what, patient);
	actor_start(&t, &a);
	holder_wait(&h, PINL_EV_NOTICE, 1);
	told = h.s->last[PINL_EV_NOTICE].time_ns;
	restart(&c);
	await_state(PINL_NOTICED); /* the change is known again, else nobody waits for the answer */
	h.s->quiesce = 1;
	e = asker_event(&c, PINL_EV_ANSWERED);
	assert_true(e.time_ns - e.waited_ns <= told);
	assert_int_equal(actor_join(&t), 0);
	holder_wait(&h, PINL_EV_ANSWERED, 1);
	answered = &h.s->last[PINL_EV_ANSWERED];
	assert_true(answered->time_ns - answered->waited_ns <= told);
	leave(&h);
	assert_int_equal(h.s->events[PINL_EV_ANSWERED], 1); /* who was told of twice */
	finish(&h, &c);
	a.kept = false;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_was_taken_meanwhile_is_known),
		cmocka_unit_test(parts_that_were_taken_meanwhile_are_known),
		cmocka_unit_test(what_is_taken_afterwards_is_known),
		cmocka_unit_test(nobody_has_waited_for_a_pinleased_that_is_gone),
		cmocka_unit_test(what_was_taken_meanwhile_is_known_where_all_is_kept),
		cmocka_unit_test(who_has_all_connections_he_may_have_comes_back),
		cmocka_unit_test(who_waits_over_a_restart_has_waited_all_the_time),
	};

	alarm(HANG_S);
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("told_restart", tests, NULL, NULL);
}
