/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which bytes of which files the gate's programs guard. Invariant: a file is in `files` while it has a
 * lease with REFUSE that wasn't taken, and the kernel has a range for each of these leases, in a place
 * of its own, so that no change of it costs more than two calls. So the kernel answers as the policy
 * function would (lib/core/policy.c), without asking; what it has refused is told to the core
 * afterwards.
 */
#include "daemon/gate.h"

#include <errno.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "core/change.h"
#include "daemon.h"
#include "daemon/gate_load.h"
#include "os/clock.h"

#define OPS_REFUSED  (PINL_OPS_FILE | PINL_OPBIT(PINL_OP_REMOVE))
#define TICKS	     4 /* in the time after which what isn't renewed ends */
#define MINUTE_NS    60000000000ull
#define COME_BACK_MS 5000

_Static_assert(PINL_OP_TRUNCATE == 0 && PINL_OP_PUNCH == 1 && PINL_OP_ZERO == 2 &&
		       PINL_OP_COLLAPSE == 3 && PINL_OP_INSERT == 4 && PINL_OP_REMOVE == 10,
	       "bpf/gate.bpf.c has the same numbers");

/* What of a file a lease refuses. */
struct part {
	struct pl_node node; /* by the lease; not while it is `over` */
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

/* What the gate hasn't done, ever. */
struct losses {
	uint64_t missed, untold;
};

struct gate {
	struct server *server;
	struct pinl_ctx *ctx;
	pthread_mutex_t lock; /* the next four */
	struct gate_programs *programs;
	struct pl_index files, parts;
	LIST_HEAD(, part) over;
	sd_event_source *ring; /* main loop, as the rest */
	bool started;
	struct losses said;
	uint64_t said_ns;
};

/* -------------------------------------------------------------------------------------- leases -- */

static bool is_known(const struct pinl_memory *mem)
{
	return mem->fs_magic == TMPFS_MAGIC || mem->fs_magic == HUGETLBFS_MAGIC ||
	       mem->fs_magic == EXT4_SUPER_MAGIC || mem->fs_magic == XFS_SUPER_MAGIC;
}

static unsigned gate_coverage(void *src, const struct pinl_memory *mem, enum pinl_op op)
{
	return (OPS_REFUSED & PINL_OPBIT(op)) && mem->ino && mem->fd >= 0 && is_known(mem)
		       ? PINL_CAN_REFUSE
		       : 0;
}

static struct guarded *find(const struct gate *g, uint64_t dev, uint64_t ino)
{
	struct pl_node *n = pl_index_first(&g->files, ino, ino + 1);

