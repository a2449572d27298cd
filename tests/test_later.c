/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * R11: who defers a change of a file goes on at once; the change comes when nobody's lease is under it
 * any more, in order, also if he has ended, and he is told.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "arbiter_rig.h"

static struct arbiter a;

static const struct pinl_policy recall = {.size = sizeof recall,
					  .kind = PINL_RECALL,
					  .then = PINL_THEN_FAIL,
					  .grace_ms = 60000},
				refuse = {.size = sizeof refuse,
					  .kind = PINL_REFUSE,
					  .refuse = PINL_OPBIT(PINL_OP_TRUNCATE)};

static off_t size_of(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return st.st_size;
}

static struct pinl_ctx *ctx_open(void)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1, .ceiling_ms = 100000};
	struct pinl_ctx *ctx;

	assert_int_equal(pinl_open(&opts, &ctx), 0);
	return ctx;
}

/* The next of its type; others are passed over. */
static struct pinl_event await(struct pinl_ctx *ctx, enum pinl_event_type type)
{
	struct pollfd p = {.fd = pinl_fd(ctx), .events = POLLIN};
	struct pinl_event ev = {.size = sizeof ev};

	do {
		while (pinl_next_event(ctx, &ev))
			poll(&p, 1, -1);
	} while (ev.type != type);
	return ev;
}

static bool none_done(struct pinl_ctx *ctx)
{
	struct pinl_event ev = {.size = sizeof ev};

	while (!pinl_next_event(ctx, &ev))
		if (ev.type == PINL_EV_DEFERRED_DONE)
			return false;
	return true;
}

static void must_end(struct pinl_ctx *ctx, uint64_t id, int err)
{
	struct pinl_event ev = await(ctx, PINL_EV_DEFERRED_DONE);

	assert_int_equal(ev.change_id, id);
	assert_int_equal(ev.err, err);
}

static void must_begin(int err)
{
	if (err)
		fail_msg("%d: %s", err, pinl_error());
}

/* A page of it is enough to be under a truncation. */
static struct pinl_lease *lend(struct pinl_ctx *ctx, int fd, const struct pinl_policy *p)
{
	void *va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	struct pinl_device *dev;
	struct pinl_lease *l;

	assert_int_equal(pinl_device_open(ctx, "soft", NULL, &dev), 0);
	if (pinl_map_range(dev, (uintptr_t)va, (uintptr_t)va + SIZE, PINL_WRITE | PINL_COOPERATIVE, p,
			   NULL, &l))
		fail_msg("%s", pinl_error());
	return l;
}

static int make_memfd(void)
{
	int fd = memfd_create("later", MFD_CLOEXEC);

	assert_int_equal(ftruncate(fd, SIZE), 0);
	return fd;
}

/* ------------------------------------------------------------------------- by the process itself -- */

static void the_caller_goes_on(void **state)
{
	struct pinl_ctx *ctx = ctx_open();
	int fd = make_memfd(), again = dup(fd);
	struct pinl_lease *l = lend(ctx, fd, &recall);
	uint64_t id = 0;

	must_begin(pinl_ftruncate_later(ctx, again, 0, &id));
	close(again);
	await(ctx, PINL_EV_NOTICE);
	assert_true(none_done(ctx));
	assert_int_equal(size_of(fd), SIZE);
	assert_int_equal(pinl_quiesced(l), 0);
	must_end(ctx, id, 0);
	assert_int_equal(size_of(fd), 0);
	pinl_close(ctx);
	close(fd);
}

static void their_order_is_kept(void **state)
{
	struct pinl_ctx *ctx = ctx_open();
	int fd = make_memfd();
	struct pinl_lease *l = lend(ctx, fd, &recall);
	uint64_t id[3];

	assert_int_equal(pwrite(fd, "x", 1, 0), 1);
	must_begin(pinl_ftruncate_later(ctx, fd, 0, &id[0]));
	must_begin(pinl_ftruncate_later(ctx, fd, 3 * PG, &id[1]));
	must_begin(pinl_fallocate_later(ctx, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PG,
					&id[2]));
	await(ctx, PINL_EV_NOTICE);
	assert_int_equal(pinl_quiesced(l), 0);
	for (int i = 0; i < 3; i++)
		must_end(ctx, id[i], 0);
	assert_int_equal(size_of(fd), 3 * PG);
	pinl_close(ctx);
	close(fd);
}

static void a_refusal_is_told(void **state)
{
	struct pinl_ctx *ctx = ctx_open();
	int fd = make_memfd();
	uint64_t id;

	lend(ctx, fd, &refuse);
	must_begin(pinl_ftruncate_later(ctx, fd, 0, &id));
	must_end(ctx, id, -EBUSY);
	assert_int_equal(size_of(fd), SIZE);
	pinl_close(ctx);
	close(fd);
}

static void a_close_waits_for_them(void **state)
{
	struct pinl_ctx *ctx = ctx_open();
	int fd = make_memfd();
	uint64_t id;

	lend(ctx, fd, &recall);
	for (int i = 0; i < 20; i++)
		must_begin(pinl_ftruncate_later(ctx, fd, i * PG, &id));
	pinl_close(ctx);
	assert_int_equal(size_of(fd), 19 * PG);
	close(fd);
}

