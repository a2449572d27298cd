/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Other pages at the same addresses, in one step for the devices: they are attached to a twin of their
 * address space that differs in that lease only, and the kernel exchanges the table under a device
 * without a moment in which there is none.
 *
 *	         A: program's             twin
 *	         a  b  own   <- devices                        begin
 *	         a  b  own a'<- devices                        new pages for a, pinned: aside
 *	         a  b  own a'<- devices   a' b  own            copied
 *	            b  own a'             a' b  own <- devices attached, a is let go
 *	         a' b  own a'<- devices   (empty)              and back, so that A stays the program's
 *	         a' b  own   <- devices
 *
 * What is copied shares its pins, so nothing is pinned anew that isn't. Who adds or removes other leases
 * waits from the copying on; not for the pinning, which may wait for a page. Who can't get in soon (a
 * map that hangs in a page fault) is not waited for: then in two steps, as without devices. Without
 * addresses to spare the new pages are pinned where they go to.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "backend/iommufd.h"
#include "backend/iommufd_api.h"
#include "os/errname.h"

#define WAIT_MS 20

static int make_twin(struct iommufd_dev *d)
{
	struct pl_iommu_ioas_alloc alloc = {.size = sizeof alloc};

	if (ioctl(d->fd, PL_IOMMU_IOAS_ALLOC, &alloc))
		return -errno;
	d->twin = alloc.out_ioas_id;
	return 0;
}

/* The number may be another file's by now. */
static bool is_same(const struct pl_attached *a)
{
	struct stat st;

	return !fstat(a->fd, &st) && st.st_dev == a->dev && st.st_ino == a->ino && st.st_rdev == a->rdev;
}

static int attach(const struct iommufd_dev *d, unsigned i, uint32_t ioas)
{
	struct pl_vfio_attach_pt pt = {.argsz = sizeof pt, .pt_id = ioas};

	if (!is_same(&d->devices[i]))
		return -EBADF;
	return ioctl(d->devices[i].fd, PL_VFIO_ATTACH_PT, &pt) ? -errno : 0;
}

/* All or none: which says whether those that had gone could be brought back. */
static int attach_all(const struct iommufd_dev *d, uint32_t to, uint32_t from, bool *none)
{
	unsigned i = 0;
	int err = 0;

	for (; i < d->nr_devices && !err; i++)
		err = attach(d, i, to);
	*none = err;
	for (i = err ? i - 1 : 0; i > 0; i--)
		*none &= !attach(d, i - 1, from);
	return err;
}

/* Is it attached to this address space? A device that is may be attached to it again. */
static int check_device(const struct iommufd_dev *d, unsigned i)
{
	int err = attach(d, i, d->ioas);

	return err ? pinl_set_error(-EINVAL,
				    "descriptor %d can't be attached to address space %u (%s): devices "
				    "are descriptors of /dev/vfio/devices/*, bound to this iommufd "
				    "(VFIO_DEVICE_BIND_IOMMUFD)",
				    d->devices[i].fd, d->ioas, pl_errname(-err))
		   : 0;
}

static void note(struct pl_attached *a, int fd)
{
	struct stat st = {0};

	fstat(fd, &st); /* if that fails, so will the attaching */
	*a = (struct pl_attached){fd, st.st_dev, st.st_ino, st.st_rdev};
}

int pl_switch_open(struct iommufd_dev *d, const struct pinl_iommufd_arg *arg)
{
	int err = 0;

	if (!arg->nr_devices)
		return 0;
	if (!arg->devices || (arg->nr_own && !arg->own))
		return pinl_set_error(-EINVAL, "devices or mappings are announced, but not there");
	d->devices = calloc(arg->nr_devices, sizeof *d->devices);
	d->own = calloc(arg->nr_own ? arg->nr_own : 1, sizeof *d->own);
	if (!d->devices || !d->own)
		return pinl_set_error(-ENOMEM, "out of memory for a device");
	for (unsigned i = 0; i < arg->nr_devices; i++)
		note(&d->devices[i], arg->devices[i]);
	for (unsigned i = 0; i < arg->nr_own; i++)
		d->own[i] = (struct pl_iova_range){arg->own[i].first, arg->own[i].last};
	d->nr_own = arg->nr_own;
	for (unsigned i = 0; i < arg->nr_devices && !err; i++)
		err = check_device(d, i);
	if (err)
		return err;
	err = make_twin(d);
	if (err)
		return pinl_set_error(err, "can't make a second address space: %s", pl_errname(-err));
	d->nr_devices = arg->nr_devices;
	return 0;
}

void pl_switch_close(struct iommufd_dev *d)
{
	struct pl_iommu_destroy destroy = {.size = sizeof destroy, .id = d->twin};

	pl_switch_back(d);
	if (d->twin) /* if devices are left on it, it goes with them */
		ioctl(d->fd, PL_IOMMU_DESTROY, &destroy);
	free(d->devices);
	free(d->own);
}

static void empty_twin(struct iommufd_dev *d)
{
	struct pl_iommu_ioas_unmap all = {
		.size = sizeof all, .ioas_id = d->twin, .iova = 0, .length = UINT64_MAX};

	ioctl(d->fd, PL_IOMMU_IOAS_UNMAP, &all);
}

int pl_switch_back(struct iommufd_dev *d)
{
	bool none;
	int err;

	if (!d->on_twin)
		return 0;
	err = attach_all(d, d->ioas, d->twin, &none);
	if (err)
		return pinl_set_error(err, "the devices can't be attached to address space %u again: %s",
				      d->ioas, pl_errname(-err));
	atomic_store(&d->on_twin, false);
	empty_twin(d);
	return 0;
}

