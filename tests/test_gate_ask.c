/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * How the gate's programs find what is guarded (bpf/gate.bpf.c), in the kernel's map, as pinleased keeps
 * it there. They are asked by a program that is called, so this needs root and no trampolines.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "gate_ask.h"
#include "gate_ask.skel.h"

#define OP    2u
#define OTHER 4u
#define PG    4096ull

static struct gate_ask_bpf *bpf;
static const struct gate_file file = {.ino = 5, .dev = 6, .generation = 7};
static const struct gate_file later = {.ino = 5, .dev = 6, .generation = 8};

static int silent(enum libbpf_print_level level, const char *fmt, va_list ap)
{
	return 0;
}

static int load(void **state)
{
	struct bpf_program *p;

	libbpf_set_print(silent);
	bpf = gate_ask_bpf__open();
	if (!bpf)
		return -1;
	bpf_object__for_each_program(p, bpf->obj)
		bpf_program__set_autoload(p, bpf_program__type(p) == BPF_PROG_TYPE_SYSCALL);
	if (gate_ask_bpf__load(bpf)) {
		gate_ask_bpf__destroy(bpf);
		bpf = NULL;
	}
	return 0;
}

static int unload(void **state)
{
	gate_ask_bpf__destroy(bpf);
	return 0;
}

static void need_bpf(void)
{
	if (bpf)
		return;
	print_message("skip: root, and BPF programs that can be called\n");
	skip();
}

/* -errno: it couldn't be asked. */
static int asked(struct gate_file f, uint64_t start, uint64_t end, unsigned ops)
{
	struct gate_question q = {.file = f, .start = start, .end = end, .ops = ops, .hit = -EIO};
	LIBBPF_OPTS(bpf_test_run_opts, o, .ctx_in = &q, .ctx_size_in = sizeof q);
	int err = bpf_prog_test_run_opts(bpf_program__fd(bpf->progs.ask), &o);

	return err ? err : q.hit;
}

/* The i-th range. */
static bool is_in(unsigned i)
{
	return asked(file, 10ull * i, 10ull * i + 1, OP) == 1;
}

static void put(unsigned place, unsigned i)
{
	struct gate_key key = {file, place, 0};
	struct gate_range r = {10ull * i, 10ull * i + 5, OP, 0};

	assert_int_equal(bpf_map_update_elem(bpf_map__fd(bpf->maps.ranges), &key, &r, BPF_ANY), 0);
}

static void drop(unsigned place)
{
	struct gate_key key = {file, place, 0};

	assert_int_equal(bpf_map_delete_elem(bpf_map__fd(bpf->maps.ranges), &key), 0);
}

static void each_is_found_and_nothing_else(void **state)
{
	enum { RANGES = 70 };

	need_bpf();
	assert_int_equal(asked(file, 0, GATE_END, ~0u), 0);
	for (unsigned n = 0; n < RANGES; n++) {
		put(n, n);
		for (unsigned i = 0; i < RANGES; i++)
			assert_int_equal(is_in(i), i <= n);
	}
	assert_int_equal(asked(file, 4, 5, OP), 1);
	assert_int_equal(asked(file, 5, 10, OP), 0);
	assert_int_equal(asked(file, 5, 11, OP), 1);
	assert_int_equal(asked(file, 0, 1, OTHER), 0);
	assert_int_equal(asked(file, 0, 1, OP | OTHER), 1);
	assert_int_equal(asked(later, 0, GATE_END, OP), 0);
	for (unsigned n = RANGES; n--;) {
		drop(n);
		for (unsigned i = 0; i < RANGES; i++)
			assert_int_equal(is_in(i), i < n);
	}
}

static void the_most_that_a_file_may_have(void **state)
{
	need_bpf();
	for (unsigned n = 0; n < GATE_OF_FILE; n++)
		put(n, n);
	assert_true(is_in(0) && is_in(GATE_OF_FILE / 2) && is_in(GATE_OF_FILE - 1));
	assert_false(is_in(GATE_OF_FILE));
	for (unsigned n = GATE_OF_FILE; n--;)
		drop(n);
	assert_int_equal(asked(file, 0, GATE_END, OP), 0);
}

