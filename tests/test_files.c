/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files on disk through the public API: another process changes the file of a lease, and is held until
 * the holder has quiesced, or refused. Needs a file system that fanotify can hold (ext4, XFS, btrfs) at
 * PINLEASE_TEST_DIR or /var/tmp, kernel 6.14 and CAP_SYS_ADMIN.
 *
 * The other process (the actor) is forked before the context is opened and does one command at a time;
 * everything waits for messages and events, nothing for time.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/falloc.h>
#include <cmocka.h>

#include <pinlease/pinlease.h>

#define P     4096ul
#define PAGES 16
#define SIZE  (PAGES * P)
#define FIRST 4 /* leased pages */
#define LAST  12
#define LONG  8000 /* ms: nothing should take as long */

#define assert_ok(call)                                                                                 \
	do {                                                                                            \
		int ret_ = (call);                                                                      \
		if (ret_)                                                                               \
			fail_msg("%s: %s: %s", #call, strerror(-ret_), pinl_error());                   \
	} while (0)

/* ------------------------------------------------------------------------------------- the actor -- */

enum act {
	OPEN, /* what FD commands use */
	TRUNCATE, FTRUNCATE, FTRUNCATE_UNALIGNED, O_TRUNC_OPEN, O_TRUNC_OPENAT2, PUNCH, ZERO, COLLAPSE, INSERT,
	REMOVE, URING_PUNCH, URING_FTRUNCATE, URING_O_TRUNC,
	LAST_CHANGE = URING_O_TRUNC,
	GROW, PUNCH_ELSEWHERE, READ, WRITE, MAP, ALLOCATE, PLAIN_OPEN, URING_READ,
	QUIT,
};

static const struct {
	const char *name;
	enum pinl_op op;
} acts[] = {
	[TRUNCATE] = {"truncate", PINL_OP_TRUNCATE},
	[FTRUNCATE] = {"ftruncate", PINL_OP_TRUNCATE},
	[FTRUNCATE_UNALIGNED] = {"ftruncate within a page", PINL_OP_TRUNCATE},
	[O_TRUNC_OPEN] = {"open O_TRUNC", PINL_OP_TRUNCATE},
	[O_TRUNC_OPENAT2] = {"openat2 O_TRUNC", PINL_OP_TRUNCATE},
	[PUNCH] = {"punch", PINL_OP_PUNCH},
	[ZERO] = {"zero", PINL_OP_ZERO},
	[COLLAPSE] = {"collapse", PINL_OP_COLLAPSE},
	[INSERT] = {"insert", PINL_OP_INSERT},
	[REMOVE] = {"MADV_REMOVE", PINL_OP_REMOVE},
	[URING_PUNCH] = {"io_uring punch", PINL_OP_PUNCH},
	[URING_FTRUNCATE] = {"io_uring ftruncate", PINL_OP_TRUNCATE},
	[URING_O_TRUNC] = {"io_uring open O_TRUNC", PINL_OP_TRUNCATE},
	[GROW] = {"grow"},
	[PUNCH_ELSEWHERE] = {"punch elsewhere"},
	[READ] = {"read"},
	[WRITE] = {"write"},
	[MAP] = {"mmap"},
	[ALLOCATE] = {"fallocate"},
	[PLAIN_OPEN] = {"open"},
	[URING_READ] = {"io_uring read"},
};

struct order {
	enum act act;
	char path[256];
};

#define URING_OP_FTRUNCATE 55

static int uring_one(enum act act, int fd, const char *path)
{
	struct io_uring ring;
	struct io_uring_sqe *sqe;
	struct io_uring_cqe *cqe;
	char buf[16];
	int res;

	res = io_uring_queue_init(2, &ring, 0);
	if (res)
		return res;
	sqe = io_uring_get_sqe(&ring);
	if (act == URING_PUNCH)
		io_uring_prep_fallocate(sqe, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5 * P, P);
	else if (act == URING_O_TRUNC)
		io_uring_prep_openat(sqe, AT_FDCWD, path, O_RDWR | O_TRUNC, 0);
	else
		io_uring_prep_read(sqe, fd, buf, sizeof buf, 5 * P);
	if (act == URING_FTRUNCATE) {
		memset(sqe, 0, sizeof *sqe);
		sqe->opcode = URING_OP_FTRUNCATE;
		sqe->fd = fd;
		sqe->off = 5 * P;
	}
	io_uring_submit(&ring);
	res = io_uring_wait_cqe(&ring, &cqe) ? -EIO : cqe->res;
	io_uring_queue_exit(&ring);
	return res;
}

static int remove_page(int fd)
{
	char *m = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	int ret = m == MAP_FAILED ? -1 : madvise(m + 5 * P, P, MADV_REMOVE);

	if (m != MAP_FAILED)
		munmap(m, SIZE);
	return ret;
}

static int plain_map(int fd)
{
	void *m = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	return m == MAP_FAILED ? -1 : munmap(m, SIZE);
}

static int open_and_close(const char *path, int flags, int how)
{
	struct {
		uint64_t flags, mode, resolve;
	} h = {.flags = flags};
	int fd = how ? (int)syscall(SYS_openat2, AT_FDCWD, path, &h, sizeof h) : open(path, flags);

	if (fd >= 0)
		close(fd);
	return fd < 0 ? -1 : 0;
}

/* 0 or -1 and errno, as from the system call. */
static int act_on(const struct order *o, int fd)
{
	char buf[16] = "";
	int ret;

	switch (o->act) {
	case TRUNCATE:
		return truncate(o->path, 5 * P);
	case FTRUNCATE:
		return ftruncate(fd, 5 * P);
	case FTRUNCATE_UNALIGNED:
		return ftruncate(fd, 5 * P + 7);
	case O_TRUNC_OPEN:
		return open_and_close(o->path, O_WRONLY | O_TRUNC, 0);
	case O_TRUNC_OPENAT2:
		return open_and_close(o->path, O_WRONLY | O_TRUNC, 1);
	case PUNCH:
		return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5 * P, P);
	case ZERO:
		return fallocate(fd, FALLOC_FL_ZERO_RANGE, 5 * P, P);
	case COLLAPSE:
		return fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, P, P);
	case INSERT:
		return fallocate(fd, FALLOC_FL_INSERT_RANGE, P, P);
	case REMOVE:
		return remove_page(fd);
	case URING_PUNCH:
	case URING_FTRUNCATE:
	case URING_O_TRUNC:
	case URING_READ:
		ret = uring_one(o->act, fd, o->path);
		errno = ret < 0 ? -ret : 0;
		return ret < 0 ? -1 : 0;
	case GROW:
		return ftruncate(fd, 2 * SIZE);
	case PUNCH_ELSEWHERE:
		return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, LAST * P, P);
	case READ:
		return pread(fd, buf, sizeof buf, 5 * P) < 0 ? -1 : 0;
	case WRITE:
		return pwrite(fd, "x", 1, 5 * P) < 0 ? -1 : 0;
	case MAP:
		return plain_map(fd);
	case ALLOCATE:
		return fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, SIZE);
	default:
		return open_and_close(o->path, O_RDWR, o->act == PLAIN_OPEN);
	}
}

