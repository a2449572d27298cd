/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * RECALL on files in memory, where fanotify sees nothing: whoever changes one waits for its lease, by
 * pinleased's gate; and who can't wait is refused, and not again. Needs a kernel that lets BPF programs
 * in front of its functions (vm/jobs/gate*.job).
 */
#include "arbiter_rig.h"

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

#include "gate_rig.h"

#define DIRECTORY "/sys/fs/bpf/pinlease-test"
#define AT	  3 /* a leased page: 2 and 3 are */
#define BEYOND	  5
#define NEVER_MS  600000

/* Nobody is let go because a ceiling is over. */
static const char *const patient[] = {"--gate", DIRECTORY, "--gate-keeps", "240000", "--ceiling",
				      "600000", NULL};
static const char *const hasty[] = {"--gate", DIRECTORY, "--gate-keeps", "240000", "--ceiling",
				    "100",    NULL};

static struct arbiter a;
static struct pinl_ctx *ctx;
static struct pinl_device *dev;
static bool by_page; /* threads wait alone, and no process is stopped */

static const struct gate_op *op_named(const char *name)
{
	for (unsigned i = 0; i < gate_n_ops; i++)
		if (!strcmp(gate_ops[i].name, name))
			return &gate_ops[i];
	fail_msg("no operation %s", name);
	return NULL;
}

/* What pinleased says of its gate. */
static bool others_wait(void)
{
	char said[8192] = "", word[256], command[512];
	size_t n = 0;
	FILE *f;

	snprintf(command, sizeof command, "%s status", getenv("PINLEASE_COMMAND"));
	f = popen(command, "re");
	while (f && fscanf(f, "%255s", word) == 1 && n < sizeof said) /* lines end anywhere */
		n += snprintf(said + n, sizeof said - n, "%s ", word);
	pclose(f);
	by_page = strstr(said, "the thread alone");
	print_message("%.200s\n", strstr(said, "gate:") ? strstr(said, "gate:") : "no gate");
	return strstr(said, "others wait");
}

static void open_all(const char *const *options)
{
	arbiter_start(&a, options);
	assert_ok(pinl_open(NULL, &ctx));
	assert_ok(pinl_device_open(ctx, "soft", NULL, &dev));
	if (others_wait()) {
		if (getenv("PINLEASE_GATE_WAITS"))
			assert_int_equal(by_page, !strcmp(getenv("PINLEASE_GATE_WAITS"), "page"));
		return;
	}
	if (getenv("PINLEASE_GATE_MEANS"))
		fail_msg("nobody waits");
	print_message("skip: BPF programs in front of the kernel's functions\n");
	skip();
}

static void close_all(void)
{
	pinl_close(ctx);
	ctx = NULL;
	arbiter_stop(&a);
	if (gate_entries(DIRECTORY))
		fail_msg("there is something left in %s", DIRECTORY);
	rmdir(DIRECTORY);
}

static struct pinl_lease *lease_pages(const struct gate_target *t, unsigned from, unsigned to,
				      unsigned grace_ms)
{
	struct pinl_policy p = {
		.size = sizeof p, .kind = PINL_RECALL, .then = PINL_THEN_FAIL, .grace_ms = grace_ms};
	uintptr_t at = (uintptr_t)t->mem;
	struct pinl_lease *l = NULL;

	assert_ok(pinl_map_range(dev, at + from * t->page, at + to * t->page,
				 PINL_WRITE | PINL_COOPERATIVE, /* for munmap: before Linux 6.7 */
				 &p, NULL, &l));
	return l;
}

static struct pinl_lease *lease(const struct gate_target *t)
{
	return lease_pages(t, 2, 4, NEVER_MS);
}

static void target(enum gate_place place, struct gate_target *t)
{
	if (gate_target_open(place, t))
		return;
	print_message("skip: a file of the kind %s\n", gate_place_names[place]);
	skip();
}

/* ---------------------------------------------------------------------------------------- actors -- */

/* By a descriptor that is older than the lease. */
static pid_t begin(const struct gate_op *op, const struct gate_target *t, unsigned page)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	_exit(-op->run(t, page * t->page));
}

static void await_stop(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
	if (!WIFSTOPPED(status))
		fail_msg("it doesn't wait: status %#x", status);
}

/* What the kernel says of it in a file of /proc; "" */
static char *shown(pid_t pid, const char *file, char *text, size_t len)
{
	char path[64];
	ssize_t n;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? 0 : read(fd, text, len - 1);
	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = 0;
	return text;
}

