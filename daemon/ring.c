/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The rings of a holder that leases are on, and the address spaces of its devices: one handle each,
 * however many leases. */
#include <errno.h>
#include <stdlib.h>

#include "daemon.h"
#include "os/clock.h"

/* The main loop waits for these, so they are of the user's share. To take it is some microseconds where
 * nobody hangs and the machine isn't busy. */
#define LOOK_NS 20000000ull
#define TAKE_NS 400000000ull

int ring_get(struct holder *h, enum pl_outside_kind kind, int fd, struct ring **out)
{
	uint64_t now = pl_clock_ns();
	struct ring *r;
	int err, taken;

	for (r = h->rings; r && (r->fd != fd || r->kind != kind); r = r->next)
		;
	if (r && pl_outside_held(r->outside)) {
		r->refs++;
		*out = r;
		return 0;
	}
	r = calloc(1, sizeof *r);
	if (!r)
		return pinl_set_error(-ENOMEM, "pinleased is out of memory");
	taken = door_take(h, kind, fd, share_patience(h, TAKE_NS));
	err = pl_outside_open_taken(h->pidfd, h->pid, fd, kind, taken, share_patience(h, LOOK_NS),
				    &r->outside);
	share_worked(h, now);
	if (err) {
		free(r);
		return err;
	}
	pthread_mutex_init(&r->lock, NULL);
	r->fd = fd;
	r->kind = kind;
	r->refs = 1;
	r->next = h->rings;
	h->rings = r;
	*out = r;
	return 0;
}

void ring_put(struct holder *h, struct ring *ring)
{
	struct ring **p = &h->rings;

	if (--ring->refs)
		return;
	while (*p != ring)
		p = &(*p)->next;
	*p = ring->next;
	pl_outside_close(ring->outside);
	pthread_mutex_destroy(&ring->lock);
	free(ring);
}
