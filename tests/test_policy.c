/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The policy function over the whole product of its inputs, against rules written down independently of
 * its code, and a few rows by hand. Map-time validation likewise. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "core/policy.h"

static void check_one(const struct pl_question *q)
{
	struct pl_verdict v = pl_policy_decide(q);
	unsigned names = PINL_OPBIT(q->op) | (q->op == PINL_OP_REMOVE ? PINL_OPBIT(PINL_OP_PUNCH) : 0);
	bool named = q->refuse & names;

	if (q->effect == PL_NO_EFFECT && v.action != PL_REFUSE) {
		assert_int_equal(v.action, PL_ALLOW);
		assert_false(v.late || v.degraded);
		assert_false(q->policy == PINL_REFUSE && named && (q->can & PINL_CAN_REFUSE));
		return;
	}
	assert_int_not_equal(v.action, PL_ALLOW);
	if (v.action == PL_REFUSE) {
		assert_true(q->policy == PINL_REFUSE && named && (q->can & PINL_CAN_REFUSE));
		assert_false(v.degraded);
		return;
	}
	assert_false(q->policy == PINL_REFUSE && named && (q->can & PINL_CAN_REFUSE));
	assert_int_equal(v.action == PL_RECALL, q->policy == PINL_RECALL);
	if (q->policy == PINL_REFUSE && named)
		assert_true(v.degraded);
	if (v.action == PL_ORPHAN)
		assert_true(q->pinned);
	if (v.action == PL_FOLLOW)
		assert_true(q->policy == PINL_FOLLOW || !q->pinned);
	assert_int_equal(v.late, v.action == PL_RECALL && q->pinned && !(q->can & PINL_CAN_BEFORE));
	if (v.late || (v.action == PL_RECALL && !(q->can & PINL_CAN_HOLD)))
		assert_true(v.degraded);
}

static void whole_product(void **state)
{
	long n = 0;

	for (int op = 0; op < PINL_OP_NR; op++)
		for (unsigned can = 0; can < 16; can++)
			for (int effect = PL_NO_EFFECT; effect <= PL_GONE; effect++)
				for (int policy = PINL_KEEP; policy <= PINL_FOLLOW; policy++)
					for (int mask = 0; mask < 3; mask++)
						for (int pinned = 0; pinned < 2; pinned++, n++) {
							unsigned masks[] = {0, PINL_OPBIT(op),
									    PINL_OPS_ALL &
										    ~PINL_OPBIT(op)};
							struct pl_question q = {
								op,	0,	     can,   effect,
								policy, masks[mask], pinned};

							check_one(&q);
						}
	assert_int_equal(n, 12 * 16 * 3 * 4 * 3 * 2);
}

static void effects(void **state)
{
	/* The measured exceptions of the kernel: kernel-facts, section 2. */
	assert_int_equal(pl_op_effect(PINL_OP_DONTNEED, PINL_MEM_ANON, false, true), PL_DISCARD);
	assert_int_equal(pl_op_effect(PINL_OP_DONTNEED, PINL_MEM_SHMEM, true, true), PL_NO_EFFECT);
	assert_int_equal(pl_op_effect(PINL_OP_DONTNEED, PINL_MEM_FILE_SHARED, true, true), PL_NO_EFFECT);
	assert_int_equal(pl_op_effect(PINL_OP_DONTNEED, PINL_MEM_FILE_PRIVATE, false, true), PL_DISCARD);
	assert_int_equal(pl_op_effect(PINL_OP_TRUNCATE, PINL_MEM_FILE_PRIVATE, false, true), PL_DISCARD);
	/* Pages a private mapping has copied for itself outlive a hole, not a truncation. */
	assert_int_equal(pl_op_effect(PINL_OP_PUNCH, PINL_MEM_FILE_PRIVATE, false, true), PL_NO_EFFECT);
	assert_int_equal(pl_op_effect(PINL_OP_ZERO, PINL_MEM_FILE_PRIVATE, false, true), PL_NO_EFFECT);
	assert_int_equal(pl_op_effect(PINL_OP_PUNCH, PINL_MEM_FILE_PRIVATE, false, false), PL_DISCARD);
	assert_int_equal(pl_op_effect(PINL_OP_PUNCH, PINL_MEM_FILE_SHARED, true, true), PL_DISCARD);
	assert_int_equal(pl_op_effect(PINL_OP_TRUNCATE, PINL_MEM_ANON, false, true), PL_NO_EFFECT);
	assert_int_equal(pl_op_effect(PINL_OP_REMOVE, PINL_MEM_SHMEM, true, true), PL_DISCARD);
	assert_int_equal(pl_op_effect(PINL_OP_REMOVE, PINL_MEM_ANON, false, true), PL_NO_EFFECT);
	assert_int_equal(pl_op_effect(PINL_OP_FREE, PINL_MEM_ANON, false, true), PL_DISCARD);
	for (int kind = 0; kind < PINL_MEM_NR; kind++)
		for (int shared = 0; shared < 2; shared++)
			assert_int_equal(pl_op_effect(PINL_OP_UNMAP, kind, shared, true), PL_GONE);
}

static void a_change_of_unknown_name(void **state)
{
	struct pl_question q = {.op = PINL_OP_PUNCH,
				.can = 15,
				.effect = PL_DISCARD,
				.policy = PINL_REFUSE,
				.refuse = PINL_OPBIT(PINL_OP_TRUNCATE),
				.pinned = true};

	assert_int_equal(pl_policy_decide(&q).action, PL_ORPHAN);
	q.also = PINL_OPS_FILE;
	assert_int_equal(pl_policy_decide(&q).action, PL_REFUSE);
	q = (struct pl_question){.op = PINL_OP_REMOVE,
				 .can = 15,
				 .effect = PL_DISCARD,
				 .policy = PINL_REFUSE,
				 .refuse = PINL_OPBIT(PINL_OP_PUNCH),
				 .pinned = true};
	assert_int_equal(pl_policy_decide(&q).action, PL_REFUSE);
}

