/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Device addresses of memory on huge pages, of both kinds: as many runs as there are gaps, which is
 * none. */
#include "vfio_rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "check.h"

#define HUGE (2ul << 20)

/* addrs[] of a lease of this memory: one run, at the same place of a huge page as the memory (so that
 * the IOMMU can have it as one, too), and what the device is told lands there. */
static void one_run(struct rig *r, char *va, size_t len)
{
	struct pinl_policy keep = {.size = sizeof keep, .kind = PINL_KEEP};
	size_t last = len / PAGE - 1, pages[] = {0, 1, last / 2, last / 2 + 1, last};
	struct pinl_addr *addrs = calloc(len / PAGE, sizeof *addrs);
	struct pinl_run run;
	char buf[EDU_CHUNK];
	size_t n;

	assert_ok(pinl_map_range(r->dev, (uintptr_t)va, (uintptr_t)va + len,
				 PINL_WRITE | PINL_PIN | PINL_COOPERATIVE, &keep, addrs, &r->lease));
	assert_ok(pinl_addrs_coalesce(addrs, len / PAGE, &run, 1, &n));
	assert_int_equal(n, 1);
	assert_int_equal(run.len, len);
	assert_int_equal(run.at.addr % HUGE, (uintptr_t)va % HUGE);
	for (unsigned i = 0; i < sizeof pages / sizeof *pages; i++) {
		memset(buf, 'h' + (char)i, sizeof buf);
		edu_write(&r->edu, &(struct edu_part){run.at.addr + pages[i] * PAGE, buf, EDU_CHUNK}, 1);
		assert_int_equal(addrs[pages[i]].addr, run.at.addr + pages[i] * PAGE);
		assert_memory_equal(va + pages[i] * PAGE, buf, EDU_CHUNK);
	}
	pinl_unmap_range(r->lease);
	r->lease = NULL;
	free(addrs);
}

static void huge_pages(void **state)
{
	char *va = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);

	if (va == MAP_FAILED) {
		print_message("skip: two huge pages of 2 MiB (vm.nr_hugepages)\n");
		skip();
	}
	one_run(*state, va, HUGE);
	one_run(*state, va + HUGE, HUGE);
	one_run(*state, va, 2 * HUGE);
	munmap(va, 2 * HUGE);
}

/* Bytes of the mapping that are on transparent huge pages. */
static size_t on_huge_pages(const char *va)
{
	char line[256], start[32];
	unsigned long kb = 0;
	bool here = false;
	FILE *f = fopen("/proc/self/smaps", "re");

	snprintf(start, sizeof start, "%lx-", (unsigned long)va);
	while (f && fgets(line, sizeof line, f)) {
		here |= !strncmp(line, start, strlen(start));
		if (here && sscanf(line, "AnonHugePages: %lu", &kb) == 1)
			break;
	}
	if (f)
		fclose(f);
	return kb << 10;
}

/* Whole ones, from the middle of one to the middle of another, and one beside small pages. */
static void transparent_huge_pages(void **state)
{
	char *all = mmap(NULL, 5 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *va = (char *)(((uintptr_t)all + HUGE - 1) & ~(uintptr_t)(HUGE - 1));

	munmap(all, va - all);
	assert_int_equal(madvise(va, 3 * HUGE, MADV_HUGEPAGE), 0);
	assert_int_equal(madvise(va + 3 * HUGE, HUGE, MADV_NOHUGEPAGE), 0);
	memset(va, 1, 4 * HUGE);
	if (on_huge_pages(va) < 3 * HUGE) /* where memory is in pieces they come on demand only */
		madvise(va, 3 * HUGE, 25 /* MADV_COLLAPSE */);
	if (on_huge_pages(va) < 3 * HUGE) {
		print_message("skip: transparent huge pages\n");
		skip();
	}
	one_run(*state, va, 3 * HUGE);
	one_run(*state, va + HUGE / 2, 2 * HUGE);
	one_run(*state, va + 2 * HUGE + 3 * PAGE, 2 * HUGE - 6 * PAGE);
	munmap(va, all + 5 * HUGE - va);
}

int main(int argc, char **argv)
{
	static const struct CMUnitTest all[] = {
		RIG_TEST(huge_pages),
		RIG_TEST(transparent_huge_pages),
	};

	return modes_run("vfio_huge", all, sizeof all / sizeof *all, argc, argv);
}
