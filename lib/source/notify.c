/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The notify source: tells of changes of files after they happened, without privilege, where nobody can
 * hold them (tmpfs, memfd, hugetlb, or no CAP_SYS_ADMIN). An inotify mark or a timer says that a file
 * may have lost pages, and notify_scan.c says which.
 *
 * The timer is there because a memfd's first descriptor makes no inotify events at all for fallocate.
 *
 * Invariants: an inode is in `noted` once, with one reference per lease and one range per lease; the
 * thread allocates and frees nothing: who waits for `scanning` to end frees. `lock` covers what notify.h
 * says; it isn't held in scans nor in calls of the core.
 */
#include "source/notify.h"

#include "os/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <pinlease/device.h>

#include "os/thread.h"
#include "source/sources.h"

#define PAGE	  4096ull
#define PERIOD_NS 100000000
#define YOUNG_NS  200000000ull

static bool has_business(const struct pinl_memory *mem)
{
	if (mem->fd < 0 || !mem->ino)
		return false;
	return mem->kind == PINL_MEM_SHMEM || mem->kind == PINL_MEM_HUGETLB ||
	       mem->kind == PINL_MEM_FILE_SHARED || mem->kind == PINL_MEM_FILE_PRIVATE ||
	       mem->kind == PINL_MEM_DAX;
}

/*
 * A collapse or an insert moves data and leaves no hole behind, so it can't be found; tmpfs and
 * hugetlbfs don't do them, so there is nothing to find. Nor can a hole under a private mapping: whether
 * it takes a page depends on whose the page was.
 */
static unsigned notify_coverage(void *src, const struct pinl_memory *mem, enum pinl_op op)
{
	bool memory_fs = mem->fs_magic == TMPFS_MAGIC || mem->kind == PINL_MEM_HUGETLB;

	if (!has_business(mem))
		return 0;
	switch (op) {
	case PINL_OP_TRUNCATE:
		return PINL_CAN_TELL;
	case PINL_OP_PUNCH:
	case PINL_OP_ZERO:
	case PINL_OP_REMOVE:
		return mem->kind == PINL_MEM_FILE_PRIVATE ? 0 : PINL_CAN_TELL;
	case PINL_OP_COLLAPSE:
	case PINL_OP_INSERT:
		return memory_fs ? PINL_CAN_TELL : 0;
	default:
		return 0;
	}
}

/* --------------------------------------------------------------------------------------- watching -- */

static void set_timer(struct pl_notify *s)
{
	struct itimerspec t = {{0, s->n_periodic ? PERIOD_NS : 0}, {0, s->n_periodic ? PERIOD_NS : 0}};

	timerfd_settime(s->timer, 0, &t, NULL);
}

static struct pl_noted **find(struct pl_notify *s, const struct pinl_memory *mem)
{
	struct pl_noted **n = &s->noted;

	while (*n && ((*n)->dev != mem->dev || (*n)->ino != mem->ino))
		n = &(*n)->next;
	return n;
}

static struct pl_noted_range *range_new(const struct pinl_memory *mem)
{
	uint64_t pages = (mem->end - mem->start) / PAGE, words = (pages + 63) / 64;
	struct pl_noted_range *r = calloc(1, sizeof *r + 2 * words * sizeof *r->bits);

	if (!r)
		return NULL;
	r->va = mem->start;
	r->offset = mem->offset;
	r->pages = pages;
	r->kind = mem->kind;
	r->absent = r->bits;
	r->gone = r->bits + words;
	return r;
}

static void noted_free(struct pl_noted *n)
{
	if (!n)
		return;
	if (n->fd >= 0)
		close(n->fd);
	if (n->size_fd >= 0 && n->size_fd != n->fd)
		close(n->size_fd);
	free(n);
}

/* lseek moves the offset that a description has in common with the program's, so it needs its own. */
static struct pl_noted *noted_new(const struct pinl_memory *mem)
{
	struct pl_noted *n = calloc(1, sizeof *n);
	char path[64];

	if (!n)
		return NULL;
	snprintf(path, sizeof path, "/proc/self/fd/%d", mem->fd);
	n->dev = mem->dev;
	n->ino = mem->ino;
	n->wd = -1;
	n->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	n->size_fd = n->fd >= 0 ? n->fd : fcntl(mem->fd, F_DUPFD_CLOEXEC, 0);
	if (n->size_fd < 0) {
		noted_free(n);
		return NULL;
	}
	return n;
}

/* lock held, so that an unwatch of the same inode can't come between. */
static void noted_add(struct pl_notify *s, struct pl_noted *n, const struct pinl_memory *mem)
{
	struct stat st;
	char path[64];

	snprintf(path, sizeof path, "/proc/self/fd/%d", n->size_fd);
	n->wd = inotify_add_watch(s->inotify, path, IN_MODIFY);
	/* Unlinked, as memfd and shared anonymous memory are: the first descriptor may be a silent one.
	 */
	n->periodic = n->wd < 0 || mem->kind == PINL_MEM_HUGETLB || mem->is_memfd ||
		      (mem->kind == PINL_MEM_SHMEM && (fstat(n->size_fd, &st) || !st.st_nlink));
	s->n_periodic += n->periodic;
	set_timer(s);
}

