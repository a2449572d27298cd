/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A driver in user space for a PCI device with a DMA engine: QEMU's "edu". The engine moves up to 4095
 * bytes between memory and 4 KiB of its own, 100 ms after it was told to, and says nothing of errors.
 *
 * The driver's buffer is a file mapping. While a transfer is on its way the file is truncated. With VFIO
 * alone the engine would go on writing to pages that are nobody's file any more; as they are leased they
 * are taken out of the IOMMU, and a copy is put in their place, so the engine writes there.
 *
 * Give the device to VFIO first (a guest of `qemu-system-x86_64 -M q35 -device intel-iommu -device edu`,
 * kernel argument intel_iommu=on; `echo vfio-pci >/sys/bus/pci/devices/ADDRESS/driver_override` and bind
 * it).
 *
 * Prints:
 *	device at ... said hello: "hello from edu"
 *	the transfer is on its way
 *	notice lease 1 truncate ...
 *	released lease 1 truncate -> copy ...
 *	the file has 0 bytes, the buffer says "hello from edu"
 */
#define _GNU_SOURCE 1
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <pinlease/pinlease.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PCI  "/sys/bus/pci/devices/"
#define SIZE 4096
#define TEXT "hello from edu"

/* The engine's registers, and where in a transfer its own memory is. It addresses 28 bits. */
enum { SOURCE = 0x80, TARGET = 0x88, COUNT = 0x90, COMMAND = 0x98, OWN_MEMORY = 0x40000 };
enum { START = 1, TO_MEMORY = 2 };
#define LAST_ADDRESS 0xfffffff

struct engine {
	char name[32]; /* PCI address */
	int container, group, device;
	volatile char *registers;
};

