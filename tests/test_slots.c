/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * I3 and I4 on io_uring when the kernel has no memory to change a slot, which is when the device keeps
 * its old pages: that is never called a revoke, and the pins go when there is memory again. The failures
 * are put in at the system call; all else is the kernel's.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check.h"

#define PAGE 4096ul
#define SIZE (4 * PAGE)

/* ------------------------------------------------------------------------------- a kernel without -- */

static atomic_int updates_to_fail; /* the next so many; -1: all */

long __real_syscall(long nr, ...);
long __wrap_syscall(long nr, ...);

long __wrap_syscall(long nr, ...)
{
	va_list ap;
	long a[6];

	va_start(ap, nr);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(ap, long);
	va_end(ap);
	if (nr == __NR_io_uring_register && a[1] == IORING_REGISTER_BUFFERS_UPDATE && updates_to_fail) {
		if (updates_to_fail > 0)
			updates_to_fail--;
		errno = ENOMEM;
		return -1;
	}
	return __real_syscall(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* ------------------------------------------------------------------------------------------- rig -- */

struct rig {
	struct io_uring ring;
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct pinl_lease *lease;
	int fd;
	char *mem;
};

/* A lease of a memfd, in a slot of the program's own table. */
static void rig_open(struct rig *r, enum pinl_then then)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1, .drain_ms = 100};
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &r->ring, .nr_slots = 4};
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_RECALL, .then = then};

	assert_int_equal(io_uring_queue_init(8, &r->ring, 0), 0);
	assert_int_equal(io_uring_register_buffers_sparse(&r->ring, 4), 0);
	assert_ok(pinl_open(&opts, &r->ctx));
	assert_ok(pinl_device_open(r->ctx, "uring", &arg, &r->dev));
	r->fd = memfd_create("slots", MFD_CLOEXEC);
	assert_int_equal(ftruncate(r->fd, SIZE), 0);
	r->mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	memset(r->mem, 'O', SIZE);
	assert_ok(pinl_map_range(r->dev, (uintptr_t)r->mem, (uintptr_t)r->mem + SIZE,
				 PINL_WRITE | PINL_PIN, &policy, NULL, &r->lease));
}

static void rig_close(struct rig *r)
{
	pinl_close(r->ctx);
	io_uring_queue_exit(&r->ring);
	munmap(r->mem, SIZE);
	close(r->fd);
}

/* What the event at the end of the recall says. */
static int released(struct rig *r)
{
	struct pinl_event ev = {.size = sizeof ev};

	while (!pinl_next_event(r->ctx, &ev))
		if (ev.type == PINL_EV_RELEASED)
			return ev.err;
	fail_msg("no lease was released");
	return 0;
}

/* Buffers in the table, as the kernel says. */
static int pinned(struct rig *r)
{
	char path[64], line[256];
	unsigned slot;
	int n = 0;
	FILE *f;

	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", r->ring.ring_fd);
	f = fopen(path, "r");
	assert_non_null(f);
	while (fgets(line, sizeof line, f))
		n += sscanf(line, " %u: 0x%*x/%*u", &slot) == 1 && strstr(line, "0x");
	fclose(f);
	return n;
}

/* ----------------------------------------------------------------------------------------- tests -- */

static void a_slot_that_stays_full_is_no_revoke(void **state)
{
	struct pinl_counters counters = {.size = sizeof counters};
	struct rig r;

	rig_open(&r, PINL_THEN_FAIL);
	updates_to_fail = -1;
	assert_ok(pinl_ftruncate(r.ctx, r.fd, 0));
	updates_to_fail = 0;
	assert_int_equal(released(&r), -ETIMEDOUT);
	assert_ok(pinl_counters(r.ctx, &counters));
	assert_int_equal(counters.drains_unconfirmed, 1);
	assert_int_equal(pinned(&r), 1);
	pinl_unmap_range(r.lease);
	assert_int_equal(pinned(&r), 0);
	rig_close(&r);
}

/*
 * A transfer into the old pages is in flight; the slot can't be given the new ones, nor be emptied, and
 * then can. The transfer still counts.
 */
static void what_is_in_flight_is_waited_for_when_a_slot_is_full_at_first(void **state)
{
	struct io_uring_sqe *sqe;
	struct io_uring_cqe *cqe;
	int pipe_fds[2], found = 0;
	unsigned head;
	struct rig r;

	rig_open(&r, PINL_THEN_SCRATCH);
	assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
	sqe = io_uring_get_sqe(&r.ring);
	io_uring_prep_read_fixed(sqe, pipe_fds[0], r.mem, PAGE, 0, pinl_lease_key(r.lease));
	sqe->user_data = 1;
	assert_int_equal(io_uring_submit(&r.ring), 1);
	updates_to_fail = 2; /* give it the new pages; empty it */
	assert_ok(pinl_ftruncate(r.ctx, r.fd, 0));
	assert_int_equal(updates_to_fail, 0);
	if (!released(&r)) {
		io_uring_for_each_cqe(&r.ring, head, cqe) found += cqe->user_data == 1;
		assert_int_equal(found, 1);
	}
	pinl_unmap_range(r.lease);
	rig_close(&r);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
}

static void pins_that_unmap_could_not_end_end_with_the_next(void **state)
{
	struct pinl_policy keep = {.size = sizeof keep, .kind = PINL_KEEP};
	struct pinl_lease *other;
	struct rig r;

	rig_open(&r, PINL_THEN_FAIL);
	assert_ok(pinl_map_range(r.dev, (uintptr_t)&r & ~(PAGE - 1),
				 ((uintptr_t)&r & ~(PAGE - 1)) + PAGE, PINL_WRITE | PINL_PIN, &keep,
				 NULL, &other));
	assert_int_equal(pinned(&r), 2);
	updates_to_fail = -1;
	pinl_unmap_range(r.lease);
	updates_to_fail = 0;
	assert_int_equal(pinned(&r), 2);
	pinl_unmap_range(other);
	assert_int_equal(pinned(&r), 0);
	rig_close(&r);
}

static void pins_that_unmap_could_not_end_end_with_the_device(void **state)
{
	struct rig r;

	rig_open(&r, PINL_THEN_FAIL);
	updates_to_fail = -1;
	pinl_unmap_range(r.lease);
	updates_to_fail = 0;
	assert_int_equal(pinned(&r), 1);
	pinl_device_close(r.dev);
	assert_int_equal(pinned(&r), 0);
	rig_close(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_slot_that_stays_full_is_no_revoke),
		cmocka_unit_test(what_is_in_flight_is_waited_for_when_a_slot_is_full_at_first),
		cmocka_unit_test(pins_that_unmap_could_not_end_end_with_the_next),
		cmocka_unit_test(pins_that_unmap_could_not_end_end_with_the_device),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
