/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What holders say of their leases. Invariant: a held_lease lives from LEASE to UNLEASE or the holder's
 * end, and the core knows its lease all that time. file.c has what the descriptor shows, notice.c what
 * the holder is told.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon.h"
#include "gate.h"
#include "os/clock.h"
#include "source/sources.h"

#define OPS_OF_FILES (PINL_OPS_FILE | PINL_OPBIT(PINL_OP_REMOVE))
#define READER_MS    1000 /* the longest grace of who can only read the file */

struct held_lease *lease_find(struct holder *h, uint64_t number)
{
	return (struct held_lease *)pl_index_first(&h->leases, number, number + 1);
}

static bool is_in_memory(const struct pinl_memory *mem)
{
	return mem->kind == PINL_MEM_SHMEM || mem->kind == PINL_MEM_HUGETLB;
}

static uint64_t coverage(struct server *s, const struct pinl_memory *mem)
{
	uint64_t all = 0;

	for (const struct pl_source *o = s->ctx->sources; o < s->ctx->sources + s->ctx->n_sources; o++)
		for (int op = 0; op < PINL_OP_NR; op++)
			all |= (uint64_t)o->ops->coverage(o->priv, mem, op) << (4 * op);
	if (is_in_memory(mem))
		all |= PL_SUPERVISED;
	if (gate_has_others_wait(s, mem))
		all |= PL_OTHERS;
	if (gate_keeps_name(s, mem))
		all |= PL_NAMES;
	return all;
}

/* What is done for this one: it may have found no place at the gate. */
static uint64_t coverage_of(struct server *s, const struct pinl_lease *l)
{
	uint64_t all = coverage(s, &l->on->mem);

	if (l->policy.kind == PINL_RECALL && !(l->on->supervised[PINL_OP_TRUNCATE] & PINL_CAN_HOLD))
		all &= ~PL_OTHERS;
	return all;
}

static int on_cover(struct holder *h, const struct pl_cover_msg *m, int fd)
{
	struct pinl_memory mem = {0};
	struct stat st;
	uint64_t all = 0;
	bool reader;
	int err;

	err = file_look(fd, false, &st, &mem.fs_magic, &reader);
	if (!err) {
		mem.fd = file_path_only(fd);
		mem.dev = st.st_dev;
		mem.ino = st.st_ino;
		mem.kind = file_kind(mem.fs_magic, true);
		err = mem.fd < 0 ? mem.fd : 0;
	}
	if (!err) {
		all = coverage(h->server, &mem);
		close(mem.fd);
	}
	return holder_reply(h, &m->head, err, all);
}

static void describe(struct holder *h, const struct pl_lease_msg *m, struct pl_foreign *f)
{
	*f = (struct pl_foreign){
		.offset = m->file_offset,
		.start = m->start,
		.end = m->end,
		.shared = m->shared,
		.flags = m->flags,
		.policy = {.size = sizeof f->policy,
			   .kind = m->policy,
			   .then = m->then,
			   .grace_ms = m->grace_ms,
			   .refuse = m->refuse},
		.owner = h->pid,
		.owner_thread = m->thread,
		.since_ns = m->since_ns,
		.cookie = h->making,
		.resumed = h->returning,
	};
	if (m->grace_ms < UINT32_MAX - m->agent_ms)
		f->policy.grace_ms += m->agent_ms;
}

/* R12: who may not change a file may not keep its owner from it, nor wait long. */
static int bound_reader(struct pinl_policy *p)
{
	if (p->kind == PINL_REFUSE)
		return pinl_set_error(-EACCES, "REFUSE needs the right to write to the file: show a "
					       "descriptor that is open for writing");
	if (p->grace_ms > READER_MS)
		p->grace_ms = READER_MS;
	return 0;
}

/* R12: who may write to the directory may remove the file, and who may only write to the file, or read
 * it, may not keep him from that. */
static int may_keep_name(const struct holder *h, const struct stat *st)
{
	if (!h->user->uid || h->user->uid == st->st_uid)
		return 0;
	return pinl_set_error(-EACCES,
			      "PINL_KEEP_NAME is for the owner of the file, user %u, and for root; not "
			      "for user %u",
			      st->st_uid, h->user->uid);
}

