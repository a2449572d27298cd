/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where a file has no pages. */
#ifndef PL_OS_HOLES_H
#define PL_OS_HOLES_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* The first hole of [at, end) in a file of `size` bytes, which has data at `at`; or end. -1 and errno.
 */
off_t pl_next_hole(int fd, off_t at, off_t end, off_t size);

/* The first hole of [at, end), all of it; false: none, or the file system doesn't say. */
bool pl_first_hole(int fd, off_t at, off_t end, off_t size, off_t *from, off_t *to);

/*
 * True if whatever is mapped in [start, end) is in the page table, all of it. Where that is shared
 * memory of tmpfs, its file has no hole there; this costs less than asking the file, see aside.h. False:
 * not all, or the kernel doesn't say.
 */
bool pl_all_present(uintptr_t start, uintptr_t end);

#endif
