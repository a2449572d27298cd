/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The one place where it is decided what happens to a change. Invariants, checked over the whole
 * product of inputs by tests/test_policy.c:
 * - without an effect nothing is done, unless a REFUSE names the operation;
 * - REFUSE is only answered to a source that can refuse this change;
 * - an effect on pinned pages ends in exactly one of: refused, recalled, reported.
 */
#include "policy.h"

#include <errno.h>

enum pl_effect pl_op_effect(enum pinl_op op, enum pinl_memory_kind kind, bool shared, bool pinned)
{
	bool file = kind != PINL_MEM_ANON && kind != PINL_MEM_DEVICE && kind != PINL_MEM_SECRET;

	switch (op) {
	case PINL_OP_PUNCH: /* pinned pages of a private mapping are its own, and only truncation takes
			       those */
	case PINL_OP_ZERO:
		return file && !(kind == PINL_MEM_FILE_PRIVATE && pinned) ? PL_DISCARD : PL_NO_EFFECT;
	case PINL_OP_TRUNCATE:
	case PINL_OP_COLLAPSE:
	case PINL_OP_INSERT:
		return file ? PL_DISCARD : PL_NO_EFFECT;
	case PINL_OP_UNMAP:
	case PINL_OP_OVERMAP:
	case PINL_OP_REMAP:
		return PL_GONE;
	case PINL_OP_DONTNEED: /* a shared mapping finds the same page again */
		return shared ? PL_NO_EFFECT : PL_DISCARD;
	case PINL_OP_FREE: /* anonymous memory only; EINVAL elsewhere */
		return kind == PINL_MEM_ANON ? PL_DISCARD : PL_NO_EFFECT;
	case PINL_OP_REMOVE: /* shared file mappings only; EINVAL elsewhere */
		return file && shared ? PL_DISCARD : PL_NO_EFFECT;
	case PINL_OP_GUARD:
		return PL_DISCARD;
	case PINL_OP_NR:
		break;
	}
	return PL_NO_EFFECT;
}

/* A policy names operations; a change may be one of several, and MADV_REMOVE is a punch, too. */
static bool named(const struct pl_question *q)
{
	unsigned ops = PINL_OPBIT(q->op) | q->also;

	if (q->op == PINL_OP_REMOVE)
		ops |= PINL_OPBIT(PINL_OP_PUNCH);
	return q->refuse & ops;
}

struct pl_verdict pl_policy_decide(const struct pl_question *q)
{
	struct pl_verdict v = {.action = PL_ALLOW};

	if (q->policy == PINL_REFUSE && named(q) && (q->can & PINL_CAN_REFUSE)) {
		v.action = PL_REFUSE;
		return v;
	}
	if (q->effect == PL_NO_EFFECT)
		return v;
	v.degraded = q->policy == PINL_REFUSE && named(q);
	if (q->policy == PINL_RECALL) {
		v.action = PL_RECALL;
		v.late = q->pinned && !(q->can & PINL_CAN_BEFORE);
		v.degraded = v.late || !(q->can & PINL_CAN_HOLD);
	} else if (q->policy == PINL_FOLLOW || !q->pinned) {
		v.action = PL_FOLLOW;
	} else {
		v.action = PL_ORPHAN;
	}
	return v;
}

unsigned pl_policy_relevant_ops(enum pinl_memory_kind kind, bool shared, bool pinned)
{
	unsigned ops = 0;

	for (int op = 0; op < PINL_OP_NR; op++)
		if (op != PINL_OP_GUARD && pl_op_effect(op, kind, shared, pinned) != PL_NO_EFFECT)
			ops |= PINL_OPBIT(op);
	return ops;
}

static unsigned ops_that_can(const uint8_t *coverage, unsigned can)
{
	unsigned ops = 0;

	for (int op = 0; op < PINL_OP_NR; op++)
		if ((coverage[op] & can) == can)
			ops |= PINL_OPBIT(op);
	return ops;
}

unsigned pl_policy_refused_ops(const struct pinl_policy *policy, const uint8_t *coverage)
{
	unsigned named = policy->refuse;

	if (policy->kind != PINL_REFUSE)
		return 0;
	if (named & PINL_OPBIT(PINL_OP_PUNCH))
		named |= PINL_OPBIT(PINL_OP_REMOVE);
	return named & ops_that_can(coverage, PINL_CAN_REFUSE);
}

static int no(const char **why, const char *sentence)
{
	*why = sentence;
	return -EOPNOTSUPP;
}

static int validate_device(const struct pl_plan *p, const char **why)
{
	if ((p->flags & PINL_PIN) && !(p->caps & PINL_DEVCAP_PIN))
		return no(why, "the device can't pin; leave out PINL_PIN");
	if (!(p->flags & PINL_PIN) && !(p->caps & PINL_DEVCAP_ONDEMAND))
		return no(why, "the device can't map on demand; pass PINL_PIN");
	if (p->kind == PINL_MEM_DEVICE)
		return no(why, "device memory is never leased; it has to come from its exporter");
	if (p->kind == PINL_MEM_SECRET)
		return no(why,
			  "secret memory (memfd_secret) can't be given to a device; use memfd_create");
	return 0;
}

static const char untold[] =
	"RECALL and FOLLOW must hear of changes, and no source here tells of these on this memory "
	"(pinl_sources says why; PINL_COOPERATIVE accepts that changes come by pinl_ calls only)";

static bool retargets(const struct pl_plan *p)
{
	if (p->caps & PINL_DEVCAP_RETARGET)
		return true;
	if (p->flags & PINL_PIN)
		return p->policy->then == PINL_THEN_COPY && (p->caps & PINL_DEVCAP_REKEYS);
	return p->caps & PINL_DEVCAP_FOLLOWS;
}

