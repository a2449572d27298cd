/* SPDX-License-Identifier: GPL-2.0-or-later */
/* pinlease recall: have leases released. */
#include <argp.h>
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "arbiter.h"
#include "command.h"
#include "common.h"
#include "given.h"

#define EXIT_NOT_TAKEN	 1 /* a lease is still there: nothing could take it, or not in time */
#define EXIT_NO_LEASE	 3
#define EXIT_NOT_ALLOWED 4 /* a lease's policy, or the system, forbids it; all others were released */

enum {
	FILE_OPTION = 'f',
	PID = 'p',
	LEASE = 'l',
	RANGE = 'r',
	GRACE = 'g',
	BYTES = 'b',
	FORCE = 'F',
	WAIT = 'w',
	NO_WAIT = 'n',
};

struct options {
	struct pl_recall_msg m;
	bool exact, ranged, wait;
	const char *path;  /* of --file */
	int32_t lease_pid; /* of --lease */
};

struct outcome {
	bool exact, waited;
	uint64_t start, end; /* of the file, what was asked for */
	int width;
	unsigned not_taken, not_allowed, taken; /* taken: before */
	char unknown[320]; /* why there may be leases that pinleased doesn't know of */
};

static const struct argp_option option_table[] = {
	{"bytes", BYTES, NULL, 0, "Sizes in bytes, exactly", 0},
	{"file", FILE_OPTION, "PATH", 0, "Leases of this file", 0},
	{"force", FORCE, NULL, 0, "At once, without a grace, and whatever the lease's policy is", 0},
	{"grace", GRACE, "MS", 0, "The holder's time to answer, instead of the lease's own", 0},
	{"lease", LEASE, "PID:NUMBER", 0, "This lease, as pinlease ps shows it", 0},
	{"no-wait", NO_WAIT, NULL, 0, "Only begin", 0},
	{"pid", PID, "PID", 0, "Leases of this process", 0},
	{"range", RANGE, "START-END", 0, "Only these bytes of the file; END may be left out", 0},
	{"wait", WAIT, NULL, 0, "Until each is released, which is done anyway", 0},
	{0},
};

static void choose_lease(struct options *o, char *arg, struct argp_state *state)
{
	char *colon = strchr(arg, ':');

	if (colon)
		*colon = 0;
	o->lease_pid = colon ? arbiter_pid(arg, state) : 0;
	if (!colon || tool_number(colon + 1, UINT64_MAX, &o->m.lease))
		argp_error(state, "a lease is PID:NUMBER, as \"pinlease ps\" shows them");
	o->m.flags |= PL_RECALL_ONE;
}

static void choose_range(struct options *o, char *arg, struct argp_state *state)
{
	char *dash = strchr(arg, '-');

	if (dash)
		*dash = 0;
	if (!dash || tool_number(arg, INT64_MAX, &o->m.file_start) ||
	    (dash[1] &&
	     (tool_number(dash + 1, INT64_MAX, &o->m.file_end) || o->m.file_end <= o->m.file_start)))
		argp_error(state, "a range is START-END or START-, in bytes, and not empty");
	o->ranged = true;
}

static void choose_grace(struct options *o, const char *arg, struct argp_state *state)
{
	uint64_t ms;

	if (tool_number(arg, UINT32_MAX, &ms))
		argp_error(state, "\"%s\" is no number of milliseconds", arg);
	o->m.grace_ms = (uint32_t)ms;
	o->m.flags |= PL_RECALL_GRACE;
}

