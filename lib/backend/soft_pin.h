/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Real long-term pins for the soft device, made as fixed buffers of an io_uring of its own. A page
 * that is pinned here is orphaned by truncate or munmap exactly as under a hardware device.
 */
#ifndef PL_BACKEND_SOFT_PIN_H
#define PL_BACKEND_SOFT_PIN_H

#include <stddef.h>
#include <stdint.h>

#define PL_PIN_MAX (1ul << 30) /* bytes of one pin: of a fixed buffer, the kernel's maximum */

struct pl_pins;

/* One range of pages, pinned as it was mapped when the pin was made. */
struct pl_pin {
	struct pl_pin *next; /* the owner's */
	uintptr_t start;
	size_t len;
	unsigned slot;
};

/* -errno as from io_uring_setup(2): this kernel or this container doesn't give it. No sentence. */
int pl_pins_open(struct pl_pins **pins);

/* Every pin has been cleared. */
void pl_pins_close(struct pl_pins *pins);

/* Pin what is mapped at [start, end) now. With a sentence: -EOPNOTSUPP this memory can't be pinned,
 * -ENOMEM, -ENOSPC no slot left. Any thread. Nothing is allocated, here or below. */
int pl_pin_set(struct pl_pins *pins, uintptr_t start, uintptr_t end, struct pl_pin *pin);

/* Unpin what earlier couldn't be. */
void pl_pins_settle(struct pl_pins *pins);

/* The pages are unpinned on return, or, when the kernel has no memory for that, in a later settle or
 * close. */
void pl_pin_clear(struct pl_pins *pins, const struct pl_pin *pin);

/* Copy between buf and the pinned pages, wherever their mapping has gone. Any thread. */
int pl_pin_access(struct pl_pins *pins, const struct pl_pin *pin, size_t offset, void *buf, size_t len,
		  int write);

#endif
