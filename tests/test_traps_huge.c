/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Traps of huge pages: changes of a part of one, where a lease has all of it or another part. */
#include "traps_rig.h"

static struct trap t;
static struct lent l;

#define HUGE	       (2ul << 20)
#define TRIES	       50
#define MADV_COLLAPSE_ 25 /* Linux 6.1 */

static long huge_kb(char *va)
{
	FILE *f = fopen("/proc/self/smaps", "re");
	unsigned long from, to;
	char line[512];
	long kb = 0;
	int here = 0;

	while (f && fgets(line, sizeof line, f)) {
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
			here = from <= (uintptr_t)va && to > (uintptr_t)va;
		if (here)
			sscanf(line, "AnonHugePages: %ld", &kb);
	}
	if (f)
		fclose(f);
	return kb;
}

/* Two huge pages' room, with one transparent huge page of 'a' in it. */
static char *huge_page(char **all)
{
	char *va;

	*all = anon_at(NULL, 2 * HUGE, 0);
	va = (char *)(((uintptr_t)*all + HUGE - 1) & ~(HUGE - 1));
	madvise(va, HUGE, MADV_HUGEPAGE);
	memset(va, 'a', HUGE);
	for (int i = 0; i < TRIES && huge_kb(va) < 2048; i++) /* where none was free at once */
		if (madvise(va, HUGE, MADV_COLLAPSE_))
			usleep(100000);
	if (huge_kb(va) < 2048) {
		trap_close(&t);
		print_message("skip: a transparent huge page (/sys/kernel/mm/transparent_hugepage)\n");
		skip();
	}
	return va;
}

/* The lease loses the pages of the change, not the huge page around them. */
static void a_split_huge_page_loses_only_what_was_changed(void **state)
{
	struct pinl_event ev;
	char *all, *va;

	for_each_device(&t, i) for (int unmap = 0; unmap < 2; unmap++)
	{
		va = huge_page(&all);
		lend(&t, &l, va, HUGE, PINNED, recall(PINL_THEN_COPY, 1));
		assert_ok(put(&t, &l, 100, 'x'));
		if (unmap)
			assert_int_equal(munmap(va + 100 * PG, 2 * PG), 0);
		else
			assert_int_equal(madvise_by_other(va + 100 * PG, 2 * PG, MADV_DONTNEED), 0);
		ev = await(&t, PINL_EV_RELEASED);
		assert_int_equal(ev.start, va + 100 * PG);
		assert_int_equal(ev.end, va + 102 * PG);
		assert_int_equal(ev.outcome, PINL_OUT_COPY);
		assert_coherent(&t, &l, 98, 100);
		assert_coherent(&t, &l, 102, 104);
		assert_int_equal(get(&t, &l, 100), 'x');
		await(&t, PINL_EV_ANSWERED);
		if (!unmap) /* the program's own copy is what it discards: the device keeps it */
			assert_int_equal(await(&t, PINL_EV_ORPHAN).start, va + 100 * PG);
		assert_no_event(&t);
		end(&l);
		munmap(all, 2 * HUGE);
	}
}

/* Half of a huge page is leased, and the other half goes. */
static void the_other_half_of_a_huge_page_may_go(void **state)
{
	char *all, *va;

	for_each_device(&t, i)
	{
		va = huge_page(&all);
		lend(&t, &l, va, HUGE / 2, PINNED, recall(PINL_THEN_FAIL, 1));
		assert_int_equal(madvise_by_other(va + HUGE / 2, HUGE / 4, MADV_DONTNEED), 0);
		assert_int_equal(munmap(va + HUGE / 4 * 3, HUGE / 4), 0);
		assert_ok(settled_check(l.lease));
		assert_no_event(&t);
		assert_coherent(&t, &l, 0, 2);
		assert_coherent(&t, &l, 254, 256);
		end(&l);
		munmap(all, 2 * HUGE);
	}
}

static int pool(int pages)
{
	FILE *f = fopen("/proc/sys/vm/nr_hugepages", "r+e");
	int before = -1;

	if (!f)
		return -1;
	if (fscanf(f, "%d", &before) != 1)
		before = -1;
	rewind(f);
	fprintf(f, "%d", pages < 0 ? before : pages);
	fclose(f);
	return before;
}

