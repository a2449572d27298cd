/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The generation source: what the core calls. See generation.h. */
#include "source/generation.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <pinlease/device.h>

#include "core/ctx.h"
#include "os/thread.h"
#include "os/wake.h"
#include "proto/messages.h"
#include "source/sources.h"

#define PAGE   4096ul
#define OPEN_S 60 /* the first one on a machine has the programs loaded */

/* ---------------------------------------------------------------------------------- open, close -- */

int pl_generation_reserve(struct pl_generation *g)
{
	size_t len = g->counts_len + g->ring_len;
	void *at = mmap(g->at, len, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (g->at ? MAP_FIXED : 0), -1, 0);

	if (at == MAP_FAILED)
		return -errno;
	madvise(at, len, MADV_DONTFORK);
	g->at = at;
	g->counts = at;
	pl_generation_ring_at(&g->ring, (char *)at + g->counts_len);
	return 0;
}

static void generation_free(struct pl_generation *g)
{
	if (g->kick >= 0)
		close(g->kick);
	if (g->at)
		munmap(g->at, g->counts_len + g->ring_len);
	pthread_cond_destroy(&g->done);
	pthread_mutex_destroy(&g->lock);
	pthread_mutex_destroy(&g->recent.lock);
	free(g);
}

static void stop(struct pl_generation *g)
{
	atomic_store(&g->stop, true);
	pl_wake(g->kick);
	pthread_join(g->thread, NULL);
}

/* Until pinleased has said something, or for a minute. */
static int await(struct pl_generation *g)
{
	struct timespec until;
	struct pl_waiting w;
	int err = 0;

	pl_call_wait_begin(&w);
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += OPEN_S;
	pthread_mutex_lock(&g->lock);
	while (!g->answered && err != ETIMEDOUT)
		err = pthread_cond_timedwait(&g->done, &g->lock, &until);
	err = g->answered ? g->err : -ETIMEDOUT;
	pthread_mutex_unlock(&g->lock);
	pl_call_wait_end(&w);
	if (!err)
		return 0;
	if (err == -ENOENT || err == -ECONNREFUSED)
		return pinl_set_error(
			-EOPNOTSUPP,
			"no pinleased at %s, which has the kernel count changes: start it "
			"(systemctl enable --now pinleased.socket), or say by $" PL_PROTO_ENV
			" where it listens",
			g->path);
	if (*g->text) /* an optional source's lack of something doesn't end the context */
		return pinl_set_error(-EOPNOTSUPP, "pinleased at %s: %s", g->path, g->text);
	return pinl_set_error(err, "pinleased at %s doesn't count changes: %s", g->path, strerror(-err));
}

static void init(struct pl_generation *g, struct pinl_ctx *ctx, const struct pl_generation_given *given)
{
	const char *path = secure_getenv(PL_PROTO_ENV);
	pthread_condattr_t attr;

	g->ctx = ctx;
	g->given = given;
	g->sock = g->ring_fd = g->map_fd[0] = g->map_fd[1] = -1;
	g->counts_len = (sizeof *g->counts + PAGE - 1) & ~(PAGE - 1);
	g->ring_len = 2 * PAGE + 2 * GENERATION_RING;
	snprintf(g->path, sizeof g->path, "%s", path && *path ? path : PL_PROTO_PATH);
	pthread_mutex_init(&g->lock, NULL);
	pthread_mutex_init(&g->recent.lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&g->done, &attr);
	pthread_condattr_destroy(&attr);
	g->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

static int start(struct pl_generation *g)
{
	int err = g->kick < 0 ? -errno : 0;

	if (!err && !g->given)
		err = pl_generation_reserve(g);
	if (!err && g->given) {
		g->counts = g->given->counts;
		pl_generation_ring_at(&g->ring, g->given->ring);
	}
	if (!err)
		err = pl_thread_start(&g->thread, pl_generation_link, g);
	if (err)
		return pinl_set_error(err,
				      "no descriptor, memory or thread for the generation source: %s",
				      strerror(-err));
	err = await(g);
	if (err)
		stop(g);
	return err;
}

static int generation_open(struct pinl_ctx *ctx, const void *arg, void **src)
{
	struct pl_generation *g = calloc(1, sizeof *g);
	int err;

	if (!g)
		return pinl_set_error(-ENOMEM, "out of memory for the generation source");
	init(g, ctx, arg);
	err = start(g);
	if (err) {
		generation_free(g);
		return err;
	}
	pl_counting_set(ctx, &pl_generation_ops);
	pl_counts_set(ctx, (struct pl_counts *)&g->counts->told);
	*src = g;
	return 0;
}

_Static_assert(offsetof(struct generation_counts, applied) ==
			       offsetof(struct generation_counts, told) +
				       offsetof(struct pl_counts, applied) &&
		       sizeof(struct pl_counts) == 16,
	       "what lookups compare lies side by side");

static void generation_close(void *src)
{
	struct pl_generation *g = src;

	stop(g);
	pl_counts_set(g->ctx, NULL);
	generation_free(g);
}

/* --------------------------------------------------------------------------------------- watching -- */

static unsigned generation_coverage(void *src, const struct pinl_memory *mem, enum pinl_op op)
{
	struct pl_generation *g = src;

	if (!atomic_load(&g->live))
		return 0;
	if (op == PINL_OP_FREE && !(g->counts->seen & 1u << GENERATION_FREE))
		return 0;
	return pl_op_effect(op, mem->kind, mem->shared, false) == PL_NO_EFFECT ? 0 : PINL_CAN_TELL;
}

static int generation_watch(void *src, const struct pinl_memory *mem)
{
	pl_generation_watch(src, mem->start, mem->end);
	return 0;
}

static void generation_unwatch(void *src, const struct pinl_memory *mem)
{
	pl_generation_unwatch(src, mem->start, mem->end);
}

static int generation_pending(void *src)
{
	struct pl_generation *g = src;

	return pl_counts_behind(g->ctx);
}

static int generation_going(void *src, uintptr_t start, uintptr_t end, int look)
{
	return pl_generation_going(src, start, end, look);
}

static void generation_look(void *src)
{
	struct pl_generation *g = src;

	if (pl_counts_behind(g->ctx))
		pl_wake(g->kick);
}

static int generation_whole(void *src, const struct pinl_memory *mem)
{
	return pl_generation_watch_whole(src, mem->vma_start, mem->vma_end);
}

static const char *generation_away(void *src)
{
	struct pl_generation *g = src;

	return atomic_load(&g->live)
		       ? NULL
		       : "pinleased, which had changes counted, has ended, and none has begun "
			 "again yet";
}

const struct pinl_source_ops pl_generation_ops = {
	.size = sizeof pl_generation_ops,
	.name = "generation",
	.open = generation_open,
	.close = generation_close,
	.coverage = generation_coverage,
	.watch = generation_watch,
	.unwatch = generation_unwatch,
	.pending = generation_pending,
	.going = generation_going,
	.look = generation_look,
	.whole = generation_whole,
	.away = generation_away,
};
