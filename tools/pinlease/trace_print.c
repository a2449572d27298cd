/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One event in one line. */
#include <json-c/json.h>
#include <string.h>
#include <time.h>

#include "common.h"
#include "trace.h"

static const char *what_words(const struct pl_event_msg *e)
{
	static const char *const words[] = {"notice",	  "quiesced", "forced",	  "released",
					    "goes on",	  "refused",  "followed", "orphan",
					    "orphan end", "degraded", "leak",	  "LOST"};

	if (e->what < sizeof words / sizeof *words)
		return words[e->what];
	return e->what == PL_EVENT_LEASED ? "leased" : e->what == PL_EVENT_ENDED ? "ended" : "?";
}

/* Why: an operation, or who has asked for it. */
static const char *op_words(const struct pl_event_msg *e)
{
	if (e->op < PINL_OP_NR)
		return pinl_op_name(e->op);
	return !strcmp(e->source, "recall") ? "recall" : "";
}

static bool is_killed(const struct pl_event_msg *e)
{
	return e->outcome == PINL_OUT_KILLED;
}

/* What there is to say about it, in a few words. Forced: by its holder's library, or from outside. */
static void detail(const struct pl_event_msg *e, char *buf, size_t len)
{
	double ms = (double)e->waited_ns / 1e6;

	*buf = 0;
	switch (e->what) {
	case PINL_EV_NOTICE:
		snprintf(buf, len, "%.0fms to go",
			 e->deadline_ns > e->time_ns ? (double)(e->deadline_ns - e->time_ns) / 1e6
						     : 0.0);
		break;
	case PINL_EV_FORCED:
	case PINL_EV_QUIESCED:
		snprintf(buf, len, "%s",
			 e->err			       ? tool_errno_name(e->err)
			 : e->outside && !is_killed(e) ? "outside"
						       : pinl_outcome_name(e->outcome));
		break;
	case PINL_EV_ANSWERED:
		if (e->waited_ns) /* else nobody was */
			snprintf(buf, len, "held %.1fms", ms);
		break;
	case PINL_EV_ORPHAN_END: /* what only its holder could know */
		snprintf(buf, len, "%s", e->err ? "? written" : "");
		break;
	case PINL_EV_REFUSED:
	case PINL_EV_DEGRADED:
	case PINL_EV_FOLLOWED:
		snprintf(buf, len, "%s", e->err ? tool_errno_name(e->err) : "");
		break;
	}
}

/* Its time of the day: events have that of CLOCK_MONOTONIC. */
static void clock_words(uint64_t ns, char *buf, size_t len)
{
	struct timespec now;
	uint64_t real;
	struct tm tm;
	time_t s;

	clock_gettime(CLOCK_REALTIME, &now);
	real = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec - (tool_now() - ns);
	s = (time_t)(real / 1000000000u);
	localtime_r(&s, &tm);
	snprintf(buf, len, "%02d:%02d:%02d.%03u", tm.tm_hour, tm.tm_min, tm.tm_sec,
		 (unsigned)(real / 1000000u % 1000u));
}

/* Of a change that has no end: what the kernel says of it are several great numbers. */
static bool to_end_of_file(const struct pl_event_msg *e)
{
	return e->file_end > INT64_MAX / 2;
}

/* Its bytes are what was written to it. */
static bool is_unknown(const struct pl_event_msg *e)
{
	return e->what == PINL_EV_ORPHAN_END && e->err;
}

/* Of the lease; of a change that goes on, its own bytes. */
static void size_words(const struct pl_event_msg *e, bool exact, char *buf, size_t len)
{
	uint64_t bytes = !e->pid	 ? e->file_end - e->file_start
			 : is_unknown(e) ? e->end - e->start
					 : e->bytes;

	if (!e->pid && to_end_of_file(e))
		snprintf(buf, len, "rest");
	else if (bytes)
		tool_size_words(bytes, exact, buf, len);
	else
		snprintf(buf, len, "-");
}

void trace_print_head(bool exact)
{
	printf("%-12s %7s %5s %-10s %-8s %-12s %*s %s\n", "TIME", "PID", "LEASE", "EVENT", "BY",
	       "DETAIL", exact ? 13 : 4, exact ? "BYTES" : "SIZE", "FILE");
	fflush(stdout);
}

void trace_print(const struct pl_event_msg *e, struct trace_paths *paths, bool exact, int width)
{
	char when[16], size[24], more[40], pid[16] = "-", lease[24] = "-";

	clock_words(e->time_ns ? e->time_ns : tool_now(), when, sizeof when);
	if (e->what == PINL_EV_DROPPED) {
		printf("%s %lu event%s lost: this reads too slowly\n", when, (unsigned long)e->bytes,
		       tool_s(e->bytes));
		return;
	}
	if (e->pid || e->actor_pid)
		snprintf(pid, sizeof pid, "%d", e->pid ? e->pid : e->actor_pid);
	if (e->pid) {
		snprintf(lease, sizeof lease, "%lu", (unsigned long)e->lease);
	}
	size_words(e, exact, size, sizeof size);
	detail(e, more, sizeof more);
	tool_put_path(trace_path_of(paths, e->file_dev, e->file_ino),
		      width - printf("%s %7s %5s %-10s %-8s %-12s %*s ", when, pid, lease, what_words(e),
				     op_words(e), more, exact ? 13 : 4, size));
}

static void who(struct json_object *o, const struct pl_event_msg *e)
{
	if (e->pid) {
		tool_add_number(o, "pid", e->pid);
		tool_add_number(o, "uid", e->uid);
		tool_add_text(o, "program", e->program);
		tool_add_text(o, "device", e->device);
		tool_add_number(o, "lease", e->lease);
		tool_add_number(o, "start", e->start);
		tool_add_number(o, "end", e->end);
	}
	if (e->actor_pid || e->actor_tid) {
		tool_add_number(o, "actor_pid", e->actor_pid);
		tool_add_number(o, "actor_tid", e->actor_tid);
	}
}

void trace_print_json(const struct pl_event_msg *e, struct trace_paths *paths)
{
	struct json_object *o = json_object_new_object();

	tool_add_text(o, "event", e->what == PINL_EV_DROPPED ? "lost" : what_words(e));
	tool_add_number(o, "time_ns", e->time_ns);
	who(o, e);
	if (*op_words(e))
		tool_add_text(o, "by", op_words(e));
	if (e->change)
		tool_add_number(o, "change", e->change);
	if (e->outcome)
		tool_add_text(o, "outcome", pinl_outcome_name(e->outcome));
	if (e->what == PINL_EV_FORCED)
		json_object_object_add(o, "outside", json_object_new_boolean(e->outside));
	if (e->err)
		tool_add_text(o, "error", tool_errno_name(e->err));
	if (e->deadline_ns)
		tool_add_number(o, "deadline_ns", e->deadline_ns);
	if (e->waited_ns)
		tool_add_number(o, "waited_ns", e->waited_ns);
	if (e->file_ino) {
		tool_add_number(o, "file_dev", e->file_dev);
		tool_add_number(o, "file_ino", e->file_ino);
		tool_add_number(o, "file_start", e->file_start);
		tool_add_number(o, "file_end", e->file_end);
		if (to_end_of_file(e))
			json_object_object_add(o, "to_end_of_file", json_object_new_boolean(true));
		tool_add_text(o, "path", trace_path_of(paths, e->file_dev, e->file_ino));
	}
	if (is_unknown(e))
		json_object_object_add(o, "bytes", NULL);
	else
		tool_add_number(o, "bytes", e->bytes);
	puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
	json_object_put(o);
}
