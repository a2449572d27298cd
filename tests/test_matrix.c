/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What becomes of a change of a leased file, made by another process: each operation, on each file
 * system that is here, under RECALL and under REFUSE, with nothing but pinleased, and under `pinlease
 * run`. Found by doing it: whether pages were taken is asked the page table, not the library. What a
 * lease was promised is a test; what was found is written to $PINLEASE_TEST_KEEP, for
 * docs/file-operations.md.
 *
 * argv[1]: pinlease, argv[2]: matrix_actor. Disks: the directories in $PINLEASE_TEST_DISKS, with colons
 * between them, or /var/tmp.
 */
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "arbiter_rig.h"
#include "matrix_acts.h"

#ifndef MFD_HUGETLB
#define MFD_HUGETLB 4u
#endif
#define XFS_MAGIC   0x58465342
#define BTRFS_MAGIC 0x9123683e
#define HUGE_PAGE   (2ul << 20)
#define LATE_MS	    10000 /* who hasn't been told by then wasn't told */

enum found {
	ABSENT,	  /* this file system doesn't do it */
	NO_LEASE, /* such a lease is refused */
	NOTHING,  /* no page is taken, and nobody waits */
	UNSEEN,
	TOLD, /* afterwards, at the latest at the lease's end */
	HELD,
	REFUSED,
	N_FOUND
};
static const char *const letters[N_FOUND] = {"", "no", ".", "-", "T", "H", "R"};

/* Where files are: of a directory, or of memory. */
struct place {
	char name[40], dir[200];
	bool huge, memory;
	unsigned long unit;
};

struct way {
	const struct place *place;
	bool run; /* the actor is under pinlease run */
	enum pinl_policy_kind kind;
};

struct cell {
	const struct way *way;
	const struct matrix_act *act;
	char path[256], other[256];
	int fd, other_fd;
	char *va;
	uint64_t pages[UNITS]; /* their numbers when they were leased */
	bool strict;	       /* the lease says that it can be kept */
	pid_t actor;
	int to, from; /* its pipes */
	int held[2];  /* a pipe that has the pages, so that their numbers stay theirs */
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct pinl_lease *lease;
};

static const char *pinlease, *actor_program;
static FILE *keep;

/* ---------------------------------------------------------------------------------- the file -- */

/* Huge pages of the cell before may go back to the pool a moment later than its pins are gone. */
static char *map_unit(const struct place *p, int fd, int i)
{
	char *va;

	for (int ms = 0;; ms++) {
		va = mmap(NULL, p->unit, PROT_READ | PROT_WRITE, MAP_SHARED, fd, i * p->unit);
		if (va != MAP_FAILED)
			return va;
		assert_true(p->huge && ms < HANG_S * 1000);
		usleep(1000);
	}
}

static int file_of(const struct place *p, const char *name, char letter, char *path)
{
	char *page = malloc(p->unit);
	int fd;

	if (p->dir[0]) {
		snprintf(path, 256, "%s/pinlease-matrix-%s-XXXXXX", p->dir, name);
		fd = mkostemp(path, O_CLOEXEC);
	} else {
		fd = memfd_create(name, MFD_CLOEXEC | (p->huge ? MFD_HUGETLB : 0));
		snprintf(path, 256, "/proc/%d/fd/%d", getpid(), fd);
	}
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, UNITS * p->unit), 0);
	memset(page, letter, p->unit);
	for (int i = 0; i < UNITS; i++) {
		char *va = map_unit(p, fd, i);

		memcpy(va, page, p->unit);
		munmap(va, p->unit);
	}
	if (p->dir[0])
		assert_int_equal(fsync(fd), 0); /* else there is nothing to clone yet */
	free(page);
	return fd;
}

/* 0: there is no page, as beyond the file's end, or in a hole that isn't to be filled. */
static uint64_t page_number(const struct cell *c, int i, bool fill)
{
	char *at = c->va + i * c->way->place->unit;
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry = 0;

	if (!fill || !madvise(at, 4096, MADV_POPULATE_READ))
		assert_int_equal(pread(pagemap, &entry, 8, (uintptr_t)at / 4096 * 8), 8);
	close(pagemap);
	return entry & ((1ull << 55) - 1);
}

static bool pages_taken(const struct cell *c, bool fill)
{
	for (int i = FIRST; i < LAST; i++)
		if (page_number(c, i, fill) != c->pages[i])
			return true;
	return false;
}

