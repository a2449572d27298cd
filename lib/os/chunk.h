/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Memory in large pieces, zeroed, each aligned to its size. The first of a kind isn't asked to be a huge
 * page, so that what is small stays small; what is large is slow without. NULL: none. */
#ifndef PL_OS_CHUNK_H
#define PL_OS_CHUNK_H

#include <stdbool.h>
#include <stddef.h>

#define PL_CHUNK_SIZE (2ul << 20)

void *pl_chunk_new(bool huge);
/* The same of another power of two, from 4096 on. */
void *pl_chunk_map(size_t size, bool huge);
void pl_chunk_unmap(void *at, size_t size);
/* Zeroes that take no memory. */
void pl_chunk_empty(void *at, size_t size);
/* Part of one gets its pages now, all at once: one by one, when they are written to, they cost more. */
void pl_chunk_fill(void *at, size_t len);
void pl_chunk_free(void *chunk);

#endif
