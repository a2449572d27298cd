/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Stopped calls, from the kernel's notification to their end:
 *
 *	stopped -> nothing in it for anybody -> goes on
 *	        -> QUEUED -> ASKED -> refused
 *	                           -> goes on -> GOING until it has happened -> DONE said
 *
 * Invariants: each is answered once, or its actor is gone; how many are asked at a time is bounded by
 * ASKED_AT_ONCE, all others wait here; where pinleased can't be asked all go on, and that is said. The
 * call is the actor's own from then on: who has the file and the bytes that were asked about is up to
 * him.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "arbiter.h"
#include "common.h"
#include "run.h"

#define ASKED_AT_ONCE  256
#define QUEUED_AT_ONCE 128	     /* with their files open; the others wait in the kernel */
#define RETRY_NS       1000000000ull /* to reach pinleased again */
#define GIVE_UP_NS     250000000ull  /* to see that a call has happened */
#define CHECK_MS       100	     /* is who waits still there? */
#define MAX_POLL_MS    32
#define SLACK_MS       5000 /* beyond what pinleased may take */

#define NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#define SYNC_WAKE_UP	1ul

enum state { QUEUED, ASKED, GOING };

struct stopped {
	TAILQ_ENTRY(stopped) link;
	enum state state;
	uint64_t id; /* the kernel's */
	pid_t tid;
	struct run_part parts[RUN_PARTS];
	int n, sent, answered;
	bool granted[RUN_PARTS], refused;
	uint64_t serial; /* of the first part; the others' follow */
	uint64_t since_ns;
	char call[256]; /* as /proc shows it; "": it doesn't */
	int look;	/* O_PATH; to see the size change */
	bool size_seen;
};

TAILQ_HEAD(list, stopped);

struct run_hold {
	int listener, sock;
	struct list queued, asked, going;
	unsigned n_asked, n_queued, poll_ms;
	uint64_t serial, tried_ns, limit_ns;
	struct seccomp_notif *notif;
	size_t notif_size;
	bool full;
	uint64_t checked_ns;
};

/* ------------------------------------------------------------------------------------- the kernel's
 * side --
 */

static int answer(struct run_hold *h, uint64_t id, int err)
{
	struct seccomp_notif_resp r = {.id = id, .error = err};

	if (!err)
		r.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
	while (ioctl(h->listener, SECCOMP_IOCTL_NOTIF_SEND, &r))
		if (errno != EINTR)
			return -errno;
	return 0;
}

static bool waits(const struct run_hold *h, uint64_t id)
{
	return !ioctl(h->listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &id);
}

/* --------------------------------------------------------------------------------------- pinleased's
 * side --
 */

static void say_done(struct run_hold *h, uint64_t serial)
{
	union pl_message m;

	pl_message_init(&m, PL_DONE);
	m.done.change = serial;
	if (h->sock >= 0)
		pl_message_send(h->sock, &m, -1); /* no room: it forgets by itself, in time */
}

static void close_parts(struct stopped *s)
{
	for (int i = 0; i < s->n; i++) {
		if (s->parts[i].fd >= 0)
			close(s->parts[i].fd);
		s->parts[i].fd = -1;
	}
}

static void drop(struct run_hold *h, struct stopped *s)
{
	struct list *lists[] = {&h->queued, &h->asked, &h->going};

	TAILQ_REMOVE(lists[s->state], s, link);
	h->n_asked -= s->state == ASKED;
	h->n_queued -= s->state == QUEUED;
	close_parts(s);
	if (s->look >= 0)
		close(s->look);
	free(s);
}

/* Over, whatever became of it. */
static void finish(struct run_hold *h, struct stopped *s)
{
	for (int i = 0; i < s->sent; i++)
		if (s->granted[i] || s->answered < s->sent)
			say_done(h, s->serial + i);
	drop(h, s);
}

