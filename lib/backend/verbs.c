/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * RDMA: a lease is a memory region whose device addresses are its VAs.
 *
 * A pinned region is taken away by deregistering it. That waits for transfers using it and lets the
 * pages go, so it is what confirms that the device is off (drain). Before, and at once, stop takes the
 * region's rights and protection domain, the window through which peers have it, or the queue pairs,
 * where that works. Invariant: `there` is false only when the kernel has no such region any more.
 * pinleased may deregister it, too, and its handle then be another's: so what it stands for is asked
 * before each command that names it.
 *
 * For a COPY the new pages get a new region, with new keys: none can be given other pages.
 *
 * An on-demand region (ODP) is invalidated by the kernel itself, in its MMU notifier, before any change
 * of the mapping is over; and it waits there for transfers. So nothing has to be done to follow, nor to
 * give it the new pages of a SCRATCH.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

#include "backend/backends.h"
#include "backend/verbs_dev.h"
#include "core/ctx.h"
#include "os/clock.h"
#include "os/errname.h"

#define PAGE	     4096ul
#define REMOTE_WRITE (IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC)

/* ---------------------------------------------------------------------------------- one region -- */

static bool is_there(const struct pl_verbs *d, struct pl_verbs_map *u)
{
	if (u->there && d->asks && pl_mr_is(&d->uverbs, &u->mr, u->start, u->len) == -ENOENT)
		u->there = false;
	return u->there;
}

/* Another region of the same context may be made, and even get the handle, while this is between asking
 * and deregistering: only if pinleased has taken ours at that very moment. */
static int end_region(const struct pl_verbs *d, struct pl_verbs_map *u)
{
	int err = 0;

	if (u->has_window)
		u->has_window = pl_mw_dealloc(&d->uverbs, u->window) != 0;
	/* Any error is the driver's, and the region is there. Of a device that was unplugged a region
	 * can still be deregistered: that succeeds, once the kernel has ended it itself. */
	if (is_there(d, u))
		err = pl_mr_dereg(&d->uverbs, u->mr.handle);
	u->there = err != 0;
	return err;
}

static void leave(struct pl_verbs *d, struct pl_verbs_map *u)
{
	pthread_mutex_lock(&d->lock);
	u->next = d->left;
	d->left = u;
	pthread_mutex_unlock(&d->lock);
}

/* To deregister can take long, so nobody else may have to wait for it. */
void pl_verbs_settle(struct pl_verbs *d)
{
	struct pl_verbs_map *u, *next;

	pthread_mutex_lock(&d->lock);
	u = d->left;
	d->left = NULL;
	pthread_mutex_unlock(&d->lock);
	for (; u; u = next) {
		next = u->next;
		if (end_region(d, u))
			leave(d, u);
		else
			free(u);
	}
}

/* --------------------------------------------------------------------------------- map and unmap -- */

static int reg_error(int err, size_t len)
{
	struct rlimit rl;

	if (err == -EFAULT || err == -EOPNOTSUPP)
		return pinl_set_error(
			-EOPNOTSUPP,
			"the RDMA device can't pin this memory: the kernel refuses that for MAP_SHARED "
			"of files on ext4, XFS, btrfs (since 6.5), for DAX and device memory, and for "
			"writing to read-only mappings; use tmpfs, memfd, anonymous or MAP_PRIVATE "
			"memory, lease without PINL_PIN where the device can fault (ODP), or use "
			"PINL_STAGE to lease a shared file mapping by a staged copy");
	if (err == -ENOMEM) {
		getrlimit(RLIMIT_MEMLOCK, &rl);
		return pinl_set_error(
			err,
			"pinning %zu KiB exceeds RLIMIT_MEMLOCK (%lu KiB for the process), "
			"or memory is out; raise it (ulimit -l, LimitMEMLOCK=) or give "
			"CAP_IPC_LOCK",
			len >> 10, (unsigned long)rl.rlim_cur >> 10);
	}
	if (err == -EIO || err == -ENODEV)
		return pinl_set_error(-ENODEV,
				      "the RDMA device is gone; close this device and open another");
	if (err == -ENOSPC || err == -EAGAIN)
		return pinl_set_error(-ENOSPC, "the RDMA device has no room for another memory region; "
					       "unmap some");
	return pinl_set_error(err, "the RDMA device can't register the range: %s", pl_errname(-err));
}

/* Of peers, in this lease. */
static unsigned remote_rights(const struct pl_verbs *d, unsigned flags)
{
	return flags & PINL_WRITE ? d->access : d->access & ~REMOTE_WRITE;
}

static unsigned rights(const struct pl_verbs *d, const struct pl_verbs_map *u, unsigned flags)
{
	unsigned local = flags & PINL_WRITE ? IBV_ACCESS_LOCAL_WRITE : 0;

	if (u->windowed)
		return local | IBV_ACCESS_MW_BIND | (d->access & IBV_ACCESS_RELAXED_ORDERING);
	return local | remote_rights(d, flags) | (flags & PINL_PIN ? 0 : IBV_ACCESS_ON_DEMAND);
}

