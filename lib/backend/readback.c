/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "backend/readback.h"

#include <errno.h>

#include "os/errname.h"

static const char *why_no_pins(int err)
{
	if (err == -ENOMEM || err == -EMFILE || err == -ENFILE)
		return "memory, RLIMIT_MEMLOCK or descriptors were short when the device was opened; "
		       "open it again";
	return "io_uring isn't available to pin the pages a second time with";
}

void pl_readback_open(struct pl_readback *r, const char *without_it)
{
	int err = pl_pins_open(&r->pins);

	r->without_it = without_it;
	if (err)
		r->why_not = why_no_pins(err);
}

void pl_readback_close(struct pl_readback *r)
{
	if (r->pins)
		pl_pins_close(r->pins);
}

static void let_go(struct pl_readback *r, const struct pl_pin *pins, unsigned n)
{
	while (n)
		pl_pin_clear(r->pins, &pins[--n]);
}

static int pin_failed(const struct pl_readback *r, int err, size_t len)
{
	if (err == -EOPNOTSUPP)
		return pinl_set_error(
			err,
			"this memory can't be pinned by io_uring, through which the device's pages are "
			"read back: a read-only or device mapping, or a shared file mapping that the "
			"kernel pins for nobody; PINL_STAGE leases those by a staged copy, a device "
			"opened %s takes the others without COPY",
			r->without_it);
	if (err == -ENOSPC)
		return pinl_set_error(err,
				      "a device has at most 16384 leases that can be read back; "
				      "open it %s for more",
				      r->without_it);
	if (err == -ENOMEM)
		return pinl_set_error(
			err,
			"pinning %zu KiB a second time, to read the device's pages back, exceeds "
			"RLIMIT_MEMLOCK, or memory is out; raise it (ulimit -l, LimitMEMLOCK=), give "
			"CAP_IPC_LOCK, or open the device %s",
			len >> 10, r->without_it);
	return err;
}

static int hold(struct pl_readback *r, const struct pinl_mapping *m, struct pl_pin *pins)
{
	unsigned n = 0;
	int err = 0;

	for (uintptr_t at = m->start, end; r->pins && at < m->end && !err; at = end) {
		end = m->end - at > PL_PIN_MAX ? at + PL_PIN_MAX : m->end;
		err = pl_pin_set(r->pins, at, end, &pins[n]);
		n += !err;
	}
	if (!err)
		return 0;
	let_go(r, pins, n);
	return pin_failed(r, err, m->end - m->start);
}

size_t pl_second_pins(const struct pl_readback *r, size_t len)
{
	return r->pins ? 2 * ((len + PL_PIN_MAX - 1) / PL_PIN_MAX) : 0;
}

void pl_second_init(struct pl_second *s, struct pl_pin *pins, size_t nr)
{
	*s = (struct pl_second){.nr = nr / 2, .pin = pins, .spare = pins + nr / 2};
}

int pl_second_hold(struct pl_readback *r, struct pl_second *s, const struct pinl_mapping *m)
{
	int err = hold(r, m, s->pin);

	s->held = !err && s->nr;
	return err;
}

void pl_second_drop(struct pl_readback *r, struct pl_second *s)
{
	if (s->held)
		let_go(r, s->pin, s->nr);
	s->held = false;
}

/* The old pages count against RLIMIT_MEMLOCK until they are let go. */
bool pl_second_prepare(struct pl_readback *r, struct pl_second *s, const struct pinl_mapping *m)
{
	int err = hold(r, m, s->spare);

	if (err == -ENOMEM) {
		pl_second_drop(r, s);
		err = hold(r, m, s->spare);
	}
	return !err && s->nr;
}

void pl_second_undo(struct pl_readback *r, struct pl_second *s, bool prepared)
{
	if (prepared)
		let_go(r, s->spare, s->nr);
}

void pl_second_switch(struct pl_readback *r, struct pl_second *s, bool prepared)
{
	struct pl_pin *old = s->pin;

	pl_second_drop(r, s);
	s->pin = s->spare;
	s->spare = old;
	s->held = prepared;
}

int pl_second_read(struct pl_readback *r, struct pl_second *s, size_t offset, size_t len, void *buf)
{
	int err = 0;

	if (!r->pins)
		return pinl_set_error(-EOPNOTSUPP, "the pages of this device can't be read back: %s",
				      r->why_not);
	if (!s->held)
		return pinl_set_error(-ENODATA,
				      "the device's pages have been let go, or couldn't be pinned a "
				      "second time after a recall in part");
	for (size_t n; len && !err; offset += n, len -= n, buf = (char *)buf + n) {
		size_t in = offset % PL_PIN_MAX;

		n = len < PL_PIN_MAX - in ? len : PL_PIN_MAX - in;
		err = pl_pin_access(r->pins, &s->pin[offset / PL_PIN_MAX], in, buf, n, 0);
	}
	return err ? pinl_set_error(err, "can't read the device's pages: %s", pl_errname(-err)) : 0;
}
