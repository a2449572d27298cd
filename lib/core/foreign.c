/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Making leases of other processes, and taking their holders' answers; see foreign.h. */
#include "core/change.h"

#include <errno.h>
#include <unistd.h>

void pl_device_foreign(struct pinl_device *dev, const struct pl_foreign_ops *ops)
{
	dev->foreign = ops;
}

static void fill_memory(struct pinl_lease *l, const struct pl_foreign *f)
{
	pl_more(l)->ground.mem = (struct pinl_memory){
		.kind = f->kind,
		.start = f->start,
		.end = f->end,
		.vma_start = f->start,
		.vma_end = f->end,
		.dev = f->file->st_dev,
		.ino = f->file->st_ino,
		.offset = f->offset,
		.fs_magic = f->fs_magic,
		.fd = f->fd,
		.shared = f->shared,
		.writable = (f->flags & PINL_WRITE) != 0,
		.map_dev = f->file->st_dev,
	};
	pl_more(l)->owner = f->owner;
	l->owner_thread = f->owner_thread;
	l->since_ns = f->since_ns;
	l->cookie = f->cookie;
	pl_more(l)->resumed = f->resumed;
}

void pl_foreign_is_orphan(struct pinl_lease *l, const struct pl_foreign_orphan *o)
{
	struct pl_recall lost = {.va = {o->start, o->end},
				 .op = o->op,
				 .lost_ns = o->since_ns,
				 .actor_pid = o->actor_pid,
				 .source = "restart"};

	pthread_mutex_lock(&l->ctx->lock);
	pl_lost_add(l, &lost);
	pthread_mutex_unlock(&l->ctx->lock);
}

bool pl_foreign_known(struct pinl_ctx *ctx, uint64_t dev, uint64_t ino)
{
	struct pl_inode *i;
	bool known;

	pthread_mutex_lock(&ctx->lock);
	i = pl_inode_find(ctx, dev, ino);
	known = i && i->fd >= 0;
	pthread_mutex_unlock(&ctx->lock);
	return known;
}

int pl_foreign_lease(struct pinl_device *dev, const struct pl_foreign *f, struct pinl_lease **out)
{
	int err = pl_lease_args(f->start, f->end, f->flags, &f->policy);
	struct pinl_lease *l = NULL;

	if (!err && f->offset + (f->end - f->start) < f->offset)
		err = pinl_set_error(-EINVAL, "the range reaches beyond the largest file");
	if (!err && !(l = pl_lease_alloc(dev, f->start, f->end, f->flags, &f->policy)))
		err = pinl_set_error(-ENOMEM, "out of memory for a lease");
	if (err) {
		if (f->fd >= 0)
			close(f->fd);
		return err;
	}
	fill_memory(l, f);
	if (f->fd >= 0)
		err = pl_inode_of(l);
	else if (!pl_inode_known(l))
		err = pinl_set_error(-ENOENT, "no lease of the file is there any more");
	if (err) {
		pl_lease_free(l);
		return err;
	}
	err = pl_lease_start(l, NULL, NULL);
	if (!err)
		*out = l;
	return err;
}

/* Not beyond the first actor's ceiling, however many answers come. ctx->lock held. */
static void rearm(struct pinl_lease *l)
{
	uint64_t now = pl_clock_ns(), until = now + l->dev->foreign->grace(l, now);

	if (until > l->more->recall.ceiling_ns)
		until = l->more->recall.ceiling_ns;
	if (until > l->more->recall.deadline_ns)
		pl_recall_rearm(l, until);
}

uint64_t pl_foreign_deadline(const struct pinl_lease *l)
{
	uint64_t cut = l->more->recall.ceiling_ns + l->ctx->opts.ceiling_ms * 1000000ull;

	return l->more->stuck && cut < l->more->recall.deadline_ns ? cut : l->more->recall.deadline_ns;
}

/* The newest is the first of the list. */
const struct pinl_change *pl_foreign_waiter(const struct pinl_lease *l,
					    bool (*is)(const struct pinl_change *change))
{
	const struct pinl_change *oldest = NULL;
	struct pl_range va;

	for (const struct pinl_change *ch = l->ctx->held; ch; ch = ch->next)
		if (ch->recalled && !ch->over_ns && pl_lease_overlap(l, ch, &va) && is(ch))
			oldest = ch;
	return oldest;
}

