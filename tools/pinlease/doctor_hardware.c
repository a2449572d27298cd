/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What there is beside the kernel: IOMMUs and their containers, DAX, exporters of dma-bufs. Nothing here
 * takes a device from its driver or changes what is on one.
 */
#include "doctor.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <linux/udmabuf.h>
#include <linux/vfio.h>
#include <mntent.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096u

/* The last parts of the paths that match: how many. */
static size_t names_of(const char *pattern, char *buf, size_t len)
{
	size_t n;
	glob_t g;

	*buf = '\0';
	if (glob(pattern, 0, NULL, &g))
		return 0;
	n = g.gl_pathc;
	for (size_t i = 0; i < n; i++)
		tool_append(buf, len, "%s%s", i ? ", " : "", strrchr(g.gl_pathv[i], '/') + 1);
	globfree(&g);
	return n;
}

/* ---------------------------------------------------------------------------------- IOMMU, VFIO -- */

static void iommu(struct doctor *d)
{
	char names[160], groups[160];
	size_t n = names_of("/sys/class/iommu/*", names, sizeof(names));

	if (n)
		doctor_here(d, "devices and memory", "IOMMU", "%s, %zu groups", names,
			    names_of("/sys/kernel/iommu_groups/*", groups, sizeof(groups)));
	else
		doctor_missing(d, "devices and memory", "IOMMU",
			       "no IOMMU is in use: memory can't be leased to devices behind VFIO or "
			       "iommufd; turn it on in the firmware (VT-d, AMD-Vi) and, for Intel, by "
			       "the kernel argument intel_iommu=on");
}

/* As the faults source of the library: whose lines it knows, and whether it can read them. */
static void iommu_faults(struct doctor *d)
{
	char names[160];
	int fd;

	if (!names_of("/sys/class/iommu/*", names, sizeof(names))) {
		doctor_missing(d, "devices and memory", "IOMMU faults",
			       "no IOMMU is in use, whose faults could be told: see there");
		return;
	}
	if (!names_of("/sys/class/iommu/dmar*", names, sizeof(names)) &&
	    !names_of("/sys/class/iommu/ivhd*", names, sizeof(names))) {
		doctor_missing(
			d, "devices and memory", "IOMMU faults",
			"what this IOMMU's driver writes to the kernel's log isn't understood, so its "
			"faults are no events: look for them there; Intel's and AMD's are");
		return;
	}
	fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		doctor_missing(
			d, "devices and memory", "IOMMU faults",
			"the kernel's log can't be read (/dev/kmsg: %s), and only there are faults of "
			"an IOMMU told: give CAP_SYSLOG, or set kernel.dmesg_restrict=0",
			strerror(errno));
	else
		doctor_here(d, "devices and memory", "IOMMU faults", "%s",
			    "from the kernel's log, which leaves out many");
	if (fd >= 0)
		close(fd);
}

static void vfio(struct doctor *d)
{
	int fd = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC), err = errno;

	if (fd >= 0 && ioctl(fd, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU) > 0)
		doctor_here(d, "devices and memory", "VFIO container", "%s", "type1");
	else if (fd >= 0)
		doctor_missing(d, "devices and memory", "VFIO container",
			       "/dev/vfio/vfio has no type1 IOMMU: load its module (modprobe "
			       "vfio_iommu_type1)");
	else if (err == ENOENT || err == ENODEV)
		doctor_missing(d, "devices and memory", "VFIO container",
			       "there is no /dev/vfio/vfio: load the modules (modprobe vfio-pci)");
	else
		doctor_missing(d, "devices and memory", "VFIO container",
			       "/dev/vfio/vfio can't be opened (%s): give the user read and write on it",
			       strerror(err));
	if (fd >= 0)
		close(fd);
}

static void vfio_groups(struct doctor *d)
{
	char groups[160], devices[200];

	names_of("/sys/bus/pci/drivers/vfio-pci/*:*", devices, sizeof(devices));
	if (names_of("/dev/vfio/[0-9]*", groups, sizeof(groups)))
		doctor_here(d, "devices and memory", "VFIO groups", "%s: %s", groups, devices);
	else
		doctor_missing(d, "devices and memory", "VFIO groups",
			       "no device is bound to vfio-pci: driverctl set-override PCI-ADDRESS "
			       "vfio-pci gives it one, and takes it from its driver");
}

