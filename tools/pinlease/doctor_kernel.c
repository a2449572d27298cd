/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the kernel has of what the library uses. Each is tried; the version named is only what to look
 * for where it is missing. Numbers that Debian 12's headers don't have yet are here.
 */
#include "doctor.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "given.h"

#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1ULL << 15)
#endif
#ifndef FAN_PRE_ACCESS
#define FAN_PRE_ACCESS 0x00100000ULL
#endif
#define CLONE_BUFFERS 30 /* IORING_REGISTER_CLONE_BUFFERS */
#define DST_REPLACE   2	 /* IORING_REGISTER_DST_REPLACE */
#define PAGE	      4096ul

/* --------------------------------------------------------------------------------- userfaultfd -- */

static int open_uffd(void)
{
	int flags = O_CLOEXEC | O_NONBLOCK, dev, err;
	int fd = (int)syscall(SYS_userfaultfd, flags);

	if (fd < 0 && errno == EPERM)
		fd = (int)syscall(SYS_userfaultfd, flags | UFFD_USER_MODE_ONLY);
	if (fd >= 0)
		return fd;
	err = -errno;
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev < 0)
		return err;
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, flags);
	err = fd < 0 ? -errno : fd;
	close(dev);
	return err;
}

static int try_uffd(void)
{
	int fd = open_uffd();

	if (fd >= 0)
		close(fd);
	return fd < 0 ? fd : 0;
}

static int try_wp_async(void)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_WP_ASYNC};
	int fd = open_uffd(), err;

	if (fd < 0)
		return fd;
	err = ioctl(fd, UFFDIO_API, &api) ? -errno : 0;
	close(fd);
	if (err)
		return err;
	return api.features & UFFD_FEATURE_WP_ASYNC ? 0 : -EINVAL;
}

/* ------------------------------------------------------------------------------ looking at pages -- */

static int ioctl_on(const char *path, unsigned long request, void *arg)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), err;

	if (fd < 0)
		return -errno;
	err = ioctl(fd, request, arg) < 0 ? -errno : 0;
	close(fd);
	return err;
}

static int try_pagemap_scan(void)
{
	struct {
		uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
		uint64_t inverted, mask, any, result;
	} scan = {.size = sizeof(scan), .mask = 1u << 3, .result = 1u << 3};
	uint64_t region[3];

	scan.start = (uintptr_t)&scan & ~(PAGE - 1);
	scan.end = scan.start + PAGE;
	scan.vec = (uintptr_t)region;
	scan.vec_len = 1;
	return ioctl_on("/proc/self/pagemap", _IOWR('f', 16, typeof(scan)), &scan);
}

static int try_procmap_query(void)
{
	struct {
		uint64_t size, flags, at, start, end, vma_flags, page_size, offset, inode;
		uint32_t major, minor, name_size, id_size;
		uint64_t name, id;
	} query = {.size = sizeof(query), .at = (uintptr_t)&query};

	return ioctl_on("/proc/self/maps", _IOWR('f', 17, typeof(query)), &query);
}

static int try_callers(void)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/task/%d/syscall", gettid());
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0)
		close(fd);
	return fd < 0 ? -errno : 0;
}

/* ------------------------------------------------------------------------------------- fanotify -- */

