/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The handle is a descriptor of a device's address space, the same open file as the holder's: a VFIO
 * container or an iommufd. Whoever has it may unmap (a container's before Linux 6.3, or 6.1 as Debian
 * has it by now, only the process that has mapped), and the kernel returns when no transfer reaches the
 * pages any more, begun or not. So there is nothing to wait for, only to verify: that nothing is mapped
 * there now.
 *
 * Always: what could wait is done in a child: for the kernel's lock of the address space, or for who
 * serves the file, if it is another one than the holder says. So that is
 * found out only when it is to be used.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <pinlease/device.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "backend/iommufd_api.h"
#include "os/clock.h"
#include "os/errname.h"
#include "outside_int.h"

#define VFIO_CONTAINER makedev(10, 196)
#define LOOK_NS	       20000000u /* one of several: others have their turn */

/* -------------------------------------------------------------------------------------- open -- */

/* The device file has no fixed number, and this process may see no /dev. */
static dev_t iommufd_number(void)
{
	FILE *f = fopen("/sys/class/misc/iommu/dev", "re");
	unsigned major = 0, minor = 0;

	if (f && fscanf(f, "%u:%u", &major, &minor) != 2)
		major = minor = 0;
	if (f)
		fclose(f);
	return makedev(major, minor);
}

static const char *name_of(const struct pl_outside *o)
{
	return o->kind == PL_OUTSIDE_VFIO    ? "VFIO container"
	       : o->kind == PL_OUTSIDE_VERBS ? "RDMA context"
					     : "iommufd";
}

uint64_t pl_outside_device(enum pl_outside_kind kind)
{
	if (kind == PL_OUTSIDE_RING || kind == PL_OUTSIDE_VERBS)
		return 0;
	return kind == PL_OUTSIDE_VFIO ? VFIO_CONTAINER : iommufd_number();
}

/* Of another file than it is said to be no more is asked than this. */
bool pl_outside_is_of(enum pl_outside_kind kind, uint64_t device, int fd)
{
	struct statx st;
	dev_t number;

	if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &st) || !S_ISCHR(st.stx_mode))
		return false;
	number = makedev(st.stx_rdev_major, st.stx_rdev_minor);
	return kind == PL_OUTSIDE_VERBS ? pl_verbs_is_device(number) : number == device;
}

int pl_space_explain(const struct pl_outside *o, int err)
{
	if (err == -EBADF)
		return pinl_set_error(err, "descriptor %d of process %d is no %s", o->remote_fd, o->pid,
				      name_of(o));
	if (err == -EPERM)
		return pinl_set_error(
			err,
			"can't take a descriptor from process %d; that needs CAP_SYS_PTRACE and "
			"kernel.yama.ptrace_scope below 3",
			o->pid);
	return pinl_set_error(err, "can't take descriptor %d from process %d: %s", o->remote_fd, o->pid,
			      pl_errname(-err));
}

/* It has a name in a file system, and so may be one. Asking the file itself could take for ever. */
static bool is_named(int fd)
{
	char link[32], name[2] = "";

	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	return readlink(link, name, sizeof name) > 0 && name[0] == '/';
}

int pl_space_take(struct pl_outside *o)
{
	o->ring = syscall(SYS_pidfd_getfd, o->pidfd, o->remote_fd, 0);
	if (o->ring < 0)
		return pl_space_explain(o, -errno);
	return is_named(o->ring) ? 0 : pl_space_explain(o, -EBADF);
}

/* ------------------------------------------------------------------------------------- force -- */

struct space {
	int fd;
	enum pl_outside_kind kind;
	dev_t number;	  /* of the device file that fd must be of */
	uint32_t ioas[2]; /* 0: none */
	uint64_t iova, len;
};

/* The kernel's answer to such numbers is EINVAL, whether anything is there or not. */
int pl_outside_numbers(enum pl_outside_kind kind, const struct pl_outside_buf *b)
{
	uint64_t len = b->end - b->start;

	if (kind == PL_OUTSIDE_VERBS)
		return pl_verbs_built();
	if (kind != PL_OUTSIDE_VFIO && kind != PL_OUTSIDE_IOMMUFD)
		return 0;
	if (b->end > b->start && !((b->tag | len) % PL_PAGE) && b->tag + (len - 1) >= b->tag)
		return 0;
	return pinl_set_error(-EINVAL,
			      "%llu bytes at %#llx can't be a lease's device addresses: they are whole "
			      "pages, and don't go beyond the last one",
			      (unsigned long long)len, (unsigned long long)b->tag);
}

static struct space space_of(const struct pl_outside *o, const struct pl_outside_buf *b)
{
	return (struct space){.fd = o->ring,
			      .kind = o->kind,
			      .number = pl_outside_device(o->kind),
			      .ioas = {b->slot, b->twin},
			      .iova = b->tag,
			      .len = b->end - b->start};
}

static int unmap_type1(const struct space *s)
{
	struct vfio_iommu_type1_dma_unmap u = {.argsz = sizeof u, .iova = s->iova, .size = s->len};

	return ioctl(s->fd, VFIO_IOMMU_UNMAP_DMA, &u) ? -errno : 0;
}

/* Is there anything? A mapping of memory that this process hasn't got can't be made; where there is one
 * already the kernel says that first. */
