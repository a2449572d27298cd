/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A thread with a descriptor table of its own. Closing any descriptor of a file drops all POSIX locks
 * that the program has on the file by fcntl(), unless it was opened with O_PATH. They belong to the
 * table, so in this one the program's files can be opened and closed.
 */
#ifndef PL_OS_ASIDE_H
#define PL_OS_ASIDE_H

#include <stddef.h>
#include <sys/types.h>

struct pl_aside;

int pl_aside_new(struct pl_aside **out);
void pl_aside_free(struct pl_aside *a);

/*
 * Run fn there and wait for it; any thread, no lock that fn takes. fn is short, allocates nothing and
 * waits for nobody, and touches descriptors by raw calls only: their numbers mean something else to who
 * keeps a record of the program's.
 */
long pl_aside_run(struct pl_aside *a, long (*fn)(void *arg), void *arg);

/* Open there what the caller's fd, an O_PATH one will do, refers to: a number of that table, or -errno.
 */
int pl_aside_open(struct pl_aside *a, int fd, int flags);
void pl_aside_close(struct pl_aside *a, int fd);

/* mmap(2) by a descriptor there, MAP_SHARED. MAP_FAILED and errno. */
void *pl_aside_map(struct pl_aside *a, int fd, int prot, off_t offset, size_t len);

/* 0; -errno: this system gives no table of its own, so nothing can be opened. */
int pl_aside_error(struct pl_aside *a);

/*
 * Give the calling thread a table of its own, for good, with nothing of the program's in it but `first`
 * to `last` (-1: nothing), which are not standard descriptors; those are /dev/null.
 */
int pl_own_table(int first, int last);

#endif
