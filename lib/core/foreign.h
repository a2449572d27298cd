/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Leases of other processes, kept here for them: the arbiter's side of a file lease. One is a lease like
 * any other, found by its file, asked of the same policy, revoked by the same state machine; but its
 * addresses mean something in its holder only. So its holder is told of each change and answers with a
 * number, and who doesn't answer in time is forced by the device's `stop`.
 */
#ifndef PL_CORE_FOREIGN_H
#define PL_CORE_FOREIGN_H

#include <sys/stat.h>

#include "core/ctx.h"

enum pl_tell {
	PL_TELL_FORCED,
	PL_TELL_RECALL,
	PL_TELL_LOST,
	PL_TELL_REFUSED,
	PL_TELL_GONE, /* lost, by a change that has waited for it and is let go now */
};

struct pl_foreign_ops {
	/* Of each change; recall->change_id is what the answer names. ctx->lock held: note it, wake
	 * somebody, nothing else. */
	void (*tell)(struct pinl_lease *lease, const struct pl_recall *recall, enum pl_tell what);

	/* How long a notice of now waits for its answer; and since when changes waited that wait for
	 * this lease no more. The same holds. */
	uint64_t (*grace)(struct pinl_lease *lease, uint64_t now_ns);
	void (*held)(struct pinl_lease *lease, uint64_t since_ns);

	/* All of it is off its device: PINL_RELEASED. The same holds. May be NULL. */
	void (*taken)(struct pinl_lease *lease);

	/* Some of it is an orphan since then; NULL: nothing of it any more. The same holds. */
	void (*orphan)(struct pinl_lease *lease, const struct pl_recall *lost, uint64_t since_ns);

	/* After the device's stop() for a force: -EAGAIN while drain() would have to wait for it, though
	 * no longer than till then. Worker, the lease busy, no lock. */
	int (*drained)(struct pinl_lease *lease, uint64_t deadline_ns);
};

struct pl_foreign {
	const struct stat *file; /* of the descriptor the holder has shown */
	int fd; /* O_PATH; the lease's, if it comes to be. -1: that of the file's other leases */
	uint64_t offset;
	uintptr_t start, end; /* in the holder */
	enum pinl_memory_kind kind;
	long fs_magic;
	bool shared;
	unsigned flags;
	struct pinl_policy policy;
	pid_t owner, owner_thread;
	uint64_t since_ns; /* when the holder took it */
	bool resumed;	   /* it was there before the changes that are under way, unknown to them */
	void *cookie;
};

/* From now on what is leased to the device is its holder's. */
void pl_device_foreign(struct pinl_device *device, const struct pl_foreign_ops *ops);

/* It has been an orphan since then, as an earlier process has found. */
struct pl_foreign_orphan {
	uint64_t start, end, since_ns;
	uint32_t op;
	int32_t actor_pid;
};
void pl_foreign_is_orphan(struct pinl_lease *lease, const struct pl_foreign_orphan *orphan);

/* Has the file leases? */
bool pl_foreign_known(struct pinl_ctx *ctx, uint64_t dev, uint64_t ino);

/* As pinl_map_range(). The descriptor is used up in any case. */
int pl_foreign_lease(struct pinl_device *device, const struct pl_foreign *foreign,
		     struct pinl_lease **lease);

/* In state NOTICED, ctx->lock held: when it will be forced, or, if that has been tried in vain, when who
 * waits goes on. */
uint64_t pl_foreign_deadline(const struct pinl_lease *lease);

/* The change that waits for it longest, of those that are and whose actors wait; ctx->lock held. NULL:
 * none does. */
const struct pinl_change *pl_foreign_waiter(const struct pinl_lease *lease,
					    bool (*is)(const struct pinl_change *change));

/* A force is at it, or about to be: its end would take as long. */
bool pl_foreign_busy(struct pinl_lease *lease);

/* All of it has been taken. */
bool pl_foreign_released(struct pinl_lease *lease);

/* In a backend's stop or drain: the holder has been killed for this lease. */
void pl_foreign_killed(struct pinl_mapping *mapping);

/* Of a FORCED event: was it taken from outside of its holder? The first says so in it. */
void pl_foreign_mark(const struct pinl_lease *lease, const struct pl_recall *recall,
		     struct pinl_event *event);
bool pl_foreign_outside(const struct pinl_event *event);

/* Some of it has been taken, by force or not. */
bool pl_foreign_lost(struct pinl_lease *lease);

/*
 * The holder's answer: [va] is off the device, or all of it if `whole`; an empty va: the device has
 * followed the change, the lease lives on. An answer to anything but the
 * last that the holder was told ends no recall. -EALREADY: it has been forced. Late also where force
 * has failed.
 */
int pl_foreign_answer(struct pinl_lease *lease, uint64_t seq, const struct pl_range *va, bool whole,
		      enum pinl_outcome outcome);

/* The same, unasked: it has been so since a time when the holder couldn't say it. */
int pl_foreign_taken(struct pinl_lease *lease, const struct pl_range *va, bool whole,
		     enum pinl_outcome outcome);

/* Who waits is about to be let go, as the context is closed: those whose leases are in the way are told,
 * and that he goes on.
 */
void pl_foreign_let_go(struct pinl_ctx *ctx);

#endif
