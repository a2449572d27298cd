/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Waiting at pinleased's gate (tests/test_gate_wait.c) where something goes wrong, or somebody means it
 * to: nobody is left stopped, nobody's leases are passed by, nobody is refused for ever. It runs in the
 * VM (vm/jobs/gate*.job).
 */
#include "wait_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/capability.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define PUNCH (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)

static int punch(const struct gate_target *t, unsigned page)
{
	return wait_op("punch")->run(t, page * t->page);
}

/* --------------------------------------------------------------------- between the stop and the call --
 */

/* Else the test is skipped: threads that wait alone go on by pinleased's end itself, aren't caught
 * between, and make their calls again all the time while the guard with the pages is replaced. */
static void open_for_stops(void)
{
	wait_open(wait_patient);
	if (!wait_by_page)
		return;
	wait_close();
	print_message("skip: a kernel where processes are stopped\n");
	skip();
}

/* Who is stopped by the gate: he goes no further than pinleased's SIGCONT... */
static void catch (pid_t pid)
{
	int status;

	assert_int_equal(ptrace(PTRACE_SEIZE, pid, 0, 0), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSTOPPED(status));
	assert_int_equal(ptrace(PTRACE_LISTEN, pid, 0, 0), 0);
}

/* ...which has come then... */
static void await_let_go(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status >> 8, SIGTRAP | PTRACE_EVENT_STOP << 8);
}

/* ...until he may make his call. */
static void release(pid_t pid)
{
	assert_int_equal(ptrace(PTRACE_DETACH, pid, 0, 0), 0);
}

static void await_state(pid_t pid)
{
	while (!wait_is_stopped(pid)) /* the runner ends what takes too long */
		usleep(1000);
}

/* He is faster than pinleased, which hears of the end of his first call when he waits in the second. */
static void who_waits_anew_isnt_left_by_a_crash(void **state)
{
	struct pinl_lease *l[2];
	struct gate_target t;
	pid_t pid;

	open_for_stops();
	wait_target(PLACE_MEMFD, &t);
	for (unsigned i = 0; i < 2; i++)
		l[i] = wait_lease(&t, 2 + i, 3 + i, WAIT_NEVER_MS);
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(punch(&t, 2) ? 1 : -punch(&t, 3));
	}
	event_of(wait_ctx, PINL_EV_NOTICE);
	wait_await(pid);
	catch (pid);
	assert_ok(pinl_quiesced(l[0]));
	await_let_go(pid);
	kill(wait_arbiter.pid, SIGSTOP);
	await_state(wait_arbiter.pid);
	release(pid);
	while (t.mem[2 * t.page]) /* the runner ends what takes too long */
		usleep(1000);
	await_state(pid);
	kill(wait_arbiter.pid, SIGCONT);
	event_of(wait_ctx, PINL_EV_NOTICE);
	assert_true(wait_is_stopped(pid));
	arbiter_kill(&wait_arbiter);
	assert_int_equal(wait_result(pid), -EBUSY);
	assert_int_equal(t.mem[3 * t.page], 7);
	arbiter_restart(&wait_arbiter, wait_patient);
	for (unsigned i = 0; i < 2; i++)
		pinl_unmap_range(l[i]);
	gate_target_close(&t);
	wait_close();
}