static bool is_at_page(pid_t pid)
{
	char text[4096];

	return strstr(shown(pid, "stack", text, sizeof text), "bpf_task_work");
}

static bool is_stopped(pid_t pid)
{
	char text[512], *state = strrchr(shown(pid, "stat", text, sizeof text), ')');

	return state && (state[2] == 'T' || state[2] == 't');
}

static bool has_ended(pid_t pid)
{
	siginfo_t info = {0};

	return !waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT) && info.si_pid == pid;
}

/* Or has ended, which is seen by what it has done. */
static void await_wait(pid_t pid)
{
	if (!by_page) {
		await_stop(pid);
		return;
	}
	while (!is_at_page(pid) && !has_ended(pid)) /* the runner ends what takes too long */
		usleep(1000);
	assert_false(is_stopped(pid));
}

static int result_of(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return -WEXITSTATUS(status);
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

	target(place, &t);
	l = lease(&t);
	if (!op->all)
		assert_int_equal(result_of(begin(op, &t, BEYOND)), 0);
	pinl_unmap_range(l);
	gate_target_close(&t);
	target(place, &t);
	l = lease(&t);
	pid = begin(op, &t, AT);
	ev = event_of(ctx, PINL_EV_NOTICE);
	assert_int_equal(ev.actor_pid, pid);
	assert_string_equal(ev.source, "gate");
	await_wait(pid);
	assert_untouched(&t);
	assert_ok(pinl_quiesced(l));
	assert_int_equal(result_of(pid), 0);
	assert_gone(&t);
	pinl_unmap_range(l);
	gate_target_close(&t);
}

static void check_place(enum gate_place place)
{
	struct gate_target t;

	target(place, &t);
	gate_target_close(&t);
	open_all(patient);
	for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
		check_way(place, op_named(ways[i]));
	close_all();
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

	open_all(patient);
	target(PLACE_MEMFD, &t);
	l = lease(&t);
	assert_ok(pinl_lease_info(l, &info));
	assert_false(info.coverage[PINL_OP_TRUNCATE] & PINL_CAN_HOLD);
	assert_int_equal(info.supervised[PINL_OP_TRUNCATE] & ~15, 0);
	assert_true(info.supervised[PINL_OP_TRUNCATE] & PINL_CAN_HOLD);
	pinl_lease_describe(l, text, sizeof text);
	assert_non_null(strstr(text, "held where made by another process: truncate, punch"));
	pinl_unmap_range(l);
	gate_target_close(&t);
	close_all();
}

/* I2: the device is off before, and not because its holder has said so. */
static void after_the_deadline_it_goes_on(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;
	struct pinl_event ev;
	pid_t pid;

	open_all(patient);
	target(PLACE_MEMFD, &t);
	l = lease_pages(&t, 2, 4, 300);
	pid = begin(op_named("punch"), &t, AT);
	await_wait(pid);
	ev = event_of(ctx, PINL_EV_FORCED);
	assert_int_equal(ev.outcome, PINL_OUT_FAIL);
	assert_int_equal(result_of(pid), 0);
	assert_gone(&t);
	pinl_unmap_range(l);
	gate_target_close(&t);
	close_all();
}

/* A holder that doesn't answer, and whose device nobody else can take off: the ceiling is the end of it.
 */
static void nobody_waits_beyond_the_ceiling(void **state)
{
	struct gate_target t;
	pid_t holder, pid;
	int status;

	open_all(hasty);
	target(PLACE_MEMFD, &t);
	pinl_close(ctx);
	ctx = NULL;
	holder = fork();
	if (!holder) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (pinl_open(NULL, &ctx) || pinl_device_open(ctx, "soft", NULL, &dev))
			_exit(1);
		lease(&t);
		raise(SIGSTOP);
		_exit(0);
	}
	await_stop(holder);
	pid = begin(op_named("punch"), &t, AT);
	await_wait(pid);
	assert_int_equal(result_of(pid), 0);
	assert_gone(&t);
	kill(holder, SIGKILL);
	waitpid(holder, &status, 0);
	gate_target_close(&t);
	assert_ok(pinl_open(NULL, &ctx));
	close_all();
}

/* It would hang, as nobody else answers its notices. */
static void a_holder_isnt_stopped(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;

	open_all(patient);
	target(PLACE_MEMFD, &t);
	l = lease(&t);
	assert_int_equal(op_named("punch")->run(&t, AT * t.page), 0);
	assert_gone(&t);
	pinl_unmap_range(l);
	gate_target_close(&t);
	close_all();
}

