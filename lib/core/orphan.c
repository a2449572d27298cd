/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Orphans: pages a device still has although file or mapping let them go. Never silent (I5): an event
 * when found, an event with what the device wrote there when released, a line in the exit summary.
 *
 * What was written is found by comparing the device's pages with a copy taken when the orphan was
 * found; so bytes written between the change and its discovery count as content, not as written.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/ctx.h"

#define STEP  (64ul << 10)
#define BLOCK 512ul

/*
 * Shared, so that it is never merged into a mapping of the application's: that one may be watched, and
 * then unmapping this would wait for a source, which may be waiting for the lease that is busy here.
 */
static char *buffer(size_t len)
{
	void *map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	return map == MAP_FAILED ? NULL : map;
}

/* A hole that the device is to get pages of its own at, soon: not to be filled by a buffer. */
static void *keep_free(const struct pl_range *va)
{
	size_t len = va->end - va->start;
	void *map = mmap((void *)va->start, len, PROT_NONE,
			 MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);

	if (map == MAP_FAILED)
		return NULL;
	if ((uintptr_t)map == va->start)
		return map;
	munmap(map, len);
	return NULL;
}

static char *buffer_beside(const struct pl_range *va)
{
	void *kept = keep_free(va);
	char *map = buffer(va->end - va->start);

	if (kept)
		munmap(kept, va->end - va->start);
	return map;
}

static void *snapshot(struct pinl_lease *l, const struct pl_range *va)
{
	size_t len = va->end - va->start, off = va->start - l->m.start;
	char *copy = buffer_beside(va);

	if (!copy)
		return NULL;
	if (l->dev->ops.read(l->dev->priv, &l->dm, off, len, copy)) {
		munmap(copy, len);
		return NULL;
	}
	return copy;
}

static bool known(const struct pinl_lease *l, const struct pl_range *va)
{
	for (int i = 0; i < l->n_orphans; i++)
		if (l->orphans[i].va.start <= va->start && l->orphans[i].va.end >= va->end)
			return true;
	return false;
}

/* Cut off what is known already at either end, so that bytes are counted once. */
static void cut_known(const struct pinl_lease *l, struct pl_range *va)
{
	for (int i = 0; i < l->n_orphans; i++) {
		const struct pl_range *k = &l->orphans[i].va;

		if (k->start <= va->start && k->end > va->start)
			va->start = k->end < va->end ? k->end : va->end;
		else if (k->end >= va->end && k->start < va->end)
			va->end = k->start;
	}
}

void pl_orphan_begin(struct pinl_lease *l, const struct pl_recall *given)
{
	struct pl_recall lost = *given;
	struct pinl_ctx *ctx = l->ctx;
	struct pinl_event ev;
	void *baseline;

	if (l->stage && (lost.op == PINL_OP_COLLAPSE || lost.op == PINL_OP_INSERT))
		pl_stage_cut(l->stage, lost.va.start - l->m.start, lost.va.end - lost.va.start);
	if (known(l, &lost.va))
		return;
	cut_known(l, &lost.va);
	if (l->n_orphans ==
	    PL_MAX_ORPHANS) /* the first ones can't be told apart any more: report them now */
		pl_orphan_end(l);
	baseline = snapshot(l, &lost.va);
	pl_event_lease(l, PINL_EV_ORPHAN, &lost, &ev);
	pthread_mutex_lock(&ctx->lock);
	l->orphans[l->n_orphans++] =
		(struct pl_orphan){lost.va, lost.op, pl_clock_ns(), lost.actor_pid, baseline};
	ctx->counters.orphans++;
	ctx->counters.orphan_bytes += lost.va.end - lost.va.start;
	pthread_mutex_unlock(&ctx->lock);
	pl_event_push(ctx, &ev);
}

/* What a staged device wrote and the file has no page for: the copy is all there is of it. */
void pl_orphan_unwritten(struct pinl_lease *l, const struct pl_recall *why, uint64_t bytes)
{
	struct pinl_ctx *ctx = l->ctx;
	struct pinl_event ev;
	int n;

	pl_event_lease(l, PINL_EV_ORPHAN, why, &ev);
	ev.bytes = bytes;
	ev.err = -ENODATA;
	pthread_mutex_lock(&ctx->lock);
	ctx->counters.orphans++;
	ctx->counters.orphan_bytes += bytes;
	ctx->counters.orphan_bytes_written += bytes;
	n = ctx->n_summary++;
	if (n < PL_MAX_SUMMARY)
		snprintf(ctx->summary[n], sizeof ctx->summary[n],
			 "lease %lu: %lu bytes that device %s wrote to its copy of file %lu:%lu have no "
			 "place in the file any more",
			 (unsigned long)l->id, (unsigned long)bytes, l->dev->given->name,
			 (unsigned long)l->mem.dev, (unsigned long)l->mem.ino);
	pthread_mutex_unlock(&ctx->lock);
	pl_event_push(ctx, &ev);
}

struct written {
	uint64_t bytes, first;
};

/* Most of it is equal: byte by byte only where it isn't. */
static void count(const char *now, const char *old, size_t at, struct written *w)
{
	for (size_t i = 0; i < BLOCK; i++)
		if (now[i] != old[i] && !w->bytes++)
			w->first = at + i;
}

