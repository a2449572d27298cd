/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Leases as a table that fits the terminal, or as JSON. */
#include <json-c/json.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "common.h"
#include "ps.h"

static const char *policy_words(const struct pl_entry_msg *e)
{
	static const char *const then[] = {"fail", "scratch", "copy"};
	static const char *const kinds[] = {"keep", "recall", "refuse", "follow"};

	if (e->policy == PINL_RECALL && e->then < 3)
		return then[e->then];
	return e->policy < 4 ? kinds[e->policy] : "?";
}

static const char *state_words(const struct pl_entry_msg *e)
{
	return e->state <= PINL_RELEASED ? pinl_state_name(e->state) : "?";
}

/* At most four characters, a unit among them. */
static void size_words(uint64_t bytes, bool exact, char *buf, size_t len)
{
	const char *unit = "BKMGTPE";
	double n = bytes;

	if (exact) {
		snprintf(buf, len, "%lu", (unsigned long)bytes);
		return;
	}
	for (; n >= 1000 && unit[1]; n /= 1024)
		unit++;
	snprintf(buf, len, n < 9.95 && *unit != 'B' ? "%.1f%c" : "%.0f%c", n, *unit);
}

static void age_words(uint64_t ns, char *buf, size_t len)
{
	unsigned long s = ns / 1000000000;

	if (s < 60)
		snprintf(buf, len, "%lus", s);
	else if (s < 3600)
		snprintf(buf, len, "%lum%02lus", s / 60, s % 60);
	else if (s < 86400)
		snprintf(buf, len, "%luh%02lum", s / 3600, s / 60 % 60);
	else
		snprintf(buf, len, "%lud%02luh", s / 86400, s / 3600 % 24);
}

static void print_line(const struct pl_entry_msg *e, bool exact, int width)
{
	int len = strlen(e->path), room;
	char size[24], age[24];

	size_words(e->end - e->start, exact, size, sizeof size);
	age_words(tool_now() - e->since_ns, age, sizeof age);
	room = width - printf("%7d %-10.10s %-5.5s %5lu %*s %6s %-7s %-8s ", e->pid, e->program,
			      e->device, (unsigned long)e->lease, exact ? 13 : 4, size, age,
			      policy_words(e), state_words(e));
	if (room < 10)
		room = 10;
	printf("%s%s\n", len > room ? "..." : "", len > room ? e->path + len - room + 3 : e->path);
}

void ps_print_table(const struct ps_found *f, bool exact)
{
	int width = isatty(STDOUT_FILENO) ? tool_width(stdout, 120) : INT_MAX;
	uint64_t bytes = 0;
	char size[24];

	printf("%7s %-10s %-5s %5s %*s %6s %-7s %-8s %s\n", "PID", "PROGRAM", "DEV", "LEASE",
	       exact ? 13 : 4, exact ? "BYTES" : "SIZE", "AGE", "POLICY", "STATE", "FILE");
	for (size_t i = 0; i < f->n; i++) {
		print_line(&f->entries[i], exact, width);
		bytes += f->entries[i].end - f->entries[i].start;
	}
	size_words(bytes, exact, size, sizeof size);
	printf("%zu lease%s, %s\n", f->n, f->n == 1 ? "" : "s", size);
}

static void add_number(struct json_object *o, const char *key, uint64_t n)
{
	json_object_object_add(o, key, json_object_new_uint64(n));
}

static void add_text(struct json_object *o, const char *key, const char *text)
{
	json_object_object_add(o, key, json_object_new_string(text));
}

static struct json_object *to_json(const struct pl_entry_msg *e)
{
	struct json_object *o = json_object_new_object();

	add_number(o, "pid", e->pid);
	add_number(o, "thread", e->thread);
	add_number(o, "uid", e->uid);
	add_text(o, "program", e->program);
	add_text(o, "device", e->device);
	add_number(o, "lease", e->lease);
	add_number(o, "start", e->start);
	add_number(o, "end", e->end);
	add_number(o, "bytes", e->end - e->start);
	add_number(o, "detached_bytes", e->detached);
	add_number(o, "file_dev", e->file_dev);
	add_number(o, "file_ino", e->file_ino);
	add_number(o, "file_offset", e->file_offset);
	add_text(o, "path", e->path);
	add_number(o, "age_ns", tool_now() - e->since_ns);
	add_text(o, "policy", policy_words(e));
	add_number(o, "grace_ms", e->grace_ms);
	add_text(o, "state", state_words(e));
	json_object_object_add(o, "can_be_forced", json_object_new_boolean(e->forced));
	return o;
}

void ps_print_json(const struct ps_found *f)
{
	struct json_object *all = json_object_new_array();

	for (size_t i = 0; i < f->n; i++)
		json_object_array_add(all, to_json(&f->entries[i]));
	puts(json_object_to_json_string_ext(all, JSON_C_TO_STRING_PRETTY));
	json_object_put(all);
}