/* A mapping for reading only doesn't allow a copy for writing. */
static int copy(const struct iommufd_dev *d, uint32_t from, uint32_t to, uint64_t iova, size_t len)
{
	struct pl_ioas_place src = {from, iova}, dst = {to, iova};
	int err = pl_ioas_copy(d->fd, src, dst, len, true);

	return err == -EPERM ? pl_ioas_copy(d->fd, src, dst, len, false) : err;
}

struct copying {
	struct iommufd_dev *d;
	uint64_t but;
};

static int copy_lease(void *arg, uint64_t iova, size_t len, bool writable)
{
	struct copying *c = arg;

	int err;

	if (iova == c->but)
		return 0;
	err = pl_ioas_copy(c->d->fd, (struct pl_ioas_place){c->d->ioas, iova},
			   (struct pl_ioas_place){c->d->twin, iova}, len, writable);
	return err == -ENOENT ? 0 : err; /* one that is just coming or going */
}

/* What is exchanged: where the new pages go to, and where they are already, if they are. */
struct exchange {
	const struct pinl_mapping *m;
	uint64_t iova, aside;
	bool pinned;
};

static int map_new(struct iommufd_dev *d, const struct exchange *x)
{
	struct pl_ioas_place from = {d->ioas, x->aside}, to = {d->twin, x->iova};

	if (!x->pinned)
		return pl_ioas_map(d->fd, d->twin, x->iova, x->m);
	return pl_ioas_copy(d->fd, from, to, x->m->end - x->m->start, x->m->flags & PINL_WRITE);
}

/* Everything but the lease at x->iova, and for that its new pages. */
static int fill_twin(struct iommufd_dev *d, const struct exchange *x)
{
	struct copying c = {d, x->iova};
	int err = pl_dma_each(&d->dma, copy_lease, &c);

	for (unsigned i = 0; i < d->nr_own && !err; i++)
		err = copy(d, d->ioas, d->twin, d->own[i].first, d->own[i].last - d->own[i].first + 1);
	return err ? err : map_new(d, x);
}

/* The devices are on the twin: bring the program's address space up to it. */
static int renew(struct iommufd_dev *d, const struct exchange *x)
{
	struct pl_ioas_place from = {d->twin, x->iova}, to = {d->ioas, x->iova};
	size_t len = x->m->end - x->m->start;
	int err = pl_ioas_unmap(d->fd, d->ioas, x->iova, len);

	if (!err)
		err = pl_ioas_copy(d->fd, from, to, len, x->m->flags & PINL_WRITE);
	if (err)
		return pinl_set_error(err, "IOMMU_IOAS_COPY at device address %#llx: %s",
				      (unsigned long long)x->iova, pl_errname(-err));
	return pl_switch_back(d);
}

static int exchange(struct iommufd_dev *d, const struct exchange *x)
{
	bool none = true;
	int err = fill_twin(d, x);

	if (!err)
		err = attach_all(d, d->twin, d->ioas, &none);
	atomic_store(&d->on_twin, !none || !err);
	if (!err)
		return renew(d, x);
	if (!none)
		return pinl_set_error(err,
				      "a device can't be attached to the address space that "
				      "others have been given: %s",
				      pl_errname(-err));
	empty_twin(d);
	return -EOPNOTSUPP; /* in two steps it may do, and says what is wrong */
}

/* 0 also where there is no room for it. */
static int pin_aside(struct iommufd_dev *d, struct exchange *x)
{
	int err;

	if (pl_dma_aside(&d->dma, x->m, &x->aside))
		return 0;
	pthread_rwlock_rdlock(&d->lock);
	err = pl_ioas_map(d->fd, d->ioas, x->aside, x->m);
	pthread_rwlock_unlock(&d->lock);
	x->pinned = !err;
	if (err)
		pl_dma_aside_end(&d->dma);
	return err;
}

/* Unless it can't be unmapped: then the addresses are lost, as those of a lease. */
static void end_aside(struct iommufd_dev *d, const struct exchange *x)
{
	int err;

	if (!x->pinned)
		return;
	pthread_rwlock_rdlock(&d->lock);
	err = pl_ioas_unmap(d->fd, d->ioas, x->aside, x->m->end - x->m->start);
	pthread_rwlock_unlock(&d->lock);
	if (!err)
		pl_dma_aside_end(&d->dma);
}

static int exchange_soon(struct iommufd_dev *d, const struct exchange *x)
{
	struct timespec until;
	int err;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += WAIT_MS * 1000000;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	if (pthread_rwlock_clockwrlock(&d->lock, CLOCK_MONOTONIC, &until))
		return -EOPNOTSUPP;
	err = d->on_twin ? -EOPNOTSUPP : exchange(d, x);
	pthread_rwlock_unlock(&d->lock);
	return err;
}

int pl_switch_exchange(void *table, uint64_t iova, const struct pinl_mapping *m)
{
	struct exchange x = {m, iova, 0, false};
	struct iommufd_dev *d = table;
	int err = -EOPNOTSUPP;

	if (!d->nr_devices || pthread_mutex_trylock(&d->exchanging))
		return err;
	if (!atomic_load(&d->on_twin) && !pin_aside(d, &x)) {
		err = exchange_soon(d, &x);
		end_aside(d, &x);
	}
	pthread_mutex_unlock(&d->exchanging);
	return err;
}
