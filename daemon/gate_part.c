/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which bytes of which files the gate's programs guard. Invariant: the kernel has a range for each lease
 * that it guards and that wasn't taken, in a place of its own, so that no change of it costs more than
 * two calls (or for one that is over, until the kernel can be told so). So the kernel answers as the
 * policy function would (lib/core/policy.c), without asking.
 */
#include "daemon/gate_part.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon.h"
#include "daemon/gate_load.h"
#include "daemon/gate_stop.h"
#include "os/clock.h"

/* What of a file a lease refuses. */
struct part {
	struct pl_node node; /* by the lease's number, never used anew; not while it is `over` */
	struct guarded *of;
	unsigned place; /* at[place] is this one */
	struct gate_range range;
	struct user *user;
	LIST_ENTRY(part) over; /* the kernel couldn't be told that it ended */
};

struct guarded {
	struct pl_node node; /* by inode number */
	uint64_t dev;
	struct gate_file file;
	struct part **at; /* as the kernel has them */
	unsigned n, room;
};

/* A process that has to answer for leases. */
struct holding {
	struct pl_node node; /* by its number */
	unsigned leases;
};

static void forget_empty(struct gate_parts *g, struct guarded *f)
{
	if (f->n)
		return;
	pl_index_remove(&g->files, &f->node);
	free(f->at);
	free(f);
}

void gate_parts_init(struct gate_parts *g, struct server *s, struct gate_programs *programs)
{
	g->server = s;
	g->programs = programs;
	pthread_mutex_init(&g->lock, NULL);
}

void gate_parts_free(struct gate_parts *g)
{
	while (g->files.root) {
		struct guarded *f = (struct guarded *)g->files.root;

		while (f->n)
			free(f->at[--f->n]);
		forget_empty(g, f);
	}
	while (g->holdings.root) {
		struct holding *h = (struct holding *)g->holdings.root;

		pl_index_remove(&g->holdings, &h->node);
		free(h);
	}
	pthread_mutex_destroy(&g->lock);
}

static struct guarded *find(const struct gate_parts *g, const struct gate_file *file)
{
	struct pl_node *n = pl_index_first(&g->files, file->ino, file->ino + 1);

	while (n && memcmp(&((struct guarded *)n)->file, file, sizeof *file))
		n = pl_index_next(n, file->ino, file->ino + 1);
	return (struct guarded *)n;
}

/* lock held. By what the kernel says: a file that has gone may have a part that is over, and its number
 * be another's. */
static int get_file(struct gate_parts *g, const struct pinl_memory *mem, struct guarded **out)
{
	struct gate_file file;
	struct guarded *f;
	int err = gate_identify(g->programs, mem->fd, &file);

	if (err)
		return err;
	f = find(g, &file);
	if (!f) {
		f = calloc(1, sizeof *f);
		if (!f)
			return pinl_set_error(-ENOMEM, "out of memory for the gate");
		f->file = file;
		f->dev = mem->dev;
		f->node.start = file.ino;
		f->node.end = file.ino + 1;
		pl_index_insert(&g->files, &f->node);
	}
	*out = f;
	return 0;
}

/* The last quarter of a file's places is for who has none of the others. */
static int may_have(const struct guarded *f, const struct user *u)
{
	unsigned his = 0;

	if (f->n < GATE_OF_FILE / 4 * 3)
		return 0;
	for (unsigned i = 0; i < f->n; i++)
		his += f->at[i]->user == u;
	if (f->n < GATE_OF_FILE && his < GATE_OF_FILE / 4)
		return 0;
	return pinl_set_error(-EDQUOT,
			      "%u leases refuse changes of this file, %u of them user %u's, and %d are "
			      "the most; end some, or lease in larger pieces",
			      f->n, his, u->uid, GATE_OF_FILE);
}

static int make_room(struct guarded *f)
{
	unsigned room = f->room ? 2 * f->room : 4;
	struct part **at;

	if (f->n < f->room)
		return 0;
	at = realloc(f->at, room * sizeof(*at));
	if (!at)
		return pinl_set_error(-ENOMEM, "out of memory for the gate");
	f->at = at;
	f->room = room;
	return 0;
}

/* lock held */
static int add_part(struct gate_parts *g, const struct pinl_memory *mem, struct part *p)
{
	struct guarded *f = NULL;
	int err = get_file(g, mem, &f);

	if (err)
		return err;
	err = may_have(f, p->user);
	if (!err)
		err = make_room(f);
	if (!err)
		err = gate_guard(g->programs, &f->file, f->n, &p->range);
	if (err) {
		forget_empty(g, f);
		return err;
	}
	p->of = f;
	p->place = f->n;
	f->at[f->n++] = p;
	pl_index_insert(&g->by_lease, &p->node);
	return 0;
}

/* lock held; the kernel has it no more */
static void remove_part(struct gate_parts *g, struct part *p)
{
	struct guarded *f = p->of;
	struct part *last = f->at[--f->n];

	f->at[p->place] = last;
	last->place = p->place;
	free(p);
	forget_empty(g, f);
}