/* A holder in a process of its own, which ends its lease when it is continued, and says so. */
static pid_t lend(const struct gate_target *t, int said)
{
	int status;
	pid_t pid = fork();

	if (pid) {
		assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
		assert_true(WIFSTOPPED(status));
		return pid;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (wait_ctx_open() || pinl_device_open(wait_ctx, "soft", NULL, &wait_dev))
		_exit(1);
	struct pinl_lease *l = wait_lease(t, 2, 4, WAIT_NEVER_MS);

	raise(SIGSTOP);
	pinl_unmap_range(l);
	if (write(said, "", 1) == 1)
		pause();
	_exit(1);
}

/* The lease for which he waits has ended before pinleased hears of him, and he finds another one. */
static void who_has_waited_for_nothing_waits_for_the_next(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;
	pid_t holder, pid;
	int said[2];
	char byte;

	open_for_stops();
	wait_target(PLACE_MEMFD, &t);
	pinl_close(wait_ctx);
	wait_ctx = NULL;
	assert_int_equal(pipe(said), 0);
	holder = lend(&t, said[1]);
	assert_ok(wait_ctx_open());
	assert_ok(pinl_device_open(wait_ctx, "soft", NULL, &wait_dev));
	kill(wait_arbiter.pid, SIGSTOP);
	await_state(wait_arbiter.pid);
	kill(holder, SIGCONT);
	assert_int_equal(read(said[0], &byte, 1), 1);
	pid = wait_begin(wait_op("punch"), &t, 3);
	wait_await(pid);
	catch (pid);
	kill(wait_arbiter.pid, SIGCONT);
	await_let_go(pid);
	l = wait_lease(&t, 2, 4, WAIT_NEVER_MS);
	release(pid);
	assert_int_equal(event_of(wait_ctx, PINL_EV_NOTICE).actor_pid, pid);
	assert_int_equal(t.mem[3 * t.page], 7);
	assert_ok(pinl_quiesced(l));
	assert_int_equal(wait_result(pid), 0);
	assert_int_equal(t.mem[3 * t.page], 0);
	kill(holder, SIGKILL);
	waitpid(holder, NULL, 0);
	close(said[0]);
	close(said[1]);
	pinl_unmap_range(l);
	gate_target_close(&t);
	wait_close();
}

enum { THREADS = 4, ROUNDS = 12 };

struct rounds {
	const struct gate_target *t;
	pthread_barrier_t *begin, *end;
	unsigned page;
};

static void *punch_each_round(void *arg)
{
	const struct rounds *r = arg;

	for (int i = 0; i < ROUNDS; i++) {
		int err;

		pthread_barrier_wait(r->begin);
		err = punch(r->t, r->page);
		if (err) { /* also one that is no program's to see */
			fprintf(stderr, "a punch of page %u in round %d: error %d\n", r->page, i, -err);
			_exit(1);
		}
		pthread_barrier_wait(r->end);
	}
	return NULL;
}

static __attribute__((noreturn)) void punch_together(const struct gate_target *t,
						     pthread_barrier_t *begin, pthread_barrier_t *end)
{
	struct rounds r[THREADS];
	pthread_t thread;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (unsigned i = 0; i < THREADS; i++) {
		r[i] = (struct rounds){t, begin, end, 2 + i};
		if (pthread_create(&thread, NULL, punch_each_round, &r[i]))
			_exit(1);
	}
	for (;;)
		pause();
}

static pthread_barrier_t *barriers(void)
{
	pthread_barrier_t *b =
		mmap(NULL, 2 * sizeof *b, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_barrierattr_t shared;

	assert_ptr_not_equal(b, MAP_FAILED);
	pthread_barrierattr_init(&shared);
	pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_barrier_init(&b[i], &shared, THREADS + 1), 0);
	return b;
}

/* While one of them may still be in his call nothing is leased, or what is isn't held. */
static struct pinl_lease *lease_when_all_is_over(const struct gate_target *t)
{
	struct pinl_lease_info info = {.size = sizeof info};

	for (;;) {
		struct pinl_lease *l = wait_lease(t, 2, 2 + THREADS, WAIT_NEVER_MS);

		assert_ok(pinl_lease_info(l, &info));
		if (info.supervised[PINL_OP_PUNCH] & PINL_CAN_HOLD)
			return l;
		pinl_unmap_range(l);
	}
}

/* His threads are stopped and continued together, so some are once more than they wait. Nothing of that
 * is left: whom somebody else stops afterwards stays so at pinleased's end, which continues all it knows
 * of. */
static void who_has_gone_on_isnt_continued_later(void **state)
{
	struct gate_target t;
	pthread_barrier_t *b;
	pid_t pid;

	open_for_stops();
	wait_target(PLACE_MEMFD, &t);
	b = barriers();
	pid = fork();
	if (!pid)
		punch_together(&t, &b[0], &b[1]);
	for (int i = 0; i < ROUNDS; i++) {
		struct pinl_lease *l = lease_when_all_is_over(&t);

		pthread_barrier_wait(&b[0]);
		event_of(wait_ctx, PINL_EV_NOTICE);
		wait_await_stop(pid);
		assert_ok(pinl_quiesced(l));
		pthread_barrier_wait(&b[1]);
		pinl_unmap_range(l);
	}
	pinl_unmap_range(lease_when_all_is_over(&t));
	kill(pid, SIGSTOP);
	wait_await_stop(pid);
	wait_close();
	assert_true(wait_is_stopped(pid));
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	munmap(b, 2 * sizeof *b);
	gate_target_close(&t);
}

/* ------------------------------------------------------------------------------- without its guard --
 */

static unsigned soft_limit(pid_t pid, unsigned n)
{
	struct rlimit old, new;

	assert_int_equal(prlimit(pid, RLIMIT_NOFILE, NULL, &old), 0);
	new = old;
	new.rlim_cur = n;
	assert_int_equal(prlimit(pid, RLIMIT_NOFILE, &new, NULL), 0);
	return old.rlim_cur;
}

/* One process until it is done: each that is refused takes of its user's share. */
static pid_t begin_till_it_may(const struct gate_target *t, unsigned page)
{
	pid_t pid = fork();
	int err;

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while ((err = punch(t, page)) == -EBUSY)
		usleep(1000);
	_exit(-err);
}

/* Nobody would continue them after a crash; so who had been stopped goes on. */
static void without_a_guard_nobody_waits(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;
	unsigned before;
	pid_t guard, pid;

	open_for_stops();
	wait_target(PLACE_MEMFD, &t);
	l = wait_lease(&t, 2, 4, WAIT_NEVER_MS);
	guard = wait_guard_of(wait_arbiter.pid);
	assert_true(guard > 0);
	before = soft_limit(wait_arbiter.pid, 3); /* what is open stays */
	kill(guard, SIGKILL);
	while (wait_guard_of(wait_arbiter.pid) == guard) /* the runner ends what takes too long */
		usleep(1000);
	assert_int_equal(wait_guard_of(wait_arbiter.pid), 0);
	assert_int_equal(wait_result(wait_begin(wait_op("punch"), &t, 3)), -EBUSY);
	soft_limit(wait_arbiter.pid, before);
	pid = begin_till_it_may(&t, 2);
	wait_await(pid);
	assert_true(wait_others_do());
	assert_ok(pinl_quiesced(l));
	assert_int_equal(wait_result(pid), 0);
	pinl_unmap_range(l);
	gate_target_close(&t);
	wait_close();
}

/* --------------------------------------------------------------------------------- for all time -- */

/* That a change was let go without him. */
static bool hears_of_it(void)
{
	struct pollfd p = {.fd = pinl_fd(wait_ctx), .events = POLLIN};
	struct pinl_event ev = {.size = sizeof ev};

	for (;;) {
		while (!pinl_next_event(wait_ctx, &ev))
			if (ev.type == PINL_EV_DEGRADED && ev.err == -EINTR)
				return true;
		poll(&p, 1, -1);
	}
}

/* A holder that doesn't answer, in a process of its own. */
static pid_t leave_to_another(const struct gate_target *t)
{
	int status;
	pid_t pid;

	pinl_close(wait_ctx);
	wait_ctx = NULL;
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (wait_ctx_open() || pinl_device_open(wait_ctx, "soft", NULL, &wait_dev))
			_exit(1);
		wait_lease(t, 2, 4, WAIT_NEVER_MS);
		raise(SIGSTOP);
		_exit(!hears_of_it());
	}
	assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
	assert_true(WIFSTOPPED(status));
	return pid;
}

