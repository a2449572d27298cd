/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What kind of memory is at an address range of this process, and descriptors of the file under it. */
#ifndef PL_OS_VMA_H
#define PL_OS_VMA_H

#include <pinlease/exporter.h>
#include <pinlease/source.h>
#include <stdbool.h>

#include "os/aside.h"

#define PL_VA_MAX 0x7ffffffff000ul /* x86-64, 4-level; other mappings can't be made without asking */

/* A descriptor that is open already for the file with these numbers, stays its owner's; or -1. */
typedef int (*pl_vma_known_fn)(void *arg, uint64_t dev, uint64_t ino);

/* Of device memory: whose, and what the kernel calls it. */
struct pl_vma_whose {
	enum pinl_exporter_kind kind;
	char name[64];
};

struct pl_vma_how {
	int maps; /* /proc/self/maps, or -1 */
	struct pl_aside *aside;
	pl_vma_known_fn known;
	void *arg;
	struct pl_vma_whose *whose; /* set for device memory; NULL: not asked */
};

/* By the name of a mapping or descriptor, as /proc has it, and its file system; 0: not known. */
enum pinl_exporter_kind pl_exporter_kind_of(const char *name, long fs_magic);

/*
 * Fills everything in mem. mem->fd is what `known` gave and *real -1; or both are new and the caller's:
 * mem->fd made with O_PATH, *real the same file opened in the table aside. -1 both: no file, or none
 * that can be opened. -ENOMEM: part of it isn't mapped; -EINVAL: mappings of different kinds; -EMFILE,
 * -ENFILE: no descriptor for the file.
 */
int pl_vma_query(const struct pl_vma_how *how, uintptr_t start, uintptr_t end, struct pinl_memory *mem,
		 int *real);

enum pl_vma_now { PL_VMA_HOLE, PL_VMA_SAME, PL_VMA_OTHER };

/* What is at `at` now, compared with m, and up to where: *end is cut. */
enum pl_vma_now pl_vma_look(int maps, const struct pinl_memory *m, uintptr_t at, uintptr_t *end);

/* True if the file and kind that `m` says are still mapped at [start, end), which lies in its range. */
bool pl_vma_same(int maps, const struct pinl_memory *m, uintptr_t start, uintptr_t end);

/* True if something is mapped at every address of [start, end). */
bool pl_vma_mapped(int maps, uintptr_t start, uintptr_t end);

/* True if m->vma_start to vma_end lies in one mapping: what the kernel keeps for a mapping it has for
 * all of it. */
bool pl_vma_one(int maps, const struct pinl_memory *m);

/*
 * Cuts a range to the first mappings in it that continue each other and are writable, or to the first
 * one that isn't. -ENOENT: nothing is mapped in the range.
 */
int pl_vma_run(int maps, uintptr_t *start, uintptr_t *end);

#endif
