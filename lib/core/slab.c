/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "core/slab.h"

#include <stdbool.h>
#include <stdint.h>

#include <string.h>

#include "os/chunk.h"

struct object {
	struct object *next;
};

/* At the beginning of each chunk. It is on the list while an object can be had from it. */
struct pl_slab_chunk {
	struct pl_slab_chunk *next, **prev;
	struct object *free;
	size_t used, fresh; /* objects out; from where on it was never used */
	size_t filled;	    /* up to there it has its pages, or they are huge */
};

#define FIRST 64
#define FILL  (64ul << 10)

static bool has_room(const struct pl_slab *s, const struct pl_slab_chunk *c)
{
	return c->free || c->fresh + s->size <= PL_CHUNK_SIZE;
}

static void link_chunk(struct pl_slab *s, struct pl_slab_chunk *c)
{
	c->next = s->room;
	c->prev = &s->room;
	if (c->next)
		c->next->prev = &c->next;
	s->room = c;
}

static void unlink_chunk(struct pl_slab_chunk *c)
{
	*c->prev = c->next;
	if (c->next)
		c->next->prev = c->prev;
}

void pl_slab_init(struct pl_slab *s, size_t size)
{
	pthread_mutex_init(&s->lock, NULL);
	s->size = (size + 63) & ~63ul;
}

void pl_slab_end(struct pl_slab *s)
{
	while (s->room) {
		struct pl_slab_chunk *c = s->room;

		unlink_chunk(c);
		pl_chunk_free(c);
	}
	pthread_mutex_destroy(&s->lock);
}

/* lock held. */
static struct pl_slab_chunk *chunk_new(struct pl_slab *s)
{
	struct pl_slab_chunk *c = pl_chunk_new(s->chunks);

	if (!c)
		return NULL;
	c->fresh = FIRST;
	c->filled = s->chunks ? PL_CHUNK_SIZE : 0;
	s->chunks++;
	s->empty++;
	link_chunk(s, c);
	return c;
}

static struct object *take_fresh(struct pl_slab *s, struct pl_slab_chunk *c)
{
	struct object *o = (struct object *)((char *)c + c->fresh);

	c->fresh += s->size;
	if (c->fresh > c->filled) {
		pl_chunk_fill((char *)c + c->filled, FILL);
		c->filled += FILL;
	}
	return o;
}

static void *take(struct pl_slab *s, struct pl_slab_chunk *c)
{
	struct object *o = c->free;

	s->empty -= !c->used++;
	if (o) {
		c->free = o->next;
		memset(o, 0, s->size);
	} else {
		o = take_fresh(s, c);
	}
	if (!has_room(s, c))
		unlink_chunk(c);
	return o;
}

void *pl_slab_new(struct pl_slab *s)
{
	struct pl_slab_chunk *c;
	void *o = NULL;

	pthread_mutex_lock(&s->lock);
	c = s->room ? s->room : chunk_new(s);
	if (c)
		o = take(s, c);
	pthread_mutex_unlock(&s->lock);
	return o;
}

void pl_slab_free(struct pl_slab *s, void *object)
{
	struct pl_slab_chunk *c = (void *)((uintptr_t)object & ~(PL_CHUNK_SIZE - 1));
	struct object *o = object;
	bool spare = false;

	pthread_mutex_lock(&s->lock);
	if (!has_room(s, c))
		link_chunk(s, c);
	o->next = c->free;
	c->free = o;
	if (!--c->used && s->empty++) {
		spare = true;
		unlink_chunk(c);
		s->empty--;
		s->chunks--;
	}
	pthread_mutex_unlock(&s->lock);
	if (spare)
		pl_chunk_free(c);
}
