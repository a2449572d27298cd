/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One life with one failure; see fail_life.h. What is the test's own is never failed. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <pinlease/device.h>

#include "fail_rig.h"
#include "failnth.h"
#include "proc.h"

#define GRACE_MS 15
#define CAN_FAIL (IN_OPEN | IN_DEVICE_OPEN | IN_MAP | IN_CHANGE)

static const char *what_fired;

static bool fired(void)
{
	return *what_fired;
}

static void phase(struct run *r, const char *name, unsigned which)
{
	snprintf(r->report->phase, sizeof r->report->phase, "%s", name);
	pinl_set_error(0, "%s", "");
	/* What can't fail may not work when it never gets what it needs. */
	failnth_arm(r->l->fail & which & (r->lasting ? CAN_FAIL : ~0u));
}

/* A failing call says so properly; and only because something was made to fail, now or before. */
static void judge(struct run *r, int err, const char *sentence)
{
	failnth_arm(false);
	if (!err)
		return;
	snprintf(r->report->said, sizeof r->report->said, "%s: %s", strerror(-err), sentence);
	if (!fired())
		wrong(r, "%s fails by itself: %s: %s", r->report->phase, strerror(-err), sentence);
	if (err > 0 || err < -133)
		wrong(r, "%s returns %d", r->report->phase, err);
	if (strlen(sentence) < 10)
		wrong(r, "%s fails (%s) without a sentence: \"%s\"", r->report->phase, strerror(-err),
		      sentence);
}

/* What failed works when nothing fails. Where less was promised before, it may not. */
static bool again(struct run *r, int err)
{
	if (err && !r->weaker)
		wrong(r, "%s fails again with nothing in the way: %s: %s", r->report->phase,
		      strerror(-err), pinl_error());
	return !err;
}

/* ------------------------------------------------------------------------------- open, map, close -- */

static int open_ctx(struct run *r)
{
	struct pinl_opts opts = {
		.size = sizeof opts, .drain_ms = 2000, .ceiling_ms = 10000, .summary_fd = -1};

	return pinl_open(&opts, &r->ctx);
}

static void life_open(struct run *r)
{
	char text[1024];
	int err;

	phase(r, "pinl_open", IN_OPEN);
	err = open_ctx(r);
	judge(r, err, pinl_error());
	if (err && r->ctx)
		wrong(r, "a failed pinl_open touched its output");
	if (err)
		again(r, open_ctx(r));
	pinl_sources(r->ctx, text, sizeof text);
	if (!r->healthy)
		snprintf(r->report->sources, sizeof r->report->sources, "%s", text);
	else
		r->weaker |= strcmp(text, r->healthy->sources) != 0;
	if (r->weaker && !fired())
		wrong(r, "sources differ without a failure: %s", text);
}

static int open_device(struct run *r)
{
	struct pinl_uring_arg arg = {.size = sizeof arg, .ring = &r->ring, .slots = 8};

	if (is_verbs(r))
		return verbs_open_device(r);
	return pinl_device_open(r->ctx, r->l->device, is_uring(r) ? &arg : NULL, &r->dev);
}

static bool life_device(struct run *r)
{
	int err;

	phase(r, "pinl_device_open", IN_DEVICE_OPEN);
	err = open_device(r);
	judge(r, err, pinl_error());
	if (err && r->dev)
		wrong(r, "a failed pinl_device_open touched its output");
	if (!err) /* a device can turn out able to do less; leases that need more are then refused */
		r->weaker |= fired();
	return !err || again(r, open_device(r));
}

static int map(struct run *r)
{
	struct pinl_policy p = {.size = sizeof p,
				.kind = r->l->kind,
				.then = r->l->then,
				.refuse = r->l->refuse,
				.grace_ms = r->l->answer ? 1000 : GRACE_MS};
	struct pinl_export x = {.size = sizeof x,
				.addr = r->va,
				.length = SIZE,
				.fd = r->other.ring_fd,
				.offset = IORING_OFF_SQES};
	uintptr_t va = (uintptr_t)r->va;
	int err;
	/* Some memory can't be watched in full: that is map's test, not ours. */
	unsigned raw = r->l->change == RAW_DONTNEED || r->l->change == RAW_FTRUNCATE;

	if (r->l->memory == EXPORTED && !r->exporter) {
		err = pinl_exporter_register(r->ctx, &x, NULL, NULL, &r->exporter);
		if (err)
			return err;
	}
	return pinl_map_range(r->dev, va, va + SIZE,
			      r->l->flags | PINL_WRITE | (raw ? 0 : PINL_COOPERATIVE), &p, r->addrs,
			      &r->lease);
}

