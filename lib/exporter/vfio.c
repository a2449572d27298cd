/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Regions of VFIO PCI devices. Importers that take a dma-buf get one (Linux 6.19), those that take
 * addresses (type1 maps VM_PFNMAP) a mapping; the kernel revokes the first by itself when the device
 * stops to decode memory accesses, and leaves the second in their tables. So both are recalled here,
 * before.
 *
 * Facility: linux/vfio.h, VFIO_DEVICE_FEATURE_DMA_BUF.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/export.h"

/* struct vfio_device_feature_dma_buf with one range, behind its struct vfio_device_feature. */
#define FEATURE_DMA_BUF 11
struct dma_buf_feature {
	uint32_t argsz, flags;
	uint32_t region_index, open_flags, no_flags, nr_ranges;
	uint64_t offset, length;
};

struct region {
	int device; /* the program's */
	unsigned index;
	off_t config; /* of the configuration space in it */
	size_t len;
	void *map; /* MAP_FAILED: can't be mapped */
	int dmabuf;
	char name[64];
};

static void release(void *arg)
{
	struct region *r = arg;

	if (r->map != MAP_FAILED)
		munmap(r->map, r->len);
	if (r->dmabuf >= 0)
		close(r->dmabuf);
	free(r);
}

static int read_command(const struct region *r, uint16_t *command)
{
	if (pread(r->device, command, sizeof *command, r->config + PCI_COMMAND) == sizeof *command)
		return 0;
	return pinl_set_error(-ENODEV, "the device of %s doesn't answer: it is gone", r->name);
}

static int attach(void *arg, struct pinl_attach *a)
{
	const struct region *r = arg;
	uint16_t command;
	int err = read_command(r, &command);

	if (err || command & PCI_COMMAND_MEMORY)
		return err;
	return pinl_set_error(-ENXIO,
			      "%s is disabled: its device doesn't decode memory accesses (PCI command "
			      "register, bit 1); switch that on by pinl_vfio_memory()",
			      r->name);
}

/* ------------------------------------------------------------------------------------- register -- */

static int get_region(int fd, unsigned index, struct vfio_region_info *info)
{
	*info = (struct vfio_region_info){.argsz = sizeof *info, .index = index};
	return ioctl(fd, VFIO_DEVICE_GET_REGION_INFO, info) ? -errno : 0;
}

/* -1 where the kernel doesn't do it; what is missing shows when somebody wants to import it. */
static int make_dmabuf(const struct region *r)
{
	struct dma_buf_feature f = {.argsz = sizeof f,
				    .flags = VFIO_DEVICE_FEATURE_GET | FEATURE_DMA_BUF,
				    .region_index = r->index,
				    .open_flags = O_RDWR | O_CLOEXEC,
				    .nr_ranges = 1,
				    .length = r->len};

	return ioctl(r->device, VFIO_DEVICE_FEATURE, &f);
}

static int look_at_region(struct region *r)
{
	struct vfio_device_info dev = {.argsz = sizeof dev};
	struct vfio_region_info info;

	if (ioctl(r->device, VFIO_DEVICE_GET_INFO, &dev) || !(dev.flags & VFIO_DEVICE_FLAGS_PCI))
		return pinl_set_error(-EINVAL, "descriptor %d is no VFIO PCI device", r->device);
	if (get_region(r->device, VFIO_PCI_CONFIG_REGION_INDEX, &info))
		return pinl_set_error(-EINVAL, "VFIO device %d has no configuration space", r->device);
	r->config = info.offset;
	if (r->index > VFIO_PCI_BAR5_REGION_INDEX || get_region(r->device, r->index, &info) ||
	    !info.size)
		return pinl_set_error(-EINVAL, "VFIO device %d has no BAR %u", r->device, r->index);
	r->len = info.size & ~4095ull;
	if ((info.flags & VFIO_REGION_INFO_FLAG_MMAP) && r->len)
		r->map = mmap(NULL, r->len, PROT_READ | PROT_WRITE, MAP_SHARED, r->device, info.offset);
	if (r->map != MAP_FAILED)
		madvise(r->map, r->len, MADV_DONTFORK);
	r->dmabuf = make_dmabuf(r);
	if (r->map == MAP_FAILED && r->dmabuf < 0)
		return pinl_set_error(-EOPNOTSUPP,
				      "BAR %u of VFIO device %d can be neither mapped nor exported as a "
				      "dma-buf: it is no memory BAR, or the kernel keeps it to itself",
				      r->index, r->device);
	return 0;
}

int pinl_export_vfio(struct pinl_ctx *ctx, int fd, unsigned index, struct pinl_exporter **out)
{
	static const struct pinl_exporter_ops ops = {
		.size = sizeof ops, .attach = attach, .release = release};
	struct region *r = calloc(1, sizeof *r);
	struct pinl_export x = {.size = sizeof x};
	int err;

	if (!r)
		return pinl_set_error(-ENOMEM, "out of memory for an exporter");
	*r = (struct region){.device = fd, .index = index, .map = MAP_FAILED, .dmabuf = -1};
	snprintf(r->name, sizeof r->name, "BAR %u of VFIO device %d", index, fd);
	err = look_at_region(r);
	if (!err) {
		x.name = r->name;
		x.addr = r->map == MAP_FAILED ? NULL : r->map;
		x.fd = r->dmabuf;
		x.length = r->len;
		err = pinl_exporter_register(ctx, &x, &ops, r, out);
	}
	if (err)
		release(r);
	return err;
}

/* --------------------------------------------------------------------------- reset and memory off -- */

static struct region *region_of(struct pinl_exporter *e)
{
	if (e && e->ops.release == release)
		return e->arg;
	pinl_set_error(-EINVAL, "this exporter is not of pinl_export_vfio()");
	return NULL;
}

static int set_memory(struct region *r, int on)
{
	uint16_t command;
	int err = read_command(r, &command);

	if (err)
		return err;
	command = on ? command | PCI_COMMAND_MEMORY : command & ~PCI_COMMAND_MEMORY;
	if (pwrite(r->device, &command, sizeof command, r->config + PCI_COMMAND) == sizeof command)
		return 0;
	return pinl_set_error(-ENODEV, "the device of %s doesn't answer: it is gone", r->name);
}

int pinl_vfio_memory(struct pinl_exporter *e, int on)
{
	struct region *r = region_of(e);
	int err;

	if (!r)
		return -EINVAL;
	if (!pl_alive(e->ctx))
		return pl_stale();
	err = on ? 0 : pinl_exporter_revoke(e, "its device's memory decoding is off");
	if (!err)
		err = set_memory(r, on);
	if (!err && on)
		pinl_exporter_offer(e);
	return err;
}

int pinl_vfio_reset(struct pinl_exporter *e)
{
	struct region *r = region_of(e);
	int err;

	if (!r)
		return -EINVAL;
	err = pinl_exporter_revoke(e, "its device is being reset");
	if (!err && ioctl(r->device, VFIO_DEVICE_RESET))
		err = errno == EINVAL || errno == ENOTTY ? -EOPNOTSUPP : -errno;
	if (err == -EOPNOTSUPP)
		pinl_set_error(err, "the device of %s has no reset", r->name);
	else if (err && err != -ETIMEDOUT)
		pinl_set_error(err, "the device of %s can't be reset: %s", r->name, strerror(-err));
	pinl_exporter_offer(e);
	return err;
}
