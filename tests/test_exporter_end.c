/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The end of an exporter, of its importers and of their devices, in any order, and at the same time. */
#include "exporter_rig.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <time.h>

static void finish(pthread_t thread)
{
	void *err;

	pthread_join(thread, &err);
	assert_int_equal((intptr_t)err, 0);
}

static void exporter_gone(void **state)
{
	struct rig *r = *state;
	struct pinl_policy p = recall(PINL_THEN_FAIL, 0);
	struct pinl_lease *again = NULL;

	assert_ok(map_handle(r, p, PINL_WRITE));
	pinl_exporter_unregister(r->exporter);
	r->exporter = NULL;
	assert_int_equal(r->released, 1);
	assert_int_equal(r->detached, 1);
	assert_true(dma(r, 0, 1, 'x', 1) < 0);
	assert_string_equal(info_of(r).exporter, "the other device");
	assert_int_equal(
		pinl_map_fd(r->dev, r->ring.ring_fd, IORING_OFF_SQES, PAGE, 0, &p, NULL, &again),
		-ENOENT);
}

static int hung_open(const void *arg, struct pinl_device_info *info, void **dev)
{
	*info = (struct pinl_device_info){.device_class = PINL_DEV_REVOCABLE,
					  .caps = PINL_DEVCAP_IMPORT};
	*dev = NULL;
	return 0;
}

static int hung_import(void *dev, struct pinl_mapping *m, const struct pinl_import *from,
		       struct pinl_addr *addrs)
{
	return 0;
}

static int hung_stop(void *dev, struct pinl_mapping *m)
{
	return 0;
}

static int hung_drain(void *dev, struct pinl_mapping *m, uint64_t deadline_ns)
{
	return -ETIMEDOUT;
}

static const struct pinl_device_ops hung_ops = {.size = sizeof hung_ops,
						.name = "hung",
						.open = hung_open,
						.import = hung_import,
						.stop = hung_stop,
						.drain = hung_drain};

/* Who isn't confirmed to be off is named, and detached only when he unmaps. */
static void a_device_that_hangs(void **state)
{
	struct rig *r = *state;

	pinl_device_close(r->dev);
	assert_ok(pinl_device_open_ops(r->ctx, &hung_ops, NULL, &r->dev));
	assert_int_equal(map_handle(r, recall(PINL_THEN_SCRATCH, 0), PINL_WRITE), -EOPNOTSUPP);
	assert_says("dummy");
	assert_ok(map_handle(r, recall(PINL_THEN_FAIL, 0), PINL_WRITE));
	assert_int_equal(pinl_exporter_revoke(r->exporter, NULL), -ETIMEDOUT);
	assert_says("device hung (lease");
	assert_int_equal(r->detached, 0);
	pinl_unmap_range(r->lease);
	r->lease = NULL;
	assert_int_equal(r->detached, 1);
	assert_ok(pinl_exporter_revoke(r->exporter, NULL));
	pinl_device_close(r->dev);
	open_soft(r, PINL_DEV_REVOCABLE);
}

/* Its exporter is over, and not called any more, when such a lease ends at last. */
static void no_call_after_the_end(void **state)
{
	struct rig *r = *state;

	pinl_device_close(r->dev);
	assert_ok(pinl_device_open_ops(r->ctx, &hung_ops, NULL, &r->dev));
	assert_ok(map_handle(r, recall(PINL_THEN_FAIL, 0), PINL_WRITE));
	pinl_exporter_unregister(r->exporter);
	r->exporter = NULL;
	assert_int_equal(r->released, 1);
	pinl_unmap_range(r->lease);
	r->lease = NULL;
	assert_int_equal(r->detached, 0);
	r->attached = 0;
	pinl_device_close(r->dev);
	open_soft(r, PINL_DEV_REVOCABLE);
}

static void *invalidator(void *arg)
{
	struct rig *r = arg;

	return (void *)(intptr_t)pinl_exporter_invalidate(r->exporter, 0, SIZE);
}

/* Who comes while others are recalled has the memory where it is now. */
static void new_importers_during_an_invalidation(void **state)
{
	struct rig *r = *state;
	struct pinl_policy p = recall(PINL_THEN_FAIL, 0);
	struct pinl_device *second, *dev = r->dev;
	struct pinl_addr addr;
	struct pinl_lease *other;
	pthread_t thread;
	char buf[PAGE] = "n";

	assert_ok(map_handle(r, recall(PINL_THEN_FAIL, LONG), PINL_WRITE));
	open_soft(r, PINL_DEV_REVOCABLE);
	second = r->dev;
	r->dev = dev;
	assert_int_equal(pthread_create(&thread, NULL, invalidator, r), 0);
	await_event(r, PINL_EV_NOTICE);
	r->dev = second;
	assert_ok(pinl_map_exporter(second, r->exporter, 0, PAGE, PINL_WRITE, &p, &addr, &other));
	r->dev = dev;
	assert_ok(pinl_quiesced(r->lease));
	finish(thread);
	assert_ok(pinl_soft_dma(second, addr.addr, buf, PAGE, 1));
	assert_int_equal(r->va[0], 'n');
	pinl_unmap_range(other);
}

