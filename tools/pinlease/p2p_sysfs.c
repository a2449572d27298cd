/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The PCI tree as sysfs shows it, below a root that may be a recorded one. A device's place is the path
 * that /sys/bus/pci/devices/ADDRESS leads to: host bridge, ports, device. Nothing is written.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/pci_regs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "p2p.h"

#define CONFIG	       4096
#define CLASS_BRIDGE   0x06
#define IORESOURCE_MEM 0x200

static int complain(int err, const char *fmt, const char *what)
{
	fprintf(stderr, "pinlease p2p: ");
	fprintf(stderr, fmt, what);
	fputc('\n', stderr);
	return err;
}

/* The whole text is an address; the domain may be left out. */
static bool parse_address(const char *text, struct p2p_address *at)
{
	int end = 0;

	if (sscanf(text, "%8x:%2x:%2x.%1x%n", &at->domain, &at->bus, &at->device, &at->function, &end) ==
		    4 &&
	    !text[end])
		return at->device < 32 && at->function < 8;
	at->domain = 0;
	end = 0;
	return sscanf(text, "%2x:%2x.%1x%n", &at->bus, &at->device, &at->function, &end) == 3 &&
	       !text[end] && at->device < 32 && at->function < 8;
}

/* As parse_address, of one component of a path, which has its domain. */
static bool is_component(const char *text, struct p2p_address *at)
{
	return strchr(text, ':') != strrchr(text, ':') && parse_address(text, at);
}

static void in_root(const struct p2p_machine *m, char path[PATH_MAX], const char *fmt, const char *name)
{
	int n = snprintf(path, PATH_MAX, "%s", m->root);

	snprintf(path + n, PATH_MAX - n, fmt, name);
}

static void read_cpu(struct p2p_machine *m)
{
	char path[PATH_MAX], line[8192], vendor[64] = "";
	unsigned family = 0;
	FILE *f;

	in_root(m, path, "/proc/cpuinfo%s", "");
	f = fopen(path, "r");
	while (f && fgets(line, sizeof line, f) && line[0] != '\n') {
		sscanf(line, "vendor_id : %63s", vendor);
		sscanf(line, "cpu family : %u", &family);
		m->guest |= !strncmp(line, "flags", 5) && strstr(line, " hypervisor");
	}
	if (f)
		fclose(f);
	m->zen = !strcmp(vendor, "AuthenticAMD") && family >= 0x17;
}

int p2p_open(struct p2p_machine *m, const char *root)
{
	char path[PATH_MAX];

	memset(m, 0, sizeof *m);
	if (root && strcmp(root, "/") != 0) {
		if (!realpath(root, path))
			return complain(-errno, "%s is no directory with a recorded /sys", root);
		snprintf(m->root, sizeof m->root, "%s", path);
	}
	in_root(m, path, "/sys/bus/pci/devices%s", "");
	if (access(path, F_OK))
		return complain(-errno, "there is no PCI here: %s is missing", path);
	read_cpu(m);
	return 0;
}

/* ----------------------------------------------------------------------------------- by name -- */

/* The last PCI device on the path; false: there is none. */
static bool last_device(const char *path, struct p2p_address *at)
{
	char copy[PATH_MAX], *save, *part;
	struct p2p_address here;
	bool any = false;

	snprintf(copy, sizeof copy, "%s", path);
	for (part = strtok_r(copy, "/", &save); part; part = strtok_r(NULL, "/", &save))
		if (is_component(part, &here)) {
			*at = here;
			any = true;
		}
	return any;
}

static int find_in_classes(const struct p2p_machine *m, const char *name, struct p2p_address *at)
{
	static const char *const classes[] = {"/sys/class/net/%s",   "/sys/class/infiniband/%s",
					      "/sys/class/block/%s", "/sys/class/nvme/%s",
					      "/sys/class/drm/%s",   "/sys/class/accel/%s"};
	char path[PATH_MAX], real[PATH_MAX];

	for (size_t i = 0; i < sizeof classes / sizeof *classes; i++) {
		in_root(m, path, classes[i], name);
		if (!realpath(path, real))
			continue;
		if (last_device(real + strlen(m->root), at))
			return 0;
		return complain(-EINVAL, "%s is no PCI device, nor is it on one", name);
	}
	return complain(-ENOENT,
			"no PCI device, network interface, RDMA or block device \"%s\"; an address is "
			"like 0000:03:00.0",
			name);
}

