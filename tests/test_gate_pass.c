/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the gate's programs make of who has been let through or asked for, without pinleased. They run in
 * the VM (vm/jobs/gate*.job).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "check.h"
#include "daemon/gate_load.h"
#include "daemon/gate_stop.h"
#include "gate_rig.h"
#include "os/clock.h"

#define LONG_MS 3600000
#define AT	3 /* a guarded page: 2 and 3 are */

static struct gate_programs *gate;
static struct gate_target target;
static struct gate_file file;
static struct gate_refusal said; /* the last */

static int load(void **state)
{
	if (gate_load(NULL, LONG_MS, &gate))
		gate = NULL;
	return 0;
}

static int unload(void **state)
{
	gate_unload(gate);
	return 0;
}

static void need_waiting(void)
{
	if (gate && !gate_unwaited(gate))
		return;
	print_message("skip: who waits at the gate: %s\n", gate ? gate_unwaited(gate) : pinl_error());
	skip();
}

static const struct gate_op *op_named(const char *name)
{
	unsigned i = 0;

	while (i < gate_n_ops && strcmp(gate_ops[i].name, name))
		i++;
	assert_true(i < gate_n_ops);
	return &gate_ops[i];
}

static void guard(unsigned place, unsigned ops, unsigned waits)
{
	struct gate_range r = {.start = 2 * target.page,
			       .end = 4 * target.page,
			       .ops = ops,
			       .waits = waits,
			       .since_ns = pl_clock_ns()};

	assert_ok(gate_guard(gate, &file, place, &r));
}

static void open_target(void)
{
	need_waiting();
	assert_true(gate_target_open(PLACE_MEMFD, &target));
	assert_ok(gate_identify(gate, target.fd, &file));
	gate_stops(gate)->state->waiting++;
}

static void close_target(unsigned ranges)
{
	while (ranges--)
		assert_ok(gate_unguard(gate, &file, ranges, ranges, NULL));
	gate_stops(gate)->state->waiting--;
	gate_target_close(&target);
}

static void on_said(const struct gate_refusal *r, void *arg)
{
	said = *r;
}

static void await_said(unsigned what, pid_t pid)
{
	struct pollfd p = {.fd = gate_fd(gate), .events = POLLIN};

	said.what = 0;
	while (said.what != what || (pid && said.pid != pid)) {
		assert_int_equal(poll(&p, 1, 60000), 1);
		gate_read(gate, on_said, NULL);
	}
}

static pid_t run(const char *op)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	_exit(-op_named(op)->run(&target, AT * target.page));
}

/* Not if it is at its page. */
static void have_go_on(pid_t pid)
{
	struct pollfd p = {.fd = gate_stops(gate)->page.device, .events = POLLIN};
	struct gate_visit v = {0};

	if (!gate_stop_by_page(gate_stops(gate))) {
		kill(pid, SIGCONT);
		return;
	}
	while (v.thread != pid) {
		assert_int_equal(poll(&p, 1, 60000), 1);
		gate_page_next(&gate_stops(gate)->page, &v);
	}
	gate_page_let_go(&gate_stops(gate)->page, v.id);
}

static int result_of(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return -WEXITSTATUS(status);
}

static pid_t begin(const char *op)
{
	pid_t pid = run(op);

	await_said(GATE_WAITS, pid);
	return pid;
}

static void who_has_a_pass_goes_through(void **state)
{
	pid_t pid;

	open_target();
	guard(0, 0, ~0u);
	pid = begin("punch");
	assert_ok(gate_stop_pass(gate_stops(gate), &said, false));
	have_go_on(pid);
	assert_int_equal(result_of(pid), 0);
	assert_int_equal(target.mem[AT * target.page], 0);
	await_said(GATE_OVER, pid);
	close_target(1);
}

/* It was made when he waited for another. */
static void no_pass_is_good_against_refuse(void **state)
{
	pid_t pid;

	open_target();
	guard(0, 0, ~0u);
	pid = begin("punch");
	guard(1, ~0u, 0);
	assert_ok(gate_stop_pass(gate_stops(gate), &said, false));
	have_go_on(pid);
	assert_int_equal(result_of(pid), -EBUSY);
	assert_int_equal(target.mem[AT * target.page], 7);
	await_said(GATE_OVER, pid); /* so that nothing is kept for him */
	close_target(2);
}

