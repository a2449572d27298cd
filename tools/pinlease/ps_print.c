/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Leases as a table that fits the terminal, or as JSON. */
#include <errno.h>
#include <json-c/json.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "common.h"
#include "ps.h"

const char *ps_policy_words(const struct pl_entry_msg *e)
{
	static const char *const then[] = {"fail", "scratch", "copy", "kill"};
	static const char *const kinds[] = {"keep", "recall", "refuse", "follow"};

	if (e->policy == PINL_RECALL && e->then < sizeof then / sizeof *then)
		return then[e->then];
	return e->policy < 4 ? kinds[e->policy] : "?";
}

const char *ps_state_words(const struct pl_entry_msg *e)
{
	if (e->orphaned && e->state != PINL_RELEASED)
		return "orphaned";
	return e->state <= PINL_RELEASED ? pinl_state_name(e->state) : "?";
}

bool ps_is_recalled(const struct pl_entry_msg *e)
{
	return (e->state == PINL_NOTICED || e->state == PINL_FORCING) && e->recall_end;
}

/* What the actor calls itself; "": not known, or gone. */
void ps_actor_name(const struct pl_entry_msg *e, char *buf, size_t len)
{
	char path[40], name[32] = "";
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/comm", e->actor_pid);
	f = e->actor_pid ? fopen(path, "re") : NULL;
	if (f && fgets(name, sizeof name, f))
		name[strcspn(name, "\n")] = 0;
	if (f)
		fclose(f);
	tool_path_words(name, INT_MAX, buf, len);
}

static const char *op_words(const struct pl_entry_msg *e)
{
	return e->op < PINL_OP_NR ? pinl_op_name(e->op) : e->source;
}

void ps_actor_words(const struct pl_entry_msg *e, char *buf, size_t len)
{
	char name[64];

	snprintf(buf, len, "%s%s", e->held ? "waits: " : "", op_words(e));
	if (!e->actor_pid)
		return;
	ps_actor_name(e, name, sizeof name);
	if (!*name && kill(e->actor_pid, 0) && errno == ESRCH) /* one that didn't wait */
		strcpy(name, "(ended)");
	tool_append(buf, len, " by %d%s%s", e->actor_pid, *name ? " " : "", name);
}

/* What isn't in the line: whose name can't be taken, a part that was taken back, who waits for what. */
static void print_more(const struct pl_entry_msg *e, bool exact, int width)
{
	char size[24], left[32] = "being taken", who[160], text[256];
	uint64_t now = tool_now();

	tool_size_words(e->detached, exact, size, sizeof size);
	if (e->detached && e->state != PINL_RELEASED)
		printf("        %s%s of it taken back before\n", size, exact ? " bytes" : "");
	if ((e->flags & PINL_KEEP_NAME) && e->state != PINL_RELEASED)
		printf("        the file can't be unlinked or replaced\n");
	if (!ps_is_recalled(e))
		return;
	tool_size_words(e->recall_end - e->recall_start, exact, size, sizeof size);
	ps_actor_words(e, who, sizeof who);
	if (e->state == PINL_NOTICED)
		snprintf(left, sizeof left, "%.1fs left",
			 e->deadline_ns > now ? (double)(e->deadline_ns - now) / 1e9 : 0.0);
	snprintf(text, sizeof text, "        %s, %s%s, %s", who, size, exact ? " bytes" : "", left);
	printf("%.*s\n", width, text);
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
	print_more(e, exact, width);
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
	printf("%zu lease%s, %s%s\n", f->n, tool_s(f->n), size, exact ? " bytes" : "");
}

/* Who has caused it, and whether he waits. */
static void add_recall(struct json_object *o, const struct pl_entry_msg *e)
{
	struct json_object *r = json_object_new_object();
	char name[64];

	ps_actor_name(e, name, sizeof name);
	tool_add_number(r, "actor_pid", e->actor_pid);
	tool_add_number(r, "actor_tid", e->actor_tid);
	tool_add_text(r, "actor", name);
	tool_add_text(r, "by", op_words(e));
	tool_add_text(r, "source", e->source);
	json_object_object_add(r, "waits", json_object_new_boolean(e->held != 0));
	tool_add_number(r, "start", e->recall_start);
	tool_add_number(r, "end", e->recall_end);
	tool_add_number(r, "bytes", e->recall_end - e->recall_start);
	json_object_object_add(o, "recall", r);
}

static struct json_object *to_json(const struct pl_entry_msg *e)
{
	struct json_object *o = json_object_new_object();

	tool_add_number(o, "pid", e->pid);
	tool_add_number(o, "thread", e->thread);
	tool_add_number(o, "uid", e->uid);
	tool_add_text(o, "program", e->program);
	tool_add_text(o, "device", e->device);
	tool_add_number(o, "lease", e->lease);
	tool_add_number(o, "start", e->start);
	tool_add_number(o, "end", e->end);
	tool_add_number(o, "bytes", e->end - e->start);
	tool_add_number(o, "detached_bytes", e->detached);
	tool_add_number(o, "orphaned_bytes", e->orphaned);
	tool_add_number(o, "file_dev", e->file_dev);
	tool_add_number(o, "file_ino", e->file_ino);
	tool_add_number(o, "file_offset", e->file_offset);
	tool_add_text(o, "path", e->path);
	tool_add_number(o, "age_ns", tool_now() - e->since_ns);
	tool_add_text(o, "policy", ps_policy_words(e));
	tool_add_number(o, "grace_ms", e->grace_ms);
	json_object_object_add(o, "keeps_name", json_object_new_boolean(e->flags & PINL_KEEP_NAME));
	tool_add_text(o, "state", ps_state_words(e));
	if (e->deadline_ns)
		tool_add_number(o, "deadline_in_ns",
				e->deadline_ns > tool_now() ? e->deadline_ns - tool_now() : 0);
	if (ps_is_recalled(e))
		add_recall(o, e);
	json_object_object_add(o, "can_be_forced", json_object_new_boolean(e->forced));
	return o;
}

void ps_print_json(const struct ps_found *f)
{
	struct json_object *all = json_object_new_array();

	for (size_t i = 0; i < f->n; i++)
		json_object_array_add(all, to_json(&f->entries[i]));
	tool_put_json(all, JSON_C_TO_STRING_PRETTY);
}
