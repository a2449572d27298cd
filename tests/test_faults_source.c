/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The kernel's log, which has the faults of an IOMMU, can be read, or it is said why not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <pinlease/pinlease.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

static void sees_or_says_why(void)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1};
	int fd = open("/dev/kmsg", O_RDONLY | O_CLOEXEC);
	bool can = fd >= 0;
	struct pinl_ctx *ctx;
	char text[4096];

	if (can)
		close(fd);
	assert_int_equal(pinl_open(&opts, &ctx), 0);
	pinl_sources(ctx, text, sizeof text);
	pinl_close(ctx);
	assert_non_null(strstr(text, can ? "faults: running" : "faults: missing: "));
	if (!can)
		assert_non_null(strstr(text, "/dev/kmsg"));
}

static void the_log_can_be_read_or_it_is_said(void **state)
{
	int status;
	pid_t pid;

	sees_or_says_why();
	pid = fork();
	if (!pid) {
		if (setresuid(65534, 65534, 65534))
			_exit(0);
		sees_or_says_why();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void left_out_where_it_is_not_wanted(void **state)
{
	struct pinl_opts opts = {
		.size = sizeof opts, .summary_fd = -1, .sources = PINL_SOURCE_ALL & ~PINL_SOURCE_FAULTS};
	struct pinl_ctx *ctx;
	char text[4096];

	assert_ok(pinl_open(&opts, &ctx));
	pinl_sources(ctx, text, sizeof text);
	pinl_close(ctx);
	assert_null(strstr(text, "faults:"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_log_can_be_read_or_it_is_said),
		cmocka_unit_test(left_out_where_it_is_not_wanted),
	};

	return cmocka_run_group_tests_name("faults_source", tests, NULL, NULL);
}
