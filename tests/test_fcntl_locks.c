/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The program's own locks: no call of the library may drop one that the program holds on a leased file.
 * Closing any descriptor of a file drops the POSIX locks on it, so this is about what the library opens
 * and closes. The program holds one lock of each kind; a witness, another process with a description of
 * its own, says after every step whether it could have them.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <dirent.h>
#include <liburing.h>
#include <cmocka.h>

#include <pinlease/device.h>

#include "check.h"

#define P      4096ul
#define SIZE   (8 * P)
#define NOBODY 65534

enum { MEMFD, SEALED, TMPFS, DISK };
enum { POSIX = 1, OFD = 2, FLOCK = 4, ALL = 7 };

struct rig {
	int kind, fd, sock;
	pid_t witness;
	bool plain_user;
	char *va, *past_end, *read_only;
	struct pinl_ctx *ctx;
	struct pinl_device *soft, *ring_dev, *broken;
	struct io_uring ring;
	int aside; /* descriptors of that thread */
};

/* ------------------------------------------------------------------------------------- the locks -- */

static int lock(int fd, int how, off_t start)
{
	struct flock l = {.l_type = F_WRLCK, .l_start = start, .l_len = 10};

	return fcntl(fd, how, &l);
}

static bool is_taken(int fd, off_t start, pid_t owner)
{
	struct flock l = {.l_type = F_WRLCK, .l_start = start, .l_len = 10};

	return !fcntl(fd, F_GETLK, &l) && l.l_type == F_WRLCK && l.l_pid == owner;
}

static void __attribute__((noreturn)) witness(const char *path, int sock)
{
	int fd = open(path, O_RDWR);
	pid_t program = getppid();
	char c;

	while (fd >= 0 && read(sock, &c, 1) == 1) {
		c = is_taken(fd, 0, program) * POSIX | is_taken(fd, 100, -1) * OFD;
		if (flock(fd, LOCK_EX | LOCK_NB))
			c |= FLOCK;
		else
			flock(fd, LOCK_UN);
		if (write(sock, &c, 1) != 1)
			break;
	}
	_exit(0);
}

static void start_witness(struct rig *r)
{
	char path[64];
	int socks[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, socks), 0);
	r->sock = socks[0];
	r->witness = fork();
	if (!r->witness) {
		snprintf(path, sizeof path, "/proc/self/fd/%d", r->fd);
		close(socks[0]); /* so that it ends with the test */
		witness(path, socks[1]);
	}
	close(socks[1]);
}

static void held(struct rig *r, const char *after)
{
	char c = 0;

	assert_int_equal(write(r->sock, &c, 1), 1);
	assert_int_equal(read(r->sock, &c, 1), 1);
	if (c != ALL)
		fail_msg("after %s:%s%s%s gone", after, c & POSIX ? "" : " the POSIX lock is",
			 c & OFD ? "" : " the OFD lock is", c & FLOCK ? "" : " flock()'s is");
}

/* ---------------------------------------------------------------------------------------- the rig -- */

static int make_file(int kind)
{
	const char *dir = kind == TMPFS ? "/dev/shm" : getenv("PINLEASE_TEST_DIR");
	char path[300];
	int fd;

	if (kind == MEMFD || kind == SEALED)
		return memfd_create("locked", MFD_CLOEXEC | (kind == SEALED ? MFD_ALLOW_SEALING : 0));
	snprintf(path, sizeof path, "%s/pinlease-locks-XXXXXX", dir ? dir : "/var/tmp");
	fd = mkostemp(path, O_CLOEXEC);
	unlink(path);
	return fd;
}

/* The witness must not have inherited what is locked, but the file has no name: it opens it anew. */
static void lock_file(struct rig *r)
{
	char path[64];
	int again;

	start_witness(r);
	snprintf(path, sizeof path, "/proc/self/fd/%d", r->fd);
	again = open(path, O_RDWR | O_CLOEXEC);
	assert_true(again >= 0);
	close(r->fd);
	r->fd = again;
	assert_int_equal(lock(r->fd, F_SETLK, 0), 0);
	assert_int_equal(lock(r->fd, F_OFD_SETLK, 100), 0);
	assert_int_equal(flock(r->fd, LOCK_EX), 0);
	held(r, "locking");
}

static int broken_open(const void *arg, struct pinl_device_info *info, void **dev)
{
	info->device_class = PINL_DEV_REVOCABLE;
	info->caps = PINL_DEVCAP_PIN | PINL_DEVCAP_ONDEMAND;
	*dev = info;
	return 0;
}

static int broken_map(void *dev, struct pinl_mapping *m, struct pinl_addr *addrs)
{
	return pinl_set_error(-EIO, "this device is broken");
}