/* pinl_close() ends exporters, too. */
static void closed_with_the_context(void **state)
{
	struct rig *r = *state;

	assert_ok(map_handle(r, recall(PINL_THEN_FAIL, 0), PINL_WRITE));
	pinl_close(r->ctx);
	assert_int_equal(r->released, 1);
	assert_int_equal(r->detached, 1);
	assert_ok(pinl_open(NULL, &r->ctx));
	open_soft(r, PINL_DEV_REVOCABLE);
	r->lease = NULL;
	r->exporter = NULL;
}

struct racer {
	struct rig *r;
	int n;
	atomic_int stop;
};

static void *mapper(void *arg)
{
	struct racer *x = arg;
	struct pinl_policy p = recall(PINL_THEN_FAIL, 0);

	while (!x->stop) {
		struct pinl_lease *l = NULL;
		int err =
			pinl_map_exporter(x->r->dev, x->r->exporter, 0, SIZE, PINL_WRITE, &p, NULL, &l);

		assert_true(!err || err == -ENODEV);
		x->n += !err;
		pinl_unmap_range(l);
	}
	return NULL;
}

/* After a revocation nobody is attached, however often somebody tries. */
static void maps_race_with_revocations(void **state)
{
	struct rig *r = *state;
	struct racer x = {.r = r};
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, mapper, &x), 0);
	for (int i = 0; i < 300; i++) {
		assert_ok(pinl_exporter_revoke(r->exporter, NULL));
		assert_int_equal(__atomic_load_n(&r->attached, __ATOMIC_SEQ_CST),
				 __atomic_load_n(&r->detached, __ATOMIC_SEQ_CST));
		pinl_exporter_offer(r->exporter);
		assert_ok(pinl_exporter_invalidate(r->exporter, 0, SIZE)); /* others come meanwhile */
	}
	x.stop = 1;
	pthread_join(thread, NULL);
}

/* A device that takes its time over an import, more than a drain may take. */
struct slow {
	struct rig *r;
	sem_t imports, unregistered;
	int early; /* the exporter was over while the device looked at its handle */
};

static int slow_open(const void *arg, struct pinl_device_info *info, void **dev)
{
	*info = (struct pinl_device_info){.device_class = PINL_DEV_REVOCABLE,
					  .caps = PINL_DEVCAP_IMPORT};
	*dev = (void *)arg;
	return 0;
}

static int slow_import(void *dev, struct pinl_mapping *m, const struct pinl_import *from,
		       struct pinl_addr *addrs)
{
	struct slow *s = dev;
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 3;
	sem_post(&s->imports);
	s->early = !sem_timedwait(&s->unregistered, &until);
	return 0;
}

static int no_drain(void *dev, struct pinl_mapping *m, uint64_t deadline_ns)
{
	return 0;
}

static void *slow_mapper(void *arg)
{
	struct slow *s = arg;

	map_handle(s->r, recall(PINL_THEN_FAIL, 0), 0);
	return NULL;
}

/* Handle and mapping are the program's again when pinl_exporter_unregister() returns. */
static void nobody_imports_from_what_is_gone(void **state)
{
	static const struct pinl_device_ops ops = {.size = sizeof ops,
						   .name = "slow",
						   .open = slow_open,
						   .import = slow_import,
						   .stop = hung_stop,
						   .drain = no_drain};
	struct rig *r = *state;
	struct slow s = {.r = r};
	pthread_t thread;

	sem_init(&s.imports, 0, 0);
	sem_init(&s.unregistered, 0, 0);
	pinl_device_close(r->dev);
	assert_ok(pinl_device_open_ops(r->ctx, &ops, &s, &r->dev));
	assert_int_equal(pthread_create(&thread, NULL, slow_mapper, &s), 0);
	sem_wait(&s.imports);
	pinl_exporter_unregister(r->exporter);
	sem_post(&s.unregistered);
	r->exporter = NULL;
	pthread_join(thread, NULL);
	assert_int_equal(s.early, 0);
	assert_int_equal(r->attached, 1);
	assert_int_equal(r->detached, 1);
	pinl_unmap_range(r->lease);
	r->lease = NULL;
	pinl_device_close(r->dev);
	open_soft(r, PINL_DEV_REVOCABLE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(exporter_gone),
		RIG_TEST(a_device_that_hangs),
		RIG_TEST(no_call_after_the_end),
		RIG_TEST(new_importers_during_an_invalidation),
		RIG_TEST(closed_with_the_context),
		RIG_TEST(maps_race_with_revocations),
		RIG_TEST(nobody_imports_from_what_is_gone),
	};

	return cmocka_run_group_tests_name("exporter_end", tests, NULL, NULL);
}