/* Before anybody is told that it is leased. */
static void keep(struct holder *h, struct held_lease *hl, const struct pl_lease_msg *m,
		 unsigned grace_ms)
{
	struct pl_lease_msg msg = *m;
	struct stored_holder sh = {.session = h->session, .pid = h->pid, .uid = h->user->uid};

	if (!h->stored) {
		struct process_seen p = process_look(h->pid);

		sh.started = p.started;
		sh.stack = p.stack;
		memcpy(sh.name, h->name, sizeof sh.name);
		h->stored = store_holder(&h->server->store, &sh);
	}
	msg.grace_ms = grace_ms;
	msg.agent_ms = 0;
	hl->stored = store_lease(&h->server->store, h->stored, &msg, &hl->lease->on->mem);
}

/* What is adopted has been proved before. */
static int look(const struct holder *h, const struct pl_lease_msg *m, int fd,
		const struct stored_lease *adopted, struct stat *st, struct pl_foreign *f)
{
	bool reader;
	int err;

	if (adopted) {
		st->st_dev = adopted->dev;
		st->st_ino = adopted->ino;
		f->fs_magic = adopted->fs_magic;
		f->fd = fd;
		return 0;
	}
	err = file_look(fd, (m->flags & PINL_WRITE) && m->shared, st, &f->fs_magic, &reader);
	if (!err && (m->flags & PINL_KEEP_NAME))
		err = may_keep_name(h, st);
	return !err && reader ? bound_reader(&f->policy) : err;
}

/* The descriptor that the lease keeps. */
static int own_descriptor(struct holder *h, int fd)
{
	int own = file_path_only(fd), err;

	if (own < 0)
		return own;
	err = share_descriptor(h->server, h->user, own);
	if (err)
		close(own);
	return err ? err : own;
}

/* What may have been promised of it that isn't kept here. */
static unsigned weaker_ops(const struct pinl_lease *l)
{
	bool waits = l->policy.kind == PINL_RECALL && is_in_memory(&l->on->mem);
	unsigned ops = waits			       ? OPS_OF_FILES
		       : l->policy.kind == PINL_REFUSE ? l->policy.refuse & OPS_OF_FILES
						       : 0;

	for (int op = 0; op < PINL_OP_NR; op++)
		if (waits ? (l->on->supervised[op] | l->on->coverage[op]) & PINL_CAN_HOLD
			  : l->on->coverage[op] & PINL_CAN_REFUSE)
			ops &= ~PINL_OPBIT(op);
	return ops;
}

/* An earlier pinleased has taken it, and may have had a gate, or a place there. */
static void look_what_is_weaker(struct holder *h, struct held_lease *hl)
{
	unsigned ops = weaker_ops(hl->lease);

	if (!ops)
		return;
	notice_weaker(hl, ops);
	if (!h->weaker && hl->lease->policy.kind == PINL_REFUSE) {
		h->weaker = true;
		fprintf(stderr,
			"pinleased: changes that leases of %s (%d) refuse aren't refused, as nothing "
			"here "
			"can: see pinlease status\n",
			h->name, h->pid);
	}
}

/* The same of names, which no event of the holder's is for. */
static void look_whether_it_keeps_its_name(struct holder *h, const struct held_lease *hl)
{
	if (!(hl->lease->flags & PINL_KEEP_NAME) || gate_keeps_name(h->server, &hl->lease->on->mem))
		return;
	if (!h->nameless)
		fprintf(stderr,
			"pinleased: files that leases of %s (%d) want to keep their names "
			"(PINL_KEEP_NAME) "
			"may be unlinked, as nothing here can refuse it: see pinlease status\n",
			h->name, h->pid);
	h->nameless = true;
}

