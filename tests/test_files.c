/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files on disk through the public API: another process that changes the file of a lease is held until
 * the holder has quiesced, or refused. Needs a file system that fanotify can hold (ext4, XFS, btrfs) at
 * PINLEASE_TEST_DIR or /var/tmp, kernel 6.14 and CAP_SYS_ADMIN.
 */
#include "files_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/magic.h>

/* ----------------------------------------------------------------------------------------- tests -- */

/* btrfs neither collapses nor inserts. */
static int fs_does(enum act act)
{
	struct statfs fs;

	assert_int_equal(statfs(test_dir(), &fs), 0);
	return fs.f_type != BTRFS_SUPER_MAGIC || (act != COLLAPSE && act != INSERT);
}

static void held_until_quiesced(struct rig *r, enum act act)
{
	struct pinl_policy policy = recall(LONG);
	struct pinl_event ev;

	print_message("# %s\n", acts[act].name);
	if (!fs_does(act))
		return;
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
	struct pinl_policy policy = {.size = sizeof policy,
				     .kind = PINL_REFUSE,
				     .refuse = PINL_OPS_FILE | PINL_OPBIT(PINL_OP_REMOVE)};
	struct pinl_event ev;
	int err;

	lease_shared(r, &policy);
	for (enum act act = TRUNCATE; act <= LAST_CHANGE; act++) {
		print_message("# %s\n", acts[act].name);
		if (!fs_does(act))
			continue;
		send_order(r, act);
		assert_int_equal(reply(r, LONG), EBUSY);
		await(r, PINL_EV_REFUSED, &ev);
		assert_int_equal(ev.op, acts[act].op);
		assert_int_equal(ev.actor_pid, r->actor);
		assert_file_unchanged(r);
	}
	pinl_unmap_range(r->lease);
	while (send_order(r, FTRUNCATE), err = reply(r, LONG), err == EBUSY)
		sched_yield(); /* pinleased has yet to read of its end */
	assert_int_equal(err, 0);
	assert_int_equal(size_of(r), 5 * P);
}

/* REFUSE is about the operation, also where the mapping would not lose its pages: a private one keeps
 * its own under a hole. */
static void a_named_punch_of_a_private_mapping(void **state)
{
	struct rig *r = *state;
	struct pinl_policy policy = {
		.size = sizeof policy, .kind = PINL_REFUSE, .refuse = PINL_OPBIT(PINL_OP_PUNCH)};

	start(r, test_dir(), MAP_PRIVATE);
	open_uring(r);
	assert_ok(map(r, FIRST, LAST, PINL_WRITE | PINL_PIN, &policy, &r->lease));
	send_order(r, PUNCH);
	assert_int_equal(reply(r, LONG), EBUSY);
	assert_file_unchanged(r);
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
	assert_int_equal(settled_check(r->lease), 0);
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

#define ACTORS 12
#define ROUNDS 40

static void __attribute__((noreturn)) storm(const char *path)
{
	int fd = open(path, O_RDWR);
	char c;

	for (int i = 0; i < ROUNDS; i++) {
		if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5 * P, P) ||
		    pread(fd, &c, 1, 5 * P) != 1 || pwrite(fd, "x", 1, 5 * P) != 1)
			_exit(1);
	}
	_exit(0);
}

/* Many processes at once, and leases that come and go meanwhile. Every change is answered. */
static void many_actors(void **state)
{
	struct rig *r = *state;
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_FOLLOW};
	struct pinl_counters c = {.size = sizeof c};
	struct pinl_lease *other;
	pid_t pids[ACTORS];
	int status, err;

	lease_shared(r, &policy);
	for (int i = 0; i < ACTORS; i++)
		if (!(pids[i] = fork()))
			storm(r->path);
	for (int i = 0; i < 50; i++) {
		err = map(r, LAST, PAGES, PINL_WRITE, &policy, &other);
		if (!err)
			pinl_unmap_range(other);
	}
	for (int i = 0; i < ACTORS; i++) {
		assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
		assert_int_equal(status, 0);
	}
	assert_ok(pinl_counters(r->ctx, &c));
	assert_true(c.answered >= ACTORS * ROUNDS);
}

/* Lease, fork a child that lives until `life` ends, say so, say when somebody is held, wait to be
 * killed. */
static void __attribute__((noreturn)) holder(struct rig *r, int life, int news)
{
	struct pollfd p = {.fd = life};
	struct pinl_policy policy = recall(LONG);
	struct pinl_event ev = {.type = PINL_EV_LEAK};

	r->va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	if (pinl_open(NULL, &r->ctx) || pinl_device_open(r->ctx, "soft", NULL, &r->dev) ||
	    map(r, FIRST, LAST, 0, &policy, &r->lease))
		_exit(1);
	if (!fork()) {
		close(news);
		poll(&p, 1, LONG); /* hangs up */
		_exit(0);
	}
	if (write(news, "r", 1) != 1)
		_exit(1);
	while (ev.type != PINL_EV_NOTICE)
		if (next_event(r, &ev, LONG))
			_exit(1);
	if (write(news, "n", 1) != 1)
		_exit(1);
	for (;;)
		pause();
}

/*
 * The holder dies while it holds somebody, and a child of its lives on with copies of all descriptors of
 * the program. The actor must go on.
 */
static void a_dead_holder_holds_nobody(void **state)
{
	struct rig *r = *state;
	int life[2], news[2];
	pid_t pid;
	char c = 0;

	start_actor(r);
	open_ctx(r, test_dir()); /* or skip */
	pinl_close(r->ctx);
	r->ctx = NULL;
	make_file(r, test_dir());
	assert_int_equal(pipe(life) || pipe(news), 0);
	pid = fork();
	if (!pid && !close(life[1]))
		holder(r, life[0], news[1]);
	close(news[1]);
	if (read(news[0], &c, 1) == 1)
		send_order(r, TRUNCATE);
	c = read(news[0], &c, 1) == 1 && reply(r, 0) == -1;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	assert_true(c);
	assert_int_equal(reply(r, LONG), 0);
	close(life[0]);
	close(life[1]);
	close(news[0]);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(every_change_is_held),
		TEST(every_change_can_be_refused),
		TEST(a_named_punch_of_a_private_mapping),
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
		TEST(many_actors),
		TEST(a_dead_holder_holds_nobody),
	};

	alarm(280);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
