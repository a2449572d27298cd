/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Which lease a fault's event names: nobody says in which address space it was, so only one that can't
 * be another. The device is the test's own, and the IOMMU, too; tests/test_vfio_faults.c has real ones.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <pinlease/device.h>

#include "check.h"
#include "core/fault.h"

#define PG    4096ul
#define AT    0x100000ul
#define TRIES 32

static int dev_open(const void *arg, struct pinl_device_info *info, void **dev)
{
	info->device_class = PINL_DEV_REVOCABLE;
	info->caps = PINL_DEVCAP_PIN;
	*dev = NULL;
	return 0;
}

static int dev_map(void *dev, struct pinl_mapping *m, struct pinl_addr *addrs)
{
	return 0;
}

static void dev_handle(void *dev, const struct pinl_mapping *m, struct pinl_handle *h)
{
	*h = (struct pinl_handle){.kind = PINL_HANDLE_VFIO, .fd = -1, .tag = AT};
}

static const struct pinl_device_ops ops = {
	.size = sizeof ops,
	.name = "translated",
	.open = dev_open,
	.map = dev_map,
	.handle = dev_handle,
};

struct rig {
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct pinl_lease *lease;
	char *va;
};

static int rig_up(void **state)
{
	static struct rig r;
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1};

	assert_ok(pinl_open(&opts, &r.ctx));
	assert_ok(pinl_device_open_ops(r.ctx, &ops, NULL, &r.dev));
	r.va = mmap(NULL, PG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	*state = &r;
	return 0;
}

static int rig_down(void **state)
{
	struct rig *r = *state;

	pinl_close(r->ctx);
	munmap(r->va, PG);
	return 0;
}

static uint64_t lease(struct rig *r)
{
	struct pinl_policy keep = {.size = sizeof keep};
	struct pinl_lease_info info = {.size = sizeof info};
	uintptr_t at = (uintptr_t)r->va;

	assert_ok(pinl_map_range(r->dev, at, at + PG, PINL_WRITE | PINL_PIN | PINL_COOPERATIVE, &keep,
				 NULL, &r->lease));
	assert_ok(pinl_lease_info(r->lease, &info));
	return info.id;
}

static uint64_t named(struct rig *r)
{
	pl_fault_report(r->ctx, "0000:00:04.0", AT + 8, true);
	return event_of(r->ctx, PINL_EV_FAULT).lease_id;
}

static void one_that_is_or_was(void **state)
{
	struct rig *r = *state;
	uint64_t id = lease(r);

	assert_int_equal(named(r), id);
	pinl_unmap_range(r->lease);
	assert_int_equal(named(r), id);
	id = lease(r);
	assert_int_equal(named(r), id); /* the same device's: the newest */
	pinl_unmap_range(r->lease);
	assert_int_equal(named(r), id);
}

/* The other device is closed by now, and what stood for it in memory is the new one's. */
static void none_of_two_devices(void **state)
{
	struct pinl_device *others[TRIES];
	struct rig *r = *state;
	uintptr_t was = (uintptr_t)r->dev;

	for (int i = 0; i < TRIES; i++)
		assert_ok(pinl_device_open_ops(r->ctx, &ops, NULL, &others[i]));
	lease(r);
	pinl_unmap_range(r->lease);
	for (int i = 0; i < TRIES; i++)
		pinl_device_close(others[i]);
	pinl_device_close(r->dev);
	for (int i = 0; i < TRIES && (!i || (uintptr_t)r->dev != was); i++)
		assert_ok(pinl_device_open_ops(r->ctx, &ops, NULL, &r->dev));
	lease(r);
	assert_int_equal(named(r), 0);
	pinl_unmap_range(r->lease);
	assert_int_equal(named(r), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(one_that_is_or_was, rig_up, rig_down),
		cmocka_unit_test_setup_teardown(none_of_two_devices, rig_up, rig_down),
	};

	return cmocka_run_group_tests_name("fault_leases", tests, NULL, NULL);
}
