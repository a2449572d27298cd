/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What is told of a recall whose holder is stopped, and what it hears when it moves again: what was let
 * go with the device on it still, what was forced meanwhile, and how long somebody has waited.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "told_scene.h"

#define TRIES 50 /* of what a busy machine may be late for */

static const char *const hasty[] = {"--ceiling", "300", NULL};

/* Its device is its own process's only, so nothing can be taken from outside while it is stopped. */
static void stop_through_a_change(struct holder *h, struct asker *c, enum pinl_then then,
				  unsigned counts[64])
{
	struct lending what = lending_recall(then, 20);
	struct actor t;

	what.pinned = true;
	start(h, c, &what, hasty);
	holder_stop(h);
	actor_start(&t, &a);
	assert_int_equal(actor_join(&t), 0);
	asker_count(c, PINL_EV_ORPHAN, counts);
	while (asker_count(c, PINL_EV_FORCED, counts).err != -EOPNOTSUPP)
		;
}

static void a_stopped_holder_hears_what_it_has_missed(void **state)
{
	static const enum pinl_then thens[] = {PINL_THEN_FAIL, PINL_THEN_SCRATCH, PINL_THEN_COPY};
	struct holder h;
	struct asker c;

	for (int i = 0; i < 3; i++) {
		unsigned counts[64] = {0};

		stop_through_a_change(&h, &c, thens[i], counts);
		kill(h.pid, SIGCONT);
		holder_wait(&h, PINL_EV_ORPHAN_END, 1);
		holder_wait(&h, PINL_EV_ANSWERED, 1);
		holder_wait(&h, PINL_EV_RELEASED, 1);
		assert_int_equal(h.s->cut, 1);
		assert_int_equal(h.s->events[PINL_EV_ORPHAN], 1);
		assert_int_equal(h.s->last[PINL_EV_ORPHAN].bytes, SIZE);
		/* the ceiling and as much again */
		assert_true(h.s->last[PINL_EV_ANSWERED].waited_ns >= 600000000);
		finish(&h, &c);
	}
}

/* Not before the device is off them, however often a force is tried. */
static void orphans_last_until_the_device_is_off(void **state)
{
	unsigned counts[64] = {0};
	struct pl_event_msg e;
	struct holder h;
	struct asker c;

	stop_through_a_change(&h, &c, PINL_THEN_FAIL, counts);
	assert_int_equal(counts[PINL_EV_ORPHAN], 1);
	assert_int_equal(counts[PINL_EV_ORPHAN_END], 0);
	assert_int_equal(entry().orphaned, SIZE);
	assert_int_not_equal(entry().state, PINL_NOTICED);
	kill(h.pid, SIGCONT);
	e = asker_event(&c, PINL_EV_ORPHAN_END);
	assert_int_equal(e.lease, 1);
	asker_event(&c, PINL_EV_RELEASED);
	assert_int_equal(entry().orphaned, 0);
	assert_int_equal(entry().state, PINL_RELEASED);
	finish(&h, &c);
}

/* How long it was one is known, as is what it was; not what was written there. */
static void a_holder_says_of_an_orphan_what_it_knows(void **state)
{
	unsigned counts[64] = {0};
	const struct pinl_event *end;
	struct holder h;
	struct asker c;
	uint64_t since;

	stop_through_a_change(&h, &c, PINL_THEN_FAIL, counts);
	since = now_ns();
	usleep(100000);
	since = now_ns() - since;
	kill(h.pid, SIGCONT);
	holder_wait(&h, PINL_EV_ORPHAN_END, 1);
	end = &h.s->last[PINL_EV_ORPHAN_END];
	assert_int_equal(end->err, -EOPNOTSUPP);
	assert_true(end->waited_ns >= since);
	finish(&h, &c);
}

static void orphans_last_over_a_restart(void **state)
{
	unsigned counts[64] = {0};
	struct pl_event_msg e;
	struct holder h;
	struct asker c;
	uint64_t since;

	a.kept = true;
	stop_through_a_change(&h, &c, PINL_THEN_FAIL, counts);
	since = now_ns();
	restart(&c);
	while (entry().orphaned != SIZE)
		usleep(1000);
	assert_int_not_equal(entry().state, PINL_RELEASED);
	since = now_ns() - since;
	kill(h.pid, SIGCONT);
	e = asker_event(&c, PINL_EV_ORPHAN_END);
	assert_int_equal(e.bytes, 0);
	assert_int_equal(e.err, -EOPNOTSUPP);
	assert_true(e.waited_ns >= since);
	while (entry().orphaned)
		usleep(1000);
	finish(&h, &c);
	a.kept = false;
}

