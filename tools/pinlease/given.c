/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "given.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "arbiter.h"
#include "common.h"
#include "left.h"

#define MISSING	     "files: missing: "
#define BY_PINLEASED "files: by pinleased"

struct said {
	bool runs;
	char why[PL_SOURCE_TEXT], gate[PL_SOURCE_TEXT]; /* gate: its line, if pinleased has one */
};

static int take_files(const union pl_message *m, void *arg)
{
	struct said *s = arg;

	if (m->head.type != PL_SOURCE)
		return 0;
	s->runs |= !strncmp(m->source.text, "files: running", 14);
	if (!strncmp(m->source.text, "gate: ", 6))
		snprintf(s->gate, sizeof s->gate, "%s", m->source.text);
	if (!strncmp(m->source.text, MISSING, strlen(MISSING)))
		snprintf(s->why, sizeof s->why, "%s", m->source.text + strlen(MISSING));
	return 0;
}

static void ask(struct arbiter *a, struct said *s)
{
	union pl_message m;

	pl_message_init(&m, PL_ASK_STATUS);
	if (arbiter_ask(a, &m, take_files, s, ARBITER_PATIENCE_MS, NULL))
		*s = (struct said){0};
}

void given_why_unknown(struct arbiter *a, const char *path, char *why, size_t len)
{
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1, err = 0;
	struct said s = {0};
	uint64_t value = 0;

	a->quiet = true;
	if (fd >= 0) {
		err = arbiter_cover(a, fd, &value);
		close(fd);
	}
	if (!err && !value)
		ask(a, &s);
	snprintf(why, len, "%s", err == -EOPNOTSUPP ? a->why : s.why);
}

bool given_files(const char *sources)
{
	return strstr(sources, BY_PINLEASED);
}

static void put_gate(const struct said *s, char *buf, size_t len)
{
	static const char running[] = "gate: running";

	if (!strncmp(s->gate, running, strlen(running)))
		tool_append(buf, len, "gate: by pinleased%s\n", s->gate + strlen(running));
	else if (*s->gate)
		tool_append(buf, len, "%s\n", s->gate);
}

/* One line of this process's, as it is with that. */
static void put_line(const char *line, const struct said *s, char *buf, size_t len)
{
	if (s->runs && !strncmp(line, MISSING, strlen(MISSING)))
		tool_append(buf, len, "%s\n", BY_PINLEASED);
	else if (*s->why && !strcmp(line, "arbiter: running"))
		tool_append(buf, len, "%s, weaker: pinleased holds no change of a file: %s\n", line,
			    s->why);
	else
		tool_append(buf, len, "%s\n", line);
}

static void put_left(char *buf, size_t len)
{
	char text[2048], *rest = text, *line;

	left_gates(text, sizeof text);
	while ((line = strsep(&rest, "\n")))
		if (*line)
			tool_append(buf, len, "gate: left: %s\n", line);
}

int given_sources(struct pinl_ctx *ctx, char *buf, size_t len)
{
	struct arbiter a = {.quiet = true};
	char own[4096], *rest = own, *line;
	struct said s = {0};
	int n = pinl_sources(ctx, own, sizeof own);

	if (n < 0)
		return n;
	if (strstr(own, "arbiter: running\n") && !arbiter_open(&a)) {
		ask(&a, &s);
		arbiter_close(&a);
	}
	*buf = 0;
	while ((line = strsep(&rest, "\n")))
		if (*line)
			put_line(line, &s, buf, len);
	put_gate(&s, buf, len);
	if (!strstr(own, "arbiter: running\n"))
		put_left(buf, len);
	return 0;
}
