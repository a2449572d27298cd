/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Other pages at the same addresses, and kernels that refuse: attachments are counted, and made to fail.
 */
#include "vfio_rig.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "backend/iommufd_api.h"
#include "check.h"

/* Attachments of devices that the library asks for, and how often it unmaps the lease where they are. */
static struct {
	bool counting;
	uint32_t attached;
	uint64_t iova; /* of the lease */
	int attachments, unmaps_in_use;
	int fail, times;	     /* these fail: so many from number `fail` on, counted from 1 */
	long pins_made;		     /* by the kernel while it attached */
	void (*while_mapping)(void); /* called once, before the first mapping is made */
} calls;

/* Pages that the kernel has pinned, ever. */
static long pins_ever(void)
{
	FILE *refresh = fopen("/proc/sys/vm/stat_refresh", "we"), *f;
	char line[128];
	long n = -1;

	if (refresh) {
		fputs("1", refresh);
		fclose(refresh);
	}
	f = fopen("/proc/vmstat", "re");
	while (n < 0 && f && fgets(line, sizeof line, f))
		sscanf(line, "nr_foll_pin_acquired %ld", &n);
	if (f)
		fclose(f);
	return n;
}

static int attach_call(int fd, unsigned long request, struct pl_vfio_attach_pt *pt)
{
	uint32_t to = pt->pt_id;
	int n = ++calls.attachments, ret;

	if (n >= calls.fail && n < calls.fail + calls.times) {
		errno = EBUSY;
		return -1;
	}
	calls.pins_made -= pins_ever();
	ret = syscall(SYS_ioctl, fd, request, pt);
	calls.pins_made += pins_ever();
	if (!ret)
		calls.attached = to;
	return ret;
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	void *arg;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (calls.counting && request == PL_VFIO_ATTACH_PT)
		return attach_call(fd, request, arg);
	if (calls.counting && request == PL_IOMMU_IOAS_MAP && calls.while_mapping) {
		void (*fn)(void) = calls.while_mapping;

		calls.while_mapping = NULL;
		fn();
	}
	if (calls.counting && request == PL_IOMMU_IOAS_UNMAP) {
		const struct pl_iommu_ioas_unmap *u = arg;

		calls.unmaps_in_use += u->ioas_id == calls.attached && u->iova == calls.iova;
	}
	return syscall(SYS_ioctl, fd, request, arg);
}

/* A lease loses its file while attachments fail, beside another one that is left alone. */
static struct pinl_event exchange_meanwhile(struct rig *r, int fail, int times, int *unmaps_in_use,
					    void (*while_mapping)(void))
{
	struct pinl_policy keep = plain(PINL_KEEP);
	struct pinl_addr at[PAGES];
	struct pinl_lease *other;
	struct pinl_event ev;
	char *va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), got;
	struct edu_part part = {.buf = &got, .len = 1};

	memset(va, 'n', SIZE);
	assert_ok(pinl_map_range(r->dev, (uintptr_t)va, (uintptr_t)va + SIZE, FLAGS, &keep, at, &other));
	make_memory(r, FILE_MEMORY);
	lease(r, recall(PINL_THEN_SCRATCH));
	witness_start(r);
	memset(&calls, 0, sizeof calls);
	calls.attached = r->edu.ioas;
	calls.iova = r->addrs[0].addr;
	calls.fail = fail;
	calls.times = times;
	calls.while_mapping = while_mapping;
	calls.counting = true;
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 0));
	calls.counting = false;
	ev = await_event(r, PINL_EV_FORCED);
	*unmaps_in_use = calls.unmaps_in_use;
	poison(r);
	take_off(r, 'Z');
	edu_land(&r->edu);
	assert_not_hit(r);
	/* The neighbour is where it was, also for new transfers and after the end of the other. */
	part.iova = at[1].addr;
	edu_read(&r->edu, &part, 1);
	assert_int_equal(got, 'n');
	if (ev.outcome == PINL_OUT_SCRATCH)
		assert_landed_in(r->va, 'Z', flying(r));
	next_round(r);
	make_memory(r, FILE_MEMORY);
	lease(r, keep);
	assert_device_reads(r, 'F');
	edu_read(&r->edu, &part, 1);
	assert_int_equal(got, 'n');
	next_round(r);
	pinl_unmap_range(other);
	munmap(va, SIZE);
	return ev;
}

static struct pinl_event exchange(struct rig *r, int fail, int times, int *unmaps_in_use)
{
	return exchange_meanwhile(r, fail, times, unmaps_in_use, NULL);
}

static void exchanged_in_one_step(void **state)
{
	struct rig *r = *state;
	int unmaps;
	struct pinl_event ev = exchange(r, 0, 0, &unmaps);

	assert_int_equal(ev.outcome, PINL_OUT_SCRATCH);
	assert_int_equal(ev.err, 0);
	if (r->mode->switched) {
		assert_int_equal(unmaps, 0);
		assert_int_equal(calls.attachments, 2 * r->edu.n);
		assert_int_equal(calls.pins_made, 0); /* they had been: nobody waits for pages there */
	}
}

