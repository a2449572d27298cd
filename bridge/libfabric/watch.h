/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Ranges that libfabric has in its caches, each on a region of pinlease's cache. */
#ifndef PL_LIBFABRIC_WATCH_H
#define PL_LIBFABRIC_WATCH_H

#include <pinlease/cache.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The range has changed, or isn't known to be unchanged. Called by a thread of its own, no lock held. */
typedef void (*pl_changed_fn)(const void *addr, size_t len);

/* One at a time. ctx NULL: its own. */
int pl_watch_open(struct pinl_ctx *ctx, pl_changed_fn changed);
void pl_watch_close(void);
struct pinl_device *pl_watch_device(void);

int pl_watch_add(const void *addr, size_t len);
void pl_watch_remove(const void *addr, size_t len);

/* Nothing had happened to it since pl_watch_add() began when this began. */
bool pl_watch_valid(const void *addr, size_t len);

#endif
