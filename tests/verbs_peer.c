/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "verbs_peer.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define LONG_NS 60000000000ull

#define MUST(ok, what)                                                                                  \
	do {                                                                                            \
		if (!(ok)) {                                                                            \
			fprintf(stderr, "verbs peer: %s: %s\n", what, strerror(errno));                 \
			abort();                                                                        \
		}                                                                                       \
	} while (0)

const char *peer_missing(void)
{
	struct ibv_device **list;
	int n = 0;

	list = ibv_get_device_list(&n);
	if (list)
		ibv_free_device_list(list);
	return n ? NULL : "there is no RDMA device here (soft-RoCE: rdma link add)";
}

static struct ibv_context *open_named(const char *name)
{
	struct ibv_device **list = ibv_get_device_list(NULL);
	struct ibv_context *ctx = NULL;

	for (int i = 0; list && list[i] && !ctx; i++)
		if (!name || !strcmp(name, ibv_get_device_name(list[i])))
			ctx = ibv_open_device(list[i]);
	if (list)
		ibv_free_device_list(list);
	return ctx;
}

const char *peer_far(void)
{
	static char name[64];
	struct ibv_device **list = ibv_get_device_list(NULL);

	MUST(list && list[0], "list devices");
	for (int i = 0; list[i]; i++)
		snprintf(name, sizeof name, "%s", ibv_get_device_name(list[i]));
	ibv_free_device_list(list);
	return name;
}

int peer_has_odp(void)
{
	struct ibv_context *ctx = open_named(NULL);
	struct ibv_device_attr_ex attr;
	int has;

	MUST(ctx, "open");
	has = !ibv_query_device_ex(ctx, NULL, &attr) && (attr.odp_caps.general_caps & IBV_ODP_SUPPORT);
	ibv_close_device(ctx);
	return has;
}

/* An IPv4 address, if there is one. */
static int choose_gid(struct peer *p)
{
	static const uint8_t v4[12] = {[10] = 0xff, [11] = 0xff};
	union ibv_gid gid;

	for (int i = 0; i < p->port.gid_tbl_len && i < 16; i++)
		if (!ibv_query_gid(p->ctx, 1, i, &gid) && !memcmp(gid.raw, v4, sizeof v4))
			return i;
	return 0;
}

void peer_open(struct peer *p, const char *device, size_t len)
{
	struct ibv_qp_init_attr a = {
		.qp_type = IBV_QPT_RC,
		.cap = {.max_send_wr = PEER_QUEUE,
			.max_recv_wr = 1,
			.max_send_sge = 1,
			.max_recv_sge = 1},
	};

	*p = (struct peer){.ctx = open_named(device), .len = len, .patience = 17};
	MUST(p->ctx, "open");
	MUST(!ibv_query_port(p->ctx, 1, &p->port), "query port");
	p->gid = choose_gid(p);
	p->buf = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	MUST(p->buf != MAP_FAILED, "mmap");
	p->pd = ibv_alloc_pd(p->ctx);
	MUST(p->pd, "alloc pd");
	p->cq = ibv_create_cq(p->ctx, PEER_QUEUE + 16, NULL, NULL, 0);
	MUST(p->cq, "create cq");
	p->mr = ibv_reg_mr(p->pd, p->buf, len, IBV_ACCESS_LOCAL_WRITE);
	MUST(p->mr, "reg mr");
	a.send_cq = a.recv_cq = p->cq;
	p->qp = ibv_create_qp(p->pd, &a);
	MUST(p->qp, "create qp");
}

void peer_close(struct peer *p)
{
	ibv_destroy_qp(p->qp);
	ibv_dereg_mr(p->mr);
	ibv_destroy_cq(p->cq);
	ibv_dealloc_pd(p->pd);
	ibv_close_device(p->ctx);
	munmap(p->buf, p->len);
}

void peer_get_name(struct peer *p, struct peer_name *name)
{
	name->qpn = p->qp->qp_num;
	MUST(!ibv_query_gid(p->ctx, 1, p->gid, &name->gid), "query gid");
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static bool modify(struct peer *p, struct ibv_qp_attr *a, int mask)
{
	errno = ibv_modify_qp(p->qp, a, mask | IBV_QP_STATE);
	return !errno;
}

static bool to_init(struct peer *p)
{
	struct ibv_qp_attr a = {.qp_state = IBV_QPS_RESET};
	struct ibv_wc wc;

	MUST(modify(p, &a, 0), "to RESET");
	while (ibv_poll_cq(p->cq, 1, &wc) > 0)
		;
	a = (struct ibv_qp_attr){
		.qp_state = IBV_QPS_INIT,
		.port_num = 1,
		.qp_access_flags =
			IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC,
	};
	return modify(p, &a, IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
}

static bool to_rts(struct peer *p, const struct peer_name *other)
{
	struct ibv_qp_attr a = {
		.qp_state = IBV_QPS_RTR,
		.path_mtu = p->port.active_mtu,
		.dest_qp_num = other->qpn,
		.rq_psn = 1,
		.max_dest_rd_atomic = 4,
		.min_rnr_timer = 1,
		.ah_attr = {.is_global = 1,
			    .port_num = 1,
			    .grh = {.dgid = other->gid, .sgid_index = p->gid, .hop_limit = 4}},
	};

	if (!modify(p, &a,
		    IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
			    IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER))
		return false;
	a = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS,
				 .timeout = p->patience,
				 .retry_cnt = 6,
				 .rnr_retry = 6,
				 .sq_psn = 1,
				 .max_rd_atomic = 4};
	return modify(p, &a,
		      IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
			      IBV_QP_MAX_QP_RD_ATOMIC);
}

/* An error that soft-RoCE has yet to work off can come after the reset; and the other's address may take
 * long to be resolved. */
void peer_connect(struct peer *p, const struct peer_name *other)
{
	uint64_t until = now() + LONG_NS;

	while (!(to_init(p) && to_rts(p, other))) {
		MUST(now() < until, "connect");
		usleep(2000);
	}
}

void peer_post(struct peer *p, int write, size_t off, size_t len, uint64_t at, uint32_t rkey, int last)
{
	struct ibv_sge sge = {(uintptr_t)p->buf + off, len, p->mr->lkey};
	struct ibv_send_wr *bad, wr = {
					 .sg_list = &sge,
					 .num_sge = 1,
					 .opcode = write ? IBV_WR_RDMA_WRITE : IBV_WR_RDMA_READ,
					 .send_flags = last ? IBV_SEND_SIGNALED : 0,
					 .wr.rdma = {.remote_addr = at, .rkey = rkey},
				 };

	errno = ibv_post_send(p->qp, &wr, &bad);
	MUST(!errno, "post send");
}

enum ibv_wc_status peer_wait(struct peer *p)
{
	struct timespec pause = {0, 50000};
	uint64_t until = now() + LONG_NS;
	struct ibv_wc wc;
	int n;

	while (!(n = ibv_poll_cq(p->cq, 1, &wc))) {
		errno = ETIMEDOUT;
		MUST(now() < until, "no completion came");
		nanosleep(&pause, NULL);
	}
	MUST(n > 0, "poll cq");
	return wc.status;
}

enum ibv_wc_status peer_move(struct peer *p, int write, size_t off, size_t len, uint64_t at,
			     uint32_t rkey)
{
	peer_post(p, write, off, len, at, rkey, 1);
	return peer_wait(p);
}
