/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Device memory: who exports it here, and which devices are given it. Each device is asked by a lease
 * that its exporter then takes back. Nothing is transferred and nothing is written: what is on a DAX
 * device or behind a BAR stays as it is.
 */
#include "doctor.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <linux/pci_regs.h>
#include <linux/udmabuf.h>
#include <linux/vfio.h>
#include <pinlease/exporter.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE	4096u
#define LEN	(4 * PAGE)
#define DMA_BUF 11 /* VFIO_DEVICE_FEATURE_DMA_BUF */

/* struct vfio_device_feature_dma_buf with one range, behind its struct vfio_device_feature. */
struct dma_buf_feature {
	uint32_t argsz, flags;
	uint32_t region, open_flags, no_flags, nr_ranges;
	uint64_t offset, length;
};

/* What an exporter was made of; it is ours, and stays until the exporter is gone. */
struct made {
	struct pinl_exporter *exporter;
	void *map; /* NULL: none */
	size_t len;
	int fd; /* -1: none */
};

struct maker {
	const char *name;
	const char *facility; /* that says why there is none of it; NULL: none does */
	/* 0, or -errno with *why; NULL: the facility says it, or pinl_error(). */
	int (*make)(struct doctor *d, struct made *m, const char **why);
};

static int failed(int err, const char **why, const char *sentence)
{
	*why = sentence;
	return err;
}

static int register_map(struct doctor *d, struct made *m, int fd, const char *name)
{
	struct pinl_export x = {
		.size = sizeof(x), .name = name, .addr = m->map, .fd = fd, .length = m->len};

	return pinl_exporter_register(d->ctx, &x, NULL, NULL, &m->exporter);
}

/* ---------------------------------------------------------------------------------- dma-bufs -- */

/* pinl_export_dmabuf() names it by its descriptor, which differs from run to run. */
static int register_dmabuf(struct doctor *d, struct made *m)
{
	struct pinl_export x = {.size = sizeof(x), .name = "this dma-buf", .fd = m->fd, .length = LEN};

	return pinl_exporter_register(d->ctx, &x, NULL, NULL, &m->exporter);
}

static int make_dmabuf(struct doctor *d, struct made *m, const char **why)
{
	struct udmabuf_create arg = {.flags = UDMABUF_FLAGS_CLOEXEC, .size = LEN};
	int memory, dev = open("/dev/udmabuf", O_RDWR | O_CLOEXEC), err = 0;

	if (dev < 0)
		return -errno;
	memory = memfd_create("pinlease-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	arg.memfd = (unsigned)memory;
	if (memory < 0 || ftruncate(memory, LEN) || fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK))
		err = -errno;
	else if ((m->fd = ioctl(dev, UDMABUF_CREATE, &arg)) < 0)
		err = -errno;
	if (memory >= 0)
		close(memory);
	close(dev);
	return err ? err : register_dmabuf(d, m);
}

/* --------------------------------------------------------------------------------------------- devdax
 * -- */

static size_t alignment(const char *name)
{
	size_t align = 0;
	char path[120];
	FILE *f;

	snprintf(path, sizeof(path), "/sys/bus/dax/devices/%.40s/align", name);
	f = fopen(path, "re");
	if (!f || fscanf(f, "%zu", &align) != 1)
		align = 2u << 20;
	if (f)
		fclose(f);
	return align;
}

static int make_devdax(struct doctor *d, struct made *m, const char **why)
{
	char path[60] = "";
	glob_t g;

	if (!glob("/dev/dax*", 0, NULL, &g)) {
		snprintf(path, sizeof(path), "%s", g.gl_pathv[0]);
		globfree(&g);
	}
	if (!*path)
		return -ENOENT;
	m->fd = open(path, O_RDWR | O_CLOEXEC);
	if (m->fd < 0)
		return failed(-errno, why,
			      "/dev/dax* can't be opened: give the user read and write on it");
	m->len = alignment(path + strlen("/dev/"));
	m->map = mmap(NULL, m->len, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd, 0);
	if (m->map == MAP_FAILED) {
		m->map = NULL;
		return failed(-errno, why,
			      "/dev/dax* can't be mapped, as its owner has set it up; ndctl "
			      "list -D shows it");
	}
	return register_map(d, m, m->fd, "devdax");
}

/* ----------------------------------------------------------------------------- BARs, by VFIO -- */

static const char no_bar[] =
	"not tried, because that takes a device from others and resets it; --vfio GROUP "
	"does it for a group that is bound to vfio-pci";

/* The first BAR that can be mapped; with the device's memory switched on, which resets have switched
 * off. */
static int find_bar(int device, struct vfio_region_info *bar)
{
	struct vfio_region_info config = {.argsz = sizeof(config),
					  .index = VFIO_PCI_CONFIG_REGION_INDEX};
	uint16_t command;

	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config) ||
	    pread(device, &command, 2, (off_t)config.offset + PCI_COMMAND) != 2)
		return -ENODEV;
	command |= PCI_COMMAND_MEMORY;
	if (pwrite(device, &command, 2, (off_t)config.offset + PCI_COMMAND) != 2)
		return -ENODEV;
	for (unsigned i = 0; i <= VFIO_PCI_BAR5_REGION_INDEX; i++) {
		*bar = (struct vfio_region_info){.argsz = sizeof(*bar), .index = i};
		if (!ioctl(device, VFIO_DEVICE_GET_REGION_INFO, bar) && bar->size >= LEN &&
		    (bar->flags & VFIO_REGION_INFO_FLAG_MMAP))
			return 0;
	}
	return -ENXIO;
}

