/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One end of an RDMA connection, for the tests: a context, a queue pair and a buffer of its own. */
#ifndef VERBS_PEER_H
#define VERBS_PEER_H

#include <infiniband/verbs.h>
#include <stddef.h>
#include <stdint.h>

#define PEER_QUEUE 8192 /* requests at a time */

struct peer {
	struct ibv_context *ctx;
	struct ibv_pd *pd;
	struct ibv_cq *cq;
	struct ibv_qp *qp;
	struct ibv_port_attr port;
	int gid; /* index */
	/* For an answer, six times and one: 17 is half a second, 15 an eighth of one. A busy machine's
	 * soft-RoCE answers late, which isn't to be taken for an error. Counts when it is connected. */
	int patience;
	char *buf;
	size_t len;
	struct ibv_mr *mr;
};

/* How another one finds it. */
struct peer_name {
	uint32_t qpn;
	union ibv_gid gid;
};

/* Why no peer can be made here, NULL: one can. */
const char *peer_missing(void);

/* The last device: another host's where there are two, the same one otherwise. */
const char *peer_far(void);

/* The first device says that it has on-demand regions. */
int peer_has_odp(void);

/* All of these end the program with a message if something fails that isn't under test. */
void peer_open(struct peer *p, const char *device, size_t len); /* NULL: the first */
void peer_close(struct peer *p);
void peer_get_name(struct peer *p, struct peer_name *name);

/* From any state, error too. Both ends have to. */
void peer_connect(struct peer *p, const struct peer_name *other);

/* To or from buf + off. A completion comes for the last of a train, and for one that fails. */
void peer_post(struct peer *p, int write, size_t off, size_t len, uint64_t at, uint32_t rkey, int last);
enum ibv_wc_status peer_wait(struct peer *p);

/* post and wait */
enum ibv_wc_status peer_move(struct peer *p, int write, size_t off, size_t len, uint64_t at,
			     uint32_t rkey);

#define SKIP_WITHOUT_DEVICE()                                                                           \
	do {                                                                                            \
		if (peer_missing()) {                                                                   \
			print_message("skip: %s\n", peer_missing());                                    \
			skip();                                                                         \
		}                                                                                       \
	} while (0)

#endif