static int try_group(unsigned flags)
{
	int fd = fanotify_init(flags | FAN_CLOEXEC | FAN_NONBLOCK, O_RDONLY | O_LARGEFILE | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
}

/* EBADF: the kernel knows the event. */
static int try_pre_content(void)
{
	int group = try_group(FAN_CLASS_PRE_CONTENT), err;

	if (group < 0)
		return group;
	err = fanotify_mark(group, FAN_MARK_ADD, FAN_PRE_ACCESS, -1, NULL) ? -errno : 0;
	close(group);
	return err == -EBADF ? 0 : err;
}

static int try_report_tid(void)
{
	int group = try_group(FAN_CLASS_PRE_CONTENT | FAN_REPORT_TID);

	if (group >= 0)
		close(group);
	return group < 0 ? group : 0;
}

/* ------------------------------------------------------------------------------------- io_uring -- */

struct rings {
	struct io_uring from, to;
};

/* Two rings with a table of one slot each, empty. */
static int open_rings(struct rings *r)
{
	int err = io_uring_queue_init(2, &r->from, 0);

	if (!err)
		err = io_uring_queue_init(2, &r->to, 0);
	if (!err)
		err = io_uring_register_buffers_sparse(&r->from, 1);
	return err ? err : io_uring_register_buffers_sparse(&r->to, 1);
}

static void close_rings(struct rings *r)
{
	if (r->from.ring_fd >= 0)
		io_uring_queue_exit(&r->from);
	if (r->to.ring_fd >= 0)
		io_uring_queue_exit(&r->to);
}

static int set_slot(struct io_uring *ring, void *at, size_t len)
{
	struct iovec iov = {at, len};
	__u64 tag = 0;
	int n = io_uring_register_buffers_update_tag(ring, 0, &iov, &tag, 1);

	return n < 0 ? n : n == 1 ? 0 : -EINVAL;
}

static int clone_slot(struct rings *r)
{
	struct {
		uint32_t src, flags, src_off, dst_off, nr, pad[3];
	} clone = {.src = (uint32_t)r->from.ring_fd, .flags = DST_REPLACE, .nr = 1};

	return syscall(SYS_io_uring_register, r->to.ring_fd, CLONE_BUFFERS, &clone, 1) < 0 ? -errno : 0;
}

static int with_rings(bool clone)
{
	static char page[PAGE] __attribute__((aligned(PAGE)));
	struct rings r = {.from = {.ring_fd = -1}, .to = {.ring_fd = -1}};
	int err = open_rings(&r);

	if (!err)
		err = set_slot(&r.from, page, sizeof(page));
	if (!err)
		err = clone ? clone_slot(&r) : set_slot(&r.from, NULL, 0);
	close_rings(&r);
	return err;
}

static int try_ring(void)
{
	struct io_uring ring;
	int err = io_uring_queue_init(2, &ring, 0);

	if (!err)
		io_uring_queue_exit(&ring);
	return err;
}

static int try_update(void)
{
	return with_rings(false);
}

/* 6.12 clones whole tables only, and not over one that is there. */
static int try_clone(void)
{
	int err = with_rings(true);

	return err == -EBUSY ? -EINVAL : err;
}

/* --------------------------------------------------------------------------------------- others -- */

static int try_notification(void)
{
	uint32_t action = SECCOMP_RET_USER_NOTIF;

	return syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) ? -errno : 0;
}

static int try_pidfd_getfd(void)
{
	int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0), fd, err;

	if (pidfd < 0)
		return -errno;
	fd = (int)syscall(SYS_pidfd_getfd, pidfd, pidfd, 0);
	err = fd < 0 ? -errno : 0;
	if (fd >= 0)
		close(fd);
	close(pidfd);
	return err;
}

static const struct {
	const char *name, *since, *permission;
	int (*try)(void);
	const char *without; /* what that means, and what to do instead... */
	const char *newer;   /* ...or where it's the kernel that lacks it */
} all[] = {
	{"userfaultfd", "CONFIG_USERFAULTFD",
	 "a container's seccomp filter or the user's rights forbid it; grant read and write on "
	 "/dev/userfaultfd",
	 try_uffd,
	 "changes of mappings are told by pinl_munmap, pinl_mremap and pinl_madvise only, and COPY is "
	 "refused",
	 ""},
	{"userfaultfd WP_ASYNC", "Linux 6.7", "see userfaultfd", try_wp_async,
	 "changes of mappings are told by pinl_munmap, pinl_mremap and pinl_madvise only; use these",
	 ", or a newer kernel"},
	{"PAGEMAP_SCAN", "Linux 6.7", "/proc/self/pagemap can't be opened; mount /proc",
	 try_pagemap_scan,
	 "looking for pages that were lost reads the entry of each one, which takes longer",
	 "; a newer kernel is faster"},
	{"PROCMAP_QUERY", "Linux 6.11", "/proc/self/maps can't be opened; mount /proc",
	 try_procmap_query, "mappings are looked up in the text of /proc/self/maps, which takes longer",
	 "; a newer kernel is faster"},
	{"callers of system calls", "CONFIG_HAVE_ARCH_TRACEHOOK",
	 "/proc/self/task/TID/syscall can't be read; mount /proc without hidepid, and let the process "
	 "be "
	 "dumpable",
	 try_callers, "changes of mappings are told, but not held; use the pinl_ calls", ""},
	{"fanotify pre-content events", "Linux 6.14 with CONFIG_FANOTIFY_ACCESS_PERMISSIONS",
	 "they need CAP_SYS_ADMIN in the initial user namespace; run as root, or start pinleased",
	 try_pre_content,
	 "plain changes of files on disk can't be told before, held or refused; use pinl_ftruncate and "
	 "pinl_fallocate",
	 ", pinlease run, or a newer kernel"},
	{"fanotify FAN_REPORT_TID", "Linux 4.20",
	 "with events before changes it needs CAP_SYS_ADMIN; run as root, or start pinleased",
	 try_report_tid, "changes of files can't be held", "; use a newer kernel"},
	{"io_uring", "CONFIG_IO_URING",
	 "kernel.io_uring_disabled or a seccomp filter forbids it; set that to 0 or allow it", try_ring,
	 "there is no ring to lease memory to", "; use a kernel with it"},
	{"io_uring buffer update", "Linux 5.19 for empty tables", "see io_uring", try_update,
	 "memory can't be leased to rings", "; use a newer kernel"},
	{"io_uring buffer clone", "of single ones, Linux 6.13", "see io_uring", try_clone,
	 "COPY is refused for leases on rings, and what a ring wrote to lost pages can't be read; use "
	 "SCRATCH or FAIL",
	 ", or a newer kernel"},
	{"seccomp user notification", "Linux 5.0", "a seccomp filter forbids it; allow it",
	 try_notification,
	 "pinlease run can't hold the changes of the programs it starts; use the pinl_ calls in them",
	 ""},
	{"pidfd_getfd", "Linux 5.6", "a seccomp filter or Yama forbids it; allow it", try_pidfd_getfd,
	 "pinleased can't take the device from a holder that doesn't move",
	 "; use a newer kernel, or KILL"},
};