/* What is to be recalled for somebody who can't wait: he is refused till that is over. */
static void check_refused(pid_t pid, const struct gate_target *t, struct pinl_lease *l)
{
	struct pinl_event ev;

	assert_int_equal(result_of(pid), -EBUSY);
	assert_untouched(t);
	ev = event_of(ctx, PINL_EV_REFUSED);
	assert_int_equal(ev.actor_pid, pid);
	ev = event_of(ctx, PINL_EV_NOTICE);
	assert_string_equal(ev.source, "gate");
	assert_int_equal(ev.actor_pid, pid);
	assert_ok(pinl_quiesced(l));
}

static void retry(const struct gate_op *op, const struct gate_target *t)
{
	int err;

	while ((err = result_of(begin(op, t, AT))) == -EBUSY) /* the runner ends what takes too long */
		usleep(10000);
	assert_int_equal(err, 0);
	assert_gone(t);
}

static void a_ring_is_refused_until_it_is_over(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;

	open_all(patient);
	target(PLACE_MEMFD, &t);
	l = lease(&t);
	check_refused(begin(op_named("io_uring punch"), &t, AT), &t, l);
	retry(op_named("io_uring punch"), &t);
	pinl_unmap_range(l);
	gate_target_close(&t);
	close_all();
}

static void check_waits_alone(pid_t pid, const struct gate_target *t, struct pinl_lease *l)
{
	struct pinl_event ev = event_of(ctx, PINL_EV_NOTICE);

	assert_int_equal(ev.actor_pid, pid);
	await_wait(pid);
	assert_untouched(t);
	assert_ok(pinl_quiesced(l));
	assert_int_equal(result_of(pid), 0);
	assert_gone(t);
}

static void check_waits_alone_or_is_refused(pid_t pid, const struct gate_target *t, struct pinl_lease *l)
{
	if (by_page) {
		check_waits_alone(pid, t, l);
		return;
	}
	check_refused(pid, t, l);
	retry(op_named("punch"), t);
}

/* Stopped, its holder couldn't answer notices himself. */
static void another_holder_waits_alone_or_is_refused(void **state)
{
	struct gate_target t, other;
	struct pinl_lease *l;
	pid_t pid;

	open_all(patient);
	target(PLACE_MEMFD, &t);
	target(PLACE_MEMFD, &other);
	l = lease(&t);
	pid = fork();
	if (!pid) {
		struct pinl_ctx *own;

		if (pinl_open(NULL, &own) || pinl_device_open(own, "soft", NULL, &dev))
			_exit(1);
		lease(&other);
		_exit(-op_named("punch")->run(&t, AT * t.page));
	}
	check_waits_alone_or_is_refused(pid, &t, l);
	pinl_unmap_range(l);
	gate_target_close(&t);
	gate_target_close(&other);
	close_all();
}

/* Its debugger would be told of a signal that isn't the program's, and isn't where there is none. */
static void who_is_traced_waits_alone_or_is_refused(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;
	pid_t pid;

	open_all(patient);
	target(PLACE_MEMFD, &t);
	l = lease(&t);
	pid = fork();
	if (!pid) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		_exit(-op_named("punch")->run(&t, AT * t.page));
	}
	check_waits_alone_or_is_refused(pid, &t, l);
	pinl_unmap_range(l);
	gate_target_close(&t);
	close_all();
}

static void who_is_continued_by_others_waits_still(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;
	pid_t pid;

	open_all(patient);
	target(PLACE_MEMFD, &t);
	l = lease(&t);
	pid = begin(op_named("punch"), &t, AT);
	for (int i = 0; i < 20; i++) {
		await_wait(pid);
		kill(pid, SIGCONT);
	}
	await_wait(pid);
	assert_untouched(&t);
	assert_ok(pinl_quiesced(l));
	assert_int_equal(result_of(pid), 0);
	assert_gone(&t);
	pinl_unmap_range(l);
	gate_target_close(&t);
	close_all();
}

static void who_is_killed_leaves_nothing(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;
	pid_t pid;
	int status;

	open_all(patient);
	target(PLACE_MEMFD, &t);
	l = lease(&t);
	pid = begin(op_named("punch"), &t, AT);
	await_wait(pid);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_untouched(&t);
	assert_ok(pinl_quiesced(l));
	pinl_unmap_range(l);
	l = lease(&t);
	pid = begin(op_named("punch"), &t, AT);
	await_wait(pid);
	assert_ok(pinl_quiesced(l));
	assert_int_equal(result_of(pid), 0);
	pinl_unmap_range(l);
	gate_target_close(&t);
	close_all();
}