/* Closing a descriptor of the file would have dropped them. */
static void locks_stay(void **state)
{
	struct flock mine = {.l_type = F_WRLCK, .l_whence = SEEK_SET}, seen = mine;
	struct pinl_ctx *ctx = ctx_open();
	int fd = make_memfd(), status;
	uint64_t id;
	pid_t pid;

	assert_int_equal(fcntl(fd, F_SETLK, &mine), 0);
	must_begin(pinl_ftruncate_later(ctx, fd, 0, &id));
	must_end(ctx, id, 0);
	pid = fork();
	if (!pid) {
		fcntl(fd, F_GETLK, &seen);
		_exit(seen.l_type == F_WRLCK);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(WEXITSTATUS(status), 1);
	pinl_close(ctx);
	close(fd);
}

static void what_cant_be_is_said_at_once(void **state)
{
	struct pinl_ctx *ctx = ctx_open();
	int fd = make_memfd(), reader, dir = open("/tmp", O_RDONLY | O_CLOEXEC);
	char path[64];
	uint64_t id = 7;

	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	reader = open(path, O_RDONLY | O_CLOEXEC);
	assert_int_equal(pinl_ftruncate_later(ctx, reader, 0, &id), -EINVAL);
	assert_int_equal(pinl_ftruncate_later(ctx, dir, 0, &id), -EINVAL);
	assert_int_equal(pinl_ftruncate_later(ctx, fd, -1, &id), -EINVAL);
	assert_int_equal(pinl_ftruncate_later(ctx, -1, 0, &id), -EBADF);
	assert_int_equal(pinl_fallocate_later(ctx, fd, 0, 0, PG, &id), -EINVAL);
	assert_int_equal(pinl_fallocate_later(ctx, fd, FALLOC_FL_ZERO_RANGE, 0, 0, &id), -EINVAL);
	assert_int_equal(id, 7);
	assert_true(none_done(ctx));
	pinl_close(ctx);
	close(reader);
	close(dir);
	close(fd);
}

/* ----------------------------------------------------------------------------------- by pinleased -- */

static int start_arbiter(void)
{
	arbiter_start(&a, (const char *[]){"--ceiling", "100000", NULL});
	return open(a.file, O_RDWR | O_CLOEXEC);
}

/* The second has no lease under it, and waits for the first all the same. */
static void it_waits_for_other_processes(void **state)
{
	struct lending what = {.policy = recall, .leases = 1};
	int fd = start_arbiter();
	struct pinl_ctx *ctx;
	struct holder h;
	uint64_t id[2];

	holder_start(&h, &a, &what);
	holder_assert_leased(&h);
	ctx = ctx_open(); /* after the fork: it has threads */
	must_begin(pinl_ftruncate_later(ctx, fd, 0, &id[0]));
	must_begin(pinl_ftruncate_later(ctx, fd, 8 * PG, &id[1]));
	holder_wait(&h, PINL_EV_NOTICE, 1);
	assert_true(none_done(ctx));
	assert_int_equal(size_of(fd), SIZE);
	h.s->quiesce = 1;
	must_end(ctx, id[0], 0);
	must_end(ctx, id[1], 0);
	assert_int_equal(size_of(fd), 8 * PG);
	holder_end(&h);
	pinl_close(ctx);
	close(fd);
	arbiter_stop(&a);
}

static void it_comes_also_if_who_asked_has_ended(void **state)
{
	struct lending what = {.policy = recall};
	int fd = start_arbiter(), status;
	struct holder h;
	uint64_t id;
	pid_t pid;

	holder_start(&h, &a, &what);
	holder_assert_leased(&h);
	pid = fork();
	if (!pid)
		_exit(pinl_ftruncate_later(ctx_open(), fd, 0, &id) != 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	holder_wait(&h, PINL_EV_NOTICE, 1);
	assert_int_equal(size_of(fd), SIZE);
	h.s->quiesce = 1;
	while (size_of(fd))
		usleep(1000);
	holder_end(&h);
	close(fd);
	arbiter_stop(&a);
}

static void another_s_refusal_is_told(void **state)
{
	struct lending what = {.policy = refuse};
	int fd = start_arbiter();
	struct pinl_ctx *ctx;
	struct holder h;
	uint64_t id;

	holder_start(&h, &a, &what);
	holder_assert_leased(&h);
	ctx = ctx_open(); /* after the fork: it has threads */
	must_begin(pinl_ftruncate_later(ctx, fd, 0, &id));
	must_end(ctx, id, -EBUSY);
	holder_wait(&h, PINL_EV_REFUSED, 1);
	assert_int_equal(size_of(fd), SIZE);
	holder_end(&h);
	pinl_close(ctx);
	close(fd);
	arbiter_stop(&a);
}

/* The end of the arbiter isn't the end of the wait. */
static void whether_a_dead_arbiter_did_it_isnt_known(void **state)
{
	struct lending what = {.policy = recall};
	int fd = start_arbiter();
	struct pinl_ctx *ctx;
	struct holder h;
	uint64_t id;

	holder_start(&h, &a, &what);
	holder_assert_leased(&h);
	ctx = ctx_open(); /* after the fork: it has threads */
	must_begin(pinl_ftruncate_later(ctx, fd, 0, &id));
	arbiter_kill(&a);
	must_end(ctx, id, -ENOTCONN);
	arbiter_restart(&a, NULL);
	kill(h.pid, SIGKILL);
	holder_end(&h);
	pinl_close(ctx);
	close(fd);
	arbiter_stop(&a);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_caller_goes_on),
		cmocka_unit_test(their_order_is_kept),
		cmocka_unit_test(a_refusal_is_told),
		cmocka_unit_test(a_close_waits_for_them),
		cmocka_unit_test(locks_stay),
		cmocka_unit_test(what_cant_be_is_said_at_once),
		cmocka_unit_test(it_waits_for_other_processes),
		cmocka_unit_test(it_comes_also_if_who_asked_has_ended),
		cmocka_unit_test(another_s_refusal_is_told),
		cmocka_unit_test(whether_a_dead_arbiter_did_it_isnt_known),
	};

	setenv("PINLEASE_SOCKET", "/nonexistent/pinleased.sock", 1);
	alarm(HANG_S);
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("later", tests, NULL, NULL);
}
