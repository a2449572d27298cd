/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "backend/verbs_loop.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "os/clock.h"

#define WAIT_NS	  3000000000ull
#define ACK_TIME  14 /* 67 ms */
#define RETRIES	  3
#define MAX_GIDS  16
#define FIRST_PSN 1
#define ATTEMPTS  20

static int to_init(struct pl_loop *l, struct ibv_qp *qp)
{
	struct ibv_qp_attr a = {.qp_state = IBV_QPS_RESET};
	int err = ibv_modify_qp(qp, &a, IBV_QP_STATE);

	a = (struct ibv_qp_attr){
		.qp_state = IBV_QPS_INIT,
		.port_num = l->port_num,
		.qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ,
	};
	if (!err)
		err = ibv_modify_qp(
			qp, &a, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
	return -err;
}

static int address(struct pl_loop *l, struct ibv_ah_attr *ah)
{
	*ah = (struct ibv_ah_attr){.port_num = l->port_num, .dlid = l->port.lid};
	if (l->port.link_layer == IBV_LINK_LAYER_INFINIBAND)
		return 0;
	ah->is_global = 1;
	ah->grh.sgid_index = l->gid;
	ah->grh.hop_limit = 1;
	return ibv_query_gid(l->ctx, l->port_num, l->gid, &ah->grh.dgid) ? -ENETDOWN : 0;
}

static int to_send(struct pl_loop *l, struct ibv_qp *qp, uint32_t peer)
{
	struct ibv_qp_attr a = {
		.qp_state = IBV_QPS_RTR,
		.path_mtu = l->port.active_mtu,
		.dest_qp_num = peer,
		.rq_psn = FIRST_PSN,
		.max_dest_rd_atomic = 1,
		.min_rnr_timer = 1,
	};
	int err = address(l, &a.ah_attr);

	if (err)
		return err;
	err = ibv_modify_qp(qp, &a,
			    IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
				    IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
	a = (struct ibv_qp_attr){
		.qp_state = IBV_QPS_RTS,
		.timeout = ACK_TIME,
		.retry_cnt = RETRIES,
		.rnr_retry = RETRIES,
		.sq_psn = FIRST_PSN,
		.max_rd_atomic = 1,
	};
	if (!err)
		err = ibv_modify_qp(qp, &a,
				    IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
					    IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC);
	return -err;
}

static int connect_once(struct pl_loop *l)
{
	struct ibv_wc wc;
	int err = 0;

	for (int i = 0; i < 2 && !err; i++)
		err = to_init(l, l->qp[i]);
	while (ibv_poll_cq(l->cq, 1, &wc) > 0)
		;
	for (int i = 0; i < 2 && !err; i++)
		err = to_send(l, l->qp[i], l->qp[!i]->qp_num);
	return err;
}

/* An error leaves both useless: from the start. What is left of it in the driver can put a queue pair
 * that was just reset into the error state once more (soft-RoCE). */
static int connect_both(struct pl_loop *l)
{
	struct timespec pause = {0, 2000000};
	int err = -EINVAL;

	if (l->connected)
		return 0;
	for (int i = 0; i < ATTEMPTS && (err = connect_once(l)) == -EINVAL; i++)
		nanosleep(&pause, NULL);
	l->connected = !err;
	return err == -EACCES ? -EIO : err;
}

static int wait_wc(struct pl_loop *l, struct ibv_wc *wc)
{
	uint64_t until = pl_clock_ns() + WAIT_NS;
	struct timespec pause = {0, 20000};
	int n;

	while (!(n = ibv_poll_cq(l->cq, 1, wc)) && pl_clock_ns() < until) {
		nanosleep(&pause, NULL);
		if (pause.tv_nsec < 1000000)
			pause.tv_nsec *= 2;
	}
	return n < 0 ? -EIO : n ? 0 : -ETIMEDOUT;
}

static int post(struct pl_loop *l, struct ibv_qp *qp, struct ibv_send_wr *wr)
{
	struct ibv_send_wr *bad;
	struct ibv_wc wc;
	int err = connect_both(l);

	wr->send_flags = IBV_SEND_SIGNALED;
	if (!err)
		err = -ibv_post_send(qp, wr, &bad);
	if (!err)
		err = wait_wc(l, &wc);
	if (!err && wc.status)
		err = -EACCES;
	if (err)
		l->connected = false;
	return err;
}

int pl_loop_move(struct pl_loop *l, bool write, uint64_t at, uint32_t rkey, size_t len)
{
	struct ibv_sge sge = {(uintptr_t)l->buf, len, l->mr->lkey};
	struct ibv_send_wr wr = {
		.sg_list = &sge,
		.num_sge = 1,
		.opcode = write ? IBV_WR_RDMA_WRITE : IBV_WR_RDMA_READ,
		.wr.rdma = {.remote_addr = at, .rkey = rkey},
	};

	return post(l, l->qp[0], &wr);
}

int pl_loop_post(struct pl_loop *l, struct ibv_send_wr *wr)
{
	return post(l, l->qp[1], wr);
}

/* Which of the port's addresses work shows when something is sent there. IPv4 addresses first: they come
 * up with the interface, link-local ones later. */
static int find_gid(struct pl_loop *l)
{
	static const uint8_t v4[12] = {[10] = 0xff, [11] = 0xff};
	int n = l->port.gid_tbl_len < MAX_GIDS ? l->port.gid_tbl_len : MAX_GIDS;
	union ibv_gid gid;

	for (int want_v4 = 1; want_v4 >= 0; want_v4--)
		for (l->gid = 0; l->gid < n; l->gid++) {
			if (ibv_query_gid(l->ctx, l->port_num, l->gid, &gid) ||
			    (!gid.global.subnet_prefix && !gid.global.interface_id) ||
			    (memcmp(gid.raw, v4, sizeof v4) == 0) != want_v4)
				continue;
			l->connected = false;
			if (!pl_loop_move(l, true, (uintptr_t)l->buf, l->mr->rkey, 8))
				return 0;
		}
	return -ENETDOWN;
}

static int find_port(struct pl_loop *l)
{
	struct ibv_device_attr attr;

	if (ibv_query_device(l->ctx, &attr))
		return -EIO;
	for (unsigned i = 1; i <= attr.phys_port_cnt; i++) {
		l->port_num = i;
		if (ibv_query_port(l->ctx, i, &l->port) || l->port.state != IBV_PORT_ACTIVE)
			continue;
		if (l->port.link_layer == IBV_LINK_LAYER_INFINIBAND || !find_gid(l))
			return 0;
	}
	return -ENETDOWN;
}

static int make_qps(struct pl_loop *l)
{
	struct ibv_qp_init_attr a = {
		.send_cq = l->cq,
		.recv_cq = l->cq,
		.qp_type = IBV_QPT_RC,
		.cap = {.max_send_wr = 4, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1},
	};

	for (int i = 0; i < 2; i++) {
		l->qp[i] = ibv_create_qp(l->pd, &a);
		if (!l->qp[i])
			return -errno;
	}
	return 0;
}

static int make_all(struct pl_loop *l)
{
	int rights = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE;
	void *buf = mmap(NULL, PL_LOOP_LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (buf == MAP_FAILED)
		return -errno;
	l->buf = buf;
	l->pd = ibv_alloc_pd(l->ctx);
	l->cq = l->pd ? ibv_create_cq(l->ctx, 16, NULL, NULL, 0) : NULL;
	l->mr = l->cq ? ibv_reg_mr(l->pd, buf, PL_LOOP_LEN, rights) : NULL;
	return l->mr ? make_qps(l) : -errno;
}

int pl_loop_open(struct pl_loop *l, struct ibv_device *device)
{
	int err;

	*l = (struct pl_loop){.ctx = ibv_open_device(device)};
	if (!l->ctx)
		return errno ? -errno : -ENODEV;
	err = make_all(l);
	if (!err)
		err = find_port(l);
	if (err)
		pl_loop_close(l);
	return err;
}

void pl_loop_close(struct pl_loop *l)
{
	for (int i = 0; i < 2; i++)
		if (l->qp[i])
			ibv_destroy_qp(l->qp[i]);
	if (l->mr)
		ibv_dereg_mr(l->mr);
	if (l->cq)
		ibv_destroy_cq(l->cq);
	if (l->pd)
		ibv_dealloc_pd(l->pd);
	if (l->buf)
		munmap(l->buf, PL_LOOP_LEN);
	ibv_close_device(l->ctx);
}
