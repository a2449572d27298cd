/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What UCX is told of registrations, by its own event interface, without a device and without its
 * caches; tests/ucx.py has what that is good for. The registrations are those of fake_verbs.c, which
 * come behind libpinlease-ucx as libibverbs' do.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <pinlease/cache.h>
#include <pinlease/ucx.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <ucm/api/ucm.h>
#include <unistd.h>

#include "check.h"
#include "fake_verbs.h"

#undef ibv_reg_mr

#define LEN 16384ul

static uintptr_t watched; /* events of these LEN bytes count */
static atomic_int n_told;

static void told(ucm_event_type_t type, ucm_event_t *event, void *arg)
{
	uintptr_t at = (uintptr_t)event->vm_unmapped.address;

	if (at < watched + LEN && at + event->vm_unmapped.size > watched)
		n_told++;
}

static char *map(void)
{
	char *at = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(at, MAP_FAILED);
	memset(at, 1, LEN);
	watched = (uintptr_t)at;
	n_told = 0;
	return at;
}

static void map_over(void *at)
{
	syscall(SYS_mmap, at, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
		0);
}

static int setup(void **state)
{
	fake_error = 0;
	fake_meanwhile = NULL;
	if (pinl_ucx_start(NULL)) {
		print_message("%s\n", pinl_error());
		return -1;
	}
	return ucm_set_event_handler(UCM_EVENT_VM_UNMAPPED, 0, told, NULL);
}

static int teardown(void **state)
{
	ucm_unset_event_handler(UCM_EVENT_VM_UNMAPPED, told, NULL);
	if (pinl_ucx_device())
		pinl_ucx_stop();
	return 0;
}

static struct ibv_mr *reg(void *at, int access)
{
	struct ibv_mr *mr = ibv_reg_mr(NULL, at, LEN, access);

	assert_non_null(mr);
	return mr;
}

/* A machine so busy that what was registered wasn't kept: once more. */
static struct ibv_mr *reg_kept(void *at)
{
	struct ibv_mr *mr;

	do {
		n_told = 0;
		mr = reg(at, 0);
		if (n_told)
			ibv_dereg_mr(mr);
	} while (n_told);
	return mr;
}

static void starts_once_and_again_after_stopping(void **state)
{
	for (int i = 0; i < 3; i++) {
		assert_int_equal(pinl_ucx_start(NULL), -EALREADY);
		assert_non_null(pinl_ucx_device());
		assert_ok(pinl_ucx_stop());
		assert_null(pinl_ucx_device());
		assert_int_equal(pinl_ucx_stop(), -EINVAL);
		assert_ok(pinl_ucx_start(NULL));
	}
}

static void a_change_is_told_before_it_returns(void **state)
{
	char *at = map();

	for (int i = 0; i < 200; i++) {
		struct ibv_mr *mr = reg_kept(at);

		map_over(at);
		assert_int_equal(n_told, 1);
		assert_int_equal(ibv_dereg_mr(mr), 0);
		*at = 1;
	}
	munmap(at, LEN);
}

static void a_new_registration_is_not_the_old_one(void **state)
{
	char *at = map();
	struct ibv_mr *old = reg_kept(at), *fresh;

	map_over(at);
	fresh = reg_kept(at);
	assert_int_equal(ibv_dereg_mr(old), 0); /* later than UCX has registered it anew */
	map_over(at);
	assert_int_equal(n_told, 1);
	ibv_dereg_mr(fresh);
	munmap(at, LEN);
}

static void what_is_deregistered_is_not_told(void **state)
{
	char *at = map();
	struct ibv_mr *mr = ibv_reg_mr_iova2(NULL, at, LEN, 0, 0);

	assert_int_equal(ibv_dereg_mr(mr), 0);
	n_told = 0;
	munmap(at, LEN);
	assert_int_equal(n_told, 0);
}

static void what_cannot_be_deregistered_is_told(void **state)
{
	char *at = map();
	struct ibv_mr *mr = reg_kept(at);

	fake_error = EBUSY;
	assert_int_equal(ibv_dereg_mr(mr), EBUSY);
	assert_int_equal(n_told, 1);
	fake_error = 0;
	ibv_dereg_mr(mr);
	munmap(at, LEN);
}

static void what_changes_while_it_is_registered_is_told(void **state)
{
	char *at = map();
	struct ibv_mr *mr;

	fake_meanwhile = map_over;
	mr = reg(at, 0);
	assert_true(n_told > 0);
	ibv_dereg_mr(mr);
	munmap(at, LEN);
}

static void what_cannot_be_watched_is_told_at_once(void **state)
{
	char *at = map();
	struct ibv_mr *mr;

	munmap(at, LEN);
	mr = reg(at, 0);
	assert_int_equal(n_told, 1);
	ibv_dereg_mr(mr);
}

static void what_cannot_be_registered_is_not_watched(void **state)
{
	char *at = map();

	fake_error = EFAULT;
	assert_null(ibv_reg_mr(NULL, at, LEN, 0));
	assert_int_equal(errno, EFAULT);
	munmap(at, LEN);
	assert_int_equal(n_told, 0);
}

static void on_demand_memory_is_left_alone(void **state)
{
	char *at = map();
	struct ibv_mr *mr = reg(at, IBV_ACCESS_ON_DEMAND);

	munmap(at, LEN);
	assert_int_equal(n_told, 0);
	ibv_dereg_mr(mr);
}

static void when_it_is_stopped_nothing_is_kept(void **state)
{
	char *at = map();
	struct ibv_mr *before = reg_kept(at), *after;

	assert_ok(pinl_ucx_stop());
	assert_int_equal(n_told, 1); /* nobody watches it any more */
	after = reg(at, 0);
	assert_int_equal(n_told, 2);
	ibv_dereg_mr(before);
	ibv_dereg_mr(after);
	munmap(at, LEN);
}

static atomic_bool enough;

static void *register_all_the_time(void *at)
{
	while (!enough)
		ibv_dereg_mr(ibv_reg_mr(NULL, at, LEN, 0));
	return NULL;
}

/* UCX has a thread of its own, which registers when it likes. */
static void it_is_stopped_while_others_register(void **state)
{
	char *at = map();
	pthread_t thread;

	enough = false;
	assert_int_equal(pthread_create(&thread, NULL, register_all_the_time, at), 0);
	for (int i = 0; i < 100; i++) {
		usleep(1000);
		assert_ok(pinl_ucx_stop());
		assert_ok(pinl_ucx_start(NULL));
	}
	enough = true;
	pthread_join(thread, NULL);
	munmap(at, LEN);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(starts_once_and_again_after_stopping),
		TEST(a_change_is_told_before_it_returns),
		TEST(a_new_registration_is_not_the_old_one),
		TEST(what_is_deregistered_is_not_told),
		TEST(what_cannot_be_deregistered_is_told),
		TEST(what_changes_while_it_is_registered_is_told),
		TEST(what_cannot_be_watched_is_told_at_once),
		TEST(what_cannot_be_registered_is_not_watched),
		TEST(on_demand_memory_is_left_alone),
		TEST(when_it_is_stopped_nothing_is_kept),
		TEST(it_is_stopped_while_others_register),
	};

	return cmocka_run_group_tests_name("ucx_start", tests, NULL, NULL);
}
