/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Orphans: pages a device still has although file or mapping let them go. Never silent (I5): an event
 * when found, an event with what the device wrote there when released, a line in the exit summary.
 *
 * What was written is found by comparing the device's pages with a copy taken when the orphan was
 * found; so bytes written between the change and its discovery count as content, not as written.
 *
 * All orphans of a lease end together. So their records and copies share mappings, which are few however
 * many orphans there are: the program has no more than vm.max_map_count either.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "core/foreign.h"

#define STEP  (64ul << 10)
#define BLOCK 512ul
#define PAGE  4096ul
#define POOL  (1ul << 20) /* a mapping for more than one orphan has at most so much */
#define UNIT  64ul

struct pl_pool {
	struct pl_pool *next;
	size_t len, used;
};

/* Twice the size of the one before, until they are large enough. */
static struct pl_pool *pool_more(struct pinl_lease *l, size_t need)
{
	size_t len = l->more->pool ? 2 * l->more->pool->len : PAGE;
	struct pl_pool *p;

	if (len > POOL)
		len = POOL;
	if (len < UNIT + need)
		len = (UNIT + need + PAGE - 1) & ~(PAGE - 1);
	p = pl_buffer(len);
	if (!p)
		return NULL;
	*p = (struct pl_pool){.next = l->more->pool, .len = len, .used = UNIT};
	pl_more(l)->pool = p;
	return p;
}

static void *pool_get(struct pinl_lease *l, size_t len)
{
	struct pl_pool *p = l->more->pool;
	char *at;

	len = (len + UNIT - 1) & ~(UNIT - 1);
	if (!p || p->len - p->used < len)
		p = pool_more(l, len);
	if (!p)
		return NULL;
	at = (char *)p + p->used;
	p->used += len;
	return at;
}

static void pool_free(struct pl_pool *p)
{
	for (struct pl_pool *next; p; p = next) {
		next = p->next;
		munmap(p, p->len);
	}
}

/* What the device wrote before it was heard of is not known, so of what is heard of late nothing is. */
static bool is_baseline(struct pinl_lease *l, const struct pl_recall *lost, size_t off, void *to)
{
	size_t len = lost->va.end - lost->va.start;

	return !lost->lost_ns && !l->dev->ops.read(l->dev->priv, &l->dm, off, len, to);
}

static uint64_t since(const struct pl_recall *lost)
{
	return lost->lost_ns ? lost->lost_ns : pl_clock_ns();
}

/* NULL: no memory. */
static struct pl_orphan *record(struct pinl_lease *l, const struct pl_recall *lost)
{
	size_t len = lost->va.end - lost->va.start, off = lost->va.start - l->m.start;
	struct pl_orphan *o = pool_get(l, sizeof *o + len);

	if (!o)
		return NULL;
	*o = (struct pl_orphan){.node = {.start = lost->va.start, .end = lost->va.end},
				.va = lost->va,
				.op = lost->op,
				.since_ns = since(lost),
				.actor = lost->actor_pid,
				.baseline = o + 1};
	if (!is_baseline(l, lost, off, o->baseline))
		o->baseline = NULL;
	return o;
}

/* The first part of the range that isn't known yet: bytes are counted once. False: there is none. */
static bool first_unknown(const struct pinl_lease *l, struct pl_range *va)
{
	const struct pl_node *n;

	while (va->start < va->end && (n = pl_index_first(&l->more->known, va->start, va->end))) {
		if (n->start > va->start)
			va->end = n->start;
		else
			va->start = n->end;
	}
	return va->start < va->end;
}

/* Found and said, but there was no memory to remember it by: what the device writes there isn't known.
 */
static void unrecorded(struct pinl_lease *l, const struct pl_recall *lost)
{
	struct pl_orphan *o = &pl_more(l)->unrecorded;

	if (o->va.start == o->va.end)
		*o = (struct pl_orphan){
			.op = lost->op, .since_ns = since(lost), .actor = lost->actor_pid};
	pl_range_widen(&o->va, &lost->va);
}

