/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The name of a file by its inode in the kernel: also of one that no process has open or mapped any
 * more. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pins.h"

#define DEPTH 64

/* \040 in mountinfo is a blank. */
static void unescape(char *s)
{
	char *to = s;

	for (; *s; to++)
		if (*s == '\\' && strspn(s + 1, "01234567") >= 3) {
			*to = (char)((s[1] - '0') << 6 | (s[2] - '0') << 3 | (s[3] - '0'));
			s += 4;
		} else
			*to = *s++;
	*to = 0;
}

/* The path in its file system becomes one in ours, if it is mounted here. */
static char *where_mounted(const char *path, uint32_t dev)
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	char line[4096], *found = NULL;

	while (f && !found && fgets(line, sizeof line, f)) {
		static char root[4096], at[4096];
		unsigned major, minor;
		size_t len;

		if (sscanf(line, "%*d %*d %u:%u %4095s %4095s", &major, &minor, root, at) != 4 ||
		    (major << 20 | minor) != dev)
			continue;
		unescape(root);
		unescape(at);
		len = strcmp(root, "/") ? strlen(root) : 0;
		if (strncmp(path, root, len) || (len && path[len] != '/' && path[len]))
			continue;
		if (asprintf(&found, "%s%s", strcmp(at, "/") ? at : "", path + len) < 0)
			found = NULL;
	}
	if (f)
		fclose(f);
	return found;
}

static uint64_t first_name(struct census *c, uint64_t inode)
{
	long alias = pins_offset_of(c, "dentry", "d_u.d_alias", "d_alias");
	uint64_t node = pins_word(c, inode + pins_offset(c, "inode", "i_dentry"));

	return node && alias >= 0 ? node - alias : 0;
}

/* From the end of `buf` on; where it begins. A file without a directory (memfd) has no slash. */
static char *full_path(struct census *c, uint64_t dentry, char *buf, size_t len)
{
	long up = pins_offset(c, "dentry", "d_parent"), name = pins_offset(c, "dentry", "d_name.name");
	char *begin = buf + len - 1;

	*begin = 0;
	for (int i = 0; i < DEPTH && dentry; i++) {
		uint64_t parent = pins_word(c, dentry + up);
		char part[264];
		size_t n;

		if (pins_string(c, pins_word(c, dentry + name), part, sizeof part) ||
		    (parent == dentry && *begin))
			break;
		n = strlen(part);
		if (n + 1 > (size_t)(begin - buf))
			break;
		begin -= n;
		memcpy(begin, part, n);
		if (parent == dentry)
			break;
		*--begin = '/';
		dentry = parent;
	}
	return begin;
}

char *pins_path(struct census *c, uint64_t inode, uint32_t dev, uint64_t ino)
{
	long number = pins_offset(c, "inode", "i_ino"), hash = pins_offset(c, "dentry", "d_hash.pprev");
	uint64_t dentry = pins_word(c, inode + number) == ino ? first_name(c, inode) : 0;
	char buf[4096], *path, *shown, *all;

	if (!dentry)
		return NULL;
	path = full_path(c, dentry, buf, sizeof buf);
	if (!*path) /* it is going */
		return NULL;
	if (*path != '/')
		return strdup(path);
	shown = where_mounted(path, dev);
	if (asprintf(&all, "%s%s", shown ? shown : path,
		     hash >= 0 && pins_word(c, dentry + hash) ? "" : " (deleted)") < 0)
		all = NULL;
	free(shown);
	return all;
}
