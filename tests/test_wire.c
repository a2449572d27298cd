/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Inputs for fuzz_wire.c from the table of messages: each good one, and such with faults; by a seed, so
 * that a failure can be had again.
 *
 *	test_wire			300000 of them, as a test; PINLEASE_TEST_OPS, PINLEASE_TEST_SEED
 *	test_wire --corpus DIR		the good ones, a file each, for libFuzzer to begin with
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz_wire.h"
#include "proto/wire.h"

#define INPUTS 300000
#define LARGE  (sizeof(union pl_message) + 64)

struct input {
	size_t len;
	uint8_t n_fds;
	_Alignas(union pl_message) uint8_t packet[LARGE];
};

static const struct {
	enum pl_type type;
	uint8_t n_fds;
} kinds[] = {
#define X(name, number, type, fds) {number, fds},
	PL_MESSAGES(X)
#undef X
};

#define KINDS (sizeof kinds / sizeof *kinds)

static void good(struct input *in, size_t kind)
{
	union pl_message m;

	pl_message_init(&m, kinds[kind].type);
	in->len = m.head.size;
	in->n_fds = kinds[kind].n_fds;
	memcpy(in->packet, &m, in->len);
}

static uint32_t roll(uint64_t *seed)
{
	*seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
	return *seed >> 33;
}

/* All of the body, so that its strings have no end. */
static void fill(struct input *in, uint64_t *seed)
{
	uint8_t with = roll(seed) % 2 ? 0xff : roll(seed);

	if (in->len > sizeof(struct pl_head))
		memset(in->packet + sizeof(struct pl_head), with, in->len - sizeof(struct pl_head));
}

static void fault(struct input *in, uint64_t *seed)
{
	struct pl_head h;

	memcpy(&h, in->packet, sizeof h);
	switch (roll(seed) % 8) {
	case 0:
		in->packet[roll(seed) % LARGE] = roll(seed);
		break;
	case 1: /* another length, and the head says so or not */
		in->len = roll(seed) % LARGE;
		h.size = roll(seed) % 2 ? in->len : h.size;
		break;
	case 2:
		h.type = roll(seed) % 80;
		break;
	case 3:
		h.flags = roll(seed);
		break;
	case 4:
		h.size = roll(seed) << roll(seed) % 8;
		break;
	case 5:
		in->n_fds = roll(seed) % 6;
		break;
	case 6:
		fill(in, seed);
		break;
	case 7: /* one descriptor too many, or all there can be */
		in->n_fds = roll(seed) % 64 ? in->n_fds + 1 : 253;
		break;
	}
	memcpy(in->packet, &h, sizeof h);
}

static void try(const struct input *in)
{
	uint8_t data[1 + LARGE];

	data[0] = in->n_fds;
	memcpy(data + 1, in->packet, in->len);
	LLVMFuzzerTestOneInput(data, 1 + in->len);
}

static uint64_t setting(const char *name, uint64_t otherwise)
{
	const char *value = getenv(name);

	return value && *value ? strtoull(value, NULL, 0) : otherwise;
}

static void any_bytes_are_a_message_or_none(void **state)
{
	uint64_t seed = setting("PINLEASE_TEST_SEED", 1), n = setting("PINLEASE_TEST_OPS", INPUTS);
	struct input in = {0};

	for (size_t kind = 0; kind < KINDS; kind++) {
		good(&in, kind);
		try(&in);
	}
	for (uint64_t i = 0; i < n; i++) {
		good(&in, roll(&seed) % KINDS);
		for (unsigned faults = roll(&seed) % 4; faults; faults--)
			fault(&in, &seed);
		try(&in);
	}
}

static void every_good_message_is_one(void **state)
{
	struct input in = {0};
	const char *why;

	for (size_t kind = 0; kind < KINDS; kind++) {
		good(&in, kind);
		assert_int_equal(pl_message_check(in.packet, in.len, in.n_fds, &why), 0);
	}
}

static int write_corpus(const char *dir)
{
	struct input in = {0};
	char path[4096];
	FILE *f;

	for (size_t kind = 0; kind < KINDS; kind++) {
		good(&in, kind);
		snprintf(path, sizeof path, "%s/%s", dir, pl_message_name(kinds[kind].type));
		f = fopen(path, "we");
		if (!f || fwrite(&in.n_fds, 1, 1, f) != 1 || fwrite(in.packet, in.len, 1, f) != 1 ||
		    fclose(f)) {
			perror(path);
			return 1;
		}
	}
	return 0;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_good_message_is_one),
		cmocka_unit_test(any_bytes_are_a_message_or_none),
	};

	if (argc == 3 && !strcmp(argv[1], "--corpus"))
		return write_corpus(argv[2]);
	return cmocka_run_group_tests_name("wire", tests, NULL, NULL);
}
