/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What the task behind an event is about to do: gathers the facts that pl_file_decode() judges. Runs on
 * the thread of the files source: nothing is allocated, no lock is taken, the leased file itself is
 * asked nothing but fstat() and fstatfs(). What can't be found out is left "unknown", never guessed.
 */
#include "source/files_look.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>
#include <linux/magic.h>

#include "os/compat.h"

#define LOOK_TRIES 24 /* 17 ms in all */

/*
 * The event can be here before its task has gone to sleep, and until then the kernel says nothing about
 * it: give it the processor.
 */
int pl_files_blocked_call(pid_t tid, struct pl_syscall *sc)
{
	struct timespec wait = {.tv_nsec = 10000};
	int err;

	for (int i = 0; (err = pl_task_syscall(0, tid, sc)) == -EAGAIN && i < LOOK_TRIES; i++) {
		nanosleep(&wait, NULL);
		if (wait.tv_nsec < 1000000)
			wait.tv_nsec *= 2;
	}
	return err;
}

/* openat2 has its flags behind a pointer. Another thread of the task could change them after the
 * kernel has read them: who does that is told of afterwards, not held. */
static int read_open_how(pid_t tid, struct pl_syscall *sc)
{
	uint64_t flags;
	struct iovec to = {&flags, sizeof flags}, from = {(void *)sc->args[2], sizeof flags};

	if (process_vm_readv(tid, &to, 1, &from, 1, 0) != sizeof flags)
		return -ENODATA;
	sc->nr = SYS_openat;
	sc->args[2] = flags;
	return 0;
}

static bool is_other_file(pid_t tid, int fd, const struct stat *file)
{
	char path[64];
	struct stat st;

	snprintf(path, sizeof path, "/proc/%d/fd/%d", tid, fd);
	return fd >= 0 && !stat(path, &st) && (st.st_dev != file->st_dev || st.st_ino != file->st_ino);
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

/* The start of /proc/TID/NAME; empty if it can't be read. */
static void read_proc(pid_t tid, const char *name, char *buf, size_t len)
{
	char path[48];
	long n = -1;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/%s", tid, name);
	fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		n = syscall(SYS_read, fd, buf, len - 1);
		syscall(SYS_close, fd);
	}
	buf[n > 0 ? n : 0] = 0;
}

pid_t pl_files_process_of(pid_t tid, uid_t *uid)
{
	char buf[512], *at;

	read_proc(tid, "status", buf, sizeof buf);
	at = strstr(buf, "\nUid:");
	*uid = at ? (uid_t)strtoul(at + 5, NULL, 10) : (uid_t)-1;
	at = strstr(buf, "\nTgid:");
	return at ? atoi(at + 6) : 0;
}

/*
 * An io_uring worker has no system call to look at, but the kernel says where it waits: in io_read or
 * io_write it leaves the pages where they are. Elsewhere, or if that can't be read, it stays unknown.
 */
static bool worker_transfers(pid_t tid)
{
	char buf[2048];

	read_proc(tid, "stack", buf, sizeof buf);
	return strstr(buf, " io_read+") || strstr(buf, " io_write+");
}

bool pl_files_look(const struct fanotify_event_metadata *m, struct pl_files_seen *seen)
{
	struct pl_syscall sc;

	if (syscall(SYS_fstat, m->fd, &seen->st))
		return false; /* can't be; and without the inode nobody could say whose it is */
	describe(m, &seen->st, &seen->ev);
	seen->known = m->pid > 0 && !pl_files_blocked_call(m->pid, &seen->call);
	if (seen->known)
		sc = seen->call;
	if (seen->known && sc.nr == SYS_openat2 && read_open_how(m->pid, &sc))
		seen->known = false;
	if (seen->known)
		seen->ev.not_target = is_other_file(m->pid, pl_file_target_fd(&sc), &seen->st);
	if (!seen->known && m->pid > 0 && worker_transfers(m->pid))
		return false;
	return pl_file_decode(seen->known ? &sc : NULL, &seen->ev, &seen->op);
}
