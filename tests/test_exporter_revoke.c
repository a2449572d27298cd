/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Device memory is taken back by its exporter: from all importers at once. */
#include "exporter_rig.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static void revoke_fails_the_device(void **state)
{
	struct rig *r = *state;
	struct pinl_event ev;

	assert_ok(map_handle(r, recall(PINL_THEN_FAIL, 0), PINL_WRITE));
	assert_ok(dma(r, 0, PAGES, 'b', 1));
	assert_ok(pinl_exporter_revoke(r->exporter, "a reset"));
	assert_int_equal(r->detached, 1);
	assert_true(dma(r, 0, 1, 'x', 1) < 0);
	assert_memory(r, 0, 'b');
	assert_int_equal(info_of(r).state, PINL_RELEASED);
	assert_int_equal(pinl_lease_check(r->lease), -ESTALE);
	ev = await_event(r, PINL_EV_NOTICE);
	assert_string_equal(ev.source, "exporter");
	assert_int_equal(ev.file_ino | ev.file_dev, 0);
	assert_int_equal(await_event(r, PINL_EV_RELEASED).outcome, PINL_OUT_FAIL);
}

/* M6: to a dummy. The device goes on without an error and reaches nothing. */
static void revoke_leads_to_a_dummy(void **state)
{
	struct rig *r = *state;

	assert_ok(map_handle(r, recall(PINL_THEN_SCRATCH, 0), PINL_WRITE));
	assert_ok(dma(r, 0, PAGES, 'b', 1));
	assert_ok(pinl_exporter_revoke(r->exporter, "a reset"));
	assert_ok(dma(r, 0, PAGES, 'x', 1));
	for (unsigned i = 0; i < PAGES; i++)
		assert_memory(r, i, 'b');
	assert_int_equal(info_of(r).outcome, PINL_OUT_SCRATCH);
}

/* The dummy is 2 MiB at most, and is there again and again. */
static void a_dummy_for_more_than_it_has(void **state)
{
	const size_t len = 4 << 20, far = 2 << 20;
	struct rig *r = *state;
	struct pinl_policy p = recall(PINL_THEN_SCRATCH, 0);
	struct pinl_addr *addrs = calloc(len / PAGE, sizeof *addrs);
	struct pinl_export x = export_of(r);
	struct pinl_exporter *e;
	char buf[PAGE] = "dummy";
	struct io_uring ring;

	assert_int_equal(io_uring_queue_init(32768, &ring, IORING_SETUP_SQE128), 0);
	x.addr = NULL;
	x.fd = ring.ring_fd;
	x.length = len;
	assert_ok(pinl_exporter_register(r->ctx, &x, NULL, NULL, &e));
	assert_ok(pinl_map_exporter(r->dev, e, 0, len, PINL_WRITE, &p, addrs, &r->lease));
	assert_ok(pinl_exporter_revoke(e, NULL));
	assert_ok(pinl_soft_dma(r->dev, addrs[far / PAGE].addr, buf, PAGE, 1));
	memset(buf, 0, sizeof buf);
	assert_ok(pinl_soft_dma(r->dev, addrs[0].addr, buf, PAGE, 0));
	assert_string_equal(buf, "dummy");
	assert_ok(pinl_soft_dma(r->dev, addrs[len / PAGE - 1].addr, buf, PAGE, 1));
	pinl_unmap_range(r->lease);
	r->lease = NULL;
	pinl_exporter_unregister(e);
	io_uring_queue_exit(&ring);
	free(addrs);
}

/* What was revoked is given to nobody until it is offered again, and nobody gets it by himself. */
static void nothing_is_mapped_again(void **state)
{
	struct rig *r = *state;
	struct pinl_policy p = recall(PINL_THEN_SCRATCH, 0);
	struct pinl_lease *again = NULL;

	assert_ok(map_handle(r, p, PINL_WRITE));
	assert_ok(pinl_exporter_revoke(r->exporter, "the fan has stopped"));
	assert_int_equal(pinl_map_exporter(r->dev, r->exporter, 0, SIZE, 0, &p, NULL, &again), -ENODEV);
	assert_says("the fan has stopped");
	pinl_exporter_offer(r->exporter);
	assert_ok(dma(r, 0, 1, 'x', 1));
	assert_memory(r, 0, 0);
	assert_ok(pinl_map_exporter(r->dev, r->exporter, 0, SIZE, PINL_WRITE, &p, r->addrs, &again));
	assert_ok(dma(r, 0, 1, 'y', 1));
	assert_memory(r, 0, 'y');
	pinl_unmap_range(again);
}

