/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What `pinlease pins` can see here: each way is gone as far as to a pin of our own, which must be seen.
 */
#include <errno.h>
#include <string.h>

#include "doctor.h"
#include "pins_live.h"

#define GROUP "pins of all programs"

static const struct {
	const char *name, *needs, *instead;
	enum live_by by;
} ways[] = {
	{"pins live, by trampolines",
	 "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS, on a kernel that allows it",
	 "pinlease pins --watch and --trace use kprobes, if there are any", LIVE_TRAMPOLINES},
	{"pins live, by kprobes", "CONFIG_KPROBE_EVENTS and a processor of type x86-64",
	 "pinlease pins --watch and --trace use trampolines, if there are any", LIVE_KPROBES},
};

static void live(struct doctor *d, struct census *c, size_t way)
{
	struct pins_options o = {.mode = PINS_WATCH, .buffer = PINS_PAGE, .filter = {.device = -1}};
	struct live l = {.o = &o, .c = c, .by = ways[way].by, .stats = -1};
	char said[DOCTOR_WHY] = "";
	int err;

	pins_hear(said, sizeof said);
	err = live_follow(&l);
	pins_hear(NULL, 0);
	if (!err && !*l.unfollowed)
		doctor_here(d, GROUP, ways[way].name, "%s", "");
	else if (!err)
		doctor_missing(d, GROUP, ways[way].name, "%s: this kernel refuses them on %s; %s",
			       ways[way].name, l.unfollowed, ways[way].instead);
	else if (*said)
		doctor_missing(d, GROUP, ways[way].name, "%s: %s", ways[way].name, said);
	else
		doctor_missing(d, GROUP, ways[way].name,
			       "%s: this kernel refuses them (%s), they need %s; %s", ways[way].name,
			       strerror(-err), ways[way].needs, ways[way].instead);
	live_forget(&l);
	live_unfollow(&l);
}

void doctor_pins(struct doctor *d)
{
	char said[DOCTOR_WHY] = "";
	struct census c;
	int err;

	pins_start(&c);
	pins_hear(said, sizeof said);
	err = pins_load(&c);
	if (!err)
		err = pins_calibrate(&c);
	pins_release_own(&c);
	pins_hear(NULL, 0);
	if (!err)
		doctor_here(d, GROUP, "census of pins", "%s", "");
	else
		doctor_missing(d, GROUP, "census of pins", "census of pins: %s", said);
	for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
		if (!err)
			live(d, &c, i);
		else
			doctor_missing(d, GROUP, ways[i].name, "%s: %s", ways[i].name, said);
	pins_end(&c);
}
