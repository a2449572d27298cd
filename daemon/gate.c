/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The gate's life beside pinleased's: which leases it refuses for, what becomes of what it has refused,
 * how long it lasts. Invariant: what is in the kernel is renewed while this process runs, and an earlier
 * one's ends only when this one has had its leases, or the time for them to come.
 */
#include "daemon/gate.h"

#include <errno.h>
#include <linux/magic.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/change.h"
#include "core/sentence.h"
#include "daemon.h"
#include "daemon/gate_load.h"
#include "daemon/gate_part.h"
#include "daemon/gate_stop.h"
#include "daemon/gate_wait.h"
#include "os/clock.h"

#define OPS_GUARDED  (PINL_OPS_FILE | PINL_OPBIT(PINL_OP_REMOVE))
#define TICKS	     4 /* in the time after which what isn't renewed ends */
#define MINUTE_NS    60000000000ull
#define COME_BACK_MS 5000

_Static_assert(PINL_OP_TRUNCATE == 0 && PINL_OP_PUNCH == 1 && PINL_OP_ZERO == 2 &&
		       PINL_OP_COLLAPSE == 3 && PINL_OP_INSERT == 4 && PINL_OP_REMOVE == 10,
	       "bpf/gate.bpf.c has the same numbers");

/* What the gate hasn't done, ever. */
struct losses {
	uint64_t unrefused, missed, untold;
};

struct gate {
	struct server *server;
	struct pinl_ctx *ctx;
	struct gate_programs *programs;
	struct gate_parts parts;
	struct gate_waiting waiting;
	sd_event_source *ring; /* main loop, as the rest */
	bool started;
	bool said_unheld;
	uint64_t unwaited; /* leases for which others don't wait, as there was no place */
	uint64_t names;	   /* how often one was kept, ever */
	struct losses said;
	uint64_t said_ns;
	_Atomic uint64_t unguarded_said_ns;
};

/* -------------------------------------------------------------------------------------- leases -- */

static bool is_known(const struct pinl_memory *mem)
{
	return mem->fs_magic == TMPFS_MAGIC || mem->fs_magic == HUGETLBFS_MAGIC ||
	       mem->fs_magic == EXT4_SUPER_MAGIC || mem->fs_magic == XFS_SUPER_MAGIC;
}

static unsigned gate_coverage(void *src, const struct pinl_memory *mem, enum pinl_op op)
{
	return (OPS_GUARDED & PINL_OPBIT(op)) && mem->ino && mem->fd >= 0 && is_known(mem)
		       ? PINL_CAN_REFUSE
		       : 0;
}

/* By one that sees less, and as was promised before there was a gate. */
static bool another_refuses(const struct gate *g, const struct pinl_memory *mem, unsigned ops)
{
	const struct pl_source *s = g->ctx->sources;

	for (; ops && s < g->ctx->sources + g->ctx->n_sources; s++)
		for (int op = 0; s->priv != g && op < PINL_OP_NR; op++)
			if (s->ops->coverage(s->priv, mem, op) & PINL_CAN_REFUSE)
				ops &= ~PINL_OPBIT(op);
	return !ops;
}

static void say_unguarded(struct gate *g)
{
	uint64_t now = pl_clock_ns(), before = atomic_load(&g->unguarded_said_ns);

	if ((!before || now - before > MINUTE_NS) &&
	    atomic_compare_exchange_strong(&g->unguarded_said_ns, &before, now))
		fprintf(stderr,
			"pinleased: a lease is refused for by fanotify alone, not where that sees "
			"nothing "
			"(descriptors from before): %s\n",
			pinl_error());
}

static bool is_in_memory(const struct pinl_memory *mem)
{
	return mem->fs_magic == TMPFS_MAGIC || mem->fs_magic == HUGETLBFS_MAGIC;
}