static void begin(struct pinl_lease *l, const struct pl_recall *lost)
{
	struct pl_orphan *o = record(l, lost);
	struct pinl_ctx *ctx = l->ctx;
	struct pinl_event ev;

	pl_event_lease(l, PINL_EV_ORPHAN, lost, &ev);
	pthread_mutex_lock(&ctx->lock);
	if (o) {
		o->next = l->more->orphans;
		pl_more(l)->orphans = o;
		pl_index_insert(&pl_more(l)->known, &o->node);
	} else {
		unrecorded(l, lost);
	}
	ctx->counters.orphans++;
	ctx->counters.orphan_bytes += lost->va.end - lost->va.start;
	pl_more(l)->orphan_bytes += lost->va.end - lost->va.start;
	if (l->dev->foreign)
		l->dev->foreign->orphan(l, lost, since(lost));
	pthread_mutex_unlock(&ctx->lock);
	pl_event_push(ctx, &ev);
}

/* What of it is known is older than was known. */
static void predate(struct pinl_lease *l, const struct pl_recall *lost)
{
	struct pl_node *n = pl_index_first(&l->more->known, lost->va.start, lost->va.end);

	for (; lost->lost_ns && n; n = pl_index_next(n, lost->va.start, lost->va.end)) {
		struct pl_orphan *o = (struct pl_orphan *)n;

		if (o->since_ns > lost->lost_ns) {
			o->since_ns = lost->lost_ns;
			o->baseline = NULL;
		}
	}
}

void pl_orphan_begin(struct pinl_lease *l, const struct pl_recall *given)
{
	struct pl_recall lost = *given;

	predate(l, given);
	if (l->more->stage && (lost.op == PINL_OP_COLLAPSE || lost.op == PINL_OP_INSERT))
		pl_stage_cut(l->more->stage, lost.va.start - l->m.start, lost.va.end - lost.va.start);
	while (first_unknown(l, &lost.va)) {
		begin(l, &lost);
		lost.va = (struct pl_range){lost.va.end, given->va.end};
	}
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
			 "lease %lu: %lu bytes that device %s wrote to its copy of file %u:%u inode %lu "
			 "have no place in the file any more",
			 (unsigned long)l->id, (unsigned long)bytes, l->dev->given->name,
			 major(l->on->mem.dev), minor(l->on->mem.dev), (unsigned long)l->on->mem.ino);
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

/* `now`: room for STEP. */
static int compare(struct pinl_lease *l, const struct pl_orphan *o, char *now, struct written *w)
{
	size_t len = o->va.end - o->va.start, off = o->va.start - l->m.start;
	const char *old = o->baseline;
	int err = now ? 0 : -ENOMEM;

	for (size_t at = 0; at < len && !err; at += STEP) {
		size_t n = len - at < STEP ? len - at : STEP;

		err = l->dev->ops.read(l->dev->priv, &l->dm, off + at, n, now);
		for (size_t i = 0; !err && i < n; i += BLOCK)
			if (memcmp(now + i, old + at + i, BLOCK))
				count(now + i, old + at + i, at + i, w);
	}
	return err;
}

static const char *op_words(enum pinl_op op)
{
	return op < PINL_OP_NR ? pinl_op_name(op) : "a change nobody told of";
}

/* ctx->lock held */
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
	n = ctx->n_summary++;
	if (n < PL_MAX_SUMMARY) {
		line = ctx->summary[n];
		if (l->on->mem.ino)
			snprintf(line, sizeof ctx->summary[n],
				 "lease %lu: after %s device %s still had bytes %lu-%lu of file %u:%u "
				 "inode %lu for %.1f ms; %s",
				 (unsigned long)l->id, op_words(o->op), l->dev->given->name,
				 (unsigned long)ev->file_start, (unsigned long)ev->file_end,
				 major(l->on->mem.dev), minor(l->on->mem.dev),
				 (unsigned long)l->on->mem.ino, ev->waited_ns / 1e6, what);
		else
			snprintf(line, sizeof ctx->summary[n],
				 "lease %lu: after %s device %s still had [%#lx, %#lx) for %.1f ms; %s",
				 (unsigned long)l->id, op_words(o->op), l->dev->given->name,
				 (unsigned long)o->va.start, (unsigned long)o->va.end,
				 ev->waited_ns / 1e6, what);
	}
	ctx->counters.orphan_bytes_written += w->bytes;
}

