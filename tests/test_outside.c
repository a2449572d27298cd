/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * I2 and I3 for a holder that doesn't answer: its ring is taken from outside while it is stopped, loops,
 * is deadlocked or just goes on.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os/clock.h"
#include "outside_rig.h"

#include "check.h"

/* ----------------------------------------------------------------------------------- scratch -- */

/* The whole life of a force: nothing of what the holder does afterwards reaches the old pages, its I/O
 * goes on, and the only pins it has are those of the scratch. */
static void force(struct holder *h, unsigned flags)
{
	assert_ok(pl_outside_check(h->o, &h->buf, in_ms(PATIENCE)));
	assert_ok(pl_outside_scratch(h->o, &h->buf, in_ms(PATIENCE)));
	assert_ok(rig_drained(h, flags));
	assert_pins(h, h->size / PAGE);
	rig_truncate(h);
	rig_wake(h);
	assert_old_pages_untouched(h);
	assert_int_equal(h->ctl->bad, 0);
	assert_ok(pl_outside_empty(h->o, &h->buf, in_ms(PATIENCE)));
	assert_ok(rig_drained(h, flags));
	assert_pins(h, 0);
}

static void forced(int what)
{
	struct holder h = {.what = what};

	print_message("%s: %x\n", __func__, what);
	rig_open(&h);
	force(&h, 0);
	rig_stop(&h);
}

static void a_holder_that_runs_is_forced(void **state)
{
	forced(0);
	forced(FLIGHT);
	forced(FLIGHT | UNTAGGED);
	forced(FLIGHT | THREAD);
}

static void a_holder_that_loops_is_forced(void **state)
{
	forced(FLIGHT | SPIN);
	forced(FLIGHT | SPIN | UNTAGGED);
}

static void a_deadlocked_holder_is_forced(void **state)
{
	forced(FLIGHT | DEADLOCK);
	forced(FLIGHT | DEADLOCK | UNTAGGED);
}

static void stopped_and_forced(int what)
{
	struct holder h = {.what = what};

	print_message("stopped, %x\n", what);
	rig_open(&h);
	rig_suspend(&h);
	force(&h, PL_OUTSIDE_STEP);
	rig_stop(&h);
}

static void a_stopped_holder_is_forced(void **state)
{
	stopped_and_forced(0);
	stopped_and_forced(FLIGHT);
	stopped_and_forced(FLIGHT | UNTAGGED);
	stopped_and_forced(FLIGHT | SPIN);
	stopped_and_forced(FLIGHT | THREAD);
}

/* Its poll thread stops with it, and is stepped with it. */
static void sqpoll_of_a_stopped_holder_is_drained(void **state)
{
	struct holder h = {.setup = IORING_SETUP_SQPOLL, .what = FLIGHT};

	rig_open(&h);
	rig_suspend(&h);
	force(&h, PL_OUTSIDE_STEP);
	rig_stop(&h);
}

static char state_of(pid_t pid)
{
	char path[64], state = '?';
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	f = fopen(path, "re");
	assert_non_null(f);
	assert_int_equal(fscanf(f, "%*d (%*[^)]) %c", &state), 1);
	fclose(f);
	return state;
}

/* What it had in flight is still pinned, although nothing can be transferred any more: not called done.
 */
static void without_a_step_a_stopped_holder_is_not_drained(void **state)
{
	struct holder h = {.what = FLIGHT};

	rig_open(&h);
	rig_suspend(&h);
	assert_ok(pl_outside_scratch(h.o, &h.buf, in_ms(PATIENCE)));
	assert_int_equal(pl_outside_drained(h.o, &h.buf, 0, in_ms(200)), -ETIMEDOUT);
	assert_non_null(strstr(pinl_error(), "is stopped"));
	assert_int_equal(vmpin(h.pid), 2 * PAGES);
	rig_truncate(&h);
	rig_wake(&h);
	assert_ok(rig_drained(&h, 0));
	assert_old_pages_untouched(&h);
	assert_pins(&h, PAGES);
	rig_stop(&h);
}

