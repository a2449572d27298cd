/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Words for values: names, events, lease descriptions. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "core/export.h"
#include "core/order.h"
#include "core/text.h"

#define NAME(table, i) ((unsigned)(i) < sizeof table / sizeof *table && table[i] ? table[i] : "?")

const char *pinl_op_name(enum pinl_op op)
{
	static const char *const n[] = {"truncate", "punch",  "zero",	  "collapse", "insert", "munmap",
					"overmap",  "mremap", "dontneed", "free",     "remove", "guard"};
	return NAME(n, op);
}

const char *pinl_state_name(enum pinl_state state)
{
	static const char *const n[] = {"active", "noticed", "forcing", "released"};
	return NAME(n, state);
}

const char *pinl_outcome_name(enum pinl_outcome outcome)
{
	static const char *const n[] = {"none", "quiesced", "fail", "scratch", "copy", "killed"};
	return NAME(n, outcome);
}

const char *pinl_memory_name(enum pinl_memory_kind kind)
{
	static const char *const n[] = {
		"anonymous",	       "shmem", "hugetlb",	 "private file mapping",
		"shared file mapping", "dax",	"device memory", "secret memory"};
	return NAME(n, kind);
}

void pl_text_add(struct pl_text *t, const char *fmt, ...)
{
	size_t room = t->used < t->len ? t->len - t->used : 0;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(room ? t->buf + t->used : NULL, room, fmt, ap);
	va_end(ap);
	if (n > 0)
		t->used += n;
}

static const char *event_name(enum pinl_event_type type)
{
	static const char *const n[] = {"notice",
					"quiesced",
					"forced",
					"released",
					"answered",
					"refused",
					"followed",
					"orphan",
					"orphan end",
					"degraded",
					"leak",
					"dropped",
					"deferred change done",
					"fault",
					"keys"};
	return NAME(n, type);
}

static void event_where(const struct pinl_event *ev, struct pl_text *t)
{
	if (ev->end)
		pl_text_add(t, " [%#lx, %#lx)", (unsigned long)ev->start, (unsigned long)ev->end);
	if (ev->file_ino && ev->file_end >= INT64_MAX / 2)
		pl_text_add(t, " file %u:%u inode %lu from byte %lu", major(ev->file_dev),
			    minor(ev->file_dev), (unsigned long)ev->file_ino,
			    (unsigned long)ev->file_start);
	else if (ev->file_ino)
		pl_text_add(t, " file %u:%u inode %lu bytes %lu-%lu", major(ev->file_dev),
			    minor(ev->file_dev), (unsigned long)ev->file_ino,
			    (unsigned long)ev->file_start, (unsigned long)ev->file_end);
	if (ev->actor_tid)
		pl_text_add(t, " by %d/%d", ev->actor_pid, ev->actor_tid);
	if (!strcmp(ev->source, PL_ORDER_SOURCE))
		pl_text_add(t, " asked for by pinlease recall");
	else if (!strcmp(ev->source, PL_EXPORT_SOURCE))
		pl_text_add(t, " asked for by its exporter");
	else if (ev->source[0])
		pl_text_add(t, " seen by %s", ev->source);
}

static const char *uncounted_words(const struct pinl_event *ev)
{
	if (ev->err == -EOVERFLOW)
		return "not told of one by one: the cache has dropped all";
	if (ev->err == -ENOTCONN)
		return "counted for no more by the pinleased that did: the cache has dropped all, and "
		       "pinl_sources() says whether they are again";
	return NULL;
}

static const char *degraded_words(const struct pinl_event *ev)
{
	const char *uncounted = strcmp(ev->source, "generation") ? NULL : uncounted_words(ev);

	if (uncounted)
		return uncounted;
	switch (ev->err) {
	case -EBUSY:
		return ev->change_id ? "could not be refused"
				     : "refused no more: the pinleased that runs now can't";
	case -EAGAIN:
		return "other processes wait no more: the pinleased that runs now has no gate for it, "
		       "or no place there";
	case -EOPNOTSUPP:
		return "not seen when done raw";
	case -ETIMEDOUT:
		return "ended, and the device isn't known to be off its memory";
	case -ENOTCONN:
		return ev->lease_id
			       ? "not held for changes by other processes: its file can't be opened "
				 "any more, or pinleased has turned it away; lease it anew"
			       : "not held for changes by other processes: pinleased isn't there";
	case -EINTR:
		return "let go before the recall was over: it took too long, others waited behind "
		       "it, or pinleased ended";
	}
	return "not held before it took effect";
}

