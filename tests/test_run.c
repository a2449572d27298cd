/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The library's leases of memory files under `pinlease run`: a holder with a real ring, in this process,
 * and an actor that is supervised; and both in one supervised process. argv[1]: pinlease.
 */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "arbiter_rig.h"
#include "lacking.h"

#define LACKING 77 /* this kernel lacks something */

#define OPS_FILE (PINL_OPBIT(PINL_OP_TRUNCATE) | PINL_OPBIT(PINL_OP_PUNCH) | PINL_OPBIT(PINL_OP_REMOVE))

extern char **environ;

static const char *pinlease;
static struct arbiter a;
/* Where there is a gate it refuses for all, also for who isn't under pinlease run. */
static const char *const no_gate[] = {"--gate", "no", NULL};

struct memory {
	int fd;
	char *va;
	struct io_uring ring;
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct pinl_lease *lease;
};

static void memory_end(struct memory *m)
{
	pinl_close(m->ctx);
	io_uring_queue_exit(&m->ring);
	munmap(m->va, SIZE);
	close(m->fd);
}

static int memory_try(struct memory *m, const struct pinl_policy *policy, unsigned flags)
{
	/* Else it is forced from outside, where nothing can be copied, as soon as it is slow. */
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1, .drain_ms = 60000};
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &m->ring};

	m->fd = memfd_create("run", MFD_CLOEXEC);
	assert_int_equal(ftruncate(m->fd, SIZE), 0);
	m->va = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd, 0);
	memset(m->va, 'O', SIZE);
	assert_int_equal(io_uring_queue_init(8, &m->ring, 0), 0);
	assert_ok(pinl_open(&opts, &m->ctx));
	assert_ok(pinl_device_open(m->ctx, "uring", &arg, &m->dev));
	return (pinl_map_range)(m->dev, (uintptr_t)m->va, (uintptr_t)m->va + SIZE,
				PINL_WRITE | PINL_PIN | flags, policy, NULL, &m->lease);
}

static void memory_lease(struct memory *m, const struct pinl_policy *policy, unsigned flags)
{
	int err = memory_try(m, policy, flags);
	char why[512];

	snprintf(why, sizeof why, "%s", pinl_error());
	if (err == -EOPNOTSUPP && lacking(why)) {
		memory_end(m);
		print_message("skip: %s\n", why);
		skip();
	}
	if (err)
		fail_msg("%d: %s", err, why);
}

static off_t size_of(const struct memory *m)
{
	struct stat st;

	assert_int_equal(fstat(m->fd, &st), 0);
	return st.st_size;
}

/* The next of this type; what comes before is passed over. */
static struct pinl_event wait_for(const struct memory *m, enum pinl_event_type type)
{
	struct pollfd p = {.fd = pinl_fd(m->ctx), .events = POLLIN};
	struct pinl_event ev = {.size = sizeof ev};

	do {
		while (pinl_next_event(m->ctx, &ev) != 0)
			poll(&p, 1, -1);
	} while (ev.type != type);
	return ev;
}

/* What the device writes with the lease's key is what the CPU then sees. */
static void assert_device_writes(struct memory *m, char letter)
{
	struct io_uring_sqe *sqe;
	struct io_uring_cqe *cqe;
	char page[PG];
	int fd = memfd_create("data", MFD_CLOEXEC);

	memset(page, letter, PG);
	assert_int_equal(pwrite(fd, page, PG, 0), PG);
	sqe = io_uring_get_sqe(&m->ring);
	io_uring_prep_read_fixed(sqe, fd, m->va, PG, 0, (int)pinl_lease_key(m->lease));
	sqe->user_data = 1;
	assert_int_equal(io_uring_submit(&m->ring), 1);
	for (;;) {
		assert_int_equal(io_uring_wait_cqe(&m->ring, &cqe), 0);
		if (!pinl_uring_cqe(m->dev, cqe->user_data))
			break;
		io_uring_cqe_seen(&m->ring, cqe);
	}
	assert_int_equal(cqe->res, (int)PG);
	io_uring_cqe_seen(&m->ring, cqe);
	assert_memory_equal(m->va, page, PG);
	close(fd);
}

/* pinlease run COMMAND, with the file's name behind. */
static pid_t supervise(const struct memory *m, const char *const *command)
{
	const char *argv[16] = {pinlease, "run", "--"};
	char path[64];
	pid_t pid;
	int n = 3;

	while (*command)
		argv[n++] = *command++;
	snprintf(path, sizeof path, "/proc/%d/fd/%d", getpid(), m ? m->fd : -1);
	if (m)
		argv[n] = path;
	assert_int_equal(posix_spawnp(&pid, argv[0], NULL, NULL, (char **)argv, environ), 0);
	return pid;
}

