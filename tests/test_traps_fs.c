/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Traps of file systems: the same file by another mount, under and through an overlay, and one that
 * shares blocks between files (XFS). All mounts are made in a mount namespace of this program's own, so
 * nothing is left of them whatever happens. Needs CAP_SYS_ADMIN.
 */
#include "files_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/falloc.h>
#include <linux/fs.h>

static int in_namespace;
static char top[200]; /* a directory for the test; its mounts are under it */

static const char *under(const char *name)
{
	static char path[4][256];
	static int n;

	n = (n + 1) % 4;
	snprintf(path[n], sizeof path[n], "%s/%s", top, name);
	return path[n];
}

static int run(const char *command)
{
	int status = system(command);

	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int fs_setup(void **state)
{
	snprintf(top, sizeof top, "%s/pinlease-traps-XXXXXX", test_dir());
	return !mkdtemp(top) || setup(state);
}

static int fs_teardown(void **state)
{
	char command[300];

	teardown(state);
	umount2(under("mnt"), MNT_DETACH);
	snprintf(command, sizeof command, "rm -rf --one-file-system '%s'", top);
	return run(command);
}

static void need_mounts(void)
{
	if (!in_namespace) {
		print_message("skip: a mount namespace of one's own (CAP_SYS_ADMIN)\n");
		skip();
	}
	assert_int_equal(mkdir(under("mnt"), 0700), 0);
}

/* From now on the actor knows the file by its name in this directory, and has opened it there. */
static void act_in(struct rig *r, const char *dir)
{
	char name[256];

	strcpy(name, strrchr(r->path, '/') + 1);
	snprintf(r->path, sizeof r->path, "%s/%s", dir, name);
	order(r, OPEN);
}

static void released(struct rig *r, enum pinl_op op, const char *source)
{
	struct pinl_event ev;

	await(r, PINL_EV_RELEASED, &ev);
	assert_int_equal(ev.op, op);
	assert_string_equal(ev.source, source);
}

static void assert_no_event(struct rig *r)
{
	struct pinl_event ev;
	char line[256] = "";

	if (!next_event(r, &ev, 0))
		pinl_event_format(&ev, line, sizeof line);
	assert_string_equal(line, "");
}

/* Ends the lease: it was pages [first, last) of the mapping that the device had for itself. */
static void found_late(struct rig *r, int first, int last)
{
	struct pinl_event ev;

	pinl_unmap_range(r->lease);
	await(r, PINL_EV_ORPHAN, &ev);
	if (strcmp(ev.source, "notify")) /* happened to look at the file for another reason */
		assert_string_equal(ev.source, "check");
	assert_int_equal(ev.start, (uintptr_t)r->va + first * P);
	assert_int_equal(ev.end, (uintptr_t)r->va + last * P);
	await(r, PINL_EV_ORPHAN_END, &ev);
}

static void map_file(struct rig *r, int flags)
{
	r->va = map_alone(SIZE, flags, r->fd);
	assert_ptr_not_equal(r->va, MAP_FAILED);
	if (flags == MAP_PRIVATE)
		open_uring(r);
	else
		assert_ok(pinl_device_open(r->ctx, "soft", NULL, &r->dev));
}

static void truncating_by_a_bind_mount_is_held(void **state)
{
	struct rig *r = *state;
	struct pinl_policy policy = recall(LONG);
	struct pinl_event ev;

	need_mounts();
	assert_int_equal(mount(top, under("mnt"), NULL, MS_BIND, NULL), 0);
	start(r, top, MAP_SHARED);
	assert_ok(pinl_device_open(r->ctx, "soft", NULL, &r->dev));
	act_in(r, under("mnt"));
	assert_ok(map(r, FIRST, LAST, PINL_WRITE, &policy, &r->lease));
	send_order(r, TRUNCATE);
	assert_held(r, PINL_OP_TRUNCATE, &ev);
	assert_ok(pinl_quiesced(r->lease));
	assert_int_equal(reply(r, LONG), 0);
}

/* --------------------------------------------------------------------------------- overlayfs -- */

static void mount_overlay(void)
{
	char options[900];

	need_mounts();
	if (mkdir(under("lower"), 0700) || mkdir(under("upper"), 0700) || mkdir(under("work"), 0700))
		fail_msg("mkdir: %s", strerror(errno));
	snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s,workdir=%s", under("lower"),
		 under("upper"), under("work"));
	if (mount("overlay", under("mnt"), "overlay", 0, options)) {
		print_message("skip: overlayfs on %s\n", test_dir());
		skip();
	}
}

