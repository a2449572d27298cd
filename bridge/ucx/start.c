/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Taking the place of UCX's own hooks: its events come "externally", by ucm_vm_munmap(), for which UCX
 * needs no function of libc patched. That has to be said before its first cache is made.
 */
#include <errno.h>
#include <pinlease/device.h>
#include <pinlease/ucx.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucm/api/ucm.h>

#include "../common/nodes.h"
#include "regions.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool started;

/*
 * In UCX this takes its event lock for reading, which nobody has who waits; and the lock of each cache
 * if that is free. If it isn't, the range is queued for the cache's next lookup. The second event is of
 * a page that nobody has: UCX looks at UCX_RCACHE_MAX_UNRELEASED before it adds what it is told.
 */
static void forget(const void *addr, size_t len)
{
	ucm_vm_munmap((void *)addr, len);
	ucm_vm_munmap(NULL, 1);
}

static int start(struct pinl_ctx *ctx, bool later)
{
	int err;

	if (started)
		return pinl_set_error(-EALREADY, "pinlease tells UCX of changes already");
	if (ucm_global_opts.mmap_hook_mode != UCM_MMAP_HOOK_NONE)
		return pinl_set_error(
			-EBUSY, "UCX patches functions of libc: set UCX_MEM_MMAP_HOOK_MODE=none in "
				"the environment before the program starts");
	err = pl_regions_start(ctx, later, forget);
	if (err)
		return err;
	ucm_set_external_event(UCM_EVENT_VM_UNMAPPED);
	started = true;
	return 0;
}

int pinl_ucx_start(struct pinl_ctx *ctx)
{
	int err;

	pthread_mutex_lock(&lock);
	err = start(ctx, false);
	pthread_mutex_unlock(&lock);
	return err;
}

struct pinl_device *pinl_ucx_device(void)
{
	return pl_nodes_device();
}

int pinl_ucx_stop(void)
{
	int err = 0;

	pthread_mutex_lock(&lock);
	if (!started)
		err = pinl_set_error(-EINVAL,
				     "pinlease doesn't tell UCX of changes: nothing was started");
	else
		pl_regions_stop();
	started = false;
	pthread_mutex_unlock(&lock);
	return err;
}

/* What it needs is opened at the first registration: a process that has none pays for nothing. */
__attribute__((constructor)) static void from_environment(void)
{
	const char *wanted = secure_getenv("PINLEASE_UCX");

	if (!wanted || strcmp(wanted, "1"))
		return;
	if (start(NULL, true))
		fprintf(stderr, "pinlease: UCX keeps its own hooks: %s\n", pinl_error());
}
