/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "arbiter.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define DESCRIPTORS 65536

const char *arbiter_missing(const struct bench *b)
{
	struct floor_monitor *f;
	const char *why = NULL;

	if (!getenv("PINLEASED") || access(getenv("PINLEASED"), X_OK))
		return "no pinleased; $PINLEASED says where it is";
	if (geteuid())
		return "pinleased holds files only as root";
	f = floor_fanotify(b, &why);
	if (f)
		floor_end(f);
	return why;
}

/* One per file with leases, here and in pinleased. */
static void raise_descriptors(void)
{
	struct rlimit r = {DESCRIPTORS, DESCRIPTORS};

	if (setrlimit(RLIMIT_NOFILE, &r) && !getrlimit(RLIMIT_NOFILE, &r)) {
		r.rlim_cur = r.rlim_max;
		setrlimit(RLIMIT_NOFILE, &r);
	}
}

static void order(struct arbiter *a, char what)
{
	struct keeper_reply reply;

	if (write(a->to, &what, 1) != 1 || read(a->to, &reply, sizeof reply) != sizeof reply)
		fail("pinleased could not be started; its log is in %s", a->dir);
	a->pid = reply.pid;
	a->began = reply.began;
	a->ready = reply.ready;
	a->resumed = reply.resumed;
}

/* No user's share is what is measured. */
void arbiter_start(const struct bench *b, struct arbiter *a, const char *ceiling_ms)
{
	const char *argv[] = {getenv("PINLEASED"), "--ceiling",	 ceiling_ms, "--max-notices",
			      "1000000000",	   "--max-hold", "86400000", "--max-leases",
			      "1000000",	   NULL};
	char path[160];
	int ends[2];

	raise_descriptors();
	snprintf(a->dir, sizeof a->dir, "%.90s/arbiter-XXXXXX", b->dir);
	if (!mkdtemp(a->dir))
		fail("%s: %s", a->dir, strerror(errno));
	must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), "socketpair");
	fflush(stdout);
	a->keeper = must(fork(), "fork");
	if (!a->keeper) {
		pin_to(b->lib_cpu);
		must(dup2(ends[1], STDERR_FILENO + 1), "dup2");
		close_range(STDERR_FILENO + 2, ~0u,
			    0); /* nobody's end of file waits for this process's */
		keeper_live(a->dir, argv, STDERR_FILENO + 1);
	}
	close(ends[1]);
	a->to = ends[0];
	order(a, 'L');
	snprintf(path, sizeof path, "%s/socket", a->dir);
	setenv("PINLEASE_SOCKET", path, 1);
}

void arbiter_restart(struct arbiter *a)
{
	order(a, 'K');
}

void arbiter_stop(struct arbiter *a)
{
	static const char *const left[] = {"socket", "ready", "log"};
	char path[160];
	int status;

	close(a->to);
	waitpid(a->keeper, &status, 0);
	if (status)
		fail("pinleased did not end well");
	for (size_t i = 0; i < sizeof left / sizeof *left; i++) {
		snprintf(path, sizeof path, "%s/%s", a->dir, left[i]);
		unlink(path);
	}
	rmdir(a->dir);
	setenv("PINLEASE_SOCKET", NOBODY, 1);
}

void arbiter_rig(const struct bench *b, struct rig *r, bool answers)
{
	char sources[2048];

	rig_open(b, r, answers);
	pinl_sources(r->ctx, sources, sizeof sources);
	if (!strstr(sources, "arbiter: running"))
		fail("no connection to pinleased:\n%s", sources);
}

uint64_t own_memory(pid_t pid)
{
	char path[64], line[256];
	uint64_t all = 0, kb;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/smaps_rollup", pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "Pss_Anon: %lu", &kb) == 1 || sscanf(line, "Pss_Shmem: %lu", &kb) == 1)
			all += kb * 1024;
	if (f)
		fclose(f);
	return all;
}
