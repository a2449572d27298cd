/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the bridges share (bridge/common/nodes.h), told at once as the one to UCX has it: who changes
 * memory goes on only when that has been told. The other way, by a thread, is in test_libfabric_watch.c.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bridge/common/nodes.h"
#include "check.h"

#define PAGE  4096ul
#define TRIES 600 /* of 100 ms at most: so long a busy machine may take for a change */

static atomic_int n_told;
static struct pl_watched *_Atomic last;
static struct pinl_ctx *ctx;

/* By the worker, or by who ends a lease: takes no lock, as UCX's doesn't. */
static void tell(struct pl_watched *w, const void *addr, size_t len)
{
	last = w;
	n_told++;
}

static const struct pl_nodes_opts opts = {
	.device = "test",
	.why = "it is a test",
	.policy = {.size = sizeof opts.policy, .kind = PINL_RECALL, .then = PINL_THEN_FAIL},

	.tell = tell,
};

static int setup(void **state)
{
	struct pinl_opts o = {.size = sizeof o, .summary_fd = -1};

	n_told = 0;
	last = NULL;
	return pinl_open(&o, &ctx) || pl_nodes_open(ctx, &opts);
}

static int teardown(void **state)
{
	pl_nodes_close();
	pinl_close(ctx);
	return 0;
}

static char *pages(size_t n)
{
	return memset(with_room(n * PAGE), 1, n * PAGE);
}

/* A registration as UCX makes it, kept if the memory didn't change meanwhile. */
static bool watch(struct pl_watched *w, void *addr, size_t len)
{
	const struct pinl_reg *reg;
	struct pl_node *node;
	bool kept;
	int err, tries = 0;

	do
		err = pl_node_get(addr, len, &reg, &node);
	while (err == -EAGAIN && ++tries < TRIES);
	assert_ok(err);
	*w = (struct pl_watched){.addr = addr, .len = len};
	pthread_mutex_lock(&pl_nodes_lock);
	pl_node_attach(node, w);
	pthread_mutex_unlock(&pl_nodes_lock);
	kept = pl_node_is(node, addr, len);
	if (!kept) {
		pthread_mutex_lock(&pl_nodes_lock);
		pl_node_detach(w);
		pthread_mutex_unlock(&pl_nodes_lock);
	}
	pinl_put(reg);
	return kept;
}

/* What is being discarded isn't kept for a moment. */
static void watch_kept(struct pl_watched *w, void *addr, size_t len)
{
	while (!watch(w, addr, len))
		sched_yield();
}

static void raw_munmap(char *at)
{
	assert_int_equal(syscall(SYS_munmap, at, PAGE), 0);
	assert_ptr_equal(mmap(at, PAGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0),
			 at);
}

static void raw_map_over(char *at)
{
	assert_int_equal(syscall(SYS_mmap, at, PAGE, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
			 (long)at);
}

static void raw_discard(char *at)
{
	assert_int_equal(syscall(SYS_madvise, at, PAGE, MADV_DONTNEED), 0);
}

static void explicit_munmap(char *at)
{
	assert_ok(pinl_munmap(ctx, at, PAGE));
	assert_ptr_equal(mmap(at, PAGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0),
			 at);
}

static bool is_on_a_node(const struct pl_watched *w)
{
	bool is;

	pthread_mutex_lock(&pl_nodes_lock);
	is = w->node;
	pthread_mutex_unlock(&pl_nodes_lock);
	return is;
}

static void each_is_told_before_it_returns(void (*change)(char *at))
{
	char *at = pages(3) + PAGE;
	static struct pl_watched w;

	for (int i = 1; i <= 300; i++) {
		watch_kept(&w, at, 100);
		change(at);
		assert_ptr_equal(last, &w);
		assert_int_equal(n_told, i);
		assert_false(is_on_a_node(&w));
		*at = 1;
	}
	munmap(at - PAGE, 3 * PAGE);
}

static void a_munmap_returns_when_it_is_told(void **state)
{
	each_is_told_before_it_returns(raw_munmap);
}

static void a_map_over_it_returns_when_it_is_told(void **state)
{
	each_is_told_before_it_returns(raw_map_over);
}

static void a_discard_returns_when_it_is_told(void **state)
{
	each_is_told_before_it_returns(raw_discard);
}

static void an_explicit_munmap_returns_when_it_is_told(void **state)
{
	each_is_told_before_it_returns(explicit_munmap);
}

static void what_is_watched_no_more_is_told(void **state)
{
	static struct pl_watched w[2];
	char *at = pages(2);

	watch_kept(&w[0], at, PAGE);
	watch_kept(&w[1], at + PAGE, PAGE);
	assert_ok(pinl_cache_drop(pl_nodes_device(), at, PAGE));
	assert_int_equal(n_told, 1);
	assert_ptr_equal(last, &w[0]);
	pthread_mutex_lock(&pl_nodes_lock);
	pl_node_detach(&w[1]);
	pthread_mutex_unlock(&pl_nodes_lock);
	munmap(at, 2 * PAGE);
	assert_int_equal(n_told, 1); /* that one was taken off before */
}

/* Between the two the memory has changed: nobody was told, as nothing was on the node. */
static void a_node_that_is_over_is_not_the_one(void **state)
{
	const struct pinl_reg *reg;
	struct pl_node *node;
	char *at = pages(1);

	for (int i = 0; i < 100; i++) {
		while (pl_node_get(at, PAGE, &reg, &node))
			sched_yield();
		raw_map_over(at);
		assert_false(pl_node_is(node, at, PAGE));
		pinl_put(reg);
		*at = 1;
	}
	assert_false(pl_node_is(NULL, at, PAGE));
	munmap(at, PAGE);
}

#define ROUNDS 300

/* How often it was told only when the change had gone on. */
static void *watch_and_change(void *arg)
{
	static _Thread_local struct pl_watched w;
	char *at = pages(1);
	intptr_t late = 0;

	for (int i = 0; i < ROUNDS; i++) {
		watch_kept(&w, at, PAGE);
		raw_map_over(at);
		late += is_on_a_node(&w);
		while (is_on_a_node(&w))
			sched_yield();
		*at = 1;
	}
	munmap(at, PAGE);
	return (void *)late;
}

/* Whose call came first of two that came while the reader looked isn't known (lib/source/uffd_hold.c),
 * so one of them is held in vain now and then; it is told all the same. */
static void threads_change_their_own(void **state)
{
	pthread_t two[2];
	void *late;

	alarm(240);
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&two[i], NULL, watch_and_change, NULL), 0);
	for (int i = 0; i < 2; i++) {
		pthread_join(two[i], &late);
		if ((intptr_t)late > ROUNDS / 10)
			fail_msg("%ld of %d went on before that was told", (long)(intptr_t)late, ROUNDS);
	}
	alarm(0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_munmap_returns_when_it_is_told),
		TEST(a_map_over_it_returns_when_it_is_told),
		TEST(a_discard_returns_when_it_is_told),
		TEST(an_explicit_munmap_returns_when_it_is_told),
		TEST(what_is_watched_no_more_is_told),
		TEST(a_node_that_is_over_is_not_the_one),
		TEST(threads_change_their_own),
	};

	return cmocka_run_group_tests_name("bridge_nodes", tests, NULL, NULL);
}
