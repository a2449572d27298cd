/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A holder that answers its notice. One thread shrinks a file; the event loop of the main thread sees
 * the notice on pinl_fd(), finishes its work and says so, long before the deadline. Nothing is forced.
 *
 * Prints:
 *	holder: asked to leave because of truncate
 *	actor: truncated
 *	holder: outcome quiesced
 */
#define _GNU_SOURCE 1
#include <pinlease/pinlease.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE 65536

struct file {
	struct pinl_ctx *ctx;
	int fd;
};

static void check(int err)
{
	if (err < 0) {
		fprintf(stderr, "quiesce: %s: %s\n", strerror(-err), pinl_error());
		exit(1);
	}
}

static void *actor(void *arg)
{
	struct file *file = arg;

	check(pinl_ftruncate(file->ctx, file->fd, 0));
	puts("actor: truncated");
	return NULL;
}

/* The event loop: returns when the lease is released. */
static enum pinl_outcome serve(struct pinl_ctx *ctx, struct pinl_lease *lease)
{
	struct pinl_event event = {.size = sizeof(event)};
	struct pollfd poll_fd = {.fd = pinl_fd(ctx), .events = POLLIN};

	for (;;) {
		poll(&poll_fd, 1, -1);
		while (pinl_next_event(ctx, &event) == 0) {
			if (event.type == PINL_EV_NOTICE) {
				printf("holder: asked to leave because of %s\n", pinl_op_name(event.op));
				check(pinl_quiesced(lease)); /* here: after the last request is done */
			} else if (event.type == PINL_EV_RELEASED) {
				return event.outcome;
			}
		}
	}
}

int main(void)
{
	struct pinl_policy policy = {
		.size = sizeof(policy), .kind = PINL_RECALL, .then = PINL_THEN_FAIL, .grace_ms = 5000};
	struct file file = {.fd = memfd_create("data", MFD_CLOEXEC)};
	struct pinl_device *dev;
	struct pinl_lease *lease;
	pthread_t thread;

	if (file.fd < 0 || ftruncate(file.fd, SIZE))
		return 1;
	void *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file.fd, 0);
	uintptr_t start = (uintptr_t)memory;
	if (memory == MAP_FAILED)
		return 1;

	check(pinl_open(NULL, &file.ctx));
	check(pinl_device_open(file.ctx, "soft", NULL, &dev));
	check(pinl_map_range(dev, start, start + SIZE, PINL_WRITE | PINL_PIN | PINL_COOPERATIVE, &policy,
			     NULL, &lease));
	check(-pthread_create(&thread, NULL, actor, &file));
	enum pinl_outcome outcome = serve(file.ctx, lease);

	pthread_join(thread, NULL);
	printf("holder: outcome %s\n", pinl_outcome_name(outcome));
	pinl_close(file.ctx);
	return 0;
}
