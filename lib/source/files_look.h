/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Finding out what the task behind a fanotify event is about to do. */
#ifndef PL_SOURCE_FILES_LOOK_H
#define PL_SOURCE_FILES_LOOK_H

#include <sys/fanotify.h>
#include <sys/stat.h>

#include "source/files_op.h"

struct pl_files_seen {
	struct stat st; /* of the file */
	bool known;	/* call is what the task is in */
	struct pl_syscall call;
	struct pl_file_event ev;
	struct pl_file_op op;
};

/* True: it detaches seen->op. False: it may go on. Waits some ms for a task that still runs. */
bool pl_files_look(const struct fanotify_event_metadata *m, struct pl_files_seen *seen);

/* The call that a task is blocked in. As pl_task_syscall(), which is tried for some ms. */
int pl_files_blocked_call(pid_t tid, struct pl_syscall *sc);

/* The process of a thread; 0: not known. */
pid_t pl_files_process_of(pid_t tid, uid_t *uid); /* its real user; -1: not known */

#endif