/* Nobody's SIGCONT is lost, however soon it comes. */
static void none_of_many_is_lost(void **state)
{
	enum { ROUNDS = 100, ACTORS = 8 };
	struct gate_target t;
	struct pinl_lease *l;
	pid_t pid[ACTORS];

	open_all(patient);
	target(PLACE_MEMFD, &t);
	for (int i = 0; i < ROUNDS; i++) {
		l = lease_pages(&t, 2, 4, i % 3); /* at once, or when some of them have come */
		for (int k = 0; k < ACTORS; k++)
			pid[k] = begin(op_named(k % 2 ? "punch" : "MADV_REMOVE"), &t, 2 + k % 2);
		for (int k = 0; k < ACTORS; k++)
			assert_int_equal(result_of(pid[k]), 0);
		pinl_unmap_range(l);
	}
	gate_target_close(&t);
	close_all();
}

#define THREADS 4

struct threads {
	const struct gate_target *t;
	_Atomic int failed;
};

static struct threads threads;

static void *punch_one(void *page)
{
	if (op_named("punch")->run(threads.t, (uintptr_t)page * threads.t->page))
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

	open_all(patient);
	target(PLACE_MEMFD, &t);
	for (unsigned i = 0; i < THREADS; i++)
		l[i] = lease_pages(&t, 2 + i, 3 + i, NEVER_MS);
	pid = fork();
	if (!pid)
		punch_all(&t);
	for (unsigned i = 0; i < THREADS; i++) {
		struct pinl_event ev = event_of(ctx, PINL_EV_NOTICE);
		unsigned page = (ev.start - (uintptr_t)t.mem) / t.page;

		assert_string_equal(ev.source, "gate");
		assert_true(page >= 2 && page < 2 + THREADS);
		assert_int_equal(t.mem[page * t.page], 7);
		assert_ok(pinl_quiesced(l[page - 2]));
		while (t.mem[page * t.page]) /* the runner ends what takes too long */
			usleep(1000);
	}
	assert_int_equal(result_of(pid), 0);
	for (unsigned i = 0; i < THREADS; i++)
		pinl_unmap_range(l[i]);
	gate_target_close(&t);
	close_all();
}

/* ------------------------------------------------------------------------------------- the thread -- */

/* Else the test is skipped. */
static void open_for_pages(void)
{
	open_all(patient);
	if (by_page)
		return;
	close_all();
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
	_exit(-op_named("punch")->run(company->t, AT * company->t->page));
}

/* Its other threads run, and its signals are handled, also by itself, and it waits still. */
static void only_the_thread_waits(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;
	unsigned before;
	pid_t pid;

	open_for_pages();
	target(PLACE_MEMFD, &t);
	l = lease(&t);
	company = company_open(&t);
	pid = fork();
	if (!pid)
		punch_in_company();
	await_wait(pid);
	for (unsigned i = 0; i < 20; i++) {
		await_wait(pid);
		before = company->rounds;
		syscall(SYS_tgkill, pid, pid, SIGUSR1);
		while ((company->signals <= i || company->rounds < before + 3) && !has_ended(pid))
			usleep(1000); /* the runner ends what takes too long */
	}
	await_wait(pid);
	assert_untouched(&t);
	assert_ok(pinl_quiesced(l));
	assert_int_equal(result_of(pid), 0);
	assert_int_equal(company->signals, 20);
	assert_gone(&t);
	munmap(company, sizeof *company);
	pinl_unmap_range(l);
	gate_target_close(&t);
	close_all();
}

static unsigned times_slept(pid_t pid)
{
	static const char name[] = "\nvoluntary_ctxt_switches:";
	char text[8192], *at = strstr(shown(pid, "status", text, sizeof text), name);

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
	target(PLACE_MEMFD, &t);
	l = lease(&t);
	pid = begin(op_named("punch"), &t, AT);
	event_of(ctx, PINL_EV_NOTICE);
	await_wait(pid);
	before = times_slept(pid);
	while (times_slept(pid) < before + 2 &&
	       !has_ended(pid)) /* the runner ends what takes too long */
		usleep(1000);
	await_wait(pid);
	assert_untouched(&t);
	assert_ok(pinl_quiesced(l));
	assert_int_equal(result_of(pid), 0);
	for (ev = (struct pinl_event){.size = sizeof ev}; !pinl_next_event(ctx, &ev);
	     ev.size = sizeof ev)
		assert_int_not_equal(ev.type, PINL_EV_NOTICE);
	pinl_unmap_range(l);
	gate_target_close(&t);
	close_all();
}

