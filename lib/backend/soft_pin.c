/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: a slot of the ring's buffer table is in the stack of free slots and empty, or in that of
 * full ones, or belongs to exactly one pin. A pin that no thread is accessing has no request in the ring
 * (ring_move.h), so clearing its slot unpins at once.
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
#include "os/errname.h"

enum {
	SLOTS = 16384, /* the kernel's maximum */
};

struct pl_pins {
	struct pl_mover mover;
	pthread_mutex_t lock; /* both stacks */
	unsigned nr_free, nr_full;
	uint16_t free[SLOTS];
	uint16_t full[SLOTS]; /* no pin's any more, but the kernel had no memory to empty them */
};

int pl_pins_open(struct pl_pins **pins)
{
	struct pl_pins *p = calloc(1, sizeof *p);
	int err;

	if (!p)
		return -ENOMEM;
	err = pl_mover_open(&p->mover, SLOTS);
	if (err) {
		free(p);
		return err;
	}
	for (unsigned i = 0; i < SLOTS; i++)
		p->free[i] = SLOTS - 1 - i;
	p->nr_free = SLOTS;
	pthread_mutex_init(&p->lock, NULL);
	*pins = p;
	return 0;
}

void pl_pins_close(struct pl_pins *p)
{
	pl_mover_close(&p->mover);
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
		return pinl_set_error(err, "pinning %zu bytes failed: %s", len, pl_errname(-err));
	}
}

int pl_pin_set(struct pl_pins *p, uintptr_t start, uintptr_t end, struct pl_pin *pin)
{
	size_t len = end - start;
	unsigned slot;
	int err;

	if (len > PL_PIN_MAX)
		return pinl_set_error(-EOPNOTSUPP,
				      "a soft device pins at most 1 GiB in one lease: split the range");
	err = take_slot(p, &slot);
	if (err)
		return explain(err, len);
	err = pl_slot_set(p->mover.ring.ring_fd, slot, (void *)start, len, 0);
	if (err) {
		give_slot(p, slot);
		return explain(err, len);
	}
	*pin = (struct pl_pin){.start = start, .len = len, .slot = slot};
	return 0;
}

static void add_full(struct pl_pins *p, unsigned slot)
{
	pthread_mutex_lock(&p->lock);
	p->full[p->nr_full++] = slot;
	pthread_mutex_unlock(&p->lock);
}

static bool take_full(struct pl_pins *p, unsigned *slot)
{
	bool any;

	pthread_mutex_lock(&p->lock);
	any = p->nr_full;
	if (any)
		*slot = p->full[--p->nr_full];
	pthread_mutex_unlock(&p->lock);
	return any;
}

void pl_pins_settle(struct pl_pins *p)
{
	unsigned slot;

	while (take_full(p, &slot)) {
		if (pl_slot_empty(p->mover.ring.ring_fd, slot)) {
			add_full(p, slot);
			return;
		}
		give_slot(p, slot);
	}
}

void pl_pin_clear(struct pl_pins *p, const struct pl_pin *pin)
{
	add_full(p, pin->slot);
	pl_pins_settle(p);
}

int pl_pin_access(struct pl_pins *p, const struct pl_pin *pin, size_t offset, void *buf, size_t len,
		  int write)
{
	if (offset > pin->len || len > pin->len - offset)
		return -EFAULT;
	return pl_mover_move(&p->mover, write, pin->start + offset, pin->slot, buf, len);
}
