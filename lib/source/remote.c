/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The remote source: what the core calls. Invariant: a lease is in `leases` from before the arbiter
 * hears of it until after it has been told of its end, so a notice always finds it; who waits for an
 * answer waits no longer than PATIENCE_MS, and the arbiter is not asked about memory without a file.
 */
#include "source/remote.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <pinlease/device.h>

#include "os/clock.h"
#include "os/thread.h"
#include "os/wake.h"
#include "source/sources.h"

#define PATIENCE_MS 10000
#define SILENT_MS   30000 /* an arbiter that gave no answer is asked no more */
#define CHANGE_MS   300	  /* a supervisor has given up by then to see a change happen */
#define OPS_HELD    (PINL_OPS_FILE | PINL_OPBIT(PINL_OP_REMOVE))

void pl_remote_wake(struct pl_remote *s)
{
	pl_wake(s->wake);
}

static void sleep_on(struct pl_remote *s, uint64_t until)
{
	struct timespec t = {.tv_sec = until / 1000000000u, .tv_nsec = until % 1000000000u};

	pthread_cond_timedwait(&s->done, &s->lock, &t);
}

/* Forget an ask whose time is over. lock held. */
static void give_up(struct pl_remote *s, struct pl_remote_ask *a)
{
	for (struct pl_remote_ask **p = &s->waiting; *p; p = &(*p)->next)
		if (*p == a) {
			*p = a->next;
			break;
		}
	for (struct pl_remote_ask **p = &s->asks; *p; p = &(*p)->next)
		if (*p == a) {
			*p = a->next;
			if (!*p)
				s->asks_tail = p;
			break;
		}
	a->err = -ETIMEDOUT;
	snprintf(a->text, sizeof a->text, "pinleased gives no answer; is it stopped?");
}

/* Not longer than until then. lock held. */
static uint64_t restarted_by(const struct pl_remote *s, uint64_t until)
{
	uint64_t by = pl_remote_restarted_by(s);

	return by < until ? by : until;
}

/* An arbiter that is being restarted is there again at once. lock held. */
static bool await_connection(struct pl_remote *s, uint64_t until)
{
	while (!s->connected && s->lost_ns && !s->stop && pl_clock_ns() < restarted_by(s, until))
		sleep_on(s, restarted_by(s, until));
	return s->connected;
}

/* Have the link say it, and wait for that or for the reply. */
static void ask_once(struct pl_remote *s, struct pl_remote_ask *a, uint64_t until)
{
	a->next = NULL;
	a->done = false;
	*s->asks_tail = a;
	s->asks_tail = &a->next;
	pl_remote_wake(s);
	while (!a->done && pl_clock_ns() < until)
		sleep_on(s, until);
	if (!a->done)
		give_up(s, a);
}

static int ask(struct pl_remote *s, struct pl_remote_ask *a)
{
	uint64_t until = pl_clock_ns() + PATIENCE_MS * 1000000ull;

	pthread_mutex_lock(&s->lock);
	do {
		await_connection(s, until);
		ask_once(s, a, until);
	} while (a->reply && a->m.head.type != PL_TRUNCATE && a->err == -ENOTCONN &&
		 await_connection(s, until) && pl_clock_ns() < until);
	pthread_mutex_unlock(&s->lock);
	return a->err ? pinl_set_error(a->err, "%s", a->text) : 0;
}

static void with_file(struct pl_remote_ask *a, int fd, int flags)
{
	snprintf(a->path, sizeof a->path, "/proc/self/task/%d/fd/%d", gettid(), fd);
	a->flags = flags;
	a->reply = true;
}

/* -------------------------------------------------------------------------------------- coverage -- */

static bool has_business(const struct pinl_memory *mem)
{
	return mem->fd >= 0 && mem->ino && mem->kind != PINL_MEM_ANON && mem->kind != PINL_MEM_DEVICE &&
	       mem->kind != PINL_MEM_SECRET;
}

