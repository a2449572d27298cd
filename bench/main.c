/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* pinlease-bench GROUP [options]: one round of one group of measurements. bench/run.py calls it. */
#include "arbiter.h"
#include "cache.h"
#include "device.h"

#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
	const char *name;
	void (*run)(const struct bench *b);
} groups[] = {
	{"reference", group_reference},
	{"recall-mem", group_recall_mem},
	{"recall-file", group_recall_file},
	{"map", group_map},
	{"calls", group_calls},
	{"touch", group_touch},
	{"files", group_files},
	{"cache-hit", group_cache_hit},
	{"huge-cache", group_huge_cache},
	{"arbiter-hold", group_arbiter_hold},
	{"arbiter-files", group_arbiter_files},
	{"arbiter-force", group_arbiter_force},
	{"arbiter-fair", group_arbiter_fair},
	{"arbiter-many", group_arbiter_many},
	{"device-ring", group_device_ring},
	{"device-verbs", group_device_verbs},
	{"device-vfio", group_device_vfio},
	{"device-iommufd", group_device_iommufd},
	{"pins", group_pins},
};

static const struct {
	const char *name;
	unsigned n, few;
	size_t max_size;
	unsigned regions;
} scales[] = {
	{"huge", 1000, 200, 1024 * MIB, 10000000},
	{"full", 1000, 200, 1024 * MIB, 1000000},
	{"quick", 120, 30, 16 * MIB, 100000},
	{"tiny", 4, 2, 64 * KIB, 1000},
};

static void __attribute__((noreturn)) usage(void)
{
	fprintf(stderr,
		"usage: pinlease-bench GROUP [--scale huge|full|quick|tiny] [--place same|across] "
		"[--dir DIR] [--backwards]\ngroups:");
	for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
		fprintf(stderr, " %s", groups[i].name);
	fprintf(stderr, "\n");
	exit(2);
}

/* The first and the last CPU that may be used: the actor's is the last, so is the library's if "same".
 */
static void choose_cpus(struct bench *b)
{
	cpu_set_t set;
	int first = -1, last = -1;

	must(sched_getaffinity(0, sizeof set, &set), "sched_getaffinity");
	for (int i = 0; i < CPU_SETSIZE; i++)
		if (CPU_ISSET(i, &set)) {
			first = first < 0 ? i : first;
			last = i;
		}
	b->actor_cpu = last;
	b->lib_cpu = !strcmp(b->place, "across") ? first : last;
	if (!strcmp(b->place, "across") && first == last)
		fail("only one CPU: nothing can run across");
}

static void choose_scale(struct bench *b, const char *name)
{
	for (size_t i = 0; i < sizeof scales / sizeof *scales; i++)
		if (!strcmp(scales[i].name, name)) {
			b->n = scales[i].n;
			b->few = scales[i].few;
			b->max_size = scales[i].max_size;
			b->regions = scales[i].regions;
		}
	if (!b->n)
		usage();
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"scale", required_argument, NULL, 's'},
		{"place", required_argument, NULL, 'p'},
		{"dir", required_argument, NULL, 'd'},
		{"backwards", no_argument, NULL, 'b'},
		{NULL, 0, NULL, 0},
	};
	struct bench b = {.dir = "/var/tmp", .place = "same"};
	const char *scale = "quick";
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) >= 0) {
		if (c == 's')
			scale = optarg;
		else if (c == 'p')
			b.place = optarg;
		else if (c == 'd')
			b.dir = optarg;
		else if (c == 'b')
			b.backwards = true;
		else
			usage();
	}
	if (optind != argc - 1 || (strcmp(b.place, "same") && strcmp(b.place, "across")))
		usage();
	b.group = argv[optind];
	choose_scale(&b, scale);
	choose_cpus(&b);
	if (b.lib_cpu != b.actor_cpu) /* a hundred times dearer, and less to learn */
		b.n = b.n / 4 + 1;
	for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
		if (!strcmp(groups[i].name, b.group)) {
			pin_to(b.actor_cpu);
			setenv("PINLEASE_SOCKET", NOBODY, 1);
			groups[i].run(&b);
			return 0;
		}
	usage();
}