/* lock held */
static int let_go(struct gate_parts *g, struct part *p)
{
	unsigned last = p->of->n - 1;
	int err = gate_unguard(g->programs, &p->of->file, p->place, last, &p->of->at[last]->range);

	if (err)
		return err;
	gate_range_gone(g->programs, &p->range);
	remove_part(g, p);
	return 0;
}

static struct part *part_of(const struct gate_parts *g, uint64_t lease_id)
{
	return (struct part *)pl_index_first(&g->by_lease, lease_id, lease_id + 1);
}

static struct part *new_part(const struct pinl_lease *l, const struct pinl_memory *mem,
			     const struct gate_range *how)
{
	struct part *p = calloc(1, sizeof *p);

	if (!p) {
		pinl_set_error(-ENOMEM, "out of memory for the gate");
		return NULL;
	}
	p->node.start = l->id;
	p->node.end = p->node.start + 1;
	p->user = ((struct held_lease *)l->cookie)->holder->user;
	p->range = *how;
	p->range.start = mem->offset;
	p->range.end = mem->offset + (l->m.end - l->m.start);
	p->range.since_ns = pl_clock_ns();
	return p;
}

int gate_parts_add(struct gate_parts *g, const struct pinl_lease *l, const struct pinl_memory *mem,
		   const struct gate_range *how)
{
	struct part *p = new_part(l, mem, how);
	int err;

	if (!p)
		return -ENOMEM;
	err = share_guard(g->server, p->user, GATE_RANGES);
	if (!err) {
		pthread_mutex_lock(&g->lock);
		err = add_part(g, mem, p);
		pthread_mutex_unlock(&g->lock);
		if (err)
			share_unguard(g->server, p->user);
	}
	if (err)
		free(p);
	return err;
}

/* It may have been ended before. */
void gate_parts_end(struct gate_parts *g, uint64_t lease_id)
{
	struct user *u;
	struct part *p;

	pthread_mutex_lock(&g->lock);
	p = part_of(g, lease_id);
	if (p) {
		u = p->user;
		pl_index_remove(&g->by_lease, &p->node);
		if (let_go(g, p)) {
			LIST_INSERT_HEAD(&g->over, p, over);
			fprintf(stderr, "pinleased: the gate still guards what a lease had: %s\n",
				pinl_error());
		}
		share_unguard(g->server, u);
	}
	pthread_mutex_unlock(&g->lock);
}

/* lock held */
static void let_go_of_the_rest(struct gate_parts *g)
{
	struct part *p, *next;

	for (p = LIST_FIRST(&g->over); p; p = next) {
		next = LIST_NEXT(p, over);
		LIST_REMOVE(p, over);
		if (let_go(g, p))
			LIST_INSERT_HEAD(&g->over, p, over);
	}
}

void gate_parts_renew(struct gate_parts *g)
{
	pthread_mutex_lock(&g->lock);
	gate_renew(g->programs);
	let_go_of_the_rest(g);
	pthread_mutex_unlock(&g->lock);
}

/* lock held */
static struct holding *holding_of(struct gate_parts *g, pid_t pid)
{
	return (struct holding *)pl_index_first(&g->holdings, pid, pid + 1);
}

/* lock held */
static int hold_first(struct gate_parts *g, pid_t pid)
{
	struct holding *h = calloc(1, sizeof *h);
	int err = h ? gate_stop_never(gate_stops(g->programs), pid, true)
		    : pinl_set_error(-ENOMEM, "out of memory for the gate");

	if (err) {
		free(h);
		return err;
	}
	h->node.start = pid;
	h->node.end = pid + 1;
	h->leases = 1;
	pl_index_insert(&g->holdings, &h->node);
	return 0;
}

int gate_parts_hold(struct gate_parts *g, pid_t pid)
{
	struct holding *h;
	int err = 0;

	pthread_mutex_lock(&g->lock);
	h = holding_of(g, pid);
	if (h)
		h->leases++;
	else
		err = hold_first(g, pid);
	pthread_mutex_unlock(&g->lock);
	return err;
}

void gate_parts_let_go(struct gate_parts *g, pid_t pid)
{
	struct holding *h;

	pthread_mutex_lock(&g->lock);
	h = holding_of(g, pid);
	if (h && !--h->leases) {
		gate_stop_never(gate_stops(g->programs), pid, false);
		pl_index_remove(&g->holdings, &h->node);
		free(h);
	}
	pthread_mutex_unlock(&g->lock);
}

bool gate_parts_know(struct gate_parts *g, const struct gate_file *file, struct pinl_change *ch)
{
	const struct guarded *f;

	pthread_mutex_lock(&g->lock);
	f = find(g, file);
	if (f) {
		ch->file_dev = f->dev;
		ch->file_ino = file->ino;
	}
	pthread_mutex_unlock(&g->lock);
	return f;
}

bool gate_parts_find(struct gate_parts *g, uint64_t dev, uint64_t ino, struct gate_file *file)
{
	const struct pl_node *n;

	pthread_mutex_lock(&g->lock);
	n = pl_index_first(&g->files, ino, ino + 1);
	while (n && ((const struct guarded *)n)->dev != dev)
		n = pl_index_next((struct pl_node *)n, ino, ino + 1);
	if (n)
		*file = ((const struct guarded *)n)->file;
	pthread_mutex_unlock(&g->lock);
	return n;
}
