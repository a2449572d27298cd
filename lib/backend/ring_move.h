/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Data between the pages of a fixed buffer and a file, through a ring that nobody else uses. */
#ifndef PL_BACKEND_RING_MOVE_H
#define PL_BACKEND_RING_MOVE_H

#include <liburing.h>
#include <stdbool.h>

/*
 * Move len bytes between the start of `fd` and the pages at `at` in the buffer of `slot`; waits for it.
 * Bytes moved, or -errno. A failure leaves nothing behind that a later move could meet. One caller at a
 * time.
 */
int pl_ring_move(struct io_uring *ring, bool to_pages, int fd, void *at, unsigned len, unsigned slot);

#endif