static struct pinl_lease *third;
static bool could_end;

static void *end_third(void *unused)
{
	pinl_unmap_range(third);
	return unused;
}

static void end_third_meanwhile(void)
{
	struct timespec until;
	pthread_t thread;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += 20;
	assert_int_equal(pthread_create(&thread, NULL, end_third, NULL), 0);
	could_end = !pthread_timedjoin_np(thread, NULL, &until);
}

/* To pin pages may take as long as it likes (a page that is yet to come): other leases end meanwhile. */
static void others_end_while_pages_are_pinned(void **state)
{
	struct rig *r = *state;
	struct pinl_policy keep = plain(PINL_KEEP);
	char *va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct pinl_event ev;
	int unmaps;

	could_end = r->mode->space == EDU_TYPE1; /* others aren't asked */
	assert_ok(
		pinl_map_range(r->dev, (uintptr_t)va, (uintptr_t)va + SIZE, FLAGS, &keep, NULL, &third));
	ev = exchange_meanwhile(r, 0, 0, &unmaps, end_third_meanwhile);
	assert_true(could_end);
	assert_int_equal(ev.outcome, PINL_OUT_SCRATCH);
	if (r->mode->space == EDU_TYPE1)
		pinl_unmap_range(third);
	munmap(va, SIZE);
}

/* All addresses are leased: nothing can be pinned ahead. */
static void no_addresses_to_spare(void **state)
{
	struct rig *r = *state;
	struct pinl_event ev;
	int unmaps;

	reopen(r, EDU_IOVA_FIRST, EDU_IOVA_FIRST + 2 * SIZE - 1, 0);
	for (int i = 0; i < 3; i++) {
		ev = exchange(r, 0, 0, &unmaps);
		assert_int_equal(ev.outcome, PINL_OUT_SCRATCH);
		if (r->mode->switched)
			assert_int_equal(unmaps, 0);
	}
}

/* The program has closed a device's descriptor, and the number is another device's: nobody takes that
 * for it and leaves it where it is. */
static void a_device_that_was_closed(void **state)
{
	struct rig *r = *state;
	int last = r->edu.n - 1, fd = r->edu.dev[last].device, saved, unmaps;
	struct pinl_event ev;

	if (!last)
		return;
	saved = dup(fd);
	assert_int_equal(dup2(r->edu.dev[0].device, fd), fd);
	ev = exchange(r, 0, 0, &unmaps);
	assert_int_equal(ev.outcome, PINL_OUT_SCRATCH);
	assert_int_equal(ev.err, 0);
	if (r->mode->switched)
		assert_int_not_equal(unmaps, 0); /* in two steps */
	assert_int_equal(dup2(saved, fd), fd);
	ev = exchange(r, 0, 0, &unmaps);
	assert_int_equal(ev.outcome, PINL_OUT_SCRATCH);
	if (r->mode->switched)
		assert_int_equal(unmaps, 0);
	close(saved);
}

static void attachments_that_fail(void **state)
{
	struct rig *r = *state;
	struct pinl_event ev;
	int n = r->edu.n, unmaps;

	if (!r->mode->switched)
		return;
	/* To the twin: then in two steps. */
	ev = exchange(r, 1, 1, &unmaps);
	assert_int_equal(ev.outcome, PINL_OUT_SCRATCH);
	assert_int_equal(ev.err, 0);
	assert_int_not_equal(unmaps, 0);
	/* Back from it: the lease fails, the devices are brought back later. */
	ev = exchange(r, n + 1, 1, &unmaps);
	assert_int_equal(ev.outcome, PINL_OUT_FAIL);
	assert_int_equal(ev.err, -EBUSY);
	if (n == 1)
		return;
	/* One of several, which could be brought back, and couldn't. */
	ev = exchange(r, 2, 1, &unmaps);
	assert_int_equal(ev.outcome, PINL_OUT_SCRATCH);
	ev = exchange(r, 2, 2, &unmaps);
	assert_int_equal(ev.outcome, PINL_OUT_FAIL);
	assert_int_equal(ev.err, -EBUSY);
	ev = exchange(r, 0, 0, &unmaps);
	assert_int_equal(ev.outcome, PINL_OUT_SCRATCH);
	assert_int_equal(unmaps, 0);
}

/* ------------------------------------------------------------------------------------ runner -- */

int main(int argc, char **argv)
{
	static const struct CMUnitTest all[] = {
		RIG_TEST(exchanged_in_one_step), RIG_TEST(others_end_while_pages_are_pinned),
		RIG_TEST(no_addresses_to_spare), RIG_TEST(a_device_that_was_closed),
		RIG_TEST(attachments_that_fail),
	};

	return modes_run("vfio_exchange", all, sizeof all / sizeof *all, argc, argv);
}
