/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The arbiter between processes: who changes a file waits for every holder of it, also for one that
 * doesn't answer, and not longer; and neither side is harmed by the end of the arbiter or of a holder.
 */
#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "arbiter_rig.h"

static struct arbiter a;

/* ------------------------------------------------------------------------------ several processes -- */

static void every_holder_is_waited_for(void **state)
{
	struct lending what = lending_recall(PINL_THEN_FAIL, 60000);
	struct holder h[3];
	struct actor t;

	arbiter_start(&a, (const char *[]){"--ceiling", "100000", NULL});
	for (int i = 0; i < 3; i++) {
		holder_lease(&h[i], &a, &what);
	}
	actor_start(&t, &a);
	for (int i = 0; i < 3; i++)
		holder_wait(&h[i], PINL_EV_NOTICE, 1);
	for (int i = 0; i < 3; i++) {
		assert_true(actor_waits(&t));
		assert_int_equal(arbiter_file_size(&a), SIZE);
		h[i].s->quiesce = 1;
		holder_wait(&h[i], PINL_EV_RELEASED, 1);
	}
	assert_int_equal(actor_join(&t), 0);
	assert_int_equal(arbiter_file_size(&a), 0);
	for (int i = 0; i < 3; i++)
		holder_end(&h[i]);
	arbiter_stop(&a);
}

static void one_refusal_leaves_the_others_alone(void **state)
{
	struct lending refuse = {.policy = {.size = sizeof refuse.policy,
					    .kind = PINL_REFUSE,
					    .refuse = PINL_OPBIT(PINL_OP_TRUNCATE)}},
		       keep = lending_recall(PINL_THEN_FAIL, 60000);
	struct holder h[2];
	struct actor t;

	arbiter_start(&a, NULL);
	holder_start(&h[0], &a, &keep);
	holder_start(&h[1], &a, &refuse);
	holder_assert_leased(&h[0]);
	holder_assert_leased(&h[1]);
	actor_start(&t, &a);
	assert_int_equal(actor_join(&t), -EBUSY);
	holder_wait(&h[1], PINL_EV_REFUSED, 1);
	assert_int_equal(arbiter_file_size(&a), SIZE);
	assert_int_equal(h[0].s->events[PINL_EV_NOTICE], 0);
	holder_end(&h[1]);
	holder_end(&h[0]);
	arbiter_stop(&a);
}

static void what_is_kept_is_said_to_be_lost(void **state)
{
	struct lending keep = {.policy = {.size = sizeof keep.policy, .kind = PINL_KEEP}, .uring = true};
	struct holder h;
	struct actor t;

	arbiter_start(&a, NULL);
	holder_lease(&h, &a, &keep);
	actor_start(&t, &a);
	assert_int_equal(actor_join(&t), 0);
	holder_wait(&h, PINL_EV_ORPHAN, 1);
	holder_end(&h);
	arbiter_stop(&a);
}

/* ------------------------------------------------------------------------------------ force (R17) -- */

/* B2: its pins are gone, and the change has been made, before it moves again. */
static void a_stopped_holder_is_forced(void **state)
{
	struct lending what = lending_recall(PINL_THEN_FAIL, 50);
	struct holder h;
	struct actor t;

	what.uring = true;
	arbiter_start(&a, (const char *[]){"--ceiling", "100000", NULL});
	holder_lease(&h, &a, &what);
	assert_int_equal(holder_pinned_kb(&h), SIZE / 1024);
	holder_stop(&h);
	actor_start(&t, &a);
	assert_int_equal(actor_join(&t), 0);
	assert_int_equal(arbiter_file_size(&a), 0);
	assert_int_equal(holder_pinned_down_to(&h, 0), 0);
	kill(h.pid, SIGCONT);
	holder_wait(&h, PINL_EV_RELEASED, 1);
	holder_end(&h);
	arbiter_stop(&a);
}

/* Also with requests in flight, which end only when they are cancelled. */
static void stopped_holders_are_forced_together(void **state)
{
	struct lending what = lending_recall(PINL_THEN_FAIL, 50);
	struct holder h[8];
	struct actor t;

	what.uring = what.flight = true;
	arbiter_start(&a, (const char *[]){"--ceiling", "100000", NULL});
	for (int i = 0; i < 8; i++) {
		holder_lease(&h[i], &a, &what);
		holder_stop(&h[i]);
	}
	actor_start(&t, &a);
	assert_int_equal(actor_join(&t), 0);
	for (int i = 0; i < 8; i++)
		assert_int_equal(holder_pinned_down_to(&h[i], 0), 0);
	for (int i = 0; i < 8; i++) {
		kill(h[i].pid, SIGCONT);
		holder_wait(&h[i], PINL_EV_RELEASED, 1);
		holder_end(&h[i]);
	}
	arbiter_stop(&a);
}

