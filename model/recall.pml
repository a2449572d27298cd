/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The recall of leases across processes: holders, the arbiter (pinleased), actors held by fanotify,
 * devices, crashes. README.md says what is modelled and what is not; `make model` runs all of it.
 *
 *     Actor --held by the kernel--> arbiter: Held(c) decides, waits, answers or cuts
 *                                            Lease(h) runs the revoke table for the lease of holder h
 *                                            Daemon   crashes, restarts, counts the window
 *                                              |  ^
 *                                       NOTICE |  | STATE (what is still leased)
 *                                              v  |
 *                                   Holder(h): the same table, in the library --> Device(h)
 *
 * Time is a Clock that ticks only when the arbiter, being up, has nothing to do at once. So every bound is
 * checked as a number. Holders and devices may take any time for any step, or hang.
 *
 * A name MUT_... is a rule broken on purpose; MUTATIONS says which and what must catch it.
 */
#define GRACE 1	 /* a holder has this long to quiesce */
#define AGENT 1	 /* and its library this long to force it, before the arbiter does */
#define DRAIN 1	 /* a drain that takes longer is reported as unconfirmed */
#define CEILING 2
#define BOUND (CEILING + GRACE)
#define DOWN 1	 /* a restart takes at most this long */
#define WINDOW 1 /* then holders have this long to register again */

#ifndef PAGES
#define PAGES 3 /* the pages of a lease, a mask */
#endif
#define CHANGED(c) (c == 0 -> 1 : PAGES) /* the first change takes page 0, the second all */

/* ---- the table -------------------------------------------------------------------------------------- */
#define ACTIVE 0
#define NOTICED 1
#define FORCING 2
#define RELEASED 3
#define IN_CHANGE 0
#define IN_QUIESCED 1
#define IN_UNMAP 2
#define IN_DEADLINE 3
#define IN_DONE_PART 4
#define IN_DONE_WHOLE 5
#define STEP_NONE 0
#define STEP_NOTIFY 1
#define STEP_WIDEN 2
#define STEP_TAKE 3
#define STEP_SETTLE 4
#define STEP_WRONG 5

hidden byte next_of[24];
hidden byte step_of[24];
hidden byte step; /* of the last input */

/* For seen.c, set in d_steps only: what came up in the search. */
hidden byte used[24];
hidden byte seen[16];
#define saw(what) seen[what] = 1
#define CUT 0
#define FORCED 1
#define NOT_FORCED 2
#define HOLDER_KILLED 3
#define NOT_DRAINED 4
#define TAKEN_IN_PART 5
#define WIDENED 6
#define GATE_CLOSED 7
#define GONE_WHEN_BACK 8
#define FORCED_AGAIN 9
#define ANSWERED_AGAIN 10
#define REFUSAL 11
#define ORPHAN 12
#define ACTOR_KILLED 13
#define HUNG_UP_ON 14
#define RELEASED_WHILE_FORCED 15

inline load_table()
{
#define R(S, I, N, T) next_of[S * 6 + IN_##I] = N; step_of[S * 6 + IN_##I] = STEP_##T;
#include "revoke.def"
#undef R
}

inline input(state, in)
{
	step = step_of[state * 6 + in];
	used[state * 6 + in] = 1;
	assert(step != STEP_WRONG); /* an input that can't come in this state */
	state = next_of[state * 6 + in]
}

/* ---- the world -------------------------------------------------------------------------------------- */
#define RECALL 0      /* outside force may fail, and then nothing more can be done */
#define RECALL_KILL 1 /* then the holder is killed */
#define KEEP 2
#define REFUSE 3
byte policy[NH];

mtype = { LEASE, GRANT, DENY, CONFIRM, OK, REVOKED, NOTICE, STATE, HELLO };
#ifndef DEPTH
#define DEPTH 3 /* messages on the way */
#endif
chan to_holder[NH] = [DEPTH] of { mtype, byte, byte }; /* lease id, pages */
chan to_arbiter[NH] = [DEPTH] of { mtype, byte, byte };
bit connected[NH];

/* Holder: the process, and what its library knows. */
#define IDLE 0	/* no lease */
#define ASKED 1 /* LEASE sent */
#define PIN 2	/* granted, about to pin */
#define PINNED 3 /* CONFIRM sent */
#define HAVE 4	/* the application has it */
bit alive[NH];
#ifdef LIVENESS
bit hung[NH]; /* for ever; for a while is what any process may do anyway */
#define runs(h) (alive[h] && !hung[h])
#else
#define runs(h) alive[h]
#endif
bit child[NH]; /* a forked child that has the ring, too */
byte phase[NH];
byte mine[NH];	 /* id of its lease; ids are used once */
byte h_state[NH]; /* of the table, in HAVE */
byte h_live[NH]; /* pages leased, as the library knows */
byte h_range[NH]; /* under recall */
byte h_more[NH]; /* changes that came in FORCING */
byte h_take[NH]; /* being taken */
byte h_stage[NH]; /* of FORCING: 0 begin, 1 take, 2 drain */

