/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Listing leases, and other things, for commands. A listing is one moment's picture, made at once and
 * sent as the socket takes it; one at a time for each connection.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon.h"
#include "os/task.h"

struct listing {
	uint64_t serial;
	size_t n, at, room;
	union pl_message *entries;
};

void list_path(const struct held_lease *hl, char *path, size_t len)
{
	char link[32], full[4096];
	ssize_t n;

	snprintf(link, sizeof link, "/proc/self/fd/%d", hl->lease->on->mem.fd);
	n = readlink(link, full, sizeof full - 1);
	n = n > 0 ? n : 0;
	full[n] = 0;
	if ((size_t)n < len)
		memcpy(path, full, n + 1);
	else
		snprintf(path, len, "...%s", full + n - len + 4);
}

static bool is_deferred(const struct pinl_change *ch)
{
	return !strcmp(ch->source, "later");
}

/* Nobody is told of who is killed while fanotify holds him. */
static bool stands_still(const struct pinl_change *ch)
{
	bool ended =
		!strcmp(ch->source, "files") && ch->actor_pid > 0 && !pl_task_is_there(ch->actor_pid);

	return !ended && !is_deferred(ch);
}

/* The first it is recalled for; but who waits before who doesn't, and himself before what he has left to
 * pinleased. */
static void describe_actor(const struct pinl_lease *l, struct pl_entry_msg *e)
{
	const struct pl_recall *r = &l->more->recall;
	const struct pinl_change *waits = pl_foreign_waiter(l, stands_still);
	const char *source;

	if (!waits)
		waits = pl_foreign_waiter(l, is_deferred);
	source = waits ? waits->source : r->source ? r->source : "";
	e->actor_pid = waits ? waits->actor_pid : r->actor_pid;
	e->actor_tid = waits ? waits->actor_tid : r->actor_tid;
	e->op = waits ? waits->op : r->op;
	e->also = waits ? waits->also : r->also;
	e->held = waits != NULL;
	e->held_ns = waits ? waits->since_ns : 0;
	strncpy(e->source, source, sizeof e->source - 1);
}

/* The state, and what goes with it: from one moment. */
static void describe_recall(const struct held_lease *hl, struct pl_entry_msg *e)
{
	struct pinl_lease *l = hl->lease;
	const struct pl_recall *r = &l->more->recall;

	pthread_mutex_lock(&l->ctx->lock);
	e->state = l->state;
	e->op = PINL_OP_NR;
	e->deadline_ns = l->state == PINL_NOTICED ? pl_foreign_deadline(l) : 0;
	if ((l->state == PINL_NOTICED || l->state == PINL_FORCING) && (r->since_ns || !l->ending)) {
		e->recall_start = r->va.start;
		e->recall_end = r->va.end;
		describe_actor(l, e);
	}
	pthread_mutex_unlock(&l->ctx->lock);
}

void list_entry(const struct held_lease *hl, union pl_message *m)
{
	struct pinl_lease_info i = {.size = sizeof i};
	struct pl_entry_msg *e = &m->entry;

	pl_message_init(m, PL_ENTRY);
	pinl_lease_info(hl->lease, &i);
	e->lease = hl->number;
	e->start = i.start;
	e->end = i.end;
	e->file_dev = i.file_dev;
	e->file_ino = i.file_ino;
	e->file_offset = i.file_offset;
	e->since_ns = i.since_ns;
	e->detached = i.detached_bytes;
	e->pid = i.owner;
	e->thread = i.owner_thread;
	e->uid = hl->holder->user->uid;
	e->flags = i.flags;
	e->policy = i.policy.kind;
	e->then = i.policy.then;
	e->grace_ms = i.policy.grace_ms;
	e->refuse = i.policy.refuse;
	e->forced = hl->ring && !pl_outside_why(hl->ring->outside);
	memcpy(e->device, hl->device, sizeof e->device);
	memcpy(e->program, hl->holder->name, sizeof e->program);
	list_path(hl, e->path, sizeof e->path);
	e->orphaned = i.orphan_bytes;
	describe_recall(hl, e);
}

int list_add(struct listing *list, const union pl_message *m)
{
	size_t room = list->room ? 2 * list->room : 64;
	union pl_message *more;

	if (list->n == list->room) {
		more = realloc(list->entries, room * sizeof *more);
		if (!more)
			return -ENOMEM;
		list->entries = more;
		list->room = room;
	}
	list->entries[list->n] = *m;
	list->entries[list->n++].head.serial = list->serial;
	return 0;
}

static int add_all(struct listing *list, const struct holder *of, const struct pl_list_msg *m)
{
	struct pl_node *n = pl_index_first(&of->leases, 0, UINTPTR_MAX);
	union pl_message entry;
	int err = 0;

	for (; n && !err; n = pl_index_next(n, 0, UINTPTR_MAX)) {
		const struct held_lease *hl = (const struct held_lease *)n;

		if (hl->gone)
			continue;
		if (m->file_ino &&
		    (hl->lease->on->mem.ino != m->file_ino || hl->lease->on->mem.dev != m->file_dev))
			continue;
		list_entry(hl, &entry);
		err = list_add(list, &entry);
	}
	return err;
}

static bool fits(const struct holder *asker, const struct holder *of, const struct pl_list_msg *m)
{
	return (!asker->user->uid || of->user == asker->user) && (!m->pid || m->pid == of->pid);
}

struct listing *list_new(uint64_t serial)
{
	struct listing *list = calloc(1, sizeof *list);

	if (list)
		list->serial = serial;
	return list;
}

int list_begin(struct holder *h, const struct pl_list_msg *m)
{
	struct listing *list;
	struct holder *of;
	int err = 0;

	if (h->listing)
		return -EPROTO;
	list = list_new(m->head.serial);
	if (!list)
		return -ENOMEM;
	LIST_FOREACH(of, &h->server->holders, link)
	if (!err && fits(h, of, m))
		err = add_all(list, of, m);
	LIST_FOREACH(of, &h->server->leaving, link) /* one that is stopped may be there for long */
	if (!err && fits(h, of, m))
		err = add_all(list, of, m);
	pthread_mutex_lock(&h->server->reaping);
	LIST_FOREACH(of, &h->server->reaped, link) /* until their pins are gone, changes wait for them */
	if (!err && fits(h, of, m))
		err = add_all(list, of, m);
	pthread_mutex_unlock(&h->server->reaping);
	h->listing = list;
	list_send(h);
	return err;
}

void list_send(struct holder *h)
{
	struct listing *list = h->listing;
	union pl_message m;

	if (!list)
		return;
	for (; list->at < list->n; list->at++)
		if (holder_send(h, &list->entries[list->at]))
			return;
	pl_message_init(&m, PL_REPLY);
	m.head.serial = list->serial;
	m.reply.value = list->n;
	if (holder_send(h, &m))
		return;
	h->listing = NULL;
	list_free(list);
}

void list_free(struct listing *list)
{
	if (list)
		free(list->entries);
	free(list);
}
