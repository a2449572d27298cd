/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * iommufd: leases are mappings in one address space (IOAS) of /dev/iommu, for all devices attached to
 * it.
 *
 * REVOCABLE: IOMMU_IOAS_UNMAP takes a mapping away at once and for every transfer, also one that has
 * begun; the device isn't asked. Other pages at the same address: in one step by attaching the devices
 * to a second address space (iommufd_switch.c) where their descriptors are known, else by an unmap and a
 * map. While no device is attached the kernel pins nothing.
 *
 * Facility: linux/iommufd.h (6.2), VFIO_DEVICE_ATTACH_IOMMUFD_PT (6.6). What is there is tried, not
 * derived from a version. Debian's kernels have none of it.
 */
#include "backend/iommufd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "backend/backends.h"
#include "backend/iommufd_api.h"
#include "os/errname.h"
#include "os/forked.h"

#define PAGE	   4096u
#define MAX_RANGES 65536u

/* ------------------------------------------------------------------------ mappings, by ioctl -- */

int pl_ioas_map(int fd, uint32_t ioas, uint64_t iova, const struct pinl_mapping *m)
{
	struct pl_iommu_ioas_map map = {
		.size = sizeof map,
		.flags = PL_IOMMU_FIXED_IOVA | PL_IOMMU_READ_WRITE(m->flags & PINL_WRITE),
		.ioas_id = ioas,
		.user_va = m->start,
		.length = m->end - m->start,
		.iova = iova,
	};

	return ioctl(fd, PL_IOMMU_IOAS_MAP, &map) ? -errno : 0;
}

int pl_ioas_copy(int fd, struct pl_ioas_place from, struct pl_ioas_place to, size_t len, bool writable)
{
	struct pl_iommu_ioas_copy copy = {
		.size = sizeof copy,
		.flags = PL_IOMMU_FIXED_IOVA | PL_IOMMU_READ_WRITE(writable),
		.dst_ioas_id = to.ioas,
		.src_ioas_id = from.ioas,
		.length = len,
		.dst_iova = to.iova,
		.src_iova = from.iova,
	};

	return ioctl(fd, PL_IOMMU_IOAS_COPY, &copy) ? -errno : 0;
}

/* Is anything at this page? A copy of what is there onto itself can't be; of nothing, neither. */
static bool is_mapped(int fd, uint32_t ioas, uint64_t iova)
{
	struct pl_ioas_place here = {ioas, iova};

	return pl_ioas_copy(fd, here, here, PAGE, false) == -EEXIST;
}

/* ENOENT stands for nothing there, for no such address space, and for a larger mapping, which would be
 * at one of the ends. */
int pl_ioas_unmap(int fd, uint32_t ioas, uint64_t iova, size_t len)
{
	struct pl_iommu_ioas_unmap unmap = {
		.size = sizeof unmap, .ioas_id = ioas, .iova = iova, .length = len};
	int err = ioctl(fd, PL_IOMMU_IOAS_UNMAP, &unmap) ? -errno : 0;

	if (err != -ENOENT)
		return err;
	return is_mapped(fd, ioas, iova) || is_mapped(fd, ioas, iova + len - PAGE) ? -EINVAL : 0;
}

static int bring_back(struct iommufd_dev *d)
{
	int err;

	pthread_rwlock_wrlock(&d->lock);
	err = pl_switch_back(d);
	pthread_rwlock_unlock(&d->lock);
	return err;
}

/* For reading, with no device on the twin: no exchange may leave one there before this is unlocked. */
static int lock_at_home(struct iommufd_dev *d)
{
	pthread_rwlock_rdlock(&d->lock);
	while (atomic_load(&d->on_twin)) {
		int err;

		pthread_rwlock_unlock(&d->lock);
		err = bring_back(d);
		if (err)
			return err;
		pthread_rwlock_rdlock(&d->lock);
	}
	return 0;
}

static int iommufd_dma_map(void *table, uint64_t iova, const struct pinl_mapping *m)
{
	struct iommufd_dev *d = table;
	int err;

	err = lock_at_home(d);
	if (err)
		return err;
	err = pl_ioas_map(d->fd, d->ioas, iova, m);
	pthread_rwlock_unlock(&d->lock);
	if (err == -ENOENT)
		return pinl_set_error(-ENODEV, "address space %u of the iommufd is gone", d->ioas);
	return err ? pl_dma_pin_error(err, m, iova, "IOMMU_IOAS_MAP") : 0;
}

