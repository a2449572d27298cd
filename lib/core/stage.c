/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Staged leases (P5): a device that can't have a file mapping gets a copy, kept coherent at defined
 * points. The mechanics are lib/os/stage.c; here is when they run and what is said. With the lease busy
 * and no lock.
 *
 * Invariant: what the device wrote is in the file, or has been reported as without a place, before a
 * change of the file is let go and before the lease ends. Parts that were detached need nothing: CPU and
 * device have two mappings of one memory there.
 */
#include <errno.h>
#include <string.h>

#include "core/ctx.h"

static int get_bounce(struct pinl_ctx *ctx)
{
	struct pl_bounce *bounce, *have;
	int err;

	pthread_mutex_lock(&ctx->lock);
	have = ctx->bounce;
	pthread_mutex_unlock(&ctx->lock);
	if (have)
		return 0;
	err = pl_bounce_new(&bounce);
	if (err)
		return err;
	pthread_mutex_lock(&ctx->lock);
	if (!ctx->bounce) {
		ctx->bounce = bounce;
		bounce = NULL;
	}
	pthread_mutex_unlock(&ctx->lock);
	pl_bounce_free(bounce);
	return 0;
}

/* The second mapping of the file came with the first one's watch, if that had one. */
static void leave_unwatched(struct pinl_ctx *ctx, const struct pl_stage *s)
{
	uintptr_t start = (uintptr_t)s->file;

	pl_sources_suspend(ctx, start, start + s->len, 1);
}

static bool stageable(const struct pinl_lease *l)
{
	return l->on->mem.shared &&
	       (l->on->mem.kind == PINL_MEM_FILE_SHARED || l->on->mem.kind == PINL_MEM_DAX);
}

/* With the lock, because the lease is visible. */
static void set_stage(struct pinl_lease *l, struct pl_stage *s)
{
	uintptr_t start = s ? (uintptr_t)s->copy : l->m.start;

	pthread_mutex_lock(&l->ctx->lock);
	pl_more(l)->stage = s;
	l->dm.start = start;
	l->dm.end = start + (l->m.end - l->m.start);
	pthread_mutex_unlock(&l->ctx->lock);
}

/* Map again, by a copy. The error sentence of the first try stands if this memory isn't for staging. */
int pl_lease_stage(struct pinl_lease *l, struct pinl_addr *addrs)
{
	struct pl_stage *s;
	int err;

	if (!stageable(l))
		return -EOPNOTSUPP;
	err = get_bounce(l->ctx);
	if (!err)
		err = pl_stage_new(l->ctx->bounce, l->m.start, l->m.end, &s);
	if (err)
		return pinl_set_error(err, "can't make a staged copy of [%#lx, %#lx): %s%s", l->m.start,
				      l->m.end, strerror(-err),
				      err == -EMFILE ? "; raise ulimit -n" : "");
	leave_unwatched(l->ctx, s);
	set_stage(l, s);
	err = l->dev->ops.map(l->dev->priv, &l->dm, addrs);
	if (err)
		pl_lease_unstage(l);
	return err;
}

void pl_lease_unstage(struct pinl_lease *l)
{
	struct pl_stage *s = l->more->stage;

	if (!s)
		return;
	set_stage(l, NULL);
	pl_stage_free(s);
}

/* For each part of [start, end) of the lease that is still staged. */
static size_t each_part(struct pinl_lease *l, struct pl_range all,
			size_t (*fn)(struct pl_stage *, size_t offset, size_t len))
{
	size_t sum = 0;
	bool live;

	for (struct pl_range part; all.start < all.end; all.start = part.end) {
		part = pl_lease_part(l, all.start, all.end, &live);
		if (live)
			sum += fn(l->more->stage, part.start - l->m.start, part.end - part.start);
	}
	return sum;
}

static size_t to_copy(struct pl_stage *s, size_t offset, size_t len)
{
	pl_stage_to_copy(s, offset, len);
	return 0;
}

static size_t write_back(struct pinl_lease *l, const struct pl_range *va, const struct pl_recall *why)
{
	size_t lost = 0;

	if (l->flags & PINL_WRITE)
		lost = each_part(l, *va, pl_stage_to_file);
	if (lost)
		pl_orphan_unwritten(l, why, lost);
	return lost;
}

int pl_lease_sync(struct pinl_lease *l, size_t offset, size_t len, unsigned direction)
{
	struct pl_range va = {(l->m.start + offset) & ~4095ul,
			      (l->m.start + offset + len + 4095) & ~4095ul};
	size_t lost = 0;

	if (direction & PINL_FOR_CPU)
		lost = write_back(l, &va, NULL);
	if (direction & PINL_FOR_DEVICE)
		each_part(l, va, to_copy);
	return lost ? pinl_set_error(-ENODATA,
				     "%zu bytes that the device wrote have no place in the file any "
				     "more; pinl_lease_read() still has them",
				     lost)
		    : 0;
}

void pl_lease_flush(struct pinl_lease *l, const struct pl_recall *why)
{
	struct pl_range all = {l->m.start, l->m.end};

	if (l->more->stage)
		write_back(l, &all, why);
}
