/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What pinleased gives a process that has no privilege of its own. */
#ifndef PINLEASE_GIVEN_H
#define PINLEASE_GIVEN_H

#include <stdbool.h>
#include <stddef.h>

struct arbiter;
struct pinl_ctx;

/* As pinl_sources(), and files are "by pinleased" where only it can watch them. Below 0: an error. */
int given_sources(struct pinl_ctx *ctx, char *buf, size_t len);

/* Of those lines: does pinleased hold changes of files for this process, which can't? */
bool given_files(const char *sources);

/*
 * Why pinleased may not know of all leases of this file, or of any if `path` is NULL: it is told of
 * those only whose changes it can hold. "": it knows of all, or can't say. Asked last on the connection.
 */
void given_why_unknown(struct arbiter *a, const char *path, char *why, size_t len);

#endif
