/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * From a blocked system call to the change of the file: pl_file_decode() on tables. The file has 8 pages
 * and 100 bytes; offsets are in pages where a column says p.
 */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <cmocka.h>

#include "source/files_op.h"

#define P	 4096ull
#define SIZE	 (8 * P + 100)
#define HARMLESS PINL_OP_NR
#define TRUNC	 PINL_OP_TRUNCATE
#define PUNCHED	 PINL_OP_PUNCH
#define ZEROED	 PINL_OP_ZERO
#define MOVED	 PINL_OP_COLLAPSE
#define INSERTED PINL_OP_INSERT
#define REMOVED	 PINL_OP_REMOVE
#define END	 PL_FILE_END

/* Where the event's range comes from: none, the kernel's (rounded out to pages), an exact empty one. */
enum event { OPEN, AT_0, MID, EMPTY, AT_END, NO_RANGE };

struct row {
	const char *name;
	long nr;
	unsigned long args[6];
	enum event event;
	enum pinl_op op;
	uint64_t start, end;
	int64_t new_size; /* 0: none known */
};

static void make_event(enum event e, struct pl_file_event *ev)
{
	*ev = (struct pl_file_event){.size = SIZE, .page = P, .keeps_edges = true};
	ev->open = e == OPEN;
	ev->ranged = e != OPEN && e != NO_RANGE;
	ev->offset = e == AT_0 ? 0 : e == AT_END ? 9 * P : 2 * P;
	ev->count = e == EMPTY ? 0 : P;
}

static void check_row(const struct row *r, const struct pl_file_event *ev)
{
	struct pl_syscall sc = {.nr = r->nr};
	struct pl_file_op op = {.op = HARMLESS};
	bool found;

	memcpy(sc.args, r->args, sizeof sc.args);
	found = pl_file_decode(r->nr < 0 ? NULL : &sc, ev, &op);
	if (found != (r->op != HARMLESS))
		fail_msg("%s: %s", r->name, found ? "taken for a change" : "not seen as a change");
	if (!found)
		return;
	if (op.op != r->op || op.start != r->start || op.end != r->end)
		fail_msg("%s: op %d [%#llx, %#llx), not op %d [%#llx, %#llx)", r->name, op.op,
			 (unsigned long long)op.start, (unsigned long long)op.end, r->op,
			 (unsigned long long)r->start, (unsigned long long)r->end);
	if (op.new_size != (r->new_size ? r->new_size - 1 : -1))
		fail_msg("%s: new size %lld", r->name, (long long)op.new_size);
}

static void check_rows(const struct row *rows, size_t n)
{
	struct pl_file_event ev;

	for (size_t i = 0; i < n; i++) {
		make_event(rows[i].event, &ev);
		check_row(&rows[i], &ev);
	}
}

#define CHECK(rows) check_rows(rows, sizeof(rows) / sizeof *(rows))
#define TO(size)    ((int64_t)(size) + 1)

static void truncation(void **state)
{
	/* clang-format off */
	static const struct row rows[] = {
		{"truncate to 0", SYS_truncate, {0, 0}, AT_0, TRUNC, 0, END, TO(0)},
		{"ftruncate to 2p", SYS_ftruncate, {3, 2 * P}, EMPTY, TRUNC, 2 * P, END, TO(2 * P)},
		{"the page of the new size stays", SYS_ftruncate, {3, 2 * P + 1},
		 MID, TRUNC, 3 * P, END, TO(2 * P + 1)},
		{"one byte less", SYS_ftruncate, {3, SIZE - 1}, MID, TRUNC, 9 * P, END, TO(SIZE - 1)},
		{"to the last page's start", SYS_ftruncate, {3, 8 * P},
		 MID, TRUNC, 8 * P, END, TO(8 * P)},
		{"to the same size", SYS_ftruncate, {3, SIZE}, MID, TRUNC, 9 * P, END},
		{"to more", SYS_truncate, {0, 100 * P}, MID, TRUNC, 100 * P, END},
		{"to the most", SYS_truncate, {0, INT64_MAX}, MID, HARMLESS},
		{"to less than nothing", SYS_ftruncate, {3, -1ul}, MID, HARMLESS},
	};
	/* clang-format on */

	CHECK(rows);
}

