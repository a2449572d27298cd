/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A DAX device (PINLEASE_TEST_DEVDAX=/dev/daxN.M) with a peer writing to it by RDMA is unbound from its
 * driver. Without a recall before it the kernel's next access to the pinned pages is an oops (6.1
 * to 7.3), so this has a virtual machine of its own, where the kernel's log is looked at, too.
 */
#include "verbs_rig.h"

#include <fcntl.h>
#include <stdlib.h>

#include <pinlease/exporter.h>

#define DAX_LEN (2ul << 20)

struct dax {
	struct vrig *r;
	struct pinl_exporter *exporter;
	const char *path;
	char *va;
};

static int unbind(const struct dax *d)
{
	const char *name = strrchr(d->path, '/') + 1;
	int fd = open("/sys/bus/dax/drivers/device_dax/unbind", O_WRONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : write(fd, name, strlen(name));
	int err = n == (ssize_t)strlen(name) ? 0 : -errno;

	if (fd >= 0)
		close(fd);
	return err;
}

static void *fly(void *arg)
{
	struct dax *d = arg;
	struct vrig *r = d->r;

	while ((r->ended = peer_move(&r->far, 1, 0, DAX_LEN, r->addrs[0].addr, r->addrs[0].rkey)) ==
	       IBV_WC_SUCCESS)
		atomic_fetch_add(&r->moves, 1);
	return NULL;
}

static void open_dax(struct dax *d)
{
	struct pinl_export what = {.size = sizeof what, .name = d->path, .fd = -1, .length = DAX_LEN};
	int fd = open(d->path, O_RDWR | O_CLOEXEC);

	assert_true(fd >= 0);
	d->va = mmap(NULL, DAX_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(d->va, MAP_FAILED);
	close(fd);
	memset(d->va, 0, DAX_LEN);
	what.addr = d->va;
	assert_ok(pinl_exporter_register(d->r->ctx, &what, NULL, NULL, &d->exporter));
}

static void unbound_while_leased(void **state)
{
	struct vrig *r = *state;
	struct pinl_policy p = policy(PINL_RECALL, PINL_THEN_FAIL, 0);
	struct dax d = {.r = r, .path = getenv("PINLEASE_TEST_DEVDAX")};
	pthread_t thread;

	if (peer_missing() || !d.path) {
		print_message("skip: an RDMA device and PINLEASE_TEST_DEVDAX=/dev/daxN.M\n");
		skip();
	}
	open_dax(&d);
	assert_ok(
		pinl_map_exporter(r->dev, d.exporter, 0, DAX_LEN, PINL_WRITE, &p, r->addrs, &r->lease));
	memset(r->far.buf, 'X', DAX_LEN);
	assert_int_equal(pthread_create(&thread, NULL, fly, &d), 0);
	vrig_await_moves(r, 2);
	assert_all("dax", d.va, 'X', PAGE);
	assert_ok(pinl_exporter_revoke(d.exporter, "the DAX device is being unbound"));
	assert_int_equal(unbind(&d), 0);
	pthread_join(thread, NULL);
	assert_int_equal(r->ended, IBV_WC_REM_ACCESS_ERR);
	assert_int_equal(vrig_event(r, PINL_EV_FORCED).err, 0);
	for (int i = 0; i < 20; i++)
		assert_int_equal(vrig_move(r, 1, DAX_LEN, r->addrs[0].addr, r->addrs[0].rkey),
				 IBV_WC_REM_ACCESS_ERR);
	vrig_unmap(r);
	assert_int_equal(
		pinl_map_exporter(r->dev, d.exporter, 0, DAX_LEN, PINL_WRITE, &p, r->addrs, &r->lease),
		-ENODEV);
	pinl_exporter_unregister(d.exporter);
	munmap(d.va, DAX_LEN);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(unbound_while_leased, vrig_up, vrig_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
