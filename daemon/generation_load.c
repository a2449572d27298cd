/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Invariant: what generation_load() returns has counted changes of this process (generation_try.c). A
 * space is in `spaces` only while its two maps are at its place, so nobody's changes get to another's.
 */
#include "daemon/generation_load.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <generation.skel.h>
#include "daemon/generation_pin.h"
#include "os/clock.h"
#include "pinlease/device.h"

enum { LINKS = 22, ATTACH_TRIES = 1000 };

struct generation_programs {
	struct generation_bpf *bpf;
	struct generation_types types;
	struct bpf_link *links[LINKS], *find;
	unsigned n_links;
	char own[256];	    /* where it is pinned; "": nowhere */
	char unpinned[256]; /* why */
};

/* ------------------------------------------------------------------------------------- loading -- */

static int silent(enum libbpf_print_level level, const char *fmt, va_list ap)
{
	return 0;
}

static bool starts(const struct bpf_program *p, const char *with)
{
	return !strncmp(bpf_program__name(p), with, strlen(with));
}

/* NULL: it is before none. */
static const char *function_of(const struct generation_programs *g, const struct bpf_program *p)
{
	if (starts(p, "zap_"))
		return g->types.zap;
	if (starts(p, "huge_"))
		return "__unmap_hugepage_range";
	if (starts(p, "protect_"))
		return "change_protection";
	if (starts(p, "move_"))
		return "move_page_tables";
	if (starts(p, "free_"))
		return g->types.sees_free ? "madvise_free_pte_range" : NULL;
	return starts(p, "exit_") ? "exit_mmap" : NULL;
}

static void tell_types(struct generation_programs *g)
{
	const struct generation_types *t = &g->types;
	struct generation_bpf__rodata *r = g->bpf->rodata;

	r->zap_vma = t->zap_vma;
	r->zap_start = t->zap_start;
	r->zap_end = t->zap_end;
	r->huge_vma = t->huge_vma;
	r->huge_start = t->huge_start;
	r->huge_end = t->huge_end;
	r->move_vma = t->move_vma;
	r->move_start = t->move_start;
	r->move_len = t->move_len;
	r->move_control = t->move_control;
	r->free_start = t->free_start;
	r->free_end = t->free_end;
	r->free_walk = t->free_walk;
	r->protect_vma = t->protect_vma;
	r->protect_start = t->protect_start;
	r->protect_end = t->protect_end;
	r->protect_flags = t->protect_flags;
}

static int choose(struct generation_programs *g)
{
	struct bpf_program *p;
	const char *function;
	int err = 0;

	tell_types(g);
	bpf_object__for_each_program(p, g->bpf->obj)
	{
		function = function_of(g, p);
		if (err || !function)
			continue;
		bpf_program__set_autoload(p, true);
		err = bpf_program__set_attach_target(p, 0, function);
	}
	return err;
}

static int program_error(int err, const char *what, const char *function)
{
	return pinl_set_error(
		err,
		"the programs that count changes can't be %s%s: %s; that needs CAP_SYS_ADMIN, and a "
		"kernel that lets BPF programs be put before its functions (CONFIG_FUNCTION_TRACER, "
		"x86-64)",
		what, function, strerror(-err));
}

/* -EBUSY: another was detached a moment ago. */
static struct bpf_link *attach(struct bpf_program *p)
{
	struct bpf_link *link = NULL;

	for (int i = 0; !link && i < ATTACH_TRIES; i++) {
		if (i)
			usleep(1000);
		link = bpf_program__attach(p);
		if (!link && errno != EBUSY)
			break;
	}
	return link;
}

static int attach_one(struct generation_programs *g, struct bpf_program *p, const char *function)
{
	struct bpf_link *link = attach(p);
	char before[64];

	if (!link) {
		snprintf(before, sizeof before, " before %s()", function);
		return program_error(-errno, "put", before);
	}
	g->links[g->n_links++] = link;
	return 0;
}

static int attach_all(struct generation_programs *g)
{
	struct bpf_program *p;
	const char *function;
	int err = 0;

	bpf_object__for_each_program(p, g->bpf->obj)
	{
		function = function_of(g, p);
		if (!err && function)
			err = attach_one(g, p, function);
	}
	if (err)
		return err;
	g->find = bpf_program__attach(g->bpf->progs.find_mm);
	return g->find ? 0 : program_error(-errno, "put", " into an iterator of tasks");
}