/* By content; read without faulting anything in. */
static bool is_unchanged(const struct cell *c)
{
	struct stat st;
	char byte;

	assert_int_equal(fstat(c->fd, &st), 0);
	if (st.st_size != (off_t)(UNITS * c->way->place->unit))
		return false;
	for (int i = 0; i < UNITS; i++)
		if (pread(c->fd, &byte, 1, i * c->way->place->unit) != 1 || byte != 'a')
			return false;
	return true;
}

/* ---------------------------------------------------------------------------------- the actor -- */

static int actor_says(struct cell *c)
{
	char line[16] = "";
	size_t n = 0;

	while (n < sizeof line - 1 && read(c->from, line + n, 1) == 1 && line[n] != '\n')
		n++;
	assert_true(n > 0);
	return atoi(line);
}

static void actor_begin(struct cell *c)
{
	char unit[24];
	const char *argv[9] = {pinlease,     "run", "--",    actor_program,
			       c->act->name, unit,  c->path, c->other};
	int to[2], from[2];

	snprintf(unit, sizeof unit, "%lu", c->way->place->unit);
	assert_int_equal(pipe2(to, O_CLOEXEC) | pipe2(from, O_CLOEXEC), 0);
	c->actor = fork();
	if (!c->actor) {
		dup2(to[0], 0);
		dup2(from[1], 1);
		execv(argv[c->way->run ? 0 : 3], (char **)argv + (c->way->run ? 0 : 3));
		_exit(127);
	}
	close(to[0]);
	close(from[1]);
	c->to = to[1];
	c->from = from[0];
	assert_int_equal(actor_says(c), 0);
}

static void actor_end(struct cell *c)
{
	int status;

	close(c->to);
	close(c->from);
	assert_int_equal(waitpid(c->actor, &status, 0), c->actor);
	c->actor = 0;
}

/* ---------------------------------------------------------------------------------- the lease -- */

/* First as a lease that must be kept to the letter, then as one of a program that relies on less. */
static bool take_lease(struct cell *c)
{
	static const unsigned weaker[] = {PINL_STRICT, 0, PINL_COOPERATIVE};
	unsigned long unit = c->way->place->unit;
	uintptr_t start = (uintptr_t)c->va + FIRST * unit, end = (uintptr_t)c->va + LAST * unit;
	struct pinl_policy p = {.size = sizeof p, .kind = c->way->kind, .grace_ms = 60000};
	unsigned pin = c->way->place->memory ? PINL_PIN : 0; /* no shared mapping of a disk's file */
	int err = -EOPNOTSUPP;

	if (p.kind == PINL_REFUSE)
		p.refuse = PINL_OPBIT(c->act->op < PINL_OP_NR ? c->act->op : PINL_OP_TRUNCATE);
	for (int i = p.kind == PINL_REFUSE; i < 3 && err == -EOPNOTSUPP; i++) {
		err = pinl_map_range(c->dev, start, end, pin | weaker[i], &p, NULL, &c->lease);
		c->strict = !err && i == (p.kind == PINL_REFUSE);
	}
	if (err && err != -EOPNOTSUPP)
		fail_msg("%d: %s", err, pinl_error());
	for (int i = FIRST; !err && i < LAST; i++) {
		struct iovec one = {c->va + i * unit, 1};

		c->pages[i] = page_number(c, i, true);
		if (!c->pages[i]) {
			print_message("skip: numbers of pages need CAP_SYS_ADMIN\n");
			skip();
		}
		assert_int_equal(vmsplice(c->held[1], &one, 1, 0), 1);
	}
	return !err;
}

static void cell_begin(struct cell *c)
{
	const struct place *p = c->way->place;
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1, .ceiling_ms = 60000};
	bool same = !strcmp(c->act->name, "dedupe");

	assert_int_equal(pipe2(c->held, O_CLOEXEC), 0);
	c->fd = file_of(p, "leased", 'a', c->path);
	c->other_fd = file_of(p, "other", same ? 'a' : 'b', c->other);
	if (strstr(c->act->name, "old"))
		actor_begin(c);
	assert_ok(pinl_open(&opts, &c->ctx));
	assert_ok(pinl_device_open(c->ctx, "soft", NULL, &c->dev));
	if (!strstr(c->act->name, "old")) {
		if (!p->memory)
			pinl_watch_fs(c->ctx, p->dir); /* it can't be done before Linux 6.14 */
		actor_begin(c);
	}
	c->va = mmap(NULL, UNITS * p->unit, PROT_READ | PROT_WRITE, MAP_SHARED, c->fd, 0);
	assert_ptr_not_equal(c->va, MAP_FAILED);
}

