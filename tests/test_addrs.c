/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* addrs[] of a lease says where its pages are at the device, whatever pages are behind them: small ones,
 * huge ones, some of each. tests/test_contract.c asks every backend. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <cmocka.h>

#include <errno.h>
#include <sys/mman.h>

#include <pinlease/device.h>

#include "check.h"

#define PAGE  4096u
#define HUGE  (2u << 20)
#define SIZE  (2 * HUGE)
#define PAGES (SIZE / PAGE)

struct rig {
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct pinl_addr addrs[PAGES];
	char buf[SIZE];
};

static int rig_up(void **state)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1};
	struct rig *r = calloc(1, sizeof *r);

	assert_ok(pinl_open(&opts, &r->ctx));
	assert_ok(pinl_device_open(r->ctx, "soft", NULL, &r->dev));
	*state = r;
	return 0;
}

static int rig_down(void **state)
{
	struct rig *r = *state;

	pinl_close(r->ctx);
	free(r);
	return 0;
}

/* One transfer for each run, as a driver would build its list, and each page by its own address. */
static void use(struct rig *r, char *va)
{
	struct pinl_policy keep = {.size = sizeof keep, .kind = PINL_KEEP};
	struct pinl_lease *lease;
	struct pinl_run run;
	char page[PAGE];
	size_t n;

	for (size_t i = 0; i < SIZE; i++)
		r->buf[i] = (char)(i / PAGE + i);
	assert_ok(pinl_map_range(r->dev, (uintptr_t)va, (uintptr_t)va + SIZE,
				 PINL_WRITE | PINL_PIN | PINL_COOPERATIVE, &keep, r->addrs, &lease));
	assert_ok(pinl_addrs_coalesce(r->addrs, PAGES, &run, 1, &n));
	assert_int_equal(n, 1);
	assert_int_equal(run.len, SIZE);
	assert_ok(pinl_soft_dma(r->dev, run.at.addr, r->buf, run.len, 1));
	assert_memory_equal(va, r->buf, SIZE);
	for (unsigned i = 0; i < PAGES; i += 37) {
		assert_ok(pinl_soft_dma(r->dev, r->addrs[i].addr, page, PAGE, 0));
		assert_memory_equal(page, r->buf + i * PAGE, PAGE);
	}
	pinl_unmap_range(lease);
}

static void small_pages(void **state)
{
	char *va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	madvise(va, SIZE, MADV_NOHUGEPAGE);
	use(*state, va);
	munmap(va, SIZE);
}

/* Two transparent ones, not aligned to the lease; where the kernel has them, else it is as above. */
static void transparent_huge_pages(void **state)
{
	char *all = mmap(NULL, 4 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *va = (char *)(((uintptr_t)all + HUGE - 1) & ~(uintptr_t)(HUGE - 1));

	madvise(va, 3 * HUGE, MADV_HUGEPAGE);
	memset(va, 1, 3 * HUGE);
	use(*state, va);
	use(*state, va + 5 * PAGE);
	munmap(all, 4 * HUGE);
}

static void hugetlb(void **state)
{
	char *va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB,
			-1, 0);

	if (va == MAP_FAILED) {
		print_message("skip: two huge pages of 2 MiB (vm.nr_hugepages)\n");
		skip();
	}
	use(*state, va);
	munmap(va, SIZE);
}

static void runs_of_all_kinds(void **state)
{
	struct pinl_addr a[] = {{.addr = 0x1000, .key = 1}, {.addr = 0x2000, .key = 1},
				{.addr = 0x3000, .key = 2}, {.addr = 0x5000, .key = 2},
				{.addr = 0x4000, .key = 2}, {.addr = 0x5000, .key = 2}};
	struct pinl_addr end[] = {{.addr = -(uint64_t)PAGE}, {.addr = 0}};
	struct pinl_run runs[6] = {{.len = 0}};
	size_t n = 9;

	assert_ok(pinl_addrs_coalesce(a, 6, runs, 6, &n));
	assert_int_equal(n, 4);
	assert_int_equal(runs[0].len, 2 * PAGE);
	assert_int_equal(runs[1].at.addr, 0x3000);
	assert_int_equal(runs[1].at.key, 2);
	assert_int_equal(runs[1].len, PAGE);
	assert_int_equal(runs[3].at.addr, 0x4000);
	assert_int_equal(runs[3].len, 2 * PAGE);
	runs[1].len = 7;
	assert_ok(pinl_addrs_coalesce(a, 6, runs, 1, &n));
	assert_int_equal(n, 4);
	assert_int_equal(runs[0].len, 2 * PAGE);
	assert_int_equal(runs[1].len, 7);
	assert_ok(pinl_addrs_coalesce(a, 6, NULL, 0, &n));
	assert_int_equal(n, 4);
	assert_ok(pinl_addrs_coalesce(NULL, 0, NULL, 0, &n));
	assert_int_equal(n, 0);
	assert_ok(pinl_addrs_coalesce(end, 2, runs, 2, &n));
	assert_int_equal(n, 2); /* what goes on at 0 is something else */
	assert_int_equal(pinl_addrs_coalesce(NULL, 1, NULL, 0, &n), -EINVAL);
	assert_int_equal(pinl_addrs_coalesce(a, 1, NULL, 1, &n), -EINVAL);
	assert_int_equal(n, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(runs_of_all_kinds),
		cmocka_unit_test_setup_teardown(small_pages, rig_up, rig_down),
		cmocka_unit_test_setup_teardown(transparent_huge_pages, rig_up, rig_down),
		cmocka_unit_test_setup_teardown(hugetlb, rig_up, rig_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
