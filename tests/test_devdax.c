/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * devdax: device memory that has pages of the kernel's. It isn't pinned as memory is, but comes through
 * its exporter like all device memory; devices that pin get it that way by their ordinary map. The
 * device is unbound while it is leased: every importer is off it before.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <sys/mman.h>

#include <pinlease/exporter.h>

#include "check.h"

#define DEVICE "/dev/dax0.0"
#define DRIVER "/sys/bus/dax/drivers/device_dax/"
#define PAGE   4096u
#define LEN    (2u << 20)

struct rig {
	int fd, bounce;
	char *va;
	struct io_uring ring;
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct pinl_exporter *exporter;
	struct pinl_lease *lease;
	struct pinl_addr addrs[LEN / PAGE];
};

static int write_to(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), err = 0;

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		err = -errno;
	if (fd >= 0)
		close(fd);
	return err;
}

static void open_dax(struct rig *r)
{
	r->fd = open(DEVICE, O_RDWR | O_CLOEXEC);
	assert_true(r->fd >= 0);
	r->va = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	assert_ptr_not_equal(r->va, MAP_FAILED);
	memset(r->va, 'F', LEN);
}

static void export_dax(struct rig *r)
{
	struct pinl_export x = {.size = sizeof x, .addr = r->va, .fd = r->fd, .length = LEN};

	assert_ok(pinl_exporter_register(r->ctx, &x, NULL, NULL, &r->exporter));
}

static int up(void **state)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1};
	struct rig *r = calloc(1, sizeof *r);
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &r->ring, .slots = 4};

	open_dax(r);
	r->bounce = memfd_create("bounce", MFD_CLOEXEC);
	assert_int_equal(ftruncate(r->bounce, PAGE), 0);
	assert_int_equal(io_uring_queue_init(8, &r->ring, 0), 0);
	assert_ok(pinl_open(&opts, &r->ctx));
	assert_ok(pinl_device_open(r->ctx, "uring", &arg, &r->dev));
	*state = r;
	return 0;
}

static int down(void **state)
{
	struct rig *r = *state;

	pinl_unmap_range(r->lease);
	pinl_exporter_unregister(r->exporter);
	pinl_close(r->ctx);
	io_uring_queue_exit(&r->ring);
	munmap(r->va, LEN);
	close(r->bounce);
	close(r->fd);
	free(r);
	return 0;
}

static int map(struct rig *r, enum pinl_then then)
{
	struct pinl_policy p = {.size = sizeof p, .kind = PINL_RECALL, .then = then};

	return pinl_map_exporter(r->dev, r->exporter, 0, LEN, PINL_WRITE, &p, r->addrs, &r->lease);
}

/* The ring writes a page of it. */
static int ring_write(struct rig *r, unsigned page, char c)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&r->ring);
	struct io_uring_cqe *cqe;
	char buf[PAGE];
	uint64_t tag;
	int res;

	memset(buf, c, sizeof buf);
	assert_int_equal(pwrite(r->bounce, buf, PAGE, 0), PAGE);
	io_uring_prep_read_fixed(sqe, r->bounce, (void *)(uintptr_t)r->addrs[page].addr, PAGE, 0,
				 (int)r->addrs[page].key);
	sqe->user_data = 1;
	assert_int_equal(io_uring_submit(&r->ring), 1);
	do {
		assert_int_equal(io_uring_wait_cqe(&r->ring, &cqe), 0);
		tag = cqe->user_data;
		res = cqe->res;
		io_uring_cqe_seen(&r->ring, cqe);
	} while (pinl_uring_cqe(r->dev, tag));
	return res;
}

static void assert_says(const char *what)
{
	if (!strstr(pinl_error(), what))
		fail_msg("\"%s\" doesn't say \"%s\"", pinl_error(), what);
}

/* ------------------------------------------------------------------------------------- tests -- */

static void needs_its_exporter(void **state)
{
	struct rig *r = *state;
	struct pinl_policy p = {.size = sizeof p, .kind = PINL_KEEP};
	struct pinl_mapped m = {.size = sizeof m};
	uintptr_t va = (uintptr_t)r->va;

	assert_int_equal(pinl_map_range(r->dev, va, va + LEN, PINL_WRITE | PINL_PIN | PINL_COOPERATIVE,
					&p, r->addrs, &r->lease),
			 -EOPNOTSUPP);
	assert_says("never pinned");
	assert_says("devdax");
	assert_ok(pinl_mapped(r->ctx, va, va + LEN, &m));
	assert_int_equal(m.memory, PINL_MEM_DEVICE);
	assert_int_equal(m.kind, PINL_EXPORTER_DAX);
	assert_null(m.exporter);
	export_dax(r);
	assert_ok(pinl_mapped(r->ctx, va + PAGE, va + LEN, &m));
	assert_ptr_equal(m.exporter, r->exporter);
	assert_int_equal(m.offset, PAGE);
}

static void map_or_skip(struct rig *r)
{
	int err = map(r, PINL_THEN_FAIL);

	if (err == -EOPNOTSUPP && strstr(pinl_error(), "io_uring can't pin this memory")) {
		print_message("skip: an io_uring that pins devdax (not Linux 6.1's)\n");
		skip();
	}
	assert_int_equal(err, 0);
}

