/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The sockets, the main loop's side of the core, and the reaper. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon.h"
#include "gate.h"
#include "generation.h"
#include "os/clock.h"
#include "os/thread.h"
#include "source/sources.h"

#define LOOK_AGAIN_NS 50000000u

static int on_io(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
	struct holder *h = arg;
	int err = 0;

	if (revents & EPOLLOUT) {
		h->full = false;
		sd_event_source_set_io_events(source, EPOLLIN);
		err = holder_send_notices(h);
		list_send(h);
		recall_send(h);
		watch_send(h);
		gate_drop(h->server);
		laters_look(h->server);
	}
	if (!err && (revents & (EPOLLIN | EPOLLHUP | EPOLLERR)))
		err = holder_receive(h);
	if (err)
		holder_gone(h);
	return 0;
}

static int open_spare(void)
{
	return open("/dev/null", O_RDONLY | O_CLOEXEC);
}

/* Who can't be taken in must not be left at the door either: the loop would spin. */
static void turn_away(struct server *s, int fd)
{
	int sock;

	if (s->spare >= 0)
		close(s->spare);
	sock = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
	if (sock >= 0) {
		holder_refuse(sock);
		door_refuse(s, sock);
	}
	s->spare = open_spare();
}

static int on_connection(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
	struct server *s = arg;
	int sock = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct holder *h = sock < 0 ? NULL : holder_new(s, sock);

	if (sock < 0 && (errno == EMFILE || errno == ENFILE))
		turn_away(s, fd);
	if (h && sd_event_add_io(s->event, &h->io, sock, EPOLLIN, on_io, h) < 0)
		holder_gone(h);
	return 0;
}

/* A lease of somebody's is to be recalled, or one that somebody has asked for has been. */
static int on_notices(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
	struct server *s = arg;
	eventfd_t n;
	struct holder *h, *next;

	eventfd_read(fd, &n);
	gate_drop(s); /* before anybody is told that he may go on */
	laters_look(s);
	generation_answer(s);
	share_complain(s);
	notices_complain(s);
	changes_answer(s);
	gate_answer(s);
	endings_finish(s);
	resume_bury(s);
	for (h = LIST_FIRST(&s->holders); h; h = next) {
		next = LIST_NEXT(h, link);
		if (holder_send_notices(h))
			holder_gone(h);
	}
	recall_go_on(s);
	return 0;
}

/* lock held, dropped meanwhile. False: somebody has inherited its pins, which is to be looked at again.
 */
static bool end_one(struct server *s, struct holder *h)
{
	bool gone = s->stop;

	pthread_mutex_unlock(&s->lock);
	h->left |= gone; /* nothing is guarded any more, so nobody waits for its device */
	gone = gone || kill_pins_gone(h);
	if (gone)
		holder_end(h);
	pthread_mutex_lock(&s->lock);
	return gone;
}

/* lock held, dropped meanwhile. Of those whose pins were not gone. */
static void end_unfinished(struct server *s)
{
	struct holder **p = &s->unfinished, *h, *next;

	while ((h = *p)) {
		next = h->reap_next;
		if ((s->stop || pl_clock_ns() >= h->look_ns) && end_one(s, h))
			*p = next;
		else
			p = &h->reap_next;
	}
}

static void sleep_a_little(struct server *s)
{
	uint64_t until = pl_clock_ns() + LOOK_AGAIN_NS;
	struct timespec t = {until / 1000000000u, until % 1000000000u};

	pthread_cond_timedwait(&s->work, &s->lock, &t);
}

