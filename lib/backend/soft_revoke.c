/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Taking memory from the soft device. Invariant: a permission is taken away under the lock first, then
 * the one transfer that may still use it is waited for (bounded). A pin moves or is freed only here and
 * in unmap, and only when no transfer in flight has it.
 *
 *	     map           stop                 retarget
 *	(new) --> running -------> stopped ----------------> running
 *	             |  ^             |
 *	    retarget +--+             +-- drain: no transfer in flight has its pages
 *
 * retarget of a running mapping moves its pin to `old`, where the transfers that began with it, and
 * `read`, still find it; a drain that is confirmed, or unmap, lets it go. drop, in stopped, lets all go.
 * What was let go is a spare for the next retarget: here nothing is allocated or freed (device.h).
 */
#include "backend/soft_engine.h"
#include "os/clock.h"
#include "os/errname.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#define NSEC_PER_SEC 1000000000ULL
/* An access of one page that takes longer hangs in a page fault: it is not waited for. */
#define ACCESS_MAX_NS (2 * NSEC_PER_SEC)

/* 0 or -ETIMEDOUT. */
static int wait_change_until(struct pl_soft *s, uint64_t ns)
{
	struct timespec ts = {.tv_sec = ns / NSEC_PER_SEC, .tv_nsec = ns % NSEC_PER_SEC};

	return -pthread_cond_timedwait(&s->changed, &s->lock, &ts);
}

static void push_spare(struct pl_soft *s, struct pl_soft_map *map, struct pl_pin *pin)
{
	pthread_mutex_lock(&s->lock);
	pin->next = map->spare;
	map->spare = pin;
	pthread_mutex_unlock(&s->lock);
}

static struct pl_pin *pop_spare(struct pl_soft *s, struct pl_soft_map *map)
{
	struct pl_pin *pin;

	pthread_mutex_lock(&s->lock);
	pin = map->spare;
	if (pin)
		map->spare = pin->next;
	pthread_mutex_unlock(&s->lock);
	return pin;
}

void pl_soft_free_pins(struct pl_soft *s, struct pl_soft_map *map, struct pl_pin *pin)
{
	while (pin) {
		struct pl_pin *next = pin->next;

		pl_pin_clear(s->pins, pin);
		push_spare(s, map, pin);
		pin = next;
	}
}

static void clear_ptes(struct pl_soft *s, struct pl_soft_map *map, uintptr_t start, uintptr_t end,
		       int bits)
{
	for (size_t i = pl_soft_index(s, map, start); i < pl_soft_index(s, map, end); i++)
		map->pte[i] &= ~bits;
}

int pl_soft_stop(void *dev, struct pinl_mapping *m)
{
	struct pl_soft *s = dev;
	struct pl_soft_map *map = m->priv;

	if (s->device_class < PINL_DEV_REVOCABLE)
		return pl_soft_unsupported(s, "be stopped");
	pthread_mutex_lock(&s->lock);
	map->stopped = 1;
	clear_ptes(s, map, map->start, map->end, PL_PTE_VALID | PL_PTE_WRITABLE);
	pthread_mutex_unlock(&s->lock);
	return 0;
}

/* A transfer that can still touch pages from before the last stop or retarget. */
static int in_use(struct pl_soft *s, struct pl_soft_map *map)
{
	struct pl_soft_dma *x = s->cur;

	if (s->device_class == PINL_DEV_QUIESCE_ONLY) {
		/* Nothing stops new ones: whatever its holder has handed in counts. */
		for (struct pl_soft_dma *q = s->head; q; q = q->next)
			if (pl_soft_find(s, q->daddr, q->len) == map)
				return 1;
		return pl_soft_in_flight(s, map);
	}
	if (!pl_soft_in_flight(s, map))
		return 0;
	if (map->far)
		return x->busy && (map->stopped || x->far != map->far->at);
	return x->pin ? map->stopped || x->pin != map->pin : x->busy;
}

