/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where the files are, and that none stays behind. There is one file at a time, in a directory of its
 * own; `left` names both while they exist. Signals are blocked while it changes, so their handler finds
 * either nothing to remove or all of it.
 */
#include "demo.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "command.h"

static struct {
	volatile sig_atomic_t used;
	char file[256], dir[256];
} left;

/* Async-signal-safe. */
void demo_remove_files(void)
{
	if (!left.used)
		return;
	unlink(left.file);
	rmdir(left.dir);
	left.used = 0;
}

static void on_signal(int sig)
{
	static const char stuck[] = "\npinlease demo: stuck for a minute, given up\n";

	demo_remove_files();
	if (sig == SIGALRM) {
		if (write(STDERR_FILENO, stuck, sizeof(stuck) - 1) < 0)
			_exit(EXIT_CANT_START);
		_exit(EXIT_FAILED_PROMISE);
	}
	signal(sig, SIG_DFL);
	raise(sig);
}

static void catch_signals(void)
{
	static const int signals[] = {SIGINT,  SIGTERM, SIGHUP,	 SIGQUIT,
				      SIGALRM, SIGBUS,	SIGSEGV, SIGABRT};
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESETHAND | SA_NODEFER};

	for (size_t i = 0; i < sizeof(signals) / sizeof(*signals); i++)
		sigaction(signals[i], &action, NULL);
	atexit(demo_remove_files);
}

/* ---------------------------------------------------------------------------------- directories -- */

static bool suits(enum demo_fs fs, const char *name)
{
	return fs == ON_TMPFS ? !strcmp(name, "tmpfs")
			      : !strcmp(name, "ext4") || !strcmp(name, "XFS") || !strcmp(name, "btrfs");
}

static bool take_dir(struct demo_env *env, enum demo_fs fs, const char *dir)
{
	const char *name = dir && *dir ? tool_fs_name(dir) : NULL;

	if (!name || !suits(fs, name) || tool_cant_use(dir))
		return false;
	env->dir[fs] = dir;
	env->fs_name[fs] = name;
	return true;
}

static int no_dir(enum demo_fs fs, const char *asked)
{
	const char *name = tool_fs_name(asked), *want = fs == ON_TMPFS ? "tmpfs" : "ext4, XFS or btrfs";

	int err = tool_cant_use(asked);

	if (err || !name)
		fprintf(stderr, "pinlease demo: can't make files in \"%s\": %s\n", asked,
			strerror(err ? -err : errno));
	else
		fprintf(stderr, "pinlease demo: %s is on %s; a directory on %s is needed\n", asked, name,
			want);
	return -EINVAL;
}

int demo_find_dirs(struct demo_env *env, const char *tmpfs, const char *disk)
{
	const char *const candidates[NR_FS][5] = {
		[ON_TMPFS] = {"/dev/shm", getenv("XDG_RUNTIME_DIR"), "/run", "/tmp", "."},
		[ON_DISK] = {getenv("TMPDIR"), "/var/tmp", "/tmp", getenv("HOME"), "."},
	};
	const char *const asked[NR_FS] = {tmpfs, disk};

	for (int fs = 0; fs < NR_FS; fs++) {
		env->fs_name[fs] = fs == ON_TMPFS ? "tmpfs" : "ext4";
		if (asked[fs] && !take_dir(env, fs, asked[fs]))
			return no_dir(fs, asked[fs]);
		for (int i = 0; i < 5 && !env->dir[fs]; i++)
			take_dir(env, fs, candidates[fs][i]);
		if (!env->dir[fs])
			snprintf(env->why[fs], sizeof(env->why[fs]),
				 "No directory on %s to write in was found; name one by %s",
				 fs == ON_TMPFS ? "tmpfs" : "ext4, XFS or btrfs",
				 fs == ON_TMPFS ? "--tmpfs" : "--dir");
	}
	catch_signals();
	return 0;
}

/* ---------------------------------------------------------------------------------------- files -- */

static int make_dir(const char *dir)
{
	int n = snprintf(left.dir, sizeof(left.dir), "%s/pinlease-demo-XXXXXX", dir), err = 0;
	sigset_t all, old;

	if (n >= (int)sizeof(left.dir) - 8)
		return -ENAMETOOLONG;
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &old);
	if (mkdtemp(left.dir)) {
		snprintf(left.file, sizeof(left.file), "%.240s/data", left.dir);
		left.used = 1;
	} else {
		err = -errno;
	}
	sigprocmask(SIG_SETMASK, &old, NULL);
	return err;
}

static int fill(int fd)
{
	char page[DEMO_PAGE];

	memset(page, DEMO_OLD, sizeof(page));
	for (unsigned i = 0; i < DEMO_PAGES; i++)
		if (pwrite(fd, page, sizeof(page), (off_t)i * DEMO_PAGE) != (ssize_t)sizeof(page))
			return errno ? -errno : -ENOSPC;
	return 0;
}

/* A file of DEMO_SIZE with the old content, mapped readable and writable. */
int demo_file_make(const char *dir, bool shared, struct demo_file *file)
{
	int err = make_dir(dir);

	*file = (struct demo_file){.fd = -1};
	if (err)
		return err;
	memcpy(file->path, left.file, sizeof(file->path));
	file->fd = open(file->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	err = file->fd < 0 ? -errno : fill(file->fd);
	if (!err) {
		file->map = mmap(NULL, DEMO_SIZE, PROT_READ | PROT_WRITE,
				 shared ? MAP_SHARED : MAP_PRIVATE, file->fd, 0);
		if (file->map == MAP_FAILED) {
			file->map = NULL;
			err = -errno;
		}
	}
	if (err)
		demo_file_drop(file);
	return err;
}

void demo_file_drop(struct demo_file *file)
{
	if (file->map)
		munmap(file->map, DEMO_SIZE);
	if (file->fd >= 0)
		close(file->fd);
	*file = (struct demo_file){.fd = -1};
	demo_remove_files();
}