static void let_all_go(struct run_hold *h)
{
	struct list *lists[] = {&h->queued, &h->asked, &h->going};
	struct stopped *s;

	for (int i = 0; i < 3; i++)
		while ((s = TAILQ_FIRST(lists[i]))) {
			if (s->state != GOING)
				answer(h, s->id, 0);
			drop(h, s);
		}
}

static bool is_refusal(const union pl_message *m)
{
	return m->head.type == PL_REPLY && !m->head.serial && m->reply.err;
}

static int receive(struct run_hold *h, union pl_message *m)
{
	const char *why;
	int fd, err = pl_message_receive(h->sock, m, &fd, &why);

	if (fd >= 0)
		close(fd);
	if (!err && m->head.type == PL_WELCOME && m->welcome.version != PL_PROTO_VERSION)
		err = -EPROTO;
	return err;
}

/* 0, or why there is none. It stands before the end, which may be seen once before it. */
static int find_refusal(struct run_hold *h, union pl_message *m)
{
	int ends = 0;

	for (;;) {
		int err = receive(h, m);

		if (!err && is_refusal(m))
			return 0;
		if (err && (err != -EPIPE || ends++))
			return err;
	}
}

static void disconnect(struct run_hold *h)
{
	close(h->sock);
	h->sock = -1;
	h->full = false;
	let_all_go(h);
}

static void refused(struct run_hold *h, const union pl_message *m)
{
	run_say("%s: until it lets us in, nothing waits for leases", m->reply.text);
	disconnect(h);
}

static void lost(struct run_hold *h, int err)
{
	union pl_message m;

	if (err != -EPROTO)
		err = find_refusal(h, &m);
	if (!err) {
		refused(h, &m);
		return;
	}
	if (err == -EPROTO)
		run_say("what listens at %s isn't this release's pinleased; install the same release of "
			"both: until then, nothing waits for leases",
			arbiter_path());
	else
		run_say("the connection to pinleased is broken: until it is back, nothing waits for "
			"leases");
	disconnect(h);
}

static bool connected(struct run_hold *h)
{
	uint64_t now = tool_now();

	if (h->sock >= 0)
		return true;
	if (h->tried_ns && now - h->tried_ns < RETRY_NS)
		return false;
	h->tried_ns = now;
	h->sock = arbiter_connect(PL_ROLE_SUPERVISOR, SOCK_NONBLOCK);
	if (h->sock < 0)
		run_say("can't reach pinleased at %s (%s): until it runs, nothing waits for leases",
			arbiter_path(), strerror(-h->sock));
	return h->sock >= 0;
}

static int ask(struct run_hold *h, const struct stopped *s, int i)
{
	const struct run_part *p = &s->parts[i];
	union pl_message m;

	pl_message_init(&m, PL_CHANGE);
	m.head.serial = s->serial + i;
	m.change.op = p->op;
	m.change.tid = s->tid;
	m.change.pid = run_process_of(s->tid);
	m.change.start = p->start;
	m.change.end = p->end;
	return pl_message_send(h->sock, &m, p->fd);
}

/* False: no room, or no connection any more. */
static bool send_parts(struct run_hold *h, struct stopped *s)
{
	int err;

	for (; s->sent < s->n; s->sent++) {
		err = ask(h, s, s->sent);
		if (err == -EAGAIN) {
			h->full = true;
			return false;
		}
		if (err) {
			lost(h, err);
			return false;
		}
	}
	if (s->n == 1 && s->parts[0].op == PINL_OP_TRUNCATE) {
		char path[32];

		snprintf(path, sizeof path, "/proc/self/fd/%d", s->parts[0].fd);
		s->look = open(path, O_PATH | O_CLOEXEC);
	}
	close_parts(s); /* as long as it is open for writing nobody can execute it */
	return true;
}

static void send_queued(struct run_hold *h)
{
	struct stopped *s;

	while (!h->full && h->n_asked < ASKED_AT_ONCE && (s = TAILQ_FIRST(&h->queued))) {
		if (!send_parts(h, s))
			return;
		TAILQ_REMOVE(&h->queued, s, link);
		h->n_queued--;
		s->state = ASKED;
		s->since_ns = tool_now();
		TAILQ_INSERT_TAIL(&h->asked, s, link);
		h->n_asked++;
	}
}

