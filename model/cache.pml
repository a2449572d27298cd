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
#ifndef CHANGES
#define CHANGES 2
#endif
#ifndef REGIONS
#define REGIONS 3 /* one after the other, not used again: a gen stands for that */
#endif
#define NONE 15

byte life, told;      /* of the page; what the kernel has told of */
byte queued, acked;   /* events unread; read */
bool mark, kicked;   /* kicked: who waits for the mark to go has asked to look */
byte seq;
bool locked, idle_actor;

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

proctype Actor()
{
	byte n;

	do
	:: n < CHANGES ->
		life++;
		/* the kernel's gap: free already, not told */
#ifndef MARK_AT_ONCE
		queued++; /* it can be read before who polls is told of it: */
#endif
		d_step {
#ifdef MARK_AT_ONCE
			queued++;
#endif
			told = life;
#ifndef MUT_NO_MARK
			mark = true /* late, if it has been */
#endif
		}
		acked > n; /* munmap() returns */
		n++
	:: else -> break
	od;
	idle_actor = true
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

proctype Reader()
{
	byte n;
end:	do
	:: kicked && queued == 0 ->
		atomic {
			kicked = false;
			if
			:: mark -> goto round
			:: else
			fi
		}
	:: queued > 0 ->
round:
#ifdef MUT_MARK_BEFORE_SEQ
		mark = false;
#endif
#ifndef MUT_SEQ_AFTER_READ
		seq++;
#endif
again:
#ifndef MUT_MARK_BEFORE_SEQ
		mark = false;
#endif
		do
		:: queued > 0 ->
			d_step {
				queued--;
				acked++;
				told = (told < acked -> acked : told)
			}
#ifdef MUT_SEQ_AFTER_READ
			seq++;
#endif
#ifdef MUT_EVEN_BEFORE_APPLY
			seq++;
#endif
			apply();
#ifdef MUT_SEQ_AFTER_READ
			seq++;
#endif
#ifdef MUT_EVEN_BEFORE_APPLY
			seq++;
#endif
		:: queued == 0 -> break
		od;
		if
		:: mark -> goto again
		:: else
		fi;
#ifndef MUT_SEQ_AFTER_READ
		seq++
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
	ok = ok && !(seq & 1);
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

/* With the lock: what is there, or a new one, which a change can find before it is in the index. */
inline miss(me, r, ok)
{
	do
	:: atomic { !locked && !mark && !(seq & 1) -> locked = true; break }
#ifndef MUT_NO_LOOK
	:: atomic { mark && !(seq & 1) && queued == 0 && !kicked -> kicked = true } /* else it comes anyway */
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
	byte n, r, mine = NONE, began;
	bool ok;

	do
	:: n < LOOKS ->
		began = told;
		ok = false;
		r = mine;
		if
		:: r != NONE -> settle(me, r, ok)
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
		run Actor();
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