static void *revoker(void *arg)
{
	struct rig *r = arg;

	return (void *)(intptr_t)pinl_exporter_revoke(r->exporter, NULL);
}

static void finish(pthread_t thread)
{
	void *err;

	pthread_join(thread, &err);
	assert_int_equal((intptr_t)err, 0);
}

static void importer_has_its_grace(void **state)
{
	struct rig *r = *state;
	pthread_t thread;

	assert_ok(map_handle(r, recall(PINL_THEN_FAIL, LONG), PINL_WRITE));
	assert_int_equal(pthread_create(&thread, NULL, revoker, r), 0);
	await_event(r, PINL_EV_NOTICE);
	assert_ok(dma(r, 0, 1, 'g', 1)); /* in the grace it may go on */
	assert_int_equal(__atomic_load_n(&r->detached, __ATOMIC_SEQ_CST), 0);
	assert_ok(pinl_quiesced(r->lease));
	finish(thread);
	assert_int_equal(info_of(r).outcome, PINL_OUT_QUIESCED);
	assert_true(dma(r, 0, 1, 'x', 1) < 0);
	assert_memory(r, 0, 'g');
}

static void importer_unmaps(void **state)
{
	struct rig *r = *state;
	pthread_t thread;

	assert_ok(map_handle(r, recall(PINL_THEN_FAIL, LONG), PINL_WRITE));
	assert_int_equal(pthread_create(&thread, NULL, revoker, r), 0);
	await_event(r, PINL_EV_NOTICE);
	pinl_unmap_range(r->lease);
	r->lease = NULL;
	finish(thread);
	assert_int_equal(r->detached, 1);
}

struct flight {
	struct rig *r;
	int result;
};

static void *fly(void *arg)
{
	struct flight *f = arg;

	f->result = dma(f->r, 0, PAGES, 'f', 1);
	return NULL;
}

/* A transfer that is in flight when the memory is revoked hits nothing after that. */
static void in_flight(struct rig *r, enum pinl_then then)
{
	struct flight f = {.r = r};
	pthread_t thread;

	assert_ok(map_handle(r, recall(then, 0), PINL_WRITE));
	assert_ok(pinl_soft_pause(r->dev, 1));
	assert_int_equal(pthread_create(&thread, NULL, fly, &f), 0);
	while (*(volatile char *)r->va != 'f')
		sched_yield();
	assert_ok(pinl_exporter_revoke(r->exporter, NULL));
	assert_memory(r, 0, 'f');
	memset(r->va, 'm', SIZE);
	assert_ok(pinl_soft_pause(r->dev, 0));
	pthread_join(thread, NULL);
	if (then == PINL_THEN_SCRATCH)
		assert_int_equal(f.result, 0);
	else
		assert_true(f.result < 0);
	for (unsigned i = 0; i < PAGES; i++)
		assert_memory(r, i, 'm');
}

static void in_flight_fail(void **state)
{
	in_flight(*state, PINL_THEN_FAIL);
}

static void in_flight_scratch(void **state)
{
	in_flight(*state, PINL_THEN_SCRATCH);
}

/* Each by its own policy, on whatever path and device it came. */
static void all_importers(void **state)
{
	struct rig *r = *state;
	struct pinl_policy fail = recall(PINL_THEN_FAIL, 0), scratch = recall(PINL_THEN_SCRATCH, 0);
	struct pinl_addr addrs[2][PAGES];
	struct pinl_lease *lease[2];
	struct pinl_device *second, *dev = r->dev;
	uintptr_t va = (uintptr_t)r->va;
	char buf[PAGE] = "x";

	assert_ok(map_handle(r, scratch, PINL_WRITE));
	assert_ok(pinl_map_range(r->dev, va, va + SIZE, PINL_WRITE | PINL_COOPERATIVE, &fail, addrs[0],
				 &lease[0]));
	open_soft(r, PINL_DEV_REVOCABLE);
	second = r->dev;
	assert_ok(pinl_map_exporter(second, r->exporter, PAGE, PAGE, 0, &scratch, addrs[1], &lease[1]));
	r->dev = dev;
	assert_ok(pinl_exporter_revoke(r->exporter, NULL));
	assert_ok(dma(r, 0, 1, 'x', 1));
	assert_int_equal(pinl_soft_dma(r->dev, addrs[0][0].addr, buf, PAGE, 1), -EFAULT);
	r->va[PAGE] = 'q';
	assert_ok(pinl_soft_dma(second, addrs[1][0].addr, buf, PAGE, 0));
	assert_int_equal(buf[0], 0);
	assert_memory(r, 0, 0);
	pinl_unmap_range(lease[0]);
	pinl_unmap_range(lease[1]);
	assert_int_equal(r->detached, 3);
}

