/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * munmap and madvise(MADV_DONTNEED) of memory that is leased, that is in one mapping with a lease, or
 * that has nothing to do with any; against the same without pinlease.
 */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

enum where { NOWHERE, FLOOR, OTHER, SAME, LEASED };

static const struct situation {
	const char *name;
	enum where where; /* is the lease */
	enum pinl_policy_kind kind;
} situations[] = {
	{"plain", NOWHERE, 0},
	{"floor", FLOOR, 0},
	{"other mapping, KEEP", OTHER, PINL_KEEP},
	{"other mapping, RECALL", OTHER, PINL_RECALL},
	{"same mapping, KEEP", SAME, PINL_KEEP},
	{"same mapping, RECALL", SAME, PINL_RECALL},
	{"leased, KEEP", LEASED, PINL_KEEP},
	{"leased, RECALL", LEASED, PINL_RECALL},
};
static const size_t sizes[] = {4 * KIB, 64 * KIB, MIB};

struct scene {
	const struct bench *b;
	const struct situation *s;
	size_t size;
	bool unmap;
	struct floor_monitor *floor;
	struct rig *rig;
	struct samples ns;
};

static struct pinl_lease *lease_at(struct scene *sc, char *at, size_t size)
{
	struct pinl_policy policy = policy_of(sc->s->kind, PINL_THEN_FAIL);
	struct pinl_lease *lease;

	if (lease_on(sc->rig->uring, at, size, PINL_WRITE | PINL_PIN, &policy, &lease))
		fail("%s: %s", sc->s->name, pinl_error());
	return lease;
}

/*
 * One mapping: a page that may be leased, a page between, the memory in question. A page without access
 * at the end keeps it apart from its neighbours.
 */
static void once(struct scene *sc, bool keep)
{
	size_t all = sc->size + 3 * PAGE;
	char *base = anon_new(all), *at = base + 2 * PAGE;
	struct pinl_lease *lease = NULL;
	uint64_t t;
	int ret;

	must(mprotect(at + sc->size, PAGE, PROT_NONE), "mprotect");
	if (sc->s->where == FLOOR)
		floor_watch(sc->floor, base, all - PAGE);
	else if (sc->s->where == SAME)
		lease = lease_at(sc, base, PAGE);
	else if (sc->s->where == LEASED)
		lease = lease_at(sc, at, sc->size);
	t = now_ns();
	ret = sc->unmap ? munmap(at, sc->size) : madvise(at, sc->size, MADV_DONTNEED);
	if (keep)
		sample(&sc->ns, now_ns() - t);
	must(ret, "munmap or madvise");
	if (lease)
		rig_end(sc->rig, lease);
	munmap(base, 2 * PAGE);
	if (!sc->unmap)
		munmap(at, sc->size);
	munmap(at + sc->size, PAGE);
}

static void measure(struct scene *sc)
{
	unsigned n = sc->size >= MIB ? sc->b->few : sc->b->n;
	struct pinl_lease *other = NULL;
	char what[48], *at = anon_new(64 * KIB);
	struct rig rig;

	sc->rig = &rig;
	if (sc->s->where >= OTHER)
		rig_open(sc->b, &rig, false);
	if (sc->s->where == OTHER)
		other = lease_at(sc, at, 64 * KIB);
	for (unsigned i = 0; i < n + 3; i++)
		once(sc, i >= 3);
	if (other)
		rig_end(&rig, other);
	if (sc->s->where >= OTHER)
		rig_close(&rig);
	munmap(at, 64 * KIB);
	snprintf(what, sizeof what, "%s %zu KiB", sc->unmap ? "munmap" : "madvise", sc->size / KIB);
	result(sc->b, what, sc->s->name, "call", &sc->ns, 1);
}

void group_calls(const struct bench *b)
{
	const int n = sizeof situations / sizeof *situations;
	const char *why;
	struct floor_monitor *f = floor_uffd(b, &why);
	struct scene sc = {.b = b, .floor = f};

	if (!f) {
		left_out(b, "munmap and madvise", why);
		return;
	}
	for (size_t i = 0; i < 2 * sizeof sizes / sizeof *sizes; i++)
		for (int j = 0; j < n; j++) {
			sc.size = sizes[i / 2];
			sc.unmap = i % 2;
			sc.s = &situations[b->backwards ? n - 1 - j : j];
			measure(&sc);
		}
	floor_end(f);
	free(sc.ns.ns);
}