/* ------------------------------------------------------------------------------ without pinleased -- */

/* Its child of that name. */
static pid_t guard_of(pid_t pinleased)
{
	char path[64], list[512] = "", name[32] = "", *rest = list, *word;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/task/%d/children", pinleased, pinleased);
	f = fopen(path, "re");
	assert_non_null(f);
	assert_non_null(fgets(list, sizeof list, f));
	fclose(f);
	while ((word = strsep(&rest, " "))) {
		snprintf(path, sizeof path, "/proc/%s/comm", word);
		f = *word ? fopen(path, "re") : NULL;
		if (f && fgets(name, sizeof name, f) && !strcmp(name, "pinleased-guard\n")) {
			fclose(f);
			return atoi(word);
		}
		if (f)
			fclose(f);
	}
	return 0;
}

/* The gate is closed then, so he is refused. */
static void a_dead_arbiter_leaves_nobody_stopped(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;
	pid_t pid;

	open_all(patient);
	target(PLACE_MEMFD, &t);
	l = lease(&t);
	pid = begin(op_named("punch"), &t, AT);
	await_wait(pid);
	event_of(ctx, PINL_EV_NOTICE);
	arbiter_kill(&a);
	assert_int_equal(result_of(pid), -EBUSY);
	assert_int_equal(result_of(begin(op_named("ftruncate"), &t, 0)), -EBUSY);
	assert_untouched(&t);
	arbiter_restart(&a, patient);
	assert_ok(pinl_quiesced(l));
	retry(op_named("punch"), &t);
	pinl_unmap_range(l);
	gate_target_close(&t);
	close_all();
}

/* Nor do both together: the next one continues him. */
static void nor_one_with_its_guard(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;
	pid_t pid, guard;

	open_all(patient);
	target(PLACE_MEMFD, &t);
	l = lease(&t);
	pid = begin(op_named("punch"), &t, AT);
	await_wait(pid);
	guard = guard_of(a.pid);
	assert_true(guard > 0);
	kill(a.pid, SIGSTOP);
	kill(guard, SIGKILL);
	arbiter_kill(&a);
	arbiter_restart(&a, patient);
	assert_int_equal(result_of(pid), -EBUSY);
	pinl_unmap_range(l);
	gate_target_close(&t);
	close_all();
}

static void a_guard_that_is_killed_is_replaced(void **state)
{
	struct gate_target t;
	struct pinl_lease *l;
	pid_t pid, guard, next;

	open_all(patient);
	target(PLACE_MEMFD, &t);
	l = lease(&t);
	guard = guard_of(a.pid);
	assert_true(guard > 0);
	kill(guard, SIGKILL);
	do
		next = guard_of(a.pid);
	while (!next || next == guard); /* the runner ends what takes too long */
	pid = begin(op_named("punch"), &t, AT);
	await_wait(pid);
	arbiter_kill(&a);
	assert_int_equal(result_of(pid), -EBUSY);
	arbiter_restart(&a, patient);
	pinl_unmap_range(l);
	gate_target_close(&t);
	close_all();
}

/* An end in order lets all go on, as there is nobody to hold them any more. */
static void at_its_end_all_go_on(void **state)
{
	struct gate_target t;
	pid_t pid;

	open_all(patient);
	target(PLACE_MEMFD, &t);
	lease(&t);
	pid = begin(op_named("punch"), &t, AT);
	await_wait(pid);
	arbiter_stop(&a);
	assert_int_equal(result_of(pid), 0);
	gate_target_close(&t);
	pinl_close(ctx);
	ctx = NULL;
	assert_int_equal(gate_entries(DIRECTORY), 0);
}

static int clean_up(void **state)
{
	if (ctx)
		pinl_close(ctx);
	ctx = NULL;
	return 0;
}

#define TEST(name) cmocka_unit_test_teardown(name, clean_up)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		TEST(who_changes_a_memfd_waits),
		TEST(who_changes_hugetlbfs_waits),
		TEST(who_changes_a_tmpfs_file_waits),
		TEST(the_lease_says_who_is_held),
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
		TEST(at_its_end_all_go_on),
	};

	setenv("PINLEASE_COMMAND", argc > 1 ? argv[1] : "pinlease", 0);
	if (argc > 2)
		cmocka_set_test_filter(argv[2]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