static void *reap(void *arg)
{
	struct server *s = arg;
	struct holder *h;

	pthread_mutex_lock(&s->lock);
	while (!s->stop || s->reap || s->unfinished) {
		endings_do(s);
		end_unfinished(s);
		h = s->reap;
		if (!h && s->unfinished && !s->stop)
			sleep_a_little(s);
		else if (!h && !s->stop && !s->endings)
			pthread_cond_wait(&s->work, &s->lock);
		if (!h)
			continue;
		s->reap = h->reap_next;
		if (!end_one(s, h)) {
			h->reap_next = s->unfinished;
			s->unfinished = h;
		}
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

int server_listen(struct server *s, int sock)
{
	return sd_event_add_io(s->event, NULL, sock, EPOLLIN, on_connection, s);
}

/* Before files: what that can refuse, too, this one refuses also by descriptors that it doesn't see. */
static void add_gate(struct server *s)
{
	struct gate_options o = {.server = s,
				 .dir = s->limits.closed ? s->limits.gate_dir : NULL,
				 .keep_ms = s->limits.gate_keep_ms};

	if (s->limits.gate && pinl_source_add(s->ctx, &gate_ops, &o)) /* also in pinl_sources() */
		fprintf(stderr, "pinleased: no gate: %s\n", pinl_error());
}

/* Kept from an earlier process, it has to work. */
static int add_files(struct server *s)
{
	struct pl_files_kept kept = {.table = s->store.image ? &s->store.image->files : NULL,
				     .resumed = s->store.resumed};
	int err = pinl_source_add(s->ctx, &pl_files_ops, kept.table ? &kept : NULL);

	if (kept.table || err == -EMFILE || err == -ENFILE || err == -ENOMEM || err == -EAGAIN)
		return err;
	return 0;
}

static int open_core(struct server *s)
{
	struct pinl_opts opts = {.size = sizeof opts,
				 .ceiling_ms = s->limits.ceiling_ms,
				 .sources = PINL_SOURCE_FILES,
				 .summary_fd = -1};
	char sources[1024] = "", *why;
	int err = pl_open_core(&opts, &s->ctx);

	if (!err)
		add_gate(s);
	if (!err)
		err = add_files(s);
	if (!err && pl_source_priv(s->ctx, &pl_files_ops)) {
		err = pl_files_be_fair(pl_source_priv(s->ctx, &pl_files_ops));
	} else if (!err) {
		pinl_sources(s->ctx, sources, sizeof sources);
		why = strstr(sources, "files: ");
		why = why ? why : sources;
		fprintf(stderr, "pinleased: no change of a file%s can be held here: %.*s\n",
			gate_is_waited_at(s) ? " on disk" : "", (int)strcspn(why, "\n"), why);
	}
	return err;
}

/* The loop's timer descriptor is there from the start, not when descriptors may have run out. */
static int prepare_timer(sd_event *event)
{
	sd_event_source *source = NULL;
	int err = sd_event_add_time(event, &source, CLOCK_MONOTONIC, UINT64_MAX, 0, NULL, NULL);

	sd_event_source_disable_unref(source);
	return err;
}

int server_new(sd_event *event, const struct limits *limits, struct server **out)
{
	struct server *s = calloc(1, sizeof *s);
	pthread_condattr_t attr;
	int err;

	if (!s)
		return -ENOMEM;
	s->event = event;
	s->limits = *limits;
	s->since_ns = pl_clock_ns();
	s->spare = open_spare();
	s->main = pthread_self();
	pthread_mutex_init(&s->answers, NULL);
	pthread_mutex_init(&s->lock, NULL);
	pthread_mutex_init(&s->reaping, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&s->work, &attr);
	pthread_condattr_destroy(&attr);
	if (getrandom(&s->boot, sizeof s->boot, 0) < 0)
		s->boot = getpid();
	s->given = -1;
	store_open(&s->store, limits->closed, &s->given);
	s->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	err = s->wake < 0 ? -errno : open_core(s);
	if (!err)
		err = sd_event_add_io(event, NULL, s->wake, EPOLLIN, on_notices, s);
	if (err >= 0)
		err = prepare_timer(event);
	if (err >= 0)
		err = doors_new(s);
	if (err >= 0)
		err = laters_new(s);
	if (err >= 0)
		err = pl_thread_start(&s->reaper, reap, s);
	if (err < 0) {
		laters_free(s);
		doors_free(s);
		pinl_close(s->ctx);
		if (s->wake >= 0)
			close(s->wake);
		if (s->spare >= 0)
			close(s->spare);
		store_close(&s->store);
		free(s);
		return err;
	}
	if (s->store.resumed)
		s->all_resumed = resume_all(s);
	if (s->store.image)
		pl_files_go_on(pl_source_priv(s->ctx, &pl_files_ops));
	store_groups_taken(&s->store);
	*out = s;
	return 0;
}

static void say_end(const struct server *s)
{
	const struct holder *h;
	unsigned n = 0;

	LIST_FOREACH(h, &s->holders, link)
	n += h->leases.root != NULL;
	LIST_FOREACH(h, &s->leaving, link)
	n += h->leases.root != NULL;
	if (n)
		fprintf(stderr,
			"pinleased: ends: files are no longer guarded for %u holder%s with leases\n", n,
			s_of(n));
}

/* While there are connections. */
static void tell_of_end(struct server *s)
{
	pl_foreign_let_go(s->ctx);
	notices_send(s);
	watch_catch_up(s);
	notices_complain(s);
}

/* Whoever waits is let go: the files source answers all before it ends. */
void server_free(struct server *s)
{
	s->ends = true;
	generation_stop(s);
	tell_of_end(s);
	say_end(s);
	while (!LIST_EMPTY(&s->holders))
		holder_gone(LIST_FIRST(&s->holders));
	endings_await(s);
	resume_bury(s);
	while (!LIST_EMPTY(&s->leaving))
		holder_leave(LIST_FIRST(&s->leaving));
	pthread_mutex_lock(&s->lock);
	s->stop = true;
	pthread_cond_signal(&s->work);
	pthread_mutex_unlock(&s->lock);
	pthread_join(s->reaper, NULL);
	doors_free(s);
	watch_stop(s);
	sd_event_source_disable_unref(s->events);
	gate_stop(s);
	laters_free(s);
	pinl_close(s->ctx);
	recall_go_on(s);
	changes_free(s);
	close(s->wake);
	if (s->spare >= 0)
		close(s->spare);
	store_close(&s->store);
	users_free(s);
	free(s);
}