static struct pl_remote_fs *fs_known(struct pl_remote *s, const struct pinl_memory *mem)
{
	for (struct pl_remote_fs *fs = s->fs; fs < s->fs + PL_REMOTE_FS; fs++)
		if (fs->known && fs->dev == mem->dev && fs->magic == mem->fs_magic)
			return fs;
	return NULL;
}

static uint64_t learn(struct pl_remote *s, const struct pinl_memory *mem)
{
	struct pl_remote_ask a = {0};
	int err;

	a.m.head.type = PL_COVER;
	with_file(&a, mem->fd, O_RDONLY | O_CLOEXEC);
	err = ask(s, &a);
	pthread_mutex_lock(&s->lock);
	if (err == -ETIMEDOUT) /* not once for each question */
		s->silent_until_ns = pl_clock_ns() + SILENT_MS * 1000000ull;
	if (!err && s->connected && !fs_known(s, mem))
		s->fs[s->next_fs++ % PL_REMOTE_FS] =
			(struct pl_remote_fs){mem->dev, mem->fs_magic, true, a.value};
	pthread_mutex_unlock(&s->lock);
	return err ? 0 : a.value;
}

/* What the arbiter says of such memory; 0 if there is none. */
static uint64_t what_it_can(struct pl_remote *s, const struct pinl_memory *mem)
{
	const struct pl_remote_fs *fs;
	bool connected, known;
	uint64_t all = 0;

	pthread_mutex_lock(&s->lock);
	connected = await_connection(s, UINT64_MAX) && pl_clock_ns() > s->silent_until_ns;
	fs = fs_known(s, mem);
	known = fs;
	all = fs ? fs->coverage : 0;
	pthread_mutex_unlock(&s->lock);
	if (!connected)
		return 0;
	if (!known)
		all = learn(s, mem);
	return all;
}

static unsigned remote_coverage(void *src, const struct pinl_memory *mem, enum pinl_op op)
{
	if (!(OPS_HELD & PINL_OPBIT(op)) || !has_business(mem))
		return 0;
	return what_it_can(src, mem) >> (4 * op) & 0xf;
}

/* For this lease; before it is told, for any on such memory. */
static bool others_wait(struct pl_remote *s, const struct pinl_lease *l, uint64_t all)
{
	const struct pl_remote_lease *r;
	bool wait;

	pthread_mutex_lock(&s->lock);
	r = pl_remote_find(s, l->id);
	wait = r ? r->others : (all & PL_OTHERS) != 0;
	pthread_mutex_unlock(&s->lock);
	return wait && l->policy.kind == PINL_RECALL;
}

static unsigned remote_supervised(void *src, const struct pinl_memory *mem, enum pinl_op op)
{
	unsigned can = 0;
	uint64_t all;

	if (!(OPS_HELD & PINL_OPBIT(op)) || !has_business(mem))
		return 0;
	all = what_it_can(src, mem);
	if (all & PL_SUPERVISED)
		can |= PINL_CAN_TELL | PINL_CAN_BEFORE | PINL_CAN_HOLD | PINL_CAN_REFUSE;
	if (others_wait(src, pl_lease_of_memory(mem), all))
		can |= PINL_CAN_TELL | PINL_CAN_BEFORE | PINL_CAN_HOLD | PL_ALL_OTHERS;
	return can;
}

static int remote_keeps_name(void *src, const struct pinl_memory *mem)
{
	return has_business(mem) && (what_it_can(src, mem) & PL_NAMES);
}

/* -------------------------------------------------------------------------------------- watching -- */

static void describe(const struct pinl_lease *l, struct pl_lease_msg *m)
{
	m->lease = l->id;
	m->file_offset = l->on->mem.offset;
	m->start = l->m.start;
	m->end = l->m.end;
	m->since_ns = l->since_ns;
	m->flags = pl_lease_access(l) | (l->flags & PINL_KEEP_NAME);
	m->shared = l->on->mem.shared;
	m->policy = l->policy.kind;
	m->then = l->policy.then;
	m->grace_ms = l->policy.grace_ms;
	m->refuse = l->policy.refuse;
	m->agent_ms = l->ctx->opts.drain_ms;
	m->thread = l->owner_thread;
	strncpy(m->device, l->dev->given->name, sizeof m->device - 1);
}

