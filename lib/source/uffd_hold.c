/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Events are read in the order in which their callers were blocked, so the oldest n callers of the table
 * are those the next n reads let go. All that one scan finds are a group: their order is unknown, so a
 * group goes as a whole. Who blocks while a scan runs can be older than another whom that scan finds;
 * then his hold may be cut short, as below. The exception that makes the common case cheap: if no lease
 * cares about any of the table, one goes at a time; the oldest event was there before the scan, so its
 * caller is in the table.
 *
 * Invariant (I8): nobody waits long for a caller that could be waiting for him. A caller that no lease
 * cares about, that acts for the core, or whose change is unknown or answered, ends the hold of those
 * before it.
 *
 * An ask is in use from submit to answer. Who holds it: WAITED = the reader and the core, ANSWERED = the
 * reader, TOLD = the core alone. Whoever leaves last makes it FREE.
 *
 * Nothing here allocates or takes a lock, apart from making and freeing pl_uffd_asks. The table of
 * callers belongs to the reader thread; asks are shared with the threads that answer, through `state`.
 */
#include "source/uffd_hold.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "os/clock.h"
#include "os/wake.h"

#define STUCK_NS   10000000u  /* a caller nobody cares about waits this long behind others */
#define THROUGH_NS 100000000u /* and one whose own recall is over, this long */
#define AWAKE_NS   100000000u /* a woken waiter is back asleep */
#define LOOK_NS	   1000000u   /* between looks at those leaving */
#define FOR_TELL   16	      /* asks that no held caller gets */

enum { FREE, WAITED, ANSWERED, TOLD };

/* --------------------------------------------------------------------------------------- asks -- */

struct pl_uffd_asks *pl_uffd_asks_new(struct pinl_ctx *ctx)
{
	struct pl_uffd_asks *asks = calloc(1, sizeof *asks);

	if (!asks)
		return NULL;
	asks->ctx = ctx;
	asks->refs = 1;
	asks->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (asks->kick < 0) {
		free(asks);
		return NULL;
	}
	for (int i = 0; i < PL_UFFD_ASKS; i++)
		asks->ask[i].asks = asks;
	return asks;
}

void pl_uffd_asks_put(struct pl_uffd_asks *asks)
{
	if (atomic_fetch_sub(&asks->refs, 1) > 1)
		return;
	close(asks->kick);
	free(asks);
}

static void answered(struct pinl_change *change, int err)
{
	struct pl_uffd_ask *ask = change->arg;
	struct pl_uffd_asks *asks = ask->asks;
	int waited = WAITED;

	if (!atomic_compare_exchange_strong(&ask->state, &waited, ANSWERED)) {
		if (change->can & PINL_WILL_SAY_DONE)
			pinl_change_done(asks->ctx, change->id);
		atomic_store(&ask->state, FREE);
	} else if (!pthread_equal(pthread_self(), asks->reader)) {
		pl_wake(asks->kick);
	}
	pl_uffd_asks_put(asks);
}

static struct pl_uffd_ask *submit(struct pl_uffd_asks *asks, const struct pl_uffd_range *range,
				  unsigned can, pid_t tid, int state)
{
	int i = 0, last = state == WAITED ? PL_UFFD_ASKS - FOR_TELL : PL_UFFD_ASKS;
	struct pl_uffd_ask *ask;

	while (i < last && atomic_load(&asks->ask[i].state) != FREE)
		i++;
	if (i == last)
		return NULL;
	ask = &asks->ask[i];
	ask->change = (struct pinl_change){
		.op = range->op,
		.can = can,
		.start = range->start,
		.end = range->end,
		.newer_than = range->newer_than,
		.actor_pid = tid ? getpid() : 0,
		.actor_tid = tid,
		.source = "uffd",
		.answer = answered,
		.arg = ask,
	};
	atomic_store(&ask->state, state);
	atomic_fetch_add(&asks->refs, 1);
	pinl_change_submit(asks->ctx, &ask->change);
	return ask;
}

/* There is always room: what can't be held is answered within submit, so FOR_TELL is never used up. */
void pl_uffd_tell(struct pl_uffd_asks *asks, const struct pl_uffd_range *range, pid_t tid)
{
	submit(asks, range, PINL_CAN_TELL, tid, TOLD);
}

/* --------------------------------------------------------------------------------------- hold -- */

static bool is_before(enum pinl_op op)
{
	return op == PINL_OP_DONTNEED || op == PINL_OP_FREE || op == PINL_OP_REMOVE;
}

static bool is_answered(const struct pl_uffd_ask *ask)
{
	return !ask || atomic_load(&ask->state) == ANSWERED;
}

