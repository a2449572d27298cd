/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The thread of the generation source.
 *
 *	AWAY --connect, HELLO--> GREETING --WELCOME, COUNT--> ASKING --2 COUNTED, REPLY--> THERE
 *	  ^----------------------- the connection is over, or refused ----------------------|
 *
 * While it is away the kernel goes on counting, as pinleased leaves it, for as long as a restart may
 * take, where the maps say `outlives`; then, or as soon as they say `ended`, nothing is counted any
 * more, which is told. Each time it gets there everything of before is stale: in between changes may
 * have been counted for nobody.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "core/ctx.h"
#include "os/forked.h"
#include "proto/wire.h"
#include "source/generation.h"

#define PAGE	   4096ul
#define MS	   1000000ull
#define RETRY_NS   (100 * MS)
#define REFUSED_NS (1000 * MS)	/* it said no */
#define RESTART_NS (2000 * MS)	/* without a connection */
#define LOAD_NS	   (60000 * MS) /* with one, until it counts */
#define BEHIND_NS  (100000)	/* told of, and its record isn't there */
#define LOOK_NS	   (1000 * MS)	/* pinleased may have found that changes weren't seen */

static void close_fd(int *fd)
{
	pl_forked_close(*fd);
	*fd = -1;
}

/* No child is to have it: it would keep this process counted. */
static int keep(int *fd)
{
	int err = pl_forked_add(*fd);

	if (err)
		close_fd(fd);
	return err;
}

/* To who opens the source. */
static void answer(struct pl_generation *g, int err, const char *text)
{
	pthread_mutex_lock(&g->lock);
	if (!g->answered) {
		g->answered = true;
		g->err = err;
		snprintf(g->text, sizeof g->text, "%s", text);
		pthread_cond_signal(&g->done);
	}
	pthread_mutex_unlock(&g->lock);
}

/* ------------------------------------------------------------------------------------ the maps -- */

static int put(void *at, size_t len, int prot, int fd, off_t offset)
{
	void *got = (void *)syscall(SYS_mmap, at, len, prot, MAP_SHARED | MAP_FIXED, fd, offset);

	if (got == MAP_FAILED)
		return -errno;
	madvise(at, len, MADV_DONTFORK);
	return 0;
}

static int put_maps(struct pl_generation *g)
{
	char *ring = (char *)g->at + g->counts_len;
	int err = put(g->at, g->counts_len, PROT_READ | PROT_WRITE, g->map_fd[PL_COUNTED_COUNTS], 0);

	if (!err)
		err = put(ring, PAGE, PROT_READ | PROT_WRITE, g->map_fd[PL_COUNTED_RING], 0);
	if (!err)
		err = put(ring + PAGE, g->ring_len - PAGE, PROT_READ, g->map_fd[PL_COUNTED_RING], PAGE);
	return err;
}

static void say(struct pl_generation *g, int err)
{
	struct pinl_event ev = {
		.size = sizeof ev, .type = PINL_EV_DEGRADED, .op = PINL_OP_NR, .err = err};

	strcpy(ev.source, "generation");
	pl_event_push(g->ctx, &ev);
}

/* Nothing is counted any more. */
static void end(struct pl_generation *g)
{
	if (!atomic_exchange(&g->live, false))
		return;
	pl_generation_take_left(g);
	pinl_changing_begin(g->ctx);
	pl_counted_ended(g->ctx);
	pthread_mutex_lock(&g->lock);
	if (g->given)
		__atomic_store_n(&g->counts->applied,
				 __atomic_load_n(&g->counts->told, __ATOMIC_SEQ_CST), __ATOMIC_SEQ_CST);
	else if (pl_generation_reserve(g)) /* no memory for it: nothing looks at what is there */
		pl_counts_set(g->ctx, NULL);
	pthread_mutex_unlock(&g->lock);
	pinl_changing_end(g->ctx);
	close_fd(&g->ring_fd);
	say(g, -ENOTCONN);
}

