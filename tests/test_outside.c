/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * I2 and I3 for a holder that doesn't answer: its ring is taken from outside while it is stopped, loops,
 * is deadlocked or just goes on; and R10: killed is done when the pins are gone.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os/clock.h"
#include "outside_rig.h"

#include "check.h"

static int fds_before;

static int before(void **state)
{
	fds_before = count_fds();
	return 0;
}

/* No descriptor and no child is left. */
static int after(void **state)
{
	int fds = count_fds(), child = waitpid(-1, NULL, WNOHANG | __WALL);

	if (fds != fds_before || child != -1)
		print_error("descriptors: %d before, %d after; child %d\n", fds_before, fds, child);
	return fds != fds_before || child != -1;
}

static void stop(struct holder *h)
{
	kill(h->pid, SIGSTOP);
	pause_ms(20);
}

/* ------------------------------------------------------------------------------------------- scratch --
 */

/* The whole life of a force: nothing of what the holder does afterwards reaches the old pages, its I/O
 * goes on, and the only pins it has are those of the scratch. */
static void force(struct holder *h, unsigned flags)
{
	assert_ok(pl_outside_check(h->o, &h->buf, in_ms(500)));
	assert_ok(pl_outside_scratch(h->o, &h->buf, in_ms(500)));
	assert_ok(pl_outside_drained(h->o, &h->buf, flags, in_ms(1000)));
	assert_int_equal(vmpin(h->pid), h->size / PAGE);
	rig_truncate(h);
	rig_wake(h);
	assert_old_pages_untouched(h);
	assert_int_equal(h->ctl->bad, 0);
	assert_ok(pl_outside_empty(h->o, &h->buf, in_ms(500)));
	assert_ok(pl_outside_drained(h->o, &h->buf, flags, in_ms(1000)));
	assert_int_equal(vmpin(h->pid), 0);
}

static void forced(int what)
{
	print_message("%s: %x\n", __func__, what);
	struct holder h = {.what = what};

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
	stop(&h);
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
	stop(&h);
	assert_ok(pl_outside_scratch(h.o, &h.buf, in_ms(500)));
	assert_int_equal(pl_outside_drained(h.o, &h.buf, 0, in_ms(200)), -ETIMEDOUT);
	assert_non_null(strstr(pinl_error(), "is stopped"));
	assert_int_equal(vmpin(h.pid), 2 * PAGES);
	rig_truncate(&h);
	rig_wake(&h);
	assert_ok(pl_outside_drained(h.o, &h.buf, 0, in_ms(500)));
	assert_old_pages_untouched(&h);
	assert_int_equal(vmpin(h.pid), PAGES);
	rig_stop(&h);
}

static void a_stepped_holder_is_still_stopped(void **state)
{
	struct holder h = {.what = FLIGHT};
	int loops;

	rig_open(&h);
	stop(&h);
	loops = h.ctl->loops;
	assert_ok(pl_outside_scratch(h.o, &h.buf, in_ms(500)));
	assert_ok(pl_outside_drained(h.o, &h.buf, PL_OUTSIDE_STEP, in_ms(1000)));
	pause_ms(20);
	assert_int_equal(state_of(h.pid), 'T');
	assert_int_equal(h.ctl->loops, loops);
	kill(h.pid, SIGCONT);
	pause_ms(50);
	assert_true(h.ctl->loops > loops);
	rig_stop(&h);
}

/* A signal that waits for a stopped holder is its own, and so is what a step leaves behind. */
static void no_signal_is_lost_or_added(void **state)
{
	struct holder h = {.what = FLIGHT | THREAD};

	rig_open(&h);
	stop(&h);
	kill(h.pid, SIGUSR1);
	assert_ok(pl_outside_scratch(h.o, &h.buf, in_ms(500)));
	assert_ok(pl_outside_drained(h.o, &h.buf, PL_OUTSIDE_STEP, in_ms(1000)));
	rig_wake(&h);
	assert_int_equal(h.ctl->signals, 1);
	rig_stop(&h);
}

/* One step is enough for what has its data, and leaves nothing behind in a thread that waits. */
static void one_step_is_survived(void **state)
{
	struct holder h = {.what = FLIGHT | THREAD};

	rig_open(&h);
	stop(&h);
	assert_ok(pl_outside_scratch(h.o, &h.buf, in_ms(500)));
	assert_int_equal(write(h.ctl->quiet[1], "data", 4), 4);
	assert_ok(pl_outside_drained(h.o, &h.buf, PL_OUTSIDE_STEP, in_ms(1000)));
	rig_truncate(&h);
	rig_wake(&h);
	assert_old_pages_untouched(&h);
	rig_stop(&h);
}

