/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the library promises for a memory with a device, and whether that is what happens. What is
 * promised is asked of leases: pinl_lease_info.coverage is the table pinl_map_range() validates with,
 * and its verdict on each policy is taken by asking for it. Then every operation that takes pages from
 * the lease is really done, by somebody else, against a lease that answers when it is told.
 *
 * Nothing is inferred from the clock: told is an event, before is memory that still reads as it was when
 * the event is there, held is a caller who returns after the answer only, refused is EBUSY and memory
 * that is as it was. Timeouts only end the waiting for what doesn't come.
 */
#include "doctor.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

/* A busy machine may stand still for seconds; what is late is not what isn't promised. */
#define GRACE_MS   50000 /* the holder answers; nothing here waits for the force */
#define GIVE_UP_MS 20000
#define BUSY_MS	   10000
#define LATE_MS	   10000
#define SETTLE_MS  5 /* for a caller who is not held to show that */

#define RECALLS(outcome)                                                                                \
	{                                                                                               \
		.size = sizeof(struct pinl_policy), .kind = PINL_RECALL, .grace_ms = GRACE_MS,          \
		.then = (outcome)                                                                       \
	}
#define REFUSES(op)                                                                                     \
	{                                                                                               \
		"REFUSE",                                                                               \
			{.size = sizeof(struct pinl_policy),                                            \
			 .kind = PINL_REFUSE,                                                           \
			 .refuse = PINL_OPBIT(op)},                                                     \
			0                                                                               \
	}

const struct doctor_plan doctor_plans[DOCTOR_NR_PLANS] = {
	{"KEEP", {.size = sizeof(struct pinl_policy), .kind = PINL_KEEP}, 0},
	{"FAIL", RECALLS(PINL_THEN_FAIL), 0},
	{"SCRATCH", RECALLS(PINL_THEN_SCRATCH), 0},
	{"COPY", RECALLS(PINL_THEN_COPY), 0},
	{"STRICT", RECALLS(PINL_THEN_FAIL), PINL_STRICT},
	{"FOLLOW", {.size = sizeof(struct pinl_policy), .kind = PINL_FOLLOW}, 0},
	REFUSES(PINL_OP_TRUNCATE),
	REFUSES(PINL_OP_PUNCH),
	REFUSES(PINL_OP_ZERO),
	REFUSES(PINL_OP_COLLAPSE),
	REFUSES(PINL_OP_INSERT),
	REFUSES(PINL_OP_UNMAP),
	REFUSES(PINL_OP_OVERMAP),
	REFUSES(PINL_OP_REMAP),
	REFUSES(PINL_OP_DONTNEED),
	REFUSES(PINL_OP_FREE),
	REFUSES(PINL_OP_REMOVE),
	REFUSES(PINL_OP_GUARD),
};

bool doctor_revocable(const struct doctor_device *device)
{
	return device->device_class >= PINL_DEV_REVOCABLE;
}

/* Of this process, which has no lease now: the kernel hasn't let them go yet. */
static bool has_pins(void)
{
	FILE *f = fopen("/proc/self/status", "re");
	unsigned long kb = 0;
	char line[256];

	while (f && fgets(line, sizeof(line), f) && sscanf(line, "VmPin: %lu", &kb) != 1)
		;
	if (f)
		fclose(f);
	return kb;
}

/*
 * The last change of these addresses may still be on its way out: then it is -EBUSY for a moment. And
 * the kernel lets pins go, and counts them against a limit, in its own time: then it is -ENOMEM.
 */
static int take(struct doctor_device *device, const struct doctor_sample *s,
		const struct pinl_policy *policy, unsigned flags, unsigned patience_ms,
		struct pinl_lease **lease)
{
	uint64_t until = tool_now() + patience_ms * 1000000ull;
	uint64_t late = patience_ms ? until + LATE_MS * 1000000ull : until;
	uintptr_t start = (uintptr_t)s->map;
	int err;

	flags |= PINL_WRITE | (device->pinned ? PINL_PIN : 0);
	if (s->memory->how == HOW_FILE && s->memory->shared)
		flags |= PINL_STAGE;
	for (;;) {
		err = pinl_map_range(device->dev, start, start + s->size, flags, policy, NULL, lease);
		if ((err != -EBUSY && err != -ENOMEM) ||
		    (tool_now() > until && !(err == -ENOMEM && tool_now() < late && has_pins())))
			return err;
		poll(NULL, 0, err == -EBUSY ? 1 : 10);
	}
}

static uint64_t lease_id(struct pinl_lease *lease)
{
	struct pinl_lease_info info = {.size = sizeof(info)};

	return pinl_lease_info(lease, &info) ? 0 : info.id;
}