/* A file in the upper layer, mapped there, and an actor who has it through the overlay. */
static void upper_file(struct rig *r, int flags)
{
	mount_overlay();
	start_actor(r);
	open_ctx(r, under("upper"));
	make_file(r, under("upper"));
	map_file(r, flags);
	act_in(r, under("mnt"));
}

/* The kernel asks nobody. The device goes on in pages that the mapping has lost; when it lets them go,
 * that is found and said, also if the file has grown and been touched again. */
static void truncating_an_upper_file_by_the_overlay_is_found_late(void **state)
{
	enum act changes[] = {TRUNCATE, FTRUNCATE};
	struct pinl_policy policy = recall(1);

	for (int i = 0; i < 4; i++) {
		struct rig *r = *state;

		upper_file(r, MAP_PRIVATE);
		assert_ok(map(r, FIRST, LAST, PINL_WRITE | PINL_PIN, &policy, &r->lease));
		order(r, changes[i & 1]);
		assert_int_equal(size_of(r), 5 * P);
		if (i & 2) {
			order(r, GROW);
			memset(r->va + 5 * P, 't', SIZE - 5 * P);
		}
		assert_no_event(r);
		assert_ok(settled_check(r->lease));
		found_late(r, 5, LAST);
		fs_teardown(state);
		assert_int_equal(fs_setup(state), 0);
	}
}

/* An on-demand device has nothing of its own to lose: it goes where the mapping goes. */
static void on_demand_nothing_is_lost_by_the_overlay(void **state)
{
	struct pinl_policy policy = recall(1);
	struct pinl_addr addrs[LAST - FIRST];
	struct rig *r = *state;
	char page[P], seen[P];

	upper_file(r, MAP_SHARED);
	assert_ok(pinl_map_range(r->dev, (uintptr_t)r->va + FIRST * P, (uintptr_t)r->va + LAST * P,
				 PINL_WRITE, &policy, addrs, &r->lease));
	assert_ok(pinl_soft_dma(r->dev, addrs[2].addr, memset(page, 'x', P), P, 1));
	order(r, TRUNCATE);
	assert_int_equal(pinl_soft_dma(r->dev, addrs[2].addr, page, P, 1), -EFAULT);
	order(r, GROW);
	assert_ok(pinl_soft_dma(r->dev, addrs[2].addr, memset(page, 'y', P), P, 1));
	assert_int_equal(pread(r->fd, seen, P, 6 * P), P);
	assert_memory_equal(seen, page, P);
	assert_no_event(r);
}

/* These two reach the upper file in ways that fanotify sees. */
static void a_punch_or_open_by_the_overlay_is_held(void **state)
{
	enum act changes[] = {PUNCH, O_TRUNC_OPEN};
	struct pinl_policy policy = recall(LONG);
	struct pinl_event ev;

	for (int i = 0; i < 2; i++) {
		struct rig *r = *state;

		upper_file(r, MAP_SHARED);
		assert_ok(map(r, FIRST, LAST, PINL_WRITE, &policy, &r->lease));
		send_order(r, changes[i]);
		assert_held(r, acts[changes[i]].op, &ev);
		assert_ok(pinl_quiesced(r->lease));
		assert_int_equal(reply(r, LONG), 0);
		fs_teardown(state);
		assert_int_equal(fs_setup(state), 0);
	}
}