static int lease(struct holder *h, const struct pl_lease_msg *m, int fd,
		 const struct stored_lease *adopted)
{
	struct held_lease *hl = h->making;
	struct pl_foreign f;
	struct stat st;
	int err;

	describe(h, m, &f);
	err = look(h, m, fd, adopted, &st, &f);
	if (!err && !adopted && f.policy.kind == PINL_RECALL && f.policy.then == PINL_THEN_KILL)
		err = kill_prepare(h);
	if (!err && !h->returning &&
	    (change_under_way(h->server, m, &st) || gate_under_way(h->server, m, &st)))
		err = pinl_set_error(-EBUSY, "a change of these bytes is under way; try again");
	if (!err && !adopted)
		err = f.fd = own_descriptor(h, fd);
	if (err < 0)
		return err;
	f.file = &st;
	f.kind = file_kind(f.fs_magic, m->shared);
	hl->of.dev = st.st_dev;
	hl->of.ino = st.st_ino;
	hl->of.offset = m->file_offset;
	err = pl_foreign_lease(h->device, &f, &hl->lease);
	if (!err && !adopted)
		keep(h, hl, m, f.policy.grace_ms);
	if (!err && h->returning) {
		look_what_is_weaker(h, hl);
		look_whether_it_keeps_its_name(h, hl);
	}
	return err;
}

static struct held_lease *lease_alloc(void)
{
	struct held_lease *hl = calloc(1, sizeof *hl + sizeof *hl->own);

	if (hl)
		hl->own = (struct notice *)(hl + 1);
	return hl;
}

/* The lease is the core's no more, so nothing is told of it from here on. */
void lease_forget(struct holder *h, struct held_lease *hl)
{
	notices_drop(h, hl);
	store_drop_lease(&h->server->store, hl->stored);
	if (!hl->ending)
		pl_index_remove(&h->leases, &hl->node);
	user_discharge(h->server, h->user, hl->bytes);
	if (hl->ring)
		ring_put(h, hl->ring);
	gate_let_go(hl);
	watch_ended(hl, h->server);
}

/* What the core doesn't look at, as no mapping of its own process can be like that. */
static int check_numbers(const struct pl_lease_msg *m)
{
	if (m->flags & ~(PINL_WRITE | PINL_PIN | PINL_KEEP_NAME))
		return pinl_set_error(-EINVAL, "unknown flags %#x", m->flags);
	if (m->start >= m->end)
		return pinl_set_error(-EINVAL, "an empty range");
	if (m->lease == UINT64_MAX) /* nothing is after it, so it would never be found */
		return pinl_set_error(-EINVAL, "%lu is no number for a lease", m->lease);
	if (m->file_offset % 4096)
		return pinl_set_error(-EINVAL, "file offset %#lx is not page aligned", m->file_offset);
	if (m->file_offset > INT64_MAX || m->end - m->start > INT64_MAX - m->file_offset)
		return pinl_set_error(-EINVAL, "the range reaches beyond the largest file");
	return 0;
}

static int make(struct holder *h, const struct pl_lease_msg *m, int fd,
		const struct stored_lease *adopted)
{
	struct server *s = h->server;
	struct held_lease *hl = NULL;
	int err = check_numbers(m);

	if (!err && !adopted)
		err = share_may_lease(s, h->user);
	if (!err)
		err = user_charge(s, h->user, m->end - m->start);
	if (!err && !(hl = lease_alloc())) {
		user_discharge(s, h->user, m->end - m->start);
		err = pinl_set_error(-ENOMEM, "pinleased is out of memory");
	}
	if (err) {
		if (adopted && fd >= 0)
			close(fd);
		return err;
	}
	hl->holder = h;
	hl->number = m->lease;
	hl->then = m->policy == PINL_RECALL ? m->then : PINL_THEN_FAIL;
	hl->grace_ms = m->grace_ms;
	hl->agent_ms = m->agent_ms;
	holder_copy_text(hl->device, m->device, sizeof hl->device);
	hl->bytes = m->end - m->start;
	hl->shown = adopted;
	hl->of.start = m->start;
	hl->node.start = m->lease;
	hl->node.end = m->lease + 1;
	hl->of.pid = h->pid;
	hl->of.uid = h->user->uid;
	memcpy(hl->of.name, h->name, sizeof hl->of.name);
	if (m->policy == PINL_RECALL || m->policy == PINL_FOLLOW || !(m->flags & PINL_PIN))
		gate_hold(hl);
	h->making = hl;
	pl_index_insert(&h->leases, &hl->node);
	err = lease(h, m, fd, adopted);
	h->making = NULL;
	if (err) /* something may have been told of it already */
		lease_forget(h, hl);
	return err;
}

