/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: `mapped` is false only when the kernel has said that nothing is at the lease's addresses. A
 * lease's addresses are given back only then, and its second pins are let go only by drop and unmap, or
 * for those of the new pages. Every node of the space is the `iova` of a struct pl_dma_map.
 */
#include "backend/dma.h"

#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "core/sentence.h"
#include "os/errname.h"

#define PAGE 4096ul

struct pl_dma_map {
	struct pl_iova iova; /* first: the list's */
	struct pl_dma_map *next;
	bool writable;
	atomic_bool mapped;
	bool stopped; /* to stay unmapped until retarget */
	struct pl_second second;
	struct pl_pin pins[]; /* of second */
};

/* -------------------------------------------------------------------------------- open and close -- */

static int no_room(const struct pl_dma_setup *s)
{
	if (s->first || s->last)
		return pinl_set_error(-EINVAL,
				      "no page of [%#llx, %#llx] is an address that the device's IOMMU "
				      "translates; it has %#llx to %#llx, with gaps",
				      (unsigned long long)s->first, (unsigned long long)s->last,
				      s->nr_ranges ? (unsigned long long)s->ranges[0].first : 0,
				      s->nr_ranges ? (unsigned long long)s->ranges[s->nr_ranges - 1].last
						   : 0);
	return pinl_set_error(-ENODEV, "the device's IOMMU translates no addresses");
}

/* ------------------------------------------------------------------------------ what is left -- */

static void give_iova(struct pl_dma *d, struct pl_dma_map *map)
{
	pthread_mutex_lock(&d->lock);
	pl_iova_give(&d->space, &map->iova);
	pthread_mutex_unlock(&d->lock);
}

static struct pl_dma_map *take_left(struct pl_dma *d)
{
	struct pl_dma_map *map;

	pthread_mutex_lock(&d->lock);
	map = d->left;
	if (map)
		d->left = map->next;
	if (map && !d->left)
		d->left_tail = &d->left;
	if (map)
		atomic_fetch_sub(&d->n_left, 1);
	pthread_mutex_unlock(&d->lock);
	return map;
}

static void put_left(struct pl_dma *d, struct pl_dma_map *map)
{
	pthread_mutex_lock(&d->lock);
	map->next = NULL;
	*d->left_tail = map;
	d->left_tail = &map->next;
	atomic_fetch_add(&d->n_left, 1);
	pthread_mutex_unlock(&d->lock);
}

/* Unmap what earlier couldn't be, at most so many. No lock: who unmaps may need one that others take
 * before this. */
static void settle(struct pl_dma *d, unsigned most)
{
	unsigned n = atomic_load(&d->n_left);
	struct pl_dma_map *map;

	for (n = n < most ? n : most; n && (map = take_left(d)); n--) {
		if (d->ops->unmap(d->table, map->iova.first, map->iova.last - map->iova.first + 1)) {
			put_left(d, map);
			continue;
		}
		give_iova(d, map);
		free(map);
	}
}

int pl_dma_open(struct pl_dma *d, const struct pl_dma_setup *s, struct pinl_device_info *info)
{
	bool all = !s->first && !s->last;
	int err;

	*d = (struct pl_dma){.ops = s->ops, .table = s->table};
	d->left_tail = &d->left;
	if (s->first > s->last)
		return pinl_set_error(-EINVAL, "the range of addresses ends before it begins");
	d->aside = calloc(1, sizeof *d->aside);
	if (!d->aside)
		return pinl_set_error(-ENOMEM, "out of memory for a device");
	err = pl_iova_open(&d->space, s->ranges, s->nr_ranges, all ? PAGE : s->first,
			   all ? UINT64_MAX : s->last);
	if (err)
		return err == -ENOSPC ? no_room(s) : pinl_set_error(err, "out of memory for a device");
	if (s->flags & PINL_DMA_NO_READ)
		d->readback.why_not = "it was opened with PINL_DMA_NO_READ";
	else
		pl_readback_open(&d->readback, "with PINL_DMA_NO_READ");
	pthread_mutex_init(&d->lock, NULL);
	info->device_class = PINL_DEV_REVOCABLE;
	info->caps = PINL_DEVCAP_PIN | PINL_DEVCAP_RETARGET | (d->readback.pins ? PINL_DEVCAP_READ : 0) |
		     (d->ops->import ? PINL_DEVCAP_IMPORT : 0);
	info->why = d->readback.why_not;
	return 0;
}

void pl_dma_close(struct pl_dma *d)
{
	settle(d, UINT_MAX);
	while (d->left) {
		struct pl_dma_map *map = d->left;

		d->left = map->next;
		free(map);
	}
	pl_readback_close(&d->readback);
	if (d->space.ranges)
		pthread_mutex_destroy(&d->lock);
	pl_iova_close(&d->space);
	free(d->aside);
}

/* ----------------------------------------------------------------------------------------- leases -- */