static int iommufd_dma_unmap(void *table, uint64_t iova, size_t len)
{
	struct iommufd_dev *d = table;
	int err, twin = 0;

	pthread_rwlock_rdlock(&d->lock);
	err = pl_ioas_unmap(d->fd, d->ioas, iova, len);
	if (atomic_load(&d->on_twin))
		twin = pl_ioas_unmap(d->fd, d->twin, iova, len);
	pthread_rwlock_unlock(&d->lock);
	err = err ? err : twin;
	if (err == -EINVAL)
		return pinl_set_error(
			err,
			"device addresses %#llx to %#llx can't be unmapped: a larger mapping, which is "
			"none of a lease's, has part of them; the program must leave them alone",
			(unsigned long long)iova, (unsigned long long)iova + len - 1);
	return err ? pinl_set_error(err, "device addresses %#llx to %#llx can't be unmapped: %s",
				    (unsigned long long)iova, (unsigned long long)iova + len - 1,
				    pl_errname(-err))
		   : 0;
}

static int say_import(int err, const struct pinl_import *from)
{
	switch (err) {
	case -ENOENT:
		return pinl_set_error(-ENODEV, "the iommufd's address space is gone");
	case -ENODEV:
		return pinl_set_error(err, "the kernel has revoked %s", from->name);
	case -ENOTTY:
	case -EINVAL:
	case -EOPNOTSUPP:
		return pinl_set_error(
			-EOPNOTSUPP,
			"IOMMU_IOAS_MAP_FILE doesn't take the dma-buf of %s: it takes those "
			"of VFIO's BARs, on kernels that have that",
			from->name);
	}
	return pinl_set_error(err, "IOMMU_IOAS_MAP_FILE of %s: %s", from->name, pl_errname(-err));
}

/* By its dma-buf: what has no pages can't be mapped by addresses here. */
static int iommufd_dma_import(void *table, uint64_t iova, const struct pinl_mapping *m,
			      const struct pinl_import *from)
{
	struct iommufd_dev *d = table;
	struct pl_iommu_ioas_map_file map = {
		.size = sizeof map,
		.flags = PL_IOMMU_FIXED_IOVA | PL_IOMMU_READ_WRITE(m->flags & PINL_WRITE),
		.ioas_id = d->ioas,
		.fd = from->fd,
		.start = from->offset,
		.length = m->end - m->start,
		.iova = iova,
	};
	int err;

	if (from->fd < 0)
		return pinl_set_error(
			-EOPNOTSUPP,
			"iommufd maps device memory by a dma-buf, and %s has only an address: "
			"this kernel makes no dma-bufs of VFIO's BARs, or export the handle, "
			"too; device kind \"vfio\" takes addresses",
			from->name);
	err = lock_at_home(d);
	if (err)
		return err;
	err = ioctl(d->fd, PL_IOMMU_IOAS_MAP_FILE, &map) ? -errno : 0;
	pthread_rwlock_unlock(&d->lock);
	if (err == -EEXIST || err == -ENOMEM)
		return pl_dma_pin_error(err, m, iova, "IOMMU_IOAS_MAP_FILE");
	return err ? say_import(err, from) : 0;
}

static const struct pl_dma_ops iommufd_dma_ops = {.map = iommufd_dma_map,
						  .unmap = iommufd_dma_unmap,
						  .exchange = pl_switch_exchange,
						  .import = iommufd_dma_import};

/* -------------------------------------------------------------------------------- open and close -- */

static int no_ioas(int err, const struct pinl_iommufd_arg *arg)
{
	if (err == -ENOENT)
		return pinl_set_error(-EINVAL,
				      "the iommufd has no address space %u; IOMMU_IOAS_ALLOC makes one",
				      arg->ioas_id);
	if (err == -ENOTTY || err == -EBADF || err == -EINVAL)
		return pinl_set_error(
			-EBADF,
			"descriptor %d is no iommufd, which is a descriptor of /dev/iommu; "
			"for one of /dev/vfio/vfio there is device kind \"vfio\"",
			arg->iommufd);
	return pinl_set_error(err, "can't see what address space %u of the iommufd may use: %s",
			      arg->ioas_id, pl_errname(-err));
}

