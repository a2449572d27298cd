/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The thread of the files source that reads and answers fanotify: the gate. Invariants:
 * - every event that brings a descriptor gets exactly one answer, then its descriptor is closed;
 * - a pl_held is FREE and on the free list; or UNSEEN and on `unseen`, until its task can be looked at
 *   (files_unseen.c); or ASKED, and the reporter or the core has it until it is on `answered`; or
 *   ALLOWED, and on `allowed` until its change has happened; or DONE, until the reporter has said so;
 * - events are read only while there is a free pl_held for each that one read() can bring;
 * - the thread allocates nothing, waits for nothing but its own poll() and, for a bounded time, a child
 *   that looks at a task (files_peek.c), does nothing with a leased file but fstat() on the event's
 *   descriptor, and calls nothing of the core's that could wait or write.
 *
 * What is kept is written before the world can see it: an event is in the table when it has been read,
 * and leaves it when a pl_held has it or it is answered; a pl_held is ALLOWED when it has been answered.
 *
 * `lock` covers asks, reports, answered, stop, started, go_on; all else in here is the gate's own.
 */
#include "source/files.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#include "os/aside.h"
#include "os/compat.h"
#include "os/clock.h"
#include "os/wake.h"

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

void pl_files_respond(struct pl_files *s, int fd, int err)
{
	struct fanotify_response r = {.fd = fd, .response = err ? FAN_DENY_ERRNO(-err) : FAN_ALLOW};

	while (syscall(SYS_write, s->group_b, &r, sizeof r) < 0) {
		if (errno == EINVAL && r.response != FAN_DENY && err)
			r.response = FAN_DENY; /* this kernel gives EPERM and nothing else */
		else if (errno != EINTR)
			break; /* ENOENT: the task was killed */
	}
}

void pl_files_free(struct pl_files *s, struct pl_held *h)
{
	raw_close(h->fd);
	h->state = PL_HELD_FREE;
	h->next = s->free;
	s->free = h;
	s->n_free++;
}

void pl_files_allowed(struct pl_files *s, struct pl_held *h)
{
	h->allowed_ns = pl_clock_ns();
	h->next = s->allowed;
	s->allowed = h;
	s->poll_ms = 1;
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
			pl_files_free(s, h);
			continue;
		}
		pl_files_respond(s, h->fd, h->err);
		if (h->err) {
			pl_files_free(s, h);
			continue;
		}
		h->state = PL_HELD_ALLOWED;
		pl_files_allowed(s, h);
	}
}

/* ---------------------------------------------------------- has the allowed change happened? -- */

/* Twice in a row: the size changes before the pages go. */
static bool has_new_size(struct pl_held *h)
{
	struct stat st;
	bool before = h->size_seen;

	h->size_seen = h->new_size >= 0 && !syscall(SYS_fstat, h->fd, &st) && st.st_size == h->new_size;
	return before && h->size_seen;
}

/*
 * It has, when the task is gone or in another call. The size says it only of a task of which nobody
 * knows what it does: another one may have given the file the same. Such a task, and one that runs all
 * the time, is believed after a while, for which its pages can't be leased: then a lease could be made
 * on pages that are about to go, and the notify source tells of it afterwards.
 */
static bool has_happened(struct pl_files *s, struct pl_held *h, uint64_t now)
{
	struct pl_syscall sc;
	int err = pl_files_peek_call(&s->peek, h->tid, PL_FILES_NEXT, &sc);

	if (err == -ESRCH)
		return true;
	if (h->known && !err)
		return memcmp(&sc, &h->call, sizeof sc) != 0;
	if (h->known && err == -ENODATA)
		return true;
	return (!h->known && has_new_size(h)) || now - h->allowed_ns > GIVE_UP_NS;
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
		if (tid ? h->tid != tid : !has_happened(s, h, now)) {
			p = &h->next;
			continue;
		}
		*p = h->next;
		h->state = PL_HELD_DONE;
		pl_files_report(s, h);
	}
}

/* ---------------------------------------------------------------------------------------- events -- */

/*
 * Among users who don't trust each other: whose tasks have half of the places may not have the last
 * quarter, too. Then his change fails, instead of others' waiting in the kernel's queue.
 */
