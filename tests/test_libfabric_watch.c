/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Ranges as libfabric's caches have them (bridge/libfabric/watch.h), without libfabric: so also where
 * there is no RDMA device, and with a lock that stands for libfabric's.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "bridge/libfabric/watch.h"
#include "check.h"

#define PAGE 4096ul

enum {
	MAX_TOLD = 4096,
	TRIES = 600, /* of 100 ms at most: so long a busy machine may take for a change */
};

/* libfabric's: around all it calls, and taken in what we call. */
static pthread_mutex_t theirs = PTHREAD_MUTEX_INITIALIZER;
static struct {
	uintptr_t addr;
	size_t len;
} told[MAX_TOLD];
static atomic_int n_told;
static _Atomic uintptr_t next; /* of pages() */

static void changed(const void *addr, size_t len)
{
	pthread_mutex_lock(&theirs);
	told[n_told % MAX_TOLD].addr = (uintptr_t)addr;
	told[n_told % MAX_TOLD].len = len;
	n_told++;
	pthread_mutex_unlock(&theirs);
}

static int setup(void **state)
{
	void *others = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (!next)
		next = (uintptr_t)others - (64ul << 30);
	munmap(others, PAGE);
	n_told = 0;
	return pl_watch_open(NULL, changed);
}

static int teardown(void **state)
{
	pl_watch_close();
	return 0;
}

/* -EAGAIN: the machine is so busy that a change takes 100 ms. Their lock is taken. */
static int add_locked(const void *at, size_t len)
{
	int err, tries = 0;

	do
		err = pl_watch_add(at, len);
	while (err == -EAGAIN && ++tries < TRIES);
	return err;
}

static int add(const void *at, size_t len)
{
	int err;

	pthread_mutex_lock(&theirs);
	err = add_locked(at, len);
	pthread_mutex_unlock(&theirs);
	return err;
}

static bool valid(const void *at, size_t len)
{
	bool is;

	pthread_mutex_lock(&theirs);
	is = pl_watch_valid(at, len);
	pthread_mutex_unlock(&theirs);
	return is;
}

static bool still_valid(const void *at, size_t len)
{
	int tries = 0;

	while (!valid(at, len) && tries < TRIES)
		tries++;
	return tries < TRIES;
}

