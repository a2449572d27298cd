/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: a slot of the ring's buffer table is in the stack of free slots and empty, or belongs to
 * exactly one pin. At most one request is in the ring, its submitter waits for it under `lock`; so a
 * pin that no thread is accessing has no request, and clearing its slot unpins at once.
 *
 * The kernel is reached through the ring only: data goes pinned pages <-> memfd <-> caller, because a
 * fixed buffer's pages have no other name once their mapping is gone.
 */
#include "backend/soft_pin.h"

#include <errno.h>
#include <liburing.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <pinlease/device.h>

#include "backend/ring_move.h"
#include "backend/uring_table.h"

enum {
	SLOTS = 16384,		/* the kernel's maximum */
	BOUNCE_SIZE = 64 << 10, /* bytes one request moves */
	PIN_MAX = 1 << 30,	/* bytes in one fixed buffer, the kernel's maximum */
};

struct pl_pins {
	struct io_uring ring;
	pthread_mutex_t lock; /* ring's queues, bounce, free, full, nr_free, nr_full */
	int bounce_fd;
	unsigned char *bounce;
	unsigned nr_free, nr_full;
	uint16_t free[SLOTS], full[SLOTS]; /* full: let go, but the kernel had no memory to empty them */
};

static int make_bounce(struct pl_pins *p)
{
	void *map;
	int fd, err;

	fd = memfd_create("pinlease-soft-bounce", MFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (ftruncate(fd, BOUNCE_SIZE) < 0)
		goto fail;
	map = mmap(NULL, BOUNCE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		goto fail;
	p->bounce_fd = fd;
	p->bounce = map;
	return 0;
fail:
	err = -errno;
	close(fd);
	return err;
}

int pl_pins_open(struct pl_pins **pins)
{
	struct pl_pins *p = calloc(1, sizeof *p);
	int err;

	if (!p)
		return -ENOMEM;
	err = io_uring_queue_init(4, &p->ring, 0);
	if (err)
		goto fail;
	err = pl_table_make(p->ring.ring_fd, SLOTS);
	if (!err)
		err = make_bounce(p);
	if (err)
		goto fail_ring;
	for (unsigned i = 0; i < SLOTS; i++)
		p->free[i] = SLOTS - 1 - i;
	p->nr_free = SLOTS;
	pthread_mutex_init(&p->lock, NULL);
	*pins = p;
	return 0;
fail_ring:
	io_uring_queue_exit(&p->ring);
fail:
	free(p);
	return err;
}

void pl_pins_close(struct pl_pins *p)
{
	io_uring_queue_exit(&p->ring);
	munmap(p->bounce, BOUNCE_SIZE);
	close(p->bounce_fd);
	pthread_mutex_destroy(&p->lock);
	free(p);
}

static int take_slot(struct pl_pins *p, unsigned *slot)
{
	int err = -ENOSPC;

	pthread_mutex_lock(&p->lock);
	if (p->nr_free) {
		*slot = p->free[--p->nr_free];
		err = 0;
	}
	pthread_mutex_unlock(&p->lock);
	return err;
}

static void give_slot(struct pl_pins *p, unsigned slot)
{
	pthread_mutex_lock(&p->lock);
	p->free[p->nr_free++] = slot;
	pthread_mutex_unlock(&p->lock);
}

static int explain(int err, size_t len)
{
	struct rlimit rl = {0};

	switch (err) {
	case -EFAULT:
	case -EOPNOTSUPP:
		return pinl_set_error(
			-EOPNOTSUPP,
			"this memory can't be pinned for writing: a read-only mapping, a "
			"shared mapping of a file on disk, device memory or secret memory; "
			"lease it without PINL_PIN, by a staged copy (PINL_STAGE, shared file "
			"mappings), or use anonymous, memfd, tmpfs or private memory");
	case -ENOMEM:
		getrlimit(RLIMIT_MEMLOCK, &rl);
		return pinl_set_error(
			-ENOMEM,
			"can't pin %zu bytes: out of memory, or over RLIMIT_MEMLOCK (now %llu "
			"bytes); raise it with ulimit -l or LimitMEMLOCK=, or give the process "
			"CAP_IPC_LOCK",
			len, (unsigned long long)rl.rlim_cur);
	case -ENOSPC:
		return pinl_set_error(-ENOSPC, "the soft device's table of %d pins is full: end a lease",
				      SLOTS);
	default:
		return pinl_set_error(err, "pinning %zu bytes failed: %s", len, strerror(-err));
	}
}

int pl_pin_take(struct pl_pins *p, uintptr_t start, uintptr_t end, struct pl_pin *pin)
{
	size_t len = end - start;
	int err;

	if (len > PIN_MAX)
		return pinl_set_error(-EOPNOTSUPP,
				      "a soft device pins at most 1 GiB in one lease: split the range");
	err = take_slot(p, &pin->slot);
	if (err)
		return explain(err, len);
	err = pl_slot_set(p->ring.ring_fd, pin->slot, (void *)start, len, 0);
	if (err) {
		give_slot(p, pin->slot);
		return explain(err, len);
	}
	pin->start = start;
	pin->len = len;
	return 0;
}

void pl_pins_settle(struct pl_pins *p)
{
	unsigned tries;

	pthread_mutex_lock(&p->lock);
	for (tries = p->nr_full; tries && p->nr_full; tries--) {
		unsigned slot = p->full[--p->nr_full];

		if (pl_slot_empty(p->ring.ring_fd, slot))
			p->full[p->nr_full++] = slot;
		else
			p->free[p->nr_free++] = slot;
	}
	pthread_mutex_unlock(&p->lock);
}

void pl_pin_let_go(struct pl_pins *p, struct pl_pin *pin)
{
	pthread_mutex_lock(&p->lock);
	p->full[p->nr_full++] = pin->slot;
	pthread_mutex_unlock(&p->lock);
	pl_pins_settle(p);
}

static int access_chunk(struct pl_pins *p, const struct pl_pin *pin, size_t offset, void *buf,
			size_t len, int write)
{
	void *at = (void *)(pin->start + offset);
	int ret;

	if (write)
		memcpy(p->bounce, buf, len);
	ret = pl_ring_move(&p->ring, write, p->bounce_fd, at, len, pin->slot);
	if (ret < 0)
		return ret;
	if ((size_t)ret != len)
		return -EIO;
	if (!write)
		memcpy(buf, p->bounce, len);
	return 0;
}

int pl_pin_access(struct pl_pins *p, const struct pl_pin *pin, size_t offset, void *buf, size_t len,
		  int write)
{
	int err = 0;

	if (offset > pin->len || len > pin->len - offset)
		return -EFAULT;
	for (size_t done = 0, n; !err && done < len; done += n) {
		n = len - done < BOUNCE_SIZE ? len - done : BOUNCE_SIZE;
		/* One chunk at a time, so that a long read doesn't hold up the engine. */
		pthread_mutex_lock(&p->lock);
		err = access_chunk(p, pin, offset + done, (char *)buf + done, n, write);
		pthread_mutex_unlock(&p->lock);
	}
	return err;
}
