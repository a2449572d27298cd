/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * usage: libfabric_app PATTERN - a program of libfabric's that knows nothing of pinlease. Built with
 * -DIMPORT it is libfabric_import_app, which imports pinlease by itself.
 *
 * It sends a buffer to itself by the provider verbs, registering it anew each time as libfabric's users
 * do, and changes what is mapped there in between by PATTERN. Status: 0 all that arrived was what was in
 * the buffer; 1 something was not (a stale registration); 77 no RDMA device; 3 no connection came about,
 * which another try may bring; 2 anything else.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <linux/magic.h>
#include <pthread.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#ifdef IMPORT
#include <pinlease/libfabric.h>
#endif

#define LEN    65536ul
#define ROUNDS 30
#define PORT   "47981"
#define SMALL  48 /* a node of the tree in which libfabric has its entries */

#include "patterns.h"

static struct fid_fabric *fabric;
static struct fid_domain *domain;
static struct fid_eq *eq;
static struct fid_pep *pep;
static struct fid_ep *ends[2];
static struct fid_cq *cqs[2];
static struct fid_mr *into_mr;
static char *into;

static void must(long ret, const char *what)
{
	if (ret >= 0)
		return;
	printf("%s: %s\n", what, fi_strerror(-ret));
	exit(2);
}

/* ---------------------------------------------------------------------------- the connection -- */

static struct fi_info *wish(void)
{
	struct fi_info *hints = fi_allocinfo();

	hints->caps = FI_MSG;
	hints->ep_attr->type = FI_EP_MSG;
	hints->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
	hints->fabric_attr->prov_name = strdup("verbs");
	return hints;
}

/* Of an interface that has an RDMA device. */
static struct fi_info *find_source(char address[INET_ADDRSTRLEN])
{
	struct fi_info *hints = wish(), *info = NULL;
	struct ifaddrs *all, *i;

	must(getifaddrs(&all) ? -errno : 0, "getifaddrs");
	for (i = all; i && !info; i = i->ifa_next) {
		if (!i->ifa_addr || i->ifa_addr->sa_family != AF_INET)
			continue;
		inet_ntop(AF_INET, &((struct sockaddr_in *)i->ifa_addr)->sin_addr, address,
			  INET_ADDRSTRLEN);
		if (strncmp(address, "127.", 4) &&
		    fi_getinfo(FI_VERSION(1, 14), address, PORT, FI_SOURCE, hints, &info))
			info = NULL;
	}
	freeifaddrs(all);
	fi_freeinfo(hints);
	return info;
}

#ifdef IMPORT
static struct pinl_ctx *ctx;

static void import(void)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1};

	must(pinl_open(&opts, &ctx), "pinl_open");
	must(pinl_libfabric_import(ctx), "pinl_libfabric_import");
}

static void leave(void)
{
	must(pinl_libfabric_close(), "pinl_libfabric_close");
	pinl_close(ctx);
}
#else
static void import(void)
{
}

static void leave(void)
{
}
#endif

/* The connection manager of a busy machine gives up at times. */
static void connects(long ret, const char *what)
{
	if (ret >= 0)
		return;
	printf("no connection: %s: %s\n", what, fi_strerror(-ret));
	exit(3);
}

static struct fid_ep *endpoint(struct fi_info *info, int side)
{
	struct fi_cq_attr attr = {.format = FI_CQ_FORMAT_CONTEXT, .size = 64};
	struct fid_ep *ep;

	must(fi_cq_open(domain, &attr, &cqs[side], NULL), "fi_cq_open");
	connects(fi_endpoint(domain, info, &ep, NULL), "fi_endpoint");
	must(fi_ep_bind(ep, &eq->fid, 0), "fi_ep_bind");
	must(fi_ep_bind(ep, &cqs[side]->fid, FI_TRANSMIT | FI_RECV), "fi_ep_bind");
	must(fi_enable(ep), "fi_enable");
	return ep;
}

static struct fi_info *await(uint32_t wanted)
{
	struct fi_eq_cm_entry entry;
	uint32_t event = 0;
	ssize_t ret = fi_eq_sread(eq, &event, &entry, sizeof entry, -1, 0);

