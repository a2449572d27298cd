/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The lines of two drivers, from Linux 4.19 to 7.2 (dmar_fault_do_one() of drivers/iommu/intel/dmar.c,
 * amd_iommu_report_page_fault() of drivers/iommu/amd/iommu.c):
 *
 *	DMAR: [DMA Write NO_PASID] Request device [00:04.0] fault addr 0x100000 [fault reason 0x05] ...
 *	DMAR: [DMA Read] Request device [00:02.0] PASID ffffffff fault addr 9d000 [fault reason 06] ...
 *	AMD-Vi: Event logged [IO_PAGE_FAULT device=03:00.0 domain=0x0000 address=0xf00 flags=0x0020]
 *	vfio-pci 0000:03:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000b address=... flags=...]
 *
 * Pure: a cursor that never goes beyond its end. What has a PASID was no request at the device's own
 * addresses.
 */
#include "source/faults.h"

#include <string.h>

#define NO_PASID      0xffffffffu
#define AMD_INTERRUPT 0x008u /* EVENT_FLAG_I */
#define AMD_WRITE     0x020u /* EVENT_FLAG_RW */

struct cursor {
	const char *at, *end;
};

static bool word(struct cursor *c, const char *text)
{
	size_t len = strlen(text);

	if ((size_t)(c->end - c->at) < len || memcmp(c->at, text, len))
		return false;
	c->at += len;
	return true;
}

static int digit(char c, unsigned base)
{
	int d = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;

	return d < (int)base ? d : -1;
}

static bool number(struct cursor *c, unsigned base, uint64_t most, uint64_t *out)
{
	const char *begin = c->at;
	uint64_t n = 0;
	int d;

	for (; c->at < c->end && (d = digit(*c->at, base)) >= 0; c->at++) {
		if ((uint64_t)d > most || n > (most - d) / base)
			return false;
		n = n * base + d;
	}
	*out = n;
	return c->at > begin;
}

static bool hex(struct cursor *c, uint64_t most, uint64_t *out)
{
	word(c, "0x");
	return number(c, 16, most, out);
}

/* 0000:00:04.0 or 00:04.0 */
static bool pci(struct cursor *c, struct pl_pci *p)
{
	uint64_t n[4];
	int i = 0;

	do {
		if (!hex(c, UINT32_MAX, &n[i]))
			return false;
	} while (++i < 3 && word(c, ":"));
	if (i < 2 || !word(c, ".") || !hex(c, 7, &n[3]) || n[i - 2] > 0xff || n[i - 1] > 0x1f)
		return false;
	*p = (struct pl_pci){.has_domain = i == 3,
			     .domain = i == 3 ? n[0] : 0,
			     .bus = n[i - 2],
			     .slot = n[i - 1],
			     .function = n[3]};
	return true;
}

static bool intel(struct cursor c, struct pl_fault *f)
{
	uint64_t pasid = NO_PASID, reason;

	if (!word(&c, "DMAR: [DMA "))
		return false;
	f->write = word(&c, "Write");
	if (!f->write && !word(&c, "Read"))
		return false;
	word(&c, " NO_PASID");
	if (!word(&c, "] Request device [") || !pci(&c, &f->device) || !word(&c, "] "))
		return false;
	if (word(&c, "PASID ") && (!hex(&c, UINT32_MAX, &pasid) || !word(&c, " ")))
		return false;
	return pasid == NO_PASID && word(&c, "fault addr ") && hex(&c, UINT64_MAX, &f->iova) &&
	       word(&c, " [fault reason ") && hex(&c, UINT32_MAX, &reason) && word(&c, "]");
}

/* "DRIVER DEVICE: ", as dev_printk() begins. */
static bool who(struct cursor *c, struct pl_pci *p)
{
	const char *space = memchr(c->at, ' ', c->end - c->at);
	struct cursor device = {space ? space + 1 : c->end, c->end};

	if (!pci(&device, p) || !word(&device, ": "))
		return false;
	*c = device;
	return true;
}

static bool amd(struct cursor c, struct pl_fault *f)
{
	bool named = !word(&c, "AMD-Vi: ");
	uint64_t domain, flags;

	if (named && (!who(&c, &f->device) || !word(&c, "AMD-Vi: ")))
		return false;
	if (!word(&c, "Event logged [IO_PAGE_FAULT "))
		return false;
	if (!named && (!word(&c, "device=") || !pci(&c, &f->device) || !word(&c, " ")))
		return false;
	if (!word(&c, "domain=") || !hex(&c, UINT32_MAX, &domain) || !word(&c, " address=") ||
	    !hex(&c, UINT64_MAX, &f->iova) || !word(&c, " flags=") || !hex(&c, UINT32_MAX, &flags) ||
	    !word(&c, "]"))
		return false;
	f->write = flags & AMD_WRITE;
	return !(flags & AMD_INTERRUPT);
}

/* "PRIORITY,SEQUENCE,TIME,FLAGS;text", then lines that begin with a space. The priority has who has
 * written it: only the kernel can be facility 0. */
static bool begin(struct cursor *c)
{
	const char *text = memchr(c->at, ';', c->end - c->at), *line;
	uint64_t priority;

	if (!text || !number(c, 10, 7, &priority) || !word(c, ","))
		return false;
	c->at = text + 1;
	line = memchr(c->at, '\n', c->end - c->at);
	if (line)
		c->end = line;
	return true;
}

bool pl_fault_decode(const char *record, size_t len, struct pl_fault *out)
{
	struct cursor c = {record, record + len};
	struct pl_fault f = {0};

	if (!begin(&c) || (!intel(c, &f) && !amd(c, &f)))
		return false;
	*out = f;
	return true;
}
