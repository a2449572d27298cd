/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * RDMA with a driver that doesn't let go, one whose device is unplugged, and regions that others take.
 * The driver's failures are made by the linker's --wrap around the library's ioctls.
 */
#include "backend/verbs_cmd.h"
#include "verbs_rig.h"

#include <rdma/ib_user_ioctl_cmds.h>
#include <rdma/ib_user_verbs.h>
#include <rdma/rdma_user_ioctl_cmds.h>
#include <sys/ioctl.h>

#include "proc.h"

static atomic_int dereg_error, rereg_error, any_error; /* errno; 0: as it is */
static atomic_bool windows_stay; /* whatever it says; until their region is deregistered */
static uint32_t staying;	 /* its handle + 1 */
static unsigned rekeyed_right;	 /* regions with it lose it only by other keys */
static uint32_t rekeyed;	 /* the last one's handle + 1 */

int __real_ioctl(int fd, unsigned long request, ...);

/* soft-RoCE can't destroy a queue pair, or not without a warning, that a window is bound to. */
static bool stays(int fd, const struct ib_uverbs_ioctl_hdr *h)
{
	struct pl_uverbs u = {fd, h->driver_id};

	if (h->method_id != UVERBS_METHOD_INVOKE_WRITE)
		return false;
	if (h->attrs[0].data == IB_USER_VERBS_CMD_DEALLOC_MW) {
		staying = h->attrs[1].data + 1;
		return true;
	}
	if (h->attrs[0].data == IB_USER_VERBS_CMD_DEREG_MR && staying) {
		windows_stay = false;
		pl_mw_dealloc(&u, staying - 1);
		windows_stay = true;
		staying = 0;
	}
	return false;
}

/* As mlx5 does: a region with that right is made anew when it loses it, under its old handle. */
static void note_keys(const struct ib_uverbs_ioctl_hdr *h)
{
	const struct ib_uverbs_reg_mr *reg = (void *)(uintptr_t)h->attrs[1].data;
	const struct ib_uverbs_rereg_mr *rereg = (void *)(uintptr_t)h->attrs[1].data;

	if (h->attrs[0].data == IB_USER_VERBS_CMD_REG_MR && (reg->access_flags & rekeyed_right))
		rekeyed = ((struct ib_uverbs_reg_mr_resp *)(uintptr_t)h->attrs[2].data)->mr_handle + 1;
	if (h->attrs[0].data == IB_USER_VERBS_CMD_REREG_MR && rekeyed == rereg->mr_handle + 1)
		((struct ib_uverbs_rereg_mr_resp *)(uintptr_t)h->attrs[2].data)->lkey ^= 0x5500;
}

int __wrap_ioctl(int fd, unsigned long request, void *arg)
{
	const struct ib_uverbs_ioctl_hdr *h = arg;
	int err = 0, ret;

	if (request == RDMA_VERBS_IOCTL && h->method_id == UVERBS_METHOD_INVOKE_WRITE) {
		/* to deregister goes on to work (rdma_lookup_get_uobject, UVERBS_LOOKUP_DESTROY) */
		if (h->attrs[0].data != IB_USER_VERBS_CMD_DEREG_MR)
			err = any_error;
		if (h->attrs[0].data == IB_USER_VERBS_CMD_DEREG_MR && dereg_error)
			err = dereg_error;
		if (h->attrs[0].data == IB_USER_VERBS_CMD_REREG_MR && rereg_error)
			err = rereg_error;
	}
	if (windows_stay && request == RDMA_VERBS_IOCTL && stays(fd, h))
		return 0;
	if (err) {
		errno = err;
		return -1;
	}
	ret = __real_ioctl(fd, request, arg);
	if (!ret && rekeyed_right && request == RDMA_VERBS_IOCTL &&
	    h->method_id == UVERBS_METHOD_INVOKE_WRITE)
		note_keys(h);
	return ret;
}

static int good_again(void **state)
{
	dereg_error = rereg_error = any_error = 0;
	windows_stay = false;
	rekeyed_right = 0;
	return vrig_down(state);
}

static bool takes_rights(struct vrig *r)
{
	struct pinl_verbs_arg arg = {.size = sizeof arg, .pd = r->here.pd, .means = PINL_VERBS_REREG};
	struct pinl_device *dev;

	if (pinl_device_open(r->ctx, "verbs", &arg, &dev))
		return false;
	pinl_device_close(dev);
	return true;
}

