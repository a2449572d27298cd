/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What can be done about a pin, and which of pinlease's policies fits: by the device that it is for, and
 * where the kernel's function is known that took it, by that; by its lease's policy whether pinlease
 * takes it back, by its memory whether that is known. Nothing else says it anywhere.
 */
#include <pinlease/pinlease.h>
#include <string.h>

#include "pins.h"

const char *const pins_cans[PINS_NR_CANS] = {[PINS_UNKNOWN] = "unknown",
					     [PINS_NOTIFIED] = "notified",
					     [PINS_REVOCABLE] = "revocable",
					     [PINS_TRANSIENT] = "transient",
					     [PINS_NEVER] = "not at all"};

#define KEPT "keep or refuse; kill at the deadline"

const struct pins_class pins_classes[PINS_NR_DEVICES] = {
	[PINS_URING] = {"io_uring", {PINS_REVOCABLE, "recall, then copy, scratch or fail"}},
	[PINS_RDMA] = {"rdma", {PINS_REVOCABLE, "recall, then fail; follow, if it has ODP"}},
	[PINS_VFIO] = {"vfio", {PINS_REVOCABLE, "recall, then scratch, copy or fail"}},
	[PINS_IOMMUFD] = {"iommufd", {PINS_REVOCABLE, "recall, then scratch, copy or fail"}},
	[PINS_XDP] = {"af_xdp", {PINS_NEVER, KEPT}},
	[PINS_DMABUF] = {"dma-buf", {PINS_NEVER, KEPT}},
	[PINS_VMSPLICE] = {"vmsplice", {PINS_TRANSIENT, "none: wait until the pipe is read"}},
	[PINS_DIRECT] = {"direct-io", {PINS_TRANSIENT, "none: it ends by itself"}},
	[PINS_OTHER] = {"other", {PINS_UNKNOWN, "none if it ends soon; else see --watch"}},
};

static const struct pins_fit never = {PINS_NEVER, KEPT},
			     notified = {PINS_NOTIFIED, "follow, by a backend of its own"},
			     transient = {PINS_TRANSIENT, "none: it ends by itself"},
			     unknown = {PINS_UNKNOWN, "keep, until it is known who that is"};

/* By the beginning of a function's name. fit: where it isn't the device's. */
static const struct pins_user users[] = {
	{"io_sqe_buffer", PINS_URING, NULL},
	{"io_buffer_", PINS_URING, NULL},
	{"io_register_", PINS_URING, NULL},
	{"__io_sqe_buffers", PINS_URING, NULL},
	{"io_pin_pages", PINS_URING, NULL},
	{"__io_uring_register", PINS_URING, NULL},
	{"ib_umem_", PINS_RDMA, NULL},
	{"rxe_", PINS_RDMA, NULL},
	{"siw_", PINS_RDMA, NULL},
	{"hfi1_", PINS_RDMA, &notified}, /* mmu_interval_notifier on what it pins */
	{"vfio_", PINS_VFIO, NULL},
	{"vaddr_get_pfn", PINS_VFIO, NULL},
	{"iopt_", PINS_IOMMUFD, NULL},
	{"pfn_reader_", PINS_IOMMUFD, NULL},
	{"iommufd_", PINS_IOMMUFD, NULL},
	{"xdp_umem_", PINS_XDP, NULL},
	{"udmabuf_", PINS_DMABUF, NULL},
	{"iomap_dio_", PINS_DIRECT, NULL},
	{"__iomap_dio_", PINS_DIRECT, NULL},
	{"blkdev_direct_IO", PINS_DIRECT, NULL},
	{"__blkdev_direct_IO", PINS_DIRECT, NULL},
	{"blkdev_read_iter", PINS_DIRECT, NULL},
	{"blkdev_write_iter", PINS_DIRECT, NULL},
	{"bio_map_user_iov", PINS_DIRECT, NULL},
	{"do_direct_IO", PINS_DIRECT, NULL},
	{"__blockdev_direct_IO", PINS_DIRECT, NULL},
	{"ext4_dio_", PINS_DIRECT, NULL},
	{"nfs_direct_", PINS_DIRECT, NULL},
	{"nfs_file_direct_", PINS_DIRECT, NULL},
	{"fuse_direct_io", PINS_DIRECT, NULL},
	{"netfs_unbuffered_", PINS_DIRECT, NULL},
	{"process_vm_rw", PINS_OTHER, &transient},
	{"i915_gem_userptr_", PINS_OTHER, &notified}, /* mmu_interval_notifier, too */
	{"sev_", PINS_OTHER, &never},		      /* memory of encrypted guests */
	{"vhost_vdpa_", PINS_OTHER, &never},
	{"get_vaddr_frames", PINS_OTHER, &never}, /* V4L2 */
	{"hl_pin_", PINS_OTHER, &never},	  /* Habana's accelerators */
	{"rds_", PINS_OTHER, &never},
	{"ne_set_user_memory_region", PINS_OTHER, &never}, /* Nitro enclaves */
};

/* The others promise their holder that it is never recalled, and daemon/recall.c keeps to it. */
bool pins_takes_back(uint32_t policy)
{
	return policy == PINL_RECALL;
}

bool pins_leases_are_told(uint32_t memory)
{
	return memory != CENSUS_ANON && memory != CENSUS_KSM;
}

const struct pins_user *pins_user_of(const char *function)
{
	for (size_t i = 0; i < sizeof users / sizeof *users; i++)
		if (!strncmp(function, users[i].begin, strlen(users[i].begin)))
			return &users[i];
	return NULL;
}

const struct pins_fit *pins_fit_of(enum pins_device device, const struct pins_user *user, bool longterm)
{
	if (user && user->fit)
		return user->fit;
	if (!longterm)
		return &transient;
	return device == PINS_OTHER ? &unknown : &pins_classes[device].fit;
}
