/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Anonymous mappings that are watched as a whole: another registration of the cache in one of them needs
 * no system call to find out what it is, nor to watch it.
 *
 * Invariant: from when an extent is kept until a change of its addresses is submitted, all of it is the
 * memory that its first lease said, and watched by the same source. Every change that takes addresses
 * away is submitted, under ctx->lock, and cuts them out (pl_extents_cut); a lease that is published
 * under that lock while its extent is there is found by the next one. Only what may be done with the
 * memory (mprotect) isn't told of: that is as it was at the first registration in the extent.
 */
#ifndef PL_CORE_EXTENT_H
#define PL_CORE_EXTENT_H

#include "core/ctx.h"

/* ctx->lock held, here and in both that cut. Put the lease on the ground of an extent that has all of
 * it; false: none has. Until it is put, in which case nothing more is asked of what it stands on. */
bool pl_extent_take(struct pinl_lease *lease);
void pl_extent_put(struct pinl_lease *lease);
void pl_extents_free(struct pinl_ctx *ctx); /* no lock */

/* These addresses are, or are going to be, others. */
void pl_extents_cut(struct pinl_ctx *ctx, uintptr_t start, uintptr_t end);
void pl_extents_changed(struct pinl_ctx *ctx, const struct pinl_change *change);

/* No lock: remember the mapping of a lease that has just been made, if nothing has been cut since `cuts`
 * (of before its memory was looked at) and there is more room in it. */
void pl_extent_keep(struct pinl_lease *lease, unsigned long cuts);
unsigned long pl_extent_cuts(struct pinl_ctx *ctx);

/*
 * Who is about to unmap [start, end) and has asked for that needn't wait for the event of it, if it is
 * part of an extent and so small that to unwatch it costs less. Before the question; then, if that was
 * true, right before the system call and after it.
 */
bool pl_extent_can_leave(struct pinl_ctx *ctx, uintptr_t start, uintptr_t end);
void pl_extent_leave(struct pinl_ctx *ctx, uintptr_t start, uintptr_t end);
void pl_extent_left(struct pinl_ctx *ctx, uintptr_t start, uintptr_t end, bool unmapped);

#endif
