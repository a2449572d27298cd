/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Taking a range from a device: quiesced, or by force. Runs in the worker with the lease busy and no
 * lock. Always ends, and always with the device off the old pages or with err saying what fell short:
 * COPY and SCRATCH fall back to FAIL when the memory or the device doesn't play along.
 *
 * SCRATCH switches the pages before it drains, so a device never meets an error. COPY, and SCRATCH
 * where what the device wrote to orphans is to be told, stop and drain first: every byte of a transfer
 * that was in flight is in the pages that are then copied or compared.
 */
#include <errno.h>
#include <sys/mman.h>

#include "core/ctx.h"
#include "os/vma.h"

static uint64_t drain_deadline(const struct pinl_lease *l)
{
	return pl_clock_ns() + l->ctx->opts.drain_ms * 1000000ull;
}

static int stop_and_drain(struct pinl_lease *l, const struct pl_recall *r)
{
	int err = l->dev->ops.stop(l->dev->priv, &l->dm);

	if (!err)
		err = l->dev->ops.drain(l->dev->priv, &l->dm, drain_deadline(l));
	pl_lease_flush(l, r);
	return err;
}

static void suspend_sources(struct pinl_lease *l, const struct pl_range *va, int suspended)
{
	struct pinl_ctx *ctx = l->ctx;

	for (int i = 0; i < ctx->n_sources; i++)
		if (ctx->sources[i].ops->suspend)
			ctx->sources[i].ops->suspend(ctx->sources[i].priv, va->start, va->end,
						     suspended);
}

struct copy {
	struct pinl_lease *lease;
	size_t offset;
};

static int read_device(void *arg, size_t offset, size_t len, void *buf)
{
	struct copy *c = arg;

	if (c->lease->stage) {
		pl_stage_content(c->lease->stage, c->offset + offset, len, buf);
		return 0;
	}
	return c->lease->dev->ops.read(c->lease->dev->priv, &c->lease->dm, c->offset + offset, len, buf);
}

static bool unmaps(const struct pl_recall *r, const struct pl_range *va)
{
	return r->va_gone && r->va.start < va->end && r->va.end > va->start;
}

/* The lease's own memory, up to the next part that has been replaced already; or, skipped, such a part.
 */
static struct pl_range live_part(const struct pinl_lease *l, uintptr_t at, uintptr_t end, bool *live)
{
	struct pl_range part = {at, end};

	*live = true;
	for (int i = 0; i < l->n_detached; i++) {
		const struct pl_range *d = &l->detached[i];

		if (d->start <= at && d->end > at) {
			*live = false;
			return (struct pl_range){at, d->end};
		}
		if (d->start > at && d->start < part.end)
			part.end = d->start;
	}
	return part;
}

static bool still_mapped(const struct pinl_lease *l, const struct pl_range *va)
{
	struct pl_range part = {va->start, va->start};
	bool live, same = true;

	while (same && part.end < va->end) {
		part = live_part(l, part.end, va->end, &live);
		same = !live || pl_vma_same(l->ctx->maps, &l->mem, part.start, part.end);
	}
	return same;
}

/*
 * The range may have been unmapped while the device was drained, and belong to somebody else by now. A
 * change that is not told yet shows in what is mapped; what remains is a mapping of the same kind made
 * in the moment between this look and the switch.
 */
static bool gone_meanwhile(struct pinl_lease *l, const struct pl_range *va)
{
	bool gone;

	pthread_mutex_lock(&l->ctx->lock);
	gone = (l->has_late && unmaps(&l->late, va)) || (l->has_next && unmaps(&l->next, va));
	pthread_mutex_unlock(&l->ctx->lock);
	return gone || !still_mapped(l, va);
}

/* CPU and device get two mappings of one new memory, so what was staged is shared from now on. */
static int replace_staged(struct pinl_lease *l, const struct pl_range *va, bool gone, struct copy *c,
			  pl_fill_fn fill)
{
	size_t len = va->end - va->start;
	void *mine, *yours;
	int err;

	if (gone && fill) /* the device alone goes on, in the copy it has */
		return l->dev->ops.retarget(l->dev->priv, &l->dm);
	err = pl_stage_fresh(len, l->mem.writable, &mine, &yours);
	if (err)
		return err;
	if (gone)
		munmap(yours, len);
	else
		err = pl_swap_replace(l->ctx->swap, va->start, va->end, yours, l->mem.writable, fill, c);
	if (!err)
		err = pl_stage_take(l->stage, c->offset, len, mine);
	if (err)
		munmap(mine, len);
	return err ? err : l->dev->ops.retarget(l->dev->priv, &l->dm);
}

