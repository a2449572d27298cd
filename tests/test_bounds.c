/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * I2, the bound: a held change goes on when the leases under it are done, and at the latest at the
 * ceiling plus one grace, whatever hangs meanwhile. The hanging part is a backend of the test's own.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pinlease/device.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define PAGE  4096ul
#define FLAGS (PINL_WRITE | PINL_PIN | PINL_COOPERATIVE)

/* A device whose `read` returns when it is let go, so that its lease is busy until then. */
struct hanging {
	sem_t entered, go;
};

static struct hanging hanging;

static int hang_open(const void *arg, struct pinl_device_info *info, void **dev)
{
	info->device_class = PINL_DEV_REVOCABLE;
	info->caps = PINL_DEVCAP_PIN | PINL_DEVCAP_READ;
	*dev = &hanging;
	return 0;
}

static int hang_map(void *dev, struct pinl_mapping *m, struct pinl_addr *addrs)
{
	return 0;
}

static int hang_read(void *dev, struct pinl_mapping *m, size_t offset, size_t len, void *buf)
{
	struct hanging *h = dev;

	sem_post(&h->entered);
	while (sem_wait(&h->go))
		;
	return 0;
}

/* A device that never drains. */
static int hang_stop(void *dev, struct pinl_mapping *m)
{
	return 0;
}

static int hang_drain(void *dev, struct pinl_mapping *m, uint64_t deadline_ns)
{
	struct timespec t = {deadline_ns / 1000000000u, deadline_ns % 1000000000u};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL))
		;
	return -ETIMEDOUT;
}

static const struct pinl_device_ops hang_ops = {
	.size = sizeof hang_ops,
	.name = "hanging",
	.open = hang_open,
	.map = hang_map,
	.stop = hang_stop,
	.drain = hang_drain,
	.read = hang_read,
};

/* A device that can be stopped only when its transfers have been waited for, if ever. */
static struct {
	int ever, drained;
} busy;

static int busy_open(const void *arg, struct pinl_device_info *info, void **dev)
{
	return hang_open(arg, info, dev);
}

static int busy_stop(void *dev, struct pinl_mapping *m)
{
	return busy.ever && busy.drained ? 0 : -EBUSY;
}

static int busy_drain(void *dev, struct pinl_mapping *m, uint64_t deadline_ns)
{
	busy.drained++;
	return 0;
}

static const struct pinl_device_ops busy_ops = {
	.size = sizeof busy_ops,
	.name = "busy",
	.open = busy_open,
	.map = hang_map,
	.stop = busy_stop,
	.drain = busy_drain,
};

static void *read_lease(void *lease)
{
	char byte;

	return (void *)(intptr_t)pinl_lease_read(lease, 0, 1, &byte);
}

static void a_hanging_backend_delays_a_change_until_ceiling_and_grace_only(void **state)
{
	struct pinl_opts opts = {.size = sizeof opts, .ceiling_ms = 50, .summary_fd = -1};
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_RECALL, .grace_ms = 10};
	struct pinl_event ev = {.size = sizeof ev};
	struct pinl_lease *lease;
	struct pinl_device *dev;
	struct pinl_ctx *ctx;
	pthread_t reader;
	void *mem = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int cut = 0;

	sem_init(&hanging.entered, 0, 0);
	sem_init(&hanging.go, 0, 0);
	assert_int_equal(pinl_open(&opts, &ctx), 0);
	assert_int_equal(pinl_device_open_ops(ctx, &hang_ops, NULL, &dev), 0);
	assert_int_equal(
		pinl_map_range(dev, (uintptr_t)mem, (uintptr_t)mem + PAGE, FLAGS, &policy, NULL, &lease),
		0);
	assert_int_equal(pthread_create(&reader, NULL, read_lease, lease), 0);
	sem_wait(&hanging.entered);
	assert_int_equal(pinl_munmap(ctx, mem, PAGE), 0); /* comes back: the device still hangs */
	sem_post(&hanging.go);
	pthread_join(reader, NULL);
	while (!pinl_next_event(ctx, &ev))
		cut |= ev.type == PINL_EV_DEGRADED && ev.err == -EINTR;
	assert_true(cut);
	pinl_unmap_range(lease);
	pinl_close(ctx);
}

/* One after the other would take longer than the actor may be held, and he would be let go early. */
static void devices_that_hang_are_waited_for_together(void **state)
{
	enum { HANG = 8, DRAIN_MS = 1000 };
	struct pinl_opts opts = {.size = sizeof opts,
				 .ceiling_ms = (HANG - 1) * DRAIN_MS,
				 .drain_ms = DRAIN_MS,
				 .summary_fd = -1};
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_RECALL};
	void *mem = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct pinl_counters c = {.size = sizeof c};
	struct pinl_event ev = {.size = sizeof ev};
	struct pinl_lease *lease[HANG];
	struct pinl_device *dev;
	struct pinl_ctx *ctx;

	assert_int_equal(pinl_open(&opts, &ctx), 0);
	for (int i = 0; i < HANG; i++) {
		assert_int_equal(pinl_device_open_ops(ctx, &hang_ops, NULL, &dev), 0);
		assert_int_equal(pinl_map_range(dev, (uintptr_t)mem, (uintptr_t)mem + PAGE, FLAGS,
						&policy, NULL, &lease[i]),
				 0);
	}
	assert_int_equal(pinl_munmap(ctx, mem, PAGE), 0);
	while (!pinl_next_event(ctx, &ev))
		assert_false(ev.type == PINL_EV_DEGRADED && ev.err == -EINTR);
	assert_int_equal(pinl_counters(ctx, &c), 0);
	assert_int_equal(c.forced, HANG);
	assert_int_equal(c.drains_unconfirmed, HANG);
	pinl_close(ctx);
}

static int force_of_one_that_is_busy(bool ever)
{
	struct pinl_opts opts = {.size = sizeof opts, .drain_ms = 200, .summary_fd = -1};
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_RECALL};
	void *mem = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct pinl_event ev = {.size = sizeof ev};
	struct pinl_lease *lease;
	struct pinl_device *dev;
	struct pinl_ctx *ctx;

	busy.ever = ever;
	busy.drained = 0;
	assert_int_equal(pinl_open(&opts, &ctx), 0);
	assert_int_equal(pinl_device_open_ops(ctx, &busy_ops, NULL, &dev), 0);
	assert_int_equal(
		pinl_map_range(dev, (uintptr_t)mem, (uintptr_t)mem + PAGE, FLAGS, &policy, NULL, &lease),
		0);
	assert_int_equal(pinl_munmap(ctx, mem, PAGE), 0);
	while (!pinl_next_event(ctx, &ev) && ev.type != PINL_EV_FORCED)
		;
	assert_int_equal(ev.type, PINL_EV_FORCED);
	assert_true(busy.drained > 0);
	pinl_unmap_range(lease);
	pinl_close(ctx);
	return ev.err;
}

static void what_could_not_be_stopped_is_drained(void **state)
{
	assert_int_equal(force_of_one_that_is_busy(true), 0);
	assert_int_equal(force_of_one_that_is_busy(false), -EBUSY);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_hanging_backend_delays_a_change_until_ceiling_and_grace_only),
		cmocka_unit_test(what_could_not_be_stopped_is_drained),
		cmocka_unit_test(devices_that_hang_are_waited_for_together),
	};

	return cmocka_run_group_tests_name("bounds", tests, NULL, NULL);
}
