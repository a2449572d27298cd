/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "backend/verbs_cmd.h"

#include <errno.h>
#include <infiniband/verbs.h>
#include <rdma/ib_user_ioctl_cmds.h>
#include <rdma/ib_user_verbs.h>
#include <rdma/rdma_user_ioctl_cmds.h>
#include <string.h>
#include <sys/ioctl.h>

#define MAX_ATTRS   5
#define MAX_DRIVERS 64 /* enum rdma_driver_id has 25 in 7.2 */

/* What fits is in the attribute itself. */
static void add(struct ib_uverbs_ioctl_hdr *h, unsigned id, const void *data, size_t len)
{
	struct ib_uverbs_attr *a = &h->attrs[h->num_attrs++];

	*a = (struct ib_uverbs_attr){.attr_id = id, .len = len, .flags = UVERBS_ATTR_F_MANDATORY};
	if (len <= sizeof a->data)
		memcpy(&a->data, data, len);
	else
		a->data = (uintptr_t)data;
	h->length += sizeof *a;
}

static void add_out(struct ib_uverbs_ioctl_hdr *h, unsigned id, void *data, size_t len)
{
	uint64_t at = (uintptr_t)data;

	add(h, id, &at, sizeof at);
	h->attrs[h->num_attrs - 1].len = len;
}

union request {
	struct ib_uverbs_ioctl_hdr h;
	char room[sizeof(struct ib_uverbs_ioctl_hdr) + MAX_ATTRS * sizeof(struct ib_uverbs_attr)];
};

static struct ib_uverbs_ioctl_hdr *begin(union request *r, const struct pl_uverbs *u, unsigned object,
					 unsigned method)
{
	r->h = (struct ib_uverbs_ioctl_hdr){
		.length = sizeof r->h,
		.object_id = object,
		.method_id = method,
		.driver_id = u->driver,
	};
	return &r->h;
}

static int run(const struct pl_uverbs *u, struct ib_uverbs_ioctl_hdr *h)
{
	return ioctl(u->fd, RDMA_VERBS_IOCTL, h) ? -errno : 0;
}

/* A command of the write(2) interface as an ioctl: write(2) is refused to a process whose credentials
 * are others than of who opened the device. */
static int invoke(const struct pl_uverbs *u, unsigned command, const void *in, size_t in_len, void *out,
		  size_t out_len)
{
	union request r;
	struct ib_uverbs_ioctl_hdr *h = begin(&r, u, UVERBS_OBJECT_DEVICE, UVERBS_METHOD_INVOKE_WRITE);
	uint64_t number = command;

	add(h, UVERBS_ATTR_WRITE_CMD, &number, sizeof number);
	add(h, UVERBS_ATTR_CORE_IN, in, in_len);
	if (out)
		add_out(h, UVERBS_ATTR_CORE_OUT, out, out_len);
	return run(u, h);
}

/* Another number is refused with EINVAL before the command, which names nothing, is looked at. */
int pl_uverbs_find(struct pl_uverbs *u)
{
	int err = -EINVAL;

	for (u->driver = 0; u->driver < MAX_DRIVERS; u->driver++) {
		err = pl_mr_dereg(u, UINT32_MAX);
		if (err != -EINVAL)
			break;
	}
	return err == -ENOENT || err == -EBADF ? 0 : err;
}

int pl_mr_reg(const struct pl_uverbs *u, uint32_t pd, uintptr_t start, size_t len, unsigned access,
	      struct pl_mr *mr)
{
	struct ib_uverbs_reg_mr_resp made = {0};
	struct ib_uverbs_reg_mr c = {
		.response = (uintptr_t)&made,
		.start = start,
		.length = len,
		.hca_va = start,
		.pd_handle = pd,
		.access_flags = access,
	};
	int err = invoke(u, IB_USER_VERBS_CMD_REG_MR, &c, sizeof c, &made, sizeof made);