int lease_adopt(struct holder *h, struct stored_lease *l, int fd)
{
	int err = make(h, &l->msg, fd, l);

	if (!err)
		lease_find(h, l->msg.lease)->stored = l;
	return err;
}

/* Told again after a connection broke. */
static bool is_same(const struct held_lease *hl, const struct pl_lease_msg *m, int fd)
{
	struct stat st;

	return !fstat(fd, &st) && hl->lease->on->mem.dev == st.st_dev &&
	       hl->lease->on->mem.ino == st.st_ino && hl->lease->m.start == m->start &&
	       hl->lease->m.end == m->end && hl->lease->on->mem.offset == m->file_offset;
}

void lease_end(struct held_lease *hl)
{
	watch_ending(hl);
	if (pl_foreign_busy(hl->lease)) {
		pl_index_remove(&hl->holder->leases, &hl->node);
		hl->ending = true;
		lease_end_later(hl);
		return;
	}
	pinl_unmap_range(hl->lease);
	lease_forget(hl->holder, hl);
}

static int on_lease(struct holder *h, const struct pl_lease_msg *m, int fd)
{
	struct held_lease *hl = lease_find(h, m->lease);
	int err;

	if (hl && !is_same(hl, m, fd)) {
		lease_end(hl);
		hl = NULL;
	}
	err = hl ? 0 : make(h, m, fd, NULL);
	if (!err) {
		hl = lease_find(h, m->lease);
		hl->told = true;
		if (hl->then == PINL_THEN_KILL) /* it was adopted, and is there still */
			kill_prepare(h);
	}
	return holder_reply(h, &m->head, err, err ? 0 : coverage_of(h->server, hl->lease));
}

static int on_still(struct holder *h, const struct pl_still_msg *m)
{
	struct held_lease *hl = lease_find(h, m->lease);

	if (!hl && h->tells_again) /* he knows */
		return 0;
	if (!hl) {
		h->tells_again = true;
		return holder_reply(h, &m->head, pinl_set_error(-ENOENT, "no such lease"), 0);
	}
	hl->told = true;
	if (hl->then == PINL_THEN_KILL) /* it was adopted, and is there still */
		kill_prepare(h);
	return 0;
}

static int on_unlease(struct holder *h, const struct pl_unlease_msg *m)
{
	struct held_lease *hl = lease_find(h, m->lease);

	if (m->outcome > PINL_OUT_COPY)
		return -EPROTO;
	if (hl && m->outcome > PINL_OUT_QUIESCED) /* by force, and the notice's answer isn't there yet */
		pl_foreign_answer(hl->lease, 0, NULL, true, m->outcome);
	if (hl)
		lease_end(hl);
	return 0;
}

/* What is said again is the same, or wrong: a force may be at it. */
int lease_take_handle(struct held_lease *hl, const struct pl_handle_msg *m)
{
	static const enum pl_outside_kind kinds[] = {[PL_HANDLE_URING] = PL_OUTSIDE_RING,
						     [PL_HANDLE_VFIO] = PL_OUTSIDE_VFIO,
						     [PL_HANDLE_IOMMUFD] = PL_OUTSIDE_IOMMUFD,
						     [PL_HANDLE_VERBS] = PL_OUTSIDE_VERBS};
	struct ring *ring = NULL;
	int err = 0;

	if (hl->made)
		return 0;
	hl->buf = (struct pl_outside_buf){.slot = m->slot,
					  .twin = m->twin,
					  .start = hl->lease->m.start,
					  .end = hl->lease->m.end,
					  .tag = m->tag};
	if (m->kind == PL_HANDLE_VERBS && hl->then != PINL_THEN_COPY)
		hl->buf.tag &= ~(uint64_t)PINL_HANDLE_REKEYS; /* only a copy gives it other keys */
	if (m->kind != PL_HANDLE_NONE)
		err = pl_outside_numbers(kinds[m->kind], &hl->buf);
	if (m->kind != PL_HANDLE_NONE && !err)
		err = ring_get(hl->holder, kinds[m->kind], m->fd, &ring);
	if (ring)
		atomic_store(&hl->ring, ring);
	hl->made = true;
	return err;
}

