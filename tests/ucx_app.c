/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * usage: ucx_app PATTERN - a program of UCX's that knows nothing of pinlease. Built with -DSTART it is
 * ucx_start_app, which starts pinlease by itself.
 *
 * It sends a buffer to itself by RDMA (rc_verbs), for which UCX registers it and keeps the registration,
 * and changes what is mapped there in between by PATTERN. Status: 0 all that arrived was what was in the
 * buffer; 1 something was not (a stale registration); 77 no RDMA device; 2 anything else.
 */
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <ucp/api/ucp.h>

#ifdef START
#include <pinlease/cache.h>
#include <pinlease/ucx.h>
#endif

#define LEN    65536ul
#define ROUNDS 30
#define SMALL  65536 /* any allocation of UCX's */

#include "patterns.h"

static ucp_context_h context;
static ucp_worker_h worker;
static ucp_ep_h to_self;
static ucp_mem_h into_mem;
static ucp_rkey_h into_key;
static char *into;

static void must(long ret, const char *what)
{
	if (ret >= 0)
		return;
	printf("%s: %s\n", what, strerror(-ret));
	exit(2);
}

static void ucs(ucs_status_t status, const char *what)
{
	if (status == UCS_OK)
		return;
	printf("%s: %s\n", what, ucs_status_string(status));
	exit(2);
}

/* ---------------------------------------------------------------------------- the connection -- */

#ifdef START
static struct pinl_ctx *ctx;

static void start(void)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1};

	must(pinl_open(&opts, &ctx), "pinl_open");
	must(pinl_ucx_start(ctx), "pinl_ucx_start");
}

static void leave(void)
{
	if (pinl_ucx_device())
		must(pinl_ucx_stop(), "pinl_ucx_stop");
	pinl_close(ctx);
}
#else
static void start(void)
{
}

static void leave(void)
{
}
#endif

/* Where it writes to; registered for good, by no cache. */
static void target(void)
{
	ucp_mem_map_params_t params = {.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS |
						     UCP_MEM_MAP_PARAM_FIELD_LENGTH,
				       .length = LEN};
	size_t size;
	void *packed;

	params.address = into = map_anon(NULL, 0);
	ucs(ucp_mem_map(context, &params, &into_mem), "ucp_mem_map");
	ucs(ucp_rkey_pack(context, into_mem, &packed, &size), "ucp_rkey_pack");
	ucs(ucp_ep_rkey_unpack(to_self, packed, &into_key), "ucp_ep_rkey_unpack");
	ucp_rkey_buffer_release(packed);
}

static void join(void)
{
	ucp_params_t params = {.field_mask =
				       UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED,
			       .features = UCP_FEATURE_RMA,
			       .mt_workers_shared = 1};
	ucp_worker_params_t how = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
				   .thread_mode = UCS_THREAD_MODE_SINGLE};
	ucp_ep_params_t ep = {.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS};
	ucp_address_t *address;
	ucs_status_t status;
	size_t len;

	if (access("/sys/class/infiniband/rxe0", F_OK) && access("/dev/infiniband/uverbs0", F_OK)) {
		printf("no RDMA device\n");
		exit(77);
	}
	start();
	status = ucp_init(&params, NULL, &context);
	ucs(status, "ucp_init");
	ucs(ucp_worker_create(context, &how, &worker), "ucp_worker_create");
	ucs(ucp_worker_get_address(worker, &address, &len), "ucp_worker_get_address");
	ep.address = address;
	ucs(ucp_ep_create(worker, &ep, &to_self), "ucp_ep_create");
	ucp_worker_release_address(worker, address);
	target();
}

static void wait_for(void *request, const char *what)
{
	ucs_status_t status = UCS_OK;

	if (UCS_PTR_IS_ERR(request))
		ucs(UCS_PTR_STATUS(request), what);
	if (!request)
		return;
	do
		ucp_worker_progress(worker);
	while ((status = ucp_request_check_status(request)) == UCS_INPROGRESS);
	ucp_request_free(request);
	ucs(status, what);
}

static void part(void)
{
	ucp_request_param_t none = {0};

	ucp_rkey_destroy(into_key);
	ucs(ucp_mem_unmap(context, into_mem), "ucp_mem_unmap");
	wait_for(ucp_ep_close_nbx(to_self, &none), "ucp_ep_close_nbx");
	ucp_worker_destroy(worker);
	ucp_cleanup(context);
}