static int status_of(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static const char *const empty[] = {"truncate", "-s", "0", NULL};
static const char *const punch[] = {"fallocate", "-p", "-o", "4096", "-l", "8192", NULL};

static struct pinl_policy recall(enum pinl_then then, unsigned grace_ms)
{
	return (struct pinl_policy){.size = sizeof(struct pinl_policy),
				    .kind = PINL_RECALL,
				    .then = then,
				    .grace_ms = grace_ms};
}

/* --------------------------------------------------------------------------------- the tests -- */

static void the_lease_says_who_is_held(void **state)
{
	struct pinl_lease_info info = {.size = sizeof info};
	struct pinl_policy p = recall(PINL_THEN_FAIL, 1000);
	struct memory m;
	char text[2048];

	arbiter_start(&a, no_gate);
	memory_lease(&m, &p, 0);
	assert_ok(pinl_lease_info(m.lease, &info));
	for (int op = 0; op < PINL_OP_NR; op++) {
		if (!(OPS_FILE & PINL_OPBIT(op)))
			continue;
		assert_false(info.coverage[op] & (PINL_CAN_HOLD | PINL_CAN_REFUSE) &&
			     op != PINL_OP_REMOVE);
		assert_int_equal(info.supervised[op] & (PINL_CAN_HOLD | PINL_CAN_REFUSE),
				 PINL_CAN_HOLD | PINL_CAN_REFUSE);
	}
	pinl_lease_describe(m.lease, text, sizeof text);
	assert_non_null(strstr(text, "told only, not held: truncate"));
	assert_non_null(strstr(text, "held where made by a process under pinlease run: truncate"));
	memory_end(&m);
	arbiter_stop(&a);
}

/* What no other's changes are held for is promised to nobody. */
static void no_policy_counts_on_it(void **state)
{
	struct pinl_policy refuse = {.size = sizeof refuse,
				     .kind = PINL_REFUSE,
				     .refuse = PINL_OPBIT(PINL_OP_TRUNCATE)},
			   p = recall(PINL_THEN_FAIL, 1000);
	struct pinl_lease *lease;
	struct memory m;

	arbiter_start(&a, no_gate);
	memory_lease(&m, &p, 0);
	pinl_unmap_range(m.lease);
	assert_int_equal(pinl_map_range(m.dev, (uintptr_t)m.va, (uintptr_t)m.va + SIZE, PINL_PIN,
					&refuse, NULL, &lease),
			 -EOPNOTSUPP);
	assert_int_equal(pinl_map_range(m.dev, (uintptr_t)m.va, (uintptr_t)m.va + SIZE,
					PINL_PIN | PINL_STRICT, &p, NULL, &lease),
			 -EOPNOTSUPP);
	memory_end(&m);
	arbiter_stop(&a);
}

static void it_waits_until_the_holder_is_quiesced(void **state)
{
	struct pinl_policy p = recall(PINL_THEN_FAIL, 60000);
	struct pinl_event ev;
	struct memory m;
	pid_t actor;

	arbiter_start(&a, (const char *[]){"--ceiling", "100000", NULL});
	memory_lease(&m, &p, 0);
	actor = supervise(&m, empty);
	ev = wait_for(&m, PINL_EV_NOTICE);
	assert_int_equal(ev.op, PINL_OP_TRUNCATE);
	assert_string_equal(ev.source, "seccomp");
	assert_int_equal(waitpid(actor, NULL, WNOHANG), 0);
	assert_int_equal(size_of(&m), SIZE);
	assert_ok(pinl_quiesced(m.lease));
	assert_int_equal(status_of(actor), 0);
	assert_int_equal(size_of(&m), 0);
	memory_end(&m);
	arbiter_stop(&a);
}

/* Of a whole file, and of two pages; then neither byte nor page is lost. */
static void forced_it_has_its_copy_before_the_change(void **state)
{
	struct pinl_lease_info info = {.size = sizeof info};
	struct pinl_policy p = recall(PINL_THEN_COPY, 1);
	const char *const *commands[] = {empty, punch};
	struct memory m;

	for (int i = 0; i < 2; i++) {
		arbiter_start(&a, (const char *[]){"--ceiling", "100000", NULL});
		memory_lease(&m, &p, 0);
		assert_device_writes(&m, 'O');
		assert_int_equal(status_of(supervise(&m, commands[i])), 0);
		assert_int_equal(size_of(&m), commands[i] == empty ? 0 : SIZE);
		for (size_t at = 0; at < SIZE; at++)
			if (m.va[at] != 'O')
				fail_msg("byte %zu is %d", at, m.va[at]);
		assert_device_writes(&m, 'D');
		assert_ok(pinl_lease_info(m.lease, &info));
		assert_int_equal(info.orphan_bytes, 0);
		assert_int_equal(info.detached_bytes, commands[i] == empty ? SIZE : 2 * PG);
		memory_end(&m);
		arbiter_stop(&a);
	}
}

static void it_is_refused(void **state)
{
	struct pinl_policy p = {.size = sizeof p, .kind = PINL_REFUSE, .refuse = OPS_FILE};
	struct memory m;

	arbiter_start(&a, NULL);
	memory_lease(&m, &p, PINL_COOPERATIVE);
	assert_int_equal(status_of(supervise(&m, empty)), 1);
	assert_int_equal(wait_for(&m, PINL_EV_REFUSED).op, PINL_OP_TRUNCATE);
	assert_int_equal(status_of(supervise(&m, punch)), 1);
	assert_int_equal(wait_for(&m, PINL_EV_REFUSED).op, PINL_OP_PUNCH);
	assert_int_equal(size_of(&m), SIZE);
	for (size_t at = 0; at < SIZE; at++)
		assert_int_equal(m.va[at], 'O');
	memory_end(&m);
	arbiter_stop(&a);
}

/* An arbiter that takes no lease more: it is one as without. */
static void a_lease_nobody_knows_of_is_still_good(void **state)
{
	struct pinl_lease_info info = {.size = sizeof info};
	struct pinl_policy p = recall(PINL_THEN_FAIL, 1000);
	struct memory m[2];

	arbiter_start(&a, (const char *[]){"--max-leases", "1", NULL});
	memory_lease(&m[0], &p, 0);
	memory_lease(&m[1], &p, 0);
	assert_ok(pinl_lease_info(m[1].lease, &info));
	assert_false(info.supervised[PINL_OP_TRUNCATE] & PINL_CAN_HOLD);
	assert_int_equal(status_of(supervise(&m[1], empty)), 0);
	wait_for(&m[1], PINL_EV_ORPHAN);
	memory_end(&m[1]);
	memory_end(&m[0]);
	arbiter_stop(&a);
}

static void *truncate_own(void *fd)
{
	return (void *)(long)ftruncate(*(int *)fd, 0);
}

/* In a process of its own, under pinlease run: holder and actor. */
static int inside(void)
{
	struct pinl_policy p = recall(PINL_THEN_FAIL, 60000);
	struct memory m;
	pthread_t thread;
	char why[512];
	void *result;

	if (memory_try(&m, &p, 0)) {
		snprintf(why, sizeof why, "%s", pinl_error());
		return lacking(why) ? LACKING : 1;
	}
	pthread_create(&thread, NULL, truncate_own, &m.fd);
	wait_for(&m, PINL_EV_NOTICE);
	if (size_of(&m) != SIZE)
		return 2;
	if (pinl_quiesced(m.lease))
		return 3;
	pthread_join(thread, &result);
	if (result || size_of(&m))
		return 4;
	pinl_unmap_range(m.lease);
	if (ftruncate(m.fd, SIZE)) /* and anew at once, by the thread that has not made the change */
		return 5;
	if (pinl_map_range(m.dev, (uintptr_t)m.va, (uintptr_t)m.va + SIZE, PINL_WRITE | PINL_PIN, &p,
			   NULL, &m.lease))
		return 6;
	memory_end(&m);
	return 0;
}

static void holder_and_actor_in_one_process(void **state)
{
	char self[4096];
	ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
	int status;

	assert_true(n > 0);
	self[n] = 0;
	arbiter_start(&a, (const char *[]){"--ceiling", "100000", NULL});
	status = status_of(supervise(NULL, (const char *[]){self, pinlease, "inside", NULL}));
	arbiter_stop(&a);
	if (status == LACKING) {
		print_message("skip: calls on mappings are held since Linux 6.7\n");
		skip();
	}
	assert_int_equal(status, 0);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_lease_says_who_is_held),
		cmocka_unit_test(no_policy_counts_on_it),
		cmocka_unit_test(it_waits_until_the_holder_is_quiesced),
		cmocka_unit_test(forced_it_has_its_copy_before_the_change),
		cmocka_unit_test(it_is_refused),
		cmocka_unit_test(a_lease_nobody_knows_of_is_still_good),
		cmocka_unit_test(holder_and_actor_in_one_process),
	};

	pinlease = argc > 1 ? argv[1] : NULL;
	if (argc > 2)
		return inside();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
