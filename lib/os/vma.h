/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What kind of memory is at an address range of this process, and a descriptor of the file under it. */
#ifndef PL_OS_VMA_H
#define PL_OS_VMA_H

#include <pinlease/source.h>
#include <stdbool.h>

#define PL_VA_MAX 0x7ffffffff000ul /* x86-64, 4-level; other mappings can't be made without asking */

/* Fills everything in mem. -ENOMEM: part of it isn't mapped; -EINVAL: mappings of different kinds. */
int pl_vma_query(uintptr_t start, uintptr_t end, struct pinl_memory *mem);

/* True if the file and kind that `m` says are still mapped at [start, end), which lies in its range. */
bool pl_vma_same(const struct pinl_memory *m, uintptr_t start, uintptr_t end);

/* A description of its own of the file behind fd; -1 and errno. */
int pl_reopen(int fd, int flags);

#endif