/* ---------------------------------------------------------------------------------- sending -- */

static void send_it(char *at)
{
	ucp_request_param_t none = {0};

	wait_for(ucp_put_nbx(to_self, at, LEN, (uintptr_t)into, into_key, &none), "ucp_put_nbx");
	wait_for(ucp_ep_flush_nbx(to_self, &none), "ucp_ep_flush_nbx");
}

/* What arrived is what is there. */
static bool sent(char *at)
{
	memset(into, 0, LEN);
	send_it(at);
	return !memcmp(into, at, LEN);
}

/* Registers it and lets go of that, so that only the cache has it. */
static void use(char *at, size_t len)
{
	ucp_mem_map_params_t params = {.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS |
						     UCP_MEM_MAP_PARAM_FIELD_LENGTH,
				       .address = at,
				       .length = len};
	ucp_mem_h mem;

	ucs(ucp_mem_map(context, &params, &mem), "ucp_mem_map");
	ucs(ucp_mem_unmap(context, mem), "ucp_mem_unmap");
}

/* --------------------------------------------------------------------------------- patterns -- */

struct change {
	char *at;
	int fd;
};

static void *change_it(void *arg)
{
	const struct change *c = arg;

	raw_munmap(c->at, c->fd);
	return NULL;
}

static void by_another(char *at, int fd)
{
	struct change c = {at, fd};
	pthread_t other;

	must(-pthread_create(&other, NULL, change_it, &c), "pthread_create");
	pthread_join(other, NULL);
}

/* Who truncates isn't held on every file: that is known a little later, or never. What is in the buffer
 * meanwhile is nothing that was in the old pages, which are what arrives until then. */
static void truncated(char *at, int fd)
{
	time_t start = time(NULL);

	must(ftruncate(fd, 0) ? -errno : 0, "ftruncate");
	must(ftruncate(fd, LEN) ? -errno : 0, "ftruncate");
	do
		memset(at, 200 + time(NULL) % 50, LEN);
	while (!sent(at) && !later_than(start));
}

static int file(void)
{
	int fd = memfd_create("ucx_app", MFD_CLOEXEC);

	must(ftruncate(fd, LEN) ? -errno : 0, "ftruncate");
	return changes(truncated, fd, 2);
}

/* UCX pins buffers of its own, 45 MiB until it is connected, and may pin some more at any time: this is
 * a lot more. */
static int release(void)
{
	const size_t len = 2048 * LEN;
	const long half = len / 2048;
	char *at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *other = map_anon(NULL, 0);
	time_t start = time(NULL);
	long before;

	must(at == MAP_FAILED ? -errno : 0, "mmap");
	for (int i = 0; i < 10; i++)
		sent(other);
	before = pinned_kb();
	do /* what is registered while a change takes long isn't kept */
		use(at, len);
	while (pinned_kb() < before + half && !later_than(start));
	if (pinned_kb() < before + half)
		printf("nothing is pinned\n");
	syscall(SYS_munmap, at, len);
	start = time(NULL);
	while (pinned_kb() >= before + half && !later_than(start))
		sched_yield();
	if (pinned_kb() < before + half)
		return 0;
	printf("%ld KiB are pinned instead of %ld\n", pinned_kb(), before);
	return 1;
}

static void *use_and_unmap(void *arg)
{
	for (int i = 0; i < 300; i++) {
		char *at = map_anon(NULL, 0), *heap = malloc(300000);

		use(at, LEN);
		use(heap, 300000);
		syscall(SYS_munmap, at, LEN);
		free(heap);
	}
	return NULL;
}

/* Their allocator unmaps while UCX has its locks, too. */
static int threads(void)
{
	pthread_t two[2];

	for (int i = 0; i < 2; i++)
		pthread_create(&two[i], NULL, use_and_unmap, NULL);
	for (int i = 0; i < 2; i++)
		pthread_join(two[i], NULL);
	return 0;
}

/* ------------------------------------------------------------------------------- libc's text -- */

