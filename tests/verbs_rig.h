/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A lease on an RDMA device and a peer that writes to it or reads from it all the time, on another host
 * if there are two (the guest's setup gives each a network namespace).
 */
#ifndef VERBS_RIG_H
#define VERBS_RIG_H

#include <liburing.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>
#include <cmocka.h>

#include <pinlease/pinlease.h>

#include "check.h"
#include "verbs_peer.h"

#define PAGE 4096ul
#define LEN  (4ul << 20) /* also of one transfer */

struct vrig {
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct pinl_lease *lease;
	struct pinl_addr addrs[LEN / PAGE];
	struct peer here, far;
	int fd;
	char *va;    /* LEN bytes of fd */
	char *alias; /* the same, mapped once more */
	struct io_uring witness;
	bool witnessing, flying;
	pthread_t thread;
	atomic_int land, moves; /* it ends with so many moves */
	int write;
	size_t load;		  /* of one of its transfers */
	enum ibv_wc_status ended; /* of what the peer did last */
};

int vrig_up(void **state);
int vrig_down(void **state);

struct pinl_policy policy(enum pinl_policy_kind kind, enum pinl_then then, unsigned grace_ms);
int vrig_try(struct vrig *r, struct pinl_policy p, unsigned flags);
void vrig_map(struct vrig *r, struct pinl_policy p, unsigned flags);
void vrig_unmap(struct vrig *r);
struct pinl_event vrig_event(struct vrig *r, enum pinl_event_type type);

/* Both ends anew, after an error. */
void vrig_connect(struct vrig *r);

/* One transfer of the peer's, between its buffer and the lease or any region. */
enum ibv_wc_status vrig_move(struct vrig *r, int write, size_t len, uint64_t at, uint32_t rkey);

/* The peer moves all of the lease, over and over, until an error or the landing; take_off returns when
 * it is in the middle of a transfer. Land: how the last one ended, which has begun after the call. */
void vrig_take_off(struct vrig *r, int write);
void vrig_await_moves(struct vrig *r, int more);
enum ibv_wc_status vrig_land(struct vrig *r);

/* Another pin on the pages under the lease: sees and marks them when nobody else has them any more. */
void vrig_witness(struct vrig *r);
void vrig_mark_old(struct vrig *r);
void vrig_assert_old_untouched(struct vrig *r);

void assert_all(const char *what, const char *at, char c, size_t len);

#endif
