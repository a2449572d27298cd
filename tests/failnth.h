/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Makes the nth thing that can fail fail: an allocation of the library's, or a system call of any thread
 * of this process, whoever makes it (the library, libc or liburing for it; its own threads too).
 *
 * Allocations are counted by the linker's --wrap (tests/meson.build), system calls by a seccomp filter
 * that asks a thread of this process about each one. A filter stays for ever: use a process of its own
 * for every n. What a failed call would have done is not done, so calls that can't fail, or that have
 * done their work even when they say they failed (munmap, close, futex, exit ...), are never failed.
 */
#ifndef FAILNTH_H
#define FAILNTH_H

#include <stdbool.h>

#define FAILNTH_WORDS 128

/*
 * Fail the nth point; 0: none, only count. Most calls have several plausible errors: `choice` 0 is the
 * first of each; 1 the second, and calls that have only one aren't counted; 2 the
 * first, and it stays so: all calls of that kind fail from there on until disarmed, as when descriptors
 * are used up. `fired` gets what was made to fail, in words. Before any other thread is made. 0;
 * -EOPNOTSUPP: no seccomp user notification here.
 */
int failnth_start(unsigned n, unsigned choice, char fired[FAILNTH_WORDS]);

/* Count and fail from here on, or no more. */
void failnth_arm(bool on);

/* The calling thread's calls are from now on the test's own, which never fail; or no longer. */
void failnth_own(bool own);

/* Points met while armed. */
unsigned failnth_points(void);

/* The library's allocations that haven't been freed. */
long failnth_allocations(void);

#endif