/* Of a file mapped through the overlay, no source holds a change, and a lease that counts on it is
 * refused. What is done through the overlay is told afterwards; what is done in the upper layer under it
 * is found late. */
static void a_file_of_an_overlay_is_told_of_not_held(void **state)
{
	struct pinl_policy policy = recall(1);
	unsigned flags = PINL_WRITE | PINL_PIN;

	for (int below = 0; below < 2; below++) {
		struct rig *r = *state;

		mount_overlay();
		start_actor(r);
		open_ctx(r, under("upper"));
		make_file(r, under("mnt"));
		map_file(r, MAP_PRIVATE);
		act_in(r, under(below ? "upper" : "mnt"));
		assert_int_equal(map(r, FIRST, LAST, flags, &policy, &r->lease), -EOPNOTSUPP);
		assert_non_null(strstr(pinl_error(), "collapse, insert"));
		assert_int_equal(
			map(r, FIRST, LAST, flags | PINL_STRICT | PINL_COOPERATIVE, &policy, &r->lease),
			-EOPNOTSUPP);
		assert_ok(map(r, FIRST, LAST, flags | PINL_COOPERATIVE, &policy, &r->lease));
		order(r, TRUNCATE);
		if (below)
			found_late(r, 5, LAST);
		else
			released(r, PINL_OP_TRUNCATE, "notify");
		fs_teardown(state);
		assert_int_equal(fs_setup(state), 0);
	}
}

/* --------------------------------------------------------------------------------------- XFS -- */

