/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Folders read with nothing but the stack, where opendir() would allocate. */
#ifndef PL_OS_DIR_H
#define PL_OS_DIR_H

/* Call fn for every name in the folder; stops when fn returns non-zero, which is returned. Or -errno. */
int pl_each_name(const char *folder, int (*fn)(const char *name, void *arg), void *arg);

#endif
