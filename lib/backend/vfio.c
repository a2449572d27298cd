/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * vfio: leases are mappings in a VFIO container with a type1 IOMMU. Every device of every group in the
 * container can use them.
 *
 * REVOCABLE: VFIO_IOMMU_UNMAP_DMA takes a mapping away at once and for every transfer, also one that has
 * begun; the device isn't asked. Other pages at the same address take an unmap and a map: 0.1 to 0.4 ms
 * in which a transfer faults. A container that has lost its last group has no mappings either.
 *
 * Facility: linux/vfio.h, VFIO_TYPE1v2_IOMMU (4.0), VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE (5.4).
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "backend/backends.h"
#include "backend/dma.h"
#include "os/errname.h"
#include "os/forked.h"

#define PAGE	   4096u
#define MISC_MAJOR 10
#define VFIO_MINOR 196

struct vfio_dev {
	struct pl_dma dma; /* first, for pl_dma_map() and so on */
	int container;	   /* our duplicate */
};

/* ------------------------------------------------------------------------ mappings, by ioctl -- */

/* NULL: there is no IOMMU in the container. To be freed. */
static struct vfio_iommu_type1_info *get_info(int container)
{
	struct vfio_iommu_type1_info head = {.argsz = sizeof head}, *info;

	if (ioctl(container, VFIO_IOMMU_GET_INFO, &head))
		return NULL;
	if (head.argsz < sizeof head)
		head.argsz = sizeof head;
	info = calloc(1, head.argsz);
	if (!info)
		return NULL;
	info->argsz = head.argsz;
	if (!ioctl(container, VFIO_IOMMU_GET_INFO, info))
		return info;
	free(info);
	return NULL;
}

static bool has_iommu(int container)
{
	struct vfio_iommu_type1_info head = {.argsz = sizeof head};

	return !ioctl(container, VFIO_IOMMU_GET_INFO, &head);
}

static int no_iommu(void)
{
	return pinl_set_error(-ENODEV,
			      "the container has no IOMMU: add a group (VFIO_GROUP_SET_CONTAINER) "
			      "and choose VFIO_TYPE1v2_IOMMU (VFIO_SET_IOMMU) before it is used");
}

static int vfio_dma_map(void *table, uint64_t iova, const struct pinl_mapping *m)
{
	struct vfio_dev *v = table;
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof map,
		.flags = VFIO_DMA_MAP_FLAG_READ | (m->flags & PINL_WRITE ? VFIO_DMA_MAP_FLAG_WRITE : 0),
		.vaddr = m->start,
		.iova = iova,
		.size = m->end - m->start,
	};
	int err = ioctl(v->container, VFIO_IOMMU_MAP_DMA, &map) ? -errno : 0;

	if (err && !has_iommu(v->container))
		return no_iommu();
	return err ? pl_dma_pin_error(err, m, iova, "VFIO_IOMMU_MAP_DMA") : 0;
}

static int vfio_dma_unmap(void *table, uint64_t iova, size_t len)
{
	struct vfio_dev *v = table;
	struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof unmap, .iova = iova, .size = len};
	int err = ioctl(v->container, VFIO_IOMMU_UNMAP_DMA, &unmap) ? -errno : 0;

	if (!err || !has_iommu(v->container))
		return 0;
	if (err == -EINVAL)
		return pinl_set_error(
			err,
			"device addresses %#llx to %#llx can't be unmapped: a larger mapping, which is "
			"none of a lease's, has part of them; the program must leave them alone",
			(unsigned long long)iova, (unsigned long long)iova + len - 1);
	return pinl_set_error(err, "device addresses %#llx to %#llx can't be unmapped: %s",
			      (unsigned long long)iova, (unsigned long long)iova + len - 1,
			      pl_errname(-err));
}

/* Type 1 maps what has no pages by its addresses, and looks at them once. */
static int vfio_dma_import(void *table, uint64_t iova, const struct pinl_mapping *m,
			   const struct pinl_import *from)
{
	struct vfio_dev *v = table;
	struct pinl_mapping at = {.start = (uintptr_t)from->addr, .flags = m->flags};
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof map,
		.flags = VFIO_DMA_MAP_FLAG_READ | (m->flags & PINL_WRITE ? VFIO_DMA_MAP_FLAG_WRITE : 0),
		.vaddr = at.start,
		.iova = iova,
		.size = m->end - m->start,
	};
	int err;

	if (!from->addr)
		return pinl_set_error(
			-EOPNOTSUPP,
			"a VFIO container of type 1 maps device memory by addresses, and %s "
			"has only a handle; map that (mmap) and export it with its address, "
			"or use device kind \"iommufd\"",
			from->name);
	err = ioctl(v->container, VFIO_IOMMU_MAP_DMA, &map) ? -errno : 0;
	if (err && !has_iommu(v->container))
		return no_iommu();
	if (err == -EFAULT || err == -EINVAL)
		return pinl_set_error(
			-EOPNOTSUPP,
			"VFIO_IOMMU_MAP_DMA can't map %s at device address %#llx: it is not "
			"mapped, disabled, or memory that the IOMMU can't reach",
			from->name, (unsigned long long)iova);
	at.end = at.start + map.size;
	return err ? pl_dma_pin_error(err, &at, iova, "VFIO_IOMMU_MAP_DMA") : 0;
}

static const struct pl_dma_ops vfio_dma_ops = {
	.map = vfio_dma_map, .unmap = vfio_dma_unmap, .import = vfio_dma_import};

/* -------------------------------------------------------------------------------- open and close -- */

