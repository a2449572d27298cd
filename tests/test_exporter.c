/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Device memory is given to devices through its exporter only (M2-M8): the ways to map it, and what its
 * mappings are. test_exporter_input.c has what is refused, test_exporter_revoke.c how it is taken back.
 */
#include "exporter_rig.h"
#include "proc.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ----------------------------------------------------------------------------- two ways to map -- */

static void each_page(struct rig *r)
{
	for (unsigned i = 0; i < PAGES; i++)
		assert_ok(dma(r, i, 1, 'a' + (char)i, 1));
	for (unsigned i = 0; i < PAGES; i++)
		assert_memory(r, i, 'a' + (char)i);
}

static void by_handle(void **state)
{
	struct rig *r = *state;
	struct pinl_lease_info info;

	assert_ok(map_handle(r, recall(PINL_THEN_FAIL, 0), PINL_WRITE));
	each_page(r);
	info = info_of(r);
	assert_int_equal(info.memory, PINL_MEM_DEVICE);
	assert_string_equal(info.exporter, "the other device");
	assert_int_equal(info.end - info.start, SIZE);
	assert_true(info.start > 0x7fffffffffffull);
	assert_int_equal(info.file_ino | info.file_dev, 0);
	assert_int_equal(r->attached, 1);
}

static void by_descriptor(void **state)
{
	struct rig *r = *state;
	struct pinl_policy p = recall(PINL_THEN_FAIL, 0);
	int other = fcntl(r->ring.ring_fd, F_DUPFD_CLOEXEC, 3);

	assert_ok(pinl_map_fd(r->dev, other, IORING_OFF_SQES + 2 * PAGE, 3 * PAGE, PINL_WRITE, &p,
			      r->addrs, &r->lease));
	close(other);
	assert_ok(dma(r, 0, 3, 'x', 1));
	assert_memory(r, 2, 'x');
	assert_memory(r, 4, 'x');
	assert_memory(r, 5, 0);
}

static void by_addresses(void **state)
{
	struct rig *r = *state;

	assert_int_equal(map_addresses(r, recall(PINL_THEN_FAIL, 0), PINL_WRITE), -EOPNOTSUPP);
	assert_says("PINL_COOPERATIVE");
	assert_ok(map_addresses(r, recall(PINL_THEN_FAIL, 0), PINL_WRITE | PINL_PIN | PINL_COOPERATIVE));
	each_page(r);
	assert_int_equal(info_of(r).start, (uintptr_t)r->va);
	assert_int_equal(info_of(r).flags & PINL_PIN, 0);
}

/* Nothing of it is pinned, by whatever flags. */
static void never_pinned(void **state)
{
	struct rig *r = *state;
	long before = pinned_kb();

	assert_ok(map_handle(r, recall(PINL_THEN_FAIL, 0), PINL_WRITE | PINL_PIN));
	assert_int_equal(pinned_kb(), before);
}

static void without_exporter(void **state)
{
	struct rig *r = *state;

	pinl_exporter_unregister(r->exporter);
	r->exporter = NULL;
	assert_int_equal(map_addresses(r, recall(PINL_THEN_FAIL, 0), PINL_WRITE | PINL_COOPERATIVE),
			 -EOPNOTSUPP);
	assert_says("never pinned");
	assert_says("[io_uring]");
	assert_null(r->lease);
}

/* ------------------------------------------------------------------------------------- the VMA -- */

/* M6: the holder unmaps the addresses, by the call that is seen. */
static void unmapped_addresses(void **state)
{
	struct rig *r = *state;

	assert_ok(map_addresses(r, recall(PINL_THEN_SCRATCH, 0), PINL_WRITE | PINL_COOPERATIVE));
	assert_ok(pinl_munmap(r->ctx, r->va + PAGE, PAGE));
	assert_int_equal(info_of(r).state, PINL_RELEASED);
	assert_ok(dma(r, 0, PAGES, 'x', 1));
	assert_memory(r, 0, 0);
	assert_int_equal(r->detached, 1);
}

/* A handle has no addresses: what is unmapped isn't its. */
static void a_handle_outlives_the_mapping(void **state)
{
	struct rig *r = *state;
	char *other;

	assert_ok(map_handle(r, recall(PINL_THEN_FAIL, 0), PINL_WRITE));
	assert_ok(pinl_munmap(r->ctx, r->va, SIZE));
	assert_ok(dma(r, 3, 1, 'z', 1));
	other = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, r->ring.ring_fd, IORING_OFF_SQES);
	assert_ptr_not_equal(other, MAP_FAILED);
	r->va = other;
	assert_memory(r, 3, 'z');
}

static void mapping_is_classified(void **state)
{
	struct rig *r = *state;
	struct pinl_mapped m = {.size = sizeof m};
	char *second = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, r->ring.ring_fd, IORING_OFF_SQES);
	char *anon = mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uintptr_t va = (uintptr_t)r->va;

	assert_ok(pinl_mapped(r->ctx, va + PAGE, va + SIZE, &m));
	assert_int_equal(m.memory, PINL_MEM_DEVICE);
	assert_int_equal(m.kind, PINL_EXPORTER_OTHER);
	assert_ptr_equal(m.exporter, r->exporter);
	assert_int_equal(m.offset, PAGE);
	assert_string_equal(m.name, "the other device");
	assert_ok(pinl_mapped(r->ctx, (uintptr_t)second, (uintptr_t)second + PAGE, &m));
	assert_int_equal(m.memory, PINL_MEM_DEVICE);
	assert_null(m.exporter); /* all anonymous inodes are one: another ring's can't be told apart */
	assert_string_equal(m.name, "anon_inode:[io_uring]");
	assert_ok(pinl_mapped(r->ctx, (uintptr_t)anon, (uintptr_t)anon + PAGE, &m));
	assert_int_equal(m.memory, PINL_MEM_ANON);
	assert_int_equal(m.kind, PINL_EXPORTER_NONE);
	munmap(second, SIZE);
	munmap(anon, SIZE);
}

