/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A context with a ring and a soft device, as a holder would have them. */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

#define PATIENCE_MS 5000

static void on_event(const struct pinl_event *ev, void *arg)
{
	struct rig *r = arg;

	if (ev->type == PINL_EV_NOTICE && ev->cookie)
		pinl_quiesced(ev->cookie);
	else if (ev->type == PINL_EV_RELEASED)
		atomic_store(&r->released_ns, ev->time_ns);
}

static void must_pinl(int err, const char *what)
{
	if (err)
		fail("%s: %s", what, pinl_error());
}

/* The library's threads inherit their CPU from the thread that opens. */
void rig_open(const struct bench *b, struct rig *r, bool answers)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1};
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &r->ring};

	r->answers = answers;
	atomic_store(&r->released_ns, 0);
	if (answers) {
		opts.on_event = on_event;
		opts.on_event_arg = r;
	}
	pin_to(b->lib_cpu);
	must(io_uring_queue_init(64, &r->ring, 0), "io_uring_queue_init");
	must_pinl(pinl_open(&opts, &r->ctx), "pinl_open");
	must_pinl(pinl_device_open(r->ctx, "uring", &arg, &r->uring), "uring");
	must_pinl(pinl_device_open(r->ctx, "soft", NULL, &r->soft), "soft");
	pin_to(b->actor_cpu);
}

void rig_close(struct rig *r)
{
	pinl_close(r->ctx);
	io_uring_queue_exit(&r->ring);
}

static uint64_t await_callback(struct rig *r)
{
	uint64_t began = now_ns(), when;

	while (!(when = atomic_exchange(&r->released_ns, 0))) {
		if (now_ns() - began > PATIENCE_MS * 1000000ull)
			fail("the lease was not released");
		sched_yield();
	}
	return when;
}

uint64_t rig_await(struct rig *r, enum pinl_event_type type)
{
	struct pollfd p = {pinl_fd(r->ctx), POLLIN, 0};
	struct pinl_event ev = {.size = sizeof ev};

	if (r->answers)
		return await_callback(r);
	for (;;) {
		if (!pinl_next_event(r->ctx, &ev)) {
			if (ev.type == type)
				return ev.time_ns;
		} else if (poll(&p, 1, PATIENCE_MS) <= 0) {
			fail("an event of type %d did not come", type);
		}
	}
}

void rig_end(struct rig *r, struct pinl_lease *lease)
{
	struct pinl_event ev = {.size = sizeof ev};
	struct io_uring_cqe *cqe;

	pinl_unmap_range(lease);
	while (!r->answers && !pinl_next_event(r->ctx, &ev))
		;
	while (!io_uring_peek_cqe(&r->ring, &cqe)) {
		if (!pinl_uring_cqe(r->uring, cqe->user_data))
			fail("a completion that nobody asked for");
		io_uring_cqe_seen(&r->ring, cqe);
	}
}

struct pinl_policy policy_of(enum pinl_policy_kind kind, enum pinl_then then)
{
	return (struct pinl_policy){.size = sizeof(struct pinl_policy), .kind = kind, .then = then};
}

int lease_on(struct pinl_device *dev, char *at, size_t size, unsigned flags,
	     const struct pinl_policy *policy, struct pinl_lease **lease)
{
	int err = pinl_map_range(dev, (uintptr_t)at, (uintptr_t)at + size, flags, policy, NULL, lease);

	if (!err)
		pinl_lease_set_cookie(*lease, *lease);
	return err;
}

const char *files_missing(const struct bench *b, struct rig *r)
{
	static char why[512];
	char all[2048];
	const char *line;

	pinl_sources(r->ctx, all, sizeof all);
	line = strstr(all, "files: missing");
	if (!line && !pinl_watch_fs(r->ctx, b->dir))
		return NULL;
	snprintf(why, sizeof why, "%.*s", line ? (int)strcspn(line, "\n") : 500,
		 line ? line : pinl_error());
	return why;
}
