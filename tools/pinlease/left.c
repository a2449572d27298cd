/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Pinned are folders named PID-WHEN in a directory of the BPF file system, each with a map `state`,
 * whose first word is the time until which that gate refuses (daemon/gate_pin.c, bpf/gate.h). Only
 * looked at.
 */
#include "left.h"

#include <dirent.h>
#include <errno.h>
#include <linux/bpf.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common.h"

#define BPF_FS	   "/sys/fs/bpf"
#define STATE_ROOM 256

struct list {
	char *buf;
	size_t len;
};

static int bpf(enum bpf_cmd command, union bpf_attr *attr)
{
	return (int)syscall(SYS_bpf, command, attr, sizeof *attr);
}

static bool is_state(int fd)
{
	struct bpf_map_info info = {0};
	union bpf_attr attr = {
		.info = {.bpf_fd = fd, .info_len = sizeof info, .info = (uintptr_t)&info}};

	return !bpf(BPF_OBJ_GET_INFO_BY_FD, &attr) && info.type == BPF_MAP_TYPE_ARRAY &&
	       info.value_size >= sizeof(uint64_t) && info.value_size <= STATE_ROOM;
}

/* Until when it refuses. */
static bool read_state(const char *path, uint64_t *until_ns)
{
	union bpf_attr attr = {.pathname = (uintptr_t)path};
	uint64_t state[STATE_ROOM / sizeof(uint64_t)];
	uint32_t zero = 0;
	bool there;
	int fd;

	fd = bpf(BPF_OBJ_GET, &attr);
	if (fd < 0)
		return false;
	attr = (union bpf_attr){.map_fd = fd, .key = (uintptr_t)&zero, .value = (uintptr_t)state};
	there = is_state(fd) && !bpf(BPF_MAP_LOOKUP_ELEM, &attr);
	close(fd);
	*until_ns = state[0];
	return there;
}

static void look_at(const char *dir, const char *name, struct list *l)
{
	char path[640];
	uint64_t until = 0, now = tool_now();
	unsigned long long when;
	int pid;

	snprintf(path, sizeof path, "%s/%s/state", dir, name);
	if (sscanf(name, "%d-%llu", &pid, &when) != 2 || pid <= 0 || !read_state(path, &until) ||
	    (until > now && (!kill(pid, 0) || errno != ESRCH)))
		return;
	if (until > now)
		tool_append(
			l->buf, l->len,
			"process %d, which has ended, has left its gate: for %llu s more who changes "
			"what was leased gets EBUSY; start pinleased, which takes it over, or end "
			"it: kill -CONT whom it has stopped, if anybody, then rm -r %s\n",
			pid, (unsigned long long)(until - now + 999999999) / 1000000000, dir);
	else
		tool_append(
			l->buf, l->len,
			"process %d, which has ended, has left its gate: it refuses nothing any more, "
			"but slows each read and write down; start pinleased, which removes it, or "
			"remove it: kill -CONT whom it has stopped, if anybody, then rm -r %s\n",
			pid, dir);
}

static void each_in(const char *dir, void (*look)(const char *dir, const char *name, struct list *l),
		    struct list *l)
{
	DIR *d = opendir(dir);
	struct dirent *e;

	while (d && (e = readdir(d)))
		if (*e->d_name != '.')
			look(dir, e->d_name, l);
	if (d)
		closedir(d);
}

static void look_in(const char *dir, const char *name, struct list *l)
{
	char path[320];

	snprintf(path, sizeof path, "%s/%s", dir, name);
	each_in(path, look_at, l);
}

void left_gates(char *buf, size_t len)
{
	struct list l = {buf, len};

	*buf = 0;
	each_in(BPF_FS, look_in, &l);
}
