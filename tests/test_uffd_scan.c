/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a blocked system call is going to do, from its arguments alone. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "os/compat.h"
#include "source/uffd_scan.h"

#define P   4096ul
#define A   (1024 * P)
#define B   (4096 * P)
#define BRK (9 * P)

#define CALL(...) (&(struct pl_syscall){__VA_ARGS__})

static void decodes(const struct pl_syscall *call, int nr, const struct pl_uffd_range *want)
{
	struct pl_uffd_range got[2] = {{0}};

	assert_int_equal(pl_uffd_decode(call, BRK, got), nr);
	for (int i = 0; i < nr; i++) {
		assert_int_equal(got[i].op, want[i].op);
		assert_int_equal(got[i].start, want[i].start);
		assert_int_equal(got[i].end, want[i].end);
	}
}

#define ONE(call, ...) decodes(call, 1, (struct pl_uffd_range[]){{__VA_ARGS__}})
#define NONE(call)     decodes(call, 0, NULL)

static void munmap_is_an_unmap(void **state)
{
	ONE(CALL(SYS_munmap, {A, 2 * P}), PINL_OP_UNMAP, A, A + 2 * P);
	ONE(CALL(SYS_munmap, {A, P + 1}), PINL_OP_UNMAP, A, A + 2 * P);
	NONE(CALL(SYS_munmap, {A, 0}));
	NONE(CALL(SYS_munmap, {A + 1, P}));
	NONE(CALL(SYS_munmap, {A, ULONG_MAX}));
	NONE(CALL(SYS_munmap, {-P, 2 * P}));
}

static void only_fixed_mmap_overmaps(void **state)
{
	ONE(CALL(SYS_mmap, {A, P, PROT_READ, MAP_PRIVATE | MAP_FIXED, -1ul, 0}), PINL_OP_OVERMAP, A,
	    A + P);
	NONE(CALL(SYS_mmap, {A, P, PROT_READ, MAP_PRIVATE, -1ul, 0}));
	NONE(CALL(SYS_mmap, {A, P, PROT_READ, MAP_PRIVATE | MAP_FIXED_NOREPLACE, -1ul, 0}));
	NONE(CALL(SYS_mmap, {A, P, PROT_READ, MAP_PRIVATE | MAP_FIXED | MAP_FIXED_NOREPLACE, -1ul, 0}));
	NONE(CALL(SYS_mmap, {A, 0, PROT_READ, MAP_PRIVATE | MAP_FIXED, -1ul, 0}));
}

static void mremap_moves_shrinks_and_overmaps(void **state)
{
	unsigned long move = MREMAP_MAYMOVE, to = move | MREMAP_FIXED, keep = move | MREMAP_DONTUNMAP;
	struct pl_uffd_range both[] = {{PINL_OP_REMAP, A, A + 4 * P}, {PINL_OP_OVERMAP, B, B + 2 * P}};

	decodes(CALL(SYS_mremap, {A, 4 * P, 2 * P, to, B}), 2, both);
	decodes(CALL(SYS_mremap, {A, 3 * P + 1, P + 1, to, B}), 2, both);
	ONE(CALL(SYS_mremap, {A, 0, 2 * P, to, B}), PINL_OP_OVERMAP, B, B + 2 * P);
	ONE(CALL(SYS_mremap, {A, 4 * P, 8 * P, move}), PINL_OP_REMAP, A, A + 4 * P);
	ONE(CALL(SYS_mremap, {A, 4 * P, 4 * P, keep}), PINL_OP_REMAP, A, A + 4 * P);
	ONE(CALL(SYS_mremap, {A, 4 * P, P, 0}), PINL_OP_UNMAP, A + P, A + 4 * P);
	ONE(CALL(SYS_mremap, {A, 4 * P, P, move}), PINL_OP_UNMAP, A + P, A + 4 * P);
}

static void mremap_that_does_nothing(void **state)
{
	NONE(CALL(SYS_mremap, {A, 4 * P, 4 * P, MREMAP_MAYMOVE}));
	NONE(CALL(SYS_mremap, {A, 4 * P, 8 * P, 0}));
	NONE(CALL(SYS_mremap, {A, 4 * P, 0, 0}));
	NONE(CALL(SYS_mremap, {A + 1, 0, 4 * P, MREMAP_MAYMOVE}));
	NONE(CALL(SYS_mremap, {A, 0, 4 * P, 0}));
	NONE(CALL(SYS_mremap, {A, 0, 0, MREMAP_MAYMOVE}));
	NONE(CALL(SYS_mremap, {A, 4 * P, 4 * P, MREMAP_FIXED, B}));
	NONE(CALL(SYS_mremap, {A, 4 * P, 4 * P, MREMAP_DONTUNMAP}));
	NONE(CALL(SYS_mremap, {A, 4 * P, 2 * P, 64}));
}

