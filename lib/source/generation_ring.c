/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Reading a BPF ring buffer. The kernel writes a record's length with BUSY first and moves the producer
 * behind it; BUSY goes when the record is whole. Who reads moves the consumer.
 */
#include "source/generation.h"

#include <string.h>

#define PAGE	4096u
#define HEAD	8u
#define BUSY	(1u << 31)
#define DISCARD (1u << 30)

void pl_generation_ring_at(struct pl_generation_ring *r, void *at)
{
	r->consumer = at;
	r->producer = (void *)((char *)at + PAGE);
	r->data = (uint8_t *)at + 2 * PAGE;
	r->size = GENERATION_RING;
}

/* One that was given up is as good as none, but for its length. */
enum pl_generation_next pl_generation_next(const struct pl_generation_ring *r,
					   struct generation_record *out)
{
	unsigned long at = atomic_load_explicit(r->consumer, memory_order_relaxed);
	bool taken = false;

	while (!taken && at != atomic_load_explicit(r->producer, memory_order_acquire)) {
		const uint8_t *head = r->data + (at & (r->size - 1));
		uint32_t len = __atomic_load_n((const uint32_t *)head, __ATOMIC_ACQUIRE);

		if (len & BUSY)
			return PL_GENERATION_BUSY;
		taken = !(len & DISCARD);
		len &= ~DISCARD;
		if (taken) {
			memset(out, 0, sizeof *out);
			memcpy(out, head + HEAD, len < sizeof *out ? len : sizeof *out);
		}
		at += (len + HEAD + 7) & ~7u;
		atomic_store_explicit(r->consumer, at, memory_order_release);
	}
	return taken ? PL_GENERATION_TAKEN : PL_GENERATION_NONE;
}