/* Far below where anybody maps unasked, and never the same twice: a hole there stays one. */
static char *pages(size_t n)
{
	char *at =
		mmap((void *)atomic_fetch_add(&next, (n + 1) * PAGE), n * PAGE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	assert_ptr_not_equal(at, MAP_FAILED);
	return at;
}

static void again(char *at)
{
	char *got = mmap(at, PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	assert_ptr_equal(got, at);
}

static void wait_told(int n)
{
	while (n_told < n)
		sched_yield();
}

static void what_stays_is_valid_and_nothing_is_told(void **state)
{
	char *at = pages(4), *other = pages(4);

	assert_ok(add(at + 100, 2 * PAGE));
	for (int i = 0; i < 100; i++) {
		assert_true(still_valid(at + 100, 2 * PAGE));
		munmap(other, PAGE); /* others' memory, in the same mapping perhaps */
		again(other);
	}
	assert_int_equal(n_told, 0);
	assert_false(valid(at, 2 * PAGE)); /* nobody added this one */
	munmap(at, 4 * PAGE);
	munmap(other, 4 * PAGE);
}

static void what_has_changed_is_not_valid(void **state)
{
	char *at = pages(1);

	for (int i = 0; i < 200; i++) {
		assert_ok(add(at + 8, 100));
		assert_true(still_valid(at + 8, 100));
		munmap(at, PAGE);
		again(at);
		assert_false(valid(at + 8, 100));
		assert_false(valid(at + 8, 100));
	}
	munmap(at, PAGE);
}

static void what_has_changed_is_told(void **state)
{
	enum { N = 100 };
	char *at = pages(N);

	for (int i = 0; i < N; i++) {
		assert_ok(add(at + i * PAGE + 8, 100));
		munmap(at + i * PAGE, PAGE);
		wait_told(i + 1);
		assert_int_equal(told[i].addr, (uintptr_t)at + i * PAGE + 8);
		assert_int_equal(told[i].len, 100);
	}
	assert_int_equal(n_told, N);
}

static void every_range_of_a_region_is_told(void **state)
{
	char *at = pages(4);

	assert_ok(add(at, 4 * PAGE));
	assert_ok(add(at, 10));
	assert_ok(add(at + PAGE, PAGE));
	assert_ok(add(at + PAGE, PAGE)); /* a second domain's */
	munmap(at + 3 * PAGE, PAGE);
	wait_told(3);
	assert_false(valid(at, 4 * PAGE));
	assert_false(valid(at, 10));
	assert_false(valid(at + PAGE, PAGE));
	munmap(at, 4 * PAGE);
	assert_int_equal(n_told, 3);
}

static void what_was_removed_is_not_told(void **state)
{
	char *at = pages(2), *last = pages(1);

	assert_ok(add(at, 2 * PAGE));
	assert_ok(add(at, 2 * PAGE));
	assert_ok(add(at, PAGE));
	pl_watch_remove(at, 2 * PAGE);
	assert_true(still_valid(at, 2 * PAGE)); /* the second domain has it */
	pl_watch_remove(at, 2 * PAGE);
	pl_watch_remove(at, 2 * PAGE); /* once too often */
	assert_false(valid(at, 2 * PAGE));
	assert_true(still_valid(at, PAGE));
	munmap(at, 2 * PAGE);
	wait_told(1);
	assert_ok(add(last, 1)); /* told after all of the region */
	munmap(last, PAGE);
	wait_told(2);
	assert_int_equal(told[0].len, PAGE);
	assert_int_equal(told[1].len, 1);
}

static void what_cannot_be_watched_is_not_added(void **state)
{
	char *at = pages(1);

	munmap(at, PAGE);
	assert_int_equal(add(at, PAGE), -ENOMEM);
	assert_false(valid(at, PAGE));
}

/* Nobody else gets the addresses meanwhile. */
static void over(char *at)
{
	mmap(at, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

struct side {
	pthread_t thread;
	unsigned seed;
};

static void *add_and_unmap(void *arg)
{
	struct side *side = arg;
	char *at = pages(1);

	for (int i = 0; i < 1000; i++) {
		char *heap = malloc(200000);

		if (add(at, PAGE) || add(heap, 200000))
			return strdup(pinl_error());
		if (rand_r(&side->seed) % 2)
			valid(at, PAGE);
		over(at);
		if (valid(at, PAGE))
			return "stale";
		pthread_mutex_lock(&theirs); /* as malloc() inside of libfabric does */
		free(heap);
		over(at);
		pthread_mutex_unlock(&theirs);
	}
	munmap(at, PAGE);
	return NULL;
}

/* Memory is unmapped with libfabric's lock taken; who must hear of it waits for nobody who wants it. */
static void no_thread_waits_for_libfabrics_lock(void **state)
{
	struct side side[2] = {{.seed = 1}, {.seed = 2}};
	void *failed;

	alarm(240);
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&side[i].thread, NULL, add_and_unmap, &side[i]), 0);
	for (int i = 0; i < 2; i++) {
		pthread_join(side[i].thread, &failed);
		if (failed)
			fail_msg("%s", (char *)failed);
	}
	alarm(0);
}

static uint64_t deregistered(void)
{
	uint64_t n = 0;

	assert_ok(pinl_cache_stat(pl_watch_device(), "deregistered", &n));
	return n;
}

/* Its turn comes while somebody has it who may wait for what the cleaner frees. */
static void the_cleaner_takes_no_lock_of_libfabrics(void **state)
{
	char *at = pages(1);

	alarm(240);
	pthread_mutex_lock(&theirs);
	for (uint64_t i = deregistered() + 1; i < 20; i++) {
		assert_ok(add_locked(at, PAGE));
		over(at);
		while (deregistered() < i)
			sched_yield();
	}
	pthread_mutex_unlock(&theirs);
	alarm(0);
	munmap(at, PAGE);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(what_stays_is_valid_and_nothing_is_told),
		TEST(what_has_changed_is_not_valid),
		TEST(what_has_changed_is_told),
		TEST(every_range_of_a_region_is_told),
		TEST(what_was_removed_is_not_told),
		TEST(what_cannot_be_watched_is_not_added),
		TEST(no_thread_waits_for_libfabrics_lock),
		TEST(the_cleaner_takes_no_lock_of_libfabrics),
	};

	return cmocka_run_group_tests_name("libfabric_watch", tests, NULL, NULL);
}
