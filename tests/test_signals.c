/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The program's signals and the library: no handler ever runs on a thread of the library's, and one that
 * interrupts a call of the program's changes nothing of what the call does.
 */
#include <dirent.h>
#include <errno.h>
#include <liburing.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "child.h"

#define PAGE  4096ul
#define PAGES 256
#define SIZE  (PAGES * PAGE)

struct rig {
	struct io_uring ring;
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
};

static void nothing(const struct pinl_event *event, void *arg)
{
}

static void rig_open(struct rig *r, const char *kind)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1, .on_event = nothing};
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &r->ring};

	assert_int_equal(io_uring_queue_init(8, &r->ring, 0), 0);
	assert_ok(pinl_open(&opts, &r->ctx));
	assert_ok(pinl_device_open(r->ctx, kind, strcmp(kind, "uring") ? NULL : (void *)&arg, &r->dev));
}

static void rig_close(struct rig *r)
{
	pinl_close(r->ctx);
	io_uring_queue_exit(&r->ring);
}

/* ---------------------------------------------------------------------- the masks of threads -- */

#define MAX_TASKS 64

static int list_tasks(pid_t *tasks)
{
	DIR *dir = opendir("/proc/self/task");
	struct dirent *e;
	int n = 0;

	assert_non_null(dir);
	while ((e = readdir(dir)))
		if (atoi(e->d_name)) {
			assert_true(n < MAX_TASKS);
			tasks[n++] = atoi(e->d_name);
		}
	closedir(dir);
	return n;
}

/* Threads of the kernel's, for a ring, are in the list, too: they run no handlers. */
static bool blocked_in(pid_t task, char *name, uint64_t *mask)
{
	char path[64], line[256];
	FILE *f;

	snprintf(path, sizeof path, "/proc/self/task/%d/status", task);
	f = fopen(path, "r");
	if (!f)
		return false;
	while (fgets(line, sizeof line, f)) {
		sscanf(line, "Name: %31s", name);
		sscanf(line, "SigBlk: %lx", mask);
	}
	fclose(f);
	return strncmp(name, "iou-", 4) != 0;
}

static uint64_t bit(int sig)
{
	return 1ull << (sig - 1);
}

static void every_thread_of_the_library_has_all_signals_blocked(void **state)
{
	/* Two can't be blocked, and two are the C library's own, for cancelling and setuid(). */
	uint64_t never = bit(SIGKILL) | bit(SIGSTOP) | bit(32) | bit(33), mask;
	pid_t before[MAX_TASKS], after[MAX_TASKS];
	int had = list_tasks(before), have, checked = 0;
	struct pinl_device *soft;
	sigset_t was, is;
	char name[32];
	struct rig r;

	pthread_sigmask(SIG_SETMASK, NULL, &was);
	rig_open(&r, "uring");
	assert_ok(pinl_device_open(r.ctx, "soft", NULL, &soft));
	pthread_sigmask(SIG_SETMASK, NULL, &is);
	for (int sig = 1; sig < 32; sig++)
		assert_int_equal(sigismember(&is, sig), sigismember(&was, sig));
	have = list_tasks(after);
	for (int i = 0; i < have; i++) {
		bool old = false;

		for (int k = 0; k < had; k++)
			old |= before[k] == after[i];
		if (old || !blocked_in(after[i], name, &mask))
			continue;
		if (~(mask | never))
			fail_msg("thread %s: signals open: %#lx", name, (unsigned long)~(mask | never));
		checked++;
	}
	/* worker, dispatcher, engine; the switch's and the sources', where there are any */
	assert_true(checked >= 3);
	rig_close(&r);
}

/* ----------------------------------------------------------- signals while the program reads -- */

static atomic_long handled;
static atomic_bool quiet;

static void count(int sig)
{
	atomic_fetch_add(&handled, 1);
}

static void *interrupt(void *arg)
{
	pthread_t whom = *(pthread_t *)arg;

	while (!atomic_load(&quiet))
		pthread_kill(whom, SIGUSR1);
	return NULL;
}

static void handle(void (*handler)(int))
{
	struct sigaction sa = {.sa_handler = handler};

	sigemptyset(&sa.sa_mask);
	assert_int_equal(sigaction(SIGUSR1, &sa, NULL), 0);
}

