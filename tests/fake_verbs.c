/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* libibverbs' registrations without a device, behind those of libpinlease-ucx: see test_ucx_start.c. */
#include "fake_verbs.h"

#include <errno.h>
#include <stdlib.h>

#undef ibv_reg_mr

void (*fake_meanwhile)(void *addr);
int fake_error;

static struct ibv_mr *reg(void *addr, size_t len)
{
	struct ibv_mr *mr = fake_error ? NULL : calloc(1, sizeof *mr);

	if (fake_meanwhile)
		fake_meanwhile(addr);
	errno = fake_error;
	if (mr) {
		mr->addr = addr;
		mr->length = len;
	}
	return mr;
}

struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *addr, size_t len, int access)
{
	return reg(addr, len);
}

struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t len, uint64_t iova,
				unsigned access)
{
	return reg(addr, len);
}

int ibv_dereg_mr(struct ibv_mr *mr)
{
	if (fake_error)
		return fake_error;
	free(mr);
	return 0;
}