static void __attribute__((noreturn)) actor(int sock)
{
	struct order o;
	int fd = -1, reply;

	while (recv(sock, &o, sizeof o, 0) == sizeof o && o.act != QUIT) {
		reply = 0;
		if (o.act == OPEN) {
			if (fd >= 0)
				close(fd);
			fd = open(o.path, O_RDWR);
			reply = fd < 0 ? errno : 0;
		} else if (act_on(&o, fd)) {
			reply = errno;
		}
		send(sock, &reply, sizeof reply, 0);
	}
	_exit(0);
}

/* --------------------------------------------------------------------------------------- fixture -- */

struct rig {
	char path[256];
	int fd, sock;
	pid_t actor;
	char *va;
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct pinl_lease *lease;
	struct io_uring ring;
	int has_ring;
	int dead_fd; /* where a failing test could leave it */
};

static void send_order(struct rig *r, enum act act)
{
	struct order o = {.act = act};

	strcpy(o.path, r->path);
	assert_int_equal(send(r->sock, &o, sizeof o, 0), sizeof o);
}

/* The errno of the actor's call; -1: not done yet, within `ms`. */
static int reply(struct rig *r, int ms)
{
	struct pollfd p = {r->sock, POLLIN, 0};
	int ret;

	if (poll(&p, 1, ms) <= 0)
		return -1;
	assert_int_equal(recv(r->sock, &ret, sizeof ret, 0), sizeof ret);
	return ret;
}

