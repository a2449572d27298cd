/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Invariant: a pin is freed only when no transfer in flight has it, and a mapping only when it is out of
 * the page table and no transfer is in flight on it. How memory is taken away: soft_revoke.c.
 */
#include "backend/soft.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/soft_engine.h"
#include "os/thread.h"

#define FIRST_DADDR (1ULL << 48) /* no user address: one can't be taken for the other */

static const struct pinl_device_info classes[] = {
	[PINL_DEV_NONE] = {PINL_DEV_NONE, PINL_DEVCAP_PIN, "it was opened as class NONE"},
	[PINL_DEV_QUIESCE_ONLY] = {PINL_DEV_QUIESCE_ONLY, PINL_DEVCAP_PIN | PINL_DEVCAP_READ,
				   "it was opened as class QUIESCE_ONLY"},
	[PINL_DEV_REVOCABLE] = {PINL_DEV_REVOCABLE,
				PINL_DEVCAP_PIN | PINL_DEVCAP_READ | PINL_DEVCAP_RETARGET |
					PINL_DEVCAP_IMPORT,
				"it was opened as class REVOCABLE"},
	[PINL_DEV_FAULTING] = {PINL_DEV_FAULTING,
			       PINL_DEVCAP_PIN | PINL_DEVCAP_ONDEMAND | PINL_DEVCAP_READ |
				       PINL_DEVCAP_RETARGET | PINL_DEVCAP_IMPORT,
			       NULL},
};

int pl_soft_unsupported(const struct pl_soft *s, const char *what)
{
	return pinl_set_error(-EOPNOTSUPP, "the soft device can't %s: %s", what,
			      classes[s->device_class].why);
}

/* -------------------------------------------------------------------------------- open and close -- */

static int parse_arg(const struct pinl_soft_arg *arg, enum pinl_device_class *device_class)
{
	*device_class = PINL_DEV_FAULTING;
	if (!arg)
		return 0;
	if (arg->size != sizeof *arg)
		return pinl_set_error(-EINVAL, "pinl_soft_arg.size is %zu: set it to sizeof, %zu",
				      arg->size, sizeof *arg);
	if (arg->device_class < 0 || arg->device_class > PINL_DEV_FAULTING + 1)
		return pinl_set_error(-EINVAL,
				      "pinl_soft_arg.device_class %d is unknown: use 0 or a class + 1",
				      arg->device_class);
	if (arg->device_class)
		*device_class = arg->device_class - 1;
	return 0;
}

static int start_engine(struct pl_soft *s)
{
	int err = pl_thread_start(&s->engine, pl_soft_engine, s);

	if (err)
		return pinl_set_error(err, "can't start the soft device's engine thread: %s",
				      strerror(-err));
	pthread_setname_np(s->engine, "pinl-soft");
	return 0;
}

static void free_soft(struct pl_soft *s)
{
	if (s->pins)
		pl_pins_close(s->pins);
	pthread_cond_destroy(&s->changed);
	pthread_mutex_destroy(&s->lock);
	if (s->bounce >= 0)
		close(s->bounce);
	free(s);
}

static struct pl_soft *new_soft(enum pinl_device_class device_class)
{
	struct pl_soft *s = calloc(1, sizeof *s);
	pthread_condattr_t attr;

	if (!s)
		return NULL;
	pthread_mutex_init(&s->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&s->changed, &attr);
	pthread_condattr_destroy(&attr);
	s->page = sysconf(_SC_PAGESIZE);
	s->device_class = device_class;
	s->next_daddr = FIRST_DADDR;
	s->tail = &s->head;
	s->bounce = -1;
	s->pins_err = pl_pins_open(&s->pins);
	return s;
}

/* process_vm_readv is refused to some containers. */
static int can_fault(struct pl_soft *s)
{
	char from = 1, to = 0;

	return pl_soft_access(s, NULL, (uintptr_t)&from, &to, 1, 0) == 0;
}

static const char *why_no_pins(int err)
{
	if (err == -ENOMEM)
		return "out of memory, or RLIMIT_MEMLOCK leaves no room for the io_uring it pins with; "
		       "raise it (ulimit -l, LimitMEMLOCK=) or give CAP_IPC_LOCK, and open it again";
	return "io_uring isn't available to pin with";
}

/* Without a ring the device still maps on demand; without descriptors nothing will work for long. */
static int start(struct pl_soft *s)
{
	if (s->pins_err == -EMFILE || s->pins_err == -ENFILE)
		return pinl_set_error(s->pins_err,
				      "no descriptors left for the soft device's io_uring%s",
				      s->pins_err == -EMFILE ? "; raise ulimit -n" : "");
	return start_engine(s);
}

static int soft_open(const void *arg, struct pinl_device_info *info, void **dev)
{
	enum pinl_device_class device_class;
	struct pinl_device_info found;
	struct pl_soft *s;
	int err;

	err = parse_arg(arg, &device_class);
	if (err)
		return err;
	s = new_soft(device_class);
	if (!s)
		return pinl_set_error(-ENOMEM, "out of memory");
	err = start(s);
	if (err) {
		free_soft(s);
		return err;
	}
	found = classes[device_class];
	if (!s->pins) {
		found.caps &= ~PINL_DEVCAP_PIN;
		found.why = why_no_pins(s->pins_err);
	}
	if ((found.caps & PINL_DEVCAP_ONDEMAND) && !can_fault(s)) {
		found.caps &= ~PINL_DEVCAP_ONDEMAND;
		found.why = "process_vm_readv isn't available to fault with";
	}
	*info = found;
	*dev = s;
	return 0;
}

