/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Bad input to pinl_open, pinl_device_open and pinl_map_range: one errno and one sentence each, outputs
 * untouched, nothing left behind. */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pinlease/device.h>
#include <pinlease/pinlease.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proc.h"

#define PAGE  4096ul
#define SIZE  (16 * PAGE)
#define FLAGS (PINL_WRITE | PINL_PIN | PINL_COOPERATIVE)

struct rig {
	struct pinl_ctx *ctx;
	struct io_uring ring;
	struct pinl_device *dev;
	char *mem;
};

static const struct pinl_policy keep = {.size = sizeof keep, .kind = PINL_KEEP};

static int setup(void **state)
{
	struct rig *r = calloc(1, sizeof *r);
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &r->ring, .slots = 4};

	r->mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	*state = r;
	return io_uring_queue_init(8, &r->ring, 0) || pinl_open(NULL, &r->ctx) ||
	       pinl_device_open(r->ctx, "uring", &arg, &r->dev);
}

static int teardown(void **state)
{
	struct rig *r = *state;

	pinl_close(r->ctx);
	io_uring_queue_exit(&r->ring);
	munmap(r->mem, SIZE);
	free(r);
	return 0;
}

static void refuse(struct rig *r, uintptr_t start, uintptr_t end, unsigned flags,
		   const struct pinl_policy *p, int err, const char *word)
{
	struct pinl_lease *lease = (void *)1;
	struct pinl_counters c = {.size = sizeof c};
	int got = pinl_map_range(r->dev, start, end, flags, p, NULL, &lease);

	if (got != err)
		fail_msg("expected %s, got %s: %s", strerror(-err), strerror(-got), pinl_error());
	if (!strstr(pinl_error(), word))
		fail_msg("no \"%s\" in: %s", word, pinl_error());
	assert_ptr_equal(lease, (void *)1);
	pinl_counters(r->ctx, &c);
	assert_int_equal(c.leases, 0);
	assert_int_equal(c.bytes, 0);
}

static void ranges(void **state)
{
	struct rig *r = *state;
	uintptr_t m = (uintptr_t)r->mem;

	refuse(r, m + 1, m + PAGE, FLAGS, &keep, -EINVAL, "aligned");
	refuse(r, m, m + 100, FLAGS, &keep, -EINVAL, "aligned");
	refuse(r, m, m, FLAGS, &keep, -EINVAL, "empty");
	refuse(r, m + PAGE, m, FLAGS, &keep, -EINVAL, "empty");
	refuse(r, m, 0, FLAGS, &keep, -EINVAL, "empty");
	refuse(r, m, ~(PAGE - 1), FLAGS, &keep, -EINVAL, "user space");
	refuse(r, 0xffffffff80000000ul, 0xffffffff80001000ul, FLAGS, &keep, -EINVAL, "user space");
	refuse(r, m, m + SIZE, 0x8000, &keep, -EINVAL, "flags");
	refuse(r, m, m + SIZE, FLAGS, NULL, -EINVAL, "policy");
}

static void unmapped(void **state)
{
	struct rig *r = *state;
	uintptr_t m = (uintptr_t)r->mem;

	munmap(r->mem + 4 * PAGE, PAGE);
	refuse(r, m, m + SIZE, FLAGS, &keep, -ENOMEM, "not mapped");
	refuse(r, m + 4 * PAGE, m + 5 * PAGE, FLAGS, &keep, -ENOMEM, "not mapped");
	refuse(r, PAGE, 2 * PAGE, FLAGS, &keep, -ENOMEM, "not mapped");
}

static void mixed_kinds(void **state)
{
	struct rig *r = *state;
	int fd = memfd_create("mixed", 0);

	assert_int_equal(ftruncate(fd, PAGE), 0);
	assert_ptr_equal(
		mmap(r->mem + PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0),
		r->mem + PAGE);
	refuse(r, (uintptr_t)r->mem, (uintptr_t)r->mem + 3 * PAGE, FLAGS, &keep, -EINVAL,
	       "different kinds");
	close(fd);
}

static void read_only_memory(void **state)
{
	struct rig *r = *state;
	uintptr_t m = (uintptr_t)r->mem;

	mprotect(r->mem, SIZE, PROT_READ);
	refuse(r, m, m + SIZE, FLAGS, &keep, -EACCES, "read-only");
}

