/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The files source: changes of files on disk, told before, held and refused by fanotify (6.14).
 *
 * Two groups. A marks whole file systems for FAN_PRE_ACCESS and ignores everything there: it never gets
 * an event, but the kernel then gives every descriptor opened from now on the ability to have some. B
 * marks the leased inodes only. Invariants:
 * - an inode has a mark in B exactly while it is in `watched`, with one reference per lease;
 * - A ignores before it marks, so no task ever waits for A;
 * - what coverage() claims has been tried on that very file system.
 *
 * Locks: see files.h. watch_lock is taken first, `lock` inside it.
 */
#include "source/files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>

#include <pinlease/device.h>

#include "os/thread.h"
#include "source/sources.h"

#define OPS_HELD (PINL_OPS_FILE | PINL_OPBIT(PINL_OP_REMOVE))

struct pl_watched {
	struct pl_node node; /* by inode number */
	uint64_t dev;
	unsigned refs;
};

static struct pl_watched *find_file(struct pl_files *s, uint64_t dev, uint64_t ino)
{
	struct pl_node *n = pl_index_first(&s->watched, ino, ino + 1);

	while (n && ((struct pl_watched *)n)->dev != dev)
		n = pl_index_next(n, ino, ino + 1);
	return (struct pl_watched *)n;
}

static struct pl_watched *find(struct pl_files *s, const struct pinl_memory *mem)
{
	return find_file(s, mem->dev, mem->ino);
}

bool pl_files_is_watched(struct pl_files *s, uint64_t dev, uint64_t ino)
{
	return find_file(s, dev, ino);
}

/*
 * Have the gate do something with the file of `fd`, and wait for it. Where thousands of files are taken
 * up at once, waiting for another thread would be most of it. watch_lock held.
 */
static int ask(struct pl_files *s, enum pl_files_todo todo, int fd)
{
	struct pl_files_ask a = {.todo = todo};

	snprintf(a.path, sizeof a.path, "/proc/self/task/%d/fd/%d", gettid(), fd);
	if (s->groups_here)
		return pl_files_do(s, &a);
	pthread_mutex_lock(&s->lock);
	a.next = s->asks;
	s->asks = &a;
	pl_files_wake(s);
	while (!a.done)
		pthread_cond_wait(&s->done, &s->lock);
	pthread_mutex_unlock(&s->lock);
	return a.err;
}

/* What was found out about a file system. watch_lock held. */
static struct pl_fs_seen *fs_known(struct pl_files *s, const struct pinl_memory *mem)
{
	for (struct pl_fs_seen *fs = s->fs; fs < s->fs + PL_FILES_FS; fs++)
		if (fs->known && fs->dev == mem->dev && fs->magic == mem->fs_magic)
			return fs;
	return NULL;
}

/* Makes a new entry when there is none. watch_lock held. */
static struct pl_fs_seen *fs_seen(struct pl_files *s, const struct pinl_memory *mem)
{
	struct pl_fs_seen *fs = fs_known(s, mem);

	if (fs)
		return fs;
	fs = &s->fs[s->next_fs++ % PL_FILES_FS];
	*fs = (struct pl_fs_seen){.dev = mem->dev, .magic = mem->fs_magic};
	return fs;
}

static bool can_mark(struct pl_files *s, const struct pinl_memory *mem)
{
	struct pl_fs_seen *fs;
	int err;

	if (mem->fd < 0 || !mem->ino || mem->kind == PINL_MEM_ANON || mem->kind == PINL_MEM_DEVICE ||
	    mem->kind == PINL_MEM_SECRET)
		return false;
	if (find(s, mem))
		return true;
	fs = fs_seen(s, mem);
	if (!fs->known) {
		err = ask(s, PL_TODO_PROBE, mem->fd);
		fs->can = !err;
		/* Only what the file system itself says is worth remembering. */
		fs->known = !err || err == -EOPNOTSUPP;
	}
	return fs->can;
}

static unsigned files_coverage(void *src, const struct pinl_memory *mem, enum pinl_op op)
{
	struct pl_files *s = src;
	bool can;

	if (!(OPS_HELD & PINL_OPBIT(op)))
		return 0;
	pthread_mutex_lock(&s->watch_lock);
	can = can_mark(s, mem);
	pthread_mutex_unlock(&s->watch_lock);
	return can ? PINL_CAN_TELL | PINL_CAN_BEFORE | PINL_CAN_HOLD | PINL_CAN_REFUSE : 0;
}

static int mark_error(int err)
{
	if (err == -ENOSPC)
		return pinl_set_error(
			err,
			"no fanotify mark left for the file; raise /proc/sys/user/max_fanotify_marks");
	return pinl_set_error(err, "can't watch the file by fanotify: %s", strerror(-err));
}

