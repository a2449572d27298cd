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

/* CPU and device get two mappings of one new memory, so what was staged is shared from now on. */
static int replace_staged(struct pinl_lease *l, const struct pl_recall *r, pl_fill_fn fill,
			  struct copy *c)
{
	size_t len = r->va.end - r->va.start, offset = r->va.start - l->m.start;
	void *mine, *yours;
	int err;

	if (r->va_gone && fill) /* the device alone goes on, in the copy it has */
		return l->dev->ops.retarget(l->dev->priv, &l->dm);
	err = pl_stage_fresh(len, l->mem.writable, &mine, &yours);
	if (err)
		return err;
	if (r->va_gone) {
		munmap(yours, len);
	} else {
		suspend_sources(l, &r->va, 1);
		err = pl_swap_replace(l->ctx->swap, r->va.start, r->va.end, yours, l->mem.writable, fill,
				      c);
		suspend_sources(l, &r->va, 0);
	}
	if (!err)
		err = pl_stage_take(l->stage, offset, len, mine);
	if (err)
		munmap(mine, len);
	return err ? err : l->dev->ops.retarget(l->dev->priv, &l->dm);
}

/* New private pages under the range, and the device on them. */
static int replace(struct pinl_lease *l, const struct pl_recall *r, bool copy)
{
	struct copy c = {l, r->va.start - l->m.start};
	pl_fill_fn fill = copy ? read_device : NULL;
	struct pl_swap *swap = l->ctx->swap;
	int err;

	if (l->stage)
		return replace_staged(l, r, fill, &c);
	if (r->va_gone) {
		err = pl_swap_place(swap, r->va.start, r->va.end, fill, &c);
		if (err)
			return err;
		err = l->dev->ops.retarget(l->dev->priv, &l->dm);
		pl_swap_unplace(r->va.start, r->va.end);
		return err;
	}
	suspend_sources(l, &r->va, 1);
	err = pl_swap_replace(swap, r->va.start, r->va.end, NULL, l->mem.writable, fill, &c);
	if (!err)
		err = l->dev->ops.retarget(l->dev->priv, &l->dm);
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

static int take_scratch(struct pinl_lease *l, const struct pl_recall *r)
{
	int err;

	if (l->n_orphans || l->stage) {
		err = stop_and_drain(l, r);
		pl_orphan_end(l);
		return err ? err : replace(l, r, false);
	}
	err = replace(l, r, false);
	return err ? err : l->dev->ops.drain(l->dev->priv, &l->dm, drain_deadline(l));
}

static int take_copy(struct pinl_lease *l, const struct pl_recall *r)
{
	int drained = stop_and_drain(l, r), err;

	pl_orphan_end(l);
	err = replace(l, r, true);
	return err ? err : drained;
}

void pl_take(struct pinl_lease *l, const struct pl_recall *r, struct pl_taken *taken)
{
	enum pinl_then then = l->policy.then;
	int err = 0;

	if (!r->quiesced && then != PINL_THEN_FAIL) {
		err = replaceable(l, r) ? (then == PINL_THEN_COPY ? take_copy(l, r) : take_scratch(l, r))
					: -EOPNOTSUPP;
		if (!err || err == -ETIMEDOUT) {
			*taken = (struct pl_taken){
				then == PINL_THEN_COPY ? PINL_OUT_COPY : PINL_OUT_SCRATCH, false, err};
			return;
		}
	}
	*taken = (struct pl_taken){r->quiesced ? PINL_OUT_QUIESCED : PINL_OUT_FAIL, true,
				   stop_and_drain(l, r)};
	pl_orphan_end(l);
	l->dev->ops.drop(l->dev->priv, &l->dm);
	if (!taken->err)
		taken->err = err;
}