static void policies(void **state)
{
	struct rig *r = *state;
	uintptr_t m = (uintptr_t)r->mem;
	struct pinl_policy p = {.size = sizeof p, .kind = 77};

	refuse(r, m, m + SIZE, FLAGS, &p, -EINVAL, "unknown policy");
	p = (struct pinl_policy){.size = 3, .kind = PINL_KEEP};
	refuse(r, m, m + SIZE, FLAGS, &p, -EINVAL, "size");
	p = (struct pinl_policy){.size = sizeof p, .kind = PINL_REFUSE};
	refuse(r, m, m + SIZE, FLAGS, &p, -EINVAL, "refuses nothing");
	p.refuse = 1u << 30;
	refuse(r, m, m + SIZE, FLAGS, &p, -EINVAL, "unknown bits");
	p.refuse = PINL_OPBIT(PINL_OP_UNMAP);
	refuse(r, m, m + SIZE, PINL_WRITE | PINL_PIN, &p, -EOPNOTSUPP, "refuse");
	p = (struct pinl_policy){.size = sizeof p, .kind = PINL_FOLLOW};
	refuse(r, m, m + SIZE, FLAGS, &p, -EOPNOTSUPP, "FOLLOW");
	p = (struct pinl_policy){.size = sizeof p, .kind = PINL_KEEP};
	refuse(r, m, m + SIZE, PINL_WRITE, &p, -EOPNOTSUPP, "PINL_PIN");
	refuse(r, m, m + SIZE, FLAGS | PINL_SEAL, &p, -EOPNOTSUPP, "memfd");
}

static void overlap_and_full_table(void **state)
{
	struct rig *r = *state;
	uintptr_t m = (uintptr_t)r->mem;
	struct pinl_lease *l[4], *more = NULL;

	for (int i = 0; i < 4; i++)
		assert_int_equal(pinl_map_range(r->dev, m + i * PAGE, m + (i + 1) * PAGE, FLAGS, &keep,
						NULL, &l[i]),
				 0);
	assert_int_equal(pinl_map_range(r->dev, m, m + 2 * PAGE, FLAGS, &keep, NULL, &more), -EEXIST);
	assert_non_null(strstr(pinl_error(), "overlaps"));
	assert_int_equal(pinl_map_range(r->dev, m + 4 * PAGE, m + 5 * PAGE, FLAGS, &keep, NULL, &more),
			 -ENOSPC);
	assert_non_null(strstr(pinl_error(), "slots"));
	assert_null(more);
	pinl_unmap_range(l[3]);
	assert_int_equal(pinl_map_range(r->dev, m + 4 * PAGE, m + 5 * PAGE, FLAGS, &keep, NULL, &l[3]),
			 0);
	for (int i = 0; i < 4; i++)
		pinl_unmap_range(l[i]);
}

static void unpinnable_memory(void **state)
{
	struct rig *r = *state;
	char dir[] = "/var/tmp/pinlease-test-XXXXXX";
	int fd = mkstemp(dir);
	char *m;

	assert_true(fd >= 0);
	unlink(dir);
	assert_int_equal(ftruncate(fd, SIZE), 0);
	m = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (pinl_sources(r->ctx, NULL, 0) < 0)
		fail();
	refuse(r, (uintptr_t)m, (uintptr_t)m + SIZE, FLAGS, &keep, -EOPNOTSUPP, "ext4");
	munmap(m, SIZE);
	close(fd);
}

static void secret_and_device_memory(void **state)
{
	struct rig *r = *state;
	int fd = syscall(447, 0); /* memfd_secret */
	FILE *maps;
	char line[512];
	unsigned long start = 0, end;

	if (fd >= 0) {
		char *m;

		assert_int_equal(ftruncate(fd, SIZE), 0);
		m = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (m != MAP_FAILED)
			refuse(r, (uintptr_t)m, (uintptr_t)m + SIZE, FLAGS, &keep, -EOPNOTSUPP,
			       "secret");
		if (m != MAP_FAILED)
			munmap(m, SIZE);
		close(fd);
	}
	maps = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof line, maps))
		if (strstr(line, "[vvar]") && sscanf(line, "%lx-%lx", &start, &end) == 2)
			break;
	fclose(maps);
	assert_true(start);
	refuse(r, start, start + PAGE, PINL_PIN, &keep, -EOPNOTSUPP, "device memory");
}