static bool has_type1(const struct space *s)
{
	struct vfio_iommu_type1_dma_map m = {.argsz = sizeof m,
					     .flags = VFIO_DMA_MAP_FLAG_READ,
					     .vaddr = 0,
					     .iova = s->iova,
					     .size = s->len};

	if (!ioctl(s->fd, VFIO_IOMMU_MAP_DMA, &m)) { /* then it was nothing, and goes again */
		unmap_type1(s);
		return false;
	}
	return errno == EEXIST || errno == EBUSY || errno == EINTR;
}

static int unmap_ioas(const struct space *s, uint32_t ioas)
{
	struct pl_iommu_ioas_unmap u = {
		.size = sizeof u, .ioas_id = ioas, .iova = s->iova, .length = s->len};

	return ioctl(s->fd, PL_IOMMU_IOAS_UNMAP, &u) ? -errno : 0;
}

/* A copy of what is there onto itself can't be made; of nothing, neither. */
static bool has_page(const struct space *s, uint32_t ioas, uint64_t iova)
{
	struct pl_iommu_ioas_copy c = {.size = sizeof c,
				       .flags = PL_IOMMU_FIXED_IOVA | PL_IOMMU_READABLE,
				       .dst_ioas_id = ioas,
				       .src_ioas_id = ioas,
				       .length = PL_PAGE,
				       .dst_iova = iova,
				       .src_iova = iova};

	return ioctl(s->fd, PL_IOMMU_IOAS_COPY, &c) && errno == EEXIST;
}

static bool has_ioas(const struct space *s, uint32_t ioas)
{
	return has_page(s, ioas, s->iova) || has_page(s, ioas, s->iova + s->len - PL_PAGE);
}

static bool is_mapped(const struct space *s)
{
	if (s->kind == PL_OUTSIDE_VFIO)
		return has_type1(s);
	return has_ioas(s, s->ioas[0]) || (s->ioas[1] && has_ioas(s, s->ioas[1]));
}

/* What counts is what is there afterwards, whoever has done it. */
static int unmap_child(const void *arg)
{
	const struct space *s = arg;
	int err;

	if (!pl_outside_is_of(s->kind, s->number, s->fd))
		return -EBADF;
	if (s->kind == PL_OUTSIDE_VERBS)
		return pl_verbs_take(s->fd, s->ioas[0], s->ioas[1], s->iova, s->len);
	err = s->kind == PL_OUTSIDE_VFIO ? unmap_type1(s) : unmap_ioas(s, s->ioas[0]);
	if (s->kind == PL_OUTSIDE_IOMMUFD && s->ioas[1]) /* second: what it has came from the first */
		unmap_ioas(s, s->ioas[1]);
	if (!is_mapped(s))
		return 0;
	return err ? err : -EPERM;
}

static int explain(const struct pl_outside *o, int err, const struct pl_outside_buf *b)
{
	if (err == -EBADF)
		return pl_space_explain(o, err);
	if (o->kind == PL_OUTSIDE_VERBS)
		return pl_verbs_explain(o, err, b);
	if (err == -ETIMEDOUT)
		return pinl_set_error(
			err,
			"the %s of process %d was locked until the deadline, by a call that waits: "
			"device addresses from %#llx on may still be mapped; it can only be killed",
			name_of(o), o->pid, (unsigned long long)b->tag);
	if (err == -EPERM)
		return pinl_set_error(err,
				      "this kernel unmaps from a VFIO container only for the process "
				      "that has mapped (Linux 6.3 does for all): process %d can only be "
				      "killed",
				      o->pid);
	return pinl_set_error(err, "can't unmap device addresses from %#llx on of process %d: %s",
			      (unsigned long long)b->tag, o->pid, pl_errname(-err));
}

int pl_space_empty(struct pl_outside *o, struct pl_outside_buf *b, uint64_t deadline_ns)
{
	struct space s = space_of(o, b);
	int err = pl_outside_numbers(o->kind, b);

	if (err)
		return err;
	err = pl_outside_run(&o->child, o->ring, unmap_child, &s, deadline_ns);
	b->pending = err == -ETIMEDOUT; /* it may happen yet */
	return err ? explain(o, err, b) : 0;
}

/* Unmapped is verified. Where that wasn't to be had in time it is tried again. */
int pl_space_look(struct pl_outside *o, struct pl_outside_buf *b, uint64_t deadline_ns)
{
	uint64_t until = pl_clock_ns() + LOOK_NS;
	int err = b->pending ? pl_space_empty(o, b, until < deadline_ns ? until : deadline_ns) : 0;

	return err == -ETIMEDOUT && pl_clock_ns() < deadline_ns ? -EAGAIN : err;
}

/* The process is dead or has been killed; that others have the address space doesn't matter. */
int pl_space_gone(struct pl_outside *o, const struct pl_outside_buf *bufs, int n, uint64_t deadline_ns)
{
	int err = 0;

	for (int i = 0; i < n && !err; i++) {
		struct pl_outside_buf b = bufs[i];

		b.pending = true;
		while ((err = pl_space_look(o, &b, deadline_ns)) == -EAGAIN)
			pl_outside_pause(deadline_ns);
	}
	o->gone = !err;
	return err;
}
