/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * RECALL on files in memory, where fanotify sees nothing: whoever changes one waits for its lease, by
 * pinleased's gate; and who can't wait is refused, and not again. Needs a kernel that lets BPF programs
 * in front of its functions (vm/jobs/gate*.job).
 */
#include "wait_rig.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define AT     3 /* a leased page: 2 and 3 are */
#define BEYOND 5

static struct pinl_lease *lease(const struct gate_target *t)
{
	return wait_lease(t, 2, 4, WAIT_NEVER_MS);
}

static void assert_untouched(const struct gate_target *t)
{
	struct stat st;

	assert_int_equal(fstat(t->fd, &st), 0);
	assert_int_equal(st.st_size, GATE_PAGES * t->page);
	for (size_t i = 2 * t->page; i < 4 * t->page; i += t->page)
		assert_int_equal(t->mem[i], 7);
}

/* The page has gone, with the file's end or alone. */
static void assert_gone(const struct gate_target *t)
{
	char byte = 7;

	assert_true(pread(t->fd, &byte, 1, AT * t->page) == 0 || !byte);
}

/* ------------------------------------------------------------------------------------- the tests -- */

static const char *const ways[] = {"ftruncate", "truncate", "open O_TRUNC", "punch", "MADV_REMOVE"};

static void check_way(enum gate_place place, const struct gate_op *op)
{
	struct gate_target t;
	struct pinl_lease *l;
	struct pinl_event ev;
	pid_t pid;

	wait_target(place, &t);
	l = lease(&t);
	if (!op->all)
		assert_int_equal(wait_result(wait_begin(op, &t, BEYOND)), 0);
	pinl_unmap_range(l);
	gate_target_close(&t);
	wait_target(place, &t);
	l = lease(&t);
	pid = wait_begin(op, &t, AT);
	ev = event_of(wait_ctx, PINL_EV_NOTICE);
	assert_int_equal(ev.actor_pid, pid);
	assert_string_equal(ev.source, "gate");
	wait_await(pid);
	assert_untouched(&t);
	assert_ok(pinl_quiesced(l));
	assert_int_equal(wait_result(pid), 0);
	assert_gone(&t);
	pinl_unmap_range(l);
	gate_target_close(&t);
}

static void check_place(enum gate_place place)
{
	struct gate_target t;

	wait_target(place, &t);
	gate_target_close(&t);
	wait_open(wait_patient);
	for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
		check_way(place, wait_op(ways[i]));
	wait_close();
}

static void who_changes_a_memfd_waits(void **state)
{
	check_place(PLACE_MEMFD);
}

static void who_changes_hugetlbfs_waits(void **state)
{
	check_place(PLACE_HUGE);
}

static void who_changes_a_tmpfs_file_waits(void **state)
{
	check_place(PLACE_TMPFS);
}

/* And it says so; but not that it is held for its own process, so no policy counts on it. */
static void the_lease_says_who_is_held(void **state)
{
	struct pinl_lease_info info = {.size = sizeof info};
	struct gate_target t;
	struct pinl_lease *l;
	char text[2048];

	wait_open(wait_patient);
	wait_target(PLACE_MEMFD, &t);
	l = lease(&t);
	assert_ok(pinl_lease_info(l, &info));
	assert_false(info.coverage[PINL_OP_TRUNCATE] & PINL_CAN_HOLD);
	assert_int_equal(info.supervised[PINL_OP_TRUNCATE] & ~15, 0);
	assert_true(info.supervised[PINL_OP_TRUNCATE] & PINL_CAN_HOLD);
	pinl_lease_describe(l, text, sizeof text);
	assert_non_null(strstr(text, "held where made by another process: truncate, punch"));
	pinl_unmap_range(l);
	gate_target_close(&t);
	wait_close();
}

static bool is_said_of(pid_t pid)
{
	char said[16384], what[64];

	wait_status(said, sizeof said);
	snprintf(what, sizeof what, " waits process %d ", pid);
	if (!strstr(said, what))
		return false;
	assert_non_null(strstr(said, ", at the gate: punch of /memfd:"));
	snprintf(what, sizeof what, " (%d) ", getpid());
	assert_non_null(strstr(said, what));
	return true;
}