/* A read that is interrupted may neither fail nor leave its completion to the next one. */
static void read_while_interrupted(const char *kind)
{
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_KEEP};
	uint32_t *mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pthread_t self = pthread_self(), thread;
	struct pinl_lease *lease;
	uint32_t got[PAGE / 4];
	struct rig r;

	for (size_t i = 0; i < SIZE / 4; i++)
		mem[i] = i * 2654435761u;
	handle(count);
	rig_open(&r, kind);
	assert_ok(pinl_map_range(r.dev, (uintptr_t)mem, (uintptr_t)mem + SIZE, PINL_WRITE | PINL_PIN,
				 &policy, NULL, &lease));
	atomic_store(&quiet, false);
	atomic_store(&handled, 0);
	assert_int_equal(pthread_create(&thread, NULL, interrupt, &self), 0);
	for (int n = 0; n < 3000 || atomic_load(&handled) < 1000; n++) {
		size_t page = n * 7 % PAGES;
		int err = pinl_lease_read(lease, page * PAGE, PAGE, got);

		if (err || memcmp(got, mem + page * (PAGE / 4), PAGE)) {
			atomic_store(&quiet, true);
			fail_msg("read %d: %d, content %s", n, err, err ? "unknown" : "of another read");
		}
	}
	atomic_store(&quiet, true);
	pthread_join(thread, NULL);
	pinl_unmap_range(lease);
	rig_close(&r);
	munmap(mem, SIZE);
}

static void a_signal_during_a_read_changes_nothing_uring(void **state)
{
	read_while_interrupted("uring");
}

static void a_signal_during_a_read_changes_nothing_soft(void **state)
{
	read_while_interrupted("soft");
}

/* -------------------------------------------------------- a handler that stores to the range -- */

static char *volatile range;
static volatile unsigned stores;

static void store(int sig)
{
	char *mem = range;

	if (mem)
		mem[stores++ * 97 % PAGES * PAGE] = 'h';
}

/* It doesn't take the signal itself: it could be in the handler when the range is unmapped. */
static void *signal_all(void *arg)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	while (!atomic_load(&quiet)) {
		kill(getpid(), SIGUSR1);
		sched_yield();
	}
	return NULL;
}

static size_t wrong_bytes(const char *mem)
{
	size_t wrong = 0;

	for (size_t i = 0; i < SIZE; i++)
		wrong += mem[i] != 'O' && (i % PAGE || mem[i] != 'h');
	return wrong;
}

/* The truncation's caller is the only thread that takes the signal; the content is still whole. */
static void copy_once(struct rig *r)
{
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_RECALL, .then = PINL_THEN_COPY};
	struct pinl_lease_info info = {.size = sizeof info};
	int fd = memfd_create("signals", MFD_CLOEXEC);
	struct pinl_lease *lease;
	char *mem;

	assert_int_equal(ftruncate(fd, SIZE), 0);
	mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	memset(mem, 'O', SIZE);
	assert_ok(pinl_map_range(r->dev, (uintptr_t)mem, (uintptr_t)mem + SIZE, PINL_WRITE | PINL_PIN,
				 &policy, NULL, &lease));
	range = mem;
	assert_ok(pinl_ftruncate(r->ctx, fd, 0));
	range = NULL;
	assert_ok(pinl_lease_info(lease, &info));
	assert_int_equal(info.outcome, PINL_OUT_COPY);
	assert_int_equal(wrong_bytes(mem), 0);
	pinl_unmap_range(lease);
	munmap(mem, SIZE);
	close(fd);
}

static void take_completions(struct rig *r)
{
	struct io_uring_cqe *cqe;

	while (!io_uring_peek_cqe(&r->ring, &cqe)) {
		pinl_uring_cqe(r->dev, cqe->user_data);
		io_uring_cqe_seen(&r->ring, cqe);
	}
}

static void copy_often(const void *kind)
{
	pthread_t thread;
	struct rig r;

	handle(store);
	rig_open(&r, kind);
	atomic_store(&quiet, false);
	assert_int_equal(pthread_create(&thread, NULL, signal_all, NULL), 0);
	for (int i = 0; i < 10 || !stores; i++) { /* the sender may get no CPU for as long as ten take */
		copy_once(&r);
		take_completions(&r);
	}
	atomic_store(&quiet, true);
	pthread_join(thread, NULL);
	rig_close(&r);
}

static void a_handler_that_stores_to_a_range_being_copied_goes_on_uring(void **state)
{
	in_time(copy_often, "uring");
}

static void a_handler_that_stores_to_a_range_being_copied_goes_on_soft(void **state)
{
	in_time(copy_often, "soft");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_thread_of_the_library_has_all_signals_blocked),
		cmocka_unit_test(a_signal_during_a_read_changes_nothing_uring),
		cmocka_unit_test(a_signal_during_a_read_changes_nothing_soft),
		cmocka_unit_test(a_handler_that_stores_to_a_range_being_copied_goes_on_uring),
		cmocka_unit_test(a_handler_that_stores_to_a_range_being_copied_goes_on_soft),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
