/* SPDX-License-Identifier: GPL-2.0-or-later */
/* pinlease pins, where it was built without what the kernel's programs need. */
#include <stdio.h>

#include "command.h"
#include "pins_options.h"

int cmd_pins(int argc, char **argv)
{
	struct pins_options o;

	pins_parse(argc, argv, &o);
	fprintf(stderr, "pinlease pins: this build has no BPF; build it where libbpf, clang and bpftool "
			"are installed, "
			"with -Dbpf=enabled\n");
	return EXIT_CANT_START;
}