static const struct pinl_device_ops broken = {
	.size = sizeof broken, .name = "broken", .open = broken_open, .map = broken_map};

static bool is_aside(const char *tid)
{
	char path[64], name[17] = "";
	FILE *f;

	snprintf(path, sizeof path, "/proc/self/task/%.20s/comm", tid);
	f = fopen(path, "re");
	if (f && fscanf(f, "%16s", name) != 1)
		name[0] = 0;
	if (f)
		fclose(f);
	return !strcmp(name, "pinl-aside");
}

/* The descriptors that the library's thread with a table of its own has open. */
static int aside(void)
{
	DIR *tasks = opendir("/proc/self/task"), *fds;
	struct dirent *e, *fd;
	char path[64];
	int n = 0;

	while ((e = readdir(tasks))) {
		if (e->d_name[0] == '.' || !is_aside(e->d_name))
			continue;
		snprintf(path, sizeof path, "/proc/self/task/%.20s/fd", e->d_name);
		fds = opendir(path);
		while (fds && (fd = readdir(fds)))
			n += fd->d_name[0] != '.';
		closedir(fds);
	}
	closedir(tasks);
	return n;
}

static void start(struct rig *r, int kind)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1};
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &r->ring};

	r->kind = kind;
	r->fd = make_file(kind);
	assert_true(r->fd >= 0);
	assert_int_equal(ftruncate(r->fd, SIZE), 0);
	if (r->plain_user) {
		assert_int_equal(fchown(r->fd, NOBODY, -1), 0);
		assert_int_equal(seteuid(NOBODY), 0);
		assert_int_equal(prctl(PR_SET_DUMPABLE, 1), 0);
	}
	lock_file(r);
	r->va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	r->past_end = mmap(NULL, 2 * SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	r->read_only = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, r->fd, 0);
	memset(r->va, 'm', SIZE / 2); /* the rest are holes, where it matters */
	assert_ok(pinl_open(&opts, &r->ctx));
	held(r, "pinl_open");
	assert_ok(pinl_device_open(r->ctx, "soft", NULL, &r->soft));
	assert_ok(pinl_device_open_ops(r->ctx, &broken, NULL, &r->broken));
	assert_int_equal(io_uring_queue_init(8, &r->ring, 0), 0);
	assert_ok(pinl_device_open(r->ctx, "uring", &arg, &r->ring_dev));
	r->aside = aside();
	assert_true(r->aside > 0);
}

/* Nothing is open any more of what the library opened for leases. */
static void assert_ended(struct rig *r, const char *after)
{
	held(r, after);
	assert_int_equal(aside(), r->aside);
}

static int setup(void **state)
{
	struct rig *r = calloc(1, sizeof *r);

	r->sock = r->fd = -1;
	*state = r;
	return !r;
}

/* Without privilege the library finds files in another way. */
static int setup_plain(void **state)
{
	struct rig *r;

	setup(state);
	r = *state;
	r->plain_user = !geteuid();
	return 0;
}

static int teardown(void **state)
{
	struct rig *r = *state;

	pinl_close(r->ctx);
	if (r->ring_dev)
		io_uring_queue_exit(&r->ring);
	if (r->va) {
		munmap(r->va, SIZE);
		munmap(r->past_end, 2 * SIZE);
		munmap(r->read_only, SIZE);
	}
	close(r->fd);
	close(r->sock);
	if (r->witness)
		waitpid(r->witness, NULL, 0);
	if (r->plain_user && seteuid(0))
		return -1;
	free(r);
	return 0;
}

/* --------------------------------------------------------------------------------- the steps -- */

static int map(struct pinl_device *dev, char *va, size_t len, unsigned flags, struct pinl_policy policy,
	       struct pinl_lease **l)
{
	policy.size = sizeof policy;
	return pinl_map_range(dev, (uintptr_t)va, (uintptr_t)va + len, flags, &policy, NULL, l);
}

static const struct pinl_policy keep = {.kind = PINL_KEEP},
				refuse = {.kind = PINL_REFUSE, .refuse = PINL_OPBIT(PINL_OP_TRUNCATE)};

static void fails(struct rig *r, const char *what, int want, int err)
{
	if (err != want)
		fail_msg("%s: %d (%s)", what, err, pinl_error());
	assert_ended(r, what);
}

