/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * I6: pinleased is killed and started again. Where its descriptors are kept meanwhile, nobody who waits
 * for a lease goes on, and nothing is forgotten, whether its holder can say so or not.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "arbiter_rig.h"

static struct arbiter a;
static const char *const patient[] = {"--ceiling", "100000", NULL};

static void start(void)
{
	a.kept = true;
	arbiter_start(&a, patient);
}

static void killed_in_a_recall(struct holder *h, struct actor *t)
{
	struct lending what = lending_recall(PINL_THEN_FAIL, 60000);

	start();
	holder_lease(h, &a, &what);
	actor_start(t, &a);
	holder_wait(h, PINL_EV_NOTICE, 1);
	arbiter_kill(&a);
}

static void who_waits_goes_on_waiting(void **state)
{
	struct holder h;
	struct actor t;

	killed_in_a_recall(&h, &t);
	holder_wait(&h, PINL_EV_DEGRADED, 1);
	wait_until_held(t.pid);
	arbiter_restart(&a, patient);
	wait_until_held(t.pid);
	assert_int_equal(arbiter_file_size(&a), SIZE);
	h.s->quiesce = 1;
	assert_int_equal(actor_join(&t), 0);
	assert_int_equal(arbiter_file_size(&a), 0);
	holder_end(&h);
	arbiter_stop(&a);
}

static void who_comes_meanwhile_waits_too(void **state)
{
	struct lending what = lending_recall(PINL_THEN_FAIL, 60000);
	struct holder h;
	struct actor t;

	start();
	holder_lease(&h, &a, &what);
	arbiter_kill(&a);
	actor_start(&t, &a);
	wait_until_held(t.pid);
	arbiter_restart(&a, patient);
	holder_wait(&h, PINL_EV_NOTICE, 1);
	wait_until_held(t.pid);
	h.s->quiesce = 1;
	assert_int_equal(actor_join(&t), 0);
	holder_end(&h);
	arbiter_stop(&a);
}

/* DEGRADED is said where it isn't there again in time, which a busy machine may be slow with: so it is
 * without the gate, whose programs take the most of that time, and which isn't what holds these changes.
 */
static void who_is_guarded_all_the_time_hears_of_no_loss(void **state)
{
	static const char *const quick[] = {"--ceiling", "100000", "--gate", "no", NULL};
	struct lending what = lending_recall(PINL_THEN_FAIL, 60000);
	struct holder h;
	struct actor t;
	int losses = 1;

	for (int i = 0; losses && i < 10; i++) {
		a.kept = true;
		arbiter_start(&a, quick);
		holder_lease(&h, &a, &what);
		arbiter_kill(&a);
		arbiter_restart(&a, quick);
		actor_start(&t, &a);
		holder_wait(&h, PINL_EV_NOTICE, 1);
		h.s->quiesce = 1;
		assert_int_equal(actor_join(&t), 0);
		losses = h.s->events[PINL_EV_DEGRADED];
		holder_end(&h);
		arbiter_stop(&a);
	}
	assert_int_equal(losses, 0);
}

/* It can't register again: what is known of it is in the store, its ring is taken by the number. */
static void a_stopped_holder_is_not_forgotten(void **state)
{
	struct lending what = lending_recall(PINL_THEN_FAIL, 60000);
	struct holder h;
	struct actor t;

	what.uring = true;
	for (int waits = 0; waits < 2; waits++) {
		start();
		holder_lease(&h, &a, &what);
		holder_stop(&h);
		if (waits) {
			actor_start(&t, &a);
			wait_until_held(t.pid);
		}
		arbiter_kill(&a);
		if (!waits)
			actor_start(&t, &a);
		wait_until_held(t.pid);
		assert_int_equal(holder_pinned_kb(&h), SIZE / 1024);
		arbiter_restart(&a, (const char *[]){"--ceiling", "50", NULL});
		assert_int_equal(actor_join(&t), 0);
		assert_int_equal(holder_pinned_down_to(&h, 0), 0);
		kill(h.pid, SIGCONT);
		holder_wait(&h, PINL_EV_RELEASED, 1);
		holder_end(&h);
		arbiter_stop(&a);
	}
}

/* Of a holder that ends meanwhile nothing is left; its file can be changed. */
static void a_holder_that_ends_meanwhile_holds_nobody(void **state)
{
	struct holder h;
	struct actor t;

	killed_in_a_recall(&h, &t);
	kill(h.pid, SIGKILL);
	holder_end(&h);
	wait_until_held(t.pid);
	arbiter_restart(&a, patient);
	assert_int_equal(actor_join(&t), 0);
	arbiter_stop(&a);
}

