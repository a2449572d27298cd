/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Small helpers that more than one subcommand uses. */
#ifndef PINLEASE_COMMON_H
#define PINLEASE_COMMON_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

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

#endif
