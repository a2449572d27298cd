/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The rings of a holder that leases are on: one handle each, however many leases. */
#include <errno.h>
#include <stdlib.h>

#include "daemon.h"
#include "os/clock.h"

#define LOOK_NS 100000000ull

int ring_get(struct holder *h, int fd, struct ring **out)
{
	struct ring *r;
	int err;

	for (r = h->rings; r && r->fd != fd; r = r->next)
		;
	if (r && pl_outside_held(r->outside)) {
		r->refs++;
		*out = r;
		return 0;
	}
	r = calloc(1, sizeof *r);
	if (!r)
		return pinl_set_error(-ENOMEM, "pinleased is out of memory");
	err = pl_outside_open(h->pidfd, h->pid, fd, pl_clock_ns() + LOOK_NS, &r->outside);
	if (err) {
		free(r);
		return err;
	}
	pthread_mutex_init(&r->lock, NULL);
	r->fd = fd;
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
