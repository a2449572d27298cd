/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "pins_options.h"

#include <argp.h>
#include <string.h>

#include "arbiter.h"
#include "command.h"

enum { SORT = 's', JSON = 'j', PID = 'p', FILE_OPTION = 'f', BYTES = 'b', KIND = 'k' };

/* In the order of enum pins_device. */
static const char *const kinds[PINS_NR_DEVICES] = {"io_uring", "rdma",	  "vfio",     "iommufd",
						   "af_xdp",   "dma-buf", "vmsplice", "other"};

static const struct argp_option option_table[] = {
	{"bytes", BYTES, NULL, 0, "Sizes in bytes, exactly", 0},
	{"file", FILE_OPTION, "PATH", 0, "Only pins of this file", 0},
	{"json", JSON, NULL, 0, "Print one JSON object", 0},
	{"kind", KIND, "KIND", 0,
	 "Only of io_uring, rdma, vfio, iommufd, af_xdp, dma-buf, vmsplice, other", 0},
	{"pid", PID, "PID", 0, "Only pins of this process", 0},
	{"sort", SORT, "KEY", 0, "By bytes (unless given), pid or pins", 0},
	{0},
};

static int choose(const char *word, const char *const *words, int n, const char *what,
		  struct argp_state *state)
{
	for (int i = 0; i < n; i++)
		if (!strcmp(word, words[i]))
			return i;
	argp_error(state, "%s \"%s\"; see --help", what, word);
	return 0;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	static const char *const sorts[PINS_NR_SORTS] = {"bytes", "pid", "pins"};
	struct pins_options *o = state->input;

	switch (key) {
	case BYTES:
		o->exact = true;
		return 0;
	case JSON:
		o->json = true;
		return 0;
	case PID:
		o->filter.pid = arbiter_pid(arg, state);
		return 0;
	case FILE_OPTION:
		o->filter.by_file = true;
		arbiter_file(arg, &o->filter.file_dev, &o->filter.file_ino, state);
		return 0;
	case KIND:
		o->filter.device = choose(arg, kinds, PINS_NR_DEVICES, "no kind", state);
		return 0;
	case SORT:
		o->sort = choose(arg, sorts, PINS_NR_SORTS, "can't sort by", state);
		return 0;
	case ARGP_KEY_ARG:
		argp_error(state, "unexpected \"%s\"", arg);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

void pins_parse(int argc, char **argv, struct pins_options *options)
{
	static const struct argp argp = {.options = option_table,
					 .parser = parse,
					 .doc = "Show all pinned memory of this machine: by which "
						"process and device, of which file, where, "
						"and whether pinlease can take it back. Needs root and "
						"a kernel that describes itself (BTF)."};

	*options = (struct pins_options){.filter.device = -1};
	argp_err_exit_status = EXIT_CANT_START;
	argp_parse(&argp, argc, argv, 0, NULL, options);
}
