/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "edu_rig.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "backend/iommufd_api.h"

#define PCI	"/sys/bus/pci/devices"
#define PAGE	4096u
#define BOUNCE	EDU_OWN_FIRST /* the devices' address of e->bounce */
#define BUFFER	0x40000u      /* where a transfer finds the device's own memory */
#define WAIT_MS 60000

enum { SOURCE = 0x80, TARGET = 0x88, COUNT = 0x90, COMMAND = 0x98 };
enum { START = 1, TO_MEMORY = 2 };

static void must(bool ok, const char *what)
{
	if (ok)
		return;
	perror(what);
	abort();
}

/* ---------------------------------------------------------------------------------- finding them -- */

static unsigned number_in(const char *device, const char *file)
{
	char path[300], text[32] = "";
	FILE *f;

	snprintf(path, sizeof path, PCI "/%s/%s", device, file);
	f = fopen(path, "re");
	if (!f || !fgets(text, sizeof text, f))
		text[0] = 0;
	if (f)
		fclose(f);
	return strtoul(text, NULL, 0);
}

static int write_to(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), err = 0;

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		err = -errno;
	if (fd >= 0)
		close(fd);
	return err;
}

/* The last part of a link's target in the device's folder; "" if there is none. */
static void link_in(const char *device, const char *name, char *out, size_t size)
{
	char path[300], target[PATH_MAX] = "";

	snprintf(path, sizeof path, PCI "/%s/%s", device, name);
	if (readlink(path, target, sizeof target - 1) < 0)
		target[0] = 0;
	snprintf(out, size, "%s", *target ? basename(target) : "");
}

static void bind(const char *device)
{
	char path[300], driver[64];

	link_in(device, "driver", driver, sizeof driver);
	if (!strcmp(driver, "vfio-pci"))
		return;
	snprintf(path, sizeof path, PCI "/%s/driver_override", device);
	write_to(path, "vfio-pci");
	snprintf(path, sizeof path, PCI "/%s/driver/unbind", device);
	if (*driver)
		write_to(path, device);
	write_to("/sys/bus/pci/drivers_probe", device);
}

static int find(char names[EDU_MAX][16])
{
	DIR *dir = opendir(PCI);
	struct dirent *e;
	int n = 0;

	while (dir && n < EDU_MAX && (e = readdir(dir)))
		if (number_in(e->d_name, "vendor") == 0x1234 && number_in(e->d_name, "device") == 0x11e8)
			snprintf(names[n++], sizeof names[0], "%.15s", e->d_name);
	if (dir)
		closedir(dir);
	return n;
}

/* The device's own file, of Linux 6.6; "" without. */
static void cdev_of(const char *device, char *path, size_t size)
{
	char folder[300];
	struct dirent *e;
	DIR *dir;

	snprintf(folder, sizeof folder, PCI "/%s/vfio-dev", device);
	dir = opendir(folder);
	*path = 0;
	while (dir && (e = readdir(dir)))
		if (!strncmp(e->d_name, "vfio", 4))
			snprintf(path, size, "/dev/vfio/devices/%.20s", e->d_name);
	if (dir)
		closedir(dir);
}

const char *edu_missing(enum edu_space space)
{
	char names[EDU_MAX][16], text[64];
	int n = find(names);

	if (!n)
		return "a PCI device edu (QEMU -device edu)";
	link_in(names[0], "iommu_group", text, sizeof text);
	if (!*text)
		return "an IOMMU before device edu (QEMU -device intel-iommu, intel_iommu=on)";
	if (access("/sys/bus/pci/drivers/vfio-pci", F_OK))
		return "driver vfio-pci";
	for (int i = 0; i < n; i++)
		bind(names[i]);
	link_in(names[0], "driver", text, sizeof text);
	if (strcmp(text, "vfio-pci"))
		return "device edu with driver vfio-pci";
	if (space == EDU_TYPE1)
		return access("/dev/vfio/vfio", R_OK | W_OK) ? "/dev/vfio/vfio, or the right to use it"
							     : NULL;
	cdev_of(names[0], text, sizeof text);
	if (!*text || access(text, R_OK | W_OK) || access("/dev/iommu", R_OK | W_OK))
		return "/dev/iommu and /dev/vfio/devices (CONFIG_IOMMUFD, CONFIG_VFIO_DEVICE_CDEV; "
		       "Debian's "
		       "kernels have neither)";
	return NULL;
}

/* --------------------------------------------------------------------------------- open and close -- */

static void open_group(struct edu *e, int i)
{
	char path[300], group[64];

	link_in(e->dev[i].name, "iommu_group", group, sizeof group);
	snprintf(path, sizeof path, "/dev/vfio/%s", group);
	e->dev[i].group = open(path, O_RDWR | O_CLOEXEC);
	must(e->dev[i].group >= 0, path);
	must(!ioctl(e->dev[i].group, VFIO_GROUP_SET_CONTAINER, &e->fd), "VFIO_GROUP_SET_CONTAINER");
	must(i || !ioctl(e->fd, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU), "VFIO_SET_IOMMU");
	e->dev[i].device = ioctl(e->dev[i].group, VFIO_GROUP_GET_DEVICE_FD, e->dev[i].name);
	must(e->dev[i].device >= 0, "VFIO_GROUP_GET_DEVICE_FD");
}