static void order(struct rig *r, enum act act)
{
	send_order(r, act);
	assert_int_equal(reply(r, LONG), 0);
}

static const char *test_dir(void)
{
	const char *dir = getenv("PINLEASE_TEST_DIR");

	return dir ? dir : "/var/tmp";
}

/* The text of `source`'s line in pinl_sources(), or NULL. */
static const char *missing(struct pinl_ctx *ctx, const char *source)
{
	static char buf[2048];
	char line[64];

	snprintf(line, sizeof line, "%s: missing", source);
	pinl_sources(ctx, buf, sizeof buf);
	return strstr(buf, line);
}

static void open_ctx(struct rig *r, const char *dir)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1};
	const char *why;

	assert_ok(pinl_open(&opts, &r->ctx));
	why = missing(r->ctx, "files");
	if (!why && pinl_watch_fs(r->ctx, dir))
		why = pinl_error();
	if (why && strcmp(dir, "/dev/shm")) {
		print_message("skip: %.*s\n", (int)strcspn(why, "\n"), why);
		skip();
	}
}

static void start_actor(struct rig *r)
{
	int s[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, s), 0);
	r->actor = fork();
	assert_true(r->actor >= 0);
	if (!r->actor) {
		close(s[0]);
		actor(s[1]);
	}
	close(s[1]);
	r->sock = s[0];
}

static void make_file(struct rig *r, const char *dir)
{
	static char page[P];

	snprintf(r->path, sizeof r->path, "%s/pinlease-files-XXXXXX", dir);
	r->fd = mkostemp(r->path, O_CLOEXEC);
	assert_true(r->fd >= 0);
	for (int i = 0; i < PAGES; i++) {
		memset(page, 'a' + i, sizeof page);
		assert_int_equal(pwrite(r->fd, page, P, i * P), P);
	}
}

static int setup(void **state)
{
	*state = calloc(1, sizeof(struct rig));
	((struct rig *)*state)->fd = -1;
	((struct rig *)*state)->va = MAP_FAILED;
	return !*state;
}

static int teardown(void **state)
{
	struct rig *r = *state;

	pinl_close(r->ctx);
	if (r->has_ring)
		io_uring_queue_exit(&r->ring);
	if (r->va != MAP_FAILED)
		munmap(r->va, SIZE);
	if (r->fd >= 0)
		close(r->fd);
	if (r->path[0])
		unlink(r->path);
	if (r->actor > 0) {
		kill(r->actor, SIGKILL);
		waitpid(r->actor, NULL, 0);
		close(r->sock);
	}
	free(r);
	return 0;
}

/* A file with an actor that opened it after pinl_watch_fs() and before any lease. */
static void start(struct rig *r, const char *dir, int map_flags)
{
	start_actor(r);
	open_ctx(r, dir);
	make_file(r, dir);
	order(r, OPEN);
	r->va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, map_flags, r->fd, 0);
	assert_true(r->va != MAP_FAILED);
}

static struct pinl_policy recall(unsigned grace_ms)
{
	return (struct pinl_policy){.size = sizeof(struct pinl_policy), .kind = PINL_RECALL, .grace_ms = grace_ms};
}

static int map(struct rig *r, int first, int last, unsigned flags, const struct pinl_policy *policy,
	       struct pinl_lease **lease)
{
	uintptr_t va = (uintptr_t)r->va;

	return pinl_map_range(r->dev, va + first * P, va + last * P, flags, policy, NULL, lease);
}

static void lease_shared(struct rig *r, const struct pinl_policy *policy)
{
	start(r, test_dir(), MAP_SHARED);
	assert_ok(pinl_device_open(r->ctx, "soft", NULL, &r->dev));
	assert_ok(map(r, FIRST, LAST, PINL_WRITE, policy, &r->lease));
}

