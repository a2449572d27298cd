/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What a blocked task is doing: number and arguments of its system call, from /proc/<tid>/syscall.
 * Allocates nothing; safe in source threads. */
#ifndef PL_OS_TASK_H
#define PL_OS_TASK_H

#include <stdbool.h>
#include <sys/types.h>

struct pl_syscall {
	long nr;
	unsigned long args[6];
};

/* -EAGAIN: the task is running; -ESRCH/-EACCES as from the kernel; -ENODATA: not in a system call. */
int pl_task_syscall(pid_t pid, pid_t tid, struct pl_syscall *out);

/*
 * Its process and real user; waits for nobody, and the number must be a live task's. -errno, also of
 * kernels before 6.13.
 */
int pl_task_owner(pid_t tid, pid_t *pid, uid_t *uid);

/* A process, also one that its parent hasn't waited for. kill(2) is none of the unit's system calls. */
bool pl_task_is_there(pid_t pid);

/* Call fn for every thread of this process but the caller; stops when fn returns non-zero. */
int pl_task_each_thread(int (*fn)(pid_t tid, void *arg), void *arg);

#endif