static void add_range(struct pl_notify *s, struct pl_noted *n, struct pl_noted_range *r)
{
	r->next = n->ranges;
	n->ranges = r;
	n->refs++;
	if (r->unborn)
		s->young_until = pl_clock_ns() + YOUNG_NS;
	n->seen = false; /* its last scan may be older than this range's start */
	n->dirty = true;
	pl_notify_wake(s);
}

/* The place of the inode in the list, once nobody scans it. lock held. */
static struct pl_noted **find_idle(struct pl_notify *s, const struct pinl_memory *mem)
{
	struct pl_noted **n = find(s, mem);

	while (*n && s->scanning == *n) {
		pthread_cond_wait(&s->idle, &s->lock);
		n = find(s, mem);
	}
	return n;
}

static int notify_watch(void *src, const struct pinl_memory *mem)
{
	struct pl_notify *s = src;
	struct pl_noted_range *r;
	struct pl_noted *fresh, **at;

	if (!has_business(mem))
		return 0;
	r = range_new(mem);
	fresh = noted_new(mem); /* in vain for a second lease of the inode */
	if (!r || !fresh) {
		noted_free(fresh);
		free(r);
		return pinl_set_error(-ENOMEM, "no memory or descriptor left to watch a file");
	}
	pl_noted_baseline(fresh, r);
	pthread_mutex_lock(&s->lock);
	at = find_idle(s, mem);
	if (!*at) {
		noted_add(s, fresh, mem);
		*at = fresh;
		fresh = NULL;
	}
	add_range(s, *at, r);
	pthread_mutex_unlock(&s->lock);
	noted_free(fresh);
	return 0;
}

static struct pl_noted_range *take_range(struct pl_noted *n, const struct pinl_memory *mem)
{
	struct pl_noted_range **p = &n->ranges, *r;

	while (*p && ((*p)->va != mem->start || (*p)->offset != mem->offset ||
		      (*p)->pages != (mem->end - mem->start) / PAGE))
		p = &(*p)->next;
	r = *p;
	if (r)
		*p = r->next;
	return r;
}

static void notify_unwatch(void *src, const struct pinl_memory *mem)
{
	struct pl_notify *s = src;
	struct pl_noted_range *r = NULL;
	struct pl_noted *gone = NULL, **at;

	if (!has_business(mem))
		return;
	pthread_mutex_lock(&s->lock);
	at = find_idle(s, mem);
	if (*at)
		r = take_range(*at, mem);
	if (r && --(*at)->refs == 0) {
		gone = *at;
		*at = gone->next;
		s->n_periodic -= gone->periodic;
		set_timer(s);
		if (gone->wd >= 0)
			inotify_rm_watch(s->inotify, gone->wd);
	}
	pthread_mutex_unlock(&s->lock);
	free(r);
	noted_free(gone);
}

/* ------------------------------------------------------------------------------ opening, closing -- */

static void notify_free(struct pl_notify *s)
{
	for (struct pl_noted *n = s->noted, *next; n; n = next) {
		for (struct pl_noted_range *r = n->ranges, *more; r; r = more) {
			more = r->next;
			free(r);
		}
		next = n->next;
		noted_free(n);
	}
	if (s->inotify >= 0)
		close(s->inotify);
	if (s->timer >= 0)
		close(s->timer);
	if (s->wake >= 0)
		close(s->wake);
	pthread_cond_destroy(&s->idle);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

static int open_error(int err)
{
	if (err == -EMFILE)
		return pinl_set_error(err, "no descriptor or inotify instance left; raise ulimit -n or "
					   "/proc/sys/fs/inotify/max_user_instances");
	return pinl_set_error(err, "can't start telling of changed files: %s", strerror(-err));
}

static int notify_open(struct pinl_ctx *ctx, const void *arg, void **src)
{
	struct pl_notify *s = calloc(1, sizeof *s);
	int err = 0;

	if (!s)
		return pinl_set_error(-ENOMEM, "out of memory for the notify source");
	s->ctx = ctx;
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->idle, NULL);
	for (int i = 0; i < PL_NOTIFY_POOL; i++) {
		s->pool[i].src = s;
		s->pool[i].next = s->free;
		s->free = &s->pool[i];
	}
	s->timer = s->wake = -1;
	s->inotify = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	if (s->inotify >= 0)
		s->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (s->timer >= 0)
		s->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (s->wake < 0)
		err = -errno;
	if (!err)
		err = pl_thread_start(&s->thread, pl_notify_thread, s);
	if (err) {
		notify_free(s);
		return open_error(err);
	}
	*src = s;
	return 0;
}

static void notify_close(void *src)
{
	struct pl_notify *s = src;

	pthread_mutex_lock(&s->lock);
	s->stop = true;
	pl_notify_wake(s);
	pthread_mutex_unlock(&s->lock);
	pthread_join(s->thread, NULL);
	notify_free(s);
}

const struct pinl_source_ops pl_notify_ops = {
	.size = sizeof(struct pinl_source_ops),
	.name = "notify",
	.open = notify_open,
	.close = notify_close,
	.coverage = notify_coverage,
	.watch = notify_watch,
	.unwatch = notify_unwatch,
};