static void open_uring(struct rig *r)
{
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &r->ring};

	assert_int_equal(io_uring_queue_init(8, &r->ring, 0), 0);
	r->has_ring = 1;
	assert_ok(pinl_device_open(r->ctx, "uring", &arg, &r->dev));
}

static int next_event(struct rig *r, struct pinl_event *ev, int ms)
{
	struct pollfd p = {pinl_fd(r->ctx), POLLIN, 0};

	ev->size = sizeof *ev;
	if (!pinl_next_event(r->ctx, ev))
		return 0;
	if (poll(&p, 1, ms) <= 0)
		return -EAGAIN;
	return pinl_next_event(r->ctx, ev);
}

static void await(struct rig *r, enum pinl_event_type type, struct pinl_event *ev)
{
	char line[256];

	do {
		if (next_event(r, ev, LONG))
			fail_msg("no event %d came", type);
		if (ev->type != type) {
			pinl_event_format(ev, line, sizeof line);
			print_message("# %s\n", line);
		}
	} while (ev->type != type);
}

static off_t size_of(struct rig *r)
{
	struct stat st;

	assert_int_equal(fstat(r->fd, &st), 0);
	return st.st_size;
}

static void assert_file_unchanged(struct rig *r)
{
	char page[P];

	assert_int_equal(size_of(r), SIZE);
	for (int i = 0; i < PAGES; i++) {
		assert_int_equal(pread(r->fd, page, P, i * P), P);
		assert_int_equal(page[0], 'a' + i);
		assert_int_equal(page[P - 1], 'a' + i);
	}
}

/* The actor has given its order and is held; the notice says who and what. */
static void assert_held(struct rig *r, enum pinl_op op, struct pinl_event *ev)
{
	await(r, PINL_EV_NOTICE, ev);
	assert_int_equal(ev->op, op);
	assert_string_equal(ev->source, "files");
	assert_int_equal(ev->actor_pid, r->actor);
	assert_int_equal(reply(r, 0), -1);
	assert_file_unchanged(r);
}

/* ----------------------------------------------------------------------------------------- tests -- */

static void held_until_quiesced(struct rig *r, enum act act)
{
	struct pinl_policy policy = recall(LONG);
	struct pinl_event ev;

	print_message("# %s\n", acts[act].name);
	lease_shared(r, &policy);
	send_order(r, act);
	assert_held(r, acts[act].op, &ev);
	assert_ok(pinl_quiesced(r->lease));
	await(r, PINL_EV_RELEASED, &ev);
	await(r, PINL_EV_ANSWERED, &ev);
	assert_int_equal(reply(r, LONG), 0);
}

/* Every way to change a file, each on a file and a context of its own. */
static void every_change_is_held(void **state)
{
	for (enum act act = TRUNCATE; act <= LAST_CHANGE; act++) {
		held_until_quiesced(*state, act);
		teardown(state);
		setup(state);
	}
}

static void every_change_can_be_refused(void **state)
{
	struct rig *r = *state;
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_REFUSE,
				     .refuse = PINL_OPS_FILE | PINL_OPBIT(PINL_OP_REMOVE)};
	struct pinl_event ev;

	lease_shared(r, &policy);
	for (enum act act = TRUNCATE; act <= LAST_CHANGE; act++) {
		print_message("# %s\n", acts[act].name);
		send_order(r, act);
		assert_int_equal(reply(r, LONG), EBUSY);
		await(r, PINL_EV_REFUSED, &ev);
		assert_int_equal(ev.op, acts[act].op);
		assert_int_equal(ev.actor_pid, r->actor);
		assert_file_unchanged(r);
	}
	pinl_unmap_range(r->lease);
	order(r, FTRUNCATE);
	assert_int_equal(size_of(r), 5 * P);
}

static void what_leaves_pages_alone_passes(void **state)
{
	struct rig *r = *state;
	struct pinl_policy policy = recall(LONG);
	struct pinl_event ev;

	lease_shared(r, &policy);
	for (enum act act = GROW; act < QUIT; act++) {
		print_message("# %s\n", acts[act].name);
		order(r, act);
	}
	assert_int_equal(next_event(r, &ev, 0), -EAGAIN);
	assert_int_equal(pinl_lease_check(r->lease), 0);
	send_order(r, PUNCH);
	await(r, PINL_EV_NOTICE, &ev);
	assert_ok(pinl_quiesced(r->lease));
	assert_int_equal(reply(r, LONG), 0);
}