/* -------------------------------------------------------------------------- has it happened? -- */

/* The task is gone, or in another call; or the size is the new one, which changes before the pages go,
 * so this is asked twice at least. One that runs all the time is believed after a while. */
static bool has_happened(struct stopped *s, uint64_t now)
{
	char call[sizeof s->call];
	struct stat st;
	int err;

	if (s->look >= 0 && !fstat(s->look, &st) && (uint64_t)st.st_size == s->parts[0].start) {
		if (s->size_seen)
			return true;
		s->size_seen = true;
	}
	err = run_proc(s->tid, "syscall", call, sizeof call);
	if (err == -ESRCH || err == -ENOENT)
		return true;
	if (!err && *s->call && strncmp(call, "running", 7))
		return strcmp(call, s->call);
	return now - s->since_ns > GIVE_UP_NS;
}

/* tid: it has stopped again, so it is through with the call before. */
static void confirm(struct run_hold *h, pid_t tid)
{
	uint64_t now = tool_now();
	struct stopped *s, *next;

	for (s = TAILQ_FIRST(&h->going); s; s = next) {
		next = TAILQ_NEXT(s, link);
		if (tid ? s->tid == tid : has_happened(s, now))
			finish(h, s);
	}
}

static void go(struct run_hold *h, struct stopped *s)
{
	bool closed = false;

	for (int i = 0; i < s->n; i++)
		closed |= s->granted[i];
	if (closed) /* it sleeps in the call now, so it can be seen there */
		run_proc(s->tid, "syscall", s->call, sizeof s->call);
	if (answer(h, s->id, 0) || !closed) {
		finish(h, s);
		return;
	}
	TAILQ_REMOVE(&h->asked, s, link);
	h->n_asked--;
	s->state = GOING;
	s->since_ns = tool_now();
	TAILQ_INSERT_TAIL(&h->going, s, link);
	h->poll_ms = 1;
}

static void on_reply(struct run_hold *h, const struct pl_reply *r)
{
	struct stopped *s;
	uint64_t i = 0;

	TAILQ_FOREACH(s, &h->asked, link)
	{
		i = r->head.serial - s->serial;
		if (i < (uint64_t)s->sent)
			break;
	}
	if (!s)
		return; /* of one that was given up */
	s->refused |= r->err == -EBUSY;
	s->granted[i] = !r->err && r->value == 1;
	if (r->err && r->err != -EBUSY)
		run_say("pinleased doesn't hold a change: %s", r->text);
	if (++s->answered < s->n)
		return;
	if (!s->refused) {
		go(h, s);
		return;
	}
	answer(h, s->id, -EBUSY);
	finish(h, s);
}

void run_hold_answers(struct run_hold *h)
{
	union pl_message m;
	int err = 0;

	h->full = false;
	while (h->sock >= 0 && !err && !(err = receive(h, &m))) {
		if (m.head.type == PL_WELCOME)
			h->limit_ns = (2ull * m.welcome.ceiling_ms + SLACK_MS) * 1000000;
		else if (m.head.type == PL_REPLY && m.head.serial)
			on_reply(h, &m.reply);
		else if (is_refusal(&m))
			refused(h, &m);
		else
			err = -EPROTO;
	}
	if (h->sock >= 0 && err != -EAGAIN)
		lost(h, err);
}

/* -------------------------------------------------------------------------------------- stopped calls
 * -- */

