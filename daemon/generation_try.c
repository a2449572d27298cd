/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Whether the programs see what they are for, on memory of our own: nothing else is believed. */
#include <bpf/libbpf.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/generation_load.h"
#include "pinlease/device.h"

/* Of its own areas, so that other threads' memory isn't counted. */
#define LEN (4ul << GENERATION_AREA_SHIFT)

struct trial {
	struct generation_space space;
	char *mem; /* the second page of the second area in it is what is tried */
	size_t page;
};

static uint64_t told(const struct trial *t)
{
	return __atomic_load_n(&t->space.mapped->told, __ATOMIC_ACQUIRE);
}

static void watch(struct trial *t, const char *mem, int is)
{
	t->space.mapped->watched[((uintptr_t)mem >> GENERATION_AREA_SHIFT) & (GENERATION_AREAS - 1)] =
		is;
}

static int protect(struct trial *t)
{
	return mprotect(t->mem, t->page, PROT_READ);
}

static int move(struct trial *t)
{
	void *to = t->mem + 4 * t->page;

	return mremap(t->mem, t->page, t->page, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to ? 0 : -1;
}

static int unmap(struct trial *t)
{
	return munmap(t->mem + 4 * t->page, t->page);
}

/* Which kinds there are records of. */
static int on_record(void *arg, void *data, size_t size)
{
	const struct generation_record *r = data;

	*(unsigned *)arg |= 1u << r->what;
	return 0;
}

static int unseen(const char *name)
{
	return pinl_set_error(-EOPNOTSUPP,
			      "the programs that count changes are loaded, and see no %s: the kernel "
			      "doesn't run them, or pinleased is in a namespace of processes",
			      name);
}

static int try_one(struct trial *t, const char *name, int (*change)(struct trial *t), unsigned what)
{
	unsigned seen = 0;
	struct ring_buffer *ring = ring_buffer__new(t->space.ring, on_record, &seen, NULL);
	uint64_t before = told(t);
	int err = !ring || change(t) ? -errno : 0;

	if (err)
		err = pinl_set_error(err, "counting changes can't be tried by %s: %s", name,
				     strerror(-err));
	else
		ring_buffer__consume(ring);
	ring_buffer__free(ring);
	return err || (told(t) != before && (seen & 1u << what)) ? err : unseen(name);
}

static int try_all(struct trial *t)
{
	int err;

	*t->mem = 1;
	err = try_one(t, "mprotect", protect, GENERATION_PROTECT);
	if (!err)
		err = try_one(t, "mremap", move, GENERATION_MOVE);
	if (!err)
		err = try_one(t, "munmap", unmap, GENERATION_ZAP);
	return err;
}

static int try_entered(struct trial *t)
{
	char *mem = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int err;

	if (mem == MAP_FAILED)
		return pinl_set_error(-errno, "no memory to try the counting of changes on: %s",
				      strerror(errno));
	t->page = sysconf(_SC_PAGESIZE);
	t->mem = mem + LEN / 2;
	t->mem -= (uintptr_t)t->mem & (LEN / 4 - 1);
	watch(t, t->mem, 1);
	err = try_all(t);
	watch(t, t->mem, 0);
	munmap(mem, LEN);
	return err;
}

int generation_try(struct generation_programs *g)
{
	struct trial t = {0};
	int err = generation_enter(g, getpid(), &t.space);

	if (err)
		return err;
	err = try_entered(&t);
	generation_leave(g, &t.space);
	return err;
}