static void the_deadline_frees_the_actor(void **state)
{
	struct rig *r = *state;
	struct pinl_policy policy = recall(50);
	struct pinl_event ev;

	lease_shared(r, &policy);
	send_order(r, FTRUNCATE);
	await(r, PINL_EV_NOTICE, &ev);
	await(r, PINL_EV_FORCED, &ev);
	assert_int_equal(reply(r, LONG), 0);
	assert_int_equal(size_of(r), 5 * P);
	assert_int_equal(pinl_quiesced(r->lease), -EALREADY);
}

/* MAP_PRIVATE, pinned: truncation takes the private copies as well. */
static void pinned_private_pages(void **state)
{
	struct rig *r = *state;
	struct pinl_policy policy = recall(LONG);
	struct pinl_event ev;

	start(r, test_dir(), MAP_PRIVATE);
	open_uring(r);
	assert_ok(map(r, FIRST, LAST, PINL_WRITE | PINL_PIN, &policy, &r->lease));
	send_order(r, TRUNCATE);
	assert_held(r, PINL_OP_TRUNCATE, &ev);
	assert_ok(pinl_quiesced(r->lease));
	assert_int_equal(reply(r, LONG), 0);
	assert_int_equal(size_of(r), 5 * P);
}

static void two_leases_on_one_file(void **state)
{
	struct rig *r = *state;
	struct pinl_policy policy = recall(LONG);
	struct pinl_lease *second;
	struct pinl_event ev;

	lease_shared(r, &policy);
	assert_ok(map(r, LAST, PAGES, PINL_WRITE, &policy, &second));
	send_order(r, FTRUNCATE);
	await(r, PINL_EV_NOTICE, &ev);
	await(r, PINL_EV_NOTICE, &ev);
	assert_ok(pinl_quiesced(r->lease));
	await(r, PINL_EV_RELEASED, &ev);
	assert_int_equal(reply(r, 0), -1);
	assert_file_unchanged(r);
	assert_ok(pinl_quiesced(second));
	assert_int_equal(reply(r, LONG), 0);
	pinl_unmap_range(second);
}

/* The mark of the inode stays until its last lease goes, and not longer. */
static void the_last_lease_ends_it(void **state)
{
	struct rig *r = *state;
	struct pinl_policy policy = recall(LONG);
	struct pinl_lease *second;
	struct pinl_event ev;

	lease_shared(r, &policy);
	assert_ok(map(r, LAST, PAGES, PINL_WRITE, &policy, &second));
	pinl_unmap_range(second);
	send_order(r, PUNCH);
	assert_held(r, PINL_OP_PUNCH, &ev);
	pinl_unmap_range(r->lease); /* an answer too */
	assert_int_equal(reply(r, LONG), 0);
	order(r, FTRUNCATE);
	assert_int_equal(size_of(r), 5 * P);
}

static void an_unlinked_file(void **state)
{
	struct rig *r = *state;
	struct pinl_policy policy = recall(LONG);
	struct pinl_event ev;

	start(r, test_dir(), MAP_SHARED);
	assert_int_equal(unlink(r->path), 0);
	assert_ok(pinl_device_open(r->ctx, "soft", NULL, &r->dev));
	assert_ok(map(r, FIRST, LAST, PINL_WRITE, &policy, &r->lease));
	send_order(r, FTRUNCATE);
	assert_held(r, PINL_OP_TRUNCATE, &ev);
	assert_ok(pinl_quiesced(r->lease));
	assert_int_equal(reply(r, LONG), 0);
}

static void *truncate_own(void *arg)
{
	struct rig *r = arg;

	return (void *)(long)ftruncate(r->fd, 5 * P);
}

/* One thread truncates, another one of the same process answers. */
static void the_holder_itself(void **state)
{
	struct rig *r = *state;
	struct pinl_policy policy = recall(LONG);
	struct pinl_event ev;
	pthread_t thread;
	void *ret;

	lease_shared(r, &policy);
	assert_int_equal(pthread_create(&thread, NULL, truncate_own, r), 0);
	await(r, PINL_EV_NOTICE, &ev);
	assert_int_equal(ev.actor_pid, getpid());
	assert_file_unchanged(r);
	assert_ok(pinl_quiesced(r->lease));
	pthread_join(thread, &ret);
	assert_null(ret);
	assert_int_equal(size_of(r), 5 * P);
}

