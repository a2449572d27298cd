/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The thread of the files source that reads and answers fanotify: the gate. Invariants:
 * - every event that brings a descriptor gets exactly one answer, then its descriptor is closed;
 * - a pl_held is FREE and on the free list; or ASKED, and the reporter or the core has it until it is on
 *   `answered`; or ALLOWED, and on `allowed` until its change has happened; or DONE, until the reporter
 *   has said so;
 * - events are read only while there is a free pl_held for each that one read() can bring;
 * - the thread allocates nothing, waits for nothing but its own poll(), does nothing with a leased file
 *   but fstat() on the event's descriptor, and calls nothing of the core's that could wait or write.
 *
 * `lock` covers asks, reports, answered, stop, started; all else in here is the gate's own.
 */
#include "source/files.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#include "os/aside.h"
#include "os/compat.h"
#include "source/files_look.h"
#include "os/clock.h"
#include "os/wake.h"

#define EVENTS_B      (FAN_PRE_ACCESS | FAN_OPEN_PERM)
#define BIGGEST_EVENT 256
#define GIVE_UP_NS    250000000u
#define MAX_POLL_MS   32

/* ---------------------------------------------------------- raw calls on this thread's own table -- */

static void raw_close(int fd)
{
	syscall(SYS_close, fd);
}

static long raw_read(int fd, void *buf, size_t len)
{
	long n = syscall(SYS_read, fd, buf, len);

	return n < 0 ? -errno : n;
}

void pl_files_wake(struct pl_files *s)
{
	pl_wake(s->wake);
}

/* ------------------------------------------------------------------------------------- answering -- */

static void respond(int group, int fd, int err)
{
	struct fanotify_response r = {.fd = fd, .response = err ? FAN_DENY_ERRNO(-err) : FAN_ALLOW};

	while (syscall(SYS_write, group, &r, sizeof r) < 0) {
		if (errno == EINVAL && r.response != FAN_DENY && err)
			r.response = FAN_DENY; /* this kernel gives EPERM and nothing else */
		else if (errno != EINTR)
			break; /* ENOENT: the task was killed */
	}
}

static void hold_free(struct pl_files *s, struct pl_held *h)
{
	raw_close(h->fd);
	h->state = PL_HELD_FREE;
	h->next = s->free;
	s->free = h;
	s->n_free++;
}

static void on_answers(struct pl_files *s)
{
	struct pl_held *h, *next;

	pthread_mutex_lock(&s->lock);
	h = s->answered;
	s->answered = NULL;
	pthread_mutex_unlock(&s->lock);
	for (; h; h = next) {
		next = h->next;
		if (h->state == PL_HELD_DONE) {
			hold_free(s, h);
			continue;
		}
		respond(s->group_b, h->fd, h->err);
		if (h->err) {
			hold_free(s, h);
			continue;
		}
		h->state = PL_HELD_ALLOWED;
		h->allowed_ns = pl_clock_ns();
		h->next = s->allowed;
		s->allowed = h;
		s->poll_ms = 1;
	}
}

/* ---------------------------------------------------------------- has the allowed change happened? --
 */

/*
 * It has, when the task is gone or in another call, or the size is the new one twice in a row (the size
 * changes before the pages go). A task that runs all the time, or of which nobody knows what it does, is
 * believed after a while: then a lease could be made on pages that are about to go, and the notify
 * source tells of it afterwards.
 */
static bool has_happened(struct pl_held *h, uint64_t now)
{
	struct pl_syscall sc;
	struct stat st;
	int err;

	if (h->new_size >= 0 && !syscall(SYS_fstat, h->fd, &st) && st.st_size == h->new_size) {
		if (h->size_seen)
			return true;
		h->size_seen = true;
	}
	err = pl_task_syscall(0, h->tid, &sc);
	if (err == -ESRCH)
		return true;
	if (h->known && !err)
		return memcmp(&sc, &h->call, sizeof sc) != 0;
	if (h->known && err == -ENODATA)
		return true;
	return now - h->allowed_ns > GIVE_UP_NS;
}