static void a_second_mapping_makes_an_event_and_takes_nothing(void **state)
{
	decodes(CALL(SYS_mremap, {A, 0, 4 * P, MREMAP_MAYMOVE}), -ENOMSG, NULL);
}

static void madvise_discards(void **state)
{
	ONE(CALL(SYS_madvise, {A, P, MADV_DONTNEED}), PINL_OP_DONTNEED, A, A + P);
	ONE(CALL(SYS_madvise, {A, 1, MADV_DONTNEED_LOCKED}), PINL_OP_DONTNEED, A, A + P);
	ONE(CALL(SYS_madvise, {A, P, MADV_FREE}), PINL_OP_FREE, A, A + P);
	ONE(CALL(SYS_madvise, {A, P, MADV_REMOVE}), PINL_OP_REMOVE, A, A + P);
	NONE(CALL(SYS_madvise, {A, P, MADV_WILLNEED}));
	NONE(CALL(SYS_madvise, {A, P, MADV_GUARD_INSTALL}));
	NONE(CALL(SYS_madvise, {A, 0, MADV_DONTNEED}));
}

static void a_smaller_brk_unmaps(void **state)
{
	ONE(CALL(SYS_brk, {BRK - 2 * P}), PINL_OP_UNMAP, BRK - 2 * P, BRK);
	ONE(CALL(SYS_brk, {BRK - 2 * P - 1}), PINL_OP_UNMAP, BRK - 2 * P, BRK);
	NONE(CALL(SYS_brk, {BRK}));
	NONE(CALL(SYS_brk, {BRK + P}));
	NONE(CALL(SYS_brk, {0}));
}

static void some_calls_dont_say_what(void **state)
{
	decodes(CALL(SYS_shmdt, {A}), -ENODATA, NULL);
	decodes(CALL(SYS_process_madvise, {3, A, 1, MADV_DONTNEED}), -ENODATA, NULL);
	NONE(CALL(SYS_read, {0, A, P}));
	NONE(CALL(-1));
}

/* Whatever the arguments: ranges are page aligned, not empty, and don't wrap. */
static void any_arguments_give_sane_ranges(void **state)
{
	static const long calls[] = {SYS_munmap, SYS_mmap, SYS_mremap, SYS_madvise, SYS_brk};
	static const unsigned long values[] = {0,     1,      2,	3,	   4,	  8,
					       9,     24,     P - 1,	P,	   P + 1, A,
					       A + 1, 16 | P, LONG_MAX, ULONG_MAX, -P,	  -2 * P};
	unsigned n = sizeof values / sizeof *values;
	struct pl_uffd_range r[2];

	for (unsigned long i = 0; i < 5ul * n * n * n * n; i++) {
		struct pl_syscall c = {calls[i % 5],
				       {values[i / 5 % n], values[i / 5 / n % n],
					values[i / 5 / n / n % n], values[i / 5 / n / n / n % n], A}};
		int nr = pl_uffd_decode(&c, BRK, r);

		if (nr == -ENOMSG) {
			assert_int_equal((c.args[1] + P - 1) / P, 0);
			continue;
		}
		assert_in_range(nr, 0, 2);
		for (int j = 0; j < nr; j++) {
			assert_int_equal(r[j].start % P, 0);
			assert_int_equal(r[j].end % P, 0);
			assert_true(r[j].start < r[j].end);
		}
	}
}

static void *sleeper(void *arg)
{
	char c;

	*(_Atomic pid_t *)((int *)arg + 2) = gettid();
	assert_int_equal(read(*(int *)arg, &c, 1), 0);
	return NULL;
}

static void a_reader_of_a_pipe_waits_for_no_event(void **state)
{
	int fds[3] = {0};
	pthread_t t;
	pid_t tid;

	assert_int_equal(pipe(fds), 0);
	pthread_create(&t, NULL, sleeper, fds);
	while (!(tid = *(_Atomic pid_t *)&fds[2]))
		;
	assert_true(pl_uffd_waits(tid) <= 0);
	assert_int_equal(pl_uffd_waits(1 << 30), -ENODATA);
	close(fds[1]);
	pthread_join(t, NULL);
	close(fds[0]);
}

/* ------------------------------------------------------------------------- threads that wait -- */

/* A userfaultfd of the test's own, with two shared pages, and a thread that waits for it in some way. */
struct waiter {
	int fd;
	char *va;
	void (*wait)(struct waiter *);
	pthread_t thread;
	_Atomic pid_t tid;
};

