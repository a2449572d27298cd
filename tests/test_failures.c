/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Failure sweeps: every allocation and every system call of a life is made to fail, one in each life,
 * until none is left to fail (P1, I3, I4). What is checked in a life: fail_life.h; what can fail:
 * failnth.h.
 *
 * PINLEASE_FAIL=NAME:N[:CHOICE] lives one life alone, in this process, for a debugger.
 */
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "check.h"
#include "fail_rig.h"
#include "failnth.h"

#define JOBS	   8	  /* lives at a time: most of one is waiting */
#define MAX_POINTS 3000	  /* a sweep ends before */
#define STUCK_MS   120000 /* for one life, however busy the machine is */

#define PIN PINL_PIN

struct sweep {
	const char *name;
	struct life life;
};

static const struct sweep sweeps[] = {
	{"open_and_close",
	 {ANON, "soft", PIN, PINL_RECALL, PINL_THEN_FAIL, 0, NO_CHANGE, false, IN_OPEN | IN_CLOSE}},
	{"soft_pinned_fail",
	 {ANON, "soft", PIN, PINL_RECALL, PINL_THEN_FAIL, 0, MUNMAP, false, ALL_BUT_OPEN}},
	{"soft_faulting_follow", {MEMFD, "soft", 0, PINL_FOLLOW, 0, 0, FTRUNCATE, false, ALL_BUT_OPEN}},
	{"uring_copy",
	 {MEMFD, "uring", PIN, PINL_RECALL, PINL_THEN_COPY, 0, FTRUNCATE, false, ALL_BUT_OPEN}},
	{"uring_fail",
	 {MEMFD, "uring", PIN, PINL_RECALL, PINL_THEN_FAIL, 0, FTRUNCATE, false, IN_CHANGE}},
	{"uring_scratch",
	 {PRIVATE_FILE, "uring", PIN, PINL_RECALL, PINL_THEN_SCRATCH, 0, FTRUNCATE, false, IN_LEASE}},
	{"uring_answered", {ANON, "uring", PIN, PINL_RECALL, PINL_THEN_COPY, 0, MUNMAP, true, IN_LEASE}},
	{"uring_keep", {MEMFD, "uring", PIN, PINL_KEEP, 0, 0, FTRUNCATE, false, IN_LEASE}},
	{"soft_copy", {MEMFD, "soft", PIN, PINL_RECALL, PINL_THEN_COPY, 0, FTRUNCATE, false, IN_CHANGE}},
	{"soft_scratch",
	 {ANON, "soft", PIN, PINL_RECALL, PINL_THEN_SCRATCH, 0, MUNMAP, false, IN_CHANGE}},
	{"soft_answered",
	 {PRIVATE_FILE, "soft", PIN, PINL_RECALL, PINL_THEN_FAIL, 0, FTRUNCATE, true, IN_LEASE}},
	{"shared_file_refuse",
	 {SHARED_FILE, "soft", 0, PINL_REFUSE, 0, PINL_OPBIT(PINL_OP_TRUNCATE), FTRUNCATE, false,
	  IN_LEASE}},
	{"staged",
	 {SHARED_FILE, "uring", PIN | PINL_STAGE, PINL_RECALL, PINL_THEN_FAIL, 0, NO_CHANGE, false,
	  IN_LEASE}},
	{"staged_copy",
	 {SHARED_FILE, "uring", PIN | PINL_STAGE, PINL_RECALL, PINL_THEN_COPY, 0, FTRUNCATE, false,
	  IN_LEASE}},
	{"exported_fail",
	 {EXPORTED, "soft", 0, PINL_RECALL, PINL_THEN_FAIL, 0, REVOKE, false, IN_LEASE}},
	{"exported_scratch",
	 {EXPORTED, "soft", 0, PINL_RECALL, PINL_THEN_SCRATCH, 0, REVOKE, false, IN_LEASE}},
	/* Not opening and closing: libibverbs keeps what it can't destroy, which no kernel refuses. */
	{"verbs_fail",
	 {MEMFD, "verbs", PIN, PINL_RECALL, PINL_THEN_FAIL, 0, FTRUNCATE, false, IN_LEASE}},
	{"verbs_copy",
	 {MEMFD, "verbs", PIN, PINL_RECALL, PINL_THEN_COPY, 0, FTRUNCATE, false, IN_LEASE}},
	{"raw_madvise_copy",
	 {ANON, "uring", PIN, PINL_RECALL, PINL_THEN_COPY, 0, RAW_DONTNEED, false,
	  IN_CHANGE | IN_UNMAP}},
	{"raw_madvise_answered",
	 {ANON, "soft", PIN, PINL_RECALL, PINL_THEN_FAIL, 0, RAW_DONTNEED, true, IN_CHANGE | IN_UNMAP}},
	{"raw_ftruncate_of_file",
	 {PRIVATE_FILE, "uring", PIN, PINL_RECALL, PINL_THEN_FAIL, 0, RAW_FTRUNCATE, false,
	  IN_CHANGE | IN_UNMAP}},
	{"raw_ftruncate_of_memfd",
	 {MEMFD, "soft", PIN, PINL_RECALL, PINL_THEN_SCRATCH, 0, RAW_FTRUNCATE, false,
	  IN_CHANGE | IN_UNMAP}},
};