/* Device: what is pinned, by which lease, and what is in flight. */
byte slot[NH];	    /* pages of the file that are pinned */
byte slot_id[NH];
bit usable[NH];	    /* requests may come: the application has the lease */
byte flight[NH];    /* the pages of a request in flight */
byte reported[NH];  /* pages that have been reported as revoked */
bit unconfirmed[NH]; /* ... with "drain not confirmed" */

/* Kernel: what became of each change. */
#define NOT_YET 0
#define QUEUED 1 /* the actor is held, nobody has read the event */
#define WAITING 2 /* read; held until answered */
#define GO 3	 /* let go */
#define HAPPENED 4
#define REFUSED 5
#define KILLED 6
#define FINISHED 7 /* and the arbiter knows */
byte change[NC];
byte age[NC]; /* ticks since the event was read, or queued; stays at BOUND */

/* Arbiter, stored: lives on in the fd store. */
byte rec_id[NH];  /* 0: no record */
byte rec_live[NH];
bit rec_ended[NH]; /* the lease is over; the record stays until the next one, as an answer */
bit rec_force[NH]; /* it is being forced: written before, so that after a crash it is forced again */
#define HELD 1
#define ANSWERED 2 /* decided; the gate stays until it is done */
byte table[NC];
bit said[NC];	/* "goes on though not all is released" */
bit orphan[NC]; /* "a KEEP lease loses its pages" */

/* Arbiter, lost by a crash. */
bit up;
byte crashes;
byte down;
byte window;
byte a_state[NH];
byte a_range[NH];
byte deadline[NH];
#define DO_FORCE 1
#define DRAINING 2
#define STUCK 3 /* outside force failed: until its pins are gone, or the holder releases it */
byte a_stage[NH]; /* of FORCING */
bit owes_grant[NH];
byte records[NH]; /* how often it has the lease */
bit decided[NC];
#ifdef MUT_READ_THEN_RECORD
bit unrecorded[NC];
#endif

/* ---- what is true of the arbiter -------------------------------------------------------------------- */
#define known(h) (rec_id[h] && !rec_ended[h])
#define recallable(h) (policy[h] <= RECALL_KILL)
#define pending(h) (a_state[h] == NOTICED || a_state[h] == FORCING)
#define blocks(h, c) (known(h) && recallable(h) && pending(h) && (rec_live[h] & CHANGED(c)))
#define refuses(h, c) (known(h) && policy[h] == REFUSE && (rec_live[h] & CHANGED(c)))
#define gone(h) (!alive[h] && !child[h] && !flight[h])
#ifdef MUT_GATE_UNTIL_ANSWER
#define gated(c) (table[c] == HELD)
#else
#define gated(c) (table[c] != 0)
#endif
#if NH > 1
#define BLOCKED(c) (blocks(0, c) || blocks(1, c))
#define REFUSER(c) (refuses(0, c) || refuses(1, c))
#else
#define BLOCKED(c) blocks(0, c)
#define REFUSER(c) refuses(0, c)
#endif
#if NC > 1
#define GATED (gated(0) || gated(1))
#else
#define GATED gated(0)
#endif
#if defined(CLOSED) && !defined(MUT_WINDOW_IGNORED)
#define MAY_ANSWER (!window)
#else
#define MAY_ANSWER 1
#endif

/* What the arbiter does at once. */
#define has_message(h) (len(to_arbiter[h]) > 0)
#define overdue(h) (a_state[h] == NOTICED && deadline[h] == 0)
#define holder_died(h) (!alive[h] && known(h) && (a_state[h] == ACTIVE || a_state[h] == NOTICED))
#define to_force(h) (a_state[h] == FORCING && a_stage[h] == DO_FORCE)
#define drained(h) (a_state[h] == FORCING && a_stage[h] == DRAINING && (flight[h] == 0 || deadline[h] == 0))
#ifdef MUT_KILL_UNVERIFIED
#define ended_at_last(h) (a_state[h] == FORCING && a_stage[h] == STUCK && !alive[h])
#else
#define ended_at_last(h) (a_state[h] == FORCING && a_stage[h] == STUCK && gone(h))
#endif
#define LEASE_BUSY(h)                                                                                   \
	(has_message(h) || owes_grant[h] || overdue(h) || holder_died(h) || to_force(h) || drained(h) ||  \
	 ended_at_last(h))