static void end_one(struct pinl_lease *l, const struct pl_orphan *o, char *room)
{
	struct pl_recall r = {.va = o->va, .op = o->op, .actor_pid = o->actor};
	struct written w = {0, 0};
	struct pinl_event ev;

	pl_event_lease(l, PINL_EV_ORPHAN_END, &r, &ev);
	ev.err = o->baseline ? compare(l, o, room, &w) : -EOPNOTSUPP;
	ev.bytes = w.bytes;
	ev.time_ns = pl_clock_ns();
	ev.waited_ns = ev.time_ns - o->since_ns;
	pthread_mutex_lock(&l->ctx->lock);
	summary_line(l, o, &ev, &w);
	pthread_mutex_unlock(&l->ctx->lock);
	pl_event_push(l->ctx, &ev);
}

/* What was written there is not known any more: the device is off it. */
void pl_orphan_past(struct pinl_lease *l, const struct pl_recall *lost, uint64_t since_ns,
		    uint64_t until_ns)
{
	struct pl_orphan o = {.va = lost->va, .op = lost->op, .actor = lost->actor_pid};
	struct written w = {0, 0};
	struct pinl_event ev;

	l->ctx->counters.orphans++;
	l->ctx->counters.orphan_bytes += lost->va.end - lost->va.start;
	pl_event_lease(l, PINL_EV_ORPHAN, lost, &ev);
	pl_event_push(l->ctx, &ev);
	pl_event_lease(l, PINL_EV_ORPHAN_END, lost, &ev);
	ev.err = -EOPNOTSUPP;
	ev.bytes = 0;
	ev.waited_ns = until_ns - since_ns;
	summary_line(l, &o, &ev, &w);
	pl_event_push(l->ctx, &ev);
}

static struct pl_orphan *oldest_first(struct pl_orphan *list)
{
	struct pl_orphan *oldest = NULL, *next;

	for (; list; list = next) {
		next = list->next;
		list->next = oldest;
		oldest = list;
	}
	return oldest;
}

void pl_orphan_end(struct pinl_lease *l)
{
	struct pl_orphan *list, without;
	struct pl_more *more;
	struct pl_pool *pool;
	char *room;

	if (!pl_has_more(l))
		return;
	more = pl_more(l);
	pthread_mutex_lock(&l->ctx->lock);
	list = more->orphans;
	without = more->unrecorded;
	pool = more->pool;
	more->orphans = NULL;
	more->known.root = NULL;
	more->pool = NULL;
	more->unrecorded.va = (struct pl_range){0, 0};
	if (l->dev->foreign && more->orphan_bytes)
		l->dev->foreign->orphan(l, NULL, 0);
	more->orphan_bytes = 0;
	pthread_mutex_unlock(&l->ctx->lock);
	room = list ? pl_buffer(STEP) : NULL;
	for (list = oldest_first(list); list; list = list->next)
		end_one(l, list, room);
	if (without.va.start < without.va.end)
		end_one(l, &without, NULL);
	if (room)
		munmap(room, STEP);
	pool_free(pool);
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

		if (l->more->orphan_bytes && n++ < PL_MAX_SUMMARY)
			dprintf(fd,
				"pinlease: lease %lu ends with the process: device %s still has %lu "
				"orphaned bytes in [%#lx, %#lx)\n",
				(unsigned long)l->id, l->dev->given->name,
				(unsigned long)l->more->orphan_bytes, (unsigned long)l->m.start,
				(unsigned long)l->m.end);
	}
	pthread_mutex_unlock(&ctx->lock);
	if (n > PL_MAX_SUMMARY)
		dprintf(fd, "pinlease: and %d more leases with orphaned bytes\n", n - PL_MAX_SUMMARY);
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
