/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "os/chunk.h"

#include <stdint.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

void *pl_chunk_map(size_t size, bool huge)
{
	char *at = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	size_t before;

	if (at == MAP_FAILED)
		return NULL;
	before = -(uintptr_t)at & (size - 1);
	if (before)
		munmap(at, before);
	munmap(at + before + size, size - before);
	at += before;
	if (huge)
		madvise(at, size, MADV_HUGEPAGE);
	return at;
}

void pl_chunk_unmap(void *at, size_t size)
{
	munmap(at, size);
}

void pl_chunk_empty(void *at, size_t size)
{
	madvise(at, size, MADV_DONTNEED);
}

void *pl_chunk_new(bool huge)
{
	return pl_chunk_map(PL_CHUNK_SIZE, huge);
}

void pl_chunk_fill(void *at, size_t len)
{
	uintptr_t start = (uintptr_t)at & ~4095ul;

	madvise((void *)start, (uintptr_t)at + len - start, MADV_POPULATE_WRITE);
}

void pl_chunk_free(void *chunk)
{
	pl_chunk_unmap(chunk, PL_CHUNK_SIZE);
}
