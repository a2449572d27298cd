/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Changes that were told of before they take effect, and whose caller has been let go at once:
 * MADV_DONTNEED and the like discard pages a moment after their event has been read. Who pins the range
 * in that moment has the pages that go. Who is on the way isn't known (the event doesn't name the
 * thread), and looking at all threads is too dear for each event, so it is left to those who want to
 * know.
 */
#ifndef PL_SOURCE_UFFD_GOING_H
#define PL_SOURCE_UFFD_GOING_H

#include <stdbool.h>
#include <stdint.h>

struct pl_uffd_going;

struct pl_uffd_going *pl_uffd_going_new(void);
void pl_uffd_going_free(struct pl_uffd_going *going);

/* By the reader, before it lets go of what it knows. */
void pl_uffd_going_add(struct pl_uffd_going *going, uintptr_t start, uintptr_t end);

/*
 * True: some of the range may be about to be discarded. look: look at the threads, and forget what none
 * of them can be at any more; else what isn't forgotten counts. Signals are blocked in the calling
 * thread.
 */
bool pl_uffd_going(struct pl_uffd_going *going, uintptr_t start, uintptr_t end, bool look);

#endif
