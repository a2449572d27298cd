/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Invariant: what is returned by gate_load() has refused a truncation and a hole of a file of its own
 * (gate_try.c), else the other kind of programs is tried.
 */
#include "daemon/gate_load.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <gate.skel.h>
#include "daemon/gate_stop.h"
#include "os/clock.h"
#include "pinlease/device.h"

enum { LINKS = 12, SOME = 6, AT_ONCE = 64, ATTACH_TRIES = 1000 };

/* In which it is renewed more than once: pinleased that is slower doesn't continue anybody in time. */
#define STOPS_NS 15000000000ull

/* The kernel's functions that answer have users' mappings in front of their arguments, or not. */
struct kind {
	const char *name, *function, *permission, *resize_2, *resize_3, *answer, *unlink, *rename;
	unsigned without; /* arguments of `function` where there is no such mapping */
};

static const struct kind kinds[] = {
	{"lsm", "bpf_lsm_inode_setattr", "bpf_lsm_file_permission", "lsm_resize_2", "lsm_resize_3",
	 "lsm_answer", "lsm_unlink", "lsm_rename", 2},
	{"fmod_ret", "security_inode_setattr", "security_file_permission", "mod_resize_2",
	 "mod_resize_3", "mod_answer", "mod_unlink", "mod_rename", 2},
};

/* Programs that are attached while ranges have need of them. */
struct some {
	const char *in_the_way; /* of what */
	struct bpf_program *program[SOME];
	struct bpf_link *link[SOME]; /* NULL: not attached */
	unsigned n;
	bool idle; /* at the last look there were none */
	bool said; /* that it can't be detached */
};

struct gate_programs {
	const struct kind *kind;
	struct gate_bpf *bpf;
	struct bpf_link *links[LINKS];
	unsigned n_links;
	struct some answers, names;
	uint64_t named,
		only_named; /* ranges that need `names`, and those of them that need nothing else */
	struct gate_state *state;
	struct ring_buffer *ring;
	unsigned read; /* this time */
	void (*told)(const struct gate_refusal *r, void *arg);
	void *arg;
	uint64_t keep_ns, open_ns; /* open_ns: it was, though something was to be guarded */
	const char *dir;	   /* where to; NULL: nowhere */
	char own[256];		   /* where it is pinned; "": nowhere */
	char unpinned[256];	   /* why */
	struct gate_stops stops;
	char unpaged[256]; /* why he is stopped for that */
	char unnamed[256]; /* why no names are kept; "": they can be */
};

/* ------------------------------------------------------------------------------------- loading -- */

static int silent(enum libbpf_print_level level, const char *fmt, va_list ap)
{
	return 0;
}

static bool starts(const char *text, const char *with)
{
	return !strncmp(text, with, strlen(with));
}

/* Those that are attached when they are needed; NULL: it is none of them. */
static struct some *some_of(struct gate_programs *g, const char *program)
{
	if (starts(program, g->kind->answer))
		return &g->answers;
	if (starts(program, g->kind->unlink) || starts(program, g->kind->rename))
		return &g->names;
	return NULL;
}

static bool is_of(struct gate_programs *g, const char *program, unsigned n)
{
	const struct kind *k = g->kind;

	if (!starts(program, "lsm_") && !starts(program, "mod_"))
		return true;
	if (some_of(g, program) == &g->names)
		return !*g->unnamed;
	return some_of(g, program) || starts(program, n == k->without ? k->resize_2 : k->resize_3);
}

static int choose(struct gate_programs *g)
{
	struct bpf_program *p;
	struct some *s;
	unsigned n;
	int err = gate_look_at_types(g->kind->function, g->kind->permission, &n);

	if (err)
		return err;
	if (gate_look_at_name_types(g->kind == kinds))
		snprintf(g->unnamed, sizeof g->unnamed, "%s", pinl_error());
	g->answers = (struct some){.in_the_way = "reads and writes"};
	g->names = (struct some){.in_the_way = "unlink and rename"};
	bpf_object__for_each_program(p, g->bpf->obj)
	{
		bpf_program__set_autoload(p, is_of(g, bpf_program__name(p), n));
		s = bpf_program__autoload(p) ? some_of(g, bpf_program__name(p)) : NULL;
		if (s && s->n < SOME)
			s->program[s->n++] = p;
	}
	return 0;
}

