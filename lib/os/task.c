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
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "os/compat.h"
#include "os/dir.h"
#include "os/text.h"

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
	n = pl_text_start(path, buf, sizeof buf);
	if (n < 0)
		return n == -ENOENT ? -ESRCH : n;
	return n ? parse_syscall(buf, out) : -ENODATA;
}

int pl_task_owner(pid_t tid, pid_t *pid, uid_t *uid)
{
	struct pl_pidfd_info info = {.mask = PL_PIDFD_INFO_PID | PL_PIDFD_INFO_CREDS};
	int fd = syscall(SYS_pidfd_open, tid, PL_PIDFD_THREAD), err;

	if (fd < 0)
		return -errno;
	err = syscall(SYS_ioctl, fd, PL_PIDFD_GET_INFO, &info) ? -errno : 0;
	syscall(SYS_close, fd);
	if (err)
		return err;
	*pid = info.tgid;
	*uid = info.ruid;
	return 0;
}

bool pl_task_is_there(pid_t pid)
{
	int fd = syscall(SYS_pidfd_open, pid, 0);

	if (fd < 0)
		return errno != ESRCH;
	syscall(SYS_close, fd);
	return true;
}

struct other_threads {
	int (*fn)(pid_t tid, void *arg);
	void *arg;
	pid_t self;
};

static int other_thread(const char *name, void *arg)
{
	const struct other_threads *o = arg;
	pid_t tid = atoi(name);

	return tid > 0 && tid != o->self ? o->fn(tid, o->arg) : 0;
}

int pl_task_each_thread(int (*fn)(pid_t tid, void *arg), void *arg)
{
	struct other_threads o = {fn, arg, syscall(SYS_gettid)};

	return pl_each_name("/proc/self/task", other_thread, &o);
}
