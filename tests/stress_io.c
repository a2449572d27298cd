/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Lookups, transfers, and the strangers of the stress test. Each thread writes through the devices into
 * a word of its own in each page (its lane), so what it last wrote there is what must be found.
 */
#include "stress.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define LANES	   16
#define OWNER_LANE 8

extern char **environ;

/* ---------------------------------------------------------------------------------------- uring -- */

struct request {
	atomic_int done;
	int res;
};

static struct {
	struct io_uring ring;
	pthread_mutex_t lock; /* the queues and the requests */
	struct request request[2 * LANES];
	int bounce;
} u = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* A request on a pipe: in flight until somebody writes there. */
static struct flight {
	bool up;
	int pipe[2];
	uint64_t tag;
} flights[LANES];

int uring_open(struct pinl_device **dev)
{
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &u.ring, .slots = 2 * SLOTS};
	int err = io_uring_queue_init(64, &u.ring, 0);

	if (err)
		return err;
	u.bounce = memfd_create("bounce", MFD_CLOEXEC);
	if (ftruncate(u.bounce, LANES * SIZE))
		return -errno;
	for (int i = 0; i < MOVERS; i++)
		if (pipe2(flights[i].pipe, O_CLOEXEC))
			return -errno;
	return pinl_device_open(round_.ctx, "uring", &arg, dev);
}

void uring_close(void)
{
	for (int i = 0; i < MOVERS; i++) {
		close(flights[i].pipe[0]);
		close(flights[i].pipe[1]);
	}
	close(u.bounce);
	io_uring_queue_exit(&u.ring);
}

int uring_fd(void)
{
	return u.ring.ring_fd;
}

static void reap(void)
{
	struct io_uring_cqe *cqe;

	pthread_mutex_lock(&u.lock);
	while (!io_uring_peek_cqe(&u.ring, &cqe)) {
		uint64_t tag = cqe->user_data;
		int res = cqe->res;

		io_uring_cqe_seen(&u.ring, cqe);
		if (pinl_uring_cqe(round_.dev[URING], tag))
			continue;
		u.request[tag].res = res;
		atomic_store(&u.request[tag].done, 1);
	}
	pthread_mutex_unlock(&u.lock);
}

static int submit(unsigned nr, int fd, const struct pinl_addr *to, size_t off, size_t len, int write)
{
	void *at = (void *)(uintptr_t)(to->addr + off);
	uint64_t from = fd == u.bounce ? nr / 2 * SIZE : 0;
	struct io_uring_sqe *sqe;
	int ret;

	atomic_store(&u.request[nr].done, 0);
	pthread_mutex_lock(&u.lock);
	sqe = io_uring_get_sqe(&u.ring);
	if (write)
		io_uring_prep_read_fixed(sqe, fd, at, len, from, to->key);
	else
		io_uring_prep_write_fixed(sqe, fd, at, len, from, to->key);
	sqe->user_data = nr;
	do
		ret = io_uring_submit(&u.ring);
	while (ret == -EINTR || ret == -EAGAIN);
	pthread_mutex_unlock(&u.lock);
	if (ret != 1)
		broken("test", "io_uring_submit: %d", ret);
	return ret == 1 ? 0 : -EIO;
}

static int await(unsigned nr)
{
	struct pollfd p = {u.ring.ring_fd, POLLIN, 0};

	reap();
	while (!atomic_load(&u.request[nr].done)) {
		poll(&p, 1, 1);
		reap();
	}
	return u.request[nr].res;
}

static int uring_dma(unsigned lane, const struct pinl_addr *to, size_t off, void *buf, size_t len,
		     int write)
{
	off_t at = lane * SIZE;
	int ret;

	if (write && pwrite(u.bounce, buf, len, at) != (ssize_t)len)
		return -EIO;
	ret = submit(2 * lane, u.bounce, to, off, len, write);
	if (!ret)
		ret = await(2 * lane);
	if (ret < 0)
		return ret;
	if (!write && pread(u.bounce, buf, len, at) != (ssize_t)len)
		return -EIO;
	return ret == (int)len ? 0 : -EIO;
}