static void ask_for(struct pl_uffd_hold *hold, struct pl_uffd_caller *c)
{
	for (int i = 0; i < c->nr && !c->exempt; i++) {
		unsigned can = PINL_CAN_TELL | PINL_CAN_HOLD;

		if (is_before(c->range[i].op))
			can |= PINL_CAN_BEFORE | PINL_WILL_SAY_DONE;
		c->ask[i] = submit(hold->asks, &c->range[i], can, c->tid, WAITED);
	}
	/* A core that has nothing to do answers within submit. */
	c->idle = !c->exempt && is_answered(c->ask[0]) && is_answered(c->ask[1]);
}

/* The reader is done with it; what the core still has to answer is from now on nobody's to wait for. */
static void forget(struct pl_uffd_ask *ask)
{
	int waited = WAITED;

	if (!ask || atomic_compare_exchange_strong(&ask->state, &waited, TOLD))
		return;
	if (ask->change.can & PINL_WILL_SAY_DONE)
		pinl_change_done(ask->asks->ctx, ask->change.id);
	atomic_store(&ask->state, FREE);
}

static struct pl_uffd_caller *known(struct pl_uffd_hold *hold, pid_t tid)
{
	for (int i = 0; i < hold->nr; i++)
		if (hold->caller[i].tid == tid && !hold->caller[i].gone)
			return &hold->caller[i];
	return NULL;
}

/* Every read of an event wakes all waiters for a moment, so a known one that runs counts as blocked. */
static bool still_there(struct pl_uffd_caller *c, int nr, const struct pl_syscall *call)
{
	uint64_t now = pl_clock_ns();

	if (nr >= 0 && !memcmp(&c->call, call, sizeof *call))
		c->seen_ns = now;
	else if (nr != -EAGAIN || now - c->seen_ns > AWAKE_NS)
		return false;
	return true;
}

static int scan_one(pid_t tid, void *arg)
{
	struct pl_uffd_hold *hold = arg;
	struct pl_uffd_caller *c = known(hold, tid);
	struct pl_uffd_range range[2];
	struct pl_syscall call = {0};
	int nr = pl_uffd_look(tid, hold->wchan, &call, range);

	if (c) {
		c->seen = still_there(c, nr, &call);
		c->gone = !c->seen;
	}
	if (nr < 0 || (c && c->seen))
		return 0;
	if (hold->nr == PL_UFFD_CALLERS) {
		hold->overflow = true;
		return 0;
	}
	c = &hold->caller[hold->nr++];
	*c = (struct pl_uffd_caller){
		.tid = tid, .call = call, .nr = nr, .group = hold->group, .seen = true};
	memcpy(c->range, range, nr * sizeof *range);
	c->since_ns = c->seen_ns = pl_clock_ns();
	c->mark = pinl_newest(hold->asks->ctx);
	c->exempt = pinl_tid_exempt(hold->asks->ctx, tid);
	return 0;
}

static void drop_unseen(struct pl_uffd_hold *hold)
{
	int kept = 0;

	for (int i = 0; i < hold->nr; i++) {
		struct pl_uffd_caller *c = &hold->caller[i];

		if (!c->seen) {
			forget(c->ask[0]);
			forget(c->ask[1]);
		} else {
			hold->caller[kept++] = *c;
		}
	}
	hold->nr = kept;
}

static bool only_idle(const struct pl_uffd_hold *hold)
{
	for (int i = 0; i < hold->nr; i++)
		if (!hold->caller[i].idle)
			return false;
	return hold->nr;
}

void pl_uffd_hold_scan(struct pl_uffd_hold *hold, bool ask)
{
	hold->group++;
	hold->overflow = false;
	for (int i = 0; i < hold->nr; i++)
		hold->caller[i].seen = false;
	pl_task_each_thread(scan_one, hold);
	drop_unseen(hold);
	for (int i = 0; ask && i < hold->nr; i++)
		if (hold->caller[i].group == hold->group)
			ask_for(hold, &hold->caller[i]);
	hold->one = ask && only_idle(hold);
}

static int group_end(const struct pl_uffd_hold *hold, int i)
{
	unsigned group = hold->caller[i].group;

	while (i < hold->nr && hold->caller[i].group == group)
		i++;
	return i;
}

/*
 * The hold of those before it is cut short for this one: it may be what their recalls wait for, a holder
 * who frees memory while he handles his notice. Who is through already is less of a hurry: most holds
 * are over by then.
 */
static bool must_go(const struct pl_uffd_caller *c, uint64_t now)
{
	bool through = is_answered(c->ask[0]) && is_answered(c->ask[1]);
	bool idle = c->exempt || c->idle || !c->nr;

	return through && now - c->since_ns > (idle ? STUCK_NS : THROUGH_NS);
}

