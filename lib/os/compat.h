/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Kernel interface values newer than Debian 12's headers. Having the number says nothing about the
 * running kernel: every feature is probed. */
#ifndef PL_OS_COMPAT_H
#define PL_OS_COMPAT_H

#include <fcntl.h>
#include <stdint.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <sys/fanotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1ULL << 13)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1ULL << 15)
#endif

#ifndef FAN_PRE_ACCESS
#define FAN_PRE_ACCESS 0x00100000ULL
#endif
#ifndef FAN_MARK_IGNORE
#define FAN_MARK_IGNORE 0x00000400
#endif
#ifndef FAN_DENY_ERRNO
#define FAN_ERRNO_SHIFT	  24
#define FAN_DENY_ERRNO(e) (FAN_DENY | (((uint32_t)(e)&0xff) << FAN_ERRNO_SHIFT))
#endif
#ifndef FAN_EVENT_INFO_TYPE_RANGE
#define FAN_EVENT_INFO_TYPE_RANGE 6
#endif
struct pl_fan_range { /* struct fanotify_event_info_range, 6.14 */
	uint8_t type, pad;
	uint16_t len;
	uint32_t pad2;
	uint64_t offset, count;
};

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

/* IORING_REGISTER_CLONE_BUFFERS: 6.12 whole tables, 6.13 with offsets. */
#define PL_IORING_REGISTER_CLONE_BUFFERS 30
#define PL_IORING_REGISTER_DST_REPLACE	 2
struct pl_io_uring_clone_buffers {
	uint32_t src_fd, flags, src_off, dst_off, nr, pad[3];
};

/* Of a thread (6.9), and PIDFD_GET_INFO (6.13). */
#define PL_PIDFD_THREAD O_EXCL
struct pl_pidfd_info {
	uint64_t mask, cgroup;
	uint32_t pid, tgid, ppid, ruid, rgid, euid, egid, suid, sgid, fsuid, fsgid, exit_code;
};
#define PL_PIDFD_GET_INFO   _IOWR(0xff, 11, struct pl_pidfd_info)
#define PL_PIDFD_INFO_PID   (1ull << 0)
#define PL_PIDFD_INFO_CREDS (1ull << 1)

/* PROCMAP_QUERY (6.11) on /proc/<pid>/maps. */
struct pl_procmap_query {
	uint64_t size, query_flags, query_addr;
	uint64_t vma_start, vma_end, vma_flags, vma_page_size, vma_offset, inode;
	uint32_t dev_major, dev_minor, vma_name_size, build_id_size;
	uint64_t vma_name_addr, build_id_addr;
};
#define PL_PROCMAP_QUERY		_IOWR('f', 17, struct pl_procmap_query)
#define PL_PROCMAP_COVERING_OR_NEXT_VMA 0x10
#define PL_PROCMAP_READABLE		0x01
#define PL_PROCMAP_WRITABLE		0x02
#define PL_PROCMAP_EXECUTABLE		0x04
#define PL_PROCMAP_SHARED		0x08

/* PAGEMAP_SCAN (6.7) on /proc/<pid>/pagemap. */
struct pl_page_region {
	uint64_t start, end, categories;
};
struct pl_pagemap_scan {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define PL_PAGEMAP_SCAN		 _IOWR('f', 16, struct pl_pagemap_scan)
#define PL_PAGE_IS_WPALLOWED	 (1ull << 0)
#define PL_PAGE_IS_PRESENT	 (1ull << 3)
#define PL_PAGE_IS_HUGE		 (1ull << 6)
#define PL_PM_SCAN_CHECK_WPASYNC (1ull << 1)

#endif
