/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* As much of systemd as pinleased meets: a socket passed on, readiness, and a store of descriptors. */
#ifndef KEEPER_H
#define KEEPER_H

#include <sys/types.h>

#define KEEPER_FDS 8

struct keeper {
	int notify, listening;
	int n, fd[KEEPER_FDS];
	char name[KEEPER_FDS][32];
};

/* Listens in the directory: `socket` for clients, `notify`, by its environment variable, for pinleased.
 */
void keeper_open(struct keeper *k, const char *dir);
void keeper_close(struct keeper *k);

/* Starts pinleased with what there is and returns when it is ready. */
pid_t keeper_launch(struct keeper *k, const char *const *options);

#endif