static bool crowds_out(const struct pl_files *s, uid_t uid)
{
	unsigned his = 0;

	if (!s->fair || s->n_free >= s->n_held / 4)
		return false;
	for (unsigned i = 0; i < s->n_held; i++)
		his += s->held[i].state != PL_HELD_FREE && s->held[i].uid == uid;
	return his >= s->n_held / 2;
}

/* NULL: not held, as he has too many. */
struct pl_held *pl_files_take(struct pl_files *s, const struct fanotify_event_metadata *m)
{
	struct pl_held *h = s->free;
	uid_t uid = -1;
	pid_t pid = 0;

	if (m->pid > 0)
		pl_task_owner(m->pid, &pid, &uid);
	if (!h || crowds_out(s, uid))
		return NULL;
	s->free = h->next;
	s->n_free--;
	*h = (struct pl_held){.src = s, .fd = m->fd, .tid = m->pid, .uid = uid};
	h->change.actor_pid = pid;
	h->change.actor_tid = m->pid > 0 ? m->pid : 0;
	return h;
}

void pl_files_ask_core(struct pl_files *s, struct pl_held *h, const struct pl_files_seen *seen)
{
	h->order = ++s->order;
	h->known = seen->task.known;
	h->new_size = seen->op.new_size;
	if (seen->task.known)
		h->call = seen->task.call;
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
		.actor_pid = h->change.actor_pid,
		.actor_tid = h->change.actor_tid,
		.source = "files",
	};
	atomic_signal_fence(memory_order_release); /* what is kept is whole when it says so */
	h->state = PL_HELD_ASKED;
	pl_files_report(s, h);
}

/* 1: it will be answered. Else the answer: 0, nothing in it for anybody, let it go on; -errno. */
static int first_look(struct pl_files *s, const struct fanotify_event_metadata *m)
{
	struct pl_files_seen seen;
	struct pl_held *h;

	if (m->pid > 0 && pinl_tid_exempt(s->ctx, m->pid))
		return 0;
	switch (pl_files_look(&s->peek, m, &seen, PL_FILES_FIRST)) {
	case PL_FILES_PASS:
		return 0;
	case PL_FILES_AGAIN:
		return pl_files_defer(s, m, false);
	case PL_FILES_CHANGE:
		break;
	}
	h = pl_files_take(s, m);
	if (!h)
		return -EBUSY;
	pl_files_ask_core(s, h, &seen);
	return 1;
}

void pl_files_event(struct pl_files *s, const struct fanotify_event_metadata *m)
{
	int answer = 0;

	if (m->fd < 0)
		return; /* overflow: can't be, the queue is unlimited */
	if (s->kept.resumed)
		pl_files_forget_stale(s, m->fd);
	if (s->allowed && m->pid > 0)
		confirm(s, m->pid);
	if (m->vers == FANOTIFY_METADATA_VERSION)
		answer = first_look(s, m);
	if (answer > 0)
		return;
	pl_files_respond(s, m->fd, answer);
	raw_close(m->fd);
}

/* Into the table that is kept, so that an event which has been read is known there at once. */
static void on_events(struct pl_files *s)
{
	_Alignas(struct fanotify_event_metadata) char own[4096];
	char *buf = s->kept.table ? s->kept.table->events : own;
	size_t room = s->n_free * sizeof(struct fanotify_event_metadata);
	struct fanotify_event_metadata *m = (void *)buf;
	long n;

	if (s->kept.table)
		memset(buf, 0, sizeof own);
	n = raw_read(s->group_b, buf, room < sizeof own ? room : sizeof own);
	for (; n > 0 && FAN_EVENT_OK(m, n); m = FAN_EVENT_NEXT(m, n)) {
		pl_files_event(s, m);
		m->fd = FAN_NOFD;
	}
}

/* ------------------------------------------------------------------------------------------ asks -- */

static int mark(int group, unsigned flags, uint64_t mask, const char *path)
{
	return fanotify_mark(group, flags, mask, AT_FDCWD, path) ? -errno : 0;
}

