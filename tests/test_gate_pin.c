/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What pinleased leaves pinned and what it sweeps, without programs: on a BPF file system of its own, in
 * a mount namespace of its own. So it needs root, and no trampolines.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <bpf/bpf.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include "check.h"
#include "daemon/gate_load.h"
#include "gate_rig.h"
#include "os/clock.h"

#define HOUR_NS 3600000000000ull

static char where[64], directory[96], elsewhere[96];

static void need_file_system(void)
{
	if (*where)
		return;
	print_message("skip: root, and a BPF file system that can be mounted\n");
	skip();
}

static int mount_one(void **state)
{
	char dir[] = "/var/tmp/pinlease-pins.XXXXXX";

	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) || !mkdtemp(dir))
		return 0;
	if (mount("bpf", dir, "bpf", 0, "mode=0700")) {
		rmdir(dir);
		return 0;
	}
	strcpy(where, dir);
	snprintf(directory, sizeof directory, "%s/pins", where);
	strcpy(elsewhere, "/var/tmp/pinlease-else.XXXXXX");
	return !mkdtemp(elsewhere);
}

static int unmount(void **state)
{
	char file[128];

	if (!*where)
		return 0;
	umount2(where, MNT_DETACH);
	rmdir(where);
	snprintf(file, sizeof file, "%s/file", elsewhere);
	unlink(file);
	return rmdir(elsewhere);
}

/* 0 or -errno */
static int pin_map(const char *folder, unsigned size, uint64_t until_ns)
{
	int map = bpf_map_create(BPF_MAP_TYPE_ARRAY, "state", sizeof(__u32), size, 1, NULL), err;
	char *value = calloc(1, size), path[512];
	__u32 zero = 0;

	if (map < 0)
		return map;
	memcpy(value, &until_ns, sizeof until_ns);
	snprintf(path, sizeof path, "%s/state", folder);
	err = bpf_map_update_elem(map, &zero, value, 0);
	if (!err)
		err = bpf_obj_pin(map, path);
	close(map);
	free(value);
	return err;
}

static void begin(char *own, size_t len, uint64_t until_ns)
{
	assert_ok(gate_pin_begin(directory, own, len));
	assert_int_equal(pin_map(own, sizeof(struct gate_state), until_ns), 0);
}

/* A process with something pinned, that lives till it is killed, or has ended. */
static pid_t somebody(uint64_t until_ns, bool lives)
{
	char own[256], c;
	int ready[2];
	pid_t pid;

	assert_int_equal(pipe(ready), 0);
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (gate_pin_begin(directory, own, sizeof own) ||
		    pin_map(own, sizeof(struct gate_state), until_ns) || write(ready[1], "x", 1) != 1)
			_exit(1);
		if (lives)
			pause();
		_exit(0);
	}
	close(ready[1]);
	assert_int_equal(read(ready[0], &c, 1), 1);
	close(ready[0]);
	if (!lives)
		waitpid(pid, NULL, 0);
	return pid;
}

static void the_dead_end_in_time(void **state)
{
	need_file_system();
	somebody(pl_clock_ns() + HOUR_NS, false);
	assert_int_equal(gate_take_over(directory, NULL, UINT64_MAX), 1);
	assert_int_equal(gate_take_over(directory, NULL, pl_clock_ns() + HOUR_NS / 2), 1);
	assert_int_equal(gate_entries(directory), 1);
	assert_int_equal(gate_take_over(directory, NULL, 0), 0);
	assert_int_equal(gate_entries(directory), 0);
}

static void the_living_are_left_alone(void **state)
{
	pid_t pid;

	need_file_system();
	pid = somebody(pl_clock_ns() + HOUR_NS, true);
	assert_int_equal(gate_take_over(directory, NULL, 0), 1);
	kill(pid, SIGKILL);
	assert_int_equal(gate_take_over(directory, NULL, 0), 1); /* it is somebody's child still */
	waitpid(pid, NULL, 0);
	assert_int_equal(gate_take_over(directory, NULL, 0), 0);
}

