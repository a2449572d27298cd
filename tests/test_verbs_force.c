/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A holder that is stopped while a peer writes to its memory by RDMA: pinleased deregisters the region
 * from outside and lets the change go on; no byte of the peer's lands in the old pages then, and it gets
 * its error. The test is the peer; what it shares with the holder is only how to connect.
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <fcntl.h>
#include <unistd.h>

#include "arbiter_rig.h"
#include "verbs_peer.h"

#define MARK  'P'
#define TRIES 5

/* What holder and test share. */
struct words {
	atomic_int ready; /* 1, or a negative errno */
	atomic_int known, connected, mine_ok, ended;
	atomic_int events[16];
	struct peer_name here, far;
	struct pinl_addr at;
	char *va;
	char error[256];
};

struct mode {
	enum pinl_then then;
	unsigned flags; /* of the device */
};

static struct arbiter a;
static struct io_uring witness; /* the test's; its buffer 0 has the holder's pages */

/* -------------------------------------------------------------------------------- the holder -- */

static void count(const struct pinl_event *ev, void *arg)
{
	struct words *w = arg;

	atomic_fetch_add(&w->events[ev->type], 1);
}

static void __attribute__((noreturn)) give_up(struct words *w, int err)
{
	snprintf(w->error, sizeof w->error, "%s", pinl_error());
	w->ready = err ? err : -EIO;
	_exit(1);
}

static void lease_file(struct words *w, struct pinl_device *dev, const struct mode *mode)
{
	struct lending what = lending_recall(mode->then, 20);
	int fd = open(a.file, O_RDWR | O_CLOEXEC), err;
	char *va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	struct iovec iov = {va, SIZE};
	struct pinl_addr addrs[PAGES];
	struct pinl_lease *l;

	close(fd);
	memset(va, 0, SIZE);
	err = pinl_map_range(dev, (uintptr_t)va, (uintptr_t)va + SIZE, PINL_WRITE | PINL_PIN,
			     &what.policy, addrs, &l);
	if (!err)
		err = io_uring_register_buffers(&witness, &iov, 1);
	if (err)
		give_up(w, err);
	w->at = addrs[0];
	w->va = va;
}

/* What gets the handle that the lease's region had must be left alone by the library, too. */
static void register_others(struct words *w, struct peer *p)
{
	static char room[PG] __attribute__((aligned(PG)));
	struct ibv_mr *mine = ibv_reg_mr(p->pd, room, PG, IBV_ACCESS_LOCAL_WRITE);

	while (!w->events[PINL_EV_RELEASED])
		usleep(1000);
	w->mine_ok = mine && !ibv_dereg_mr(mine);
}

static void __attribute__((noreturn)) hold(struct words *w, const struct mode *mode)
{
	struct pinl_opts opts = {
		.size = sizeof opts, .on_event = count, .on_event_arg = w, .summary_fd = -1};
	struct pinl_verbs_arg arg = {
		.size = sizeof arg, .access = IBV_ACCESS_REMOTE_WRITE, .flags = mode->flags};
	struct pinl_device *dev;
	struct pinl_ctx *ctx;
	struct peer p;
	int err;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	peer_open(&p, NULL, PG);
	arg.pd = p.pd;
	err = pinl_open(&opts, &ctx);
	if (!err)
		err = pinl_device_open(ctx, "verbs", &arg, &dev);
	if (err)
		give_up(w, err);
	lease_file(w, dev, mode);
	peer_get_name(&p, &w->here);
	w->ready = 1;
	while (!w->known)
		usleep(1000);
	peer_connect(&p, &w->far);
	w->connected = 1;
	while (!w->events[PINL_EV_NOTICE]) /* stopped here */
		usleep(1000);
	register_others(w, &p);
	pinl_close(ctx);
	peer_close(&p);
	w->ended = 1;
	_exit(0);
}

/* ---------------------------------------------------------------------------------- the test -- */

struct load {
	struct peer far;
	struct words *w;
	pthread_t thread;
	enum ibv_wc_status ended;
	atomic_int moves;
};

static void *fly(void *arg)
{
	struct load *l = arg;

	while (l->ended == IBV_WC_SUCCESS) {
		l->ended = peer_move(&l->far, 1, 0, SIZE, l->w->at.addr, l->w->at.rkey);
		l->moves++;
	}
	return NULL;
}

static pid_t start_holder(struct words *w, const struct mode *mode)
{
	pid_t pid = fork();

	if (!pid)
		hold(w, mode);
	while (!w->ready)
		usleep(1000);
	if (w->ready < 0)
		fail_msg("%s: %s", strerror(-w->ready), w->error);
	return pid;
}

