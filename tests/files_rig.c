/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The rig of the tests of files; see files_rig.h. */
#include "files_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/falloc.h>

/* ------------------------------------------------------------------------------------- the actor -- */

const struct act_name acts[] = {
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
	[URING_WORKER_READ] = {"io_uring read by a worker"},
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
	if (act == URING_WORKER_READ)
		sqe->flags |= IOSQE_ASYNC;
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
	case URING_WORKER_READ:
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

/* When the test has died, which can be while it holds him, he removes the file. */
static void __attribute__((noreturn)) actor(int sock)
{
	struct order o = {0};
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
		send(sock, &reply, sizeof reply, MSG_NOSIGNAL);
	}
	unlink(o.path);
	_exit(0);
}

/* --------------------------------------------------------------------------------------- fixture -- */

void send_order(struct rig *r, enum act act)
{
	struct order o = {.act = act};

	strcpy(o.path, r->path);
	assert_int_equal(send(r->sock, &o, sizeof o, 0), sizeof o);
}

/* The errno of the actor's call; -1: not done yet, within `ms`. */
int reply(struct rig *r, int ms)
{
	struct pollfd p = {r->sock, POLLIN, 0};
	int ret;

	if (poll(&p, 1, ms) <= 0)
		return -1;
	assert_int_equal(recv(r->sock, &ret, sizeof ret, 0), sizeof ret);
	return ret;
}

void order(struct rig *r, enum act act)
{
	send_order(r, act);
	assert_int_equal(reply(r, LONG), 0);
}

const char *test_dir(void)
{
	const char *dir = getenv("PINLEASE_TEST_DIR");

	return dir ? dir : "/var/tmp";
}

/* The text of `source`'s line in pinl_sources(), or NULL. */
const char *missing(struct pinl_ctx *ctx, const char *source)
{
	static char buf[2048];
	char line[64];

	snprintf(line, sizeof line, "%s: missing", source);
	pinl_sources(ctx, buf, sizeof buf);
	return strstr(buf, line);
}

void open_ctx(struct rig *r, const char *dir)
{
	struct pinl_opts opts = {.size = sizeof opts, .ceiling_ms = 3 * LONG, .summary_fd = -1};
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

void start_actor(struct rig *r)
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

void make_file(struct rig *r, const char *dir)
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

int setup(void **state)
{
	*state = calloc(1, sizeof(struct rig));
	((struct rig *)*state)->len = SIZE;
	((struct rig *)*state)->fd = -1;
	((struct rig *)*state)->va = MAP_FAILED;
	return !*state;
}

int teardown(void **state)
{
	struct rig *r = *state;

	pinl_close(r->ctx);
	if (r->has_ring)
		io_uring_queue_exit(&r->ring);
	if (r->va != MAP_FAILED)
		munmap(r->va, r->len);
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
void start(struct rig *r, const char *dir, int map_flags)
{
	start_actor(r);
	open_ctx(r, dir);
	make_file(r, dir);
	order(r, OPEN);
	r->va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, map_flags, r->fd, 0);
	assert_true(r->va != MAP_FAILED);
}

struct pinl_policy recall(unsigned grace_ms)
{
	return (struct pinl_policy){
		.size = sizeof(struct pinl_policy), .kind = PINL_RECALL, .grace_ms = grace_ms};
}

int map(struct rig *r, int first, int last, unsigned flags, const struct pinl_policy *policy,
	struct pinl_lease **lease)
{
	uintptr_t va = (uintptr_t)r->va;

	return pinl_map_range(r->dev, va + first * P, va + last * P, flags, policy, NULL, lease);
}

void lease_shared(struct rig *r, const struct pinl_policy *policy)
{
	start(r, test_dir(), MAP_SHARED);
	assert_ok(pinl_device_open(r->ctx, "soft", NULL, &r->dev));
	assert_ok(map(r, FIRST, LAST, PINL_WRITE, policy, &r->lease));
}

void open_uring(struct rig *r)
{
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &r->ring};

	assert_int_equal(io_uring_queue_init(8, &r->ring, 0), 0);
	r->has_ring = 1;
	assert_ok(pinl_device_open(r->ctx, "uring", &arg, &r->dev));
}

int next_event(struct rig *r, struct pinl_event *ev, int ms)
{
	struct pollfd p = {pinl_fd(r->ctx), POLLIN, 0};

	ev->size = sizeof *ev;
	if (!pinl_next_event(r->ctx, ev))
		return 0;
	if (poll(&p, 1, ms) <= 0)
		return -EAGAIN;
	return pinl_next_event(r->ctx, ev);
}

void await(struct rig *r, enum pinl_event_type type, struct pinl_event *ev)
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

off_t size_of(struct rig *r)
{
	struct stat st;

	assert_int_equal(fstat(r->fd, &st), 0);
	return st.st_size;
}

void assert_file_unchanged(struct rig *r)
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
void assert_held(struct rig *r, enum pinl_op op, struct pinl_event *ev)
{
	await(r, PINL_EV_NOTICE, ev);
	assert_int_equal(ev->op, op);
	assert_string_equal(ev->source, "files");
	assert_int_equal(ev->actor_pid, r->actor);
	assert_int_equal(reply(r, 0), -1);
	assert_file_unchanged(r);
}