static void check(struct options *o, struct argp_state *state)
{
	if (o->lease_pid && (o->m.pid || o->m.file_ino))
		argp_error(state, "--lease is one lease, without --pid and --file");
	if (o->lease_pid)
		o->m.pid = o->lease_pid;
	if (!o->m.pid && !o->m.file_ino)
		argp_error(state, "say which leases: --file, --pid or --lease");
	if (o->ranged && !o->m.file_ino)
		argp_error(state, "--range is of a --file");
	if ((o->m.flags & PL_RECALL_GRACE) && (o->m.flags & PL_RECALL_FORCE))
		argp_error(state, "--force is without any --grace");
	if (o->wait && (o->m.flags & PL_RECALL_NO_WAIT))
		argp_error(state, "--wait or --no-wait, not both");
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	switch (key) {
	case BYTES:
		o->exact = true;
		return 0;
	case FILE_OPTION:
		arbiter_file(arg, &o->m.file_dev, &o->m.file_ino, state);
		o->path = arg;
		return 0;
	case FORCE:
		o->m.flags |= PL_RECALL_FORCE;
		return 0;
	case GRACE:
		choose_grace(o, arg, state);
		return 0;
	case LEASE:
		choose_lease(o, arg, state);
		return 0;
	case PID:
		o->m.pid = arbiter_pid(arg, state);
		return 0;
	case RANGE:
		choose_range(o, arg, state);
		return 0;
	case WAIT:
		o->wait = true;
		return 0;
	case NO_WAIT:
		o->m.flags |= PL_RECALL_NO_WAIT;
		return 0;
	case ARGP_KEY_ARG:
		argp_error(state, "unexpected \"%s\"", arg);
		return 0;
	case ARGP_KEY_END:
		check(o, state);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static const char *result_words(const struct pl_event_msg *e, bool waited)
{
	if (e->err == -EPERM)
		return "kept by policy";
	if (e->err == -EOPNOTSUPP)
		return "NOT FORCED: no way";
	if (e->err)
		return "NOT FORCED: no end";
	switch (e->outcome) {
	case PINL_OUT_QUIESCED:
		return "quiesced";
	case PINL_OUT_SCRATCH:
		return "forced to scratch";
	case PINL_OUT_COPY:
		return "forced to a copy";
	case PINL_OUT_FAIL:
		return e->outside ? "forced from outside" : "forced to fail";
	case PINL_OUT_KILLED:
		return "holder killed";
	}
	return waited ? "holder gone" : "told";
}

/* Of the lease: what was asked for, in whole pages. Where it ends in errors, that is all of it. */
static uint64_t recalled(const struct pl_event_msg *e, const struct outcome *o)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), start = o->start / page * page,
		 end = e->file_end;

	if (e->outcome == PINL_OUT_FAIL)
		return e->bytes;
	start = start > e->file_start ? start : e->file_start;
	if (o->end && o->end < end)
		end = (o->end + page - 1) / page * page;
	return end - start;
}

static int print(const union pl_message *m, void *arg)
{
	const struct pl_event_msg *e = &m->event;
	struct outcome *o = arg;
	char size[24], time[24];

	if (m->head.type != PL_EVENT)
		return 0;
	if (!o->width) {
		o->width = isatty(STDOUT_FILENO) ? tool_width(stdout, 120) : INT_MAX;
		printf("%7s %-10s %5s %*s %9s %-19s %s\n", "PID", "PROGRAM", "LEASE", o->exact ? 13 : 4,
		       o->exact ? "BYTES" : "SIZE", "TIME", "RESULT", "FILE");
	}
	o->not_allowed += e->err == -EPERM;
	o->not_taken += e->err && e->err != -EPERM;
	tool_size_words(recalled(e, o), o->exact, size, sizeof size);
	snprintf(time, sizeof time, "%.1fms", (double)e->waited_ns / 1e6);
	tool_put_path(e->path, o->width - printf("%7d %-10.10s %5lu %*s %9s %-19s ", e->pid, e->program,
						 (unsigned long)e->lease, o->exact ? 13 : 4, size, time,
						 result_words(e, o->waited)));
	fflush(stdout);
	return 0;
}

struct taken {
	const struct pl_recall_msg *m; /* those that were meant */
	unsigned n;
};

