/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Leases as a table that fits the terminal, or as JSON. */
#include <json-c/json.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "common.h"
#include "ps.h"

const char *ps_policy_words(const struct pl_entry_msg *e)
{
	static const char *const then[] = {"fail", "scratch", "copy", "kill"};
	static const char *const kinds[] = {"keep", "recall", "refuse", "follow"};

	if (e->policy == PINL_RECALL && e->then < 3)
		return then[e->then];
	return e->policy < 4 ? kinds[e->policy] : "?";
}

const char *ps_state_words(const struct pl_entry_msg *e)
{
	return e->state <= PINL_RELEASED ? pinl_state_name(e->state) : "?";
}

static void print_line(const struct pl_entry_msg *e, bool exact, int width)
{
	int room;
	char size[24], age[24];

	tool_size_words(e->end - e->start, exact, size, sizeof size);
	tool_age_words(tool_now() - e->since_ns, age, sizeof age);
	room = width - printf("%7d %-10.10s %-5.5s %5lu %*s %6s %-7s %-8s ", e->pid, e->program,
			      e->device, (unsigned long)e->lease, exact ? 13 : 4, size, age,
			      ps_policy_words(e), ps_state_words(e));
	tool_put_path(e->path, room);
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
	tool_size_words(bytes, exact, size, sizeof size);
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
	add_text(o, "policy", ps_policy_words(e));
	add_number(o, "grace_ms", e->grace_ms);
	add_text(o, "state", ps_state_words(e));
	if (e->deadline_ns)
		add_number(o, "deadline_in_ns",
			   e->deadline_ns > tool_now() ? e->deadline_ns - tool_now() : 0);
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