/* Of other processes than the holder's: so no policy counts on it. */
static unsigned gate_supervised(void *src, const struct pinl_memory *mem, enum pinl_op op)
{
	const struct gate *g = src;

	return gate_coverage(src, mem, op) && is_in_memory(mem) && !gate_unwaited(g->programs)
		       ? PINL_CAN_TELL | PINL_CAN_BEFORE | PINL_CAN_HOLD
		       : 0;
}

static int gate_can_keep_name(void *src, const struct pinl_memory *mem)
{
	const struct gate *g = src;

	return gate_coverage(src, mem, PINL_OP_TRUNCATE) && !gate_unnamed(g->programs);
}

/* Now that nobody can take it any more; what was there before this process may have lost it meanwhile.
 */
static int check_name(const struct pinl_lease *l, const struct pinl_memory *mem)
{
	struct stat st;

	if (l->more->resumed || fstat(mem->fd, &st) || st.st_nlink)
		return 0;
	return pinl_set_error(-ENOENT, "the file has no name that could be kept: a memfd has none, and "
				       "another one's has been unlinked; leave out PINL_KEEP_NAME");
}

/* What the lease wants of the gate. */
static struct gate_range range_for(struct gate *g, const struct pinl_lease *l,
				   const struct pinl_memory *mem)
{
	struct gate_range r = {.holder = pl_lease_owner(l)};

	if (l->policy.kind == PINL_RECALL && gate_supervised(g, mem, PINL_OP_TRUNCATE))
		r.waits = OPS_GUARDED;
	if (l->policy.kind == PINL_REFUSE && gate_coverage(g, mem, PINL_OP_TRUNCATE))
		r.ops = l->policy.refuse & OPS_GUARDED;
	if (l->flags & PINL_KEEP_NAME)
		r.ops |= GATE_NAME;
	return r;
}

static int keep_name(struct gate *g, const struct pinl_lease *l, const struct pinl_memory *mem,
		     const struct gate_range *r)
{
	struct pl_sentence why;
	int err = gate_parts_add(&g->parts, l, mem, r);

	if (err)
		return err;
	err = check_name(l, mem);
	if (err) {
		pl_sentence_keep(&why);
		gate_parts_end(&g->parts, l->id);
		pl_sentence_again(&why);
	}
	return err;
}

/* What finds no place is told afterwards, as without a gate, or refused by another. The core has it then
 * that nobody waits for such a lease with RECALL, which is made all the same, but for an EBUSY. */
static int guard(struct gate *g, const struct pinl_lease *l, const struct pinl_memory *mem,
		 const struct gate_range *r)
{
	int err = gate_parts_add(&g->parts, l, mem, r);

	if (err && l->policy.kind == PINL_RECALL) {
		g->unwaited++;
		return err == -EBUSY ? -EAGAIN : err;
	}
	if (!err || !another_refuses(g, mem, r->ops))
		return err;
	say_unguarded(g);
	return 0;
}

static int gate_watch(void *src, const struct pinl_memory *mem)
{
	const struct pinl_lease *l = pl_lease_of_memory(mem);
	struct gate *g = src;
	struct gate_range r = range_for(g, l, mem);

	if (r.ops & GATE_NAME)
		return keep_name(g, l, mem, &r);
	return r.ops | r.waits ? guard(g, l, mem, &r) : 0;
}

static void gate_unwatch(void *src, const struct pinl_memory *mem)
{
	const struct pinl_lease *l = pl_lease_of_memory(mem);
	struct gate *g = src;

	gate_parts_end(&g->parts, l->id);
}

void gate_hold(struct held_lease *hl)
{
	struct gate *g = pl_source_priv(hl->holder->server->ctx, &gate_ops);
	int err = g ? gate_parts_hold(&g->parts, hl->holder->pid) : -ENOENT;

	hl->answers = !err;
	if (!g || !err || g->said_unheld)
		return;
	g->said_unheld = true;
	fprintf(stderr, "pinleased: holders may be stopped at the gate, and not answer: %s\n",
		pinl_error());
}