#define to_read(c) (change[c] == QUEUED)
#define to_decide(c) (table[c] == HELD && change[c] == WAITING && !decided[c])
#define settled(c) (table[c] == HELD && change[c] == WAITING && decided[c] && !BLOCKED(c) && MAY_ANSWER)
#ifdef MUT_NO_CUT
#define to_cut(c) 0
#else
#define to_cut(c)                                                                                       \
	(table[c] == HELD && change[c] == WAITING && decided[c] && BLOCKED(c) && age[c] >= BOUND && MAY_ANSWER)
#endif
#define to_answer(c) (table[c] == ANSWERED && change[c] == WAITING)
#ifdef MUT_KILLED_IS_NOT_DONE
#define is_done(c) (table[c] && change[c] == HAPPENED)
#else
#define is_done(c) (table[c] && (change[c] == HAPPENED || change[c] == KILLED))
#endif
#define HELD_BUSY(c) (to_read(c) || to_decide(c) || settled(c) || to_cut(c) || to_answer(c) || is_done(c))
#define TIMED_CHANGE(c) (change[c] == QUEUED || change[c] == WAITING)

#if NH > 1
#define LEASES_BUSY (LEASE_BUSY(0) || LEASE_BUSY(1))
#define TIMED_LEASES (deadline[0] || deadline[1])
#else
#define LEASES_BUSY LEASE_BUSY(0)
#define TIMED_LEASES deadline[0]
#endif
#if NC > 1
#define CHANGES_BUSY (HELD_BUSY(0) || HELD_BUSY(1))
#define TIMED_CHANGES (TIMED_CHANGE(0) || TIMED_CHANGE(1))
#else
#define CHANGES_BUSY HELD_BUSY(0)
#define TIMED_CHANGES TIMED_CHANGE(0)
#endif
#define BUSY (up && (LEASES_BUSY || CHANGES_BUSY))

/* ---- messages --------------------------------------------------------------------------------------- */
hidden mtype m;
hidden byte id, pages, i;

inline hang_up(h)
{
	connected[h] = 0;
	do
	:: len(to_holder[h]) -> to_holder[h]?_, _, _
	:: else -> break
	od;
	do
	:: len(to_arbiter[h]) -> to_arbiter[h]?_, _, _
	:: else -> break
	od;
	owes_grant[h] = 0
}

/* Never waits for a holder that doesn't read: it has to come again. */
inline tell_holder(h, what, lease, mask)
{
	if
	:: connected[h] && len(to_holder[h]) < DEPTH -> to_holder[h]!what, lease, mask
	:: connected[h] && len(to_holder[h]) == DEPTH ->
		saw(HUNG_UP_ON);
		hang_up(h)
	:: !connected[h] -> skip
	fi
}

inline tell_arbiter(h, what, lease, mask)
{
	if
	:: connected[h] -> to_arbiter[h]!what, lease, mask
	:: else -> skip
	fi
}

/* Its library is no more; the device goes on while anybody has the ring. */
inline die(h)
{
	alive[h] = 0;
	hang_up(h);
	forget(h);
	usable[h] = usable[h] && child[h];
	if
	:: !up && gone(h) -> slot[h] = 0
	:: else -> skip
	fi
}

inline forget(h)
{
	phase[h] = IDLE;
	h_state[h] = 0;
	h_live[h] = 0;
	h_range[h] = 0;
	h_more[h] = 0;
	h_take[h] = 0;
	h_stage[h] = 0
}

/* ---- arbiter: one lease ----------------------------------------------------------------------------- */
inline arm(h, c)
{
	if
	:: age[c] >= CEILING -> pages = 0
	:: age[c] < CEILING && CEILING - age[c] < GRACE + AGENT -> pages = CEILING - age[c]
	:: else -> pages = GRACE + AGENT
	fi;
	if
	:: step == STEP_NOTIFY || pages < deadline[h] -> deadline[h] = pages
	:: else -> skip
	fi;
	pages = 0
}

