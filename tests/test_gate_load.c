/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The gate's programs, without pinleased: bytes of a file are guarded, and every way to take them is
 * refused where it touches them. Needs a kernel that lets BPF programs in front of its functions: they
 * run in the VM (vm/jobs/gate*.job). PINLEASE_GATE_MEANS: by which means that has to be.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <cmocka.h>
#include "check.h"
#include "daemon/gate_load.h"
#include "gate_rig.h"

#define DIRECTORY GATE_DIR "-test"
#define LONG_MS	  3600000

static struct gate_programs *gate;
static char why_not[512];

static void need_gate(void)
{
	if (gate)
		return;
	print_message("skip: BPF programs in front of the kernel's functions: %s\n", why_not);
	skip();
}

static int load_once(void **state)
{
	if (gate_load(NULL, LONG_MS, &gate))
		snprintf(why_not, sizeof why_not, "%s", pinl_error());
	return 0;
}

static int unload(void **state)
{
	gate_unload(gate);
	return 0;
}

/* Pages 2 and 3. */
static struct gate_file guard(struct gate_programs *g, const struct gate_target *t, unsigned ops)
{
	struct gate_range r = {.start = 2 * t->page, .end = 4 * t->page, .ops = ops};
	struct gate_file file;

	assert_ok(gate_identify(g, t->fd, &file));
	assert_ok(gate_guard(g, &file, 0, &r));
	return file;
}

static int run(enum gate_place place, const struct gate_op *op, unsigned guarded, unsigned page,
	       bool *clones)
{
	struct gate_target t;
	struct gate_file file;
	int err;

	assert_true(gate_target_open(place, &t));
	if (guarded)
		file = guard(gate, &t, guarded);
	err = op->run(&t, page * t.page);
	if (guarded)
		assert_ok(gate_unguard(gate, &file, 0, 0, NULL));
	*clones = t.clones;
	gate_target_close(&t);
	return err;
}

static bool is_lacking(int err)
{
	return err == -EOPNOTSUPP || err == -EINVAL || err == -ENOSYS || err == -ENOTTY;
}

static void expect(const char *what, const struct gate_op *op, int err, int wanted)
{
	if (err != wanted)
		fail_msg("%s, %s: %s instead of %s", op->name, what, strerror(-err), strerror(-wanted));
}

/* XFS does when it shifts. */
static bool drops_page_before(enum gate_place place)
{
	struct gate_target t;
	bool xfs;

	assert_true(gate_target_open(place, &t));
	xfs = !gate_may_lack(&t, "collapse");
	gate_target_close(&t);
	return xfs;
}

/* Of a file in memory, by fallocate(2). */
static bool has_other_ways(enum gate_place place, const struct gate_op *op)
{
	return place != PLACE_DIR &&
	       (!strcmp(op->name, "zero") || op->op == PINL_OP_COLLAPSE || op->op == PINL_OP_INSERT);
}

static void check_op(enum gate_place place, const struct gate_op *op)
{
	unsigned others = PINL_OPS_ALL & ~PINL_OPBIT(op->op);
	bool clones;
	int lacking;

	lacking = run(place, op, 0, 3, &clones);
	if (is_lacking(lacking)) {
		if (has_other_ways(place, op)) /* it says so still */
			expect("guarded where there is none", op,
			       run(place, op, PINL_OPBIT(op->op), 3, &clones), lacking);
		gate_need_not(place, op);
		print_message("%s: no %s there\n", gate_place_names[place], op->name);
		return;
	}
	expect("unguarded", op, run(place, op, 0, 3, &clones), 0);
	expect("on guarded bytes", op, run(place, op, PINL_OPBIT(op->op), 3, &clones),
	       op->copy && !clones ? 0 : -EBUSY);
	if (!op->all)
		expect("beyond guarded bytes", op, run(place, op, PINL_OPS_ALL, 5, &clones), 0);
	if (op->op == PINL_OP_COLLAPSE || op->op == PINL_OP_INSERT)
		expect("right behind guarded bytes", op, run(place, op, PINL_OPS_ALL, 4, &clones),
		       drops_page_before(place) ? -EBUSY : 0);
	if (op->op == PINL_OP_PUNCH || op->op == PINL_OP_REMOVE) /* which is a punch, too */
		others &= ~(PINL_OPBIT(PINL_OP_PUNCH) | PINL_OPBIT(PINL_OP_REMOVE));
	expect("guarded against others", op, run(place, op, others, 3, &clones), 0);
}