/* Where that is what is missing; else the kernel has other reasons. */
static bool lacks_capability(int err)
{
	unsigned long long has = ~0ull;
	FILE *f = err == -EPERM || err == -EACCES ? fopen("/proc/self/status", "re") : NULL;
	char line[128];

	while (f && fgets(line, sizeof line, f))
		sscanf(line, "CapEff: %llx", &has);
	if (f)
		fclose(f);
	return !(has & 1ull << CAP_SYS_ADMIN);
}

static int program_error(int err, const char *what, const struct bpf_program *p)
{
	char name[64] = "s";

	if (p)
		snprintf(name, sizeof name, " %s", bpf_program__name(p));
	if (lacks_capability(err))
		return pinl_set_error(err,
				      "BPF programs can't be %s without CAP_SYS_ADMIN: run pinleased "
				      "with it (as root, or by its unit)",
				      what);
	return pinl_set_error(
		err,
		"the gate's program%s can't be %s: %s; that needs CAP_SYS_ADMIN, and a kernel that lets "
		"BPF programs be put before its functions (CONFIG_KPROBE_EVENTS, and CONFIG_BPF_LSM or "
		"CONFIG_FUNCTION_TRACER)",
		name, what, strerror(-err));
}

/* -EBUSY: it was detached a moment ago, which some kernels do a little later, and not for long. */
static int attach(struct bpf_program *p, struct bpf_link **link)
{
	for (int i = 0; i < ATTACH_TRIES; i++) {
		*link = bpf_program__attach(p);
		if (*link || errno != EBUSY)
			break;
		usleep(1000);
	}
	return *link ? 0 : program_error(-errno, "attached", p);
}

/* Attached from the beginning to the end. */
static bool stays(struct gate_programs *g, const struct bpf_program *p)
{
	return p != g->bpf->progs.identify && bpf_program__autoload(p) &&
	       !some_of(g, bpf_program__name(p));
}

static int attach_all(struct gate_programs *g)
{
	struct bpf_program *p;
	int err = 0;

	bpf_object__for_each_program(p, g->bpf->obj)
	{
		if (err || !stays(g, p))
			continue;
		err = attach(p, &g->links[g->n_links]);
		g->n_links += !err;
	}
	return err;
}

/* Others may refill the ring as fast as it is read. */
static int on_refusal(void *arg, void *data, size_t size)
{
	struct gate_programs *g = arg;

	if (g->told)
		g->told(data, g->arg);
	return ++g->read < AT_ONCE ? 0 : -EAGAIN;
}

static void read_ring(struct gate_programs *g)
{
	g->read = 0;
	ring_buffer__consume(g->ring);
}

static int load_with(struct gate_programs *g, bool task_work)
{
	int err;

	g->bpf = gate_bpf__open();
	if (!g->bpf)
		return pinl_set_error(-ENOMEM, "out of memory for the gate");
	g->bpf->rodata->page_size = sysconf(_SC_PAGESIZE);
	g->bpf->rodata->has_task_work = task_work;
	g->bpf->rodata->memory_lacks = gate_memory_lacks();
	err = choose(g);
	if (err)
		return err;
	err = gate_bpf__load(g->bpf);
	return err ? program_error(err, "loaded", NULL) : 0;
}

static int load_any(struct gate_programs *g)
{
	bool task_work = gate_has_task_work();
	int err = load_with(g, task_work);

	if (!err || !task_work)
		return err;
	gate_bpf__destroy(g->bpf); /* the kernel doesn't take those that send threads to their pages */
	return load_with(g, false);
}

static int load(struct gate_programs *g)
{
	int err = load_any(g);

	if (err)
		return err;
	g->state = mmap(NULL, sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE, MAP_SHARED,
			bpf_map__fd(g->bpf->maps.state), 0);
	if (g->state == MAP_FAILED) {
		g->state = NULL;
		return pinl_set_error(-errno, "the gate's state can't be mapped: %s", strerror(errno));
	}
	g->state->pinleased = getpid();
	g->stops = (struct gate_stops){.stops = bpf_map__fd(g->bpf->maps.stops),
				       .passes = bpf_map__fd(g->bpf->maps.passes),
				       .asked = bpf_map__fd(g->bpf->maps.asked),
				       .holders = bpf_map__fd(g->bpf->maps.holders),
				       .state = g->state,
				       .page = {-1, -1},
				       .pidfd = -1,
				       .why_not = "not tried yet"};
	g->ring = ring_buffer__new(bpf_map__fd(g->bpf->maps.refusals), on_refusal, g, NULL);
	if (!g->ring)
		return pinl_set_error(-errno, "the gate's ring can't be read: %s", strerror(errno));
	return attach_all(g);
}

