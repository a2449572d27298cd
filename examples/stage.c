/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A shared mapping of a file on disk, which Linux lets no ring pin, leased by a staged copy. The ring
 * writes to the copy; pinl_lease_sync() brings it to the file. Who has the file leased is asked by
 * pinl_query(). Then the file is cut to its first half: what the ring has written there stays, and the
 * lease ends.
 *
 * Prints:
 *	leased, by ...
 *	the file has "hello"
 *	lease 1 of process ... on "uring", ...
 *	the file has 32768 bytes and "again"
 */
#define _GNU_SOURCE 1
#include <fcntl.h>
#include <liburing.h>
#include <pinlease/pinlease.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SIZE 65536

static void check(int err)
{
	if (err < 0) {
		fprintf(stderr, "stage: %s: %s\n", strerror(-err), pinl_error());
		exit(1);
	}
}

/* Let the ring read what `text` says to where the device has the first page. */
static void receive(struct io_uring *ring, struct pinl_device *dev, const struct pinl_addr *addr,
		    const char *text)
{
	int source = memfd_create("source", MFD_CLOEXEC);
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
	struct io_uring_cqe *cqe;

	if (pwrite(source, text, strlen(text) + 1, 0) < 0)
		exit(1);
	io_uring_prep_read_fixed(sqe, source, (void *)(uintptr_t)addr->addr, 4096, 0, (int)addr->key);
	sqe->user_data = 1;
	io_uring_submit(ring);
	for (int ours = 0; !ours;) {
		check(io_uring_wait_cqe(ring, &cqe));
		ours = !pinl_uring_cqe(dev, cqe->user_data);
		if (ours)
			check(cqe->res);
		io_uring_cqe_seen(ring, cqe);
	}
	close(source);
}

/* By read(2), as another program would see it. */
static const char *content(int fd)
{
	static char text[16];

	return pread(fd, text, sizeof(text) - 1, 0) < 0 ? "?" : text;
}

static void who_has(struct pinl_ctx *ctx, int fd)
{
	struct pinl_filter filter = {.size = sizeof(filter)};
	struct pinl_lease_info info = {.size = sizeof(info)};
	size_t found;

	check(pinl_filter_file(&filter, fd));
	check(pinl_query(ctx, &filter, &info, 1, &found));
	if (found)
		printf("lease %llu of process %d on \"%s\", %.3f ms old\n", (unsigned long long)info.id,
		       info.owner, info.device_kind, (double)info.age_ns / 1e6);
}

int main(void)
{
	struct pinl_policy policy = {.size = sizeof(policy), .kind = PINL_RECALL, .grace_ms = 100};
	int fd = open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	struct pinl_addr addrs[SIZE / 4096];
	struct pinl_lease *lease;
	struct pinl_device *dev;
	struct io_uring ring;
	struct pinl_ctx *ctx;
	struct stat st;

	if (fd < 0 || ftruncate(fd, SIZE))
		return 1;
	void *mapping = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	uintptr_t start = (uintptr_t)mapping;
	if (mapping == MAP_FAILED)
		return 1;
	check(io_uring_queue_init(8, &ring, 0));
	struct pinl_uring_arg arg = {.size = sizeof(arg), .ring = &ring};
	check(pinl_open(NULL, &ctx));
	check(pinl_device_open(ctx, "uring", &arg, &dev));
	unsigned flags = PINL_WRITE | PINL_PIN | PINL_STAGE | PINL_COOPERATIVE;
	check(pinl_map_range(dev, start, start + SIZE, flags, &policy, addrs, &lease));
	printf("leased, by %s\n", addrs[0].addr == start ? "the pages themselves" : "a staged copy");

	receive(&ring, dev, &addrs[0], "hello");
	check(pinl_lease_sync(lease, 0, SIZE, PINL_FOR_CPU));
	printf("the file has \"%s\"\n", content(fd));
	who_has(ctx, fd);

	receive(&ring, dev, &addrs[0], "again"); /* a recall brings it to the file by itself */
	check(pinl_ftruncate(ctx, fd, SIZE / 2));
	fstat(fd, &st);
	printf("the file has %lld bytes and \"%s\"\n", (long long)st.st_size, content(fd));

	pinl_unmap_range(lease);
	pinl_close(ctx);
	io_uring_queue_exit(&ring);
	return 0;
}
