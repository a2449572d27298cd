/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The soft device on another device's memory: the engine copies by a mapping of the exporter's handle,
 * its own if it can have one, else the exporter's.
 *
 * Invariants: device memory is never touched by loads and stores, which would be SIGBUS where it has
 * been switched off; data passes through a memfd by read(2) and write(2), and EFAULT says that it is
 * gone. What the engine is on is `at` of the moment it began the page, so who changes `at` waits until
 * the transfer that began on another isn't busy. The own mapping goes only after that.
 */
#include "backend/soft_engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int map_handle(struct pl_soft_far *far, size_t len, int writable, const struct pinl_import *from)
{
	int prot = PROT_READ | (writable ? PROT_WRITE : 0);
	void *own = from->fd < 0 ? MAP_FAILED
				 : mmap(NULL, len, prot, MAP_SHARED, from->fd, (off_t)from->offset);
	int err = from->fd < 0 ? ENXIO : errno;

	if (own != MAP_FAILED) {
		madvise(own, len, MADV_DONTFORK);
		far->own = own;
	} else if (!from->addr) {
		return pinl_set_error(
			-EOPNOTSUPP,
			"the handle of %s can't be mapped here, and the soft device has no "
			"other way to it: %s",
			from->name, strerror(err));
	}
	far->own_len = far->len = len;
	far->at = far->own ? far->own : from->addr;
	return 0;
}

/* One for the device, for its engine. */
static int need_bounce(struct pl_soft *s)
{
	int fd = memfd_create("pinlease-bounce", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)s->page)) {
		int err = -errno;

		if (fd >= 0)
			close(fd);
		return pinl_set_error(err, "the soft device needs a descriptor to import memory: %s",
				      strerror(-err));
	}
	pthread_mutex_lock(&s->lock);
	if (s->bounce < 0) {
		s->bounce = fd;
		fd = -1;
	}
	pthread_mutex_unlock(&s->lock);
	if (fd >= 0)
		close(fd);
	return 0;
}

int pl_soft_import(void *dev, struct pinl_mapping *m, const struct pinl_import *from,
		   struct pinl_addr *addrs)
{
	struct pl_soft *s = dev;
	size_t pages = (m->end - m->start) / s->page;
	struct pl_soft_map *map = calloc(1, sizeof *map + pages);
	struct pl_soft_far *far = calloc(1, sizeof *far);
	int err = map && far ? need_bounce(s) : pinl_set_error(-ENOMEM, "out of memory");

	if (!err)
		err = map_handle(far, m->end - m->start, m->flags & PINL_WRITE, from);
	if (err) {
		free(map);
		free(far);
		return err;
	}
	map->start = m->start;
	map->end = m->end;
	map->writable = !!(m->flags & PINL_WRITE);
	map->far = far;
	pl_soft_insert(s, map);
	for (size_t i = 0; addrs && i < pages; i++)
		addrs[i] = (struct pinl_addr){.addr = map->daddr + i * s->page};
	m->key = 0;
	m->priv = map;
	return 0;
}

int pl_soft_dummy(void *dev, struct pinl_mapping *m, void *pages, size_t len)
{
	struct pl_soft *s = dev;
	struct pl_soft_map *map = m->priv;

	pthread_mutex_lock(&s->lock);
	map->far->at = pages;
	map->far->len = len;
	map->stopped = 0;
	pthread_mutex_unlock(&s->lock);
	return 0;
}

/* One page or less of it, without the lock. */
int pl_soft_far_access(struct pl_soft *s, unsigned char *at, unsigned char *buf, size_t len, int write)
{
	const unsigned char *from = write ? buf : at;
	unsigned char *to = write ? at : buf;
	ssize_t n;

	do
		n = pwrite(s->bounce, from, len, 0);
	while (n < 0 && errno == EINTR);
	if (n == (ssize_t)len)
		do
			n = pread(s->bounce, to, len, 0);
		while (n < 0 && errno == EINTR);
	return n == (ssize_t)len ? 0 : n < 0 ? -errno : -EFAULT;
}

/* No transfer is on it any more. In the worker or where the lease ends. */
void pl_soft_far_leave(struct pl_soft *s, struct pl_soft_map *map)
{
	unsigned char *own = NULL;

	if (!map->far)
		return;
	pthread_mutex_lock(&s->lock);
	if (map->stopped || map->far->at != map->far->own) {
		own = map->far->own;
		map->far->own = NULL;
	}
	pthread_mutex_unlock(&s->lock);
	if (own)
		munmap(own, map->far->own_len);
}

void pl_soft_far_free(struct pl_soft_far *far)
{
	if (far && far->own)
		munmap(far->own, far->own_len);
	free(far);
}
