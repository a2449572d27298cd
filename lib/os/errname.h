/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef PL_OS_ERRNAME_H
#define PL_OS_ERRNAME_H

#include <string.h>

/* strerror() for threads that may not allocate: it never does, because it doesn't translate. err > 0. */
static inline const char *pl_errname(int err)
{
#ifdef __GLIBC__
	const char *text = strerrordesc_np(err);

	return text ? text : "unknown error";
#else
	return strerror(err);
#endif
}

#endif