/* With the lock held. What is still in flight after half of the time is cancelled, if the class can. */
static int wait_unused(struct pl_soft *s, struct pl_soft_map *map, uint64_t deadline_ns)
{
	uint64_t now = pl_clock_ns(), until = deadline_ns;
	int cancelled = s->device_class < PINL_DEV_REVOCABLE;

	if (!cancelled && now < deadline_ns)
		until = now + (deadline_ns - now) / 2;
	while (in_use(s, map)) {
		if (!wait_change_until(s, until))
			continue;
		if (in_use(s, map) && cancelled)
			return -ETIMEDOUT;
		if (in_use(s, map))
			pl_soft_cancel(s);
		cancelled = 1;
		until = deadline_ns;
	}
	return 0;
}

int pl_soft_drain(void *dev, struct pinl_mapping *m, uint64_t deadline_ns)
{
	struct pl_soft *s = dev;
	struct pl_soft_map *map = m->priv;
	struct pl_pin *old = NULL;
	int err;

	if (s->device_class == PINL_DEV_NONE)
		return pl_soft_unsupported(s, "be drained");
	pthread_mutex_lock(&s->lock);
	err = wait_unused(s, map, deadline_ns);
	if (!err) {
		old = map->old;
		map->old = NULL;
	}
	pthread_mutex_unlock(&s->lock);
	pl_soft_free_pins(s, map, old);
	if (!err)
		pl_soft_far_leave(s, map);
	if (err)
		return pinl_set_error(err, "a transfer of the soft device hasn't ended by the deadline");
	return 0;
}

int pl_soft_read(void *dev, struct pinl_mapping *m, size_t offset, size_t len, void *buf)
{
	struct pl_soft *s = dev;
	struct pl_soft_map *map = m->priv;
	const struct pl_pin *pin;
	int err;

	if (s->device_class == PINL_DEV_NONE)
		return pl_soft_unsupported(s, "be read");
	pthread_mutex_lock(&s->lock);
	pin = map->old ? map->old : map->pin;
	pthread_mutex_unlock(&s->lock);
	if (!pin && (m->flags & PINL_PIN))
		return pinl_set_error(-ENODATA, "the soft device's pages have been let go");
	err = pl_soft_access(s, pin, map->start + offset, buf, len, 0);
	if (err)
		return pinl_set_error(err, "can't read the soft device's pages at offset %zu: %s",
				      offset, pl_errname(-err));
	return 0;
}

void pl_soft_drop(void *dev, struct pinl_mapping *m)
{
	struct pl_soft *s = dev;
	struct pl_soft_map *map = m->priv;
	struct pl_pin *pin = NULL, *old = NULL;

	pthread_mutex_lock(&s->lock);
	if (map->stopped && !pl_soft_in_flight(s, map)) {
		pin = map->pin;
		old = map->old;
		map->pin = map->old = NULL;
	}
	pthread_mutex_unlock(&s->lock);
	pl_soft_free_pins(s, map, pin);
	pl_soft_free_pins(s, map, old);
}

/* With the lock held. Returns the pins that nobody can have any more. */
static struct pl_pin *exchange(struct pl_soft *s, struct pl_soft_map *map, struct pl_pin *pin)
{
	struct pl_pin *unused = NULL;

	if (map->pin) {
		map->pin->next = map->old;
		map->old = map->pin;
	}
	/* Stopped and drained: nothing is left for another drain to wait for. */
	if (map->stopped && !pl_soft_in_flight(s, map)) {
		unused = map->old;
		map->old = NULL;
	}
	map->pin = pin;
	map->stopped = 0;
	clear_ptes(s, map, map->start, map->end, PL_PTE_VALID | PL_PTE_WRITABLE);
	return unused;
}

/* What is mapped there now, in a spare pin. */
static int pin_again(struct pl_soft *s, struct pl_soft_map *map, struct pl_pin **out)
{
	struct pl_pin *pin = pop_spare(s, map);
	int err;

	if (!pin)
		return pinl_set_error(-EBUSY,
				      "transfers on the pages of %d earlier recalls of this "
				      "lease have not ended",
				      PL_SOFT_PINS - 1);
	err = pl_pin_set(s->pins, map->start, map->end, pin);
	if (err)
		push_spare(s, map, pin);
	else
		*out = pin;
	return err;
}