static bool life_map(struct run *r)
{
	static const struct pinl_addr none[PAGES];
	struct pinl_lease_info info = {.size = sizeof info};
	int err;

	phase(r, "pinl_map_range", IN_MAP);
	err = map(r);
	judge(r, err, pinl_error());
	if (err && (r->lease || memcmp(r->addrs, none, sizeof none)))
		wrong(r, "a failed pinl_map_range touched its outputs");
	if (err && !again(r, map(r)))
		return false;
	pinl_lease_info(r->lease, &info);
	if (!r->healthy)
		r->report->memory = info.memory;
	else if (info.memory != r->healthy->memory)
		wrong(r, "the memory is taken for %s", pinl_memory_name(info.memory));
	if (!r->healthy)
		memcpy(r->report->coverage, info.coverage, sizeof info.coverage);
	else
		r->weaker |= memcmp(info.coverage, r->healthy->coverage, sizeof info.coverage) != 0;
	if (r->weaker && !fired())
		wrong(r, "the coverage differs without a failure");
	err = dev_write(r, 'D');
	if (err)
		wrong(r, "the device can't write: %s", strerror(-err));
	if (!is_staged(r) && (r->va[0] != 'D' || r->va[SIZE - 1] != 'D'))
		wrong(r, "the device wrote to other pages");
	return true;
}

static void check_counters(struct run *r)
{
	struct pinl_counters c = {.size = sizeof c};

	pinl_counters(r->ctx, &c);
	if (c.leases || c.bytes || c.mapped != c.unmapped || c.leaks)
		wrong(r, "counters: %lu leases, %lu bytes, %lu mapped, %lu unmapped, %lu leaks",
		      (unsigned long)c.leases, (unsigned long)c.bytes, (unsigned long)c.mapped,
		      (unsigned long)c.unmapped, (unsigned long)c.leaks);
	if (r->taken.err == -ETIMEDOUT && !c.drains_unconfirmed)
		wrong(r, "an unconfirmed drain isn't counted");
}

static void note_events(struct run *r)
{
	struct pinl_event ev = {.size = sizeof ev};

	while (!pinl_next_event(r->ctx, &ev)) {
		r->events[ev.type]++;
		if (ev.type == PINL_EV_FORCED || ev.type == PINL_EV_QUIESCED)
			r->taken = ev;
	}
}

static void life_unmap(struct run *r)
{
	phase(r, "pinl_unmap_range", IN_UNMAP);
	pinl_unmap_range(r->lease);
	pinl_exporter_unregister(r->exporter);
	failnth_arm(false);
	note_events(r);
	if (!r->l->change && !r->events[PINL_EV_ORPHAN] && memchr(r->va, 'F', SIZE))
		wrong(r, "what the device wrote is lost, and nobody was told");
	check_counters(r);
	check_stock(r, "after pinl_unmap_range", true);
	if (is_uring(r) && ring_buffers(r->ring.ring_fd))
		wrong(r, "the ring still has a buffer after pinl_unmap_range");
	if (is_uring(r) && dev_write(r, 'X') != -EFAULT)
		wrong(r, "the ring can still use the buffer after pinl_unmap_range");
}

/* ---------------------------------------------------------------------------------- the change -- */

static int make_change(struct run *r)
{
	switch (r->l->change) {
	case FTRUNCATE:
		return pinl_ftruncate(r->ctx, r->fd, 0);
	case MUNMAP:
		return pinl_munmap(r->ctx, r->va, SIZE);
	case RAW_DONTNEED:
		return madvise(r->va, SIZE, MADV_DONTNEED) ? -errno : 0;
	case RAW_FTRUNCATE:
		return ftruncate(r->fd, 0) ? -errno : 0;
	case REVOKE:
		return pinl_exporter_revoke(r->exporter, NULL);
	default:
		return 0;
	}
}

