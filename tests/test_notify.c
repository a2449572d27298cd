/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Files that nobody can hold, or not without privilege, through the public API: the holder is told
 * afterwards which pages its device has to itself now.
 */
#include "files_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/falloc.h>

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

/* What a memfd holds, through its first descriptor, which makes no inotify event for a punch. */
static void memfd_punch(struct rig *r, unsigned flags, size_t page)
{
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_KEEP};
	uintptr_t start;
	struct pinl_event ev;

	open_ctx(r, "/dev/shm");
	r->fd = memfd_create("pinlease", MFD_CLOEXEC | flags);
	assert_true(r->fd >= 0);
	assert_int_equal(ftruncate(r->fd, 4 * page), 0);
	r->len = 4 * page;
	r->va = mmap(NULL, r->len, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	if (r->va == MAP_FAILED && flags) {
		print_message("skip: 4 huge pages of 2 MiB (/proc/sys/vm/nr_hugepages)\n");
		skip();
	}
	assert_true(r->va != MAP_FAILED);
	memset(r->va, 'm', r->len);
	start = (uintptr_t)r->va;
	open_uring(r);
	assert_ok(pinl_map_range(r->dev, start, start + r->len, PINL_WRITE | PINL_PIN, &policy, NULL,
				 &r->lease));
	assert_int_equal(fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, page, page), 0);
	await(r, PINL_EV_ORPHAN, &ev);
	assert_int_equal(ev.op, PINL_OP_PUNCH);
	assert_int_equal(ev.start, start + page);
	assert_int_equal(ev.end, start + 2 * page);
	assert_int_equal(lseek(r->fd, 0, SEEK_CUR), 0); /* the program's own offset */
}

static void memfd_punch_is_told(void **state)
{
	memfd_punch(*state, 0, P);
}

static void hugetlb_punch_is_told(void **state)
{
	memfd_punch(*state, MFD_HUGETLB, 2 << 20);
}

static void tmpfs_has_no_hold(void **state)
{
	struct rig *r = *state;
	struct pinl_policy policy = {
		.size = sizeof policy, .kind = PINL_REFUSE, .refuse = PINL_OPBIT(PINL_OP_TRUNCATE)};

	start(r, "/dev/shm", MAP_SHARED);
	assert_int_equal(pinl_watch_fs(r->ctx, "/dev/shm"), -EOPNOTSUPP);
	open_uring(r);
	assert_int_equal(map(r, FIRST, LAST, PINL_WRITE | PINL_PIN, &policy, &r->lease), -EOPNOTSUPP);
}

/* A hole under a private mapping can't be told from pages of its own: so nobody promises to. */
static void private_holes_are_not_promised(void **state)
{
	struct rig *r = *state;
	struct pinl_policy follow = {.size = sizeof follow, .kind = PINL_FOLLOW},
			   recalled = recall(LONG);

	start(r, "/dev/shm", MAP_PRIVATE);
	assert_ok(pinl_device_open(r->ctx, "soft", NULL, &r->dev));
	assert_int_equal(map(r, FIRST, LAST, PINL_WRITE, &follow, &r->lease), -EOPNOTSUPP);
	assert_non_null(strstr(pinl_error(), ": punch, zero"));
	/* Pinned pages of the mapping's own are not in the file, and only its end takes them. */
	assert_ok(map(r, FIRST, LAST, PINL_WRITE | PINL_PIN, &recalled, &r->lease));
}

/* Without privilege the source is missing, says what it needs, and the rest works. Where the kernel
 * hasn't got it either, privilege would be no help. */
static void without_privilege(void **state)
{
	pid_t pid = fork();
	int status;

	if (!pid) {
		struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1};
		struct pinl_ctx *ctx;
		const char *why;

		if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534) ||
		    pinl_open(&opts, &ctx))
			_exit(1);
		why = missing(ctx, "files");
		if (!why || (!strstr(why, "CAP_SYS_ADMIN") && !strstr(why, "FAN_PRE_ACCESS")))
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
		TEST(tmpfs_punch_is_told),
		TEST(tmpfs_truncate_is_told),
		TEST(memfd_punch_is_told),
		TEST(hugetlb_punch_is_told),
		TEST(tmpfs_has_no_hold),
		TEST(private_holes_are_not_promised),
		cmocka_unit_test(without_privilege),
	};

	alarm(280);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