static void check_place(enum gate_place place)
{
	struct gate_target t;

	need_gate();
	if (!gate_target_open(place, &t)) {
		print_message("skip: a file of the kind %s: %s\n", gate_place_names[place],
			      strerror(errno));
		skip();
	}
	gate_target_close(&t);
	for (unsigned i = 0; i < gate_n_ops; i++)
		check_op(place, &gate_ops[i]);
}

static void memfd_is_guarded(void **state)
{
	check_place(PLACE_MEMFD);
}

static void hugetlbfs_is_guarded(void **state)
{
	check_place(PLACE_HUGE);
}

static void a_file_is_guarded(void **state)
{
	check_place(PLACE_DIR);
}

static void means_are_those_of_the_kernel(void **state)
{
	const char *wanted = getenv("PINLEASE_GATE_MEANS");

	if (wanted && !gate)
		fail_msg("no gate: %s", why_not);
	need_gate();
	print_message("by %s\n", gate_means(gate));
	if (wanted)
		assert_string_equal(gate_means(gate), wanted);
}

/* With another order of arguments programs would read zeros, and let all pass. This needs no gate. */
static void an_unknown_kernel_is_said(void **state)
{
	unsigned n = 0;

	if (access("/sys/kernel/btf/vmlinux", R_OK)) {
		print_message("skip: a kernel that describes its types\n");
		skip();
	}
	assert_ok(gate_look_at_types("security_inode_setattr", "security_file_permission", &n));
	assert_true(n == 2 || n == 3);
	assert_int_equal(gate_look_at_types("security_inode_setattr", "security_path_truncate", &n),
			 -EOPNOTSUPP);
	assert_non_null(strstr(pinl_error(), "argument 1 of 2 isn't a struct file"));
	assert_int_equal(gate_look_at_types("vfs_fallocate", "security_file_permission", &n),
			 -EOPNOTSUPP);
	assert_non_null(strstr(pinl_error(), "isn't a struct dentry"));
	assert_int_equal(gate_look_at_types("no_such_function", "security_file_permission", &n),
			 -EOPNOTSUPP);
	assert_non_null(strstr(pinl_error(), "no no_such_function()"));
	assert_ok(gate_look_at_name_types(false));
	assert_ok(gate_look_at_name_types(true));
}

static void writes_and_partial_pages_pass(void **state)
{
	const struct {
		int mode;
		off_t offset, len;
	} harmless[] = {
		{0, 2 * 4096, 4096},
		{FALLOC_FL_KEEP_SIZE, 3 * 4096, 32 * 4096},
		{FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * 4096 + 8, 4000},
		{FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 2 * 4096 + 100},
	};
	struct gate_target t;
	struct gate_file file;

	need_gate();
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	file = guard(gate, &t, PINL_OPS_ALL);
	assert_int_equal(pwrite(t.fd, "x", 1, 2 * t.page), 1);
	for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++)
		if (fallocate(t.fd, harmless[i].mode, harmless[i].offset, harmless[i].len))
			fail_msg("%zu: %s", i, strerror(errno));
	assert_int_equal(ftruncate(t.fd, 3 * t.page + 1), 0);
	assert_int_equal(ftruncate(t.fd, 3 * t.page), -1);
	assert_int_equal(errno, EBUSY);
	assert_int_equal(ftruncate(t.fd, 100 * t.page), 0);
	assert_ok(gate_unguard(gate, &file, 0, 0, NULL));
	gate_target_close(&t);
}