static int dma(struct actor *a, unsigned lane, const struct slot *s, size_t off, void *buf, size_t len,
	       int write)
{
	const struct pinl_addr *to = &s->addrs[off / PAGE];

	a->n[write ? N_WRITES : N_READS]++;
	if (s->device == URING)
		return uring_dma(lane, to, off % PAGE, buf, len, write);
	return pinl_soft_dma(round_.dev[s->device], to->addr + off % PAGE, buf, len, write);
}

/* --------------------------------------------------------------------------------------- lookups -- */

/* lease_lock held. */
static int look_up(struct actor *a, struct slot *s)
{
	uint64_t changed = atomic_load(&s->changed);
	int err = pinl_lease_check(s->lease);

	a->n[N_LOOKUPS]++;
	if (!err && changed >= s->id)
		broken("I1", "lease %lu, %s, %s, policy %d then %d: said to be unchanged after %#x, %#x",
		       (unsigned long)s->id, kind_names[s->kind], s->device == URING ? "uring" : "soft",
		       s->policy.kind, s->policy.then, round_.record[s->id].raw,
		       round_.record[s->id].explicit);
	return err;
}

static uint64_t new_tag(struct actor *a, unsigned lane)
{
	return (uint64_t)(lane + 1) << 56 | (a->n[N_WRITES] + a->n[N_FLIGHTS] + 1);
}

static int cpu_word(const struct slot *s, size_t off, uint64_t *word)
{
	struct iovec to = {word, 8}, from = {(void *)(s->info.start + off), 8};

	return process_vm_readv(getpid(), &to, 1, &from, 1, 0) == 8 ? 0 : -errno;
}

/* A write under a lease that is unchanged before and after, with no change under way: it succeeds and is
 * where the CPU looks. */
static void write_seen(struct actor *a, struct slot *s)
{
	unsigned begun = atomic_load(&s->begun), ended = atomic_load(&s->ended),
		 wild = atomic_load(&s->wild_begun), tame = atomic_load(&s->wild_ended);
	bool clean = s->clean && begun == ended && wild == tame && atomic_load(&s->hit) < s->id &&
		     !atomic_load(&s->guarded) && !look_up(a, s);
	uint64_t tag = new_tag(a, a->nr), word = 0;
	size_t off = roll(a, PAGES) * PAGE + a->nr * 8;
	int err = dma(a, a->nr, s, off, &tag, 8, 1), cpu = cpu_word(s, off, &word);

	if (look_up(a, s) || !clean || atomic_load(&s->begun) != begun ||
	    atomic_load(&s->wild_begun) != wild || err == -ECANCELED)
		return;
	a->n[N_SEEN]++;
	if (err || cpu || word != tag)
		broken("I1",
		       "lease %lu, %s, %s: unchanged, but a device write gave %d, the CPU has %#lx (%d)",
		       (unsigned long)s->id, kind_names[s->kind], s->device == URING ? "uring" : "soft",
		       err, (unsigned long)word, cpu);
}

/* All of the pages in one transfer, over everybody's lanes. */
static void write_wild(struct actor *a, struct slot *s)
{
	char buf[SIZE];

	memset(buf, 'w', SIZE);
	atomic_fetch_add(&s->wild_begun, 1);
	dma(a, a->nr, s, 0, buf, SIZE, 1);
	atomic_fetch_add(&s->wild_ended, 1);
}

static void take_off(struct actor *a, const struct slot *s)
{
	struct flight *f = &flights[a->nr];
	unsigned page = roll(a, PAGES);

	if (f->up || s->device != URING)
		return;
	f->tag = new_tag(a, a->nr) | 1ull << 48;
	f->up = !submit(2 * a->nr + 1, f->pipe[0], &s->addrs[page], (OWNER_LANE + 4 + a->nr) * 8, 8, 1);
	a->n[N_FLIGHTS]++;
}

void mover_land(struct actor *a)
{
	struct flight *f = &flights[a->nr];
	struct pollfd p = {f->pipe[0], POLLIN, 0};
	uint64_t word;

	if (!f->up)
		return;
	now_doing(a, "land", NULL);
	if (write(f->pipe[1], &f->tag, 8) != 8)
		broken("test", "pipe: %s", strerror(errno));
	await(2 * a->nr + 1);
	while (poll(&p, 1, 0) > 0 && read(f->pipe[0], &word, 8) > 0)
		;
	f->up = false;
}

