/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * UCX's registration caches, told of changes by pinlease instead of by patched libc functions. Link with
 * -lpinlease-ucx, before -libverbs if the program has that:
 *
 *	pinl_ucx_start(NULL);
 *	ucp_init(...);
 *
 * or change nothing in the program:
 *
 *	PINLEASE_UCX=1 UCX_MEM_MMAP_HOOK_MODE=none LD_PRELOAD=libpinlease-ucx.so.0 ./program
 *
 * UCX doesn't say what it registers. So this library has ibv_reg_mr() and ibv_dereg_mr() in front of
 * libibverbs': what is registered is watched, and who changes it is held until UCX has been told. Then
 * no registration is found whose memory has changed, by whomever and by raw system calls, with the
 * limits of pinl_get() (cache.h). What can't be watched is registered and not cached. The pins of what
 * has changed go with UCX's next operation, or at once with UCX_RCACHE_MAX_UNRELEASED=0.
 */
#ifndef PINLEASE_UCX_H
#define PINLEASE_UCX_H

#include <pinlease/pinlease.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/*
 * pinl_ucx_start - UCX's caches hear of changes by pinlease from now on, before the first ucp_init() or
 * uct_md_open().
 *
 * ctx watches the memory; NULL: a context of its own, without a policy. A program with a context of its
 * own gives that one, since memory can be watched by one context only. It must not be closed before
 * pinl_ucx_stop(). Its events have the recalls of UCX's memory, too, which need no answer.
 *
 * Errors: -EBUSY UCX has patched functions of libc; -ENOSYS UCX's calls of ibv_reg_mr() don't come here
 * (another library has it first, or this one was loaded by dlopen()); -EALREADY; what pinl_open() and
 * pinl_cache_open() say.
 */
int pinl_ucx_start(struct pinl_ctx *ctx);

/* The device that stands for UCX's caches: for pinl_cache_stat(), pinl_query(). NULL: none yet. */
struct pinl_device *pinl_ucx_device(void);

/* After the last ucp_cleanup(). What UCX registers from now on isn't cached. Errors: -EINVAL nothing was
 * started. */
int pinl_ucx_stop(void);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
