/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Descriptors are opened and closed by raw system calls, as in task.c. */
#include "os/text.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

int pl_text_open(struct pl_text *t, const char *path)
{
	t->at = t->have = 0;
	t->fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
	return t->fd < 0 ? -errno : 0;
}

int pl_text_line(struct pl_text *t, char *line, size_t max)
{
	size_t n = 0;
	long got;
	char c;

	do {
		if (t->at == t->have) {
			do
				got = syscall(SYS_read, t->fd, t->buf, sizeof t->buf);
			while (got < 0 && errno == EINTR);
			if (got <= 0)
				return got < 0 ? -errno : -ENOENT;
			t->have = got;
			t->at = 0;
		}
		c = t->buf[t->at++];
		if (n + 1 < max && c != '\n')
			line[n++] = c;
	} while (c != '\n');
	line[n] = 0;
	return 0;
}

void pl_text_close(struct pl_text *t)
{
	syscall(SYS_close, t->fd);
}

int pl_text_start(const char *path, char *buf, size_t len)
{
	int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
	long n = -1;

	if (fd >= 0)
		n = syscall(SYS_read, fd, buf, len - 1);
	if (n < 0)
		n = -errno;
	if (fd >= 0)
		syscall(SYS_close, fd);
	buf[n > 0 ? n : 0] = 0;
	return n;
}