/* ------------------------------------------------------------------------------------- guarding -- */

int gate_identify(struct gate_programs *g, int fd, struct gate_file *file)
{
	struct gate_order order = {.fd = fd};
	LIBBPF_OPTS(bpf_test_run_opts, o, .ctx_in = &order, .ctx_size_in = sizeof order);
	int err = bpf_prog_test_run_opts(bpf_program__fd(g->bpf->progs.identify), &o);

	if (!err && !order.found)
		err = -EBADF;
	if (err)
		return pinl_set_error(err, "the gate can't look at the file: %s", strerror(-err));
	*file = order.file;
	return 0;
}

/* Those that are attached. */
static int pin_some(struct gate_programs *g, const struct some *s)
{
	int err = 0;

	for (unsigned i = 0; !err && i < s->n; i++)
		if (s->link[i])
			err = gate_pin_link(g->own, bpf_program__name(s->program[i]), s->link[i]);
	return err;
}

static int pin_all(struct gate_programs *g)
{
	int err = gate_pin_map(g->own, "state", g->bpf->maps.state);
	struct bpf_program *p;
	unsigned n = 0;

	if (!err)
		err = gate_pin_map(g->own, "stops", g->bpf->maps.stops);
	bpf_object__for_each_program(p, g->bpf->obj)
	{
		if (err || !stays(g, p))
			continue;
		err = gate_pin_link(g->own, bpf_program__name(p), g->links[n++]);
	}
	if (!err)
		err = pin_some(g, &g->answers);
	return err ? err : pin_some(g, &g->names);
}

static void pin(struct gate_programs *g)
{
	int err = g->dir ? gate_pin_begin(g->dir, g->own, sizeof g->own)
			 : pinl_set_error(-ECANCELED, "not asked for");

	if (err)
		*g->own = 0;
	else
		err = pin_all(g);
	if (err && *g->own) {
		gate_pin_end(g->own);
		*g->own = 0;
	}
	if (err)
		snprintf(g->unpinned, sizeof g->unpinned, "%s", pinl_error());
}

/* Somebody else has a hand in the folder: what is guarded is guarded all the same. */
static void pin_anew(struct gate_programs *g)
{
	gate_pin_end(g->own);
	pin(g);
	if (*g->own)
		fprintf(stderr,
			"pinleased: what was pinned of the gate has been removed; it is pinned anew, "
			"in %s\n",
			g->own);
	else
		fprintf(stderr, "pinleased: from now on the gate will be open after a crash: %s\n",
			g->unpinned);
}

static int attach_one(struct gate_programs *g, struct some *s, unsigned i)
{
	int err = attach(s->program[i], &s->link[i]);

	if (!err && *g->own && gate_pin_link(g->own, bpf_program__name(s->program[i]), s->link[i]))
		pin_anew(g);
	return err;
}

/* Before the first range, so that it holds for it. */
static int attach_some(struct gate_programs *g, struct some *s)
{
	int err = 0;

	for (unsigned i = 0; !err && i < s->n; i++)
		if (!s->link[i])
			err = attach_one(g, s, i);
	s->idle = false;
	return err;
}

/* Pinned still, it would stay attached, and in the way of the next one: so it is kept till that works.
 */
static void detach_some(struct gate_programs *g, struct some *s)
{
	for (unsigned i = 0; i < s->n; i++) {
		if (!s->link[i])
			continue;
		if (*g->own && gate_pin_remove(g->own, bpf_program__name(s->program[i]))) {
			if (!s->said)
				fprintf(stderr, "pinleased: the gate stays in the way of %s: %s\n",
					s->in_the_way, pinl_error());
			s->said = true;
			continue;
		}
		bpf_link__destroy(s->link[i]);
		s->link[i] = NULL;
	}
}

/* When they have been idle since the last look. */
static void look_at_some(struct gate_programs *g, struct some *s, uint64_t ranges)
{
	if (!ranges && s->idle)
		detach_some(g, s);
	s->idle = !ranges;
}

static bool guards_bytes(const struct gate_range *r)
{
	return r->waits || (r->ops & ~GATE_NAME);
}

/* The programs are there that the range needs. */
static int attach_for(struct gate_programs *g, const struct gate_range *r)
{
	int err = guards_bytes(r) ? attach_some(g, &g->answers) : 0;

	if (!err && (r->ops & GATE_NAME))
		err = attach_some(g, &g->names);
	return err;
}

static void count_name(struct gate_programs *g, const struct gate_range *r, int more)
{
	if (!(r->ops & GATE_NAME))
		return;
	g->named += more;
	if (!guards_bytes(r))
		g->only_named += more;
}

