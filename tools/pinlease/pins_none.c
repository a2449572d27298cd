/* SPDX-License-Identifier: GPL-2.0-or-later */
/* pinlease pins, where it was built without what the kernel's programs need. */
#include <stdio.h>

#include "command.h"
#include "doctor.h"
#include "pins_options.h"

#define NO_BPF                                                                                          \
	"this build has no BPF; build it where libbpf, clang and bpftool are installed, with "          \
	"-Dbpf=enabled"

void doctor_pins(struct doctor *d)
{
	doctor_missing(d, "pins of all programs", "census of pins",
		       "census of pins, and following them: " NO_BPF);
}

int cmd_pins(int argc, char **argv)
{
	struct pins_options o;

	pins_parse(argc, argv, &o);
	fprintf(stderr, "pinlease pins: " NO_BPF "\n");
	return EXIT_CANT_START;
}