void gate_let_go(struct held_lease *hl)
{
	struct gate *g = pl_source_priv(hl->holder->server->ctx, &gate_ops);

	if (g && hl->answers)
		gate_parts_let_go(&g->parts, hl->holder->pid);
	hl->answers = false;
}

/* What is in the list may have ended since, and another lease be where it was: so they go by number. */
void gate_drop(struct server *s)
{
	struct gate *g = pl_source_priv(s->ctx, &gate_ops);
	struct held_lease *hl;
	uint64_t id = 0;

	do {
		pthread_mutex_lock(&s->ctx->lock);
		hl = LIST_FIRST(&s->refuse_no_more);
		if (hl) {
			id = hl->taken_id;
			LIST_REMOVE(hl, no_more);
			hl->refuses_no_more = false;
		}
		pthread_mutex_unlock(&s->ctx->lock);
		if (g && hl)
			gate_parts_end(&g->parts, id);
	} while (hl);
}

/* ------------------------------------------------------------------------------------ refusals -- */

static void nobody_waits(struct pinl_change *change, int err)
{
}

/* It is too late to refuse it. */
static void tell_made(struct gate *g, struct pinl_change *ch)
{
	ch->can = PINL_CAN_TELL;
	ch->answer = nobody_waits;
	pinl_change_submit(g->ctx, ch);
}

static void on_refusal(const struct gate_refusal *r, void *arg)
{
	struct gate *g = arg;
	struct pinl_change ch = {
		.op = r->op,
		.also = r->also & OPS_GUARDED,
		.can = PINL_CAN_TELL | PINL_CAN_BEFORE | PINL_CAN_REFUSE,
		.on_file = 1,
		.file_start = r->start,
		.file_end = r->end,
		.actor_pid = r->pid,
		.actor_tid = r->tid,
		.source = "gate",
	};

	bool known = gate_parts_know(&g->parts, &r->file, &ch); /* else its leases have ended since */

	if (r->op == GATE_OP_NAME)
		g->names++;
	else if (r->what == GATE_WENT_ON && known)
		tell_made(g, &ch);
	else if (r->what == GATE_WENT_ON)
		return;
	else if (r->what != GATE_REFUSED)
		gate_waiting_told(&g->waiting, r, known ? &ch : NULL);
	else if (known)
		pl_change_was_refused(g->ctx, &ch);
}

static void listen_now(void *arg)
{
	struct gate *g = arg;

	gate_read(g->programs, on_refusal, g);
}

static int on_ring(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
	listen_now(arg);
	return 0;
}

/* ---------------------------------------------------------------------------------- life, death -- */

static struct losses losses_of(const struct gate *g)
{
	return (struct losses){gate_unrefused(g->programs), gate_missed(g->programs),
			       gate_untold(g->programs)};
}

/* Once a minute, if there are more. */
static void complain(struct gate *g)
{
	struct losses now = losses_of(g);
	uint64_t ns = pl_clock_ns();

	if ((now.unrefused <= g->said.unrefused && now.missed <= g->said.missed &&
	     now.untold <= g->said.untold) ||
	    (g->said_ns && ns - g->said_ns < MINUTE_NS))
		return;
	if (now.unrefused > g->said.unrefused)
		fprintf(stderr,
			"pinleased: %lu call%s went on that the gate was to refuse, or to have wait; "
			"holders "
			"are told\n",
			now.unrefused, s_of(now.unrefused));
	if (now.missed > g->said.missed)
		fprintf(stderr,
			"pinleased: the gate hasn't seen %lu call%s, which may have taken bytes that a "
			"lease refuses\n",
			now.missed, s_of(now.missed));
	if (now.untold > g->said.untold)
		fprintf(stderr, "pinleased: %lu refusal%s came too fast to be told to holders\n",
			now.untold, s_of(now.untold));
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

	if (g) {
		gate_waiting_renew(&g->waiting);
		gate_parts_renew(&g->parts);
		complain(g);
	}
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
	gate_parts_init(&g->parts, o->server, g->programs);
	gate_waiting_init(&g->waiting, o->server, gate_stops(g->programs), listen_now, g);
	*src = g;
	return 0;
}