/* Who asks for more than there is, as cp does, takes no more than there is. */
static void a_copy_is_as_long_as_its_source(void **state)
{
	off_t from = 0, to = 0;
	struct gate_target t;
	struct gate_file file;

	need_gate();
	assert_true(gate_target_open(PLACE_DIR, &t));
	file = guard(gate, &t, PINL_OPS_ALL);
	if (t.clones) { /* to the end of a source that reaches into what is guarded, and before it */
		struct file_clone_range all = {.src_fd = t.source};

		assert_int_equal(ioctl(t.fd, FICLONERANGE, &all), -1);
		assert_int_equal(errno, EBUSY);
		assert_int_equal(copy_file_range(t.source, &from, t.fd, &to, 1l << 40, 0), -1);
		assert_int_equal(errno, EBUSY);
	}
	assert_int_equal(ftruncate(t.source, 2 * t.page), 0);
	assert_int_equal(copy_file_range(t.source, &from, t.fd, &to, 1l << 40, 0), 2 * t.page);
	assert_ok(gate_unguard(gate, &file, 0, 0, NULL));
	gate_target_close(&t);
}

/* A refused call leaves nothing behind that a later write of the same thread would meet. */
static void a_write_after_a_refusal_passes(void **state)
{
	struct gate_target t;
	struct gate_file file;

	need_gate();
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	file = guard(gate, &t, PINL_OPS_ALL);
	for (int i = 0; i < 2000; i++) {
		assert_int_equal(gate_ops[4].run(&t, 3 * t.page), -EBUSY);
		assert_int_equal(pwrite(t.fd, "x", 1, 2 * t.page), 1);
	}
	/* Refused for another reason, before it asks whether it may be written to. */
	assert_int_equal(fallocate(t.fd, FALLOC_FL_PUNCH_HOLE, 3 * t.page, t.page), -1);
	assert_int_not_equal(errno, EBUSY);
	assert_int_equal(pwrite(t.fd, "x", 1, 2 * t.page), 1);
	assert_ok(gate_unguard(gate, &file, 0, 0, NULL));
	gate_target_close(&t);
}

static void count_told(const struct gate_refusal *r, void *arg)
{
	++*(unsigned *)arg;
}

static unsigned read_all(void)
{
	struct pollfd p = {.fd = gate_fd(gate), .events = POLLIN};
	unsigned n = 0;

	while (poll(&p, 1, 0) == 1)
		gate_read(gate, count_told, &n);
	return n;
}

static void told(const struct gate_refusal *r, void *arg)
{
	*(struct gate_refusal *)arg = *r;
}

static void refusals_are_told(void **state)
{
	struct gate_refusal r = {0};
	struct gate_target t;
	struct gate_file file;

	need_gate();
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	file = guard(gate, &t, PINL_OPS_ALL);
	read_all();
	assert_int_equal(gate_ops[4].run(&t, 3 * t.page), -EBUSY);
	gate_read(gate, told, &r);
	assert_int_equal(r.op, PINL_OP_PUNCH);
	assert_int_equal(r.start, 3 * t.page);
	assert_int_equal(r.end, 4 * t.page);
	assert_int_equal(r.pid, getpid());
	assert_memory_equal(&r.file, &file, sizeof file);
	assert_ok(gate_unguard(gate, &file, 0, 0, NULL));
	gate_target_close(&t);
}

/* However fast they come, who reads gets to do something else. */
static void refusals_are_read_in_parts(void **state)
{
	enum { REFUSALS = 200 };
	struct gate_target t;
	struct gate_file file;
	unsigned n = 0;

	need_gate();
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	file = guard(gate, &t, PINL_OPS_ALL);
	read_all();
	for (int i = 0; i < REFUSALS; i++)
		assert_int_equal(gate_ops[4].run(&t, 3 * t.page), -EBUSY);
	gate_read(gate, count_told, &n);
	assert_true(n > 0 && n <= REFUSALS / 2);
	assert_int_equal(n + read_all(), REFUSALS);
	assert_ok(gate_unguard(gate, &file, 0, 0, NULL));
	gate_target_close(&t);
}

static void a_full_ring_is_said(void **state)
{
	enum { REFUSALS = 5000 };
	struct gate_target t;
	struct gate_file file;
	uint64_t before;

	need_gate();
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	file = guard(gate, &t, PINL_OPS_ALL);
	read_all();
	before = gate_untold(gate);
	for (int i = 0; i < REFUSALS; i++)
		assert_int_equal(gate_ops[4].run(&t, 3 * t.page), -EBUSY);
	assert_true(gate_untold(gate) > before);
	assert_int_equal(read_all() + gate_untold(gate) - before, REFUSALS);
	assert_ok(gate_unguard(gate, &file, 0, 0, NULL));
	gate_target_close(&t);
}