static void iommufd(struct doctor *d)
{
	int fd = open("/dev/iommu", O_RDWR | O_CLOEXEC), err = errno;

	if (fd >= 0) {
		close(fd);
		doctor_here(d, "devices and memory", "iommufd", "%s", "");
	} else if (err == ENOENT || err == ENODEV) {
		doctor_missing(d, "devices and memory", "iommufd",
			       "there is no /dev/iommu: this kernel was built without CONFIG_IOMMUFD "
			       "(Linux 6.2), as Debian's are, or the module is not loaded (modprobe "
			       "iommufd); use a VFIO container");
	} else {
		doctor_missing(d, "devices and memory", "iommufd",
			       "/dev/iommu can't be opened (%s): give the user read and write on it",
			       strerror(err));
	}
}

/* ------------------------------------------------------------------------------------------- DAX -- */

static void dax_files(struct doctor *d)
{
	FILE *mounts = setmntent("/proc/self/mounts", "re");
	char found[200] = "";
	struct mntent *m;

	while (mounts && (m = getmntent(mounts)))
		if ((hasmntopt(m, "dax") && !hasmntopt(m, "dax=never")) || hasmntopt(m, "dax=always"))
			tool_append(found, sizeof(found), "%s%s", *found ? ", " : "", m->mnt_dir);
	if (mounts)
		endmntent(mounts);
	if (*found)
		doctor_here(d, "devices and memory", "DAX file systems", "%s", found);
	else
		doctor_missing(d, "devices and memory", "DAX file systems",
			       "nothing is mounted with DAX: it needs ext4 or XFS on persistent memory, "
			       "mounted with -o dax=always");
}

static void dax_devices(struct doctor *d)
{
	char names[160];

	if (names_of("/dev/dax*", names, sizeof(names)))
		doctor_here(d, "devices and memory", "DAX devices", "%s", names);
	else
		doctor_missing(d, "devices and memory", "DAX devices",
			       "there is no /dev/dax*: a namespace of persistent memory becomes one by "
			       "ndctl create-namespace -m devdax, and loses what is on it");
}

/* ------------------------------------------------------------------------------------- exporters -- */

/* A dma-buf of one page of a memfd: 0 or -errno. */
static int make_dmabuf(int fd)
{
	int memory = memfd_create("pinlease-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING), buf, err;
	struct udmabuf_create arg = {.flags = UDMABUF_FLAGS_CLOEXEC, .size = PAGE};

	if (memory < 0)
		return -errno;
	arg.memfd = (unsigned)memory;
	if (ftruncate(memory, PAGE) || fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK)) {
		err = -errno;
	} else {
		buf = ioctl(fd, UDMABUF_CREATE, &arg);
		err = buf < 0 ? -errno : 0;
		if (buf >= 0)
			close(buf);
	}
	close(memory);
	return err;
}

static void udmabuf(struct doctor *d)
{
	int fd = open("/dev/udmabuf", O_RDWR | O_CLOEXEC), err = fd < 0 ? -errno : make_dmabuf(fd);

	if (!err)
		doctor_here(d, "devices and memory", "dma-bufs of memfds", "%s", "udmabuf");
	else if (err == -ENOENT || err == -ENODEV)
		doctor_missing(d, "devices and memory", "dma-bufs of memfds",
			       "there is no /dev/udmabuf: this kernel was built without CONFIG_UDMABUF; "
			       "use one with it");
	else
		doctor_missing(d, "devices and memory", "dma-bufs of memfds",
			       "/dev/udmabuf makes none (%s): give the user read and write on it",
			       strerror(-err));
	if (fd >= 0)
		close(fd);
}

void doctor_hardware(struct doctor *d)
{
	iommu(d);
	iommu_faults(d);
	vfio(d);
	vfio_groups(d);
	iommufd(d);
	dax_files(d);
	dax_devices(d);
	udmabuf(d);
}