/* SCRATCH: the device goes on, in memory of no meaning; nothing is ever copied from there. */
static void a_stopped_holder_gets_scratch(void **state)
{
	struct lending what = lending_recall(PINL_THEN_COPY, 50);
	struct holder h;
	struct actor t;

	what.uring = true;
	arbiter_start(&a, (const char *[]){"--ceiling", "100000", NULL});
	holder_lease(&h, &a, &what);
	holder_stop(&h);
	actor_start(&t, &a);
	assert_int_equal(actor_join(&t), 0);
	assert_int_equal(holder_pinned_down_to(&h, SIZE / 1024), SIZE / 1024);
	kill(h.pid, SIGCONT);
	holder_wait(&h, PINL_EV_RELEASED, 1);
	holder_end(&h);
	arbiter_stop(&a);
}

static bool has_its_turn_before(const char *ceiling, unsigned drain_ms)
{
	struct lending what = lending_recall(PINL_THEN_SCRATCH, 60000);
	struct holder h;
	struct actor t;
	bool had;

	what.uring = true;
	what.drain_ms = drain_ms;
	arbiter_start(&a, (const char *[]){"--ceiling", ceiling, NULL});
	holder_lease(&h, &a, &what);
	actor_start(&t, &a);
	assert_int_equal(actor_join(&t), 0);
	holder_wait(&h, PINL_EV_RELEASED, 1);
	had = h.s->events[PINL_EV_FORCED] == 1 && h.s->outcome == PINL_OUT_SCRATCH;
	holder_end(&h);
	arbiter_stop(&a);
	return had;
}

/* A lower ceiling shortens its grace; from outside its memory could only be taken away. On a slow
 * machine its turn must be longer. */
static void a_holder_that_runs_has_its_turn_before_the_ceiling(void **state)
{
	if (!has_its_turn_before("4000", 1000))
		assert_true(has_its_turn_before("50000", 25000));
}

/* A ring that takes orders from its own task only: the change waits for the ceiling and a grace. */
static void a_ring_that_cant_be_forced_is_cut(void **state)
{
	struct lending what = lending_recall(PINL_THEN_FAIL, 20);
	struct holder h;
	struct actor t;

	arbiter_start(&a, (const char *[]){"--ceiling", "300", NULL});
	holder_start(&h, &a, &what); /* the soft device has no handle at all */
	holder_assert_leased(&h);
	holder_stop(&h);
	actor_start(&t, &a);
	assert_int_equal(actor_join(&t), 0);
	kill(h.pid, SIGCONT);
	holder_end(&h);
	arbiter_stop(&a);
}

/* -------------------------------------------------------------------------------- deaths (I6) -- */

static void a_dead_holder_holds_nobody(void **state)
{
	struct lending what = lending_recall(PINL_THEN_FAIL, 60000);
	struct holder h;
	struct actor t;

	for (int uring = 0; uring < 2; uring++) {
		what.uring = uring;
		arbiter_start(&a, (const char *[]){"--ceiling", "100000", NULL});
		holder_lease(&h, &a, &what);
		actor_start(&t, &a);
		holder_wait(&h, PINL_EV_NOTICE, 1);
		kill(h.pid, SIGKILL);
		assert_int_equal(actor_join(&t), 0);
		holder_end(&h);
		arbiter_stop(&a);
	}
}

static void an_actor_killed_while_it_waits_changes_nothing(void **state)
{
	struct lending what = lending_recall(PINL_THEN_FAIL, 60000);
	struct holder h;
	struct actor t;
	int status;

	arbiter_start(&a, (const char *[]){"--ceiling", "100000", NULL});
	holder_lease(&h, &a, &what);
	actor_start(&t, &a);
	holder_wait(&h, PINL_EV_NOTICE, 1);
	kill(t.pid, SIGKILL);
	assert_int_equal(waitpid(t.pid, &status, 0), t.pid);
	close(t.fd);
	assert_int_equal(arbiter_file_size(&a), SIZE);
	h.s->quiesce = 1;
	holder_wait(&h, PINL_EV_RELEASED, 1);
	holder_end(&h);
	arbiter_stop(&a);
}