static int pool_before = -1;

static int pool_up(void **state)
{
	pool_before = pool(-1);
	if (pool_before >= 0)
		pool(pool_before + 2);
	return 0;
}

static int pool_down(void **state)
{
	if (pool_before >= 0)
		pool(pool_before);
	return 0;
}

/* Others use the pool, too, and change it back to what they found. */
static char *two_of_the_pool(void)
{
	char *va = MAP_FAILED;

	for (int i = 0; i < (pool_before < 0 ? 1 : TRIES) && va == MAP_FAILED; i++) {
		if (i) {
			usleep(100000);
			pool(pool(-1) + 2);
		}
		va = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	}
	return va;
}

/* The kernel discards whole huge pages only: a part of one is no change, and recalls nothing. */
static void hugetlb_goes_by_huge_pages(void **state)
{
	char *va = two_of_the_pool();
	struct pinl_event ev;

	if (va == MAP_FAILED) {
		print_message("skip: 2 huge pages of 2 MiB (/proc/sys/vm/nr_hugepages)\n");
		skip();
	}
	for_each_device(&t, i)
	{
		memset(va, 'h', 2 * HUGE);
		assert_int_equal(try_lend(&t, &l, va, 2 * HUGE, PINNED, recall(PINL_THEN_COPY, 1)),
				 -EOPNOTSUPP);
		lend(&t, &l, va, 2 * HUGE, PINNED, recall(PINL_THEN_FAIL, 1));
		assert_int_equal(madvise_by_other(va, PG, MADV_DONTNEED), 0);
		assert_ok(settled_check(l.lease));
		assert_no_event(&t);
		assert_coherent(&t, &l, 0, 2);
		assert_coherent(&t, &l, 511, 513);
		assert_int_equal(madvise_by_other(va + HUGE, HUGE, MADV_DONTNEED), 0);
		ev = await(&t, PINL_EV_RELEASED);
		assert_int_equal(ev.start, va + HUGE);
		assert_int_equal(ev.end, va + 2 * HUGE);
		assert_int_equal(put(&t, &l, 512, 'x'), -EFAULT);
		assert_page(va + HUGE, 0);
		end(&l);
	}
	munmap(va, 2 * HUGE);
}

static void a_hole_in_hugetlbfs_is_found_at_the_end(void **state)
{
	struct pinl_opts opts = {.size = sizeof opts, .sources = PINL_SOURCE_UFFD, .summary_fd = -1};
	struct pinl_policy keep = {.size = sizeof keep, .kind = PINL_KEEP};
	int fd = memfd_create("hole", MFD_CLOEXEC | MFD_HUGETLB);
	struct pinl_device *dev;
	struct pinl_lease *lease;
	struct pinl_ctx *ctx;
	struct pinl_event ev;
	char *va = ftruncate(fd, 2 * HUGE)
			   ? MAP_FAILED
			   : mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (va == MAP_FAILED) {
		print_message("skip: 2 huge pages of 2 MiB (/proc/sys/vm/nr_hugepages)\n");
		skip();
	}
	memset(va, 'h', 2 * HUGE);
	assert_ok(pinl_open(&opts, &ctx));
	assert_ok(pinl_device_open(ctx, "soft", NULL, &dev));
	assert_ok(pinl_map_range(dev, (uintptr_t)va, (uintptr_t)va + 2 * HUGE,
				 PINL_WRITE | PINL_PIN | PINL_COOPERATIVE, &keep, NULL, &lease));
	assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, HUGE, HUGE), 0);
	pinl_unmap_range(lease);
	ev = event_of(ctx, PINL_EV_ORPHAN);
	assert_int_equal(ev.start, va + HUGE);
	assert_int_equal(ev.end, va + 2 * HUGE);
	pinl_close(ctx);
	munmap(va, 2 * HUGE);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_split_huge_page_loses_only_what_was_changed),
		cmocka_unit_test(the_other_half_of_a_huge_page_may_go),
		cmocka_unit_test_setup_teardown(hugetlb_goes_by_huge_pages, pool_up, pool_down),
		cmocka_unit_test_setup_teardown(a_hole_in_hugetlbfs_is_found_at_the_end, pool_up,
						pool_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