int pl_soft_retarget(void *dev, struct pinl_mapping *m)
{
	struct pl_soft *s = dev;
	struct pl_soft_map *map = m->priv;
	struct pl_pin *pin = NULL, *unused;
	int err;

	if (s->device_class < PINL_DEV_REVOCABLE)
		return pl_soft_unsupported(s, "be given other pages");
	if (m->flags & PINL_PIN) {
		err = pin_again(s, map, &pin);
		if (err)
			return err;
	}
	pthread_mutex_lock(&s->lock);
	unused = exchange(s, map, pin);
	pthread_mutex_unlock(&s->lock);
	pl_soft_free_pins(s, map, unused);
	return 0;
}

/* --------------------------------------------------------------------------------- on demand only -- */

static int busy_within(struct pl_soft *s, struct pl_soft_map *map, uintptr_t start, uintptr_t end)
{
	struct pl_soft_dma *x = s->cur;
	uintptr_t va;

	if (!pl_soft_in_flight(s, map) || !x->busy)
		return 0;
	va = map->start + (x->daddr + x->pos - map->daddr);
	return va >= start && va < end;
}

/* Take permissions away, then wait for the access that still has them. */
static int drop_ptes(struct pl_soft *s, struct pl_soft_map *map, uintptr_t start, uintptr_t end,
		     int bits)
{
	uint64_t deadline = pl_clock_ns() + ACCESS_MAX_NS;
	int err = 0;

	pthread_mutex_lock(&s->lock);
	clear_ptes(s, map, start, end, bits);
	while (!err && busy_within(s, map, start, end))
		err = wait_change_until(s, deadline);
	pthread_mutex_unlock(&s->lock);
	if (err)
		return pinl_set_error(err, "an access of the soft device hangs in a page fault");
	return 0;
}

int pl_soft_invalidate(void *dev, struct pinl_mapping *m, uintptr_t start, uintptr_t end)
{
	struct pl_soft *s = dev;
	struct pl_soft_map *map = m->priv;

	if (s->device_class != PINL_DEV_FAULTING)
		return pl_soft_unsupported(s, "be invalidated");
	if (m->flags & PINL_PIN)
		return pinl_set_error(-EOPNOTSUPP,
				      "a lease with PINL_PIN can't be invalidated: its pages stay");
	return drop_ptes(s, map, start, end, PL_PTE_VALID | PL_PTE_WRITABLE);
}

int pl_soft_protect(void *dev, struct pinl_mapping *m, uintptr_t start, uintptr_t end)
{
	struct pl_soft *s = dev;

	if (s->device_class != PINL_DEV_FAULTING)
		return pl_soft_unsupported(s, "write-protect");
	return drop_ptes(s, m->priv, start, end, PL_PTE_WRITABLE);
}

int pl_soft_dirty(void *dev, struct pinl_mapping *m, uintptr_t start, uintptr_t end, uint8_t *dirty)
{
	struct pl_soft *s = dev;
	struct pl_soft_map *map = m->priv;
	uint8_t some[512];

	if (s->device_class != PINL_DEV_FAULTING)
		return pl_soft_unsupported(s, "track what it wrote");
	for (size_t at = pl_soft_index(s, map, start), last = pl_soft_index(s, map, end), n; at < last;
	     at += n) {
		n = last - at < sizeof some ? last - at : sizeof some;
		pthread_mutex_lock(&s->lock);
		for (size_t i = 0; i < n; i++) {
			some[i] = !!(map->pte[at + i] & PL_PTE_DIRTY);
			map->pte[at + i] &= ~PL_PTE_DIRTY;
		}
		pthread_mutex_unlock(&s->lock);
		memcpy(dirty, some, n);
		dirty += n;
	}
	return 0;
}
