/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Devices behind an IOMMU, by an address space of /dev/iommu: as doctor_vfio.c, only groups that were
 * named (--iommufd).
 */
#include "doctor.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Of linux/iommufd.h and linux/vfio.h, which are older on Debian 12. */
struct ioas_alloc {
	uint32_t size, flags, id;
};
struct bind_iommufd {
	uint32_t argsz, flags;
	int32_t iommufd;
	uint32_t id;
};
struct attach {
	uint32_t argsz, flags, id;
};
#define IOAS_ALLOC   _IO(';', 0x81)
#define BIND_IOMMUFD _IO(';', 100 + 18)
#define ATTACH	     _IO(';', 100 + 19)

struct space {
	int iommufd, device;
	uint32_t ioas;
};

static void space_close(void *priv)
{
	struct space *s = priv;

	if (s->device >= 0)
		close(s->device);
	if (s->iommufd >= 0)
		close(s->iommufd);
	free(s);
}

/* What failed, NULL: nothing did. */
static const char *take_device(struct space *s, unsigned number)
{
	struct ioas_alloc alloc = {.size = sizeof(alloc)};
	struct bind_iommufd bind = {.argsz = sizeof(bind)};
	struct attach attach = {.argsz = sizeof(attach)};
	char path[80] = "";

	doctor_group_cdev(number, path, sizeof(path));
	s->iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	s->device = open(path, O_RDWR | O_CLOEXEC);
	if (s->iommufd < 0 || s->device < 0)
		return "/dev/iommu or the device's file can't be opened";
	bind.iommufd = s->iommufd;
	if (ioctl(s->iommufd, IOAS_ALLOC, &alloc))
		return "no address space can be made (IOMMU_IOAS_ALLOC)";
	s->ioas = attach.id = alloc.id;
	if (ioctl(s->device, BIND_IOMMUFD, &bind) || ioctl(s->device, ATTACH, &attach))
		return "the device can't be given the address space: a container may have its group";
	return NULL;
}

static void open_group(struct doctor *d, unsigned number)
{
	struct pinl_iommufd_arg arg = {.size = sizeof(arg), .nr_devices = 1};
	struct doctor_device *device;
	struct space *s = malloc(sizeof(*s));
	const char *failed;
	char name[40];

	doctor_group_name("iommufd", number, name, sizeof(name));
	device = s ? doctor_device_add(d, "iommufd", true, name) : NULL;
	if (!device) {
		free(s);
		return;
	}
	*s = (struct space){-1, -1, 0};
	device->priv = s;
	device->close = space_close;
	failed = take_device(s, number);
	if (failed) {
		snprintf(device->why, sizeof(device->why), "group %u: %s: %s", number, failed,
			 strerror(errno));
		return;
	}
	if (d->pci < 0)
		d->pci = s->device;
	arg.iommufd = s->iommufd;
	arg.ioas_id = s->ioas;
	arg.devices = &s->device;
	if (pinl_device_open(d->ctx, "iommufd", &arg, &device->dev))
		snprintf(device->why, sizeof(device->why), "%s", pinl_error());
	else
		snprintf(
			device->found, sizeof(device->found),
			"taken back by unmapping in the IOMMU, or by another address space in one step");
}

static void open_groups(struct doctor *d)
{
	unsigned n = 0;

	for (unsigned i = 0; i < d->groups.n; i++) {
		if (!d->groups.all[i].iommufd)
			continue;
		open_group(d, d->groups.all[i].number);
		n++;
	}
	if (!n)
		doctor_device_missing(
			d, "iommufd", "iommufd",
			"leases to devices aren't tried, because that takes them from others and resets "
			"them; --iommufd GROUP does it for a group that is bound to vfio-pci");
}

const struct doctor_backend doctor_iommufd = {"iommufd", open_groups};