/* Who wonders why his program stands still. */
static void status_names_who_waits(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;
	pid_t pid;

	wait_open(wait_patient);
	wait_target(PLACE_MEMFD, &t);
	l = lease(&t);
	pid = wait_begin(wait_op("punch"), &t, AT);
	wait_await(pid);
	event_of(wait_ctx, PINL_EV_NOTICE);
	assert_true(is_said_of(pid));
	assert_ok(pinl_quiesced(l));
	assert_int_equal(wait_result(pid), 0);
	assert_false(is_said_of(pid));
	pinl_unmap_range(l);
	gate_target_close(&t);
	wait_close();
}

/* I2: the device is off before, and not because its holder has said so. */
static void after_the_deadline_it_goes_on(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;
	struct pinl_event ev;
	pid_t pid;

	wait_open(wait_patient);
	wait_target(PLACE_MEMFD, &t);
	l = wait_lease(&t, 2, 4, 300);
	pid = wait_begin(wait_op("punch"), &t, AT);
	wait_await(pid);
	ev = event_of(wait_ctx, PINL_EV_FORCED);
	assert_int_equal(ev.outcome, PINL_OUT_FAIL);
	assert_int_equal(wait_result(pid), 0);
	assert_gone(&t);
	pinl_unmap_range(l);
	gate_target_close(&t);
	wait_close();
}

/* A holder that doesn't answer, and whose device nobody else can take off: the ceiling is the end of it.
 */
static void nobody_waits_beyond_the_ceiling(void **state)
{
	struct gate_target t;
	pid_t holder, pid;
	int status;

	wait_open(wait_hasty);
	wait_target(PLACE_MEMFD, &t);
	pinl_close(wait_ctx);
	wait_ctx = NULL;
	holder = fork();
	if (!holder) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (wait_ctx_open() || pinl_device_open(wait_ctx, "soft", NULL, &wait_dev))
			_exit(1);
		lease(&t);
		raise(SIGSTOP);
		_exit(0);
	}
	wait_await_stop(holder);
	pid = wait_begin(wait_op("punch"), &t, AT);
	wait_await(pid);
	assert_int_equal(wait_result(pid), 0);
	assert_gone(&t);
	kill(holder, SIGKILL);
	waitpid(holder, &status, 0);
	gate_target_close(&t);
	assert_ok(wait_ctx_open());
	wait_close();
}

/* It would hang, as nobody else answers its notices. */
static void a_holder_isnt_stopped(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;

	wait_open(wait_patient);
	wait_target(PLACE_MEMFD, &t);
	l = lease(&t);
	assert_int_equal(wait_op("punch")->run(&t, AT * t.page), 0);
	assert_gone(&t);
	pinl_unmap_range(l);
	gate_target_close(&t);
	wait_close();
}

/* What is to be recalled for somebody who can't wait: he is refused till that is over. */
static void check_refused(pid_t pid, const struct gate_target *t, struct pinl_lease *l)
{
	struct pinl_event ev;

	assert_int_equal(wait_result(pid), -EBUSY);
	assert_untouched(t);
	ev = event_of(wait_ctx, PINL_EV_REFUSED);
	assert_int_equal(ev.actor_pid, pid);
	ev = event_of(wait_ctx, PINL_EV_NOTICE);
	assert_string_equal(ev.source, "gate");
	assert_int_equal(ev.actor_pid, pid);
	assert_ok(pinl_quiesced(l));
}

static void retry(const struct gate_op *op, const struct gate_target *t)
{
	int err;

	while ((err = wait_result(wait_begin(op, t, AT))) ==
	       -EBUSY) /* the runner ends what takes too long */
		usleep(10000);
	assert_int_equal(err, 0);
	assert_gone(t);
}

static void a_ring_is_refused_until_it_is_over(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;

	wait_open(wait_patient);
	wait_target(PLACE_MEMFD, &t);
	l = lease(&t);
	check_refused(wait_begin(wait_op("io_uring punch"), &t, AT), &t, l);
	retry(wait_op("io_uring punch"), &t);
	pinl_unmap_range(l);
	gate_target_close(&t);
	wait_close();
}

static void check_waits_alone(pid_t pid, const struct gate_target *t, struct pinl_lease *l)
{
	struct pinl_event ev = event_of(wait_ctx, PINL_EV_NOTICE);

	assert_int_equal(ev.actor_pid, pid);
	wait_await(pid);
	assert_untouched(t);
	assert_ok(pinl_quiesced(l));
	assert_int_equal(wait_result(pid), 0);
	assert_gone(t);
}

