/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Ending a lease that a force is at takes as long as the force: the reaper waits for that, not the main
 * loop. Until it comes back the lease is in no index any more, so its number is free, but its holder
 * stays.
 *
 *	main loop: lease_end_later() -> reaper: endings_do() -> main loop: endings_finish()
 */
#include <unistd.h>

#include "daemon.h"
#include "os/wake.h"

void lease_end_later(struct held_lease *hl)
{
	struct server *s = hl->holder->server;

	hl->holder->endings++;
	s->n_endings++;
	pthread_mutex_lock(&s->lock);
	hl->end_next = s->endings;
	s->endings = hl;
	pthread_cond_signal(&s->work);
	pthread_mutex_unlock(&s->lock);
}

/* Reaper; s->lock held, dropped meanwhile. */
void endings_do(struct server *s)
{
	struct held_lease *hl;

	while ((hl = s->endings)) {
		s->endings = hl->end_next;
		pthread_mutex_unlock(&s->lock);
		pinl_unmap_range(hl->lease);
		pthread_mutex_lock(&s->lock);
		hl->end_next = s->unmapped;
		s->unmapped = hl;
		pl_wake(s->wake);
	}
}

void endings_finish(struct server *s)
{
	struct held_lease *hl, *next;

	pthread_mutex_lock(&s->lock);
	hl = s->unmapped;
	s->unmapped = NULL;
	pthread_mutex_unlock(&s->lock);
	for (; hl; hl = next) {
		struct holder *h = hl->holder;

		next = hl->end_next;
		lease_forget(h, hl);
		s->n_endings--;
		if (!--h->endings && h->leaves)
			holder_leave(h);
	}
}

void endings_await(struct server *s)
{
	while (s->n_endings) {
		endings_finish(s);
		usleep(1000);
	}
}
