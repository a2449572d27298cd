/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Lines of IOMMU drivers in the kernel's log, as real machines have written them; then the same with
 * faults, for fuzz_faults.c. tests/test_vfio_faults.c has a device that makes them.
 *
 *	test_faults			300000 of them, as a test; PINLEASE_TEST_OPS, PINLEASE_TEST_SEED
 *	test_faults --corpus DIR	the good ones, a file each, for libFuzzer to begin with
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz_faults.h"
#include "source/faults.h"

#define INPUTS 300000
#define LARGE  512

static const struct {
	const char *record;
	struct pl_fault fault;
} good[] = {
	/* Linux 7.2 (the vfio job) */
	{"3,512,12414792,-;DMAR: [DMA Write NO_PASID] Request device [0000:03:00.0] fault addr 0x100000 "
	 "[fault reason 0x05] PTE Write access is not set\n",
	 {{true, 0, 3, 0, 0}, 0x100000, true}},
	/* Linux 6.12, 6.1 (the same) */
	{"3,498,33325944,-,caller=T0;DMAR: [DMA Write NO_PASID] Request device [00:08.0] fault addr "
	 "0x104000 [fault reason 0x05] PTE Write access is not set\n",
	 {{false, 0, 0, 8, 0}, 0x104000, true}},
	{"3,700,9,-;DMAR: [DMA Read NO_PASID] Request device [b3:1f.7] fault addr 0xfffff000 [fault "
	 "reason 0x06] PTE Read access is not set",
	 {{false, 0, 0xb3, 0x1f, 7}, 0xfffff000, false}},
	/* Linux 4.19, 5.10 */
	{"3,1,2,-;DMAR: [DMA Read] Request device [00:02.0] fault addr 7c000000 [fault reason 06] PTE "
	 "Read access is not set\n",
	 {{false, 0, 0, 2, 0}, 0x7c000000, false}},
	{"3,1,2,-;DMAR: [DMA Write] Request device [03:00.0] PASID ffffffff fault addr ffef2000 [fault "
	 "reason 05] PTE Write access is not set\n",
	 {{false, 0, 3, 0, 0}, 0xffef2000, true}},
	{"3,9,9,-;AMD-Vi: Event logged [IO_PAGE_FAULT device=03:00.0 domain=0x0000 "
	 "address=0x00000000fdf80200 flags=0x0020]\n",
	 {{false, 0, 3, 0, 0}, 0xfdf80200, true}},
	{"3,9,9,-;AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:0b:00.1 domain=0x000b "
	 "address=0xf0000000 flags=0x0000]\n",
	 {{true, 0, 0xb, 0, 1}, 0xf0000000, false}},
	{"3,1186,6051338,-;vfio-pci 0000:0b:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0013 "
	 "address=0xfd0f4000 flags=0x0020]\n SUBSYSTEM=pci\n DEVICE=+pci:0000:0b:00.0\n",
	 {{true, 0, 0xb, 0, 0}, 0xfd0f4000, true}},
	{"3,1186,6051338,-;nvme 10000:e1:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x000f "
	 "address=0x0000000000000000 flags=0x0000]\n",
	 {{true, 0x10000, 0xe1, 0, 0}, 0, false}},
};

static const char *const bad[] = {
	"",
	"3",
	"3,1,2,-;",
	/* written by a program: the kernel doesn't let it be facility 0 */
	"11,512,12,-;DMAR: [DMA Write NO_PASID] Request device [00:08.0] fault addr 0x104000 [fault "
	"reason 0x05] x\n",
	"-3,512,12,-;DMAR: [DMA Write NO_PASID] Request device [00:08.0] fault addr 0x104000 [fault "
	"reason 0x05] x\n",
	/* in another line, or quoted in one */
	"3,1,2,-;x DMAR: [DMA Write NO_PASID] Request device [00:08.0] fault addr 0x104000 [fault "
	"reason "
	"0x05]\n",
	"3,1,2,-;x\n DMAR: [DMA Write NO_PASID] Request device [00:08.0] fault addr 0x104000 [fault "
	"reason 0x05]\n",
	"3,1,2,-;a b 0000:0b:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0 address=0x1 "
	"flags=0x0]\n",
	"3,1,2,-;x 0000:0b:00.0: Event logged [IO_PAGE_FAULT device=03:00.0 domain=0x0 address=0x1 "
	"flags=0x0]\n",
	/* of other kinds */
	"3,1,2,-;DMAR: DRHD: handling fault status reg 2\n",
	"3,1,2,-;DMAR: [INTR-REMAP] Request device [00:08.0] fault index 0x10 [fault reason 0x22] x\n",
	"3,1,2,-;DMAR: [DMA Write PASID 0x1] Request device [00:08.0] fault addr 0x104000 [fault reason "
	"0x05]\n",
	"3,1,2,-;DMAR: [DMA Write] Request device [00:08.0] PASID 1 fault addr 104000 [fault reason "
	"05]\n",
	"3,1,2,-;AMD-Vi: Event logged [IO_PAGE_FAULT device=03:00.0 domain=0x0 address=0x1 "
	"flags=0x0008]\n",
	"3,1,2,-;AMD-Vi: Event logged [ILLEGAL_DEV_TABLE_ENTRY device=03:00.0 pasid=0x00000 address=0x1 "
	"flags=0x0]\n",
	/* with impossible numbers */
	"3,1,2,-;DMAR: [DMA Write NO_PASID] Request device [00:20.0] fault addr 0x1 [fault reason "
	"0x5]\n",
	"3,1,2,-;DMAR: [DMA Write NO_PASID] Request device [00:08.8] fault addr 0x1 [fault reason "
	"0x5]\n",
	"3,1,2,-;DMAR: [DMA Write NO_PASID] Request device [100:08.0] fault addr 0x1 [fault reason "
	"0x5]\n",
	"3,1,2,-;DMAR: [DMA Write NO_PASID] Request device [00:08.0] fault addr 0x10000000000000000 "
	"[fault reason 0x5]\n",
	"3,1,2,-;DMAR: [DMA Write NO_PASID] Request device [00:08.0] fault addr  [fault reason 0x5]\n",
};

