/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "wait_rig.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

const char *const wait_patient[] = {
	"--gate", WAIT_DIRECTORY, "--gate-keeps", "240000", "--ceiling", "600000", NULL};
const char *const wait_hasty[] = {"--gate", WAIT_DIRECTORY, "--gate-keeps", "240000", "--ceiling", "100",
				  NULL};

struct arbiter wait_arbiter;
struct pinl_ctx *wait_ctx;
struct pinl_device *wait_dev;
bool wait_by_page;

/* ------------------------------------------------------------------------------- pinleased, leases --
 */

void wait_status(char *said, size_t len)
{
	char word[256], command[512];
	size_t n = 1;
	FILE *f;

	snprintf(said, len, " ");
	snprintf(command, sizeof command, "%s status", getenv("PINLEASE_COMMAND"));
	f = popen(command, "re");
	while (f && fscanf(f, "%255s", word) == 1 && n < len) /* lines end anywhere */
		n += snprintf(said + n, len - n, "%s ", word);
	pclose(f);
}

bool wait_others_do(void)
{
	char said[8192];

	wait_status(said, sizeof said);
	wait_by_page = strstr(said, "the thread alone");
	print_message("%s\n", strstr(said, "gate:") ? strstr(said, "gate:") : "no gate");
	return strstr(said, "others wait");
}

int wait_ctx_open(void)
{
	struct pinl_opts opts = {.size = sizeof opts, .ceiling_ms = WAIT_NEVER_MS};

	return pinl_open(&opts, &wait_ctx);
}

void wait_open(const char *const *options)
{
	arbiter_start(&wait_arbiter, options);
	assert_ok(wait_ctx_open());
	assert_ok(pinl_device_open(wait_ctx, "soft", NULL, &wait_dev));
	if (wait_others_do()) {
		if (getenv("PINLEASE_GATE_WAITS"))
			assert_int_equal(wait_by_page, !strcmp(getenv("PINLEASE_GATE_WAITS"), "page"));
		return;
	}
	if (getenv("PINLEASE_GATE_MEANS"))
		fail_msg("nobody waits");
	print_message("skip: BPF programs in front of the kernel's functions\n");
	skip();
}

void wait_close(void)
{
	pinl_close(wait_ctx);
	wait_ctx = NULL;
	arbiter_stop(&wait_arbiter);
	if (gate_entries(WAIT_DIRECTORY))
		fail_msg("there is something left in %s", WAIT_DIRECTORY);
	rmdir(WAIT_DIRECTORY);
}

int wait_teardown(void **state)
{
	if (wait_ctx)
		pinl_close(wait_ctx);
	wait_ctx = NULL;
	wait_arbiter.kept = false;
	return 0;
}

void wait_target(enum gate_place place, struct gate_target *t)
{
	if (gate_target_open(place, t))
		return;
	print_message("skip: a file of the kind %s\n", gate_place_names[place]);
	skip();
}

struct pinl_lease *wait_lease(const struct gate_target *t, unsigned from, unsigned to, unsigned grace_ms)
{
	struct pinl_policy p = {
		.size = sizeof p, .kind = PINL_RECALL, .then = PINL_THEN_FAIL, .grace_ms = grace_ms};
	uintptr_t at = (uintptr_t)t->mem;
	struct pinl_lease *l = NULL;

	assert_ok(pinl_map_range(wait_dev, at + from * t->page, at + to * t->page,
				 PINL_WRITE | PINL_COOPERATIVE, /* for munmap: before Linux 6.7 */
				 &p, NULL, &l));
	return l;
}

/* ---------------------------------------------------------------------------------------- actors -- */

const struct gate_op *wait_op(const char *name)
{
	for (unsigned i = 0; i < gate_n_ops; i++)
		if (!strcmp(gate_ops[i].name, name))
			return &gate_ops[i];
	fail_msg("no operation %s", name);
	return NULL;
}

pid_t wait_begin(const struct gate_op *op, const struct gate_target *t, unsigned page)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	_exit(-op->run(t, page * t->page));
}

char *wait_shown(pid_t pid, const char *file, char *text, size_t len)
{
	char path[64];
	ssize_t n;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? 0 : read(fd, text, len - 1);
	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = 0;
	return text;
}

bool wait_is_at_page(pid_t pid)
{
	char text[4096];

	return strstr(wait_shown(pid, "stack", text, sizeof text), "bpf_task_work");
}

bool wait_is_stopped(pid_t pid)
{
	char text[512], *state = strrchr(wait_shown(pid, "stat", text, sizeof text), ')');

	return state && (state[2] == 'T' || state[2] == 't');
}

bool wait_has_ended(pid_t pid)
{
	siginfo_t info = {0};

	return !waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT) && info.si_pid == pid;
}

void wait_await_stop(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
	if (!WIFSTOPPED(status))
		fail_msg("it doesn't wait: status %#x", status);
}

void wait_await_or_end(pid_t pid)
{
	while (!(wait_by_page ? wait_is_at_page(pid) : wait_is_stopped(pid)) && !wait_has_ended(pid))
		usleep(1000); /* the runner ends what takes too long */
}

void wait_await(pid_t pid)
{
	if (!wait_by_page) {
		wait_await_stop(pid);
		return;
	}
	wait_await_or_end(pid);
	assert_false(wait_is_stopped(pid));
}

int wait_result(pid_t pid)
{
	int status;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return -WEXITSTATUS(status);
}

/* ----------------------------------------------------------------------------------------- the guard --
 */

/* Its child of that name. */
pid_t wait_guard_of(pid_t pinleased)
{
	char path[64], list[512] = "", name[32] = "", *rest = list, *word;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/task/%d/children", pinleased, pinleased);
	f = fopen(path, "re");
	assert_non_null(f);
	assert_non_null(fgets(list, sizeof list, f));
	fclose(f);
	while ((word = strsep(&rest, " "))) {
		snprintf(path, sizeof path, "/proc/%s/comm", word);
		f = *word ? fopen(path, "re") : NULL;
		if (f && fgets(name, sizeof name, f) && !strcmp(name, "pinleased-guard\n")) {
			fclose(f);
			return atoi(word);
		}
		if (f)
			fclose(f);
	}
	return 0;
}
