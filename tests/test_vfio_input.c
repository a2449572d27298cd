/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What can be wrong with a device behind an IOMMU: its descriptors, its addresses, a kernel that doesn't
 * unmap, a device that goes away. */
#include "vfio_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <pinlease/device.h>

#include "check.h"
#include "proc.h"

#define LONG 60000

/* --------------------------------------------------------------------------------- arguments -- */

static int open_as(struct rig *r, int fd, uint64_t first, uint64_t last)
{
	struct pinl_device *dev = NULL;
	int err = try_open(r, fd, first, last, 0, &dev);

	assert_true(!err || strlen(pinl_error()) > 20);
	pinl_device_close(dev);
	return err;
}

static void wrong_descriptors(void **state)
{
	struct rig *r = *state;
	bool type1 = r->mode->space == EDU_TYPE1;
	int memfd = memfd_create("m", MFD_CLOEXEC), null = open("/dev/null", O_RDWR | O_CLOEXEC),
	    other = open(type1 ? "/dev/iommu" : "/dev/vfio/vfio", O_RDWR | O_CLOEXEC), fds[2],
	    empty = open(type1 ? "/dev/vfio/vfio" : "/dev/iommu", O_RDWR | O_CLOEXEC);

	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	assert_int_equal(open_as(r, -1, 0, 0), -EBADF);
	assert_int_equal(open_as(r, 9999, 0, 0), -EBADF);
	assert_int_equal(open_as(r, memfd, 0, 0), -EBADF);
	assert_int_equal(open_as(r, null, 0, 0), -EBADF);
	assert_int_equal(open_as(r, fds[0], 0, 0), -EBADF);
	assert_int_equal(open_as(r, other, 0, 0), -EBADF);
	assert_int_equal(open_as(r, r->edu.dev[0].device, 0, 0), -EBADF);
	assert_int_equal(open_as(r, empty, 0, 0), type1 ? -ENODEV : -EINVAL);
	assert_non_null(strstr(pinl_error(), type1 ? "VFIO_SET_IOMMU" : "IOMMU_IOAS_ALLOC"));
	assert_int_equal(open_as(r, r->edu.fd, 0, 0), 0);
	close(fds[0]);
	close(fds[1]);
	close(empty);
	close(other);
	close(memfd);
	close(null);
}

static int open_with(struct rig *r, const void *arg)
{
	struct pinl_device *dev;
	int err = pinl_device_open(r->ctx, r->mode->kind, arg, &dev);

	assert_true(strlen(pinl_error()) > 20);
	return err;
}

static void wrong_arguments(void **state)
{
	struct rig *r = *state;
	int devices[EDU_MAX];
	union edu_arg arg = edu_arg(&r->edu, r->mode->switched, devices);

	assert_int_equal(open_as(r, r->edu.fd, 0x2000, 0x1000), -EINVAL);
	assert_int_equal(open_as(r, r->edu.fd, 0x1001, 0x1fff), -EINVAL);
	assert_int_equal(open_as(r, r->edu.fd, UINT64_MAX - 2 * PAGE, UINT64_MAX), -EINVAL);
	assert_int_equal(open_with(r, NULL), -EINVAL);
	arg.vfio.size--; /* as in the other */
	assert_int_equal(open_with(r, &arg), -EINVAL);
	arg = edu_arg(&r->edu, r->mode->switched, devices);
	if (r->mode->space == EDU_TYPE1) {
		arg.vfio.flags = 2;
		assert_int_equal(open_with(r, &arg), -EINVAL);
		return;
	}
	arg.iommufd.flags = 2;
	assert_int_equal(open_with(r, &arg), -EINVAL);
	arg = edu_arg(&r->edu, r->mode->switched, devices);
	arg.iommufd.ioas_id = 77;
	assert_int_equal(open_with(r, &arg), -EINVAL);
	arg = edu_arg(&r->edu, r->mode->switched, devices);
	arg.iommufd.devices = &r->edu.fd;
	arg.iommufd.nr_devices = 1;
	assert_int_equal(open_with(r, &arg), -EINVAL);
	arg.iommufd.devices = NULL;
	assert_int_equal(open_with(r, &arg), -EINVAL);
}

