/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which lease was at a device address: one that is, or one of the last that were. The addresses mean
 * something in one device's address space only, and nobody says in which it was: so where leases of two
 * devices fit, none is named.
 */
#include "core/fault.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#define PAGE 4096ul

void pl_translate(struct pinl_lease *l, uint64_t iova)
{
	struct pinl_ctx *ctx = l->ctx;

	pthread_mutex_lock(&ctx->lock);
	pl_more(l)->translated = true;
	pl_more(l)->iova = iova;
	pthread_mutex_unlock(&ctx->lock);
	for (int i = 0; i < ctx->n_sources; i++) {
		const struct pinl_source_ops *ops = ctx->sources[i].ops;

		if (ops->size > offsetof(struct pinl_source_ops, translated) && ops->translated)
			ops->translated(ctx->sources[i].priv);
	}
}

static struct pl_past past_of(struct pinl_lease *l)
{
	struct pl_past p = {.dev = l->dev->number,
			    .iova = l->more->iova,
			    .last = l->more->iova + (l->m.end - l->m.start - 1)};

	pl_event_lease(l, PINL_EV_FAULT, NULL, &p.event);
	p.event.source[0] = 0;
	return p;
}

void pl_translate_end(struct pinl_lease *l)
{
	struct pinl_ctx *ctx = l->ctx;
	struct pl_past *p = &ctx->past[ctx->n_past++ % PL_MAX_PAST];

	*p = past_of(l);
	p->event.cookie = NULL; /* what it points to may be gone */
}

static bool is_at(const struct pl_past *p, uint64_t iova)
{
	return p->dev && p->iova <= iova && iova <= p->last;
}

/* More than one device: -1. *found: what fits best so far. */
static int fits(const struct pl_past *p, uint64_t iova, struct pl_past *found)
{
	if (!is_at(p, iova))
		return 0;
	if (found->dev)
		return found->dev == p->dev ? 0 : -1;
	*found = *p;
	return 0;
}

/* Those that are come before those that were, the newest of these first. */
static bool find(struct pinl_ctx *ctx, uint64_t iova, struct pl_past *found)
{
	for (struct pinl_device *d = ctx->devices; d; d = d->next)
		for (struct pinl_lease *l = d->leases; l; l = l->dev_next) {
			struct pl_past p;

			if (!l->more->translated || iova - l->more->iova >= l->m.end - l->m.start)
				continue;
			p = past_of(l);
			if (fits(&p, iova, found))
				return false;
		}
	for (unsigned i = 1; i <= PL_MAX_PAST; i++)
		if (fits(&ctx->past[(ctx->n_past - i) % PL_MAX_PAST], iova, found))
			return false;
	return found->dev;
}

/* The page of the lease. */
static void narrow(struct pinl_event *ev, uint64_t at)
{
	at &= ~(PAGE - 1);
	ev->start += at;
	ev->end = ev->start + PAGE;
	if (ev->file_end) {
		ev->file_start += at;
		ev->file_end = ev->file_start + PAGE;
	}
}

void pl_fault_report(struct pinl_ctx *ctx, const char *device, uint64_t iova, bool write)
{
	struct pinl_event ev = {.size = sizeof ev, .type = PINL_EV_FAULT, .op = PINL_OP_NR};
	struct pl_past found = {.dev = 0};

	pthread_mutex_lock(&ctx->lock);
	if (find(ctx, iova, &found)) {
		ev = found.event;
		narrow(&ev, iova - found.iova);
	}
	ctx->counters.faults++;
	pthread_mutex_unlock(&ctx->lock);
	ev.err = -EFAULT;
	ev.bytes = 0;
	ev.device_addr = iova;
	ev.access = write ? PINL_WRITE : 0;
	strncpy(ev.source, "faults", sizeof ev.source - 1);
	strncpy(ev.device, device, sizeof ev.device - 1);
	pl_event_push(ctx, &ev);
}
