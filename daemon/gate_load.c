/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Invariant: what is returned by gate_load() has refused a truncation and a hole of a file of its own.
 * LSM programs can be attached where the kernel never runs them (no "bpf" in its list lsm=), so nothing
 * else is believed; then the other kind is tried.
 */
#include "daemon/gate_load.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <gate.skel.h>
#include "os/clock.h"
#include "pinlease/device.h"

enum { LINKS = 9, AT_ONCE = 64, ATTACH_TRIES = 1000 };

/* The kernel's functions that answer have users' mappings in front of their arguments, or not. */
struct kind {
	const char *name, *function, *permission, *resize_2, *resize_3, *answer;
	unsigned without; /* arguments of `function` where there is no such mapping */
};

static const struct kind kinds[] = {
	{"lsm", "bpf_lsm_inode_setattr", "bpf_lsm_file_permission", "lsm_resize_2", "lsm_resize_3",
	 "lsm_answer", 2},
	{"fmod_ret", "security_inode_setattr", "security_file_permission", "mod_resize_2",
	 "mod_resize_3", "mod_answer", 2},
};

struct gate_programs {
	const struct kind *kind;
	struct gate_bpf *bpf;
	struct bpf_program *answers;
	struct bpf_link *links[LINKS];
	unsigned n_links;
	struct bpf_link *answer; /* NULL: not attached */
	bool idle;		 /* at the last look nothing was guarded */
	bool said;		 /* that it can't be detached */
	struct gate_state *state;
	struct ring_buffer *ring;
	unsigned read; /* this time */
	void (*told)(const struct gate_refusal *r, void *arg);
	void *arg;
	uint64_t keep_ns;
	char own[256];	    /* where it is pinned; "": nowhere */
	char unpinned[256]; /* why */
};

/* ------------------------------------------------------------------------------------- loading -- */

static int silent(enum libbpf_print_level level, const char *fmt, va_list ap)
{
	return 0;
}

static bool is_of(const char *program, const struct kind *k, unsigned n)
{
	if (!strncmp(program, "lsm_", 4) || !strncmp(program, "mod_", 4))
		return !strcmp(program, k->answer) ||
		       !strcmp(program, n == k->without ? k->resize_2 : k->resize_3);
	return true;
}

static int choose(struct gate_programs *g)
{
	struct bpf_program *p;
	unsigned n;
	int err = gate_look_at_types(g->kind->function, g->kind->permission, &n);

	if (err)
		return err;
	bpf_object__for_each_program(p, g->bpf->obj)
	{
		bpf_program__set_autoload(p, is_of(bpf_program__name(p), g->kind, n));
		if (!strcmp(bpf_program__name(p), g->kind->answer))
			g->answers = p;
	}
	return 0;
}

