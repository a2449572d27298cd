/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The thread aside. Invariants: it has its own table before it runs the first job, or opens nothing; a
 * job lives on its caller's stack until `done` is posted. `lock` covers jobs and stop.
 */
#include "os/aside.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/close_range.h>

#include "os/thread.h"

struct job {
	long (*fn)(void *arg);
	void *arg;
	long result;
	sem_t done;
	struct job *next;
};

struct pl_aside {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t work;
	struct job *jobs, **tail;
	bool stop;
	int err; /* the thread's own: no table */
};

/* Who wrote to the program's stderr must see its end when the program closes it. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define KEEP_STDERR 1 /* reports go there */
#else
#define KEEP_STDERR 0
#endif

int pl_own_table(int first, int last)
{
	const int std = STDERR_FILENO;

	if (first < std)
		first = last = std;
	/* The tail comes first, because what the first call closes isn't even copied. */
	if (syscall(SYS_close_range, last + 1, ~0u, CLOSE_RANGE_UNSHARE) ||
	    (first > std + 1 && syscall(SYS_close_range, std + 1, first - 1, 0)) ||
	    syscall(SYS_close_range, 0, std - KEEP_STDERR, 0))
		return -errno;
	for (int i = 0; i <= std - KEEP_STDERR; i++) /* for who prints without asking */
		syscall(SYS_openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC);
	return 0;
}

static struct job *next_job(struct pl_aside *a)
{
	struct job *j;

	pthread_mutex_lock(&a->lock);
	while (!a->jobs && !a->stop)
		pthread_cond_wait(&a->work, &a->lock);
	j = a->jobs;
	if (j && !(a->jobs = j->next))
		a->tail = &a->jobs;
	pthread_mutex_unlock(&a->lock);
	return j;
}

static void *aside(void *arg)
{
	struct pl_aside *a = arg;
	struct job *j;

	prctl(PR_SET_NAME, "pinl-aside");
	a->err = pl_own_table(-1, -1);
	while ((j = next_job(a))) {
		j->result = j->fn(j->arg);
		sem_post(&j->done);
	}
	/* The kernel wakes who joins a thread before it takes the thread's table away. */
	if (!a->err)
		syscall(SYS_close_range, 0, ~0u, 0);
	return NULL;
}

int pl_aside_new(struct pl_aside **out)
{
	struct pl_aside *a = calloc(1, sizeof *a);
	int err;

	if (!a)
		return -ENOMEM;
	pthread_mutex_init(&a->lock, NULL);
	pthread_cond_init(&a->work, NULL);
	a->tail = &a->jobs;
	err = pl_thread_start(&a->thread, aside, a);
	if (err) {
		free(a);
		return err;
	}
	*out = a;
	return 0;
}

void pl_aside_free(struct pl_aside *a)
{
	if (!a)
		return;
	pthread_mutex_lock(&a->lock);
	a->stop = true;
	pthread_cond_signal(&a->work);
	pthread_mutex_unlock(&a->lock);
	pthread_join(a->thread, NULL);
	pthread_cond_destroy(&a->work);
	pthread_mutex_destroy(&a->lock);
	free(a);
}

long pl_aside_run(struct pl_aside *a, long (*fn)(void *arg), void *arg)
{
	struct job j = {.fn = fn, .arg = arg};
	int cancel;

	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	sem_init(&j.done, 0, 0);
	pthread_mutex_lock(&a->lock);
	*a->tail = &j;
	a->tail = &j.next;
	pthread_mutex_unlock(&a->lock);
	pthread_cond_signal(&a->work); /* whoever wakes up shall find the lock free */
	while (sem_wait(&j.done))
		;
	sem_destroy(&j.done);
	pthread_setcancelstate(cancel, NULL);
	return j.result;
}

struct opening {
	struct pl_aside *a;
	char path[64];
	int flags;
};

static long do_open(void *arg)
{
	struct opening *o = arg;
	int fd;

	if (o->a->err)
		return o->a->err;
	fd = syscall(SYS_openat, AT_FDCWD, o->path, o->flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	return fd < 0 ? -errno : fd;
}

int pl_aside_open(struct pl_aside *a, int fd, int flags)
{
	struct opening o = {.a = a, .flags = flags};

	snprintf(o.path, sizeof o.path, "/proc/self/task/%d/fd/%d", gettid(), fd);
	return pl_aside_run(a, do_open, &o);
}

static long do_close(void *arg)
{
	return syscall(SYS_close, *(int *)arg);
}

void pl_aside_close(struct pl_aside *a, int fd)
{
	pl_aside_run(a, do_close, &fd);
}

struct mapping {
	int fd, prot;
	off_t offset;
	size_t len;
	void *at;
};

static long do_map(void *arg)
{
	struct mapping *m = arg;

	m->at = (void *)syscall(SYS_mmap, NULL, m->len, m->prot, MAP_SHARED | MAP_NORESERVE, m->fd,
				m->offset);
	return m->at == MAP_FAILED ? errno : 0;
}

void *pl_aside_map(struct pl_aside *a, int fd, int prot, off_t offset, size_t len)
{
	struct mapping m = {.fd = fd, .prot = prot, .offset = offset, .len = len};
	int err = pl_aside_run(a, do_map, &m);

	if (err)
		errno = err;
	return m.at;
}

static long do_error(void *arg)
{
	return ((struct pl_aside *)arg)->err;
}

int pl_aside_error(struct pl_aside *a)
{
	return pl_aside_run(a, do_error, a);
}