static void an_empty_slot_fails_requests(void **state)
{
	struct holder h = {.what = FLIGHT};

	rig_open(&h);
	stop(&h);
	assert_ok(pl_outside_empty(h.o, &h.buf, in_ms(500)));
	assert_ok(pl_outside_drained(h.o, &h.buf, PL_OUTSIDE_STEP, in_ms(1000)));
	assert_int_equal(vmpin(h.pid), 0);
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
	assert_ok(pl_outside_scratch(h.o, &h.buf, in_ms(500)));
	assert_ok(pl_outside_drained(h.o, &h.buf, 0, in_ms(1000)));
	assert_int_equal(vmpin(h.pid), h.size / PAGE);
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
	assert_ok(pl_outside_scratch(h.o, &h.buf, in_ms(500)));
	assert_int_equal(
		syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS_UPDATE, &u, sizeof u), 1);
	assert_int_equal(pl_outside_drained(h.o, &h.buf, 0, in_ms(200)), -ETIMEDOUT);
	assert_non_null(strstr(pinl_error(), "other buffers changed"));
	close(ring);
	free(iov.iov_base);
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
	assert_ok(pl_outside_scratch(h.o, &h.buf, in_ms(2000)));
	assert_ok(pl_outside_drained(h.o, &h.buf, 0, in_ms(1000)));
	assert_int_equal(vmpin(h.pid), h.size / PAGE);
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

/* ---------------------------------------------------------------------------------------- ring kinds --
 */

static void kind(const char *name, unsigned setup, int what, const char *why)
{
	struct holder h = {.setup = setup, .what = what};

	rig_open(&h);
	print_message("%s: %s\n", name, pl_outside_why(h.o) ? pl_outside_why(h.o) : "can be forced");
	if (!why) {
		assert_null(pl_outside_why(h.o));
		assert_ok(pl_outside_scratch(h.o, &h.buf, in_ms(500)));
		assert_ok(pl_outside_drained(h.o, &h.buf, 0, in_ms(1000)));
		assert_int_equal(vmpin(h.pid), PAGES);
	} else {
		assert_non_null(strstr(pl_outside_why(h.o), why));
		assert_int_equal(pl_outside_scratch(h.o, &h.buf, in_ms(500)), -EOPNOTSUPP);
		assert_int_equal(pl_outside_drained(h.o, &h.buf, 0, in_ms(500)), -EOPNOTSUPP);
		assert_ok(pl_outside_kill(h.o, &h.buf, 1, in_ms(5000)));
	}
	rig_stop(&h);
}

static void which_rings_can_be_forced(void **state)
{
	const unsigned single = 1u << 12, defer = 1u << 13; /* of 6.0 and 6.1 */

	kind("plain", 0, FLIGHT, NULL);
	kind("SQPOLL", IORING_SETUP_SQPOLL, FLIGHT, NULL);
	kind("IOPOLL", IORING_SETUP_IOPOLL, 0, NULL);
	kind("SQE128 | CQE32", IORING_SETUP_SQE128 | IORING_SETUP_CQE32, FLIGHT, NULL);
	kind("COOP_TASKRUN", IORING_SETUP_COOP_TASKRUN, FLIGHT, NULL);
	kind("COOP_TASKRUN, loops", IORING_SETUP_COOP_TASKRUN, FLIGHT | SPIN, NULL);
	kind("R_DISABLED", IORING_SETUP_R_DISABLED, 0, NULL);
	kind("R_DISABLED, enabled", IORING_SETUP_R_DISABLED, FLIGHT | ENABLE, NULL);
	kind("restricted", IORING_SETUP_R_DISABLED, FLIGHT | ENABLE | RESTRICTED, "restrictions");
	kind("SINGLE_ISSUER", single, FLIGHT, "SINGLE_ISSUER");
	kind("DEFER_TASKRUN", single | defer, FLIGHT, "SINGLE_ISSUER");
	kind("SINGLE_ISSUER | R_DISABLED, enabled", single | IORING_SETUP_R_DISABLED, FLIGHT | ENABLE,
	     "SINGLE_ISSUER");
}

/* Its poll thread stops with it, and is stepped with it. */
static void sqpoll_of_a_stopped_holder_is_drained(void **state)
{
	struct holder h = {.setup = IORING_SETUP_SQPOLL, .what = FLIGHT};

	rig_open(&h);
	stop(&h);
	force(&h, PL_OUTSIDE_STEP);
	rig_stop(&h);
}

