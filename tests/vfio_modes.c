/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "vfio_modes.h"

#include <stdio.h>

#define MAX_TESTS 128

static const struct mode modes[] = {
	{"vfio", "vfio", EDU_TYPE1, false},
	{"iommufd", "iommufd", EDU_IOMMUFD, false},
	{"iommufd-switched", "iommufd", EDU_IOMMUFD, true},
};

#define NR_MODES (sizeof modes / sizeof *modes)

static struct CMUnitTest tests[MAX_TESTS];
static char names[MAX_TESTS][64];
static size_t n_tests;

static void not_here(void **state)
{
	const struct mode *mode = *state;

	print_message("skip: %s\n", edu_missing(mode->space));
	skip();
}

static void add(const struct mode *mode, const struct CMUnitTest *test)
{
	struct CMUnitTest *t = &tests[n_tests];

	assert_true(n_tests < MAX_TESTS);
	snprintf(names[n_tests], sizeof names[0], "%s/%s", mode->name, test->name);
	*t = *test;
	t->name = names[n_tests++];
	t->initial_state = (void *)mode;
}

int modes_run(const char *name, const struct CMUnitTest *all, size_t n, int argc, char **argv)
{
	static const struct CMUnitTest nothing = {"not_here", not_here, NULL, NULL, NULL};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	for (const struct mode *mode = modes; mode < modes + NR_MODES; mode++) {
		if (edu_missing(mode->space))
			add(mode, &nothing);
		for (size_t i = 0; i < n && !edu_missing(mode->space); i++)
			add(mode, &all[i]);
	}
	return _cmocka_run_group_tests(name, tests, n_tests, NULL, NULL);
}
