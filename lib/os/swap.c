/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The switch of a range to private memory.
 *
 * A fresh mapping is registered with a userfaultfd of our own for MISSING faults and moved over the
 * range by mremap(MREMAP_FIXED): for every thread an access is either before the switch, on the old
 * pages, or after it, on the new mapping, where it waits in a fault until its page is filled. Because
 * the filling starts after the switch, it reads every store made before it. Invariant: no page of the
 * range is ever visible unfilled, and no store goes to the old pages after the switch.
 *
 * The moved mapping keeps its userfaultfd only with EVENT_REMAP, and then the mover waits until the
 * event is read: that, and noting which pages threads wait for, is what the fault thread is for. It
 * allocates nothing and takes no lock. The pages are filled by the caller: wanted pages first, then
 * the rest in order.
 *
 * The application may do anything to the range meanwhile. What it moves away (mremap) takes its
 * registration along and is filled where it went; what it unmaps or replaces needs no filling; fork()
 * waits for the end, because a child's pages would never be filled. Whatever happens, nothing stays
 * registered behind a switch: a page that nobody fills would hang whoever touches it.
 */
#include "os/swap.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "os/compat.h"
#include "os/forked.h"
#include "os/thread.h"
#include "os/wake.h"

#define PAGE   4096ul
#define CHUNK  (256ul << 10)
#define WANTED 64
#define MOVES  16

/* A part of the range that the application has moved. */
struct move {
	uintptr_t from, to;
	size_t len;
};

struct pl_swap {
	int uffd, stop;
	bool user_only, started;
	pthread_t thread;
	/* Written by the fault thread, for the filler: pages that threads wait for; what was moved, in
	 * order; odd while an event is taken whose move is not in the list yet. */
	atomic_uintptr_t wanted[WANTED];
	struct move moves[MOVES];
	atomic_uint n_moves, taking;
	atomic_bool over; /* nobody fills any more */
	char *staging;
};

/* One switch at a time in a process, and none in a fork. */
static pthread_mutex_t switching = PTHREAD_MUTEX_INITIALIZER;

static void before_fork(void)
{
	pthread_mutex_lock(&switching);
}

static void after_fork(void)
{
	pthread_mutex_unlock(&switching);
}

static void watch_forks(void)
{
	pthread_atfork(before_fork, after_fork, after_fork);
}

/* Since 6.15 the kernel refuses as a whole what belongs to another userfaultfd in part. */
static void unregister(int uffd, uintptr_t start, uintptr_t end)
{
	struct uffdio_range range = {start, end - start};
	uintptr_t middle = start + (end - start) / 2 / PAGE * PAGE;

	if (!ioctl(uffd, UFFDIO_UNREGISTER, &range) || end - start <= PAGE)
		return;
	unregister(uffd, start, middle);
	unregister(uffd, middle, end);
}

/*
 * Nobody waits there any more, and nobody will. The kernel wakes only where it finds the mapping, and
 * who waits may do so where that was before it was moved, unmapped or mapped over.
 */
static void release(int uffd, uintptr_t start, uintptr_t end)
{
	struct uffdio_range range = {start, end - start};

	unregister(uffd, start, end);
	ioctl(uffd, UFFDIO_WAKE, &range);
}

static int uffd_open(bool *user_only)
{
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMAP};
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	*user_only = false;
	if (fd < 0 && errno == EPERM) {
		fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
		*user_only = true;
	}
	if (fd < 0)
		return -errno;
	if (ioctl(fd, UFFDIO_API, &api)) {
		int err = -errno;

		close(fd);
		return err;
	}
	if (pl_forked_add(fd)) {
		close(fd);
		return -EMFILE;
	}
	return fd;
}

static void note_wanted(struct pl_swap *s, uintptr_t page)
{
	for (int i = 0; i < WANTED; i++) {
		uintptr_t empty = 0;

		if (atomic_compare_exchange_strong(&s->wanted[i], &empty, page))
			return;
	}
	/* Full: the page comes when the filler gets there. */
}

/* No room, or too late to be filled: what is in there is lost to the mover, but he must not hang. */
static void note_move(struct pl_swap *s, uintptr_t from, uintptr_t to, size_t len)
{
	unsigned n = atomic_load(&s->n_moves);

	if (n < MOVES) {
		s->moves[n] = (struct move){from, to, len};
		atomic_store(&s->n_moves, n + 1);
	}
	if (n == MOVES || atomic_load(&s->over))
		release(s->uffd, to, to + len);
}