static void bad_devices(void **state)
{
	struct rig *r = *state;
	struct pinl_device *dev = (void *)1;
	struct io_uring ring;
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &ring};
	struct pinl_uring_arg taken = {.size = sizeof arg, .ring = &r->ring};

	assert_int_equal(pinl_device_open(r->ctx, "gpu", NULL, &dev), -EINVAL);
	assert_int_equal(pinl_device_open(r->ctx, NULL, NULL, &dev), -EINVAL);
	assert_int_equal(pinl_device_open(r->ctx, "uring", NULL, &dev), -EINVAL);
	assert_int_equal(pinl_device_open(r->ctx, "uring", &taken, &dev), -EBUSY);
	assert_non_null(strstr(pinl_error(), "first_slot"));
	if (!io_uring_queue_init(4, &ring, 1u << 12 /* SINGLE_ISSUER */)) {
		assert_int_equal(pinl_device_open(r->ctx, "uring", &arg, &dev), -EOPNOTSUPP);
		assert_non_null(strstr(pinl_error(), "SINGLE_ISSUER"));
		io_uring_queue_exit(&ring);
	}
	assert_int_equal(io_uring_queue_init(4, &ring, 0), 0);
	arg.slots = 1u << 20;
	assert_int_equal(pinl_device_open(r->ctx, "uring", &arg, &dev), -EINVAL);
	assert_non_null(strstr(pinl_error(), "16384"));
	arg.slots = 0;
	io_uring_queue_exit(&ring);
	assert_int_equal(pinl_device_open(r->ctx, "uring", &arg, &dev), -EBADF);
	ring.ring_fd = 0; /* a descriptor, but no ring */
	assert_int_equal(pinl_device_open(r->ctx, "uring", &arg, &dev), -EBADF);
	assert_ptr_equal(dev, (void *)1);
}

static void part_of_a_table(void **state)
{
	struct rig *r = *state;
	struct io_uring ring;
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &ring, .first_slot = 2, .nr_slots = 2};
	struct pinl_device *dev;
	struct pinl_lease *l;
	uintptr_t m = (uintptr_t)r->mem;

	assert_int_equal(io_uring_queue_init(4, &ring, 0), 0);
	assert_int_equal(io_uring_register_buffers_sparse(&ring, 4), 0);
	arg.nr_slots = 3;
	assert_int_equal(pinl_device_open(r->ctx, "uring", &arg, &dev), -EINVAL);
	arg.nr_slots = 2;
	assert_int_equal(pinl_device_open(r->ctx, "uring", &arg, &dev), 0);
	assert_int_equal(pinl_map_range(dev, m, m + PAGE, FLAGS, &keep, NULL, &l), 0);
	assert_in_range(pinl_lease_key(l), 2, 3);
	pinl_unmap_range(l);
	pinl_device_close(dev);
	io_uring_queue_exit(&ring);
}

static void ring_closed_under_the_device(void **state)
{
	struct rig *r = *state;
	struct io_uring ring;
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &ring};
	struct pinl_device *dev;
	struct pinl_lease *kept, *l = NULL;
	uintptr_t m = (uintptr_t)r->mem;
	int fd;

	assert_int_equal(io_uring_queue_init(4, &ring, 0), 0);
	assert_int_equal(pinl_device_open(r->ctx, "uring", &arg, &dev), 0);
	assert_int_equal(pinl_map_range(dev, m, m + PAGE, FLAGS, &keep, NULL, &kept), 0);
	fd = ring.ring_fd;
	io_uring_queue_exit(&ring);
	assert_int_equal(pinl_map_range(dev, m + PAGE, m + 2 * PAGE, FLAGS, &keep, NULL, &l), -EBADF);
	assert_int_equal(dup2(0, fd), fd); /* its number names something else now */
	assert_int_equal(pinl_map_range(dev, m + PAGE, m + 2 * PAGE, FLAGS, &keep, NULL, &l), -EBADF);
	assert_non_null(strstr(pinl_error(), "closed"));
	close(fd);
	pinl_unmap_range(kept);
	pinl_device_close(dev);
}

