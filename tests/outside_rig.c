/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "outside_rig.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "accounted.h"
#include "check.h"
#include "os/clock.h"

uint64_t in_ms(unsigned ms)
{
	return pl_clock_ns() + ms * 1000000ull;
}

void pause_ms(unsigned ms)
{
	struct timespec t = {ms / 1000, ms % 1000 * 1000000};

	nanosleep(&t, NULL);
}

static int count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

int64_t vmpin(pid_t pid)
{
	char path[64], line[256];
	long kib = -4;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "VmPin: %ld", &kib) == 1)
			break;
	if (f)
		fclose(f);
	return kib / 4;
}

void assert_pins(const struct holder *h, int64_t pages)
{
	uint64_t until = in_ms(PATIENCE);

	while (vmpin(h->pid) != pages && pl_clock_ns() < until)
		pause_ms(1);
	assert_int_equal(vmpin(h->pid), pages);
}

/* At half of the time what is in flight is cancelled, so it isn't all given at once. */
int rig_drained(struct holder *h, unsigned flags)
{
	uint64_t until = in_ms(PATIENCE);
	int err;

	do
		err = pl_outside_drained(h->o, &h->buf, flags, in_ms(2000));
	while (err == -ETIMEDOUT && pl_clock_ns() < until);
	return err;
}

void wait_until_in(pid_t pid, const char *function)
{
	char path[32], wchan[64] = "";
	ssize_t n;
	int fd;

	snprintf(path, sizeof path, "/proc/%d/wchan", pid);
	while (!strstr(wchan, function)) {
		pause_ms(1);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		n = read(fd, wchan, sizeof wchan - 1);
		wchan[n > 0 ? n : 0] = 0;
		close(fd);
	}
}

/* -------------------------------------------------------------------------------- the holder -- */

static int reg(int ring, unsigned op, const void *arg, unsigned n)
{
	return syscall(SYS_io_uring_register, ring, op, arg, n) < 0 ? -errno : 0;
}

static void need(struct ctl *c, int ok)
{
	if (!ok) {
		c->error = errno ? errno : EINVAL;
		c->ready = 1;
		_exit(1);
	}
}

static char *holder_memory(struct holder *h)
{
	char *m;

	if (h->at) { /* memory that it has there, whatever it is */
		need(h->ctl, !mprotect(h->at, h->size, PROT_READ | PROT_WRITE | PROT_EXEC));
		return h->at;
	}
	m = mmap(NULL, h->size, PROT_READ | PROT_WRITE,
		 h->what & HUGE_ANON ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED,
		 h->what & HUGE_ANON ? -1 : h->memfd, 0);
	need(h->ctl, m != MAP_FAILED);
	if (h->what & HUGE_ANON)
		madvise(m, h->size, MADV_HUGEPAGE);
	memset(m, 'O', h->size);
	return m;
}

static void holder_ring(struct holder *h, struct io_uring *ring, char *m)
{
	struct io_uring_params p = {.flags = h->setup, .sq_thread_idle = 5};
	struct iovec iov = {m, h->size};
	__u64 tag = h->what & UNTAGGED ? 0 : TAG;
	struct io_uring_restriction r[] = {
		{.opcode = IORING_RESTRICTION_SQE_OP, .sqe_op = IORING_OP_READ_FIXED},
		{.opcode = IORING_RESTRICTION_REGISTER_OP, .register_op = IORING_REGISTER_ENABLE_RINGS}};

	errno = -io_uring_queue_init_params(16, ring, &p);
	need(h->ctl, !errno);
	need(h->ctl, !io_uring_register_buffers_sparse(ring, 4));
	errno = 0;
	need(h->ctl, io_uring_register_buffers_update_tag(ring, SLOT, &iov, &tag, 1) == 1);
	if (h->what & RESTRICTED)
		need(h->ctl, !reg(ring->ring_fd, IORING_REGISTER_RESTRICTIONS, r, 2));
	if (h->what & ENABLE)
		need(h->ctl, !reg(ring->ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0));
}

static void read_fixed(struct io_uring *ring, int fd, char *to, uint64_t user_data)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);

	io_uring_prep_read_fixed(sqe, fd, to, PAGE, 0, SLOT);
	sqe->user_data = user_data;
	io_uring_submit(ring);
}

