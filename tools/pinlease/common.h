/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Small helpers that more than one subcommand uses. */
#ifndef PINLEASE_COMMON_H
#define PINLEASE_COMMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct json_object;

uint64_t tool_now(void); /* CLOCK_MONOTONIC, ns */
const char *tool_errno_name(int err);
void tool_append(char *buf, size_t len, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* The file system of a directory or file by its name; NULL: can't be told, errno says why. */
const char *tool_fs_name(const char *path);

/* 0: files can be made in `dir`. */
int tool_cant_use(const char *dir);

/* What a load at `addr` would see, by way of the memfd `probe`; -EFAULT where it would be a signal. */
int tool_peek(int probe, const void *addr, void *buf, size_t len);

/* Columns of the terminal, 80 to 120; `other` where there is none. */
int tool_width(FILE *out, int other);

/* How much of `text` goes into one line of `width`, and where the next begins. */
int tool_cut(const char *text, int width, const char **next);

/* At most four characters, a unit among them; or all digits. */
void tool_size_words(uint64_t bytes, bool exact, char *buf, size_t len);
void tool_count_words(uint64_t n, char *buf, size_t len); /* at most six characters */
void tool_age_words(uint64_t ns, char *buf, size_t len);

/* The end of the word that n stands before. */
static inline const char *tool_s(uint64_t n)
{
	return n == 1 ? "" : "s";
}

/* Without what controls a terminal. Its end matters most, so it is cut at the front. */
void tool_path_words(const char *path, int room, char *buf, size_t len);

/* The same as the end of a line. */
void tool_put_path(const char *path, int room);

/* With U+FFFD for each byte that is of no letter of UTF-8: names are anybody's bytes, and JSON's aren't.
 */
struct json_object *tool_json_text(const char *text);
void tool_add_number(struct json_object *o, const char *key, uint64_t n);
void tool_add_known(struct json_object *o, const char *key, bool known,
		    uint64_t n);					      /* not known: null */
void tool_add_text(struct json_object *o, const char *key, const char *text); /* NULL: null */

/* All of `text` is a number from 0 to `max`, decimal or 0x: 0, or -EINVAL. */
int tool_number(const char *text, uint64_t max, uint64_t *n);

/* A line; the object is put. */
void tool_put_json(struct json_object *o, int flags);

/* What was printed is out: 0, or -EIO with a sentence that begins with the command's name. */
int tool_flush(const char *command);

#endif