static int first_watch(struct pl_files *s, const struct pinl_memory *mem)
{
	struct pl_watched *w = malloc(sizeof *w);
	struct pl_fs_seen *fs = fs_seen(s, mem);
	int err;

	if (!w)
		return pinl_set_error(-ENOMEM, "out of memory for a watched file");
	err = fs->watched ? 0 : ask(s, PL_TODO_MARK_FS, mem->fd);
	if (!err)
		err = ask(s, PL_TODO_MARK, mem->fd);
	if (err) {
		free(w);
		return mark_error(err);
	}
	*w = (struct pl_watched){
		.node = {.start = mem->ino, .end = mem->ino + 1}, .dev = mem->dev, .refs = 1};
	pl_index_insert(&s->watched, &w->node);
	fs->watched++;
	return 0;
}

/* If it was forgotten meanwhile and found out about again, too many are taken off. watch_lock held. */
static void one_less(struct pl_files *s, const struct pinl_memory *mem)
{
	struct pl_fs_seen *fs = fs_known(s, mem);

	if (fs && fs->watched)
		fs->watched--;
}

static int files_watch(void *src, const struct pinl_memory *mem)
{
	struct pl_files *s = src;
	struct pl_watched *w;
	int err = 0;

	pthread_mutex_lock(&s->watch_lock);
	if (can_mark(s, mem)) {
		w = find(s, mem);
		if (w)
			w->refs++;
		else
			err = first_watch(s, mem);
	}
	pthread_mutex_unlock(&s->watch_lock);
	return err;
}

static void files_unwatch(void *src, const struct pinl_memory *mem)
{
	struct pl_files *s = src;
	struct pl_watched *w, *gone = NULL;

	pthread_mutex_lock(&s->watch_lock);
	w = mem->ino ? find(s, mem) : NULL;
	if (w && --w->refs == 0) {
		ask(s, PL_TODO_UNMARK, mem->fd);
		one_less(s, mem);
		gone = w;
		pl_index_remove(&s->watched, &w->node);
	}
	pthread_mutex_unlock(&s->watch_lock);
	free(gone);
}

int pl_files_be_fair(void *src)
{
	struct pl_files *s = src;

	s->fair = true;
	if (pl_peek_open(&s->peek))
		return pinl_set_error(-ENOMEM, "out of memory for looking at tasks");
	return 0;
}

int pl_files_watch_fs(void *src, const char *path)
{
	struct pl_files *s = src;
	int fd = open(path, O_PATH | O_CLOEXEC), err;

	if (fd < 0)
		return pinl_set_error(-errno, "can't open %s: %s", path, strerror(errno));
	pthread_mutex_lock(&s->watch_lock);
	err = ask(s, PL_TODO_MARK_FS, fd);
	pthread_mutex_unlock(&s->watch_lock);
	close(fd);
	if (err == -EOPNOTSUPP || err == -EINVAL || err == -ENODEV || err == -EXDEV)
		return pinl_set_error(
			-EOPNOTSUPP,
			"the file system of %s gives no events before changes; ext4, XFS and "
			"btrfs do",
			path);
	return err ? mark_error(err) : 0;
}

/* ------------------------------------------------------------------------------ opening, closing -- */

/* Asked before any right is: an event that the kernel doesn't know is EINVAL, whatever the group. */
static bool kernel_can(void)
{
	return fanotify_mark(-1, FAN_MARK_ADD, FAN_PRE_ACCESS, AT_FDCWD, NULL) && errno != EINVAL;
}

static int start_error(const struct pl_files *s)
{
	int err = s->start_err;

	if (err == -EPERM && !kernel_can())
		err = -ENOSYS;
	if (err == -EPERM)
		return pinl_set_error(
			err,
			"holding changes of files needs CAP_SYS_ADMIN in the initial user namespace; "
			"run as root");
	if (err == -EINVAL || err == -ENOSYS)
		return pinl_set_error(
			-EOPNOTSUPP,
			"holding changes of files needs fanotify FAN_PRE_ACCESS, kernel 6.14 "
			"with CONFIG_FANOTIFY_ACCESS_PERMISSIONS");
	if (err == -EMFILE) /* not of this process's descriptors, so not a reason to have no context */
		return pinl_set_error(
			-ENOSPC, "no fanotify group left; raise /proc/sys/user/max_fanotify_groups");
	return pinl_set_error(err, "can't start watching files: %s: %s", s->start_step, strerror(-err));
}