static const enum pinl_then moving[] = {PINL_THEN_SCRATCH, PINL_THEN_COPY};

/* Its library can only learn of it, when it moves again. */
static void has_been_forced_once(struct holder *h)
{
	kill(h->pid, SIGCONT);
	holder_wait(h, PINL_EV_RELEASED, 1);
	holder_wait(h, PINL_EV_ANSWERED, 1);
	leave(h);
	assert_int_equal(h->s->events[PINL_EV_NOTICE], 1);
	assert_int_equal(h->s->events[PINL_EV_FORCED], 1);
	assert_int_equal(h->s->last[PINL_EV_FORCED].outcome, PINL_OUT_FAIL);
	assert_int_equal(h->s->events[PINL_EV_ANSWERED], 1);
}

/* Before it has heard of the change, or after. False: its library was faster than this. */
static bool is_forced_while_stopped(struct holder *h, enum pinl_then then, bool heard)
{
	struct lending what = lending_recall(then, heard ? 1500 : 50);
	struct pl_event_msg forced, answered;
	struct asker c;
	struct actor t;

	what.uring = true;
	what.drain_ms = 200;
	start(h, &c, &what, patient);
	if (!heard)
		holder_stop(h);
	actor_start(&t, &a);
	if (heard)
		holder_wait(h, PINL_EV_NOTICE, 1);
	if (heard)
		holder_stop(h);
	forced = asker_event(&c, PINL_EV_FORCED);
	answered = asker_event(&c, PINL_EV_ANSWERED);
	assert_int_equal(actor_join(&t), 0);
	status(); /* the notice has been sent when this is answered */
	if (forced.outside) {
		has_been_forced_once(h);
		assert_true(h->s->last[PINL_EV_ANSWERED].waited_ns <= answered.waited_ns);
		assert_true(h->s->last[PINL_EV_ANSWERED].waited_ns >= 50000000);
	}
	kill(h->pid, SIGCONT);
	finish(h, &c);
	return forced.outside;
}

static void who_waits_for_a_stopped_holder_waits_until_the_force(void **state)
{
	struct holder h;

	for (int i = 0; i < 4; i++)
		while (!is_forced_while_stopped(&h, moving[i % 2], i / 2))
			;
}

/* Of a memory file, whose changes the library sees by itself, too, as soon as it moves. False: a busy
 * machine hasn't heard the change, or couldn't force in time. */
static bool is_taken_before_its_pages_go(int memory)
{
	static const char *const soon[] = {"--ceiling", "5000", NULL};
	struct lending what = lending_recall(PINL_THEN_FAIL, 50);
	struct asker c, supervisor;
	struct arbiter of_memory;
	struct holder h;
	bool taken;

	assert_int_equal(ftruncate(memory, SIZE), 0);
	what.uring = true;
	arbiter_start(&a, soon);
	of_memory = a;
	snprintf(of_memory.file, sizeof of_memory.file, "/proc/%d/fd/%d", getpid(), memory);
	holder_lease(&h, &of_memory, &what);
	asker_open(&c, &a);
	holder_stop(&h);
	asker_truncates(&supervisor, &of_memory);
	taken = asker_goes_on(&supervisor) && status().outside == 1;
	assert_int_equal(ftruncate(memory, 0), 0);
	if (taken) {
		has_been_forced_once(&h);
		assert_int_equal(h.s->events[PINL_EV_ORPHAN], 0);
		assert_int_equal(h.s->events[PINL_EV_DEGRADED], 0);
	}
	kill(h.pid, SIGCONT);
	asker_close(&supervisor);
	finish(&h, &c);
	return taken;
}

static void what_was_taken_before_its_pages_went_is_no_orphan(void **state)
{
	int memory = memfd_create("told", MFD_CLOEXEC), tries = 0;

	while (!is_taken_before_its_pages_go(memory))
		assert_true(++tries < TRIES);
	close(memory);
}

/* The notice of the first pinleased is still in the old connection, and overdue. False: a busy machine
 * couldn't force in time. */
