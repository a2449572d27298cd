/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * In the gate's directory there is one named "counting", in which every pinleased has a folder with the
 * links of its programs and the map of its holders' counts. Who takes it over ends these, so that their
 * holders know; they have asked him for others by then.
 */
#include "daemon/generation_pin.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_LEN 512

static void name_dir(char *path, size_t len, const char *dir)
{
	snprintf(path, len, "%s/counting", dir);
}

int generation_pin_begin(const char *dir, char *own, unsigned long size)
{
	char path[PATH_LEN];

	mkdir(dir, 0700); /* else what is next says why */
	name_dir(path, sizeof path, dir);
	return gate_pin_begin(path, own, size);
}

void generation_pin_end(const char *own)
{
	char dir[PATH_LEN], *end;

	gate_pin_end(own);
	snprintf(dir, sizeof dir, "%s", own);
	for (int i = 0; i < 2; i++)
		if ((end = strrchr(dir, '/')))
			*end = 0;
	rmdir(dir); /* the gate's, or others', may be there */
}

static void end_counts(int counts)
{
	struct generation_counts *c =
		mmap(NULL, sizeof *c, PROT_READ | PROT_WRITE, MAP_SHARED, counts, 0);

	if (c == MAP_FAILED)
		return;
	generation_end(c);
	munmap(c, sizeof *c);
}

/* Another version's may be others. */
static bool is_counts(int fd)
{
	struct bpf_map_info info = {0};
	__u32 len = sizeof info;

	return !bpf_obj_get_info_by_fd(fd, &info, &len) && info.type == BPF_MAP_TYPE_ARRAY &&
	       info.value_size == sizeof(struct generation_counts) && info.map_flags & BPF_F_MMAPABLE;
}

static void end_all(int outer)
{
	__u32 id;
	int fd;

	for (__u32 slot = 0; slot < GENERATION_SPACES; slot++) {
		fd = bpf_map_lookup_elem(outer, &slot, &id) ? -1 : bpf_map_get_fd_by_id(id);
		if (fd < 0)
			continue;
		if (is_counts(fd))
			end_counts(fd);
		close(fd);
	}
}

static bool end_folder(const char *folder, bool lives, uint64_t until)
{
	char path[PATH_LEN + 8];
	int outer;

	if (lives)
		return false;
	snprintf(path, sizeof path, "%s/counts", folder);
	outer = bpf_obj_get(path);
	if (outer >= 0) {
		end_all(outer);
		close(outer);
	}
	return true;
}

static bool is_over(const char *folder, bool lives, uint64_t until)
{
	return false;
}

bool generation_is_left(const char *dir, const char *own)
{
	char path[PATH_LEN];

	name_dir(path, sizeof path, dir);
	return gate_pin_sweep(path, own, is_over, 0);
}

unsigned generation_take_over(const char *dir, const char *own)
{
	char path[PATH_LEN];
	unsigned left;

	name_dir(path, sizeof path, dir);
	left = gate_pin_sweep(path, own, end_folder, 0);
	if (!left && !rmdir(path))
		rmdir(dir);
	return left;
}
