/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The owners of the stress test: who makes leases and ends them, and the holder who hears of recalls. */
#include "stress.h"

#include <errno.h>
#include <string.h>

/* -------------------------------------------------------------------------------- making a lease -- */

static bool is_demand(const struct slot *s)
{
	return s->kind == ANON_DEMAND || s->kind == DISK_DEMAND;
}

static struct pinl_policy random_policy(struct actor *a, const struct slot *s)
{
	static const unsigned graces[] = {0, 0, 1, 2, 4};
	struct pinl_policy p = {.size = sizeof p, .kind = PINL_RECALL};

	p.grace_ms = graces[roll(a, 5)];
	p.then = roll(a, is_demand(s) ? PINL_THEN_COPY : PINL_THEN_COPY + 1);
	if (s->keep)
		p.kind = roll(a, 3) ? PINL_KEEP : PINL_REFUSE;
	else if (is_demand(s) && roll(a, 2))
		p.kind = PINL_FOLLOW;
	if (p.kind == PINL_REFUSE)
		p.refuse = roll(a, PINL_OPS_ALL) + 1;
	return p;
}

static enum device random_device(struct actor *a, const struct slot *s)
{
	if (is_demand(s))
		return SOFT;
	return roll(a, round_.has_uring ? DEVICES : URING);
}

/* Is there a reason why this memory can't be leased? */
static bool may_fail(const struct slot *s, int err)
{
	if (err == -EBUSY || err == -EEXIST ||
	    err == -EOPNOTSUPP) /* others' leases and changes, policies */
		return true;
	return s->kind == GROUPED || atomic_load(&s->begun);
}

static void publish(struct slot *s, struct pinl_lease *lease, const struct pinl_policy *policy,
		    enum device device, const struct pinl_addr *addrs)
{
	struct pinl_lease_info info = {.size = sizeof info};

	if (pinl_lease_info(lease, &info))
		broken("test", "no info: %s", pinl_error());
	if (info.id >= RECORDS) { /* the round's records are full: it ends */
		atomic_store(&round_.stop, true);
	} else {
		round_.record[info.id].mapped = true;
		atomic_store(&round_.record[info.id].slot, s->nr + 1);
	}
	pthread_rwlock_wrlock(&s->lease_lock);
	s->lease = lease;
	s->policy = *policy;
	s->device = device;
	s->info = info;
	s->id = info.id;
	memcpy(s->addrs, addrs, sizeof s->addrs);
	s->has_addrs = true;
	s->clean = s->quiet_at_map && atomic_load(&s->begun) == s->begun_at_map;
	s->alone &= atomic_load(&round_.giving_begun) == s->giving_at_map;
	atomic_store(&s->over, false);
	pthread_rwlock_unlock(&s->lease_lock);
	witness_expect(s, info.id);
}

/* False: this memory is of no more use. */
static bool make_lease(struct actor *a, struct slot *s)
{
	struct pinl_policy policy = random_policy(a, s);
	enum device device = random_device(a, s);
	unsigned flags = PINL_WRITE | (is_demand(s) ? 0 : PINL_PIN), ended;
	struct pinl_addr addrs[PAGES];
	struct pinl_lease *lease;
	int err;

	if (witness_poisoned(s))
		return false;
	witness_expect(s, 0);
	if (policy.kind == PINL_REFUSE || !roll(a, 4))
		flags |= PINL_COOPERATIVE;
	now_doing(a, "map", s);
	pthread_rwlock_rdlock(&s->mem_lock); /* the addresses stay ours */
	s->begun_at_map = atomic_load(&s->begun);
	ended = atomic_load(&s->ended);
	s->giving_at_map = atomic_load(&round_.giving_begun);
	s->quiet_at_map = ended == s->begun_at_map;
	s->alone = atomic_load(&round_.giving_ended) == s->giving_at_map;
	err = s->gone ? -ENOMEM
		      : pinl_map_range(round_.dev[device], (uintptr_t)s->va, (uintptr_t)s->va + SIZE,
				       flags, &policy, addrs, &lease);
	pthread_rwlock_unlock(&s->mem_lock);
	a->n[err ? N_NOT_MAPPED : N_MAPPED]++;
	if (!err)
		publish(s, lease, &policy, device, addrs);
	else if (!may_fail(s, err))
		broken("map", "untouched %s: %s: %s", kind_names[s->kind], strerror(-err), pinl_error());
	return !err || err == -EBUSY || err == -EEXIST;
}

/* ------------------------------------------------------------------------------- ending a lease -- */

static void note(struct slot *s, uint64_t hit)
{
	struct record *r = s->id < RECORDS ? &round_.record[s->id] : NULL;

	if (!r)
		return;
	r->follows = !(s->info.flags & PINL_PIN) && s->policy.kind != PINL_RECALL;
	r->must = hit >= s->id;
	r->untouched = s->clean && s->alone && atomic_load(&s->begun) == s->begun_at_map &&
		       !atomic_load(&r->asked);
	r->kind = s->kind;
	r->policy = s->policy;
	r->device = s->device;
	r->ended = true;
}