static void soft_close(void *dev)
{
	struct pl_soft *s = dev;

	pthread_mutex_lock(&s->lock);
	s->closing = 1;
	pthread_cond_broadcast(&s->changed);
	while (s->submitters)
		pthread_cond_wait(&s->changed, &s->lock);
	pthread_mutex_unlock(&s->lock);
	pthread_join(s->engine, NULL);
	free_soft(s);
}

/* --------------------------------------------------------------------------------- map and unmap -- */

static int can_map(struct pl_soft *s, const struct pinl_mapping *m)
{
	if (!(m->flags & PINL_PIN) && s->device_class != PINL_DEV_FAULTING)
		return pl_soft_unsupported(s, "map on demand (PINL_PIN is missing)");
	if ((m->flags & PINL_PIN) && !s->pins)
		return pinl_set_error(-EOPNOTSUPP,
				      "the soft device can't pin: %s (%s); lease without PINL_PIN",
				      why_no_pins(s->pins_err), strerror(-s->pins_err));
	return 0;
}

static void free_map(struct pl_soft_map *map)
{
	free(map->pins);
	pl_soft_far_free(map->far);
	free(map);
}

/* Pinned now, and the pins that retarget will need. */
static int make_pins(struct pl_soft *s, struct pl_soft_map *map)
{
	int err;

	map->pins = calloc(PL_SOFT_PINS, sizeof *map->pins);
	if (!map->pins)
		return pinl_set_error(-ENOMEM, "out of memory");
	err = pl_pin_set(s->pins, map->start, map->end, &map->pins[0]);
	if (err)
		return err;
	map->pin = &map->pins[0];
	for (int i = 1; i < PL_SOFT_PINS; i++) {
		map->pins[i].next = map->spare;
		map->spare = &map->pins[i];
	}
	return 0;
}

static int soft_map(void *dev, struct pinl_mapping *m, struct pinl_addr *addrs)
{
	struct pl_soft *s = dev;
	size_t pages = (m->end - m->start) / s->page;
	struct pl_soft_map *map;
	int err;

	err = can_map(s, m);
	if (err)
		return err;
	map = calloc(1, sizeof *map + pages);
	if (!map)
		return pinl_set_error(-ENOMEM, "out of memory");
	map->start = m->start;
	map->end = m->end;
	map->writable = !!(m->flags & PINL_WRITE);
	if (m->flags & PINL_PIN)
		err = make_pins(s, map);
	if (err) {
		free_map(map);
		return err;
	}
	pl_soft_insert(s, map);
	for (size_t i = 0; addrs && i < pages; i++)
		addrs[i] = (struct pinl_addr){.addr = map->daddr + i * s->page};
	m->key = 0;
	m->priv = map;
	return 0;
}

static void soft_unmap(void *dev, struct pinl_mapping *m)
{
	struct pl_soft *s = dev;
	struct pl_soft_map *map = m->priv;

	pthread_mutex_lock(&s->lock);
	pl_soft_remove(s, map);
	while (pl_soft_in_flight(s, map)) {
		pl_soft_cancel(s);
		pthread_cond_wait(&s->changed, &s->lock);
	}
	pthread_mutex_unlock(&s->lock);
	pl_soft_free_pins(s, map, map->old);
	pl_soft_free_pins(s, map, map->pin);
	if (s->pins)
		pl_pins_settle(s->pins);
}

static void soft_forget(void *dev, struct pinl_mapping *m)
{
	free_map(m->priv);
}

const struct pinl_device_ops pl_soft_ops = {
	.size = sizeof(struct pinl_device_ops),
	.name = "soft",
	.open = soft_open,
	.close = soft_close,
	.map = soft_map,
	.unmap = soft_unmap,
	.stop = pl_soft_stop,
	.drain = pl_soft_drain,
	.read = pl_soft_read,
	.drop = pl_soft_drop,
	.retarget = pl_soft_retarget,
	.invalidate = pl_soft_invalidate,
	.protect = pl_soft_protect,
	.dirty = pl_soft_dirty,
	.forget = soft_forget,
	.import = pl_soft_import,
	.dummy = pl_soft_dummy,
};

/* ---------------------------------------------------------------------------------- public calls -- */

static struct pl_soft *soft_of(struct pinl_device *dev)
{
	struct pl_soft *s = dev ? pinl_device_priv(dev, &pl_soft_ops) : NULL;

	if (!s)
		pinl_set_error(-EINVAL, "this isn't a soft device: open one with kind \"soft\"");
	return s;
}

static int explain_dma(int err, uint64_t daddr, int write)
{
	switch (err) {
	case 0:
		return 0;
	case -EFAULT:
		return pinl_set_error(
			err,
			"device address %#llx has no %s entry in the soft device's page table "
			"and none can be faulted in",
			(unsigned long long)daddr, write ? "writable" : "valid");
	case -ECANCELED:
		return pinl_set_error(
			err, "the transfer was cancelled: its memory was taken from the device");
	case -ENODEV:
		return pinl_set_error(err, "the soft device was closed during the transfer");
	default:
		return pinl_set_error(err, "the soft device's transfer failed: %s", strerror(-err));
	}
}

int pinl_soft_dma(struct pinl_device *dev, uint64_t daddr, void *buf, size_t len, int write)
{
	struct pl_soft_dma x = {.daddr = daddr, .buf = buf, .len = len, .write = !!write};
	PL_CALL(call);
	struct pl_soft *s = soft_of(dev);

	if (!s)
		return -EINVAL;
	return explain_dma(pl_soft_submit(s, &x), daddr, write);
}

int pinl_soft_pause(struct pinl_device *dev, int paused)
{
	PL_CALL(call);
	struct pl_soft *s = soft_of(dev);

	if (!s)
		return -EINVAL;
	pthread_mutex_lock(&s->lock);
	s->paused = !!paused;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
	return 0;
}
