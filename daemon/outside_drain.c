/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * When are the old pages unpinned? Either proof is enough:
 *
 * - The completion with the old buffer's tag stands unread in the ring, and no other slot of the
 * holder's has the range (it could be a clone, which shares the pins).
 * - The ledger: VmPin, less what all tables of the holder's rings have, is back at what it was. Old
 * pages that a request still uses are in VmPin and in no table. If other slots have changed meanwhile it
 * says nothing: huge pages are accounted otherwise than they are counted. Nor does it of a process
 * whose pins may be in no VmPin at all.
 */
#include <errno.h>
#include <pinlease/device.h>
#include <string.h>
#include <time.h>

#include "backend/uring_table.h"
#include "os/clock.h"
#include "outside_int.h"

#define STEP_EVERY_NS 40000000u
#define STEPS	      3
#define CANCELS	      3
#define CANCEL_NS     2000000u	 /* to wait for it in the kernel */
#define CHILD_NS      500000000u /* for the call to return, however busy the machine */

void pl_outside_pause(uint64_t deadline_ns)
{
	uint64_t now = pl_clock_ns(), left = deadline_ns > now ? deadline_ns - now : 0;
	struct timespec t = {0, left < 200000 ? left : 200000};

	nanosleep(&t, NULL);
}

/* ------------------------------------------------------------------------------------ ledger -- */

static int sample(struct pl_outside *o, const struct pl_outside_buf *b, struct pl_tables *t,
		  int64_t *excess)
{
	int64_t before, after;
	int err = pl_look_vmpin(o->pid, &before);

	if (!err)
		err = pl_look_tables(o->pid, o->ring, b, t);
	if (!err)
		err = pl_look_vmpin(o->pid, &after);
	if (!err && before != after)
		err = -EAGAIN;
	if (!err)
		*excess = after - (int64_t)t->pages;
	return err;
}

/* Before a slot is changed. Without figures there will be no proof but the tag. */
int pl_outside_note(struct pl_outside *o, struct pl_outside_buf *b, uint64_t deadline_ns)
{
	struct pl_tables t = {0};
	int64_t excess = 0;
	int err;

	while ((err = sample(o, b, &t, &excess)) == -EAGAIN && pl_clock_ns() < deadline_ns)
		pl_outside_pause(deadline_ns);
	if (!o->pending) {
		o->spoiled = err || excess < 0 || pl_look_unaccounted(o->pid);
		o->base = excess;
		o->sum = t.sum;
	} else if (err || t.sum != o->sum) {
		o->spoiled = true;
	}
	o->pending += !b->pending;
	b->pending = true;
	return err;
}

static bool confirmed(struct pl_outside *o, const struct pl_outside_buf *b)
{
	struct pl_outside_buf slot = *b;
	struct pl_tables t;
	int64_t excess;
	bool tag;

	if (pl_look_slot(o->ring, &slot, &tag))
		return false;
	if (pl_look_ended(o->pidfd)) /* which ends none of its requests while somebody has the ring, and
					we have */
		return tag && pl_outside_heirs(o, NULL, 0) == 0;
	if (sample(o, b, &t, &excess))
		return false;
	if (tag && !t.shared)
		return true;
	o->spoiled |= t.sum != o->sum;
	return !o->spoiled && excess <= o->base;
}

/* ------------------------------------------------------------------------------------- drain -- */

struct cancel {
	int ring;
	uint64_t timeout_ns;
};

static int cancel_child(const void *arg)
{
	const struct cancel *c = arg;

	pl_ring_cancel_fixed(c->ring, c->timeout_ns);
	return 0;
}

void pl_outside_cancel(struct pl_outside *o, uint64_t timeout_ns, uint64_t deadline_ns)
{
	struct cancel c = {o->ring, timeout_ns};

	pl_outside_run(&o->child, c.ring, cancel_child, &c, deadline_ns);
}