static void take_the_lock(struct holder *h)
{
	h->ctl->wake = 1;
	pause_ms(30);
}

/* A holder that waits for ever under its ring's lock holds nobody else up. */
static void a_ring_whose_lock_is_taken_ends_at_the_deadline(void **state)
{
	struct holder h = {.what = LOCKED};
	struct pl_outside *late;
	uint64_t start;

	rig_open(&h);
	take_the_lock(&h);
	start = pl_clock_ns();
	assert_int_equal(pl_outside_check(h.o, &h.buf, in_ms(50)), -ETIMEDOUT);
	assert_int_equal(pl_outside_scratch(h.o, &h.buf, in_ms(50)), -ETIMEDOUT);
	assert_int_equal(pl_outside_open(h.pidfd, h.pid, h.ctl->ring, in_ms(50), &late), -ETIMEDOUT);
	assert_true(pl_clock_ns() - start < 500000000);
	kill(h.pid, SIGKILL);
	waitpid(h.pid, NULL, 0);
	while (waitpid(-1, NULL, WNOHANG | __WALL) == 0 &&
	       pl_clock_ns() < start + 3000000000) /* the open's child */
		pause_ms(1);
	rig_stop(&h);
}

/* ------------------------------------------------------------------------------------------ the proof
 * -- */

static int try_open(struct holder *h, int fd)
{
	struct pl_outside *o;
	int err = pl_outside_open(h->pidfd, h->pid, fd, in_ms(500), &o);

	assert_true(err < 0);
	return err;
}

static void what_is_no_ring_of_the_holder_is_refused(void **state)
{
	struct pl_outside_buf other;
	struct holder h = {0};
	int fake;

	fake = memfd_create("anon_inode:[io_uring]", 0); /* the holder inherits these */
	int fds[] = {fake, epoll_create1(0), open("/dev/null", O_RDONLY)};

	rig_open(&h);
	for (size_t i = 0; i < 3; i++) {
		assert_int_equal(try_open(&h, fds[i]), -EBADF);
		assert_non_null(strstr(pinl_error(), "is no io_uring"));
		close(fds[i]);
	}
	assert_int_equal(try_open(&h, 1000), -EBADF);
	other = h.buf;
	other.slot = 0;
	assert_int_equal(pl_outside_check(h.o, &other, in_ms(500)), -ENOENT);
	other = (struct pl_outside_buf){SLOT, h.buf.start, h.buf.end + PAGE};
	assert_int_equal(pl_outside_scratch(h.o, &other, in_ms(500)), -ENOENT);
	rig_stop(&h);
}

static void a_process_that_has_ended_is_refused(void **state)
{
	struct holder h = {0};
	struct pl_outside *o;
	int self;

	rig_start(&h);
	self = syscall(SYS_pidfd_open, getpid(), 0);
	assert_int_equal(pl_outside_open(self, h.pid, h.ctl->ring, in_ms(500), &o), -ESRCH);
	close(self);
	kill(h.pid, SIGKILL);
	waitpid(h.pid, NULL, 0);
	assert_int_equal(try_open(&h, h.ctl->ring), -ESRCH);
	rig_stop(&h);
}

/* A ring that the holder has from another process has that one's pins. */
static void an_inherited_ring_is_not_the_heirs(void **state)
{
	struct holder h = {.what = HEIR};
	struct pl_outside *o;
	int pidfd;

	rig_open(&h);
	pidfd = syscall(SYS_pidfd_open, h.ctl->heir, 0);
	assert_ok(pl_outside_open(pidfd, h.ctl->heir, h.ctl->ring, in_ms(500), &o));
	assert_int_equal(pl_outside_check(o, &h.buf, in_ms(500)), -EPERM);
	pl_outside_close(o);
	close(pidfd);
	rig_stop(&h);
}

/* The number of a closed ring is another's now: the handle is of the old one, and says that it isn't
 * held. */
static void a_number_that_is_another_ring_now_is_noticed(void **state)
{
	struct io_uring one, two;
	struct iovec iov = {NULL, PAGE};
	struct pl_outside_buf b = {0};
	struct pl_outside *o;
	int self = syscall(SYS_pidfd_open, getpid(), 0), number;

	iov.iov_base = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	b.start = (uintptr_t)iov.iov_base;
	b.end = b.start + PAGE;
	assert_int_equal(io_uring_queue_init(2, &one, 0), 0);
	number = one.ring_fd;
	assert_ok(pl_outside_open(self, getpid(), number, in_ms(500), &o));
	assert_true(pl_outside_held(o));
	io_uring_queue_exit(&one);
	assert_int_equal(io_uring_queue_init(2, &two, 0), 0);
	assert_int_equal(dup2(two.ring_fd, number), number);
	assert_int_equal(io_uring_register_buffers(&two, &iov, 1), 0);
	assert_false(pl_outside_held(o));
	assert_int_equal(pl_outside_check(o, &b, in_ms(500)), -ENOENT);
	pl_outside_close(o);
	if (two.ring_fd != number)
		close(number);
	io_uring_queue_exit(&two);
	munmap(iov.iov_base, PAGE);
	close(self);
}

