/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* An RDMA device: a peer on the last one there is writes to the lease, four transfers at a time. */
#include "device.h"

#ifdef HAVE_VERBS

#include <errno.h>
#include <string.h>

#include "../tests/verbs_peer.h"

#define SIZE  MIB
#define TRAIN 4
#define PEERS (IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ)

struct pair {
	struct peer here, far;
	struct ibv_mr *mr;
	bool broken;
};

static void connect_pair(struct target *t)
{
	struct pair *p = t->priv;
	struct peer_name here, far;

	if (!p->broken)
		return;
	peer_get_name(&p->here, &here);
	peer_get_name(&p->far, &far);
	peer_connect(&p->here, &far);
	peer_connect(&p->far, &here);
	p->broken = false;
}

static int move(struct target *t, const struct pinl_addr *addrs)
{
	struct pair *p = t->priv;

	for (int i = 0; i < TRAIN; i++)
		peer_post(&p->far, 1, 0, SIZE, addrs[0].addr, addrs[0].rkey, i == TRAIN - 1);
	p->broken = peer_wait(&p->far) != IBV_WC_SUCCESS;
	return p->broken ? -EACCES : 0;
}

static int plain_map(struct target *t, char *at, size_t size, struct pinl_addr *first)
{
	struct pair *p = t->priv;
	unsigned odp = t->flags & PINL_PIN ? 0 : IBV_ACCESS_ON_DEMAND;

	p->mr = ibv_reg_mr(p->here.pd, at, size, PEERS | IBV_ACCESS_LOCAL_WRITE | odp);
	if (!p->mr)
		return -errno;
	*first = (struct pinl_addr){(uintptr_t)at, p->mr->lkey, p->mr->rkey};
	return 0;
}

static void plain_unmap(struct target *t)
{
	struct pair *p = t->priv;

	must(-ibv_dereg_mr(p->mr), "ibv_dereg_mr");
}

static void one(const struct bench *b, struct rig *r, struct pair *p, const char *name, unsigned means)
{
	struct target t = {.name = name,
			   .rig = r,
			   .flags = PINL_WRITE | (means ? PINL_PIN : 0),
			   .size = SIZE,
			   .priv = p,
			   .prepare = connect_pair,
			   .move = move,
			   .plain_map = plain_map,
			   .plain_unmap = plain_unmap};
	struct pinl_verbs_arg arg = {.size = sizeof arg,
				     .pd = p->here.pd,
				     .access = PEERS,
				     .means = means,
				     .flags = PINL_VERBS_WHOLE_PAGES};

	if (pinl_device_open(r->ctx, "verbs", &arg, &t.dev)) {
		left_out(b, name, pinl_error());
		return;
	}
	device_revoke(b, &t);
	if (means != PINL_VERBS_REREG) /* making a lease is the same */
		device_map(b, &t);
	pinl_device_close(t.dev);
}

void group_device_verbs(const struct bench *b)
{
	struct pair p = {.broken = true};
	struct rig r;

	if (peer_missing()) {
		left_out(b, "leases on RDMA devices", peer_missing());
		return;
	}
	rig_open(b, &r, false);
	peer_open(&p.here, NULL, SIZE);
	peer_open(&p.far, peer_far(), SIZE);
	memset(p.far.buf, 'W', SIZE);
	one(b, &r, &p, "verbs, REREG", PINL_VERBS_REREG);
	one(b, &r, &p, "verbs, DEREG", PINL_VERBS_DEREG);
	if (peer_has_odp())
		one(b, &r, &p, "verbs, ODP", 0);
	else
		left_out(b, "verbs, ODP", "the RDMA device has no on-demand regions");
	rig_close(&r);
	peer_close(&p.here);
	peer_close(&p.far);
}

#else

void group_device_verbs(const struct bench *b)
{
	left_out(b, "leases on RDMA devices", "this build has no libibverbs");
}

#endif