static void remove_lease(struct pl_remote *s, struct pl_remote_lease *r)
{
	pthread_mutex_lock(&s->lock);
	pl_index_remove(&s->leases, &r->node);
	pthread_mutex_unlock(&s->lock);
	free(r);
}

/* For writing where something depends on the right to: the link opens it for reading if that fails. */
static int how_to_show(const struct pinl_lease *l)
{
	bool keeps = l->policy.kind == PINL_KEEP || l->policy.kind == PINL_FOLLOW;

	return keeps && !(l->flags & PINL_WRITE) ? O_RDONLY : O_RDWR;
}

/* A change that was let go happens soon; nobody should have to try again for that. */
static int tell_lease(struct pl_remote *s, const struct pl_remote_lease *r,
		      const struct pinl_memory *mem)
{
	uint64_t until = pl_clock_ns() + CHANGE_MS * 1000000ull;
	struct timespec pause = {0, 1000000};
	struct pl_remote_ask a;
	int err;

	for (;;) {
		a = (struct pl_remote_ask){.m.lease = r->msg};
		a.m.head.type = PL_LEASE;
		with_file(&a, mem->fd, r->how);
		err = ask(s, &a);
		if (err != -EBUSY || pl_clock_ns() > until)
			return err;
		nanosleep(&pause, NULL);
	}
}

static void tell_end(struct pl_remote *s, const struct pl_remote_lease *r)
{
	struct pl_remote_ask a = {.m.unlease = {.head.type = PL_UNLEASE, .lease = r->msg.lease}};

	if (r->lease->state == PINL_RELEASED)
		a.m.unlease.outcome = r->lease->outcome;
	ask(s, &a);
}

static int remote_watch(void *src, const struct pinl_memory *mem)
{
	struct pinl_lease *l = pl_lease_of_memory(mem);
	struct pl_remote *s = src;
	struct pl_remote_lease *r;
	int err;

	if (!has_business(mem))
		return 0;
	r = calloc(1, sizeof *r);
	if (!r)
		return pinl_set_error(-ENOMEM, "out of memory for a lease of the arbiter's");
	r->lease = l;
	r->node.start = l->id;
	r->node.end = l->id + 1;
	describe(l, &r->msg);
	r->how = how_to_show(l) | O_CLOEXEC;
	pthread_mutex_lock(&s->lock);
	pl_index_insert(&s->leases, &r->node);
	pthread_mutex_unlock(&s->lock);
	err = tell_lease(s, r, mem);
	if (err == -ETIMEDOUT) /* it may come to it yet */
		tell_end(s, r);
	if (err)
		remove_lease(s, r);
	return err;
}

struct pl_remote_lease *pl_remote_find(const struct pl_remote *s, uint64_t id)
{
	return (struct pl_remote_lease *)pl_index_first(&s->leases, id, id + 1);
}

static void remote_unwatch(void *src, const struct pinl_memory *mem)
{
	struct pl_remote *s = src;
	struct pl_remote_lease *r;

	pthread_mutex_lock(&s->lock);
	r = pl_remote_find(s, pl_lease_of_memory(mem)->id);
	pthread_mutex_unlock(&s->lock);
	if (!r)
		return;
	tell_end(s, r);
	remove_lease(s, r);
}

static const uint32_t handle_kinds[] = {
	[PINL_HANDLE_NONE] = PL_HANDLE_NONE,   [PINL_HANDLE_URING] = PL_HANDLE_URING,
	[PINL_HANDLE_VFIO] = PL_HANDLE_VFIO,   [PINL_HANDLE_IOMMUFD] = PL_HANDLE_IOMMUFD,
	[PINL_HANDLE_VERBS] = PL_HANDLE_VERBS,
};

