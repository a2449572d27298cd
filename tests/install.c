/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Compiled by tests/install.py against the installed tree, as C and as C++, and run. */
#include <pinlease/pinlease.h>
#include <pinlease/device.h>
#include <pinlease/source.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static void check(int err, const char *what)
{
	if (err < 0) {
		fprintf(stderr, "%s: %s: %s\n", what, strerror(-err), pinl_error());
		exit(1);
	}
}

int main(void)
{
	const size_t size = 4096 * 4;
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uintptr_t start = (uintptr_t)memory;
	struct pinl_policy policy;
	struct pinl_addr addrs[4];
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct pinl_lease *lease;

	if (memory == MAP_FAILED)
		return 1;
	memset(&policy, 0, sizeof(policy));
	policy.size = sizeof(policy);
	policy.kind = PINL_KEEP;
	check(pinl_open(NULL, &ctx), "open");
	check(pinl_device_open(ctx, "soft", NULL, &dev), "soft device");
	check(pinl_map_range(dev, start, start + size, PINL_WRITE | PINL_PIN, &policy, addrs, &lease),
	      "map");
	check(pinl_soft_dma(dev, addrs[3].addr, (void *)"ok", 3, 1), "dma");
	puts((char *)memory + 4096 * 3);
	pinl_unmap_range(lease);
	pinl_close(ctx);
	return 0;
}
