/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* io_uring_register(2) on a ring by its descriptor alone: buffer tables, slots, clones, cancel. No
 * state, no liburing ring needed, any thread. All return 0 or -errno. */
#ifndef PL_BACKEND_URING_TABLE_H
#define PL_BACKEND_URING_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

int pl_table_make(int ring, unsigned slots);
int pl_table_drop(int ring);
int pl_table_size(int ring, unsigned *slots); /* from the ring's fdinfo */

/* Put [addr, addr+len) into a slot, or empty it (addr NULL). tag: user_data of the completion that the
 * kernel posts when the last request using this content has ended; 0 = none. */
int pl_slot_set(int ring, unsigned slot, const void *addr, size_t len, uint64_t tag);

/* Empty a slot that has something. Taking away needs memory in some kernels, so it is tried for a while
 * (100 ms at most): who gives up leaves the pages pinned. */
int pl_slot_empty(int ring, unsigned slot);

/* What is in a slot, from the ring's fdinfo; start == end: nothing. -EAGAIN: the ring is busy. */
int pl_slot_get(int ring, unsigned slot, uintptr_t *start, uintptr_t *end);

/* Share the content of a slot with another ring: the pages stay pinned as long as either has them. */
int pl_slot_clone(int from, unsigned from_slot, int to, unsigned to_slot);

/* Cancel fixed-buffer requests, whichever buffer they use, and wait at most timeout_ns. */
int pl_ring_cancel_fixed(int ring, uint64_t timeout_ns);
bool pl_op_uses_buffer(unsigned op); /* one of those */

#endif
