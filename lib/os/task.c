/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Looking at tasks through /proc with nothing but the stack: no allocation, no lock, no state. Source
 * threads call this while the application may be stopped inside the allocator.
 *
 * Descriptors are opened and closed by raw system calls: a thread with a descriptor table of its own
 * (lib/source/files_gate.c) may not confuse tools that believe in one table per process.
 */
#include "os/task.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The first bytes of a /proc file, terminated. Returns their number. */
static int read_proc(const char *path, char *buf, size_t len)
{
	int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
	long n;

	if (fd < 0)
		return -errno;
	n = syscall(SYS_read, fd, buf, len - 1);
	if (n < 0)
		n = -errno;
	syscall(SYS_close, fd);
	if (n < 0)
		return n;
	buf[n] = 0;
	return n;
}

/*
 * "nr a0 .. a5 sp pc", "-1 sp pc", or "running". An io_uring worker shows the call its creator was in
 * when it was made, with sp and pc 0; a 32-bit task shows numbers of another table, and both its sp
 * and its pc fit in 32 bits. Neither says what the task is doing.
 */
static int parse_syscall(const char *s, struct pl_syscall *out)
{
	unsigned long v[8];
	char *end;
	long nr;

	if (!strncmp(s, "running", 7))
		return -EAGAIN;
	nr = strtol(s, &end, 10);
	if (end == s || nr < 0)
		return -ENODATA;
	for (int i = 0; i < 8; i++) {
		s = end;
		v[i] = strtoul(s, &end, 16);
		if (end == s)
			return -ENODATA;
	}
	if (v[6] <= UINT32_MAX && v[7] <= UINT32_MAX)
		return -ENODATA;
	out->nr = nr;
	memcpy(out->args, v, sizeof out->args);
	return 0;
}

int pl_task_syscall(pid_t pid, pid_t tid, struct pl_syscall *out)
{
	char path[64], buf[256];
	int n;

	if (pid > 0)
		snprintf(path, sizeof path, "/proc/%d/task/%d/syscall", pid, tid);
	else
		snprintf(path, sizeof path, "/proc/%d/syscall", tid);
	n = read_proc(path, buf, sizeof buf);
	if (n < 0)
		return n == -ENOENT ? -ESRCH : n;
	return n ? parse_syscall(buf, out) : -ENODATA;
}

struct dirent64 {
	uint64_t ino;
	int64_t off;
	uint16_t reclen;
	uint8_t type;
	char name[];
};

int pl_task_each_thread(int (*fn)(pid_t tid, void *arg), void *arg)
{
	_Alignas(struct dirent64) char buf[1024];
	pid_t self = syscall(SYS_gettid), tid;
	int ret = 0;
	long n;
	int fd = syscall(SYS_openat, AT_FDCWD, "/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	while (!ret && (n = syscall(SYS_getdents64, fd, buf, sizeof buf)) != 0) {
		if (n < 0) {
			ret = -errno;
			break;
		}
		for (long at = 0; !ret && at < n;) {
			struct dirent64 *d = (void *)(buf + at);

			at += d->reclen;
			tid = atoi(d->name);
			if (tid > 0 && tid != self)
				ret = fn(tid, arg);
		}
	}
	syscall(SYS_close, fd);
	return ret;
}
