/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Device memory isn't given: the exporter refuses, or what is asked for can't be. */
#include "exporter_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static void attach_is_refused(void **state)
{
	struct rig *r = *state;

	r->refuse = -EROFS;
	assert_int_equal(map_handle(r, recall(PINL_THEN_FAIL, 0), PINL_WRITE), -EROFS);
	assert_string_equal(pinl_error(), "the exporter keeps this part to itself");
	assert_null(r->lease);
	r->speechless = true;
	assert_int_equal(map_handle(r, recall(PINL_THEN_FAIL, 0), PINL_WRITE), -EROFS);
	assert_says("the exporter of the other device refuses this device");
	r->refuse = 1; /* no errno */
	assert_int_equal(map_handle(r, recall(PINL_THEN_FAIL, 0), PINL_WRITE), -EACCES);
	assert_null(r->lease);
	r->refuse = 0;
	assert_ok(map_handle(r, recall(PINL_THEN_FAIL, 0), PINL_WRITE));
}

/* Who wants what, by whatever way he came. */
static void attach_is_told(void **state)
{
	struct rig *r = *state;
	struct pinl_policy p = recall(PINL_THEN_FAIL, 0);
	uintptr_t va = (uintptr_t)r->va + 2 * PAGE;

	for (int way = 0; way < 3; way++) {
		if (way == 0)
			assert_ok(pinl_map_exporter(r->dev, r->exporter, 2 * PAGE, 3 * PAGE, PINL_WRITE,
						    &p, NULL, &r->lease));
		else if (way == 1)
			assert_ok(pinl_map_fd(r->dev, r->ring.ring_fd, IORING_OFF_SQES + 2 * PAGE,
					      3 * PAGE, PINL_WRITE, &p, NULL, &r->lease));
		else
			assert_ok(pinl_map_range(r->dev, va, va + 3 * PAGE, PINL_COOPERATIVE, &p, NULL,
						 &r->lease));
		assert_int_equal(r->last.size, sizeof r->last);
		assert_string_equal(r->last.device_kind, "soft");
		assert_int_equal(r->last.device_class, PINL_DEV_FAULTING);
		assert_int_equal(r->last.flags, way < 2 ? PINL_WRITE : 0);
		assert_int_equal(r->last.offset, 2 * PAGE);
		assert_int_equal(r->last.length, 3 * PAGE);
		pinl_unmap_range(r->lease);
		r->lease = NULL;
	}
}

/* Most anonymous inodes are one, with one number; the descriptors are not. */
static void another_of_the_same_kind(void **state)
{
	struct rig *r = *state;
	struct pinl_policy p = recall(PINL_THEN_FAIL, 0);
	struct pinl_export x = export_of(r);
	int other = eventfd(0, EFD_CLOEXEC), same;

	pinl_exporter_unregister(r->exporter);
	r->released = 0;
	x.fd = eventfd(0, EFD_CLOEXEC);
	assert_ok(pinl_exporter_register(r->ctx, &x, &exporter_ops, r, &r->exporter));
	assert_int_equal(pinl_map_fd(r->dev, other, x.offset, PAGE, 0, &p, NULL, &r->lease), -ENOENT);
	same = fcntl(x.fd, F_DUPFD_CLOEXEC, 3);
	assert_ok(pinl_map_fd(r->dev, same, x.offset, PAGE, PINL_WRITE, &p, NULL, &r->lease));
	pinl_unmap_range(r->lease);
	r->lease = NULL;
	close(same);
	close(other);
	close(x.fd);
}

/* Of rings: the library's threads have others open for a moment. */
static unsigned descriptors(void)
{
	char path[32], target[64];
	unsigned n = 0;

	for (int fd = 0; fd < 1024; fd++) {
		ssize_t len;

		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		len = readlink(path, target, sizeof target - 1);
		target[len < 0 ? 0 : len] = 0;
		n += !strcmp(target, "anon_inode:[io_uring]");
	}
	return n;
}

/* M7: what was passed in is as it was, and nothing of it is kept. */
static void nothing_is_owned(void **state)
{
	struct rig *r = *state;
	unsigned before = descriptors();

	assert_true(before > 0);
	assert_ok(map_handle(r, recall(PINL_THEN_FAIL, 0), PINL_WRITE));
	assert_int_equal(descriptors(), before);
	pinl_exporter_unregister(r->exporter);
	r->exporter = NULL;
	pinl_unmap_range(r->lease);
	r->lease = NULL;
	assert_int_equal(descriptors(), before);
	assert_true(fcntl(r->ring.ring_fd, F_GETFD) >= 0);
	memset(r->va, 'v', SIZE); /* mapped still */
}

