/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The lookup of the registration cache against changes and against the end of registrations: lib/cache/get.c,
 * clean.c, lib/source/uffd_mark.h. One page. Each of an actor's changes gives it a new life at once, as
 * MAP_FIXED does. Memory order is x86's: a looker's stores wait in its buffer, where only it sees them;
 * its loads go in order. What is asserted:
 *
 *   I1    what a lookup returns was registered in a life no older than the last one the kernel had told of
 *         when the lookup began
 *   end   no registration is ended that a looker has
 *
 * and that nobody waits for ever (no invalid end state). Each MUT_ breaks one rule; model/run-cache has them.
 */
#ifndef LOOKERS
#define LOOKERS 2
#endif
#ifndef LOOKS
#define LOOKS 2 /* of each */
#endif
#ifndef ACTORS
#define ACTORS 1
#endif
#ifndef CHANGES
#define CHANGES 2 /* of each */
#endif
#ifndef REGIONS
#define REGIONS 3 /* one after the other, not used again: a gen stands for that */
#endif
#define NONE 15

byte life, told;      /* of the page; what the kernel has told of */
byte event[ACTORS];   /* unread: of which life; 0: none */
bool mark, kicked;    /* kicked: who waits for the mark to go has asked to look */
bool changing;	      /* the sequence is odd */
byte round;	      /* odd: the reader is in one */
bool locked;

byte old[ACTORS];     /* of these, what the round is to read */

#define COVERED (!(old[0] && event[0] == old[0]) && !(old[ACTORS - 1] && event[ACTORS - 1] == old[ACTORS - 1]))
#define QUEUED (event[0] || event[ACTORS - 1])

byte made;	      /* regions so far */
bool valid[REGIONS], ended[REGIONS];
byte born[REGIONS];   /* in which life */
byte current = NONE;  /* in the index */

byte pin[LOOKERS] = NONE;    /* what others see of a looker's table */
byte has[LOOKERS] = NONE;    /* what a looker believes to have */
byte buffer[LOOKERS] = NONE; /* a store to its table that nobody else sees yet */
bool stored[LOOKERS];	     /* there is one in the buffer */

inline store_pin(me, what)
{
	d_step { /* a second store pushes the first out */
		if
		:: stored[me] -> pin[me] = buffer[me]
		:: else
		fi;
		buffer[me] = what;
		stored[me] = true
	}
}

inline drain(me)
{
	if
	:: stored[me] -> pin[me] = buffer[me]; stored[me] = false
	:: else
	fi
}

/* ----------------------------------------------------------------------------------- who changes -- */

proctype Actor(byte me)
{
	byte n, mine;

	do
	:: n < CHANGES ->
		d_step { life++; mine = life }
		/* the kernel's gap: free already, not told */
#ifndef MARK_AT_ONCE
		event[me] = mine; /* it can be read before who polls is told of it: */
#endif
		d_step {
#ifdef MARK_AT_ONCE
			event[me] = mine;
#endif
			told = (told < mine -> mine : told);
#ifndef MUT_NO_MARK
			mark = true /* late, if it has been */
#endif
		}
		event[me] == 0; /* munmap() returns */
		n++
	:: else -> break
	od
}

/* ------------------------------------------------------------------------------------- who reads -- */

inline apply()
{
	d_step { /* ctx->lock: every lease that can be found */
		n = 0;
		do
		:: n < made -> valid[n] = false; n++
		:: else -> break
		od;
		n = 0
	}
}

inline take(a)
{
	d_step {
		told = (told < event[a] -> event[a] : told);
		event[a] = 0
	}
#ifdef MUT_SEQ_AFTER_READ
	changing = true;
#endif
#ifdef MUT_EVEN_BEFORE_APPLY
	changing = false;
#endif
	apply();
#ifdef MUT_SEQ_AFTER_READ
	changing = false;
#endif
#ifdef MUT_EVEN_BEFORE_APPLY
	changing = true
#endif
}

proctype Reader()
{
	byte n;
end:	do
	:: kicked && !QUEUED ->
		atomic {
			kicked = false;
			if
			:: mark -> goto begin
			:: else
			fi
		}
	:: QUEUED ->
begin:
#ifdef MUT_MARK_BEFORE_SEQ
		mark = false;
#endif
#ifndef MUT_SEQ_AFTER_READ
		changing = true;
#endif
		round++;
again:
#ifdef MUT_MARK_BEFORE_SEQ
		skip;
#else
		mark = false;
#endif
		d_step {
			old[0] = event[0];
			old[ACTORS - 1] = event[ACTORS - 1]
		}
		do /* a round reads what was there, and some more */
		:: event[0] -> take(0)
#if ACTORS > 1
		:: event[1] -> take(1)
#endif
#ifdef MUT_ROUND_OF_ONE
		:: round < 8 -> break
#endif
		:: COVERED -> break
		od;
		if
		:: mark || QUEUED ->
			round = round + 2;
			goto again
		:: else
		fi;
		round++;
#ifndef MUT_SEQ_AFTER_READ
		changing = false
#endif
	od
}