static void opening(void **state)
{
	/* clang-format off */
	static const struct row rows[] = {
		{"openat O_TRUNC", SYS_openat, {0, 0, O_RDWR | O_TRUNC}, OPEN, TRUNC, 0, END, TO(0)},
		{"openat O_RDONLY|O_TRUNC", SYS_openat, {0, 0, O_TRUNC}, OPEN, TRUNC, 0, END, TO(0)},
		{"openat", SYS_openat, {0, 0, O_RDWR}, OPEN, HARMLESS},
		{"openat O_PATH|O_TRUNC", SYS_openat, {0, 0, O_PATH | O_TRUNC}, OPEN, HARMLESS},
		{"openat O_TRUNC, not OPEN_PERM", SYS_openat, {0, 0, O_RDWR | O_TRUNC},
		 AT_0, TRUNC, 0, END, TO(0)},
		{"open_by_handle_at O_TRUNC", SYS_open_by_handle_at, {0, 0, O_RDWR | O_TRUNC},
		 OPEN, TRUNC, 0, END, TO(0)},
		{"open_by_handle_at", SYS_open_by_handle_at, {0, 0, O_RDWR}, OPEN, HARMLESS},
#ifdef SYS_open
		{"open O_TRUNC", SYS_open, {0, O_WRONLY | O_TRUNC}, OPEN, TRUNC, 0, END, TO(0)},
		{"open", SYS_open, {0, O_WRONLY}, OPEN, HARMLESS},
		{"creat", SYS_creat, {0, 0600}, OPEN, TRUNC, 0, END, TO(0)},
#endif
		{"openat2 whose flags could not be read", SYS_openat2, {0}, OPEN, TRUNC, 0, END},
		{"execve", SYS_execve, {0}, OPEN, HARMLESS},
		{"execveat", SYS_execveat, {0}, OPEN, HARMLESS},
		{"io_uring_enter itself opens", SYS_io_uring_enter, {0}, OPEN, HARMLESS},
		{"a call that doesn't open", SYS_read, {0}, OPEN, TRUNC, 0, END},
		{"fault in a core dump", SYS_getpid, {0}, OPEN, TRUNC, 0, END},
		{"nobody knows", -1, {0}, OPEN, TRUNC, 0, END},
	};
	/* clang-format on */

	CHECK(rows);
}

#define FALLOC(mode, at, len)                                                                           \
	SYS_fallocate,                                                                                  \
	{                                                                                               \
		3, (mode), (at), (len)                                                                  \
	}
#define PUNCH (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)