/* pinlease's own completions, so that drains are confirmed; there are no others on this ring. */
static void reap(struct doctor_device *device)
{
	struct io_uring_cqe *cqe;

	while (device->has_ring && !io_uring_peek_cqe(&device->ring, &cqe)) {
		pinl_uring_cqe(device->dev, cqe->user_data);
		io_uring_cqe_seen(&device->ring, cqe);
	}
}

/* Events of other leases are of the past. */
static bool wait_event(struct doctor *d, uint64_t id, enum pinl_event_type type, int timeout_ms)
{
	uint64_t until = tool_now() + (uint64_t)timeout_ms * 1000000u;
	struct pollfd p = {.fd = pinl_fd(d->ctx), .events = POLLIN};
	struct pinl_event ev = {.size = sizeof(ev)};

	do {
		while (!pinl_next_event(d->ctx, &ev))
			if (ev.lease_id == id && ev.type == type)
				return true;
		if (timeout_ms)
			poll(&p, 1, 100);
	} while (tool_now() < until);
	return false;
}

/* ------------------------------------------------------------------------------------- one change -- */

struct trial {
	struct doctor *d;
	struct doctor_device *device;
	struct doctor_sample sample;
	struct pinl_lease *lease;
	uint64_t id;
	struct doctor_report report;
	bool reported;
};

/* Huge pages of the last sample may come back to their pool late: the kernel lets pins go in its own
 * time. */
static int make_sample(const struct doctor_memory *memory, struct doctor_sample *s)
{
	uint64_t until = tool_now() + GIVE_UP_MS * 1000000ull;
	int err = doctor_sample_make(memory, s);

	while (err == -ENOMEM && memory->how == HOW_HUGETLB && tool_now() < until) {
		poll(NULL, 0, 10);
		err = doctor_sample_make(memory, s);
	}
	return err;
}

/* A lease on fresh memory, and the change under way. */
static int begin(struct trial *t, const struct doctor_row *row, const struct pinl_policy *policy,
		 enum pinl_op op)
{
	int err = make_sample(row->memory, &t->sample);

	if (!err)
		err = take(t->device, &t->sample, policy, PINL_COOPERATIVE, GIVE_UP_MS, &t->lease);
	if (err)
		return err;
	t->id = lease_id(t->lease);
	return doctor_actor_start(&t->d->actor, &t->sample, op);
}

static bool reported(struct trial *t, int timeout_ms)
{
	if (!t->reported)
		t->reported = !doctor_actor_wait(&t->d->actor, timeout_ms, &t->report);
	return t->reported;
}

/* The end of the lease lets go whoever is still held. */
static void end(struct trial *t)
{
	pinl_unmap_range(t->lease);
	t->lease = NULL;
	doctor_actor_end(&t->d->actor);
	reap(t->device);
	doctor_sample_drop(&t->sample);
}

static void answer(struct trial *t, struct doctor_cell *cell)
{
	uint64_t answered;

	if (reported(t, cell->promised & PINL_CAN_HOLD ? SETTLE_MS : 0)) {
		pinl_quiesced(t->lease);
		return;
	}
	if (doctor_sample_intact(&t->sample))
		cell->seen |= PINL_CAN_BEFORE;
	answered = tool_now();
	pinl_quiesced(t->lease);
	if (reported(t, GIVE_UP_MS) && t->report.end_ns >= answered)
		cell->seen |= PINL_CAN_HOLD;
}

/* Is it told, before it takes effect, and held until the holder has answered? */
static int try_told(struct trial *t, const struct doctor_row *row, enum pinl_op op,
		    struct doctor_cell *cell)
{
	bool recall = doctor_revocable(t->device);
	int err = begin(t, row, &doctor_plans[recall].policy, op);

	if (!err && wait_event(t->d, t->id, recall ? PINL_EV_NOTICE : PINL_EV_ORPHAN, GIVE_UP_MS)) {
		cell->seen |= PINL_CAN_TELL;
		if (recall)
			answer(t, cell);
	}
	if (!err && !reported(t, GIVE_UP_MS))
		err = -ETIMEDOUT;
	end(t);
	return err ? err : t->report.err;
}

/* Nobody tells: does the end of the lease find it? */
static int try_untold(struct trial *t, const struct doctor_row *row, enum pinl_op op,
		      struct doctor_cell *cell)
{
	int err = begin(t, row, &doctor_plans[0].policy, op);

	if (!err && !reported(t, GIVE_UP_MS))
		err = -ETIMEDOUT;
	end(t);
	cell->late = !err && wait_event(t->d, t->id, PINL_EV_ORPHAN, 0);
	return err ? err : t->report.err;
}

