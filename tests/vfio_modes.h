/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The kinds of devices behind an IOMMU, for all of which the same tests run. */
#ifndef VFIO_MODES_H
#define VFIO_MODES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "edu_rig.h"

struct mode {
	const char *name, *kind;
	enum edu_space space;
	bool switched; /* pages are exchanged in one step */
};

/* All tests in all modes that are here, which have their mode as initial state; argv[1] is a filter. */
int modes_run(const char *name, const struct CMUnitTest *all, size_t n, int argc, char **argv);

#endif