/* ------------------------------------------------------------------------------------ huge pages -- */

static unsigned long number_in(const char *size, const char *file)
{
	unsigned long n = 0;
	char path[160];
	FILE *f;

	snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/%.60s/%s", size, file);
	f = fopen(path, "re");
	if (f && fscanf(f, "%lu", &n) != 1)
		n = 0;
	if (f)
		fclose(f);
	return n;
}

static void huge_pages(struct doctor *d)
{
	DIR *dir = opendir("/sys/kernel/mm/hugepages");
	char pools[200] = "", sizes[200] = "";
	struct dirent *e;

	while (dir && (e = readdir(dir))) {
		const char *size = e->d_name + strlen("hugepages-");

		if (strncmp(e->d_name, "hugepages-", strlen("hugepages-")))
			continue;
		tool_append(sizes, sizeof(sizes), "%s%s", *sizes ? ", " : "", size);
		if (number_in(e->d_name, "nr_hugepages"))
			tool_append(pools, sizeof(pools), "%s%lu of %s, %lu free", *pools ? "; " : "",
				    number_in(e->d_name, "nr_hugepages"), size,
				    number_in(e->d_name, "free_hugepages"));
	}
	if (dir)
		closedir(dir);
	if (*pools)
		doctor_here(d, "the kernel", "huge page pool", "%s", pools);
	else if (*sizes)
		doctor_missing(d, "the kernel", "huge page pool",
			       "no huge pages are reserved (sizes: %s): hugetlb memory is not tried; "
			       "reserve some by vm.nr_hugepages",
			       sizes);
	else
		doctor_missing(d, "the kernel", "huge page pool",
			       "this kernel was built without CONFIG_HUGETLBFS: there is no hugetlb "
			       "memory; use a kernel with it if you need some");
}

void doctor_kernel(struct doctor *d)
{
	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
		int err = all[i].try();

		if (!err)
			doctor_here(d, "the kernel", all[i].name, "%s", "");
		else if (err == -EPERM && !strncmp(all[i].name, "fanotify", 8) &&
			 given_files(d->sources))
			doctor_missing(d, "the kernel", all[i].name,
				       "%s: this process may not use them (%s), nor has to; pinleased, "
				       "which runs here, holds and refuses changes of files for it",
				       all[i].name, tool_errno_name(err));
		else if (err == -EPERM || err == -EACCES || err == -ENOENT)
			doctor_missing(d, "the kernel", all[i].name, "%s: %s (%s); without it %s",
				       all[i].name, all[i].permission, tool_errno_name(err),
				       all[i].without);
		else if (err == -EINVAL || err == -ENOSYS || err == -ENOTTY || err == -EOPNOTSUPP)
			doctor_missing(d, "the kernel", all[i].name, "this kernel has no %s (%s): %s%s",
				       all[i].name, all[i].since, all[i].without, all[i].newer);
		else
			doctor_missing(d, "the kernel", all[i].name,
				       "%s: trying it failed (%s); without it %s", all[i].name,
				       strerror(-err), all[i].without);
	}
	huge_pages(d);
}
