/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The BAR of one PCI device (QEMU's ivshmem) for the DMA engines of others (edu), behind an IOMMU. */
#ifndef BARS_RIG_H
#define BARS_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <linux/vfio.h>

#include <pinlease/device.h>
#include <pinlease/exporter.h>

#include "check.h"
#include "edu_rig.h"

#define PAGE  4096u
#define PAGES 4u
#define SIZE  (PAGES * PAGE)
#define BAR   VFIO_PCI_BAR2_REGION_INDEX

struct rig {
	struct edu edu;
	int group, device; /* of the ivshmem; no group with iommufd */
	off_t config;
	size_t bar_len;
	volatile char *bar; /* the test's own mapping */
	struct pinl_ctx *ctx;
	struct pinl_device *dev, *soft;
	struct pinl_exporter *exporter;
	struct pinl_lease *lease;
	struct pinl_addr addrs[PAGES];
};

const char *missing_for(enum edu_space space); /* NULL, or what is missing here, in words */
int rig_up(void **state);
int rig_down(void **state);

int find_ivshmem(char name[16]);
void open_ivshmem(struct rig *r);		/* with its BAR as r->bar */
void open_device(struct rig *r, uint64_t last); /* leases have addresses up to `last` */

/* Its command register; decoding of memory accesses on or off, as somebody does it who knows nothing of
 * pinlease. */
uint16_t command_of(const struct rig *r);
void set_memory(const struct rig *r, int on);

/* The first SIZE bytes of the BAR, of which a chunk in a page is looked at, or filled by edu. */
struct pinl_policy recall(enum pinl_then then);
int map_bar(struct rig *r, enum pinl_then then);
enum pinl_state state_of(const struct rig *r);
void assert_bar(const struct rig *r, unsigned page, char c);
struct edu_part part_of(const struct rig *r, unsigned page, char *buf, char c);
void edu_fills(struct rig *r, unsigned page, char c);
void assert_says(const char *what);

#endif