/* ctx->lock held; in state NOTICED. */
static void answered(struct pinl_lease *l, uint64_t seq, const struct pl_range *va, bool whole,
		     enum pinl_outcome outcome)
{
	struct pl_more *more = pl_more(l);
	bool room = more->n_detached < PL_MAX_DETACHED;

	if (seq != more->recall.last_id &&
	    !whole) { /* he will answer the last one, too, and is not late */
		if (l->state == PINL_NOTICED)
			rearm(l);
		if (!l->busy && room)
			pl_lease_detach(l, va);
		return;
	}
	more->recall.quiesced = true;
	more->recall.part = !whole;
	more->recall.outcome = outcome;
	if (!whole)
		more->recall.va =
			room ? *va : (struct pl_range){0, 0}; /* a part too many: told of again */
	if (!whole && more->recall.va.start >= more->recall.va.end)
		more->followed = seq;
	pl_lease_input(l, PL_IN_QUIESCED);
}

int pl_foreign_answer(struct pinl_lease *l, uint64_t seq, const struct pl_range *va, bool whole,
		      enum pinl_outcome outcome)
{
	int err = 0;

	pthread_mutex_lock(&l->ctx->lock);
	if (l->state == PINL_NOTICED || (l->state == PINL_ACTIVE && l->more->stuck))
		answered(l, seq, va, whole, outcome);
	else
		err = -EALREADY;
	pthread_mutex_unlock(&l->ctx->lock);
	return err;
}

/* ctx->lock held. Some of it, of which nobody has to be told; the rest lives on. */
static void taken_in_part(struct pinl_lease *l, const struct pl_range *va)
{
	if (!l->busy && l->more->n_detached < PL_MAX_DETACHED)
		pl_lease_detach(l, va);
}

int pl_foreign_taken(struct pinl_lease *l, const struct pl_range *va, bool whole,
		     enum pinl_outcome outcome)
{
	int err = 0;

	pthread_mutex_lock(&l->ctx->lock);
	if (l->state == PINL_FORCING || l->state == PINL_RELEASED) {
		err = -EALREADY;
	} else if (!whole) {
		taken_in_part(l, va);
	} else {
		if (l->state == PINL_ACTIVE && !l->more->stuck) { /* a recall that began elsewhere */
			pl_more(l)->recall =
				(struct pl_recall){.va = {l->m.start, l->m.end}, .op = PINL_OP_NR};
			l->ctx->counters.notices++;
		}
		pl_more(l)->recall.quiesced = true;
		pl_more(l)->recall.part = false;
		pl_more(l)->recall.outcome = outcome;
		pl_lease_input(l, PL_IN_QUIESCED);
	}
	pthread_mutex_unlock(&l->ctx->lock);
	return err;
}

/* Nothing else of a foreign lease's event is an access. */
void pl_foreign_mark(const struct pinl_lease *l, const struct pl_recall *r, struct pinl_event *ev)
{
	ev->access = l->dev->foreign && !r->quiesced;
}

bool pl_foreign_outside(const struct pinl_event *ev)
{
	return ev->type == PINL_EV_FORCED && ev->access;
}

bool pl_foreign_busy(struct pinl_lease *l)
{
	bool busy;

	pthread_mutex_lock(&l->ctx->lock);
	busy = l->busy || l->queued || l->state == PINL_FORCING;
	pthread_mutex_unlock(&l->ctx->lock);
	return busy;
}

bool pl_foreign_released(struct pinl_lease *l)
{
	bool released;

	pthread_mutex_lock(&l->ctx->lock);
	released = l->state == PINL_RELEASED;
	pthread_mutex_unlock(&l->ctx->lock);
	return released;
}

void pl_foreign_killed(struct pinl_mapping *dm)
{
	pl_more((struct pinl_lease *)((char *)dm - offsetof(struct pinl_lease, dm)))->killed = true;
}

bool pl_foreign_lost(struct pinl_lease *l)
{
	bool lost;

	pthread_mutex_lock(&l->ctx->lock);
	lost = l->state == PINL_RELEASED || l->more->n_detached;
	pthread_mutex_unlock(&l->ctx->lock);
	return lost;
}