static int try_plan(struct pl_plan *p, struct pinl_policy *policy, const char **why)
{
	p->policy = policy;
	*why = NULL;
	return pl_policy_validate(p, why);
}

/* Whatever is accepted can be kept: the rules of R4, for every device class, memory and coverage. */
static void check_plan(struct pl_plan *p, struct pinl_policy *policy)
{
	unsigned relevant = pl_policy_relevant_ops(p->kind, p->shared, p->flags & PINL_PIN);
	const char *why;
	int err = try_plan(p, policy, &why);

	if (err) {
		assert_non_null(why);
		assert_true(strlen(why) > 20);
		return;
	}
	assert_true(p->kind != PINL_MEM_DEVICE && p->kind != PINL_MEM_SECRET);
	if (policy->kind == PINL_FOLLOW)
		assert_true(p->device_class == PINL_DEV_FAULTING && !(p->flags & PINL_PIN));
	if (policy->kind != PINL_RECALL)
		return;
	assert_true(p->device_class >= PINL_DEV_REVOCABLE);
	if (policy->then == PINL_THEN_SCRATCH || policy->then == PINL_THEN_COPY)
		assert_true((p->caps & PINL_DEVCAP_RETARGET) ||
			    ((p->caps & PINL_DEVCAP_FOLLOWS) && !(p->flags & PINL_PIN)) ||
			    ((p->caps & PINL_DEVCAP_REKEYS) && policy->then == PINL_THEN_COPY));
	if (policy->then == PINL_THEN_COPY)
		assert_true((p->caps & PINL_DEVCAP_READ) && (p->flags & PINL_PIN) && p->can_copy);
	if (policy->then == PINL_THEN_KILL)
		assert_true(p->can_kill);
	for (int op = 0; op < PINL_OP_NR; op++) {
		if (!(relevant & PINL_OPBIT(op)))
			continue;
		assert_true((p->flags & PINL_COOPERATIVE) || (p->coverage[op] & PINL_CAN_TELL));
		assert_true(!(p->flags & PINL_STRICT) || (p->coverage[op] & PINL_CAN_HOLD));
	}
}

static void validate_product(void **state)
{
	uint8_t coverage[4][PINL_OP_NR] = {{0}};
	unsigned flags[] = {0, PINL_PIN, PINL_PIN | PINL_COOPERATIVE, PINL_PIN | PINL_STRICT};
	unsigned accepted = 0, all = 0;

	memset(coverage[1], PINL_CAN_TELL, PINL_OP_NR);
	memset(coverage[2], PINL_CAN_TELL | PINL_CAN_HOLD, PINL_OP_NR);
	memset(coverage[3], 15, PINL_OP_NR);
	for (int kind = 0; kind < PINL_MEM_NR; kind++)
		for (int policy = 0; policy <= PINL_FOLLOW; policy++)
			for (int then = 0; then <= PINL_THEN_KILL; then++)
				for (int class = 0; class <= PINL_DEV_FAULTING; class ++)
					for (unsigned caps = 0; caps < 128; caps++)
						for (int c = 0; c < 4; c++)
							for (int f = 0; f < 4; f++, all++) {
								struct pinl_policy p = {sizeof p, policy,
											then, 10,
											PINL_OPS_FILE};
								struct pl_plan plan = {
									.flags = flags[f],
									.device_class = class,
									.caps = caps,
									.kind = kind,
									.shared = kind != 0,
									.can_copy = f & 1,
									.can_kill = c & 1,
									.coverage = coverage[c]};
								const char *why;

								check_plan(&plan, &p);
								accepted += !try_plan(&plan, &p, &why);
							}
	assert_true(accepted > 0 && accepted < all);
}

static void refuse_needs_a_refuser(void **state)
{
	uint8_t told[PINL_OP_NR], refused[PINL_OP_NR];
	struct pinl_policy p = {sizeof p, PINL_REFUSE, 0, 0, PINL_OPBIT(PINL_OP_TRUNCATE)};
	struct pl_plan plan = {.flags = PINL_PIN,
			       .device_class = PINL_DEV_NONE,
			       .caps = PINL_DEVCAP_PIN,
			       .kind = PINL_MEM_SHMEM,
			       .shared = true,
			       .coverage = told};
	const char *why;

	memset(told, PINL_CAN_TELL, sizeof told);
	memset(refused, PINL_CAN_TELL | PINL_CAN_REFUSE, sizeof refused);
	assert_int_equal(try_plan(&plan, &p, &why), -EOPNOTSUPP);
	plan.sealable = true;
	assert_int_equal(try_plan(&plan, &p, &why), -EOPNOTSUPP);
	plan.flags |= PINL_SEAL;
	assert_int_equal(try_plan(&plan, &p, &why), 0);
	plan.flags = PINL_PIN | PINL_COOPERATIVE;
	assert_int_equal(try_plan(&plan, &p, &why), 0);
	plan.flags = PINL_PIN;
	plan.coverage = refused;
	assert_int_equal(try_plan(&plan, &p, &why), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(whole_product),
		cmocka_unit_test(effects),
		cmocka_unit_test(a_change_of_unknown_name),
		cmocka_unit_test(validate_product),
		cmocka_unit_test(refuse_needs_a_refuser),
	};

	return cmocka_run_group_tests_name("policy", tests, NULL, NULL);
}
