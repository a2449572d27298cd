/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The backend of the arbiter's leases: what a holder's own library has done, or what is done to the
 * holder's ring from outside, scratch first, then an empty slot; and where that doesn't do and the
 * policy says so, to the holder (kill.c). Runs in the core's worker, or in who ends the lease.
 */
#include <errno.h>

#include "core/policy.h"
#include "daemon.h"
#include "os/clock.h"

#define LEAST_NS 20000000u /* to drain, after the stopping of many others has used up the time */

static int holder_open(const void *arg, struct pinl_device_info *info, void **dev)
{
	info->device_class = PINL_DEV_REVOCABLE; /* by the holder's word, else from outside */
	info->caps = PINL_DEVCAP_PIN | PINL_DEVCAP_ONDEMAND;
	*dev = (void *)arg;
	return 0;
}

static int holder_map(void *dev, struct pinl_mapping *m, struct pinl_addr *addrs)
{
	m->priv = ((struct holder *)dev)->making;
	return 0;
}

static int no_way(void)
{
	return pinl_set_error(-EOPNOTSUPP,
			      "the holder doesn't answer, and its device can't be reached from "
			      "outside");
}

static int force(struct held_lease *hl, struct ring *ring, uint64_t deadline)
{
	int err = -EOPNOTSUPP;

	if (hl->stored)
		__atomic_store_n(&hl->stored->state, STORED_TAKEN, __ATOMIC_RELEASE);
	pthread_mutex_lock(&ring->lock);
	if (pl_then_moves(hl->then)) /* a copy could only be made where the holder is */
		err = pl_outside_scratch(ring->outside, &hl->buf, deadline);
	if (err)
		err = pl_outside_empty(ring->outside, &hl->buf, deadline);
	pthread_mutex_unlock(&ring->lock);
	return err;
}

/* Of who is to be killed otherwise, what couldn't be stopped is left to drain. */
static int holder_stop(void *dev, struct pinl_mapping *m)
{
	uint64_t now = pl_clock_ns(),
		 deadline = now + ((struct holder *)dev)->server->ctx->opts.drain_ms * 1000000ull;
	struct held_lease *hl = m->priv;
	struct ring *ring = hl->ring;

	hl->drains = hl->drained = false;
	if (m->holder_done || hl->holder->left)
		return 0;
	hl->stopped = ring ? force(hl, ring, share_work(hl->holder, deadline)) : no_way();
	share_worked(hl->holder, now);
	return hl->then == PINL_THEN_KILL ? 0 : hl->stopped;
}

/* The ring's lock is held for long only by who looks at the pins of the dead. */
int holder_drained(struct pinl_lease *l, uint64_t deadline_ns)
{
	struct held_lease *hl = l->dm.priv;
	struct ring *ring = hl->ring;
	uint64_t now = pl_clock_ns();
	int err;

	if (hl->holder->left || hl->stopped || !ring)
		return 0;
	if (pthread_mutex_trylock(&ring->lock))
		return now < deadline_ns ? -EAGAIN : 0;
	if (!hl->drains) {
		deadline_ns = deadline_ns > now + LEAST_NS ? deadline_ns : now + LEAST_NS;
		pl_outside_drain_begin(&hl->buf, share_work(hl->holder, deadline_ns));
	}
	hl->drains = true;
	err = pl_outside_drain_look(ring->outside, &hl->buf, PL_OUTSIDE_STEP);
	pthread_mutex_unlock(&ring->lock);
	hl->drained = err != -EAGAIN;
	share_worked(hl->holder, now);
	return err;
}

/* Where it was waited for it is looked at once more, for the sentence. */
static int holder_drain(void *dev, struct pinl_mapping *m, uint64_t deadline_ns)
{
	struct held_lease *hl = m->priv;
	struct ring *ring = hl->ring;
	uint64_t now = pl_clock_ns();
	int err = hl->stopped;

	if (m->holder_done || hl->holder->left)
		return 0;
	if (!ring)
		err = no_way();
	if (!err) {
		pthread_mutex_lock(&ring->lock);
		err = pl_outside_drained(ring->outside, &hl->buf, PL_OUTSIDE_STEP,
					 hl->drained ? now : share_work(hl->holder, deadline_ns));
		pthread_mutex_unlock(&ring->lock);
	}
	if (err && hl->then == PINL_THEN_KILL)
		err = kill_holder(hl, m);
	share_worked(hl->holder, now);
	return err;
}

static void holder_forget(void *dev, struct pinl_mapping *m)
{
	struct server *s = ((struct holder *)dev)->server;

	pthread_mutex_lock(&s->reaping);
	((struct held_lease *)m->priv)->gone = true;
	pthread_mutex_unlock(&s->reaping);
}

const struct pinl_device_ops holder_device_ops = {
	.size = sizeof(struct pinl_device_ops),
	.name = "holder",
	.open = holder_open,
	.map = holder_map,
	.stop = holder_stop,
	.drain = holder_drain,
	.forget = holder_forget,
};