static bool is_raw(const struct run *r)
{
	return r->l->change == RAW_DONTNEED || r->l->change == RAW_FTRUNCATE;
}

static void *actor(void *arg)
{
	struct run *r = arg;

	if (is_raw(r))
		failnth_own(true);
	pinl_set_error(0, "%s", "");
	r->actor.err = make_change(r);
	snprintf(r->actor.sentence, sizeof r->actor.sentence, "%s", pinl_error());
	failnth_own(true); /* libc ends it */
	r->actor.done = 1;
	return NULL;
}

static enum pinl_state state_of(struct run *r)
{
	struct pinl_lease_info info = {.size = sizeof info};

	pinl_lease_info(r->lease, &info);
	return info.state;
}

static bool settled(struct run *r)
{
	enum pinl_state s = state_of(r);

	return s != PINL_NOTICED && s != PINL_FORCING;
}

static bool told(const struct run *r)
{
	switch (r->l->kind) {
	case PINL_RECALL:
		return r->events[PINL_EV_NOTICE] && r->events[PINL_EV_RELEASED];
	case PINL_FOLLOW:
		return r->events[PINL_EV_FOLLOWED];
	case PINL_REFUSE:
		return r->events[PINL_EV_REFUSED];
	default:
		return r->events[PINL_EV_ORPHAN];
	}
}

/* What a holder does while a change is under way: read events, answer, take completions. That of a raw
 * change may never be told, when something fails. */
static void hold_on(struct run *r)
{
	struct pollfd p = {.fd = pinl_fd(r->ctx), .events = POLLIN};
	bool answered = false;
	int late = 0;

	while (!r->actor.done || !settled(r) ||
	       (!told(r) && !r->actor.err && (!fired() || !is_raw(r) || late++ < 50))) {
		poll(&p, 1, 2);
		note_events(r);
		reap_all(r);
		if (!r->l->answer || answered || !r->events[PINL_EV_NOTICE])
			continue;
		answered = true;
		failnth_own(false);
		pinl_quiesced(r->lease);
		failnth_own(true);
	}
	note_events(r);
}

static void change_once(struct run *r, const char *name, unsigned which)
{
	r->actor.done = 0;
	phase(r, name, which);
	failnth_own(true); /* the holder isn't what is swept here */
	if (pthread_create(&r->actor.thread, NULL, actor, r))
		wrong(r, "rig: pthread_create");
	hold_on(r);
	pthread_join(r->actor.thread, NULL);
	failnth_own(false);
	failnth_arm(false);
}

static enum pinl_outcome asked(const struct run *r)
{
	return r->l->then == PINL_THEN_COPY	 ? PINL_OUT_COPY
	       : r->l->then == PINL_THEN_SCRATCH ? PINL_OUT_SCRATCH
						 : PINL_OUT_FAIL;
}

static void check_taken(struct run *r)
{
	bool off = r->events[PINL_EV_RELEASED] && r->taken.err != -ETIMEDOUT;

	if (r->taken.err && !fired())
		wrong(r, "the force fell short by itself: %s", strerror(-r->taken.err));
	if (fired() && !r->lasting && r->taken.err == -ETIMEDOUT)
		wrong(r, "a drain isn't confirmed because of something that is over");
	if (r->taken.type == PINL_EV_FORCED && !r->taken.err && r->taken.outcome != asked(r))
		wrong(r, "the force ended in %s without an error", pinl_outcome_name(r->taken.outcome));
	if (off && r->taken.outcome == PINL_OUT_COPY && !r->taken.err && !r->unmapped &&
	    r->l->change != RAW_DONTNEED) /* which does its work on the copy */
		for (size_t i = 0; i < SIZE; i++)
			if (r->va[i] != 'D')
				wrong(r, "the copy has lost byte %zu", i);
	if (off && r->l->change == REVOKE) {
		dev_write(r, 'X');
		if (memchr(r->va, 'X', SIZE))
			wrong(r, "the device writes to memory that its exporter has taken back");
	}
	if (!off || !r->witnessing)
		return;
	poison_old_pages(r);
	dev_write(r, 'X');
	check_old_pages(r);
}