/* ---------------------------------------------------------------------------------- who looks up -- */

inline settle(me, r, ok)
{
#ifdef MUT_VALID_FIRST
	ok = valid[r];
#else
	ok = true;
#endif
#ifndef MUT_PIN_LATE
	store_pin(me, r);
#endif
	ok = ok && !mark;
#ifndef MUT_NO_SEQ
	ok = ok && !changing;
#endif
#ifndef MUT_VALID_FIRST
	ok = ok && valid[r];
#endif
#ifdef MUT_PIN_LATE
	store_pin(me, r);
#endif
	if
	:: ok -> has[me] = r
	:: else -> store_pin(me, NONE)
	fi
}

/* Something is changing: what is there, when a round is over that began after the lookup did. */
inline wait_told(me, r, ok)
{
#ifdef MUT_ROUND_UNDER_WAY
	d_step { until = ((round + 2) / 2) * 2 };
#else
	d_step { until = ((round + 3) / 2) * 2 };
#endif
	do
	:: round >= until || (!mark && !changing) -> break
#ifndef MUT_NO_LOOK
	:: atomic { mark && !changing && !QUEUED && !kicked -> kicked = true }
#endif
	od;
#ifdef MUT_TOLD_VALID_FIRST
	ok = valid[r];
#endif
	store_pin(me, r);
#ifndef MUT_TOLD_VALID_FIRST
	ok = valid[r];
#endif
	if
	:: ok -> has[me] = r
	:: else -> store_pin(me, NONE)
	fi
}

/* With the lock: what is there, or a new one, which a change can find before it is in the index. */
inline miss(me, r, ok)
{
	do
	:: atomic { !locked && !mark && !changing -> locked = true; break }
#ifndef MUT_NO_LOOK
	:: atomic { mark && !changing && !QUEUED && !kicked -> kicked = true } /* else it comes anyway */
#endif
	od;
	if
	:: current != NONE && valid[current] -> r = current
	:: else ->
		made < REGIONS;
		r = made;
		valid[r] = true;
		made++;
		born[r] = life
	fi;
	store_pin(me, r);
	if
	:: valid[r] -> ok = true; has[me] = r; current = r
	:: else -> ok = false; store_pin(me, NONE)
	fi;
	d_step { drain(me); locked = false } /* unlocking is a barrier */
}

proctype Looker(byte me)
{
	byte n, r, mine = NONE, began, until;
	bool ok;

	do
	:: n < LOOKS ->
		began = told;
		ok = false;
		r = mine;
		if
		:: r != NONE ->
			settle(me, r, ok);
			if
			:: !ok && valid[r] -> wait_told(me, r, ok)
			:: else
			fi
		:: else
		fi;
		do
		:: !ok && made < REGIONS -> miss(me, r, ok)
		:: !ok && made == REGIONS -> goto out /* the model has no more */
		:: else -> break
		od;
		assert(born[r] >= began); /* I1 */
		mine = r;
		assert(!ended[r]);
		has[me] = NONE;
		store_pin(me, NONE); /* put */
		n++
	:: else -> break
	od;
out:	skip;
	d_step { drain(me) }
}

/* Any time, a buffer is written out. */
proctype Buffer(byte me)
{
end:	do
	:: atomic { stored[me] -> pin[me] = buffer[me]; stored[me] = false }
	od
}

/* ------------------------------------------------------------------------------------- who ends -- */

proctype Cleaner()
{
	byte r, n;
	bool used;
end:	do
	:: r < made && !valid[r] && !ended[r] && born[r] < life + 1 ->
		atomic { !locked -> locked = true }
#ifndef MUT_NO_BARRIER
		d_step {
			n = 0;
			do
			:: n < LOOKERS -> drain(n); n++
			:: else -> break
			od;
			n = 0
		}
#endif
		used = false;
		do
		:: n < LOOKERS -> used = used || pin[n] == r; n++
		:: else -> break
		od;
		n = 0;
		if
		:: !used -> ended[r] = true; assert(has[0] != r && has[LOOKERS - 1] != r)
		:: else
		fi;
		locked = false
	:: r < made && (valid[r] || ended[r]) && r + 1 < REGIONS -> r++
	:: r > 0 -> r = 0
	od
}

init {
	atomic {
		run Actor(0);
#if ACTORS > 1
		run Actor(1);
#endif
		run Reader();
		run Cleaner();
		run Looker(0);
		run Buffer(0);
#if LOOKERS == 2
		run Looker(1);
		run Buffer(1);
#endif
	}
}