static void gate_close(void *src)
{
	struct gate *g = src;

	if (g->started) /* else nobody has the leases of the one before, whose gate stays */
		sweep(g->server, g, 0);
	gate_stop_end(gate_stops(g->programs));
	gate_waiting_free(&g->waiting);
	gate_unload(g->programs);
	gate_parts_free(&g->parts);
	free(g);
}

/* Whose leases an earlier one's gate has, and this one's hasn't yet. Where there is to be none, it will
 * have none of them. */
static bool awaits_holders(const struct server *s)
{
	return s->limits.gate && !s->all_resumed;
}

void gate_start(struct server *s)
{
	struct gate *g = pl_source_priv(s->ctx, &gate_ops);
	unsigned left;
	int err = 0;

	s->gate_until_ns = awaits_holders(s) ? pl_clock_ns() + come_back_ms(s) * 1000000ull : 0;
	left = sweep(s, g, s->gate_until_ns);
	if (g) {
		g->started = true;
		gate_waiting_start(&g->waiting);
		gate_parts_renew(&g->parts);
		if (s->limits.closed && gate_unpinned(g->programs))
			fprintf(stderr, "pinleased: the gate will be open after a crash: %s\n",
				gate_unpinned(g->programs));
		err = sd_event_add_io(s->event, &g->ring, gate_fd(g->programs), EPOLLIN, on_ring, g);
	}
	if (err >= 0 && (g || left))
		err = sd_event_add_time_relative(s->event, &s->gate_tick, CLOCK_MONOTONIC, tick_us(s), 0,
						 on_tick, s);
	if (err < 0)
		fprintf(stderr, "pinleased: the gate opens in %u ms, as it can't be renewed: %s\n",
			s->limits.gate_keep_ms, strerror(-err));
	if (err < 0 && g)
		gate_waiting_never(&g->waiting, strerror(-err));
}

void gate_stop(struct server *s)
{
	struct gate *g = pl_source_priv(s->ctx, &gate_ops);

	s->gate_tick = sd_event_source_disable_unref(s->gate_tick);
	if (!g)
		return;
	g->ring = sd_event_source_disable_unref(g->ring);
	gate_waiting_stop(&g->waiting);
}

void gate_answer(struct server *s)
{
	struct gate *g = pl_source_priv(s->ctx, &gate_ops);

	if (g)
		gate_waiting_answer(&g->waiting);
}

bool gate_has_others_wait(struct server *s, const struct pinl_memory *mem)
{
	struct gate *g = pl_source_priv(s->ctx, &gate_ops);

	return g && gate_supervised(g, mem, PINL_OP_TRUNCATE);
}

bool gate_is_waited_at(struct server *s)
{
	const struct gate *g = pl_source_priv(s->ctx, &gate_ops);

	return g && !gate_unwaited(g->programs);
}

/* By fmod_ret one of those who make their call again then may pass. */
bool gate_stays_closed(struct server *s)
{
	const struct gate *g = pl_source_priv(s->ctx, &gate_ops);

	return g && s->limits.closed && !gate_unpinned(g->programs) &&
	       !strcmp(gate_means(g->programs), "lsm");
}

void gate_was_asked(struct server *s, const struct pinl_change *ch)
{
	struct gate *g = pl_source_priv(s->ctx, &gate_ops);
	struct gate_refusal call = {.start = ch->file_start,
				    .end = ch->file_end < GATE_END ? ch->file_end : GATE_END,
				    .op = ch->op,
				    .pid = ch->actor_pid};

	if (g && gate_parts_find(&g->parts, ch->file_dev, ch->file_ino, &call.file))
		gate_stop_asked(gate_stops(g->programs), &call); /* else he is asked for again */
}

