/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Devices behind an IOMMU, by a VFIO container: only groups that were named (--vfio), because taking one
 * keeps others from it and resets its devices. None of them is started, so nothing is transferred.
 */
#include "doctor.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define FEATURE_DMA_BUF 11 /* VFIO_DEVICE_FEATURE_DMA_BUF */

struct vfio {
	int container, group, device;
};

static void vfio_close(void *priv)
{
	struct vfio *v = priv;

	if (v->device >= 0)
		close(v->device);
	if (v->group >= 0)
		close(v->group);
	if (v->container >= 0)
		close(v->container);
	free(v);
}

/* What failed, NULL: nothing did. */
static const char *take_group(struct vfio *v, unsigned number)
{
	struct vfio_group_status status = {.argsz = sizeof(status)};
	char path[40];

	snprintf(path, sizeof(path), "/dev/vfio/%u", number);
	v->container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	if (v->container < 0)
		return "/dev/vfio/vfio can't be opened";
	v->group = open(path, O_RDWR | O_CLOEXEC);
	if (v->group < 0)
		return errno == ENOENT ? "the group has no device that is bound to vfio-pci"
		       : errno == EBUSY
			       ? "the group is used by another program"
			       : "the group can't be opened, give the user read and write on it";
	if (ioctl(v->group, VFIO_GROUP_GET_STATUS, &status) || !(status.flags & VFIO_GROUP_FLAGS_VIABLE))
		return "other devices of the group are not bound to vfio-pci, and have to be";
	if (ioctl(v->group, VFIO_GROUP_SET_CONTAINER, &v->container) ||
	    ioctl(v->container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
		return "the group can't be given an IOMMU of type1";
	return NULL;
}

/* Can other devices be given its memory as a dma-buf? */
static void try_export(struct doctor *d, const struct vfio *v, const char *name)
{
	struct vfio_device_feature feature = {.argsz = sizeof(feature),
					      .flags = VFIO_DEVICE_FEATURE_GET |
						       VFIO_DEVICE_FEATURE_PROBE | FEATURE_DMA_BUF};

	if (!ioctl(v->device, VFIO_DEVICE_FEATURE, &feature))
		doctor_here(d, "devices and memory", "dma-bufs of BARs", "%s", name);
	else
		doctor_missing(
			d, "devices and memory", "dma-bufs of BARs",
			"%s can't export its memory as dma-bufs (%s): "
			"vfio-pci does since Linux 6.19, if the device can do peer to peer; with a "
			"container of type1 the mapping of a BAR can be mapped instead",
			name, strerror(errno));
}

static const char *take_device(struct vfio *v, unsigned number)
{
	const char *failed = take_group(v, number);
	char address[32];

	if (failed)
		return failed;
	doctor_group_device(number, address, sizeof(address));
	v->device = ioctl(v->group, VFIO_GROUP_GET_DEVICE_FD, address);
	return v->device < 0 ? "the group's first device can't be opened" : NULL;
}

static void open_group(struct doctor *d, unsigned number)
{
	struct pinl_vfio_arg arg = {.size = sizeof(arg)};
	struct doctor_device *device;
	struct vfio *v = malloc(sizeof(*v));
	const char *failed;
	char name[40];

	doctor_group_name("VFIO", number, name, sizeof(name));
	device = v ? doctor_device_add(d, "vfio", true, name) : NULL;
	if (!device) {
		free(v);
		return;
	}
	*v = (struct vfio){-1, -1, -1};
	device->priv = v;
	device->close = vfio_close;
	failed = take_device(v, number);
	if (failed) {
		snprintf(device->why, sizeof(device->why), "group %u: %s: %s", number, failed,
			 strerror(errno));
		return;
	}
	if (d->pci < 0)
		d->pci = v->device;
	arg.container = v->container;
	if (pinl_device_open(d->ctx, "vfio", &arg, &device->dev))
		snprintf(device->why, sizeof(device->why), "%s", pinl_error());
	else
		snprintf(device->found, sizeof(device->found),
			 "taken back by unmapping in the IOMMU, at once and for each transfer");
	try_export(d, v, name);
}

static void open_groups(struct doctor *d)
{
	unsigned n = 0;

	for (unsigned i = 0; i < d->groups.n; i++) {
		if (d->groups.all[i].iommufd)
			continue;
		open_group(d, d->groups.all[i].number);
		n++;
	}
	if (n)
		return;
	doctor_missing(d, "devices and memory", "dma-bufs of BARs",
		       "whether devices export their memory as dma-bufs isn't tried, nor are "
		       "leases to them, because that takes them from others and resets them; "
		       "--vfio GROUP does it for a group that is bound to vfio-pci");
	doctor_device_missing(d, "vfio", "VFIO container",
			      "leases to devices aren't tried, because that takes them from others and "
			      "resets them; --vfio GROUP does it for a group that is bound to vfio-pci");
}

const struct doctor_backend doctor_vfio = {"vfio", open_groups};
