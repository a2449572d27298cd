/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * tmpfs looks for a hole page by page, to the end of the file if there is none. For a small part of a
 * big file it is asked instead, for each page of the part, where the next data is: that is found at
 * once. So neither takes more than some sixteen steps for each page of the part, however long the file
 * is.
 */
#include "os/holes.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "os/compat.h"

#define PAGE  4096
#define STEPS 16

off_t pl_next_hole(int fd, off_t at, off_t end, off_t size)
{
	off_t next;

	if (size - at <= STEPS * (end - at)) {
		next = lseek(fd, at, SEEK_HOLE);
		return next < 0 || next < end ? next : end;
	}
	for (; at < end; at = (at | (PAGE - 1)) + 1) {
		next = lseek(fd, at, SEEK_DATA);
		if (next < 0 && errno != ENXIO)
			return -1;
		if (next != at)
			return at;
	}
	return end;
}

bool pl_first_hole(int fd, off_t at, off_t end, off_t size, off_t *from, off_t *to)
{
	while (at < end) {
		off_t data = lseek(fd, at, SEEK_DATA);

		if (data < 0 && errno != ENXIO)
			return false;
		if (data < 0 || data > end)
			data = end;
		if (data > at) {
			*from = at;
			*to = data;
			return true;
		}
		at = pl_next_hole(fd, data, end, size);
		if (at <= data)
			return false;
	}
	return false;
}

bool pl_all_present(uintptr_t start, uintptr_t end)
{
	struct pl_page_region absent;
	struct pl_pagemap_scan scan = {
		.size = sizeof scan,
		.start = start,
		.end = end,
		.vec = (uintptr_t)&absent,
		.vec_len = 1,
		.category_inverted = PL_PAGE_IS_PRESENT,
		.category_mask = PL_PAGE_IS_PRESENT,
		.return_mask = PL_PAGE_IS_PRESENT,
	};
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	bool all = fd >= 0 && !ioctl(fd, PL_PAGEMAP_SCAN, &scan);

	if (fd >= 0)
		close(fd);
	return all;
}