static int make_window(const struct pl_verbs *d, struct pl_verbs_map *u)
{
	int err = u->windowed ? pl_mw_alloc(&d->uverbs, d->given->handle, &u->window, &u->mw.rkey) : 0;

	u->has_window = u->windowed && !err;
	u->mw.context = d->given->context;
	u->mw.pd = d->given;
	u->mw.handle = u->window;
	u->mw.type = IBV_MW_TYPE_2;
	return err ? pinl_set_error(err, "the RDMA device can't make a memory window: %s",
				    pl_errname(-err))
		   : 0;
}

/* What is mapped there now. Keys are read by any thread. */
static int make_region(const struct pl_verbs *d, struct pl_verbs_map *u, struct pinl_mapping *m)
{
	size_t len = m->end - m->start;
	int err = pl_mr_reg(&d->uverbs, d->given->handle, m->start, len, rights(d, u, m->flags), &u->mr);

	if (err)
		return reg_error(err, len);
	u->there = true;
	u->stopped = false;
	u->bound = (struct ibv_mr){.context = d->given->context,
				   .pd = d->given,
				   .addr = (void *)m->start,
				   .length = len,
				   .handle = u->mr.handle,
				   .lkey = u->mr.lkey,
				   .rkey = u->mr.rkey};
	__atomic_store_n(&m->key, u->mr.lkey, __ATOMIC_RELAXED);
	__atomic_store_n(&m->rkey, u->windowed ? ibv_inc_rkey(u->mw.rkey) : u->mr.rkey,
			 __ATOMIC_RELAXED);
	return 0;
}

static struct pl_verbs_map *new_map(const struct pl_verbs *d, const struct pinl_mapping *m)
{
	size_t nr = m->flags & PINL_PIN ? pl_second_pins(&d->readback, m->end - m->start) : 0;
	struct pl_verbs_map *u = calloc(1, sizeof *u + nr * sizeof *u->pins);

	if (!u)
		return NULL;
	u->start = m->start;
	u->len = m->end - m->start;
	u->windowed = d->means == PINL_VERBS_MW && (m->flags & PINL_PIN);
	pl_second_init(&u->second, u->pins, nr);
	return u;
}

static void end_map(struct pl_verbs *d, struct pl_verbs_map *u)
{
	end_region(d, u);
	pl_second_drop(&d->readback, &u->second);
}

static void verbs_forget(void *dev, struct pinl_mapping *m)
{
	struct pl_verbs_map *u = m->priv;

	if (u->there)
		leave(dev, u);
	else
		free(u);
}

static int verbs_map(void *dev, struct pinl_mapping *m, struct pinl_addr *addrs)
{
	struct pl_verbs *d = dev;
	struct pl_verbs_map *u = new_map(d, m);
	int err;

	if (!u)
		return pinl_set_error(-ENOMEM, "out of memory for a lease");
	m->priv = u;
	pl_verbs_settle(d);
	err = make_window(d, u);
	if (!err)
		err = make_region(d, u, m);
	if (!err && u->second.nr)
		err = pl_second_hold(&d->readback, &u->second, m);
	if (err) {
		end_map(d, u);
		verbs_forget(d, m);
		return err;
	}
	for (size_t i = 0; addrs && i < u->len / PAGE; i++)
		addrs[i] = (struct pinl_addr){m->start + i * PAGE, m->key, m->rkey};
	return 0;
}

static void verbs_unmap(void *dev, struct pinl_mapping *m)
{
	struct pl_verbs *d = dev;

	end_map(d, m->priv);
	if (d->readback.pins)
		pl_pins_settle(d->readback.pins);
}

/* ------------------------------------------------------------------------------------ taking away -- */

/* What fails here is tried again by drain, which doesn't confirm before. With other keys than those that
 * pinleased knows a region may not stay for a moment. */
static int verbs_stop(void *dev, struct pinl_mapping *m)
{
	struct pl_verbs *d = dev;
	struct pl_verbs_map *u = m->priv;
	uint32_t lkey = u->mr.lkey;

	u->stopped = true;
	if (!is_there(d, u))
		return 0;
	for (unsigned i = 0; i < d->n_qps; i++)
		pl_qp_error(&d->uverbs, d->qps[i]);
	if (u->has_window)
		u->has_window = pl_mw_dealloc(&d->uverbs, u->window) != 0;
	if (u->windowed && !u->has_window)
		return 0;
	if (d->means == PINL_VERBS_REREG && !pl_mr_park(&d->uverbs, &u->mr, d->aside->handle) &&
	    u->mr.lkey == lkey)
		return 0;
	end_region(d, u);
	return 0;
}

static int verbs_drain(void *dev, struct pinl_mapping *m, uint64_t deadline_ns)
{
	struct timespec pause = {0, 1000000};
	struct pl_verbs_map *u = m->priv;
	int err;

	if (!u->stopped) /* the switch of the pages was over only when no transfer had the old ones */
		return 0;
	while ((err = end_region(dev, u)) && pl_clock_ns() < deadline_ns)
		nanosleep(&pause, NULL);
	return err ? pinl_set_error(-ETIMEDOUT, "the RDMA device doesn't deregister the region: %s",
				    pl_errname(-err))
		   : 0;
}