static int put(struct gate_programs *g, const struct gate_key *at, const struct gate_range *range)
{
	return bpf_map_update_elem(bpf_map__fd(g->bpf->maps.ranges), at, range, BPF_ANY)
		       ? pinl_set_error(-errno, "the gate can't guard the file: %s", strerror(errno))
		       : 0;
}

/* Stopped, or starved, for so long. */
static void note_open(struct gate_programs *g, uint64_t now)
{
	uint64_t until = __atomic_load_n(&g->state->until_ns, __ATOMIC_ACQUIRE);

	if (!until || until >= now || !__atomic_load_n(&g->state->ranges, __ATOMIC_ACQUIRE))
		return;
	g->open_ns += now - until;
	fprintf(stderr,
		"pinleased: the gate was open for %lu ms, as it wasn't renewed: was pinleased "
		"stopped?\n",
		(unsigned long)((now - until) / 1000000));
}

static void extend(struct gate_programs *g)
{
	uint64_t now = pl_clock_ns();

	note_open(g, now);
	__atomic_store_n(&g->state->until_ns, now + g->keep_ns, __ATOMIC_RELEASE);
	if (!*g->stops.why_not)
		__atomic_store_n(&g->state->waits_until_ns, now + STOPS_NS, __ATOMIC_RELEASE);
}

int gate_guard(struct gate_programs *g, const struct gate_file *file, unsigned place,
	       const struct gate_range *range)
{
	struct gate_key at = {*file, place, 0};
	int err = attach_for(g, range);

	if (err)
		return err;
	extend(g); /* many leases may come before the first tick */
	__atomic_add_fetch(&g->state->ranges, 1, __ATOMIC_SEQ_CST); /* before it is one */
	err = put(g, &at, range);
	if (err)
		__atomic_sub_fetch(&g->state->ranges, 1, __ATOMIC_SEQ_CST);
	else
		count_name(g, range, 1);
	return err;
}

int gate_unguard(struct gate_programs *g, const struct gate_file *file, unsigned place, unsigned last,
		 const struct gate_range *of_last)
{
	struct gate_key at = {*file, place, 0}, from = {*file, last, 0};
	int err = place == last ? 0 : put(g, &at, of_last);

	if (err)
		return err;
	if (bpf_map_delete_elem(bpf_map__fd(g->bpf->maps.ranges), &from))
		return pinl_set_error(-errno, "the gate can't let go of the file: %s", strerror(errno));
	__atomic_sub_fetch(&g->state->ranges, 1, __ATOMIC_SEQ_CST);
	return 0;
}

void gate_range_gone(struct gate_programs *g, const struct gate_range *range)
{
	count_name(g, range, -1);
}

void gate_renew(struct gate_programs *g)
{
	extend(g);
	if (*g->own && !gate_pin_is_there(g->own))
		pin_anew(g);
	look_at_some(g, &g->answers,
		     __atomic_load_n(&g->state->ranges, __ATOMIC_ACQUIRE) - g->only_named);
	look_at_some(g, &g->names, g->named);
}

/* ------------------------------------------------------------------------------------- the whole -- */

static void destroy_some(struct some *s)
{
	for (unsigned i = 0; i < s->n; i++)
		bpf_link__destroy(s->link[i]);
}

static void free_programs(struct gate_programs *g)
{
	ring_buffer__free(g->ring);
	if (g->state)
		munmap(g->state, sysconf(_SC_PAGESIZE));
	destroy_some(&g->answers);
	destroy_some(&g->names);
	while (g->n_links)
		bpf_link__destroy(g->links[--g->n_links]);
	gate_bpf__destroy(g->bpf);
	free(g);
}

static int load_kind(const struct kind *k, struct gate_programs **out)
{
	struct gate_programs *g = calloc(1, sizeof *g);
	int err;

	if (!g)
		return pinl_set_error(-ENOMEM, "out of memory for the gate");
	g->kind = k;
	g->keep_ns = 60000000000u;
	err = load(g);
	if (!err) {
		gate_renew(g);
		err = gate_try(g);
	}
	if (err)
		free_programs(g);
	else
		*out = g;
	return err;
}

/* Of a trial that went wrong there may be as much as there is room for. */
static void empty_ring(struct gate_programs *g)
{
	g->told = NULL;
	do
		read_ring(g);
	while (g->read >= AT_ONCE);
	__atomic_store_n(&g->state->untold, 0, __ATOMIC_RELAXED);
}

