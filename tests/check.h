/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What every test program needs. Include after cmocka.h and its friends. */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <pinlease/pinlease.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>

#include "room.h"

/* Failing calls say why. */
#define assert_ok(call)                                                                                 \
	do {                                                                                            \
		int ret_ = (call);                                                                      \
		if (ret_)                                                                               \
			fail_msg("%s: %s: %s", #call, strerror(-ret_), pinl_error());                   \
	} while (0)

/* The lookup once no change is being applied, also of other memory: right after leasing one may be. */
static inline int settled_check(struct pinl_lease *lease)
{
	int err;

	while ((err = pinl_lease_check(lease)) == -EAGAIN)
		sched_yield();
	return err;
}

/* The next event of this type; those before it are passed over. */
static inline struct pinl_event event_of(struct pinl_ctx *ctx, enum pinl_event_type type)
{
	struct pollfd p = {.fd = pinl_fd(ctx), .events = POLLIN};
	struct pinl_event ev = {.size = sizeof ev};

	for (;;) {
		while (!pinl_next_event(ctx, &ev))
			if (ev.type == type)
				return ev;
		if (poll(&p, 1, 20000) == 0) /* nothing takes as long */
			fail_msg("no event of type %d came", type);
	}
}

/* Anonymous memory with room to grow in place, whose holes stay holes. */
static inline char *with_room(size_t len)
{
	char *va = map_alone(len, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	assert_ptr_not_equal(va, MAP_FAILED);
	return va;
}

#endif
