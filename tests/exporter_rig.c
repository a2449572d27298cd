/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "exporter_rig.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static int on_attach(void *arg, struct pinl_attach *a)
{
	struct rig *r = arg;

	assert_ptr_equal(a->device, r->dev);
	if (r->refuse && r->speechless)
		return r->refuse;
	if (r->refuse)
		return pinl_set_error(r->refuse, "the exporter keeps this part to itself");
	r->attached++;
	a->priv = r;
	r->last = *a;
	return 0;
}

static void on_detach(void *arg, const struct pinl_attach *a)
{
	struct rig *r = arg;

	assert_ptr_equal(a->priv, r);
	__atomic_add_fetch(&r->detached, 1, __ATOMIC_SEQ_CST);
}

static void on_release(void *arg)
{
	((struct rig *)arg)->released++;
}

const struct pinl_exporter_ops exporter_ops = {
	.size = sizeof exporter_ops, .attach = on_attach, .detach = on_detach, .release = on_release};

struct pinl_export export_of(const struct rig *r)
{
	return (struct pinl_export){.size = sizeof(struct pinl_export),
				    .name = "the other device",
				    .addr = r->va,
				    .fd = r->ring.ring_fd,
				    .offset = IORING_OFF_SQES,
				    .length = SIZE};
}

void open_soft(struct rig *r, enum pinl_device_class device_class)
{
	struct pinl_soft_arg arg = {sizeof arg, device_class + 1};

	assert_ok(pinl_device_open(r->ctx, "soft", &arg, &r->dev));
}

int rig_up(void **state)
{
	struct pinl_opts opts = {
		.size = sizeof opts, .ceiling_ms = LONG, .drain_ms = 1000, .summary_fd = -1};
	struct rig *r = calloc(1, sizeof *r);
	struct pinl_export x;

	assert_ok(pinl_open(&opts, &r->ctx));
	open_soft(r, PINL_DEV_FAULTING);
	assert_int_equal(io_uring_queue_init(SIZE / sizeof(struct io_uring_sqe), &r->ring, 0), 0);
	r->va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, r->ring.ring_fd, IORING_OFF_SQES);
	assert_ptr_not_equal(r->va, MAP_FAILED);
	x = export_of(r);
	assert_ok(pinl_exporter_register(r->ctx, &x, &exporter_ops, r, &r->exporter));
	*state = r;
	return 0;
}

int rig_down(void **state)
{
	struct rig *r = *state;

	pinl_soft_pause(r->dev, 0);
	pinl_unmap_range(r->lease);
	assert_int_equal(r->attached, r->detached);
	if (r->exporter)
		pinl_exporter_unregister(r->exporter);
	pinl_close(r->ctx);
	assert_int_equal(r->released, 1);
	munmap(r->va, SIZE);
	io_uring_queue_exit(&r->ring);
	free(r);
	return 0;
}

struct pinl_policy recall(enum pinl_then then, unsigned grace_ms)
{
	return (struct pinl_policy){.size = sizeof(struct pinl_policy),
				    .kind = PINL_RECALL,
				    .then = then,
				    .grace_ms = grace_ms};
}

int map_handle(struct rig *r, struct pinl_policy policy, unsigned flags)
{
	return pinl_map_exporter(r->dev, r->exporter, 0, SIZE, flags, &policy, r->addrs, &r->lease);
}

int map_addresses(struct rig *r, struct pinl_policy policy, unsigned flags)
{
	uintptr_t start = (uintptr_t)r->va;

	return pinl_map_range(r->dev, start, start + SIZE, flags, &policy, r->addrs, &r->lease);
}

int dma(struct rig *r, unsigned page, unsigned n, char c, int write)
{
	static __thread char buf[SIZE];

	memset(buf, c, n * PAGE);
	return pinl_soft_dma(r->dev, r->addrs[page].addr, buf, n * PAGE, write);
}

void assert_memory(const struct rig *r, unsigned page, char c)
{
	for (unsigned i = 0; i < PAGE; i++)
		if (r->va[page * PAGE + i] != c)
			fail_msg("byte %u of page %u is %#x, not %#x", i, page,
				 r->va[page * PAGE + i] & 255, c & 255);
}

void assert_says(const char *what)
{
	if (!strstr(pinl_error(), what))
		fail_msg("\"%s\" doesn't say \"%s\"", pinl_error(), what);
}

struct pinl_event await_event(struct rig *r, enum pinl_event_type type)
{
	return event_of(r->ctx, type);
}

struct pinl_lease_info info_of(const struct rig *r)
{
	struct pinl_lease_info info = {.size = sizeof info};

	assert_ok(pinl_lease_info(r->lease, &info));
	return info;
}