/* Its number is another's by now, or it hangs. */
static void what_nobody_renews_goes(void **state)
{
	pid_t pid;

	need_file_system();
	pid = somebody(pl_clock_ns(), true);
	assert_int_equal(gate_take_over(directory, NULL, UINT64_MAX), 0);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

/* In a container each start may have the same number. */
static void another_one_of_our_number_is_dead(void **state)
{
	char before[256], own[256];

	need_file_system();
	begin(before, sizeof before, pl_clock_ns() + HOUR_NS);
	begin(own, sizeof own, pl_clock_ns() + HOUR_NS);
	assert_string_not_equal(before, own);
	assert_int_equal(gate_take_over(directory, own, 0), 0);
	assert_int_equal(access(before, F_OK), -1);
	assert_int_equal(gate_entries(own), 1);
	gate_pin_end(own);
	assert_int_equal(access(directory, F_OK), -1);
}

static void one_pin_goes_alone(void **state)
{
	char own[256];

	need_file_system();
	begin(own, sizeof own, pl_clock_ns() + HOUR_NS);
	assert_int_equal(pin_map(own, 8, 0), -EEXIST);
	assert_ok(gate_pin_remove(own, "state"));
	assert_ok(gate_pin_remove(own, "state"));
	assert_int_equal(pin_map(own, 8, 0), 0);
	gate_pin_end(own);
}

/* The directory is everybody's, and who leaves it empty removes it. */
static void folders_come_and_go(void **state)
{
	enum { PROCESSES = 4, ROUNDS = 1000 };
	pid_t child[PROCESSES];
	char own[256];
	int status;

	need_file_system();
	for (int i = 0; i < PROCESSES; i++) {
		child[i] = fork();
		for (int n = 0; !child[i] && n < ROUNDS; n++) {
			if (gate_pin_begin(directory, own, sizeof own)) {
				print_message("%s\n", pinl_error());
				_exit(1);
			}
			gate_pin_end(own);
		}
		if (!child[i])
			_exit(0);
	}
	for (int i = 0; i < PROCESSES; i++) {
		assert_int_equal(waitpid(child[i], &status, 0), child[i]);
		assert_int_equal(status, 0);
	}
	assert_int_equal(access(directory, F_OK), -1);
}

static void others_directories_are_refused(void **state)
{
	char own[256], beside[128];

	need_file_system();
	assert_int_equal(mkdir(directory, 0700), 0);
	assert_int_equal(chmod(directory, 0777), 0);
	assert_int_equal(gate_pin_begin(directory, own, sizeof own), -EPERM);
	assert_non_null(strstr(pinl_error(), "no others may write there"));
	assert_int_equal(chmod(directory, 0700), 0);
	assert_int_equal(chown(directory, 1234, 1234), 0);
	assert_int_equal(gate_pin_begin(directory, own, sizeof own), -EPERM);
	assert_int_equal(rmdir(directory), 0);
	assert_int_equal(symlink(elsewhere, directory), 0);
	assert_true(gate_pin_begin(directory, own, sizeof own) < 0);
	assert_int_equal(unlink(directory), 0);
	snprintf(beside, sizeof beside, "%s/pins", elsewhere);
	assert_int_equal(gate_pin_begin(beside, own, sizeof own), -ENODEV);
	assert_non_null(strstr(pinl_error(), "mount -t bpf"));
	assert_int_equal(rmdir(beside), 0);
	snprintf(beside, sizeof beside, "%s/nowhere/pins", elsewhere); /* nor can it be made */
	assert_int_equal(gate_pin_begin(beside, own, sizeof own), -ENODEV);
	assert_non_null(strstr(pinl_error(), "mount -t bpf"));
}

/* What has the name of one that is dead: a link that leads out, nothing whole, another's map. */
static void nothing_is_believed(void **state)
{
	char name[128], file[128];
	pid_t dead;

	need_file_system();
	dead = somebody(0, false);
	assert_int_equal(gate_take_over(directory, NULL, 0), 0);
	snprintf(name, sizeof name, "%s/%d-1", directory, dead);
	snprintf(file, sizeof file, "%s/file", elsewhere);
	close(open(file, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
	assert_int_equal(symlink(elsewhere, name), 0);
	gate_take_over(directory, NULL, 0);
	assert_int_equal(access(file, F_OK), 0);
	assert_int_equal(unlink(name), 0);

	assert_int_equal(mkdir(name, 0700), 0);
	assert_int_equal(gate_take_over(directory, NULL, UINT64_MAX), 0);
	assert_int_equal(mkdir(name, 0700), 0);
	assert_int_equal(pin_map(name, 4096, UINT64_MAX), 0);
	assert_int_equal(gate_take_over(directory, NULL, UINT64_MAX), 0);
	assert_int_equal(rmdir(directory), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_dead_end_in_time),
		cmocka_unit_test(the_living_are_left_alone),
		cmocka_unit_test(what_nobody_renews_goes),
		cmocka_unit_test(another_one_of_our_number_is_dead),
		cmocka_unit_test(one_pin_goes_alone),
		cmocka_unit_test(folders_come_and_go),
		cmocka_unit_test(others_directories_are_refused),
		cmocka_unit_test(nothing_is_believed),
	};

	return cmocka_run_group_tests(tests, mount_one, unmount);
}
