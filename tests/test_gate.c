/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * REFUSE on files that fanotify doesn't see, by pinleased's gate: another process is refused exactly
 * what cuts the lease. Needs a kernel that lets BPF programs in front of its functions
 * (vm/jobs/gate*.job). argv[1]: pinlease, argv[2]: one test alone.
 */
#include "arbiter_rig.h"

#include <fcntl.h>
#include <pinlease/cache.h>
#include <pinlease/device.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gate_rig.h"

#define DIRECTORY "/sys/fs/bpf/pinlease-test"
#define FILE_OPS  (PINL_OPS_FILE | PINL_OPBIT(PINL_OP_REMOVE))
#define AT	  3 /* a leased page */
#define BEYOND	  5

static const char *const for_long[] = {"--gate", DIRECTORY, "--gate-keeps", "3600000", NULL};
/* Who comes back has twenty seconds; till then the dead one's gate refuses, and tells nobody. */
static const char *const for_a_while[] = {"--gate", DIRECTORY, "--gate-keeps", "240000", NULL};
static const char *const for_short[] = {"--gate", DIRECTORY, "--gate-keeps", "10000", NULL};
static const char *const open_then[] = {"--gate", DIRECTORY, "--gate-keeps", "3600000", "--after-crash",
					"open",	  NULL};

static struct pinl_ctx *ctx;
static struct pinl_device *dev;
static const char *pinlease; /* the command */

static const struct gate_op *op_named(const char *name)
{
	for (unsigned i = 0; i < gate_n_ops; i++)
		if (!strcmp(gate_ops[i].name, name))
			return &gate_ops[i];
	fail_msg("no operation %s", name);
	return NULL;
}

static void open_all(struct arbiter *a, const char *const *options)
{
	arbiter_start(a, options);
	assert_ok(pinl_open(NULL, &ctx));
	assert_ok(pinl_device_open(ctx, "soft", NULL, &dev));
}

static bool is_said(const char *subcommand, const char *words)
{
	char command[512];

	snprintf(command, sizeof command, "%s %s 2>&1 | grep -q '%s'", pinlease, subcommand, words);
	return !system(command);
}

static bool status_has(const char *words)
{
	char command[512];

	snprintf(command, sizeof command, "%s status | grep -q '%s'", pinlease, words);
	return !system(command);
}

/* What is guarded when it ends is left there for the next one, under the unit, and so are the dead's:
 * the runner ends what takes too long. */
static void close_all(struct arbiter *a)
{
	pinl_close(ctx);
	ctx = NULL;
	while (!status_has(": 0 leases") || gate_entries(DIRECTORY) > 1)
		usleep(10000);
	arbiter_stop(a);
	if (gate_entries(DIRECTORY))
		fail_msg("there is something left in %s", DIRECTORY);
	rmdir(DIRECTORY);
}

/* Pages 2 and 3. */
static struct pinl_lease *lease(const struct gate_target *t, unsigned refuse)
{
	struct pinl_policy p = {.size = sizeof p, .kind = PINL_REFUSE, .refuse = refuse};
	uintptr_t at = (uintptr_t)t->mem;
	struct pinl_lease *l = NULL;
	int err = pinl_map_range(dev, at + 2 * t->page, at + 4 * t->page, PINL_WRITE, &p, NULL, &l);

	if (err == -EOPNOTSUPP && getenv("PINLEASE_GATE_MEANS"))
		fail_msg("no gate: %s", pinl_error());
	if (err == -EOPNOTSUPP) {
		print_message("skip: BPF programs in front of the kernel's functions: %s\n",
			      pinl_error());
		skip();
	}
	assert_ok(err);
	return l;
}

/* By another process, with descriptors that are older than the lease. */
static int by_another(const struct gate_op *op, const struct gate_target *t, unsigned page, pid_t *who)
{
	pid_t pid = fork();
	int status;

	if (!pid)
		_exit(-op->run(t, page * t->page));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	if (who)
		*who = pid;
	return -WEXITSTATUS(status);
}

