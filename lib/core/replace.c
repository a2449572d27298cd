/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Other memory under a range, and the device on it: SCRATCH and COPY. In the worker, with the lease busy
 * and no lock.
 *
 * Invariant: memory is put only where the lease's own is mapped now or nothing is. The range may have
 * been unmapped while the device was drained and belong to somebody else, parts of it may have been
 * replaced before and are the program's since; a change that is not told yet shows in what is mapped.
 * What remains is a mapping of the same kind made in the moment between the look and the switch.
 */
#include <errno.h>
#include <sys/mman.h>

#include "core/extent.h"
#include "os/vma.h"

#define MAX_PLACED 8

struct replacing {
	struct pinl_lease *lease;
	struct pl_range gone; /* told to be unmapped */
	struct pl_range placed[MAX_PLACED];
	int n_placed;
	size_t offset; /* of the part being filled, in the lease */
	pl_fill_fn fill;
	struct pl_taken *taken;
};

void pl_lease_suspend(struct pinl_lease *l, const struct pl_range *va, int suspended)
{
	struct pinl_ctx *ctx = l->ctx;

	pl_sources_suspend(ctx, va->start, va->end, suspended);
	pthread_mutex_lock(&ctx->lock);
	pl_extents_cut(ctx, va->start, va->end);
	pthread_mutex_unlock(&ctx->lock);
}

static int read_device(void *arg, size_t offset, size_t len, void *buf)
{
	struct replacing *x = arg;
	struct pinl_lease *l = x->lease;

	if (l->more->stage) {
		pl_stage_content(l->more->stage, x->offset + offset, len, buf);
		return 0;
	}
	return l->dev->ops.read(l->dev->priv, &l->dm, x->offset + offset, len, buf);
}

/* CPU and device get two mappings of one new memory, so what was staged is shared from now on. */
static int put_staged(struct replacing *x, const struct pl_range *va, bool hole)
{
	struct pinl_lease *l = x->lease;
	size_t len = va->end - va->start;
	void *mine, *yours;
	int err;

	if (hole && x->fill) /* the device alone goes on, in the copy it has */
		return 0;
	err = pl_stage_fresh(len, l->on->mem.writable, &mine, &yours);
	if (err)
		return err;
	if (hole)
		munmap(yours, len);
	else
		err = pl_swap_replace(l->ctx->swap, va->start, va->end, yours, l->on->mem.writable,
				      x->fill, x);
	if (!err)
		err = pl_stage_take(l->more->stage, x->offset, len, mine);
	if (err)
		munmap(mine, len);
	return err;
}

/* Only the device gets new pages, which are at these addresses until it has them. */
static int put_in_hole(struct replacing *x, const struct pl_range *va)
{
	int err = x->n_placed == MAX_PLACED
			  ? -E2BIG
			  : pl_swap_place(x->lease->ctx->swap, va->start, va->end, x->fill, x);

	if (!err)
		x->placed[x->n_placed++] = *va;
	return err;
}

/* One part, all of which is the lease's own memory, or all a hole. */
static int put(struct replacing *x, const struct pl_range *va, bool hole)
{
	struct pinl_lease *l = x->lease;
	int err;

	x->offset = va->start - l->m.start;
	x->taken->va_lost |= hole;
	if (l->more->stage)
		err = put_staged(x, va, hole);
	else if (hole &&
		 !(l->flags & PINL_PIN)) /* it would fault there as soon as that is a hole again */
		return -EFAULT;
	else if (hole)
		return put_in_hole(x, va);
	else
		err = pl_swap_replace(l->ctx->swap, va->start, va->end, NULL, l->on->mem.writable,
				      x->fill, x);
	x->taken->switched |= !hole && !err;
	return err;
}

/* A part of the lease that has not been replaced before, by what is there now. */
static int put_live(struct replacing *x, struct pl_range part)
{
	int err = 0;

	for (struct pl_range run; !err && part.start < part.end; part.start = run.end) {
		bool told = part.start >= x->gone.start && part.start < x->gone.end;
		enum pl_vma_now now;

		run = part;
		if (told && run.end > x->gone.end)
			run.end = x->gone.end;
		if (!told && x->gone.start > run.start && x->gone.start < run.end)
			run.end = x->gone.start;
		now = pl_vma_look(x->lease->ctx->maps, &x->lease->on->mem, run.start, &run.end);
		if (now == PL_VMA_OTHER || (told && now != PL_VMA_HOLE))
			err = -EEXIST; /* somebody else's */
		else
			err = put(x, &run, now == PL_VMA_HOLE);
	}
	return err;
}

static int put_all(struct replacing *x, const struct pl_range *va)
{
	struct pl_range part = {va->start, va->start};
	int err = 0;
	bool live;

	while (!err && part.end < va->end) {
		part = pl_lease_part(x->lease, part.end, va->end, &live);
		if (live)
			err = put_live(x, part);
	}
	return err;
}

static void told_meanwhile(struct pinl_lease *l, struct pl_range *gone)
{
	pthread_mutex_lock(&l->ctx->lock);
	if (l->more->has_late)
		pl_range_widen(gone, &l->more->late.gone);
	if (l->more->has_next)
		pl_range_widen(gone, &l->more->next.gone);
	pthread_mutex_unlock(&l->ctx->lock);
}

/* Before anything is switched: a device that can't be read now won't be after. */
static int try_read(struct replacing *x, uintptr_t at)
{
	char page[4096];

	x->offset = at - x->lease->m.start;
	return x->fill(x, 0, sizeof page, page);
}

int pl_replace(struct pinl_lease *l, const struct pl_recall *r, struct pl_taken *taken)
{
	struct replacing x = {.lease = l, .gone = r->gone, .taken = taken};
	int err = 0;

	if (l->policy.then == PINL_THEN_COPY) {
		x.fill = read_device;
		err = try_read(&x, r->va.start);
	}
	if (err)
		return err;
	pl_lease_suspend(l, &r->va, 1);
	told_meanwhile(l, &x.gone);
	err = put_all(&x, &r->va);
	if (!err)
		err = l->dev->ops.retarget(l->dev->priv, &l->dm);
	while (x.n_placed) {
		const struct pl_range *p = &x.placed[--x.n_placed];

		pl_swap_unplace(p->start, p->end);
	}
	pl_lease_suspend(l, &r->va, 0);
	return err;
}
