/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The library opened late, by dlopen(), as a language's binding does. A thread's place for its error
 * sentence must be there from the thread's start: else the C library would allocate it with the first
 * sentence, in a thread that may not allocate (I8: tests/test_locks.c).
 */
#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>

static const char *library; /* the path of libpinlease.so */

static void *own_place(void *handle)
{
	void *place = NULL;

	return dlinfo(handle, RTLD_DI_TLS_DATA, &place) ? NULL : place;
}

static void a_new_thread_has_the_place_for_its_sentence(void **state)
{
	void *handle, *place;
	pthread_t thread;

	if (!library) {
		print_message("skip: the path of libpinlease.so as an argument\n");
		skip();
	}
	handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
	if (!handle)
		fail_msg("%s", dlerror());
	assert_int_equal(pthread_create(&thread, NULL, own_place, handle), 0);
	assert_int_equal(pthread_join(thread, &place), 0);
	assert_non_null(place);
	dlclose(handle);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_new_thread_has_the_place_for_its_sentence),
	};

	library = argc > 1 ? argv[1] : NULL;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
