/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * tmpfs looks for a hole page by page, to the end of the file if there is none. For a small part of a
 * big file it is asked instead, for each page of the part, where the next data is: that is found at
 * once. So neither takes more than some sixteen steps for each page of the part, however long the file
 * is.
 */
#include "os/holes.h"

#include <errno.h>
#include <unistd.h>

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