static int try_refused(struct trial *t, const struct doctor_row *row, enum pinl_op op,
		       struct doctor_cell *cell)
{
	struct pinl_policy policy = {
		.size = sizeof(policy), .kind = PINL_REFUSE, .refuse = PINL_OPBIT(op)};
	int err = begin(t, row, &policy, op);

	if (!err && !reported(t, GIVE_UP_MS))
		err = -ETIMEDOUT;
	if (!err && t->report.err == -EBUSY && doctor_sample_intact(&t->sample))
		cell->seen |= PINL_CAN_REFUSE;
	end(t);
	return err;
}

static struct trial trial(struct doctor *d, unsigned device)
{
	return (struct trial){.d = d, .device = &d->devices[device], .sample = {.fd = -1, .other = -1}};
}

static void try_cell(struct doctor *d, const struct doctor_row *row, unsigned device, enum pinl_op op,
		     struct doctor_cell *cell)
{
	struct trial t = trial(d, device);

	cell->tried = true;
	cell->err = cell->promised & PINL_CAN_TELL ? try_told(&t, row, op, cell)
						   : try_untold(&t, row, op, cell);
	if (cell->err || !(cell->promised & PINL_CAN_REFUSE))
		return;
	t = trial(d, device);
	cell->err = try_refused(&t, row, op, cell);
}

bool doctor_short(const struct doctor_cell *cell)
{
	return cell->harmful || (cell->tried && (cell->promised & ~cell->seen));
}

/* -------------------------------------------------------------------------------------- a lease -- */

static void ask_lease(struct doctor_device *device, struct doctor_row *row, struct doctor_pair *pair,
		      struct pinl_lease *lease)
{
	struct pinl_lease_info info = {.size = sizeof(info)};

	pinl_lease_info(lease, &info);
	device->device_class = info.device_class;
	pair->leased = true;
	pair->staged = info.stage != 0;
	snprintf(pair->kind, sizeof(pair->kind), "%s", pinl_memory_name(info.memory));
	for (int op = 0; op < PINL_OP_NR; op++) {
		struct doctor_cell *cell = &pair->cells[op];

		enum doctor_outcome bare = row->bare[op].outcome;

		cell->here = bare != BARE_NOT_HERE;
		cell->detaches = info.detaching & PINL_OPBIT(op);
		cell->harmful =
			!cell->detaches && device->pinned && (bare == BARE_LOST || bare == BARE_FILE);
		cell->coverage = info.coverage[op];
		/* Nobody waits for a device that can't be revoked, and its holder isn't asked. */
		cell->promised = cell->coverage;
		if (!doctor_revocable(device))
			cell->promised &= PINL_CAN_TELL | PINL_CAN_REFUSE;
	}
}

static void ask_policies(struct doctor_device *device, struct doctor_row *row, struct doctor_pair *pair,
			 const struct doctor_sample *s)
{
	for (int i = 0; i < DOCTOR_NR_PLANS; i++) {
		const struct doctor_plan *plan = &doctor_plans[i];
		struct doctor_verdict *v = &pair->verdicts[i];
		struct pinl_lease *lease;

		v->err = take(device, s, &plan->policy, plan->flags,
			      !i	     ? BUSY_MS
			      : pair->leased ? GIVE_UP_MS
					     : 0,
			      &lease);
		if (v->err) {
			snprintf(v->why, sizeof(v->why), "%s", pinl_error());
			continue;
		}
		if (!i)
			ask_lease(device, row, pair, lease);
		pinl_unmap_range(lease);
	}
}

void doctor_pair(struct doctor *d, struct doctor_row *row, unsigned at)
{
	struct doctor_device *device = &d->devices[at];
	struct doctor_pair *pair = &row->pairs[at];
	struct doctor_sample s;
	char path[40];
	int err;

	if (!device->dev)
		return;
	err = make_sample(row->memory, &s);
	if (err) {
		snprintf(pair->why, sizeof(pair->why), "can't be made now: %s", strerror(-err));
		return;
	}
	snprintf(path, sizeof(path), "/proc/self/fd/%d", s.fd);
	row->watch_err = s.fd < 0 ? 0 : pinl_watch_fs(d->ctx, path);
	ask_policies(device, row, pair, &s);
	doctor_sample_drop(&s);
	if (!pair->leased)
		memcpy(pair->why, pair->verdicts[0].why, sizeof(pair->why));
	for (int op = 0; pair->leased && op < PINL_OP_NR; op++)
		if (pair->cells[op].here && pair->cells[op].detaches)
			try_cell(d, row, at, op, &pair->cells[op]);
}