static int verbs_read(void *dev, struct pinl_mapping *m, size_t offset, size_t len, void *buf)
{
	struct pl_verbs *d = dev;
	struct pl_verbs_map *u = m->priv;

	if (!(m->flags & PINL_PIN))
		return pinl_set_error(
			-EOPNOTSUPP,
			"an on-demand memory region holds no pages that could be read back; "
			"lease with PINL_PIN on a device opened with PINL_VERBS_READ");
	if (!d->readback.pins)
		return pinl_set_error(-EOPNOTSUPP, "the pages of this device can't be read back: %s",
				      d->readback.why_not ? d->readback.why_not
							  : "it was opened without PINL_VERBS_READ");
	return pl_second_read(&d->readback, &u->second, offset, len, buf);
}

static void verbs_drop(void *dev, struct pinl_mapping *m)
{
	struct pl_verbs *d = dev;
	struct pl_verbs_map *u = m->priv;

	if (!u->there)
		pl_second_drop(&d->readback, &u->second);
}

/* Where the new pages can't be held a second time the device goes on all the same, but can't be read any
 * more: a later COPY ends in FAIL. */
static int verbs_retarget(void *dev, struct pinl_mapping *m)
{
	struct pl_verbs *d = dev;
	struct pl_verbs_map *u = m->priv;
	bool prepared;
	int err;

	if (!(m->flags & PINL_PIN) && !u->stopped)
		return 0;
	if (!(m->flags & PINL_PIN))
		return pinl_set_error(-EOPNOTSUPP,
				      "an on-demand memory region that has been stopped is gone");
	if (!u->second.nr)
		return pinl_set_error(-EOPNOTSUPP,
				      "a pinned memory region gets other pages only by a COPY, with new "
				      "keys, on a device opened with PINL_VERBS_READ");
	if (u->there)
		return pinl_set_error(-EBUSY,
				      "the memory region isn't deregistered yet, and two can't have the "
				      "lease's addresses");
	prepared = pl_second_prepare(&d->readback, &u->second, m);
	err = make_region(d, u, m);
	if (err)
		pl_second_undo(&d->readback, &u->second, prepared);
	else
		pl_second_switch(&d->readback, &u->second, prepared);
	return err;
}

static int verbs_invalidate(void *dev, struct pinl_mapping *m, uintptr_t start, uintptr_t end)
{
	return m->flags & PINL_PIN ? pinl_set_error(-EOPNOTSUPP, "a pinned memory region can't fault")
				   : 0;
}

/* ------------------------------------------------------------------------------ others' part -- */

/* Not of a lease with a window, whose region can't be deregistered while that is bound. */
static void verbs_handle(void *dev, const struct pinl_mapping *m, struct pinl_handle *h)
{
	const struct pl_verbs *d = dev;
	const struct pl_verbs_map *u = m->priv;

	if (!d->asks || u->windowed)
		return;
	h->kind = PINL_HANDLE_VERBS;
	h->fd = d->uverbs.fd;
	h->key = u->mr.handle;
	h->twin = u->mr.lkey;
	h->tag = m->start | (u->second.nr ? PINL_HANDLE_REKEYS : 0);
}

const struct pinl_device_ops pl_verbs_ops = {
	.size = sizeof(struct pinl_device_ops),
	.name = "verbs",
	.open = pl_verbs_open,
	.close = pl_verbs_close,
	.map = verbs_map,
	.unmap = verbs_unmap,
	.stop = verbs_stop,
	.drain = verbs_drain,
	.read = verbs_read,
	.drop = verbs_drop,
	.retarget = verbs_retarget,
	.invalidate = verbs_invalidate,
	.handle = verbs_handle,
	.forget = verbs_forget,
};

int pinl_verbs_bind(struct pinl_lease *lease, struct ibv_send_wr *wr)
{
	const struct pl_verbs *d;
	struct pl_verbs_map *u;

	if (!pl_alive(lease->ctx))
		return pl_stale();
	d = pinl_device_priv(lease->dev, &pl_verbs_ops);
	u = d ? lease->dm.priv : NULL;
	if (!u || !u->windowed)
		return pinl_set_error(-EOPNOTSUPP,
				      "peers have this lease by no window; its rkey works as it is");
	wr->opcode = IBV_WR_BIND_MW;
	wr->bind_mw.mw = &u->mw;
	wr->bind_mw.rkey = lease->dm.rkey;
	wr->bind_mw.bind_info = (struct ibv_mw_bind_info){
		.mr = &u->bound,
		.addr = u->start,
		.length = u->len,
		.mw_access_flags =
			remote_rights(d, pl_lease_access(lease)) & ~IBV_ACCESS_RELAXED_ORDERING,
	};
	return 0;
}