/* The sequence is odd from before an event is taken, which lets its mover go, until it is noted. */
static bool take_event(struct pl_swap *s)
{
	struct uffd_msg msg;
	bool got;

	atomic_fetch_add(&s->taking, 1);
	got = read(s->uffd, &msg, sizeof msg) == sizeof msg;
	if (got && msg.event == UFFD_EVENT_PAGEFAULT)
		note_wanted(s, msg.arg.pagefault.address & ~(PAGE - 1));
	else if (got && msg.event == UFFD_EVENT_REMAP)
		note_move(s, msg.arg.remap.from, msg.arg.remap.to, msg.arg.remap.len);
	atomic_fetch_add(&s->taking, 1);
	return got;
}

static void *fault_thread(void *arg)
{
	struct pl_swap *s = arg;
	struct pollfd p[2] = {{s->uffd, POLLIN, 0}, {s->stop, POLLIN, 0}};

	while (!(p[1].revents & POLLIN)) {
		if (poll(p, 2, -1) < 0)
			continue;
		while (take_event(s))
			;
	}
	return NULL;
}

int pl_swap_new(struct pl_swap **out)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct pl_swap *s = calloc(1, sizeof *s);

	if (!s)
		return -ENOMEM;
	pthread_once(&once, watch_forks);
	s->stop = -1;
	s->staging = mmap(NULL, CHUNK, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	s->uffd = uffd_open(&s->user_only);
	if (s->staging == MAP_FAILED)
		goto nomem;
	if (s->uffd >= 0) {
		s->stop = eventfd(0, EFD_CLOEXEC);
		if (s->stop < 0 || pl_thread_start(&s->thread, fault_thread, s)) {
			pl_forked_close(s->uffd);
			s->uffd = -1;
		} else {
			s->started = true;
		}
	}
	*out = s;
	return 0;
nomem:
	s->staging = NULL;
	pl_swap_free(s);
	return -ENOMEM;
}

void pl_swap_free(struct pl_swap *s)
{
	if (!s)
		return;
	if (s->started) {
		pl_wake(s->stop);
		pthread_join(s->thread, NULL);
	}
	if (s->stop >= 0)
		close(s->stop);
	pl_forked_close(s->uffd);
	if (s->staging)
		munmap(s->staging, CHUNK);
	free(s);
}

bool pl_swap_can_fill(const struct pl_swap *s)
{
	return s->uffd >= 0;
}

bool pl_swap_user_only(const struct pl_swap *s)
{
	return s->user_only;
}

/* Where the page that was at `at` when the switch began is now. */
static uintptr_t moved(struct pl_swap *s, uintptr_t at)
{
	unsigned n;

	while (atomic_load(&s->taking) & 1)
		sched_yield();
	n = atomic_load(&s->n_moves);
	for (unsigned i = 0; i < n; i++)
		if (at >= s->moves[i].from && at - s->moves[i].from < s->moves[i].len)
			at = s->moves[i].to + (at - s->moves[i].from);
	return at;
}

/* 0: there, also if it was there already; -ENOENT: this page is not ours any more. */
static int copy_page(struct pl_swap *s, uintptr_t at, const char *content)
{
	for (;;) {
		struct uffdio_copy c = {.dst = moved(s, at), .src = (uintptr_t)content, .len = PAGE};

		if (!ioctl(s->uffd, UFFDIO_COPY, &c) || errno == EEXIST)
			return 0;
		if (errno != EAGAIN && c.dst == moved(s, at)) /* EAGAIN: a move isn't noted yet */
			return -errno;
	}
}

/* Put len staged bytes where [at, at+len) is now: at once if it can be, else page by page. */
static int copy_in(struct pl_swap *s, uintptr_t at, size_t len)
{
	struct uffdio_copy c = {.dst = moved(s, at), .src = (uintptr_t)s->staging, .len = len};
	size_t done = 0;
	int err = 0;

	if (c.dst == at) {
		if (!ioctl(s->uffd, UFFDIO_COPY, &c))
			return 0;
		done = c.copy > 0 ? c.copy : 0;
	}
	for (; done < len; done += PAGE) {
		int one = copy_page(s, at + done, s->staging + done);

		err = err ? err : one;
	}
	return err;
}