static int remote_pinned(void *src, const struct pinl_memory *mem, const struct pinl_handle *h)
{
	struct pl_remote_ask a = {.reply = true};
	struct pl_remote *s = src;
	struct pl_remote_lease *r;

	a.m.head.type = PL_HANDLE;
	a.m.handle.lease = pl_lease_of_memory(mem)->id;
	if (h->kind < sizeof handle_kinds / sizeof *handle_kinds)
		a.m.handle.kind = handle_kinds[h->kind];
	a.m.handle.fd = h->fd;
	a.m.handle.slot = h->key;
	a.m.handle.twin = h->twin;
	a.m.handle.tag = h->tag;
	pthread_mutex_lock(&s->lock);
	r = pl_remote_find(s, a.m.handle.lease);
	if (r)
		r->handle = a.m.handle;
	pthread_mutex_unlock(&s->lock);
	return r ? ask(s, &a) : 0;
}

/* ---------------------------------------------------------------------------- deferred changes -- */

static struct pl_remote_later *free_later(struct pl_remote *s, const struct pl_later_job *j)
{
	struct pl_remote_later *l = s->laters;

	pthread_mutex_lock(&s->lock);
	while (l < s->laters + PL_REMOTE_LATER && l->state != LATER_FREE)
		l++;
	l = l < s->laters + PL_REMOTE_LATER ? l : NULL;
	if (l)
		*l = (struct pl_remote_later){LATER_ASKED, *j, 0};
	pthread_mutex_unlock(&s->lock);
	return l;
}

/* A connection that breaks meanwhile has it said as an event: then the call has worked. */
static int take_back(struct pl_remote *s, struct pl_remote_later *l, int err)
{
	pthread_mutex_lock(&s->lock);
	if (l->state == LATER_ASKED)
		l->state = LATER_FREE;
	else
		err = 0;
	pthread_mutex_unlock(&s->lock);
	return err;
}

int pl_remote_later(void *src, int fd, const struct pl_later_job *j)
{
	struct pl_remote *s = src;
	struct pl_remote_ask a = {.reply = true};
	struct pl_remote_later *l;
	bool connected;
	int err;

	pthread_mutex_lock(&s->lock);
	connected = s->connected;
	pthread_mutex_unlock(&s->lock);
	if (!connected)
		return -ENOTCONN;
	l = free_later(s, j);
	if (!l)
		return pinl_set_error(-EAGAIN,
				      "%d deferred changes are under way; wait until some are done",
				      PL_REMOTE_LATER);
	a.m.head.type = PL_TRUNCATE;
	a.m.truncate.number = j->id;
	a.m.truncate.offset = j->offset;
	a.m.truncate.len = j->len;
	a.m.truncate.mode = j->mode;
	a.m.truncate.thread = j->tid;
	with_file(&a, fd, O_WRONLY | O_CLOEXEC);
	err = ask(s, &a);
	return err ? take_back(s, l, err) : 0;
}

/* ------------------------------------------------------------------------------ opening, closing -- */

static void remote_free(struct pl_remote *s)
{
	if (s->wake >= 0)
		close(s->wake);
	pthread_cond_destroy(&s->done);
	pthread_cond_destroy(&s->work);
	pthread_mutex_destroy(&s->lock);
	free(s->pool);
	free(s);
}

static void stop_link(struct pl_remote *s)
{
	pthread_mutex_lock(&s->lock);
	s->stop = true;
	pthread_cond_signal(&s->work);
	pl_remote_wake(s);
	pthread_mutex_unlock(&s->lock);
}

static int start_threads(struct pl_remote *s)
{
	int err = pl_thread_start(&s->link, pl_remote_link, s);

	if (err)
		return pinl_set_error(err, "can't start a thread to talk to pinleased: %s",
				      strerror(-err));
	pthread_mutex_lock(&s->lock);
	while (!s->started)
		pthread_cond_wait(&s->done, &s->lock);
	pthread_mutex_unlock(&s->lock);
	if (s->start_err == -ENOENT || s->start_err == -ECONNREFUSED)
		err = pinl_set_error(-EOPNOTSUPP,
				     "no pinleased at %s; files are watched by this "
				     "process itself",
				     s->path);
	else if (s->start_err && *s->refused)
		err = pinl_set_error(s->start_err, "pinleased at %s refuses: %s", s->path, s->refused);
	else if (s->start_err == -EPROTO)
		err = pinl_set_error(
			-EPROTO,
			"what listens at %s isn't this release's pinleased; install the same "
			"release of both",
			s->path);
	else if (s->start_err)
		err = pinl_set_error(s->start_err, "can't connect to pinleased at %s: %s", s->path,
				     strerror(-s->start_err));
	if (!err) {
		err = pl_thread_start(&s->reporter, pl_remote_reporter, s);
		if (!err)
			return 0;
		stop_link(s);
	}
	pthread_join(s->link, NULL);
	return err;
}