/* A change overlaps the lease: once for each change when it is decided, and again after a part. */
inline recall(h, c)
{
	if
	:: known(h) && recallable(h) && (rec_live[h] & CHANGED(c)) ->
		if
		:: a_state[h] == ACTIVE -> a_range[h] = 0
		:: else -> skip
		fi;
		input(a_state[h], IN_CHANGE);
		if
		:: step == STEP_NOTIFY || step == STEP_WIDEN ->
			a_range[h] = a_range[h] | (CHANGED(c) & rec_live[h]);
			arm(h, c);
			if
			:: step == STEP_WIDEN -> saw(WIDENED)
			:: else -> skip
			fi;
			tell_holder(h, NOTICE, rec_id[h], a_range[h])
		:: else -> skip
		fi
	:: else -> skip
	fi
}

/* The changes that are held already. */
inline recall_held(h)
{
	for (i : 0 .. NC - 1) {
		if
		:: table[i] == HELD && decided[i] -> recall(h, i)
		:: else -> skip
		fi
	}
	i = 0
}

inline over(h)
{
	input(a_state[h], IN_DONE_WHOLE);
	reported[h] = PAGES;
	rec_ended[h] = 1;
	rec_force[h] = 0;
	rec_live[h] = 0;
	a_stage[h] = 0;
	a_range[h] = 0;
	deadline[h] = 0;
	owes_grant[h] = 0
}

/* What the holder says is still leased. It only ever shrinks, so no message is too old. */
inline state_is(h, mask)
{
#ifdef MUT_RELEASED_WITHOUT_RANGE
	if
	:: mask && a_state[h] == NOTICED -> rec_live[h] = rec_live[h] & ~a_range[h]
	:: else -> rec_live[h] = rec_live[h] & mask
	fi;
#else
	rec_live[h] = rec_live[h] & mask;
#endif
	if
	:: a_state[h] == ACTIVE && rec_live[h] == 0 ->
		input(a_state[h], IN_UNMAP);
		over(h)
	:: a_state[h] == NOTICED && (rec_live[h] & a_range[h]) == 0 ->
		input(a_state[h], IN_QUIESCED);
		if
		:: rec_live[h] == 0 -> over(h)
		:: else ->
			input(a_state[h], IN_DONE_PART);
			saw(TAKEN_IN_PART);
			deadline[h] = 0;
			a_range[h] = 0 /* what is left, no held change touches: it would have widened the range */
		fi
	:: a_state[h] == FORCING && rec_live[h] == 0 ->
#ifdef MUT_QUIESCED_IN_FORCING
		input(a_state[h], IN_QUIESCED);
#endif
		saw(RELEASED_WHILE_FORCED);
		over(h)
	:: else -> skip
	fi
}

inline new_record(h)
{
	rec_id[h] = id;
	rec_live[h] = pages;
	rec_ended[h] = 0;
	rec_force[h] = 0;
	a_state[h] = ACTIVE;
	a_range[h] = 0;
	a_stage[h] = 0;
	deadline[h] = 0
}

inline on_lease(h)
{
	if
	:: GATED || known(h) ->
		if
		:: GATED -> saw(GATE_CLOSED)
		:: else -> skip
		fi;
		tell_holder(h, DENY, id, 0)
	:: else ->
#ifdef MUT_GRANT_BEFORE_STORE
		tell_holder(h, GRANT, id, 0);
		owes_grant[h] = 1
#else
		new_record(h);
		records[h] = 1;
		owes_grant[h] = 1
#endif
	fi
}

inline grant(h)
{
	owes_grant[h] = 0;
#ifdef MUT_GRANT_BEFORE_STORE
	id = mine[h];
	pages = PAGES;
	new_record(h);
	records[h] = 1;
#else
	tell_holder(h, GRANT, rec_id[h], 0);
#endif
	id = 0;
	pages = 0
}

/* The first message of every connection: the lease it has, or none. */
inline on_hello(h)
{
	if
	:: id == rec_id[h] && known(h) ->
#ifdef MUT_REGISTER_DOUBLES
		records[h]++;
#endif
#ifdef MUT_REGISTER_GATED
		if
		:: GATED -> rec_id[h] = 0; rec_live[h] = 0; a_state[h] = RELEASED; tell_holder(h, DENY, id, 0)
		:: else -> state_is(h, pages)
		fi;
#else
		state_is(h, pages);
#endif
		if
		:: known(h) && a_state[h] == NOTICED -> tell_holder(h, NOTICE, id, a_range[h])
		:: else -> skip
		fi
	:: id && id == rec_id[h] && rec_ended[h] ->
		saw(GONE_WHEN_BACK);
		tell_holder(h, REVOKED, id, 0)
	:: id && id != rec_id[h] -> /* not in the store: it is taken in, and recalled if that is due */
		new_record(h);
		records[h] = 1;
		recall_held(h)
	:: id == 0 && known(h) -> state_is(h, 0) /* granted, but the holder never learned, or has left it */
	:: else -> skip
	fi
}