int pl_dma_pin_error(int err, const struct pinl_mapping *m, uint64_t iova, const char *what)
{
	size_t len = m->end - m->start;
	struct rlimit rl = {0};

	switch (err) {
	case -EFAULT:
	case -EOPNOTSUPP:
		return pinl_set_error(
			-EOPNOTSUPP,
			"%s can't pin this memory: a read-only mapping leased for writing, or one that "
			"the kernel pins for no device (MAP_SHARED of files on ext4, XFS, btrfs since "
			"6.5, DAX, secret memory); use tmpfs, memfd, anonymous or MAP_PRIVATE memory, "
			"or "
			"PINL_STAGE to lease a shared file mapping by a staged copy",
			what);
	case -ENOMEM:
		getrlimit(RLIMIT_MEMLOCK, &rl);
		return pinl_set_error(
			err,
			"pinning %zu KiB exceeds RLIMIT_MEMLOCK (%lu KiB), or memory is out; raise it "
			"(ulimit -l, LimitMEMLOCK=) or give CAP_IPC_LOCK",
			len >> 10, (unsigned long)rl.rlim_cur >> 10);
	case -EEXIST:
		return pinl_set_error(
			err,
			"device addresses from %#llx on have a mapping that is none of a lease's; open "
			"the device with a range of addresses that the program itself leaves alone",
			(unsigned long long)iova);
	case -ENOSPC:
		return pinl_set_error(err,
				      "%s: the kernel's limit of mappings in one address space is "
				      "reached (dma_entry_limit of vfio_iommu_type1); end a lease",
				      what);
	default:
		return pinl_set_error(err, "%s of %zu KiB at device address %#llx: %s", what, len >> 10,
				      (unsigned long long)iova, pl_errname(-err));
	}
}

static int try_iova(struct pl_dma *d, struct pl_dma_map *map, const struct pinl_mapping *m)
{
	int err;

	pthread_mutex_lock(&d->lock);
	err = pl_iova_take(&d->space, m->start, m->end - m->start, &map->iova);
	pthread_mutex_unlock(&d->lock);
	return err;
}

static int take_iova(struct pl_dma *d, struct pl_dma_map *map, const struct pinl_mapping *m)
{
	int err;

	settle(d, 1);
	err = try_iova(d, map, m);
	if (err) {
		settle(d, UINT_MAX);
		err = try_iova(d, map, m);
	}
	return err ? pinl_set_error(
			     err,
			     "no %zu KiB in one piece are left of the device addresses for leases; "
			     "end a lease, or open the device with a larger range",
			     (m->end - m->start) >> 10)
		   : 0;
}

static struct pl_dma_map *new_map(const struct pl_dma *d, const struct pinl_mapping *m)
{
	size_t nr = pl_second_pins(&d->readback, m->end - m->start);
	struct pl_dma_map *map = calloc(1, sizeof *map + nr * sizeof *map->pins);

	if (!map) {
		pinl_set_error(-ENOMEM, "out of memory for a lease");
		return NULL;
	}
	map->writable = m->flags & PINL_WRITE;
	pl_second_init(&map->second, map->pins, nr);
	return map;
}

int pl_dma_map(void *dev, struct pinl_mapping *m, struct pinl_addr *addrs)
{
	struct pl_dma *d = dev;
	struct pl_dma_map *map = new_map(d, m);
	int err;

	if (!map)
		return -ENOMEM;
	err = take_iova(d, map, m);
	if (err) {
		free(map);
		return err;
	}
	err = d->ops->map(d->table, map->iova.first, m);
	map->mapped = !err;
	if (!err)
		err = pl_second_hold(&d->readback, &map->second, m);
	m->priv = map;
	if (err) {
		struct pinl_mapping failed = {.start = m->start, .end = m->end, .priv = map};
		struct pl_sentence why;

		pl_sentence_keep(&why);
		pl_dma_unmap(d, &failed);
		pl_dma_forget(d, &failed);
		pl_sentence_again(&why);
		return err;
	}
	m->key = 0;
	for (size_t i = 0; addrs && i < (m->end - m->start) / PAGE; i++)
		addrs[i] = (struct pinl_addr){.addr = map->iova.first + i * PAGE};
	return 0;
}

int pl_dma_stop(void *dev, struct pinl_mapping *m)
{
	struct pl_dma *d = dev;
	struct pl_dma_map *map = m->priv;
	int err = 0;

	map->stopped = true;
	if (map->mapped)
		err = d->ops->unmap(d->table, map->iova.first, m->end - m->start);
	map->mapped = err != 0;
	return err;
}

/* There is something to wait for only where the kernel wouldn't unmap; more than ask again can't be
 * done. */
int pl_dma_drain(void *dev, struct pinl_mapping *m, uint64_t deadline_ns)
{
	struct pl_dma *d = dev;
	struct pl_dma_map *map = m->priv;

	return map->stopped && pl_dma_stop(d, m) ? -ETIMEDOUT : 0;
}

void pl_dma_unmap(void *dev, struct pinl_mapping *m)
{
	struct pl_dma *d = dev;
	struct pl_dma_map *map = m->priv;

	pl_dma_stop(d, m);
	pl_second_drop(&d->readback, &map->second);
	if (!map->mapped)
		give_iova(d, map);
	if (d->readback.pins)
		pl_pins_settle(d->readback.pins);
}