static void addresses_run_out(void **state)
{
	struct rig *r = *state;
	struct pinl_policy keep = plain(PINL_KEEP);
	struct pinl_lease *half, *other;
	uintptr_t start;

	reopen(r, EDU_IOVA_FIRST, EDU_IOVA_FIRST + 3 * PAGE - 1, 0);
	make_memory(r, FILE_MEMORY);
	start = (uintptr_t)r->va;
	assert_int_equal(try_lease(r, &keep, FLAGS), -ENOSPC);
	assert_non_null(strstr(pinl_error(), "larger range"));
	assert_ok(pinl_map_range(r->dev, start, start + 2 * PAGE, FLAGS, &keep, NULL, &half));
	assert_int_equal(
		pinl_map_range(r->dev, start + 2 * PAGE, start + SIZE, FLAGS, &keep, NULL, &other),
		-ENOSPC);
	pinl_unmap_range(half);
	assert_ok(pinl_map_range(r->dev, start, start + 3 * PAGE, FLAGS, &keep, NULL, &half));
	pinl_unmap_range(half);
}

static void own_mapping_in_the_way(void **state)
{
	struct rig *r = *state;
	struct pinl_policy keep = plain(PINL_KEEP);
	void *own = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	make_memory(r, FILE_MEMORY);
	assert_int_equal(edu_map(&r->edu, own, EDU_IOVA_FIRST + PAGE, SIZE), 0);
	assert_int_equal(try_lease(r, &keep, FLAGS), -EEXIST);
	assert_non_null(strstr(pinl_error(), "leaves alone"));
	assert_int_equal(edu_unmap(&r->edu, EDU_IOVA_FIRST + PAGE, SIZE), 0);
	lease(r, keep);
	assert_device_reads(r, 'F');
	munmap(own, SIZE);
}

/* The program unmaps a lease's addresses and puts a larger mapping over them: the kernel then unmaps no
 * part of it. Nobody is told that the device was off, and later it is tried again. */
static void a_revoke_that_fails(void **state)
{
	struct rig *r = *state;
	char *own = mmap(NULL, 2 * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct pinl_policy keep = plain(PINL_KEEP);
	struct pinl_event ev;
	char text[512];
	uint64_t iova;

	reopen(r, EDU_IOVA_FIRST, EDU_IOVA_FIRST + SIZE - 1, 0);
	make_memory(r, FILE_MEMORY);
	lease(r, recall(PINL_THEN_FAIL));
	iova = r->addrs[0].addr;
	assert_int_equal(edu_unmap(&r->edu, iova, SIZE), 0);
	assert_int_equal(edu_map(&r->edu, own, iova, 2 * SIZE), 0);
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 0));
	ev = await_event(r, PINL_EV_FORCED);
	assert_int_equal(ev.err, -EINVAL);
	unlease(r);
	ev = await_event(r, PINL_EV_DEGRADED);
	assert_int_equal(ev.err, -ETIMEDOUT);
	assert_int_not_equal(ev.lease_id, 0);
	pinl_event_format(&ev, text, sizeof text);
	assert_non_null(strstr(text, "isn't known to be off"));
	/* Its addresses are given to nobody, since something is there; and are again when it isn't. */
	forget_memory(r);
	make_memory(r, FILE_MEMORY);
	assert_int_equal(try_lease(r, &keep, FLAGS), -ENOSPC);
	assert_int_equal(edu_unmap(&r->edu, iova, 2 * SIZE), 0);
	lease(r, keep);
	assert_int_equal(r->addrs[0].addr, iova);
	assert_device_reads(r, 'F');
	munmap(own, 2 * SIZE);
}