/* ---------------------------------------------------------------------------------------------- kill --
 */

/* A buffer in the table, or a request that waits. */
static bool ring_has_any(int ring)
{
	char path[64], line[256];
	bool any = false;
	FILE *f;

	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", ring);
	f = fopen(path, "re");
	while (fgets(line, sizeof line, f))
		any |= strstr(line, ": 0x") || strstr(line, "op=");
	fclose(f);
	return any;
}

static void killed(int what, bool stopped)
{
	struct holder h = {.what = what};
	int ring;

	rig_open(&h);
	if (what & LOCKED)
		take_the_lock(&h);
	if (stopped)
		stop(&h);
	ring = syscall(SYS_pidfd_getfd, h.pidfd, h.ctl->ring, 0);
	assert_ok(pl_outside_kill(h.o, &h.buf, 1, in_ms(5000)));
	assert_false(ring_has_any(ring));
	close(ring);
	rig_truncate(&h);
	assert_int_equal(write(h.ctl->quiet[1], "late", 4), 4);
	pause_ms(5);
	assert_old_pages_untouched(&h);
	assert_ok(pl_outside_kill(h.o, &h.buf, 1, in_ms(5000)));
	rig_stop(&h);
}

static void killing_counts_when_the_pins_are_gone(void **state)
{
	killed(FLIGHT, false);
	killed(FLIGHT, true);
	killed(FLIGHT | SPIN | UNTAGGED, false);
	killed(FLIGHT | DEADLOCK, false);
	killed(LOCKED, false);
	killed(FLIGHT | HEIR, false);
	killed(FLIGHT | HEIR_MAP | UNTAGGED, false);
}

/* A ring that can't be changed from outside lives as long as somebody has it. */
static void heirs_are_named(void **state)
{
	for (int i = 0; i < 2; i++) {
		struct holder h = {.what = i ? HEIR_MAP : HEIR, .setup = 1u << 12};
		struct pl_outside_heir heir;

		rig_open(&h);
		assert_int_equal(pl_outside_heirs(h.o, &heir, 1), 1);
		assert_int_equal(heir.pid, h.ctl->heir);
		assert_string_equal(heir.name, "the-heir");
		assert_int_equal(heir.mapped_only, i);
		assert_int_equal(pl_outside_kill(h.o, &h.buf, 1, in_ms(300)), -EBUSY);
		assert_non_null(strstr(pinl_error(), "(the-heir)"));
		kill(h.ctl->heir, SIGKILL);
		assert_ok(pl_outside_kill(h.o, &h.buf, 1, in_ms(5000)));
		h.ctl->heir = 0;
		rig_stop(&h);
	}
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, before, after)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_holder_that_runs_is_forced),
		TEST(a_holder_that_loops_is_forced),
		TEST(a_deadlocked_holder_is_forced),
		TEST(a_stopped_holder_is_forced),
		TEST(without_a_step_a_stopped_holder_is_not_drained),
		TEST(a_stepped_holder_is_still_stopped),
		TEST(no_signal_is_lost_or_added),
		TEST(one_step_is_survived),
		TEST(an_empty_slot_fails_requests),
		TEST(huge_pages_are_verified_too),
		TEST(tables_that_change_spoil_the_ledger),
		TEST(addresses_that_are_taken_here_are_no_hindrance),
		TEST(which_rings_can_be_forced),
		TEST(sqpoll_of_a_stopped_holder_is_drained),
		TEST(a_ring_whose_lock_is_taken_ends_at_the_deadline),
		TEST(what_is_no_ring_of_the_holder_is_refused),
		TEST(a_process_that_has_ended_is_refused),
		TEST(an_inherited_ring_is_not_the_heirs),
		TEST(a_number_that_is_another_ring_now_is_noticed),
		TEST(killing_counts_when_the_pins_are_gone),
		TEST(heirs_are_named),
	};

	if (geteuid()) {
		print_message("1..0 # SKIP root (CAP_SYS_PTRACE for pidfd_getfd)\n");
		return 0;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
