/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * UCX's cache, which has its memory hooks in the process as soon as it is there. Its interface is
 * installed but not stable: this is for the one Debian 12 has.
 */
#include "cache_ucx.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucm/api/ucm.h>
#include <ucs/memory/rcache.h>

struct region {
	ucs_rcache_region_t super;
	uint32_t key;
};

static ucs_rcache_t *rcache;

static ucs_status_t mem_reg(void *context, ucs_rcache_t *cache, void *arg, ucs_rcache_region_t *region,
			    uint16_t flags)
{
	((struct region *)region)->key = 1;
	return UCS_OK;
}

static void mem_dereg(void *context, ucs_rcache_t *cache, ucs_rcache_region_t *region)
{
}

static void dump(void *context, ucs_rcache_t *cache, ucs_rcache_region_t *region, char *buf, size_t max)
{
	*buf = 0;
}

void ucx_open(void)
{
	static ucs_rcache_ops_t ops = {mem_reg, mem_dereg, dump};
	ucs_rcache_params_t p = {.region_struct_size = sizeof(struct region),
				 .alignment = 64,
				 .max_alignment = PAGE,
				 .ucm_events = UCM_EVENT_VM_UNMAPPED,
				 .ucm_event_priority = 1000,
				 .ops = &ops,
				 .max_regions = -1,
				 .max_size = -1,
				 .max_unreleased = -1};

	if (ucs_rcache_create(&p, "bench", NULL, &rcache) != UCS_OK)
		fail("ucs_rcache_create");
}

void ucx_close(void)
{
	ucs_rcache_destroy(rcache);
}

void ucx_hits(char *arena, const uint32_t *order, unsigned n)
{
	ucs_rcache_region_t *region;
	uintptr_t depends = 0;

	for (unsigned i = 0; i < n; i++) {
		char *at = arena + order[i] * STRIDE + depends;

		if (ucs_rcache_get(rcache, at, 64, PROT_READ | PROT_WRITE, NULL, &region) != UCS_OK ||
		    region->super.start > (uintptr_t)at || region->super.end < (uintptr_t)at + 64)
			fail("ucs_rcache_get: nothing, or a wrong hit");
		depends = ((struct region *)region)->key - 1;
		ucs_rcache_region_put(rcache, region);
	}
}

int ucx_main(int argc, char **argv, void (*measure)(const struct bench *b))
{
	struct bench b = {.group = argv[1]};

	if (argc != 8)
		return 2;
	b.n = atoi(argv[2]);
	b.actor_cpu = atoi(argv[3]);
	b.lib_cpu = atoi(argv[4]);
	b.regions = atoi(argv[5]);
	b.place = argv[6];
	b.dir = argv[7];
	pin_to(b.actor_cpu);
	measure(&b);
	return 0;
}