int pl_files_do(struct pl_files *s, const struct pl_files_ask *a)
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
		return mark(s->group_b, FAN_MARK_ADD, PL_FILES_EVENTS, a->path);
	case PL_TODO_UNMARK:
		return mark(s->group_b, FAN_MARK_REMOVE, PL_FILES_EVENTS, a->path);
	}
	return -EINVAL;
}

/* Returns true when it is time to stop. An ask lives on its caller's stack only until it is done. */
static bool on_asks(struct pl_files *s)
{
	struct pl_files_ask *a, *next;
	bool stop, go_on;

	pthread_mutex_lock(&s->lock);
	a = s->asks;
	s->asks = NULL;
	stop = s->stop;
	go_on = s->go_on;
	pthread_mutex_unlock(&s->lock);
	for (; a; a = next) {
		int err = pl_files_do(s, a);

		next = a->next;
		pthread_mutex_lock(&s->lock);
		a->err = err;
		a->done = true;
		pthread_cond_broadcast(&s->done);
		pthread_mutex_unlock(&s->lock);
	}
	if (s->paused && go_on) {
		s->paused = false;
		if (s->kept.resumed)
			pl_files_take_up(s);
	}
	return stop;
}

/* ------------------------------------------------------------------------ life of the thread -- */

int pl_files_make_group(int *group)
{
	unsigned flags = FAN_CLASS_PRE_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK | FAN_REPORT_TID |
			 FAN_UNLIMITED_QUEUE | FAN_UNLIMITED_MARKS;

	*group = fanotify_init(flags, O_RDONLY | O_LARGEFILE | O_CLOEXEC);
	return *group < 0 ? -errno : 0;
}

/* EBADF: the kernel knows the event; EINVAL: it doesn't. */
bool pl_files_knows_the_event(int group)
{
	return !fanotify_mark(group, FAN_MARK_ADD, FAN_PRE_ACCESS, -1, NULL) || errno != EINVAL;
}

static int get_groups(struct pl_files *s)
{
	int err;

	s->start_step = "a descriptor table of its own";
	err = s->kept.table ? pl_own_table(PL_FILES_GROUP_A, PL_FILES_WAKE)
			    : pl_own_table(s->wake, s->wake);
	if (err)
		return err == -EINVAL ? -EPROTO : err; /* EINVAL is for "unknown to this kernel" below */
	s->group_a = PL_FILES_GROUP_A;
	s->group_b = PL_FILES_GROUP_B;
	if (s->kept.table)
		return 0;
	s->start_step = "fanotify_init";
	err = pl_files_make_group(&s->group_a);
	return err ? err : pl_files_make_group(&s->group_b);
}

static int start(struct pl_files *s)
{
	int err = get_groups(s);

	if (err)
		return err;
	if (s->kept.resumed)
		pl_files_take_over(s);
	for (unsigned i = 0; i < s->n_held; i++) {
		if (s->held[i].state != PL_HELD_FREE)
			continue;
		s->held[i].next = s->free;
		s->free = &s->held[i];
		s->n_free++;
	}
	s->paused = s->kept.table;
	s->start_step = "FAN_PRE_ACCESS";
	return pl_files_knows_the_event(s->group_b) ? 0 : -EINVAL;
}

static void let_all_go(struct pl_files *s)
{
	on_answers(s);
	for (unsigned i = 0; i < s->n_held; i++)
		if (s->held[i].state == PL_HELD_ASKED || s->held[i].state == PL_HELD_UNSEEN)
			pl_files_respond(s, s->held[i].fd, 0);
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
		fds[1].fd =
			!s->paused && s->n_free * sizeof(struct fanotify_event_metadata) >= BIGGEST_EVENT
				? s->group_b
				: -1;
		poll(fds, 2, (s->allowed || s->unseen) && !s->paused ? (int)s->poll_ms : -1);
		if (fds[0].revents & POLLIN)
			raw_read(s->wake, &woken, sizeof woken);
		if (fds[1].fd >= 0 && (fds[1].revents & POLLIN))
			on_events(s);
		if ((s->allowed || s->unseen) && !s->paused) {
			confirm(s, 0);
			pl_files_look_again(s);
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
	pl_peek_end(&s->peek);
	if (!s->kept.table)
		let_all_go(s);
	return NULL;
}