/* One of the two ways. */
static int begin_waits(struct gate_programs *g, enum gate_way way)
{
	int err = way == GATE_BY_PAGE ? gate_page_open(&g->stops.page) : 0;

	g->state->way = way;
	if (!err)
		err = gate_guard_start(&g->stops);
	if (!err) {
		*g->stops.why_not = 0;
		err = gate_stop_try(g);
	}
	g->stops.tried = !err;
	if (!err)
		return 0;
	gate_stop_nobody(&g->stops, pinl_error());
	gate_guard_end(&g->stops);
	gate_page_close(&g->stops.page);
	empty_ring(g);
	return err;
}

/*
 * At a page if that works, as nobody else sees it and only the thread waits; else stopped. By fmod_ret
 * stopped, too: a process's other threads aren't at their calls then, and so preempt nobody in a program
 * that isn't run for them (gate.bpf.c).
 */
static void choose_way(struct gate_programs *g)
{
	if (!g->bpf->rodata->has_task_work)
		pinl_set_error(-EOPNOTSUPP, "no task_work for BPF programs: Linux 7.0 has it");
	else if (g->kind != kinds)
		pinl_set_error(-EOPNOTSUPP, "not by the BPF LSM");
	else if (!begin_waits(g, GATE_BY_PAGE))
		return;
	snprintf(g->unpaged, sizeof g->unpaged, "%s", pinl_error());
	begin_waits(g, GATE_BY_STOP);
}

int gate_load(const char *dir, unsigned keep_ms, struct gate_programs **out)
{
	struct gate_programs *g = NULL;
	int err = -EOPNOTSUPP;

	if (!getenv("LIBBPF_LOG_LEVEL")) /* as newer ones of libbpf have it, for who looks for an error
					  */
		libbpf_set_print(silent);
	for (size_t i = 0; err && i < sizeof kinds / sizeof *kinds; i++)
		err = load_kind(&kinds[i], &g);
	if (err)
		return err;
	g->keep_ns = keep_ms * 1000000ull;
	g->dir = dir;
	pin(g);
	choose_way(g);
	gate_renew(g);
	*out = g;
	return 0;
}

void gate_unload(struct gate_programs *g)
{
	if (!g)
		return;
	gate_stop_end(&g->stops);
	if (*g->own)
		gate_pin_end(g->own);
	gate_guard_end(&g->stops);
	gate_page_close(&g->stops.page);
	free_programs(g);
}

void gate_leave(struct gate_programs *g, unsigned ms)
{
	if (__atomic_load_n(&g->state->ranges, __ATOMIC_ACQUIRE))
		__atomic_store_n(&g->state->until_ns, pl_clock_ns() + ms * 1000000ull, __ATOMIC_RELEASE);
	else if (*g->own)
		gate_pin_end(g->own);
}

const char *gate_means(const struct gate_programs *g)
{
	return g->kind->name;
}

const char *gate_unpinned(const struct gate_programs *g)
{
	return *g->own ? NULL : g->unpinned;
}

const char *gate_own(const struct gate_programs *g)
{
	return *g->own ? g->own : NULL;
}

const char *gate_unnamed(const struct gate_programs *g)
{
	return *g->unnamed ? g->unnamed : NULL;
}

const char *gate_unwaited(const struct gate_programs *g)
{
	return *g->stops.why_not ? g->stops.why_not : NULL;
}

const char *gate_unpaged(const struct gate_programs *g)
{
	return gate_stop_by_page(&g->stops) ? NULL : g->unpaged;
}

struct gate_stops *gate_stops(struct gate_programs *g)
{
	return &g->stops;
}

uint64_t gate_untold(const struct gate_programs *g)
{
	return __atomic_load_n(&g->state->untold, __ATOMIC_RELAXED);
}

uint64_t gate_was_open(const struct gate_programs *g)
{
	return g->open_ns;
}

uint64_t gate_missed(const struct gate_programs *g)
{
	return gate_passed_by(g->bpf->obj);
}

uint64_t gate_unrefused(const struct gate_programs *g)
{
	return __atomic_load_n(&g->state->lost, __ATOMIC_RELAXED) +
	       __atomic_load_n(&g->state->passed, __ATOMIC_RELAXED);
}

int gate_fd(const struct gate_programs *g)
{
	return ring_buffer__epoll_fd(g->ring);
}

void gate_read(struct gate_programs *g, void (*told)(const struct gate_refusal *r, void *arg), void *arg)
{
	g->told = told;
	g->arg = arg;
	read_ring(g);
}
