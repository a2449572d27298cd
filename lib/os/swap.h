/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Replace the pages of an address range by fresh private memory without losing a store. */
#ifndef PL_OS_SWAP_H
#define PL_OS_SWAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pl_swap;

/* -ENOMEM. Without a userfaultfd it is made all the same: then it can't fill. */
int pl_swap_new(struct pl_swap **swap);
void pl_swap_free(struct pl_swap *swap);
bool pl_swap_can_fill(const struct pl_swap *swap);
/* True if only user-mode faults can be served: system calls on the range may see EFAULT meanwhile. */
bool pl_swap_user_only(const struct pl_swap *swap);

/* New content for page-aligned [offset, offset+len) of the range, into buf. */
typedef int (*pl_fill_fn)(void *arg, size_t offset, size_t len, void *buf);

/*
 * [start, end) is mapped now. Put private memory in its place, atomically for every thread.
 * fill == NULL: zeroes. Else stores of before the switch are part of what fill reads (it is only
 * called after the switch), and nobody sees a page before it is filled. `with`: memory of the same size
 * to put there, NULL: new private memory; it is gone or unmapped in any case.
 */
int pl_swap_replace(struct pl_swap *swap, uintptr_t start, uintptr_t end, void *with, bool writable,
		    pl_fill_fn fill, void *arg);

/* [start, end) is a hole now. -EEXIST: something else has been mapped there. */
int pl_swap_place(struct pl_swap *swap, uintptr_t start, uintptr_t end, pl_fill_fn fill, void *arg);
void pl_swap_unplace(uintptr_t start, uintptr_t end);

#endif