static struct gate_range every_other(const struct gate_target *t, unsigned i)
{
	return (struct gate_range){2 * i * t->page, (2 * i + 1) * t->page, PINL_OPS_ALL, 0};
}

static void many_ranges_are_told_apart(void **state)
{
	enum { RANGES = 300 };
	struct gate_target t;
	struct gate_file file;
	struct gate_range r;

	need_gate();
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	assert_int_equal(ftruncate(t.fd, 2 * RANGES * t.page), 0);
	assert_ok(gate_identify(gate, t.fd, &file));
	for (unsigned i = 0; i < RANGES; i++) {
		r = every_other(&t, i);
		assert_ok(gate_guard(gate, &file, i, &r));
		for (unsigned j = 0; j <= i; j += i > 20 && i < RANGES - 1 ? 37 : 1)
			assert_int_equal(gate_ops[4].run(&t, 2 * j * t.page), -EBUSY);
	}
	for (unsigned i = 0; i < 2 * RANGES; i++)
		assert_int_equal(gate_ops[4].run(&t, i * t.page), i % 2 ? 0 : -EBUSY);
	/* The last one goes to the place of the first, and so on; the others are there still. */
	for (unsigned i = 0, n = RANGES; i < RANGES / 2; i++) {
		r = every_other(&t, --n);
		assert_ok(gate_unguard(gate, &file, i, n, &r));
		assert_int_equal(gate_ops[4].run(&t, 2 * i * t.page), 0);
		assert_int_equal(gate_ops[4].run(&t, 2 * n * t.page), -EBUSY);
		assert_int_equal(gate_ops[4].run(&t, 2 * (RANGES / 2) * t.page), -EBUSY);
	}
	for (unsigned n = RANGES / 2; n--;)
		assert_ok(gate_unguard(gate, &file, n, n, NULL));
	assert_int_equal(ftruncate(t.fd, 0), 0);
	gate_target_close(&t);
}

/* ----------------------------------------------------------------------------------- afterwards -- */

static void assert_pinned(const struct gate_programs *g)
{
	if (gate_unpinned(g))
		fail_msg("not pinned: %s", gate_unpinned(g));
	assert_int_equal(access(gate_own(g), F_OK), 0);
}

/* A process that guards the file and is killed. */
static void guard_and_die(const struct gate_target *t, unsigned keep_ms)
{
	struct gate_programs *g;
	int status, ready[2];
	pid_t child;
	char c;

	assert_int_equal(pipe(ready), 0);
	child = fork();
	if (!child) {
		if (gate_load(DIRECTORY, keep_ms, &g) || gate_unpinned(g))
			_exit(1);
		guard(g, t, PINL_OPS_ALL);
		gate_renew(g);
		if (write(ready[1], "x", 1) == 1)
			pause();
		_exit(1);
	}
	close(ready[1]);
	assert_int_equal(read(ready[0], &c, 1), 1);
	close(ready[0]);
	kill(child, SIGKILL);
	assert_int_equal(waitpid(child, &status, 0), child);
}

static void the_dead_guard_until_they_are_taken_over(void **state)
{
	struct gate_target t;

	need_gate();
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	guard_and_die(&t, LONG_MS);
	assert_int_equal(gate_ops[4].run(&t, 3 * t.page), -EBUSY);
	assert_int_equal(ftruncate(t.fd, 0), -1);
	assert_int_equal(gate_entries(DIRECTORY), 1);
	gate_take_over(DIRECTORY, NULL, 0);
	assert_int_equal(gate_entries(DIRECTORY), 0);
	assert_int_equal(gate_ops[4].run(&t, 3 * t.page), 0);
	assert_int_equal(ftruncate(t.fd, 0), 0);
	gate_target_close(&t);
	rmdir(DIRECTORY);
}

static void the_dead_guard_not_for_ever(void **state)
{
	struct gate_target t;

	need_gate();
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	guard_and_die(&t, 2000);
	while (ftruncate(t.fd, 0)) { /* the runner ends a test that takes too long */
		assert_int_equal(errno, EBUSY);
		usleep(1000);
	}
	gate_take_over(DIRECTORY, NULL, UINT64_MAX);
	assert_int_equal(gate_entries(DIRECTORY), 0);
	gate_target_close(&t);
	rmdir(DIRECTORY);
}