/* Of calls by rings fanotify doesn't see the arguments, and where it is asked, too, it refuses all. */
static bool is_guessed(const struct gate_op *op, struct pinl_lease *l)
{
	struct pinl_lease_info i = {.size = sizeof i};

	assert_ok(pinl_lease_info(l, &i));
	return !strncmp(op->name, "io_uring", 8) && (i.coverage[op->op] & PINL_CAN_HOLD);
}

/* What has ended has when pinleased has read that, or when those of the dead have ended. */
static void let_through(const struct gate_op *op, const struct gate_target *t)
{
	int err;

	while ((err = by_another(op, t, AT, NULL)) == -EBUSY) /* the runner ends what takes too long */
		usleep(10000);
	assert_int_equal(err, 0);
}

static int run(enum gate_place place, const struct gate_op *op, unsigned refuse, unsigned page,
	       bool *clones)
{
	struct pinl_lease *l = NULL;
	struct gate_target t;
	int err;

	assert_true(gate_target_open(place, &t));
	if (refuse)
		l = lease(&t, refuse);
	err = by_another(op, &t, page, NULL);
	if (err == -EBUSY && l && is_guessed(op, l) && (page != AT || !(refuse & PINL_OPBIT(op->op))))
		err = 0;
	if (l)
		pinl_unmap_range(l);
	*clones = t.clones;
	gate_target_close(&t);
	return err;
}

static void expect(const char *what, const struct gate_op *op, int err, int wanted)
{
	if (err != wanted)
		fail_msg("%s, %s: %s instead of %s", op->name, what, strerror(-err), strerror(-wanted));
}

static bool is_punch(const struct gate_op *op)
{
	return op->op == PINL_OP_PUNCH || op->op == PINL_OP_REMOVE;
}

static void check_op(enum gate_place place, const struct gate_op *op)
{
	unsigned others =
		FILE_OPS & ~(is_punch(op) ? PINL_OPBIT(PINL_OP_PUNCH) | PINL_OPBIT(PINL_OP_REMOVE)
					  : PINL_OPBIT(op->op));
	bool clones;
	int err = run(place, op, 0, AT, &clones);

	if (err) { /* which is known by tests/test_gate_load.c */
		gate_need_not(place, op);
		print_message("%s: no %s there: %s\n", gate_place_names[place], op->name,
			      strerror(-err));
		return;
	}
	expect("on leased bytes", op, run(place, op, PINL_OPBIT(op->op), AT, &clones),
	       op->copy && !clones ? 0 : -EBUSY);
	if (!op->all)
		expect("beyond leased bytes", op, run(place, op, FILE_OPS, BEYOND, &clones), 0);
	expect("refused other operations", op, run(place, op, others, AT, &clones), 0);
}

/* Files on disk have their fanotify without a gate. */
static void need_gate(void)
{
	struct gate_target t;

	assert_true(gate_target_open(PLACE_MEMFD, &t));
	pinl_unmap_range(lease(&t, FILE_OPS));
	gate_target_close(&t);
}

static void check_place(enum gate_place place)
{
	struct gate_target t;
	static struct arbiter a;

	if (!gate_target_open(place, &t)) {
		print_message("skip: a file of the kind %s\n", gate_place_names[place]);
		skip();
	}
	gate_target_close(&t);
	open_all(&a, for_long);
	need_gate();
	for (unsigned i = 0; i < gate_n_ops; i++)
		check_op(place, &gate_ops[i]);
	close_all(&a);
}

static void memfd_is_refused(void **state)
{
	check_place(PLACE_MEMFD);
}

static void hugetlbfs_is_refused(void **state)
{
	check_place(PLACE_HUGE);
}

static void a_file_is_refused(void **state)
{
	check_place(PLACE_DIR);
}