static void fail(const char *what)
{
	fprintf(stderr, "edu: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void check(int err)
{
	if (!err)
		return;
	fprintf(stderr, "edu: %s: %s\n", strerror(-err), pinl_error());
	exit(1);
}

static void not_here(const char *what)
{
	printf("skip: %s\n", what);
	exit(77);
}

/* ----------------------------------------------------------------------------------- the device -- */

static unsigned sysfs_number(const char *device, const char *file)
{
	char path[PATH_MAX], text[32] = "";
	FILE *f;

	snprintf(path, sizeof(path), PCI "%s/%s", device, file);
	f = fopen(path, "re");
	if (f && !fgets(text, sizeof(text), f))
		text[0] = 0;
	if (f)
		fclose(f);
	return strtoul(text, NULL, 0);
}

static void find_engine(struct engine *e)
{
	DIR *dir = opendir(PCI);
	struct dirent *entry;

	while (dir && (entry = readdir(dir))) {
		if (sysfs_number(entry->d_name, "vendor") != 0x1234 ||
		    sysfs_number(entry->d_name, "device") != 0x11e8)
			continue;
		snprintf(e->name, sizeof(e->name), "%.31s", entry->d_name);
		closedir(dir);
		return;
	}
	not_here("a PCI device edu (QEMU -device edu)");
}

/* Its IOMMU group, in a container of its own. */
static void open_group(struct engine *e)
{
	char path[PATH_MAX], target[PATH_MAX];
	ssize_t n;

	snprintf(path, sizeof(path), PCI "%s/iommu_group", e->name);
	n = readlink(path, target, sizeof(target) - 1);
	if (n < 0)
		not_here("an IOMMU before device edu");
	target[n] = 0;
	snprintf(path, sizeof(path), "/dev/vfio/%.32s", strrchr(target, '/') + 1);
	e->container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	e->group = open(path, O_RDWR | O_CLOEXEC);
	if (e->container < 0 || e->group < 0)
		not_here("device edu with driver vfio-pci, and the right to use it");
	if (ioctl(e->group, VFIO_GROUP_SET_CONTAINER, &e->container) ||
	    ioctl(e->container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
		fail("VFIO container");
}

/* Its registers are BAR 0. It may read and write memory from here on: what the IOMMU lets it. */
static void open_engine(struct engine *e)
{
	struct vfio_region_info bar = {.argsz = sizeof(bar), .index = VFIO_PCI_BAR0_REGION_INDEX};
	struct vfio_region_info config = {.argsz = sizeof(config),
					  .index = VFIO_PCI_CONFIG_REGION_INDEX};
	uint16_t command = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;

	e->device = ioctl(e->group, VFIO_GROUP_GET_DEVICE_FD, e->name);
	if (e->device < 0 || ioctl(e->device, VFIO_DEVICE_GET_REGION_INFO, &bar) ||
	    ioctl(e->device, VFIO_DEVICE_GET_REGION_INFO, &config) ||
	    pwrite(e->device, &command, 2, config.offset + PCI_COMMAND) != 2)
		fail(e->name);
	e->registers = mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, e->device, bar.offset);
	if (e->registers == MAP_FAILED)
		fail("registers");
}

static void set(struct engine *e, int reg, uint64_t value)
{
	*(volatile uint64_t *)(e->registers + reg) = value;
}

static void start(struct engine *e, uint64_t address, size_t len, int to_memory)
{
	set(e, SOURCE, to_memory ? OWN_MEMORY : address);
	set(e, TARGET, to_memory ? address : OWN_MEMORY);
	set(e, COUNT, len);
	set(e, COMMAND, START | (to_memory ? TO_MEMORY : 0));
}

static void finish(struct engine *e)
{
	struct timespec pause = {0, 1000000};

	while (*(volatile uint64_t *)(e->registers + COMMAND) & START)
		nanosleep(&pause, NULL);
}

/* -------------------------------------------------------------------------------------- its use -- */

static void show_events(struct pinl_ctx *ctx)
{
	struct pinl_event event = {.size = sizeof(event)};
	char line[256];

	while (pinl_next_event(ctx, &event) == 0) {
		pinl_event_format(&event, line, sizeof(line));
		puts(line);
	}
}

int main(void)
{
	struct engine e;
	struct stat st;

	find_engine(&e);
	open_group(&e);
	open_engine(&e);
	int fd = memfd_create("data", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, SIZE))
		fail("memfd");
	char *buf = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	uintptr_t va = (uintptr_t)buf;

	struct pinl_vfio_arg arg = {.size = sizeof(arg),
				    .container = e.container,
				    .iova_first = SIZE,
				    .iova_last = LAST_ADDRESS};
	struct pinl_policy policy = {
		.size = sizeof(policy), .kind = PINL_RECALL, .then = PINL_THEN_COPY};
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct pinl_lease *lease;
	struct pinl_addr at;

	check(pinl_open(NULL, &ctx));
	check(pinl_device_open(ctx, "vfio", &arg, &dev));
	check(pinl_map_range(dev, va, va + SIZE, PINL_WRITE | PINL_PIN | PINL_COOPERATIVE, &policy, &at,
			     &lease));
	memcpy(buf, TEXT, sizeof(TEXT));
	start(&e, at.addr, sizeof(TEXT), 0); /* it learns the text */
	finish(&e);
	memset(buf, 0, SIZE);
	start(&e, at.addr, sizeof(TEXT), TO_MEMORY); /* and says it */
	finish(&e);
	printf("device at %s said hello: \"%s\"\n", e.name, buf);

	memset(buf, 0, SIZE);
	start(&e, at.addr, sizeof(TEXT), TO_MEMORY);
	puts("the transfer is on its way");
	check(pinl_ftruncate(ctx, fd, 0)); /* the engine is off the file's pages when this returns */
	finish(&e);
	show_events(ctx);
	if (strcmp(buf,
		   TEXT)) { /* it met the moment between VFIO's unmap and its map, and got nothing */
		start(&e, at.addr, sizeof(TEXT), TO_MEMORY);
		finish(&e);
	}
	fstat(fd, &st);
	printf("the file has %lld bytes, the buffer says \"%s\"\n", (long long)st.st_size, buf);
	pinl_close(ctx); /* ends the lease and the device */
	return 0;
}