/* It has nothing to say to the next one any more, but its pins are seen to be gone. */
static void a_holder_that_has_ended_its_leases_meanwhile_holds_nobody(void **state)
{
	struct lending what = lending_recall(PINL_THEN_FAIL, 60000);
	struct holder h;
	struct actor t;

	what.uring = true;
	for (int how = 1; how <= 2; how++) {
		start();
		holder_lease(&h, &a, &what);
		arbiter_kill(&a);
		h.s->leave = how;
		while (h.s->leave)
			usleep(1000);
		actor_start(&t, &a);
		wait_until_held(t.pid);
		arbiter_restart(&a, patient);
		assert_int_equal(actor_join(&t), 0);
		holder_end(&h);
		arbiter_stop(&a);
	}
}

/* A change that never comes closes the range for nobody. */
static void an_actor_that_is_killed_meanwhile_changes_nothing(void **state)
{
	struct lending what = lending_recall(PINL_THEN_FAIL, 60000);
	struct holder h, more;
	struct actor t;

	killed_in_a_recall(&h, &t);
	kill(t.pid, SIGKILL);
	assert_int_equal(waitpid(t.pid, NULL, 0), t.pid);
	close(t.fd);
	arbiter_restart(&a, patient);
	h.s->quiesce = 1;
	holder_wait(&h, PINL_EV_RELEASED, 1);
	holder_end(&h);
	assert_int_equal(arbiter_file_size(&a), SIZE);
	holder_lease(&more, &a, &what);
	holder_end(&more);
	arbiter_stop(&a);
}

/* As many as before: one more than the limit can't be had, and all can be had again when they ended. */
static void no_lease_is_lost_or_doubled(void **state)
{
	static const char *const few[] = {"--max-leases", "8", NULL};
	struct lending what = lending_recall(PINL_THEN_FAIL, 60000), one = what;
	struct holder h, more;

	a.kept = true;
	arbiter_start(&a, few);
	what.leases = 8;
	one.leases = 1;
	holder_lease(&h, &a, &what);
	for (int i = 0; i < 3; i++) {
		arbiter_kill(&a);
		arbiter_restart(&a, few);
		holder_start(&more, &a, &one);
		assert_int_equal(more.s->leased, -EDQUOT);
		holder_end(&more);
	}
	holder_end(&h);
	do {
		holder_start(&h, &a, &what);
		if (h.s->leased == 1)
			break;
		holder_end(&h);
	} while (1);
	holder_end(&h);
	arbiter_stop(&a);
}

/* An orderly end is no end for who waits, if a next start follows: an update. */
static void a_service_that_is_restarted_lets_nobody_go(void **state)
{
	struct lending what = lending_recall(PINL_THEN_FAIL, 60000);
	struct holder h;
	struct actor t;
	int status;

	start();
	holder_lease(&h, &a, &what);
	actor_start(&t, &a);
	holder_wait(&h, PINL_EV_NOTICE, 1);
	kill(a.pid, SIGTERM);
	assert_int_equal(waitpid(a.pid, &status, 0), a.pid);
	assert_int_equal(status, 0);
	wait_until_held(t.pid);
	arbiter_restart(&a, patient);
	h.s->quiesce = 1;
	assert_int_equal(actor_join(&t), 0);
	holder_end(&h);
	arbiter_stop(&a);
}

static void open_means_that_all_go_on(void **state)
{
	static const char *const open_gate[] = {"--after-crash", "open", NULL};
	struct lending what = lending_recall(PINL_THEN_FAIL, 60000);
	struct holder h;
	struct actor t;

	a.kept = true;
	arbiter_start(&a, open_gate);
	holder_lease(&h, &a, &what);
	actor_start(&t, &a);
	holder_wait(&h, PINL_EV_NOTICE, 1);
	arbiter_kill(&a);
	assert_int_equal(actor_join(&t), 0);
	holder_wait(&h, PINL_EV_DEGRADED, 1);
	arbiter_restart(&a, open_gate);
	holder_end(&h);
	arbiter_stop(&a);
}

/* Also where no change of a file can be held, and so nothing is there to be kept. */
static void it_serves_on_every_kernel(void **state)
{
	struct lending what = {.policy = {.size = sizeof what.policy, .kind = PINL_KEEP}};
	struct holder h;

	start();
	holder_lease(&h, &a, &what);
	holder_end(&h);
	arbiter_stop(&a);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(who_waits_goes_on_waiting),
		cmocka_unit_test(who_comes_meanwhile_waits_too),
		cmocka_unit_test(who_is_guarded_all_the_time_hears_of_no_loss),
		cmocka_unit_test(a_stopped_holder_is_not_forgotten),
		cmocka_unit_test(a_holder_that_ends_meanwhile_holds_nobody),
		cmocka_unit_test(a_holder_that_has_ended_its_leases_meanwhile_holds_nobody),
		cmocka_unit_test(an_actor_that_is_killed_meanwhile_changes_nothing),
		cmocka_unit_test(no_lease_is_lost_or_doubled),
		cmocka_unit_test(a_service_that_is_restarted_lets_nobody_go),
		cmocka_unit_test(open_means_that_all_go_on),
		cmocka_unit_test(it_serves_on_every_kernel),
	};

	alarm(HANG_S);
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("restart", tests, NULL, NULL);
}