/*
 * tid: this task has just stopped again, so it is through with the call before. (Or in a clone between
 * two watched files, the one call with two events: it is believed a moment early.)
 */
static void confirm(struct pl_files *s, pid_t tid)
{
	struct pl_held **p = &s->allowed, *h;
	uint64_t now = pl_clock_ns();

	while ((h = *p)) {
		if (tid ? h->tid != tid : !has_happened(h, now)) {
			p = &h->next;
			continue;
		}
		*p = h->next;
		h->state = PL_HELD_DONE;
		pl_files_report(s, h);
	}
}

/* ---------------------------------------------------------------------------------------- events -- */

static void hold(struct pl_files *s, const struct fanotify_event_metadata *m,
		 const struct pl_files_seen *seen)
{
	struct pl_held *h = s->free;

	s->free = h->next;
	s->n_free--;
	*h = (struct pl_held){
		.src = s, .state = PL_HELD_ASKED, .fd = m->fd, .tid = m->pid, .known = seen->known};
	h->new_size = seen->op.new_size;
	if (seen->known)
		h->call = seen->call;
	h->change = (struct pinl_change){
		.op = seen->op.op,
		.also = seen->op.also,
		.can = PINL_CAN_TELL | PINL_CAN_BEFORE | PINL_CAN_HOLD | PINL_CAN_REFUSE |
		       PINL_WILL_SAY_DONE,
		.on_file = 1,
		.file_dev = seen->st.st_dev,
		.file_ino = seen->st.st_ino,
		.file_start = seen->op.start,
		.file_end = seen->op.end,
		.actor_pid = m->pid > 0 ? pl_files_process_of(m->pid) : 0,
		.actor_tid = m->pid > 0 ? m->pid : 0,
		.source = "files",
	};
	pl_files_report(s, h);
}

/* True: the core will answer. False: nothing in it for anybody, let it go on. */
static bool ask_core(struct pl_files *s, const struct fanotify_event_metadata *m)
{
	struct pl_files_seen seen;

	if (m->pid > 0 && pinl_tid_exempt(s->ctx, m->pid))
		return false;
	if (!pl_files_look(m, &seen))
		return false;
	hold(s, m, &seen);
	return true;
}

static void on_event(struct pl_files *s, const struct fanotify_event_metadata *m)
{
	if (m->fd < 0)
		return; /* overflow: can't be, the queue is unlimited */
	if (s->allowed && m->pid > 0)
		confirm(s, m->pid);
	if (m->vers == FANOTIFY_METADATA_VERSION && ask_core(s, m))
		return;
	respond(s->group_b, m->fd, 0);
	raw_close(m->fd);
}

static void on_events(struct pl_files *s)
{
	_Alignas(struct fanotify_event_metadata) char buf[4096];
	size_t room = s->n_free * sizeof(struct fanotify_event_metadata);
	long n = raw_read(s->group_b, buf, room < sizeof buf ? room : sizeof buf);
	struct fanotify_event_metadata *m = (void *)buf;

	for (; n > 0 && FAN_EVENT_OK(m, n); m = FAN_EVENT_NEXT(m, n))
		on_event(s, m);
}

/* ------------------------------------------------------------------------------------------ asks -- */

static int mark(int group, unsigned flags, uint64_t mask, const char *path)
{
	return fanotify_mark(group, flags, mask, AT_FDCWD, path) ? -errno : 0;
}

static int do_ask(struct pl_files *s, const struct pl_files_ask *a)
{
	int err;

	switch (a->todo) {
	case PL_TODO_PROBE:
		err = mark(s->group_b, FAN_MARK_ADD, FAN_PRE_ACCESS, a->path);
		if (!err)
			mark(s->group_b, FAN_MARK_REMOVE, FAN_PRE_ACCESS, a->path);
		return err;
	case PL_TODO_MARK_FS:
		err = mark(s->group_a,
			   FAN_MARK_ADD | FAN_MARK_FILESYSTEM | FAN_MARK_IGNORE |
				   FAN_MARK_IGNORED_SURV_MODIFY,
			   FAN_PRE_ACCESS, a->path);
		return err ? err
			   : mark(s->group_a, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_PRE_ACCESS,
				  a->path);
	case PL_TODO_MARK:
		return mark(s->group_b, FAN_MARK_ADD, EVENTS_B, a->path);
	case PL_TODO_UNMARK:
		return mark(s->group_b, FAN_MARK_REMOVE, EVENTS_B, a->path);
	}
	return -EINVAL;
}

