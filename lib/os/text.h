/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A text file, line by line, with nothing but the stack: stdio would allocate. */
#ifndef PL_OS_TEXT_H
#define PL_OS_TEXT_H

#include <stddef.h>

struct pl_text {
	int fd;
	size_t at, have;
	char buf[1024];
};

int pl_text_open(struct pl_text *t, const char *path); /* -errno */
int pl_text_line(struct pl_text *t, char *line,
		 size_t max); /* what doesn't fit is cut off; -ENOENT at the end */
void pl_text_close(struct pl_text *t);

/* The first bytes of a file, terminated; an empty text on an error. Returns their number, or -errno. */
int pl_text_start(const char *path, char *buf, size_t len);

#endif