	while (n && ((struct guarded *)n)->dev != dev)
		n = pl_index_next(n, ino, ino + 1);
	return (struct guarded *)n;
}

static void forget_empty(struct gate *g, struct guarded *f)
{
	if (f->n)
		return;
	pl_index_remove(&g->files, &f->node);
	free(f->at);
	free(f);
}

/* lock held */
static int get_file(struct gate *g, const struct pinl_memory *mem, struct guarded **out)
{
	struct guarded *f = find(g, mem->dev, mem->ino);
	int err = 0;

	if (!f) {
		f = calloc(1, sizeof *f);
		if (!f)
			return pinl_set_error(-ENOMEM, "out of memory for the gate");
		err = gate_identify(g->programs, mem->fd, &f->file);
		if (err) {
			free(f);
			return err;
		}
		f->dev = mem->dev;
		f->node.start = mem->ino;
		f->node.end = mem->ino + 1;
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
static int add_part(struct gate *g, const struct pinl_memory *mem, struct part *p)
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
	pl_index_insert(&g->parts, &p->node);
	return 0;
}

/* lock held; the kernel has it no more */
static void remove_part(struct gate *g, struct part *p)
{
	struct guarded *f = p->of;
	struct part *last = f->at[--f->n];

	f->at[p->place] = last;
	last->place = p->place;
	free(p);
	forget_empty(g, f);
}

/* lock held */
static int let_go(struct gate *g, struct part *p)
{
	unsigned last = p->of->n - 1;
	int err = gate_unguard(g->programs, &p->of->file, p->place, last, &p->of->at[last]->range);

	if (!err)
		remove_part(g, p);
	return err;
}

static struct part *part_of(const struct gate *g, const struct pinl_lease *l)
{
	struct pl_node *n = pl_index_first(&g->parts, (uintptr_t)l, (uintptr_t)l + 1);

	return n ? (struct part *)n : NULL;
}

static struct part *new_part(const struct pinl_lease *l, const struct pinl_memory *mem, unsigned ops)
{
	struct part *p = calloc(1, sizeof *p);

	if (!p) {
		pinl_set_error(-ENOMEM, "out of memory for the gate");
		return NULL;
	}
	p->node.start = (uintptr_t)l;
	p->node.end = p->node.start + 1;
	p->user = ((struct held_lease *)l->cookie)->holder->user;
	p->range = (struct gate_range){mem->offset, mem->offset + (l->m.end - l->m.start), ops, 0};
	return p;
}

static int gate_watch(void *src, const struct pinl_memory *mem)
{
	const struct pinl_lease *l = pl_lease_of_memory(mem);
	unsigned ops = l->policy.refuse & OPS_REFUSED;
	struct gate *g = src;
	struct part *p;
	int err;

	if (l->policy.kind != PINL_REFUSE || !ops || !gate_coverage(src, mem, PINL_OP_TRUNCATE))
		return 0;
	if (ops & PINL_OPBIT(PINL_OP_PUNCH))
		ops |= PINL_OPBIT(PINL_OP_REMOVE);
	p = new_part(l, mem, ops);
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
static void end_part(struct gate *g, const struct pinl_lease *l)
{
	struct user *u;
	struct part *p;

	pthread_mutex_lock(&g->lock);
	p = part_of(g, l);
	if (p) {
		u = p->user;
		pl_index_remove(&g->parts, &p->node);
		if (let_go(g, p)) {
			LIST_INSERT_HEAD(&g->over, p, over);
			fprintf(stderr, "pinleased: the gate still guards what a lease had: %s\n",
				pinl_error());
		}
		share_unguard(g->server, u);
	}
	pthread_mutex_unlock(&g->lock);
}

static void gate_unwatch(void *src, const struct pinl_memory *mem)
{
	end_part(src, pl_lease_of_memory(mem));
}

/* A pointer that is taken from the list may lead nowhere by now, but to no other lease: those are made
 * by this thread. */
void gate_drop(struct server *s)
{
	struct gate *g = pl_source_priv(s->ctx, &gate_ops);
	const struct pinl_lease *l;
	struct held_lease *hl;

	do {
		pthread_mutex_lock(&s->ctx->lock);
		hl = LIST_FIRST(&s->refuse_no_more);
		l = hl ? hl->lease : NULL;
		if (hl) {
			LIST_REMOVE(hl, no_more);
			hl->refuses_no_more = false;
		}
		pthread_mutex_unlock(&s->ctx->lock);
		if (g && l)
			end_part(g, l);
	} while (hl);
}

/* lock held */
static void let_go_of_the_rest(struct gate *g)
{
	struct part *p, *next;

	for (p = LIST_FIRST(&g->over); p; p = next) {
		next = LIST_NEXT(p, over);
		LIST_REMOVE(p, over);
		if (let_go(g, p))
			LIST_INSERT_HEAD(&g->over, p, over);
	}
}

/* ------------------------------------------------------------------------------------ refusals -- */

/* lock held. st_dev and st_ino of it. */
static bool known_as(const struct gate *g, const struct gate_file *file, struct pinl_change *ch)
{
	struct pl_node *n = pl_index_first(&g->files, file->ino, file->ino + 1);

	while (n && memcmp(&((struct guarded *)n)->file, file, sizeof *file))
		n = pl_index_next(n, file->ino, file->ino + 1);
	if (n) {
		ch->file_dev = ((struct guarded *)n)->dev;
		ch->file_ino = file->ino;
	}
	return n;
}

static void on_refusal(const struct gate_refusal *r, void *arg)
{
	struct gate *g = arg;
	struct pinl_change ch = {
		.op = r->op,
		.also = r->also & OPS_REFUSED,
		.can = PINL_CAN_TELL | PINL_CAN_BEFORE | PINL_CAN_REFUSE,
		.on_file = 1,
		.file_start = r->start,
		.file_end = r->end,
		.actor_pid = r->pid,
		.actor_tid = r->tid,
		.source = "gate",
	};
	bool known;

	pthread_mutex_lock(&g->lock);
	known = known_as(g, &r->file, &ch);
	pthread_mutex_unlock(&g->lock);
	if (known) /* else its leases have ended since */
		pl_change_was_refused(g->ctx, &ch);
}

static int on_ring(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
	struct gate *g = arg;

	gate_read(g->programs, on_refusal, g);
	return 0;
}

/* ---------------------------------------------------------------------------------- life, death -- */

static struct losses losses_of(const struct gate *g)
{
	return (struct losses){gate_missed(g->programs), gate_untold(g->programs)};
}

/* Once a minute, if there are more. */
static void complain(struct gate *g)
{
	struct losses now = losses_of(g);
	uint64_t ns = pl_clock_ns();

	if ((now.missed <= g->said.missed && now.untold <= g->said.untold) ||
	    (g->said_ns && ns - g->said_ns < MINUTE_NS))
		return;
	fprintf(stderr,
		"pinleased: the gate hasn't seen %lu call%s, which may have taken bytes that a lease "
		"refuses, and %lu refusal%s came too fast to be told to holders\n",
		now.missed, s_of(now.missed), now.untold, s_of(now.untold));
	g->said = now;
	g->said_ns = ns;
}

/* Holders that have lost their pinleased have found the next by then. */
static unsigned come_back_ms(const struct server *s)
{
	unsigned part = s->limits.gate_keep_ms / 12;

	return part > COME_BACK_MS ? part : COME_BACK_MS;
}

/* Also to sweep what the dead have left, soon after its time. */
static uint64_t tick_us(const struct server *s)
{
	uint64_t us = s->limits.gate_keep_ms * 1000ull / TICKS;

	return us < COME_BACK_MS * 1000ull ? us : COME_BACK_MS * 1000ull;
}

static void renew(struct gate *g)
{
	pthread_mutex_lock(&g->lock);
	gate_renew(g->programs);
	let_go_of_the_rest(g);
	pthread_mutex_unlock(&g->lock);
	complain(g);
}

/* Also without a gate of its own: what is pinned stays in the way of every read and write. */
static unsigned sweep(struct server *s, const struct gate *g, uint64_t until_ns)
{
	return gate_take_over(s->limits.gate_dir, g ? gate_own(g->programs) : NULL, until_ns);
}

static int on_tick(sd_event_source *source, uint64_t usec, void *arg)
{
	struct server *s = arg;
	struct gate *g = pl_source_priv(s->ctx, &gate_ops);
	uint64_t now;

	if (g)
		renew(g);
	if (!sweep(s, g, s->gate_until_ns) && !g)
		return 0; /* it was for once */
	sd_event_now(s->event, CLOCK_MONOTONIC, &now);
	sd_event_source_set_time(source, now + tick_us(s));
	return sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
}

static int gate_open(struct pinl_ctx *ctx, const void *arg, void **src)
{
	const struct gate_options *o = arg;
	struct gate *g = calloc(1, sizeof *g);
	int err;

	if (!g)
		return pinl_set_error(-ENOMEM, "out of memory for the gate");
	g->server = o->server;
	g->ctx = ctx;
	err = gate_load(o->dir, o->keep_ms, &g->programs);
	if (err) {
		free(g);
		return err;
	}
	pthread_mutex_init(&g->lock, NULL);
	*src = g;
	return 0;
}

static void gate_close(void *src)
{
	struct gate *g = src;

	if (g->started) /* else nobody has the leases of the one before, whose gate stays */
		sweep(g->server, g, 0);
	gate_unload(g->programs);
	while (g->files.root) {
		struct guarded *f = (struct guarded *)g->files.root;

		while (f->n)
			free(f->at[--f->n]);
		forget_empty(g, f);
	}
	pthread_mutex_destroy(&g->lock);
	free(g);
}

void gate_start(struct server *s)
{
	struct gate *g = pl_source_priv(s->ctx, &gate_ops);
	unsigned left;
	int err = 0;

	s->gate_until_ns = s->store.resumed ? 0 : pl_clock_ns() + come_back_ms(s) * 1000000ull;
	left = sweep(s, g, s->gate_until_ns);
	if (g) {
		g->started = true;
		err = sd_event_add_io(s->event, &g->ring, gate_fd(g->programs), EPOLLIN, on_ring, g);
	}
	if (err >= 0 && (g || left))
		err = sd_event_add_time_relative(s->event, &s->gate_tick, CLOCK_MONOTONIC, tick_us(s), 0,
						 on_tick, s);
	if (err < 0)
		fprintf(stderr, "pinleased: the gate opens in %u ms, as it can't be renewed: %s\n",
			s->limits.gate_keep_ms, strerror(-err));
}

void gate_stop(struct server *s)
{
	struct gate *g = pl_source_priv(s->ctx, &gate_ops);

	s->gate_tick = sd_event_source_disable_unref(s->gate_tick);
	if (g)
		g->ring = sd_event_source_disable_unref(g->ring);
}

void gate_hand_over(struct server *s)
{
	struct gate *g = pl_source_priv(s->ctx, &gate_ops);

	if (g)
		gate_leave(g->programs, come_back_ms(s));
}

void gate_describe(struct server *s, char *text, size_t len)
{
	struct gate *g = pl_source_priv(s->ctx, &gate_ops);
	const char *unpinned;
	struct losses lost;
	int n;

	if (!g)
		return;
	unpinned = gate_unpinned(g->programs);
	lost = losses_of(g);
	n = snprintf(text, len, ", by %s",
		     strcmp(gate_means(g->programs), "lsm") ? "fmod_ret" : "the BPF LSM");
	if (unpinned)
		n += snprintf(text + n, len - n, "; open after a crash (not pinned: %.100s)", unpinned);
	else
		n += snprintf(text + n, len - n, "; after a crash closed for %u ms",
			      s->limits.gate_keep_ms);
	if (lost.missed)
		n += snprintf(text + n, len - n, "; %lu call%s went on unseen", lost.missed,
			      s_of(lost.missed));
	if (lost.untold)
		snprintf(text + n, len - n, "; %lu refusal%s not told", lost.untold, s_of(lost.untold));
}

const struct pinl_source_ops gate_ops = {
	.size = sizeof(struct pinl_source_ops),
	.name = "gate",
	.open = gate_open,
	.close = gate_close,
	.coverage = gate_coverage,
	.watch = gate_watch,
	.unwatch = gate_unwatch,
};