#define BIG	  512u /* pages of a ring's largest array */
#define DEVICES	  20u
#define IMPORTERS (BIG * DEVICES)

static struct pinl_exporter *big_exporter(struct rig *r, struct io_uring *ring)
{
	struct pinl_export x = {.size = sizeof x,
				.name = "a large one",
				.offset = IORING_OFF_SQES,
				.length = BIG * PAGE};
	struct pinl_exporter *e;

	assert_int_equal(io_uring_queue_init(BIG * PAGE / sizeof(struct io_uring_sqe), ring, 0), 0);
	x.addr = ring->sq.sqes;
	x.fd = ring->ring_fd;
	assert_ok(pinl_exporter_register(r->ctx, &x, &exporter_ops, r, &e));
	return e;
}

static void ten_thousand_importers(void **state)
{
	struct rig *r = *state;
	struct pinl_policy fail = recall(PINL_THEN_FAIL, 0);
	struct pinl_lease **leases = calloc(IMPORTERS, sizeof *leases);
	struct pinl_addr *addrs = calloc(IMPORTERS, sizeof *addrs);
	struct pinl_device *first = r->dev, *devices[DEVICES];
	struct io_uring ring;
	struct pinl_exporter *e = big_exporter(r, &ring);
	char byte = 'x';

	for (unsigned i = 0; i < IMPORTERS; i++) {
		if (i % BIG == 0)
			open_soft(r, PINL_DEV_REVOCABLE);
		devices[i / BIG] = r->dev;
		assert_ok(pinl_map_exporter(r->dev, e, i % BIG * PAGE, PAGE, PINL_WRITE, &fail,
					    &addrs[i], &leases[i]));
	}
	assert_ok(pinl_soft_dma(r->dev, addrs[IMPORTERS - 1].addr, &byte, 1, 1));
	assert_int_equal(((char *)ring.sq.sqes)[(BIG - 1) * PAGE], 'x');
	assert_ok(pinl_exporter_revoke(e, NULL));
	for (unsigned i = 0; i < IMPORTERS; i++) {
		assert_int_equal(pinl_soft_dma(devices[i / BIG], addrs[i].addr, &byte, 1, 1), -EFAULT);
		pinl_unmap_range(leases[i]);
	}
	assert_int_equal(r->attached, IMPORTERS);
	assert_int_equal(r->detached, IMPORTERS);
	for (unsigned i = 0; i < DEVICES; i++)
		pinl_device_close(devices[i]);
	r->dev = first;
	pinl_exporter_unregister(e);
	r->released--;
	io_uring_queue_exit(&ring);
	free(addrs);
	free(leases);
}

/* Only those of the part; and it can be had again at once. */
static void a_part_is_invalidated(void **state)
{
	struct rig *r = *state;
	struct pinl_policy p = recall(PINL_THEN_FAIL, 0);
	struct pinl_addr addr;
	struct pinl_lease *other;

	assert_ok(pinl_map_exporter(r->dev, r->exporter, 0, PAGE, PINL_WRITE, &p, r->addrs, &r->lease));
	assert_ok(pinl_map_exporter(r->dev, r->exporter, PAGE, PAGE, PINL_WRITE, &p, &addr, &other));
	assert_ok(pinl_exporter_invalidate(r->exporter, PAGE, 1));
	assert_ok(dma(r, 0, 1, 'y', 1));
	assert_int_equal(pinl_lease_check(other), -ESTALE);
	pinl_unmap_range(other);
	assert_ok(pinl_map_exporter(r->dev, r->exporter, PAGE, PAGE, PINL_WRITE, &p, &addr, &other));
	pinl_unmap_range(other);
	assert_int_equal(pinl_exporter_invalidate(r->exporter, SIZE, PAGE), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(revoke_fails_the_device),
		RIG_TEST(revoke_leads_to_a_dummy),
		RIG_TEST(a_dummy_for_more_than_it_has),
		RIG_TEST(nothing_is_mapped_again),
		RIG_TEST(importer_has_its_grace),
		RIG_TEST(importer_unmaps),
		RIG_TEST(in_flight_fail),
		RIG_TEST(in_flight_scratch),
		RIG_TEST(all_importers),
		RIG_TEST(ten_thousand_importers),
		RIG_TEST(a_part_is_invalidated),
	};

	return cmocka_run_group_tests_name("exporter_revoke", tests, NULL, NULL);
}