/* Each at another step of making a lease. */
static void failing_maps(struct rig *r)
{
	struct rlimit was, none;
	struct pinl_lease *l;
	int err;

	fails(r, "an unknown flag", -EINVAL, map(r->soft, r->va, SIZE, 1u << 31, keep, &l));
	fails(r, "a range past the end", -EINVAL, map(r->soft, r->past_end, 2 * SIZE, 0, keep, &l));
	fails(r, "a read-only mapping", -EACCES, map(r->soft, r->read_only, SIZE, PINL_WRITE, keep, &l));
	fails(r, "a device that is broken", -EIO, map(r->broken, r->va, SIZE, PINL_WRITE, keep, &l));
	if (r->kind != DISK) {
		fails(r, "a policy that can't be kept", -EOPNOTSUPP,
		      map(r->soft, r->va, SIZE, PINL_WRITE, refuse, &l));
	} else {
		fails(r, "a seal on disk", -EOPNOTSUPP,
		      map(r->soft, r->va, SIZE, PINL_WRITE | PINL_SEAL, refuse, &l));
		fails(r, "what can't be pinned", -EOPNOTSUPP,
		      map(r->ring_dev, r->va, SIZE, PINL_WRITE | PINL_PIN, keep, &l));
	}
	if (r->kind == MEMFD)
		fails(r, "a memfd without seals", -EOPNOTSUPP,
		      map(r->soft, r->va, SIZE, PINL_WRITE | PINL_SEAL, refuse, &l));
	getrlimit(RLIMIT_NOFILE, &was);
	none = (struct rlimit){dup(0), was.rlim_max}; /* the next one's number */
	close(none.rlim_cur);
	setrlimit(RLIMIT_NOFILE, &none);
	err = map(r->soft, r->va, SIZE, PINL_WRITE, keep, &l);
	setrlimit(RLIMIT_NOFILE, &was);
	fails(r, "no descriptor left", -EMFILE, err);
}

static void leases_without_change(struct rig *r)
{
	unsigned pin = r->kind == DISK ? 0 : PINL_PIN;
	struct pinl_lease *x, *y, *again;

	assert_ok(map(r->soft, r->va, SIZE / 2, PINL_WRITE | pin, keep, &x));
	held(r, "the first lease");
	assert_ok(map(r->soft, r->va + SIZE / 2, SIZE / 2, PINL_WRITE | pin, keep, &y));
	held(r, "the second lease");
	assert_int_equal(map(r->soft, r->va, SIZE, PINL_WRITE, keep, &again), -EEXIST);
	held(r, "an overlapping lease");
	pinl_unmap_range(x);
	held(r, "the end of the first lease");
	pinl_unmap_range(y);
	assert_ended(r, "the end of the last lease");
}

/* The device has pages that the file hasn't any more: somebody has to look where it has holes. */
static void a_hole_under_a_lease(struct rig *r)
{
	struct pinl_counters c = {.size = sizeof c};
	struct pinl_lease *l;

	if (r->kind == DISK)
		return;
	assert_ok(map(r->soft, r->va, SIZE, PINL_WRITE | PINL_PIN, keep, &l));
	assert_int_equal(fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, P, P), 0);
	held(r, "a hole");
	pinl_unmap_range(l);
	assert_ended(r, "the end of a lease with a hole");
	pinl_counters(r->ctx, &c);
	assert_int_equal(c.orphans, 1);
}

/* Not asked for: whoever watches the file tells of it. */
static void a_raw_truncation(struct rig *r)
{
	const struct pinl_policy follow = {.kind = PINL_FOLLOW};
	struct pinl_event ev = {.size = sizeof ev};
	struct pollfd p = {.fd = pinl_fd(r->ctx), .events = POLLIN};
	struct pinl_lease *l;

	memset(r->va, 'm', SIZE);
	while (!pinl_next_event(r->ctx, &ev))
		;
	assert_ok(map(r->soft, r->va, SIZE, PINL_WRITE | PINL_COOPERATIVE, follow, &l));
	assert_int_equal(ftruncate(r->fd, P), 0);
	do
		if (pinl_next_event(r->ctx, &ev))
			assert_true(poll(&p, 1, 20000) > 0);
	while (ev.type != PINL_EV_FOLLOWED);
	held(r, "a truncation that was told");
	pinl_unmap_range(l);
	assert_ended(r, "the end of a truncated lease");
	assert_int_equal(ftruncate(r->fd, SIZE), 0);
}

static void recalls(struct rig *r)
{
	struct pinl_policy recall = {.kind = PINL_RECALL, .grace_ms = 1};
	unsigned flags = PINL_WRITE | PINL_PIN | PINL_STAGE | PINL_COOPERATIVE;
	struct pinl_lease *l;

	for (int then = PINL_THEN_FAIL; then <= PINL_THEN_COPY; then++) {
		recall.then = then;
		memset(r->va, 'm', SIZE);
		assert_ok(map(r->soft, r->va, SIZE, flags, recall, &l));
		assert_ok(pinl_ftruncate(r->ctx, r->fd, SIZE / 2));
		held(r, "a recall");
		pinl_unmap_range(l);
		assert_ended(r, "the end of a recalled lease");
		assert_ok(pinl_madvise(r->ctx, r->past_end, P, MADV_REMOVE));
		assert_ended(r, "a hole made by an address");
		assert_int_equal(ftruncate(r->fd, SIZE), 0);
		assert_true(mmap(r->va, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, r->fd,
				 0) == r->va);
	}
}