/* On a loop device that goes away with its mount. */
static void mount_new(const char *type)
{
	char command[700];
	int fd;

	need_mounts();
	fd = open(under("image"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(ftruncate(fd, 400l << 20), 0);
	close(fd);
	snprintf(command, sizeof command, "mkfs.%s -q '%s' && mount -o loop '%s' '%s'", type,
		 under("image"), under("image"), under("mnt"));
	if (run(command)) {
		print_message("skip: %s on a loop device (mkfs.%s)\n", type, type);
		skip();
	}
}

#define PUNCH_MODE (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)

/* Explicit calls that reach into the first or last leased page, or end or begin next to one. */
static void change_the_edges(struct rig *r, int err)
{
	static const struct {
		int mode;
		off_t offset, len;
	} edges[] = {
		{PUNCH_MODE, FIRST * P + 100, 200},	 {PUNCH_MODE, 2 * P, (FIRST - 2) * P + 100},
		{PUNCH_MODE, LAST * P - 100, P},	 {FALLOC_FL_ZERO_RANGE, LAST * P - 100, P},
		{FALLOC_FL_COLLAPSE_RANGE, LAST * P, P},
	};

	for (unsigned i = 0; i < sizeof edges / sizeof *edges; i++) {
		int got = pinl_fallocate(r->ctx, r->fd, edges[i].mode, edges[i].offset, edges[i].len);

		if (got != err)
			fail_msg("%u: %d, %s", i, got, pinl_error());
	}
}

static void refuse_holes_on(struct rig *r, const char *type)
{
	struct pinl_policy refuse = {.size = sizeof refuse,
				     .kind = PINL_REFUSE,
				     .refuse = PINL_OPBIT(PINL_OP_PUNCH) | PINL_OPBIT(PINL_OP_ZERO) |
					       PINL_OPBIT(PINL_OP_COLLAPSE)};

	mount_new(type);
	start(r, under("mnt"), MAP_SHARED);
	assert_ok(pinl_device_open(r->ctx, "soft", NULL, &r->dev));
	assert_ok(map(r, FIRST, LAST, PINL_WRITE, &refuse, &r->lease));
}

/* XFS drops pages that a hole covers in part, and the one before what it moves: they are asked about. */
static void explicit_calls_ask_for_the_edges_on_xfs(void **state)
{
	struct rig *r = *state;

	refuse_holes_on(r, "xfs");
	change_the_edges(r, -EBUSY);
	assert_file_unchanged(r);
	assert_ok(pinl_fallocate(r->ctx, r->fd, PUNCH_MODE, 0, FIRST * P));
}

/* ext4 zeroes them in place, and nobody is bothered; but of a hole beyond the end, not the last one. */
static void explicit_calls_leave_the_edges_on_ext4(void **state)
{
	struct rig *r = *state;

	refuse_holes_on(r, "ext4");
	change_the_edges(r, 0);
	assert_int_equal(r->va[FIRST * P + 100], 0);
	assert_int_equal(pinl_fallocate(r->ctx, r->fd, PUNCH_MODE, (LAST - 1) * P, P), -EBUSY);
	assert_int_equal(ftruncate(r->fd, LAST * P - 100), 0);
	assert_int_equal(pinl_fallocate(r->ctx, r->fd, PUNCH_MODE, (LAST - 1) * P, P - 50), -EBUSY);
}

/* Into page 5. Its exit status is an errno. */
static int clone_page(const char *path, int by_copy)
{
	int fd = open(path, O_RDWR | O_CLOEXEC), in = open(under("mnt"), O_TMPFILE | O_RDWR, 0600);
	off_t from = 0, to = 5 * P;
	struct file_clone_range range = {.src_fd = in, .src_length = P, .dest_offset = to};
	char page[P];

	memset(page, 'K', P);
	if (fd < 0 || in < 0 || pwrite(in, page, P, 0) != P || fsync(in))
		return errno;
	if (by_copy)
		return copy_file_range(in, &from, fd, &to, P, 0) == P ? 0 : errno;
	return ioctl(fd, FICLONERANGE, &range) ? errno : 0;
}

/* The range gets other blocks and other pages: a change like a hole, and held like one. */
static void a_clone_into_a_leased_range_is_held(void **state)
{
	struct pinl_policy policy = recall(LONG);
	struct pinl_event ev;
	int status;

	for (int by_copy = 0; by_copy < 2; by_copy++) {
		struct rig *r = *state;
		pid_t pid;

		mount_new("xfs");
		start(r, under("mnt"), MAP_SHARED);
		assert_ok(pinl_device_open(r->ctx, "soft", NULL, &r->dev));
		assert_ok(map(r, FIRST, LAST, PINL_WRITE, &policy, &r->lease));
		pid = fork();
		if (!pid)
			_exit(clone_page(r->path, by_copy));
		await(r, PINL_EV_NOTICE, &ev);
		assert_int_equal(ev.op, PINL_OP_ZERO);
		assert_int_equal(ev.actor_pid, pid);
		assert_int_equal(ev.start, (uintptr_t)r->va + 5 * P);
		assert_int_equal(ev.end, (uintptr_t)r->va + 6 * P);
		assert_int_equal(waitpid(pid, &status, WNOHANG), 0);
		assert_file_unchanged(r);
		assert_ok(pinl_quiesced(r->lease));
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
		assert_int_equal(r->va[5 * P], 'K');
		fs_teardown(state);
		assert_int_equal(fs_setup(state), 0);
	}
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, fs_setup, fs_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(truncating_by_a_bind_mount_is_held),
		TEST(truncating_an_upper_file_by_the_overlay_is_found_late),
		TEST(on_demand_nothing_is_lost_by_the_overlay),
		TEST(a_punch_or_open_by_the_overlay_is_held),
		TEST(a_file_of_an_overlay_is_told_of_not_held),
		TEST(a_clone_into_a_leased_range_is_held),
		TEST(explicit_calls_ask_for_the_edges_on_xfs),
		TEST(explicit_calls_leave_the_edges_on_ext4),
	};

	alarm(280);
	in_namespace = !unshare(CLONE_NEWNS) && !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
