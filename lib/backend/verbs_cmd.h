/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Commands to an RDMA device by its context's descriptor alone. libibverbs allocates and frees with each
 * of its objects, which nobody may do while a lease is taken back (device.h); and its wrapper of
 * REREG_MR fails where the driver's own library has none. No state, any thread. All return 0 or -errno.
 */
#ifndef PL_BACKEND_VERBS_CMD_H
#define PL_BACKEND_VERBS_CMD_H

#include <stddef.h>
#include <stdint.h>

/* The kernel takes an ioctl only with the number of the driver in it. */
struct pl_uverbs {
	int fd;
	uint32_t driver;
};

/* Find the driver's number. */
int pl_uverbs_find(struct pl_uverbs *u);

struct pl_mr {
	uint32_t handle, lkey, rkey;
};

/* At its own address as device address. */
int pl_mr_reg(const struct pl_uverbs *u, uint32_t pd, uintptr_t start, size_t len, unsigned access,
	      struct pl_mr *mr);

/* Move it to another protection domain, without any right: the pages stay. Some drivers give it other
 * keys. */
int pl_mr_park(const struct pl_uverbs *u, struct pl_mr *mr, uint32_t pd);

int pl_mr_dereg(const struct pl_uverbs *u, uint32_t handle);

/* What a handle stands for now: its keys, address and length. -ENOENT: nothing. */
int pl_mr_query(const struct pl_uverbs *u, uint32_t handle, struct pl_mr *mr, uint64_t *addr,
		uint64_t *len);

/* Is it this one, which has this address and length? Handles are given anew; keys aren't soon. */
int pl_mr_is(const struct pl_uverbs *u, const struct pl_mr *mr, uintptr_t start, size_t len);

/* A memory window of type 2, bound to nothing. Without it nobody gets through it any more, at once. */
int pl_mw_alloc(const struct pl_uverbs *u, uint32_t pd, uint32_t *handle, uint32_t *rkey);
int pl_mw_dealloc(const struct pl_uverbs *u, uint32_t handle);
int pl_qp_error(const struct pl_uverbs *u, uint32_t handle);

#endif
