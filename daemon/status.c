/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How the arbiter is, for commands: its limits, what it can't do, who has how much. Main loop. */
#include <errno.h>
#include <string.h>

#include "daemon.h"
#include "gate.h"
#include "generation.h"

static uint32_t changes_held(const struct server *s, uint64_t *outside, uint64_t *merged)
{
	struct pinl_ctx *ctx = s->ctx;
	uint32_t n = 0;

	pthread_mutex_lock(&ctx->lock);
	*outside = s->outside;
	*merged = s->merged;
	for (const struct pinl_change *ch = ctx->held; ch; ch = ch->next)
		n++;
	pthread_mutex_unlock(&ctx->lock);
	return n;
}

static void count(const struct server *s, struct pl_status_msg *m)
{
	struct pinl_counters c = {.size = sizeof c};

	pinl_counters(s->ctx, &c);
	m->leases = c.leases;
	m->bytes = c.bytes;
	m->notices = c.notices;
	m->quiesced = c.quiesced;
	m->forced = c.forced;
	m->refused = c.refused + gate_unread(s);
	m->answered = c.answered;
	m->unconfirmed = c.drains_unconfirmed;
	m->held = changes_held(s, &m->outside, &m->untold);
	m->untold += gate_unread(s);
	m->events_lost = s->events_lost;
	m->watchers = s->n_watchers;
}

static uint32_t after_crash(const struct server *s)
{
	if (!s->limits.closed)
		return PL_AFTER_CRASH_OPEN;
	return s->store.image ? PL_AFTER_CRASH_CLOSED : PL_AFTER_CRASH_LOST;
}

static void describe(struct server *s, union pl_message *m)
{
	const struct holder *h;

	pl_message_init(m, PL_STATUS);
	strncpy(m->status.version, PINLEASE_VERSION, sizeof m->status.version - 1);
	m->status.pid = getpid();
	m->status.ceiling_ms = s->limits.ceiling_ms;
	m->status.boot = s->boot;
	m->status.since_ns = s->since_ns;
	m->status.max_leases = s->limits.leases;
	m->status.max_bytes = s->limits.bytes;
	m->status.max_connections = s->limits.connections;
	m->status.hold_ms = share_hold_ms(s);
	m->status.max_notices = s->limits.notices;
	m->status.may_kill = s->limits.may_kill;
	m->status.after_crash = after_crash(s);
	LIST_FOREACH(h, &s->holders, link)
	{
		m->status.connections++;
		m->status.holders += h->leases.root != NULL;
	}
	LIST_FOREACH(h, &s->leaving, link)
	m->status.holders += h->leases.root != NULL;
	pthread_mutex_lock(&s->reaping);
	LIST_FOREACH(h, &s->reaped, link)
	m->status.holders += h->leases.root != NULL;
	pthread_mutex_unlock(&s->reaping);
	count(s, &m->status);
}

static int add_sources(struct server *s, struct listing *list)
{
	char text[2048] = "", *rest = text, *line;
	union pl_message m;
	int err = 0;

	pinl_sources(s->ctx, text, sizeof text);
	while (!err && (line = strsep(&rest, "\n"))) {
		if (!*line)
			continue;
		pl_message_init(&m, PL_SOURCE);
		strncpy(m.source.text, line, sizeof m.source.text - 1);
		if (!strcmp(line, "gate: running"))
			gate_describe(s, m.source.text + strlen(line),
				      sizeof m.source.text - strlen(line));
		err = list_add(list, &m);
	}
	pl_message_init(&m, PL_SOURCE);
	generation_describe(s, m.source.text, sizeof m.source.text);
	if (!err && *m.source.text)
		err = list_add(list, &m);
	if (!err && !s->limits.gate) {
		pl_message_init(&m, PL_SOURCE);
		strcpy(m.source.text, "gate: missing: switched off (--gate no)");
		err = list_add(list, &m);
	}
	return err;
}

static void describe_user(struct server *s, struct user *u, union pl_message *m)
{
	pl_message_init(m, PL_USER);
	pthread_mutex_lock(&s->lock);
	m->user.uid = u->uid;
	m->user.connections = u->connections;
	m->user.leases = u->leases;
	m->user.bytes = u->bytes;
	pthread_mutex_unlock(&s->lock);
	share_used(s, u, &m->user.hold_ns, &m->user.notices);
}

/* Only the main loop adds users, or forgets them. */
static int add_users(struct server *s, const struct user *asker, struct listing *list)
{
	union pl_message m;
	struct user *u;
	int err = 0;

	LIST_FOREACH(u, &s->users, link)
	{
		if (err || (asker->uid && u != asker))
			continue;
		describe_user(s, u, &m);
		err = list_add(list, &m);
	}
	return err;
}

int status_begin(struct holder *h, const struct pl_ask_status_msg *m)
{
	struct listing *list;
	union pl_message status;
	int err;

	if (h->listing)
		return -EPROTO;
	list = list_new(m->head.serial);
	if (!list)
		return -ENOMEM;
	describe(h->server, &status);
	err = list_add(list, &status);
	if (!err)
		err = add_sources(h->server, list);
	if (!err)
		err = add_users(h->server, h->user, list);
	h->listing = list;
	list_send(h);
	return err;
}