struct filler {
	struct pl_swap *s;
	uintptr_t start, end;
	pl_fill_fn fill;
	void *arg;
	int err;
};

/* A part that can't be read becomes zeroes and is reported: a thread must not wait for ever. */
static void fill_part(struct filler *f, uintptr_t at, size_t len)
{
	int err = f->fill(f->arg, at - f->start, len, f->s->staging);

	if (err)
		memset(f->s->staging, 0, len);
	if (!err)
		err = copy_in(f->s, at, len);
	else
		copy_in(f->s, at, len);
	if (err && !f->err)
		f->err = err;
}

static void fill_wanted(struct filler *f)
{
	for (int i = 0; i < WANTED; i++) {
		uintptr_t page = atomic_exchange(&f->s->wanted[i], 0);

		if (page >= f->start && page < f->end)
			fill_part(f, page, PAGE);
	}
}

static int move_over(struct pl_swap *s, uintptr_t start, size_t len, void *with, int prot, bool missing)
{
	void *fresh =
		with ? with : mmap(NULL, len, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	struct uffdio_register reg = {.range = {(uintptr_t)fresh, len},
				      .mode = UFFDIO_REGISTER_MODE_MISSING};
	int err;

	if (fresh == MAP_FAILED)
		return -errno;
	if (missing && ioctl(s->uffd, UFFDIO_REGISTER, &reg))
		goto fail;
	if (mremap(fresh, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)start) == MAP_FAILED)
		goto fail;
	/* Somebody may have touched `fresh` before it moved, by an address that was once his, and waits
	 * there. */
	if (missing)
		ioctl(s->uffd, UFFDIO_WAKE, &reg.range);
	return 0;
fail:
	err = -errno;
	munmap(fresh, len);
	return err;
}

static int fill_all(struct pl_swap *s, uintptr_t start, uintptr_t end, pl_fill_fn fill, void *arg)
{
	struct filler f = {.s = s, .start = start, .end = end, .fill = fill, .arg = arg};

	for (uintptr_t at = start; at < end; at += CHUNK) {
		fill_wanted(&f);
		fill_part(&f, at, end - at < CHUNK ? end - at : CHUNK);
	}
	release(s->uffd, start, end);
	atomic_store(&s->over, true); /* what was moved and is not told yet is the fault thread's */
	moved(s, start);
	for (unsigned i = 0; i < atomic_load(&s->n_moves); i++)
		release(s->uffd, s->moves[i].to, s->moves[i].to + s->moves[i].len);
	return f.err;
}

int pl_swap_replace(struct pl_swap *s, uintptr_t start, uintptr_t end, void *with, bool writable,
		    pl_fill_fn fill, void *arg)
{
	int prot = PROT_READ | (writable ? PROT_WRITE : 0), err;

	if (fill && s->uffd < 0) {
		if (with)
			munmap(with, end - start);
		return -EOPNOTSUPP;
	}
	pthread_mutex_lock(&switching);
	atomic_store(&s->n_moves, 0);
	atomic_store(&s->over, false);
	err = move_over(s, start, end - start, with, prot, fill != NULL);
	if (!err && fill)
		err = fill_all(s, start, end, fill, arg);
	pthread_mutex_unlock(&switching);
	return err;
}

int pl_swap_place(struct pl_swap *s, uintptr_t start, uintptr_t end, pl_fill_fn fill, void *arg)
{
	size_t len = end - start;
	void *at = mmap((void *)start, len, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
	int err = 0;

	if (at == MAP_FAILED)
		return -errno;
	if (at != (void *)start) { /* kernels before 4.17 ignore the flag */
		munmap(at, len);
		return -EEXIST;
	}
	pthread_mutex_lock(&switching);
	for (size_t off = 0; fill && off < len && !err; off += CHUNK) {
		size_t n = len - off < CHUNK ? len - off : CHUNK;

		err = fill(arg, off, n, s->staging);
		if (!err)
			memcpy((char *)start + off, s->staging, n);
	}
	pthread_mutex_unlock(&switching);
	if (err)
		munmap(at, len);
	return err;
}

void pl_swap_unplace(uintptr_t start, uintptr_t end)
{
	munmap((void *)start, end - start);
}