bool gate_keeps_name(struct server *s, const struct pinl_memory *mem)
{
	struct gate *g = pl_source_priv(s->ctx, &gate_ops);

	return g && gate_can_keep_name(g, mem);
}

bool gate_under_way(struct server *s, const struct pl_lease_msg *m, const struct stat *st)
{
	struct gate *g = pl_source_priv(s->ctx, &gate_ops);

	if (g)
		listen_now(g); /* what is over by now isn't to be waited for */
	gate_answer(s);
	return g && gate_waiting_under_way(&g->waiting, st->st_dev, st->st_ino, m->file_offset,
					   m->file_offset + (m->end - m->start), m->thread);
}

void gate_hand_over(struct server *s)
{
	struct gate *g = pl_source_priv(s->ctx, &gate_ops);

	if (g)
		gate_leave(g->programs, come_back_ms(s));
}

__attribute__((format(printf, 3, 4))) static void add(char *text, size_t len, const char *fmt, ...)
{
	size_t used = strlen(text);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text + used, len - used, fmt, ap);
	va_end(ap);
}

static void describe_waiting(const struct gate *g, char *text, size_t len)
{
	if (gate_unwaited(g->programs))
		add(text, len, "; nobody waits: %s", gate_unwaited(g->programs));
	else if (gate_unpaged(g->programs))
		add(text, len,
		    "; others wait for RECALL on files in memory: stopped and restarted (%s), or "
		    "refused "
		    "(io_uring, 32-bit, traced, holders)",
		    gate_unpaged(g->programs));
	else
		add(text, len,
		    "; others wait for RECALL on files in memory: the thread alone, by task_work, or "
		    "refused "
		    "(io_uring, 32-bit)");
}

uint64_t gate_unread(const struct server *s)
{
	struct gate *g = pl_source_priv(s->ctx, &gate_ops);

	return g ? gate_untold(g->programs) : 0;
}

void gate_describe(struct server *s, char *text, size_t len)
{
	struct gate *g = pl_source_priv(s->ctx, &gate_ops);
	const char *unpinned;
	struct losses lost;

	if (!g)
		return;
	unpinned = gate_unpinned(g->programs);
	lost = losses_of(g);
	if (strcmp(gate_means(g->programs), "lsm"))
		add(text, len,
		    ", weaker: by fmod_ret (bpf isn't in the kernel's lsm=): a hole or a clone passes "
		    "while a task that was preempted there waits");
	else
		add(text, len, ", by the BPF LSM");
	if (lost.unrefused)
		add(text, len, "; %lu call%s went on that %s to be refused", lost.unrefused,
		    s_of(lost.unrefused), lost.unrefused == 1 ? "was" : "were");
	if (lost.missed)
		add(text, len, "; %lu went on unseen", lost.missed);
	if (g->names)
		add(text, len, "; names kept %lu time%s", g->names, s_of(g->names));
	if (gate_unnamed(g->programs))
		add(text, len, "; keeps no names: %s", gate_unnamed(g->programs));
	describe_waiting(g, text, len);
	if (g->waiting.lost)
		add(text, len, "; %lu got EBUSY, for want of room", g->waiting.lost);
	if (g->unwaited)
		add(text, len, "; for %lu lease%s nobody waits, for want of room", g->unwaited,
		    s_of(g->unwaited));
	if (gate_was_open(g->programs))
		add(text, len, "; was open for %lu ms, not renewed",
		    (unsigned long)(gate_was_open(g->programs) / 1000000));
	if (unpinned)
		add(text, len, "; open after a crash (not pinned: %s)", unpinned);
	else
		add(text, len, "; after a crash closed for %u ms", s->limits.gate_keep_ms);
}

const struct pinl_source_ops gate_ops = {
	.size = sizeof(struct pinl_source_ops),
	.name = "gate",
	.open = gate_open,
	.close = gate_close,
	.coverage = gate_coverage,
	.supervised = gate_supervised,
	.watch = gate_watch,
	.unwatch = gate_unwatch,
	.keeps_name = gate_can_keep_name,
};