static void cell_end(struct cell *c)
{
	const struct place *p = c->way->place;

	pinl_close(c->ctx);
	c->ctx = NULL;
	actor_end(c);
	munmap(c->va, UNITS * p->unit);
	close(c->held[0]);
	close(c->held[1]);
	close(c->fd);
	close(c->other_fd);
	if (p->dir[0]) {
		unlink(c->path);
		unlink(c->other);
	}
}

/* ---------------------------------------------------------------------------------- the finding -- */

struct seen {
	bool before, told, refused;
};

static bool has_returned(const struct cell *c)
{
	struct pollfd p = {.fd = c->from, .events = POLLIN};

	return poll(&p, 1, 0) > 0;
}

static void take_events(struct cell *c, struct seen *seen)
{
	struct pinl_event ev = {.size = sizeof ev};

	while (!pinl_next_event(c->ctx, &ev)) {
		seen->told |= ev.type == PINL_EV_NOTICE || ev.type == PINL_EV_ORPHAN ||
			      ev.type == PINL_EV_FOLLOWED;
		seen->refused |= ev.type == PINL_EV_REFUSED;
		if (ev.type != PINL_EV_NOTICE)
			continue;
		seen->before |= is_unchanged(c) && !pages_taken(c, false) && !has_returned(c);
		if (c->lease) /* else it has ended meanwhile */
			pinl_quiesced(c->lease);
	}
}

/* The result of the actor's call; meanwhile notices are answered. */
static int result_of(struct cell *c, struct seen *seen)
{
	struct pollfd p[2] = {{.fd = c->from, .events = POLLIN},
			      {.fd = pinl_fd(c->ctx), .events = POLLIN}};
	int err;

	assert_int_equal(write(c->to, "", 1), 1);
	for (;;) {
		assert_true(poll(p, 2, HANG_S * 1000) > 0);
		take_events(c, seen);
		if (p[0].revents)
			break;
	}
	err = actor_says(c);
	while (err == -EBUSY && !seen->refused) {
		assert_true(poll(p + 1, 1, HANG_S * 1000) > 0); /* the holder may hear of it later */
		take_events(c, seen);
	}
	return err;
}

static bool cannot(const struct cell *c, int err)
{
	if (err == -EPERM || err == -ENOENT || err == -EXDEV)
		return !c->way->place->dir[0]; /* it has no name */
	return err == -EOPNOTSUPP || err == -EINVAL || err == -ENOSYS || err == -ENOTTY;
}

static enum found judge(struct cell *c, int err, struct seen *seen)
{
	struct pollfd p = {.fd = pinl_fd(c->ctx), .events = POLLIN};

	if (err == -EBUSY && is_unchanged(c))
		return REFUSED;
	if (err) {
		if (!cannot(c, err))
			fail_msg("%s on %s: %s", c->act->name, c->way->place->name, strerror(-err));
		return ABSENT;
	}
	if (seen->before)
		return HELD;
	while (pages_taken(c, false) && !seen->told && poll(&p, 1, LATE_MS) > 0)
		take_events(c, seen);
	pinl_unmap_range(c->lease);
	c->lease = NULL;
	take_events(c, seen);
	if (seen->told)
		return TOLD;
	return pages_taken(c, true) ? UNSEEN : NOTHING;
}

static struct cell cell; /* the test's; where one fails, tidy() finds it */

static int tidy(void **state)
{
	if (!cell.way)
		return 0;
	pinl_close(cell.ctx);
	if (cell.actor && !kill(cell.actor, SIGKILL))
		waitpid(cell.actor, NULL, 0);
	if (cell.way->place->dir[0]) {
		unlink(cell.path);
		unlink(cell.other);
	}
	cell.way = NULL;
	return 0;
}

static enum found try_cell(const struct way *way, const struct matrix_act *act)
{
	struct seen seen = {0};
	enum found found = NO_LEASE;
	bool strict = false;

	cell = (struct cell){.way = way, .act = act};
	cell_begin(&cell);
	if (take_lease(&cell)) {
		strict = cell.strict;
		found = judge(&cell, result_of(&cell, &seen), &seen);
	}
	cell_end(&cell);
	cell.way = NULL;
	if (act->passes && found != NO_LEASE && found != ABSENT && found != NOTHING)
		fail_msg("%s on %s is \"%s\"", act->name, way->place->name, letters[found]);
	if (strict && act->op < PINL_OP_NR && !act->old && found != ABSENT &&
	    !(act->may && found == NOTHING) && found != (way->kind == PINL_REFUSE ? REFUSED : HELD))
		fail_msg("%s on %s is \"%s\", though the lease was taken", act->name, way->place->name,
			 letters[found]);
	return found;
}

