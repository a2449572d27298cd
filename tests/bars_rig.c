/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "bars_rig.h"

#include <dirent.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <linux/pci_regs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend/iommufd_api.h"

/* -------------------------------------------------------------------------- the other device -- */

int find_ivshmem(char name[16])
{
	DIR *dir = opendir("/sys/bus/pci/devices");
	struct dirent *e;
	int found = 0;

	while (dir && !found && (e = readdir(dir))) {
		char path[300], id[64] = "";
		FILE *f;

		snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/uevent", e->d_name);
		f = fopen(path, "re");
		while (f && fgets(id, sizeof id, f))
			if (strstr(id, "PCI_ID=1AF4:1110"))
				found = 1;
		if (f)
			fclose(f);
		if (found)
			snprintf(name, 16, "%.15s", e->d_name);
	}
	if (dir)
		closedir(dir);
	return found;
}

uint16_t command_of(const struct rig *r)
{
	uint16_t command;

	assert_int_equal(pread(r->device, &command, 2, r->config + PCI_COMMAND), 2);
	return command;
}

void set_memory(const struct rig *r, int on)
{
	uint16_t command = command_of(r);

	command = on ? command | PCI_COMMAND_MEMORY : command & ~PCI_COMMAND_MEMORY;
	assert_int_equal(pwrite(r->device, &command, 2, r->config + PCI_COMMAND), 2);
}

static void open_by_group(struct rig *r, const char *name)
{
	char path[300], target[PATH_MAX] = "";

	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/iommu_group", name);
	assert_true(readlink(path, target, sizeof target - 1) > 0);
	snprintf(path, sizeof path, "/dev/vfio/%s", basename(target));
	r->group = open(path, O_RDWR | O_CLOEXEC);
	assert_true(r->group >= 0);
	assert_int_equal(ioctl(r->group, VFIO_GROUP_SET_CONTAINER, &r->edu.fd), 0);
	r->device = ioctl(r->group, VFIO_GROUP_GET_DEVICE_FD, name);
	assert_true(r->device >= 0);
}

static void open_by_file(struct rig *r, const char *name)
{
	struct pl_vfio_bind_iommufd bind = {.argsz = sizeof bind, .iommufd = r->edu.fd};
	char path[300];
	struct dirent *e;
	DIR *dir;

	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/vfio-dev", name);
	dir = opendir(path);
	assert_non_null(dir);
	while ((e = readdir(dir)))
		if (e->d_name[0] != '.')
			snprintf(path, sizeof path, "/dev/vfio/devices/%.20s", e->d_name);
	closedir(dir);
	r->group = -1;
	r->device = open(path, O_RDWR | O_CLOEXEC);
	assert_true(r->device >= 0);
	assert_int_equal(ioctl(r->device, PL_VFIO_BIND_IOMMUFD, &bind), 0);
}

void open_ivshmem(struct rig *r)
{
	struct vfio_region_info bar = {.argsz = sizeof bar, .index = BAR};
	struct vfio_region_info config = {.argsz = sizeof config, .index = VFIO_PCI_CONFIG_REGION_INDEX};
	char name[16];

	assert_true(find_ivshmem(name));
	if (r->edu.space == EDU_TYPE1)
		open_by_group(r, name);
	else
		open_by_file(r, name);
	assert_int_equal(ioctl(r->device, VFIO_DEVICE_GET_REGION_INFO, &bar), 0);
	assert_int_equal(ioctl(r->device, VFIO_DEVICE_GET_REGION_INFO, &config), 0);
	r->config = config.offset;
	r->bar_len = bar.size;
	set_memory(r, 1);
	r->bar = mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, r->device, bar.offset);
	assert_ptr_not_equal(r->bar, MAP_FAILED);
}

void open_device(struct rig *r, uint64_t last)
{
	union edu_arg arg = edu_arg(&r->edu, false, NULL);

	if (r->edu.space == EDU_TYPE1)
		arg.vfio.iova_last = last;
	else
		arg.iommufd.iova_last = last;
	assert_ok(
		pinl_device_open(r->ctx, r->edu.space == EDU_TYPE1 ? "vfio" : "iommufd", &arg, &r->dev));
}

int rig_up(void **state)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1};
	struct rig *r = calloc(1, sizeof *r);

	edu_open(&r->edu, *(enum edu_space *)*state);
	open_ivshmem(r);
	assert_ok(pinl_open(&opts, &r->ctx));
	open_device(r, EDU_IOVA_LAST);
	assert_ok(pinl_device_open(r->ctx, "soft", NULL, &r->soft));
	assert_ok(pinl_export_vfio(r->ctx, r->device, BAR, &r->exporter));
	memset((char *)r->bar, 'B', SIZE);
	*state = r;
	return 0;
}

int rig_down(void **state)
{
	struct rig *r = *state;

	pinl_unmap_range(r->lease);
	pinl_exporter_unregister(r->exporter);
	pinl_close(r->ctx);
	munmap((void *)r->bar, r->bar_len);
	close(r->device);
	if (r->group >= 0)
		close(r->group);
	edu_close(&r->edu);
	free(r);
	return 0;
}

struct pinl_policy recall(enum pinl_then then)
{
	return (struct pinl_policy){
		.size = sizeof(struct pinl_policy), .kind = PINL_RECALL, .then = then};
}

int map_bar(struct rig *r, enum pinl_then then)
{
	struct pinl_policy p = recall(then);

	return pinl_map_exporter(r->dev, r->exporter, 0, SIZE, PINL_WRITE, &p, r->addrs, &r->lease);
}

void assert_bar(const struct rig *r, unsigned page, char c)
{
	for (unsigned i = 0; i < EDU_CHUNK; i++)
		if (r->bar[page * PAGE + i] != c)
			fail_msg("byte %u of page %u is %#x, not %#x", i, page,
				 r->bar[page * PAGE + i] & 255, c & 255);
}

void assert_says(const char *what)
{
	if (!strstr(pinl_error(), what))
		fail_msg("\"%s\" doesn't say \"%s\"", pinl_error(), what);
}

struct edu_part part_of(const struct rig *r, unsigned page, char *buf, char c)
{
	memset(buf, c, EDU_CHUNK);
	return (struct edu_part){r->addrs[page].addr, buf, EDU_CHUNK};
}

void edu_fills(struct rig *r, unsigned page, char c)
{
	char buf[EDU_CHUNK];
	struct edu_part part = part_of(r, page, buf, c);

	edu_write(&r->edu, &part, 1);
}

enum pinl_state state_of(const struct rig *r)
{
	struct pinl_lease_info info = {.size = sizeof info};

	assert_ok(pinl_lease_info(r->lease, &info));
	return info.state;
}

const char *missing_for(enum edu_space space)
{
	const char *missing = edu_missing(space);
	char name[16];

	return missing		    ? missing
	       : find_ivshmem(name) ? NULL
				    : "a PCI device ivshmem (QEMU -device ivshmem-plain)";
}
