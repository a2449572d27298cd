/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "contract_verbs.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#ifdef HAVE_VERBS
#include "verbs_peer.h"

#define TRAIN 64

struct verbs {
	struct peer asks, answers;
	int broken; /* an error has ended the connection */
	struct rig *rig;
	pthread_t thread;
	atomic_int land;
	enum ibv_wc_status landed;
};

const char *verbs_missing(const struct fixture *f)
{
	const char *why = peer_missing();

	if (why || f->flags & PINL_PIN)
		return why;
	return peer_has_odp() ? NULL
			      : "the RDMA device has no on-demand regions (soft-RoCE: Linux 6.15)";
}

static void connect_both(struct verbs *v)
{
	struct peer_name asks, answers;

	peer_get_name(&v->asks, &asks);
	peer_get_name(&v->answers, &answers);
	peer_connect(&v->answers, &asks);
	peer_connect(&v->asks, &answers);
	v->broken = 0;
}

void verbs_open_device(struct rig *r)
{
	struct verbs *v = calloc(1, sizeof *v);
	struct pinl_verbs_arg arg = {
		.size = sizeof arg,
		.access = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ,
		.means = r->f->device_class,
		.flags = PINL_VERBS_WHOLE_PAGES | (r->f->can & READS ? PINL_VERBS_READ : 0),
	};

	peer_open(&v->asks, NULL, SIZE);
	peer_open(&v->answers, NULL, SIZE);
	if (arg.means == PINL_VERBS_QP) /* what has been taken away is never answered */
		v->asks.patience = 15;
	connect_both(v);
	r->verbs = v;
	arg.pd = v->answers.pd;
	arg.qps = &v->answers.qp;
	arg.n_qps = 1;
	assert_ok(pinl_device_open(r->ctx, "verbs", &arg, &r->dev));
}

void verbs_close_device(struct rig *r)
{
	struct verbs *v = r->verbs;

	peer_close(&v->asks);
	peer_close(&v->answers);
	free(v);
}

static int result(struct verbs *v, enum ibv_wc_status status)
{
	v->broken = status != IBV_WC_SUCCESS;
	return status == IBV_WC_SUCCESS ? 0 : -EFAULT;
}

int verbs_page(struct rig *r, const struct pinl_addr *a, void *buf, int write)
{
	struct verbs *v = r->verbs;
	uint32_t rkey = r->lease ? pinl_lease_rkey(r->lease) : a->rkey; /* a COPY has another */
	int err;

	if (v->broken)
		connect_both(v);
	if (write)
		memcpy(v->asks.buf, buf, PAGE);
	err = result(v, peer_move(&v->asks, write, 0, PAGE, a->addr, rkey));
	if (!err && !write)
		memcpy(buf, v->asks.buf, PAGE);
	return err;
}

/* One train after the other, until it may end or has to. */
static void *fly(void *arg)
{
	struct verbs *v = arg;
	const struct pinl_addr *a = v->rig->addrs;
	enum ibv_wc_status status = IBV_WC_SUCCESS;

	while (status == IBV_WC_SUCCESS && !atomic_load(&v->land)) {
		for (int i = 1; i <= TRAIN; i++)
			peer_post(&v->asks, 1, 0, PAGE, a->addr, a->rkey, i == TRAIN);
		status = peer_wait(&v->asks);
	}
	if (status == IBV_WC_SUCCESS)
		status = peer_move(&v->asks, 1, 0, SIZE, a->addr, a->rkey);
	v->landed = status;
	return NULL;
}

void verbs_take_off(struct rig *r, const char *buf)
{
	struct verbs *v = r->verbs;

	memcpy(v->asks.buf, buf, SIZE);
	v->rig = r;
	atomic_store(&v->land, 0);
	assert_int_equal(pthread_create(&v->thread, NULL, fly, v), 0);
}

int verbs_land(struct rig *r)
{
	struct verbs *v = r->verbs;

	atomic_store(&v->land, 1);
	pthread_join(v->thread, NULL);
	return result(v, v->landed);
}

#else

const char *verbs_missing(const struct fixture *f)
{
	return "this build has no verbs (meson option verbs)";
}

void verbs_open_device(struct rig *r)
{
}

void verbs_close_device(struct rig *r)
{
}

int verbs_page(struct rig *r, const struct pinl_addr *a, void *buf, int write)
{
	return -ENOTSUP;
}

void verbs_take_off(struct rig *r, const char *buf)
{
}

int verbs_land(struct rig *r)
{
	return -ENOTSUP;
}
#endif
