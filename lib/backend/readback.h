/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What a device has pinned by other means than an io_uring can't be read. So each lease's pages are
 * pinned a second time, by an io_uring of the device's own (soft_pin.h), which finds them wherever file
 * and mapping have gone. Both pins are made while changes of the range are watched and wait for the
 * lease.
 *
 * Invariant: while `held`, `pin` has the pages that the device has, or had last.
 */
#ifndef PL_BACKEND_READBACK_H
#define PL_BACKEND_READBACK_H

#include <pinlease/device.h>
#include <stdbool.h>

#include "backend/soft_pin.h"

/* A device's. */
struct pl_readback {
	struct pl_pins *pins;	/* NULL: nothing can be read, */
	const char *why_not;	/* because */
	const char *without_it; /* how to open the device so that it isn't wanted: for sentences */
};

/* A lease's. */
struct pl_second {
	bool held;
	unsigned nr;		    /* of each: the lease in parts that a fixed buffer can have */
	struct pl_pin *pin, *spare; /* of its owner */
};

void pl_readback_open(struct pl_readback *r, const char *without_it);
void pl_readback_close(struct pl_readback *r);

/* So many pins has a lease of len bytes; 0 where nothing can be read. */
size_t pl_second_pins(const struct pl_readback *r, size_t len);
void pl_second_init(struct pl_second *s, struct pl_pin *pins, size_t nr);

/* What is mapped at [m->start, m->end) now. With a sentence. */
int pl_second_hold(struct pl_readback *r, struct pl_second *s, const struct pinl_mapping *m);

/* The same for pages that are to take the place of the old ones: at switch, or undo. False: they can't
 * be held, as io_uring refuses a mixture of file and private pages before 6.5. */
bool pl_second_prepare(struct pl_readback *r, struct pl_second *s, const struct pinl_mapping *m);
void pl_second_undo(struct pl_readback *r, struct pl_second *s, bool prepared);
void pl_second_switch(struct pl_readback *r, struct pl_second *s, bool prepared);

void pl_second_drop(struct pl_readback *r, struct pl_second *s);

/* With a sentence. */
int pl_second_read(struct pl_readback *r, struct pl_second *s, size_t offset, size_t len, void *buf);

#endif