/* What is there by now was counted for nobody who looks; the first time there is nobody. */
static int begin(struct pl_generation *g)
{
	bool again = g->answered;
	int err = 0;

	if (atomic_load(&g->live)) /* leases hear of what was told of in the maps of before */
		pl_generation_take_left(g);
	pinl_changing_begin(g->ctx);
	pthread_mutex_lock(&g->lock);
	if (!g->given)
		err = put_maps(g);
	if (!err)
		pl_generation_watch_again(g);
	else if (pl_generation_reserve(g))
		pl_counts_set(g->ctx, NULL);
	g->taken = g->lost = 0;
	pthread_mutex_unlock(&g->lock);
	if (again && !err)
		pl_counts_set(g->ctx, (struct pl_counts *)&g->counts->told);
	if (again && (!err || atomic_load(&g->live)))
		pl_counted_anew(g->ctx);
	pinl_changing_end(g->ctx);
	if (again && !err && atomic_load(&g->live))
		say(g, -ENOTCONN);
	if (!err) /* else it ends, which is for who is live */
		atomic_store(&g->live, true);
	return err;
}

/* ------------------------------------------------------------------------------- the connection -- */

static void hang_up(struct pl_generation *g, uint64_t again_ns)
{
	uint64_t now = pl_clock_ns();

	close_fd(&g->sock);
	close_fd(&g->map_fd[0]);
	close_fd(&g->map_fd[1]);
	if (g->stage == PL_GEN_THERE)
		g->away_ns = now;
	g->stage = PL_GEN_AWAY;
	g->next_ns = now + again_ns;
}

static void refused(struct pl_generation *g, int err, const char *text)
{
	hang_up(g, REFUSED_NS);
	end(g);
	answer(g, err, text);
}

static int greet(struct pl_generation *g)
{
	union pl_message m;

	pl_message_init(&m, PL_HELLO);
	m.hello.version = PL_PROTO_VERSION;
	m.hello.role = PL_ROLE_HOLDER;
	snprintf(m.hello.name, sizeof m.hello.name, "%s", program_invocation_short_name);
	return pl_message_send(g->sock, &m, -1);
}

static bool is_passing(int err)
{
	return err == -EAGAIN || err == -ECONNRESET || err == -EPIPE;
}

/* What listens and breaks off is being restarted. */
static void call_up(struct pl_generation *g)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int err = 0;

	snprintf(addr.sun_path, sizeof addr.sun_path, "%s", g->path);
	g->sock = syscall(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	err = g->sock < 0 ? -errno : keep(&g->sock);
	if (!err && syscall(SYS_connect, g->sock, &addr, sizeof addr))
		err = -errno;
	if (!err)
		err = greet(g);
	g->stage = PL_GEN_GREETING;
	if (!err || err == -EPIPE) /* it may have said why */
		return;
	hang_up(g, RETRY_NS);
	if (!is_passing(err))
		answer(g, err, "");
}

static int on_welcome(struct pl_generation *g, const struct pl_welcome *w)
{
	union pl_message m;

	if (g->stage != PL_GEN_GREETING || w->version != PL_PROTO_VERSION)
		return -EPROTO;
	pl_message_init(&m, PL_COUNT);
	g->stage = PL_GEN_ASKING;
	return pl_message_send(g->sock, &m, -1);
}

static int on_counted(struct pl_generation *g, const struct pl_counted_msg *m, int fd)
{
	uint64_t size = m->map == PL_COUNTED_RING ? GENERATION_RING : sizeof(struct generation_counts);

	if (g->stage != PL_GEN_ASKING || m->map > PL_COUNTED_RING || m->size != size ||
	    g->map_fd[m->map] >= 0) {
		close_fd(&fd);
		return -EPROTO;
	}
	g->map_fd[m->map] = fd;
	return keep(&g->map_fd[m->map]);
}