/* Returns true when it is time to stop. An ask lives on its caller's stack only until it is done. */
static bool on_asks(struct pl_files *s)
{
	struct pl_files_ask *a, *next;
	bool stop;

	pthread_mutex_lock(&s->lock);
	a = s->asks;
	s->asks = NULL;
	stop = s->stop;
	pthread_mutex_unlock(&s->lock);
	for (; a; a = next) {
		int err = do_ask(s, a);

		next = a->next;
		pthread_mutex_lock(&s->lock);
		a->err = err;
		a->done = true;
		pthread_cond_broadcast(&s->done);
		pthread_mutex_unlock(&s->lock);
	}
	return stop;
}

/* ------------------------------------------------------------------------------- life of the thread --
 */

static int make_group(int *group)
{
	unsigned flags = FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK | FAN_REPORT_TID |
			 FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS;

	*group = fanotify_init(flags, O_RDONLY | O_LARGEFILE | O_CLOEXEC);
	return *group < 0 ? -errno : 0;
}

static int start(struct pl_files *s)
{
	int err;

	for (unsigned i = 0; i < s->n_held; i++) {
		s->held[i].next = s->free;
		s->free = &s->held[i];
	}
	s->n_free = s->n_held;
	s->start_step = "a descriptor table of its own";
	err = pl_own_table(s->wake);
	if (err)
		return err == -EINVAL ? -EPROTO : err; /* EINVAL is for "unknown to this kernel" below */
	s->start_step = "fanotify_init";
	err = make_group(&s->group_a);
	if (!err)
		err = make_group(&s->group_b);
	if (err)
		return err;
	s->start_step = "FAN_PRE_ACCESS";
	/* EBADF: the kernel knows the event; EINVAL: it doesn't. */
	return fanotify_mark(s->group_b, FAN_MARK_ADD, FAN_PRE_ACCESS, -1, NULL) && errno == EINVAL
		       ? -EINVAL
		       : 0;
}

static void let_all_go(struct pl_files *s)
{
	on_answers(s);
	for (unsigned i = 0; i < s->n_held; i++)
		if (s->held[i].state == PL_HELD_ASKED)
			respond(s->group_b, s->held[i].fd, 0);
	raw_close(s->group_b); /* what was never read goes on now */
	raw_close(s->group_a);
}

static void loop(struct pl_files *s)
{
	struct pollfd fds[2] = {{.fd = s->wake, .events = POLLIN}, {.events = POLLIN}};
	uint64_t woken;

	while (!on_asks(s)) {
		on_answers(s);
		/* Too few left for one read(): the others wait in the kernel's queue. */
		fds[1].fd = s->n_free * sizeof(struct fanotify_event_metadata) >= BIGGEST_EVENT
				    ? s->group_b
				    : -1;
		poll(fds, 2, s->allowed ? (int)s->poll_ms : -1);
		if (fds[0].revents & POLLIN)
			raw_read(s->wake, &woken, sizeof woken);
		if (fds[1].fd >= 0 && (fds[1].revents & POLLIN))
			on_events(s);
		if (s->allowed) {
			confirm(s, 0);
			s->poll_ms = s->poll_ms < MAX_POLL_MS ? s->poll_ms * 2 : MAX_POLL_MS;
		}
	}
}

void *pl_files_gate(void *src)
{
	struct pl_files *s = src;
	int err;

	prctl(PR_SET_NAME, "pinl-gate");
	err = start(s);
	pthread_mutex_lock(&s->lock);
	s->start_err = err;
	s->started = true;
	pthread_cond_broadcast(&s->done);
	pthread_mutex_unlock(&s->lock);
	if (err)
		return NULL; /* its table closes with it */
	loop(s);
	let_all_go(s);
	return NULL;
}
