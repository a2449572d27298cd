/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What kind of memory is at an address range of this process, and a descriptor of the file under it. */
#ifndef PL_OS_VMA_H
#define PL_OS_VMA_H

#include <pinlease/source.h>
#include <stdbool.h>

#define PL_VA_MAX 0x7ffffffff000ul /* x86-64, 4-level; other mappings can't be made without asking */

/* A descriptor that is open already for the file with these numbers, stays its owner's; or -1. */
typedef int (*pl_vma_known_fn)(void *arg, uint64_t dev, uint64_t ino);

/*
 * Fills everything in mem. mem->fd is what `known` gave, or a new one of the caller's. -ENOMEM: part of
 * it isn't mapped; -EINVAL: mappings of different kinds; -EMFILE, -ENFILE: no descriptor for the file.
 */
int pl_vma_query(int maps, uintptr_t start, uintptr_t end, pl_vma_known_fn known, void *arg,
		 struct pinl_memory *mem);

/* True if the file and kind that `m` says are still mapped at [start, end), which lies in its range. */
bool pl_vma_same(int maps, const struct pinl_memory *m, uintptr_t start, uintptr_t end);

/* A description of its own of the file behind fd; -1 and errno. */
int pl_reopen(int fd, int flags);

#endif