/* Where in its file the byte at `at` comes from. */
static long offset_of(const void *at)
{
	FILE *f = fopen("/proc/self/maps", "r");
	unsigned long start, end, offset, found = -1;
	char line[400];

	while (f && fgets(line, sizeof line, f))
		if (sscanf(line, "%lx-%lx %*s %lx", &start, &end, &offset) == 3 &&
		    start <= (uintptr_t)at && (uintptr_t)at < end)
			found = offset + ((uintptr_t)at - start);
	if (f)
		fclose(f);
	return found;
}

static bool as_in_its_file(const char *name)
{
	unsigned char *at = dlsym(RTLD_DEFAULT, name), text[4096];
	ElfW(Sym) * symbol;
	Dl_info info;
	ssize_t n;
	int fd;

	if (!at || !dladdr1(at, &info, (void **)&symbol, RTLD_DL_SYMENT)) {
		printf("%s isn't found\n", name);
		return false;
	}
	fd = open(info.dli_fname, O_RDONLY | O_CLOEXEC);
	n = symbol->st_size < sizeof text ? symbol->st_size : sizeof text;
	must(pread(fd, text, n, offset_of(at)) == n && n ? 0 : -EIO, info.dli_fname);
	close(fd);
	if (memcmp(text, at, n))
		printf("%s is patched\n", name);
	return !memcmp(text, at, n);
}

static int libc_text(void)
{
	static const char *const names[] = {"mmap",   "munmap", "mremap",  "madvise", "brk",
					    "sbrk",   "shmat",	"shmdt",   "mmap64",  "dlopen",
					    "malloc", "free",	"realloc", "calloc"};
	char *at = map_anon(NULL, 0);
	int patched = 0;

	memset(at, 1, LEN);
	if (!sent(at))
		return 2;
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		patched += !as_in_its_file(names[i]);
	return patched ? 1 : 0;
}

/* --------------------------------------------------------------------- in a program that knows -- */

#ifdef START
static void explicit_munmap(char *at, int fd)
{
	must(pinl_munmap(ctx, at, LEN), "pinl_munmap");
	map_anon(at, MAP_FIXED_NOREPLACE);
}

static uint64_t figure(const char *name)
{
	uint64_t value = 0;

	must(pinl_cache_stat(pinl_ucx_device(), name, &value), name);
	return value;
}

/* What nobody touches stays registered, whatever others unmap: each registration is two lookups, and
   UCX makes some for buffers of its own whenever it likes. */
static int hit(void)
{
	char *at = map_anon(NULL, 0);
	uint64_t before, made;

	use(at, LEN);
	before = figure("hits") + figure("misses");
	for (int i = 0; i < 200; i++) {
		syscall(SYS_munmap, map_anon(NULL, 0), LEN);
		use(at, LEN);
	}
	made = (figure("hits") + figure("misses") - before) / 2;
	if (made >= 20)
		printf("%llu registrations in 200 uses\n", (unsigned long long)made);
	return made >= 20;
}

static int stopped(void)
{
	char *at = map_anon(NULL, 0);

	use(at, LEN);
	must(pinl_ucx_stop(), "pinl_ucx_stop");
	return changes(raw_munmap, -1, ROUNDS);
}
#endif

static const struct {
	const char *name;
	void (*change)(char *at, int fd);
	int (*run)(void);
} patterns[] = {
	{"munmap", raw_munmap, NULL},	     {"libc-munmap", libc_munmap, NULL},
	{"map-over", map_over, NULL},	     {"mremap", move, NULL},
	{"move-away", move_away, NULL},	     {"discard", discard, NULL},
	{"by-another", by_another, NULL},    {"file", NULL, file},
	{"release", NULL, release},	     {"threads", NULL, threads},
	{"allocator", NULL, allocator},	     {"libc-text", NULL, libc_text},
#ifdef START
	{"explicit", explicit_munmap, NULL}, {"hit", NULL, hit},
	{"stopped", NULL, stopped},
#endif
};

int main(int argc, char **argv)
{
	size_t i = 0, n = sizeof patterns / sizeof *patterns;
	int ret;

	while (argc > 1 && i < n && strcmp(argv[1], patterns[i].name))
		i++;
	if (argc < 2 || i == n)
		return 2;
	alarm(300);
	join();
	ret = patterns[i].run ? patterns[i].run() : changes(patterns[i].change, -1, ROUNDS);
	part();
	leave();
	return ret;
}
