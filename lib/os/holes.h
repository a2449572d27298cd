/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where a file has no pages. */
#ifndef PL_OS_HOLES_H
#define PL_OS_HOLES_H

#include <sys/types.h>

/* The first hole of [at, end) in a file of `size` bytes, which has data at `at`; or end. -1 and errno.
 */
off_t pl_next_hole(int fd, off_t at, off_t end, off_t size);

#endif
