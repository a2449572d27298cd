/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The rows of the demo, in their order. What each must show follows from the row: see demo_check.c. */
#include "demo.h"

#define GRACE	   150	/* the holder does nothing, so this is what the actor waits */
#define LONG_GRACE 3000 /* the holder answers at once; room for a slow machine */

/* clang-format off */
#define RECALLS(fs, actor)											\
	{"KEEP", fs, actor, RUN_URING, PINL_KEEP, 0, 0, false},							\
	{"RECALL, answered in time", fs, actor, RUN_URING, PINL_RECALL, PINL_THEN_FAIL, LONG_GRACE, true},	\
	{"RECALL, then SCRATCH", fs, actor, RUN_URING, PINL_RECALL, PINL_THEN_SCRATCH, GRACE, false},		\
	{"RECALL, then COPY", fs, actor, RUN_URING, PINL_RECALL, PINL_THEN_COPY, GRACE, false},			\
	{"RECALL, then FAIL", fs, actor, RUN_URING, PINL_RECALL, PINL_THEN_FAIL, GRACE, false},			\
	{"REFUSE", fs, actor, RUN_URING, PINL_REFUSE, 0, 0, false}

const struct demo_plan demo_plans[] = {
	{"without pinlease", ON_TMPFS, BY_PROCESS, RUN_BARE, 0, 0, 0, false},
	RECALLS(ON_TMPFS, BY_PROCESS),
	RECALLS(ON_TMPFS, BY_CALL),
	{"pin MAP_SHARED", ON_DISK, BY_PROCESS, RUN_SHARED_PIN, 0, 0, 0, false},
	{"without pinlease", ON_DISK, BY_PROCESS, RUN_BARE, 0, 0, 0, false},
	RECALLS(ON_DISK, BY_PROCESS),
	{"FOLLOW, on demand", ON_DISK, BY_PROCESS, RUN_SOFT, PINL_FOLLOW, 0, 0, false},
};
/* clang-format on */

const unsigned demo_nr_plans = sizeof(demo_plans) / sizeof(*demo_plans);

bool demo_same_group(const struct demo_plan *a, const struct demo_plan *b)
{
	return a->fs == b->fs && a->actor == b->actor;
}
