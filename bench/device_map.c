/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* A lease on a device against the bare registration with it, in turn, each on memory of its own. */
#include "device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const struct {
	const char *name;
	size_t size;
} sizes[] = {{"4 KiB", 4 * KIB}, {"64 KiB", 64 * KIB}, {"1 MiB", MIB}, {"16 MiB", 16 * MIB}};

struct costs {
	struct samples map, unmap;
};

static void plain_once(struct target *t, char *at, size_t size, struct costs *c)
{
	struct pinl_addr first;
	uint64_t t0 = now_ns(), t1;
	int err = t->plain_map(t, at, size, &first);

	t1 = now_ns();
	must(err, t->name);
	sample(&c->map, t1 - t0);
	t0 = now_ns();
	t->plain_unmap(t);
	sample(&c->unmap, now_ns() - t0);
}

static void lease_once(struct target *t, char *at, size_t size, struct costs *c)
{
	struct pinl_policy policy = policy_of(PINL_RECALL, PINL_THEN_FAIL);
	struct pinl_lease *lease;
	uint64_t t0 = now_ns(), t1;
	int err = lease_on(t->dev, at, size, t->flags, &policy, &lease);

	t1 = now_ns();
	if (err)
		fail("%s: lease of %zu KiB: %s", t->name, size / KIB, pinl_error());
	sample(&c->map, t1 - t0);
	t0 = now_ns();
	pinl_unmap_range(lease);
	sample(&c->unmap, now_ns() - t0);
	rig_end(t->rig, NULL);
}

/* *fd: -1, anonymous memory. */
static char *memory_new(size_t size, bool memfd, int *fd)
{
	char *at;

	*fd = memfd ? must(memfd_create("bench", MFD_CLOEXEC), "memfd_create") : -1;
	if (!memfd)
		return anon_new(size);
	must(ftruncate(*fd, size), "ftruncate");
	at = must_map(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0), "mmap");
	touch(at, size);
	return at;
}

static void memory_end(char *at, size_t size, int fd)
{
	munmap(at, size);
	if (fd >= 0)
		close(fd);
}

static void one_size(const struct bench *b, struct target *t, int i, bool memfd)
{
	size_t size = sizes[i].size;
	struct costs plain = {0}, lease = {0};
	char *at, *leased, what[64];
	int fd, leased_fd;

	at = memory_new(size, memfd, &fd);
	leased = memory_new(size, memfd, &leased_fd);
	snprintf(what, sizeof what, "%.40s, %s %s", t->name, memfd ? "memfd" : "anon", sizes[i].name);
	for (unsigned n = 0; n < (size > MIB ? b->few / 10 + 1 : b->few); n++) {
		touch(at, size);
		touch(leased, size);
		plain_once(t, at, size, &plain);
		lease_once(t, leased, size, &lease);
	}
	result(b, what, "plain", "map", &plain.map, 1);
	result(b, what, "plain", "unmap", &plain.unmap, 1);
	result(b, what, "pinlease", "map", &lease.map, 1);
	result(b, what, "pinlease", "unmap", &lease.unmap, 1);
	free(plain.map.ns);
	free(plain.unmap.ns);
	free(lease.map.ns);
	free(lease.unmap.ns);
	memory_end(at, size, fd);
	memory_end(leased, size, leased_fd);
}

void device_map(const struct bench *b, struct target *t)
{
	for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
		if (sizes[i].size <= b->max_size) {
			one_size(b, t, i, false);
			one_size(b, t, i, true);
		}
}
