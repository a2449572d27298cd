/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Becoming libfabric's memory monitor and ceasing to be; tests/libfabric.py has what that is good for.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pinlease/cache.h>
#include <pinlease/libfabric.h>
#include <rdma/fabric.h>
#include <rdma/fi_ext.h>

#include "check.h"

static void imports_once_and_again_after_closing(void **state)
{
	for (int i = 0; i < 3; i++) {
		assert_ok(pinl_libfabric_import(NULL));
		assert_non_null(pinl_libfabric_device());
		assert_int_equal(pinl_libfabric_import(NULL), -EALREADY);
		assert_ok(pinl_libfabric_close());
		assert_null(pinl_libfabric_device());
		assert_int_equal(pinl_libfabric_close(), -EINVAL);
	}
}

static void the_programs_context_is_used_and_left(void **state)
{
	struct pinl_opts o = {.size = sizeof o, .summary_fd = -1};
	struct pinl_ctx *ctx;
	uint64_t value = 1;

	assert_ok(pinl_open(&o, &ctx));
	assert_ok(pinl_libfabric_import(ctx));
	assert_ok(pinl_cache_stat(pinl_libfabric_device(), "regions", &value));
	assert_int_equal(value, 0);
	assert_ok(pinl_libfabric_close());
	assert_ok(pinl_libfabric_import(ctx));
	assert_ok(pinl_libfabric_close());
	pinl_close(ctx);
}

static int nothing(struct fid_mem_monitor *m)
{
	return 0;
}

static void stops(struct fid_mem_monitor *m)
{
}

static int takes(struct fid_mem_monitor *m, const void *addr, size_t len)
{
	return -FI_ENOSYS;
}

static void leaves(struct fid_mem_monitor *m, const void *addr, size_t len)
{
}

static bool is_not(struct fid_mem_monitor *m, const void *addr, size_t len)
{
	return false;
}

/* As Open MPI does it. */
static void another_ones_monitor_is_said(void **state)
{
	static struct fi_ops_mem_monitor ops = {sizeof ops, nothing, stops, takes, leaves, is_not};
	static struct fid_mem_monitor other = {.fid = {.fclass = FI_CLASS_MEM_MONITOR},
					       .export_ops = &ops};
	struct fid *cache;

	assert_int_equal(fi_open(FI_VERSION(1, 13), "mr_cache", NULL, 0, 0, &cache, NULL), 0);
	assert_int_equal(fi_import_fid(cache, &other.fid, 0), 0);
	assert_int_equal(pinl_libfabric_import(NULL), -EBUSY);
	assert_non_null(strstr(pinl_error(), "imported memory monitor"));
	assert_null(pinl_libfabric_device());
	fi_close(&other.fid);
	fi_close(cache);
	assert_ok(pinl_libfabric_import(NULL));
	assert_ok(pinl_libfabric_close());
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(imports_once_and_again_after_closing),
		cmocka_unit_test(the_programs_context_is_used_and_left),
		cmocka_unit_test(another_ones_monitor_is_said),
	};

	return cmocka_run_group_tests_name("libfabric_import", tests, NULL, NULL);
}