static void open_cdev(struct edu *e, int i)
{
	struct pl_vfio_bind_iommufd bind = {.argsz = sizeof bind, .iommufd = e->fd};
	struct pl_vfio_attach_pt pt = {.argsz = sizeof pt, .pt_id = e->ioas};
	char path[64];

	cdev_of(e->dev[i].name, path, sizeof path);
	e->dev[i].group = -1;
	e->dev[i].device = open(path, O_RDWR | O_CLOEXEC);
	must(e->dev[i].device >= 0, path);
	must(!ioctl(e->dev[i].device, PL_VFIO_BIND_IOMMUFD, &bind), "VFIO_DEVICE_BIND_IOMMUFD");
	must(!ioctl(e->dev[i].device, PL_VFIO_ATTACH_PT, &pt), "VFIO_DEVICE_ATTACH_IOMMUFD_PT");
}

static void start_device(struct edu *e, int i)
{
	struct vfio_region_info bar = {.argsz = sizeof bar, .index = VFIO_PCI_BAR0_REGION_INDEX};
	struct vfio_region_info config = {.argsz = sizeof config, .index = VFIO_PCI_CONFIG_REGION_INDEX};
	int fd = e->dev[i].device;
	uint16_t command;
	void *regs;

	must(!ioctl(fd, VFIO_DEVICE_GET_REGION_INFO, &bar), "BAR 0");
	must(!ioctl(fd, VFIO_DEVICE_GET_REGION_INFO, &config), "config space");
	must(pread(fd, &command, 2, config.offset + PCI_COMMAND) == 2, "PCI_COMMAND");
	command |= PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
	must(pwrite(fd, &command, 2, config.offset + PCI_COMMAND) == 2, "PCI_COMMAND");
	regs = mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, bar.offset);
	must(regs != MAP_FAILED, "mmap of BAR 0");
	e->dev[i].regs = regs;
}

int edu_map(struct edu *e, void *va, uint64_t iova, size_t len)
{
	struct vfio_iommu_type1_dma_map type1 = {.argsz = sizeof type1,
						 .flags = VFIO_DMA_MAP_FLAG_READ |
							  VFIO_DMA_MAP_FLAG_WRITE,
						 .vaddr = (uintptr_t)va,
						 .iova = iova,
						 .size = len};
	struct pl_iommu_ioas_map ioas = {.size = sizeof ioas,
					 .flags = PL_IOMMU_FIXED_IOVA | PL_IOMMU_READ_WRITE(true),
					 .ioas_id = e->ioas,
					 .user_va = (uintptr_t)va,
					 .iova = iova,
					 .length = len};

	if (e->space == EDU_TYPE1)
		return ioctl(e->fd, VFIO_IOMMU_MAP_DMA, &type1) ? -errno : 0;
	return ioctl(e->fd, PL_IOMMU_IOAS_MAP, &ioas) ? -errno : 0;
}

int edu_unmap(struct edu *e, uint64_t iova, size_t len)
{
	struct vfio_iommu_type1_dma_unmap type1 = {.argsz = sizeof type1, .iova = iova, .size = len};
	struct pl_iommu_ioas_unmap ioas = {
		.size = sizeof ioas, .ioas_id = e->ioas, .iova = iova, .length = len};

	if (e->space == EDU_TYPE1)
		return ioctl(e->fd, VFIO_IOMMU_UNMAP_DMA, &type1) ? -errno : 0;
	return ioctl(e->fd, PL_IOMMU_IOAS_UNMAP, &ioas) ? -errno : 0;
}

static void open_space(struct edu *e)
{
	struct pl_iommu_ioas_alloc alloc = {.size = sizeof alloc};
	const char *path = e->space == EDU_TYPE1 ? "/dev/vfio/vfio" : "/dev/iommu";

	e->fd = open(path, O_RDWR | O_CLOEXEC);
	must(e->fd >= 0, path);
	if (e->space == EDU_TYPE1)
		return;
	must(!ioctl(e->fd, PL_IOMMU_IOAS_ALLOC, &alloc), "IOMMU_IOAS_ALLOC");
	e->ioas = alloc.out_ioas_id;
}

