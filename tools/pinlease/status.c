/* SPDX-License-Identifier: GPL-2.0-or-later */
/* pinlease status: is pinleased there, what does it do, what can't it. */
#include <argp.h>
#include <errno.h>
#include <json-c/json.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "arbiter.h"
#include "command.h"
#include "common.h"
#include "ps.h"
#include "status.h"

enum { JSON = 'j', BYTES = 'b' };

struct options {
	bool json, exact;
};

struct found {
	struct pl_status_msg status;
	char sources[8][PL_SOURCE_TEXT];
	unsigned n_sources;
	struct pl_user_msg *users;
	size_t n_users;
	struct ps_found leases;
};

static const struct argp_option option_table[] = {
	{"bytes", BYTES, NULL, 0, "Sizes in bytes, exactly", 0},
	{"json", JSON, NULL, 0, "Print one JSON object", 0},
	{0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = state->input;

	switch (key) {
	case BYTES:
		o->exact = true;
		return 0;
	case JSON:
		o->json = true;
		return 0;
	case ARGP_KEY_ARG:
		argp_error(state, "unexpected \"%s\"", arg);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static int collect(const union pl_message *m, void *arg)
{
	struct found *f = arg;
	struct pl_user_msg *more;

	if (m->head.type == PL_ENTRY)
		return m->entry.held ? ps_collect(m, &f->leases) : 0;
	if (m->head.type == PL_STATUS) {
		f->status = m->status;
	} else if (m->head.type == PL_SOURCE && f->n_sources < 8) {
		strcpy(f->sources[f->n_sources++], m->source.text);
	} else if (m->head.type == PL_USER) {
		more = realloc(f->users, (f->n_users + 1) * sizeof *more);
		if (!more) {
			fprintf(stderr, "pinlease: out of memory\n");
			return -ENOMEM;
		}
		f->users = more;
		f->users[f->n_users++] = m->user;
	}
	return 0;
}

/* What no source of the arbiter's can hold, wherever it runs; tests/traps_*.c show each. */
static const struct {
	const char *what, *why;
	bool refused; /* by the gate, where a lease says so */
} gaps[] = {
	{"files on tmpfs, memfd, hugetlbfs", "the kernel reports no change of them before it is made",
	 true},
	{"files on NFS, FUSE, overlayfs", "fanotify holds changes on ext4, XFS and btrfs only"},
	{"a hole by a descriptor from before the file system's first lease",
	 "the kernel decides when a file is opened whether its changes are reported", true},
	{"munmap, mremap, madvise", "not of files: each holder's library watches its own mappings"},
};

#define NR_GAPS (sizeof gaps / sizeof *gaps)

/* NULL: there is none. */
static const char *gate_line(const struct found *f)
{
	for (unsigned i = 0; i < f->n_sources; i++)
		if (!strncmp(f->sources[i], "gate: running", 13))
			return f->sources[i];
	return NULL;
}

/* The first gap is closed by the gate. */
static size_t first_gap(const struct found *f)
{
	const char *gate = gate_line(f);

	return gate && strstr(gate, "others wait");
}

static const char *but_refused(const struct found *f, size_t gap)
{
	return gaps[gap].refused && gate_line(f)
		       ? "; refused, where a lease says so (REFUSE), by the gate"
		       : "";
}

static bool can_hold(const struct found *f)
{
	for (unsigned i = 0; i < f->n_sources; i++)
		if (!strncmp(f->sources[i], "files: running", 14))
			return true;
	return false;
}

/* ------------------------------------------------------------------------------------------ text -- */

void status_put(const char *label, const char *fmt, ...)
{
	char text[PL_SOURCE_TEXT + 32];
	const char *at = text, *next;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	for (; *at; at = next, label = "") {
		int len = tool_cut(at, 80 - 13, &next);

		printf("%-12s %.*s\n", label, len, at);
	}
}

static const char *after_crash_words(const struct pl_status_msg *s)
{
	switch (s->after_crash) {
	case PL_AFTER_CRASH_CLOSED:
		return "closed: who waits, and who comes, waits for the restart";
	case PL_AFTER_CRASH_LOST:
		return "open: who waits for a file on disk goes on, because no service manager keeps "
		       "the descriptors";
	}
	return "open: who waits goes on";
}

/* For how long; NULL: it isn't. */
static const char *closed_at_gate(const struct found *f)
{
	static const char closed[] = "after a crash closed for ";
	const char *at = gate_line(f);

	at = at ? strstr(at, closed) : NULL;
	return at ? at + strlen(closed) : NULL;
}

static void print_after_crash(const struct found *f)
{
	const char *gate = closed_at_gate(f);

	if (gate)
		status_put("after crash",
			   "%s; what the gate refuses stays refused, and who waits there (for files in "
			   "memory) gets EBUSY, for %.*s",
			   after_crash_words(&f->status), (int)strcspn(gate, ";"), gate);
	else
		status_put("after crash", "%s", after_crash_words(&f->status));
}

static void print_totals(const struct found *f, bool exact)
{
	const struct pl_status_msg *s = &f->status;
	char bytes[24], age[24], most[24], untold[64] = "";

	if (s->untold)
		snprintf(untold, sizeof untold, " (holders weren't told of each: %lu)",
			 (unsigned long)s->untold);
	tool_size_words(s->bytes, exact, bytes, sizeof bytes);
	tool_size_words(s->max_bytes, exact, most, sizeof most);
	tool_age_words(tool_now() - s->since_ns, age, sizeof age);
	status_put("pinleased", "%s, process %d, up %s, boot %016lx", s->version, s->pid, age,
		   (unsigned long)s->boot);
	status_put("leases", "%lu of %u holder%s, %s%s", (unsigned long)s->leases, s->holders,
		   tool_s(s->holders), bytes, exact ? " bytes" : "");
	status_put("waiting", "%lu change%s or recall%s held now", (unsigned long)s->held,
		   tool_s(s->held), tool_s(s->held));
	status_put(
		"since start",
		"%lu recall%s: %lu quiesced, %lu forced (%lu from outside); %lu change%s refused%s, %lu "
		"went "
		"on; "
		"%lu time%s a device wasn't known to be off",
		(unsigned long)s->notices, tool_s(s->notices), (unsigned long)s->quiesced,
		(unsigned long)s->forced, (unsigned long)s->outside, (unsigned long)s->refused,
		tool_s(s->refused), untold, (unsigned long)s->answered, (unsigned long)s->unconfirmed,
		tool_s(s->unconfirmed));
	status_put("watchers", "%u, %lu event%s lost", s->watchers, (unsigned long)s->events_lost,
		   tool_s(s->events_lost));
	status_put("ceiling", "%u ms", s->ceiling_ms);
	status_put("each user",
		   "may have %lu lease%s, %s%s, %u connection%s; hold changes up for %u ms of each "
		   "minute; be "
		   "recalled %u time%s a minute",
		   (unsigned long)s->max_leases, tool_s(s->max_leases), most, exact ? " bytes" : "",
		   s->max_connections, tool_s(s->max_connections), s->hold_ms, s->max_notices,
		   tool_s(s->max_notices));
	status_put("may kill", "%s",
		   s->may_kill ? "yes: holders that can't be forced, where their own policy says so"
			       : "no");
	print_after_crash(f);
}

static void print_users(const struct found *f, bool exact)
{
	char bytes[24], name[40];
	const struct passwd *pw;

	for (size_t i = 0; i < f->n_users; i++) {
		const struct pl_user_msg *u = &f->users[i];

		pw = getpwuid(u->uid);
		snprintf(name, sizeof name, "%s", pw ? pw->pw_name : "?");
		tool_size_words(u->bytes, exact, bytes, sizeof bytes);
		status_put("user",
			   "%u %s: %lu lease%s, %s%s, %u connection%s; used up %lu of %u ms, %lu of %u "
			   "recall%s",
			   u->uid, name, (unsigned long)u->leases, tool_s(u->leases), bytes,
			   exact ? " bytes" : "", u->connections, tool_s(u->connections),
			   (unsigned long)((u->hold_ns + 999999) / 1000000), f->status.hold_ms,
			   (unsigned long)u->notices, f->status.max_notices,
			   tool_s(f->status.max_notices));
	}
}

static void print_text(const struct found *f, bool exact)
{
	print_totals(f, exact);
	status_print_waits(&f->leases);
	print_users(f, exact);
	for (unsigned i = 0; i < f->n_sources; i++)
		status_put("source", "%s", f->sources[i]);
	if (!can_hold(f))
		status_put("not held", "any change of %s file: source files is missing, see above%s",
			   first_gap(f) ? "a disk's" : "any", but_refused(f, 0));
	for (size_t i = first_gap(f); i < NR_GAPS && can_hold(f); i++)
		status_put("not held", "%s: %s%s", gaps[i].what, gaps[i].why, but_refused(f, i));
}

/* ------------------------------------------------------------------------------------------ JSON -- */

static struct json_object *users_json(const struct found *f)
{
	struct json_object *all = json_object_new_array(), *o;

	for (size_t i = 0; i < f->n_users; i++) {
		o = json_object_new_object();
		tool_add_number(o, "uid", f->users[i].uid);
		tool_add_number(o, "connections", f->users[i].connections);
		tool_add_number(o, "leases", f->users[i].leases);
		tool_add_number(o, "bytes", f->users[i].bytes);
		tool_add_number(o, "hold_ns", f->users[i].hold_ns);
		tool_add_number(o, "notices", f->users[i].notices);
		json_object_array_add(all, o);
	}
	return all;
}

static struct json_object *sources_json(const struct found *f)
{
	struct json_object *all = json_object_new_array();

	for (unsigned i = 0; i < f->n_sources; i++)
		json_object_array_add(all, json_object_new_string(f->sources[i]));
	return all;
}

static struct json_object *gaps_json(const struct found *f)
{
	struct json_object *all = json_object_new_array(), *o;
	size_t n = can_hold(f) ? NR_GAPS : 1;

	for (size_t i = can_hold(f) ? first_gap(f) : 0; i < n; i++) {
		o = json_object_new_object();
		json_object_object_add(o, "what",
				       json_object_new_string(can_hold(f) ? gaps[i].what : "all files"));
		json_object_object_add(
			o, "why",
			json_object_new_string(can_hold(f) ? gaps[i].why : "source files is missing"));
		json_object_array_add(all, o);
	}
	return all;
}

static void print_json(const struct found *f)
{
	const struct pl_status_msg *s = &f->status;
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "version", json_object_new_string(s->version));
	tool_add_number(o, "pid", s->pid);
	tool_add_number(o, "boot", s->boot);
	tool_add_number(o, "up_ns", tool_now() - s->since_ns);
	tool_add_number(o, "ceiling_ms", s->ceiling_ms);
	tool_add_number(o, "max_leases", s->max_leases);
	tool_add_number(o, "max_bytes", s->max_bytes);
	tool_add_number(o, "max_connections", s->max_connections);
	tool_add_number(o, "max_hold_ms", s->hold_ms);
	tool_add_number(o, "max_notices", s->max_notices);
	json_object_object_add(o, "may_kill", json_object_new_boolean(s->may_kill != 0));
	json_object_object_add(
		o, "after_crash",
		json_object_new_string(s->after_crash == PL_AFTER_CRASH_CLOSED ? "closed" : "open"));
	tool_add_number(o, "connections", s->connections);
	tool_add_number(o, "holders", s->holders);
	tool_add_number(o, "leases", s->leases);
	tool_add_number(o, "bytes", s->bytes);
	tool_add_number(o, "held", s->held);
	tool_add_number(o, "notices", s->notices);
	tool_add_number(o, "quiesced", s->quiesced);
	tool_add_number(o, "forced", s->forced);
	tool_add_number(o, "forced_outside", s->outside);
	tool_add_number(o, "unconfirmed", s->unconfirmed);
	tool_add_number(o, "refused", s->refused);
	tool_add_number(o, "refused_untold", s->untold);
	tool_add_number(o, "answered", s->answered);
	tool_add_number(o, "watchers", s->watchers);
	tool_add_number(o, "events_lost", s->events_lost);
	json_object_object_add(o, "waits", status_waits_json(&f->leases));
	json_object_object_add(o, "users", users_json(f));
	json_object_object_add(o, "sources", sources_json(f));
	json_object_object_add(o, "not_held", gaps_json(f));
	tool_put_json(o, JSON_C_TO_STRING_PRETTY);
}

int cmd_status(int argc, char **argv)
{
	static const struct argp argp = {
		.options = option_table,
		.parser = parse,
		.doc = "Show whether pinleased runs, what it holds and can't hold, its limits and who "
		       "uses how much. Who isn't root sees his own use only."};
	struct options o = {0};
	struct found f = {0};
	union pl_message m;
	struct arbiter a = {0};
	int err;

	argp_err_exit_status = EXIT_CANT_START;
	argp_parse(&argp, argc, argv, 0, NULL, &o);
	err = arbiter_open(&a);
	if (err)
		return EXIT_CANT_START;
	pl_message_init(&m, PL_ASK_STATUS);
	err = arbiter_ask(&a, &m, collect, &f, ARBITER_PATIENCE_MS, NULL);
	pl_message_init(&m, PL_LIST);
	if (!err && f.status.held)
		err = arbiter_ask(&a, &m, collect, &f, ARBITER_PATIENCE_MS, NULL);
	arbiter_close(&a);
	if (!err && o.json)
		print_json(&f);
	else if (!err)
		print_text(&f, o.exact);
	free(f.users);
	free(f.leases.entries);
	return err || tool_flush("pinlease status") ? EXIT_CANT_START : 0;
}
