/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Ways of changing registered memory that registration caches are wrong about, for the programs of
 * libfabric's and UCX's (libfabric_app.c, ucx_app.c). What they have to bring: must(), LEN, ROUNDS,
 * SMALL; sent(), which sends LEN bytes to itself and says whether what arrived is what was there; use(),
 * which registers memory and lets go of it.
 *
 * PINLEASE_TEST_WAIT: seconds that what happens a little later may take. What is right doesn't need them
 * on an idle machine; who is to find what is wrong waits for all of them.
 */
#ifndef TESTS_PATTERNS_H
#define TESTS_PATTERNS_H

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "proc.h"
#include "room.h"

static void must(long ret, const char *what);
static bool sent(char *at);
static void use(char *at, size_t len);

static char *map(void *at, int flags, int fd)
{
	char *got = mmap(at, LEN, PROT_READ | PROT_WRITE, flags, fd, 0);

	must(got == MAP_FAILED ? -errno : 0, "mmap");
	return got;
}

static char *map_anon(void *at, int flags)
{
	return map(at, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1);
}

static void raw_munmap(char *at, int fd)
{
	must(syscall(SYS_munmap, at, LEN) ? -errno : 0, "munmap");
	map_anon(at, MAP_FIXED_NOREPLACE);
}

static void libc_munmap(char *at, int fd)
{
	must(munmap(at, LEN) ? -errno : 0, "munmap");
	map_anon(at, MAP_FIXED_NOREPLACE);
}

static void map_over(char *at, int fd)
{
	must(syscall(SYS_mmap, at, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
		     -1, 0) == -1
		     ? -errno
		     : 0,
	     "mmap");
}

static void move(char *at, int fd)
{
	char *to = map_anon(NULL, 0);

	must(syscall(SYS_mremap, at, LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED, to) == -1 ? -errno : 0,
	     "mremap");
	map_anon(at, MAP_FIXED_NOREPLACE);
	munmap(to, LEN);
}

/* The pages go elsewhere and the addresses stay, empty. */
static void move_away(char *at, int fd)
{
	char *to = map_anon(NULL, 0);

	must(syscall(SYS_mremap, at, LEN, LEN, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) ==
			     -1
		     ? -errno
		     : 0,
	     "mremap");
	munmap(to, LEN);
}

static void discard(char *at, int fd)
{
	must(syscall(SYS_madvise, at, LEN, MADV_DONTNEED) ? -errno : 0, "madvise");
}

static bool later_than(time_t start)
{
	const char *wait = getenv("PINLEASE_TEST_WAIT");

	return time(NULL) - start > (wait ? atoi(wait) : 60);
}

static int changes(void (*change)(char *at, int fd), int fd, int rounds)
{
	char *at = map_alone(LEN, fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd);
	int stale = 0;

	must(at == MAP_FAILED ? -errno : 0, "mmap");
	for (int i = 1; i <= rounds; i++) {
		memset(at, i, LEN);
		stale += !sent(at);
		change(at, fd);
		memset(at, 100 + i, LEN);
		stale += !sent(at);
	}
	munmap(at, LEN);
	if (stale)
		printf("%d of %d stale\n", stale, 2 * rounds);
	return stale ? 1 : 0;
}

/* ----------------------------------------------------- an allocator that gives blocks back late -- */

static char *given_up[50];
static atomic_int n_given_up;

static void give_back_one(void)
{
	int i = atomic_load(&n_given_up);

	while (i > 0 && !atomic_compare_exchange_weak(&n_given_up, &i, i - 1))
		;
	if (i > 0)
		munmap(given_up[i - 1], LEN);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* these have their own */
extern void *__libc_malloc(size_t len);

/* At each call for something small one of the blocks that the program doesn't need any more. */
__attribute__((visibility("default"))) void *malloc(size_t len)
{
	if (len <= SMALL)
		give_back_one();
	return __libc_malloc(len);
}
#endif

/* A library that registers allocates with its locks taken: who is told of an unmapping must not need
 * those. */
static int allocator(void)
{
	char *other[60];

	for (int round = 0; round < 5; round++) {
		for (int i = 0; i < 50; i++)
			use(given_up[i] = map_anon(NULL, 0), LEN);
		atomic_store(&n_given_up, 50);
		for (int i = 0; i < 60; i++)
			use(other[i] = map_anon(NULL, 0), LEN);
		while (atomic_load(&n_given_up))
			give_back_one();
		for (int i = 0; i < 60; i++)
			munmap(other[i], LEN);
	}
	return 0;
}

#endif