/* The addresses that the address space's devices can have, as far as they are attached. */
static int get_ranges(const struct pinl_iommufd_arg *arg, struct pl_iova_range **ranges, unsigned *nr)
{
	struct pl_iommu_ioas_iova_ranges q = {.size = sizeof q, .ioas_id = arg->ioas_id};
	int err = ioctl(arg->iommufd, PL_IOMMU_IOAS_IOVA_RANGES, &q) ? -errno : 0;

	if (err && err != -EMSGSIZE)
		return no_ioas(err, arg);
	if (q.num_iovas > MAX_RANGES)
		return pinl_set_error(-E2BIG, "address space %u has more than %u ranges of addresses",
				      arg->ioas_id, MAX_RANGES);
	*ranges = calloc(q.num_iovas ? q.num_iovas : 1, sizeof **ranges);
	if (!*ranges)
		return pinl_set_error(-ENOMEM, "out of memory for a device");
	_Static_assert(sizeof **ranges == sizeof(struct pl_iommu_iova_range), "the same members");
	q.allowed_iovas = (uintptr_t)*ranges;
	err = ioctl(arg->iommufd, PL_IOMMU_IOAS_IOVA_RANGES, &q) ? -errno : 0;
	if (err) {
		free(*ranges);
		*ranges = NULL;
		return no_ioas(err, arg);
	}
	*nr = q.num_iovas;
	return q.out_iova_alignment <= PAGE
		       ? 0
		       : pinl_set_error(-EOPNOTSUPP,
					"a device of address space %u has no pages of 4 KiB",
					arg->ioas_id);
}

static int open_all(struct iommufd_dev *d, const struct pinl_iommufd_arg *arg,
		    struct pinl_device_info *info)
{
	struct pl_dma_setup setup = {.ops = &iommufd_dma_ops,
				     .table = d,
				     .first = arg->iova_first,
				     .last = arg->iova_last,
				     .flags = arg->flags};
	struct pl_iova_range *ranges = NULL;
	int err = get_ranges(arg, &ranges, &setup.nr_ranges);

	if (!err) {
		d->ioas = arg->ioas_id;
		d->fd = fcntl(arg->iommufd, F_DUPFD_CLOEXEC, 0);
		err = d->fd < 0 ? -errno : pl_forked_add(d->fd);
		if (err)
			pinl_set_error(err, "can't duplicate the iommufd's descriptor: %s",
				       pl_errname(-err));
	}
	setup.ranges = ranges;
	if (!err)
		err = pl_dma_open(&d->dma, &setup, info);
	if (!err)
		err = pl_switch_open(d, arg);
	free(ranges);
	return err;
}

static void iommufd_free(struct iommufd_dev *d)
{
	pl_switch_close(d);
	pl_dma_close(&d->dma);
	pl_forked_close(d->fd);
	pthread_rwlock_destroy(&d->lock);
	pthread_mutex_destroy(&d->exchanging);
	free(d);
}

static int iommufd_open(const void *given, struct pinl_device_info *info, void **out)
{
	const struct pinl_iommufd_arg *arg = given;
	struct iommufd_dev *d;
	int err;

	if (!arg || arg->size < sizeof *arg || (arg->flags & ~PINL_DMA_NO_READ))
		return pinl_set_error(-EINVAL,
				      "device iommufd needs a struct pinl_iommufd_arg with size, "
				      "iommufd and ioas_id set, and no flags but PINL_DMA_NO_READ");
	d = calloc(1, sizeof *d);
	if (!d)
		return pinl_set_error(-ENOMEM, "out of memory for a device");
	d->fd = -1;
	pthread_rwlock_init(&d->lock, NULL);
	pthread_mutex_init(&d->exchanging, NULL);
	err = open_all(d, arg, info);
	if (err) {
		iommufd_free(d);
		return err;
	}
	*out = d;
	return 0;
}

static void iommufd_close(void *dev)
{
	iommufd_free(dev);
}

/* ----------------------------------------------------------------------------------------- leases -- */

static void iommufd_handle(void *dev, const struct pinl_mapping *m, struct pinl_handle *h)
{
	const struct iommufd_dev *d = dev;

	h->kind = PINL_HANDLE_IOMMUFD;
	h->fd = d->fd;
	h->key = d->ioas;
	h->twin = d->twin;
	h->tag = pl_dma_iova(m);
}

const struct pinl_device_ops pl_iommufd_ops = {
	.size = sizeof(struct pinl_device_ops),
	.name = "iommufd",
	.open = iommufd_open,
	.close = iommufd_close,
	.map = pl_dma_map,
	.unmap = pl_dma_unmap,
	.stop = pl_dma_stop,
	.drain = pl_dma_drain,
	.read = pl_dma_read,
	.drop = pl_dma_drop,
	.retarget = pl_dma_retarget,
	.handle = iommufd_handle,
	.forget = pl_dma_forget,
	.import = pl_dma_import,
	.dummy = pl_dma_dummy,
};