void unlease(struct actor *a, struct slot *s)
{
	struct pinl_lease *lease = s->lease;
	uint64_t hit = atomic_load(&s->hit);
	int err = pinl_lease_check(lease);

	now_doing(a, "withdraw the lease", s);
	pthread_rwlock_wrlock(&s->lease_lock);
	s->lease = NULL;
	pthread_rwlock_unlock(&s->lease_lock);
	now_doing(a, "unmap", s);
	pinl_unmap_range(lease);
	atomic_store(&s->over, true);
	a->n[N_UNMAPPED]++;
	note(s, hit);
	if (s->id < RECORDS)
		round_.record[s->id].stale = err == -ESTALE;
	if (roll(a, 2)) {
		witness_released(a, s, s->id, 0, UINTPTR_MAX);
		now_doing(a, "write to what was unmapped", s);
		stale_writes(a, s);
	}
	witness_expect(s, 0);
}

/* ---------------------------------------------------------------------------------------- holder -- */

static void quiesce(struct actor *a, struct slot *s)
{
	int err;

	if (s->policy.kind == PINL_REFUSE) /* its lease is to last */
		return;
	if (s->id < RECORDS)
		atomic_store(&round_.record[s->id].asked, true);
	now_doing(a, "quiesced", s);
	err = pinl_quiesced(s->lease);
	if (err && err != -EALREADY)
		broken("test", "pinl_quiesced: %s", pinl_error());
	if (pinl_lease_check(s->lease) != -ESTALE)
		broken("I1", "a quiesced lease is said to be usable");
	a->n[N_QUIESCED]++;
}

static void holder_hears(struct actor *a, struct slot *s, uint64_t id)
{
	switch (roll(a, 8)) {
	case 0:
	case 1:
		if (pthread_rwlock_tryrdlock(&s->lease_lock))
			return;
		if (s->lease && s->id == id)
			quiesce(a, s);
		pthread_rwlock_unlock(&s->lease_lock);
		break;
	case 2:
	case 3:
		atomic_store(&s->answer, 1 + roll(a, 2));
		break;
	case 4: /* the holder changes his own memory while he hears of a change of it */
		change(a, s, false);
		break;
	}
}

/* The allocator unmaps too, a sanitizer's most of all, and nobody here counts that (giving_begun). Of
 * FOLLOWED the operation isn't known. */
static bool of_unmapping(const struct pinl_event *ev)
{
	return ev->op == PINL_OP_UNMAP || ev->type == PINL_EV_FOLLOWED;
}

void on_event(const struct pinl_event *ev, void *arg)
{
	struct actor *a = arg;
	struct record *r = ev->lease_id < RECORDS ? &round_.record[ev->lease_id] : NULL;
	struct slot *s = NULL;

	atomic_fetch_add(&round_.seen[ev->type], 1);
	if (ev->type == PINL_EV_DROPPED)
		atomic_fetch_add(&round_.dropped, ev->bytes);
	if (!ev->lease_id)
		return;
	if (ev->lease_id == atomic_load(&round_.marker) && ev->type == PINL_EV_ORPHAN_END)
		atomic_store(&round_.marked, true);
	if (r) {
		atomic_fetch_or(&r->told, 1u << ev->type);
		if (of_unmapping(ev))
			atomic_store(&r->recycled, true);
		s = atomic_load(&r->slot) ? &round_.slot[atomic_load(&r->slot) - 1] : NULL;
	}
	if (s && ev->type == PINL_EV_NOTICE)
		holder_hears(a, s, ev->lease_id);
	if (s && ev->type == PINL_EV_RELEASED && ev->err != -ETIMEDOUT) {
		bool part = ev->outcome == PINL_OUT_SCRATCH || ev->outcome == PINL_OUT_COPY;

		witness_released(a, s, ev->lease_id, part ? ev->start : 0, part ? ev->end : UINTPTR_MAX);
	}
	now_doing(a, "wait for an event", NULL);
}

/* ---------------------------------------------------------------------------------------- owners -- */

static void ask_about(struct actor *a, struct slot *s)
{
	struct pinl_lease_info info = {.size = sizeof info};
	uint8_t dirty[PAGES];
	char text[512], page[PAGE];
	int err;

	now_doing(a, "ask about the lease", s);
	switch (roll(a, 3)) {
	case 0:
		if (pinl_lease_info(s->lease, &info) || info.id != s->id ||
		    pinl_lease_describe(s->lease, text, sizeof text) <= 0)
			broken("test", "no info: %s", pinl_error());
		break;
	case 1:
		err = pinl_lease_read(s->lease, roll(a, PAGES) * PAGE, PAGE, page);
		if (err && err != -ENODATA && err != -EFAULT)
			broken("test", "read: %s", pinl_error());
		break;
	default:
		if (s->device != SOFT)
			return;
		if (pinl_device_protect(s->lease, s->info.start, s->info.end) ||
		    pinl_device_dirty(s->lease, s->info.start, s->info.end, dirty))
			broken("test", "protect, dirty: %s", pinl_error());
	}
}

static void leased_step(struct actor *a, struct slot *s)
{
	int answer = atomic_exchange(&s->answer, 0);

	if (answer == 1) {
		quiesce(a, s);
		return;
	}
	switch (answer ? 0 : roll(a, 12)) {
	case 0:
	case 1:
	case 2:
		unlease(a, s);
		break;
	case 3:
		quiesce(a, s);
		break;
	case 4:
	case 5:
		ask_about(a, s);
		break;
	default:
		change(a, s, true);
	}
}

void owner_step(struct actor *a)
{
	struct slot *s = &round_.slot[a->nr + OWNERS * roll(a, SLOTS / OWNERS)];

	if (s->lease)
		leased_step(a, s);
	else if (!s->made)
		make_memory(a, s);
	else if (!roll(a, 4) || !make_lease(a, s))
		dispose_memory(a, s);
}
