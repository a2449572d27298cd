/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* From what fanotify and /proc say about a blocked task to the change it makes to the file. Pure. */
#ifndef PL_SOURCE_FILES_OP_H
#define PL_SOURCE_FILES_OP_H

#include <pinlease/pinlease.h>
#include <stdbool.h>
#include <stdint.h>

#include "os/task.h"

/* "To the end of the file", whatever its size is when the change happens. Page aligned. */
#define PL_FILE_END ((uint64_t)INT64_MAX & ~(uint64_t)0xffff)

struct pl_file_event {
	bool open;   /* FAN_OPEN_PERM; else FAN_PRE_ACCESS */
	bool ranged; /* offset and count are known; the kernel rounds them out to pages */
	uint64_t offset, count;
	uint64_t size; /* of the file now */
	uint32_t page;
	bool keeps_edges; /* the file system zeroes partial pages in place (ext4); else it drops them */
	bool clones;	  /* copy_file_range may share blocks instead of writing */
	bool not_target;  /* the file is known not to be the one that the call writes to */
};

struct pl_file_op {
	enum pinl_op op;
	unsigned also;	     /* PINL_OPBIT()s it may be instead, where nobody knows */
	uint64_t start, end; /* what is detached: page aligned bytes of the file */
	int64_t new_size;    /* truncation to a known size, which isn't that of the file; else -1 */
};

/*
 * True: the blocked call detaches `out` from whoever holds the pages. False: it leaves every page
 * where it is. `sc` NULL: nobody knows what the task is doing; then the worst that the event allows.
 */
bool pl_file_decode(const struct pl_syscall *sc, const struct pl_file_event *ev, struct pl_file_op *out);

/* The descriptor number that the call changes, where an event may also be about another one; or -1. */
int pl_file_target_fd(const struct pl_syscall *sc);

#endif
