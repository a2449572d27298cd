/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Text into a caller's buffer, snprintf's way: cut where it ends, the full length known. */
#ifndef PL_CORE_TEXT_H
#define PL_CORE_TEXT_H

#include <stddef.h>

struct pinl_lease;

struct pl_text {
	char *buf;
	size_t len, used;
};

void pl_text_add(struct pl_text *text, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int pl_describe(const struct pinl_lease *lease, char *buf, size_t len); /* ctx->lock held */

#endif
