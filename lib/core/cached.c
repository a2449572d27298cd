/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the core does for the registration cache: it passes changes on, and says what it can't know. */
#include <errno.h>

#include "core/cached.h"

/*
 * Under KEEP and REFUSE an idle registration goes out of the cache and then off the device, and there is
 * nothing to report: no transfer of the holder's is lost with it. A recall goes its way, as the device
 * has the pages still; the cache answers it by ending the lease.
 */
bool pl_cached_changed(struct pinl_lease *l)
{
	bool idle = l->cached->changed(l->cached, false) &&
		    (l->policy.kind == PINL_KEEP || l->policy.kind == PINL_REFUSE);

	if (idle)
		atomic_store(&l->idle, true);
	return idle;
}

bool pl_cached_unused(struct pinl_lease *l)
{
	bool unused = l->cached && l->cached->changed(l->cached, true);

	if (unused)
		atomic_store(&l->idle, true);
	return unused;
}

void pl_cached_used(struct pinl_lease *l)
{
	atomic_store(&l->idle, false);
}

void pl_cached_part(struct pinl_lease *l)
{
	pthread_mutex_lock(&l->ctx->lock);
	l->cached = NULL;
	pthread_mutex_unlock(&l->ctx->lock);
}

int pl_say_in_use(const struct pl_range *range, uint64_t lease_id)
{
	return pinl_set_error(
		-EBUSY,
		"part of [%#lx, %#lx) is registered by this device's cache until lease %lu ends, which "
		"is in use, and SCRATCH or COPY of one would take the memory from under the other; "
		"pinl_put() what was found before, or use FAIL",
		range->start, range->end, (unsigned long)lease_id);
}

uint64_t pl_round_next(struct pinl_ctx *ctx)
{
	return (atomic_load(&ctx->round) + 3) & ~1ull;
}

/* Other sources have no rounds: while one of them is at it, nothing is known. */
bool pl_round_is_over(struct pinl_ctx *ctx, uint64_t round)
{
	return atomic_load(&ctx->round) >= round && !atomic_load(&ctx->unmarked);
}

void pl_cached_look(struct pinl_ctx *ctx)
{
	if (atomic_load(&ctx->sequence) & 1) /* a source is at it */
		return;
	for (int i = 0; i < ctx->n_sources; i++) {
		const struct pl_source *s = &ctx->sources[i];

		if (s->ops->size > offsetof(struct pinl_source_ops, look) && s->ops->look)
			s->ops->look(s->priv);
	}
}

bool pl_cached_going(struct pinl_ctx *ctx, const struct pl_range *range, bool look)
{
	for (int i = 0; i < ctx->n_sources; i++) {
		const struct pl_source *s = &ctx->sources[i];

		if (s->ops->size > offsetof(struct pinl_source_ops, going) && s->ops->going &&
		    s->ops->going(s->priv, range->start, range->end, look))
			return true;
	}
	return false;
}