/* With every lease that comes and goes it is tried again, which has a sentence of its own. */
static void what_is_left_changes_no_sentence(void **state)
{
	struct rig *r = *state;
	char *own = mmap(NULL, 2 * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct pinl_policy keep = plain(PINL_KEEP);
	uint64_t iova;

	reopen(r, EDU_IOVA_FIRST, EDU_IOVA_FIRST + 2 * SIZE - 1, 0);
	make_memory(r, FILE_MEMORY);
	lease(r, keep);
	iova = r->addrs[0].addr;
	assert_int_equal(edu_unmap(&r->edu, iova, SIZE), 0);
	assert_int_equal(edu_map(&r->edu, own, iova, 2 * SIZE), 0);
	unlease(r);
	assert_int_equal(try_lease(r, &keep, FLAGS), -EEXIST);
	assert_non_null(strstr(pinl_error(), "leaves alone"));
	assert_int_equal(edu_unmap(&r->edu, iova, 2 * SIZE), 0);
	munmap(own, 2 * SIZE);
}

/* Several that can't be unmapped, while other leases come and go. */
static void what_is_left_is_tried_again(void **state)
{
	struct rig *r = *state;
	char *own = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct pinl_policy keep = plain(PINL_KEEP);
	struct pinl_lease *leases[PAGES];
	uintptr_t at;

	reopen(r, EDU_IOVA_FIRST, EDU_IOVA_FIRST + SIZE - 1, 0);
	make_memory(r, FILE_MEMORY);
	at = (uintptr_t)r->va;
	for (unsigned i = 0; i < PAGES; i++)
		assert_ok(pinl_map_range(r->dev, at + i * PAGE, at + (i + 1) * PAGE, FLAGS, &keep, NULL,
					 &leases[i]));
	for (unsigned i = 0; i < PAGES; i++)
		assert_int_equal(edu_unmap(&r->edu, EDU_IOVA_FIRST + i * PAGE, PAGE), 0);
	assert_int_equal(edu_map(&r->edu, own, EDU_IOVA_FIRST, SIZE), 0);
	for (unsigned i = 0; i < PAGES; i++) {
		pinl_unmap_range(leases[i]);
		assert_int_equal(await_event(r, PINL_EV_DEGRADED).err, -ETIMEDOUT);
	}
	assert_int_equal(pinl_map_range(r->dev, at, at + PAGE, FLAGS, &keep, NULL, leases), -ENOSPC);
	assert_int_equal(edu_unmap(&r->edu, EDU_IOVA_FIRST, SIZE), 0);
	lease(r, keep); /* which takes them all */
	assert_device_reads(r, 'F');
	munmap(own, SIZE);
}

/* Two devices of the library's in one address space may not have the same addresses. */
static void two_devices_with_the_same_addresses(void **state)
{
	struct rig *r = *state;
	struct pinl_policy keep = plain(PINL_KEEP);
	char *va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct pinl_device *second;
	struct pinl_lease *other;

	make_memory(r, FILE_MEMORY);
	lease(r, keep);
	assert_ok(try_open(r, r->edu.fd, EDU_IOVA_FIRST + PAGE, EDU_IOVA_LAST, 0, &second));
	assert_int_equal(
		pinl_map_range(second, (uintptr_t)va, (uintptr_t)va + SIZE, FLAGS, &keep, NULL, &other),
		-EEXIST);
	assert_non_null(strstr(pinl_error(), "leaves alone"));
	pinl_device_close(second);
	assert_device_reads(r, 'F');
	munmap(va, SIZE);
}

/* -------------------------------------------------------------------------------------- very many -- */

#define MANY 10000u

/* None has another's address. */
static void lease_many(struct rig *r, struct pinl_lease **leases, const struct pinl_policy *policy)
{
	char *taken = calloc(EDU_IOVA_LAST / PAGE + 1, 1);

	for (unsigned i = 0; i < MANY; i++) {
		uintptr_t at = (uintptr_t)r->va + i * PAGE;
		struct pinl_addr a;

		assert_ok(pinl_map_range(r->dev, at, at + PAGE, FLAGS, policy, &a, &leases[i]));
		assert_true(a.addr >= EDU_IOVA_FIRST && a.addr < EDU_IOVA_LAST && a.addr % PAGE == 0);
		assert_false(taken[a.addr / PAGE]++);
		if (i < PAGES)
			r->addrs[i] = a;
	}
	free(taken);
}

static void ten_thousand_leases(void **state)
{
	struct rig *r = *state;
	struct pinl_lease **leases = calloc(MANY, sizeof *leases);
	struct pinl_counters n = {.size = sizeof n};
	struct pinl_policy fail = recall(PINL_THEN_FAIL);
	long pinned = pinned_kb();

	r->fd = memfd_create("many", MFD_CLOEXEC);
	assert_int_equal(ftruncate(r->fd, MANY * PAGE), 0);
	r->va = mmap(NULL, MANY * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	assert_ptr_not_equal(r->va, MAP_FAILED);
	memset(r->va, 'F', MANY * PAGE);
	lease_many(r, leases, &fail);
	assert_device_reads(r, 'F');
	witness_start(r);
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 0));
	poison(r);
	take_off(r, 'M');
	edu_land(&r->edu);
	assert_not_hit(r);
	assert_ok(pinl_counters(r->ctx, &n));
	assert_int_equal(n.forced, MANY);
	assert_int_equal(n.drains_unconfirmed, 0);
	for (unsigned i = 0; i < MANY; i++) {
		assert_int_equal(settled_check(leases[i]), -ESTALE);
		pinl_unmap_range(leases[i]);
	}
	assert_ok(pinl_counters(r->ctx, &n));
	assert_int_equal(n.leases, 0);
	munmap(r->va, MANY * PAGE);
	r->va = NULL;
	forget_memory(r);
	for (int ms = 0; r->mode->space == EDU_TYPE1 && pinned_kb() > pinned; ms++) {
		assert_true(ms < LONG); /* a closed ring's go a little later */
		usleep(1000);
	}
	make_memory(r, FILE_MEMORY);
	lease(r, fail);
	assert_device_reads(r, 'F');
	free(leases);
}

