/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The backend of the arbiter's leases: what a holder's own library has done, or what is done to the
 * holder's ring from outside, scratch first, then an empty slot. Runs in the core's worker, or in who
 * ends the lease.
 */
#include <errno.h>

#include "daemon.h"
#include "os/clock.h"

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

static int holder_stop(void *dev, struct pinl_mapping *m)
{
	uint64_t deadline =
		pl_clock_ns() + ((struct holder *)dev)->server->ctx->opts.drain_ms * 1000000ull;
	struct held_lease *hl = m->priv;
	struct ring *ring = hl->ring;
	int err = -EOPNOTSUPP;

	if (m->holder_done || hl->holder->left)
		return 0;
	if (!ring)
		return no_way();
	if (hl->stored)
		__atomic_store_n(&hl->stored->state, STORED_TAKEN, __ATOMIC_RELEASE);
	pthread_mutex_lock(&ring->lock);
	if (hl->then != PINL_THEN_FAIL) /* a copy could only be made where the holder is */
		err = pl_outside_scratch(ring->outside, &hl->buf, deadline);
	if (err)
		err = pl_outside_empty(ring->outside, &hl->buf, deadline);
	pthread_mutex_unlock(&ring->lock);
	return err;
}

static int holder_drain(void *dev, struct pinl_mapping *m, uint64_t deadline_ns)
{
	struct held_lease *hl = m->priv;
	struct ring *ring = hl->ring;
	int err;

	if (m->holder_done || hl->holder->left)
		return 0;
	if (!ring)
		return no_way();
	pthread_mutex_lock(&ring->lock);
	err = pl_outside_drained(ring->outside, &hl->buf, PL_OUTSIDE_STEP, deadline_ns);
	pthread_mutex_unlock(&ring->lock);
	return err;
}

const struct pinl_device_ops holder_device_ops = {
	.size = sizeof(struct pinl_device_ops),
	.name = "holder",
	.open = holder_open,
	.map = holder_map,
	.stop = holder_stop,
	.drain = holder_drain,
};