static int load(struct generation_programs *g)
{
	int err = generation_look_at_types(&g->types);

	if (err)
		return err;
	g->bpf = generation_bpf__open();
	if (!g->bpf)
		return pinl_set_error(-ENOMEM, "out of memory for the programs that count changes");
	err = choose(g);
	if (!err)
		err = generation_bpf__load(g->bpf);
	return err ? program_error(err, "loaded", "") : attach_all(g);
}

/* --------------------------------------------------------------------------------------- spaces -- */

/* 0: there is none. */
static uint64_t find_mm(struct generation_programs *g, pid_t pid)
{
	int fd = bpf_iter_create(bpf_link__fd(g->find));
	char c;

	g->bpf->bss->asked_pid = pid;
	g->bpf->bss->found_mm = 0;
	if (fd < 0)
		return 0;
	while (read(fd, &c, 1) < 0 && errno == EAGAIN)
		;
	close(fd);
	return g->bpf->bss->found_mm;
}

bool generation_is_of(struct generation_programs *g, pid_t pid, const struct generation_space *s)
{
	return find_mm(g, pid) == s->mm;
}

static int make_maps(const struct generation_programs *g, struct generation_space *s)
{
	LIBBPF_OPTS(bpf_map_create_opts, o, .map_flags = BPF_F_MMAPABLE);

	s->ring = -1;
	s->counts = bpf_map_create(BPF_MAP_TYPE_ARRAY, "pinlease_counts", sizeof(__u32),
				   sizeof(struct generation_counts), 1, &o);
	if (s->counts < 0)
		return -errno;
	s->ring = bpf_map_create(BPF_MAP_TYPE_RINGBUF, "pinlease_ring", 0, 0, GENERATION_RING, NULL);
	if (s->ring < 0)
		return -errno;
	s->mapped = mmap(NULL, sizeof *s->mapped, PROT_READ | PROT_WRITE, MAP_SHARED, s->counts, 0);
	if (s->mapped == MAP_FAILED) {
		s->mapped = NULL;
		return -errno;
	}
	s->mapped->outlives = *g->own != 0;
	s->mapped->seen = 1u << GENERATION_ZAP | 1u << GENERATION_MOVE | 1u << GENERATION_PROTECT |
			  (g->types.sees_free ? 1u << GENERATION_FREE : 0);
	return 0;
}

/* The last of the three, by which it is counted. */
static int put_maps(struct generation_programs *g, struct generation_space *s)
{
	__u32 slot = s->slot;

	if (bpf_map_update_elem(bpf_map__fd(g->bpf->maps.counts), &slot, &s->counts, BPF_ANY) ||
	    bpf_map_update_elem(bpf_map__fd(g->bpf->maps.rings), &slot, &s->ring, BPF_ANY) ||
	    bpf_map_update_elem(bpf_map__fd(g->bpf->maps.spaces), &s->mm, &slot, BPF_NOEXIST))
		return -errno;
	return 0;
}

/* Kernels wait in these until no program has the old one any more. */
static void take_maps(struct generation_programs *g, const struct generation_space *s)
{
	__u32 slot = s->slot;

	bpf_map_delete_elem(bpf_map__fd(g->bpf->maps.counts), &slot);
	bpf_map_delete_elem(bpf_map__fd(g->bpf->maps.rings), &slot);
}

static void close_maps(struct generation_space *s)
{
	if (s->mapped)
		munmap(s->mapped, sizeof *s->mapped);
	if (s->ring >= 0)
		close(s->ring);
	if (s->counts >= 0)
		close(s->counts);
	s->mapped = NULL;
	s->ring = s->counts = -1;
}

static int no_such(pid_t pid)
{
	return pinl_set_error(-ESRCH, "there is no process %d whose changes could be counted", pid);
}

/* It has that space still, after it was entered: so its end comes afterwards, and is seen. */
int generation_enter(struct generation_programs *g, pid_t pid, struct generation_space *s)
{
	int err;

	s->counts = s->ring = -1;
	s->mapped = NULL;
	s->mm = find_mm(g, pid);
	if (!s->mm)
		return no_such(pid);
	err = make_maps(g, s);
	if (!err)
		err = put_maps(g, s);
	if (err) {
		take_maps(g, s);
		close_maps(s);
		return pinl_set_error(err, "changes of process %d can't be counted: %s", pid,
				      err == -EEXIST ? "they are already, for another connection of it "
						       "(one context of a process can ask)"
						     : strerror(-err));
	}
	if (generation_is_of(g, pid, s))
		return 0;
	generation_leave(g, s);
	return no_such(pid);
}