struct job {
	pid_t pid;
	int pidfd;
	unsigned n;
	struct life_report *report;
};

static struct life_report *shared_reports(unsigned n)
{
	void *p = mmap(NULL, n * sizeof(struct life_report), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(p, MAP_FAILED);
	return p;
}

static void start(struct job *j, const struct life *l, unsigned n, unsigned choice,
		  const struct life_report *healthy)
{
	memset(j->report, 0, sizeof *j->report);
	j->n = n;
	j->pid = fork();
	if (!j->pid) {
		for (int i = 1; i < NSIG; i++) /* cmocka's would go on with its tests here */
			signal(i, SIG_DFL);
		live(l, n, choice, healthy, j->report);
	}
	assert_true(j->pid > 0);
	j->pidfd = syscall(SYS_pidfd_open, j->pid, 0);
	assert_true(j->pidfd >= 0);
}

/* True: it was good. */
static bool finish(struct job *j, unsigned choice)
{
	struct pollfd p = {.fd = j->pidfd, .events = POLLIN};
	bool stuck = poll(&p, 1, STUCK_MS) == 0;
	int status;

	if (stuck)
		kill(j->pid, SIGKILL);
	waitpid(j->pid, &status, 0);
	close(j->pidfd);
	if (!stuck && WIFEXITED(status) && !WEXITSTATUS(status))
		return true;
	if (stuck)
		snprintf(j->report->wrong, sizeof j->report->wrong, "stuck in %s", j->report->phase);
	else if (!*j->report->wrong)
		snprintf(j->report->wrong, sizeof j->report->wrong, "status %#x in %s", status,
			 j->report->phase);
	print_message("point %u.%u, %s: %s\n", j->n, choice, *j->report->fired ? j->report->fired : "?",
		      j->report->wrong);
	return false;
}

struct tally {
	unsigned fired, bad, points;
};

static void sweep_choice(const struct life *l, unsigned choice, const struct life_report *healthy,
			 struct life_report *reports, struct tally *t)
{
	struct job jobs[JOBS];
	unsigned n = 1, fired;

