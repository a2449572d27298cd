/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the task behind an event is about to do: gathers the facts that pl_file_decode() judges. The gate
 * asks the leased file nothing but fstat() and fstatfs(), and another one nothing; the task is looked at
 * by files_peek.c, where waiting does no harm. Nothing is allocated, no lock is taken. What can't be
 * found out is left "unknown", never guessed.
 */
#include "source/files_look.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>
#include <linux/magic.h>

#include "os/compat.h"
#include "os/text.h"
#include "source/files_peek.h"

/* openat2 has its flags behind a pointer. Another thread of the task could change them after the
 * kernel has read them: who does that is told of afterwards, not held. */
static bool read_open_how(pid_t tid, const struct pl_syscall *sc, uint64_t *flags)
{
	struct iovec to = {flags, sizeof *flags}, from = {(void *)sc->args[2], sizeof *flags};

	return process_vm_readv(tid, &to, 1, &from, 1, 0) == sizeof *flags;
}

/* Another thread may have put any file there: it isn't waited for (AT_STATX_DONT_SYNC), as a server may
 * have to answer for it. */
static bool is_other_file(pid_t tid, int fd, uint64_t dev, uint64_t ino)
{
	char path[64];
	struct statx st;

	snprintf(path, sizeof path, "/proc/%d/fd/%d", tid, fd);
	return fd >= 0 && !statx(AT_FDCWD, path, AT_STATX_DONT_SYNC, STATX_INO, &st) &&
	       (makedev(st.stx_dev_major, st.stx_dev_minor) != dev || st.stx_ino != ino);
}

static void read_range(const struct fanotify_event_metadata *m, struct pl_file_event *ev)
{
	const char *at = (const char *)m + m->metadata_len, *end = (const char *)m + m->event_len;

	while (at + sizeof(struct pl_fan_range) <= end) {
		const struct pl_fan_range *r = (const void *)at;

		if (r->type == FAN_EVENT_INFO_TYPE_RANGE) {
			ev->ranged = true;
			ev->offset = r->offset;
			ev->count = r->count;
		}
		if (!r->len)
			break;
		at += r->len;
	}
}

static void describe(const struct fanotify_event_metadata *m, const struct stat *st,
		     struct pl_file_event *ev)
{
	struct statfs fs = {0};

	*ev = (struct pl_file_event){.open = m->mask & FAN_OPEN_PERM, .size = st->st_size};
	ev->page = sysconf(_SC_PAGESIZE);
	read_range(m, ev);
	syscall(SYS_fstatfs, m->fd, &fs);
	ev->keeps_edges = fs.f_type == EXT4_SUPER_MAGIC;
	ev->clones = fs.f_type != EXT4_SUPER_MAGIC;
}

/*
 * An io_uring worker has no system call to look at, but the kernel says where it waits: in io_read or
 * io_write it leaves the pages where they are. Elsewhere, or if that can't be read, it stays unknown.
 */
static bool worker_transfers(pid_t tid)
{
	char path[48], buf[2048];

	snprintf(path, sizeof path, "/proc/%d/stack", tid);
	pl_text_start(path, buf, sizeof buf);
	return strstr(buf, " io_read+") || strstr(buf, " io_write+");
}

/* A program's own user, and root, could do worse to it. */
static bool is_trusted(pid_t tid)
{
	uid_t uid;
	pid_t pid;

	return !pl_task_owner(tid, &pid, &uid) && (uid == 0 || uid == getuid());
}

int pl_files_look_at_task(const struct pl_files_whom *whom, struct pl_files_task *out)
{
	int err;

	*out = (struct pl_files_task){0};
	err = pl_task_syscall(0, whom->tid, &out->call);
	out->known = !err;
	if (out->known && out->call.nr == SYS_openat2)
		out->unread = (!whom->aside && !is_trusted(whom->tid)) ||
			      !read_open_how(whom->tid, &out->call, &out->flags);
	if (out->known)
		out->other_file =
			is_other_file(whom->tid, pl_file_target_fd(&out->call), whom->dev, whom->ino);
	else
		out->transfers = worker_transfers(whom->tid);
	return err;
}

enum pl_files_verdict pl_files_look(struct pl_peek *peek, const struct fanotify_event_metadata *m,
				    struct pl_files_seen *seen, enum pl_files_look look)
{
	struct pl_files_whom whom = {.tid = m->pid};
	struct pl_files_task *task = &seen->task;
	struct pl_syscall sc;
	int err = -ESRCH;

	if (syscall(SYS_fstat, m->fd, &seen->st))
		return PL_FILES_PASS; /* can't be; and without the inode nobody could say whose it is */
	describe(m, &seen->st, &seen->ev);
	whom.dev = seen->st.st_dev;
	whom.ino = seen->st.st_ino;
	*task = (struct pl_files_task){0};
	if (m->pid > 0)
		err = pl_files_peek_task(peek, &whom, look, task);
	if (err == -EAGAIN && look != PL_FILES_LAST)
		return PL_FILES_AGAIN;
	sc = task->call;
	if (task->known && sc.nr == SYS_openat2) {
		task->known = !task->unread;
		sc.nr = SYS_openat;
		sc.args[2] = task->flags;
	}
	seen->ev.not_target = task->known && task->other_file;
	if (!task->known && task->transfers)
		return PL_FILES_PASS;
	return pl_file_decode(task->known ? &sc : NULL, &seen->ev, &seen->op) ? PL_FILES_CHANGE
									      : PL_FILES_PASS;
}