/* Of a lease that is over: nothing may come of it. lease_lock held or the owner. */
static void stale_write(struct actor *a, unsigned lane, struct slot *s)
{
	uint64_t tag = new_tag(a, lane) | 2ull << 48;
	bool over = atomic_load(&s->over);
	int err = dma(a, lane, s, roll(a, PAGES) * PAGE + lane * 8, &tag, 8, 1);

	if (!err && over &&
	    s->device != URING) /* there the index may be another's by now, at the same place */
		broken("I3", "lease %lu was unmapped, and its device address still works",
		       (unsigned long)s->id);
}

void stale_writes(struct actor *a, struct slot *s)
{
	for (int i = 0; i < 3; i++)
		stale_write(a, OWNER_LANE + a->nr, s);
}

static void use_lease(struct actor *a, struct slot *s)
{
	char buf[SIZE];

	for (unsigned n = roll(a, 4); n > 0; n--)
		look_up(a, s);
	switch (roll(a, 16)) {
	case 0:
		now_doing(a, "read everything", s);
		dma(a, a->nr, s, 0, buf, SIZE, 0);
		break;
	case 1:
		now_doing(a, "write everywhere", s);
		write_wild(a, s);
		break;
	case 2:
		take_off(a, s);
		break;
	case 3:
	case 4:
	case 5:
		dma(a, a->nr, s, roll(a, PAGES) * PAGE, buf, 8, 0);
		break;
	default:
		write_seen(a, s);
	}
}

void mover_step(struct actor *a)
{
	struct slot *s = &round_.slot[roll(a, SLOTS)];

	now_doing(a, "use a lease", s);
	pthread_rwlock_rdlock(&s->lease_lock);
	if (s->lease)
		use_lease(a, s);
	else if (s->has_addrs && !roll(a, 4))
		stale_write(a, a->nr, s);
	pthread_rwlock_unlock(&s->lease_lock);
	if (!roll(a, 4))
		mover_land(a);
}

/* ------------------------------------------------------------------------------------- strangers -- */

static void on_signal(int nr)
{
}

void chaos_open(void)
{
	struct sigaction act = {.sa_handler = on_signal}; /* no SA_RESTART */

	sigaction(SIGUSR1, &act, NULL);
}

static int child(struct pinl_lease *lease)
{
	int bad = lease && pinl_lease_check(lease) != -ESTALE;

	alarm(80); /* before the watchdog shows its parent */
	pinl_unmap_range(lease);
	pinl_close(round_.ctx);
	return bad;
}

static void fork_one(struct actor *a, struct slot *s)
{
	int status = 0;
	pid_t pid;

	now_doing(a, "fork", s);
	pthread_rwlock_rdlock(&s->lease_lock);
	pid = fork();
	if (!pid)
		_exit(child(s->lease));
	pthread_rwlock_unlock(&s->lease_lock);
	a->n[N_FORKS]++;
	now_doing(a, "wait for a child", s);
	while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (pid < 0 || status)
		broken("fork", "pid %d, status %#x", pid, status);
}

/* The C library gives the child a stack from mmap() and unmaps it: addresses that become somebody
 * else's. */
static void spawn_one(struct actor *a)
{
	char *argv[] = {"true", NULL};
	pid_t pid;
	int err;

	now_doing(a, "vfork and exec", NULL);
	atomic_fetch_add(&round_.giving_begun, 1);
	err = posix_spawnp(&pid, "true", NULL, NULL, argv, environ);
	atomic_fetch_add(&round_.giving_ended, 1);
	a->n[N_FORKS]++;
	while (!err && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	if (err)
		broken("test", "posix_spawn: %s", strerror(err));
}

static void pause_one(struct actor *a)
{
	struct pinl_device *dev = round_.dev[roll(a, URING)];

	now_doing(a, "pause a device", NULL);
	pinl_soft_pause(dev, 1);
	for (unsigned n = roll(a, 50); n > 0; n--)
		sched_yield();
	pinl_soft_pause(dev, 0);
}

void chaos_step(struct actor *a)
{
	struct slot *s = &round_.slot[roll(a, SLOTS)];
	unsigned what = roll(a, 200);

	if (what < 2)
		fork_one(a, s);
	else if (what < 3)
		spawn_one(a);
	else if (what < 13)
		pause_one(a);
	else if (what < 33)
		watch_signal(roll(a, 64));
	else
		change(a, s, true);
}