static void *waiter(void *arg)
{
	struct waiter *w = arg;

	w->tid = gettid();
	w->wait(w);
	return NULL;
}

static void waiter_start(struct waiter *w, void (*wait)(struct waiter *))
{
	struct uffdio_api api = {.api = UFFD_API,
				 .features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP |
					     UFFD_FEATURE_EVENT_UNMAP};
	struct uffdio_register reg = {.mode = UFFDIO_REGISTER_MODE_MISSING};

	alarm(120);
	*w = (struct waiter){.fd = syscall(SYS_userfaultfd, O_CLOEXEC), .wait = wait};
	if (w->fd < 0 || ioctl(w->fd, UFFDIO_API, &api)) {
		print_message("skip: userfaultfd with fork events (CAP_SYS_PTRACE)\n");
		skip();
	}
	w->va = mmap(NULL, 2 * P, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	reg.range = (struct uffdio_range){(uintptr_t)w->va, 2 * P};
	assert_int_equal(ioctl(w->fd, UFFDIO_REGISTER, &reg), 0);
	assert_int_equal(pthread_create(&w->thread, NULL, waiter, w), 0);
	while (!w->tid)
		sched_yield();
}

static int look(const struct waiter *w, bool wchan)
{
	struct pl_uffd_range r[2];
	struct pl_syscall call;

	return pl_uffd_look(w->tid, wchan, &call, r);
}

static void waiter_end(struct waiter *w)
{
	struct uffd_msg msg;

	assert_int_equal(read(w->fd, &msg, sizeof msg), sizeof msg);
	if (msg.event == UFFD_EVENT_FORK)
		close(msg.arg.fork.ufd);
	close(w->fd);
	pthread_join(w->thread, NULL);
	munmap(w->va, 2 * P);
	alarm(0);
}

static void await_waiter(const struct waiter *w)
{
	for (int i = 0; i < 10000; i++, usleep(1000)) /* long enough, where it is ever said */
		if (pl_uffd_waits(w->tid) == 1)
			return;
	print_message("skip: a kernel that says what a thread waits for (/proc/PID/task/TID/wchan)\n");
	skip();
}

static void map_again(struct waiter *w)
{
	void *again = mremap(w->va, 0, 2 * P, MREMAP_MAYMOVE);

	assert_ptr_not_equal(again, MAP_FAILED);
	munmap(again, 2 * P);
}

static void who_makes_a_second_mapping_is_seen(void **state)
{
	struct waiter w;

	waiter_start(&w, map_again);
	await_waiter(&w);
	assert_int_equal(look(&w, true), 0);
	assert_int_equal(look(&w, false), 0);
	waiter_end(&w);
}

static void fork_once(struct waiter *w)
{
	pid_t child = fork();

	if (!child)
		_exit(0);
	waitpid(child, NULL, 0);
}

/* Its call says nothing, but where it waits does. */
static void who_waits_in_any_call_is_seen(void **state)
{
	struct waiter w;

	waiter_start(&w, fork_once);
	await_waiter(&w);
	assert_int_equal(look(&w, true), 0);
	assert_int_equal(look(&w, false), -ENOENT);
	waiter_end(&w);
}

static void read_event(struct waiter *w)
{
	struct uffd_msg msg;

	assert_int_equal(read(w->fd, &msg, sizeof msg), sizeof msg);
}

static void a_reader_of_a_userfaultfd_waits_for_no_event(void **state)
{
	struct pl_syscall call = {0};
	struct waiter w;

	waiter_start(&w, read_event);
	while (pl_task_syscall(getpid(), w.tid, &call) || call.nr != SYS_read)
		sched_yield();
	assert_int_equal(look(&w, true), -ENOENT);
	munmap(w.va, 2 * P);
	pthread_join(w.thread, NULL);
	close(w.fd);
	alarm(0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(munmap_is_an_unmap),
		cmocka_unit_test(only_fixed_mmap_overmaps),
		cmocka_unit_test(mremap_moves_shrinks_and_overmaps),
		cmocka_unit_test(mremap_that_does_nothing),
		cmocka_unit_test(a_second_mapping_makes_an_event_and_takes_nothing),
		cmocka_unit_test(madvise_discards),
		cmocka_unit_test(a_smaller_brk_unmaps),
		cmocka_unit_test(some_calls_dont_say_what),
		cmocka_unit_test(any_arguments_give_sane_ranges),
		cmocka_unit_test(a_reader_of_a_pipe_waits_for_no_event),
		cmocka_unit_test(who_makes_a_second_mapping_is_seen),
		cmocka_unit_test(who_waits_in_any_call_is_seen),
		cmocka_unit_test(a_reader_of_a_userfaultfd_waits_for_no_event),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