inline on_confirm(h)
{
	if
#ifdef MUT_GRANT_BEFORE_STORE
	:: owes_grant[h] -> tell_holder(h, OK, id, 0)
#endif
	:: id == rec_id[h] && known(h) -> tell_holder(h, OK, id, 0)
	:: else -> tell_holder(h, REVOKED, id, 0)
	fi
}

inline hear(h)
{
	to_arbiter[h]?m, id, pages;
	if
	:: m == LEASE -> on_lease(h)
	:: m == CONFIRM -> on_confirm(h)
	:: m == STATE && id == rec_id[h] && known(h) -> state_is(h, pages)
	:: m == STATE && !(id == rec_id[h] && known(h)) -> skip
	:: m == HELLO -> on_hello(h)
	fi;
	m = 0;
	id = 0;
	pages = 0
}

inline begin_force(h)
{
#ifndef MUT_FORCE_NOT_STORED
	rec_force[h] = 1;
#endif
	deadline[h] = 0;
	a_stage[h] = DO_FORCE
}

/* Through its handle of the ring, also while the holder is stopped. */
inline force(h)
{
	assert(slot[h] == 0 || slot_id[h] == rec_id[h]); /* never the slot of another lease */
	if
	:: slot[h] -> saw(FORCED)
	:: else -> skip
	fi;
	slot[h] = 0;
	a_stage[h] = DRAINING;
	deadline[h] = DRAIN
}

inline end_by_force(h)
{
	if
	:: flight[h] ->
		saw(NOT_DRAINED);
		unconfirmed[h] = 1
	:: else -> skip
	fi;
	over(h);
	tell_holder(h, REVOKED, rec_id[h], 0)
}

proctype Lease(byte h)
{
end:	do
	:: d_step { up && has_message(h) -> hear(h) }
	:: d_step { up && owes_grant[h] -> grant(h) }
	:: d_step { up && overdue(h) && !has_message(h) ->
			input(a_state[h], IN_DEADLINE);
			begin_force(h) }
	:: d_step { up && holder_died(h) ->
			hang_up(h);
			input(a_state[h], IN_UNMAP);
			begin_force(h) }
	:: d_step { up && to_force(h) ->
#ifdef MUT_END_BEFORE_FORCE
			rec_ended[h] = 1;
			a_stage[h] = DRAINING + 8 }
	:: d_step { up && a_stage[h] == DRAINING + 8 ->
			rec_ended[h] = 0;
#endif
			force(h) }
	:: d_step { up && to_force(h) -> /* the device can't be told from outside */
			if
			:: policy[h] == RECALL_KILL && alive[h] ->
				saw(HOLDER_KILLED);
				die(h)
			:: else -> skip
			fi;
			saw(NOT_FORCED);
			a_stage[h] = STUCK }
	:: d_step { up && drained(h) -> end_by_force(h) }
	:: d_step { up && ended_at_last(h) ->
#ifndef MUT_KILL_UNVERIFIED
			slot[h] = 0; /* the arbiter's handle was the last; it is closed */
#endif
			over(h) }
	od
}

/* ---- arbiter: one change ---------------------------------------------------------------------------- */
inline decide(c)
{
	decided[c] = 1;
	if
	:: REFUSER(c) ->
		saw(REFUSAL);
		change[c] = REFUSED;
		decided[c] = 0;
		age[c] = 0;
		table[c] = 0
	:: else ->
		for (i : 0 .. NH - 1) {
			recall(i, c);
			if
			:: known(i) && policy[i] == KEEP && (rec_live[i] & CHANGED(c)) ->
				saw(ORPHAN);
				orphan[c] = 1
			:: else -> skip
			fi
		}
		i = 0
	fi
}

/* I2: what is let go finds no recallable pages in use, or it was said that it does. */
inline check_let_go(c)
{
	for (i : 0 .. NH - 1) {
		assert(!(recallable(i) && usable[i] && (slot[i] & CHANGED(c))) || said[c])
	}
	i = 0
}

inline check_happens(c)
{
	check_let_go(c);
	for (i : 0 .. NH - 1) {
		assert(!(policy[i] == REFUSE && usable[i] && (slot[i] & CHANGED(c))));
		assert(!(policy[i] == KEEP && usable[i] && (slot[i] & CHANGED(c))) || orphan[c] || said[c])
	}
	i = 0
}