void generation_tell_all(struct generation_counts *c)
{
	__atomic_add_fetch(&c->told, 1, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&c->lost, 1, __ATOMIC_SEQ_CST);
}

void generation_end(struct generation_counts *c)
{
	__atomic_store_n(&c->ended, 1, __ATOMIC_SEQ_CST);
	generation_tell_all(c);
}

/* Another one may be there, if it has ended. */
void generation_leave(struct generation_programs *g, struct generation_space *s)
{
	int spaces = bpf_map__fd(g->bpf->maps.spaces);
	__u32 slot;

	generation_end(s->mapped);
	if (!bpf_map_lookup_elem(spaces, &s->mm, &slot) && slot == s->slot)
		bpf_map_delete_elem(spaces, &s->mm);
	take_maps(g, s);
	close_maps(s);
}

/* -------------------------------------------------------------------------------------- the whole -- */

static uint64_t misses(const struct bpf_program *p)
{
	struct bpf_prog_info info = {0};
	__u32 len = sizeof info;

	return bpf_obj_get_info_by_fd(bpf_program__fd(p), &info, &len) ? 0 : info.recursion_misses;
}

static uint64_t both(const struct bpf_program *a, const struct bpf_program *b)
{
	uint64_t of_a = misses(a), of_b = misses(b);

	return of_a < of_b ? of_a : of_b;
}

/* Programs that aren't loaded have missed nothing. */
#define BOTH(name) both(g->bpf->progs.name##_a, g->bpf->progs.name##_b)

uint64_t generation_passed(const struct generation_programs *g)
{
	return BOTH(zap) + BOTH(huge) + BOTH(protect) + BOTH(move) + BOTH(free) + BOTH(zap_over) +
	       BOTH(huge_over) + BOTH(protect_over) + BOTH(move_over) + BOTH(free_over);
}

uint64_t generation_unforgotten(const struct generation_programs *g)
{
	return BOTH(exit);
}

static void pin(struct generation_programs *g, const char *dir)
{
	int err = dir ? generation_pin_begin(dir, g->own, sizeof g->own)
		      : pinl_set_error(-ECANCELED, "not asked for");
	char name[16];

	if (err)
		*g->own = 0;
	else
		err = gate_pin_map(g->own, "counts", g->bpf->maps.counts);
	for (unsigned i = 0; !err && i < g->n_links; i++) {
		snprintf(name, sizeof name, "link%u", i);
		err = gate_pin_link(g->own, name, g->links[i]);
	}
	if (!err)
		return;
	snprintf(g->unpinned, sizeof g->unpinned, "%s", pinl_error());
	if (*g->own)
		generation_pin_end(g->own);
	*g->own = 0;
}

static void free_programs(struct generation_programs *g)
{
	bpf_link__destroy(g->find);
	while (g->n_links)
		bpf_link__destroy(g->links[--g->n_links]);
	generation_bpf__destroy(g->bpf);
	free(g);
}

int generation_load(const char *dir, struct generation_programs **out)
{
	struct generation_programs *g = calloc(1, sizeof *g);
	int err;

	if (!g)
		return pinl_set_error(-ENOMEM, "out of memory for the programs that count changes");
	if (!getenv("LIBBPF_LOG_LEVEL"))
		libbpf_set_print(silent);
	err = load(g);
	if (!err) {
		generation_renew(g);
		err = generation_try(g);
	}
	if (err) {
		free_programs(g);
		return err;
	}
	pin(g, dir);
	*out = g;
	return 0;
}

void generation_renew(struct generation_programs *g)
{
	__atomic_store_n(&g->bpf->bss->until_ns, pl_clock_ns() + GENERATION_LIFE_NS, __ATOMIC_SEQ_CST);
}

void generation_unload(struct generation_programs *g)
{
	if (!g)
		return;
	if (*g->own)
		generation_pin_end(g->own);
	free_programs(g);
}

const char *generation_unpinned(const struct generation_programs *g)
{
	return *g->own ? NULL : g->unpinned;
}

const char *generation_own(const struct generation_programs *g)
{
	return *g->own ? g->own : NULL;
}
