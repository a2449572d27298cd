/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the gate asks of tasks: of a child of os/peek.h, where there may be one. Else (in somebody's
 * program) they are looked at here, but for the memory of other users.
 */
#ifndef PL_SOURCE_FILES_PEEK_H
#define PL_SOURCE_FILES_PEEK_H

#include "os/peek.h"
#include "source/files_look.h"

/* What isn't known in time (-ETIMEDOUT) stays as it is. -EAGAIN: the task runs. */
int pl_files_peek_task(struct pl_peek *p, const struct pl_files_whom *whom, enum pl_files_look look,
		       struct pl_files_task *out);

/* As pl_task_syscall(); -ETIMEDOUT: nobody knows. */
int pl_files_peek_call(struct pl_peek *p, pid_t tid, enum pl_files_look look, struct pl_syscall *sc);

/* The file that call of tid's is about: an O_PATH descriptor of the caller's table; or -errno. */
int pl_files_peek_open(struct pl_peek *p, pid_t tid, const struct pl_syscall *sc);

#endif
