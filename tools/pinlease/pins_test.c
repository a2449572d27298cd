/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Programs can be attached and never run (kernel.ftrace_enabled=0, kprobes that are switched off), or
 * know another FOLL_LONGTERM than the kernel has. So a pin of our own must be seen, as long-term, and
 * its release.
 */
#include <errno.h>
#include <string.h>

#include "pins_live.h"

#define TRIES 5 /* a call can be missed */

/* 1: pinned and released; 0: only pinned: a socket lets go later. */
static int pin(struct census *c)
{
	int released = pins_pin_again(c);

	pins_release_own(c);
	return released;
}

static int say(const char *what)
{
	pins_say(
		"programs are attached to this kernel's functions, but %s isn't seen by them; see "
		"kernel.ftrace_enabled and /sys/kernel/debug/kprobes/enabled, which must be 1; pinlease "
		"pins, without --watch or --trace, needs neither",
		what);
	return -EOPNOTSUPP;
}

int live_test(struct live *l)
{
	const uint64_t *n = l->counts;
	int released = 0, err = 0;

	for (int i = 0; i < TRIES && !err; i++) {
		released = pin(l->c);
		if (released < 0) {
			pins_say("can't pin a page as a test of what is attached (%s)",
				 strerror(-released));
			return released;
		}
		err = live_read_counts(l);
		if (n[LIVE_OWN_LONG_PAGES] && (n[LIVE_OWN_UNPINNED_PAGES] || !released))
			return err;
	}
	if (err)
		return err;
	if (!n[LIVE_OWN_LONG_PAGES])
		return say(n[LIVE_OWN_SHORT_PAGES] ? "that a long-term pin of this command is long-term"
						   : "a pin of this command");
	return say("a release of this command");
}