static void a_stepped_holder_is_still_stopped(void **state)
{
	struct holder h = {.what = FLIGHT};
	int loops;

	rig_open(&h);
	rig_suspend(&h);
	loops = h.ctl->loops;
	assert_ok(pl_outside_scratch(h.o, &h.buf, in_ms(PATIENCE)));
	assert_ok(rig_drained(&h, PL_OUTSIDE_STEP));
	pause_ms(20);
	assert_int_equal(state_of(h.pid), 'T');
	assert_int_equal(h.ctl->loops, loops);
	kill(h.pid, SIGCONT);
	wait_for_loops(&h, loops + 1);
	rig_stop(&h);
}

/* A signal that waits for a stopped holder is its own, and so is what a step leaves behind. */
static void no_signal_is_lost_or_added(void **state)
{
	struct holder h = {.what = FLIGHT | THREAD};

	rig_open(&h);
	rig_suspend(&h);
	kill(h.pid, SIGUSR1);
	assert_ok(pl_outside_scratch(h.o, &h.buf, in_ms(PATIENCE)));
	assert_ok(rig_drained(&h, PL_OUTSIDE_STEP));
	rig_wake(&h);
	assert_int_equal(h.ctl->signals, 1);
	rig_stop(&h);
}

/* One step is enough for what has its data, and leaves nothing behind in a thread that waits. */
static void one_step_is_survived(void **state)
{
	struct holder h = {.what = FLIGHT | THREAD};

	rig_open(&h);
	rig_suspend(&h);
	assert_ok(pl_outside_scratch(h.o, &h.buf, in_ms(PATIENCE)));
	assert_int_equal(write(h.ctl->quiet[1], "data", 4), 4);
	assert_ok(rig_drained(&h, PL_OUTSIDE_STEP));
	rig_truncate(&h);
	rig_wake(&h);
	assert_old_pages_untouched(&h);
	rig_stop(&h);
}

static void an_empty_slot_fails_requests(void **state)
{
	struct holder h = {.what = FLIGHT};

	rig_open(&h);
	rig_suspend(&h);
	assert_ok(pl_outside_empty(h.o, &h.buf, in_ms(PATIENCE)));
	assert_ok(rig_drained(&h, PL_OUTSIDE_STEP));
	assert_pins(&h, 0);
	rig_truncate(&h);
	rig_wake(&h);
	assert_int_equal(h.ctl->bad, -EFAULT);
	assert_old_pages_untouched(&h);
	rig_stop(&h);
}

/* Huge pages are accounted otherwise: more than are in the buffer. */
static void huge_pages_are_verified_too(void **state)
{
	struct holder h = {.what = FLIGHT | UNTAGGED | HUGE_ANON, .size = 8 << 20};

	rig_open(&h);
	assert_ok(pl_outside_scratch(h.o, &h.buf, in_ms(PATIENCE)));
	assert_ok(rig_drained(&h, 0));
	assert_pins(&h, h.size / PAGE);
	rig_stop(&h);
}

/* Without a tag, and with other tables changing, there is no proof, so none is claimed. */
static void tables_that_change_spoil_the_ledger(void **state)
{
	struct holder h = {.what = FLIGHT | UNTAGGED | SPIN};
	struct iovec iov = {malloc(PAGE), PAGE};
	struct io_uring_rsrc_update2 u = {.offset = 3, .data = (uintptr_t)&iov, .nr = 1};
	int ring;

	rig_open(&h);
	ring = syscall(SYS_pidfd_getfd, h.pidfd, h.ctl->ring, 0);
	assert_ok(pl_outside_scratch(h.o, &h.buf, in_ms(PATIENCE)));
	assert_int_equal(
		syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS_UPDATE, &u, sizeof u), 1);
	assert_int_equal(pl_outside_drained(h.o, &h.buf, 0, in_ms(200)), -ETIMEDOUT);
	assert_non_null(strstr(pinl_error(), "other buffers changed"));
	close(ring);
	free(iov.iov_base);
	rig_stop(&h);
}

static void verified_if_accounted(int what)
{
	struct holder h = {.what = what | UNTAGGED | PRIVILEGED};
	bool accounted;

	rig_open(&h);
	accounted = vmpin(h.pid) != 0;
	assert_ok(pl_outside_scratch(h.o, &h.buf, in_ms(PATIENCE)));
	if (accounted) {
		assert_ok(rig_drained(&h, 0));
		rig_stop(&h);
		return;
	}
	assert_int_equal(pl_outside_drained(h.o, &h.buf, 0, in_ms(200)), -ETIMEDOUT);
	assert_non_null(strstr(pinl_error(), "CAP_IPC_LOCK"));
	rig_stop(&h);
}