static void on_a_ring(struct rig *r)
{
	unsigned flags = PINL_WRITE | PINL_PIN | PINL_STAGE;
	struct pinl_lease *l;

	assert_ok(map(r->ring_dev, r->va, SIZE, flags, keep, &l));
	assert_ok(pinl_lease_sync(l, 0, SIZE, PINL_FOR_CPU | PINL_FOR_DEVICE));
	held(r, "a lease on a ring");
	pinl_unmap_range(l);
	assert_ended(r, "the end of a lease on a ring");
}

static void closing(struct rig *r)
{
	struct pinl_lease *l;

	assert_ok(map(r->soft, r->va, SIZE, PINL_WRITE, keep, &l));
	pinl_device_close(r->soft);
	assert_ended(r, "pinl_device_close");
	assert_ok(map(r->ring_dev, r->va, SIZE, PINL_WRITE | PINL_PIN | PINL_STAGE, keep, &l));
	pinl_close(r->ctx);
	r->ctx = NULL;
	held(r, "pinl_close");
	assert_int_equal(aside(), 0);
}

static void every_step(struct rig *r, int kind)
{
	start(r, kind);
	failing_maps(r);
	leases_without_change(r);
	a_hole_under_a_lease(r);
	a_raw_truncation(r);
	recalls(r);
	on_a_ring(r);
	closing(r);
}

#define EVERY_STEP(name, kind)                                                                          \
	static void name(void **state)                                                                  \
	{                                                                                               \
		every_step(*state, kind);                                                               \
	}
EVERY_STEP(memfd, MEMFD)
EVERY_STEP(tmpfs, TMPFS)
EVERY_STEP(disk, DISK)

static void sealed(void **state)
{
	struct rig *r = *state;
	struct pinl_lease *l;

	start(r, SEALED);
	assert_ok(map(r->soft, r->va, SIZE, PINL_WRITE | PINL_SEAL, refuse, &l));
	held(r, "a seal");
	assert_int_equal(ftruncate(r->fd, 0), -1);
	pinl_unmap_range(l);
	assert_ended(r, "the end of a sealed lease");
}

/*
 * One processor, and this thread before all others on it: it runs as soon as it may. Where it has no
 * right to that, the test is only less likely to see what it looks for.
 */
static void nothing_is_open_after_the_end(void **state)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1};
	struct sched_param first = {.sched_priority = 1}, normal = {0};
	struct rig *r = *state;
	cpu_set_t all, one;

	assert_int_equal(sched_getaffinity(0, sizeof all, &all), 0);
	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	for (int i = 0; i < 20; i++) {
		sched_setaffinity(0, sizeof one, &one);
		sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &first);
		assert_ok(pinl_open(&opts, &r->ctx));
		pinl_close(r->ctx);
		r->ctx = NULL;
		r->aside = aside();
		sched_setscheduler(0, SCHED_OTHER, &normal);
		sched_setaffinity(0, sizeof all, &all);
		assert_int_equal(r->aside, 0);
	}
}

/* Who reads to the end of what the program writes to its stderr must not wait for the library. */
static void standard_descriptors_are_let_go(void **state)
{
	int ends[2], was = dup(STDERR_FILENO);
	struct pollfd p = {.events = POLLIN};
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1};
	struct rig *r = *state;

	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	dup2(ends[1], STDERR_FILENO);
	close(ends[1]);
	assert_ok(pinl_open(&opts, &r->ctx));
	dup2(was, STDERR_FILENO);
	close(was);
	p.fd = ends[0];
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* whose reports go there */
	assert_int_equal(poll(&p, 1, 20000), 1);
	assert_true(p.revents & POLLHUP);
#endif
	close(ends[0]);
}

#define AS_ROOT(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
#define AS_PLAIN(f)                                                                                     \
	{                                                                                               \
#f "_without_privilege", f, setup_plain, teardown, NULL                                 \
	}

int main(void)
{
	const struct CMUnitTest tests[] = {
		AS_ROOT(memfd),
		AS_ROOT(tmpfs),
		AS_ROOT(disk),
		AS_ROOT(sealed),
		AS_PLAIN(memfd),
		AS_PLAIN(tmpfs),
		AS_PLAIN(disk),
		AS_PLAIN(sealed),
		AS_ROOT(standard_descriptors_are_let_go),
		AS_ROOT(nothing_is_open_after_the_end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