static void fallocating(void **state)
{
	/* clang-format off */
	static const struct row rows[] = {
		{"allocate", FALLOC(0, 0, SIZE), MID, HARMLESS},
		{"keep size", FALLOC(FALLOC_FL_KEEP_SIZE, 0, SIZE), MID, HARMLESS},
		{"unshare", FALLOC(FALLOC_FL_UNSHARE_RANGE, 0, SIZE), MID, HARMLESS},
		{"punch whole pages", FALLOC(PUNCH, P, 2 * P), MID, PUNCHED, P, 3 * P},
		{"punch edges stay", FALLOC(PUNCH, P + 1, 2 * P), MID, PUNCHED, 2 * P, 3 * P},
		{"punch inside one page", FALLOC(PUNCH, P + 1, P - 2), MID, HARMLESS},
		{"punch two halves", FALLOC(PUNCH, P + 1, P), MID, HARMLESS},
		{"punch the last page", FALLOC(PUNCH, 8 * P, 100), MID, PUNCHED, 8 * P, 9 * P},
		{"punch to the end of everything", FALLOC(PUNCH, P, INT64_MAX - P),
		 MID, PUNCHED, P, END},
		{"punch with an overflow", FALLOC(PUNCH, P, -1ul), MID, PUNCHED, P, END},
		{"zero", FALLOC(FALLOC_FL_ZERO_RANGE, P, P), MID, ZEROED, P, 2 * P},
		{"zero keep size", FALLOC(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, P, P),
		 MID, ZEROED, P, 2 * P},
		{"write zeroes", FALLOC(0x80, P, P), MID, ZEROED, P, 2 * P},
		{"collapse", FALLOC(FALLOC_FL_COLLAPSE_RANGE, 2 * P, P), MID, MOVED, 2 * P, END},
		{"collapse part of a page", FALLOC(FALLOC_FL_COLLAPSE_RANGE, 2 * P + 1024, 1024),
		 MID,
		 MOVED, 2 * P, END},
		{"insert", FALLOC(FALLOC_FL_INSERT_RANGE, 2 * P, P), MID, INSERTED, 2 * P, END},
		{"collapse beyond the end", FALLOC(FALLOC_FL_COLLAPSE_RANGE, 9 * P, P),
		 AT_END, MOVED, 9 * P, END},
		{"a mode of the future", FALLOC(0x400, 2 * P, P), MID, PUNCHED, 2 * P, END},
	};
	/* clang-format on */

	CHECK(rows);
}

/* XFS drops the pages at the edges as well, and the one before what it moves. */
static void edges_elsewhere(void **state)
{
	/* clang-format off */
	static const struct row rows[] = {
		{"punch", FALLOC(PUNCH, 2 * P + 1, P), MID, PUNCHED, 2 * P, 4 * P},
		{"punch in one page", FALLOC(PUNCH, 2 * P + 1, 1), MID, PUNCHED, 2 * P, 3 * P},
		{"collapse", FALLOC(FALLOC_FL_COLLAPSE_RANGE, 2 * P, P), MID, MOVED, P, END},
		{"insert at 0", FALLOC(FALLOC_FL_INSERT_RANGE, 0, P), MID, INSERTED, 0, END},
		{"truncate", SYS_ftruncate, {3, 2 * P + 1}, MID, TRUNC, 3 * P, END, TO(2 * P + 1)},
	};
	/* clang-format on */
	struct pl_file_event ev;

	for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
		make_event(rows[i].event, &ev);
		ev.keeps_edges = false;
		check_row(&rows[i], &ev);
	}
}

static void other_calls(void **state)
{
	/* clang-format off */
	static const struct row rows[] = {
		{"madvise REMOVE", SYS_madvise, {0, P, MADV_REMOVE}, MID, REMOVED, 2 * P, 3 * P},
		{"madvise WILLNEED", SYS_madvise, {0, P, MADV_WILLNEED}, MID, HARMLESS},
		{"FICLONE into", SYS_ioctl, {3, FICLONE, 4}, EMPTY, ZEROED, 2 * P, END},
		{"FICLONERANGE into", SYS_ioctl, {3, FICLONERANGE, 0}, MID, ZEROED, 2 * P, 3 * P},
		{"FIDEDUPERANGE", SYS_ioctl, {3, FIDEDUPERANGE, 0}, MID, ZEROED, 2 * P, 3 * P},
		{"XFS_IOC_UNRESVSP64", SYS_ioctl, {3, 0x4030582b, 0}, MID, PUNCHED, 2 * P, 3 * P},
		{"XFS_IOC_ZERO_RANGE", SYS_ioctl, {3, 0x40305839, 0}, MID, ZEROED, 2 * P, 3 * P},
		{"XFS_IOC_RESVSP64", SYS_ioctl, {3, 0x4030582a, 0}, MID, HARMLESS},
		{"an ioctl of the future", SYS_ioctl, {3, 12345, 0}, MID, PUNCHED, 2 * P, END},
		{"copy_file_range, ext4 writes", SYS_copy_file_range, {3, 0, 4, 0, P}, MID, HARMLESS},
	};
	/* clang-format on */

	CHECK(rows);
}

