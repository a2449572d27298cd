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

#include "core/export.h"

#define LEAST_MS 20 /* to drain what others have used up the time for */

/* Of one that was stopped ahead the time runs since then, but it gets a little in any case. */
static uint64_t drain_deadline(const struct pinl_lease *l)
{
	uint64_t drain_ms = l->ctx->opts.drain_ms, now = pl_clock_ns();
	uint64_t least = now + (drain_ms < LEAST_MS ? drain_ms : LEAST_MS) * 1000000ull;

	if (!l->more->stopped)
		return now + drain_ms * 1000000ull;
	return l->more->drain_by > least ? l->more->drain_by : least;
}

/* Who is going to read? A COPY, and who counts what orphans have got. */
int pl_lease_stop(struct pinl_lease *l, bool quiesced)
{
	l->dm.reads = l->more->orphan_bytes || l->more->stage ||
		      (!quiesced && l->policy.then == PINL_THEN_COPY);
	return l->dev->ops.stop(l->dev->priv, &l->dm);
}

/* What couldn't be stopped may be when its transfers have ended, which drain sees to; but only a stop
 * that has worked confirms. pinleased's has had all its time. */
static int stop_and_drain(struct pinl_lease *l, const struct pl_recall *r)
{
	uint64_t deadline = drain_deadline(l);
	int err = l->more->stopped ? l->more->stop_err : pl_lease_stop(l, r->quiesced);

	if (err && err != -EOPNOTSUPP && !l->dev->foreign) {
		l->dev->ops.drain(l->dev->priv, &l->dm, deadline);
		err = pl_lease_stop(l, r->quiesced);
	}
	if (!err)
		err = l->dev->ops.drain(l->dev->priv, &l->dm, deadline);
	pl_lease_flush(l, r);
	return err;
}

/*
 * The content of a range that is being moved can't be replaced under its mover; and retargeting gives
 * the device all addresses of the lease, so none of them may have become somebody else's.
 */
static bool replaceable(const struct pinl_lease *l, const struct pl_recall *r)
{
	return (r->op != PINL_OP_REMAP || r->late) && !l->more->va_lost;
}

static int take_scratch(struct pinl_lease *l, const struct pl_recall *r, struct pl_taken *taken)
{
	int err;

	if (l->more->orphan_bytes || l->more->stage) {
		err = stop_and_drain(l, r);
		pl_orphan_end(l);
		return err ? err : pl_replace(l, r, taken);
	}
	err = pl_replace(l, r, taken);
	return err ? err : l->dev->ops.drain(l->dev->priv, &l->dm, drain_deadline(l));
}

static int take_copy(struct pinl_lease *l, const struct pl_recall *r, struct pl_taken *taken)
{
	int drained = stop_and_drain(l, r), err;

	pl_orphan_end(l);
	err = pl_replace(l, r, taken);
	return err ? err : drained;
}

/* Whether a force of the lease begins with stopping the device: then it can be done ahead. */
bool pl_stops_first(const struct pinl_lease *l)
{
	return l->dev->foreign || l->more->recall.quiesced || l->policy.then != PINL_THEN_SCRATCH ||
	       l->more->orphan_bytes || l->more->stage ||
	       (!l->more->import && !replaceable(l, &l->more->recall));
}

/* Nothing can be put at its addresses from here: its holder has done that, or the device is kept off. */
static void take_foreign(struct pinl_lease *l, const struct pl_recall *r, struct pl_taken *taken)
{
	l->dm.holder_done = r->quiesced;
	taken->outcome = r->quiesced ? r->outcome : PINL_OUT_FAIL;
	taken->whole = !r->part;
	taken->err = stop_and_drain(l, r);
	if (l->more->killed && !taken->err)
		taken->outcome = PINL_OUT_KILLED;
	if (!taken->err) /* else the device has them still */
		pl_orphan_end(l);
	l->dm.holder_done = 0;
}

/* Its table to a dummy, or off; the exporter goes on without it. Always all of the lease. */
static void take_import(struct pinl_lease *l, const struct pl_recall *r, struct pl_taken *taken)
{
	bool dummy = !r->quiesced && l->policy.then == PINL_THEN_SCRATCH && !l->more->stopped;
	int err = pl_import_take(l, dummy);

	taken->whole = true;
	taken->outcome = r->quiesced ? PINL_OUT_QUIESCED : err ? PINL_OUT_FAIL : PINL_OUT_SCRATCH;
	if (err)
		taken->err = stop_and_drain(l, r);
	else
		taken->err = l->dev->ops.drain(l->dev->priv, &l->dm, drain_deadline(l));
	if (err)
		l->dev->ops.drop(l->dev->priv, &l->dm);
	if (!taken->err)
		pl_import_detach(l);
	if (err && dummy && !taken->err)
		taken->err = err;
}

void pl_take(struct pinl_lease *l, const struct pl_recall *r, struct pl_taken *taken)
{
	bool copy = l->policy.then == PINL_THEN_COPY;
	int err = 0;

	*taken = (struct pl_taken){0};
	if (l->dev->foreign) {
		take_foreign(l, r, taken);
		return;
	}
	if (l->more->import) {
		take_import(l, r, taken);
		return;
	}
	if (!r->quiesced && pl_then_moves(l->policy.then)) {
		err = !replaceable(l, r) ? -EOPNOTSUPP
		      : copy		 ? take_copy(l, r, taken)
					 : take_scratch(l, r, taken);
		if (!err || err == -ETIMEDOUT) {
			taken->outcome = copy ? PINL_OUT_COPY : PINL_OUT_SCRATCH;
			taken->err = err;
			return;
		}
	}
	taken->outcome = r->quiesced ? PINL_OUT_QUIESCED : PINL_OUT_FAIL;
	taken->whole = true;
	taken->err = stop_and_drain(l, r);
	pl_orphan_end(l);
	l->dev->ops.drop(l->dev->priv, &l->dm);
	if (!taken->err)
		taken->err = err;
}
