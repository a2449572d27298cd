/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Holders that were adopted and don't come back. One that has ended its leases while pinleased was away,
 * and has no business with it any more, can't say so; but that its pins are gone can be seen: a ring's
 * are in VmPin of the address space that made the ring, whoever has the ring by now. So leases by a ring
 * end when that is 0, if the process has executed no other program since, and if its rings' pins were
 * seen there before (those of a ring that it was given are another's). All others are kept until it
 * ends.
 */
#include <poll.h>

#include "daemon.h"

#define FIRST_LOOK_MS 1000 /* a holder that lives has come back by then */
#define LAST_LOOK_MS  16000
#define AT_A_TIME     256 /* leases; the loop has other things to do */

static bool has_no_pins(const struct holder *h)
{
	struct pollfd p = {.fd = h->pidfd, .events = POLLIN};

	return h->stored->accounted && h->stored->stack && pl_outside_pins_of(h->pid) == 0 &&
	       process_look(h->pid).stack == h->stored->stack && !poll(&p, 1, 0);
}

/* One whose force has begun ends with that, which may be what has unpinned it. */
static bool by_ring(const struct held_lease *hl)
{
	return hl->stored && __atomic_load_n(&hl->stored->state, __ATOMIC_ACQUIRE) == STORED_LIVE &&
	       hl->stored->handle.head.type && hl->stored->handle.kind == PL_HANDLE_URING &&
	       (hl->lease->flags & PINL_PIN);
}

/* False: there may be more. */
static bool end_some(struct holder *h)
{
	struct pl_node *n = pl_index_first(&h->leases, 0, UINTPTR_MAX), *next;
	int ended = 0;

	for (; n && ended < AT_A_TIME; n = next) {
		struct held_lease *hl = (struct held_lease *)n;

		next = pl_index_next(n, 0, UINTPTR_MAX);
		if (!by_ring(hl))
			continue;
		lease_end(hl);
		ended++;
	}
	return !n;
}

static int look(sd_event_source *source, uint64_t now, void *arg)
{
	struct holder *h = arg;
	bool gone = has_no_pins(h), all = !gone || end_some(h);

	if (!h->leases.root) {
		holder_leave(h);
		return 0;
	}
	if (all)
		h->absent_ms = h->absent_ms < LAST_LOOK_MS ? 2 * h->absent_ms : LAST_LOOK_MS;
	sd_event_source_set_time_relative(source, all ? h->absent_ms * 1000ull : 0);
	sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
	return 0;
}

void absent_watch(struct holder *h)
{
	h->absent_ms = FIRST_LOOK_MS;
	sd_event_add_time_relative(h->server->event, &h->patience, CLOCK_MONOTONIC,
				   FIRST_LOOK_MS * 1000ull, 0, look, h);
}