int p2p_find(const struct p2p_machine *m, const char *name, struct p2p_address *at)
{
	char path[PATH_MAX], words[P2P_NAME];

	if (parse_address(name, at)) {
		p2p_address_words(at, words);
		in_root(m, path, "/sys/bus/pci/devices/%s", words);
		return access(path, F_OK) ? complain(-ENOENT, "there is no PCI device %s", words) : 0;
	}
	if (!strncmp(name, "/dev/", 5))
		name += 5;
	if (!*name || strchr(name, '/') || name[0] == '.')
		return complain(-EINVAL, "\"%s\" is no name of a device", name);
	return find_in_classes(m, name, at);
}

/* -------------------------------------------------------------------------------- attributes -- */

static bool read_text(const char *dir, const char *name, char *buf, size_t len)
{
	char path[PATH_MAX + 32];
	FILE *f;
	size_t n = 0;

	snprintf(path, sizeof path, "%s/%s", dir, name);
	f = fopen(path, "r");
	if (f) {
		n = fread(buf, 1, len - 1, f);
		fclose(f);
	}
	buf[n] = 0;
	return n;
}

static unsigned long read_hex(const char *dir, const char *name)
{
	char text[32];

	return read_text(dir, name, text, sizeof text) ? strtoul(text, NULL, 16) : 0;
}

/* How much of the configuration space is to be read: 64 bytes without privilege. */
static size_t read_config(const char *dir, uint8_t config[CONFIG])
{
	char path[PATH_MAX + 32];
	size_t n = 0;
	ssize_t got;
	int fd;

	snprintf(path, sizeof path, "%s/config", dir);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	while (fd >= 0 && n < CONFIG && (got = read(fd, config + n, CONFIG - n)) > 0)
		n += got;
	if (fd >= 0)
		close(fd);
	return n;
}

static unsigned get16(const uint8_t *p)
{
	return p[0] | p[1] << 8;
}

static uint32_t get32(const uint8_t *p)
{
	return get16(p) | (uint32_t)get16(p + 2) << 16;
}

static enum p2p_acs acs_of(const uint8_t config[CONFIG], size_t len)
{
	const unsigned redirects = PCI_ACS_RR | PCI_ACS_CR | PCI_ACS_EC;
	unsigned at = PCI_CFG_SPACE_SIZE;

	if (len <= PCI_CFG_SPACE_SIZE) /* of conventional PCI there is no more */
		return len < PCI_CFG_SPACE_SIZE ? P2P_ACS_UNKNOWN : P2P_ACS_NONE;
	for (int i = 0; i < CONFIG / 8 && at >= PCI_CFG_SPACE_SIZE && at + 8 <= len; i++) {
		uint32_t head = get32(config + at);

		if (PCI_EXT_CAP_ID(head) == PCI_EXT_CAP_ID_ACS)
			return get16(config + at + PCI_ACS_CTRL) & redirects ? P2P_ACS_REDIRECT
									     : P2P_ACS_NONE;
		at = PCI_EXT_CAP_NEXT(head);
	}
	return P2P_ACS_NONE;
}

static bool has_memory(const char *dir)
{
	char text[2048], *save, *line;
	unsigned long start, end, flags;
	int bar = 0;

	read_text(dir, "resource", text, sizeof text);
	for (line = strtok_r(text, "\n", &save); line && bar < 6;
	     line = strtok_r(NULL, "\n", &save), bar++)
		if (sscanf(line, "%lx %lx %lx", &start, &end, &flags) == 3 && end &&
		    (flags & IORESOURCE_MEM))
			return true;
	return false;
}

static void read_iommu(const char *dir, struct p2p_device *d)
{
	char path[PATH_MAX + 32], real[PATH_MAX], type[32];
	const char *number;

	d->group = -1;
	snprintf(path, sizeof path, "%s/iommu_group", dir);
	if (!realpath(path, real))
		return;
	number = strrchr(real, '/');
	d->group = atoi(number + 1);
	d->iommu = P2P_IOMMU_TRANSLATES;
	if (read_text(real, "type", type, sizeof type) && !strncmp(type, "identity", 8))
		d->iommu = P2P_IOMMU_IDENTITY;
}

/* ------------------------------------------------------------------------------------- place -- */

