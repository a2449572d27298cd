/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Descriptors that no child of fork() may keep: a ring keeps its pins, and a userfaultfd its watches,
 * until the last descriptor is closed, so a child would hold on to what its parent, or its parent's
 * death, has let go. A child made by a raw clone() keeps them, and so does one of a fork() that comes
 * between the opening of a descriptor and pl_forked_add().
 */
#ifndef PL_OS_FORKED_H
#define PL_OS_FORKED_H

/* Close fd in every child from now on. Any thread. -EMFILE: too many. */
int pl_forked_add(int fd);

/* Forget and close it here; -1 is fine. */
void pl_forked_close(int fd);

/* Only forget it: somebody else closes it. */
void pl_forked_remove(int fd);

#endif