static void without_reading_back(void **state)
{
	struct rig *r = *state;
	struct pinl_policy copy = recall(PINL_THEN_COPY), keep = plain(PINL_KEEP);
	long pinned = pinned_kb();
	char byte;

	reopen(r, EDU_IOVA_FIRST, EDU_IOVA_LAST, PINL_DMA_NO_READ);
	make_memory(r, FILE_MEMORY);
	assert_int_equal(try_lease(r, &copy, FLAGS), -EOPNOTSUPP);
	assert_non_null(strstr(pinl_error(), "PINL_DMA_NO_READ"));
	lease(r, keep);
	if (r->mode->space == EDU_TYPE1)	    /* which counts its pins as locked memory */
		assert_true(pinned_kb() <= pinned); /* a closed ring's may go only now */
	assert_int_equal(pinl_lease_read(r->lease, 0, 1, &byte), -EOPNOTSUPP);
	unlease(r);
	/* And what io_uring can't pin will do. */
	assert_int_equal(mprotect(r->va, SIZE, PROT_READ), 0);
	assert_ok(try_lease(r, &keep, PINL_PIN | PINL_COOPERATIVE));
	assert_device_reads(r, 'F');
	take_off(r, 'x');
	edu_land(&r->edu);
	assert_filled("memory leased for reading", r->va, 'F', SIZE);
	unlease(r);
	assert_int_equal(mprotect(r->va, SIZE, PROT_READ | PROT_WRITE), 0);
	lease(r, recall(PINL_THEN_SCRATCH));
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 0));
	take_off(r, 'S');
	edu_land(&r->edu);
	assert_landed_in(r->va, 'S', flying(r));
}

/* ---------------------------------------------------------------------- the device goes away -- */

/* Leases left on it neither stand in the way nor do they break; without a device there are no new ones.
 */
static void unbound_while_leased(void **state)
{
	struct rig *r = *state;
	struct pinl_policy fail = recall(PINL_THEN_FAIL);
	char name[16];
	int asked = edu_request_event(r->edu.dev[0].device);
	struct pollfd p = {.fd = asked, .events = POLLIN};
	pthread_t thread;
	void *failed;

	memcpy(name, r->edu.dev[0].name, sizeof name);
	make_memory(r, FILE_MEMORY);
	lease(r, fail);
	witness_start(r);
	assert_int_equal(pthread_create(&thread, NULL, edu_unbind, name), 0);
	assert_int_equal(poll(&p, 1, LONG), 1);
	take_off(r, 'U');
	edu_close_devices(&r->edu);
	pthread_join(thread, &failed);
	assert_null(failed);
	poison(r);
	usleep(200000);
	assert_not_hit(r);
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 0));
	assert_int_equal(await_event(r, PINL_EV_FORCED).err, 0);
	unlease(r);
	forget_memory(r);
	make_memory(r, FILE_MEMORY);
	if (r->mode->space == EDU_TYPE1) { /* the other kind may be given a device later */
		assert_int_equal(try_lease(r, &fail, FLAGS), -ENODEV);
		assert_non_null(strstr(pinl_error(), "VFIO_GROUP_SET_CONTAINER"));
	}
	close(asked);
	assert_null(edu_missing(r->mode->space)); /* binds it again */
}

/* ------------------------------------------------------------------------------------ runner -- */

int main(int argc, char **argv)
{
	static const struct CMUnitTest all[] = {
		RIG_TEST(wrong_descriptors),	       RIG_TEST(wrong_arguments),
		RIG_TEST(addresses_run_out),	       RIG_TEST(own_mapping_in_the_way),
		RIG_TEST(a_revoke_that_fails),	       RIG_TEST(what_is_left_changes_no_sentence),
		RIG_TEST(what_is_left_is_tried_again), RIG_TEST(two_devices_with_the_same_addresses),
		RIG_TEST(ten_thousand_leases),	       RIG_TEST(without_reading_back),
		RIG_TEST(unbound_while_leased),
	};

	return modes_run("vfio_input", all, sizeof all / sizeof *all, argc, argv);
}
