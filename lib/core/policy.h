/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Pure functions: what an operation does to memory, what a policy says to it, and whether a policy can
 * be kept at all. No state, no kernel, no clock. */
#ifndef PL_CORE_POLICY_H
#define PL_CORE_POLICY_H

#include <pinlease/device.h>
#include <pinlease/source.h>
#include <stdbool.h>

enum pl_effect {
	PL_NO_EFFECT, /* the device's pages stay those of the mapping */
	PL_DISCARD,   /* the pages go, the address range stays mapped */
	PL_GONE,      /* the address range goes */
};

enum pl_effect pl_op_effect(enum pinl_op op, enum pinl_memory_kind kind, bool shared, bool pinned);

enum pl_action {
	PL_ALLOW,  /* nothing to do */
	PL_ORPHAN, /* let it happen and report what the device keeps */
	PL_FOLLOW, /* invalidate the on-demand device */
	PL_RECALL, /* notice, grace, force */
	PL_REFUSE, /* the operation fails */
};

struct pl_question {
	enum pinl_op op;
	unsigned also; /* other operations it may be: PINL_OPBIT()s */
	unsigned can;  /* PINL_CAN_* of this very change */
	enum pl_effect effect;
	enum pinl_policy_kind policy;
	unsigned refuse;
	bool pinned;
};

struct pl_verdict {
	enum pl_action action;
	bool late;     /* RECALL: the pages are detached already, so it is an orphan until released */
	bool degraded; /* the policy asked for more than this source can do */
};

struct pl_verdict pl_policy_decide(const struct pl_question *q);

/* What refuses changes of such files. */
enum pl_refuser {
	PL_NO_REFUSER,
	PL_GATE_REFUSES,
	PL_FILES_REFUSES,
};

struct pl_plan {
	const struct pinl_policy *policy;
	unsigned flags;
	enum pinl_device_class device_class;
	unsigned caps; /* PINL_DEVCAP_* */
	const char *device_why;
	enum pinl_memory_kind kind;
	bool shared;
	bool sealable; /* memfd that allows seals; asked only with PINL_SEAL */
	bool is_memfd;
	enum pl_refuser refuser; /* where it runs */
	bool can_copy;		 /* this process has a userfaultfd for the swap */
	bool can_kill;		 /* somebody watches who can take the memory from outside */
	const uint8_t *coverage; /* [PINL_OP_NR], raw changes */
	unsigned missing;	 /* out: operations that are not covered as asked */
};

/* 0, or -EOPNOTSUPP / -EINVAL with *why = one sentence (static). */
int pl_policy_validate(struct pl_plan *plan, const char **why);

/* The device goes on, in other memory. */
static inline bool pl_then_moves(enum pinl_then then)
{
	return then == PINL_THEN_SCRATCH || then == PINL_THEN_COPY;
}

/* Operations that detach pages of this memory and that a lease has to hear of. */
unsigned pl_policy_relevant_ops(enum pinl_memory_kind kind, bool shared, bool pinned);

/* Operations that are refused whoever makes them, and how: no page goes by those. */
unsigned pl_policy_refused_ops(const struct pinl_policy *policy, const uint8_t *coverage);

#endif