proctype Held(byte c)
{
end:	do
#ifdef MUT_READ_THEN_RECORD
	:: d_step { up && to_read(c) ->
			change[c] = WAITING;
			unrecorded[c] = 1 }
	:: d_step { up && unrecorded[c] && change[c] == WAITING ->
			unrecorded[c] = 0;
#else
	:: d_step { up && to_read(c) -> /* read() writes into the store: both or none */
			change[c] = WAITING;
#endif
			table[c] = HELD;
			decided[c] = 0;
			age[c] = 0 }
	:: d_step { up && to_decide(c) -> decide(c) }
	:: d_step { up && settled(c) ->
#ifdef CLOSED
			assert(!window); /* I6: the choice */
#endif
			table[c] = ANSWERED }
	:: d_step { up && to_cut(c) ->
			saw(CUT);
			said[c] = 1;
			table[c] = ANSWERED }
#ifdef OPEN
	:: d_step { up && window && table[c] == HELD && change[c] == WAITING && decided[c] ->
			said[c] = 1;
			table[c] = ANSWERED }
#endif
	:: d_step { up && to_answer(c) ->
			check_let_go(c);
			if
			:: !decided[c] -> saw(ANSWERED_AGAIN)
			:: else -> skip
			fi;
			change[c] = GO }
	:: d_step { up && is_done(c) ->
			table[c] = 0;
			decided[c] = 0;
			said[c] = 0;
			orphan[c] = 0;
			change[c] = FINISHED }
	od
}

/* ---- arbiter: the process --------------------------------------------------------------------------- */
inline crash()
{
	up = 0;
	crashes++;
	down = DOWN;
	window = 0;
	for (i : 0 .. NH - 1) {
		hang_up(i);
		a_state[i] = 0;
		a_range[i] = 0;
		a_stage[i] = 0;
		deadline[i] = 0;
		if /* its handle is closed, and with it the last reference to the ring */
		:: gone(i) -> slot[i] = 0
		:: else -> skip
		fi
	}
	for (i : 0 .. NC - 1) {
		decided[i] = 0;
#ifdef MUT_READ_THEN_RECORD
		unrecorded[i] = 0
#endif
	}
	i = 0
}

inline restart()
{
	up = 1;
	down = 0;
	window = WINDOW;
	for (i : 0 .. NH - 1) {
#ifdef MUT_LEASES_NOT_STORED
		rec_id[i] = 0;
		rec_live[i] = 0;
		rec_ended[i] = 0;
		rec_force[i] = 0;
#endif
#ifdef MUT_NO_TOMBSTONE
		if
		:: rec_ended[i] -> rec_id[i] = 0; rec_ended[i] = 0
		:: else -> skip
		fi;
#endif
		if
		:: rec_ended[i] -> a_state[i] = RELEASED
		:: else ->
			a_state[i] = ACTIVE;
			if
			:: rec_force[i] ->
				saw(FORCED_AGAIN);
				input(a_state[i], IN_UNMAP);
				begin_force(i)
			:: else -> skip
			fi
		fi
	}
#ifdef MUT_GATE_NOT_STORED
	for (i : 0 .. NC - 1) {
		if
		:: table[i] == ANSWERED && change[i] != WAITING -> table[i] = 0
		:: else -> skip
		fi
	}
#endif
	i = 0
}

proctype Daemon()
{
end:	do
	:: d_step { up && crashes < NCRASH -> crash() }
	:: d_step { !up -> restart() }
	od
}

/* ---- the others ------------------------------------------------------------------------------------- */
#define room(h) (!connected[h] || len(to_arbiter[h]) < DEPTH)

inline leave(h)
{
	forget(h);
	usable[h] = 0
}

inline holder_change(h)
{
	input(h_state[h], IN_CHANGE);
	if
	:: step == STEP_NOTIFY || step == STEP_WIDEN -> h_range[h] = h_range[h] | (pages & h_live[h])
	:: h_state[h] == FORCING -> h_more[h] = h_more[h] | pages
	:: else -> skip
	fi
}

inline holder_hears(h)
{
	to_holder[h]?m, id, pages;
	if
	:: id != mine[h] || phase[h] == IDLE -> skip /* of a lease that it has no more */
	:: else ->
		if
		:: m == GRANT && phase[h] == ASKED -> phase[h] = PIN
		:: m == DENY && phase[h] == ASKED -> leave(h)
		:: m == OK && phase[h] == PINNED ->
			phase[h] = HAVE;
			h_state[h] = ACTIVE;
			h_live[h] = PAGES;
			usable[h] = 1
		:: (m == REVOKED || m == NOTICE) && phase[h] != HAVE -> /* nothing uses it yet */
			slot[h] = 0;
			leave(h);
			tell_arbiter(h, STATE, id, 0)
		:: m == REVOKED && phase[h] == HAVE ->
			input(h_state[h], IN_UNMAP);
			h_range[h] = PAGES;
			h_live[h] = 0
		:: m == NOTICE && phase[h] == HAVE -> holder_change(h)
		:: else -> skip
		fi
	fi;
	m = 0;
	id = 0;
	pages = 0
}

/* FORCING is over: all that was taken is reported. */
inline holder_done(h)
{
	reported[h] = reported[h] | h_take[h];
	unconfirmed[h] = unconfirmed[h] || (flight[h] & h_take[h]) != 0;
	h_live[h] = h_live[h] & ~h_take[h];
	h_take[h] = 0;
	h_stage[h] = 0;
	h_range[h] = 0;
	tell_arbiter(h, STATE, mine[h], h_live[h]);
	if
	:: h_live[h] == 0 ->
		input(h_state[h], IN_DONE_WHOLE);
		leave(h)
	:: else ->
		input(h_state[h], IN_DONE_PART);
		pages = h_more[h] & h_live[h];
		h_more[h] = 0;
		if
		:: pages -> holder_change(h)
		:: else -> skip
		fi;
		pages = 0
	fi
}

/* A new connection. What was not yet the application's is given up. */
inline hello(h)
{
	connected[h] = 1;
	if
	:: phase[h] != HAVE ->
		slot[h] = 0;
		leave(h);
		to_arbiter[h]!HELLO, 0, 0
	:: else -> to_arbiter[h]!HELLO, mine[h], h_live[h]
	fi
}

proctype Holder(byte h)
{
end:	do
	:: d_step { runs(h) && room(h) && len(to_holder[h]) -> holder_hears(h) }
	:: d_step { runs(h) && up && !connected[h] -> hello(h) }
	:: d_step { runs(h) && connected[h] && room(h) && phase[h] == IDLE && mine[h] < NL ->
			mine[h]++;
			phase[h] = ASKED;
			to_arbiter[h]!LEASE, mine[h], PAGES }
	:: d_step { runs(h) && room(h) && phase[h] == PIN && flight[h] == 0 ->
			slot[h] = PAGES;
			slot_id[h] = mine[h];
			reported[h] = 0;
			unconfirmed[h] = 0;
#ifdef MUT_NO_CONFIRM
			phase[h] = HAVE;
			h_state[h] = ACTIVE;
			h_live[h] = PAGES;
			usable[h] = 1 }
#else
			phase[h] = PINNED;
			tell_arbiter(h, CONFIRM, mine[h], 0) }
#endif
	/* The application quiesces, told or untold, or its grace is over; or it unmaps. */
	:: d_step { runs(h) && phase[h] == HAVE && h_state[h] == NOTICED -> input(h_state[h], IN_QUIESCED) }
	:: d_step { runs(h) && phase[h] == HAVE && h_state[h] == NOTICED -> input(h_state[h], IN_DEADLINE) }
	:: d_step { runs(h) && phase[h] == HAVE && h_state[h] == ACTIVE ->
			input(h_state[h], IN_QUIESCED);
			h_range[h] = PAGES }
	:: d_step { runs(h) && phase[h] == HAVE && (h_state[h] == ACTIVE || h_state[h] == NOTICED) ->
			input(h_state[h], IN_UNMAP);
			h_range[h] = PAGES }
	/* Stop, take, drain; what is under recall or all. */
	:: d_step { runs(h) && h_state[h] == FORCING && h_stage[h] == 0 && h_range[h] != PAGES ->
			h_take[h] = h_range[h];
			h_stage[h] = 1 }
	:: d_step { runs(h) && h_state[h] == FORCING && h_stage[h] == 0 ->
			h_take[h] = PAGES;
			h_stage[h] = 1 }
	:: d_step { runs(h) && h_state[h] == FORCING && h_stage[h] == 1 ->
#ifdef MUT_REPIN
			slot[h] = h_live[h] & ~h_take[h]; /* the rest is pinned anew */
#else
			slot[h] = slot[h] & ~h_take[h];
#endif
			h_stage[h] = 2 }
#ifdef MUT_NO_DRAIN
	:: d_step { runs(h) && room(h) && h_stage[h] == 2 ->
			holder_done(h);
			unconfirmed[h] = 0 }
#else
	:: d_step { runs(h) && room(h) && h_stage[h] == 2 -> holder_done(h) } /* drained, or not confirmed */
#endif
	/* What goes wrong. */
#ifdef LIVENESS
	:: d_step { runs(h) && phase[h] != IDLE -> hung[h] = 1 }
#endif
	:: d_step { alive[h] && phase[h] != IDLE -> die(h) }
	:: d_step { runs(h) && phase[h] == HAVE && !child[h] && NFORK -> child[h] = 1 }
	:: d_step { child[h] ->
			child[h] = 0;
			usable[h] = usable[h] && alive[h];
			if
			:: !up && gone(h) -> slot[h] = 0
			:: else -> skip
			fi }
	od
}