	connects(ret, "fi_eq_sread");
	connects(event == wanted ? 0 : -FI_ECONNREFUSED, "another event came");
	return event == FI_CONNREQ ? entry.info : NULL;
}

static void join(void)
{
	struct fi_eq_attr attr = {.wait_obj = FI_WAIT_UNSPEC};
	struct fi_info *source, *target, *request, *hints = wish();
	char address[INET_ADDRSTRLEN];

	source = find_source(address);
	if (!source) {
		printf("no RDMA device\n");
		exit(77);
	}
	import();
	must(fi_fabric(source->fabric_attr, &fabric, NULL), "fi_fabric");
	must(fi_eq_open(fabric, &attr, &eq, NULL), "fi_eq_open");
	must(fi_passive_ep(fabric, source, &pep, NULL), "fi_passive_ep");
	must(fi_pep_bind(pep, &eq->fid, 0), "fi_pep_bind");
	must(fi_listen(pep), "fi_listen");
	connects(fi_getinfo(FI_VERSION(1, 14), address, PORT, 0, hints, &target), "fi_getinfo");
	must(fi_domain(fabric, target, &domain, NULL), "fi_domain");
	ends[0] = endpoint(target, 0);
	connects(fi_connect(ends[0], target->dest_addr, NULL, 0), "fi_connect");
	request = await(FI_CONNREQ);
	ends[1] = endpoint(request, 1);
	connects(fi_accept(ends[1], NULL, 0), "fi_accept");
	await(FI_CONNECTED);
	await(FI_CONNECTED);
	fi_freeinfo(request);
	fi_freeinfo(target);
	fi_freeinfo(source);
	fi_freeinfo(hints);
}

static void part(void)
{
	fi_close(&into_mr->fid);
	for (int i = 0; i < 2; i++)
		fi_close(&ends[i]->fid);
	for (int i = 0; i < 2; i++)
		fi_close(&cqs[i]->fid);
	fi_close(&pep->fid);
	fi_close(&eq->fid);
	must(fi_close(&domain->fid), "closing the domain");
	fi_close(&fabric->fid);
}

/* ---------------------------------------------------------------------------------- sending -- */

static struct fid_mr *reg(void *at, size_t len)
{
	struct fid_mr *mr;

	must(fi_mr_reg(domain, at, len, FI_SEND | FI_RECV, 0, 0, 0, &mr, NULL), "fi_mr_reg");
	return mr;
}

static void done(struct fid_cq *cq)
{
	struct fi_cq_err_entry why = {0};
	struct fi_cq_entry entry;
	ssize_t ret;

	do
		ret = fi_cq_read(cq, &entry, 1);
	while (ret == -FI_EAGAIN);
	if (ret == -FI_EAVAIL)
		fi_cq_readerr(cq, &why, 0);
	must(why.err ? -why.err : ret, "transfer");
}

/* What arrived is what is there. */
static bool sent(char *at)
{
	struct fid_mr *mr = reg(at, LEN);

	memset(into, 0, LEN);
	must(fi_recv(ends[1], into, LEN, fi_mr_desc(into_mr), 0, NULL), "fi_recv");
	must(fi_send(ends[0], at, LEN, fi_mr_desc(mr), 0, NULL), "fi_send");
	done(cqs[0]);
	done(cqs[1]);
	fi_close(&mr->fid);
	return !memcmp(into, at, LEN);
}

static uint64_t key_of(char *at)
{
	struct fid_mr *mr = reg(at, LEN);
	uint64_t key = fi_mr_key(mr);

	fi_close(&mr->fid);
	return key;
}

static void use(char *at, size_t len)
{
	fi_close(&reg(at, len)->fid);
}

/* --------------------------------------------------------------------------------- patterns -- */

