/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* The sources there are. One line per source. */
#ifndef PL_SOURCE_SOURCES_H
#define PL_SOURCE_SOURCES_H

#include <pinlease/source.h>

extern const struct pinl_source_ops pl_uffd_ops;
extern const struct pinl_source_ops pl_remote_ops;
extern const struct pinl_source_ops pl_files_ops;
extern const struct pinl_source_ops pl_notify_ops;
extern const struct pinl_source_ops pl_faults_ops;
extern const struct pinl_source_ops pl_generation_ops;

int pl_files_watch_fs(void *files, const char *path);
void pl_files_go_on(void *files); /* opened with struct pl_files_kept */

/*
 * Who changes what is among users that don't trust each other: none may have all places, or have the
 * gate wait. There may be children. Once, before the first lease.
 */
int pl_files_be_fair(void *files);

#endif