static void bad_opts(void **state)
{
	struct pinl_ctx *ctx = (void *)1;
	struct pinl_opts opts = {.size = 1};

	assert_int_equal(pinl_open(&opts, &ctx), -EINVAL);
	opts = (struct pinl_opts){.size = sizeof opts, .sources = 1u << 20};
	assert_int_equal(pinl_open(&opts, &ctx), -EINVAL);
	assert_ptr_equal(ctx, (void *)1);
}

/* Every number of free descriptors from none to enough: a clear error or success, and none leaked. */
static void descriptors_run_out(void **state)
{
	struct rig *r = *state;
	struct rlimit old, tight;
	uintptr_t m = (uintptr_t)r->mem;
	int before = open_fds(), fails = 0;

	getrlimit(RLIMIT_NOFILE, &old);
	for (int room = 0; room < 60; room++) {
		struct io_uring ring;
		struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &ring};
		struct pinl_ctx *ctx = NULL;
		struct pinl_device *dev = NULL;
		struct pinl_lease *l = NULL;
		int err, top;

		assert_int_equal(io_uring_queue_init(4, &ring, 0), 0);
		top = dup(0);
		close(top);
		tight = (struct rlimit){top + room, old.rlim_max};
		setrlimit(RLIMIT_NOFILE, &tight);
		err = pinl_open(NULL, &ctx);
		if (!err)
			err = pinl_device_open(ctx, "uring", &arg, &dev);
		if (!err)
			err = pinl_map_range(dev, m, m + PAGE, FLAGS, &keep, NULL, &l);
		if (err) {
			assert_true(strlen(pinl_error()) > 10);
			fails++;
		}
		pinl_close(ctx);
		setrlimit(RLIMIT_NOFILE, &old);
		io_uring_queue_exit(&ring);
	}
	assert_true(fails > 0 && fails < 60);
	assert_int_equal(open_fds(), before);
}

/* In a child without CAP_IPC_LOCK. */
static void memlock_limit(void **state)
{
	pid_t pid;
	int status;

	if (geteuid()) {
		print_message("skip: root, to become a user who has pinned nothing\n");
		skip();
	}
	pid = fork();
	if (!pid) {
		struct rlimit rl = {64 << 10, 64 << 10};
		struct io_uring ring;
		struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &ring};
		struct pinl_ctx *ctx;
		struct pinl_device *dev;
		struct pinl_lease *l;
		char *m =
			mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		int err;

		setrlimit(RLIMIT_MEMLOCK, &rl);
		if (setgid(65534) || setuid(1000000 + getpid())) /* nobody else's: pins count by user */
			_exit(10);
		if (io_uring_queue_init(4, &ring, 0) || pinl_open(NULL, &ctx) ||
		    pinl_device_open(ctx, "uring", &arg, &dev))
			_exit(11);
		err = pinl_map_range(dev, (uintptr_t)m, (uintptr_t)m + (1 << 20), FLAGS, &keep, NULL,
				     &l);
		_exit(err == -ENOMEM && strstr(pinl_error(), "RLIMIT_MEMLOCK") &&
				      strstr(pinl_error(), "ulimit -l")
			      ? 0
			      : 12);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(ranges, setup, teardown),
		cmocka_unit_test_setup_teardown(unmapped, setup, teardown),
		cmocka_unit_test_setup_teardown(mixed_kinds, setup, teardown),
		cmocka_unit_test_setup_teardown(read_only_memory, setup, teardown),
		cmocka_unit_test_setup_teardown(policies, setup, teardown),
		cmocka_unit_test_setup_teardown(overlap_and_full_table, setup, teardown),
		cmocka_unit_test_setup_teardown(unpinnable_memory, setup, teardown),
		cmocka_unit_test_setup_teardown(secret_and_device_memory, setup, teardown),
		cmocka_unit_test_setup_teardown(bad_devices, setup, teardown),
		cmocka_unit_test_setup_teardown(part_of_a_table, setup, teardown),
		cmocka_unit_test_setup_teardown(ring_closed_under_the_device, setup, teardown),
		cmocka_unit_test(bad_opts),
		cmocka_unit_test_setup_teardown(descriptors_run_out, setup, teardown),
		cmocka_unit_test(memlock_limit),
	};

	return cmocka_run_group_tests_name("map", tests, NULL, NULL);
}
