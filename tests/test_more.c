/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Room for what few leases need: nobody's is another's, nor given back while it is in use. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <sched.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/ctx.h"

enum { USERS = 2, LEASES = 4096, ROUNDS = 8 }; /* as many as there is room for when it is doubled */

static struct pinl_ctx *ctx;

static int begin(void **state)
{
	ctx = calloc(1, sizeof *ctx);
	pl_mores_init(&ctx->mores);
	return !ctx;
}

static int end(void **state)
{
	pl_mores_end(&ctx->mores);
	free(ctx);
	return 0;
}

static struct pinl_lease *leases_new(size_t n)
{
	struct pinl_lease *l = aligned_alloc(64, n * sizeof *l);

	memset(l, 0, n * sizeof *l);
	for (size_t i = 0; i < n; i++) {
		l[i].ctx = ctx;
		l[i].id = rand();
	}
	return l;
}

static void reserve(struct pinl_lease *l)
{
	assert_true(pl_more_reserve(&ctx->mores));
	l->more = &pl_more_none;
}

static void write_to(struct pinl_lease *l)
{
	struct pl_more *more = pl_more(l);

	assert_ptr_equal(more->lease, l);
	assert_int_equal(more->orphan_bytes, 0);
	assert_int_equal(more->iova, 0);
	more->orphan_bytes = more->iova = l->id;
}

static void check(const struct pinl_lease *l)
{
	assert_ptr_equal(l->more->lease, l);
	assert_int_equal(l->more->orphan_bytes, l->id);
	assert_int_equal(l->more->iova, l->id);
}

static void use_all(struct pinl_lease *l, int n)
{
	for (int i = 0; i < n; i++)
		reserve(&l[i]);
	for (int i = 0; i < n; i++)
		write_to(&l[i]);
}

static void leave_all(struct pinl_lease *l, int n)
{
	for (int i = 0; i < n; i++)
		check(&l[i]);
	while (n-- > 0)
		pl_more_leave(&ctx->mores, &l[n]);
}

/* All at once, so that what was the other's a moment ago is needed; all ended before the next round, so
 * that much goes back while the other begins. */
static void *use(void *arg)
{
	struct pinl_lease *l = leases_new(LEASES);

	for (int round = 0; round < ROUNDS; round++) {
		use_all(l, LEASES);
		leave_all(l, LEASES);
	}
	free(l);
	return NULL;
}

static void what_is_in_use_stays(void **state)
{
	pthread_t thread[USERS];

	for (int i = 0; i < USERS; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, use, NULL), 0);
	for (int i = 0; i < USERS; i++)
		assert_int_equal(pthread_join(thread[i], NULL), 0);
	assert_int_equal(ctx->mores.leases, 0);
	assert_int_equal(ctx->mores.out, 0);
}

/* ------------------------------------------------------------------------ while it is given back -- */

static sem_t may_begin, may_end;
static atomic_int other_tid, twin_tid;
static struct pinl_lease *others;
static pthread_t twin;
static atomic_bool has_all;
static void (*as_it_goes)(void);

int madvise(void *addr, size_t len, int advice)
{
	void (*fn)(void) = as_it_goes;

	if (advice == MADV_DONTNEED && fn) {
		as_it_goes = NULL;
		fn();
	}
	return syscall(SYS_madvise, addr, len, advice);
}

static bool sleeps(int tid)
{
	char path[64], state = 0;
	FILE *f;

	snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
	f = fopen(path, "re");
	assert_non_null(f);
	assert_int_equal(fscanf(f, "%*d (%*[^)]) %c", &state), 1);
	fclose(f);
	return state == 'S';
}

static size_t out(void)
{
	size_t n;

	pthread_mutex_lock(&ctx->mores.lock);
	n = ctx->mores.out;
	pthread_mutex_unlock(&ctx->mores.lock);
	return n;
}

/* Asks for what the other thread waits for. */
static void *wait_with_it(void *arg)
{
	twin_tid = gettid();
	assert_non_null(pl_more(arg));
	return NULL;
}

/* The lease that ends, last of all, counts until it has. */
static void *use_what_goes(void *arg)
{
	struct pinl_lease *l = arg;

	other_tid = gettid();
	sem_wait(&may_begin);
	use_all(l, LEASES - 1);
	has_all = true;
	sem_wait(&may_end);
	leave_all(l, LEASES - 1);
	return NULL;
}

/* Nobody holds up the other: it goes on until nothing else is left. */
static void let_the_other_begin(void)
{
	struct pinl_lease *waits_for = others;

	sem_post(&may_begin);
	while (out() < 1000)
		sched_yield();
	while (!sleeps(other_tid))
		sched_yield();
	assert_false(has_all);
	while (pl_has_more(waits_for))
		waits_for++;
	assert_int_equal(pthread_create(&twin, NULL, wait_with_it, waits_for), 0);
	while (!twin_tid || !sleeps(twin_tid))
		sched_yield();
}

static void what_goes_is_nobodys(void **state)
{
	struct pinl_lease *l = leases_new(LEASES);
	pthread_t other;

	sem_init(&may_begin, 0, 0);
	sem_init(&may_end, 0, 0);
	others = leases_new(LEASES - 1);
	assert_int_equal(pthread_create(&other, NULL, use_what_goes, others), 0);
	use_all(l, LEASES);
	as_it_goes = let_the_other_begin;
	leave_all(l, LEASES);
	assert_null(as_it_goes);
	assert_int_equal(pthread_join(twin, NULL), 0);
	while (!has_all)
		sched_yield();
	assert_int_equal(out(), LEASES - 1);
	sem_post(&may_end);
	assert_int_equal(pthread_join(other, NULL), 0);
	free(others);
	free(l);
}

static void who_needs_none_has_zeroes(void **state)
{
	struct pinl_lease *l = leases_new(1);

	reserve(l);
	assert_false(pl_has_more(l));
	assert_int_equal(l->more->orphan_bytes, 0);
	assert_int_equal(l->more->ground.mem.fd, -1);
	pl_more_leave(&ctx->mores, l);
	assert_int_equal(ctx->mores.leases, 0);
	free(l);
}

#define with_room(test) cmocka_unit_test_setup_teardown(test, begin, end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		with_room(what_is_in_use_stays),
		with_room(what_goes_is_nobodys),
		with_room(who_needs_none_has_zeroes),
	};

	return cmocka_run_group_tests_name("more", tests, NULL, NULL);
}
