/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A copy of a shared file mapping for devices that can't have the mapping itself, and what brings copy
 * and file together at the moments the caller chooses.
 */
#ifndef PL_OS_STAGE_H
#define PL_OS_STAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Room through which data passes to and from file mappings; one for many stages. Thread-safe. */
struct pl_bounce;

int pl_bounce_new(struct pl_bounce **bounce);
void pl_bounce_free(struct pl_bounce *bounce);

struct pl_stage {
	struct pl_bounce *bounce;
	size_t len;
	char *copy;   /* what the device is given */
	char *shadow; /* the content on which copy and file agreed last */
	char *file;   /* a second mapping of the file: stays when the first is unmapped or replaced */
	size_t cut_from, cut_to; /* the file's pages are somewhere else: not written back */
};

/*
 * [start, end) is a mapping with MAP_SHARED. The copy has the file's content on return. -EINVAL: it
 * can't be mapped a second time; -ENOMEM. One caller at a time for one stage in all of these.
 */
int pl_stage_new(struct pl_bounce *bounce, uintptr_t start, uintptr_t end, struct pl_stage **stage);
void pl_stage_free(struct pl_stage *stage);

/*
 * Aligned words of 8 bytes that changed in the copy since last time go to the file. Returns how many
 * bytes of them could not be written, because the file has no page there any more. No lock of the
 * library's may be held; the file's pages are faulted in.
 */
size_t pl_stage_to_file(struct pl_stage *stage, size_t offset, size_t len);

/* Words that changed in the file, and not in the copy, go to the copy. */
void pl_stage_to_copy(struct pl_stage *stage, size_t offset, size_t len);

/* From now on [offset, offset+len) isn't written back. */
void pl_stage_cut(struct pl_stage *stage, size_t offset, size_t len);

/* The file's content as the CPU sees it; the copy's for pages that the file has let go. */
void pl_stage_content(struct pl_stage *stage, size_t offset, size_t len, void *buf);

/*
 * New zeroed memory for a part of the copy. `mine` is given to pl_stage_take(), `yours` is a second
 * mapping of it for the caller to put elsewhere.
 */
int pl_stage_fresh(size_t len, bool writable, void **mine, void **yours);

/* The device's addresses of the part get the memory `mine`. */
int pl_stage_take(struct pl_stage *stage, size_t offset, size_t len, void *mine);

#endif