static void check_waits_alone_or_is_refused(pid_t pid, const struct gate_target *t, struct pinl_lease *l)
{
	if (wait_by_page) {
		check_waits_alone(pid, t, l);
		return;
	}
	check_refused(pid, t, l);
	retry(wait_op("punch"), t);
}

/* Stopped, its holder couldn't answer notices himself. */
static void another_holder_waits_alone_or_is_refused(void **state)
{
	struct gate_target t, other;
	struct pinl_lease *l;
	pid_t pid;

	wait_open(wait_patient);
	wait_target(PLACE_MEMFD, &t);
	wait_target(PLACE_MEMFD, &other);
	l = lease(&t);
	pid = fork();
	if (!pid) {
		struct pinl_ctx *own;

		if (pinl_open(NULL, &own) || pinl_device_open(own, "soft", NULL, &wait_dev))
			_exit(1);
		lease(&other);
		_exit(-wait_op("punch")->run(&t, AT * t.page));
	}
	check_waits_alone_or_is_refused(pid, &t, l);
	pinl_unmap_range(l);
	gate_target_close(&t);
	gate_target_close(&other);
	wait_close();
}

/* Its debugger would be told of a signal that isn't the program's, and isn't where there is none. */
static void who_is_traced_waits_alone_or_is_refused(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;
	pid_t pid;

	wait_open(wait_patient);
	wait_target(PLACE_MEMFD, &t);
	l = lease(&t);
	pid = fork();
	if (!pid) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		_exit(-wait_op("punch")->run(&t, AT * t.page));
	}
	check_waits_alone_or_is_refused(pid, &t, l);
	pinl_unmap_range(l);
	gate_target_close(&t);
	wait_close();
}

static void who_is_continued_by_others_waits_still(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;
	pid_t pid;

	wait_open(wait_patient);
	wait_target(PLACE_MEMFD, &t);
	l = lease(&t);
	pid = wait_begin(wait_op("punch"), &t, AT);
	for (int i = 0; i < 20; i++) {
		wait_await(pid);
		kill(pid, SIGCONT);
	}
	wait_await(pid);
	assert_untouched(&t);
	assert_ok(pinl_quiesced(l));
	assert_int_equal(wait_result(pid), 0);
	assert_gone(&t);
	pinl_unmap_range(l);
	gate_target_close(&t);
	wait_close();
}

static void who_is_killed_leaves_nothing(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;
	pid_t pid;
	int status;

	wait_open(wait_patient);
	wait_target(PLACE_MEMFD, &t);
	l = lease(&t);
	pid = wait_begin(wait_op("punch"), &t, AT);
	wait_await(pid);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_untouched(&t);
	assert_ok(pinl_quiesced(l));
	pinl_unmap_range(l);
	l = lease(&t);
	pid = wait_begin(wait_op("punch"), &t, AT);
	wait_await(pid);
	assert_ok(pinl_quiesced(l));
	assert_int_equal(wait_result(pid), 0);
	pinl_unmap_range(l);
	gate_target_close(&t);
	wait_close();
}

/* Nobody's SIGCONT is lost, however soon it comes. */
static void none_of_many_is_lost(void **state)
{
	enum { ROUNDS = 100, ACTORS = 8 };
	struct gate_target t;
	struct pinl_lease *l;
	pid_t pid[ACTORS];

	wait_open(wait_patient);
	wait_target(PLACE_MEMFD, &t);
	for (int i = 0; i < ROUNDS; i++) {
		l = wait_lease(&t, 2, 4, i % 3); /* at once, or when some of them have come */
		for (int k = 0; k < ACTORS; k++)
			pid[k] = wait_begin(wait_op(k % 2 ? "punch" : "MADV_REMOVE"), &t, 2 + k % 2);
		for (int k = 0; k < ACTORS; k++)
			assert_int_equal(wait_result(pid[k]), 0);
		pinl_unmap_range(l);
	}
	gate_target_close(&t);
	wait_close();
}

#define THREADS 4

struct threads {
	const struct gate_target *t;
	_Atomic int failed;
};

static struct threads threads;

static void *punch_one(void *page)
{
	if (wait_op("punch")->run(threads.t, (uintptr_t)page * threads.t->page))
		threads.failed = 1;
	return NULL;
}

