/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Recalls that nobody's change has caused, in holders that use the library: pinlease recall ($PINLEASE)
 * asks, the library answers as it would to a change, for that lease alone and whatever its policy.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "arbiter_rig.h"
#include "core/order.h"

#define PATIENT 60000 /* ms, for a holder's library to force: else it is forced from outside then */

static struct arbiter a;

static struct lending lending(enum pinl_policy_kind kind, enum pinl_then then, unsigned grace_ms)
{
	return (struct lending){.policy = {.size = sizeof(struct pinl_policy),
					   .kind = kind,
					   .then = then,
					   .grace_ms = grace_ms}};
}

/* Where no change is held, pinleased isn't told of leases. */
static void holder_of(struct holder *h, const struct lending *what)
{
	skip_unless_changes_are_held();
	arbiter_start(&a, (const char *[]){"--ceiling", "100000", NULL});
	holder_lease(h, &a, what);
}

static FILE *command(const char *options)
{
	char line[512];
	FILE *f;

	snprintf(line, sizeof line, "PINLEASE_SOCKET=%s %s recall --file %s %s", a.socket,
		 getenv("PINLEASE"), a.file, options);
	f = popen(line, "re");
	assert_non_null(f);
	return f;
}

/* It has ended with `status`, and its last line has `words`. */
static void assert_said(FILE *f, int status, const char *words)
{
	char line[512] = "";
	int got;

	while (fgets(line, sizeof line, f))
		;
	got = pclose(f);
	if (!WIFEXITED(got) || WEXITSTATUS(got) != status || !strstr(line, words))
		fail_msg("status %#x, %s", got, line);
}

static void done(struct holder *h)
{
	holder_end(h);
	arbiter_stop(&a);
}

static void the_holder_is_told_and_answers(void **state)
{
	struct lending what = lending(PINL_RECALL, PINL_THEN_FAIL, 60000);
	struct holder h;
	FILE *f;

	holder_of(&h, &what);
	f = command("");
	holder_wait(&h, PINL_EV_NOTICE, 1);
	h.s->quiesce = 1;
	assert_said(f, 0, " quiesced ");
	assert_int_equal(h.s->events[PINL_EV_FORCED], 0);
	assert_int_equal(h.s->events[PINL_EV_ORPHAN], 0);
	done(&h);
}

static void who_does_not_answer_is_forced_by_his_own_library(void **state)
{
	struct lending what = lending(PINL_RECALL, PINL_THEN_COPY, 60000);
	struct holder h;

	what.uring = true;
	what.drain_ms = PATIENT;
	holder_of(&h, &what);
	assert_said(command("--grace 1"), 0, " forced to a copy ");
	holder_wait(&h, PINL_EV_RELEASED, 1);
	assert_int_equal(h.s->events[PINL_EV_NOTICE], 1);
	assert_int_equal(h.s->events[PINL_EV_FORCED], 1);
	done(&h);
}

static void the_other_leases_of_the_process_are_left_alone(void **state)
{
	struct lending what = lending(PINL_RECALL, PINL_THEN_FAIL, 60000);
	struct holder h;

	what.leases = 3;
	what.drain_ms = PATIENT;
	holder_of(&h, &what);
	assert_said(command("--range 4096-8192 --force"), 0, " forced to fail ");
	holder_wait(&h, PINL_EV_RELEASED, 1);
	assert_int_equal(h.s->events[PINL_EV_RELEASED], 1);
	assert_int_equal(h.s->events[PINL_EV_NOTICE], 1);
	done(&h);
}

static void a_kept_lease_is_taken_by_force_only(void **state)
{
	struct lending what = lending(PINL_KEEP, PINL_THEN_FAIL, 0);
	struct holder h;

	what.uring = true;
	what.drain_ms = PATIENT;
	holder_of(&h, &what);
	assert_said(command(""), 4, " kept by policy ");
	assert_int_equal(h.s->events[PINL_EV_NOTICE], 0);
	assert_true(holder_pinned_kb(&h) > 0);
	assert_said(command("--force"), 0, " forced to fail ");
	assert_true(holder_pinned_down_to(&h, 0) <=
		    0); /* a page that the ring was tried with may have been counted */
	assert_int_equal(h.s->events[PINL_EV_ORPHAN], 0);
	done(&h);
}

static void a_stopped_holder_is_forced_from_outside(void **state)
{
	struct lending what = lending(PINL_RECALL, PINL_THEN_FAIL, 50);
	struct holder h;

	what.uring = true;
	holder_of(&h, &what);
	holder_stop(&h);
	assert_said(command(""), 0, " forced from outside ");
	assert_true(holder_pinned_down_to(&h, 0) <= 0);
	kill(h.pid, SIGCONT);
	done(&h);
}

