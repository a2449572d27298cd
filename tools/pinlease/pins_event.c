/* SPDX-License-Identifier: GPL-2.0-or-later */
/* One line for each event: a table that fits the terminal, or a JSON object. */
#include <inttypes.h>
#include <json-c/json.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "common.h"
#include "pins_live.h"

static const char *const whats[] = {[LIVE_PIN] = "pin", [LIVE_RELEASE] = "release"};
static const char *const hows[] = {[LIVE_HOLDER_GONE] = "its holder has gone",
				   [LIVE_UNMAPPED] = "its holder doesn't map it any more"};

void live_put_line(struct json_object *o)
{
	puts(json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
	json_object_put(o);
}

/* The time of the clock on the wall at a moment of the kernel's. */
static void clock_words(uint64_t ns, char *buf, size_t len)
{
	struct timespec now;
	struct tm tm;
	uint64_t at;

	clock_gettime(CLOCK_REALTIME, &now);
	at = (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec - (tool_now() - ns);
	now.tv_sec = at / 1000000000;
	localtime_r(&now.tv_sec, &tm);
	snprintf(buf, len, "%02d:%02d:%02d.%03" PRIu64, tm.tm_hour, tm.tm_min, tm.tm_sec,
		 at / 1000000 % 1000);
}

/* Of the file, or of the process. */
static struct pins_range range_of(const struct live_known *k, uint64_t addr, uint64_t index,
				  uint64_t pages)
{
	uint64_t first = k->now.key.memory == CENSUS_FILE ? index : addr / PINS_PAGE;

	return (struct pins_range){first * PINS_PAGE, (first + pages) * PINS_PAGE};
}

static struct pins_range range_of_leak(const struct live_known *k, const struct live_leak *leak)
{
	return (struct pins_range){range_of(k, leak->addr, leak->index, 0).start,
				   range_of(k, leak->addr_end, leak->index_end, 0).end};
}

static void range_words(const struct live_known *k, struct pins_range range, char *buf, size_t len)
{
	char start[24], end[24];

	if (k->now.key.memory == CENSUS_FILE) {
		tool_size_words(range.start, false, start, sizeof start);
		tool_size_words(range.end, false, end, sizeof end);
		snprintf(buf, len, "%s-%s", range.start ? start : "0", end);
	} else
		snprintf(buf, len, "%" PRIx64 "-%" PRIx64, range.start, range.end);
}

const char *live_file_words(const struct live_known *k, char *buf, size_t len)
{
	if (k->path)
		return k->path;
	if (k->now.key.memory == CENSUS_FILE)
		snprintf(buf, len, "inode %u:%u:%" PRIu64, k->now.key.dev >> 20,
			 k->now.key.dev & 0xfffff, (uint64_t)k->now.key.ino);
	else
		snprintf(buf, len, "%s",
			 k->now.key.memory == CENSUS_NONE ? "of no file" : "private memory");
	return buf;
}

/* Short times matter most. */
static void held_words(const struct live_event *e, char *buf, size_t len)
{
	uint64_t ns = e->held_ns;
	static const char *const units[] = {"ns", "us", "ms"};
	int unit = 0;

	if (e->untimed) {
		snprintf(buf, len, "?");
		return;
	}
	for (; unit < 3 && ns >= 1000; unit++)
		ns = (ns + 500) / 1000;
	if (unit < 3)
		snprintf(buf, len, "%u%s", (unsigned)ns, units[unit]);
	else
		tool_age_words(ns * 1000000000, buf, len);
}

/* Of a narrow terminal's line: without when, by what call, and where in the file. */
static void print_line(struct live *l, const struct live_known *k, const struct live_event *e)
{
	char when[24], size[24], held[24] = "", program[24], range[64], file[64];
	int room = isatty(STDOUT_FILENO) ? tool_width(stdout, 120) : INT_MAX, wide = room >= LIVE_WIDE;

	clock_words(e->ns, when, sizeof when);
	tool_size_words(e->pages * PINS_PAGE, l->o->exact, size, sizeof size);
	tool_path_words(k->now.program, 16, program, sizeof program);
	if (e->what == LIVE_RELEASE)
		held_words(e, held, sizeof held);
	range_words(k, range_of(k, e->addr, e->index, e->reach), range, sizeof range);
	if (wide)
		room -= printf("%s ", when);
	room -= printf("%7u %-10.10s %-7s %-9s %-9s %*s %7s ", k->now.key.tgid, program, whats[e->what],
		       pins_classes[k->device].name, live_terms[k->now.key.longterm],
		       l->o->exact ? 13 : 4, size, held);
	if (wide)
		room -= printf("%-22.22s %s ", k->name, range);
	tool_put_path(live_file_words(k, file, sizeof file), room);
}

static void print_titles(const struct live *l)
{
	bool wide = !isatty(STDOUT_FILENO) || tool_width(stdout, 120) >= LIVE_WIDE;

	if (wide)
		printf("%-12s ", "TIME");
	printf("%7s %-10s %-7s %-9s %-9s %*s %7s %s%s\n", "PID", "PROGRAM", "WHAT", "DEVICE", "TERM",
	       l->o->exact ? 13 : 4, l->o->exact ? "BYTES" : "SIZE", "HELD",
	       wide ? "SITE                   RANGE, " : "", "FILE");
}

void live_print_start(const struct live *l)
{
	if (l->o->json) {
		struct json_object *o = json_object_new_object();

		tool_add_text(o, "event", "start");
		tool_add_number(o, "functions_by_trampoline", l->nr_trampolines);
		tool_add_number(o, "functions_by_kprobe", l->nr_kprobes);
		tool_add_text(o, "not_followed", *l->unfollowed ? l->unfollowed : NULL);
		json_object_object_add(o, "exact", json_object_new_boolean(l->o->followed));
		tool_add_number(o, "followed_transient", l->o->followed ? 1 : LIVE_SAMPLE);
		live_put_line(o);
		return;
	}
	live_put("Following %d of the kernel's functions by trampolines, %d by kprobes: %s.",
		 l->nr_trampolines, l->nr_kprobes,
		 l->o->followed ? "every call, and every page"
				: "every long-term call, one transient call in " TEXT_OF(LIVE_SAMPLE));
	if (*l->unfollowed)
		live_put("Can't be followed here: %s.", l->unfollowed);
	if (l->o->mode != PINS_TRACE)
		return;
	live_print_already(l);
	print_titles(l);
}

void live_add_site(struct json_object *o, const struct live_known *k)
{
	tool_add_number(o, "pid", k->now.key.tgid);
	tool_add_text(o, "program", k->now.program);
	tool_add_text(o, "device", pins_classes[k->device].name);
	tool_add_text(o, "term", live_terms[k->now.key.longterm]);
	tool_add_text(o, "site", k->name);
	tool_add_text(o, "class", pins_cans[k->fit->can]);
	tool_add_text(o, "path", k->path);
	if (k->now.key.memory == CENSUS_FILE) {
		tool_add_number(o, "file_dev", makedev(k->now.key.dev >> 20, k->now.key.dev & 0xfffff));
		tool_add_number(o, "file_ino", k->now.key.ino);
	}
}

static void add_place(struct json_object *o, struct pins_range range, uint64_t pages)
{
	tool_add_number(o, "bytes", pages * PINS_PAGE);
	tool_add_number(o, "start", range.start);
	tool_add_number(o, "end", range.end);
}

void live_print_event(struct live *l, const struct live_event *e)
{
	const struct live_known *k = live_known(l, e->site);
	struct json_object *o;

	if (!k || !live_wanted(l, k))
		return;
	if (!l->o->json) {
		print_line(l, k, e);
		return;
	}
	o = json_object_new_object();
	tool_add_text(o, "event", whats[e->what]);
	tool_add_number(o, "time_ns", e->ns);
	live_add_site(o, k);
	add_place(o, range_of(k, e->addr, e->index, e->reach), e->pages);
	tool_add_number(o, "by_pid", e->tgid);
	tool_add_text(o, "by_program", e->program);
	if (e->what == LIVE_RELEASE)
		tool_add_known(o, "held_ns", !e->untimed, e->held_ns);
	live_put_line(o);
}

/* Where events are missing: before one of this time. */
void live_print_gap(const struct live *l, uint64_t ns, uint64_t events)
{
	char when[24];

	if (l->o->json) {
		struct json_object *o = json_object_new_object();

		tool_add_text(o, "event", "lost");
		tool_add_number(o, "time_ns", ns);
		tool_add_number(o, "events", events);
		live_put_line(o);
		return;
	}
	clock_words(ns, when, sizeof when);
	live_put("%s %" PRIu64 " event%s lost here, of all processes; a larger --buffer makes room%s",
		 when, events, tool_s(events), l->o->followed ? ", or without --exact" : "");
}

/* ----------------------------------------------------------------------------------------- leaks -- */

void live_leak_words(struct live *l, const struct live_leak *leak, char *buf, size_t len)
{
	const struct live_known *k = live_known(l, leak->site);
	char size[24], confirmed[24], age[24], program[24], range[64], file[64], path[512];

	*buf = 0;
	if (!k)
		return;
	tool_size_words(leak->pages * PINS_PAGE, l->o->exact, size, sizeof size);
	tool_size_words(leak->confirmed * PINS_PAGE, l->o->exact, confirmed, sizeof confirmed);
	tool_age_words(tool_now() - leak->since_ns, age, sizeof age);
	tool_path_words(k->now.program, 16, program, sizeof program);
	range_words(k, range_of_leak(k, leak), range, sizeof range);
	tool_path_words(live_file_words(k, file, sizeof file), 400, path, sizeof path);
	tool_append(buf, len, "LEAK %s", confirmed);
	if (leak->pages != leak->confirmed)
		tool_append(buf, len, " of %s", size);
	tool_append(buf, len, " pinned by %u (%s) at least %s ago, %s at %s, %s %s: %s; ",
		    k->now.key.tgid, program, age, pins_classes[k->device].name, k->name, range, path,
		    hows[leak->how]);
	if (leak->others)
		tool_append(buf, len, "%d and %zu more have it open", leak->has, leak->others);
	else if (leak->has)
		tool_append(buf, len, "%d has it open", leak->has);
	else
		tool_append(buf, len, "nobody is known to have it open");
}

struct json_object *live_leak_json(struct live *l, const struct live_leak *leak)
{
	const struct live_known *k = live_known(l, leak->site);
	struct json_object *o = json_object_new_object();

	tool_add_text(o, "event", "leak");
	if (k) {
		live_add_site(o, k);
		add_place(o, range_of_leak(k, leak), leak->pages);
	}
	tool_add_text(o, "how", leak->how == LIVE_HOLDER_GONE ? "holder gone" : "not mapped");
	tool_add_number(o, "held_ns", tool_now() - leak->since_ns);
	tool_add_number(o, "confirmed_bytes", leak->confirmed * PINS_PAGE);
	json_object_object_add(o, "open_in", leak->has ? json_object_new_int(leak->has) : NULL);
	tool_add_number(o, "open_in_others", leak->others);
	return o;
}

/* A picture has them anyway. */
void live_print_leak(struct live *l, const struct live_leak *leak)
{
	char words[1024];

	if (l->o->mode != PINS_TRACE)
		return;
	if (l->o->json) {
		live_put_line(live_leak_json(l, leak));
		return;
	}
	live_leak_words(l, leak, words, sizeof words);
	if (*words) /* else its site is known no more */
		puts(words);
}