void pl_dma_forget(void *dev, struct pinl_mapping *m)
{
	struct pl_dma *d = dev;
	struct pl_dma_map *map = m->priv;

	settle(d, 1);
	if (map->mapped)
		put_left(d, map);
	else
		free(map);
}

void pl_dma_drop(void *dev, struct pinl_mapping *m)
{
	struct pl_dma *d = dev;
	struct pl_dma_map *map = m->priv;

	if (!map->mapped)
		pl_second_drop(&d->readback, &map->second);
}

int pl_dma_read(void *dev, struct pinl_mapping *m, size_t offset, size_t len, void *buf)
{
	struct pl_dma *d = dev;
	struct pl_dma_map *map = m->priv;

	return pl_second_read(&d->readback, &map->second, offset, len, buf);
}

static int move(struct pl_dma *d, struct pl_dma_map *map, const struct pinl_mapping *m)
{
	int err = -EOPNOTSUPP;

	if (map->mapped && d->ops->exchange)
		err = d->ops->exchange(d->table, map->iova.first, m);
	if (err != -EOPNOTSUPP)
		return err;
	err = map->mapped ? d->ops->unmap(d->table, map->iova.first, m->end - m->start) : 0;
	if (err)
		return err;
	map->mapped = false;
	return d->ops->map(d->table, map->iova.first, m);
}

/* Where the new pages can't be held a second time the device goes on all the same, but can't be read any
 * more: a later COPY ends in FAIL. */
int pl_dma_retarget(void *dev, struct pinl_mapping *m)
{
	struct pl_dma *d = dev;
	struct pl_dma_map *map = m->priv;
	bool prepared = pl_second_prepare(&d->readback, &map->second, m);
	int err = move(d, map, m);

	if (err) {
		pl_second_undo(&d->readback, &map->second, prepared);
		return err;
	}
	map->mapped = true;
	map->stopped = false;
	pl_second_switch(&d->readback, &map->second, prepared);
	return 0;
}

/* ---------------------------------------------------------------------------------- device memory -- */

/* Of a lease that isn't made after all. */
static void give_up(struct pl_dma *d, struct pl_dma_map *map)
{
	give_iova(d, map);
	free(map);
}

int pl_dma_import(void *dev, struct pinl_mapping *m, const struct pinl_import *from,
		  struct pinl_addr *addrs)
{
	struct pl_dma *d = dev;
	struct pl_dma_map *map = calloc(1, sizeof *map); /* no second pins: nothing here is pinned */
	int err;

	if (!map)
		return pinl_set_error(-ENOMEM, "out of memory for a lease");
	err = take_iova(d, map, m);
	if (err) {
		free(map);
		return err;
	}
	err = d->ops->import(d->table, map->iova.first, m, from);
	if (err) {
		give_up(d, map);
		return err;
	}
	map->writable = m->flags & PINL_WRITE;
	map->mapped = true;
	m->priv = map;
	m->key = 0;
	for (size_t i = 0; addrs && i < (m->end - m->start) / PAGE; i++)
		addrs[i] = (struct pinl_addr){.addr = map->iova.first + i * PAGE};
	return 0;
}

/* In pieces, since what is less than the lease is mapped again and again. */
int pl_dma_dummy(void *dev, struct pinl_mapping *m, void *pages, size_t len)
{
	struct pl_dma *d = dev;
	struct pl_dma_map *map = m->priv;
	size_t size = m->end - m->start;
	int err = map->mapped ? d->ops->unmap(d->table, map->iova.first, size) : 0;

	if (err)
		return err;
	map->mapped = false;
	for (size_t at = 0; at < size && !err; at += len) {
		struct pinl_mapping piece = {.start = (uintptr_t)pages, .flags = m->flags};

		piece.end = piece.start + (size - at < len ? size - at : len);
		err = d->ops->map(d->table, map->iova.first + at, &piece);
		map->mapped |= !err;
	}
	map->stopped = false;
	if (err)
		pl_dma_stop(d, m);
	return err;
}

int pl_dma_each(struct pl_dma *d, int (*fn)(void *arg, uint64_t iova, size_t len, bool writable),
		void *arg)
{
	struct pl_iova *node;
	int err = 0;

	pthread_mutex_lock(&d->lock);
	for (node = d->space.taken.next; node != &d->space.taken && !err; node = node->next) {
		struct pl_dma_map *map = (struct pl_dma_map *)node;

		if (map->mapped)
			err = fn(arg, node->first, node->last - node->first + 1, map->writable);
	}
	pthread_mutex_unlock(&d->lock);
	return err;
}

int pl_dma_aside(struct pl_dma *d, const struct pinl_mapping *m, uint64_t *iova)
{
	int err = d->aside_used ? -ENOSPC : try_iova(d, d->aside, m);

	if (err)
		return err;
	d->aside_used = true;
	*iova = d->aside->iova.first;
	return 0;
}

void pl_dma_aside_end(struct pl_dma *d)
{
	give_iova(d, d->aside);
	d->aside_used = false;
}

uint64_t pl_dma_iova(const struct pinl_mapping *m)
{
	return ((const struct pl_dma_map *)m->priv)->iova.first;
}
