/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "pins_options.h"

#include <argp.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "arbiter.h"
#include "command.h"
#include "common.h"

enum {
	SORT = 's',
	JSON = 'j',
	PID = 'p',
	FILE_OPTION = 'f',
	BYTES = 'b',
	KIND = 'k',
	WATCH = 'w',
	TRACE = 't',
	EXACT = 'e',
	DELAY = 'd',
	BUFFER = 256
};

#define MIN_DELAY_MS 100
#define MAX_DELAY_MS 3600000

static const struct argp_option option_table[] = {
	{"buffer", BUFFER, "KIB", 0, "Room for events that --trace has not printed yet [4096]", 0},
	{"bytes", BYTES, NULL, 0, "Sizes in bytes, exactly", 0},
	{"delay", DELAY, "SECONDS", 0, "With --watch: look again so often [2]", 0},
	{"exact", EXACT, NULL, 0,
	 "With --watch or --trace: follow every call and page; all others are slower for it", 0},
	{"file", FILE_OPTION, "PATH", 0, "Only pins of this file", 0},
	{"json", JSON, NULL, 0, "Print one JSON object", 0},
	{"kind", KIND, "KIND", 0,
	 "Only of io_uring, rdma, vfio, iommufd, af_xdp, dma-buf, vmsplice, direct-io, other", 0},
	{"pid", PID, "PID", 0, "Only pins of this process", 0},
	{"sort", SORT, "KEY", 0, "By bytes (unless given), pid or pins", 0},
	{"trace", TRACE, NULL, 0, "Print each pin and release as it comes, until interrupted", 0},
	{"watch", WATCH, NULL, 0,
	 "Show who pins how much and for how long, again and again, until interrupted", 0},
	{0},
};

static int choose(const char *word, const char *const *words, int n, const char *what,
		  struct argp_state *state)
{
	char all[160] = "";

	for (int i = 0; i < n; i++) {
		if (!strcmp(word, words[i]))
			return i;
		tool_append(all, sizeof all, "%s%s", i ? ", " : "", words[i]);
	}
	argp_error(state, "%s \"%s\"; name one of %s", what, word, all);
	return 0;
}

static int choose_kind(const char *word, struct argp_state *state)
{
	const char *words[PINS_NR_DEVICES];

	for (int i = 0; i < PINS_NR_DEVICES; i++)
		words[i] = pins_classes[i].name;
	return choose(word, words, PINS_NR_DEVICES, "no kind", state);
}

static int32_t choose_process(const char *arg, struct argp_state *state)
{
	int32_t pid = arbiter_pid(arg, state);

	if (kill(pid, 0) && errno == ESRCH)
		argp_error(state, "there is no process %d", pid);
	return pid;
}

static void set_mode(struct pins_options *o, enum pins_mode mode, struct argp_state *state)
{
	if (o->mode != PINS_CENSUS && o->mode != mode)
		argp_error(state, "--watch and --trace exclude each other");
	o->mode = mode;
}

static void set_delay(struct pins_options *o, const char *arg, struct argp_state *state)
{
	char *end;
	double s = strtod(arg, &end);

	if (*end || end == arg || !(s >= MIN_DELAY_MS / 1e3 && s <= MAX_DELAY_MS / 1e3))
		argp_error(state, "\"%s\" is no number of seconds from 0.1 to 3600", arg);
	o->delay_ms = (unsigned)(s * 1000);
}

/* The kernel takes powers of two, of pages. */
static void set_buffer(struct pins_options *o, const char *arg, struct argp_state *state)
{
	uint64_t kib;

	if (tool_number(arg, 1 << 20, &kib) || kib < 4 || kib & (kib - 1))
		argp_error(state, "\"%s\" is no power of two from 4 to 1048576", arg);
	o->buffer = (unsigned)kib * 1024;
}

static void check(const struct pins_options *o, struct argp_state *state)
{
	if (o->mode == PINS_CENSUS && o->followed)
		argp_error(state, "--exact is for --watch and --trace");
	if (o->mode != PINS_WATCH && o->delay_ms)
		argp_error(state, "--delay is for --watch");
	if (o->mode != PINS_TRACE && o->buffer)
		argp_error(state, "--buffer is for --trace");
	if (o->mode != PINS_CENSUS && o->sort != PINS_BY_BYTES)
		argp_error(state, "--sort is for the census");
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
		o->filter.pid = choose_process(arg, state);
		return 0;
	case FILE_OPTION:
		o->filter.by_file = true;
		arbiter_file(arg, &o->filter.file_dev, &o->filter.file_ino, state);
		return 0;
	case KIND:
		o->filter.device = choose_kind(arg, state);
		return 0;
	case SORT:
		o->sort = choose(arg, sorts, PINS_NR_SORTS, "can't sort by", state);
		return 0;
	case WATCH:
	case TRACE:
		set_mode(o, key == WATCH ? PINS_WATCH : PINS_TRACE, state);
		return 0;
	case EXACT:
		o->followed = true;
		return 0;
	case DELAY:
		set_delay(o, arg, state);
		return 0;
	case BUFFER:
		set_buffer(o, arg, state);
		return 0;
	case ARGP_KEY_END:
		check(o, state);
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
	static const struct argp argp = {
		.options = option_table,
		.parser = parse,
		.doc = "Show all pinned memory of this machine: by which "
		       "process and device, of which file, where, "
		       "and whether pinlease can take it back. Needs root and "
		       "a kernel that describes itself (BTF); --watch and "
		       "--trace also one whose functions programs can follow (BPF "
		       "trampolines, kprobes)."};

	*options = (struct pins_options){.filter.device = -1};
	argp_err_exit_status = EXIT_CANT_START;
	argp_parse(&argp, argc, argv, 0, NULL, options);
	options->delay_ms = options->delay_ms ? options->delay_ms : 2000;
	options->buffer = options->buffer ? options->buffer : 4u << 20;
}