/* A BAR by sysfs is a regular file there, and yet no page cache. */
static void bars_of_sysfs(void **state)
{
	struct rig *r = *state;
	struct pinl_mapped m = {.size = sizeof m};
	char path[128];
	char *bar = MAP_FAILED;

	for (int dev = 0; dev < 32 * 6 && bar == MAP_FAILED; dev++) {
		int fd;

		snprintf(path, sizeof path, "/sys/bus/pci/devices/0000:00:%02x.0/resource%d", dev / 6,
			 dev % 6);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			continue;
		bar = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0); /* not touched */
		close(fd);
	}
	if (bar == MAP_FAILED) {
		print_message("skip: a PCI device with a memory BAR, and root\n");
		skip();
	}
	assert_ok(pinl_mapped(r->ctx, (uintptr_t)bar, (uintptr_t)bar + PAGE, &m));
	assert_int_equal(m.memory, PINL_MEM_DEVICE);
	assert_int_equal(m.kind, PINL_EXPORTER_PCI);
	munmap(bar, PAGE);
}

/* M8 */
static void dirty_pages_mean_nothing(void **state)
{
	struct rig *r = *state;
	struct pinl_lease_info info;
	uint8_t dirty[PAGES] = {0};
	char buf[8];

	assert_ok(map_handle(r, recall(PINL_THEN_FAIL, 0), PINL_WRITE));
	info = info_of(r);
	assert_ok(dma(r, 0, 1, 'd', 1));
	assert_int_equal(pinl_device_dirty(r->lease, info.start, info.end, dirty), -EOPNOTSUPP);
	assert_says("dirty");
	assert_int_equal(pinl_device_protect(r->lease, info.start, info.end), -EOPNOTSUPP);
	assert_int_equal(pinl_lease_read(r->lease, 0, sizeof buf, buf), -EOPNOTSUPP);
	assert_ok(pinl_lease_sync(r->lease, 0, SIZE, PINL_FOR_CPU));
}

static void described(void **state)
{
	struct rig *r = *state;
	char buf[1024];

	assert_ok(map_handle(r, recall(PINL_THEN_FAIL, 0), PINL_WRITE));
	assert_true(pinl_lease_describe(r->lease, buf, sizeof buf) > 0);
	assert_non_null(strstr(buf, "of the other device"));
	assert_non_null(strstr(buf, "recalled by its exporter"));
	assert_null(strstr(buf, "file"));
}

/* Memory that has pages is mapped as memory by a device that can't do otherwise. */
static void with_pages(void **state)
{
	struct rig *r = *state;
	struct pinl_uring_arg arg;
	struct io_uring ring;
	struct pinl_export x = export_of(r);
	int err;

	pinl_exporter_unregister(r->exporter);
	r->released = 0;
	x.flags = PINL_EXPORT_PAGES;
	assert_ok(pinl_exporter_register(r->ctx, &x, &exporter_ops, r, &r->exporter));
	assert_int_equal(io_uring_queue_init(8, &ring, 0), 0);
	arg = (struct pinl_uring_arg){.size = sizeof arg, .ring = &ring};
	pinl_device_close(r->dev);
	assert_ok(pinl_device_open(r->ctx, "uring", &arg, &r->dev));
	assert_int_equal(map_handle(r, recall(PINL_THEN_SCRATCH, 0), PINL_WRITE), -EOPNOTSUPP);
	err = map_handle(r, recall(PINL_THEN_FAIL, 0), PINL_WRITE);
	if (!err) {
		assert_int_equal(r->addrs[1].addr, (uintptr_t)r->va + PAGE);
		assert_ok(pinl_exporter_revoke(r->exporter, NULL));
		pinl_unmap_range(r->lease);
		r->lease = NULL;
	}
	pinl_device_close(r->dev);
	io_uring_queue_exit(&ring);
	open_soft(r, PINL_DEV_REVOCABLE);
	if (err) {
		assert_int_equal(err, -EOPNOTSUPP);
		assert_int_equal(r->attached, r->detached);
		print_message("skip: a mapping of io_uring that has pages (Linux 6.10)\n");
		skip();
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(by_handle),
		RIG_TEST(by_descriptor),
		RIG_TEST(by_addresses),
		RIG_TEST(never_pinned),
		RIG_TEST(without_exporter),
		RIG_TEST(unmapped_addresses),
		RIG_TEST(a_handle_outlives_the_mapping),
		RIG_TEST(mapping_is_classified),
		RIG_TEST(bars_of_sysfs),
		RIG_TEST(dirty_pages_mean_nothing),
		RIG_TEST(described),
		RIG_TEST(with_pages),
	};

	return cmocka_run_group_tests_name("exporter", tests, NULL, NULL);
}