static void a_device_that_pins(void **state)
{
	struct rig *r = *state;

	export_dax(r);
	assert_int_equal(map(r, PINL_THEN_SCRATCH), -EOPNOTSUPP);
	assert_says("dummy");
	map_or_skip(r);
	assert_int_equal(ring_write(r, 3, 'r'), PAGE);
	assert_int_equal(r->va[3 * PAGE], 'r');
	assert_int_equal(r->va[4 * PAGE - 1], 'r');
	assert_int_equal(r->va[4 * PAGE], 'F');
	assert_ok(pinl_exporter_revoke(r->exporter, NULL));
	assert_int_equal(ring_write(r, 3, 'x'), -EFAULT);
	assert_int_equal(r->va[3 * PAGE], 'r');
}

/* Where userfaultfd watches devdax, a raw munmap recalls who has the addresses; else that isn't
 * promised. */
static void unmapped_raw(void **state)
{
	struct rig *r = *state;
	struct pinl_policy p = {.size = sizeof p, .kind = PINL_RECALL, .then = PINL_THEN_SCRATCH};
	struct pinl_lease_info info = {.size = sizeof info};
	uintptr_t va = (uintptr_t)r->va;
	struct pinl_device *soft;
	char buf[PAGE];
	int err;

	export_dax(r);
	assert_ok(pinl_device_open(r->ctx, "soft", NULL, &soft));
	err = pinl_map_range(soft, va, va + LEN, PINL_WRITE, &p, r->addrs, &r->lease);
	if (err == -EOPNOTSUPP) {
		assert_says("PINL_COOPERATIVE");
		print_message("skip: userfaultfd that watches devdax\n");
		skip();
	}
	assert_int_equal(err, 0);
	memset(buf, 's', PAGE);
	assert_ok(pinl_soft_dma(soft, r->addrs[1].addr, buf, PAGE, 1));
	assert_int_equal(r->va[PAGE], 's');
	assert_int_equal(munmap(r->va, LEN), 0);
	do
		assert_ok(pinl_lease_info(r->lease, &info));
	while (info.state != PINL_RELEASED && !sched_yield());
	memset(buf, 'x', PAGE);
	assert_ok(pinl_soft_dma(soft, r->addrs[1].addr, buf, PAGE, 1));
	r->va = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	assert_ptr_not_equal(r->va, MAP_FAILED);
	assert_int_equal(r->va[PAGE], 's');
}

static void a_device_that_imports(void **state)
{
	struct rig *r = *state;
	struct pinl_policy p = {.size = sizeof p, .kind = PINL_RECALL, .then = PINL_THEN_SCRATCH};
	struct pinl_device *soft;
	char buf[PAGE];

	export_dax(r);
	assert_ok(pinl_device_open(r->ctx, "soft", NULL, &soft));
	assert_ok(pinl_map_fd(soft, r->fd, PAGE, PAGE, PINL_WRITE, &p, r->addrs, &r->lease));
	memset(buf, 's', PAGE);
	assert_ok(pinl_soft_dma(soft, r->addrs[0].addr, buf, PAGE, 1));
	assert_int_equal(r->va[PAGE], 's');
	assert_ok(pinl_exporter_revoke(r->exporter, NULL));
	memset(buf, 'x', PAGE);
	assert_ok(pinl_soft_dma(soft, r->addrs[0].addr, buf, PAGE, 1));
	assert_int_equal(r->va[PAGE], 's');
}

/* The driver is taken away under a lease. Who looks after the machine says so first; then nobody is on
 * it, and the kernel's log stays clean. */
static void unbound_while_leased(void **state)
{
	struct rig *r = *state;

	export_dax(r);
	map_or_skip(r);
	assert_int_equal(ring_write(r, 0, 'r'), PAGE);
	assert_ok(pinl_exporter_revoke(r->exporter, "device_dax is being unbound"));
	assert_int_equal(write_to(DRIVER "unbind", "dax0.0"), 0);
	assert_int_equal(ring_write(r, 0, 'x'), -EFAULT);
	assert_int_equal(map(r, PINL_THEN_FAIL), -ENODEV);
	assert_says("being unbound");
	pinl_unmap_range(r->lease);
	r->lease = NULL;
	pinl_exporter_unregister(r->exporter);
	r->exporter = NULL;
	munmap(r->va, LEN);
	close(r->fd);
	assert_int_equal(write_to(DRIVER "bind", "dax0.0"), 0);
	for (int i = 0; i < 12000 && access(DEVICE, R_OK | W_OK); i++)
		usleep(5000); /* the device's file comes with no other word */
	open_dax(r);
	export_dax(r);
	assert_ok(map(r, PINL_THEN_FAIL));
	assert_int_equal(ring_write(r, 0, 'n'), PAGE);
	assert_int_equal(r->va[0], 'n');
}

static void not_here(void **state)
{
	print_message("skip: " DEVICE " (ndctl create-namespace -m devdax)\n");
	skip();
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, up, down)

int main(void)
{
	const struct CMUnitTest none[] = {cmocka_unit_test(not_here)};
	const struct CMUnitTest tests[] = {
		TEST(needs_its_exporter),    TEST(a_device_that_pins),	 TEST(unmapped_raw),
		TEST(a_device_that_imports), TEST(unbound_while_leased),
	};

	if (access(DEVICE, R_OK | W_OK) || access(DRIVER, F_OK))
		return cmocka_run_group_tests(none, NULL, NULL);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
