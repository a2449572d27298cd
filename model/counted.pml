/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The registration cache where the kernel counts changes before it makes them: bpf/generation.bpf.c,
 * lib/source/generation_take.c and _watch.c, lib/core/counted.c, lib/cache/get.c, wait.c and miss.c. One page, in
 * one area. A change gives the page a new life, in the midst of a call. What counts and pins are to each
 * other's processors is in cache.pml; here all see each step at once, as all but loads are locked. Asserted:
 *
 *   I1    what a lookup returns was registered in a life no older than that of the last change which, when
 *         the lookup began, had been made if it was watched as it began, and had returned if it wasn't
 *
 * and that nobody waits for ever (no invalid end state). Each MUT_ breaks one rule; model/run-cache has them.
 */
#ifndef LOOKERS
#define LOOKERS 1
#endif
#ifndef LOOKS
#define LOOKS 3 /* of each */
#endif
#ifndef ACTORS
#define ACTORS 1
#endif
#ifndef CHANGES
#define CHANGES 2 /* of each */
#endif
#ifndef OTHERS
#define OTHERS 0 /* changes of what shares the area, and isn't registered */
#endif
#define REGIONS 3
#define NONE 15

byte life, binding;	   /* of the page; which life a lookup has to know of */
byte told, applied, lost;  /* the counts */
chan ring = [6] of { bool }; /* records, unread: are they of the page? */
bool going[ACTORS];
byte watches;		   /* of the area */
byte serial;		   /* of what was taken */
bool locked;		   /* the cache's lock */

byte made;
bool found[REGIONS];	   /* by a change: it is in the index */
bool valid[REGIONS], ended[REGIONS];
byte born[REGIONS];	   /* in which life */
byte used[REGIONS];
byte current = NONE;	   /* in the tree */

#define IS_GOING (going[0] || going[ACTORS - 1])
#define BEHIND	 (told != applied)

/* ----------------------------------------------------------------------------------- who changes -- */

inline tell(ours)
{
	told++;
	if
	:: ring!ours
#ifdef LOSES
	:: lost++
#endif
	fi
}

#if OTHERS
proctype Other()
{
	byte n;

	do
	:: n < OTHERS -> told++; ring!false; n++
	:: else -> break
	od
}
#endif

proctype Actor(byte me)
{
	byte n, mine;
	bool seen;

	do
	:: n < CHANGES ->
		seen = watches > 0;
		if
		:: seen ->
#ifdef MUT_TOLD_FIRST
			tell(true);
#endif
#ifndef MUT_NO_PLACE
			going[me] = true;
#endif
#if !defined MUT_TOLD_FIRST && !defined MUT_TOLD_LATE
			tell(true)
#endif
		:: else
		fi;
		d_step { /* page table entries go */
			life++;
			mine = life;
			if
			:: seen -> binding = mine
			:: else
			fi
		}
		if
#ifndef MUT_NO_END
		:: !seen && watches > 0 -> tell(true)
#endif
#ifdef MUT_TOLD_LATE
		:: seen -> tell(true)
#endif
		:: else
		fi;
		going[me] = false;
		d_step { binding = (binding < mine -> mine : binding); seen = false }
		n++
	:: else -> break
	od
}

/* ------------------------------------------------------------------------------------- who takes -- */

/* ctx->lock: every registration that a change can find */
inline invalidate()
{
	d_step {
		n = 0;
		do
		:: n < made -> valid[n] = valid[n] && !found[n]; n++
		:: else -> break
		od;
		n = 0
	}
}

proctype Reader()
{
	byte n, taken, gave;
	bool has_lost, ours;
end:	do
	:: BEHIND ->
		do
		:: nempty(ring) ->
			ring?ours;
			taken++;
#ifdef MUT_APPLIED_FIRST
			applied = taken + gave;
#endif
			if
			:: ours ->
#ifndef MUT_SERIAL_LATE
				serial++;
#endif
				invalidate();
#ifdef MUT_SERIAL_LATE
				applied = taken + gave;
				serial++
#endif
			:: else
			fi;
			ours = false;
			if /* now and then */
			:: true
#ifdef MUT_LOST_MEANWHILE
			:: applied = taken + gave
#else
			:: lost != gave -> break
			:: lost == gave -> applied = taken + gave
#endif
			fi
		:: empty(ring) -> break
		od;
		skip; /* a d_step can't be jumped to */
		d_step { has_lost = lost != gave; gave = lost }
		if
		:: has_lost ->
			serial++;
#ifndef MUT_LOST_IGNORED
			invalidate()
#endif
		:: else
		fi;
		applied = taken + gave
	od
}

