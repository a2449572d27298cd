/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What holder, arbiter and who watches are told of a recall is what has happened: who took the device
 * off, what was let go with the device on it still, how long somebody has waited, and what of a lease is
 * left after the arbiter was away.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "told_rig.h"

static struct arbiter a;
static const char *const patient[] = {"--ceiling", "100000", NULL};
static const char *const hasty[] = {"--ceiling", "300", NULL};

static void start(struct holder *h, struct asker *c, const struct lending *what,
		  const char *const *options)
{
	arbiter_start(&a, options);
	holder_lease(h, &a, what);
	asker_open(c, &a);
	asker_watch(c);
}

static void finish(struct holder *h, struct asker *c)
{
	holder_end(h);
	asker_close(c);
	arbiter_stop(&a);
}

static struct pl_status_msg status(void)
{
	struct pl_status_msg s;
	struct asker c;

	asker_open(&c, &a);
	s = asker_status(&c);
	asker_close(&c);
	return s;
}

static struct pl_entry_msg entry(void)
{
	struct pl_entry_msg e;
	struct asker c;

	asker_open(&c, &a);
	e = asker_entry(&c);
	asker_close(&c);
	return e;
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* ------------------------------------------------------------------------ who took the device off -- */

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

/* --------------------------------------------------------------------------------- let go -- */

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
	asker_close(&c);
	arbiter_kill(&a);
	arbiter_restart(&a, patient);
	asker_open(&c, &a);
	asker_watch(&c);
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

/* ------------------------------------------------------------------------- while nobody was there -- */

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
	asker_close(&c);
	arbiter_kill(&a);
	arbiter_restart(&a, patient);
	asker_open(&c, &a);
	asker_watch(&c);
	await_state(PINL_NOTICED); /* the change is known again, else nobody waits for the answer */
	h.s->quiesce = 1;
	e = asker_event(&c, PINL_EV_ANSWERED);
	assert_true(e.time_ns - e.waited_ns <= told);
	assert_int_equal(actor_join(&t), 0);
	holder_wait(&h, PINL_EV_ANSWERED, 1);
	answered = &h.s->last[PINL_EV_ANSWERED];
	assert_true(answered->time_ns - answered->waited_ns <= told);
	h.s->leave = 1;
	while (h.s->leave)
		usleep(1000);
	assert_int_equal(h.s->events[PINL_EV_ANSWERED], 1); /* who was told of twice */
	finish(&h, &c);
	a.kept = false;
}

/* ------------------------------------------------------------------ forced while it is stopped -- */

static const enum pinl_then moving[] = {PINL_THEN_SCRATCH, PINL_THEN_COPY};

/* Its library can only learn of it, when it moves again. */
static void has_been_forced_once(struct holder *h)
{
	kill(h->pid, SIGCONT);
	holder_wait(h, PINL_EV_RELEASED, 1);
	holder_wait(h, PINL_EV_ANSWERED, 1);
	h->s->leave = 1;
	while (h->s->leave)
		usleep(1000);
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
	int memory = memfd_create("told", MFD_CLOEXEC);

	while (!is_taken_before_its_pages_go(memory))
		;
	close(memory);
}

/* The notice of the first pinleased is still in the old connection, and overdue. */
static void what_the_next_pinleased_has_forced_is_not_forced_again(void **state)
{
	static const char *const soon[] = {"--ceiling", "50", NULL};
	struct pl_event_msg notice;
	struct holder h;
	struct asker c;
	struct actor t;
	uint64_t held;

	a.kept = true;
	for (int i = 0; i < 2; i++) {
		struct lending what = lending_recall(moving[i], 500);

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
		asker_open(&c, &a);
		while (now_ns() <= notice.deadline_ns)
			usleep(1000);
		has_been_forced_once(&h);
		assert_true(h.s->last[PINL_EV_ANSWERED].waited_ns <= held);
		finish(&h, &c);
	}
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
	h.s->leave = 1;
	while (h.s->leave)
		usleep(1000);
	assert_int_equal(h.s->cut, 1);
	assert_int_equal(h.s->events[PINL_EV_ORPHAN], 1);
	assert_int_equal(h.s->events[PINL_EV_ANSWERED], 1);
	finish(&h, &c);
}

/* ------------------------------------------------------------------------------------- grace -- */

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
		cmocka_unit_test(a_stopped_holder_hears_what_it_has_missed),
		cmocka_unit_test(orphans_last_until_the_device_is_off),
		cmocka_unit_test(a_holder_says_of_an_orphan_what_it_knows),
		cmocka_unit_test(orphans_last_over_a_restart),
		cmocka_unit_test(what_was_taken_meanwhile_is_known),
		cmocka_unit_test(parts_that_were_taken_meanwhile_are_known),
		cmocka_unit_test(what_is_taken_afterwards_is_known),
		cmocka_unit_test(nobody_has_waited_for_a_pinleased_that_is_gone),
		cmocka_unit_test(what_was_taken_meanwhile_is_known_where_all_is_kept),
		cmocka_unit_test(who_has_all_connections_he_may_have_comes_back),
		cmocka_unit_test(who_waits_over_a_restart_has_waited_all_the_time),
		cmocka_unit_test(who_waits_for_a_stopped_holder_waits_until_the_force),
		cmocka_unit_test(what_was_taken_before_its_pages_went_is_no_orphan),
		cmocka_unit_test(what_the_next_pinleased_has_forced_is_not_forced_again),
		cmocka_unit_test(what_went_on_with_the_arbiters_end_is_recalled_all_the_same),
		cmocka_unit_test(who_is_let_go_at_the_end_is_said_to_be),
		cmocka_unit_test(a_low_ceiling_leaves_some_grace),
	};

	alarm(HANG_S);
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("told", tests, NULL, NULL);
}