static void sources_of_clones(void **state)
{
	struct row clone = {"FICLONE from", SYS_ioctl, {3, FICLONE, 4}, EMPTY, HARMLESS};
	struct row copy = {"copy into", SYS_copy_file_range, {3, 0, 4, 0, P}, MID, ZEROED, 2 * P, 3 * P};
	struct pl_syscall sc = {.nr = SYS_ioctl, .args = {3, FICLONE, 4}};
	struct pl_file_event ev;

	make_event(EMPTY, &ev);
	ev.not_target = true;
	check_row(&clone, &ev);
	make_event(MID, &ev);
	ev.clones = true;
	check_row(&copy, &ev);
	ev.not_target = true;
	copy.op = HARMLESS;
	check_row(&copy, &ev);

	assert_int_equal(pl_file_target_fd(&sc), 3);
	sc.args[1] = FIDEDUPERANGE;
	assert_int_equal(pl_file_target_fd(&sc), -1);
	sc = (struct pl_syscall){.nr = SYS_copy_file_range, .args = {3, 0, 4, 0, P}};
	assert_int_equal(pl_file_target_fd(&sc), 4);
	sc.nr = SYS_read;
	assert_int_equal(pl_file_target_fd(&sc), -1);
}

static void unknown(void **state)
{
	/* clang-format off */
	static const struct row rows[] = {
		{"worker at 0", -1, {0}, AT_0, PUNCHED, 0, END},
		{"worker in the middle", -1, {0}, MID, PUNCHED, 2 * P, END},
		{"worker truncates to whole pages", -1, {0}, EMPTY, TRUNC, 2 * P, END, TO(2 * P)},
		{"worker appends", -1, {0}, AT_END, HARMLESS},
		{"no range", -1, {0}, NO_RANGE, TRUNC, 0, END},
		{"process_madvise", SYS_process_madvise, {0}, MID, PUNCHED, 2 * P, END},
		{"a call of the future", 100000, {0}, MID, PUNCHED, 2 * P, END},
	};
	/* clang-format on */

	CHECK(rows);
}

/* Every number there is: what leaves pages alone is exactly this list, whatever the arguments are. */
static void harmless_by_number(void **state)
{
	/* clang-format off */
	static const long list[] = {
		SYS_read, SYS_pread64, SYS_readv, SYS_preadv, SYS_preadv2,
		SYS_write, SYS_pwrite64, SYS_writev, SYS_pwritev, SYS_pwritev2,
		SYS_mmap, SYS_mremap, SYS_sendfile, SYS_splice, SYS_readahead, SYS_fadvise64,
		SYS_io_submit, SYS_io_uring_enter, SYS_execve, SYS_execveat, SYS_finit_module,
		SYS_kexec_file_load,
		/* by their arguments, which are 0 here */
		SYS_openat, SYS_open_by_handle_at, SYS_fallocate, SYS_madvise, SYS_copy_file_range,
#ifdef SYS_open
		SYS_open,
#endif
	};
	/* clang-format on */
	struct pl_file_event ev;
	struct pl_file_op op;

	make_event(MID, &ev);
	for (long nr = 0; nr < 1024; nr++) {
		struct pl_syscall sc = {.nr = nr};
		bool listed = false;

		for (size_t i = 0; i < sizeof list / sizeof *list; i++)
			listed |= list[i] == nr;
		if (pl_file_decode(&sc, &ev, &op) == listed)
			fail_msg("system call %ld is %s", nr,
				 listed ? "taken for a change" : "let through");
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(truncation),  cmocka_unit_test(opening),
		cmocka_unit_test(fallocating), cmocka_unit_test(edges_elsewhere),
		cmocka_unit_test(other_calls), cmocka_unit_test(sources_of_clones),
		cmocka_unit_test(unknown),     cmocka_unit_test(harmless_by_number),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
