/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Memory whose holes nobody else maps into. */
#ifndef TESTS_ROOM_H
#define TESTS_ROOM_H

#include <stddef.h>
#include <sys/mman.h>

/* In the middle of a gap, which the kernel fills from above: it can grow in place, and a hole that a
 * test makes in it stays one, whatever other threads map, a sanitizer's too. The middle is never free
 * meanwhile, for threads that do this at the same time. The gap is far larger than what a thread gets
 * with its first malloc(), 128 MiB of which half is given back: what doesn't fit above the hole is put
 * across it. MAP_FAILED: failed. */
static inline char *map_alone(size_t len, int flags, int fd)
{
	const size_t room = 4ul << 30;
	char *at = mmap(NULL, room + len + room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			-1, 0),
	     *middle;

	if (at == MAP_FAILED)
		return at;
	middle = mmap(at + room, len, PROT_READ | PROT_WRITE, flags | MAP_FIXED, fd, 0);
	munmap(at, room);
	munmap(at + room + len, room);
	return middle;
}

#endif
