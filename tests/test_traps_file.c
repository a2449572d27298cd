/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Traps on the side of the file: names that come and go, inodes, kinds of mappings, and ways to store
 * that aren't changes. Each test says what its user notices when another process does it, and that no
 * byte is lost unsaid. Needs what test_files.c needs.
 */
#include "files_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/fs.h>
#include <linux/magic.h>

static void held(struct rig *r, enum act act)
{
	struct pinl_event ev;

	send_order(r, act);
	assert_held(r, acts[act].op, &ev);
}

static void let_go(struct rig *r)
{
	struct pinl_event ev;

	assert_ok(pinl_quiesced(r->lease));
	await(r, PINL_EV_ANSWERED, &ev);
	assert_int_equal(reply(r, LONG), 0);
}

static void assert_no_event(struct rig *r)
{
	struct pinl_event ev;
	char line[256] = "";

	if (!next_event(r, &ev, 0))
		pinl_event_format(&ev, line, sizeof line);
	assert_string_equal(line, "");
	assert_ok(settled_check(r->lease));
}

/* The device's page of the lease is the one that the CPU has. */
static void assert_same_page(struct rig *r, int page)
{
	char seen[P], mark = r->va[page * P] ^ 0x55;

	r->va[page * P] = mark;
	assert_ok(pinl_lease_read(r->lease, (page - FIRST) * P, P, seen));
	assert_memory_equal(seen, r->va + page * P, P);
}

static void pin_private(struct rig *r, const struct pinl_policy *policy)
{
	start(r, test_dir(), MAP_PRIVATE);
	open_uring(r);
	assert_ok(map(r, FIRST, LAST, PINL_WRITE | PINL_PIN, policy, &r->lease));
}

/* ------------------------------------------------------------------------------- names and inodes -- */

static void truncating_another_hard_link_is_held(void **state)
{
	struct rig *r = *state;
	struct pinl_policy policy = recall(LONG);
	char first[sizeof r->path];

	lease_shared(r, &policy);
	strcpy(first, r->path);
	strcat(r->path, ".link");
	assert_int_equal(link(first, r->path), 0);
	assert_int_equal(unlink(first), 0);
	held(r, TRUNCATE);
	let_go(r);
	assert_int_equal(size_of(r), 5 * P);
}

