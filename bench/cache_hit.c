/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The library's own cache. */
#include "cache.h"

#include <pinlease/cache.h>
#include <pinlease/device.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static struct pinl_ctx *ctx;
static struct pinl_device *dev;

static int null_open(const void *arg, struct pinl_device_info *info, void **out)
{
	*info = (struct pinl_device_info){.device_class = PINL_DEV_REVOCABLE, .caps = PINL_DEVCAP_PIN};
	*out = NULL;
	return 0;
}

static void null_close(void *d)
{
}

static int null_map(void *d, struct pinl_mapping *m, struct pinl_addr *addrs)
{
	for (size_t i = 0; i < (m->end - m->start) / PAGE; i++)
		addrs[i] = (struct pinl_addr){m->start + i * PAGE, 1, 0};
	return 0;
}

static int null_stop(void *d, struct pinl_mapping *m)
{
	return 0;
}

static int null_drain(void *d, struct pinl_mapping *m, uint64_t deadline_ns)
{
	return 0;
}

static const struct pinl_device_ops null_ops = {
	.size = sizeof null_ops,
	.name = "null",
	.open = null_open,
	.close = null_close,
	.map = null_map,
	.stop = null_stop,
	.drain = null_drain,
};

static void ours_open(void)
{
	struct pinl_opts o = {.size = sizeof o,
			      .summary_fd = -1,
			      .sources = PINL_SOURCE_UFFD | PINL_SOURCE_FILES | PINL_SOURCE_NOTIFY};
	struct pinl_cache_opts c = {.size = sizeof c, .max_merge = 1};

	must(pinl_open(&o, &ctx), "pinl_open");
	must(pinl_device_open_ops(ctx, &null_ops, NULL, &dev), "pinl_device_open_ops");
	must(pinl_cache_open(dev, &c), "pinl_cache_open");
}

static void ours_close(void)
{
	pinl_close(ctx);
}

static void ours_hits(char *arena, const uint32_t *order, unsigned n)
{
	const struct pinl_reg *reg;
	uintptr_t depends = 0;

	for (unsigned i = 0; i < n; i++) {
		char *at = arena + order[i] * STRIDE + depends;
		int err = pinl_get(dev, at, 64, 0, &reg);

		if (err || reg->start != (uintptr_t)at)
			fail("pinl_get: %s", err ? pinl_error() : "a wrong hit");
		depends = reg->key - 1;
		pinl_put(reg);
	}
}

static int ours_unmap(void *at, size_t len)
{
	return pinl_munmap(ctx, at, len);
}

/* A peer's program beside this one, in the same round. */
static void measure_peer(const struct bench *b, const char *name)
{
	char path[512], number[4][16];
	ssize_t len = readlink("/proc/self/exe", path, sizeof path - 16);
	int status;
	pid_t pid;

	path[len > 0 ? len : 0] = 0;
	strcat(strcat(path, "-"), name);
	if (access(path, X_OK)) {
		left_out(b, name, "it wasn't there when this was built");
		return;
	}
	snprintf(number[0], 16, "%u", b->n);
	snprintf(number[1], 16, "%d", b->actor_cpu);
	snprintf(number[2], 16, "%d", b->lib_cpu);
	snprintf(number[3], 16, "%u", b->regions);
	pid = must(fork(), "fork");
	if (!pid) {
		execl(path, path, b->group, number[0], number[1], number[2], number[3], b->place, b->dir,
		      NULL);
		_exit(127);
	}
	if (waitpid(pid, &status, 0) != pid || status)
		fail("%s ended with status %d", path, status);
}

static void measure_peers(const struct bench *b)
{
	measure_peer(b, "ucx");
	if (b->lib_cpu == b->actor_cpu)
		measure_peer(b, "ucx-nolock");
}

static const struct cache ours = {"pinlease", ours_open, ours_close, ours_hits, ours_unmap};

void group_cache_hit(const struct bench *b)
{
	cache_measure_plain(b);
	if (b->backwards)
		measure_peers(b);
	cache_measure(b, &ours);
	if (!b->backwards)
		measure_peers(b);
}

#define EACH                                                                                            \
	700ul /* bytes: what the larger of the caches needs for a registration, and the arena's page */

static unsigned long available(void)
{
	FILE *f = fopen("/proc/meminfo", "re");
	unsigned long kib = 0;
	char line[128];

	while (f && !kib && fgets(line, sizeof line, f))
		sscanf(line, "MemAvailable: %lu kB", &kib);
	if (f)
		fclose(f);
	return kib * KIB;
}

void group_huge_cache(const struct bench *b)
{
	char what[48], why[96];

	if (available() < b->regions * EACH) {
		snprintf(what, sizeof what, "%u registrations", b->regions);
		snprintf(why, sizeof why, "they need %lu MiB of memory, and %lu are available",
			 b->regions * EACH / MIB, available() / MIB);
		left_out(b, what, why);
		return;
	}
	cache_measure_huge(b, &ours);
	measure_peer(b, "ucx");
}
