/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What was counted goes to the core, and is then counted as applied. The thread's own. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "core/ctx.h"
#include "source/generation.h"

#define AT_A_TIME 64
#define A_RING	  (GENERATION_RING / sizeof(struct generation_record))
#define SAY_NS	  1000000000u /* not more often */

static void answer(struct pinl_change *change, int err)
{
}

/* Changes the library makes itself have been asked about. */
static bool is_asked(const struct pl_generation *g, const struct generation_record *r, bool own)
{
	return own && pinl_tid_exempt(g->ctx, r->tid) == PINL_EXEMPT_ASKED;
}

static void apply(struct pl_generation *g, const struct generation_record *r)
{
	bool own = r->pid == getpid();
	struct pinl_change ch = {
		.can = PINL_CAN_TELL | PL_IS_COUNTED,
		.start = r->start,
		.end = r->end,
		.actor_pid = r->pid,
		.actor_tid = r->tid,
		.source = "generation",
		.answer = answer,
	};

	pl_generation_recent_add(g, r->start, r->end);
	if (is_asked(g, r, own))
		return;
	if (r->what == GENERATION_PROTECT) {
		pl_counted_protected(g->ctx, r->start, r->end);
		return;
	}
	pl_generation_decode(r, own, &ch.op, &ch.also);
	pinl_change_submit(g->ctx, &ch);
}

static void drop_all(struct pl_generation *g)
{
	struct pinl_event ev = {
		.size = sizeof ev, .type = PINL_EV_DEGRADED, .op = PINL_OP_NR, .err = -EOVERFLOW};
	uint64_t now = pl_clock_ns();

	pl_generation_recent_add(g, 0, UINTPTR_MAX);
	pl_counted_unknown(g->ctx);
	if (now < g->said_ns + SAY_NS)
		return;
	g->said_ns = now;
	strcpy(ev.source, "generation");
	pl_event_push(g->ctx, &ev);
}

static void say_applied(struct pl_generation *g)
{
	__atomic_store_n(&g->counts->applied, g->taken + g->lost, __ATOMIC_RELEASE);
}

static bool take_record(struct pl_generation *g)
{
	struct generation_record r;

	if (atomic_load(&g->stop) || pl_generation_next(&g->ring, &r) != PL_GENERATION_TAKEN)
		return false;
	apply(g, &r);
	g->taken++;
	return true;
}

static bool has_lost(const struct pl_generation *g)
{
	return __atomic_load_n(&g->counts->lost, __ATOMIC_ACQUIRE) != g->lost;
}

/* Who waits for what was told when he began waits for no more than that, while others go on. But what
 * was told later may not stand for what was lost before: that is applied first, once for a ring of them.
 */
static void take_records(struct pl_generation *g)
{
	unsigned unsaid = 0;

	while (unsaid < A_RING && take_record(g)) {
		if (g->taken % AT_A_TIME)
			continue;
		if (has_lost(g))
			unsaid += AT_A_TIME;
		else
			say_applied(g);
	}
}

void pl_generation_take_left(struct pl_generation *g)
{
	while (take_record(g))
		;
}

bool pl_generation_take(struct pl_generation *g)
{
	struct generation_counts *c = g->counts;
	uint64_t told, lost;

	told = __atomic_load_n(&c->told, __ATOMIC_ACQUIRE);
	if (told == __atomic_load_n(&c->applied, __ATOMIC_RELAXED))
		return true;
	if (__atomic_load_n(&c->ended, __ATOMIC_ACQUIRE)) /* no lookup is to go on */
		return false;
	take_records(g);
	lost = __atomic_load_n(&c->lost, __ATOMIC_ACQUIRE);
	if (lost != g->lost) {
		g->lost = lost;
		drop_all(g);
	}
	say_applied(g);
	return g->taken + g->lost == __atomic_load_n(&c->told, __ATOMIC_ACQUIRE);
}
