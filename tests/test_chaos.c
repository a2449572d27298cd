/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Everything dies at any moment: pinleased (its descriptors are kept, I6), holders, actors; holders are
 * stopped, too. After each change that went through its holder, if it stands still, must have no pin
 * of what is gone (I2, I3), and no holder ever has an orphan (I5: RECALL never leaves one). In the end
 * every holder has all its leases, and nobody waits any more.
 *
 *	PINLEASE_TEST_SEED=N		the same choices again
 *	PINLEASE_TEST_SECONDS=N		for how long
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "accounted.h"
#include "arbiter_rig.h"

#define HOLDERS	    6
#define FILE_PAGES  32	 /* each a lease of its own */
#define CROWD	    2000 /* leases that nobody touches */
#define ACTORS	    8
#define SECONDS	    8
#define PATIENCE_MS 2000 /* with who is killed */

struct told {
	atomic_int leased; /* leases it has */
	atomic_int orphans, released, dead;
	atomic_bool ready; /* its device is open, and what that has pinned for a try is gone */
	atomic_bool end;
	char error[256];
};

struct party {
	pid_t pid;
	char file[128];
	struct told *told;
	bool stopped;
	unsigned epoch; /* how often it has been stopped, let go, revived */
};

struct change {
	pid_t pid;
	int fd, of, pages;
	unsigned epoch; /* of the holder */
};

static struct arbiter a;
static struct party party[HOLDERS];
static struct change change[ACTORS];
static uint64_t random_state;
static unsigned deaths, stops, cuts, checks, revived, killed_actors;

static unsigned roll(unsigned n)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (random_state >> 32) % n;
}

/* --------------------------------------------------------------------------------------- holders -- */

static void on_event(const struct pinl_event *ev, void *arg)
{
	struct told *t = arg;

	if (ev->type == PINL_EV_ORPHAN) {
		snprintf(t->error, sizeof t->error, "an orphan by op %d, err %d, seen by %s", ev->op,
			 ev->err, ev->source);
		atomic_fetch_add(&t->orphans, 1);
	}
	if (ev->type == PINL_EV_RELEASED)
		atomic_fetch_add(&t->released, 1);
}

static void __attribute__((noreturn)) give_up(struct told *t, int err)
{
	snprintf(t->error, sizeof t->error, "%d: %s", err, pinl_error());
	t->dead = 1;
	_exit(1);
}

/* Who has lost leases gets them again: the file is made as long as before. */
static void renew(struct pinl_device *dev, int fd, char *va, struct pinl_lease **l, int n,
		  struct told *t)
{
	struct pinl_policy policy = {
		.size = sizeof policy, .kind = PINL_RECALL, .then = PINL_THEN_FAIL, .grace_ms = 20};

	for (int i = 0; i < n; i++) {
		int err;

		if (l[i] && pinl_lease_check(l[i]) == -ESTALE) {
			pinl_unmap_range(l[i]);
			l[i] = NULL;
			atomic_fetch_sub(&t->leased, 1);
		}
		if (l[i])
			continue;
		if (ftruncate(fd, n * PG) && errno != EBUSY)
			give_up(t, -errno);
		err = pinl_map_range(dev, (uintptr_t)va + i * PG, (uintptr_t)va + (i + 1) * PG,
				     PINL_WRITE | PINL_PIN, &policy, NULL, &l[i]);
		if (!err)
			atomic_fetch_add(&t->leased, 1);
		else
			snprintf(t->error, sizeof t->error, "%d: %s", err, pinl_error());
		/* else it is tried again: the file is being cut, or pinleased isn't there */
	}
}

/* Where pinleased is killed faster than it starts, nobody is served for longer than a context waits. */
static struct pinl_ctx *open_connected(const struct pinl_opts *opts, struct told *t)
{
	struct pinl_ctx *ctx;

	for (;;) {
		int err = pinl_open(opts, &ctx);

		if (err)
			give_up(t, err);
		if (is_connected(ctx))
			return ctx;
		pinl_close(ctx);
	}
}