static int make_bar_map(struct doctor *d, struct made *m, const char **why)
{
	struct vfio_region_info bar;

	if (d->pci < 0)
		return failed(-ENOENT, why, no_bar);
	if (find_bar(d->pci, &bar))
		return failed(-ENXIO, why, "no BAR of the device can be mapped; name another by --vfio");
	m->len = LEN;
	m->map = mmap(NULL, m->len, PROT_READ | PROT_WRITE, MAP_SHARED, d->pci, (off_t)bar.offset);
	if (m->map == MAP_FAILED) {
		m->map = NULL;
		return failed(-errno, why, "no BAR of the device can be mapped; name another by --vfio");
	}
	return register_map(d, m, -1, "BAR");
}

static int make_bar_dmabuf(struct doctor *d, struct made *m, const char **why)
{
	struct dma_buf_feature f = {.argsz = sizeof(f),
				    .flags = VFIO_DEVICE_FEATURE_GET | DMA_BUF,
				    .open_flags = O_RDWR | O_CLOEXEC,
				    .nr_ranges = 1,
				    .length = LEN};
	struct vfio_region_info bar;

	if (d->pci < 0)
		return failed(-ENOENT, why, no_bar);
	if (find_bar(d->pci, &bar))
		return failed(-ENXIO, why, "no BAR of the device can be mapped; name another by --vfio");
	f.region = bar.index;
	m->fd = ioctl(d->pci, VFIO_DEVICE_FEATURE, &f);
	if (m->fd < 0)
		return -errno;
	return register_dmabuf(d, m);
}

/* ------------------------------------------------------------------------------- who gets it -- */

const char *doctor_import_name(int then)
{
	return then == DOCTOR_IMPORT_FAIL ? "FAIL" : "SCRATCH";
}

/* Without what is added in brackets: which exporter, which device, and why that can't do more. */
static void keep_sentence(char *why, size_t len)
{
	const char *said = pinl_error(), *device = strstr(said, ", device "), *end = device;

	while (end && end > said && *end != '(')
		end--;
	snprintf(why, len, "%.*s", end && end > said ? (int)(end - 1 - said) : (int)strlen(said), said);
}

static void import(struct made *m, struct doctor_device *device, int then, struct doctor_import *out)
{
	struct pinl_policy policy = {.size = sizeof(policy),
				     .kind = PINL_RECALL,
				     .then = then == DOCTOR_IMPORT_FAIL ? PINL_THEN_FAIL
									: PINL_THEN_SCRATCH,
				     .grace_ms = 1};
	struct pinl_lease_info info = {.size = sizeof(info)};
	struct pinl_addr addrs[LEN / PAGE];
	struct pinl_lease *lease;
	int err =
		pinl_map_exporter(device->dev, m->exporter, 0, LEN, PINL_WRITE, &policy, addrs, &lease);

	out->leased = !err;
	if (err) {
		keep_sentence(out->why, sizeof(out->why));
		return;
	}
	out->stays = pinl_exporter_revoke(m->exporter, NULL) || pinl_lease_info(lease, &info) ||
		     info.state != PINL_RELEASED;
	pinl_unmap_range(lease);
	pinl_exporter_offer(m->exporter);
}

static void drop(struct made *m)
{
	pinl_exporter_unregister(m->exporter);
	if (m->map)
		munmap(m->map, m->len);
	if (m->fd >= 0)
		close(m->fd);
}

static void export(struct doctor *d, const struct maker *maker)
{
	struct doctor_export *e = &d->exports[d->n_exports++];
	struct made m = {.fd = -1};
	const char *why = NULL;
	int err = maker->make(d, &m, &why);

	snprintf(e->name, sizeof(e->name), "%s", maker->name);
	if (err && !why && maker->facility)
		why = doctor_facility_why(d, maker->facility);
	if (err)
		snprintf(e->why, sizeof(e->why), "%.*s", DOCTOR_WHY - 1, why ? why : pinl_error());
	for (unsigned i = 0; !err && i < d->n_devices; i++)
		for (int then = 0; d->devices[i].dev && then < DOCTOR_IMPORT_NR; then++)
			import(&m, &d->devices[i], then, &e->imports[i][then]);
	drop(&m);
}

void doctor_exports(struct doctor *d)
{
	static const struct maker all[] = {
		{"mapped BAR", NULL, make_bar_map},
		{"dma-buf of a BAR", "dma-bufs of BARs", make_bar_dmabuf},
		{"DAX device", "DAX devices", make_devdax},
		{"dma-buf of a memfd", "dma-bufs of memfds", make_dmabuf},
	};

	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
		export(d, &all[i]);
}