static int validate_recall(struct pl_plan *p, const char **why)
{
	unsigned relevant = pl_policy_relevant_ops(p->kind, p->shared, p->flags & PINL_PIN);
	enum pinl_then then = p->policy->then;

	if (p->device_class < PINL_DEV_REVOCABLE)
		return no(why, p->device_class == PINL_DEV_NONE
				       ? "RECALL needs a device that can be revoked, and this one "
					 "can't; use KEEP or REFUSE"
				       : "RECALL needs a device that can be revoked, and this one can "
					 "only be drained by its "
					 "holder; use KEEP or REFUSE");
	if (pl_then_moves(then) && !retargets(p))
		return no(why,
			  "SCRATCH and COPY need a device that can be retargeted; use RECALL with FAIL");
	if (pl_then_moves(then) && p->kind == PINL_MEM_HUGETLB)
		return no(why,
			  "SCRATCH and COPY don't replace huge page mappings; use RECALL with FAIL");
	if (then == PINL_THEN_COPY && (!(p->flags & PINL_PIN) || !(p->caps & PINL_DEVCAP_READ)))
		return no(
			why,
			"COPY takes the content from the device's own pins, and this lease has none "
			"that can "
			"be read (PINL_PIN, and for io_uring kernel 6.13); use SCRATCH, FAIL or FOLLOW");
	if (then == PINL_THEN_COPY && !p->can_copy)
		return no(why, "COPY needs userfaultfd to switch without losing a store, and this "
			       "process can't have "
			       "one; use SCRATCH or FAIL");
	if (then == PINL_THEN_KILL && !p->can_kill)
		return no(why, "KILL needs pinleased, on a file whose changes it holds: a program that "
			       "hangs can't kill itself; start it (systemctl enable --now "
			       "pinleased.socket), or use FAIL");
	p->missing =
		p->flags & PINL_COOPERATIVE ? 0 : relevant & ~ops_that_can(p->coverage, PINL_CAN_TELL);
	if (p->missing)
		return no(why, untold);
	p->missing = p->flags & PINL_STRICT ? relevant & ~ops_that_can(p->coverage, PINL_CAN_HOLD) : 0;
	if (p->missing)
		return no(why, "PINL_STRICT asks that every change is held, and no source here holds "
			       "these on this memory");
	return 0;
}

/* Of what can't be refused in any case alone, if there is some of that. */
static const char *not_refused(struct pl_plan *p)
{
	unsigned of_files = PINL_OPS_FILE | PINL_OPBIT(PINL_OP_REMOVE);

	if (p->missing & ~of_files) {
		p->missing &= ~of_files;
		return "REFUSE asks for changes of mappings, which nothing refuses (name those of "
		       "files only, PINL_OPS_FILE, or accept by PINL_COOPERATIVE that only pinl_ "
		       "calls are refused)";
	}
	if (p->refuser == PL_NO_REFUSER)
		return "REFUSE asks for changes that nothing refuses on this file system (lease a file "
		       "on tmpfs, hugetlbfs, ext4 or XFS, or accept by PINL_COOPERATIVE that only pinl_ "
		       "calls are refused)";
	if (p->refuser == PL_FILES_REFUSES)
		return "REFUSE asks for changes that are refused here by the source files (fanotify) "
		       "only, as far as it can, where it runs or pinleased does (pinlease sources says "
		       "why not)";
	if (p->is_memfd)
		return "REFUSE asks for changes that only pinleased's gate refuses, where it runs "
		       "(pinlease status says why it doesn't; PINL_SEAL has the kernel refuse truncate "
		       "and punch of a memfd that allows sealing)";
	return "REFUSE asks for changes that only pinleased's gate refuses, where it runs (pinlease "
	       "status says why it doesn't)";
}

static int validate_refuse(struct pl_plan *p, const char **why)
{
	unsigned effective = p->policy->refuse & (pl_policy_relevant_ops(p->kind, p->shared, false) |
						  PINL_OPBIT(PINL_OP_GUARD));
	unsigned can = ops_that_can(p->coverage, PINL_CAN_REFUSE);

	if (p->sealable && (p->flags & PINL_SEAL))
		can |= PINL_OPBIT(PINL_OP_TRUNCATE) | PINL_OPBIT(PINL_OP_PUNCH) |
		       PINL_OPBIT(PINL_OP_REMOVE);
	p->missing = p->flags & PINL_COOPERATIVE ? 0 : effective & ~can;
	return p->missing ? no(why, not_refused(p)) : 0;
}

int pl_policy_validate(struct pl_plan *p, const char **why)
{
	int err = validate_device(p, why);

	if (err)
		return err;
	switch (p->policy->kind) {
	case PINL_KEEP:
		return 0;
	case PINL_RECALL:
		return validate_recall(p, why);
	case PINL_REFUSE:
		return validate_refuse(p, why);
	case PINL_FOLLOW:
		if (p->device_class != PINL_DEV_FAULTING || (p->flags & PINL_PIN))
			return no(why, "FOLLOW needs an on-demand device and a lease without PINL_PIN; "
				       "use RECALL");
		p->missing = pl_policy_relevant_ops(p->kind, p->shared, false) &
			     ~ops_that_can(p->coverage, PINL_CAN_TELL);
		if (p->flags & PINL_COOPERATIVE)
			p->missing = 0;
		if (p->missing)
			return no(why, untold);
		return 0;
	}
	*why = "unknown policy kind";
	return -EINVAL;
}