/* Of what was done to a lease. */
static const char *short_words(const struct pinl_event *ev)
{
	bool taken = ev->type == PINL_EV_FORCED || ev->type == PINL_EV_RELEASED;

	if (taken && ev->err == -EOPNOTSUPP && ev->outcome == PINL_OUT_FAIL)
		return "not as asked for: SCRATCH or COPY couldn't be had";
	if ((taken || ev->type == PINL_EV_QUIESCED) && ev->err == -ETIMEDOUT)
		return "it isn't confirmed that the device is off";
	return strerror(-ev->err);
}

const char *pinl_exporter_kind_name(enum pinl_exporter_kind kind)
{
	static const char *const names[] = {"not device memory", "a driver's", "VFIO",
					    "dma-buf",		 "devdax",     "PCI"};

	return NAME(names, kind);
}

int pinl_event_format(const struct pinl_event *event, char *buf, size_t len)
{
	struct pinl_event whole = {0}, *ev = &whole;
	struct pl_text t = {buf, len, 0};

	memcpy(&whole, event, pl_event_known(event));
	pl_text_add(&t, "%s", event_name(ev->type));
	if (ev->lease_id)
		pl_text_add(&t, " lease %lu", (unsigned long)ev->lease_id);
	if (ev->op < PINL_OP_NR)
		pl_text_add(&t, " %s", pinl_op_name(ev->op));
	if (ev->type == PINL_EV_FORCED || ev->type == PINL_EV_RELEASED)
		pl_text_add(&t, " -> %s", pinl_outcome_name(ev->outcome));
	event_where(ev, &t);
	if (ev->type == PINL_EV_NOTICE && ev->deadline_ns > ev->time_ns)
		pl_text_add(&t, ", deadline in %.1f ms", (ev->deadline_ns - ev->time_ns) / 1e6);
	if (ev->type == PINL_EV_ANSWERED && ev->waited_ns)
		pl_text_add(&t, ", waited %.3f ms", ev->waited_ns / 1e6);
	if (ev->type == PINL_EV_ORPHAN_END && ev->err)
		pl_text_add(&t, ", held %.3f ms, what the device wrote there is not known",
			    ev->waited_ns / 1e6);
	else if (ev->type == PINL_EV_ORPHAN_END)
		pl_text_add(&t, ", held %.3f ms, the device changed %lu bytes there",
			    ev->waited_ns / 1e6, (unsigned long)ev->bytes);
	if (ev->type == PINL_EV_ORPHAN && ev->err == -ENODATA)
		pl_text_add(&t, ", %lu bytes the device wrote have no place in the file any more",
			    (unsigned long)ev->bytes);
	if (ev->type == PINL_EV_FAULT)
		pl_text_add(&t, ": device %s %s device address %#lx, and the IOMMU stopped it",
			    ev->device, ev->access & PINL_WRITE ? "wrote to" : "read from",
			    (unsigned long)ev->device_addr);
	if (ev->type == PINL_EV_DROPPED)
		pl_text_add(&t, " %lu events", (unsigned long)ev->bytes);
	if (ev->type == PINL_EV_KEYS)
		pl_text_add(&t, " at %#lx: key %#x, rkey %#x", (unsigned long)ev->addr, ev->key,
			    ev->rkey);
	if (ev->type == PINL_EV_DEGRADED)
		pl_text_add(&t, ": %s", degraded_words(ev));
	else if (ev->err && ev->type != PINL_EV_ORPHAN && ev->type != PINL_EV_FAULT)
		pl_text_add(&t, " (%s)", short_words(ev));
	return t.used;
}

static void describe_policy(const struct pinl_lease *l, struct pl_text *t)
{
	static const char *const kinds[] = {"KEEP", "RECALL", "REFUSE", "FOLLOW"};
	static const char *const thens[] = {"FAIL", "SCRATCH", "COPY", "KILL"};
	const struct pinl_policy *p = &l->policy;

	pl_text_add(t, ", policy %s", kinds[p->kind]);
	if (p->kind == PINL_RECALL)
		pl_text_add(t, " (%u ms, then %s)", p->grace_ms, thens[p->then]);
	for (int op = 0, n = 0; p->kind == PINL_REFUSE && op < PINL_OP_NR; op++)
		if (p->refuse & PINL_OPBIT(op))
			pl_text_add(t, "%s%s", n++ ? "," : " ", pinl_op_name(op));
	if (l->flags & PINL_KEEP_NAME)
		pl_text_add(t, ", and nobody takes the file's name");
}

/* by: whose changes are held. others: that are all but the lease's own process. */
static void describe_held_of(const struct pinl_lease *l, struct pl_text *t, const char *by, bool others)
{
	int n = 0;

	for (int op = 0; op < PINL_OP_NR; op++)
		if ((l->on->supervised[op] & PINL_CAN_HOLD) && !(l->on->coverage[op] & PINL_CAN_HOLD) &&
		    others == !!(l->on->supervised[op] & PL_ALL_OTHERS)) {
			if (!n++)
				pl_text_add(t, "; held where made by %s:", by);
			pl_text_add(t, "%s %s", n > 1 ? "," : "", pinl_op_name(op));
		}
}