struct looking {
	atomic_bool on, over, missed;
	atomic_uint looks, rests;
};

static struct looking *look;

/* Somebody who looks for the range while he is to. */
static pid_t looker(unsigned range)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (!look->over) {
		if (!look->on) {
			look->rests++;
			sched_yield();
			continue;
		}
		if (!is_in(range))
			look->missed = true;
		look->looks++;
	}
	_exit(0);
}

static void wait_for_more(atomic_uint *count, unsigned more)
{
	unsigned since = *count;

	while (*count - since < more)
		sched_yield();
}

/* The last range goes to the place of one that ends: there is no moment in which who looks passes it by.
 */
static void what_moves_is_found(void **state)
{
	enum { RANGES = 1000, ROUNDS = 1000, LAST = RANGES - 1 };
	pid_t pid;

	need_bpf();
	look = mmap(NULL, sizeof *look, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_true(look != MAP_FAILED);
	for (unsigned n = 0; n < RANGES; n++)
		put(n, n);
	pid = looker(LAST);
	for (unsigned i = 0; i < ROUNDS && !look->missed; i++) {
		unsigned k = i % 10;

		look->on = true;
		wait_for_more(&look->looks, 1 + i % 3);
		put(k, LAST); /* as gate_unguard() does */
		drop(LAST);
		wait_for_more(&look->looks, 2);
		look->on = false;
		wait_for_more(&look->rests, 2);
		put(LAST, LAST);
		put(k, k);
	}
	look->over = true;
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_false(look->missed);
	for (unsigned n = RANGES; n--;)
		drop(n);
	munmap(look, sizeof *look);
}

static int new_file(unsigned pages)
{
	int fd = memfd_create("gate", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)pages * PG), 0);
	return fd;
}

/* Of `to` pages 2 and 3 are guarded. */
static void expect_clone(const struct gate_clone *asked, unsigned start, unsigned end)
{
	struct gate_clone c = *asked;
	LIBBPF_OPTS(bpf_test_run_opts, o, .ctx_in = &c, .ctx_size_in = sizeof c);

	assert_int_equal(bpf_prog_test_run_opts(bpf_program__fd(bpf->progs.ask_clone), &o), 0);
	if (c.start != (__u64)start * PG || c.end != (__u64)end * PG)
		fail_msg("from %llu to %llu, %llu bytes: [%llx, %llx)", asked->from_at, asked->to_at,
			 asked->len, c.start, c.end);
}

static struct gate_key guard_by(int fd, __u32 ops, __u64 until_ns)
{
	struct gate_order order = {.fd = fd};
	LIBBPF_OPTS(bpf_test_run_opts, o, .ctx_in = &order, .ctx_size_in = sizeof order);
	struct gate_range r = {2 * PG, 4 * PG, ops, 0};
	struct gate_key key = {.place = 0};
	struct gate_state s = {.until_ns = until_ns, .ranges = 1};
	__u32 zero = 0;

	assert_int_equal(bpf_prog_test_run_opts(bpf_program__fd(bpf->progs.identify), &o), 0);
	assert_int_equal(order.found, 1);
	key.file = order.file;
	assert_int_equal(bpf_map_update_elem(bpf_map__fd(bpf->maps.ranges), &key, &r, BPF_ANY), 0);
	assert_int_equal(bpf_map_update_elem(bpf_map__fd(bpf->maps.state), &zero, &s, BPF_ANY), 0);
	return key;
}

static void guard(int fd)
{
	guard_by(fd, ~0u, UINT64_MAX);
}

static int taken(int fd)
{
	struct gate_name n = {.fd = fd, .result = -EIO};
	LIBBPF_OPTS(bpf_test_run_opts, o, .ctx_in = &n, .ctx_size_in = sizeof n);

	assert_int_equal(bpf_prog_test_run_opts(bpf_program__fd(bpf->progs.ask_name), &o), 0);
	return n.result;
}

