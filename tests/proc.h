/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* What the kernel says of this process: the figures that must balance (I4). */
#ifndef PROC_H
#define PROC_H

#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* The kernel's count of this process's pins. A closed io_uring lets its pins go a little later. */
static inline long pinned_kb(void)
{
	FILE *f = fopen("/proc/self/status", "re");
	char line[256];
	long kb = -1;

	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "VmPin: %ld", &kb) == 1)
			break;
	if (f)
		fclose(f);
	return kb;
}

/* io_uring's workers are the kernel's own: they come and go when they like. */
static inline bool is_uring_worker(const char *tid)
{
	char path[64], name[32] = "";
	FILE *f;

	snprintf(path, sizeof path, "/proc/self/task/%.16s/comm", tid);
	f = fopen(path, "re");
	if (f && !fgets(name, sizeof name, f))
		name[0] = 0;
	if (f)
		fclose(f);
	return !strncmp(name, "iou-", 4);
}

static inline long entries(const char *path)
{
	bool tasks = strstr(path, "task");
	DIR *dir = opendir(path);
	long n = 0;

	for (struct dirent *e; dir && (e = readdir(dir));)
		n += e->d_name[0] != '.' && !(tasks && is_uring_worker(e->d_name));
	if (dir)
		closedir(dir);
	return n;
}

/* Also the one that looks. */
static inline long open_fds(void)
{
	return entries("/proc/self/fd");
}

/* How many of the ring's fixed buffers the kernel has. */
static inline int ring_buffers(int ring_fd)
{
	char path[64], line[256];
	unsigned long addr;
	unsigned i, len;
	int n = 0;
	FILE *f;

	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", ring_fd);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof line, f))
		n += sscanf(line, "%u: 0x%lx/%u", &i, &addr, &len) == 3 && len;
	if (f)
		fclose(f);
	return n;
}

#endif