static int check_container(int fd)
{
	struct stat st;

	if (fstat(fd, &st))
		return pinl_set_error(-EBADF, "descriptor %d is closed: it was to be a VFIO container",
				      fd);
	if (!S_ISCHR(st.st_mode) || st.st_rdev != makedev(MISC_MAJOR, VFIO_MINOR))
		return pinl_set_error(-EBADF,
				      "descriptor %d is no VFIO container, which is a descriptor of "
				      "/dev/vfio/vfio; for one of /dev/iommu there is device kind "
				      "\"iommufd\"",
				      fd);
	if (ioctl(fd, VFIO_GET_API_VERSION) != VFIO_API_VERSION)
		return pinl_set_error(-EOPNOTSUPP, "this kernel's VFIO has another API version than %d",
				      VFIO_API_VERSION);
	if (ioctl(fd, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU) <= 0)
		return pinl_set_error(-EOPNOTSUPP, "the container's IOMMU is not of type 1 (or module "
						   "vfio_iommu_type1 isn't loaded)");
	return 0;
}

static const struct vfio_iommu_type1_info_cap_iova_range *
find_ranges(const struct vfio_iommu_type1_info *info)
{
	uint32_t at = info->flags & VFIO_IOMMU_INFO_CAPS ? info->cap_offset : 0;

	while (at && at + sizeof(struct vfio_info_cap_header) <= info->argsz) {
		const struct vfio_info_cap_header *cap = (const void *)((const char *)info + at);

		if (cap->id == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE)
			return (const void *)cap;
		at = cap->next;
	}
	return NULL;
}

static int open_dma(struct vfio_dev *v, const struct pinl_vfio_arg *arg,
		    const struct vfio_iommu_type1_info *info, struct pinl_device_info *out)
{
	static const struct pl_iova_range any = {0, UINT64_MAX};
	const struct vfio_iommu_type1_info_cap_iova_range *cap = find_ranges(info);
	struct pl_dma_setup setup = {.ops = &vfio_dma_ops,
				     .table = v,
				     .ranges = &any,
				     .nr_ranges = 1,
				     .first = arg->iova_first,
				     .last = arg->iova_last,
				     .flags = arg->flags};
	struct pl_iova_range *ranges = NULL;
	int err;

	if ((info->flags & VFIO_IOMMU_INFO_PGSIZES) && !(info->iova_pgsizes & PAGE))
		return pinl_set_error(-EOPNOTSUPP, "the container's IOMMU has no pages of 4 KiB");
	if (cap) {
		ranges = calloc(cap->nr_iovas ? cap->nr_iovas : 1, sizeof *ranges);
		if (!ranges)
			return pinl_set_error(-ENOMEM, "out of memory for a device");
		for (uint32_t i = 0; i < cap->nr_iovas; i++)
			ranges[i] = (struct pl_iova_range){cap->iova_ranges[i].start,
							   cap->iova_ranges[i].end};
		setup.ranges = ranges;
		setup.nr_ranges = cap->nr_iovas;
	}
	err = pl_dma_open(&v->dma, &setup, out);
	free(ranges);
	return err;
}

static void vfio_free(struct vfio_dev *v)
{
	pl_dma_close(&v->dma);
	pl_forked_close(v->container);
	free(v);
}

static int open_container(struct vfio_dev *v, const struct pinl_vfio_arg *arg,
			  struct pinl_device_info *info)
{
	struct vfio_iommu_type1_info *type1;
	int err;

	v->container = fcntl(arg->container, F_DUPFD_CLOEXEC, 0);
	err = v->container < 0 ? -errno : pl_forked_add(v->container);
	if (err)
		return pinl_set_error(err, "can't duplicate the container's descriptor: %s",
				      pl_errname(-err));
	type1 = get_info(v->container);
	if (!type1)
		return has_iommu(v->container) ? pinl_set_error(-ENOMEM, "out of memory for a device")
					       : no_iommu();
	err = open_dma(v, arg, type1, info);
	free(type1);
	return err;
}

static int vfio_open(const void *given, struct pinl_device_info *info, void **out)
{
	const struct pinl_vfio_arg *arg = given;
	struct vfio_dev *v;
	int err;

	if (!arg || arg->size < sizeof *arg || (arg->flags & ~PINL_DMA_NO_READ))
		return pinl_set_error(-EINVAL, "device vfio needs a struct pinl_vfio_arg with size and "
					       "container set, and no flags but PINL_DMA_NO_READ");
	err = check_container(arg->container);
	if (err)
		return err;
	v = calloc(1, sizeof *v);
	if (!v)
		return pinl_set_error(-ENOMEM, "out of memory for a device");
	v->container = -1;
	err = open_container(v, arg, info);
	if (err) {
		vfio_free(v);
		return err;
	}
	*out = v;
	return 0;
}

static void vfio_close(void *dev)
{
	vfio_free(dev);
}

/* ----------------------------------------------------------------------------------------- leases -- */

static void vfio_handle(void *dev, const struct pinl_mapping *m, struct pinl_handle *h)
{
	const struct vfio_dev *v = dev;

	h->kind = PINL_HANDLE_VFIO;
	h->fd = v->container;
	h->tag = pl_dma_iova(m);
}

const struct pinl_device_ops pl_vfio_ops = {
	.size = sizeof(struct pinl_device_ops),
	.name = "vfio",
	.open = vfio_open,
	.close = vfio_close,
	.map = pl_dma_map,
	.unmap = pl_dma_unmap,
	.stop = pl_dma_stop,
	.drain = pl_dma_drain,
	.read = pl_dma_read,
	.drop = pl_dma_drop,
	.retarget = pl_dma_retarget,
	.handle = vfio_handle,
	.forget = pl_dma_forget,
	.import = pl_dma_import,
	.dummy = pl_dma_dummy,
};
