/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A file's memory, written to by another host by RDMA. Two roles in two processes: the holder has the
 * file mapped and leased; the peer writes to it without end. While it does the holder truncates the
 * file. With verbs alone the peer would go on writing, without an error, to pages that are no file's any
 * more. As they are leased it gets an error, and when the holder has leased the file again, it is told
 * the new key by what PINL_EV_KEYS says, connects again and goes on.
 *
 * `verbs-peer DEVICE OTHER-DEVICE` takes a device for each role, as rxa and rxb; without, the first for
 * both. Soft-RoCE is made by `rdma link add rxe0 type rxe netdev eth0`.
 *
 * Prints:
 *	holder: keys lease 1 ...
 *	peer: writes
 *	holder: truncates the file
 *	holder: released lease 1 truncate -> fail ...
 *	peer: remote access error
 *	holder: keys lease ...
 *	peer: writes
 *	holder: the file has what the peer has written
 */
#define _GNU_SOURCE 1
#include <errno.h>
#include <infiniband/verbs.h>
#include <pinlease/pinlease.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SIZE (1ul << 20)

/* What one tells the other, by a socket here. */
struct message {
	uint32_t qpn;
	union ibv_gid gid;
	uint64_t addr; /* the holder's memory */
	uint32_t rkey;
};

struct side {
	const char *name;
	int socket;
	struct ibv_context *ctx;
	struct ibv_pd *pd;
	struct ibv_cq *cq;
	struct ibv_qp *qp;
	struct ibv_port_attr port;
	struct message me;
	int gid_index;
};