/* The programs that each read and write passes go, and come back when they are needed. */
static void an_idle_gate_is_out_of_the_way(void **state)
{
	struct gate_programs *g;
	struct gate_target t;
	struct gate_file file;
	unsigned all, answers;

	need_gate();
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	assert_ok(gate_load(DIRECTORY, LONG_MS, &g));
	assert_pinned(g);
	all = gate_pins(DIRECTORY);
	answers = strcmp(gate_means(g), "lsm") ? 3 : 1;
	for (int i = 0; i < 3; i++) {
		file = guard(g, &t, PINL_OPS_ALL);
		assert_int_equal(gate_ops[4].run(&t, 3 * t.page), -EBUSY);
		assert_int_equal(gate_pins(DIRECTORY), all);
		assert_ok(gate_unguard(g, &file, 0, 0, NULL));
		gate_renew(g);
		gate_renew(g);
		assert_int_equal(gate_pins(DIRECTORY), all - answers);
	}
	gate_unload(g);
	gate_target_close(&t);
	rmdir(DIRECTORY);
}

/* Somebody has removed it: at the next look, or with the next lease. */
static void what_is_removed_is_pinned_anew(void **state)
{
	struct gate_programs *g;
	struct gate_target t;
	struct gate_file file;

	need_gate();
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	assert_ok(gate_load(DIRECTORY, LONG_MS, &g));
	file = guard(g, &t, PINL_OPS_ALL);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(system("rm -r " DIRECTORY), 0);
		gate_renew(g);
		assert_pinned(g);
		assert_int_equal(gate_ops[4].run(&t, 3 * t.page), -EBUSY);
	}
	assert_ok(gate_unguard(g, &file, 0, 0, NULL));
	gate_renew(g);
	gate_renew(g); /* it is out of the way */
	assert_int_equal(system("rm -r " DIRECTORY), 0);
	file = guard(g, &t, PINL_OPS_ALL);
	assert_pinned(g);
	assert_int_equal(gate_ops[4].run(&t, 3 * t.page), -EBUSY);
	assert_ok(gate_unguard(g, &file, 0, 0, NULL));
	gate_unload(g);
	assert_int_equal(access(DIRECTORY, F_OK), -1);
	gate_target_close(&t);
}

/* As by a stop of pinleased that is longer than that. */
static void what_was_open_is_said(void **state)
{
	struct gate_programs *g;
	struct gate_target t;
	struct gate_file file;
	int err;

	need_gate();
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	assert_ok(gate_load(NULL, 1, &g));
	file = guard(g, &t, PINL_OPS_ALL);
	do
		err = gate_ops[4].run(&t, 3 * t.page);
	while (err == -EBUSY);
	assert_ok(err);
	gate_renew(g);
	assert_true(gate_was_open(g) > 0);
	assert_ok(gate_unguard(g, &file, 0, 0, NULL));
	gate_unload(g);
	gate_target_close(&t);
}

/* Where it can't be pinned any more. */
static void without_its_folder_it_guards_still(void **state)
{
	struct gate_programs *g;
	struct gate_target t;
	struct gate_file file;
	char command[128];

	need_gate();
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	assert_ok(gate_load(DIRECTORY, LONG_MS, &g));
	assert_pinned(g);
	gate_renew(g);
	gate_renew(g); /* it is out of the way */
	snprintf(command, sizeof command, "rm -rf %s", DIRECTORY);
	assert_int_equal(system(command), 0);
	assert_int_equal(mkdir(DIRECTORY, 0700), 0);
	assert_int_equal(chmod(DIRECTORY, 0777), 0); /* where nothing is pinned */
	for (int i = 0; i < 2; i++) {
		file = guard(g, &t, PINL_OPS_ALL);
		assert_int_equal(gate_ops[4].run(&t, 3 * t.page), -EBUSY);
		assert_non_null(strstr(gate_unpinned(g), "no others may write there"));
		assert_ok(gate_unguard(g, &file, 0, 0, NULL));
		gate_renew(g);
		gate_renew(g);
	}
	gate_unload(g);
	assert_int_equal(rmdir(DIRECTORY), 0);
	gate_target_close(&t);
}