static void life_change(struct run *r)
{
	bool refuses = r->l->kind == PINL_REFUSE;

	change_once(r, "the change", IN_CHANGE);
	if (is_raw(r) && r->actor.err && !(refuses && r->actor.err == -EBUSY))
		wrong(r, "the raw change got %s", strerror(-r->actor.err));
	if (!refuses && !is_raw(r))
		judge(r, r->actor.err, r->actor.sentence);
	if (r->actor.err && !refuses) {
		change_once(r, "the change again", 0);
		again(r, r->actor.err);
	}
	r->unmapped = r->l->change == MUNMAP && !r->actor.err;
	if (refuses && r->actor.err != -EBUSY && !fired())
		wrong(r, "not refused: %d", r->actor.err);
	/* Who was let go unseen is found at the latest when the lease ends. */
	if (!told(r) && !(fired() && is_raw(r)) && !(refuses && fired() && r->actor.err))
		wrong(r, "the change happened and nobody was told; lease state %s",
		      pinl_state_name(state_of(r)));
	check_taken(r);
}

/* ---------------------------------------------------------------------------------- all of it -- */

/* A failure that is over has left nothing broken: a second lease on the device works in every part. */
static void life_after(struct run *r)
{
	struct pinl_policy p = {.size = sizeof p, .kind = PINL_KEEP};
	char *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uintptr_t va = (uintptr_t)page;
	bool reads = !is_verbs(r) || r->l->then == PINL_THEN_COPY;
	char got[PAGE] = "";

	phase(r, "a second lease", 0);
	memset(page, 'F', PAGE);
	if (again(r, pinl_map_range(r->dev, va, va + PAGE, r->l->flags | PINL_WRITE, &p, r->addrs,
				    &r->lease))) {
		again(r, dev_write_page(r, 0, 'D'));
		if (reads)
			again(r, pinl_lease_read(r->lease, 0, PAGE, got));
		if (!r->weaker && (page[0] != 'D' || (reads && memcmp(got, page, PAGE))))
			wrong(r, "a second lease reads and writes something else");
		pinl_unmap_range(r->lease);
	}
	munmap(page, PAGE);
	check_stock(r, "after a second lease", true);
	if (!r->healthy)
		r->report->allocations = failnth_allocations();
	else if (failnth_allocations() > r->healthy->allocations)
		wrong(r, "without a lease there are %ld allocations more than in a life without failure",
		      failnth_allocations() - r->healthy->allocations);
}

static void life_with_lease(struct run *r)
{
	if (r->l->change)
		life_change(r);
	life_unmap(r);
	if (r->l->change && !told(r) && !r->events[PINL_EV_ORPHAN] && !r->events[PINL_EV_DEGRADED] &&
	    !r->actor.err)
		wrong(r, "the change happened and nobody was ever told");
}

/* The ring is its program's again. */
static void check_ring(struct run *r)
{
	if (!is_uring(r))
		return;
	if (ring_buffers(r->ring.ring_fd))
		wrong(r, "the ring still has a buffer after pinl_device_close");
	if (again(r, open_device(r)))
		pinl_device_close(r->dev);
}

void live(const struct life *l, unsigned n, unsigned choice, const struct life_report *healthy,
	  struct life_report *report)
{
	struct run r = {.l = l, .healthy = healthy, .report = report, .lasting = choice == 2};
	long allocations;

	what_fired = report->fired;
	if (failnth_start(n, choice, report->fired))
		wrong(&r, "rig: seccomp");
	allocations = failnth_allocations();
	rig_up(&r);
	life_open(&r);
	if (life_device(&r)) {
		if (life_map(&r))
			life_with_lease(&r);
		life_after(&r);
		phase(&r, "pinl_device_close", IN_DEVICE_CLOSE);
		pinl_device_close(r.dev);
		failnth_arm(false);
		check_ring(&r);
	}
	phase(&r, "pinl_close", IN_CLOSE);
	pinl_close(r.ctx);
	failnth_arm(false);
	if (failnth_allocations() != allocations)
		wrong(&r, "%ld allocations are leaked", failnth_allocations() - allocations);
	check_stock(&r, "after pinl_close", false);
	rig_down(&r);
	report->points = failnth_points();
	_exit(0);
}