/* Without systemd's fd store the kernel lets everybody go; who holds is told, and comes back by itself.
 */
static void a_restarted_arbiter_knows_every_lease(void **state)
{
	struct lending what = lending_recall(PINL_THEN_FAIL, 60000);
	struct holder h;
	struct actor t;
	int err = 0;

	arbiter_start(&a, NULL);
	holder_lease(&h, &a, &what);
	arbiter_kill(&a);
	holder_wait(&h, PINL_EV_DEGRADED, 1);
	arbiter_restart(&a, NULL);
	holder_wait(&h, PINL_EV_DEGRADED, 1);
	do { /* until it has heard of the leases, which takes less than a second; a dead one's gate
		refuses */
		actor_start(&t, &a);
		while (actor_waits(&t) && !h.s->events[PINL_EV_NOTICE])
			usleep(1000);
		if (!h.s->events[PINL_EV_NOTICE])
			err = actor_join(&t);
	} while (!h.s->events[PINL_EV_NOTICE] && (!err || err == -EBUSY) && !truncate(a.file, SIZE));
	holder_wait(&h, PINL_EV_NOTICE, 1);
	kill(h.pid, SIGKILL);
	while ((err = actor_join(&t)) == -EBUSY) /* the dead one's gate again */
		actor_start(&t, &a);
	assert_int_equal(err, 0);
	holder_end(&h);
	arbiter_stop(&a);
}

/* ----------------------------------------------------------------------------------- limits (I7) -- */

/* One in memory is leased beyond the limit as without pinleased, which can't keep its holder's changes
 * from it anyway. */
static void needs_a_file_on_disk(void)
{
	struct statfs fs;

	assert_int_equal(statfs(a.file, &fs), 0);
	if (fs.f_type != TMPFS_MAGIC)
		return;
	print_message("skip: a file on a disk\n");
	skip();
}

static void a_user_has_so_many_leases_and_no_more(void **state)
{
	struct lending what = lending_recall(PINL_THEN_FAIL, 100);
	struct holder h;

	arbiter_start(&a, (const char *[]){"--max-leases", "3", NULL});
	needs_a_file_on_disk();
	what.leases = 4;
	holder_start(&h, &a, &what);
	while (h.s->leased == 1 && !h.s->connected) { /* not served in time: it watches itself */
		holder_end(&h);
		holder_start(&h, &a, &what);
	}
	if (h.s->leased != -EDQUOT)
		holder_assert_leased(&h);
	assert_int_equal(h.s->leased, -EDQUOT);
	assert_non_null(strstr(h.s->error, "3"));
	holder_end(&h);
	what.leases = 3;
	do { /* the dead holder's are given back when they have ended */
		holder_start(&h, &a, &what);
		if (h.s->leased == 1)
			break;
		holder_end(&h);
	} while (1);
	holder_end(&h);
	arbiter_stop(&a);
}

static void no_answer_is_waited_for_beyond_the_ceiling(void **state)
{
	struct lending what = lending_recall(PINL_THEN_FAIL, 100000);
	struct holder h;
	struct actor t;

	arbiter_start(&a, (const char *[]){"--ceiling", "50", NULL});
	holder_lease(&h, &a, &what);
	holder_stop(&h);
	actor_start(&t, &a);
	assert_int_equal(actor_join(&t), 0);
	kill(h.pid, SIGCONT);
	holder_end(&h);
	arbiter_stop(&a);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_holder_is_waited_for),
		cmocka_unit_test(one_refusal_leaves_the_others_alone),
		cmocka_unit_test(what_is_kept_is_said_to_be_lost),
		cmocka_unit_test(a_stopped_holder_is_forced),
		cmocka_unit_test(stopped_holders_are_forced_together),
		cmocka_unit_test(a_stopped_holder_gets_scratch),
		cmocka_unit_test(a_holder_that_runs_has_its_turn_before_the_ceiling),
		cmocka_unit_test(a_ring_that_cant_be_forced_is_cut),
		cmocka_unit_test(a_dead_holder_holds_nobody),
		cmocka_unit_test(an_actor_killed_while_it_waits_changes_nothing),
		cmocka_unit_test(a_restarted_arbiter_knows_every_lease),
		cmocka_unit_test(a_user_has_so_many_leases_and_no_more),
		cmocka_unit_test(no_answer_is_waited_for_beyond_the_ceiling),
	};

	alarm(HANG_S);
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("arbiter", tests, NULL, NULL);
}