static void leases_add_up(void **state)
{
	const struct gate_op *punch = op_named("punch"), *truncation = op_named("ftruncate");
	struct pinl_lease *first, *second;
	struct gate_target t, again;
	static struct arbiter a;

	open_all(&a, for_long);
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	first = lease(&t, PINL_OPBIT(PINL_OP_PUNCH));
	again = t;
	again.mem = mmap(NULL, GATE_PAGES * t.page, PROT_READ | PROT_WRITE, MAP_SHARED, t.fd, 0);
	assert_true(again.mem != MAP_FAILED);
	second = lease(&again, PINL_OPBIT(PINL_OP_TRUNCATE));
	assert_int_equal(by_another(punch, &t, AT, NULL), -EBUSY);
	assert_int_equal(by_another(truncation, &t, AT, NULL), -EBUSY);
	pinl_unmap_range(first);
	let_through(punch, &t);
	assert_int_equal(by_another(truncation, &t, AT, NULL), -EBUSY);
	pinl_unmap_range(second);
	let_through(truncation, &t);
	munmap(again.mem, GATE_PAGES * t.page);
	gate_target_close(&t);
	close_all(&a);
}

static void its_holder_is_told(void **state)
{
	struct gate_target t;
	static struct arbiter a;
	struct pinl_lease *l;
	struct pinl_event ev;
	pid_t who;

	open_all(&a, for_long);
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	l = lease(&t, FILE_OPS);
	assert_int_equal(by_another(op_named("punch"), &t, AT, &who), -EBUSY);
	ev = event_of(ctx, PINL_EV_REFUSED);
	assert_int_equal(ev.op, PINL_OP_PUNCH);
	assert_int_equal(ev.actor_pid, who);
	assert_string_equal(ev.source, "gate");
	assert_int_equal(ev.start, (uintptr_t)t.mem + AT * t.page);
	assert_int_equal(ev.end, (uintptr_t)t.mem + (AT + 1) * t.page);
	pinl_unmap_range(l);
	gate_target_close(&t);
	close_all(&a);
}

/* When nothing has been leased for a while the gate is out of the way of reads and writes. */
static void a_lease_after_an_idle_time_is_refused(void **state)
{
	struct gate_target t;
	static struct arbiter a;
	struct pinl_lease *l;
	unsigned all;

	open_all(&a, for_short);
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	for (int i = 0; i < 2; i++) {
		l = lease(&t, FILE_OPS);
		assert_int_equal(by_another(op_named("punch"), &t, AT, NULL), -EBUSY);
		all = gate_pins(DIRECTORY);
		assert_true(all > 2);
		pinl_unmap_range(l);
		while (gate_pins(DIRECTORY) >= all) /* the runner ends what takes too long */
			usleep(10000);
	}
	gate_target_close(&t);
	close_all(&a);
}

static void await_unrefused(struct pinl_lease *l)
{
	struct pinl_lease_info i = {.size = sizeof i};
	struct pinl_event ev;

	assert_ok(pinl_lease_info(l, &i));
	do
		ev = event_of(ctx, PINL_EV_DEGRADED);
	while (ev.lease_id != i.id || ev.err != -EBUSY);
	print_message("went on, says %s\n", ev.source);
}

/* Nor does it have others' calls pass; or their holder is told of each. */
static void who_is_refused_without_end_keeps_nobody_waiting(void **state)
{
	enum { ACTORS = 2, LEASES = 30 };
	struct gate_target t, other;
	static struct arbiter a;
	struct pinl_lease *l;
	pid_t actor[ACTORS];
	int status, refused = 0;

	open_all(&a, for_long);
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	assert_true(gate_target_open(PLACE_MEMFD, &other));
	l = lease(&t, FILE_OPS);
	for (int i = 0; i < ACTORS; i++) {
		actor[i] = fork();
		if (!actor[i])
			prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (!actor[i])
			op_named("punch")->run(&t, AT * t.page);
	}
	event_of(ctx, PINL_EV_REFUSED);
	for (int i = 0; i < LEASES; i++) {
		struct pinl_lease *mine = lease(&other, FILE_OPS);

		if (by_another(op_named("punch"), &other, AT, NULL) == -EBUSY)
			refused++;
		else
			await_unrefused(mine);
		pinl_unmap_range(mine);
	}
	print_message("%d of %d refused\n", refused, LEASES);
	if (refused < LEASES)
		assert_true(status_has("to be refused"));
	for (int i = 0; i < ACTORS; i++) {
		kill(actor[i], SIGKILL);
		waitpid(actor[i], &status, 0);
	}
	pinl_unmap_range(l);
	gate_target_close(&t);
	gate_target_close(&other);
	close_all(&a);
}