static void end_other(pid_t pid)
{
	kill(pid, SIGCONT);
	assert_int_equal(wait_result(pid), 0);
	assert_ok(wait_ctx_open());
}

/* The same process, again and again, a while apart. */
static int ring_punch_until_done(const struct gate_target *t, unsigned page)
{
	int err;

	while ((err = wait_op("io_uring punch")->run(t, page * t->page)) == -EBUSY)
		usleep(100000); /* the runner ends what takes too long */
	return -err;
}

static int ring_user(const struct gate_target *t, unsigned page)
{
	pid_t pid = fork();

	if (pid)
		return wait_result(pid);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	_exit(ring_punch_until_done(t, page));
}

static void nobody_is_refused_beyond_the_ceiling(void **state)
{
	struct gate_target t;
	pid_t holder;

	wait_open(wait_hasty);
	wait_target(PLACE_MEMFD, &t);
	holder = leave_to_another(&t);
	assert_int_equal(ring_user(&t, 3), 0);
	assert_int_equal(t.mem[3 * t.page], 0);
	end_other(holder);
	gate_target_close(&t);
	wait_close();
}

/* The rest of its lease is still there. */
static void nobody_is_refused_what_was_taken(void **state)
{
	struct pinl_policy p = {.size = sizeof p, .kind = PINL_RECALL, .then = PINL_THEN_SCRATCH};
	struct gate_target t;
	struct pinl_lease *l;
	uintptr_t at;

	wait_open(wait_patient);
	wait_target(PLACE_MEMFD, &t);
	at = (uintptr_t)t.mem;
	assert_ok(pinl_map_range(wait_dev, at + 2 * t.page, at + 4 * t.page,
				 PINL_WRITE | PINL_COOPERATIVE, &p, NULL, &l));
	for (int i = 0; i < 2; i++)
		assert_int_equal(ring_user(&t, 3), 0);
	pinl_unmap_range(l);
	gate_target_close(&t);
	wait_close();
}

/* ----------------------------------------------------------------------------------- too many -- */

#define FLOOD 4100 /* more than wait at a time */

/* Each is another change, that nobody waits for. */
static int flood(const struct gate_target *t)
{
	struct io_uring_cqe *cqe;
	struct io_uring_sqe *sqe;
	struct io_uring ring;
	int err = io_uring_queue_init(4, &ring, 0);

	for (unsigned i = 0; !err && i < FLOOD; i++) {
		sqe = io_uring_get_sqe(&ring);
		io_uring_prep_fallocate(sqe, t->fd, PUNCH, (2 + i % 2) * t->page, t->page);
		io_uring_submit(&ring);
		err = io_uring_wait_cqe(&ring, &cqe);
		if (!err && cqe->res != -EBUSY)
			err = -EPROTO;
		io_uring_cqe_seen(&ring, cqe);
	}
	return -err;
}

