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

#include "core/ctx.h"
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

/* Runs while there is an inode to look at now and then; lock held. */
static void count_periodic(struct pl_notify *s, int more)
{
	bool ran = s->n_periodic;
	struct itimerspec t = {0};

	s->n_periodic += more;
	if (ran == (s->n_periodic > 0))
		return;
	t.it_interval.tv_nsec = t.it_value.tv_nsec = s->n_periodic ? PERIOD_NS : 0;
	timerfd_settime(s->timer, 0, &t, NULL);
}

static struct pl_noted *find(struct pl_notify *s, const struct pinl_memory *mem)
{
	struct pl_node *n = pl_index_first(&s->noted, mem->ino, mem->ino + 1);

	while (n && ((struct pl_noted *)n)->dev != mem->dev)
		n = pl_index_next(n, mem->ino, mem->ino + 1);
	return (struct pl_noted *)n;
}

static struct pl_noted_range *range_new(const struct pinl_memory *mem)
{
	uint64_t pages = (mem->end - mem->start) / PAGE, words = (pages + 63) / 64;
	struct pl_noted_range *r = calloc(1, sizeof *r + 2 * words * sizeof *r->bits);

	if (!r)
		return NULL;
	r->node.start = mem->start;
	r->node.end = mem->end;
	r->offset = mem->offset;
	r->pages = pages;
	r->kind = mem->kind;
	r->absent = r->bits;
	r->gone = r->bits + words;
	return r;
}

/* lock held, so that an unwatch of the same inode can't come between. */
static void noted_add(struct pl_notify *s, struct pl_noted *n, const struct pinl_memory *mem, int real)
{
	struct stat st;
	char path[64];

	n->node.start = mem->ino;
	n->node.end = mem->ino + 1;
	n->dev = mem->dev;
	n->ino = mem->ino;
	n->fd = mem->fd;
	n->real = real;
	pl_index_insert(&s->noted, &n->node);
	snprintf(path, sizeof path, "/proc/self/fd/%d", n->fd);
	n->wd = inotify_add_watch(s->inotify, path, IN_MODIFY);
	if (n->wd >= 0) {
		n->wd_node.start = n->wd;
		n->wd_node.end = (uintptr_t)n->wd + 1;
		pl_index_insert(&s->by_wd, &n->wd_node);
	}
	/* Unlinked, as memfd and shared anonymous memory are: the first descriptor may be a silent one.
	 */
	n->periodic = n->wd < 0 || mem->kind == PINL_MEM_HUGETLB || mem->is_memfd ||
		      (mem->kind == PINL_MEM_SHMEM && (fstat(n->fd, &st) || !st.st_nlink));
	count_periodic(s, n->periodic);
}

static void noted_remove(struct pl_notify *s, struct pl_noted *n)
{
	pl_index_remove(&s->noted, &n->node);
	count_periodic(s, -(int)n->periodic);
	if (n->dirty)
		TAILQ_REMOVE(&s->dirty, n, dirty_link);
	if (n->often)
		LIST_REMOVE(n, often_link);
	if (n->wd < 0)
		return;
	pl_index_remove(&s->by_wd, &n->wd_node);
	inotify_rm_watch(s->inotify, n->wd);
}

/* The file may have changed since the range's start: it comes next. */
static void add_range(struct pl_notify *s, struct pl_noted *n, struct pl_noted_range *r)
{
	r->next = n->ranges ? n->ranges : r;
	r->prev = n->ranges ? n->ranges->prev : r;
	r->next->prev = r->prev->next = r;
	n->ranges = r;
	n->refs++;
	n->left++;
	pl_index_insert(&n->by_va, &r->node);
	if (r->unborn)
		s->young_until = n->young_until = pl_clock_ns() + YOUNG_NS;
	if ((r->unborn || n->periodic) && !n->often) {
		LIST_INSERT_HEAD(&s->often, n, often_link);
		n->often = true;
	}
	pl_noted_dirty(s, n);
}

/* The inode, while nobody scans it. lock held. */
static struct pl_noted *find_idle(struct pl_notify *s, const struct pinl_memory *mem)
{
	struct pl_noted *n;

	s->waiting++;
	while ((n = find(s, mem)) && s->scanning == n)
		pthread_cond_wait(&s->idle, &s->lock);
	if (!--s->waiting)
		pthread_cond_broadcast(&s->idle);
	return n;
}

static int notify_watch(void *src, const struct pinl_memory *mem)
{
	struct pl_notify *s = src;
	struct pl_noted_range *r;
	struct pl_noted *fresh, *n;
	int real;

	if (!has_business(mem))
		return 0;
	r = range_new(mem);
	fresh = calloc(1, sizeof *fresh); /* in vain for a second lease of the inode */
	if (!r || !fresh) {
		free(fresh);
		free(r);
		return pinl_set_error(-ENOMEM, "no memory left to watch a file");
	}
	real = pl_inode_real(s->ctx, mem);
	pl_noted_baseline(s->ctx->aside, mem->fd, real, r);
	pthread_mutex_lock(&s->lock);
	n = find_idle(s, mem);
	if (!n) {
		n = fresh;
		fresh = NULL;
		noted_add(s, n, mem, real);
	}
	add_range(s, n, r);
	pthread_mutex_unlock(&s->lock);
	pl_notify_wake(s); /* the thread begins with the lock */
	free(fresh);
	return 0;
}

static struct pl_noted_range *take_range(struct pl_noted *n, const struct pinl_memory *mem)
{
	struct pl_node *at = pl_index_first(&n->by_va, mem->start, mem->end);
	struct pl_noted_range *r;

	while (at && (at->start != mem->start || at->end != mem->end ||
		      ((struct pl_noted_range *)at)->offset != mem->offset))
		at = pl_index_next(at, mem->start, mem->end);
	if (!at)
		return NULL;
	r = (struct pl_noted_range *)at;
	pl_index_remove(&n->by_va, at);
	r->prev->next = r->next;
	r->next->prev = r->prev;
	if (n->ranges == r)
		n->ranges = r->next;
	n->refs--;
	if (n->left > n->refs) /* else at worst one is looked at twice */
		n->left = n->refs;
	return r;
}

static void notify_unwatch(void *src, const struct pinl_memory *mem)
{
	struct pl_notify *s = src;
	struct pl_noted_range *r = NULL;
	struct pl_noted *n, *gone = NULL;

	if (!has_business(mem))
		return;
	pthread_mutex_lock(&s->lock);
	n = find_idle(s, mem);
	if (n)
		r = take_range(n, mem);
	if (r && !n->refs) {
		gone = n;
		noted_remove(s, n);
	}
	pthread_mutex_unlock(&s->lock);
	free(r);
	free(gone);
}

/* ------------------------------------------------------------------------------ opening, closing -- */

static void notify_free(struct pl_notify *s)
{
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
	TAILQ_INIT(&s->dirty);
	LIST_INIT(&s->often);
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