/* Where its pins are in no VmPin, only the tag is a proof, and without it it is never called done. */
static void a_holder_that_isnt_accounted_needs_the_tag(void **state)
{
	struct holder h = {.what = FLIGHT | PRIVILEGED};

	verified_if_accounted(DEADLOCK);
	verified_if_accounted(FLIGHT | DEADLOCK);
	rig_open(&h);
	rig_suspend(&h);
	assert_ok(pl_outside_check(h.o, &h.buf, in_ms(PATIENCE)));
	assert_ok(pl_outside_scratch(h.o, &h.buf, in_ms(PATIENCE)));
	assert_int_equal(pl_outside_drained(h.o, &h.buf, 0, in_ms(200)), -ETIMEDOUT);
	assert_ok(rig_drained(&h, PL_OUTSIDE_STEP));
	rig_truncate(&h);
	rig_wake(&h);
	assert_old_pages_untouched(&h);
	assert_int_equal(h.ctl->bad, 0);
	rig_stop(&h);
}

/* ------------------------------------------------------------------------------------------ addresses
 * -- */

/* The holder's buffer is where this process has what it is running on. A forked holder has the same
 * addresses. */
static void forced_at(const char *what, uintptr_t start, uintptr_t end)
{
	struct holder h = {.at = (void *)start, .size = end - start};

	print_message("%s: %zu KiB at %lx\n", what, h.size >> 10, start);
	rig_open(&h);
	if (start < 0x20000000)
		munmap(h.at, h.size); /* here; the holder has it */
	assert_ok(pl_outside_scratch(h.o, &h.buf, in_ms(PATIENCE)));
	assert_ok(rig_drained(&h, 0));
	assert_pins(&h, h.size / PAGE);
	rig_stop(&h);
}

static void addresses_that_are_taken_here_are_no_hindrance(void **state)
{
	static const char *wanted[] = {"test_outside", "libc.so", "[stack]", "[heap]", "ld-linux"};
	static char line[512], text[32][512];
	FILE *f = fopen("/proc/self/maps", "re");
	char *low;
	int n = 0;

	while (n < 32 && fgets(line, sizeof line, f))
		for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
			if (strstr(line, wanted[i]) && n < 32)
				strcpy(text[n++], line);
	fclose(f);
	assert_true(n >= 4);
	low = mmap((void *)0x10000000, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	forced_at("where the list of calls would be", (uintptr_t)low, (uintptr_t)low + SIZE);
	munmap(low, SIZE);
	while (n--) {
		uintptr_t start, end;
		char perms[5],
			*name = strchr(text[n], '/') ? strrchr(text[n], '/') : strchr(text[n], '[');

		assert_int_equal(sscanf(text[n], "%lx-%lx %4s", &start, &end, perms), 3);
		name[strcspn(name, "\n")] = 0;
		forced_at(name, start, end);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(a_holder_that_runs_is_forced),
		RIG_TEST(a_holder_that_loops_is_forced),
		RIG_TEST(a_deadlocked_holder_is_forced),
		RIG_TEST(a_stopped_holder_is_forced),
		RIG_TEST(sqpoll_of_a_stopped_holder_is_drained),
		RIG_TEST(without_a_step_a_stopped_holder_is_not_drained),
		RIG_TEST(a_stepped_holder_is_still_stopped),
		RIG_TEST(no_signal_is_lost_or_added),
		RIG_TEST(one_step_is_survived),
		RIG_TEST(an_empty_slot_fails_requests),
		RIG_TEST(huge_pages_are_verified_too),
		RIG_TEST(tables_that_change_spoil_the_ledger),
		RIG_TEST(a_holder_that_isnt_accounted_needs_the_tag),
		RIG_TEST(addresses_that_are_taken_here_are_no_hindrance),
	};

	if (geteuid()) {
		print_message("1..0 # SKIP root (CAP_SYS_PTRACE for pidfd_getfd)\n");
		return 0;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
