/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which rings can be taken from outside, that a handle is of the ring it was asked for, and R10: killed
 * is done when the pins are gone.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os/clock.h"
#include "outside_rig.h"

#include "check.h"

/* -------------------------------------------------------------------------------- ring kinds -- */

static void kind(const char *name, unsigned setup, int what, const char *why)
{
	struct holder h = {.setup = setup, .what = what};

	rig_open(&h);
	print_message("%s: %s\n", name, pl_outside_why(h.o) ? pl_outside_why(h.o) : "can be forced");
	if (!why) {
		assert_null(pl_outside_why(h.o));
		assert_ok(pl_outside_scratch(h.o, &h.buf, in_ms(PATIENCE)));
		assert_ok(rig_drained(&h, 0));
		assert_pins(&h, PAGES);
	} else {
		assert_non_null(strstr(pl_outside_why(h.o), why));
		assert_int_equal(pl_outside_scratch(h.o, &h.buf, in_ms(PATIENCE)), -EOPNOTSUPP);
		assert_int_equal(rig_drained(&h, 0), -EOPNOTSUPP);
		assert_ok(pl_outside_kill(h.o, &h.buf, 1, in_ms(PATIENCE)));
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

/* Who has no time to try gets the handle, and hears why not when it matters. */
static void what_was_not_tried_is_known_when_it_is_forced(void **state)
{
	for (int single = 0; single < 2; single++) {
		struct holder h = {.setup = single ? 1u << 12 : 0};
		int err;

		rig_start(&h);
		while ((err = pl_outside_open(h.pidfd, h.pid, h.ctl->ring, in_ms(0), &h.o)) ==
		       -ETIMEDOUT)
			pause_ms(1); /* the holder had its ring's lock just then */
		assert_ok(err);
		assert_null(pl_outside_why(h.o));
		assert_int_equal(pl_outside_empty(h.o, &h.buf, in_ms(PATIENCE)),
				 single ? -EOPNOTSUPP : 0);
		assert_int_equal(pl_outside_why(h.o) != NULL, single);
		rig_stop(&h);
	}
}

static void take_the_lock(struct holder *h)
{
	h->ctl->wake = 1;
	wait_until_in(h->pid, "userfault");
}

/* A holder that waits for ever under its ring's lock holds nobody else up. */
static void a_ring_whose_lock_is_taken_ends_at_the_deadline(void **state)
{
	struct holder h = {.what = LOCKED};
	struct pl_outside *late;
	uint64_t until;

	rig_open(&h);
	take_the_lock(&h);
	assert_int_equal(pl_outside_check(h.o, &h.buf, in_ms(50)), -ETIMEDOUT);
	assert_int_equal(pl_outside_scratch(h.o, &h.buf, in_ms(50)), -ETIMEDOUT);
	assert_int_equal(pl_outside_open(h.pidfd, h.pid, h.ctl->ring, in_ms(50), &late), -ETIMEDOUT);
	for (int i = 0; i < 100; i++)
		assert_int_equal(pl_outside_open(h.pidfd, h.pid, h.ctl->ring, in_ms(0), &late),
				 -ETIMEDOUT);
	kill(h.pid, SIGKILL);
	waitpid(h.pid, NULL, 0);
	pl_outside_asked();
	until = in_ms(PATIENCE);
	while (waitpid(-1, NULL, WNOHANG | __WALL) == 0 && pl_clock_ns() < until) /* the open's child */
		pause_ms(1);
	rig_stop(&h);
}

/* ------------------------------------------------------------------------------------------ the proof
 * -- */

static int try_open(struct holder *h, int fd)
{
	struct pl_outside *o;
	int err = pl_outside_open(h->pidfd, h->pid, fd, in_ms(PATIENCE), &o);

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
	assert_int_equal(pl_outside_check(h.o, &other, in_ms(PATIENCE)), -ENOENT);
	other = (struct pl_outside_buf){SLOT, h.buf.start, h.buf.end + PAGE};
	assert_int_equal(pl_outside_scratch(h.o, &other, in_ms(PATIENCE)), -ENOENT);
	rig_stop(&h);
}

static void a_process_that_has_ended_is_refused(void **state)
{
	struct holder h = {0};
	struct pl_outside *o;
	int self;

	rig_start(&h);
	self = syscall(SYS_pidfd_open, getpid(), 0);
	assert_int_equal(pl_outside_open(self, h.pid, h.ctl->ring, in_ms(PATIENCE), &o), -ESRCH);
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
	assert_ok(pl_outside_open(pidfd, h.ctl->heir, h.ctl->ring, in_ms(PATIENCE), &o));
	assert_int_equal(pl_outside_check(o, &h.buf, in_ms(PATIENCE)), -EPERM);
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
	assert_ok(pl_outside_open(self, getpid(), number, in_ms(PATIENCE), &o));
	assert_true(pl_outside_held(o));
	io_uring_queue_exit(&one);
	assert_int_equal(io_uring_queue_init(2, &two, 0), 0);
	assert_int_equal(dup2(two.ring_fd, number), number);
	assert_int_equal(io_uring_register_buffers(&two, &iov, 1), 0);
	assert_false(pl_outside_held(o));
	assert_int_equal(pl_outside_check(o, &b, in_ms(PATIENCE)), -ENOENT);
	pl_outside_close(o);
	if (two.ring_fd != number)
		close(number);
	io_uring_queue_exit(&two);
	munmap(iov.iov_base, PAGE);
	close(self);
}

/* -------------------------------------------------------------------------------------- kill -- */

/* A buffer in the table, or a request that waits. */
static bool ring_has_any(int ring)
{
	char path[64], line[256];
	bool any = false;
	FILE *f;

	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", ring);
	f = fopen(path, "re");
	while (fgets(line, sizeof line, f))
		any |= (strstr(line, ": 0x") &&
			!strstr(line, ": 0xffffffffffffffff")) || /* empty: 6.12 */
		       strstr(line, "op=");
	fclose(f);
	return any;
}

/* False: others' pins have hidden that these went. That is said for gone which isn't: never. */
static bool killed(int what, bool stopped)
{
	struct holder h = {.what = what};
	int ring, err;

	rig_open(&h);
	if (what & LOCKED)
		take_the_lock(&h);
	if (stopped)
		rig_suspend(&h);
	ring = syscall(SYS_pidfd_getfd, h.pidfd, h.ctl->ring, 0);
	err = pl_outside_kill(h.o, &h.buf, 1, in_ms(PATIENCE));
	if (err != -ETIMEDOUT || !(what & UNTAGGED)) {
		assert_ok(err);
		assert_false(ring_has_any(ring));
	}
	close(ring);
	rig_truncate(&h);
	assert_int_equal(write(h.ctl->quiet[1], "late", 4), 4);
	pause_ms(5);
	assert_old_pages_untouched(&h);
	if (!err)
		assert_ok(pl_outside_kill(h.o, &h.buf, 1, in_ms(PATIENCE)));
	rig_stop(&h);
	return !err;
}

static void killed_untagged(int what)
{
	int tries = 5;

	while (!killed(what | UNTAGGED, false))
		assert_true(--tries);
}

static void killing_counts_when_the_pins_are_gone(void **state)
{
	killed(FLIGHT, false);
	killed(FLIGHT, true);
	killed_untagged(FLIGHT | SPIN);
	killed(FLIGHT | DEADLOCK, false);
	killed(LOCKED, false);
	killed(FLIGHT | HEIR, false);
	killed_untagged(FLIGHT | HEIR_MAP);
}

/* Other programs' pins, which come and go. */
static void *others(void *over)
{
	struct iovec iov = {NULL, 8 * SIZE};
	struct io_uring ring;

	iov.iov_base = mmap(NULL, 8 * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	io_uring_queue_init(1, &ring, 0);
	while (!atomic_load((atomic_bool *)over)) {
		io_uring_register_buffers(&ring, &iov, 1);
		pause_ms(1);
		io_uring_unregister_buffers(&ring);
		pause_ms(1);
	}
	io_uring_queue_exit(&ring);
	munmap(iov.iov_base, 8 * SIZE);
	return NULL;
}

/* Without a tag the machine's count of pins has to do, but not against what the ring itself shows. */
static void what_others_unpin_is_not_taken_for_it(void **state)
{
	atomic_bool over = false;
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, others, &over), 0);
	for (int i = 0; i < 20 && killed(FLIGHT | SPIN | UNTAGGED, false); i++)
		;
	atomic_store(&over, true);
	pthread_join(thread, NULL);
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
		kill(h.pid, SIGKILL);
		assert_int_equal(poll(&(struct pollfd){.fd = h.pidfd, .events = POLLIN}, 1, -1), 1);
		assert_int_equal(pl_outside_kill(h.o, &h.buf, 1, in_ms(300)), -EBUSY);
		assert_non_null(strstr(pinl_error(), "(the-heir)"));
		kill(h.ctl->heir, SIGKILL);
		assert_ok(pl_outside_kill(h.o, &h.buf, 1, in_ms(PATIENCE)));
		h.ctl->heir = 0;
		rig_stop(&h);
	}
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(which_rings_can_be_forced),
		RIG_TEST(what_was_not_tried_is_known_when_it_is_forced),
		RIG_TEST(a_ring_whose_lock_is_taken_ends_at_the_deadline),
		RIG_TEST(what_is_no_ring_of_the_holder_is_refused),
		RIG_TEST(a_process_that_has_ended_is_refused),
		RIG_TEST(an_inherited_ring_is_not_the_heirs),
		RIG_TEST(a_number_that_is_another_ring_now_is_noticed),
		RIG_TEST(killing_counts_when_the_pins_are_gone),
		RIG_TEST(what_others_unpin_is_not_taken_for_it),
		RIG_TEST(heirs_are_named),
	};

	if (geteuid()) {
		print_message("1..0 # SKIP root (CAP_SYS_PTRACE for pidfd_getfd)\n");
		return 0;
	}
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
