/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Finding out what the task behind a fanotify event is about to do. */
#ifndef PL_SOURCE_FILES_LOOK_H
#define PL_SOURCE_FILES_LOOK_H

#include <sys/fanotify.h>
#include <sys/stat.h>

#include "os/task.h"
#include "source/files_op.h"

struct pl_peek;

/* What only the kernel's records of the task say. */
struct pl_files_task {
	bool known; /* call is what it is in */
	struct pl_syscall call;
	bool unread; /* call is openat2, and its flags aren't known */
	uint64_t flags;
	bool other_file; /* the call's target is not the event's file */
	bool transfers;	 /* a worker that only reads or writes */
};

struct pl_files_seen {
	struct stat st; /* of the file */
	struct pl_files_task task;
	struct pl_file_event ev;
	struct pl_file_op op;
};

enum pl_files_verdict {
	PL_FILES_PASS,	 /* it may go on */
	PL_FILES_CHANGE, /* it detaches seen->op */
	PL_FILES_AGAIN,	 /* its task still runs, so nobody knows; not at the last look: then it is a
			    change */
};

enum pl_files_look {
	PL_FILES_FIRST, /* waits a millisecond for a task that still runs */
	PL_FILES_NEXT,
	PL_FILES_LAST
};

enum pl_files_verdict pl_files_look(struct pl_peek *peek, const struct fanotify_event_metadata *m,
				    struct pl_files_seen *seen, enum pl_files_look look);

struct pl_files_whom {
	pid_t tid;
	bool aside;	   /* waiting does no harm */
	uint64_t dev, ino; /* the event's file */
};

/*
 * For files_peek.c. These wait for others: for a server whose file a page of the task is, or one that
 * keeps its process inside of execve(), where the kernel lets nobody look.
 */
int pl_files_look_at_task(const struct pl_files_whom *whom, struct pl_files_task *out);

/* O_PATH, of a file that can be held. */
int pl_files_open_target(pid_t tid, const struct pl_syscall *sc);

#endif