/* Where rights can be taken, access is gone at once even so; that no transfer is left can't be said. */
static void a_region_that_cant_be_deregistered(void **state)
{
	struct vrig *r = *state;
	struct pinl_counters c = {.size = sizeof c};
	long before = pinned_kb();
	bool rights;

	SKIP_WITHOUT_DEVICE();
	rights = takes_rights(r);
	vrig_map(r, policy(PINL_RECALL, PINL_THEN_FAIL, 0), PINL_PIN);
	dereg_error = EBUSY;
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 0));
	assert_int_equal(vrig_event(r, PINL_EV_FORCED).err, -ETIMEDOUT);
	assert_ok(pinl_counters(r->ctx, &c));
	assert_int_equal(c.drains_unconfirmed, 1);
	if (rights)
		assert_int_equal(vrig_move(r, 1, LEN, r->addrs[0].addr, r->addrs[0].rkey),
				 IBV_WC_REM_ACCESS_ERR);
	vrig_unmap(r);
	assert_int_equal(pinned_kb(), before + (long)LEN / 1024);
	dereg_error = 0;
	assert_int_equal(ftruncate(r->fd, LEN), 0);
	vrig_map(r, policy(PINL_KEEP, 0, 0), PINL_PIN);
	assert_int_equal(pinned_kb(), before + (long)LEN / 1024);
	vrig_unmap(r);
	assert_int_equal(pinned_kb(), before);
}

/* Whether it does depends on the rights: those that leases will have are what is tried. */
static void rights_that_cost_the_keys_are_not_taken(void **state)
{
	struct vrig *r = *state;
	struct pinl_verbs_arg arg = {.size = sizeof arg,
				     .pd = r->here.pd,
				     .access = IBV_ACCESS_REMOTE_WRITE,
				     .means = PINL_VERBS_REREG};
	struct pinl_device *dev;

	SKIP_WITHOUT_DEVICE();
	if (!takes_rights(r))
		return; /* no rights to take, whatever they are */
	rekeyed_right = IBV_ACCESS_REMOTE_ATOMIC;
	assert_ok(pinl_device_open(r->ctx, "verbs", &arg, &dev));
	pinl_device_close(dev);
	arg.access |= IBV_ACCESS_REMOTE_ATOMIC;
	assert_int_equal(pinl_device_open(r->ctx, "verbs", &arg, &dev), -EOPNOTSUPP);
	assert_non_null(strstr(pinl_error(), "PINL_VERBS_REREG"));
	arg.means = 0;
	assert_ok(pinl_device_open(r->ctx, "verbs", &arg, &dev));
	pinl_device_close(dev);
}

static int reopen_with_windows(struct vrig *r)
{
	struct pinl_verbs_arg arg = {.size = sizeof arg,
				     .pd = r->here.pd,
				     .access = IBV_ACCESS_REMOTE_WRITE,
				     .means = PINL_VERBS_MW};

	if (r->dev)
		pinl_device_close(r->dev);
	r->dev = NULL;
	return pinl_device_open(r->ctx, "verbs", &arg, &r->dev);
}

/* The same with the window. */
static void a_window_goes_though_its_region_stays(void **state)
{
	struct ibv_send_wr *bad, wr = {.send_flags = IBV_SEND_SIGNALED};
	struct vrig *r = *state;

	SKIP_WITHOUT_DEVICE();
	assert_ok(reopen_with_windows(r));
	vrig_map(r, policy(PINL_RECALL, PINL_THEN_FAIL, 0), PINL_PIN);
	assert_ok(pinl_verbs_bind(r->lease, &wr));
	assert_int_equal(ibv_post_send(r->here.qp, &wr, &bad), 0);
	assert_int_equal(peer_wait(&r->here), IBV_WC_SUCCESS);
	assert_int_equal(vrig_move(r, 1, LEN, r->addrs[0].addr, r->addrs[0].rkey), IBV_WC_SUCCESS);
	dereg_error = EBUSY;
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 0));
	assert_int_equal(vrig_event(r, PINL_EV_FORCED).err, -ETIMEDOUT);
	assert_int_equal(vrig_move(r, 1, LEN, r->addrs[0].addr, r->addrs[0].rkey),
			 IBV_WC_REM_ACCESS_ERR);
	dereg_error = 0;
}

/* A driver that says so and goes on: the self-test finds it, and nothing is promised by windows. */
static void windows_that_stay_are_found(void **state)
{
	struct vrig *r = *state;

	SKIP_WITHOUT_DEVICE();
	windows_stay = true;
	assert_int_equal(reopen_with_windows(r), -EOPNOTSUPP);
	assert_non_null(strstr(pinl_error(), "PINL_VERBS_MW"));
	windows_stay = false;
	assert_ok(reopen_with_windows(r));
}

static uint32_t handle_of(const struct pl_uverbs *u, uint32_t lkey)
{
	uint64_t at, len;
	struct pl_mr mr;

	for (uint32_t h = 0; h < 100000; h++)
		if (!pl_mr_query(u, h, &mr, &at, &len) && mr.lkey == lkey)
			return h;
	fail_msg("no region has the lease's key");
	return 0;
}

