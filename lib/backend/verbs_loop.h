/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Transfers of a device to itself, to see what it does: two queue pairs of a context of its own, so that
 * the errors we provoke don't come up among the program's asynchronous events.
 */
#ifndef PL_BACKEND_VERBS_LOOP_H
#define PL_BACKEND_VERBS_LOOP_H

#include <infiniband/verbs.h>
#include <stdbool.h>

#define PL_LOOP_LEN (8 * 4096ul)

struct pl_loop {
	struct ibv_context *ctx;
	struct ibv_pd *pd;
	struct ibv_cq *cq;
	struct ibv_qp *qp[2]; /* [0] asks, [1] answers */
	struct ibv_port_attr port;
	uint8_t port_num;
	int gid; /* index */
	bool connected;
	char *buf; /* what is sent, or has been read: PL_LOOP_LEN */
	struct ibv_mr *mr;
};

/* -ENETDOWN: no port can reach itself. */
int pl_loop_open(struct pl_loop *l, struct ibv_device *device);
void pl_loop_close(struct pl_loop *l);

/* RDMA WRITE (or READ) of `len` bytes between buf and `at` of the region `rkey`. -EACCES: it ended with
 * an error; -ETIMEDOUT: it didn't. */
int pl_loop_move(struct pl_loop *l, bool write, uint64_t at, uint32_t rkey, size_t len);

/* A request of the queue pair that answers. The same errors. */
int pl_loop_post(struct pl_loop *l, struct ibv_send_wr *wr);

#endif