static __attribute__((noreturn)) void punch_all(const struct gate_target *t)
{
	pthread_t thread[THREADS];

	threads.t = t;
	for (uintptr_t i = 0; i < THREADS; i++)
		pthread_create(&thread[i], NULL, punch_one, (void *)(2 + i));
	for (int i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	_exit(threads.failed);
}

/* One of them is let through while another still has to wait, for which the process is stopped again. */
static void threads_wait_each_for_its_own(void **state)
{
	struct pinl_lease *l[THREADS];
	struct gate_target t;
	pid_t pid;

	wait_open(wait_patient);
	wait_target(PLACE_MEMFD, &t);
	for (unsigned i = 0; i < THREADS; i++)
		l[i] = wait_lease(&t, 2 + i, 3 + i, WAIT_NEVER_MS);
	pid = fork();
	if (!pid)
		punch_all(&t);
	for (unsigned i = 0; i < THREADS; i++) {
		struct pinl_event ev = event_of(wait_ctx, PINL_EV_NOTICE);
		unsigned page = (ev.start - (uintptr_t)t.mem) / t.page;

		assert_string_equal(ev.source, "gate");
		assert_true(page >= 2 && page < 2 + THREADS);
		assert_int_equal(t.mem[page * t.page], 7);
		assert_ok(pinl_quiesced(l[page - 2]));
		while (t.mem[page * t.page]) /* the runner ends what takes too long */
			usleep(1000);
	}
	assert_int_equal(wait_result(pid), 0);
	for (unsigned i = 0; i < THREADS; i++)
		pinl_unmap_range(l[i]);
	gate_target_close(&t);
	wait_close();
}

/* ------------------------------------------------------------------------------------- the thread -- */

/* Else the test is skipped. */
static void open_for_pages(void)
{
	wait_open(wait_patient);
	if (wait_by_page)
		return;
	wait_close();
	print_message("skip: a kernel where threads wait alone (task_work for BPF, FUSE)\n");
	skip();
}

struct company {
	const struct gate_target *t;
	_Atomic unsigned rounds, signals; /* of the other thread; handled */
};

static struct company *company; /* shared with the child */

static void *go_round(void *arg)
{
	for (;;) {
		company->rounds++;
		usleep(1000);
	}
	return NULL;
}

static void count_signal(int number)
{
	company->signals++;
}

static struct company *company_open(const struct gate_target *t)
{
	struct company *c =
		mmap(NULL, sizeof *c, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_true(c != MAP_FAILED);
	c->t = t;
	return c;
}

static __attribute__((noreturn)) void punch_in_company(void)
{
	pthread_t other;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGUSR1, count_signal);
	if (pthread_create(&other, NULL, go_round, NULL))
		_exit(1);
	_exit(-wait_op("punch")->run(company->t, AT * company->t->page));
}

/* Its other threads run, and its signals are handled, also by itself, and it waits still. */
static void only_the_thread_waits(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;
	unsigned before;
	pid_t pid;

	open_for_pages();
	wait_target(PLACE_MEMFD, &t);
	l = lease(&t);
	company = company_open(&t);
	pid = fork();
	if (!pid)
		punch_in_company();
	wait_await(pid);
	for (unsigned i = 0; i < 20; i++) {
		wait_await(pid);
		before = company->rounds;
		syscall(SYS_tgkill, pid, pid, SIGUSR1);
		while ((company->signals <= i || company->rounds < before + 3) && !wait_has_ended(pid))
			usleep(1000); /* the runner ends what takes too long */
	}
	wait_await(pid);
	assert_untouched(&t);
	assert_ok(pinl_quiesced(l));
	assert_int_equal(wait_result(pid), 0);
	assert_int_equal(company->signals, 20);
	assert_gone(&t);
	munmap(company, sizeof *company);
	pinl_unmap_range(l);
	gate_target_close(&t);
	wait_close();
}

static unsigned times_slept(pid_t pid)
{
	static const char name[] = "\nvoluntary_ctxt_switches:";
	char text[8192], *at = strstr(wait_shown(pid, "status", text, sizeof text), name);

	return at ? strtoul(at + strlen(name), NULL, 10) : 0;
}

/* A wait is many short ones to the kernel; to the holder it is one. */
static void a_long_wait_is_one(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;
	struct pinl_event ev;
	unsigned before;
	pid_t pid;

	open_for_pages();
	wait_target(PLACE_MEMFD, &t);
	l = lease(&t);
	pid = wait_begin(wait_op("punch"), &t, AT);
	event_of(wait_ctx, PINL_EV_NOTICE);
	wait_await(pid);
	before = times_slept(pid);
	while (times_slept(pid) < before + 2 &&
	       !wait_has_ended(pid)) /* the runner ends what takes too long */
		usleep(1000);
	wait_await(pid);
	assert_untouched(&t);
	assert_ok(pinl_quiesced(l));
	assert_int_equal(wait_result(pid), 0);
	for (ev = (struct pinl_event){.size = sizeof ev}; !pinl_next_event(wait_ctx, &ev);
	     ev.size = sizeof ev)
		assert_int_not_equal(ev.type, PINL_EV_NOTICE);
	pinl_unmap_range(l);
	gate_target_close(&t);
	wait_close();
}

/* ------------------------------------------------------------------------------ without pinleased -- */

/* The gate is closed then, so he is refused. */
static void a_dead_arbiter_leaves_nobody_stopped(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;
	pid_t pid;

	wait_open(wait_patient);
	wait_target(PLACE_MEMFD, &t);
	l = lease(&t);
	pid = wait_begin(wait_op("punch"), &t, AT);
	wait_await(pid);
	event_of(wait_ctx, PINL_EV_NOTICE);
	arbiter_kill(&wait_arbiter);
	assert_int_equal(wait_result(pid), -EBUSY);
	assert_int_equal(wait_result(wait_begin(wait_op("ftruncate"), &t, 0)), -EBUSY);
	assert_untouched(&t);
	arbiter_restart(&wait_arbiter, wait_patient);
	assert_ok(pinl_quiesced(l));
	retry(wait_op("punch"), &t);
	pinl_unmap_range(l);
	gate_target_close(&t);
	wait_close();
}

/* Nor do both together: the next one continues him, and has him wait once more if he is late. */
static void nor_one_with_its_guard(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;
	pid_t pid, guard;
	int err;

	wait_open(wait_patient);
	wait_target(PLACE_MEMFD, &t);
	l = lease(&t);
	pid = wait_begin(wait_op("punch"), &t, AT);
	wait_await(pid);
	guard = wait_guard_of(wait_arbiter.pid);
	assert_true(guard > 0);
	kill(wait_arbiter.pid, SIGSTOP);
	kill(guard, SIGKILL);
	arbiter_kill(&wait_arbiter);
	arbiter_restart(&wait_arbiter, wait_patient);
	assert_ok(pinl_quiesced(l));
	err = wait_result(pid);
	if (err != -EBUSY)
		assert_int_equal(err, 0);
	pinl_unmap_range(l);
	gate_target_close(&t);
	wait_close();
}

static void a_guard_that_is_killed_is_replaced(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;
	pid_t pid, guard, next;

	wait_open(wait_patient);
	wait_target(PLACE_MEMFD, &t);
	l = lease(&t);
	guard = wait_guard_of(wait_arbiter.pid);
	assert_true(guard > 0);
	kill(guard, SIGKILL);
	do
		next = wait_guard_of(wait_arbiter.pid);
	while (!next || next == guard); /* the runner ends what takes too long */
	pid = wait_begin(wait_op("punch"), &t, AT);
	wait_await(pid);
	arbiter_kill(&wait_arbiter);
	assert_int_equal(wait_result(pid), -EBUSY);
	arbiter_restart(&wait_arbiter, wait_patient);
	pinl_unmap_range(l);
	gate_target_close(&t);
	wait_close();
}

/* As long as the one before keeps the gate closed he is refused. */
static pid_t begin_when_open(const struct gate_op *op, const struct gate_target *t)
{
	pid_t pid = fork();
	int err;

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while ((err = op->run(t, AT * t->page)) == -EBUSY)
		usleep(10000);
	_exit(-err);
}

static bool says_that_others_wait(struct pinl_lease *l)
{
	char text[4096];

	pinl_lease_describe(l, text, sizeof text);
	return strstr(text, "held where made by another process:");
}

/* Operations of which it is said that nobody waits any more, until these are and that type has come. */
static unsigned unwaited_until(enum pinl_event_type type, unsigned ops)
{
	struct pinl_event ev;
	unsigned said = 0;

	do {
		ev = (struct pinl_event){.size = sizeof ev};
		while (pinl_next_event(wait_ctx, &ev))
			usleep(1000); /* the runner ends what takes too long */
		if (ev.type == PINL_EV_DEGRADED && ev.err == -EAGAIN)
			said |= PINL_OPBIT(ev.op);
	} while (ev.type != type || (said & ops) != ops);
	return said;
}

/* Whether it knows the lease by itself or is told of it. */
static void after_a_restart_others_are_held_as_before(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;
	pid_t pid;

	for (int kept = 0; kept < 2; kept++) {
		wait_arbiter.kept = kept;
		wait_open(wait_patient);
		wait_target(PLACE_MEMFD, &t);
		l = lease(&t);
		arbiter_kill(&wait_arbiter);
		arbiter_restart(&wait_arbiter, wait_patient);
		pid = begin_when_open(wait_op("punch"), &t);
		assert_int_equal(unwaited_until(PINL_EV_NOTICE, 0), 0);
		assert_true(says_that_others_wait(l));
		assert_ok(pinl_quiesced(l));
		assert_int_equal(wait_result(pid), 0);
		pinl_unmap_range(l);
		gate_target_close(&t);
		wait_close();
	}
}

static void of_one_without_a_gate_it_is_said(void **state)
{
	static const char *const none[] = {"--gate", WAIT_DIRECTORY, "--gate", "no", NULL};
	unsigned ops = PINL_OPS_FILE | PINL_OPBIT(PINL_OP_REMOVE);
	struct gate_target t;
	struct pinl_lease *l;

	for (int kept = 0; kept < 2; kept++) {
		wait_arbiter.kept = kept;
		wait_open(wait_patient);
		wait_target(PLACE_MEMFD, &t);
		l = lease(&t);
		arbiter_kill(&wait_arbiter);
		arbiter_restart(&wait_arbiter, none);
		assert_int_equal(unwaited_until(PINL_EV_DEGRADED, ops), ops);
		assert_false(says_that_others_wait(l));
		pinl_unmap_range(l);
		gate_target_close(&t);
		wait_close();
	}
}

/* An end in order lets all go on, as there is nobody to hold them any more. */
static void at_its_end_all_go_on(void **state)
{
	struct pinl_lease *l;
	struct gate_target t;
	pid_t pid;

	wait_open(wait_patient);
	wait_target(PLACE_MEMFD, &t);
	l = lease(&t);
	pid = wait_begin(wait_op("punch"), &t, AT);
	wait_await(pid);
	arbiter_stop(&wait_arbiter);
	assert_int_equal(wait_result(pid), 0);
	assert_ok(pinl_quiesced(l));
	pinl_unmap_range(l);
	gate_target_close(&t);
	pinl_close(wait_ctx);
	wait_ctx = NULL;
	assert_int_equal(gate_entries(WAIT_DIRECTORY), 0);
}

#define TEST(name) cmocka_unit_test_teardown(name, wait_teardown)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		TEST(who_changes_a_memfd_waits),
		TEST(who_changes_hugetlbfs_waits),
		TEST(who_changes_a_tmpfs_file_waits),
		TEST(the_lease_says_who_is_held),
		TEST(status_names_who_waits),
		TEST(after_the_deadline_it_goes_on),
		TEST(nobody_waits_beyond_the_ceiling),
		TEST(a_holder_isnt_stopped),
		TEST(a_ring_is_refused_until_it_is_over),
		TEST(another_holder_waits_alone_or_is_refused),
		TEST(who_is_traced_waits_alone_or_is_refused),
		TEST(who_is_continued_by_others_waits_still),
		TEST(who_is_killed_leaves_nothing),
		TEST(none_of_many_is_lost),
		TEST(threads_wait_each_for_its_own),
		TEST(only_the_thread_waits),
		TEST(a_long_wait_is_one),
		TEST(a_dead_arbiter_leaves_nobody_stopped),
		TEST(nor_one_with_its_guard),
		TEST(a_guard_that_is_killed_is_replaced),
		TEST(after_a_restart_others_are_held_as_before),
		TEST(of_one_without_a_gate_it_is_said),
		TEST(at_its_end_all_go_on),
	};

	setenv("PINLEASE_COMMAND", argc > 1 ? argv[1] : "pinlease", 0);
	if (argc > 2)
		cmocka_set_test_filter(argv[2]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