static int program_error(int err, const char *what, const struct bpf_program *p)
{
	return pinl_set_error(
		err,
		"the gate's program %s can't be %s: %s; it needs CAP_SYS_ADMIN, and a kernel that lets "
		"BPF programs be put before its functions (CONFIG_KPROBE_EVENTS, and CONFIG_BPF_LSM or "
		"CONFIG_FUNCTION_TRACER)",
		p ? bpf_program__name(p) : "gate", what, strerror(-err));
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

static int attach_all(struct gate_programs *g)
{
	struct bpf_program *p;
	int err = 0;

	bpf_object__for_each_program(p, g->bpf->obj)
	{
		if (err || p == g->answers || p == g->bpf->progs.identify || !bpf_program__autoload(p))
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

static int load(struct gate_programs *g)
{
	int err;

	g->bpf = gate_bpf__open();
	if (!g->bpf)
		return pinl_set_error(-ENOMEM, "out of memory for the gate");
	g->bpf->rodata->page_size = sysconf(_SC_PAGESIZE);
	err = choose(g);
	if (err)
		return err;
	err = gate_bpf__load(g->bpf);
	if (err)
		return program_error(err, "loaded", NULL);
	g->state = mmap(NULL, sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE, MAP_SHARED,
			bpf_map__fd(g->bpf->maps.state), 0);
	if (g->state == MAP_FAILED) {
		g->state = NULL;
		return pinl_set_error(-errno, "the gate's state can't be mapped: %s", strerror(errno));
	}
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

/* Somebody else has a hand in the folder: what is guarded is guarded all the same. */
static void is_unpinned(struct gate_programs *g)
{
	snprintf(g->unpinned, sizeof g->unpinned, "%s", pinl_error());
	gate_pin_end(g->own);
	*g->own = 0;
	fprintf(stderr, "pinleased: from now on the gate will be open after a crash: %s\n", g->unpinned);
}

/* Before the first range, so that it holds for it. */
static int answers(struct gate_programs *g)
{
	int err = attach(g->answers, &g->answer);

	if (!err && *g->own && gate_pin_link(g->own, g->kind->answer, g->answer))
		is_unpinned(g);
	return err;
}

/* Pinned still, it would stay attached, and in the way of the next one: so it is kept till that works.
 */
static void detach_answers(struct gate_programs *g)
{
	if (*g->own && gate_pin_remove(g->own, g->kind->answer)) {
		if (!g->said)
			fprintf(stderr, "pinleased: the gate stays in the way of reads and writes: %s\n",
				pinl_error());
		g->said = true;
		return;
	}
	bpf_link__destroy(g->answer);
	g->answer = NULL;
}

static int put(struct gate_programs *g, const struct gate_key *at, const struct gate_range *range)
{
	return bpf_map_update_elem(bpf_map__fd(g->bpf->maps.ranges), at, range, BPF_ANY)
		       ? pinl_set_error(-errno, "the gate can't guard the file: %s", strerror(errno))
		       : 0;
}

static void extend(struct gate_programs *g)
{
	__atomic_store_n(&g->state->until_ns, pl_clock_ns() + g->keep_ns, __ATOMIC_RELEASE);
}

int gate_guard(struct gate_programs *g, const struct gate_file *file, unsigned place,
	       const struct gate_range *range)
{
	struct gate_key at = {*file, place, 0};
	int err = g->answer ? 0 : answers(g);

	if (err)
		return err;
	g->idle = false;
	extend(g); /* many leases may come before the first tick */
	__atomic_add_fetch(&g->state->ranges, 1, __ATOMIC_SEQ_CST); /* before it is one */
	err = put(g, &at, range);
	if (err)
		__atomic_sub_fetch(&g->state->ranges, 1, __ATOMIC_SEQ_CST);
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

void gate_renew(struct gate_programs *g)
{
	bool idle = !__atomic_load_n(&g->state->ranges, __ATOMIC_ACQUIRE);

	extend(g);
	if (idle && g->idle && g->answer)
		detach_answers(g);
	g->idle = idle;
}

/* --------------------------------------------------------------------------------- does it work? -- */

/* -EBUSY, by this gate: nothing else says so of such a file. */
static bool is_refused(int result)
{
	return result < 0 && errno == EBUSY;
}

static bool refuses(struct gate_programs *g, int fd, size_t page)
{
	struct gate_range all = {0, page, ~0u, 0};
	struct gate_file file;
	bool works;

	if (gate_identify(g, fd, &file) || gate_guard(g, &file, 0, &all))
		return false;
	works = is_refused(ftruncate(fd, 0)) &&
		is_refused(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, page));
	gate_unguard(g, &file, 0, 0, NULL);
	return works && !ftruncate(fd, 0);
}

static int try_it(struct gate_programs *g)
{
	size_t page = sysconf(_SC_PAGESIZE);
	int fd = memfd_create("pinlease gate", MFD_CLOEXEC);
	bool works;

	if (fd < 0 || ftruncate(fd, page)) {
		int err = -errno;

		if (fd >= 0)
			close(fd);
		return pinl_set_error(err, "no file to try the gate on: %s", strerror(-err));
	}
	pinl_set_error(0, "%s", "");
	works = refuses(g, fd, page);
	close(fd);
	read_ring(g); /* nobody is to be told of these */
	if (works)
		return 0;
	return pinl_set_error(-EOPNOTSUPP, "the gate's programs (%s) are loaded, and don't refuse: %s",
			      g->kind->name,
			      *pinl_error() ? pinl_error() : "the kernel doesn't run them");
}

/* ------------------------------------------------------------------------------------- the whole -- */

static void free_programs(struct gate_programs *g)
{
	ring_buffer__free(g->ring);
	if (g->state)
		munmap(g->state, sysconf(_SC_PAGESIZE));
	bpf_link__destroy(g->answer);
	while (g->n_links)
		bpf_link__destroy(g->links[--g->n_links]);
	gate_bpf__destroy(g->bpf);
	free(g);
}

static int pin_all(struct gate_programs *g)
{
	int err = gate_pin_state(g->own, g->bpf->maps.state);
	struct bpf_program *p;
	unsigned n = 0;

	bpf_object__for_each_program(p, g->bpf->obj)
	{
		if (err || p == g->answers || p == g->bpf->progs.identify || !bpf_program__autoload(p))
			continue;
		err = gate_pin_link(g->own, bpf_program__name(p), g->links[n++]);
	}
	if (!err)
		err = gate_pin_link(g->own, g->kind->answer, g->answer);
	return err;
}

static void pin(struct gate_programs *g, const char *dir)
{
	int err = dir ? gate_pin_begin(dir, g->own, sizeof g->own)
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
		err = try_it(g);
	}
	if (err)
		free_programs(g);
	else
		*out = g;
	return err;
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
	pin(g, dir);
	gate_renew(g);
	*out = g;
	return 0;
}

void gate_unload(struct gate_programs *g)
{
	if (!g)
		return;
	if (*g->own)
		gate_pin_end(g->own);
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

uint64_t gate_untold(const struct gate_programs *g)
{
	return __atomic_load_n(&g->state->untold, __ATOMIC_RELAXED);
}

/* Where only a note would have been dropped, no call has gone on by that. */
static bool only_forgets(const struct bpf_program *p)
{
	return !strncmp(bpf_program__name(p), "end_", 4);
}

uint64_t gate_missed(const struct gate_programs *g)
{
	uint64_t missed = __atomic_load_n(&g->state->lost, __ATOMIC_RELAXED);
	struct bpf_program *p;

	bpf_object__for_each_program(p, g->bpf->obj)
	{
		struct bpf_prog_info info = {0};
		__u32 len = sizeof info;

		if (bpf_program__fd(p) >= 0 && !only_forgets(p) &&
		    !bpf_obj_get_info_by_fd(bpf_program__fd(p), &info, &len))
			missed += info.recursion_misses;
	}
	return missed;
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