/* Only the device gets new pages; fails where somebody has mapped anything. */
static int replace_unmapped(struct pinl_lease *l, const struct pl_range *va, struct copy *c,
			    pl_fill_fn fill)
{
	int err = pl_swap_place(l->ctx->swap, va->start, va->end, fill, c);

	if (err)
		return err;
	err = l->dev->ops.retarget(l->dev->priv, &l->dm);
	pl_swap_unplace(va->start, va->end);
	return err;
}

static int replace_mapped(struct pinl_lease *l, const struct pl_range *va, struct copy *c,
			  pl_fill_fn fill)
{
	int err = pl_swap_replace(l->ctx->swap, va->start, va->end, NULL, l->mem.writable, fill, c);

	return err ? err : l->dev->ops.retarget(l->dev->priv, &l->dm);
}

/* New pages under the range, and the device on them. */
static int replace(struct pinl_lease *l, const struct pl_recall *r, bool copy, bool *va_lost)
{
	struct copy c = {l, r->va.start - l->m.start};
	pl_fill_fn fill = copy ? read_device : NULL;
	bool gone = r->va_gone;
	int err;

	if (!r->va_gone) {
		suspend_sources(l, &r->va, 1);
		gone = *va_lost = gone_meanwhile(l, &r->va);
	}
	if (l->stage)
		err = replace_staged(l, &r->va, gone, &c, fill);
	else if (gone)
		err = replace_unmapped(l, &r->va, &c, fill);
	else
		err = replace_mapped(l, &r->va, &c, fill);
	if (!r->va_gone)
		suspend_sources(l, &r->va, 0);
	return err;
}

/*
 * The content of a range that is being moved can't be replaced under its mover; and retargeting gives
 * the device all addresses of the lease, so none of them may have become somebody else's.
 */
static bool replaceable(const struct pinl_lease *l, const struct pl_recall *r)
{
	return (r->op != PINL_OP_REMAP || r->va_gone) && !l->va_lost;
}

static int take_scratch(struct pinl_lease *l, const struct pl_recall *r, bool *va_lost)
{
	int err;

	if (l->n_orphans || l->stage) {
		err = stop_and_drain(l, r);
		pl_orphan_end(l);
		return err ? err : replace(l, r, false, va_lost);
	}
	err = replace(l, r, false, va_lost);
	return err ? err : l->dev->ops.drain(l->dev->priv, &l->dm, drain_deadline(l));
}

static int take_copy(struct pinl_lease *l, const struct pl_recall *r, bool *va_lost)
{
	int drained = stop_and_drain(l, r), err;

	pl_orphan_end(l);
	err = replace(l, r, true, va_lost);
	return err ? err : drained;
}

void pl_take(struct pinl_lease *l, const struct pl_recall *r, struct pl_taken *taken)
{
	bool copy = l->policy.then == PINL_THEN_COPY, va_lost = false;
	int err = 0;

	if (!r->quiesced && l->policy.then != PINL_THEN_FAIL) {
		err = !replaceable(l, r) ? -EOPNOTSUPP
		      : copy		 ? take_copy(l, r, &va_lost)
					 : take_scratch(l, r, &va_lost);
		if (!err || err == -ETIMEDOUT) {
			*taken = (struct pl_taken){
				.outcome = copy ? PINL_OUT_COPY : PINL_OUT_SCRATCH,
				.va_lost = va_lost,
				.err = err,
			};
			return;
		}
	}
	*taken = (struct pl_taken){.outcome = r->quiesced ? PINL_OUT_QUIESCED : PINL_OUT_FAIL,
				   .whole = true,
				   .err = stop_and_drain(l, r)};
	pl_orphan_end(l);
	l->dev->ops.drop(l->dev->priv, &l->dm);
	if (!taken->err)
		taken->err = err;
}
