/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Real device memory: the BAR of one PCI device (QEMU's ivshmem) for the DMA engine of another (edu),
 * behind an IOMMU, and dma-bufs (udmabuf). A transfer that was started before the exporter took its
 * memory back, and ends after it, doesn't hit the BAR. tests/test_exporter.c has the rules.
 */
#include "bars_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/pci_regs.h>
#include <linux/udmabuf.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* ----------------------------------------------------------------------------------- peer to peer -- */

/* Each page by its own address, and back. */
static void one_device_writes_into_the_other(void **state)
{
	struct rig *r = *state;
	char buf[EDU_CHUNK];

	assert_ok(map_bar(r, PINL_THEN_FAIL));
	for (unsigned i = 0; i < PAGES; i++)
		edu_fills(r, i, 'a' + (char)i);
	for (unsigned i = 0; i < PAGES; i++)
		assert_bar(r, i, 'a' + (char)i);
	r->bar[2 * PAGE] = '!';
	edu_read(&r->edu, &(struct edu_part){r->addrs[2].addr, buf, EDU_CHUNK}, 1);
	assert_int_equal(buf[0], '!');
	assert_int_equal(buf[1], 'c');
}

/* The other path: by the addresses of a mapping that the program has made and exports; type 1 has it. */
static void by_addresses(void **state)
{
	struct rig *r = *state;
	struct pinl_policy p = recall(PINL_THEN_FAIL);
	struct pinl_export x = {.size = sizeof x,
				.name = "my BAR",
				.addr = (void *)r->bar,
				.fd = -1,
				.length = r->bar_len};
	uintptr_t start = (uintptr_t)r->bar + PAGE;
	struct pinl_exporter *mine;
	int err;

	assert_int_equal(pinl_map_range(r->dev, start, start + PAGE, PINL_WRITE | PINL_COOPERATIVE, &p,
					r->addrs, &r->lease),
			 -EOPNOTSUPP);
	assert_says("VFIO");
	assert_ok(pinl_exporter_register(r->ctx, &x, NULL, NULL, &mine));
	err = pinl_map_range(r->dev, start, start + PAGE, PINL_WRITE | PINL_COOPERATIVE, &p, r->addrs,
			     &r->lease);
	if (r->edu.space == EDU_IOMMUFD) {
		assert_int_equal(err, -EOPNOTSUPP);
		assert_says("has only an address");
		pinl_exporter_unregister(mine);
		return;
	}
	assert_int_equal(err, 0);
	edu_fills(r, 0, 'v');
	assert_bar(r, 1, 'v');
	assert_bar(r, 0, 'B');
	pinl_exporter_unregister(mine);
	assert_int_equal(state_of(r), PINL_RELEASED);
	edu_fills(r, 0, 'x');
	assert_bar(r, 1, 'v');
}

static void classified(void **state)
{
	struct rig *r = *state;
	struct pinl_mapped m = {.size = sizeof m};

	assert_ok(pinl_mapped(r->ctx, (uintptr_t)r->bar, (uintptr_t)r->bar + SIZE, &m));
	assert_int_equal(m.memory, PINL_MEM_DEVICE);
	assert_int_equal(m.kind, PINL_EXPORTER_VFIO);
	assert_null(m.exporter);
}

/* ------------------------------------------------------------------------------------- taken back -- */

/* When. */
static uint64_t launch(struct rig *r, const struct edu_part *part)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	edu_launch(&r->edu, part, 1);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* It had not landed yet when the lease was released. Where the machine is slower than that, the tests
 * say less. */
static bool was_under_way(struct rig *r, uint64_t launched)
{
	return event_of(r->ctx, PINL_EV_RELEASED).time_ns < launched + EDU_FLIGHT_NS;
}

/* A transfer is under way when the exporter's memory is switched off, and ends when it is on again.
 * True: it was. */
static bool memory_off(struct rig *r, enum pinl_then then)
{
	char buf[EDU_CHUNK];
	struct edu_part part;
	uint64_t launched;
	bool in_time;

	assert_ok(map_bar(r, then));
	edu_fills(r, 0, 'a');
	part = part_of(r, 0, buf, 'x');
	edu_load(&r->edu, &part, 1);
	launched = launch(r, &part);
	assert_ok(pinl_vfio_memory(r->exporter, 0));
	assert_false(command_of(r) & PCI_COMMAND_MEMORY);
	assert_int_equal(state_of(r), PINL_RELEASED);
	assert_ok(pinl_vfio_memory(r->exporter, 1));
	edu_land(&r->edu);
	in_time = was_under_way(r, launched);
	if (in_time)
		assert_bar(r, 0, 'a');
	return in_time;
}

static void memory_off_fail(void **state)
{
	memory_off(*state, PINL_THEN_FAIL);
}

/* The device goes on, in the dummy. */
static void memory_off_dummy(void **state)
{
	struct rig *r = *state;
	char buf[EDU_CHUNK];

	if (memory_off(r, PINL_THEN_SCRATCH)) {
		edu_read(&r->edu, &(struct edu_part){r->addrs[0].addr, buf, EDU_CHUNK}, 1);
		assert_int_equal(buf[EDU_CHUNK - 1], 'x');
	}
	edu_fills(r, 3, 'y');
	assert_bar(r, 3, 'B');
}

/* The memory is there again, and the lease stays where it is; it is to be mapped anew. */
static void mapped_again_when_asked(void **state)
{
	struct rig *r = *state;

	assert_ok(map_bar(r, PINL_THEN_FAIL));
	assert_ok(pinl_vfio_memory(r->exporter, 0));
	pinl_unmap_range(r->lease);
	r->lease = NULL;
	assert_int_equal(map_bar(r, PINL_THEN_FAIL), -ENODEV);
	assert_says("decoding is off");
	assert_ok(pinl_vfio_memory(r->exporter, 1));
	assert_ok(map_bar(r, PINL_THEN_FAIL));
	edu_fills(r, 0, 'n');
	assert_bar(r, 0, 'n');
}

/* Where the device has no reset, its importers are off all the same. */
static void reset_recalls_first(void **state)
{
	struct rig *r = *state;
	char buf[EDU_CHUNK];
	struct edu_part part;
	uint64_t launched;
	int err;

	assert_ok(map_bar(r, PINL_THEN_FAIL));
	part = part_of(r, 0, buf, 'x');
	edu_load(&r->edu, &part, 1);
	launched = launch(r, &part);
	err = pinl_vfio_reset(r->exporter);
	if (err) {
		assert_int_equal(err, -EOPNOTSUPP);
		assert_says("has no reset");
	}
	assert_int_equal(state_of(r), PINL_RELEASED);
	edu_land(&r->edu);
	set_memory(r, 1);
	if (was_under_way(r, launched))
		assert_bar(r, 0, 'B');
}

static void a_disabled_bar_is_refused(void **state)
{
	struct rig *r = *state;
	int err;

	set_memory(r, 0);
	err = map_bar(r, PINL_THEN_FAIL);
	set_memory(r, 1);
	assert_int_equal(err, -ENXIO);
	assert_says("is disabled");
	assert_null(r->lease);
}

/* A mapping of the program's own, or another lease, has the addresses. */
static void addresses_that_are_taken(void **state)
{
	struct rig *r = *state;
	void *own = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct pinl_policy fail = recall(PINL_THEN_FAIL);
	struct pinl_lease *other;

	assert_int_equal(edu_map(&r->edu, own, EDU_IOVA_FIRST + PAGE, SIZE), 0);
	assert_int_equal(map_bar(r, PINL_THEN_FAIL), -EEXIST);
	assert_says("leaves alone");
	assert_int_equal(edu_unmap(&r->edu, EDU_IOVA_FIRST + PAGE, SIZE), 0);
	pinl_device_close(r->dev);
	open_device(r, EDU_IOVA_FIRST + SIZE + PAGE - 1);
	assert_ok(map_bar(r, PINL_THEN_FAIL));
	edu_fills(r, 0, 'o');
	assert_bar(r, 0, 'o');
	assert_int_equal(
		pinl_map_exporter(r->dev, r->exporter, SIZE, SIZE, PINL_WRITE, &fail, NULL, &other),
		-ENOSPC);
	assert_says("larger range");
	pinl_unmap_range(r->lease);
	r->lease = NULL;
	assert_ok(map_bar(r, PINL_THEN_FAIL));
	edu_fills(r, 1, 'p');
	assert_bar(r, 1, 'p');
	munmap(own, SIZE);
}

/* ----------------------------------------------------------------------- the other goes away -- */

static void bind_again(const char *name)
{
	int fd = open("/sys/bus/pci/drivers_probe", O_WRONLY | O_CLOEXEC);

	assert_true(write(fd, name, strlen(name)) > 0);
	close(fd);
}

/* Its importers are off before it goes, with what was on its way; the other device goes on with memory.
 */
static void unbound_while_imported(void **state)
{
	struct rig *r = *state;
	struct pinl_policy keep = {.size = sizeof keep, .kind = PINL_KEEP};
	char *va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char name[16], buf[EDU_CHUNK];
	struct edu_part part;
	struct pollfd p = {.fd = edu_request_event(r->device), .events = POLLIN};
	pthread_t thread;
	uint64_t launched;
	bool in_time;
	void *failed;

	assert_true(find_ivshmem(name));
	assert_ok(map_bar(r, PINL_THEN_FAIL));
	part = part_of(r, 0, buf, 'U');
	edu_load(&r->edu, &part, 1);
	assert_int_equal(pthread_create(&thread, NULL, edu_unbind, name), 0);
	assert_int_equal(poll(&p, 1, 20000), 1);
	launched = launch(r, &part);
	pinl_exporter_unregister(r->exporter);
	r->exporter = NULL;
	assert_int_equal(state_of(r), PINL_RELEASED);
	in_time = was_under_way(r, launched);
	munmap((void *)r->bar, r->bar_len);
	close(r->device);
	if (r->group >= 0)
		close(r->group);
	pthread_join(thread, &failed);
	assert_null(failed);
	edu_land(&r->edu);
	pinl_unmap_range(r->lease);
	assert_ok(pinl_map_range(r->dev, (uintptr_t)va, (uintptr_t)va + SIZE,
				 PINL_WRITE | PINL_PIN | PINL_COOPERATIVE, &keep, r->addrs, &r->lease));
	edu_fills(r, 0, 'm');
	assert_int_equal(va[EDU_CHUNK - 1], 'm');
	pinl_unmap_range(r->lease);
	r->lease = NULL;
	munmap(va, SIZE);
	close(p.fd);
	bind_again(name);
	open_ivshmem(r);
	if (in_time)
		assert_bar(r, 0, 'B'); /* its memory is the machine's */
}

/* ------------------------------------------------------------------------------- soft device -- */

/* The soft device reaches the BAR by read(2) and write(2): what is switched off is an error, no signal.
 */
static void soft_device_and_a_bar_that_goes(void **state)
{
	struct rig *r = *state;
	struct pinl_policy p = recall(PINL_THEN_FAIL);
	char buf[PAGE];
	int err;

	assert_ok(pinl_map_exporter(r->soft, r->exporter, 0, SIZE, PINL_WRITE, &p, r->addrs, &r->lease));
	memset(buf, 's', sizeof buf);
	assert_ok(pinl_soft_dma(r->soft, r->addrs[1].addr, buf, PAGE, 1));
	assert_bar(r, 1, 's');
	set_memory(r, 0); /* nobody is told */
	err = pinl_soft_dma(r->soft, r->addrs[1].addr, buf, PAGE, 1);
	set_memory(r, 1);
	assert_int_equal(err, -EFAULT);
}

/* ------------------------------------------------------------------------------------- input -- */

static void not_a_bar(void **state)
{
	struct rig *r = *state;
	struct pinl_exporter *e = NULL;

	assert_int_equal(pinl_export_vfio(r->ctx, r->edu.fd, BAR, &e), -EINVAL);
	assert_says("no VFIO PCI device");
	assert_int_equal(pinl_export_vfio(r->ctx, r->device, VFIO_PCI_BAR5_REGION_INDEX, &e), -EINVAL);
	assert_says("has no BAR 5");
	assert_int_equal(pinl_export_vfio(r->ctx, r->device, VFIO_PCI_CONFIG_REGION_INDEX, &e), -EINVAL);
	assert_int_equal(pinl_export_dmabuf(r->ctx, r->device, &e), -EINVAL);
	assert_null(e);
}

/* ---------------------------------------------------------------------------------- dma-bufs -- */

static int make_udmabuf(int *memfd)
{
	struct udmabuf_create create = {.flags = UDMABUF_FLAGS_CLOEXEC, .size = SIZE};
	int ctl = open("/dev/udmabuf", O_RDWR | O_CLOEXEC), fd;

	if (ctl < 0) {
		print_message("skip: /dev/udmabuf (module udmabuf)\n");
		skip();
	}
	*memfd = memfd_create("behind", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(*memfd, SIZE), 0);
	assert_int_equal(fcntl(*memfd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	create.memfd = *memfd;
	fd = ioctl(ctl, UDMABUF_CREATE, &create);
	assert_true(fd >= 0);
	close(ctl);
	return fd;
}

static void udmabuf_by_handle(void **state)
{
	struct rig *r = *state;
	struct pinl_policy p = recall(PINL_THEN_SCRATCH);
	struct pinl_exporter *e;
	int memfd, fd = make_udmabuf(&memfd);
	char buf[PAGE], got[2];

	assert_int_equal(pinl_map_fd(r->soft, fd, 0, SIZE, PINL_WRITE, &p, r->addrs, &r->lease),
			 -ENOENT);
	assert_says("pinl_export_dmabuf");
	assert_ok(pinl_export_dmabuf(r->ctx, fd, &e));
	assert_ok(pinl_map_fd(r->soft, fd, PAGE, 2 * PAGE, PINL_WRITE, &p, r->addrs, &r->lease));
	memset(buf, 'u', sizeof buf);
	assert_ok(pinl_soft_dma(r->soft, r->addrs[1].addr, buf, PAGE, 1));
	assert_int_equal(pread(memfd, got, 2, 3 * PAGE - 1), 2);
	assert_memory_equal(got, "u\0", 2);
	assert_ok(pinl_exporter_revoke(e, NULL));
	memset(buf, 'x', sizeof buf);
	assert_ok(pinl_soft_dma(r->soft, r->addrs[1].addr, buf, PAGE, 1));
	assert_int_equal(pread(memfd, got, 1, 2 * PAGE), 1);
	assert_int_equal(got[0], 'u');
	assert_int_equal(pinl_map_fd(r->dev, fd, 0, PAGE, PINL_WRITE, &p, NULL, &r->lease), -ENODEV);
	pinl_unmap_range(r->lease);
	r->lease = NULL;
	pinl_exporter_offer(e);
	assert_int_equal(pinl_map_fd(r->dev, fd, 0, PAGE, PINL_WRITE, &p, NULL, &r->lease), -EOPNOTSUPP);
	assert_says(r->edu.space == EDU_TYPE1 ? "only a handle" : "doesn't take the dma-buf");
	pinl_exporter_unregister(e);
	close(fd);
	close(memfd);
}

/* Any mapping of a dma-buf is known to be its exporter's, and is leased by its addresses, too. */
static void udmabuf_by_addresses(void **state)
{
	struct rig *r = *state;
	struct pinl_policy p = recall(PINL_THEN_FAIL);
	struct pinl_mapped m = {.size = sizeof m};
	struct pinl_exporter *e;
	int memfd, fd = make_udmabuf(&memfd);
	char buf[PAGE], got[1];
	char *va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	uintptr_t start = (uintptr_t)va + 2 * PAGE;

	assert_ptr_not_equal(va, MAP_FAILED);
	assert_ok(pinl_mapped(r->ctx, start, start + PAGE, &m));
	assert_int_equal(m.memory, PINL_MEM_DEVICE);
	assert_int_equal(m.kind, PINL_EXPORTER_DMABUF);
	assert_null(m.exporter);
	assert_ok(pinl_export_dmabuf(r->ctx, fd, &e));
	assert_ok(pinl_mapped(r->ctx, start, start + PAGE, &m));
	assert_ptr_equal(m.exporter, e);
	assert_int_equal(m.offset, 2 * PAGE);
	assert_ok(pinl_map_range(r->soft, start, start + PAGE, PINL_WRITE | PINL_COOPERATIVE, &p,
				 r->addrs, &r->lease));
	memset(buf, 'w', sizeof buf);
	assert_ok(pinl_soft_dma(r->soft, r->addrs[0].addr, buf, PAGE, 1));
	assert_int_equal(pread(memfd, got, 1, 2 * PAGE), 1);
	assert_int_equal(got[0], 'w');
	assert_ok(pinl_munmap(r->ctx, va, SIZE));
	assert_int_equal(state_of(r), PINL_RELEASED);
	assert_int_equal(pinl_soft_dma(r->soft, r->addrs[0].addr, buf, PAGE, 1), -EFAULT);
	pinl_exporter_unregister(e);
	close(fd);
	close(memfd);
}

/* ------------------------------------------------------------------------------------ runner -- */

static void not_here(void **state)
{
	print_message("skip: %s\n", missing_for(*(enum edu_space *)*state));
	skip();
}

#define TEST(name)                                                                                      \
	{                                                                                               \
#name, name                                                                             \
	}
static const struct {
	const char *name;
	CMUnitTestFunction run;
} all[] = {
	TEST(one_device_writes_into_the_other),
	TEST(by_addresses),
	TEST(classified),
	TEST(memory_off_fail),
	TEST(memory_off_dummy),
	TEST(mapped_again_when_asked),
	TEST(reset_recalls_first),
	TEST(a_disabled_bar_is_refused),
	TEST(addresses_that_are_taken),
	TEST(unbound_while_imported),
	TEST(soft_device_and_a_bar_that_goes),
	TEST(not_a_bar),
	TEST(udmabuf_by_handle),
	TEST(udmabuf_by_addresses),
};

#define NR (sizeof all / sizeof *all)

int main(void)
{
	static const char *const names[] = {[EDU_TYPE1] = "type1", [EDU_IOMMUFD] = "iommufd"};
	static enum edu_space spaces[] = {EDU_TYPE1, EDU_IOMMUFD};
	static char text[2 * NR][80];
	struct CMUnitTest tests[2 * NR];
	size_t n = 0;

	for (size_t s = 0; s < 2; s++) {
		bool here = !missing_for(spaces[s]);

		for (size_t i = 0; i < (here ? NR : 1); i++, n++) {
			snprintf(text[n], sizeof text[n], "%s/%s", names[spaces[s]],
				 here ? all[i].name : "not_here");
			tests[n] = (struct CMUnitTest){.name = text[n],
						       .test_func = here ? all[i].run : not_here,
						       .setup_func = here ? rig_up : NULL,
						       .teardown_func = here ? rig_down : NULL,
						       .initial_state = &spaces[s]};
		}
	}
	return _cmocka_run_group_tests("bars", tests, n, NULL, NULL);
}
