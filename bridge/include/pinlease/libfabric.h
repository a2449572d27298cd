/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * libfabric's registration caches (verbs, efa, cxi, opx), told of changes by pinlease instead of by
 * patched libc functions: an imported memory monitor. Link with -lpinlease-libfabric:
 *
 *	fi_getinfo(...);
 *	pinl_libfabric_import(NULL);
 *	fi_fabric(...); fi_domain(...);
 *
 * or change nothing in the program:
 *
 *	PINLEASE_LIBFABRIC=1 LD_PRELOAD=libpinlease-libfabric.so.0 ./program
 *
 * No registration is found whose memory has changed before libfabric looked for it, by whomever and by
 * raw system calls; files, too. Its limits are those of pinl_get() (cache.h). Memory that can't be
 * watched is registered and not cached. What has changed leaves libfabric's cache at once, and its pins
 * go with libfabric's next search: it ends registrations only there.
 */
#ifndef PINLEASE_LIBFABRIC_H
#define PINLEASE_LIBFABRIC_H

#include <pinlease/pinlease.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/*
 * pinl_libfabric_import - libfabric's monitor is pinlease from now on, after fi_getinfo() and before the
 * first fi_domain().
 *
 * ctx watches the memory; NULL: a context of its own, without a policy. A program with a context of its
 * own gives that one, since memory can be watched by one context only. It must not be closed before
 * pinl_libfabric_close() has succeeded.
 *
 * Errors: -EBUSY libfabric has an imported monitor (Open MPI brings one) or an open domain; -ENOSYS this
 * libfabric takes none, older than 1.14; -EALREADY pinlease is it; -EINVAL; what pinl_open() and
 * pinl_cache_open() say.
 */
int pinl_libfabric_import(struct pinl_ctx *ctx);

/* The device that stands for libfabric's caches: for pinl_cache_stat(), pinl_query(). NULL: none yet. */
struct pinl_device *pinl_libfabric_device(void);

/* After the last domain is closed. Errors: -EBUSY one is open that caches registrations; -EINVAL nothing
 * was imported. */
int pinl_libfabric_close(void);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
