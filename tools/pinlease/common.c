/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "common.h"

#include <errno.h>
#include <json-c/json.h>
#include <linux/magic.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <time.h>
#include <unistd.h>

#define XFS_MAGIC 0x58465342

uint64_t tool_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

const char *tool_errno_name(int err)
{
	const char *name = strerrorname_np(-err);

	return name ? name : "error";
}

void tool_append(char *buf, size_t len, const char *fmt, ...)
{
	size_t used = strlen(buf);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(buf + used, len - used, fmt, ap);
	va_end(ap);
}

const char *tool_fs_name(const char *path)
{
	struct statfs st;

	if (statfs(path, &st))
		return NULL;
	switch ((unsigned long)st.f_type) {
	case TMPFS_MAGIC:
		return "tmpfs";
	case EXT4_SUPER_MAGIC:
		return "ext4";
	case XFS_MAGIC:
		return "XFS";
	case BTRFS_SUPER_MAGIC:
		return "btrfs";
	case OVERLAYFS_SUPER_MAGIC:
		return "overlayfs";
	case NFS_SUPER_MAGIC:
		return "NFS";
	case FUSE_SUPER_MAGIC:
		return "FUSE";
	}
	return "another file system";
}

int tool_cant_use(const char *dir)
{
	struct stat st;

	if (stat(dir, &st))
		return -errno;
	if (!S_ISDIR(st.st_mode))
		return -ENOTDIR;
	return access(dir, W_OK | X_OK) ? -errno : 0;
}

int tool_peek(int probe, const void *addr, void *buf, size_t len)
{
	ssize_t n = pwrite(probe, addr, len, 0);

	if (n == (ssize_t)len)
		n = pread(probe, buf, len, 0);
	if (n < 0)
		return -errno;
	return n == (ssize_t)len ? 0 : -EFAULT;
}

int tool_width(FILE *out, int other)
{
	struct winsize size = {0};
	int width = ioctl(fileno(out), TIOCGWINSZ, &size) || !size.ws_col ? other : size.ws_col;

	return width < 80 ? 80 : width > 120 ? 120 : width;
}

int tool_cut(const char *text, int width, const char **next)
{
	int len = (int)strlen(text), at = width;

	if (len <= width) {
		*next = text + len;
		return len;
	}
	while (at > 0 && text[at] != ' ')
		at--;
	if (!at) {
		*next = text + width;
		return width;
	}
	*next = text + at + 1;
	return at;
}

/* Thousands, where digits are too many. */
void tool_count_words(uint64_t n, char *buf, size_t len)
{
	static const char units[] = " kMGTPE";
	unsigned unit = 0;

	for (; n > 99999; unit++)
		n = (n + 500) / 1000;
	snprintf(buf, len, "%lu%.1s", n, unit ? &units[unit] : "");
}

void tool_size_words(uint64_t bytes, bool exact, char *buf, size_t len)
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

void tool_age_words(uint64_t ns, char *buf, size_t len)
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

/* The bytes of the letter there; 0: there is none. */
static int letter(const unsigned char *s)
{
	static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
	int n = *s < 0x80 ? 1 : *s < 0xc0 ? 0 : *s < 0xe0 ? 2 : *s < 0xf0 ? 3 : *s < 0xf8 ? 4 : 0;
	uint32_t c = n == 1 ? *s : *s & (0x7f >> n);

	for (int i = 1; i < n; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (s[i] & 0x3f);
	}
	return c < least[n] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000) ? 0 : n;
}

/* Anybody may have named it: what a terminal would obey, or isn't a letter, is none here. */
static void disarm(char *text)
{
	while (*text) {
		const unsigned char *s = (const unsigned char *)text;
		int n = letter(s);

		if (!n || *s < ' ' || *s == 127 || (*s == 0xc2 && s[1] < 0xa0))
			memset(text, '?', n ? n : 1);
		text += n ? n : 1;
	}
}

void tool_path_words(const char *path, int room, char *buf, size_t len)
{
	int n = (int)strlen(path);

	room = room < 10 ? 10 : room;
	*buf = 0;
	if (n > room) {
		tool_append(buf, len, "...");
		for (path += n - room + 3; (*path & 0xc0) == 0x80;) /* not from the middle of a letter */
			path++;
	}
	tool_append(buf, len, "%s", path);
	disarm(buf);
}

void tool_put_path(const char *path, int room)
{
	char words[512];

	tool_path_words(path, room, words, sizeof words);
	puts(words);
}

struct json_object *tool_json_text(const char *text)
{
	size_t len = strlen(text), at = 0;
	char *out = malloc(3 * len + 1);
	struct json_object *o;

	if (!out)
		return NULL;
	while (*text) {
		int n = letter((const unsigned char *)text);

		memcpy(out + at, n ? text : "\xef\xbf\xbd", n ? n : 3);
		at += n ? n : 3;
		text += n ? n : 1;
	}
	o = json_object_new_string_len(out, (int)at);
	free(out);
	return o;
}

void tool_add_number(struct json_object *o, const char *key, uint64_t n)
{
	tool_add_known(o, key, true, n);
}

void tool_add_known(struct json_object *o, const char *key, bool known, uint64_t n)
{
	json_object_object_add(o, key, known ? json_object_new_uint64(n) : NULL);
}

void tool_add_text(struct json_object *o, const char *key, const char *text)
{
	json_object_object_add(o, key, text ? tool_json_text(text) : NULL);
}

int tool_number(const char *text, uint64_t max, uint64_t *n)
{
	char *end;

	errno = 0;
	*n = strtoull(text, &end, 0);
	return errno || end == text || *end || *text == '-' || *n > max ? -EINVAL : 0;
}

static int unwritten; /* errno of what stdio doesn't keep to try again */

void tool_put_json(struct json_object *o, int flags)
{
	if (puts(json_object_to_json_string_ext(o, flags)) < 0)
		unwritten = errno;
	json_object_put(o);
}

int tool_flush(const char *command)
{
	errno = unwritten ? unwritten : EIO; /* of an earlier write: the reason is gone */
	if (!fflush(stdout) && !ferror(stdout))
		return 0;
	fprintf(stderr, "%s: can't write: %s\n", command, strerror(errno));
	return -EIO;
}