/* Its process ends on purpose: what it guards is guarded a little longer, and where there is nothing
 * nothing stays. */
static void who_hands_over_leaves_what_is_guarded(void **state)
{
	struct gate_programs *g;
	struct gate_target t;
	int status;
	pid_t pid;

	need_gate();
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	for (int guards = 0; guards < 2; guards++) {
		pid = fork();
		if (!pid) {
			if (gate_load(DIRECTORY, LONG_MS, &g) || gate_unpinned(g))
				_exit(1);
			if (guards)
				guard(g, &t, PINL_OPS_ALL);
			gate_leave(g, LONG_MS);
			_exit(0);
		}
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
		assert_int_equal(gate_entries(DIRECTORY), guards);
		assert_int_equal(gate_ops[4].run(&t, 3 * t.page), guards ? -EBUSY : 0);
	}
	gate_take_over(DIRECTORY, NULL, 0);
	assert_int_equal(gate_ops[4].run(&t, 3 * t.page), 0);
	gate_target_close(&t);
	rmdir(DIRECTORY);
}

/* It guards all the same; the rest is tests/test_gate_pin.c's. */
static void where_others_may_write_nothing_is_pinned(void **state)
{
	struct gate_programs *g;
	struct gate_target t;

	need_gate();
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	if (mkdir(DIRECTORY, 0700) || chmod(DIRECTORY, 0777))
		fail_msg("%s: %s", DIRECTORY, strerror(errno));
	assert_ok(gate_load(DIRECTORY, LONG_MS, &g));
	assert_non_null(gate_unpinned(g));
	assert_non_null(strstr(gate_unpinned(g), "no others may write there"));
	assert_int_equal(gate_entries(DIRECTORY), 0);
	guard(g, &t, PINL_OPS_ALL);
	assert_int_equal(gate_ops[4].run(&t, 3 * t.page), -EBUSY);
	gate_unload(g);
	gate_target_close(&t);
	rmdir(DIRECTORY);
}

static void a_clean_end_leaves_nothing(void **state)
{
	struct gate_programs *g;
	struct gate_target t;

	need_gate();
	assert_true(gate_target_open(PLACE_MEMFD, &t));
	assert_ok(gate_load(DIRECTORY, LONG_MS, &g));
	assert_pinned(g);
	guard(g, &t, PINL_OPS_ALL);
	assert_int_equal(ftruncate(t.fd, 0), -1);
	gate_unload(g);
	assert_int_equal(access(DIRECTORY, F_OK), -1);
	assert_int_equal(ftruncate(t.fd, 0), 0);
	gate_target_close(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(means_are_those_of_the_kernel),
		cmocka_unit_test(memfd_is_guarded),
		cmocka_unit_test(hugetlbfs_is_guarded),
		cmocka_unit_test(a_file_is_guarded),
		cmocka_unit_test(an_unknown_kernel_is_said),
		cmocka_unit_test(writes_and_partial_pages_pass),
		cmocka_unit_test(a_copy_is_as_long_as_its_source),
		cmocka_unit_test(a_write_after_a_refusal_passes),
		cmocka_unit_test(refusals_are_told),
		cmocka_unit_test(refusals_are_read_in_parts),
		cmocka_unit_test(a_full_ring_is_said),
		cmocka_unit_test(many_ranges_are_told_apart),
		cmocka_unit_test(the_dead_guard_until_they_are_taken_over),
		cmocka_unit_test(the_dead_guard_not_for_ever),
		cmocka_unit_test(an_idle_gate_is_out_of_the_way),
		cmocka_unit_test(what_is_removed_is_pinned_anew),
		cmocka_unit_test(what_was_open_is_said),
		cmocka_unit_test(without_its_folder_it_guards_still),
		cmocka_unit_test(who_hands_over_leaves_what_is_guarded),
		cmocka_unit_test(where_others_may_write_nothing_is_pinned),
		cmocka_unit_test(a_clean_end_leaves_nothing),
	};

	return cmocka_run_group_tests(tests, load_once, unload);
}
