/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Peer to peer: one device writes into the memory of another, which can take that back at any time. The
 * writer is QEMU's DMA engine "edu", the memory BAR 2 of its "ivshmem-plain"; of another pair only what
 * find_pair() and start() know is different.
 *
 * Before the memory goes (here it is switched off, as before a reset) the writer is off it: the library
 * leads its transfers to a page of no meaning instead. With VFIO alone the writer would go on to write
 * to addresses where by then another device may be.
 *
 * Give both devices to VFIO first, as examples/edu.c says. Whether the platform leads transfers from one
 * to the other is said by `pinlease p2p WRITER MEMORY`.
 *
 * Prints:
 *	... writes into BAR 2 of ...
 *	BAR 2 says "hello from a peer"
 *	released lease ... asked for by its exporter
 *	BAR 2 was off, and still says "hello from a peer"
 *	mapped again, it says "hello once more"
 */
#define _GNU_SOURCE 1
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <pinlease/exporter.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PCI	     "/sys/bus/pci/devices/"
#define SIZE	     4096
#define LAST_ADDRESS 0xfffffff /* the engine has 28 bits */

/* The engine's registers, and where in a transfer its own memory is. */
enum { SOURCE = 0x80, TARGET = 0x88, COUNT = 0x90, COMMAND = 0x98, OWN_MEMORY = 0x40000 };
enum { START = 1, TO_MEMORY = 2 };

struct pci {
	char name[32];
	int container, group, device;
	volatile char *bar; /* the one that is used */
};

