/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Taking over from a process that has ended while it held tasks: its groups and its table were kept, so
 * the tasks are still stopped and their changes known. Invariants:
 * - fanotify finds an event by its number, and two events with the same number by chance. So each number
 *   in the table is occupied here before the first read, which could bring it again;
 * - what had been answered, or may have been, is answered once more: nobody is there to mind;
 * - what was only read is looked at by way of its task, which has the file still; where that can't tell
 *   which file it is, the call fails with EBUSY: nothing is lost by that, and nobody stays stopped.
 */
#include "source/files.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "core/ctx.h"
#include "os/task.h"

/* A number can only be another's if it is out of bounds, and then the table isn't ours. */
static bool occupy(struct pl_files *s, int fd)
{
	return fd > STDERR_FILENO && fd < PL_FILES_OWN && syscall(SYS_dup3, s->wake, fd, O_CLOEXEC) >= 0;
}

/* An event that was UNSEEN has gone to another pl_held, as which it was asked about or put off again,
 * but this one wasn't free yet. */
static bool is_double(const struct pl_files *s, const struct pl_held *h)
{
	for (const struct pl_held *o = s->held; o < s->held + s->n_held; o++)
		if (o != h && o->fd == h->fd &&
		    (o->state == PL_HELD_ASKED || (o->state == PL_HELD_UNSEEN && o < h)))
			return true;
	return false;
}

static bool is_held(const struct pl_files *s, int fd)
{
	for (unsigned i = 0; i < s->n_held; i++)
		if (s->held[i].fd == fd &&
		    (s->held[i].state == PL_HELD_ASKED || s->held[i].state == PL_HELD_UNSEEN))
			return true;
	return false;
}

static struct fanotify_event_metadata *first_event(struct pl_files *s, long *left)
{
	*left = sizeof s->kept.table->events;
	return (void *)s->kept.table->events;
}

static void take_over_events(struct pl_files *s)
{
	long left;
	struct fanotify_event_metadata *m = first_event(s, &left);

	for (; FAN_EVENT_OK(m, left); m = FAN_EVENT_NEXT(m, left))
		if (m->fd >= 0 && (is_held(s, m->fd) || !occupy(s, m->fd)))
			m->fd = FAN_NOFD;
}

/* Of its pointers none is good here. */
static void take_over_held(struct pl_files *s, struct pl_held *h)
{
	h->src = s;
	h->next = NULL;
	h->new_size = -1; /* the number is occupied by something else than the file */
	h->change.source = "files";
	h->change.newer_than = 0;
	if (h->state == PL_HELD_ASKED && h->change.recalled)
		h->change.can |= PL_HAS_WAITED;
	if (h->state == PL_HELD_DONE || (h->state == PL_HELD_UNSEEN && is_double(s, h)))
		h->state = PL_HELD_FREE;
	if (h->state != PL_HELD_FREE && !occupy(s, h->fd))
		h->state = PL_HELD_FREE;
	if (h->state != PL_HELD_ALLOWED)
		return;
	pl_files_respond(s, h->fd, 0);
	pl_files_allowed(s, h);
}

void pl_files_take_over(struct pl_files *s)
{
	for (unsigned i = 0; i < s->n_held; i++)
		take_over_held(s, &s->held[i]);
	take_over_events(s);
}

void pl_files_close_gates(struct pl_files *s)
{
	for (unsigned i = 0; i < s->n_held; i++)
		if (s->held[i].state == PL_HELD_ALLOWED)
			pl_gate_close(s->ctx, &s->held[i].change);
}

/* ------------------------------------------------------------------------ what was only read -- */

/* Put what the number stood for back in its place. */
static int reopen(struct pl_files *s, const struct fanotify_event_metadata *m,
		  const struct pl_syscall *sc)
{
	int fd = pl_files_peek_open(&s->peek, m->pid, sc), err;

	if (fd < 0)
		return fd;
	err = syscall(SYS_dup3, fd, m->fd, O_CLOEXEC) < 0 ? -errno : 0;
	syscall(SYS_close, fd);
	return err;
}

/* A file as large as can be loses something by any cut. */
static bool cuts(const struct fanotify_event_metadata *m, const struct pl_syscall *sc)
{
	struct pl_file_event ev = {
		.open = m->mask & FAN_OPEN_PERM, .size = INT64_MAX, .page = 4096, .clones = true};
	struct pl_file_op op;

	return pl_file_decode(sc, &ev, &op);
}

/* False, but not at the last look: its task isn't asleep. It may have been answered, or not have slept
 * yet. */
bool pl_files_take_up_event(struct pl_files *s, const struct fanotify_event_metadata *m,
			    enum pl_files_look look)
{
	struct pl_syscall sc;
	int err = m->pid > 0 ? pl_files_peek_call(&s->peek, m->pid, look, &sc) : -ESRCH;

	if (err == -EAGAIN && look != PL_FILES_LAST)
		return false;
	if (!err && cuts(m, &sc)) {
		if (!reopen(s, m, &sc)) {
			pl_files_event(s, m);
			return true;
		}
		err = -ENODATA;
	}
	/* who is gone has been answered */
	pl_files_respond(s, m->fd, err == -ENODATA || err == -EAGAIN || err == -ETIMEDOUT ? -EBUSY : 0);
	syscall(SYS_close, m->fd);
	return true;
}

static void take_up_event(struct pl_files *s, const struct fanotify_event_metadata *m)
{
	if (pl_files_take_up_event(s, m, PL_FILES_FIRST) || pl_files_defer(s, m, true) > 0)
		return;
	pl_files_respond(s, m->fd, -EBUSY);
	syscall(SYS_close, m->fd);
}

/* In the order in which they came. */
static struct pl_held *oldest(struct pl_files *s, uint64_t after)
{
	struct pl_held *first = NULL;

	for (unsigned i = 0; i < s->n_held; i++) {
		struct pl_held *h = &s->held[i];

		if (h->state == PL_HELD_ASKED && h->order > after && (!first || h->order < first->order))
			first = h;
	}
	return first;
}

void pl_files_take_up(struct pl_files *s)
{
	long left;
	struct fanotify_event_metadata *m = first_event(s, &left);
	uint64_t last = 0;

	for (struct pl_held *h; (h = oldest(s, last)); last = h->order) {
		pl_files_report(s, h);
		s->order = h->order;
	}
	for (unsigned i = 0; i < s->n_held; i++)
		if (s->held[i].state == PL_HELD_UNSEEN)
			pl_files_defer_held(s, &s->held[i]);
	for (; FAN_EVENT_OK(m, left); m = FAN_EVENT_NEXT(m, left)) {
		if (m->fd >= 0)
			take_up_event(s, m);
		m->fd = FAN_NOFD;
	}
}

/* The marks were kept, too: of a file that nobody has leased any more one goes with its next event. */
void pl_files_forget_stale(struct pl_files *s, int fd)
{
	struct stat st;

	if (syscall(SYS_fstat, fd, &st) || pthread_mutex_trylock(&s->watch_lock))
		return;
	if (!pl_files_is_watched(s, st.st_dev, st.st_ino))
		fanotify_mark(s->group_b, FAN_MARK_REMOVE, PL_FILES_EVENTS, fd, NULL);
	pthread_mutex_unlock(&s->watch_lock);
}
