/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What is used of /dev/iommu, from include/uapi/linux/iommufd.h and vfio.h of Linux 7.2: Debian 12's
 * kernel headers have no iommufd.h, and a vfio.h without device files (cdev, Linux 6.6). The names are
 * ours, so that both can be included where they exist. Sizes grow with the kernel, which takes older
 * ones.
 */
#ifndef PL_BACKEND_IOMMUFD_API_H
#define PL_BACKEND_IOMMUFD_API_H

#include <stdint.h>
#include <sys/ioctl.h>

#define PL_IOMMU_IO(nr) _IO(';', nr)

#define PL_IOMMU_READ_WRITE(writable) (PL_IOMMU_READABLE | ((writable) ? PL_IOMMU_WRITEABLE : 0u))

enum {
	PL_IOMMU_FIXED_IOVA = 1,
	PL_IOMMU_WRITEABLE = 2,
	PL_IOMMU_READABLE = 4,
};

struct pl_iommu_destroy {
	uint32_t size, id;
};
#define PL_IOMMU_DESTROY PL_IOMMU_IO(0x80)

struct pl_iommu_ioas_alloc {
	uint32_t size, flags, out_ioas_id;
};
#define PL_IOMMU_IOAS_ALLOC PL_IOMMU_IO(0x81)

struct pl_iommu_ioas_copy {
	uint32_t size, flags, dst_ioas_id, src_ioas_id;
	uint64_t length, dst_iova, src_iova;
};
#define PL_IOMMU_IOAS_COPY PL_IOMMU_IO(0x83)

struct pl_iommu_iova_range {
	uint64_t start, last;
};

struct pl_iommu_ioas_iova_ranges {
	uint32_t size, ioas_id, num_iovas, reserved;
	uint64_t allowed_iovas; /* struct pl_iommu_iova_range * */
	uint64_t out_iova_alignment;
};
#define PL_IOMMU_IOAS_IOVA_RANGES PL_IOMMU_IO(0x84)

struct pl_iommu_ioas_map {
	uint32_t size, flags, ioas_id, reserved;
	uint64_t user_va, length, iova;
};
#define PL_IOMMU_IOAS_MAP PL_IOMMU_IO(0x85)

struct pl_iommu_ioas_unmap {
	uint32_t size, ioas_id;
	uint64_t iova, length;
};
#define PL_IOMMU_IOAS_UNMAP PL_IOMMU_IO(0x86)

struct pl_iommu_ioas_map_file {
	uint32_t size, flags, ioas_id;
	int32_t fd;
	uint64_t start, length, iova;
};
#define PL_IOMMU_IOAS_MAP_FILE PL_IOMMU_IO(0x8f)

/* On a device's own descriptor. */
struct pl_vfio_bind_iommufd {
	uint32_t argsz, flags;
	int32_t iommufd;
	uint32_t out_devid;
};
#define PL_VFIO_BIND_IOMMUFD _IO(';', 100 + 18)

struct pl_vfio_attach_pt {
	uint32_t argsz, flags, pt_id;
};
#define PL_VFIO_ATTACH_PT _IO(';', 100 + 19)

#endif