static void __attribute__((noreturn)) hold(const char *file, int n, struct told *t)
{
	struct pinl_opts opts = {
		.size = sizeof opts, .on_event = on_event, .on_event_arg = t, .summary_fd = -1};
	struct pinl_uring_arg arg = {.size = sizeof arg, .slots = FILE_PAGES};
	struct pinl_lease **l = calloc(n, sizeof(*l));
	struct pinl_device *dev;
	struct io_uring ring;
	struct pinl_ctx *ctx;
	char *va;
	int fd;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	account_pins();
	fd = open(file, O_RDWR | O_CLOEXEC);
	if (ftruncate(fd, n * PG))
		give_up(t, -errno);
	ctx = open_connected(&opts, t);
	va = mmap(NULL, n * PG, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	arg.ring = &ring;
	if (n <= FILE_PAGES
		    ? io_uring_queue_init(8, &ring, 0) || pinl_device_open(ctx, "uring", &arg, &dev)
		    : pinl_device_open(ctx, "soft", NULL, &dev))
		give_up(t, -errno);
	while (process_pinned_kb(getpid()) > 0) /* a closed ring lets go a little later */
		usleep(1000);
	t->ready = true;
	while (!t->end) {
		renew(dev, fd, va, l, n, t);
		usleep(1000);
	}
	_exit(0);
}

static void revive(struct party *p, int n)
{
	memset(p->told, 0, sizeof *p->told);
	p->stopped = false;
	p->epoch++;
	p->pid = fork();
	if (!p->pid)
		hold(p->file, n, p->told);
}

static void party_start(struct party *p, const char *name, int n)
{
	snprintf(p->file, sizeof p->file, "%s/%s", a.dir, name);
	close(open(p->file, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
	p->told = mmap(NULL, PG, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	revive(p, n);
}

/* Where one of its threads waits for another that has stopped already, it doesn't come to that. */
static void party_stop(struct party *p)
{
	int status = 0, got = 0;

	kill(p->pid, SIGSTOP);
	for (int i = 0; i < 500 && !(got = waitpid(p->pid, &status, WUNTRACED | WNOHANG)); i++)
		usleep(1000);
	if (got && !WIFSTOPPED(status))
		fail_msg("a holder has ended: %s", p->told->error);
	if (!got)
		kill(p->pid, SIGCONT);
	p->stopped = got;
	p->epoch++;
}

static void party_go(struct party *p)
{
	kill(p->pid, SIGCONT);
	p->stopped = false;
	p->epoch++;
}

static void all_go(void)
{
	for (int i = 0; i < HOLDERS; i++)
		if (party[i].stopped)
			party_go(&party[i]);
}

/* Who has been without pinleased for too long, as where that is killed faster than it starts, watches
 * its files itself; in its end it waits for all who were held just then, by a stopped one of the kind
 * too. */
static void party_kill(struct party *p)
{
	kill(p->pid, SIGKILL);
	for (int ms = 0; !waitpid(p->pid, NULL, WNOHANG); ms++) {
		if (ms == PATIENCE_MS)
			all_go();
		usleep(1000);
	}
}

static void party_end(struct party *p)
{
	party_kill(p);
	munmap(p->told, PG);
	unlink(p->file);
}

static void check_party(const struct party *p)
{
	if (p->told->dead)
		fail_msg("a holder has given up: %s", p->told->error);
	if (p->told->orphans)
		fail_msg("of file %s, %d leased: %s", p->file, p->told->leased, p->told->error);
}

/* ---------------------------------------------------------------------------------------- actors -- */

static void change_start(struct change *c)
{
	int fds[2], err;

	c->of = roll(HOLDERS);
	c->pages = roll(FILE_PAGES);
	c->epoch = party[c->of].epoch;
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	c->pid = fork();
	if (!c->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		err = truncate(party[c->of].file, c->pages * PG) ? -errno : 0;
		_exit(write(fds[1], &err, sizeof err) != sizeof err);
	}
	close(fds[1]);
	c->fd = fds[0];
}

static void change_over(struct change *c)
{
	close(c->fd);
	waitpid(c->pid, NULL, 0);
	c->pid = 0;
}

/* A ring says a moment before that a buffer is unpinned. */
static long pinned_down_to(pid_t pid, long pages)
{
	for (int ms = 0; ms < 20000 && process_pinned_kb(pid) / 4 > pages; ms++)
		usleep(1000);
	return process_pinned_kb(pid) / 4;
}

/* A holder that stands still, and did before the change began, can have pins of what is left only. */
static void change_collect(struct change *c, int timeout_ms)
{
	const struct party *p = &party[c->of];
	struct pollfd fd = {.fd = c->fd, .events = POLLIN};
	int err = 1;

	if (!c->pid || !poll(&fd, 1, timeout_ms))
		return;
	assert_int_equal(read(c->fd, &err, sizeof err), sizeof err);
	assert_int_equal(err, 0);
	cuts++;
	if (p->stopped && p->epoch == c->epoch && p->told->ready) {
		long pinned = pinned_down_to(p->pid, c->pages);

		if (pinned > c->pages)
			fail_msg("%s was cut by %d to %d pages, and %d has %ld pinned", p->file, c->pid,
				 c->pages, p->pid, pinned);
		checks++;
	}
	change_over(c);
}

static void change_kill(struct change *c)
{
	if (!c->pid)
		return;
	kill(c->pid, SIGKILL);
	change_over(c);
	killed_actors++;
}

/* ---------------------------------------------------------------------------------- the test -- */

static const char *const options[] = {"--ceiling", "60000", NULL};

static void step(void)
{
	struct party *p = &party[roll(HOLDERS)];
	struct change *c = &change[roll(ACTORS)];
	unsigned what = roll(16);

	if (what < 2) {
		arbiter_kill(&a);
		for (unsigned n = roll(3); n; n--) /* who comes meanwhile waits, too */
			if (!change[n].pid)
				change_start(&change[n]);
		usleep(roll(4) * 1000);
		arbiter_restart(&a, options);
		deaths++;
	} else if (what < 3) {
		party_kill(p);
		revive(p, FILE_PAGES);
		revived++;
	} else if (what < 6) {
		if (p->stopped)
			party_go(p);
		else
			party_stop(p);
		stops++;
	} else if (what < 7) {
		change_kill(c);
	} else if (what < 12) {
		if (!c->pid)
			change_start(c);
	} else {
		usleep(roll(5000));
	}
	for (int i = 0; i < ACTORS; i++)
		change_collect(&change[i], 0);
	for (int i = 0; i < HOLDERS; i++)
		check_party(&party[i]);
}

static void settle(const struct party *crowd)
{
	all_go();
	for (int i = 0; i < ACTORS; i++)
		while (change[i].pid)
			change_collect(&change[i], -1);
	for (int i = 0; i < HOLDERS; i++)
		while (party[i].told->leased < FILE_PAGES) {
			check_party(&party[i]);
			usleep(1000);
		}
	assert_int_equal(crowd->told->leased, CROWD);
	assert_int_equal(crowd->told->released, 0);
}

static void promises_survive_any_death(void **state)
{
	const char *seed = getenv("PINLEASE_TEST_SEED"), *seconds = getenv("PINLEASE_TEST_SECONDS");
	struct party crowd;
	time_t until;

	if (seed)
		random_state = strtoull(seed, NULL, 0);
	while (!random_state)
		assert_int_equal(getrandom(&random_state, sizeof random_state, 0), sizeof random_state);
	print_message("# PINLEASE_TEST_SEED=%lu\n", random_state);
	a.kept = true;
	arbiter_start(&a, options);
	party_start(&crowd, "crowd", CROWD);
	while (crowd.told->leased < CROWD) {
		check_party(&crowd);
		usleep(1000);
	}
	for (int i = 0; i < HOLDERS; i++) {
		char name[16];

		snprintf(name, sizeof name, "file%d", i);
		party_start(&party[i], name, FILE_PAGES);
	}
	until = time(NULL) + (seconds ? atoi(seconds) : SECONDS);
	while (time(NULL) < until || !deaths || !revived || !cuts) /* on a slow machine, too */
		step();
	settle(&crowd);
	print_message("# arbiter killed %u times, holders killed %u, stopped or let go %u, %u cuts, %u "
		      "of them of a stopped holder, %u actors killed\n",
		      deaths, revived, stops, cuts, checks, killed_actors);
	for (int i = 0; i < HOLDERS; i++)
		party_end(&party[i]);
	party_end(&crowd);
	arbiter_stop(&a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(promises_survive_any_death)};

	alarm(HANG_S + (getenv("PINLEASE_TEST_SECONDS") ? atoi(getenv("PINLEASE_TEST_SECONDS")) : 0));
	return cmocka_run_group_tests_name("chaos", tests, NULL, NULL);
}
