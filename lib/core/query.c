/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Questions about one lease. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/export.h"
#include "core/text.h"

static bool pending(const struct pinl_lease *l)
{
	for (int i = 0; i < l->ctx->n_sources; i++) {
		const struct pl_source *s = &l->ctx->sources[i];

		if ((l->on->watched & (1u << i)) && s->ops->pending && s->ops->pending(s->priv))
			return true;
	}
	return false;
}

/*
 * In this order: a source raises `changing` before it takes a report from the kernel, and lowers it when
 * the report is in the state. So what has been reported by now is pending, or changing, or in the state.
 */
int pinl_lease_check(struct pinl_lease *l)
{
	struct pinl_ctx *ctx = l->ctx;
	bool changing;

	if (!pl_alive(ctx))
		return pl_stale();
	changing = pending(l);
	changing |= atomic_load_explicit(&ctx->changing, memory_order_acquire) > 0;
	if (atomic_load(&l->changed))
		return -ESTALE;
	return changing ? -EAGAIN : 0;
}

void pl_lease_snapshot(const struct pinl_lease *l, struct pinl_lease_info *i)
{
	*i = (struct pinl_lease_info){
		.id = l->id,
		.owner = pl_lease_owner(l),
		.owner_thread = l->owner_thread,
		.caller = l->caller,
		.start = l->m.start,
		.end = l->m.end,
		.since_ns = l->since_ns,
		.age_ns = pl_clock_ns() - l->since_ns,
		.state = l->state,
		.outcome = l->outcome,
		.memory = l->on->mem.kind,
		.file_dev = l->more->import ? 0 : l->on->mem.dev,
		.file_ino = l->more->import ? 0 : l->on->mem.ino,
		.file_offset = l->on->mem.offset,
		.policy = l->policy,
		.flags = l->flags,
		.detached_bytes = (l->m.end - l->m.start) - pl_lease_live_bytes(l),
		.device = l->dev,
		.cookie = l->cookie,
		.stage = l->more->stage ? l->dm.start : 0,
		.detaching =
			pl_policy_relevant_ops(l->on->mem.kind, l->on->mem.shared, l->flags & PINL_PIN) |
			PINL_OPBIT(PINL_OP_GUARD),
		.device_class = l->dev->info.device_class,
	};
	i->orphan_bytes = l->more->orphan_bytes;
	memcpy(i->coverage, l->on->coverage, sizeof l->on->coverage);
	for (int op = 0; op < PINL_OP_NR; op++)
		i->supervised[op] = l->on->coverage[op] | (l->on->supervised[op] & ~PL_ALL_OTHERS);
	if (l->more->import)
		memcpy(i->exporter, l->more->import->exporter->name, sizeof i->exporter);
	if (l->more->import && l->more->import->by_handle)
		i->detaching = 0;
	strncpy(i->device_kind, l->dev->given->name, sizeof i->device_kind - 1);
}

int pinl_lease_info(struct pinl_lease *l, struct pinl_lease_info *out)
{
	PL_CALL(call);
	struct pinl_ctx *ctx = l->ctx;
	size_t size = out->size;
	struct pinl_lease_info i;

	if (!pl_alive(ctx))
		return pl_stale();
	if (size < 2 * sizeof(size_t))
		return pinl_set_error(-EINVAL,
				      "pinl_lease_info.size must be sizeof(struct pinl_lease_info)");
	pthread_mutex_lock(&ctx->lock);
	pl_lease_snapshot(l, &i);
	pthread_mutex_unlock(&ctx->lock);
	i.size = size;
	memcpy(out, &i, size < sizeof i ? size : sizeof i);
	return 0;
}

int pinl_lease_describe(struct pinl_lease *l, char *buf, size_t len)
{
	PL_CALL(call);
	char text[2048];

	if (!pl_alive(l->ctx))
		return pl_stale();
	pthread_mutex_lock(&l->ctx->lock);
	pl_describe(l, text, sizeof text);
	pthread_mutex_unlock(&l->ctx->lock);
	return snprintf(buf, len, "%s", text);
}