	if (!err)
		*mr = (struct pl_mr){made.mr_handle, made.lkey, made.rkey};
	return err;
}

int pl_mr_park(const struct pl_uverbs *u, struct pl_mr *mr, uint32_t pd)
{
	struct ib_uverbs_rereg_mr_resp is = {0};
	struct ib_uverbs_rereg_mr c = {
		.response = (uintptr_t)&is,
		.mr_handle = mr->handle,
		.flags = IBV_REREG_MR_CHANGE_PD | IBV_REREG_MR_CHANGE_ACCESS,
		.pd_handle = pd,
	};

	int err = invoke(u, IB_USER_VERBS_CMD_REREG_MR, &c, sizeof c, &is, sizeof is);

	if (!err) {
		mr->lkey = is.lkey;
		mr->rkey = is.rkey;
	}
	return err;
}

int pl_mr_dereg(const struct pl_uverbs *u, uint32_t handle)
{
	struct ib_uverbs_dereg_mr c = {handle};

	return invoke(u, IB_USER_VERBS_CMD_DEREG_MR, &c, sizeof c, NULL, 0);
}

int pl_mr_query(const struct pl_uverbs *u, uint32_t handle, struct pl_mr *mr, uint64_t *addr,
		uint64_t *len)
{
	union request r;
	struct ib_uverbs_ioctl_hdr *h = begin(&r, u, UVERBS_OBJECT_MR, UVERBS_METHOD_QUERY_MR);

	add(h, UVERBS_ATTR_QUERY_MR_HANDLE, &(uint64_t){handle}, sizeof(uint64_t));
	h->attrs[0].len = 0; /* as the kernel has it for handles */
	add_out(h, UVERBS_ATTR_QUERY_MR_RESP_LKEY, &mr->lkey, sizeof mr->lkey);
	add_out(h, UVERBS_ATTR_QUERY_MR_RESP_RKEY, &mr->rkey, sizeof mr->rkey);
	add_out(h, UVERBS_ATTR_QUERY_MR_RESP_LENGTH, len, sizeof *len);
	add_out(h, UVERBS_ATTR_QUERY_MR_RESP_IOVA, addr, sizeof *addr);
	mr->handle = handle;
	return run(u, h);
}

int pl_mr_is(const struct pl_uverbs *u, const struct pl_mr *mr, uintptr_t start, size_t len)
{
	struct pl_mr now;
	uint64_t at, size;
	int err = pl_mr_query(u, mr->handle, &now, &at, &size);

	if (!err && (now.lkey != mr->lkey || at != start || size != len))
		return -ENOENT;
	return err;
}

int pl_mw_alloc(const struct pl_uverbs *u, uint32_t pd, uint32_t *handle, uint32_t *rkey)
{
	struct ib_uverbs_alloc_mw_resp made = {0};
	struct ib_uverbs_alloc_mw c = {
		.response = (uintptr_t)&made, .pd_handle = pd, .mw_type = IBV_MW_TYPE_2};
	int err = invoke(u, IB_USER_VERBS_CMD_ALLOC_MW, &c, sizeof c, &made, sizeof made);

	if (!err) {
		*handle = made.mw_handle;
		*rkey = made.rkey;
	}
	return err;
}

int pl_mw_dealloc(const struct pl_uverbs *u, uint32_t handle)
{
	struct ib_uverbs_dealloc_mw c = {handle};

	return invoke(u, IB_USER_VERBS_CMD_DEALLOC_MW, &c, sizeof c, NULL, 0);
}

int pl_qp_error(const struct pl_uverbs *u, uint32_t handle)
{
	struct ib_uverbs_modify_qp c = {
		.qp_handle = handle, .attr_mask = IBV_QP_STATE, .qp_state = IBV_QPS_ERR};

	return invoke(u, IB_USER_VERBS_CMD_MODIFY_QP, &c, sizeof c, NULL, 0);
}
