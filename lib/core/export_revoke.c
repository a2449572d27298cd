/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Device memory is taken back: from all importers, or those of a part, or for good. Invariants:
 * export.c.
 */
#include <errno.h>
#include <semaphore.h>
#include <unistd.h>

#include "core/export.h"
#include "core/order.h"

int pl_exporter_say_closed(struct pinl_exporter *e)
{
	const char *why;
	bool gone;

	pthread_mutex_lock(&e->ctx->lock);
	why = e->why;
	gone = e->gone;
	pthread_mutex_unlock(&e->ctx->lock);
	if (gone)
		return pinl_set_error(-ENODEV, "the exporter %s is gone", e->name);
	return pinl_set_error(-ENODEV,
			      "%s has been revoked by its exporter%s%s; map it when it is offered again",
			      e->name, why ? ": " : "", why ? why : "");
}

struct revoking {
	struct pl_order order;
	sem_t answered;
};

static void on_answer(struct pinl_change *ch, int err)
{
	struct revoking *r = ch->arg;

	sem_post(&r->answered);
}

/* Which importer of before isn't known to be off: 0, -ETIMEDOUT. ctx->lock held. */
static int still_on(struct pinl_exporter *e, const struct pinl_change *ch, uint64_t *lease,
		    const char **device)
{
	struct pinl_lease *l;
	struct pl_range va;

	for (l = pl_lease_first(e->ctx, ch); l; l = pl_lease_next(l, ch))
		if (l->id < ch->id &&
		    (l->state == PINL_RELEASED ? l->more->unproven && l->more->import->attached
					       : pl_lease_overlap(l, ch, &va))) {
			*lease = l->id;
			*device = l->dev->given->name;
			return -ETIMEDOUT;
		}
	return 0;
}

static void wait_for(struct revoking *r)
{
	struct pl_waiting w;

	pl_call_wait_begin(&w);
	while (sem_wait(&r->answered))
		;
	pl_call_wait_end(&w);
}

/* Importers of [from, to) are recalled; back when they are off. */
static int recall(struct pinl_exporter *e, uint64_t from, uint64_t to)
{
	struct revoking r = {
		.order.change = {.op = PINL_OP_NR,
				 .can = PL_CAN_ORDER | PINL_CAN_TELL | PINL_CAN_BEFORE | PINL_CAN_HOLD,
				 .newer_than = 0,
				 .on_file = 1,
				 .file_dev = PL_EXPORT_DEV,
				 .file_ino = e->id,
				 .file_start = from,
				 .file_end = to,
				 .actor_pid = getpid(),
				 .actor_tid = gettid(),
				 .source = PL_EXPORT_SOURCE,
				 .answer = on_answer}};
	const char *device = "";
	uint64_t lease = 0;
	int err;

	r.order.change.arg = &r;
	sem_init(&r.answered, 0, 0);
	pinl_change_submit(e->ctx, &r.order.change);
	wait_for(&r);
	sem_destroy(&r.answered);
	pthread_mutex_lock(&e->ctx->lock);
	err = still_on(e, &r.order.change, &lease, &device);
	pthread_mutex_unlock(&e->ctx->lock);
	if (!err)
		return 0;
	return pinl_set_error(
		err,
		"device %s (lease %lu) isn't confirmed to be off %s: its transfers have not "
		"ended; keep the memory there until the lease is unmapped",
		device, (unsigned long)lease, e->name);
}

int pinl_exporter_revoke(struct pinl_exporter *e, const char *why)
{
	PL_CALL(call);

	if (!pl_alive(e->ctx))
		return pl_stale();
	pthread_mutex_lock(&e->ctx->lock);
	e->revoked = true;
	e->why = why;
	pthread_mutex_unlock(&e->ctx->lock);
	return recall(e, 0, e->length);
}

void pinl_exporter_offer(struct pinl_exporter *e)
{
	PL_CALL(call);

	if (!pl_alive(e->ctx))
		return;
	pthread_mutex_lock(&e->ctx->lock);
	e->revoked = false;
	pthread_mutex_unlock(&e->ctx->lock);
}

int pinl_exporter_invalidate(struct pinl_exporter *e, uint64_t offset, uint64_t length)
{
	PL_CALL(call);

	if (!pl_alive(e->ctx))
		return pl_stale();
	if (!length || offset > e->length || length > e->length - offset)
		return pinl_set_error(-EINVAL, "%lu bytes at %lu are not inside of %s, which has %lu",
				      (unsigned long)length, (unsigned long)offset, e->name,
				      (unsigned long)e->length);
	return recall(e, offset, offset + length);
}

/* ctx->lock held. */
static void await_calls(struct pinl_exporter *e)
{
	while (e->calls)
		pthread_cond_wait(&e->ctx->ended, &e->ctx->lock);
}

/* Nobody finds it any more, nobody is in its ops. */
static void take_out(struct pinl_exporter *e)
{
	struct pinl_ctx *ctx = e->ctx;

	pthread_mutex_lock(&ctx->lock);
	for (struct pinl_exporter **p = &ctx->exporters; *p; p = &(*p)->next)
		if (*p == e) {
			*p = e->next;
			break;
		}
	await_calls(e);
	pthread_mutex_unlock(&ctx->lock);
	if (e->ops.release)
		e->ops.release(e->arg);
	pl_exporter_put(e);
}

void pinl_exporter_unregister(struct pinl_exporter *e)
{
	PL_CALL(call);

	if (!e || !pl_alive(e->ctx))
		return;
	pthread_mutex_lock(&e->ctx->lock);
	e->revoked = true;
	await_calls(e); /* what is imported now is recalled, however long it takes */
	pthread_mutex_unlock(&e->ctx->lock);
	recall(e, 0, e->length);
	pthread_mutex_lock(&e->ctx->lock);
	e->gone = true;
	pthread_mutex_unlock(&e->ctx->lock);
	take_out(e);
}

void pl_exporters_end(struct pinl_ctx *ctx)
{
	while (ctx->exporters)
		take_out(ctx->exporters);
}