/* An eventfd above the standard descriptors, which the gate treats apart. */
static int make_wake(bool kept)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), low;

	if (fd < 0)
		return -errno;
	if (fd > STDERR_FILENO && !kept)
		return fd;
	low = fd;
	fd = kept ? dup3(low, PL_FILES_WAKE, O_CLOEXEC) : fcntl(low, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
	if (fd < 0)
		fd = -errno;
	close(low);
	return fd;
}

/* One descriptor per stopped task, and some for the gate itself. */
static unsigned pool_size(void)
{
	struct rlimit r;

	if (getrlimit(RLIMIT_NOFILE, &r) || r.rlim_cur >= PL_FILES_MAX_HELD + 32)
		return PL_FILES_MAX_HELD;
	return r.rlim_cur > 64 ? r.rlim_cur - 32 : 32;
}

static void files_free(struct pl_files *s)
{
	if (s->wake >= 0)
		close(s->wake);
	while (s->watched.root) {
		struct pl_node *w = s->watched.root;

		pl_index_remove(&s->watched, w);
		free(w);
	}
	pthread_cond_destroy(&s->done);
	pthread_cond_destroy(&s->work);
	pthread_mutex_destroy(&s->lock);
	pthread_mutex_destroy(&s->watch_lock);
	pl_peek_free(&s->peek);
	if (!s->kept.table)
		free(s->held);
	free(s);
}

static int start_thread(pthread_t *thread, void *(*fn)(void *), struct pl_files *s)
{
	int err = pl_thread_start(thread, fn, s);

	if (err)
		return pinl_set_error(err, "can't start a thread to watch files: %s", strerror(-err));
	return 0;
}

static void stop_gate(struct pl_files *s)
{
	pthread_mutex_lock(&s->lock);
	s->stop = true;
	pthread_cond_signal(&s->work);
	pl_files_wake(s);
	pthread_mutex_unlock(&s->lock);
}

static int start_threads(struct pl_files *s)
{
	int err = start_thread(&s->gate, pl_files_gate, s);

	if (err)
		return err;
	pthread_mutex_lock(&s->lock);
	while (!s->started)
		pthread_cond_wait(&s->done, &s->lock);
	pthread_mutex_unlock(&s->lock);
	if (s->start_err) {
		pthread_join(s->gate, NULL);
		return start_error(s);
	}
	if (s->kept.resumed)
		pl_files_close_gates(s);
	err = start_thread(&s->reporter, pl_files_reporter, s);
	if (err) {
		stop_gate(s);
		pthread_join(s->gate, NULL);
	}
	return err;
}

static int files_open(struct pinl_ctx *ctx, const void *arg, void **src)
{
	struct pl_files *s = calloc(1, sizeof *s);
	int err;

	if (!s)
		return pinl_set_error(-ENOMEM, "out of memory for the files source");
	s->ctx = ctx;
	pthread_mutex_init(&s->lock, NULL);
	pthread_mutex_init(&s->watch_lock, NULL);
	pthread_cond_init(&s->done, NULL);
	pthread_cond_init(&s->work, NULL);
	s->reports_tail = &s->reports;
	if (arg)
		s->kept = *(const struct pl_files_kept *)arg;
	s->groups_here = s->kept.table;
	s->wake = make_wake(s->kept.table);
	s->n_held = s->kept.table ? PL_FILES_MAX_HELD : pool_size();
	s->held = s->kept.table ? s->kept.table->held : calloc(s->n_held, sizeof *s->held);
	if (s->wake < 0)
		err = pinl_set_error(s->wake,
				     "no descriptor left for the files source; raise ulimit -n");
	else if (!s->held)
		err = pinl_set_error(-ENOMEM, "out of memory for the files source");
	else
		err = start_threads(s);
	if (err) {
		files_free(s);
		return err;
	}
	*src = s;
	return 0;
}

void pl_files_go_on(void *src)
{
	struct pl_files *s = src;

	pthread_mutex_lock(&s->watch_lock);
	s->groups_here = false;
	pthread_mutex_unlock(&s->watch_lock);
	pthread_mutex_lock(&s->lock);
	s->go_on = true;
	pl_files_wake(s);
	pthread_mutex_unlock(&s->lock);
}

/* Closing lets everybody go: the gate allows all that still wait before it closes the groups. */
static void files_close(void *src)
{
	struct pl_files *s = src;

	stop_gate(s);
	pthread_join(s->reporter, NULL);
	pthread_join(s->gate, NULL);
	files_free(s);
}

const struct pinl_source_ops pl_files_ops = {
	.size = sizeof(struct pinl_source_ops),
	.name = "files",
	.open = files_open,
	.close = files_close,
	.coverage = files_coverage,
	.watch = files_watch,
	.unwatch = files_unwatch,
};
