/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * pinlease as libfabric's memory monitor. libfabric calls start and stop at its first and last cache,
 * under no lock that a change could wait for, and the others under the one lock of all its caches
 * (watch.c). `lock` covers what is imported; only stop and close take it beside import.
 */
#include <errno.h>
#include <pinlease/device.h>
#include <pinlease/libfabric.h>
#include <pthread.h>
#include <rdma/fabric.h>
#include <rdma/fi_ext.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "watch.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool imported;
static atomic_bool running; /* between start and stop: some domain has a cache */

static struct fid_mem_monitor monitor;

static void changed(const void *addr, size_t len)
{
	if (atomic_load(&running))
		monitor.import_ops->notify(&monitor, addr, len);
}

static int start(struct fid_mem_monitor *m)
{
	int err = pl_watch_device() ? 0 : pl_watch_open(NULL, changed);

	if (err)
		fprintf(stderr, "pinlease: libfabric registers without a cache: %s\n", pinl_error());
	atomic_store(&running, !err);
	return err;
}

static void stop(struct fid_mem_monitor *m)
{
	atomic_store(&running, false);
}

static int subscribe(struct fid_mem_monitor *m, const void *addr, size_t len)
{
	return pl_watch_add(addr, len);
}

static void unsubscribe(struct fid_mem_monitor *m, const void *addr, size_t len)
{
	pl_watch_remove(addr, len);
}

static bool valid(struct fid_mem_monitor *m, const void *addr, size_t len)
{
	return pl_watch_valid(addr, len);
}

static struct fi_ops_mem_monitor ops = {
	.size = sizeof ops,
	.start = start,
	.stop = stop,
	.subscribe = subscribe,
	.unsubscribe = unsubscribe,
	.valid = valid,
};

static struct fid_mem_monitor monitor = {.fid = {.fclass = FI_CLASS_MEM_MONITOR}, .export_ops = &ops};

static int say(int err)
{
	switch (err) {
	case 0:
		return 0;
	case -FI_EBUSY:
		return pinl_set_error(-EBUSY, "libfabric has an imported memory monitor or an open "
					      "domain: import before the first fi_domain()");
	case -FI_ENOSYS:
		return pinl_set_error(-ENOSYS, "this libfabric takes no memory monitor: it needs 1.14");
	default:
		return pinl_set_error(-EIO, "libfabric takes no memory monitor: %s", fi_strerror(-err));
	}
}

static int import(void)
{
	struct fid *cache;
	int err;

	if (fi_version() < FI_VERSION(1, 14)) /* 1.13 waits for itself */
		return say(-FI_ENOSYS);
	err = fi_open(FI_VERSION(1, 13), "mr_cache", NULL, 0, 0, &cache, NULL);
	if (err)
		return say(err);
	err = fi_import_fid(cache, &monitor.fid, 0);
	fi_close(cache);
	imported = !err;
	return say(err);
}

/* Its own monitors come first, else they would take this one's place. */
static void begin_libfabric(void)
{
	struct fi_param *params = NULL;
	int n;

	if (!fi_getparams(&params, &n))
		fi_freeparams(params);
}

int pinl_libfabric_import(struct pinl_ctx *ctx)
{
	int err;

	pthread_mutex_lock(&lock);
	err = imported ? pinl_set_error(-EALREADY, "pinlease is libfabric's memory monitor already") : 0;
	if (!err)
		err = pl_watch_open(ctx, changed);
	if (!err) {
		begin_libfabric();
		err = import();
		if (err)
			pl_watch_close();
	}
	pthread_mutex_unlock(&lock);
	return err;
}

struct pinl_device *pinl_libfabric_device(void)
{
	return pl_watch_device();
}

static int end(void)
{
	if (!imported)
		return pinl_set_error(-EINVAL, "nothing was imported into libfabric");
	if (atomic_load(&running))
		return pinl_set_error(-EBUSY, "libfabric has an open domain, close it first");
	fi_close(&monitor.fid);
	imported = false;
	return 0;
}

int pinl_libfabric_close(void)
{
	int err;

	pthread_mutex_lock(&lock);
	err = end();
	if (!err && pl_watch_device())
		pl_watch_close();
	pthread_mutex_unlock(&lock);
	return err;
}

/* What it needs is opened at the first domain: a process that has none pays for nothing. libfabric reads
 * its variable later, and would take another monitor. */
__attribute__((constructor)) static void from_environment(void)
{
	const char *wanted = secure_getenv("PINLEASE_LIBFABRIC"), *other = getenv("FI_MR_CACHE_MONITOR");

	if (!wanted || strcmp(wanted, "1") || (other && !strcmp(other, "disabled")))
		return;
	if (import())
		fprintf(stderr, "pinlease: libfabric keeps its own memory monitor: %s\n", pinl_error());
	else
		unsetenv("FI_MR_CACHE_MONITOR");
}

/* Before libfabric's own end, which expects no monitor. With a domain that is still open it stays. */
__attribute__((destructor)) static void at_exit(void)
{
	if (!atomic_load(&running))
		end();
}
