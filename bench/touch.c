/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * First touch of shared file mappings whose pages are cached: per page, without a lease and with one on
 * demand on the soft device. A lease populates its range when it is made, so its own cost counts, too;
 * what is dearer later is a page that has left the page table and is touched again.
 */
#include "bench.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define TOUCH_SIZE (4 * MIB)
#define PAGES	   (TOUCH_SIZE / PAGE)

struct file {
	const char *name;
	int fd;
};

struct costs {
	struct samples first, lease, again, after;
};

static void look(const char *at, size_t size)
{
	for (size_t i = 0; i < size; i += PAGE)
		(void)*(const volatile char *)(at + i);
}

static uint64_t touch_all(char *at, bool write)
{
	uint64_t t = now_ns();

	if (write)
		touch(at, TOUCH_SIZE);
	else
		look(at, TOUCH_SIZE);
	return now_ns() - t;
}

/* Out of the page table; the pages stay in the cache, clean ones: the next store has to ask again. */
static uint64_t touch_again(char *at, int fd, bool write)
{
	if (write)
		must(fsync(fd), "fsync");
	else
		must(madvise(at, TOUCH_SIZE, MADV_DONTNEED), "madvise");
	return touch_all(at, write);
}

static void once(struct rig *r, const struct file *f, bool write, bool leased, struct costs *c)
{
	struct pinl_policy policy = policy_of(PINL_FOLLOW, 0);
	struct pinl_lease *lease = NULL;
	uint64_t t, making = 0, first;
	char *at =
		must_map(mmap(NULL, TOUCH_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd, 0), "mmap");

	if (leased) {
		t = now_ns();
		if (lease_on(r->soft, at, TOUCH_SIZE, PINL_WRITE, &policy, &lease))
			fail("lease on %s: %s", f->name, pinl_error());
		making = now_ns() - t;
	}
	first = touch_all(at, write);
	sample(&c->first, first);
	if (leased)
		sample(&c->lease, making + first);
	sample(&c->again, touch_again(at, f->fd, write));
	if (lease)
		rig_end(r, lease);
	sample(&c->after, touch_all(at, write));
	munmap(at, TOUCH_SIZE);
}

static void measure(const struct bench *b, struct rig *r, const struct file *f, bool write)
{
	struct costs plain = {0}, leased = {0};
	char what[48];

	for (unsigned i = 0; i < b->few / 4 + 1; i++) {
		once(r, f, write, b->backwards, b->backwards ? &leased : &plain);
		once(r, f, write, !b->backwards, b->backwards ? &plain : &leased);
	}
	snprintf(what, sizeof what, "%s %s", f->name, write ? "write" : "read");
	result(b, what, "plain", "touch", &plain.first, PAGES);
	result(b, what, "leased", "touch", &leased.first, PAGES);
	result(b, what, "leased", "lease and touch", &leased.lease, PAGES);
	result(b, what, "plain", "touch again", &plain.again, PAGES);
	result(b, what, "leased", "touch again", &leased.again, PAGES);
	result(b, what, "plain", "after", &plain.after, PAGES);
	result(b, what, "leased", "after", &leased.after, PAGES);
	free(plain.first.ns);
	free(plain.again.ns);
	free(plain.after.ns);
	free(leased.first.ns);
	free(leased.after.ns);
	free(leased.lease.ns);
	free(leased.again.ns);
}

void group_touch(const struct bench *b)
{
	struct file files[2] = {{"tmpfs", must(memfd_create("bench", MFD_CLOEXEC), "memfd_create")},
				{"disk file", -1}};
	char path[128];
	struct rig r;

	file_fill(files[0].fd, TOUCH_SIZE);
	files[1].fd = must(file_new(b, path, TOUCH_SIZE), b->dir);
	unlink(path);
	rig_open(b, &r, false);
	for (int i = 0; i < 2; i++) {
		if (i && files_missing(b, &r)) {
			left_out(b, files[i].name, files_missing(b, &r));
			break;
		}
		measure(b, &r, &files[i], false);
		measure(b, &r, &files[i], true);
	}
	rig_close(&r);
	close(files[0].fd);
	close(files[1].fd);
}
