/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An RDMA driver that answers errors while it is still there. They are made by the linker's --wrap
 * around the library's ioctls.
 */
#include "verbs_rig.h"

#include <errno.h>
#include <rdma/ib_user_ioctl_cmds.h>
#include <rdma/ib_user_verbs.h>
#include <rdma/rdma_user_ioctl_cmds.h>
#include <sys/ioctl.h>

#include "proc.h"

static atomic_int dereg_error; /* errno; 0: as it is */

int __real_ioctl(int fd, unsigned long request, ...);

int __wrap_ioctl(int fd, unsigned long request, void *arg)
{
	const struct ib_uverbs_ioctl_hdr *h = arg;

	if (!dereg_error || request != RDMA_VERBS_IOCTL || h->method_id != UVERBS_METHOD_INVOKE_WRITE ||
	    h->attrs[0].data != IB_USER_VERBS_CMD_DEREG_MR)
		return __real_ioctl(fd, request, arg);
	errno = dereg_error;
	return -1;
}

static int good_again(void **state)
{
	dereg_error = 0;
	return vrig_down(state);
}

/* A firmware that fails for a while. The region is there, so nothing may say that its pages are free;
 * and it goes when the driver can. */
static void refuses(struct vrig *r, int err)
{
	struct pinl_counters c = {.size = sizeof c};
	long before = pinned_kb();

	if (peer_missing()) {
		print_message("skip: %s\n", peer_missing());
		skip();
	}
	vrig_map(r, policy(PINL_RECALL, PINL_THEN_FAIL, 0), PINL_PIN);
	dereg_error = err;
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 0));
	assert_int_equal(vrig_event(r, PINL_EV_FORCED).err, -ETIMEDOUT);
	assert_ok(pinl_counters(r->ctx, &c));
	assert_int_equal(c.drains_unconfirmed, 1);
	vrig_unmap(r);
	assert_int_equal(pinned_kb(), before + (long)LEN / 1024);
	dereg_error = 0;
	assert_int_equal(ftruncate(r->fd, LEN), 0);
	vrig_map(r, policy(PINL_KEEP, 0, 0), PINL_PIN);
	vrig_unmap(r);
	assert_int_equal(pinned_kb(), before);
}

static void a_driver_that_answers_eio(void **state)
{
	refuses(*state, EIO);
}

static void a_driver_that_answers_enodev(void **state)
{
	refuses(*state, ENODEV);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_driver_that_answers_eio, vrig_up, good_again),
		cmocka_unit_test_setup_teardown(a_driver_that_answers_enodev, vrig_up, good_again),
	};

	cmocka_set_message_output(CM_OUTPUT_TAP);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
