/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The parts of a lease: what SCRATCH, COPY or FAIL took of it is detached, the rest is live. Detached
 * parts are disjoint and don't touch. Set by the worker under ctx->lock; read under it, or while busy.
 */
#include "core/order.h"

#define PAGE 4096ul

void pl_range_widen(struct pl_range *r, const struct pl_range *more)
{
	if (more->start >= more->end)
		return;
	if (r->start >= r->end) {
		*r = *more;
		return;
	}
	if (more->start < r->start)
		r->start = more->start;
	if (more->end > r->end)
		r->end = more->end;
}

/* The parts stay disjoint: what touches the new one is merged into it. */
void pl_lease_detach(struct pinl_lease *l, const struct pl_range *va)
{
	struct pl_more *more = pl_more(l);
	struct pl_range all = *va;
	int kept = 0;

	if (all.start >= all.end)
		return;

	for (int i = 0; i < more->n_detached; i++) {
		struct pl_range d = more->detached[i];

		if (d.start <= all.end && d.end >= all.start)
			pl_range_widen(&all, &d);
		else
			more->detached[kept++] = d;
	}
	more->detached[kept++] = all;
	more->n_detached = kept;
}

/* The lease's own memory, up to the next part that has been replaced already; or such a part: *live. */
struct pl_range pl_lease_part(const struct pinl_lease *l, uintptr_t at, uintptr_t end, bool *live)
{
	struct pl_range part = {at, end};

	*live = true;
	for (int i = 0; i < l->more->n_detached; i++) {
		const struct pl_range *d = &l->more->detached[i];

		if (d->start <= at && d->end > at) {
			*live = false;
			return (struct pl_range){at, d->end};
		}
		if (d->start > at && d->start < part.end)
			part.end = d->start;
	}
	return part;
}

void pl_lease_cut_detached(const struct pinl_lease *l, struct pl_range *va)
{
	for (int again = 1; again;) {
		again = 0;
		for (int i = 0; i < l->more->n_detached; i++) {
			const struct pl_range *d = &l->more->detached[i];

			if (va->start < va->end && d->start <= va->start && d->end > va->start) {
				va->start = d->end < va->end ? d->end : va->end;
				again = 1;
			} else if (va->start < va->end && d->end >= va->end && d->start < va->end) {
				va->end = d->start;
				again = 1;
			}
		}
	}
}

size_t pl_lease_live_bytes(const struct pinl_lease *l)
{
	size_t bytes = l->m.end - l->m.start;

	for (int i = 0; i < l->more->n_detached; i++)
		bytes -= l->more->detached[i].end - l->more->detached[i].start;
	return bytes;
}

bool pl_lease_overlap(const struct pinl_lease *l, const struct pinl_change *ch, struct pl_range *va)
{
	uint64_t len = l->m.end - l->m.start, from, to;

	if (l->id <= ch->newer_than || !pl_order_means(ch, l))
		return false;
	if (ch->on_file) {
		if (l->on->mem.dev != ch->file_dev || l->on->mem.ino != ch->file_ino ||
		    !l->on->mem.ino || ch->file_end <= l->on->mem.offset ||
		    ch->file_start >= l->on->mem.offset + len)
			return false;
		from = ch->file_start > l->on->mem.offset ? ch->file_start - l->on->mem.offset : 0;
		to = ch->file_end - l->on->mem.offset < len ? ch->file_end - l->on->mem.offset : len;
	} else {
		if (ch->end <= l->m.start || ch->start >= l->m.end)
			return false;
		from = ch->start > l->m.start ? ch->start - l->m.start : 0;
		to = ch->end < l->m.end ? ch->end - l->m.start : len;
	}
	va->start = l->m.start + (from & ~(PAGE - 1));
	va->end = l->m.start + ((to + PAGE - 1) & ~(PAGE - 1));
	pl_lease_cut_detached(l, va);
	return va->start < va->end;
}
