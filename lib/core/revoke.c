/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The revoke state machine.
 *
 *              change                quiesced, unmap, deadline
 *   ACTIVE ------------> NOTICED ------------------------------> FORCING
 *     |  ^                 | ^  \                                 |  |  ^
 *     |  |                 +-+   (change: widen)                  |  |  | change: waits,
 *     |  +-------------------- done in part ----------------------+  |  | looked at again
 *     |                                                              |  +-- when done
 *     +-- quiesced, unmap --> FORCING                done as a whole |
 *                                                                    v
 *                                                                 RELEASED  (nothing leaves it)
 *
 * FORCING always ends: the force is bounded (pinl_opts.drain_ms) and falls back from COPY and SCRATCH
 * to FAIL, and FAIL to "emptied, drain not confirmed", which is reported. A change is answered only
 * when no lease it overlaps is NOTICED or FORCING.
 */
#include "revoke.h"

#define T(next, step)                                                                                   \
	{                                                                                               \
		PINL_##next, PL_STEP_##step                                                             \
	}

static const struct pl_transition table[4][PL_IN_NR] =
	{
		[PINL_ACTIVE] =
			{
				[PL_IN_CHANGE] = T(NOTICED, NOTIFY),
				[PL_IN_QUIESCED] = T(FORCING, TAKE),
				[PL_IN_UNMAP] = T(FORCING, TAKE),
				[PL_IN_DEADLINE] = T(ACTIVE, WRONG),
				[PL_IN_DONE_PART] = T(ACTIVE, WRONG),
				[PL_IN_DONE_WHOLE] = T(ACTIVE, WRONG),
			},
		[PINL_NOTICED] =
			{
				[PL_IN_CHANGE] = T(NOTICED, WIDEN),
				[PL_IN_QUIESCED] = T(FORCING, TAKE),
				[PL_IN_UNMAP] = T(FORCING, TAKE),
				[PL_IN_DEADLINE] = T(FORCING, TAKE),
				[PL_IN_DONE_PART] = T(NOTICED, WRONG),
				[PL_IN_DONE_WHOLE] = T(NOTICED, WRONG),
			},
		[PINL_FORCING] =
			{
				[PL_IN_CHANGE] = T(FORCING, NONE),
				[PL_IN_QUIESCED] = T(FORCING, WRONG),
				[PL_IN_UNMAP] = T(FORCING, NONE),
				[PL_IN_DEADLINE] = T(FORCING, NONE),
				[PL_IN_DONE_PART] = T(ACTIVE, SETTLE),
				[PL_IN_DONE_WHOLE] = T(RELEASED, SETTLE),
			},
		[PINL_RELEASED] =
			{
				[PL_IN_CHANGE] = T(RELEASED, NONE),
				[PL_IN_QUIESCED] = T(RELEASED, WRONG),
				[PL_IN_UNMAP] = T(RELEASED, NONE),
				[PL_IN_DEADLINE] = T(RELEASED, NONE),
				[PL_IN_DONE_PART] = T(RELEASED, WRONG),
				[PL_IN_DONE_WHOLE] = T(RELEASED, WRONG),
			},
};

struct pl_transition pl_revoke(enum pinl_state state, enum pl_input input)
{
	return table[state][input];
}
