/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Shared by lib/backend/verbs*.c only. */
#ifndef PL_BACKEND_VERBS_DEV_H
#define PL_BACKEND_VERBS_DEV_H

#include <infiniband/verbs.h>
#include <pthread.h>
#include <stdbool.h>

#include <pinlease/device.h>

#include "backend/readback.h"
#include "backend/verbs_cmd.h"

struct pl_verbs_map {
	struct pl_verbs_map *next; /* of pl_verbs.left */
	struct pl_mr mr;
	uintptr_t start;
	size_t len;
	bool there, stopped;
	bool windowed;	  /* peers get in only by the window, */
	bool has_window;  /* which is there */
	uint32_t window;  /* its handle */
	struct ibv_mw mw; /* for the program to bind it with: */
	struct ibv_mr bound;
	struct pl_second second;
	struct pl_pin pins[]; /* of second */
};

struct pl_verbs {
	struct pl_uverbs uverbs; /* our duplicate of the context's descriptor */
	struct ibv_pd *given;
	struct ibv_pd *aside; /* where regions go that have been stopped; nobody's */
	unsigned access, means;
	bool odp;
	bool asks; /* the kernel says what a handle is */
	struct pl_readback readback;
	uint32_t *qps;
	unsigned n_qps;
	pthread_mutex_t lock;	   /* covers left; nothing is called with it */
	struct pl_verbs_map *left; /* of ended leases, regions that couldn't be deregistered */
};

/* verbs_open.c */
int pl_verbs_open(const void *arg, struct pinl_device_info *info, void **dev);
void pl_verbs_close(void *dev);

/* verbs.c: try again what couldn't be deregistered */
void pl_verbs_settle(struct pl_verbs *d);

#endif