/* Keep the worker off the lease while the caller's backend call runs. */
static enum pinl_state own(struct pinl_lease *l, struct pl_inside *in)
{
	enum pinl_state state;

	pl_inside_begin(l->ctx, in);
	pthread_mutex_lock(&l->ctx->lock);
	while (l->busy)
		pthread_cond_wait(pl_settled(l), &l->ctx->lock);
	l->busy = true;
	state = l->state;
	pthread_mutex_unlock(&l->ctx->lock);
	return state;
}

static void disown(struct pinl_lease *l, const struct pl_inside *in)
{
	struct pinl_change *answered = NULL;

	pthread_mutex_lock(&l->ctx->lock);
	l->busy = false;
	if (l->jobs)
		pl_job_add(l, 0);
	pl_settle(l->ctx, &answered);
	pthread_cond_broadcast(pl_settled(l));
	pthread_mutex_unlock(&l->ctx->lock);
	pl_answer_all(l->ctx, answered);
	pl_inside_end(l->ctx, in);
}

static int check_part(struct pinl_lease *l, uintptr_t start, uintptr_t end)
{
	if (!pl_alive(l->ctx))
		return pl_stale();
	if (start < l->m.start || end > l->m.end || start >= end)
		return pinl_set_error(-EINVAL, "[%#lx, %#lx) is not inside the lease", start, end);
	return 0;
}

static int check_bytes(struct pinl_lease *l, size_t offset, size_t len)
{
	size_t size = l->m.end - l->m.start;

	if (!pl_alive(l->ctx))
		return pl_stale();
	if (offset > size || len > size - offset)
		return pinl_set_error(-EINVAL, "%zu bytes at %zu are not inside the lease of %zu", len,
				      offset, size);
	return 0;
}

/* M8 */
static int say_import(const char *what)
{
	return pinl_set_error(-EOPNOTSUPP, "a lease of device memory can't be %s", what);
}

int pinl_lease_read(struct pinl_lease *l, size_t offset, size_t len, void *buf)
{
	PL_CALL(call);
	int err = check_bytes(l, offset, len);
	struct pl_inside in;

	if (err)
		return err;
	if (l->more->import)
		return say_import("read: its content is its exporter's");
	own(l, &in);
	err = l->dev->ops.read(l->dev->priv, &l->dm, offset, len, buf);
	disown(l, &in);
	return err;
}

int pinl_lease_sync(struct pinl_lease *l, size_t offset, size_t len, unsigned direction)
{
	PL_CALL(call);
	int err = check_bytes(l, offset, len);
	struct pl_inside in;

	if (err)
		return err;
	if (!direction || direction & ~(PINL_FOR_CPU | PINL_FOR_DEVICE))
		return pinl_set_error(-EINVAL, "direction %#x is not PINL_FOR_CPU or PINL_FOR_DEVICE",
				      direction);
	if (own(l, &in) == PINL_RELEASED)
		err = pinl_set_error(-ESTALE, "the lease has been taken back");
	else if (l->more->stage)
		err = pl_lease_sync(l, offset, len, direction);
	disown(l, &in);
	return err;
}

int pinl_device_protect(struct pinl_lease *l, uintptr_t start, uintptr_t end)
{
	PL_CALL(call);
	int err = check_part(l, start, end);
	struct pl_inside in;

	if (err)
		return err;
	if (l->more->import)
		return say_import("write-protected: no page of the kernel's is behind it");
	own(l, &in);
	err = l->dev->ops.protect(l->dev->priv, &l->dm, start + l->dm.start - l->m.start,
				  end + l->dm.start - l->m.start);
	disown(l, &in);
	return err;
}

int pinl_device_dirty(struct pinl_lease *l, uintptr_t start, uintptr_t end, uint8_t *dirty)
{
	PL_CALL(call);
	int err = check_part(l, start, end);
	struct pl_inside in;

	if (err)
		return err;
	if (l->more->import)
		return say_import(
			"asked for dirty pages: they mean nothing there, nothing is written back");
	own(l, &in);
	err = l->dev->ops.dirty(l->dev->priv, &l->dm, start + l->dm.start - l->m.start,
				end + l->dm.start - l->m.start, dirty);
	disown(l, &in);
	return err;
}