static void fail(const char *what)
{
	fprintf(stderr, "device-memory: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void check(int err)
{
	if (!err)
		return;
	fprintf(stderr, "device-memory: %s: %s\n", strerror(-err), pinl_error());
	exit(1);
}

static void not_here(const char *what)
{
	printf("skip: %s\n", what);
	exit(77);
}

/* ---------------------------------------------------------------------------------- the devices -- */

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

static void find(struct pci *p, unsigned vendor, unsigned device, const char *missing)
{
	DIR *dir = opendir(PCI);
	struct dirent *entry;

	while (dir && (entry = readdir(dir)))
		if (sysfs_number(entry->d_name, "vendor") == vendor &&
		    sysfs_number(entry->d_name, "device") == device) {
			snprintf(p->name, sizeof(p->name), "%.31s", entry->d_name);
			break;
		}
	if (dir)
		closedir(dir);
	if (!p->name[0])
		not_here(missing);
}

static void find_pair(struct pci *writer, struct pci *memory)
{
	find(writer, 0x1234, 0x11e8, "a PCI device edu (QEMU -device edu)");
	find(memory, 0x1af4, 0x1110, "a PCI device ivshmem (QEMU -device ivshmem-plain)");
}

/* Its IOMMU group, in a container of its own. */
static void open_group(struct pci *p)
{
	char path[PATH_MAX], target[PATH_MAX];
	ssize_t n;

	snprintf(path, sizeof(path), PCI "%s/iommu_group", p->name);
	n = readlink(path, target, sizeof(target) - 1);
	if (n < 0)
		not_here("an IOMMU before the devices");
	target[n] = 0;
	snprintf(path, sizeof(path), "/dev/vfio/%.32s", strrchr(target, '/') + 1);
	p->container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	p->group = open(path, O_RDWR | O_CLOEXEC);
	if (p->container < 0 || p->group < 0)
		not_here("both devices with driver vfio-pci, in groups of their own, and the right to "
			 "use them");
	if (ioctl(p->group, VFIO_GROUP_SET_CONTAINER, &p->container) ||
	    ioctl(p->container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
		fail("VFIO container");
}

/* With one of its BARs mapped for this program. */
static void open_pci(struct pci *p, unsigned bar)
{
	struct vfio_region_info region = {.argsz = sizeof(region), .index = bar};
	struct vfio_region_info config = {.argsz = sizeof(config),
					  .index = VFIO_PCI_CONFIG_REGION_INDEX};
	uint16_t command = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;

	open_group(p);
	p->device = ioctl(p->group, VFIO_GROUP_GET_DEVICE_FD, p->name);
	if (p->device < 0 || ioctl(p->device, VFIO_DEVICE_GET_REGION_INFO, &region) ||
	    ioctl(p->device, VFIO_DEVICE_GET_REGION_INFO, &config) ||
	    pwrite(p->device, &command, 2, config.offset + PCI_COMMAND) != 2)
		fail(p->name);
	p->bar = mmap(NULL, region.size, PROT_READ | PROT_WRITE, MAP_SHARED, p->device, region.offset);
	if (p->bar == MAP_FAILED)
		fail("BAR");
}

/* One transfer of the engine's, from or to its own memory. */
static void transfer(struct pci *p, uint64_t address, size_t len, int to_memory)
{
	volatile uint64_t *command = (volatile uint64_t *)(p->bar + COMMAND);
	struct timespec pause = {0, 1000000};

	*(volatile uint64_t *)(p->bar + SOURCE) = to_memory ? OWN_MEMORY : address;
	*(volatile uint64_t *)(p->bar + TARGET) = to_memory ? address : OWN_MEMORY;
	*(volatile uint64_t *)(p->bar + COUNT) = len;
	*command = START | (to_memory ? TO_MEMORY : 0);
	while (*command & START)
		nanosleep(&pause, NULL);
}

/* -------------------------------------------------------------------------------------- its use -- */

struct use {
	struct pci writer, memory;
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct pinl_exporter *bar;
	char *buf;
	uint64_t buf_at;
};

static void show_release(struct pinl_ctx *ctx)
{
	struct pinl_event event = {.size = sizeof(event)};
	char line[256];

	while (pinl_next_event(ctx, &event) == 0) {
		pinl_event_format(&event, line, sizeof(line));
		if (event.type == PINL_EV_RELEASED)
			puts(line);
	}
}

/* The engine gets the text from the program's buffer and writes it to the address. */
static void say(struct use *u, const char *text, uint64_t at)
{
	strcpy(u->buf, text);
	transfer(&u->writer, u->buf_at, strlen(text) + 1, 0);
	transfer(&u->writer, at, strlen(text) + 1, TO_MEMORY);
}

static struct pinl_lease *map_bar(struct use *u, uint64_t *at)
{
	struct pinl_policy policy = {
		.size = sizeof(policy), .kind = PINL_RECALL, .then = PINL_THEN_SCRATCH};
	struct pinl_lease *lease;
	struct pinl_addr addr;

	check(pinl_map_exporter(u->dev, u->bar, 0, SIZE, PINL_WRITE, &policy, &addr, &lease));
	*at = addr.addr;
	return lease;
}

static void open_all(struct use *u)
{
	struct pinl_vfio_arg arg = {.size = sizeof(arg), .iova_first = SIZE, .iova_last = LAST_ADDRESS};
	struct pinl_policy policy = {.size = sizeof(policy), .kind = PINL_RECALL};
	struct pinl_lease *lease;
	struct pinl_addr addr;
	uintptr_t va;

	find_pair(&u->writer, &u->memory);
	open_pci(&u->writer, VFIO_PCI_BAR0_REGION_INDEX);
	open_pci(&u->memory, VFIO_PCI_BAR2_REGION_INDEX);
	u->buf = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (u->buf == MAP_FAILED)
		fail("buffer");
	va = (uintptr_t)u->buf;
	arg.container = u->writer.container;
	check(pinl_open(NULL, &u->ctx));
	check(pinl_device_open(u->ctx, "vfio", &arg, &u->dev));
	check(pinl_map_range(u->dev, va, va + SIZE, PINL_WRITE | PINL_PIN | PINL_COOPERATIVE, &policy,
			     &addr, &lease));
	u->buf_at = addr.addr;
	check(pinl_export_vfio(u->ctx, u->memory.device, VFIO_PCI_BAR2_REGION_INDEX, &u->bar));
}

int main(void)
{
	struct use u = {.writer = {.name = ""}};
	const char *bar;
	uint64_t at;

	open_all(&u);
	bar = (const char *)u.memory.bar;
	struct pinl_lease *lease = map_bar(&u, &at);

	printf("%s writes into BAR 2 of %s\n", u.writer.name, u.memory.name);
	say(&u, "hello from a peer", at);
	printf("BAR 2 says \"%s\"\n", bar);

	check(pinl_vfio_memory(u.bar, 0)); /* the engine is off the BAR before that is switched off */
	show_release(u.ctx);
	say(&u, "not to be read", at); /* goes to the page of no meaning */
	check(pinl_vfio_memory(u.bar, 1));
	printf("BAR 2 was off, and still says \"%s\"\n", bar);
	pinl_unmap_range(lease); /* who wants the memory maps it anew */

	lease = map_bar(&u, &at);
	say(&u, "hello once more", at);
	printf("mapped again, it says \"%s\"\n", bar);
	pinl_unmap_range(lease);
	pinl_close(u.ctx); /* ends the buffer's lease, the exporter and the device */
	return 0;
}
