/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The script source: replays a recorded list of changes, so that a recall can be tried or repeated
 * without anybody changing anything. One change per line, in order, each answered before the next:
 *
 *	OP va START END [CAN]              addresses, decimal or 0x
 *	OP file DEV INO START END [CAN]    END may be "eof"
 *
 * OP is a name as pinl_op_name() gives it, CAN a string of the letters t(ell) b(efore) h(old) r(efuse),
 * "tbhr" if absent. Empty lines and lines starting with # are skipped. Nothing is changed by it: what
 * a recall does to a lease is real, the change itself never happens.
 */
#include <errno.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/ctx.h"

struct line {
	struct pinl_change change;
	sem_t answered;
	int err;
};

static void on_answer(struct pinl_change *ch, int err)
{
	struct line *l = ch->arg;

	l->err = err;
	sem_post(&l->answered);
}

static int parse_op(const char *word, enum pinl_op *op)
{
	for (int i = 0; i < PINL_OP_NR; i++)
		if (!strcmp(word, pinl_op_name(i))) {
			*op = i;
			return 0;
		}
	return -EINVAL;
}

static int parse_can(const char *word, unsigned *can)
{
	static const char letters[] = "tbhr";
	const char *at;

	*can = 0;
	for (; *word; word++) {
		at = strchr(letters, *word);
		if (!at)
			return -EINVAL;
		*can |= 1u << (at - letters);
	}
	return 0;
}

static int parse_number(const char *word, uint64_t *n)
{
	char *end;

	if (!strcmp(word, "eof")) {
		*n = UINT64_MAX;
		return 0;
	}
	errno = 0;
	*n = strtoull(word, &end, 0);
	return errno || *end || end == word || *word == '-' ? -EINVAL : 0;
}

#define MAX_WORDS 8

static int split(char *text, char *words[MAX_WORDS])
{
	int n = 0;

	for (char *save, *w = strtok_r(text, " \t", &save); w && n < MAX_WORDS;
	     w = strtok_r(NULL, " \t", &save))
		words[n++] = w;
	return n;
}

static int parse(char *words[], int n, struct pinl_change *ch)
{
	bool file = n > 1 && !strcmp(words[1], "file");
	int numbers = file ? 4 : 2, err;
	uint64_t v[4];

	if (n < 2 + numbers || n > 3 + numbers || (!file && strcmp(words[1], "va")))
		return -EINVAL;
	err = parse_op(words[0], &ch->op);
	for (int i = 0; i < numbers && !err; i++)
		err = parse_number(words[2 + i], &v[i]);
	if (!err)
		err = parse_can(n == 3 + numbers ? words[2 + numbers] : "tbhr", &ch->can);
	if (err || v[numbers - 2] >= v[numbers - 1])
		return -EINVAL;
	ch->on_file = file;
	if (file) {
		ch->file_dev = v[0];
		ch->file_ino = v[1];
		ch->file_start = v[2];
		ch->file_end = v[3];
	} else {
		ch->start = v[0];
		ch->end = v[1];
	}
	return 0;
}

static int play(struct pinl_ctx *ctx, struct line *l)
{
	l->change.can |= PINL_WILL_SAY_DONE;
	l->change.source = "script";
	l->change.answer = on_answer;
	l->change.arg = l;
	sem_init(&l->answered, 0, 0);
	pinl_change_submit(ctx, &l->change);
	while (sem_wait(&l->answered))
		;
	sem_destroy(&l->answered);
	if (!l->err)
		pinl_change_done(ctx, l->change.id);
	return l->err;
}

static int play_line(struct pinl_ctx *ctx, char *text, int number)
{
	struct line l = {.err = 0};
	char *words[MAX_WORDS];
	int n = split(text, words);

	if (!n || words[0][0] == '#')
		return 0;
	if (parse(words, n, &l.change))
		return pinl_set_error(
			-EINVAL,
			"line %d of the script is not OP va START END [CAN] or OP file DEV INO START "
			"END [CAN]",
			number);
	if (play(ctx, &l))
		return pinl_set_error(l.err, "line %d of the script, %s, was refused", number,
				      pinl_op_name(l.change.op));
	return 0;
}

int pinl_script_run(struct pinl_ctx *ctx, const char *script)
{
	PL_CALL(call);
	char line[256];
	int err = 0;

	if (!pl_alive(ctx))
		return pl_stale();
	for (int number = 1; *script && !err; number++) {
		size_t len = strcspn(script, "\n");

		if (len >= sizeof line)
			return pinl_set_error(-EINVAL, "line %d of the script is longer than %zu",
					      number, sizeof line - 1);
		memcpy(line, script, len);
		line[len] = 0;
		script += len + (script[len] == '\n');
		err = play_line(ctx, line, number);
	}
	return err;
}