static void describe_supervised(const struct pinl_lease *l, struct pl_text *t)
{
	describe_held_of(l, t, "another process", true);
	describe_held_of(l, t, "a process under pinlease run", false);
}

static void list_ops(struct pl_text *t, const char *label, unsigned ops)
{
	for (int op = 0; op < PINL_OP_NR; op++)
		if (ops & PINL_OPBIT(op)) {
			pl_text_add(t, "%s %s", label, pinl_op_name(op));
			label = ",";
		}
}

static unsigned ops_that(const struct pinl_lease *l, unsigned can, unsigned cannot)
{
	unsigned ops = 0;

	for (int op = 0; op < PINL_OP_NR; op++)
		if ((l->on->coverage[op] & can) == can && !(l->on->coverage[op] & cannot))
			ops |= PINL_OPBIT(op);
	return ops;
}

static void describe_raw(const struct pinl_lease *l, struct pl_text *t)
{
	unsigned refused = pl_policy_refused_ops(&l->policy, l->on->coverage);
	unsigned rest =
		(pl_policy_relevant_ops(l->on->mem.kind, l->on->mem.shared, l->flags & PINL_PIN) |
		 PINL_OPBIT(PINL_OP_GUARD)) &
		~refused;

	list_ops(t, " held:", rest & ops_that(l, PINL_CAN_HOLD | PINL_CAN_BEFORE, 0));
	list_ops(t, "; held, but seen after they took effect:",
		 rest & ops_that(l, PINL_CAN_HOLD, PINL_CAN_BEFORE));
	list_ops(t, "; told only, not held:", rest & ops_that(l, PINL_CAN_TELL, PINL_CAN_HOLD));
	list_ops(t, "; not seen:", rest & ops_that(l, 0, PINL_CAN_TELL));
	list_ops(t, "; refused:", refused);
}

int pl_describe(const struct pinl_lease *l, char *buf, size_t len)
{
	struct pl_text t = {buf, len, 0};

	pl_text_add(&t, "lease %lu: [%#lx, %#lx) %lu KiB of %s", (unsigned long)l->id,
		    (unsigned long)l->m.start, (unsigned long)l->m.end,
		    (unsigned long)(l->m.end - l->m.start) >> 10, pinl_memory_name(l->on->mem.kind));
	if (l->more->import)
		pl_text_add(&t, ", of %s (%s) from byte %lu", l->more->import->exporter->name,
			    pinl_exporter_kind_name(l->more->import->exporter->kind),
			    (unsigned long)l->on->mem.offset);
	else if (l->on->mem.ino)
		pl_text_add(&t, ", file %u:%u inode %lu offset %lu", major(l->on->mem.dev),
			    minor(l->on->mem.dev), (unsigned long)l->on->mem.ino,
			    (unsigned long)l->on->mem.offset);
	pl_text_add(&t, ", device %s, %s", l->dev->given->name,
		    l->more->import	  ? "imported"
		    : l->flags & PINL_PIN ? "pinned"
					  : "on demand");
	if (l->more->stage)
		pl_text_add(&t,
			    " in a staged copy at %#lx (%lu KiB more, and copying): file and device "
			    "agree after pinl_lease_sync, pinl_quiesced, a recall and "
			    "pinl_unmap_range, not in between",
			    (unsigned long)l->dm.start, (unsigned long)(l->m.end - l->m.start) >> 9);
	pl_text_add(&t, ", owner %d/%d, taken at %p", pl_lease_owner(l), l->owner_thread, l->caller);
	describe_policy(l, &t);
	pl_text_add(&t, ", %s", pinl_state_name(l->state));
	if (l->outcome)
		pl_text_add(&t, " (%s)", pinl_outcome_name(l->outcome));
	if (l->more->import) {
		pl_text_add(&t, "; recalled by its exporter");
		if (!l->more->import->by_handle)
			pl_text_add(&t, " and by pinl_ calls; raw changes of the mapping: %s",
				    !(l->on->coverage[PINL_OP_UNMAP] & PINL_CAN_TELL) ? "not seen"
				    : l->on->coverage[PINL_OP_UNMAP] & PINL_CAN_HOLD  ? "held"
										      : "told");
		return t.used;
	}
	pl_text_add(&t, "; changes by pinl_ calls: exact; raw changes:");
	describe_raw(l, &t);
	describe_supervised(l, &t);
	return t.used;
}
