/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Whose is a device: the log has faults of everybody's. A process that uses one by VFIO has its group
 * (/dev/vfio/7) open, or the device's own file (/dev/vfio/devices/vfio0), whose group sysfs knows. Who
 * has but a descriptor of the device from another process isn't found.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "os/dir.h"
#include "source/faults.h"

struct wanted {
	const struct pl_pci *device;
	char *name;
};

static int is_device(const char *name, void *arg)
{
	const struct wanted *w = arg;
	unsigned domain, bus, slot, function;

	if (sscanf(name, "%x:%x:%x.%x", &domain, &bus, &slot, &function) != 4 || bus != w->device->bus ||
	    slot != w->device->slot || function != w->device->function ||
	    (w->device->has_domain && domain != w->device->domain))
		return false;
	snprintf(w->name, PL_PCI_NAME, "%s", name);
	return true;
}

static bool in_group(const char *group, struct wanted *w)
{
	char folder[96];

	snprintf(folder, sizeof folder, "/sys/kernel/iommu_groups/%.20s/devices", group);
	return pl_each_name(folder, is_device, w) > 0;
}

/* The last part of a path. */
static bool link_of(const char *path, char *name, size_t size)
{
	char target[256];
	ssize_t n = readlink(path, target, sizeof target - 1);
	const char *slash;

	if (n <= 0 || n == sizeof target - 1)
		return false;
	target[n] = 0;
	slash = strrchr(target, '/');
	snprintf(name, size, "%.*s", (int)size - 1, slash ? slash + 1 : target);
	return slash != NULL;
}

static int is_its_file(const char *fd, void *arg)
{
	char path[64], target[256], group[32];
	const char *name;
	ssize_t n;

	snprintf(path, sizeof path, "/proc/self/fd/%.20s", fd);
	n = readlink(path, target, sizeof target - 1);
	if (n <= 0)
		return false;
	target[n] = 0;
	if ((name = strstr(target, "/vfio/devices/vfio"))) {
		snprintf(path, sizeof path, "/sys/class/vfio-dev/%.20s/device/iommu_group",
			 name + strlen("/vfio/devices/"));
		return link_of(path, group, sizeof group) && in_group(group, arg);
	}
	name = strrchr(target, '/');
	return name && name[1] && !name[1 + strspn(name + 1, "0123456789")] &&
	       strstr(target, "/vfio/") && in_group(name + 1, arg);
}

bool pl_fault_is_ours(const struct pl_pci *device, char name[PL_PCI_NAME])
{
	struct wanted w = {device, name};

	return pl_each_name("/proc/self/fd", is_its_file, &w) > 0;
}