/* Whatever bytes the lease has; and not for what it refuses of them. */
static void a_name_is_kept_for_who_asked_for_it(void **state)
{
	struct gate_key key;
	int fd, other;

	need_bpf();
	fd = new_file(8);
	other = new_file(8);
	guard_by(fd, GATE_NAME, UINT64_MAX);
	assert_int_equal(taken(fd), -EBUSY);
	assert_int_equal(taken(other), 0);
	guard_by(fd, GATE_NAME, 1); /* its time is over */
	assert_int_equal(taken(fd), 0);
	key = guard_by(fd, ~GATE_NAME, UINT64_MAX);
	assert_int_equal(taken(fd), 0);
	assert_int_equal(bpf_map_delete_elem(bpf_map__fd(bpf->maps.ranges), &key), 0);
	close(other);
	close(fd);
}

/* Whatever is asked for: cp asks for more than any file has. */
static void no_more_is_taken_than_there_is(void **state)
{
	const __u64 all = 1ull << 62;
	int two, eight, to;

	need_bpf();
	two = new_file(2);
	eight = new_file(8);
	to = new_file(8);
	guard(to);
	expect_clone(&(struct gate_clone){two, to, 0, 0, all}, 0, 0);
	expect_clone(&(struct gate_clone){two, to, 0, 0, 0}, 0, 0);
	expect_clone(&(struct gate_clone){two, to, 0, PG, all}, 1, 3);
	expect_clone(&(struct gate_clone){two, to, 0, PG, 0}, 1, 3);
	expect_clone(&(struct gate_clone){two, to, PG, PG, all}, 0, 0);
	expect_clone(&(struct gate_clone){two, to, 2 * PG, 2 * PG, all}, 0, 0);
	expect_clone(&(struct gate_clone){two, to, all, 2 * PG, all}, 0, 0);
	expect_clone(&(struct gate_clone){eight, to, 0, 0, all}, 0, 8);
	expect_clone(&(struct gate_clone){eight, to, 0, 0, 2 * PG}, 0, 0);
	expect_clone(&(struct gate_clone){eight, to, 0, 0, 3 * PG}, 0, 3);
	expect_clone(&(struct gate_clone){eight, to, 0, 4 * PG, all}, 0, 0);
	close(two);
	close(eight);
	close(to);
}

static __u64 passed_after(const struct gate_clone *call, __s64 result)
{
	struct gate_unasked u = {.call = *call, .result = result};
	LIBBPF_OPTS(bpf_test_run_opts, o, .ctx_in = &u, .ctx_size_in = sizeof u);

	assert_int_equal(bpf_prog_test_run_opts(bpf_program__fd(bpf->progs.ask_unasked), &o), 0);
	return u.passed;
}

/* A call that was to be refused, and has been made; no other. */
static void what_went_on_is_counted(void **state)
{
	int eight, to;

	need_bpf();
	eight = new_file(8);
	to = new_file(8);
	guard(to); /* nothing has been passed by since */
	assert_int_equal(passed_after(&(struct gate_clone){eight, to, 0, 0, 8 * PG}, 8 * PG), 1);
	assert_int_equal(passed_after(&(struct gate_clone){eight, to, 0, 0, 8 * PG}, -EINVAL), 1);
	assert_int_equal(passed_after(&(struct gate_clone){eight, to, 0, 0, 2 * PG}, 2 * PG), 1);
	assert_int_equal(passed_after(&(struct gate_clone){eight, to, 0, 0, 8 * PG}, 0), 2);
	close(eight);
	close(to);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_is_found_and_nothing_else),
		cmocka_unit_test(the_most_that_a_file_may_have),
		cmocka_unit_test(what_moves_is_found),
		cmocka_unit_test(no_more_is_taken_than_there_is),
		cmocka_unit_test(what_went_on_is_counted),
		cmocka_unit_test(a_name_is_kept_for_who_asked_for_it),
	};

	return cmocka_run_group_tests(tests, load, unload);
}