static void init(struct pl_remote *s, struct pinl_ctx *ctx)
{
	const char *path = secure_getenv(PL_PROTO_ENV);
	pthread_condattr_t attr;

	s->ctx = ctx;
	s->sock = -1;
	snprintf(s->path, sizeof s->path, "%s", path && *path ? path : PL_PROTO_PATH);
	pthread_mutex_init(&s->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&s->done, &attr);
	pthread_cond_init(&s->work, &attr);
	pthread_condattr_destroy(&attr);
	s->asks_tail = &s->asks;
	s->untold = UINT64_MAX;
	s->unguarded = s->unseen = UINT64_MAX;
	s->got_tail = &s->got;
	s->reports_tail = &s->reports;
	s->answers_tail = &s->answers;
	s->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	for (int i = 0; s->pool && i < PL_REMOTE_POOL; i++) {
		s->pool[i].src = s;
		s->pool[i].next = s->free;
		s->free = &s->pool[i];
	}
}

/* ctx->lock held */
static int caught_up(void *src, uint64_t since_ns)
{
	struct pl_remote *s = src;
	bool is, asked, gone;

	pthread_mutex_lock(&s->lock);
	is = s->told_ns > since_ns;
	asked = s->to_catch_up;
	s->to_catch_up |= !is;
	gone = !s->connected && pl_clock_ns() > s->lost_ns + PL_REMOTE_RESTART_MS * 1000000ull;
	pthread_mutex_unlock(&s->lock);
	if (!is && !asked)
		pl_remote_wake(s);
	return is ? 1 : gone ? -ENOTCONN : 0;
}

static int remote_open(struct pinl_ctx *ctx, const void *arg, void **src)
{
	struct pl_remote *s = calloc(1, sizeof *s);
	int err;

	if (s)
		s->pool = calloc(PL_REMOTE_POOL, sizeof *s->pool);
	if (!s || !s->pool) {
		free(s);
		return pinl_set_error(-ENOMEM, "out of memory for the remote source");
	}
	init(s, ctx);
	err = s->wake < 0 ? pinl_set_error(-errno, "no descriptor left for the remote source; raise "
						   "ulimit -n")
			  : start_threads(s);
	if (err) {
		remote_free(s);
		return err;
	}
	pthread_mutex_lock(&ctx->lock);
	ctx->caught_up = caught_up;
	ctx->caught_up_arg = s;
	pthread_mutex_unlock(&ctx->lock);
	*src = s;
	return 0;
}

/* The arbiter ends what it still has of a holder whose connection ends. */
static void remote_close(void *src)
{
	struct pl_remote *s = src;

	stop_link(s);
	pthread_join(s->reporter, NULL);
	pthread_join(s->link, NULL);
	while (s->leases.root) {
		struct pl_node *n = s->leases.root;

		pl_index_remove(&s->leases, n);
		free(n);
	}
	remote_free(s);
}

static const char *remote_away(void *src)
{
	struct pl_remote *s = src;
	bool connected;

	pthread_mutex_lock(&s->lock);
	connected = s->connected;
	pthread_mutex_unlock(&s->lock);
	return connected ? NULL : "pinleased isn't there at the moment; leases are told to the next one";
}

const struct pinl_source_ops pl_remote_ops = {
	.size = sizeof(struct pinl_source_ops),
	.name = "arbiter",
	.open = remote_open,
	.close = remote_close,
	.coverage = remote_coverage,
	.watch = remote_watch,
	.unwatch = remote_unwatch,
	.pinned = remote_pinned,
	.supervised = remote_supervised,
	.keeps_name = remote_keeps_name,
	.away = remote_away,
};