	do {
		fired = 0;
		for (int i = 0; i < JOBS; i++) {
			jobs[i].report = &reports[i];
			start(&jobs[i], l, n++, choice, healthy);
		}
		for (int i = 0; i < JOBS; i++) {
			if (!finish(&jobs[i], choice)) {
				t->bad++;
				fired++; /* there may be more */
			} else if (*jobs[i].report->fired) {
				fired++;
				if (getenv("PINLEASE_FAIL_LIST"))
					print_message("%u.%u %s: %s\n", jobs[i].n, choice,
						      jobs[i].report->fired, jobs[i].report->said);
			}
		}
		t->fired += fired;
		assert_true(n < MAX_POINTS);
	} while (fired && t->bad < 20);
}

/* What the injector and the witness need. */
static bool can_sweep(void)
{
	struct life_report *r = shared_reports(1);
	struct io_uring ring;
	int status = 0;
	pid_t pid;

	if (io_uring_queue_init(2, &ring, 0)) {
		print_message("skip: io_uring\n");
		return false;
	}
	io_uring_queue_exit(&ring);
	pid = fork();
	if (!pid)
		_exit(failnth_start(0, 0, r->fired) != 0);
	waitpid(pid, &status, 0);
	munmap(r, sizeof *r);
	if (status)
		print_message("skip: seccomp user notification with continue (Linux 5.5)\n");
	return !status;
}

/* Nobody else tells of all that can happen to a file on a disk. */
static bool needs_files(const struct life *l)
{
	return l->memory == PRIVATE_FILE && l->change == RAW_FTRUNCATE;
}

static void sweep(void **state)
{
	const struct sweep *s = *state;
	struct life_report *reports = shared_reports(JOBS + 1), *healthy = &reports[JOBS];
	struct tally t = {0};
	struct job first = {.report = healthy};

	if (!can_sweep())
		skip();
	if (!strcmp(s->life.device, "verbs") && verbs_missing()) {
		print_message("skip: %s\n", verbs_missing());
		skip();
	}
	start(&first, &s->life, 0, 0, NULL);
	if (!finish(&first, 0)) {
		if (!needs_files(&s->life) || !strstr(healthy->wrong, strerror(EOPNOTSUPP)))
			fail();
		print_message("skip: changes of files in %s held by fanotify\n", life_dir());
		skip();
	}
	for (unsigned choice = 0; choice < 3; choice++)
		sweep_choice(&s->life, choice, healthy, reports, &t);
	print_message("%s: %u failures\n", s->name, t.fired);
	munmap(reports, (JOBS + 1) * sizeof *reports);
	assert_true(t.fired > 0);
	assert_int_equal(t.bad, 0);
}

static void live_one(const char *which)
{
	char name[64];
	unsigned n = 0, choice = 0;

	sscanf(which, "%63[^:]:%u:%u", name, &n, &choice);
	for (size_t i = 0; i < sizeof sweeps / sizeof *sweeps; i++) {
		struct life_report *r = shared_reports(2);
		struct job first = {.report = r};

		if (strcmp(sweeps[i].name, name))
			continue;
		start(&first, &sweeps[i].life, 0, 0, NULL);
		finish(&first, 0);
		live(&sweeps[i].life, n, choice, r, r + 1);
	}
	exit(2);
}

/* glibc keeps the stacks of threads that ended, and makes a heap per thread: then nothing could be said
 * about what is mapped. */
static void settle_libc(char **argv)
{
	static const char wanted[] = "glibc.pthread.stack_cache_size=0:glibc.malloc.arena_max=1";
	const char *has = getenv("GLIBC_TUNABLES");

	if (has && !strcmp(has, wanted))
		return;
	setenv("GLIBC_TUNABLES", wanted, 1);
	execv("/proc/self/exe", argv);
}

int main(int argc, char **argv)
{
	struct CMUnitTest tests[sizeof sweeps / sizeof *sweeps];

	settle_libc(argv);
	if (getenv("PINLEASE_FAIL"))
		live_one(getenv("PINLEASE_FAIL"));
	for (size_t i = 0; i < sizeof sweeps / sizeof *sweeps; i++)
		tests[i] = (struct CMUnitTest){
			.name = sweeps[i].name, .test_func = sweep, .initial_state = (void *)&sweeps[i]};
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