proctype Device(byte h)
{
end:	do
#ifndef NO_TRANSFERS
	:: d_step { usable[h] && (slot[h] & 1) && !flight[h] -> flight[h] = 1 }
	:: d_step { usable[h] && (slot[h] & 2) && !flight[h] -> flight[h] = 2 }
#endif
	:: d_step { flight[h] -> /* I3: it writes */
			assert(!(flight[h] & reported[h]) || unconfirmed[h]);
			flight[h] = 0;
			unconfirmed[h] = 0; /* was said of this one */
			if
			:: !up && gone(h) -> slot[h] = 0
			:: else -> skip
			fi }
	od
}

proctype Actor(byte c)
{
	change[c] = QUEUED;
	do
	:: d_step { change[c] == QUEUED || change[c] == WAITING ->
			age[c] = 0;
			if
			:: table[c] ->
				saw(ACTOR_KILLED);
				change[c] = KILLED
			:: else -> change[c] = FINISHED
			fi }
		break
	:: d_step { change[c] == GO ->
			check_happens(c);
			age[c] = 0;
			if
			:: table[c] -> change[c] = HAPPENED
			:: else -> change[c] = FINISHED
			fi }
		break
	:: d_step { change[c] == REFUSED -> change[c] = FINISHED }
		break
	od
}

