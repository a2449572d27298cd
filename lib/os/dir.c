/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Descriptors are opened and closed by raw system calls, as in task.c. */
#include "os/dir.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

struct dirent64 {
	uint64_t ino;
	int64_t off;
	uint16_t reclen;
	uint8_t type;
	char name[];
};

int pl_each_name(const char *folder, int (*fn)(const char *name, void *arg), void *arg)
{
	_Alignas(struct dirent64) char buf[2048];
	int fd = syscall(SYS_openat, AT_FDCWD, folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC), ret = 0;
	long n;

	if (fd < 0)
		return -errno;
	while (!ret && (n = syscall(SYS_getdents64, fd, buf, sizeof buf)) != 0) {
		if (n < 0) {
			ret = -errno;
			break;
		}
		for (long at = 0; !ret && at < n; at += ((struct dirent64 *)(buf + at))->reclen)
			ret = fn(((struct dirent64 *)(buf + at))->name, arg);
	}
	syscall(SYS_close, fd);
	return ret;
}
