/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the process has registered by libibverbs. */
#ifndef PL_UCX_REGIONS_H
#define PL_UCX_REGIONS_H

#include <pinlease/pinlease.h>
#include <stdbool.h>

/* Of [addr, addr + len) nothing registered may be found again. Called while who changes it is held, and
 * by who registers it: it may neither allocate nor free nor wait. */
typedef void (*pl_forget_fn)(const void *addr, size_t len);

/*
 * From the first call on everything registered is watched, or forgotten at once. ctx NULL: its own;
 * `later`: at the first registration. Errors: -ENOSYS UCX's calls don't come here.
 */
int pl_regions_start(struct pinl_ctx *ctx, bool later, pl_forget_fn forget);
void pl_regions_stop(void);

#endif