static void begin(struct run_hold *h, const struct seccomp_notif *n)
{
	struct stopped *s = calloc(1, sizeof *s);
	const char *why = NULL;

	if (s)
		s->n = run_look(n, s->parts, &why);
	if (why)
		run_say("process %u is not guarded: %s", n->pid, why);
	if (!s || !s->n || !waits(h, n->id) || !connected(h)) {
		if (s)
			close_parts(s);
		free(s);
		answer(h, n->id, 0);
		return;
	}
	s->id = n->id;
	s->tid = (pid_t)n->pid;
	s->look = -1;
	s->serial = h->serial;
	h->serial += s->n;
	TAILQ_INSERT_TAIL(&h->queued, s, link);
	h->n_queued++;
}

static void on_call(struct run_hold *h, const struct seccomp_notif *n)
{
	confirm(h, (pid_t)n->pid);
	if (run_what(&n->data) != RUN_RING) {
		begin(h, n);
		return;
	}
	run_say("process %u has an io_uring: what it changes by that is not seen (--no-io-uring "
		"forbids it)",
		n->pid);
	answer(h, n->id, 0);
}

void run_hold_calls(struct run_hold *h)
{
	memset(h->notif, 0, h->notif_size);
	if (!ioctl(h->listener, SECCOMP_IOCTL_NOTIF_RECV, h->notif))
		on_call(h, h->notif);
}

/* Nobody says that an actor who waits was killed. */
static void check(struct run_hold *h, uint64_t now)
{
	struct list *lists[] = {&h->queued, &h->asked};
	struct stopped *s, *next;

	for (int i = 0; i < 2; i++)
		for (s = TAILQ_FIRST(lists[i]); s; s = next) {
			next = TAILQ_NEXT(s, link);
			if (!waits(h, s->id)) {
				finish(h, s);
			} else if (s->state == ASKED && now - s->since_ns > h->limit_ns) {
				run_say("pinleased gives no answer; is it stopped? Nothing waits for it "
					"any more");
				answer(h, s->id, 0);
				finish(h, s);
			}
		}
	h->checked_ns = now;
}

void run_hold_tick(struct run_hold *h)
{
	uint64_t now;

	send_queued(h);
	now = tool_now();
	if (now - h->checked_ns >= CHECK_MS * 1000000ull)
		check(h, now);
	if (TAILQ_EMPTY(&h->going))
		return;
	confirm(h, 0);
	h->poll_ms = h->poll_ms < MAX_POLL_MS ? h->poll_ms * 2 : MAX_POLL_MS;
}

int run_hold_timeout(const struct run_hold *h)
{
	if (!TAILQ_EMPTY(&h->going))
		return (int)h->poll_ms;
	return TAILQ_EMPTY(&h->asked) && TAILQ_EMPTY(&h->queued) ? -1 : CHECK_MS;
}

int run_hold_listener(const struct run_hold *h)
{
	return h->listener;
}

bool run_hold_has_room(const struct run_hold *h)
{
	return h->n_queued < QUEUED_AT_ONCE;
}

int run_hold_socket(const struct run_hold *h, bool *writing)
{
	*writing = h->full;
	return h->sock;
}

struct run_hold *run_hold_new(int listener)
{
	struct run_hold *h = calloc(1, sizeof *h);
	struct seccomp_notif_sizes sizes;

	if (!h || syscall(SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &sizes))
		return NULL;
	h->notif_size = sizes.seccomp_notif > sizeof *h->notif ? sizes.seccomp_notif : sizeof *h->notif;
	h->notif = malloc(h->notif_size);
	if (!h->notif)
		return NULL;
	TAILQ_INIT(&h->queued);
	TAILQ_INIT(&h->asked);
	TAILQ_INIT(&h->going);
	ioctl(listener, NOTIF_SET_FLAGS, SYNC_WAKE_UP); /* since 6.6; it is for speed only */
	h->listener = listener;
	h->sock = -1;
	h->serial = 1;
	h->limit_ns = 60000000000ull; /* until it has said its ceiling */
	connected(h);
	return h;
}

void run_hold_free(struct run_hold *h)
{
	let_all_go(h);
	if (h->sock >= 0)
		close(h->sock);
	close(h->listener);
	free(h->notif);
	free(h);
}