/* The explicit call has asked already; the system call inside must not ask again. */
static void explicit_calls_are_not_held_twice(void **state)
{
	struct rig *r = *state;
	struct pinl_policy policy = recall(20);
	struct pinl_counters c = {.size = sizeof c};

	lease_shared(r, &policy);
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 5 * P));
	assert_int_equal(size_of(r), 5 * P);
	assert_ok(pinl_counters(r->ctx, &c));
	assert_int_equal(c.notices, 1);
	assert_int_equal(c.answered, 1);
}

static void closing_lets_everybody_go(void **state)
{
	struct rig *r = *state;
	struct pinl_policy policy = recall(LONG);
	struct pinl_event ev;

	lease_shared(r, &policy);
	send_order(r, FTRUNCATE);
	await(r, PINL_EV_NOTICE, &ev);
	pinl_close(r->ctx);
	r->ctx = NULL;
	assert_int_equal(reply(r, LONG), 0);
	order(r, TRUNCATE);
}

/* After an answer the range opens again when the change has happened. */
static void a_new_lease_after_the_change(void **state)
{
	struct rig *r = *state;
	struct pinl_policy policy = recall(LONG);
	struct timespec ms = {.tv_nsec = 1000000};
	struct pinl_event ev;
	int err, tries = LONG;

	lease_shared(r, &policy);
	send_order(r, PUNCH);
	await(r, PINL_EV_NOTICE, &ev);
	pinl_unmap_range(r->lease);
	assert_int_equal(reply(r, LONG), 0);
	while ((err = map(r, FIRST, LAST, PINL_WRITE, &policy, &r->lease)) == -EBUSY && tries--)
		nanosleep(&ms, NULL);
	assert_ok(err);
	send_order(r, PUNCH);
	await(r, PINL_EV_NOTICE, &ev);
	assert_ok(pinl_quiesced(r->lease));
	assert_int_equal(reply(r, LONG), 0);
}

/*
 * The holder dies while it holds somebody, and a child of its lives on with copies of all descriptors of
 * the program. The actor must go on.
 */
static void a_dead_holder_holds_nobody(void **state)
{
	struct rig *r = *state;
	struct pinl_policy policy = recall(LONG);
	struct pinl_event ev;
	int pipes[2];
	pid_t holder;
	char c;

	start_actor(r);
	make_file(r, test_dir());
	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	holder = fork();
	if (!holder) {
		open_ctx(r, test_dir());
		r->va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
		if (pinl_device_open(r->ctx, "soft", NULL, &r->dev) || map(r, FIRST, LAST, 0, &policy, &r->lease))
			_exit(1);
		if (!fork()) { /* ends when the test closes the pipe */
			close(pipes[1]);
			r->dead_fd = read(r->sock, &c, 0);
			for (struct pollfd p = {pipes[0], POLLHUP, 0}; poll(&p, 1, LONG) == 0;)
				;
			_exit(0);
		}
		c = write(pipes[1], "r", 1);
		await(r, PINL_EV_NOTICE, &ev);
		c = write(pipes[1], "n", 1);
		for (;;)
			pause();
	}
	if (read(pipes[0], &c, 1) == 1 && c == 'r') {
		send_order(r, TRUNCATE);
		assert_int_equal(read(pipes[0], &c, 1), 1);
		assert_int_equal(reply(r, 0), -1);
	}
	kill(holder, SIGKILL);
	waitpid(holder, NULL, 0);
	assert_int_equal(reply(r, LONG), 0);
	close(pipes[0]);
	close(pipes[1]);
}

/* ------------------------------------------------------------------------------- told afterwards -- */

