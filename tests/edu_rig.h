/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * QEMU's edu devices (one is enough, several move data at the same time), all in one address space
 * behind the guest's IOMMU. A transfer takes place 100 ms after it was started, and the device doesn't
 * know how it went: what faulted reads as zeroes, and is nowhere after a write.
 */
#ifndef EDU_RIG_H
#define EDU_RIG_H

#include <pinlease/pinlease.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EDU_MAX	      8
#define EDU_FLIGHT_NS 100000000ull
#define EDU_CHUNK     2048u /* QEMU 7.2 aborts on a transfer of all 4096 bytes of the device's buffer */

/* What the devices address: 28 bits. The rig's own memory lies above what leases may use. */
#define EDU_IOVA_FIRST 0x100000u
#define EDU_IOVA_LAST  0xdffffffu
#define EDU_OWN_FIRST  0xe000000u
#define EDU_OWN_LAST   (EDU_OWN_FIRST + EDU_MAX * 4096u - 1)

enum edu_space {
	EDU_TYPE1,   /* a VFIO container */
	EDU_IOMMUFD, /* an address space of /dev/iommu */
};

struct edu {
	enum edu_space space;
	int fd; /* the container, or the iommufd */
	uint32_t ioas;
	int n;
	struct {
		char name[16];
		int group, device; /* no group with iommufd */
		volatile uint8_t *regs;
	} dev[EDU_MAX];
	unsigned char *bounce; /* a page for each */
};

/* Some bytes in one page. */
struct edu_part {
	uint64_t iova;
	void *buf;
	size_t len;
};

/* NULL, or what is missing here, in words. Binds the devices to vfio-pci. */
const char *edu_missing(enum edu_space space);
void edu_open(struct edu *e, enum edu_space space);
void edu_close_devices(struct edu *e);
void edu_close(struct edu *e);

/* What a pinl_device is opened with on all that the rig has. iommufd: with the devices if `switched`, so
 * that pages are exchanged in one step; in devices[] are their descriptors. */
union edu_arg {
	struct pinl_vfio_arg vfio;
	struct pinl_iommufd_arg iommufd;
};
union edu_arg edu_arg(const struct edu *e, bool switched, int devices[EDU_MAX]);

/* A mapping that is none of a lease's. 0 or -errno. */
int edu_map(struct edu *e, void *va, uint64_t iova, size_t len);
int edu_unmap(struct edu *e, uint64_t iova, size_t len);

/* Moves all parts, by as many devices at a time as there are. */
void edu_write(struct edu *e, const struct edu_part *parts, int n);
void edu_read(struct edu *e, const struct edu_part *parts, int n);

/* Data into the devices' own buffers, one part each (n <= e->n); then on their way, to land in 100 ms.
 */
void edu_load(struct edu *e, const struct edu_part *parts, int n);
void edu_launch(struct edu *e, const struct edu_part *parts, int n);
void edu_land(struct edu *e);
bool edu_landed(struct edu *e);

/* The kernel wants a device back: an eventfd for its request, and then it waits until all is
 * let go. edu_unbind(name) is for a thread; NULL: done. */
int edu_request_event(int device);
void *edu_unbind(void *name);

#endif