/* Descriptors are old if they were opened before the file system was watched, so each of these has a
 * pinleased of its own. */
static void what_is_promised_is_kept(void **state)
{
	const struct way *way = *state;
	static struct arbiter a;

	arbiter_start(&a, NULL);
	for (size_t i = 0; i < N_ACTS; i++) {
		enum found found;

		if (strstr(matrix_acts[i].name, "old")) {
			arbiter_stop(&a);
			arbiter_start(&a, NULL);
		}
		found = try_cell(way, &matrix_acts[i]);
		if (keep)
			fprintf(keep, "%s\t%s\t%s\t%s\t%s\n", way->place->name, way->run ? "run" : "any",
				way->kind == PINL_REFUSE ? "REFUSE" : "RECALL", matrix_acts[i].name,
				letters[found]);
	}
	arbiter_stop(&a);
}

/* ---------------------------------------------------------------------------------- the places -- */

#define MAX_PLACES 8

static struct place places[MAX_PLACES];
static int n_places;

static struct place *add_place(const char *name, const char *dir)
{
	struct place *p = &places[n_places++];

	snprintf(p->name, sizeof p->name, "%s", name);
	snprintf(p->dir, sizeof p->dir, "%s", dir);
	p->unit = 4096;
	p->memory = true;
	return p;
}

static const char *name_of(const char *dir, char *other)
{
	struct statfs st;

	if (statfs(dir, &st))
		return NULL;
	switch (st.f_type) {
	case EXT4_SUPER_MAGIC:
		return "ext4";
	case XFS_MAGIC:
		return "XFS";
	case BTRFS_MAGIC:
		return "btrfs";
	case TMPFS_MAGIC:
		return "tmpfs";
	default:
		sprintf(other, "type %lx", (unsigned long)st.f_type);
		return other;
	}
}

static bool have_huge_pages(void)
{
	int fd = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB);
	char *va = mmap(NULL, 2 * UNITS * HUGE_PAGE, PROT_READ, MAP_SHARED, fd, 0);

	close(fd);
	if (va != MAP_FAILED)
		munmap(va, 2 * UNITS * HUGE_PAGE);
	return fd >= 0 && va != MAP_FAILED;
}

static void find_places(void)
{
	const char *disks = getenv("PINLEASE_TEST_DISKS");
	char list[512], other[32];

	snprintf(list, sizeof list, "%s", disks ? disks : "/var/tmp");
	for (char *dir = strtok(list, ":"); dir && n_places < MAX_PLACES - 3; dir = strtok(NULL, ":")) {
		const char *name = name_of(dir, other);

		if (name)
			add_place(name, dir)->memory = !strcmp(name, "tmpfs");
	}
	add_place("tmpfs", "/dev/shm");
	add_place("memfd", "");
	if (have_huge_pages()) {
		struct place *p = add_place("hugetlb", "");

		p->huge = true;
		p->unit = HUGE_PAGE;
	}
}

int main(int argc, char **argv)
{
	static struct way ways[MAX_PLACES * 4];
	static struct CMUnitTest tests[MAX_PLACES * 4];
	static char names[MAX_PLACES * 4][64];
	struct utsname u;
	size_t n = 0;
	int failed;

	if (argc != 3)
		return 2;
	pinlease = argv[1];
	actor_program = argv[2];
	find_places();
	for (int i = 0; i < n_places * 4; i++) {
		const struct place *p = &places[i / 4];
		struct way w = {p, i & 2, i & 1 ? PINL_REFUSE : PINL_RECALL};

		if (w.run && !p->memory)
			continue; /* it is held for all programs already */
		ways[n] = w;
		snprintf(names[n], sizeof names[n], "%s, %s%s", p->name,
			 w.kind == PINL_REFUSE ? "REFUSE" : "RECALL", w.run ? ", pinlease run" : "");
		tests[n] = (struct CMUnitTest){names[n], what_is_promised_is_kept, NULL, tidy, &ways[n]};
		n++;
	}
	if (getenv("PINLEASE_TEST_KEEP")) {
		keep = fopen(getenv("PINLEASE_TEST_KEEP"), "we");
		uname(&u);
		fprintf(keep, "kernel\t%s\n", u.release);
	}
	failed = _cmocka_run_group_tests("matrix", tests, n, NULL, NULL);
	if (keep)
		fclose(keep);
	return failed;
}
