/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A file mapping is a fixed buffer of an io_uring ring. The file is truncated while the buffer is in
 * use. Without a lease the next read would go to pages that nobody can see any more.
 *
 * Prints:
 *	before: file 65536 bytes, buffer "first"
 *	notice lease 1 truncate ...
 *	released lease 1 truncate -> copy ...
 *	after: file 0 bytes, buffer "second"
 */
#define _GNU_SOURCE 1
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
		fprintf(stderr, "uring-lease: %s: %s\n", strerror(-err), pinl_error());
		exit(1);
	}
}

/* Let the ring read what `text` says into the fixed buffer `key`. */
static void receive(struct io_uring *ring, struct pinl_device *dev, char *buf, uint32_t key,
		    const char *text)
{
	int source = memfd_create("source", MFD_CLOEXEC);
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
	struct io_uring_cqe *cqe;

	if (write(source, text, strlen(text) + 1) < 0)
		check(-1);
	io_uring_prep_read_fixed(sqe, source, buf, 4096, 0, (int)key);
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

static void show(const char *when, int fd, const char *buf)
{
	struct stat st;

	fstat(fd, &st);
	printf("%s: file %lld bytes, buffer \"%s\"\n", when, (long long)st.st_size, buf);
}

static void show_events(struct pinl_ctx *ctx)
{
	struct pinl_event event = {.size = sizeof(event)};
	char line[256];

	while (pinl_next_event(ctx, &event) == 0) {
		pinl_event_format(&event, line, sizeof(line));
		puts(line);
	}
}

int main(void)
{
	int fd = memfd_create("data", MFD_CLOEXEC);
	struct io_uring ring;
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct pinl_lease *lease;

	if (fd < 0 || ftruncate(fd, SIZE))
		return 1;
	char *buf = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	uintptr_t start = (uintptr_t)buf;
	if (buf == MAP_FAILED)
		return 1;
	check(io_uring_queue_init(8, &ring, 0));

	/* README: begin */
	struct pinl_uring_arg arg = {.size = sizeof(arg), .ring = &ring};
	struct pinl_policy policy = {
		.size = sizeof(policy), .kind = PINL_RECALL, .then = PINL_THEN_COPY, .grace_ms = 100};

	check(pinl_open(NULL, &ctx));
	check(pinl_device_open(ctx, "uring", &arg, &dev));
	unsigned flags = PINL_WRITE | PINL_PIN | PINL_COOPERATIVE;
	check(pinl_map_range(dev, start, start + SIZE, flags, &policy, NULL, &lease));
	receive(&ring, dev, buf, pinl_lease_key(lease), "first"); /* READ_FIXED */
	show("before", fd, buf);
	check(pinl_ftruncate(ctx, fd, 0)); /* notice, 100 ms of grace; then buf is a private copy */
	receive(&ring, dev, buf, pinl_lease_key(lease), "second"); /* nothing is lost */
	show_events(ctx);
	show("after", fd, buf);
	pinl_close(ctx); /* ends the lease and the device */
	/* README: end */

	io_uring_queue_exit(&ring);
	return 0;
}