/* A child has neither leases nor exporters, and takes none from its parent. */
static void in_a_child(void **state)
{
	struct rig *r = *state;
	int status;
	pid_t pid;

	assert_ok(map_handle(r, recall(PINL_THEN_FAIL, 0), PINL_WRITE));
	pid = fork();
	if (!pid) {
		struct pinl_lease *l = NULL;
		struct pinl_policy p = recall(PINL_THEN_FAIL, 0);
		struct pinl_mapped m = {.size = sizeof m};
		struct pinl_export x = export_of(r);
		struct pinl_exporter *e;
		int ok = pinl_exporter_revoke(r->exporter, NULL) == -ESTALE &&
			 pinl_exporter_invalidate(r->exporter, 0, PAGE) == -ESTALE &&
			 pinl_exporter_register(r->ctx, &x, NULL, NULL, &e) == -ESTALE &&
			 pinl_map_exporter(r->dev, r->exporter, 0, PAGE, 0, &p, NULL, &l) == -ESTALE &&
			 pinl_map_fd(r->dev, r->ring.ring_fd, IORING_OFF_SQES, PAGE, 0, &p, NULL, &l) ==
				 -ESTALE &&
			 pinl_mapped(r->ctx, (uintptr_t)r->va, (uintptr_t)r->va + PAGE, &m) == -ESTALE;

		pinl_exporter_offer(r->exporter);
		pinl_exporter_unregister(r->exporter);
		_exit(ok && !r->released && !r->detached ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_ok(dma(r, 0, 1, 'p', 1));
}

static void policies_that_are_none(void **state)
{
	static const struct {
		enum pinl_policy_kind kind;
		enum pinl_then then;
		unsigned refuse, flags;
		const char *says;
	} no[] = {
		{PINL_KEEP, 0, 0, 0, "RECALL only"},
		{PINL_FOLLOW, 0, 0, 0, "RECALL only"},
		{PINL_REFUSE, 0, PINL_OPBIT(PINL_OP_UNMAP), 0, "RECALL only"},
		{PINL_RECALL, PINL_THEN_COPY, 0, 0, "COPY"},
		{PINL_RECALL, PINL_THEN_KILL, 0, 0, "KILL"},
		{PINL_RECALL, PINL_THEN_FAIL, 0, PINL_STAGE, "PINL_STAGE"},
		{PINL_RECALL, PINL_THEN_FAIL, 0, PINL_SEAL, "PINL_SEAL"},
	};
	struct rig *r = *state;

	for (size_t i = 0; i < sizeof no / sizeof *no; i++) {
		struct pinl_policy p = recall(no[i].then, 0);

		p.kind = no[i].kind;
		p.refuse = no[i].refuse;
		assert_int_equal(map_handle(r, p, PINL_WRITE | no[i].flags), -EOPNOTSUPP);
		assert_says(no[i].says);
		assert_says("the other device");
	}
	assert_int_equal(r->attached, 0);
}

static void devices_that_cannot(void **state)
{
	struct rig *r = *state;
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &r->ring};

	pinl_device_close(r->dev);
	open_soft(r, PINL_DEV_QUIESCE_ONLY);
	assert_int_equal(map_handle(r, recall(PINL_THEN_FAIL, 0), PINL_WRITE), -EOPNOTSUPP);
	assert_says("revoked");
	pinl_device_close(r->dev);
	assert_ok(pinl_device_open(r->ctx, "uring", &arg, &r->dev));
	assert_int_equal(map_handle(r, recall(PINL_THEN_FAIL, 0), PINL_WRITE), -EOPNOTSUPP);
	assert_says("another device");
	pinl_device_close(r->dev);
	open_soft(r, PINL_DEV_REVOCABLE);
}

/* A driver's mapping that the exporter hasn't got: it is there, so what helps isn't to make one. */
static void another_mapping(void **state)
{
	struct rig *r = *state;
	struct pinl_policy p = recall(PINL_THEN_FAIL, 0);
	struct io_uring other;
	uintptr_t at;

	assert_int_equal(io_uring_queue_init(SIZE / 64, &other, 0), 0);
	at = (uintptr_t)other.sq.sqes;
	assert_int_equal(pinl_map_range(r->dev, at, at + PAGE, PINL_COOPERATIVE, &p, NULL, &r->lease),
			 -EOPNOTSUPP);
	assert_says("pinl_map_exporter()");
	pinl_exporter_unregister(r->exporter);
	r->exporter = NULL;
	assert_int_equal(pinl_map_range(r->dev, at, at + PAGE, PINL_COOPERATIVE, &p, NULL, &r->lease),
			 -EOPNOTSUPP);
	assert_says("none is registered");
	io_uring_queue_exit(&other);
}

static void bad_handles(void **state)
{
	struct rig *r = *state;
	struct pinl_policy p = recall(PINL_THEN_FAIL, 0);
	int fd = memfd_create("ordinary", MFD_CLOEXEC), pair[2];
	struct pinl_export x;

	assert_int_equal(pinl_map_fd(r->dev, fd, 0, PAGE, 0, &p, NULL, &r->lease), -EINVAL);
	assert_says("ordinary file");
	close(fd);
	assert_int_equal(pinl_map_fd(r->dev, fd, 0, PAGE, 0, &p, NULL, &r->lease), -EBADF);
	assert_int_equal(pipe2(pair, O_CLOEXEC), 0);
	assert_int_equal(pinl_map_fd(r->dev, pair[0], 0, PAGE, 0, &p, NULL, &r->lease), -ENOENT);
	assert_says("pinl_map_exporter()");
	pinl_exporter_unregister(r->exporter);
	r->exporter = NULL;
	r->released = 0;
	assert_int_equal(pinl_map_fd(r->dev, pair[0], 0, PAGE, 0, &p, NULL, &r->lease), -ENOENT);
	assert_says("no exporter has this part");
	x = export_of(r);
	assert_ok(pinl_exporter_register(r->ctx, &x, &exporter_ops, r, &r->exporter));
	close(pair[0]);
	close(pair[1]);
	assert_int_equal(pinl_map_fd(r->dev, r->ring.ring_fd, 0, PAGE, 0, &p, NULL, &r->lease), -ENOENT);
	assert_int_equal(pinl_map_fd(r->dev, r->ring.ring_fd, IORING_OFF_SQES, SIZE + PAGE, 0, &p, NULL,
				     &r->lease),
			 -ENOENT);
	assert_int_equal(pinl_map_exporter(r->dev, r->exporter, 1, PAGE, 0, &p, NULL, &r->lease),
			 -EINVAL);
	assert_int_equal(pinl_map_exporter(r->dev, r->exporter, PAGE, SIZE, 0, &p, NULL, &r->lease),
			 -EINVAL);
	assert_says("not inside");
	assert_int_equal(pinl_map_exporter(r->dev, r->exporter, -PAGE, 2 * PAGE, 0, &p, NULL, &r->lease),
			 -EINVAL);
	assert_null(r->lease);
}

static void bad_exports(void **state)
{
	struct rig *r = *state;
	struct pinl_export x = export_of(r);
	struct pinl_exporter *e = NULL;
	char *anon = mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = memfd_create("ordinary", MFD_CLOEXEC);

	assert_int_equal(pinl_exporter_register(r->ctx, &x, NULL, NULL, &e), -EEXIST);
	assert_says("the other device");
	x.addr = NULL; /* the same by its handle alone */
	assert_int_equal(pinl_exporter_register(r->ctx, &x, NULL, NULL, &e), -EEXIST);
	x.fd = fd;
	assert_int_equal(pinl_exporter_register(r->ctx, &x, NULL, NULL, &e), -EINVAL);
	assert_says("no handle of device memory");
	close(fd);
	assert_int_equal(pinl_exporter_register(r->ctx, &x, NULL, NULL, &e), -EBADF);
	x.fd = -1;
	assert_int_equal(pinl_exporter_register(r->ctx, &x, NULL, NULL, &e), -EINVAL);
	x.addr = anon;
	assert_int_equal(pinl_exporter_register(r->ctx, &x, NULL, NULL, &e), -EINVAL);
	assert_says("no device memory");
	munmap(anon, SIZE);
	assert_int_equal(pinl_exporter_register(r->ctx, &x, NULL, NULL, &e), -ENOMEM);
	x.addr = r->va + 1;
	assert_int_equal(pinl_exporter_register(r->ctx, &x, NULL, NULL, &e), -EINVAL);
	x = export_of(r);
	x.length = 0;
	assert_int_equal(pinl_exporter_register(r->ctx, &x, NULL, NULL, &e), -EINVAL);
	assert_int_equal(pinl_export_dmabuf(r->ctx, r->ring.ring_fd, &e), -EINVAL);
	assert_says("no dma-buf");
	assert_int_equal(pinl_export_vfio(r->ctx, r->ring.ring_fd, 2, &e), -EINVAL);
	assert_says("no VFIO PCI device");
	assert_int_equal(pinl_vfio_memory(r->exporter, 0), -EINVAL);
	assert_null(e);
}

/* What can't be written here can't be by a device, whichever form the memory has. */
static void read_only(void **state)
{
	struct rig *r = *state;
	struct pinl_export x = export_of(r);
	int fd;

	pinl_exporter_unregister(r->exporter);
	r->released = 0;
	x.fd = -1;
	x.addr = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, r->ring.ring_fd, IORING_OFF_SQES);
	assert_ok(pinl_exporter_register(r->ctx, &x, &exporter_ops, r, &r->exporter));
	assert_int_equal(map_handle(r, recall(PINL_THEN_FAIL, 0), PINL_WRITE), -EACCES);
	assert_says("read-only");
	assert_ok(map_handle(r, recall(PINL_THEN_FAIL, 0), 0));
	pinl_unmap_range(r->lease);
	r->lease = NULL;
	pinl_exporter_unregister(r->exporter);
	r->released = 0;
	munmap(x.addr, SIZE);
	fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	x.fd = fd;
	x.addr = NULL;
	assert_ok(pinl_exporter_register(r->ctx, &x, &exporter_ops, r, &r->exporter));
	assert_int_equal(map_handle(r, recall(PINL_THEN_FAIL, 0), PINL_WRITE), -EACCES);
	assert_says("for reading only");
	assert_int_equal(r->attached, 1);
	pinl_exporter_unregister(r->exporter);
	r->released = 0;
	close(fd);
	x = export_of(r);
	assert_ok(pinl_exporter_register(r->ctx, &x, &exporter_ops, r, &r->exporter));
}