static void a_user_doesnt_take_all_the_room(void **state)
{
	struct gate_target his, t;
	struct pinl_lease *l[2];
	pid_t pid;

	wait_open(wait_patient);
	wait_target(PLACE_MEMFD, &his);
	wait_target(PLACE_MEMFD, &t);
	l[0] = wait_lease(&his, 2, 4, WAIT_NEVER_MS);
	l[1] = wait_lease(&t, 2, 4, WAIT_NEVER_MS);
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(setuid(12345) ? errno : flood(&his));
	}
	assert_int_equal(wait_result(pid), 0);
	pid = wait_begin(wait_op("punch"), &t, 3);
	wait_await(pid);
	assert_int_equal(t.mem[3 * t.page], 7);
	while (event_of(wait_ctx, PINL_EV_NOTICE).actor_pid != pid)
		;
	assert_false(wait_has_ended(pid));
	assert_ok(pinl_quiesced(l[1]));
	assert_int_equal(wait_result(pid), 0);
	assert_int_equal(t.mem[3 * t.page], 0);
	for (unsigned i = 0; i < 2; i++)
		pinl_unmap_range(l[i]);
	gate_target_close(&his);
	gate_target_close(&t);
	wait_close();
}

/* ---------------------------------------------------------------------------------- what is said -- */

static bool is_said_to_wait(pid_t pid)
{
	char said[8192], who[40];

	wait_status(said, sizeof said);
	snprintf(who, sizeof who, " waits process %d ", pid);
	return strstr(said, who);
}

/* The recall goes on for all three. */
static void only_who_waits_is_said_to(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;
	pid_t refused, waits;

	wait_open(wait_patient);
	wait_target(PLACE_MEMFD, &t);
	l = wait_lease(&t, 2, 4, WAIT_NEVER_MS);
	refused = wait_begin(wait_op("io_uring punch"), &t, 3);
	assert_int_equal(wait_result(refused), -EBUSY);
	event_of(wait_ctx, PINL_EV_NOTICE);
	assert_false(is_said_to_wait(refused));
	waits = wait_begin(wait_op("punch"), &t, 2);
	wait_await(waits);
	while (!is_said_to_wait(waits)) /* the runner ends what takes too long */
		;
	assert_false(is_said_to_wait(refused));
	kill(waits, SIGKILL);
	assert_int_equal(waitpid(waits, NULL, 0), waits);
	while (is_said_to_wait(waits))
		;
	assert_ok(pinl_quiesced(l));
	pinl_unmap_range(l);
	gate_target_close(&t);
	wait_close();
}

/* ------------------------------------------------------------------------------ without the right -- */

/* The last: no pinleased after it has it. Who waits alone is not stopped, and needn't be continued. */
static void who_couldnt_be_continued_isnt_stopped(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;
	pid_t pid;

	wait_open(wait_patient);
	wait_close();
	if (prctl(PR_CAPBSET_DROP, CAP_KILL, 0, 0, 0)) {
		print_message("skip: root\n");
		skip();
	}
	arbiter_start(&wait_arbiter, wait_patient);
	assert_ok(wait_ctx_open());
	assert_ok(pinl_device_open(wait_ctx, "soft", NULL, &wait_dev));
	wait_target(PLACE_MEMFD, &t);
	l = wait_lease(&t, 2, 4, WAIT_NEVER_MS);
	assert_int_equal(wait_others_do(), wait_by_page);
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(setuid(12345) ? errno : -punch(&t, 3));
	}
	if (wait_by_page) {
		event_of(wait_ctx, PINL_EV_NOTICE);
		assert_ok(pinl_quiesced(l));
	}
	assert_int_equal(wait_result(pid), 0);
	pinl_unmap_range(l);
	gate_target_close(&t);
	wait_close();
}

#define TEST(name) cmocka_unit_test_teardown(name, wait_teardown)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		TEST(who_waits_anew_isnt_left_by_a_crash),
		TEST(who_has_waited_for_nothing_waits_for_the_next),
		TEST(who_has_gone_on_isnt_continued_later),
		TEST(without_a_guard_nobody_waits),
		TEST(nobody_is_refused_beyond_the_ceiling),
		TEST(nobody_is_refused_what_was_taken),
		TEST(a_user_doesnt_take_all_the_room),
		TEST(only_who_waits_is_said_to),
		TEST(who_couldnt_be_continued_isnt_stopped),
	};

	setenv("PINLEASE_COMMAND", argc > 1 ? argv[1] : "pinlease", 0);
	if (argc > 2)
		cmocka_set_test_filter(argv[2]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