/* Reads 'Z's into one page after the other but the first. Takes no completion but its own. */
static void io_loop(struct ctl *c, struct io_uring *ring, char *m)
{
	int src = memfd_create("src", MFD_CLOEXEC);
	struct io_uring_cqe *cqe;
	char z[PAGE];

	memset(z, 'Z', sizeof z);
	need(c, write(src, z, sizeof z) == sizeof z);
	for (int i = 0;; i = (i + 1) % (PAGES - 1)) {
		read_fixed(ring, src, m + (i + 1) * PAGE, 100);
		if (io_uring_wait_cqe(ring, &cqe))
			continue;
		if (cqe->user_data == 100 && cqe->res != -ECANCELED) { /* a force may */
			if (cqe->res != (int)PAGE)
				c->bad = cqe->res;
			c->loops++;
		}
		io_uring_cqe_seen(ring, cqe);
		pause_ms(1);
	}
}

/* When told to: the path of an open is in a page that nobody ever fills, so the ring's lock stays taken.
 */
static void hang_under_the_lock(struct ctl *c, struct io_uring *ring)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
	char *path = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_register r = {{(uintptr_t)path, PAGE}, UFFDIO_REGISTER_MODE_MISSING};
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC);

	need(c, uffd >= 0 && !ioctl(uffd, UFFDIO_API, &api) && !ioctl(uffd, UFFDIO_REGISTER, &r));
	io_uring_prep_openat(sqe, AT_FDCWD, path, O_RDONLY, 0);
	c->ready = 1;
	while (!c->wake)
		pause_ms(1);
	io_uring_submit(ring);
}

static void fork_heir(struct holder *h, struct io_uring *ring)
{
	pid_t pid;

	if (!(h->what & (HEIR | HEIR_MAP)))
		return;
	pid = fork();
	if (pid) {
		h->ctl->heir = pid;
		return;
	}
	prctl(PR_SET_NAME, "the-heir");
	alarm(60); /* whatever becomes of the test */
	if (h->what & HEIR_MAP)
		close(ring->ring_fd);
	h->ctl->ready = 1;
	for (;;)
		pause();
}

static void *holder_main(void *arg)
{
	struct holder *h = arg;
	struct ctl *c = h->ctl;
	struct io_uring ring;
	char *m = holder_memory(h);

	holder_ring(h, &ring, m);
	c->ring = ring.ring_fd;
	h->buf = (struct pl_outside_buf){SLOT, (uintptr_t)m, (uintptr_t)m + h->size,
					 h->what & UNTAGGED ? 0 : TAG, false};
	if (h->what & FLIGHT)
		read_fixed(&ring, c->quiet[0], m, 1);
	fork_heir(h, &ring);
	if (h->what & LOCKED)
		hang_under_the_lock(c, &ring);
	if (!(h->what & (HEIR | HEIR_MAP)))
		c->ready = 1;
	while ((h->what & SPIN) && !c->wake)
		;
	while ((h->what & DEADLOCK) && !c->wake)
		syscall(SYS_futex, &c->futex, FUTEX_WAIT, 0, NULL, NULL, 0);
	if (h->at || ((h->setup & IORING_SETUP_R_DISABLED) && !(h->what & ENABLE)) ||
	    (h->setup & IORING_SETUP_IOPOLL))
		for (;;)
			pause();
	io_loop(c, &ring, m);
	return NULL;
}

/* --------------------------------------------------------------------------------------- rig -- */

static void witness_open(struct holder *h)
{
	struct iovec iov = {NULL, SIZE};

	h->mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, h->memfd, 0);
	iov.iov_base = h->mem;
	assert_int_equal(io_uring_queue_init(4, &h->witness, 0), 0);
	assert_int_equal(io_uring_register_buffers(&h->witness, &iov, 1), 0);
}

static struct ctl *mine; /* in the holder */

static void count_signal(int sig)
{
	mine->signals++;
}

static pid_t last_holder;

static void start_process(struct holder *h)
{
	struct holder *shared =
		mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_t thread;

	*shared = *h;
	raise_memlock(); /* also of who puts scratch into a ring */
	h->pid = fork();
	if (!h->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (!(h->what & PRIVILEGED))
			account_pins();
		mine = h->ctl;
		signal(SIGUSR1, count_signal);
		if (!(h->what & THREAD))
			holder_main(shared);
		pthread_create(&thread, NULL, holder_main, shared);
		for (;;)
			pause();
	}
	last_holder = h->pid;
	h->pidfd = syscall(SYS_pidfd_open, h->pid, 0);
	while (!h->ctl->ready || ((h->what & (HEIR | HEIR_MAP)) && !h->ctl->heir && !h->ctl->error))
		pause_ms(1);
	h->buf = shared->buf;
	munmap(shared, PAGE);
	if (h->ctl->error)
		fail_msg("holder: %s", strerror(h->ctl->error));
}