#define GOOD (sizeof good / sizeof *good)

static void lines_of_real_machines(void **state)
{
	for (size_t i = 0; i < GOOD; i++) {
		const struct pl_fault *want = &good[i].fault;
		struct pl_fault f;

		if (!pl_fault_decode(good[i].record, strlen(good[i].record), &f))
			fail_msg("not seen: %s", good[i].record);
		assert_int_equal(f.iova, want->iova);
		assert_int_equal(f.write, want->write);
		assert_int_equal(f.device.has_domain, want->device.has_domain);
		assert_int_equal(f.device.domain, want->device.domain);
		assert_int_equal(f.device.bus, want->device.bus);
		assert_int_equal(f.device.slot, want->device.slot);
		assert_int_equal(f.device.function, want->device.function);
	}
}

static void other_lines(void **state)
{
	struct pl_fault f;

	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		if (pl_fault_decode(bad[i], strlen(bad[i]), &f))
			fail_msg("taken for a fault: %s", bad[i]);
}

/* Each is one only with its last bracket. */
static void cut_lines(void **state)
{
	struct pl_fault f;

	for (size_t i = 0; i < GOOD; i++) {
		size_t all = strrchr(good[i].record, ']') - good[i].record + 1;

		assert_true(pl_fault_decode(good[i].record, all, &f));
		for (size_t len = 0; len < all; len++)
			assert_false(pl_fault_decode(good[i].record, len, &f));
	}
}

/* ------------------------------------------------------------------------------------- any bytes -- */

static uint32_t roll(uint64_t *seed)
{
	*seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
	return *seed >> 33;
}

/* A byte, of those that mean something or any; or one less, or one more. */
static size_t change(uint8_t *record, size_t len, uint64_t *seed)
{
	static const char words[] = "0123456789abcdefx:.;,[] \n=P";
	size_t at = roll(seed) % (len + 1);
	uint8_t byte = roll(seed) % 4 ? (uint8_t)words[roll(seed) % (sizeof words - 1)] : roll(seed);

	switch (roll(seed) % 4) {
	case 0:
		if (at == len)
			return len;
		memmove(record + at, record + at + 1, len - at - 1);
		return len - 1;
	case 1:
		if (len == LARGE)
			return len;
		memmove(record + at + 1, record + at, len - at);
		record[at] = byte;
		return len + 1;
	default:
		if (at < len)
			record[at] = byte;
		return len;
	}
}

static uint64_t setting(const char *name, uint64_t otherwise)
{
	const char *value = getenv(name);

	return value && *value ? strtoull(value, NULL, 0) : otherwise;
}

static void any_bytes_are_a_fault_or_none(void **state)
{
	uint64_t seed = setting("PINLEASE_TEST_SEED", 1), n = setting("PINLEASE_TEST_OPS", INPUTS);
	uint8_t record[LARGE];

	for (uint64_t i = 0; i < n; i++) {
		const char *from = good[roll(&seed) % GOOD].record;
		size_t len = strlen(from);

		memcpy(record, from, len);
		for (unsigned changes = roll(&seed) % 4; changes; changes--)
			len = change(record, len, &seed);
		LLVMFuzzerTestOneInput(record, len);
	}
}

static int write_corpus(const char *dir)
{
	char path[4096];

	for (size_t i = 0; i < GOOD; i++) {
		FILE *f;

		snprintf(path, sizeof path, "%s/fault-%zu", dir, i);
		f = fopen(path, "we");
		if (!f || fputs(good[i].record, f) < 0 || fclose(f)) {
			perror(path);
			return 1;
		}
	}
	return 0;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(lines_of_real_machines),
		cmocka_unit_test(other_lines),
		cmocka_unit_test(cut_lines),
		cmocka_unit_test(any_bytes_are_a_fault_or_none),
	};

	if (argc == 3 && !strcmp(argv[1], "--corpus"))
		return write_corpus(argv[2]);
	return cmocka_run_group_tests_name("faults", tests, NULL, NULL);
}