static int compare(struct pinl_lease *l, const struct pl_orphan *o, struct written *w)
{
	size_t len = o->va.end - o->va.start, off = o->va.start - l->m.start;
	const char *old = o->baseline;
	char *now = buffer(STEP);
	int err = now ? 0 : -ENOMEM;

	if (err)
		return err;
	for (size_t at = 0; at < len && !err; at += STEP) {
		size_t n = len - at < STEP ? len - at : STEP;

		err = l->dev->ops.read(l->dev->priv, &l->dm, off + at, n, now);
		for (size_t i = 0; !err && i < n; i += BLOCK)
			if (memcmp(now + i, old + at + i, BLOCK))
				count(now + i, old + at + i, at + i, w);
	}
	munmap(now, STEP);
	return err;
}

static const char *op_words(enum pinl_op op)
{
	return op < PINL_OP_NR ? pinl_op_name(op) : "a change nobody told of";
}

static void summary_line(struct pinl_lease *l, const struct pl_orphan *o, const struct pinl_event *ev,
			 const struct written *w)
{
	struct pinl_ctx *ctx = l->ctx;
	char *line, what[96];
	int n;

	if (ev->err)
		snprintf(what, sizeof what, "what it wrote there is not known");
	else
		snprintf(what, sizeof what, "it changed %lu bytes there since it was found",
			 (unsigned long)w->bytes);
	pthread_mutex_lock(&ctx->lock);
	n = ctx->n_summary++;
	if (n < PL_MAX_SUMMARY) {
		line = ctx->summary[n];
		if (l->mem.ino)
			snprintf(line, sizeof ctx->summary[n],
				 "lease %lu: after %s device %s still had bytes %lu-%lu of file %lu:%lu "
				 "for %.1f ms; %s",
				 (unsigned long)l->id, op_words(o->op), l->dev->given->name,
				 (unsigned long)ev->file_start, (unsigned long)ev->file_end,
				 (unsigned long)l->mem.dev, (unsigned long)l->mem.ino,
				 ev->waited_ns / 1e6, what);
		else
			snprintf(line, sizeof ctx->summary[n],
				 "lease %lu: after %s device %s still had [%#lx, %#lx) for %.1f ms; %s",
				 (unsigned long)l->id, op_words(o->op), l->dev->given->name,
				 (unsigned long)o->va.start, (unsigned long)o->va.end,
				 ev->waited_ns / 1e6, what);
	}
	ctx->counters.orphan_bytes_written += w->bytes;
	pthread_mutex_unlock(&ctx->lock);
}

static void end_one(struct pinl_lease *l, struct pl_orphan *o)
{
	struct pl_recall r = {.va = o->va, .op = o->op, .actor_pid = o->actor};
	struct written w = {0, 0};
	struct pinl_event ev;

	pl_event_lease(l, PINL_EV_ORPHAN_END, &r, &ev);
	ev.err = o->baseline ? compare(l, o, &w) : -EOPNOTSUPP;
	ev.bytes = w.bytes;
	ev.time_ns = pl_clock_ns();
	ev.waited_ns = ev.time_ns - o->since_ns;
	summary_line(l, o, &ev, &w);
	pl_event_push(l->ctx, &ev);
	if (o->baseline)
		munmap(o->baseline, o->va.end - o->va.start);
}

void pl_orphan_end(struct pinl_lease *l)
{
	struct pl_orphan ended[PL_MAX_ORPHANS];
	int n;

	pthread_mutex_lock(&l->ctx->lock);
	n = l->n_orphans;
	memcpy(ended, l->orphans, sizeof ended);
	l->n_orphans = 0;
	pthread_mutex_unlock(&l->ctx->lock);
	for (int i = 0; i < n; i++)
		end_one(l, &ended[i]);
}

/* What is still out when the process ends. Exit doesn't wait for a lock. */
static void summary_of_live(struct pinl_ctx *ctx, int fd)
{
	struct pl_node *node;
	int n = 0;

	if (pthread_mutex_trylock(&ctx->lock))
		return;
	for (node = pl_index_first(&ctx->index, 0, UINTPTR_MAX); node;
	     node = pl_index_next(node, 0, UINTPTR_MAX)) {
		const struct pinl_lease *l = (const struct pinl_lease *)node;

		for (int i = 0; i < l->n_orphans && n++ < PL_MAX_SUMMARY; i++)
			dprintf(fd,
				"pinlease: lease %lu ends with the process: device %s still has %lu "
				"orphaned bytes at %#lx\n",
				(unsigned long)l->id, l->dev->given->name,
				(unsigned long)(l->orphans[i].va.end - l->orphans[i].va.start),
				(unsigned long)l->orphans[i].va.start);
	}
	pthread_mutex_unlock(&ctx->lock);
	if (n > PL_MAX_SUMMARY)
		dprintf(fd, "pinlease: and more leases with orphaned bytes\n");
}

void pl_orphan_summary(struct pinl_ctx *ctx)
{
	int n = ctx->n_summary, shown = n < PL_MAX_SUMMARY ? n : PL_MAX_SUMMARY,
	    fd = ctx->opts.summary_fd;

	if (fd < 0)
		return;
	summary_of_live(ctx, fd);
	if (!n)
		return;
	dprintf(fd, "pinlease: %d orphan%s in this process:\n", n, n == 1 ? "" : "s");
	for (int i = 0; i < shown; i++)
		dprintf(fd, "pinlease:   %s\n", ctx->summary[i]);
	if (shown < n)
		dprintf(fd, "pinlease:   and %d more\n", n - shown);
}