/* Who truncates isn't held: libfabric hears of it a little later, or never. */
static void truncated(char *at, int fd)
{
	uint64_t before = key_of(at);
	time_t start = time(NULL);

	must(ftruncate(fd, 0) ? -errno : 0, "ftruncate");
	must(ftruncate(fd, LEN) ? -errno : 0, "ftruncate");
	while (key_of(at) == before && !later_than(start))
		sched_yield();
}

static int file(void)
{
	int fd = memfd_create("libfabric_app", MFD_CLOEXEC);

	must(ftruncate(fd, LEN) ? -errno : 0, "ftruncate");
	return changes(truncated, fd, 2);
}

/* Looks so many times whether `at` is registered still. A lookup finds nothing while a change takes
 * long, as some do on a busy machine. */
static int anew(char *at, int times, void (*meanwhile)(void))
{
	uint64_t before = key_of(at);
	int n = 0;

	for (int i = 0; i < times; i++) {
		uint64_t key;

		meanwhile();
		key = key_of(at);
		n += key != before;
		before = key;
	}
	if (n <= times / 2)
		return 0;
	printf("registered anew\n");
	return 1;
}

static void others_unmap(void)
{
	char *other = map_anon(NULL, 0);

	use(other, LEN);
	syscall(SYS_munmap, other, LEN);
}

static void nothing_happens(void)
{
}

/* What nobody touches stays registered, whatever others unmap. */
static int hit(void)
{
	return anew(map_anon(NULL, 0), 200, others_unmap);
}

/* Of a file on ext4: shared ones can't be pinned. */
static int file_hit(void)
{
	const char *dir = getenv("PINLEASE_TEST_DIR");
	int fd = open(dir ? dir : "/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	struct statfs fs;
	char *at;

	must(fd < 0 || fstatfs(fd, &fs) || ftruncate(fd, LEN) ? -errno : 0, "file");
	if (fs.f_type != EXT4_SUPER_MAGIC) {
		printf("no ext4 in /var/tmp\n");
		exit(77);
	}
	at = map(NULL, MAP_PRIVATE, fd);
	memset(at, 1, LEN);
	return anew(at, 100, nothing_happens);
}

/* libfabric ends registrations when it searches for another one. */
static int release(void)
{
	char *at = map_anon(NULL, 0), *other = map_anon(NULL, 0);
	time_t start = time(NULL);
	long before;

	key_of(other);
	before = pinned_kb();
	key_of(at);
	syscall(SYS_munmap, at, LEN);
	while (key_of(other) && pinned_kb() > before && !later_than(start))
		sched_yield();
	if (pinned_kb() > before)
		printf("%ld KiB are pinned instead of %ld\n", pinned_kb(), before);
	return pinned_kb() > before ? 1 : 0;
}

static void *register_and_unmap(void *arg)
{
	for (int i = 0; i < 300; i++) {
		char *at = map_anon(NULL, 0), *heap = malloc(300000);

		key_of(at);
		key_of(heap);
		syscall(SYS_munmap, at, LEN);
		free(heap);
	}
	return NULL;
}

/* Their allocator unmaps while libfabric has its lock, too. */
static int threads(void)
{
	pthread_t two[2];

	for (int i = 0; i < 2; i++)
		pthread_create(&two[i], NULL, register_and_unmap, NULL);
	for (int i = 0; i < 2; i++)
		pthread_join(two[i], NULL);
	return 0;
}

static const struct {
	const char *name;
	void (*change)(char *at, int fd);
	int (*run)(void);
} patterns[] = {
	{"munmap", raw_munmap, NULL},	{"libc-munmap", libc_munmap, NULL},
	{"map-over", map_over, NULL},	{"mremap", move, NULL},
	{"move-away", move_away, NULL}, {"discard", discard, NULL},
	{"file", NULL, file},		{"hit", NULL, hit},
	{"file-hit", NULL, file_hit},	{"release", NULL, release},
	{"threads", NULL, threads},	{"allocator", NULL, allocator},
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
	into = map_anon(NULL, 0);
	into_mr = reg(into, LEN);
	ret = patterns[i].run ? patterns[i].run() : changes(patterns[i].change, -1, ROUNDS);
	part();
	leave();
	return ret;
}