/* What is first on the root bus: function 0 of device 0, or a root port. */
static void find_bridge(const char *host, struct p2p_device *d)
{
	struct p2p_address at, first = {.device = 32};
	char dir[PATH_MAX], words[P2P_NAME];
	struct dirent *e;
	DIR *list = opendir(host);

	while (list && (e = readdir(list)))
		if (is_component(e->d_name, &at) &&
		    at.device * 8 + at.function < first.device * 8 + first.function)
			first = at;
	if (list)
		closedir(list);
	if (first.device > 31)
		return;
	p2p_address_words(&first, words);
	if (snprintf(dir, sizeof dir, "%s/%s", host, words) >= (int)sizeof dir)
		return;
	d->bridge = (struct p2p_ids){read_hex(dir, "vendor"), read_hex(dir, "device")};
	d->has_bridge = (!first.device && !first.function) || read_hex(dir, "class") >> 8 == 0x0604;
}

/* The component of the nearest host bridge, as there are some behind devices (VMD). */
static char *find_host(const struct p2p_machine *m, char *real, struct p2p_device *d)
{
	char *from = real + strlen(m->root), *last = NULL;

	while ((from = strstr(from, "/pci"))) {
		if (sscanf(from, "/pci%x:%x", &d->root_domain, &d->root_bus) == 2)
			last = from;
		from++;
	}
	return last;
}

/* Ports above the device, and the host bridge. */
static int read_place(const struct p2p_machine *m, char *real, struct p2p_device *d)
{
	char *from = find_host(m, real, d), *part, *end;
	struct p2p_address at;
	uint8_t config[CONFIG];

	if (!from)
		return complain(-EINVAL, "%s is below no PCI host bridge", real);
	for (part = strchr(from + 1, '/'); part; part = end) {
		end = strchr(part + 1, '/');
		*part = 0;
		if (!d->nr_ports)
			find_bridge(real, d);
		*part = '/';
		if (!end) /* the device itself */
			break;
		*end = 0;
		if (is_component(part + 1, &at)) {
			if (d->nr_ports == P2P_DEPTH)
				return complain(-EINVAL, "%s is below too many bridges", real);
			d->ports[d->nr_ports].at = at;
			d->ports[d->nr_ports++].acs = acs_of(config, read_config(real, config));
		}
		*end = '/';
	}
	return 0;
}

int p2p_read(const struct p2p_machine *m, const struct p2p_address *at, struct p2p_device *d)
{
	char path[PATH_MAX], real[PATH_MAX], words[P2P_NAME];
	uint8_t config[CONFIG];

	memset(d, 0, sizeof *d);
	d->at = *at;
	p2p_address_words(at, words);
	in_root(m, path, "/sys/bus/pci/devices/%s", words);
	if (!realpath(path, real))
		return complain(-errno, "there is no PCI device %s", words);
	d->ids = (struct p2p_ids){read_hex(real, "vendor"), read_hex(real, "device")};
	d->class = read_hex(real, "class");
	d->memory = has_memory(real);
	d->decodes =
		read_config(real, config) >= 64 && (get16(config + PCI_COMMAND) & PCI_COMMAND_MEMORY);
	read_iommu(real, d);
	return read_place(m, real, d);
}

/* -------------------------------------------------------------------------------------- list -- */

static int by_address(const void *a, const void *b)
{
	const struct p2p_address *x = a, *y = b;
	uint64_t p = (uint64_t)x->domain << 32 | x->bus << 16 | x->device << 8 | x->function;
	uint64_t q = (uint64_t)y->domain << 32 | y->bus << 16 | y->device << 8 | y->function;

	return p < q ? -1 : p > q;
}

int p2p_list(const struct p2p_machine *m, struct p2p_address **out)
{
	struct p2p_address *list = NULL, at;
	char path[PATH_MAX], dir[PATH_MAX + 272];
	struct dirent *e;
	int n = 0;
	DIR *d;

	in_root(m, path, "/sys/bus/pci/devices%s", "");
	d = opendir(path);
	if (!d)
		return complain(-errno, "%s can't be read", path);
	while ((e = readdir(d))) {
		struct p2p_address *more;

		snprintf(dir, sizeof dir, "%s/%s", path, e->d_name);
		if (!is_component(e->d_name, &at) || read_hex(dir, "class") >> 16 == CLASS_BRIDGE)
			continue;
		more = realloc(list, (n + 1) * sizeof *list);
		if (!more) {
			closedir(d);
			free(list);
			return complain(-ENOMEM, "out of memory%s", "");
		}
		list = more;
		list[n++] = at;
	}
	closedir(d);
	qsort(list, n, sizeof *list, by_address);
	*out = list;
	return n;
}
