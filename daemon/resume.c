/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Going on where an earlier pinleased, or an earlier connection, has left off. Who is in the store and
 * still lives has its leases again before the first change is looked at, whether it can say so or not: a
 * holder that is stopped can't register. When it connects again it names its session and goes on
 * as that holder; what it then doesn't tell of has ended meanwhile.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "core/order.h"
#include "daemon.h"
#include "os/clock.h"
#include "os/compat.h"
#include "os/wake.h"
#include "source/sources.h"

/* ------------------------------------------------------------------------ another connection -- */

/* What h takes up is its own process's and user's. */
static bool is_session(const struct holder *old, const struct holder *h, uint64_t session)
{
	return old->session == session && old->pid == h->pid && old->user == h->user;
}

static struct holder *find_session(struct server *s, const struct holder *h, uint64_t session)
{
	struct holder *old;

	LIST_FOREACH(old, &s->leaving, link)
	if (is_session(old, h, session))
		return old;
	return NULL;
}

/* Its connection has ended before the new one began, which may be known the other way round. */
static void end_old(struct server *s, const struct holder *h, uint64_t session)
{
	struct holder *old;

	LIST_FOREACH(old, &s->holders, link)
	if (old != h && is_session(old, h, session))
		break;
	if (old)
		holder_gone(old);
}

void resume_bury(struct server *s)
{
	if (s->husk)
		holder_free(s->husk);
	s->husk = NULL;
}

struct holder *resume_session(struct holder *h, uint64_t session)
{
	struct pollfd p = {.fd = h->sock, .events = POLLRDHUP};
	struct server *s = h->server;
	struct holder *old;

	if (poll(&p, 1, 0)) /* who has said it has given up since: it will come again */
		return NULL;
	end_old(s, h, session);
	old = find_session(s, h, session);
	if (!old)
		return NULL;
	user_adopted(old, false);
	recall_pass(old); /* they change their places */
	recall_pass(h);
	old->exit = sd_event_source_disable_unref(old->exit);
	old->patience = sd_event_source_disable_unref(old->patience);
	old->sock = h->sock;
	old->door = h->door;
	h->door = NULL;
	old->io = h->io;
	sd_event_source_set_userdata(old->io, old);
	old->full = old->leaves = old->tells_again = false;
	for (struct pl_node *n = pl_index_first(&old->leases, 0, UINTPTR_MAX); n;
	     n = pl_index_next(n, 0, UINTPTR_MAX))
		((struct held_lease *)n)->told = false;
	LIST_REMOVE(old, link);
	LIST_INSERT_HEAD(&s->holders, old, link);
	LIST_REMOVE(h, link);
	pinl_device_close(h->device);
	resume_bury(s);
	s->husk = h;	  /* its callers have it still */
	pl_wake(s->wake); /* what it couldn't be told, after the WELCOME */
	return old;
}

void resume_told(struct holder *h)
{
	struct pl_node *n = pl_index_first(&h->leases, 0, UINTPTR_MAX), *next;

	if (h->tells_again) {
		h->tells_again = false;
		return;
	}
	for (; n; n = next) {
		struct held_lease *hl = (struct held_lease *)n;

		next = pl_index_next(n, 0, UINTPTR_MAX);
		if (!hl->told)
			lease_end(hl);
	}
	h->returning = false;
}

/* --------------------------------------------------------------------------- another process -- */

/* NULL: it has ended, or `unknown` is one more, as it may live. */
static struct holder *adopt_holder(struct server *s, struct stored_holder *sh, unsigned *unknown)
{
	int pidfd = syscall(SYS_pidfd_open, sh->pid, 0);
	uint64_t started;
	struct holder *h;

	if (pidfd < 0) {
		*unknown += errno != ESRCH;
		return NULL;
	}
	started = process_look(sh->pid).started; /* after the pidfd was made */
	if (!sh->started || started != sh->started) {
		*unknown += !sh->started || !started;
		close(pidfd);
		return NULL;
	}
	h = holder_alloc(s, sh->uid, false, sh->pid, pidfd);
	if (!h) {
		++*unknown;
		return NULL;
	}
	h->session = sh->session;
	memcpy(h->name, sh->name, sizeof h->name);
	h->stored = sh;
	h->full = true; /* nobody is there to be told */
	h->returning = true;
	user_adopted(h, true);
	LIST_INSERT_HEAD(&s->leaving, h, link);
	holder_watch_exit(h);
	absent_watch(h);
	return h;
}

#define LOOKS 16 /* at mappings: all leased files stand still meanwhile */

struct search {
	pid_t pid;
	uint64_t start, end, dev, ino;
};

/* What else is there by now may be of a server that doesn't answer: it is asked nothing. */
static bool is_file(int fd, const struct search *q)
{
	struct statx st;

	return !statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_INO, &st) &&
	       makedev(st.stx_dev_major, st.stx_dev_minor) == q->dev && st.stx_ino == q->ino;
}