/* It is there when it is whole. */
static void keep_handle(struct stored_lease *l, const struct pl_handle_msg *m)
{
	struct pl_handle_msg part = *m;

	part.head.type = 0;
	l->handle = part;
	__atomic_store_n(&l->handle.head.type, m->head.type, __ATOMIC_RELEASE);
}

static int on_handle(struct holder *h, const struct pl_handle_msg *m)
{
	struct held_lease *hl = lease_find(h, m->lease);
	int err;

	if (!hl)
		return holder_reply(h, &m->head, pinl_set_error(-ENOENT, "no such lease"), 0);
	if (m->kind > PL_HANDLE_VERBS)
		return holder_reply(h, &m->head, pinl_set_error(-EINVAL, "no such kind of handle"), 0);
	if (h->stored && m->kind == PL_HANDLE_URING && !h->stored->accounted)
		h->stored->accounted = pl_outside_pins_of(h->pid) > 0;
	if (hl->stored && !hl->made)
		keep_handle(hl->stored, m);
	err = lease_take_handle(hl, m);
	if (!err && m->kind == PL_HANDLE_NONE && hl->lease->policy.kind == PINL_RECALL)
		err = pinl_set_error(
			-EOPNOTSUPP, "its device \"%s\" can be reached by its own process only; %s",
			hl->device,
			hl->then == PINL_THEN_KILL
				? "if that doesn't answer it is killed, as the lease's policy says"
				: "a change waits for that, and not longer than twice the ceiling");
	if (err && !h->unforced++) /* once, as it is the holder who says how often */
		fprintf(stderr, "pinleased: lease %lu of %s (%d) can't be forced from outside: %s\n",
			hl->number, h->name, h->pid, pinl_error());
	if (pl_foreign_lost(hl->lease)) /* before the device had it: it may have got what came after */
		return holder_reply(h, &m->head,
				    pinl_set_error(-EBUSY,
						   "the memory was taken back while it was being "
						   "leased; try again"),
				    0);
	watch_leased(hl);
	return holder_reply(h, &m->head, 0, 0);
}

static int on_released(struct holder *h, const struct pl_released_msg *m)
{
	struct held_lease *hl = lease_find(h, m->lease);
	struct pl_range va = {m->start, m->end};

	if (!hl)
		return 0;
	if (m->outcome > PINL_OUT_COPY)
		return -EPROTO;
	if (va.start > va.end || (va.start | va.end) % 4096)
		return -EPROTO;
	if ((va.start || va.end) && !m->whole &&
	    (va.start == va.end || va.start < hl->lease->m.start || va.end > hl->lease->m.end))
		return -EPROTO;
	if (m->seq)
		pl_foreign_answer(hl->lease, m->seq, &va, m->whole, m->outcome);
	else
		pl_foreign_taken(hl->lease, &va, m->whole, m->outcome);
	return 0;
}

/* -EPROTO: it is none of these. */
int lease_message(struct holder *h, const union pl_message *m, int fd)
{
	switch (m->head.type) {
	case PL_COVER:
		return on_cover(h, &m->cover, fd);
	case PL_LEASE:
		return on_lease(h, &m->lease, fd);
	case PL_STILL:
		return on_still(h, &m->still);
	case PL_HANDLE:
		return on_handle(h, &m->handle);
	case PL_UNLEASE:
		return on_unlease(h, &m->unlease);
	case PL_RELEASED:
		return on_released(h, &m->released);
	default:
		return -EPROTO;
	}
}