void edu_open(struct edu *e, enum edu_space space)
{
	char names[EDU_MAX][16];

	*e = (struct edu){.space = space, .n = find(names)};
	open_space(e);
	for (int i = 0; i < e->n; i++) {
		memcpy(e->dev[i].name, names[i], sizeof names[i]);
		if (space == EDU_TYPE1)
			open_group(e, i);
		else
			open_cdev(e, i);
		start_device(e, i);
	}
	e->bounce =
		mmap(NULL, EDU_MAX * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	must(e->bounce != MAP_FAILED, "mmap");
	must(!edu_map(e, e->bounce, BOUNCE, EDU_MAX * PAGE), "memory of the rig's own");
}

void edu_close_devices(struct edu *e)
{
	for (int i = 0; i < e->n; i++) {
		munmap((void *)e->dev[i].regs, 1 << 20);
		close(e->dev[i].device);
		if (e->dev[i].group >= 0)
			close(e->dev[i].group);
	}
	e->n = 0;
}

void edu_close(struct edu *e)
{
	edu_close_devices(e);
	munmap(e->bounce, EDU_MAX * PAGE);
	close(e->fd);
}

union edu_arg edu_arg(const struct edu *e, bool switched, int devices[EDU_MAX])
{
	static const struct pinl_iova_range own = {EDU_OWN_FIRST, EDU_OWN_LAST};
	union edu_arg arg;

	if (e->space == EDU_TYPE1) {
		arg.vfio = (struct pinl_vfio_arg){.size = sizeof arg.vfio,
						  .container = e->fd,
						  .iova_first = EDU_IOVA_FIRST,
						  .iova_last = EDU_IOVA_LAST};
		return arg;
	}
	for (int i = 0; switched && i < e->n; i++)
		devices[i] = e->dev[i].device;
	arg.iommufd = (struct pinl_iommufd_arg){.size = sizeof arg.iommufd,
						.iommufd = e->fd,
						.ioas_id = e->ioas,
						.iova_first = EDU_IOVA_FIRST,
						.iova_last = EDU_IOVA_LAST,
						.devices = switched ? devices : NULL,
						.nr_devices = switched ? e->n : 0,
						.own = &own,
						.nr_own = 1};
	return arg;
}

/* -------------------------------------------------------------------------------------- transfers -- */

static void set(struct edu *e, int i, unsigned reg, uint64_t value)
{
	*(volatile uint64_t *)(e->dev[i].regs + reg) = value;
}

static bool busy(struct edu *e, int i)
{
	return *(volatile uint64_t *)(e->dev[i].regs + COMMAND) & START;
}

static void start(struct edu *e, int i, uint64_t iova, size_t len, bool to_memory)
{
	must(len <= EDU_CHUNK, "a transfer of more than a chunk");
	set(e, i, SOURCE, to_memory ? BUFFER : iova);
	set(e, i, TARGET, to_memory ? iova : BUFFER);
	set(e, i, COUNT, len);
	set(e, i, COMMAND, START | (to_memory ? TO_MEMORY : 0));
}

bool edu_landed(struct edu *e)
{
	for (int i = 0; i < e->n; i++)
		if (busy(e, i))
			return false;
	return true;
}

void edu_land(struct edu *e)
{
	struct timespec pause = {0, 1000000};

	for (int ms = 0; !edu_landed(e); ms++) {
		errno = ETIMEDOUT;
		must(ms < WAIT_MS, "device edu");
		nanosleep(&pause, NULL);
	}
}

static uint64_t bounce_of(int i)
{
	return BOUNCE + i * PAGE;
}

void edu_load(struct edu *e, const struct edu_part *parts, int n)
{
	for (int i = 0; i < n; i++) {
		memcpy(e->bounce + i * PAGE, parts[i].buf, parts[i].len);
		start(e, i, bounce_of(i), parts[i].len, false);
	}
	edu_land(e);
}

void edu_launch(struct edu *e, const struct edu_part *parts, int n)
{
	for (int i = 0; i < n; i++)
		start(e, i, parts[i].iova, parts[i].len, true);
}

static void fetch(struct edu *e, const struct edu_part *parts, int n)
{
	for (int i = 0; i < n; i++)
		start(e, i, parts[i].iova, parts[i].len, false);
	edu_land(e);
	for (int i = 0; i < n; i++)
		start(e, i, bounce_of(i), parts[i].len, true);
	edu_land(e);
	for (int i = 0; i < n; i++)
		memcpy(parts[i].buf, e->bounce + i * PAGE, parts[i].len);
}

void edu_write(struct edu *e, const struct edu_part *parts, int n)
{
	for (int at = 0, some; at < n; at += some) {
		some = n - at < e->n ? n - at : e->n;
		edu_load(e, parts + at, some);
		edu_launch(e, parts + at, some);
		edu_land(e);
	}
}

void edu_read(struct edu *e, const struct edu_part *parts, int n)
{
	for (int at = 0, some; at < n; at += some) {
		some = n - at < e->n ? n - at : e->n;
		fetch(e, parts + at, some);
	}
}

/* ------------------------------------------------------------------------------------- going away -- */

int edu_request_event(int device)
{
	char buf[sizeof(struct vfio_irq_set) + sizeof(int)];
	struct vfio_irq_set *set = (void *)buf;
	int fd = eventfd(0, EFD_CLOEXEC);

	*set = (struct vfio_irq_set){.argsz = sizeof buf,
				     .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
				     .index = VFIO_PCI_REQ_IRQ_INDEX,
				     .count = 1};
	memcpy(set->data, &fd, sizeof fd);
	must(!ioctl(device, VFIO_DEVICE_SET_IRQS, set), "VFIO_DEVICE_SET_IRQS");
	return fd;
}

void *edu_unbind(void *name)
{
	return (void *)(intptr_t)write_to("/sys/bus/pci/drivers/vfio-pci/unbind", name);
}
