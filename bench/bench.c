/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Samples, results, threads, memory; see bench.h. */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

void fail(const char *fmt, ...)
{
	va_list ap;

	fflush(stdout);
	fprintf(stderr, "pinlease-bench: ");
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\n");
	exit(1);
}

long must(long ret, const char *what)
{
	if (ret < 0)
		fail("%s: %s", what, strerror(ret == -1 ? errno : (int)-ret));
	return ret;
}

void *must_map(void *p, const char *what)
{
	if (p == MAP_FAILED)
		fail("%s: %s", what, strerror(errno));
	return p;
}

/* -------------------------------------------------------------------------------- results -- */

void sample(struct samples *s, uint64_t ns)
{
	if (s->n == s->max) {
		s->max = s->max ? 2 * s->max : 256;
		s->ns = realloc(s->ns, s->max * sizeof *s->ns);
		if (!s->ns)
			fail("out of memory");
	}
	s->ns[s->n++] = ns;
}

static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static double quantile(const struct samples *s, unsigned permille)
{
	return s->ns[(uint64_t)(s->n - 1) * permille / 1000];
}

static void print_row(const struct bench *b, const char *what, const char *variant, const char *metric,
		      unsigned n, double p50, double p99)
{
	printf("{\"group\":\"%s\",\"place\":\"%s\",\"what\":\"%s\",\"variant\":\"%s\",\"metric\":\"%s\","
	       "\"n\":%u,\"p50\":%.1f,\"p99\":%.1f}\n",
	       b->group, b->place, what, variant, metric, n, p50, p99);
	fflush(stdout);
}

void value(const struct bench *b, const char *what, const char *variant, const char *metric, double v)
{
	print_row(b, what, variant, metric, 1, v, v);
}

static void sort(struct samples *s)
{
	qsort(s->ns, s->n, sizeof *s->ns, by_size);
}

double worst_of_1000(struct samples *s)
{
	sort(s);
	return quantile(s, 999);
}

void result(const struct bench *b, const char *what, const char *variant, const char *metric,
	    struct samples *s, double per)
{
	if (!s->n)
		fail("%s, %s: no samples", what, variant);
	sort(s);
	print_row(b, what, variant, metric, s->n, quantile(s, 500) / per, quantile(s, 990) / per);
	s->n = 0;
}

static void print_escaped(const char *text)
{
	for (; *text && *text != '\n'; text++) {
		if (*text == '"' || *text == '\\')
			putchar('\\');
		if ((unsigned char)*text >= ' ')
			putchar(*text);
	}
}

void left_out(const struct bench *b, const char *what, const char *why)
{
	printf("{\"group\":\"%s\",\"place\":\"%s\",\"left_out\":\"%s\",\"why\":\"", b->group, b->place,
	       what);
	print_escaped(why);
	printf("\"}\n");
	fflush(stdout);
}

/* --------------------------------------------------------------------- threads and memory -- */

void pin_to(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	must(sched_setaffinity(0, sizeof set, &set), "sched_setaffinity");
}

void touch(char *at, size_t size)
{
	for (size_t i = 0; i < size; i += PAGE)
		*(volatile char *)(at + i) = 1;
}

char *anon_new(size_t size)
{
	char *p = must_map(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
			   "mmap");

	madvise(p, size, MADV_NOHUGEPAGE);
	touch(p, size);
	return p;
}

void file_fill(int fd, size_t size)
{
	static char block[64 * KIB];

	memset(block, 'x', sizeof block);
	for (size_t at = 0; at < size; at += sizeof block) {
		size_t n = size - at < sizeof block ? size - at : sizeof block;

		if (pwrite(fd, block, n, at) != (ssize_t)n)
			fail("writing a file: %s", strerror(errno));
	}
}

int file_new(const struct bench *b, char *path, size_t size)
{
	int fd;

	snprintf(path, 128, "%.80s/pinlease-bench-XXXXXX", b->dir);
	fd = mkostemp(path, O_CLOEXEC);
	if (fd >= 0)
		file_fill(fd, size);
	return fd;
}

/* -------------------------------------------------------------- what a round trip costs here -- */

static void ping_pong(const struct bench *b, struct samples *s)
{
	int to[2], back[2];
	char c = 0;
	pid_t child;

	must(pipe2(to, O_CLOEXEC), "pipe");
	must(pipe2(back, O_CLOEXEC), "pipe");
	child = must(fork(), "fork");
	if (!child) {
		pin_to(b->lib_cpu);
		close(to[1]);
		while (read(to[0], &c, 1) == 1 && write(back[1], &c, 1) == 1)
			;
		_exit(0);
	}
	close(to[0]);
	for (unsigned i = 0; i < b->n + 20; i++) {
		uint64_t t = now_ns();

		if (write(to[1], &c, 1) != 1 || read(back[0], &c, 1) != 1)
			fail("ping-pong: %s", strerror(errno));
		if (i >= 20)
			sample(s, now_ns() - t);
	}
	close(to[1]);
	close(back[0]);
	close(back[1]);
}

void group_reference(const struct bench *b)
{
	struct samples s = {0};

	for (unsigned i = 0; i < b->n; i++) {
		uint64_t t = now_ns();

		for (int j = 0; j < 100; j++)
			syscall(SYS_getppid);
		sample(&s, now_ns() - t);
	}
	result(b, "getppid", "plain", "call", &s, 100);
	ping_pong(b, &s);
	result(b, "pipe there and back", "plain", "call", &s, 1);
	free(s.ns);
}
