/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * I2 in the midst of a force: pins that nothing needs any more don't wait for the transfers of another
 * lease. A holder can be stopped there for any time, and its pins with it.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <pinlease/source.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "accounted.h"
#include "check.h"
#include "proc.h"

#define PAGE   4096ul
#define LEASES 3 /* the flight is on the one in the middle: one of the others is taken after it */
#define SIZE   (LEASES * PAGE)
#define FLIGHT 1 /* its number; the others in the queue are the library's */

struct cut {
	struct pinl_ctx *ctx;
	int fd;
};

static void *cut_off(void *arg)
{
	struct cut *c = arg;

	return (void *)(intptr_t)pinl_ftruncate(c->ctx, c->fd, 0);
}

static void take_off(struct io_uring *ring, int from, char *to, struct pinl_lease *l)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);

	io_uring_prep_read_fixed(sqe, from, to, PAGE, 0, pinl_lease_key(l));
	sqe->user_data = FLIGHT;
	assert_int_equal(io_uring_submit(ring), 1);
}

static bool has_landed(struct io_uring *ring)
{
	struct io_uring_cqe *cqe;
	unsigned head;

	io_uring_for_each_cqe(ring, head, cqe) if (cqe->user_data == FLIGHT) return true;
	return false;
}

static void pins_go_while_another_lease_drains(void **state)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1, .drain_ms = 20000};
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_RECALL, .then = PINL_THEN_FAIL};
	struct pinl_uring_arg arg = {.size = sizeof arg, .nr_slots = LEASES};
	struct pinl_lease *l[LEASES];
	struct pinl_device *dev;
	struct io_uring ring;
	pthread_t thread;
	struct cut cut;
	int flight[2];
	void *err;
	long before;
	char *mem;

	account_pins();
	cut.fd = memfd_create("pins", MFD_CLOEXEC);
	assert_int_equal(ftruncate(cut.fd, SIZE), 0);
	mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, cut.fd, 0);
	assert_int_equal(pipe2(flight, O_CLOEXEC), 0);
	assert_int_equal(io_uring_queue_init(8, &ring, 0), 0);
	assert_int_equal(io_uring_register_buffers_sparse(&ring, LEASES), 0);
	arg.ring = &ring;
	assert_ok(pinl_open(&opts, &cut.ctx));
	assert_ok(pinl_device_open(cut.ctx, "uring", &arg, &dev));
	while (pinned_kb()) /* what it has tried */
		usleep(1000);
	for (int i = 0; i < LEASES; i++)
		assert_ok(pinl_map_range(dev, (uintptr_t)mem + i * PAGE, (uintptr_t)mem + (i + 1) * PAGE,
					 PINL_WRITE | PINL_PIN, &policy, NULL, &l[i]));
	before = pinned_kb();
	assert_true(before >= (long)SIZE / 1024);
	take_off(&ring, flight[0], mem + LEASES / 2 * PAGE, l[LEASES / 2]);
	assert_int_equal(pthread_create(&thread, NULL, cut_off, &cut), 0);
	while (pinned_kb() > (long)PAGE / 1024) {
		assert_false(has_landed(&ring)); /* it would be cancelled in the end */
		usleep(1000);
	}
	assert_int_equal(write(flight[1], "x", 1), 1);
	pthread_join(thread, &err);
	assert_null(err);
	assert_true(has_landed(&ring));
	pinl_close(cut.ctx);
	io_uring_queue_exit(&ring);
	munmap(mem, SIZE);
	close(cut.fd);
	close(flight[0]);
	close(flight[1]);
}

/* ------------------------------------------------------------------------ taken from outside -- */

static unsigned holds_all(void *src, const struct pinl_memory *mem, enum pinl_op op)
{
	return PINL_CAN_TELL | PINL_CAN_BEFORE | PINL_CAN_HOLD;
}

static int just_open(struct pinl_ctx *ctx, const void *arg, void **src)
{
	*src = ctx;
	return 0;
}

static void nothing_to_close(void *src)
{
}

static int nothing_to_watch(void *src, const struct pinl_memory *mem)
{
	return 0;
}

static void nothing_watched(void *src, const struct pinl_memory *mem)
{
}

static const struct pinl_source_ops holding = {.size = sizeof holding,
					       .name = "holding",
					       .open = just_open,
					       .close = nothing_to_close,
					       .coverage = holds_all,
					       .watch = nothing_to_watch,
					       .unwatch = nothing_watched};

static void *announce(void *arg)
{
	struct cut *c = arg;
	char script[128];
	struct stat st;

	fstat(c->fd, &st);
	snprintf(script, sizeof script, "truncate file %lu %lu 0 eof\n", (unsigned long)st.st_dev,
		 (unsigned long)st.st_ino);
	return (void *)(intptr_t)pinl_script_run(c->ctx, script);
}

/*
 * The lease is told of a change; another process, which holds the change, takes the slot (taken) and
 * lets the change happen, and the holder ends the lease before it hears of that. Or nobody takes it, and
 * the change happens all the same: that is an orphan.
 */
static uint64_t orphans(bool taken)
{
	struct pinl_opts opts = {.size = sizeof opts,
				 .summary_fd = -1,
				 .sources = PINL_SOURCE_FAULTS,
				 .ceiling_ms = 60000};
	struct pinl_policy policy = {
		.size = sizeof policy, .kind = PINL_RECALL, .then = PINL_THEN_FAIL, .grace_ms = 60000};
	struct pinl_counters counters = {.size = sizeof counters};
	struct pinl_uring_arg arg = {.size = sizeof arg, .nr_slots = LEASES};
	struct iovec nothing = {0};
	struct pinl_device *dev;
	struct pinl_lease *l;
	struct io_uring ring;
	pthread_t thread;
	struct cut c = {.fd = memfd_create("pins", MFD_CLOEXEC)};
	char *mem;

	assert_int_equal(ftruncate(c.fd, PAGE), 0);
	mem = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, c.fd, 0);
	assert_int_equal(io_uring_queue_init(8, &ring, 0), 0);
	assert_int_equal(io_uring_register_buffers_sparse(&ring, LEASES), 0);
	arg.ring = &ring;
	assert_ok(pinl_open(&opts, &c.ctx));
	assert_ok(pinl_source_add(c.ctx, &holding, NULL));
	assert_ok(pinl_device_open(c.ctx, "uring", &arg, &dev));
	assert_ok(pinl_map_range(dev, (uintptr_t)mem, (uintptr_t)mem + PAGE, PINL_WRITE | PINL_PIN,
				 &policy, NULL, &l));
	assert_int_equal(pthread_create(&thread, NULL, announce, &c), 0);
	while (pinl_lease_check(l) != -ESTALE)
		usleep(1000);
	if (taken)
		assert_int_equal(io_uring_register_buffers_update_tag(&ring, pinl_lease_key(l), &nothing,
								      NULL, 1),
				 1);
	assert_int_equal(ftruncate(c.fd, 0), 0);
	pinl_unmap_range(l);
	pthread_join(thread, NULL);
	assert_ok(pinl_counters(c.ctx, &counters));
	pinl_close(c.ctx);
	io_uring_queue_exit(&ring);
	munmap(mem, PAGE);
	close(c.fd);
	return counters.orphans;
}

static void what_was_taken_from_outside_is_no_orphan(void **state)
{
	assert_int_equal(orphans(true), 0);
	assert_int_equal(orphans(false), 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pins_go_while_another_lease_drains),
		cmocka_unit_test(what_was_taken_from_outside_is_no_orphan),
	};

	alarm(100);
	return cmocka_run_group_tests_name("pins", tests, NULL, NULL);
}