/* Without any name, changed through somebody's /proc/PID/fd. */
static void a_file_without_a_name_is_held(void **state)
{
	struct rig *r = *state;
	struct pinl_policy policy = recall(LONG);
	static char page[P];

	start_actor(r);
	open_ctx(r, test_dir());
	r->fd = open(test_dir(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	assert_true(r->fd >= 0);
	for (int i = 0; i < PAGES; i++)
		assert_int_equal(pwrite(r->fd, memset(page, 'a' + i, P), P, i * P), P);
	snprintf(r->path, sizeof r->path, "/proc/%d/fd/%d", getpid(), r->fd);
	order(r, OPEN);
	r->va = map_alone(SIZE, MAP_SHARED, r->fd);
	assert_ok(pinl_device_open(r->ctx, "soft", NULL, &r->dev));
	assert_ok(map(r, FIRST, LAST, PINL_WRITE, &policy, &r->lease));
	held(r, TRUNCATE);
	let_go(r);
	assert_int_equal(size_of(r), 5 * P);
	r->path[0] = 0;
}

/* A new file of the same name: the lease stays on the old one, complete and watched, and the holder is
 * told nothing, because nothing was taken away. */
static void renaming_over_the_file_leaves_the_lease_on_the_old_one(void **state)
{
	struct rig *r = *state;
	struct pinl_policy policy = recall(LONG);
	char other[sizeof r->path + 8];
	struct stat st;
	int fd;

	pin_private(r, &policy);
	snprintf(other, sizeof other, "%s.new", r->path);
	fd = open(other, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	assert_int_equal(ftruncate(fd, 2 * SIZE), 0);
	assert_int_equal(rename(other, r->path), 0);
	order(r, TRUNCATE); /* of the new file */
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, 5 * P);
	close(fd);
	assert_no_event(r);
	assert_file_unchanged(r);
	assert_same_page(r, FIRST);
	held(r, FTRUNCATE); /* of the old one, by who has it open */
	let_go(r);
	assert_int_equal(size_of(r), 5 * P);
}

static void truncating_an_unlinked_file_is_held(void **state)
{
	struct rig *r = *state;
	struct pinl_policy policy = recall(LONG);

	pin_private(r, &policy);
	assert_int_equal(unlink(r->path), 0);
	assert_no_event(r);
	assert_same_page(r, FIRST);
	held(r, FTRUNCATE);
	let_go(r);
	assert_int_equal(size_of(r), 5 * P);
}

static int create(const char *dir, char *path, ino_t *ino)
{
	struct stat st;
	int fd;

	sprintf(path, "%s/pinlease-ino-XXXXXX", dir);
	fd = mkostemp(path, O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(fstat(fd, &st), 0);
	*ino = st.st_ino;
	return fd;
}

/* How many of n new files get this inode number. */
static int reused(ino_t wanted, int n)
{
	int fds[64], hits = 0;
	char path[512];
	ino_t ino;

	for (int i = 0; i < n; i++) {
		fds[i] = create(test_dir(), path, &ino);
		unlink(path);
		hits += ino == wanted;
	}
	while (n--)
		close(fds[n]);
	return hits;
}

/* A lease keeps its inode, even when it is recalled and nothing else has it: so no other file can have
 * its number, and no change of another file be taken for one of it. */
static void an_inode_number_is_not_reused_while_leased(void **state)
{
	struct rig *r = *state;
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_RECALL, .grace_ms = 1};
	struct pinl_event ev;
	struct stat st;

	open_ctx(r, test_dir());
	make_file(r, test_dir());
	r->va = map_alone(SIZE, MAP_PRIVATE, r->fd);
	open_uring(r);
	assert_ok(map(r, FIRST, LAST, PINL_WRITE | PINL_PIN, &policy, &r->lease));
	assert_int_equal(fstat(r->fd, &st), 0);
	assert_int_equal(unlink(r->path), 0);
	close(r->fd);
	r->fd = -1;
	assert_int_equal(munmap(r->va, SIZE), 0);
	r->va = MAP_FAILED;
	await(r, PINL_EV_RELEASED, &ev);
	assert_int_equal(reused(st.st_ino, 64), 0);
	pinl_unmap_range(r->lease);
	if (!reused(st.st_ino, 64)) {
		print_message("skip: a file system that reuses inode numbers (ext4)\n");
		skip();
	}
}

/* ------------------------------------------------------------------------- kinds of mappings -- */

/* The pinned pages are copies of the mapping's own. Whether they stay depends on the operation: a hole
 * takes only the file's pages, what changes the size takes the copies as well. */
static void a_private_mapping_keeps_its_pages_under_a_hole(void **state)
{
	struct rig *r = *state;
	struct pinl_policy policy = recall(LONG);

	pin_private(r, &policy);
	memset(r->va + 5 * P, 'm', P);
	order(r, PUNCH);
	order(r, ZERO);
	assert_no_event(r);
	assert_int_equal(r->va[5 * P], 'm');
	for (int i = FIRST; i < LAST; i++)
		assert_same_page(r, i);
}

static void a_private_mapping_loses_its_pages_with_the_size(void **state)
{
	enum act changes[] = {FTRUNCATE, O_TRUNC_OPEN, COLLAPSE, INSERT, URING_FTRUNCATE};
	struct pinl_policy policy = recall(LONG);
	struct statfs fs;

	assert_int_equal(statfs(test_dir(), &fs), 0);
	for (unsigned i = 0; i < sizeof changes / sizeof *changes; i++) {
		struct rig *r = *state;

		if (fs.f_type == BTRFS_SUPER_MAGIC && (changes[i] == COLLAPSE || changes[i] == INSERT))
			continue;
		print_message("# %s\n", acts[changes[i]].name);
		pin_private(r, &policy);
		memset(r->va + 5 * P, 'm', P);
		held(r, changes[i]);
		assert_same_page(r, 5);
		let_go(r);
		teardown(state);
		setup(state);
	}
}

/* io_uring's workers don't say what they do. A hole would leave the copies alone, but it might as well
 * be a truncation: it is held like one. */
static void a_hole_by_io_uring_is_held_like_the_worst(void **state)
{
	struct rig *r = *state;
	struct pinl_policy policy = recall(LONG);

	pin_private(r, &policy);
	held(r, URING_PUNCH);
	let_go(r);
}

static char *read_only(int kind, struct rig *r)
{
	switch (kind) {
	case 0:
		return mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	case 1:
		r->fd = memfd_create("read-only", MFD_CLOEXEC);
		assert_int_equal(ftruncate(r->fd, SIZE), 0);
		return mmap(NULL, SIZE, PROT_READ, MAP_SHARED, r->fd, 0);
	default:
		make_file(r, test_dir());
		return mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE, r->fd, 0);
	}
}

/* The kernel pins for writing or not at all: what can't be written is refused, and it is said why. */
static void read_only_memory_is_not_pinned(void **state)
{
	struct pinl_policy policy = {.size = sizeof policy, .kind = PINL_KEEP};

	for (int i = 0; i < 6; i++) {
		struct rig *r = *state;

		open_ctx(r, test_dir());
		r->va = read_only(i / 2, r);
		assert_ptr_not_equal(r->va, MAP_FAILED);
		if (i & 1)
			open_uring(r);
		else
			assert_ok(pinl_device_open(r->ctx, "soft", NULL, &r->dev));
		assert_int_equal(map(r, FIRST, LAST, PINL_PIN, &policy, &r->lease), -EOPNOTSUPP);
		assert_non_null(strstr(pinl_error(), "read-only mapping"));
		assert_int_equal(map(r, FIRST, LAST, PINL_PIN | PINL_WRITE, &policy, &r->lease),
				 -EACCES);
		assert_null(r->lease);
		teardown(state);
		setup(state);
	}
}

/* ---------------------------------------------------------------- stores that aren't changes -- */

enum store { BY_WRITE, BY_COPY, BY_SENDFILE, BY_SPLICE, STORES };

/* One page of `c` into page 5 of the file by another process. Its exit status is an errno. */
static int store(const char *path, enum store how, char c)
{
	int fd = open(path, O_RDWR | O_CLOEXEC), in, p[2];
	const char *dir = strncmp(path, "/dev/shm/", 9) ? test_dir() : "/dev/shm";
	off_t from = 0, to = 5 * P;
	char page[P];
	ssize_t n = -1;

	memset(page, c, P);
	in = open(dir, O_TMPFILE | O_RDWR, 0600);
	if (fd < 0 || in < 0 || pwrite(in, page, P, 0) != P || lseek(fd, to, SEEK_SET) != to || pipe(p))
		return errno;
	switch (how) {
	case BY_WRITE:
		n = pwrite(fd, page, P, to);
		break;
	case BY_COPY:
		n = copy_file_range(in, &from, fd, &to, P, 0);
		break;
	case BY_SENDFILE:
		n = sendfile(fd, in, &from, P);
		break;
	case BY_SPLICE: /* moves pages if it can */
		n = splice(in, &from, p[1], NULL, P, SPLICE_F_MOVE);
		if (n == P)
			n = splice(p[0], NULL, fd, &to, P, SPLICE_F_MOVE);
		break;
	default:
		break;
	}
	return n == P ? 0 : n < 0 ? errno : EIO;
}

static int store_by_other(const char *path, enum store how, char c)
{
	int status;
	pid_t pid = fork();

	if (!pid)
		_exit(store(path, how, c));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
}

/* All of them go through the page cache, so device and CPU have what was stored. */
static void stores_of_others_reach_the_device(void **state)
{
	struct pinl_policy policy = recall(LONG);
	struct pinl_addr addrs[LAST - FIRST];
	struct rig *r = *state;
	struct statfs fs;
	char page[P];

	start(r, test_dir(), MAP_SHARED);
	assert_ok(pinl_device_open(r->ctx, "soft", NULL, &r->dev));
	assert_ok(pinl_map_range(r->dev, (uintptr_t)r->va + FIRST * P, (uintptr_t)r->va + LAST * P,
				 PINL_WRITE, &policy, addrs, &r->lease));
	assert_int_equal(statfs(test_dir(), &fs), 0);
	for (enum store how = 0; how < STORES; how++) {
		if (how == BY_COPY && fs.f_type != EXT4_SUPER_MAGIC)
			continue; /* a clone: see test_traps_fs.c */
		assert_ok(pinl_soft_dma(r->dev, addrs[1].addr, page, P, 0)); /* faults it in */
		assert_int_equal(store_by_other(r->path, how, 'A' + how), 0);
		assert_ok(pinl_soft_dma(r->dev, addrs[1].addr, page, P, 0));
		assert_int_equal(page[0], 'A' + how);
		assert_int_equal(page[P - 1], 'A' + how);
		assert_memory_equal(r->va + 5 * P, page, P);
	}
	assert_no_event(r);
}

static void stores_of_others_reach_pinned_pages(void **state)
{
	struct pinl_policy policy = recall(LONG);
	struct rig *r = *state;
	char page[P];

	start(r, "/dev/shm", MAP_SHARED);
	open_uring(r);
	assert_ok(map(r, FIRST, LAST, PINL_WRITE | PINL_PIN, &policy, &r->lease));
	for (enum store how = 0; how < STORES; how++) {
		assert_int_equal(store_by_other(r->path, how, 'A' + how), 0);
		assert_ok(pinl_lease_read(r->lease, P, P, page));
		assert_int_equal(page[0], 'A' + how);
		assert_memory_equal(r->va + 5 * P, page, P);
		assert_same_page(r, 5);
	}
	assert_no_event(r);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(truncating_another_hard_link_is_held),
		TEST(a_file_without_a_name_is_held),
		TEST(renaming_over_the_file_leaves_the_lease_on_the_old_one),
		TEST(truncating_an_unlinked_file_is_held),
		TEST(an_inode_number_is_not_reused_while_leased),
		TEST(a_private_mapping_keeps_its_pages_under_a_hole),
		TEST(a_private_mapping_loses_its_pages_with_the_size),
		TEST(a_hole_by_io_uring_is_held_like_the_worst),
		TEST(read_only_memory_is_not_pinned),
		TEST(stores_of_others_reach_the_device),
		TEST(stores_of_others_reach_pinned_pages),
	};

	alarm(280);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
