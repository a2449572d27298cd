/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Memory regions of RDMA devices: an open uverbs file lists its objects; a region's driver keeps the
 * pages in a struct ib_umem, whose place each driver decides. Of drivers that aren't here, and where a
 * module doesn't describe itself, the regions are concluded (pins_device_of()).
 */
#include <rdma/ib_user_ioctl_cmds.h>
#include <stdlib.h>
#include <string.h>

#include "pins.h"

#define MAX_OBJECTS (1u << 20)
#define MAX_ENTRIES (1u << 24)
#define LINK_CHAIN  1ull /* of a scatterlist's page_link */
#define LINK_END    2ull

static const struct {
	const char *module, *region;
} drivers[] = {
	{"rdma_rxe", "rxe_mr"}, {"mlx5_ib", "mlx5_ib_mr"}, {"mlx4_ib", "mlx4_ib_mr"},
	{"efa", "efa_mr"},	{"bnxt_re", "bnxt_re_mr"},
};

#define NR_DRIVERS (sizeof drivers / sizeof *drivers)

static const char *region_of(struct census *c, uint64_t device)
{
	long owner = pins_offset(c, "ib_device", "ops.owner"), name = pins_offset(c, "module", "name");
	char module[40] = "";

	if (owner < 0 || name < 0 ||
	    pins_string(c, pins_word(c, device + owner) + name, module, sizeof module))
		return NULL;
	for (size_t i = 0; i < NR_DRIVERS; i++)
		if (!strcmp(drivers[i].module, module)) {
			if (pins_offset_of(c, drivers[i].region, "umem", "ib_umem") < 0)
				pins_module(c, module);
			return drivers[i].region;
		}
	return NULL;
}

static void hold_pages(struct census *c, uint32_t hold, uint64_t umem)
{
	uint64_t entry = pins_word(c, umem + pins_offset(c, "ib_umem", "sgt_append.sgt.sgl")), at = 0,
		 link;
	uint32_t left = pins_half(c, umem + pins_offset(c, "ib_umem", "sgt_append.sgt.orig_nents"));
	long size = pins_size(c, "scatterlist", ""), offset = pins_offset(c, "scatterlist", "offset"),
	     length = pins_offset(c, "scatterlist", "length");

	for (left = left < MAX_ENTRIES ? left : MAX_ENTRIES; left && entry && size > 0; left--) {
		uint32_t len;

		link = pins_word(c, entry);
		if (link & LINK_CHAIN) {
			entry = link & ~(LINK_CHAIN | LINK_END);
			link = pins_word(c, entry);
		}
		len = pins_half(c, entry + length);
		if (!link || !len)
			return;
		pins_piece(c, hold, link & ~(LINK_CHAIN | LINK_END), pins_half(c, entry + offset), len,
			   at);
		at += len;
		entry += size;
	}
}

static void hold_region(struct census *c, const struct census_file *f, uint64_t mr)
{
	long device = pins_offset(c, "ib_mr", "device");
	const char *region = device < 0 ? NULL : region_of(c, pins_word(c, mr + device));
	long outer = region ? pins_offset_of(c, region, "ibmr", "ib_mr") : -1,
	     inner = region ? pins_offset_of(c, region, "umem", "ib_umem") : -1;
	uint64_t umem = outer < 0 || inner < 0 ? 0 : pins_word(c, mr - outer + inner), addr;

	pins_have(c, umem, f->pid);
	if (!umem || pins_seen(c, umem) || pins_offset(c, "ib_umem", "sgt_append.sgt.sgl") < 0)
		return;
	addr = pins_word(c, umem + pins_offset(c, "ib_umem", "address"));
	hold_pages(c,
		   pins_hold(c, &(struct pins_hold){.device = PINS_RDMA,
						    .pid = f->pid,
						    .fd = f->fd,
						    .addr = addr & ~(PINS_PAGE - 1),
						    .object = umem,
						    .counted = true,
						    .each_page = true}),
		   umem);
}

void pins_hold_rdma(struct census *c, const struct census_file *f)
{
	long list, node, api, id, object;
	uint64_t head, at;

	if (pins_offset(c, "ib_uverbs_file", "uobjects") < 0) {
		pins_module(c, "ib_core");
		pins_module(c, "ib_uverbs");
	}
	list = pins_offset(c, "ib_uverbs_file", "uobjects");
	node = pins_offset(c, "ib_uobject", "list");
	api = pins_offset(c, "ib_uobject", "uapi_object");
	object = pins_offset(c, "ib_uobject", "object");
	id = pins_offset(c, "uverbs_api_object", "id");
	if (list < 0 || node < 0 || api < 0 || object < 0 || id < 0)
		return;
	head = f->private_data + list;
	at = pins_word(c, head);
	for (uint32_t i = 0; at && at != head && i < MAX_OBJECTS; i++, at = pins_word(c, at))
		if (pins_half(c, pins_word(c, at - node + api) + id) == UVERBS_OBJECT_MR)
			hold_region(c, f, pins_word(c, at - node + object));
}