static bool group_may_go(const struct pl_uffd_hold *hold, int i, int end)
{
	while (i < end && is_answered(hold->caller[i].ask[0]) && is_answered(hold->caller[i].ask[1]))
		i++;
	return i == end;
}

int pl_uffd_hold_ready(struct pl_uffd_hold *hold)
{
	uint64_t now = pl_clock_ns();
	int ready = 0;

	if (hold->overflow || hold->one)
		return hold->nr;
	while (ready < hold->nr && group_may_go(hold, ready, group_end(hold, ready)))
		ready = group_end(hold, ready);
	for (int i = hold->nr; !ready && i-- > 0;)
		if (must_go(&hold->caller[i], now))
			ready = group_end(hold, i);
	return ready;
}

static bool same_event(enum pinl_op event, enum pinl_op call)
{
	return is_before(event) == is_before(call);
}

enum pl_uffd_found pl_uffd_hold_find(struct pl_uffd_hold *hold, int nr, struct pl_uffd_range *r,
				     pid_t *tid)
{
	for (int i = 0; i < nr; i++) {
		struct pl_uffd_caller *c = &hold->caller[i];

		for (int j = 0; j < c->nr; j++) {
			if (r->start < c->range[j].start || r->end > c->range[j].end ||
			    !same_event(r->op, c->range[j].op))
				continue;
			r->op = c->range[j].op;
			*tid = c->tid;
			c->read = true;
			if (c->exempt == 2 || (!c->exempt && !c->ask[j]))
				return PL_UFFD_SEEN;
			r->newer_than = c->mark;
			return PL_UFFD_KNOWN;
		}
	}
	return PL_UFFD_UNSEEN;
}

/*
 * A change that was allowed happens when its caller gets to it: only then new leases may be made there.
 * One change per caller is enough: a later one is another call, or the same call and the same range.
 */
static struct pl_uffd_leaving *leaving(struct pl_uffd_hold *hold, pid_t tid)
{
	for (int i = 0; i < hold->n_leaving; i++)
		if (hold->leaving[i].thread.tid == tid) {
			pinl_change_done(hold->asks->ctx, hold->leaving[i].change_id);
			return &hold->leaving[i];
		}
	return hold->n_leaving < PL_UFFD_CALLERS ? &hold->leaving[hold->n_leaving++] : NULL;
}

static void leave(struct pl_uffd_hold *hold, const struct pl_uffd_caller *c, struct pl_uffd_ask *ask)
{
	struct pl_uffd_leaving *l = NULL;

	if (ask && atomic_load(&ask->state) == ANSWERED && (ask->change.can & PINL_WILL_SAY_DONE))
		l = leaving(hold, c->tid);
	if (l) {
		l->change_id = ask->change.id;
		pl_uffd_let_go(&l->thread, c->tid, &c->call, ask->change.end - ask->change.start);
		ask->change.can &= ~PINL_WILL_SAY_DONE;
	}
	if (ask && atomic_load(&ask->state) == WAITED)
		pinl_change_cut(hold->asks->ctx, &ask->change);
	forget(ask);
}

static void drop_at(struct pl_uffd_hold *hold, int i)
{
	for (int j = 0; j < hold->caller[i].nr; j++)
		leave(hold, &hold->caller[i], hold->caller[i].ask[j]);
	hold->nr--;
	memmove(hold->caller + i, hold->caller + i + 1, (hold->nr - i) * sizeof *hold->caller);
}

void pl_uffd_hold_drop(struct pl_uffd_hold *hold, int nr)
{
	while (nr--)
		drop_at(hold, 0);
}

void pl_uffd_hold_drop_read(struct pl_uffd_hold *hold)
{
	for (int i = 0; i < hold->nr; i++)
		if (hold->caller[i].read) {
			drop_at(hold, i);
			return;
		}
	pl_uffd_hold_drop(hold, hold->nr); /* some other's: look at all of them again */
}

void pl_uffd_hold_leave(struct pl_uffd_hold *hold)
{
	uint64_t now = pl_clock_ns();
	int kept = 0;

	if (now < hold->next_look_ns)
		return;
	for (int i = 0; i < hold->n_leaving; i++) {
		if (pl_uffd_has_left(&hold->leaving[i].thread))
			pinl_change_done(hold->asks->ctx, hold->leaving[i].change_id);
		else
			hold->leaving[kept++] = hold->leaving[i];
	}
	hold->n_leaving = kept;
	hold->next_look_ns = now + LOOK_NS;
}