static void told_afterwards(struct rig *r, enum act act, enum pinl_op op)
{
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_KEEP};
	struct pinl_event ev;

	open_uring(r);
	assert_ok(map(r, FIRST, LAST, PINL_WRITE | PINL_PIN, &policy, &r->lease));
	order(r, act);
	await(r, PINL_EV_ORPHAN, &ev);
	assert_int_equal(ev.op, op);
	assert_string_equal(ev.source, "notify");
	assert_int_equal(ev.start, (uintptr_t)r->va + 5 * P);
	assert_int_equal(ev.end, (uintptr_t)r->va + (op == PINL_OP_PUNCH ? 6 : LAST) * P);
}

static void tmpfs_punch_is_told(void **state)
{
	struct rig *r = *state;

	start(r, "/dev/shm", MAP_SHARED);
	told_afterwards(r, PUNCH, PINL_OP_PUNCH);
}

static void tmpfs_truncate_is_told(void **state)
{
	struct rig *r = *state;

	start(r, "/dev/shm", MAP_SHARED);
	told_afterwards(r, FTRUNCATE, PINL_OP_TRUNCATE);
}

/* A memfd's first descriptor makes no inotify event for a punch: this is the hole scan's. */
static void memfd_punch_is_told(void **state)
{
	struct rig *r = *state;
	int fd = memfd_create("pinlease", MFD_CLOEXEC);
	char page[P];

	open_ctx(r, "/dev/shm");
	memset(page, 'm', P);
	for (int i = 0; i < PAGES; i++)
		assert_int_equal(pwrite(fd, page, P, i * P), P);
	r->fd = fd;
	r->va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_true(r->va != MAP_FAILED);
	/* The actor inherits the descriptor itself. It forks after the context; it uses nothing of it. */
	start_actor(r);
	kill(r->actor, SIGKILL);
	waitpid(r->actor, NULL, 0);
	r->actor = 0;
	open_uring(r);
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_KEEP};
	struct pinl_event ev;

	assert_ok(map(r, FIRST, LAST, PINL_WRITE | PINL_PIN, &policy, &r->lease));
	assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5 * P, P), 0);
	await(r, PINL_EV_ORPHAN, &ev);
	assert_int_equal(ev.op, PINL_OP_PUNCH);
	assert_int_equal(ev.start, (uintptr_t)r->va + 5 * P);
	assert_int_equal(ev.end, (uintptr_t)r->va + 6 * P);
	assert_int_equal(lseek(fd, 0, SEEK_CUR), 0); /* the program's own offset */
}

static void tmpfs_has_no_hold(void **state)
{
	struct rig *r = *state;
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_REFUSE,
				     .refuse = PINL_OPBIT(PINL_OP_TRUNCATE)};

	start(r, "/dev/shm", MAP_SHARED);
	assert_int_equal(pinl_watch_fs(r->ctx, "/dev/shm"), -EOPNOTSUPP);
	open_uring(r);
	assert_int_equal(map(r, FIRST, LAST, PINL_WRITE | PINL_PIN, &policy, &r->lease), -EOPNOTSUPP);
}

/* Without privilege the source is missing, says what it needs, and the rest works. */
static void without_privilege(void **state)
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1};
		struct pinl_ctx *ctx;
		const char *why;

		if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534) || pinl_open(&opts, &ctx))
			_exit(1);
		why = missing(ctx, "files");
		if (!why || !strstr(why, "CAP_SYS_ADMIN"))
			_exit(2);
		if (pinl_watch_fs(ctx, "/") != -EOPNOTSUPP || missing(ctx, "notify"))
			_exit(3);
		pinl_close(ctx);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(every_change_is_held),
		TEST(every_change_can_be_refused),
		TEST(what_leaves_pages_alone_passes),
		TEST(the_deadline_frees_the_actor),
		TEST(pinned_private_pages),
		TEST(two_leases_on_one_file),
		TEST(the_last_lease_ends_it),
		TEST(an_unlinked_file),
		TEST(the_holder_itself),
		TEST(explicit_calls_are_not_held_twice),
		TEST(closing_lets_everybody_go),
		TEST(a_new_lease_after_the_change),
		TEST(a_dead_holder_holds_nobody),
		TEST(tmpfs_punch_is_told),
		TEST(tmpfs_truncate_is_told),
		TEST(memfd_punch_is_told),
		TEST(tmpfs_has_no_hold),
		cmocka_unit_test(without_privilege),
	};

	alarm(120); /* a test that hangs ends */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
