/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The decoder of the kernel's log under any bytes: what it takes for a fault is one, said in other words
 * (regular expressions), and its numbers are possible. An input is a record of /dev/kmsg.
 * By libFuzzer: `make fuzz`; by the generator of test_faults.c: `make check`.
 */
#include "fuzz_faults.h"

#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "source/faults.h"

#define HEX    "(0x)?[0-9a-f]+"
#define DEVICE "((0x)?[0-9a-f]+:)?(0x)?0*[0-9a-f]{1,2}:(0x)?0*[01]?[0-9a-f]\\.(0x)?0*[0-7]"
#define RECORD "^0*[0-7],[^;]*;"
#define INTEL                                                                                           \
	"DMAR: \\[DMA (Read|Write)( NO_PASID)?\\] Request device \\[" DEVICE                            \
	"\\] (PASID (0x)?0*ffffffff )?fault addr " HEX " \\[fault reason " HEX "\\]"
#define AMD                                                                                             \
	"(([^ \n]* " DEVICE ": AMD-Vi: Event logged \\[IO_PAGE_FAULT )|(AMD-Vi: Event logged "          \
	"\\[IO_PAGE_FAULT device=" DEVICE " ))domain=" HEX " address=" HEX " flags=" HEX "\\]"

static void must(bool holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "fuzz_faults: %s\n", what);
	abort();
}

/* A string, for which other bytes than 0 have been put where there are any. */
static bool is_fault(const char *record, size_t len)
{
	static regex_t fault;
	static bool made;
	char *text = malloc(len + 1);
	bool is;

	if (!made)
		must(!regcomp(&fault, RECORD "((" INTEL ")|(" AMD "))", REG_EXTENDED | REG_NOSUB),
		     "regcomp");
	made = true;
	for (size_t i = 0; i < len; i++)
		text[i] = record[i] ? record[i] : '?';
	text[len] = 0;
	is = !regexec(&fault, text, 0, NULL, 0);
	if (!is)
		fprintf(stderr, "%s\n", text);
	free(text);
	return is;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct pl_fault f, before;
	char *copy = malloc(len ? len : 1); /* of that very size: a byte read beyond it is seen */

	memcpy(copy, data, len);
	memset(&f, 0x5a, sizeof f);
	before = f;
	if (pl_fault_decode(copy, len, &f)) {
		must(is_fault(copy, len), "this is no fault");
		must(f.device.bus < 256 && f.device.slot < 32 && f.device.function < 8, "no device");
		must(f.device.has_domain || !f.device.domain, "a domain, and none");
	} else {
		must(!memcmp(&f, &before, sizeof f), "no fault, but an output");
	}
	free(copy);
	return 0;
}
