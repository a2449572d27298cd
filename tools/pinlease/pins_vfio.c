/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Memory that is mapped for VFIO devices: an open container (type1) lists the addresses that were
 * mapped, by process. Their pages only the IOMMU's tables have; so what is pinned there is taken for the
 * container's where the process still maps it, a pin for each page.
 */
#include "pins.h"

#define MAX_MAPPINGS (1u << 24)
#define MAX_DEPTH    64 /* of a balanced tree: more is garbage */

static void hold_mapping(struct census *c, uint64_t iommu, uint64_t dma)
{
	uint64_t task = pins_word(c, dma + pins_offset(c, "vfio_dma", "task"));
	struct pins_region r = {
		.device = PINS_VFIO,
		.object = iommu,
		.pid = (int32_t)pins_half(c, task + pins_offset(c, "task_struct", "tgid")),
		.start = pins_word(c, dma + pins_offset(c, "vfio_dma", "vaddr"))};

	r.end = r.start + pins_word(c, dma + pins_offset(c, "vfio_dma", "size"));
	if (task && r.start < r.end)
		pins_add(&c->regions, &r);
}

static void walk(struct census *c, uint64_t iommu, uint64_t node, int depth, uint32_t *left)
{
	if (!node || depth == MAX_DEPTH || !*left)
		return;
	--*left;
	walk(c, iommu, pins_word(c, node + pins_offset(c, "rb_node", "rb_left")), depth + 1, left);
	hold_mapping(c, iommu, node - pins_offset(c, "vfio_dma", "node"));
	walk(c, iommu, pins_word(c, node + pins_offset(c, "rb_node", "rb_right")), depth + 1, left);
}

void pins_hold_vfio(struct census *c, const struct census_file *f)
{
	uint32_t left = MAX_MAPPINGS;
	long data, list;
	uint64_t iommu;

	if (pins_offset(c, "vfio_container", "iommu_data") < 0) {
		pins_module(c, "vfio");
		pins_module(c, "vfio_iommu_type1");
	}
	data = pins_offset(c, "vfio_container", "iommu_data");
	list = pins_offset(c, "vfio_iommu", "dma_list.rb_node");
	if (data < 0 || list < 0 || pins_offset(c, "vfio_dma", "task") < 0)
		return;
	iommu = pins_word(c, f->private_data + data);
	pins_have(c, iommu, f->pid);
	if (!pins_seen(c, iommu))
		walk(c, iommu, pins_word(c, iommu + list), 0, &left);
}

static int by_process(const void *a, const void *b)
{
	const struct pins_region *x = a, *y = b;

	if (x->pid != y->pid)
		return x->pid < y->pid ? -1 : 1;
	return x->start != y->start ? (x->start < y->start ? -1 : 1) : 0;
}

void pins_sort_regions(struct census *c)
{
	pins_order(&c->regions, by_process);
	for (size_t i = 0; i < c->regions.n; i++) {
		struct pins_region *r = pins_at(&c->regions, struct pins_region, i);

		r->reach = i && r[-1].pid == r->pid && r[-1].reach > r->end ? r[-1].reach : r->end;
	}
}

size_t pins_regions_before(const struct census *c, int32_t pid, uint64_t addr)
{
	size_t low = 0, high = c->regions.n;

	while (low < high) {
		size_t mid = (low + high) / 2;
		const struct pins_region *r = pins_at(&c->regions, struct pins_region, mid);

		if (r->pid < pid || (r->pid == pid && r->start < addr))
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}
