/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The revoke state machine of one lease. Pure: a table. */
#ifndef PL_CORE_REVOKE_H
#define PL_CORE_REVOKE_H

#include <pinlease/pinlease.h>

enum pl_input {
	PL_IN_CHANGE,	  /* a change overlaps the lease and its policy says recall */
	PL_IN_QUIESCED,	  /* the holder says it is done */
	PL_IN_UNMAP,	  /* the holder ends the lease */
	PL_IN_DEADLINE,	  /* the grace is over */
	PL_IN_DONE_PART,  /* taken from the device; the rest of the lease lives on */
	PL_IN_DONE_WHOLE, /* taken from the device as a whole */
	PL_IN_NR,
};

enum pl_step {
	PL_STEP_NONE,
	PL_STEP_NOTIFY, /* tell the holder, arm the deadline */
	PL_STEP_WIDEN,	/* add the new range to the recall under way; the deadline stays */
	PL_STEP_TAKE,	/* take the range from the device, by force or after quiescing */
	PL_STEP_SETTLE, /* look again at the changes that wait for this lease */
	PL_STEP_WRONG,	/* this input can't come in this state */
};

struct pl_transition {
	enum pinl_state next;
	enum pl_step step;
};

struct pl_transition pl_revoke(enum pinl_state state, enum pl_input input);

#endif