static int count_taken(const union pl_message *m, void *arg)
{
	const struct pl_entry_msg *e = &m->entry;
	struct taken *t = arg;
	uint64_t end = t->m->file_end ? t->m->file_end : UINT64_MAX;

	if (m->head.type != PL_ENTRY || e->state != PINL_RELEASED ||
	    ((t->m->flags & PL_RECALL_ONE) && e->lease != t->m->lease))
		return 0;
	t->n += e->file_offset < end && e->file_offset + (e->end - e->start) > t->m->file_start;
	return 0;
}

/* How many leases fit that were taken back before, and whose holder hasn't ended them. */
static int ask_taken(struct arbiter *a, const struct pl_recall_msg *wanted, unsigned *n)
{
	struct taken t = {.m = wanted};
	union pl_message m;
	int err;

	pl_message_init(&m, PL_LIST);
	m.list.pid = wanted->pid;
	m.list.file_dev = wanted->file_dev;
	m.list.file_ino = wanted->file_ino;
	err = arbiter_ask(a, &m, count_taken, &t, ARBITER_PATIENCE_MS, NULL);
	*n = t.n;
	return err;
}

/* What the lines don't say. */
static int conclude(const struct outcome *o, uint64_t matched)
{
	if (!matched && o->taken) {
		printf("%u lease%s already released\n", o->taken, tool_s(o->taken));
		return tool_flush("pinlease recall") ? EXIT_CANT_START : 0;
	}
	if (!matched) {
		fprintf(stderr, "pinlease recall: no such lease%s\n",
			geteuid() ? " of yours; root recalls everybody's" : "");
		return EXIT_NO_LEASE;
	}
	if (o->not_taken)
		fprintf(stderr,
			"pinlease recall: not released: %u of %lu lease%s; the holder doesn't answer "
			"and its device can't be taken off from outside (see pinlease(1)); end the "
			"process\n",
			o->not_taken, (unsigned long)matched, tool_s(matched));
	if (o->not_allowed)
		fprintf(stderr,
			"pinlease recall: not recalled, by policy: %u of %lu lease%s; --force does it\n",
			o->not_allowed, (unsigned long)matched, tool_s(matched));
	return o->not_taken ? EXIT_NOT_TAKEN : o->not_allowed ? EXIT_NOT_ALLOWED : 0;
}

static void say_unknown(const struct outcome *o)
{
	if (*o->unknown)
		fprintf(stderr,
			"pinlease recall: pinleased isn't told of leases of files whose changes it "
			"can't hold, so they are not recalled, if there are any: %s\n",
			o->unknown);
}

int cmd_recall(int argc, char **argv)
{
	static const struct argp argp = {
		.options = option_table,
		.parser = parse,
		.doc = "Have leases released: their holders are told and have their grace, then the "
		       "devices are taken off by force. Asks pinleased; who isn't root recalls his own "
		       "leases."};
	struct outcome o = {0};
	struct options opts = {0};
	union pl_message m;
	uint64_t matched = 0;
	struct arbiter a = {0};
	int err;

	argp_err_exit_status = EXIT_CANT_START;
	argp_parse(&argp, argc, argv, 0, NULL, &opts);
	err = arbiter_open(&a);
	if (err)
		return EXIT_CANT_START;
	pl_message_init(&m, PL_RECALL_LEASES);
	opts.m.head = m.head;
	m.recall = opts.m;
	o.exact = opts.exact;
	o.waited = !(opts.m.flags & PL_RECALL_NO_WAIT);
	o.start = opts.m.file_start;
	o.end = opts.m.file_end;
	err = arbiter_ask(&a, &m, print, &o, -1, &matched);
	if (!err && !matched)
		err = ask_taken(&a, &opts.m, &o.taken);
	if (!err && !(matched + o.taken && (opts.path || opts.lease_pid)))
		given_why_unknown(&a, opts.path, o.unknown, sizeof o.unknown);
	arbiter_close(&a);
	if (err == -EPERM || err == -EBUSY)
		return EXIT_NOT_ALLOWED;
	if (err || tool_flush("pinlease recall"))
		return EXIT_CANT_START;
	err = conclude(&o, matched);
	say_unknown(&o);
	return err;
}
