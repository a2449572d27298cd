/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Whether who comes to the gate can wait: only while there is a guard (gate_guard.c), as without one he
 * would be stopped for ever if we died, and the pages are the guard's. One that ends is replaced, and
 * while that fails nobody waits, and who did goes on, to be refused.
 */
#include "daemon/gate_wait.h"

#include <stdio.h>
#include <string.h>

#include "daemon.h"
#include "daemon/gate_stop.h"

static void wait_no_more(struct gate_waiting *g, const char *why)
{
	bool is_news = !*g->stops->why_not;

	gate_stop_nobody(g->stops, why);
	if (!is_news)
		return;
	fprintf(stderr, "pinleased: at the gate nobody waits any more: %s\n", why);
	gate_stop_end(g->stops);
}

void gate_waiting_never(struct gate_waiting *g, const char *why)
{
	g->stops->tried = false;
	g->page = sd_event_source_disable_unref(g->page);
	g->guard = sd_event_source_disable_unref(g->guard);
	wait_no_more(g, why);
	gate_guard_end(g->stops);
}

static void replace_guard(struct gate_waiting *g)
{
	if (!gate_guard_start(g->stops)) {
		*g->stops->why_not = 0;
		gate_waiting_watch(g);
		return;
	}
	wait_no_more(g, pinl_error());
}

static int on_guard_gone(sd_event_source *source, int fd, uint32_t revents, void *arg)
{
	struct gate_waiting *g = arg;

	g->guard = sd_event_source_disable_unref(g->guard);
	gate_guard_end(g->stops);
	fprintf(stderr, "pinleased: the process that would let those go who wait, if this one died, "
			"has been killed\n");
	replace_guard(g);
	return 0;
}

void gate_waiting_renew(struct gate_waiting *g)
{
	if (g->stops->tried && !g->stops->guard)
		replace_guard(g);
}

void gate_waiting_watch(struct gate_waiting *g)
{
	int err = g->stops->pidfd >= 0 ? sd_event_add_io(g->server->event, &g->guard, g->stops->pidfd,
							 EPOLLIN, on_guard_gone, g)
				       : 0;

	if (err < 0) /* of its end nobody would hear */
		gate_waiting_never(g, strerror(-err));
}