/* I6: being up, it knows every lease that is in use, once; and what it takes for alive is. */
inline check_leases()
{
	for (i : 0 .. NH - 1) {
		assert(!(usable[i] && slot[i]) || (known(i) && rec_id[i] == slot_id[i]));
		assert(records[i] <= 1);
		assert(!(known(i) && a_state[i] == ACTIVE && runs(i) && connected[i] && len(to_holder[i]) == 0 &&
			 phase[i] == HAVE && h_state[i] == ACTIVE) ||
		       (slot[i] == rec_live[i] && mine[i] == rec_id[i]))
	}
	i = 0
}

/* I2, I7: no change waits longer than the ceiling and one grace while the arbiter could let it go. */
inline check_ages()
{
	for (i : 0 .. NC - 1) {
		assert(!TIMED_CHANGE(i) || !(up && MAY_ANSWER) || age[i] < BOUND)
	}
	i = 0
}

inline tick()
{
	for (i : 0 .. NC - 1) {
		if
		:: TIMED_CHANGE(i) && age[i] < BOUND -> age[i]++
		:: else -> skip
		fi
	}
	for (i : 0 .. NH - 1) {
		if
		:: deadline[i] -> deadline[i]--
		:: else -> skip
		fi
	}
	i = 0;
	if
	:: window -> window--
	:: else -> skip
	fi;
	if
	:: down -> down--
	:: else -> skip
	fi
}

proctype Clock()
{
end:	do
	:: d_step { !BUSY && (up || down) && (TIMED_CHANGES || TIMED_LEASES || window) ->
			if
			:: up -> check_leases()
			:: else -> skip
			fi;
			check_ages();
			tick() }
	od
}

init
{
	atomic {
		d_step { load_table(); up = 1 }
		byte n;
		for (n : 0 .. NH - 1) {
			alive[n] = 1;
			connected[n] = 1;
#ifdef POLICIES
			if
			:: n == 0 -> policy[n] = RECALL_KILL
			:: n == 0 -> policy[n] = REFUSE
			:: n == 1 -> policy[n] = KEEP
			:: n == 1 -> policy[n] = RECALL
			fi;
#else
			policy[n] = POLICY;
#endif
			run Lease(n);
			run Holder(n);
			run Device(n)
		}
		for (n : 0 .. NC - 1) {
			run Held(n);
			run Actor(n)
		}
		n = 0;
		run Daemon();
		run Clock()
	}
}

#ifdef LIVENESS
#define is_held (change[0] == QUEUED || change[0] == WAITING)
#define is_gated (table[0] != 0)
ltl goes_on { [](is_held -> <>!is_held) && [](is_gated -> <>!is_gated) }
#endif