/* As it is by fanotify: a device that has it no more is in nobody's way. */
static void what_was_taken_is_refused_no_more(void **state)
{
	struct pinl_soft_arg arg = {.size = sizeof arg, .device_class = PINL_DEV_REVOCABLE + 1};
	struct pinl_policy p = {.size = sizeof p, .kind = PINL_REFUSE, .refuse = FILE_OPS};
	struct pinl_device *revocable;
	struct pinl_lease *l = NULL;
	struct gate_target t;
	static struct arbiter a;
	char command[512];
	uintptr_t at;

	open_all(&a, for_long);
	need_gate();
	assert_ok(pinl_device_open(ctx, "soft", &arg, &revocable));
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	at = (uintptr_t)t.mem;
	assert_ok(pinl_map_range(revocable, at + 2 * t.page, at + 4 * t.page, PINL_WRITE | PINL_PIN, &p,
				 NULL, &l));
	assert_int_equal(by_another(op_named("punch"), &t, AT, NULL), -EBUSY);
	snprintf(command, sizeof command, "%s recall --pid %d --force >&2", pinlease, getpid());
	assert_int_equal(system(command), 0);
	let_through(op_named("punch"), &t);
	pinl_unmap_range(l);
	gate_target_close(&t);
	pinl_device_close(revocable);
	close_all(&a);
}

static bool was_told(enum pinl_event_type type)
{
	struct pinl_event ev = {.size = sizeof ev};

	while (!pinl_next_event(ctx, &ev))
		if (ev.type == type)
			return true;
	return false;
}

/* The library tells the next one of its lease, and that tells of what it has refused. */
static void a_dead_arbiter_leaves_it_closed(void **state)
{
	const struct gate_op *punch = op_named("punch");
	struct gate_target t;
	static struct arbiter a;
	struct pinl_lease *l;

	open_all(&a, for_a_while);
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	l = lease(&t, FILE_OPS);
	for (int i = 0; i < 2; i++) {
		arbiter_kill(&a);
		assert_int_equal(by_another(punch, &t, AT, NULL), -EBUSY);
		assert_int_equal(by_another(punch, &t, BEYOND, NULL), 0);
		while (was_told(PINL_EV_REFUSED)) /* by the one that is dead */
			;
		arbiter_restart(&a, for_a_while);
		do
			assert_int_equal(by_another(punch, &t, AT, NULL), -EBUSY);
		while (!was_told(PINL_EV_REFUSED));
	}
	pinl_unmap_range(l);
	let_through(punch, &t);
	gate_target_close(&t);
	close_all(&a);
}

/* A pinleased that can't listen anywhere, and one that is to have no gate: the first ends nothing, the
 * other all, at once, however long holders have to come back; and its lease's holder is told. */
