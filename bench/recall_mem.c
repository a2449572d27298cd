/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Recalls of anonymous memory: munmap and madvise(MADV_DONTNEED) by a thread of the holder's own, raw
 * and by the explicit calls. Each sample has a mapping and a lease of its own.
 */
#include "recall.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

const struct variant recall_variants[] = {
	{"RECALL, answered", PINL_RECALL, PINL_THEN_FAIL, 1000, true, PINL_EV_RELEASED},
	{"RECALL, FAIL", PINL_RECALL, PINL_THEN_FAIL, 0, false, PINL_EV_RELEASED},
	{"RECALL, SCRATCH", PINL_RECALL, PINL_THEN_SCRATCH, 0, false, PINL_EV_RELEASED},
	{"RECALL, COPY", PINL_RECALL, PINL_THEN_COPY, 0, false, PINL_EV_RELEASED},
	{"REFUSE", PINL_REFUSE, 0, 0, false, PINL_EV_REFUSED},
	{"KEEP", PINL_KEEP, 0, 0, false, PINL_EV_ORPHAN},
	{"FOLLOW", PINL_FOLLOW, 0, 0, false, PINL_EV_FOLLOWED},
};
const int n_recall_variants = sizeof recall_variants / sizeof *recall_variants;

const struct variant *recall_variant(const struct bench *b, int i)
{
	return &recall_variants[b->backwards ? n_recall_variants - 1 - i : i];
}

struct pinl_policy recall_policy(const struct variant *v, enum pinl_op op)
{
	struct pinl_policy p = policy_of(v->kind, v->then);

	p.grace_ms = v->grace_ms;
	p.refuse = v->kind == PINL_REFUSE ? PINL_OPBIT(op) : 0;
	return p;
}

void latency_result(const struct bench *b, const char *what, const char *variant, struct latency *l)
{
	if (l->device.n)
		result(b, what, variant, "device", &l->device, 1);
	result(b, what, variant, "actor", &l->actor, 1);
}

static const struct trigger {
	const char *name;
	enum pinl_op op;
	bool call; /* by a pinl_ call, else raw */
} triggers[] = {
	{"munmap", PINL_OP_UNMAP, false},
	{"madvise", PINL_OP_DONTNEED, false},
	{"pinl_munmap", PINL_OP_UNMAP, true},
	{"pinl_madvise", PINL_OP_DONTNEED, true},
};

static int fire(const struct trigger *t, struct pinl_ctx *ctx, char *at)
{
	bool unmap = t->op == PINL_OP_UNMAP;

	if (t->call)
		return unmap ? pinl_munmap(ctx, at, RECALL_SIZE)
			     : pinl_madvise(ctx, at, RECALL_SIZE, MADV_DONTNEED);
	return (unmap ? munmap(at, RECALL_SIZE) : madvise(at, RECALL_SIZE, MADV_DONTNEED)) ? -errno : 0;
}

/* An on-demand device has entries to lose only after it has used the memory. */
static struct pinl_lease *lease_followed(struct rig *r, char *at, const struct pinl_policy *policy)
{
	struct pinl_addr addrs[RECALL_SIZE / PAGE];
	uintptr_t start = (uintptr_t)at;
	struct pinl_lease *lease;
	char word[8];

	if (pinl_map_range(r->soft, start, start + RECALL_SIZE, PINL_WRITE, policy, addrs, &lease) ||
	    pinl_soft_dma(r->soft, addrs[0].addr, word, sizeof word, 0))
		fail("FOLLOW: %s", pinl_error());
	return lease;
}

static struct pinl_lease *lease_for(struct rig *r, const struct trigger *t, const struct variant *v,
				    char *at)
{
	struct pinl_policy policy = recall_policy(v, t->op);
	unsigned flags = PINL_WRITE | PINL_PIN | (v->kind == PINL_REFUSE ? PINL_COOPERATIVE : 0);
	struct pinl_lease *lease;

	if (v->kind == PINL_FOLLOW)
		return lease_followed(r, at, &policy);
	if (lease_on(r->uring, at, RECALL_SIZE, flags, &policy, &lease))
		fail("%s: %s", v->name, pinl_error());
	return lease;
}

static void once(struct rig *r, const struct trigger *t, const struct variant *v, struct latency *l,
		 bool keep)
{
	char *at = anon_new(RECALL_SIZE);
	struct pinl_lease *lease = lease_for(r, t, v, at);
	uint64_t begin = now_ns(), end, event;
	int err = fire(t, r->ctx, at);

	end = now_ns();
	if (err != (v->kind == PINL_REFUSE ? -EBUSY : 0))
		fail("%s under %s: %s", t->name, v->name, strerror(-err));
	event = rig_await(r, v->event);
	if (keep) {
		sample(&l->device, event - begin);
		sample(&l->actor, end - begin);
	}
	rig_end(r, lease);
	if (t->op != PINL_OP_UNMAP || err)
		munmap(at, RECALL_SIZE);
}

static void measure(const struct bench *b, const struct trigger *t, const struct variant *v,
		    struct latency *l)
{
	struct rig r;

	if (v->kind == PINL_REFUSE && !t->call) /* a userfaultfd refuses nothing */
		return;
	rig_open(b, &r, v->answers);
	for (unsigned i = 0; i < b->n + WARM_UP; i++)
		once(&r, t, v, l, i >= WARM_UP);
	rig_close(&r);
	latency_result(b, t->name, v->name, l);
}

/* The same call without any lease: plain, or with a monitor that reads events and does nothing. */
static void measure_without(const struct bench *b, const struct trigger *t, struct floor_monitor *f,
			    struct latency *l)
{
	for (unsigned i = 0; i < b->n + WARM_UP; i++) {
		char *at = anon_new(RECALL_SIZE);
		uint64_t begin;

		if (f)
			floor_watch(f, at, RECALL_SIZE);
		begin = now_ns();
		must(fire(t, NULL, at), t->name);
		if (i >= WARM_UP)
			sample(&l->actor, now_ns() - begin);
		if (t->op != PINL_OP_UNMAP)
			munmap(at, RECALL_SIZE);
	}
	latency_result(b, t->name, f ? "floor" : "plain", l);
}

void group_recall_mem(const struct bench *b)
{
	struct latency l = {0};
	const char *why;
	struct floor_monitor *f = floor_uffd(b, &why);

	if (!f) {
		left_out(b, "recalls of memory", why);
		return;
	}
	for (size_t t = 0; t < sizeof triggers / sizeof *triggers; t++) {
		if (!triggers[t].call) {
			measure_without(b, &triggers[t], NULL, &l);
			measure_without(b, &triggers[t], f, &l);
		}
		for (int i = 0; i < n_recall_variants; i++)
			measure(b, &triggers[t], recall_variant(b, i), &l);
	}
	floor_end(f);
	free(l.device.ns);
	free(l.actor.ns);
}