static void without_room_he_is_refused(void **state)
{
	pid_t pid;

	open_target();
	guard(0, 0, ~0u);
	pid = begin("punch");
	assert_ok(gate_stop_pass(gate_stops(gate), &said, true));
	gate_stops(gate)->state->waiting--; /* nobody who has got room waits */
	have_go_on(pid);
	assert_int_equal(result_of(pid), -EBUSY);
	gate_stops(gate)->state->waiting++;
	assert_int_equal(target.mem[AT * target.page], 7);
	close_target(1);
}

/* A process that does it to the pages it is told of, and says what came of it. */
struct ring_user {
	pid_t pid;
	int order, answer;
};

static void ring_user_start(struct ring_user *u)
{
	int order[2], answer[2], page, err;

	assert_int_equal(pipe(order) | pipe(answer), 0);
	u->pid = fork();
	if (!u->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (read(order[0], &page, sizeof page) == sizeof page) {
			err = op_named("io_uring punch")->run(&target, page * target.page);
			if (write(answer[1], &err, sizeof err) != sizeof err)
				break;
		}
		_exit(0);
	}
	close(order[0]);
	close(answer[1]);
	u->order = order[1];
	u->answer = answer[0];
}

static int ring_punch(const struct ring_user *u, int page)
{
	int err;

	assert_int_equal(write(u->order, &page, sizeof page), sizeof page);
	assert_int_equal(read(u->answer, &err, sizeof err), sizeof err);
	return err;
}

static void ring_user_end(struct ring_user *u)
{
	kill(u->pid, SIGKILL);
	waitpid(u->pid, NULL, 0);
	close(u->order);
	close(u->answer);
}

/* By the process, whichever its thread; and against leases from before only. */
static void what_was_asked_for_may_be_made(void **state)
{
	struct gate_refusal another;
	struct ring_user u, other;

	open_target();
	ring_user_start(&u);
	ring_user_start(&other);
	guard(0, 0, ~0u);
	assert_int_equal(ring_punch(&u, AT), -EBUSY);
	await_said(GATE_BUSY, u.pid);
	another = said;
	another.op = PINL_OP_ZERO; /* which may take other pages */
	assert_ok(gate_stop_asked(gate_stops(gate), &another));
	assert_int_equal(ring_punch(&u, AT), -EBUSY);
	await_said(GATE_BUSY, u.pid);
	assert_ok(gate_stop_asked(gate_stops(gate), &said));
	assert_int_equal(ring_punch(&u, AT - 1), -EBUSY);
	assert_int_equal(ring_punch(&other, AT), -EBUSY);
	assert_int_equal(target.mem[AT * target.page], 7);
	assert_int_equal(ring_punch(&u, AT), 0);
	assert_int_equal(target.mem[AT * target.page], 0);
	guard(1, 0, ~0u);
	assert_int_equal(ring_punch(&u, AT), -EBUSY);
	ring_user_end(&u);
	ring_user_end(&other);
	close_target(2);
}

/* Under `pinlease run` leases have been asked by the supervisor, who names it so on every machine. */
static void what_was_asked_for_elsewhere_may_be_made(void **state)
{
	pid_t pid;

	open_target();
	guard(0, 0, ~0u);
	pid = begin("MADV_REMOVE");
	said.op = PINL_OP_REMOVE;
	assert_ok(gate_stop_asked(gate_stops(gate), &said));
	have_go_on(pid);
	assert_int_equal(result_of(pid), 0);
	assert_int_equal(target.mem[AT * target.page], 0);
	close_target(1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(who_has_a_pass_goes_through),
		cmocka_unit_test(no_pass_is_good_against_refuse),
		cmocka_unit_test(without_room_he_is_refused),
		cmocka_unit_test(what_was_asked_for_may_be_made),
		cmocka_unit_test(what_was_asked_for_elsewhere_may_be_made),
	};

	return cmocka_run_group_tests(tests, load, unload);
}