/* In a child. The file by the holder's mapping; a part of the range may be something else by now. */
static int search_file(void *arg)
{
	const struct search *q = arg;
	struct pl_procmap_query v;
	char path[96];
	int maps, fd;

	snprintf(path, sizeof path, "/proc/%d/maps", q->pid);
	maps = open(path, O_RDONLY | O_CLOEXEC);
	for (uint64_t at = q->start, looks = 0; at < q->end && looks < LOOKS; at = v.vma_end) {
		looks++;
		v = (struct pl_procmap_query){.size = sizeof v,
					      .query_addr = at,
					      .query_flags = PL_PROCMAP_COVERING_OR_NEXT_VMA};
		if (ioctl(maps, PL_PROCMAP_QUERY, &v) || v.vma_start >= q->end)
			return -ENOENT;
		snprintf(path, sizeof path, "/proc/%d/map_files/%llx-%llx", q->pid,
			 (unsigned long long)v.vma_start, (unsigned long long)v.vma_end);
		fd = open(path, O_PATH | O_CLOEXEC);
		if (fd >= 0 && is_file(fd, q))
			return fd;
	}
	return -ENOENT;
}

static int find_file(const struct holder *h, const struct stored_lease *l)
{
	struct search q = {h->pid, l->msg.start, l->msg.end, l->dev, l->ino};
	int fd = pl_outside_ask(h->pid, search_file, &q, sizeof q);

	return fd < 0 ? fd : pl_outside_taken(fd);
}

static void nobody(struct pinl_change *change, int err)
{
}

/* An earlier force may be over or not, and what it was for may be gone: it is done once more. */
static void take_again(struct server *s, const struct held_lease *hl)
{
	const struct pinl_lease *l = hl->lease;
	struct pl_order order;

	pl_order_init(&order, l, 0, UINT64_MAX, false);
	order.deadline_ns = pl_clock_ns() + l->policy.grace_ms * 1000000ull;
	order.change.source = "restart";
	order.change.answer = nobody;
	pinl_change_submit(s->ctx, &order.change);
}

/* Nothing ends before all are there: a file that is known stays so. */
static int adopt_lease(struct holder *h, struct stored_lease *l)
{
	bool known = pl_foreign_known(h->server->ctx, l->dev, l->ino);
	int fd = known ? -1 : find_file(h, l), err;
	struct held_lease *hl;

	if (!known && fd < 0)
		return -ENOENT;
	err = lease_adopt(h, l, fd);
	if (err)
		return err;
	hl = lease_find(h, l->msg.lease);
	if (l->handle.head.type)
		lease_take_handle(hl, &l->handle);
	for (uint32_t i = 0; i < l->n_orphans && i < STORE_ORPHANS; i++)
		pl_foreign_is_orphan(hl->lease, &l->orphans[i]);
	if (l->state == STORED_TAKEN)
		take_again(h->server, hl);
	return 0;
}

static void adopt_leases(struct server *s, struct holder **holders, unsigned *taken, unsigned *lost)
{
	struct store_image *i = s->store.image;

	for (uint32_t n = 0; n < i->leases_used; n++) {
		struct stored_lease *l = &i->leases[n];
		struct holder *h = l->holder < STORE_HOLDERS ? holders[l->holder] : NULL;

		if (l->state == STORED_FREE || !h || adopt_lease(h, l)) {
			*lost += l->state != STORED_FREE && h;
			store_drop_lease(&s->store, l);
		} else {
			++*taken;
		}
	}
}

static unsigned adopt_holders(struct server *s, struct holder **holders, unsigned *unknown)
{
	struct store_image *i = s->store.image;
	unsigned n = 0;

	for (uint32_t k = 0; k < i->holders_used; k++) {
		struct stored_holder *sh = &i->holders[k];

		holders[k] = sh->session ? adopt_holder(s, sh, unknown) : NULL;
		n += holders[k] != NULL;
		if (!holders[k])
			store_drop_holder(&s->store, sh);
	}
	return n;
}

bool resume_all(struct server *s)
{
	struct holder **holders = calloc(STORE_HOLDERS, sizeof(*holders));
	unsigned taken = 0, lost = 0, unknown = 0, n = 0, held = 0;

	if (!holders) {
		fprintf(stderr, "pinleased: out of memory to take over leases: they are guarded when "
				"their holders have come back\n");
		return false;
	}
	n = adopt_holders(s, holders, &unknown);
	adopt_leases(s, holders, &taken, &lost);
	free(holders);
	for (unsigned i = 0; i < PL_FILES_MAX_HELD; i++)
		held += s->store.image->files.held[i].state == PL_HELD_ASKED;
	fprintf(stderr,
		"pinleased: goes on with %u lease%s of %u holder%s, and %u change%s that waited for the "
		"restart\n",
		taken, s_of(taken), n, s_of(n), held, s_of(held));
	if (lost)
		fprintf(stderr,
			"pinleased: not taken up: %u lease%s of memory that isn't mapped any more, or "
			"can't be looked at or guarded; guarded again when the holder tells of it\n",
			lost, s_of(lost));
	if (unknown)
		fprintf(stderr,
			"pinleased: not taken up: leases of %u process%s that can't be looked at; "
			"guarded "
			"again when they tell of them\n",
			unknown, unknown == 1 ? "" : "es");
	return !lost && !unknown;
}
