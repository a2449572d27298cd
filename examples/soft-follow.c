/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * An on-demand device has a page table of its own and needs no pin. When memory is given back to the
 * kernel with a plain madvise(), the library drops the device's entries, and the device faults the new
 * page in with its next transfer.
 *
 * Prints:
 *	the device reads "old"
 *	discarded
 *	the device reads ""
 *	the CPU reads "new"
 */
#define _GNU_SOURCE 1
#include <pinlease/pinlease.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define SIZE 65536

static void check(int err)
{
	if (err < 0) {
		fprintf(stderr, "soft-follow: %s: %s\n", strerror(-err), pinl_error());
		exit(1);
	}
}

int main(void)
{
	struct pinl_policy policy = {.size = sizeof(policy), .kind = PINL_FOLLOW};
	struct pinl_addr addrs[SIZE / 4096];
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct pinl_lease *lease;
	char seen[8];

	char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uintptr_t start = (uintptr_t)memory;
	if (memory == MAP_FAILED)
		return 1;
	strcpy(memory, "old");

	check(pinl_open(NULL, &ctx));
	check(pinl_device_open(ctx, "soft", NULL, &dev));
	check(pinl_map_range(dev, start, start + SIZE, PINL_WRITE, &policy, addrs, &lease));

	check(pinl_soft_dma(dev, addrs[0].addr, seen, sizeof(seen), 0));
	printf("the device reads \"%s\"\n", seen);

	if (madvise(memory, SIZE, MADV_DONTNEED))
		return 1;
	puts("discarded");
	check(pinl_soft_dma(dev, addrs[0].addr, seen, sizeof(seen), 0));
	printf("the device reads \"%s\"\n", seen);

	check(pinl_soft_dma(dev, addrs[0].addr, (void *)"new", 4, 1));
	printf("the CPU reads \"%s\"\n", memory);

	pinl_unmap_range(lease);
	pinl_close(ctx);
	return 0;
}