static void must(int ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "verbs-peer: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void check(int err)
{
	if (!err)
		return;
	fprintf(stderr, "verbs-peer: %s: %s\n", strerror(-err), pinl_error());
	exit(1);
}

/* ------------------------------------------------------------------------------------ connecting -- */

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

static void check_device(const char *name)
{
	struct ibv_context *ctx = open_named(name);

	if (ctx) {
		ibv_close_device(ctx);
		return;
	}
	fprintf(stderr,
		"verbs-peer: RDMA device %s isn't there, or can't be opened; ibv_devices(1) lists "
		"them, and /dev/infiniband/ says who may\n",
		name);
	exit(1);
}

/* An IPv4 address, if the port has one. */
static void choose_gid(struct side *s)
{
	static const uint8_t v4[12] = {[10] = 0xff, [11] = 0xff};

	for (int i = 0; i < s->port.gid_tbl_len; i++) {
		s->gid_index = i;
		if (!ibv_query_gid(s->ctx, 1, i, &s->me.gid) && !memcmp(s->me.gid.raw, v4, sizeof(v4)))
			return;
	}
	s->gid_index = 0;
	must(!ibv_query_gid(s->ctx, 1, 0, &s->me.gid), "gid");
}

static void open_side(struct side *s, const char *device)
{
	struct ibv_qp_init_attr attr = {
		.qp_type = IBV_QPT_RC,
		.cap = {.max_send_wr = 4, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1},
	};

	s->ctx = open_named(device);
	must(s->ctx != NULL, "open of the device");
	must(!ibv_query_port(s->ctx, 1, &s->port), "port");
	choose_gid(s);
	s->pd = ibv_alloc_pd(s->ctx);
	s->cq = ibv_create_cq(s->ctx, 8, NULL, NULL, 0);
	must(s->pd && s->cq, "protection domain, completion queue");
	attr.send_cq = attr.recv_cq = s->cq;
	s->qp = ibv_create_qp(s->pd, &attr);
	must(s->qp != NULL, "queue pair");
	s->me.qpn = s->qp->qp_num;
}

static int modify(struct side *s, struct ibv_qp_attr attr, int mask)
{
	errno = ibv_modify_qp(s->qp, &attr, IBV_QP_STATE | mask);
	return !errno;
}

/* Also again after an error, which soft-RoCE may still be working off. */
static int try_connect(struct side *s, const struct message *other)
{
	struct ibv_qp_attr init = {
		.qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = IBV_ACCESS_REMOTE_WRITE};
	struct ibv_qp_attr rtr = {
		.qp_state = IBV_QPS_RTR,
		.path_mtu = s->port.active_mtu,
		.dest_qp_num = other->qpn,
		.min_rnr_timer = 1,
		.ah_attr = {.is_global = 1,
			    .port_num = 1,
			    .grh = {.dgid = other->gid, .sgid_index = s->gid_index, .hop_limit = 4}}};
	struct ibv_qp_attr rts = {
		.qp_state = IBV_QPS_RTS, .timeout = 17, .retry_cnt = 6, .rnr_retry = 6};

	return modify(s, (struct ibv_qp_attr){.qp_state = IBV_QPS_RESET}, 0) &&
	       modify(s, init, IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS) &&
	       modify(s, rtr,
		      IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
			      IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER) &&
	       modify(s, rts,
		      IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
			      IBV_QP_MAX_QP_RD_ATOMIC);
}

/* Both tell each other where they are; the holder also where its memory is. */
static struct message meet(struct side *s)
{
	struct timespec pause = {0, 2000000};
	struct message other;
	char ready = 0;

	must(write(s->socket, &s->me, sizeof(s->me)) == sizeof(s->me), "tell");
	must(read(s->socket, &other, sizeof(other)) == sizeof(other), "be told");
	for (int i = 0; i < 5000 && !try_connect(s, &other); i++)
		nanosleep(&pause, NULL);
	must(s->qp->state == IBV_QPS_RTS, "connect");
	must(write(s->socket, &ready, 1) == 1 && read(s->socket, &ready, 1) == 1, "both are ready");
	return other;
}

static void say(const struct side *s, const char *what)
{
	printf("%s: %s\n", s->name, what);
	fflush(stdout);
}

static void await_other(struct side *s)
{
	char word;

	must(read(s->socket, &word, 1) == 1, "hear from the other");
}

/* -------------------------------------------------------------------------------------- the peer -- */

static enum ibv_wc_status write_once(struct side *s, const struct message *to, const char *buf,
				     uint32_t lkey)
{
	struct ibv_sge piece = {(uintptr_t)buf, SIZE, lkey};
	struct ibv_send_wr *bad, request = {.sg_list = &piece,
					    .num_sge = 1,
					    .opcode = IBV_WR_RDMA_WRITE,
					    .send_flags = IBV_SEND_SIGNALED,
					    .wr.rdma = {to->addr, to->rkey}};
	struct timespec pause = {0, 50000};
	struct ibv_wc wc;
	int n;

	errno = ibv_post_send(s->qp, &request, &bad);
	must(!errno, "post");
	while ((n = ibv_poll_cq(s->cq, 1, &wc)) == 0)
		nanosleep(&pause, NULL);
	must(n == 1, "poll");
	return wc.status;
}

static int be_peer(struct side *s)
{
	char *buf = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct ibv_mr *mr = ibv_reg_mr(s->pd, buf, SIZE, 0);
	enum ibv_wc_status status;
	struct message to;

	must(mr != NULL, "memory region");
	memset(buf, '1', SIZE);
	to = meet(s);
	status = write_once(s, &to, buf, mr->lkey);
	must(!status, "the first write");
	say(s, "writes");
	must(write(s->socket, "1", 1) == 1, "tell");
	while (!status)
		status = write_once(s, &to, buf, mr->lkey);
	await_other(s);
	say(s, ibv_wc_status_str(status));
	must(write(s->socket, "E", 1) == 1, "tell");
	to = meet(s);
	memset(buf, '2', SIZE);
	must(!write_once(s, &to, buf, mr->lkey), "the write to the new lease");
	say(s, "writes");
	must(write(s->socket, "2", 1) == 1, "tell");
	return 0;
}

/* ------------------------------------------------------------------------------------ the holder -- */

/* Prints what happened; what is new for peers goes into what they are told. */
static void read_events(struct side *s, struct pinl_ctx *ctx)
{
	struct pinl_event event = {.size = sizeof(event)};
	char line[256];

	while (pinl_next_event(ctx, &event) == 0) {
		pinl_event_format(&event, line, sizeof(line));
		say(s, line);
		if (event.type == PINL_EV_KEYS) {
			s->me.addr = event.addr;
			s->me.rkey = event.rkey;
		}
	}
}

static int be_holder(struct side *s)
{
	struct pinl_verbs_arg arg = {
		.size = sizeof(arg), .pd = s->pd, .access = IBV_ACCESS_REMOTE_WRITE};
	struct pinl_policy policy = {
		.size = sizeof(policy), .kind = PINL_RECALL, .then = PINL_THEN_FAIL};
	unsigned flags = PINL_WRITE | PINL_PIN | PINL_COOPERATIVE;
	struct pinl_device *dev;
	struct pinl_lease *lease;
	struct pinl_ctx *ctx;
	int fd = memfd_create("data", MFD_CLOEXEC);

	must(fd >= 0 && !ftruncate(fd, SIZE), "memfd");
	char *buf = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	uintptr_t va = (uintptr_t)buf;

	check(pinl_open(NULL, &ctx));
	check(pinl_device_open(ctx, "verbs", &arg, &dev));
	check(pinl_map_range(dev, va, va + SIZE, flags, &policy, NULL, &lease));
	read_events(s, ctx);
	meet(s);
	await_other(s); /* it writes */
	say(s, "truncates the file");
	check(pinl_ftruncate(ctx, fd, 0)); /* on return the peer is off the old pages */
	read_events(s, ctx);
	must(write(s->socket, "?", 1) == 1, "ask");
	await_other(s); /* it has its error */
	pinl_unmap_range(lease);
	must(!ftruncate(fd, SIZE), "ftruncate");
	check(pinl_map_range(dev, va, va + SIZE, flags, &policy, NULL, &lease));
	read_events(s, ctx);
	meet(s);
	await_other(s);
	must(buf[0] == '2' && !memcmp(buf, buf + 1, SIZE - 1), "what is in the file");
	say(s, "the file has what the peer has written");
	pinl_close(ctx); /* ends the lease and the device */
	return 0;
}

int main(int argc, char **argv)
{
	struct side holder = {.name = "holder"}, peer = {.name = "peer"};
	struct ibv_context *any = open_named(NULL);
	int sockets[2], status;

	if (!any) {
		printf("skip: an RDMA device\n");
		return 77;
	}
	ibv_close_device(any);
	for (int i = 1; i < argc && i <= 2; i++)
		check_device(argv[i]);
	must(!socketpair(AF_UNIX, SOCK_STREAM, 0, sockets), "socketpair");
	holder.socket = sockets[0];
	peer.socket = sockets[1];
	if (!fork()) {
		close(sockets[0]);
		open_side(&peer, argc > 2 ? argv[2] : NULL);
		return be_peer(&peer);
	}
	close(sockets[1]);
	open_side(&holder, argc > 1 ? argv[1] : NULL);
	be_holder(&holder);
	wait(&status);
	return status != 0;
}