static void a_start_that_fails_leaves_it_closed(void **state)
{
	static const char *const none[] = {"--gate",	   DIRECTORY,  "--gate", "no",
					   "--gate-keeps", "86400000", NULL};
	struct gate_target t;
	static struct arbiter a;
	struct pinl_lease *l;
	struct pinl_event ev;
	char command[512], text[2048];
	int status;

	open_all(&a, for_long);
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	l = lease(&t, FILE_OPS);
	pinl_lease_describe(l, text, sizeof text);
	assert_non_null(strstr(text, "; refused: truncate, punch, zero, collapse, insert"));
	arbiter_kill(&a);
	snprintf(command, sizeof command, "NOTIFY_SOCKET= %s --socket /nowhere/socket --gate %s >&2",
		 getenv("PINLEASED"), DIRECTORY);
	status = system(command);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status));
	assert_int_equal(by_another(op_named("punch"), &t, AT, NULL), -EBUSY);
	arbiter_restart(&a, none);
	assert_int_equal(gate_entries(DIRECTORY), 0);
	for (unsigned left = FILE_OPS; left; left &= ~PINL_OPBIT(ev.op)) /* before anybody changes it */
		do
			ev = event_of(ctx, PINL_EV_DEGRADED);
		while (ev.err != -EBUSY || ev.change_id);
	pinl_lease_describe(l, text, sizeof text);
	assert_null(strstr(text, "; refused:"));
	assert_int_equal(by_another(op_named("punch"), &t, AT, NULL), 0);
	gate_target_close(&t);
	close_all(&a);
}

static void and_not_for_ever(void **state)
{
	struct gate_target t;
	static struct arbiter a;

	open_all(&a, for_short);
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	lease(&t, FILE_OPS);
	assert_int_equal(by_another(op_named("punch"), &t, AT, NULL), -EBUSY);
	arbiter_kill(&a);
	assert_true(is_said("status", "ask pinleased"));
	if (by_another(op_named("punch"), &t, AT, NULL) == -EBUSY) /* else the machine is that slow */
		assert_true(is_said("status", "has left its gate: ") &&
			    is_said("sources", "gate: left: "));
	let_through(op_named("punch"), &t);
	assert_true(is_said("status", "refuses nothing any more"));
	assert_true(is_said("sources", "refuses nothing any more"));
	arbiter_restart(&a, for_short); /* and sweeps what the dead has left */
	gate_target_close(&t);
	close_all(&a);
}

static void end(struct arbiter *a, bool killed)
{
	int status;

	if (killed) {
		arbiter_kill(a);
		return;
	}
	kill(a->pid, SIGTERM);
	assert_int_equal(waitpid(a->pid, &status, 0), a->pid);
	assert_int_equal(status, 0);
	a->pid = 0;
}

static void open_kept(struct arbiter *a)
{
	skip_unless_changes_are_held(); /* else nothing is kept */
	if (getenv("AS_UNIT_PROGRAM"))	/* tests/as-unit passes nothing on */
		setenv("PINLEASED", getenv("AS_UNIT_PROGRAM"), 1);
	a->kept = true;
	open_all(a, for_long);
}

/* As installed. The next one has the leases from the start, so what is refused is told by it. */
static void whose_descriptors_are_kept_is_closed_all_the_time(void **state)
{
	const struct gate_op *punch = op_named("punch");
	static struct arbiter a;
	struct pinl_lease *l;
	struct gate_target t;

	open_kept(&a);
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	l = lease(&t, FILE_OPS);
	for (int i = 0; i < 4; i++) {
		end(&a, i % 2);
		assert_int_equal(by_another(punch, &t, AT, NULL), -EBUSY);
		while (was_told(PINL_EV_REFUSED)) /* by the one that has ended */
			;
		arbiter_restart(&a, for_long);
		assert_int_equal(by_another(punch, &t, AT, NULL), -EBUSY);
		assert_string_equal(event_of(ctx, PINL_EV_REFUSED).source, "gate");
	}
	pinl_unmap_range(l);
	let_through(punch, &t);
	gate_target_close(&t);
	close_all(&a);
}

