/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * pinlease-bench-ucx-nolock: UCX's cache for one thread, without its locks. libucs calls libc's by name,
 * so what has these names in the program is called instead. They are taken only while something is
 * looked up; that they really are called is counted.
 */
#include "cache_ucx.h"

#include <dlfcn.h>
#include <pthread.h>

#define PER_HIT 6 /* get: the cache's and the list's, taken and given back; put: the list's */

static _Thread_local bool without, counting;
static _Thread_local unsigned long calls;

#define LOCK(name, type)                                                                                \
	__attribute__((visibility("default"))) int name(type *lock)                                     \
	{                                                                                               \
		static int (*real)(type * lock);                                                        \
                                                                                                        \
		if (without) {                                                                          \
			calls += counting;                                                              \
			return 0;                                                                       \
		}                                                                                       \
		if (!real)                                                                              \
			real = (int (*)(type *))dlsym(RTLD_NEXT, #name);                                \
		return real(lock);                                                                      \
	}

LOCK(pthread_spin_lock, pthread_spinlock_t)
LOCK(pthread_spin_unlock, pthread_spinlock_t)
LOCK(pthread_rwlock_rdlock, pthread_rwlock_t)
LOCK(pthread_rwlock_wrlock, pthread_rwlock_t)
LOCK(pthread_rwlock_unlock, pthread_rwlock_t)

static void hits(char *arena, const uint32_t *order, unsigned n)
{
	static unsigned nth; /* the first are misses: they fill the cache */

	counting = ++nth == 2;
	without = true;
	ucx_hits(arena, order, n);
	without = false;
	if (counting && calls < PER_HIT * n)
		fail("UCX's locks aren't those that this leaves out: %lu calls in %u hits", calls, n);
}

static void measure(const struct bench *b)
{
	static const struct cache ucx = {"UCX without locks", ucx_open, ucx_close, hits};

	cache_measure_hits(b, &ucx);
}

int main(int argc, char **argv)
{
	return ucx_main(argc, argv, measure);
}