/* ---------------------------------------------------------------------------------- who looks up -- */

inline hit(r, ok)
{
#ifdef MUT_VALID_FIRST
	ok = valid[r];
	ok = ok && !BEHIND;
#else
	ok = !BEHIND;
	ok = ok && valid[r];
#endif
}

/* As pl_get_told(): for what was told of when it began. */
inline hit_told(r, ok)
{
	until = told;
#ifndef MUT_NO_WAIT
	applied >= until || !BEHIND;
#endif
	ok = valid[r]
}

/* The library looks at going[] once more afterwards, which isn't needed for this. */
inline make(r, ok)
{
	looked = serial;
	goes = IS_GOING;
	atomic { r = made; made++; valid[r] = true }
#ifndef MUT_INDEX_LATE
	found[r] = true;
#endif
#ifndef MUT_WATCH_LATE
	watches++;
#endif
	born[r] = life; /* pinned */
#ifdef MUT_WATCH_LATE
	watches++;
#endif
	used[r]++;
	ok = valid[r];
	if
	:: ok ->
#ifdef MUT_NO_LOOK_BEFORE
		goes = false;
#endif
#ifndef MUT_NO_RECENT
		goes = goes || serial != looked;
#endif
#ifdef MUT_INDEX_LATE
		found[r] = true;
#endif
		if
		:: goes -> valid[r] = false /* for this caller only */
		:: else -> current = r
		fi
	:: else -> used[r]--
	fi
}

inline miss(r, ok)
{
	!BEHIND;
	atomic { !locked -> locked = true }
	if
	:: BEHIND
	:: !BEHIND && current != NONE && valid[current] ->
		r = current;
		used[r]++;
		ok = valid[r];
		if
		:: !ok -> used[r]--
		:: else
		fi
	:: !BEHIND && (current == NONE || !valid[current]) && made < REGIONS -> make(r, ok)
	:: !BEHIND && (current == NONE || !valid[current]) && made == REGIONS -> locked = false; goto out
	fi;
	locked = false
}

proctype Looker()
{
	byte n, r = NONE, mine = NONE, began, until, looked;
	bool ok, goes;

	do
	:: n < LOOKS ->
		d_step { began = binding; ok = false; goes = false; r = mine }
		if
		:: r != NONE && !ended[r] ->
			used[r]++;
			hit(r, ok);
			if
			:: !ok && valid[r] -> hit_told(r, ok)
			:: else
			fi;
			if
			:: !ok -> used[r]--
			:: else
			fi
		:: else
		fi;
		do
		:: !ok -> miss(r, ok)
		:: else -> break
		od;
		assert(born[r] >= began); /* I1 */
		mine = r;
		used[r]--;
		n++
	:: else -> break
	od;
out:	skip
}

/* ------------------------------------------------------------------------------------- who ends -- */

/* With the cache's lock. The area is unwatched last. */
inline finish(r)
{
	ended[r] = true;
	found[r] = false;
	watches--
}

#define CAN_END(r) (!locked && r < made && !valid[r] && !ended[r] && !used[r])

proctype Cleaner()
{
end:	do
	:: atomic { CAN_END(0) -> finish(0) }
	:: atomic { CAN_END(1) -> finish(1) }
	:: atomic { CAN_END(2) -> finish(2) }
#ifdef MUT_UNWATCH_EARLY
	:: atomic { watches == 1 && current == 0 && valid[0] -> watches-- }
#endif
	od
}

init {
	atomic {
		run Actor(0);
#if ACTORS > 1
		run Actor(1);
#endif
		run Reader();
#if OTHERS
		run Other();
#endif
		run Cleaner();
		run Looker();
#if LOOKERS > 1
		run Looker();
#endif
	}
}
