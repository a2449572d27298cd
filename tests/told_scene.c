/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "told_scene.h"

#include <time.h>
#include <unistd.h>

struct arbiter a;
const char *const patient[] = {"--ceiling", "100000", NULL};

void start(struct holder *h, struct asker *c, const struct lending *what, const char *const *options)
{
	arbiter_start(&a, options);
	holder_lease(h, &a, what);
	asker_open(c, &a);
	asker_watch(c);
}

void finish(struct holder *h, struct asker *c)
{
	holder_end(h);
	asker_close(c);
	arbiter_stop(&a);
}

void leave(struct holder *h)
{
	h->s->leave = 1;
	while (h->s->leave)
		usleep(1000);
}

void restart(struct asker *c)
{
	asker_close(c);
	arbiter_kill(&a);
	arbiter_restart(&a, patient);
	asker_open(c, &a);
	asker_watch(c);
}

struct pl_status_msg status(void)
{
	struct pl_status_msg s;
	struct asker c;

	asker_open(&c, &a);
	s = asker_status(&c);
	asker_close(&c);
	return s;
}

struct pl_entry_msg entry(void)
{
	struct pl_entry_msg e;
	struct asker c;

	asker_open(&c, &a);
	e = asker_entry(&c);
	asker_close(&c);
	return e;
}

uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}