static bool is_forced_by_the_next(enum pinl_then then)
{
	static const char *const soon[] = {"--ceiling", "300", NULL};
	struct lending what = lending_recall(then, 500);
	struct pl_event_msg notice;
	struct holder h;
	struct asker c;
	struct actor t;
	uint64_t held;
	bool forced;

	what.uring = true;
	what.drain_ms = 500;
	start(&h, &c, &what, patient);
	holder_stop(&h);
	held = now_ns();
	actor_start(&t, &a);
	notice = asker_event(&c, PINL_EV_NOTICE);
	status();
	asker_close(&c);
	arbiter_kill(&a);
	arbiter_restart(&a, soon);
	assert_int_equal(actor_join(&t), 0);
	held = now_ns() - held;
	forced = status().outside == 1;
	asker_open(&c, &a);
	while (now_ns() <= notice.deadline_ns)
		usleep(1000);
	if (forced) {
		has_been_forced_once(&h);
		assert_true(h.s->last[PINL_EV_ANSWERED].waited_ns <= held);
	}
	kill(h.pid, SIGCONT);
	finish(&h, &c);
	return forced;
}

static void what_the_next_pinleased_has_forced_is_not_forced_again(void **state)
{
	int tries = 0;

	a.kept = true;
	for (int i = 0; i < 2; i++)
		while (!is_forced_by_the_next(moving[i]))
			assert_true(++tries < TRIES);
	a.kept = false;
}

/* Who runs under `pinlease run` isn't kept: he goes on when pinleased is killed. */
static void what_went_on_with_the_arbiters_end_is_recalled_all_the_same(void **state)
{
	struct lending what = lending_recall(PINL_THEN_FAIL, 500);
	struct asker c, supervisor;
	struct holder h;

	a.kept = true;
	what.uring = true;
	start(&h, &c, &what, patient);
	holder_stop(&h);
	asker_truncates(&supervisor, &a);
	asker_event(&c, PINL_EV_NOTICE);
	status();
	asker_close(&c);
	arbiter_kill(&a);
	arbiter_restart(&a, patient);
	asker_close(&supervisor);
	kill(h.pid, SIGCONT);
	holder_wait(&h, PINL_EV_ORPHAN, 1);
	holder_wait(&h, PINL_EV_RELEASED, 1);
	assert_true(holder_pinned_down_to(&h, 0) <= 0);
	asker_open(&c, &a);
	finish(&h, &c);
	a.kept = false;
}

/* pinleased ends in order, and nobody keeps who waits; the holder is told, for when it moves again. */
static void who_is_let_go_at_the_end_is_said_to_be(void **state)
{
	struct lending what = lending_recall(PINL_THEN_FAIL, 60000);
	int status = 0;
	uint64_t held;
	struct holder h;
	struct asker c;
	struct actor t;

	what.uring = true;
	start(&h, &c, &what, patient);
	holder_stop(&h);
	held = now_ns();
	actor_start(&t, &a);
	asker_event(&c, PINL_EV_NOTICE);
	kill(a.pid, SIGTERM);
	assert_int_equal(waitpid(a.pid, &status, 0), a.pid);
	assert_int_equal(status, 0);
	assert_int_equal(actor_join(&t), 0);
	held = now_ns() - held;
	kill(h.pid, SIGCONT);
	holder_wait(&h, PINL_EV_ORPHAN, 1);
	holder_wait(&h, PINL_EV_ANSWERED, 1);
	assert_int_equal(h.s->last[PINL_EV_ORPHAN].bytes, SIZE);
	assert_true(h.s->last[PINL_EV_ANSWERED].waited_ns <= held);
	asker_close(&c);
	arbiter_restart(&a, patient);
	asker_open(&c, &a);
	h.s->quiesce = 1;
	holder_wait(&h, PINL_EV_ORPHAN_END, 1);
	leave(&h);
	assert_int_equal(h.s->cut, 1);
	assert_int_equal(h.s->events[PINL_EV_ORPHAN], 1);
	assert_int_equal(h.s->events[PINL_EV_ANSWERED], 1);
	finish(&h, &c);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_stopped_holder_hears_what_it_has_missed),
		cmocka_unit_test(orphans_last_until_the_device_is_off),
		cmocka_unit_test(a_holder_says_of_an_orphan_what_it_knows),
		cmocka_unit_test(orphans_last_over_a_restart),
		cmocka_unit_test(who_waits_for_a_stopped_holder_waits_until_the_force),
		cmocka_unit_test(what_was_taken_before_its_pages_went_is_no_orphan),
		cmocka_unit_test(what_the_next_pinleased_has_forced_is_not_forced_again),
		cmocka_unit_test(what_went_on_with_the_arbiters_end_is_recalled_all_the_same),
		cmocka_unit_test(who_is_let_go_at_the_end_is_said_to_be),
	};

	alarm(HANG_S);
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("told_stopped", tests, NULL, NULL);
}
