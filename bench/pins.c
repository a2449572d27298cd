/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What those pay who pin while `pinlease pins --watch` follows them, light and exact, by trampolines and
 * by kprobes: the same calls with nobody following, and then beside the command, which has shown its
 * first picture and sleeps.
 */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define LARGE	   (64 * MIB)
#define LARGE_RUNS 9
#define READS	   256 /* a sample: of transient calls only some are followed, which shows in their mean */

enum mode { NONE, LIGHT, EXACT, KPROBES, MODES }; /* the last: light, without trampolines */

static const char *const mode_names[] = {"nobody", "light", "exact", "kprobes"};

/* The command, and what it says. */
struct follower {
	pid_t pid;
	FILE *out;
};

struct bench_pins {
	const struct bench *b;
	struct io_uring ring;
	char *memory;
	int disk; /* -1: no direct I/O here */
};

/* False, why: it can't follow. A line when it has begun, and one when it has looked for the first time.
 */
static bool follow(const struct bench *b, struct follower *f, enum mode mode, char *why, size_t len)
{
	const char *argv[] = {getenv("PINLEASE"),
			      "pins",
			      "--watch",
			      "--delay",
			      "3600",
			      "--json",
			      mode == EXACT ? "--exact" : NULL,
			      NULL};
	char *line = NULL;
	size_t size = 0;
	int ends[2];
	bool follows;

	must(pipe2(ends, O_CLOEXEC), "pipe");
	fflush(stdout);
	f->pid = must(fork(), "fork");
	if (!f->pid) {
		pin_to(b->lib_cpu);
		if (mode == KPROBES)
			setenv("PINLEASE_BPF_KPROBES", "1", 1);
		dup2(ends[1], STDOUT_FILENO);
		dup2(ends[1], STDERR_FILENO);
		execv(argv[0], (char *const *)argv);
		dprintf(STDERR_FILENO, "%s: %s", argv[0], strerror(errno));
		_exit(127);
	}
	close(ends[1]);
	f->out = fdopen(ends[0], "r");
	if (!f->out)
		fail("out of memory");
	follows = getline(&line, &size, f->out) > 0 && *line == '{';
	if (!follows)
		snprintf(why, len, "%s", line && *line ? line : "it ended without a word");
	else if (getline(&line, &size, f->out) <= 0)
		fail("pinlease pins ended while it was needed");
	free(line);
	return follows;
}

/* It says more before it ends than a pipe may hold. */
static void end_follower(struct follower *f)
{
	char rest[4096];

	kill(f->pid, SIGINT);
	while (fread(rest, 1, sizeof rest, f->out))
		;
	fclose(f->out);
	waitpid(f->pid, NULL, 0);
}

/* A slot filled and emptied, as in map.c; the pins are gone when the tag's completion is there. */
static void register_once(struct bench_pins *p, size_t size, struct samples *fill, struct samples *empty)
{
	struct iovec iov = {p->memory, size}, none = {NULL, 0};
	__u64 tag = 7, no_tag = 0;
	struct io_uring_cqe *cqe;
	uint64_t t = now_ns();
	int ret = io_uring_register_buffers_update_tag(&p->ring, 0, &iov, &tag, 1);

	sample(fill, now_ns() - t);
	must(ret, "IORING_REGISTER_BUFFERS_UPDATE");
	t = now_ns();
	ret = io_uring_register_buffers_update_tag(&p->ring, 0, &none, &no_tag, 1);
	must(ret, "IORING_REGISTER_BUFFERS_UPDATE");
	must(io_uring_wait_cqe(&p->ring, &cqe), "the tag's completion");
	sample(empty, now_ns() - t);
	io_uring_cqe_seen(&p->ring, cqe);
}

static void measure_register(struct bench_pins *p, const char *what, const char *mode, size_t size,
			     unsigned runs)
{
	struct samples fill = {0}, empty = {0};

	for (unsigned i = 0; i < 2; i++) /* not the first ones of this mode */
		register_once(p, size, &fill, &empty);
	fill.n = empty.n = 0;
	for (unsigned i = 0; i < runs; i++)
		register_once(p, size, &fill, &empty);
	result(p->b, what, mode, "pin", &fill, 1);
	result(p->b, what, mode, "release", &empty, 1);
	free(fill.ns);
	free(empty.ns);
}

static void measure_reads(struct bench_pins *p, const char *mode)
{
	struct samples reads = {0};

	for (unsigned i = 0; i < p->b->few + 1; i++) {
		uint64_t t = now_ns();

		for (unsigned j = 0; j < READS; j++)
			if (pread(p->disk, p->memory, PAGE, 0) != (ssize_t)PAGE)
				fail("direct read: %s", strerror(errno));
		if (i)
			sample(&reads, now_ns() - t);
	}
	result(p->b, "read 4 KiB, O_DIRECT", mode, "pin", &reads, READS);
	free(reads.ns);
}

static void measure(struct bench_pins *p, enum mode mode)
{
	measure_register(p, "io_uring buffer 4 KiB", mode_names[mode], PAGE, p->b->n);
	if (p->b->max_size > MIB)
		measure_register(p, "io_uring buffer 64 MiB", mode_names[mode], LARGE, LARGE_RUNS);
	if (p->disk >= 0)
		measure_reads(p, mode_names[mode]);
}

static int open_direct(const struct bench *b)
{
	char path[128];
	int made = file_new(b, path, PAGE), fd;

	if (made < 0)
		return -1;
	fsync(made);
	fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	unlink(path);
	close(made);
	return fd;
}

static void close_all(struct bench_pins *p)
{
	io_uring_queue_exit(&p->ring);
	munmap(p->memory, LARGE);
	if (p->disk >= 0)
		close(p->disk);
}

void group_pins(const struct bench *b)
{
	struct bench_pins p = {.b = b, .memory = anon_new(LARGE), .disk = open_direct(b)};
	char why[512] = "no pinlease; $PINLEASE says where it is";

	must(io_uring_queue_init(8, &p.ring, 0), "io_uring_queue_init");
	must(io_uring_register_buffers_sparse(&p.ring, 1), "io_uring_register_buffers_sparse");
	for (int i = 0; i < MODES; i++) {
		enum mode mode = b->backwards ? MODES - 1 - i : i;
		struct follower f;

		if (mode == NONE) {
			measure(&p, mode);
			continue;
		}
		if (!getenv("PINLEASE") || !follow(b, &f, mode, why, sizeof why)) {
			left_out(b, "pins that are followed", why);
			break;
		}
		measure(&p, mode);
		end_follower(&f);
	}
	if (p.disk < 0)
		left_out(b, "direct I/O while it is followed", "no O_DIRECT there");
	close_all(&p);
}