static int on_reply(struct pl_generation *g, const struct pl_reply *m)
{
	int err;

	if (m->err) {
		refused(g, m->err, m->text);
		return 0;
	}
	if (g->stage != PL_GEN_ASKING || g->map_fd[0] < 0 || g->map_fd[1] < 0)
		return -EPROTO;
	err = begin(g);
	if (err) {
		refused(g, err, "the counts can't be mapped");
		return 0;
	}
	close_fd(&g->ring_fd);
	g->ring_fd = g->map_fd[PL_COUNTED_RING];
	g->map_fd[PL_COUNTED_RING] = -1;
	close_fd(&g->map_fd[PL_COUNTED_COUNTS]);
	g->stage = PL_GEN_THERE;
	answer(g, 0, "");
	return 0;
}

static int receive_one(struct pl_generation *g)
{
	union pl_message m;
	const char *why;
	int fd, err = pl_message_receive(g->sock, &m, &fd, &why);

	if (err)
		return err;
	if (m.head.type == PL_COUNTED)
		return on_counted(g, &m.counted, fd);
	close_fd(&fd);
	if (m.head.type == PL_WELCOME)
		return on_welcome(g, &m.welcome);
	return m.head.type == PL_REPLY ? on_reply(g, &m.reply) : -EPROTO;
}

static void receive_all(struct pl_generation *g)
{
	int err = 0;

	while (!err && g->sock >= 0)
		err = receive_one(g);
	if (g->sock < 0 || err == -EAGAIN)
		return;
	hang_up(g, RETRY_NS);
	if (!is_passing(err))
		answer(g, err, "what listens there isn't of this release; install the same of both");
}

/* ----------------------------------------------------------------------------------- the thread -- */

/* No longer than a restart takes is it counted on what nobody looks after, and not at all on what has
 * gone with pinleased. */
static bool is_over(const struct pl_generation *g)
{
	uint64_t patience = g->stage == PL_GEN_AWAY ? RESTART_NS : LOAD_NS;

	if (__atomic_load_n(&g->counts->ended, __ATOMIC_ACQUIRE))
		return true;
	if (g->given || g->stage == PL_GEN_THERE)
		return false;
	return !g->counts->outlives || pl_clock_ns() > g->away_ns + patience;
}

/* A pinleased that has ended it, and lives, is asked anew. */
static void look_for_end(struct pl_generation *g)
{
	if (!atomic_load(&g->live) || !is_over(g))
		return;
	end(g);
	if (g->stage == PL_GEN_THERE)
		hang_up(g, RETRY_NS);
}

static uint64_t pause_ns(const struct pl_generation *g, bool behind)
{
	uint64_t now = pl_clock_ns();

	if (behind)
		return BEHIND_NS;
	if (g->stage == PL_GEN_AWAY && !g->given)
		return g->next_ns > now ? g->next_ns - now : 0;
	return LOOK_NS;
}

/* A record that isn't written yet makes the ring readable all the time. */
static void wait(struct pl_generation *g, bool behind)
{
	struct pollfd p[3] = {{.fd = g->kick, .events = POLLIN},
			      {.fd = g->sock, .events = POLLIN},
			      {.fd = behind ? -1 : g->ring_fd, .events = POLLIN}};
	uint64_t ns = pause_ns(g, behind);
	eventfd_t n;
	struct timespec t = {.tv_sec = ns / 1000000000u, .tv_nsec = ns % 1000000000u};

	if (ppoll(p, 3, &t, NULL) <= 0)
		return;
	if (p[0].revents)
		eventfd_read(g->kick, &n);
	if (p[1].revents)
		receive_all(g);
}

void *pl_generation_link(void *generation)
{
	struct pl_generation *g = generation;
	int err = 0;
	bool behind;

	prctl(PR_SET_NAME, "pinl-counts");
	if (g->given) {
		err = begin(g);
		answer(g, err, "");
	}
	while (!atomic_load(&g->stop) && !err) {
		if (g->stage == PL_GEN_AWAY && !g->given && pl_clock_ns() >= g->next_ns)
			call_up(g);
		behind = atomic_load(&g->live) && !pl_generation_take(g);
		look_for_end(g);
		wait(g, behind);
	}
	hang_up(g, 0);
	close_fd(&g->ring_fd);
	return NULL;
}
