/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Included before every test program of meson.build's table: what is refused because this kernel lacks
 * something ends the test as skipped, with the refusal's own sentence. Where nothing may be lacking (the
 * CI machine, jobs of vm/jobs), a skip that isn't expected is a failure.
 */
#ifndef LACKING_H
#define LACKING_H

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pinlease/device.h>
#include <pinlease/pinlease.h>
#include <string.h>
#include <unistd.h>

static pid_t lacking_pid_;

static void __attribute__((constructor)) lacking_begin_(void)
{
	lacking_pid_ = getpid();
}

/* Is it the kernel that is to blame for this refusal? What a device lacks is named with each of its
 * refusals, so the sentence itself must ask for the kernel that has it. */
static inline bool lacking(const char *why)
{
	struct pinl_opts quiet = {.size = sizeof quiet, .summary_fd = -1};
	char sources[2048] = "";
	struct pinl_ctx *ctx;

	if (strstr(why, "this kernel can't") ||
	    (strstr(why, "kernel 6.") && strstr(why, "this kernel doesn't")))
		return true;
	if (!strstr(why, "no source here tells") || pinl_open(&quiet, &ctx))
		return false;
	pinl_sources(ctx, sources, sizeof sources);
	pinl_close(ctx);
	return strstr(sources, "this kernel") != NULL;
}

/* Only the test's own thread may leave it. */
static inline int lacking_skips(int ret)
{
	char why[512];

	if (ret != -EOPNOTSUPP || getpid() != lacking_pid_ || gettid() != lacking_pid_)
		return ret;
	strncpy(why, pinl_error(), sizeof why - 1)[sizeof why - 1] = 0;
	if (lacking(why)) {
		print_message("skip: %s\n", why);
		skip();
	}
	return pinl_set_error(ret, "%s", why);
}

#define pinl_map_range(...)  lacking_skips(pinl_map_range(__VA_ARGS__))
#define pinl_lease_read(...) lacking_skips(pinl_lease_read(__VA_ARGS__))

#endif