static int unconfirmed(struct pl_outside *o, unsigned flags)
{
	char state = pl_look_state(o->pid, o->pid);

	if (pl_look_ended(o->pidfd))
		return pinl_set_error(
			-ETIMEDOUT,
			"process %d has ended, and requests of its ring may still have the old pages; "
			"kill waits for them, and names who has the ring",
			o->pid);
	if (state == 'T')
		return pinl_set_error(
			-ETIMEDOUT,
			"process %d is stopped, and what it had in flight holds the old pages until "
			"it runs%s; send it SIGCONT, or kill it",
			o->pid,
			flags & PL_OUTSIDE_STEP ? " (stepping didn't help; has a debugger got it?)"
						: "");
	return pinl_set_error(
		-ETIMEDOUT,
		"process %d (state %c): it isn't verified that the old pages are unpinned%s; "
		"wait longer or kill it",
		o->pid, state,
		o->spoiled ? ", because its other buffers changed meanwhile, or "
			     "it has CAP_IPC_LOCK, with which Linux doesn't account for pins"
			   : "");
}

/* Where a request wasn't to be cancelled the first time it is tried again. */
static void cancel(struct pl_outside *o, struct pl_outside_drain *d, uint64_t now)
{
	uint64_t left = d->deadline_ns > now ? d->deadline_ns - now : 0;

	pl_outside_cancel(o, CANCEL_NS, now + (left > CHILD_NS ? left : CHILD_NS));
	d->cancel_at = now + left / 2;
	if (d->cancels-- == CANCELS) {
		d->step_at = 0;
		d->steps = STEPS;
	}
}

void pl_outside_drain_begin(struct pl_outside_buf *b, uint64_t deadline_ns)
{
	uint64_t now = pl_clock_ns();

	b->drain = (struct pl_outside_drain){.deadline_ns = deadline_ns};
	if (deadline_ns <= now)
		return;
	b->drain.cancel_at = now + (deadline_ns - now) / 2;
	b->drain.cancels = CANCELS;
	b->drain.step_at = now;
	b->drain.steps = 1; /* before cancelling, and STEPS after it */
}

/* Who looks at many may be late: what ends a request is done in any case. */
static bool over(const struct pl_outside_drain *d, unsigned flags, uint64_t now)
{
	return now >= d->deadline_ns && d->cancels < CANCELS &&
	       (!d->steps || !(flags & PL_OUTSIDE_STEP));
}

int pl_outside_drain_look(struct pl_outside *o, struct pl_outside_buf *b, unsigned flags)
{
	struct pl_outside_drain *d = &b->drain;
	uint64_t now;

	if (o->kind != PL_OUTSIDE_RING)
		return pl_space_look(o, b, d->deadline_ns);
	if (o->why || o->ring < 0)
		return pinl_set_error(-EOPNOTSUPP, "%s", o->why ? o->why : "the ring was given up");
	if (!b->pending)
		return 0;
	if (confirmed(o, b)) {
		o->pending--;
		b->pending = false;
		return 0;
	}
	now = pl_clock_ns();
	if (over(d, flags, now))
		return unconfirmed(o, flags);
	if (d->cancels && now >= d->cancel_at)
		cancel(o, d, now);
	if ((flags & PL_OUTSIDE_STEP) && d->steps && (now >= d->step_at || now >= d->deadline_ns)) {
		d->steps = pl_outside_step(o) ? 0 : d->steps - 1;
		d->step_at = pl_clock_ns() + STEP_EVERY_NS;
	}
	return -EAGAIN;
}

int pl_outside_drained(struct pl_outside *o, struct pl_outside_buf *b, unsigned flags,
		       uint64_t deadline_ns)
{
	int err;

	pl_outside_drain_begin(b, deadline_ns);
	while ((err = pl_outside_drain_look(o, b, flags)) == -EAGAIN)
		pl_outside_pause(deadline_ns);
	return err;
}
