/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * IOMMU groups that may be taken (--vfio, --iommufd): whether they can be is found out before anything
 * else is tried, so that a wrong number isn't found at the end of a long table, or not at all.
 */
#include "doctor.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define BIND "driverctl set-override PCI-ADDRESS vfio-pci gives it one, and takes it from its driver"

/* The first name in a folder that begins like this; false: there is none. */
static bool first_name(const char *folder, const char *begin, char *name, size_t len)
{
	DIR *dir = opendir(folder);
	struct dirent *e;

	*name = '\0';
	while (dir && !*name && (e = readdir(dir)))
		if (e->d_name[0] != '.' && !strncmp(e->d_name, begin, strlen(begin)))
			snprintf(name, len, "%.30s", e->d_name);
	if (dir)
		closedir(dir);
	return *name;
}

static bool is_vfios(const char *address)
{
	char path[96], driver[128];
	ssize_t n;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%.30s/driver", address);
	n = readlink(path, driver, sizeof(driver) - 1);
	driver[n > 0 ? n : 0] = '\0';
	return strstr(driver, "/vfio");
}

/* A bridge may be in the group, too, and isn't anybody's to open. */
void doctor_group_device(unsigned number, char *address, size_t len)
{
	struct dirent *e;
	bool found = false;
	char path[80];
	DIR *dir;

	*address = '\0';
	snprintf(path, sizeof(path), "/sys/kernel/iommu_groups/%u/devices", number);
	dir = opendir(path);
	while (dir && !found && (e = readdir(dir))) {
		if (e->d_name[0] == '.')
			continue;
		found = is_vfios(e->d_name);
		if (found || !*address)
			snprintf(address, len, "%.30s", e->d_name);
	}
	if (dir)
		closedir(dir);
}

bool doctor_group_cdev(unsigned number, char *path, size_t len)
{
	char address[32], folder[80], name[32];

	doctor_group_device(number, address, sizeof(address));
	snprintf(folder, sizeof(folder), "/sys/bus/pci/devices/%s/vfio-dev", address);
	if (!first_name(folder, "vfio", name, sizeof(name)))
		return false;
	snprintf(path, len, "/dev/vfio/devices/%s", name);
	return true;
}

static unsigned id_of(const char *device, const char *file)
{
	unsigned id = 0;
	char path[80];
	FILE *f;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%.30s/%s", device, file);
	f = fopen(path, "re");
	if (f && fscanf(f, "%x", &id) != 1)
		id = 0;
	if (f)
		fclose(f);
	return id;
}

void doctor_group_name(const char *kind, unsigned number, char *name, size_t len)
{
	char address[32];

	doctor_group_device(number, address, sizeof(address));
	snprintf(name, len, "%s %04x:%04x", kind, id_of(address, "vendor"), id_of(address, "device"));
}

/* --------------------------------------------------------------------------- can it be taken -- */

static int cant_open(unsigned number, const char *path, char *why, size_t len)
{
	int err = errno;
	const char *remedy = err == EBUSY ? "another program has it: end that, or name another group"
			     : err == EACCES || err == EPERM ? "give the user read and write on it"
							     : "is its driver loaded?";

	snprintf(why, len, "group %u: %s can't be opened (%s): %s", number, path, strerror(err), remedy);
	return -err;
}

/* Opened and closed again: which resets nothing before a container or an iommufd has it. */
static int opens(unsigned number, const char *path, char *why, size_t len)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return cant_open(number, path, why, len);
	close(fd);
	return 0;
}

static int check_container(unsigned number, char *why, size_t len)
{
	struct vfio_group_status status = {.argsz = sizeof(status)};
	char path[40];
	int fd, err = opens(number, "/dev/vfio/vfio", why, len);

	if (err)
		return err;
	snprintf(path, sizeof(path), "/dev/vfio/%u", number);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 && errno != ENOENT)
		return cant_open(number, path, why, len);
	if (fd < 0)
		return snprintf(why, len, "no device of group %u is bound to vfio-pci: " BIND, number),
		       -ENOENT;
	err = ioctl(fd, VFIO_GROUP_GET_STATUS, &status) ? -errno : 0;
	close(fd);
	if (!err && (status.flags & VFIO_GROUP_FLAGS_VIABLE))
		return 0;
	snprintf(why, len, "not all devices of group %u are bound to vfio-pci, and have to be: " BIND,
		 number);
	return -EPERM;
}

static int check_iommufd(unsigned number, char *why, size_t len)
{
	char path[80];
	int err;

	if (access("/dev/iommu", F_OK)) {
		snprintf(
			why, len,
			"group %u: there is no /dev/iommu: this kernel was built without CONFIG_IOMMUFD "
			"(Linux 6.2), or the module is not loaded (modprobe iommufd); use --vfio",
			number);
		return -ENOENT;
	}
	err = opens(number, "/dev/iommu", why, len);
	if (err)
		return err;
	if (!doctor_group_cdev(number, path, sizeof(path))) {
		snprintf(why, len,
			 "the first device of group %u has no file in /dev/vfio/devices: it isn't bound "
			 "to "
			 "vfio-pci (" BIND "), or this kernel was built without CONFIG_VFIO_DEVICE_CDEV "
			 "(Linux 6.6)",
			 number);
		return -ENOENT;
	}
	return opens(number, path, why, len);
}

static int check_group(unsigned number, bool iommufd, char *why, size_t len)
{
	char path[80], name[32];

	snprintf(path, sizeof(path), "/sys/kernel/iommu_groups/%u", number);
	if (!access(path, F_OK))
		return iommufd ? check_iommufd(number, why, len) : check_container(number, why, len);
	if (first_name("/sys/kernel/iommu_groups", "", name, sizeof(name)))
		snprintf(why, len,
			 "there is no IOMMU group %u; which one a device is in says "
			 "/sys/bus/pci/devices/PCI-ADDRESS/iommu_group",
			 number);
	else
		snprintf(why, len,
			 "there is no IOMMU group %u, because no IOMMU is in use; turn it on in the "
			 "firmware (VT-d, AMD-Vi) and, for Intel, by the kernel argument intel_iommu=on",
			 number);
	return -ENOENT;
}

int doctor_groups_check(const struct doctor_groups *groups, char *why, size_t len)
{
	int err = 0;

	for (unsigned i = 0; !err && i < groups->n; i++)
		err = check_group(groups->all[i].number, groups->all[i].iommufd, why, len);
	return err;
}