/* It has no connection then, and can't make one. */
static void a_stopped_holder_of_before_is_forced_too(void **state)
{
	struct lending what = lending(PINL_RECALL, PINL_THEN_FAIL, 50);
	struct holder h;

	what.uring = true;
	a.kept = true;
	holder_of(&h, &what);
	holder_stop(&h);
	arbiter_kill(&a);
	arbiter_restart(&a, (const char *[]){"--ceiling", "100000", NULL});
	assert_said(command(""), 0, " forced from outside ");
	assert_true(holder_pinned_down_to(&h, 0) <= 0);
	kill(h.pid, SIGCONT);
	done(&h);
	a.kept = false;
}

/* ------------------------------------------------------------------------------------- by itself -- */

static void answered(struct pinl_change *ch, int err)
{
	*(bool *)ch->arg = true;
}

/* Nothing is said to be released that only its holder can take off. */
static void a_device_that_cant_be_revoked_is_left_alone(void **state)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1, .sources = PINL_SOURCE_UFFD};
	struct pinl_soft_arg soft = {.size = sizeof soft, .device_class = PINL_DEV_NONE + 1};
	struct pinl_policy keep = {.size = sizeof keep, .kind = PINL_KEEP};
	int fd = memfd_create("order", MFD_CLOEXEC);
	struct pl_order_result result;
	struct pinl_device *dev;
	struct pinl_lease *l;
	struct pl_order order;
	struct pinl_ctx *ctx;
	bool told = false;
	char *va;

	assert_int_equal(ftruncate(fd, PG), 0);
	va = mmap(NULL, PG, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_ok(pinl_open(&opts, &ctx));
	assert_ok(pinl_device_open(ctx, "soft", &soft, &dev));
	assert_ok(pinl_map_range(dev, (uintptr_t)va, (uintptr_t)va + PG, PINL_PIN, &keep, NULL, &l));
	pl_order_init(&order, l, 0, UINT64_MAX, true);
	order.change.answer = answered;
	order.change.arg = &told;
	pinl_change_submit(ctx, &order.change);
	assert_true(told);
	pl_order_result(ctx, &order, &result);
	assert_int_not_equal(result.err, 0);
	assert_int_equal(l->state, PINL_ACTIVE);
	pinl_close(ctx);
	munmap(va, PG);
	close(fd);
}

/* An order without a deadline has no time: that of a lease that was forced from outside. */
static void an_order_at_once_grants_no_grace(void **state)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1, .sources = PINL_SOURCE_UFFD};
	struct lending what = lending(PINL_RECALL, PINL_THEN_FAIL, 60000);
	struct pinl_event ev = {.size = sizeof ev};
	int fd = memfd_create("order", MFD_CLOEXEC);
	struct pinl_device *dev;
	struct pinl_lease *l;
	struct pl_order order;
	struct pinl_ctx *ctx;
	bool told = false;
	char *va;

	assert_int_equal(ftruncate(fd, PG), 0);
	va = mmap(NULL, PG, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_ok(pinl_open(&opts, &ctx));
	assert_ok(pinl_device_open(ctx, "soft", NULL, &dev));
	assert_ok(pinl_map_range(dev, (uintptr_t)va, (uintptr_t)va + PG, PINL_PIN | PINL_COOPERATIVE,
				 &what.policy, NULL, &l));
	pl_order_init(&order, l, 0, UINT64_MAX, true);
	order.change.answer = answered;
	order.change.arg = &told;
	pinl_change_submit(ctx, &order.change);
	do
		assert_int_equal(pinl_next_event(ctx, &ev), 0);
	while (ev.type != PINL_EV_NOTICE);
	assert_true(ev.deadline_ns <= ev.time_ns);
	pinl_close(ctx);
	munmap(va, PG);
	close(fd);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_holder_is_told_and_answers),
		cmocka_unit_test(who_does_not_answer_is_forced_by_his_own_library),
		cmocka_unit_test(the_other_leases_of_the_process_are_left_alone),
		cmocka_unit_test(a_kept_lease_is_taken_by_force_only),
		cmocka_unit_test(a_stopped_holder_is_forced_from_outside),
		cmocka_unit_test(a_stopped_holder_of_before_is_forced_too),
		cmocka_unit_test(a_device_that_cant_be_revoked_is_left_alone),
		cmocka_unit_test(an_order_at_once_grants_no_grace),
	};

	alarm(HANG_S);
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("order", tests, NULL, NULL);
}