/* It ended meanwhile, or can't be found for another reason: the next one can't know. */
static void what_is_not_taken_up_stays_closed(void **state)
{
	const struct gate_op *punch = op_named("punch");
	struct pinl_lease *l, *lost;
	struct gate_target t, other;
	static struct arbiter a;

	open_kept(&a);
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	assert_true(gate_target_open(PLACE_MEMFD, &other));
	l = lease(&t, FILE_OPS);
	lost = lease(&other, FILE_OPS);
	arbiter_kill(&a);
	pinl_unmap_range(lost);
	assert_ptr_equal(mmap(other.mem, GATE_PAGES * other.page, PROT_NONE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
			 other.mem);
	arbiter_restart(&a, for_long);
	assert_int_equal(by_another(punch, &other, AT, NULL), -EBUSY);
	arbiter_kill(&a);
	arbiter_restart(&a, for_long); /* which has all there is */
	let_through(punch, &other);
	assert_int_equal(by_another(punch, &t, AT, NULL), -EBUSY);
	pinl_unmap_range(l);
	gate_target_close(&t);
	gate_target_close(&other);
	close_all(&a);
}

/* What a cache has that nobody uses stands in nobody's way for long. */
static void an_unused_registration_lets_go(void **state)
{
	struct pinl_cache_opts opts = {
		.size = sizeof opts,
		.flags = PINL_COOPERATIVE,
		.policy = {.size = sizeof opts.policy, .kind = PINL_REFUSE, .refuse = FILE_OPS}};
	const struct gate_op *punch = op_named("punch");
	const struct pinl_reg *reg;
	struct gate_target t;
	static struct arbiter a;

	open_all(&a, for_long);
	need_gate();
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	assert_ok(pinl_cache_open(dev, &opts));
	assert_ok(pinl_get(dev, t.mem + AT * t.page, t.page, PINL_WRITE, &reg));
	for (int i = 0; i < 3; i++) {
		assert_int_equal(by_another(punch, &t, AT, NULL), -EBUSY);
		event_of(ctx, PINL_EV_REFUSED);
	}
	pinl_put(reg);
	assert_int_equal(by_another(punch, &t, AT, NULL), -EBUSY);
	let_through(punch, &t);
	gate_target_close(&t);
	close_all(&a);
}

static void open_after_a_crash(void **state)
{
	struct gate_target t;
	static struct arbiter a;

	open_all(&a, open_then);
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	lease(&t, FILE_OPS);
	assert_int_equal(by_another(op_named("punch"), &t, AT, NULL), -EBUSY);
	assert_int_equal(gate_entries(DIRECTORY), 0);
	arbiter_kill(&a);
	let_through(op_named("punch"), &t); /* the kernel takes its time to let go */
	arbiter_restart(&a, open_then);
	gate_target_close(&t);
	close_all(&a);
}

/* Without a gate nothing is promised that can't be kept. */
static void no_gate_is_said(void **state)
{
	static const char *const none[] = {"--gate", "no", NULL};
	struct pinl_policy p = {.size = sizeof p, .kind = PINL_REFUSE, .refuse = FILE_OPS};
	struct pinl_lease *l = NULL;
	struct gate_target t;
	static struct arbiter a;

	open_all(&a, none);
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	assert_int_equal(pinl_map_range(dev, (uintptr_t)t.mem, (uintptr_t)t.mem + t.page, PINL_WRITE, &p,
					NULL, &l),
			 -EOPNOTSUPP);
	assert_non_null(strstr(pinl_error(), "pinleased's gate refuses"));
	assert_int_equal(by_another(op_named("punch"), &t, AT, NULL), 0);
	gate_target_close(&t);
	close_all(&a);
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
		TEST(memfd_is_refused),
		TEST(hugetlbfs_is_refused),
		TEST(a_file_is_refused),
		TEST(leases_add_up),
		TEST(its_holder_is_told),
		TEST(a_dead_arbiter_leaves_it_closed),
		TEST(a_start_that_fails_leaves_it_closed),
		TEST(and_not_for_ever),
		TEST(open_after_a_crash),
		TEST(no_gate_is_said),
		TEST(a_lease_after_an_idle_time_is_refused),
		TEST(who_is_refused_without_end_keeps_nobody_waiting),
		TEST(what_was_taken_is_refused_no_more),
		TEST(an_unused_registration_lets_go),
		TEST(whose_descriptors_are_kept_is_closed_all_the_time),
		TEST(what_is_not_taken_up_stays_closed),
	};

	pinlease = argc > 1 ? argv[1] : "pinlease";
	if (argc > 2)
		cmocka_set_test_filter(argv[2]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