/* A file doesn't become device memory by its name. */
static void names_of_files(void **state)
{
	static const char path[] = "/tmp/[vfio-device]";
	struct rig *r = *state;
	struct pinl_export x = export_of(r);
	struct pinl_exporter *e = NULL;
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	unlink(path);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, SIZE), 0);
	x.addr = NULL;
	x.fd = fd;
	x.offset = 0;
	assert_int_equal(pinl_exporter_register(r->ctx, &x, NULL, NULL, &e), -EINVAL);
	assert_says("no handle of device memory");
	close(fd);
}

/* The exporter's descriptor is the program's; what has its number now is not mapped by mistake. */
static void descriptor_has_become_another(void **state)
{
	struct rig *r = *state;
	int fd = fcntl(r->ring.ring_fd, F_DUPFD_CLOEXEC, 3),
	    null = open("/dev/null", O_RDWR | O_CLOEXEC);
	struct pinl_export x = export_of(r);

	pinl_exporter_unregister(r->exporter);
	r->released = 0;
	x.fd = fd;
	assert_ok(pinl_exporter_register(r->ctx, &x, &exporter_ops, r, &r->exporter));
	assert_int_equal(dup3(null, fd, O_CLOEXEC), fd);
	assert_int_equal(map_handle(r, recall(PINL_THEN_FAIL, 0), PINL_WRITE), -EBADF);
	assert_says("another file");
	assert_null(r->lease);
	close(null);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		RIG_TEST(attach_is_refused),
		RIG_TEST(attach_is_told),
		RIG_TEST(another_of_the_same_kind),
		RIG_TEST(nothing_is_owned),
		RIG_TEST(in_a_child),
		RIG_TEST(policies_that_are_none),
		RIG_TEST(devices_that_cannot),
		RIG_TEST(another_mapping),
		RIG_TEST(bad_handles),
		RIG_TEST(bad_exports),
		RIG_TEST(read_only),
		RIG_TEST(names_of_files),
		RIG_TEST(descriptor_has_become_another),
	};

	return cmocka_run_group_tests_name("exporter_input", tests, NULL, NULL);
}