/* As pinleased does it; the handle is the program's next region's, which nobody may touch. */
static void a_region_taken_by_another(void **state)
{
	struct vrig *r = *state;
	struct pl_uverbs u = {.fd = -1};
	struct ibv_mr *mine;
	uint32_t handle;

	SKIP_WITHOUT_DEVICE();
	u.fd = r->here.ctx->cmd_fd;
	assert_int_equal(pl_uverbs_find(&u), 0);
	vrig_map(r, policy(PINL_RECALL, PINL_THEN_FAIL, 0), PINL_PIN);
	handle = handle_of(&u, pinl_lease_key(r->lease));
	assert_int_equal(pl_mr_dereg(&u, handle), 0);
	mine = ibv_reg_mr(r->here.pd, r->here.buf, LEN,
			  IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
	assert_non_null(mine);
	assert_int_equal(mine->handle, handle);
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 0));
	assert_int_equal(vrig_event(r, PINL_EV_FORCED).err, 0);
	vrig_unmap(r);
	assert_int_equal(vrig_move(r, 1, PAGE, (uintptr_t)r->here.buf, mine->rkey), IBV_WC_SUCCESS);
	assert_int_equal(ibv_dereg_mr(mine), 0);
}

static void a_region_whose_rights_cant_be_taken(void **state)
{
	struct vrig *r = *state;

	SKIP_WITHOUT_DEVICE();
	rereg_error = EOPNOTSUPP;
	vrig_map(r, policy(PINL_RECALL, PINL_THEN_FAIL, 0), PINL_PIN);
	vrig_witness(r);
	vrig_take_off(r, 1);
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 0));
	vrig_mark_old(r);
	assert_int_equal(vrig_land(r), IBV_WC_REM_ACCESS_ERR);
	vrig_assert_old_untouched(r);
	assert_int_equal(vrig_event(r, PINL_EV_FORCED).err, 0);
}

/* What the kernel answers when it has ended everything itself: mlx5 and others, not soft-RoCE. */
static void a_device_that_was_unplugged(void **state)
{
	struct vrig *r = *state;

	SKIP_WITHOUT_DEVICE();
	vrig_map(r, policy(PINL_RECALL, PINL_THEN_FAIL, 0), PINL_PIN);
	any_error = EIO;
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 0));
	assert_int_equal(vrig_event(r, PINL_EV_FORCED).err, 0);
	vrig_event(r, PINL_EV_RELEASED);
	vrig_unmap(r);
	assert_int_equal(ftruncate(r->fd, LEN), 0);
	assert_int_equal(vrig_try(r, policy(PINL_KEEP, 0, 0), PINL_PIN), -ENODEV);
	assert_non_null(strstr(pinl_error(), "gone"));
	pinl_device_close(r->dev);
	r->dev = NULL;
}

/* Of a program that is told (IBV_EVENT_DEVICE_FATAL) and closes the device. */
static void leases_end_with_an_unplugged_device(void **state)
{
	struct vrig *r = *state;

	SKIP_WITHOUT_DEVICE();
	vrig_map(r, policy(PINL_KEEP, 0, 0), PINL_PIN);
	any_error = EIO;
	pinl_device_close(r->dev);
	r->dev = NULL;
	r->lease = NULL;
	vrig_event(r, PINL_EV_LEAK);
}

/* The means of last resort: whatever the queue pairs do ends. */
static void queue_pairs_end(void **state)
{
	struct vrig *r = *state;
	struct pinl_verbs_arg arg = {
		.size = sizeof arg,
		.pd = r->here.pd,
		.access = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ,
		.means = PINL_VERBS_QP,
		.qps = &r->here.qp,
		.n_qps = 1,
	};
	struct ibv_qp_init_attr init;
	struct ibv_qp_attr attr;

	SKIP_WITHOUT_DEVICE();
	pinl_device_close(r->dev);
	r->dev = NULL;
	assert_ok(pinl_device_open(r->ctx, "verbs", &arg, &r->dev));
	vrig_map(r, policy(PINL_RECALL, PINL_THEN_FAIL, 0), PINL_PIN);
	assert_int_equal(vrig_move(r, 1, LEN, r->addrs[0].addr, r->addrs[0].rkey), IBV_WC_SUCCESS);
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 0));
	assert_int_equal(ibv_query_qp(r->here.qp, &attr, IBV_QP_STATE, &init), 0);
	assert_int_equal(attr.qp_state, IBV_QPS_ERR);
	assert_int_equal(vrig_event(r, PINL_EV_FORCED).err, 0);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, vrig_up, good_again)

int main(int argc, char **argv)
{
	static const struct CMUnitTest tests[] = {
		TEST(rights_that_cost_the_keys_are_not_taken),
		TEST(a_region_that_cant_be_deregistered),
		TEST(a_window_goes_though_its_region_stays),
		TEST(windows_that_stay_are_found),
		TEST(a_region_taken_by_another),
		TEST(a_region_whose_rights_cant_be_taken),
		TEST(a_device_that_was_unplugged),
		TEST(leases_end_with_an_unplugged_device),
		TEST(queue_pairs_end),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