void rig_suspend(struct holder *h)
{
	int status;

	kill(h->pid, SIGSTOP);
	while (waitpid(h->pid, &status, WUNTRACED) < 0 && errno == EINTR)
		;
	assert_true(WIFSTOPPED(status));
}

void rig_start(struct holder *h)
{
	h->ctl = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (!h->size)
		h->size = SIZE;
	assert_int_equal(pipe2(h->ctl->quiet, O_CLOEXEC), 0);
	h->memfd = memfd_create("leased", MFD_CLOEXEC);
	assert_int_equal(ftruncate(h->memfd, SIZE), 0);
	start_process(h);
	witness_open(h);
	if (h->what & FLIGHT)
		pause_ms(20);
}

void rig_open(struct holder *h)
{
	rig_start(h);
	assert_ok(pl_outside_open(h->pidfd, h->pid, h->ctl->ring, in_ms(PATIENCE), &h->o));
}

void rig_stop(struct holder *h)
{
	if (h->o)
		pl_outside_close(h->o);
	kill(h->pid, SIGKILL);
	if (h->ctl->heir)
		kill(h->ctl->heir, SIGKILL);
	waitpid(h->pid, NULL, 0);
	io_uring_queue_exit(&h->witness);
	munmap(h->mem, SIZE);
	close(h->memfd);
	close(h->pidfd);
	close(h->ctl->quiet[0]);
	close(h->ctl->quiet[1]);
	munmap(h->ctl, PAGE);
}

void rig_truncate(struct holder *h)
{
	memset(h->mem, 'P', SIZE);
	assert_int_equal(ftruncate(h->memfd, 0), 0);
	assert_int_equal(ftruncate(h->memfd, SIZE), 0);
}

void wait_for_loops(const struct holder *h, int loops)
{
	uint64_t until = in_ms(6 * PATIENCE);

	while (h->ctl->loops < loops && pl_clock_ns() < until)
		pause_ms(1);
	assert_true(h->ctl->loops >= loops);
}

/* Until it has done some I/O; what was in flight gets its byte. */
void rig_wake(struct holder *h)
{
	int loops = h->ctl->loops;

	h->ctl->wake = 1;
	h->ctl->futex = 1;
	syscall(SYS_futex, &h->ctl->futex, FUTEX_WAKE, 1, NULL, NULL, 0);
	kill(h->pid, SIGCONT);
	assert_int_equal(write(h->ctl->quiet[1], "late", 4), 4);
	wait_for_loops(h, loops + 2 * PAGES);
}

void assert_old_pages_untouched(struct holder *h)
{
	int out = memfd_create("out", MFD_CLOEXEC);
	struct io_uring_sqe *sqe = io_uring_get_sqe(&h->witness);
	struct io_uring_cqe *cqe;
	char *seen;

	io_uring_prep_write_fixed(sqe, out, h->mem, SIZE, 0, 0);
	io_uring_submit(&h->witness);
	assert_int_equal(io_uring_wait_cqe(&h->witness, &cqe), 0);
	assert_int_equal(cqe->res, SIZE);
	io_uring_cqe_seen(&h->witness, cqe);
	seen = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, out, 0);
	for (size_t i = 0; i < SIZE; i++)
		if (seen[i] != 'P')
			fail_msg("byte %zu of the old pages is '%c'", i, seen[i]);
	munmap(seen, SIZE);
	close(out);
}

/* --------------------------------------------------------------------------------- each test -- */

static int fds_before;

int rig_before(void **state)
{
	fds_before = count_fds();
	return 0;
}

/* What a failed test left behind ends here; it isn't to fail the next one. */
int rig_after(void **state)
{
	int fds, child;

	pl_outside_asked();
	fds = count_fds();
	child = waitpid(-1, NULL, WNOHANG | __WALL);
	if (fds != fds_before || child != -1)
		print_error("descriptors: %d before, %d after; child %d\n", fds_before, fds, child);
	if (child != -1)
		kill(last_holder, SIGKILL);
	while (child != -1 && waitpid(-1, NULL, __WALL) > 0)
		;
	return fds != fds_before || child != -1;
}