static void take_off(struct load *l, struct words *w)
{
	*l = (struct load){.w = w};
	peer_open(&l->far, peer_far(), SIZE);
	peer_get_name(&l->far, &w->far);
	w->known = 1;
	while (!w->connected)
		usleep(1000);
	peer_connect(&l->far, &w->here);
	memset(l->far.buf, 'W', SIZE);
	assert_int_equal(pthread_create(&l->thread, NULL, fly, l), 0);
	while (!l->moves)
		usleep(100);
}

/* The old pages, in the place of a process that doesn't run. */
static void old_pages(const struct words *w, char *buf, bool write)
{
	int fd = memfd_create("old", MFD_CLOEXEC);
	struct io_uring_sqe *sqe = io_uring_get_sqe(&witness);
	struct io_uring_cqe *cqe;

	assert_int_equal(ftruncate(fd, SIZE), 0);
	if (write) {
		assert_int_equal(pwrite(fd, buf, SIZE, 0), SIZE);
		io_uring_prep_read_fixed(sqe, fd, w->va, SIZE, 0, 0);
	} else {
		io_uring_prep_write_fixed(sqe, fd, w->va, SIZE, 0, 0);
	}
	assert_int_equal(io_uring_submit(&witness), 1);
	assert_int_equal(io_uring_wait_cqe(&witness, &cqe), 0);
	assert_int_equal(cqe->res, SIZE);
	io_uring_cqe_seen(&witness, cqe);
	if (!write)
		assert_int_equal(pread(fd, buf, SIZE, 0), SIZE);
	close(fd);
}

static void stop(pid_t pid)
{
	int status;

	kill(pid, SIGSTOP);
	assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
	assert_true(WIFSTOPPED(status));
}

/* False: it was killed. */
static bool goes_on(pid_t pid, struct words *w, enum pinl_then then)
{
	int status;

	kill(pid, SIGCONT);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (then == PINL_THEN_KILL && WIFSIGNALED(status))
		return false;
	assert_int_equal(status, 0);
	assert_int_equal(w->ended, 1);
	assert_int_equal(w->mine_ok, 1);
	return true;
}

/* False: pinleased, which has a second for a force, had to kill the holder instead. */
static bool forced(const struct mode *mode)
{
	static char old[SIZE];
	struct words *w;
	struct actor t;
	struct load l;
	long pinned;
	pid_t pid;
	bool lives;

	w = mmap(NULL, sizeof *w, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	arbiter_start(&a, (const char *[]){"--ceiling", "100000", NULL});
	assert_int_equal(io_uring_queue_init(4, &witness, 0), 0);
	pid = start_holder(w, mode);
	take_off(&l, w);
	pinned = process_pinned_kb(pid);
	stop(pid);
	actor_start(&t, &a);
	assert_int_equal(actor_join(&t), 0);
	memset(old, MARK, SIZE);
	old_pages(w, old, true);
	assert_int_equal(arbiter_file_size(&a), 0);
	pthread_join(l.thread, NULL);
	assert_int_equal(l.ended, IBV_WC_REM_ACCESS_ERR);
	assert_true(process_pinned_kb(pid) <= pinned - (long)SIZE / 1024);
	old_pages(w, old, false);
	for (size_t i = 0; i < SIZE; i++)
		assert_int_equal(old[i], MARK);
	lives = goes_on(pid, w, mode->then);
	arbiter_stop(&a);
	peer_close(&l.far);
	io_uring_queue_exit(&witness);
	munmap(w, sizeof *w);
	return lives;
}

static void stopped(const struct mode *mode)
{
	int i = 0;

	if (peer_missing()) {
		print_message("skip: %s\n", peer_missing());
		skip();
	}
	while (i < TRIES && !forced(mode))
		i++;
	assert_true(i < TRIES);
}

static void stopped_fail(void **state)
{
	stopped(&(struct mode){.then = PINL_THEN_FAIL});
}

/* Needs nobody killed. */
static void stopped_kill(void **state)
{
	stopped(&(struct mode){.then = PINL_THEN_KILL});
}

/* The pins that are for reading back stay with the holder until it runs: they are nobody's device's. */
static void stopped_copy(void **state)
{
	stopped(&(struct mode){.then = PINL_THEN_COPY, .flags = PINL_VERBS_READ});
}

int main(int argc, char **argv)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(stopped_fail),
		cmocka_unit_test(stopped_kill),
		cmocka_unit_test(stopped_copy),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
