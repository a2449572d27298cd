/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * RDMA at its edges: ten thousand regions, a device that is removed, one that misplaces on-demand data,
 * arguments that can't be.
 */
#include "verbs_rig.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "proc.h"

/* ------------------------------------------------------------------------ devices of our own -- */

static int sh(const char *fmt, const char *arg)
{
	char line[512];

	snprintf(line, sizeof line, fmt, arg);
	return system(line);
}

/* Another soft-RoCE device, for tests that spoil it. False: this isn't the place for it. */
static bool make_device(const char *mtu)
{
	return !system("[ \"$(id -u)\" = 0 ] && [ -d /sys/module/rdma_rxe ] && "
		       "ip link add pinldummy type dummy 2>/dev/null && "
		       "ip addr add 10.77.0.1/24 dev pinldummy") &&
	       !sh("ip link set pinldummy mtu %s up", mtu) &&
	       !system("rdma link add pinlrxe type rxe netdev pinldummy 2>/dev/null");
}

static void end_device(void)
{
	system("rdma link del pinlrxe 2>/dev/null; ip link del pinldummy 2>/dev/null");
}

#define SKIP_WITHOUT_OWN_DEVICE(mtu)                                                                    \
	do {                                                                                            \
		if (!make_device(mtu)) {                                                                \
			end_device();                                                                   \
			print_message(                                                                  \
				"skip: a soft-RoCE device can't be made here (root, rdma_rxe)\n");      \
			skip();                                                                         \
		}                                                                                       \
	} while (0)

struct own {
	struct pinl_ctx *ctx;
	struct pinl_device *dev;
	struct pinl_lease *lease;
	struct pinl_addr addrs[8];
	struct peer here, far;
	char *va;
};

static void own_connect(struct own *o)
{
	struct peer_name here, far;

	peer_get_name(&o->here, &here);
	peer_get_name(&o->far, &far);
	peer_connect(&o->here, &far);
	peer_connect(&o->far, &here);
}

static void own_up(struct own *o, unsigned flags)
{
	struct pinl_opts opts = {.size = sizeof opts, .summary_fd = -1};
	struct pinl_verbs_arg arg = {
		.size = sizeof arg,
		.access = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ,
		.flags = flags,
	};

	*o = (struct own){0};
	peer_open(&o->here, "pinlrxe", 8 * PAGE);
	peer_open(&o->far, "pinlrxe", 8 * PAGE);
	own_connect(o);
	arg.pd = o->here.pd;
	assert_ok(pinl_open(&opts, &o->ctx));
	assert_ok(pinl_device_open(o->ctx, "verbs", &arg, &o->dev));
	o->va = mmap(NULL, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(o->va, MAP_FAILED);
}

static int own_map(struct own *o, unsigned flags)
{
	struct pinl_policy p = policy(PINL_RECALL, PINL_THEN_FAIL, 0);

	return pinl_map_range(o->dev, (uintptr_t)o->va, (uintptr_t)o->va + 8 * PAGE,
			      PINL_WRITE | PINL_COOPERATIVE | flags, &p, o->addrs, &o->lease);
}

static void own_down(struct own *o)
{
	pinl_unmap_range(o->lease);
	pinl_device_close(o->dev);
	pinl_close(o->ctx);
	peer_close(&o->here);
	peer_close(&o->far);
	munmap(o->va, 8 * PAGE);
}

/* The kernel waits with the removal until the programs have closed it; nothing hangs, nothing is lost.
 */
static void a_link_deleted_while_leased(void **state)
{
	struct own o;
	int status;
	pid_t pid;

	SKIP_WITHOUT_OWN_DEVICE("9000");
	own_up(&o, 0);
	assert_ok(own_map(&o, PINL_PIN));
	pid = fork();
	if (!pid) {
		close_range(3, ~0u, 0);
		execlp("rdma", "rdma", "link", "del", "pinlrxe", (char *)NULL);
		_exit(127);
	}
	assert_ok(pinl_munmap(o.ctx, o.va, 8 * PAGE));
	assert_int_equal(peer_move(&o.far, 1, 0, PAGE, o.addrs[0].addr, o.addrs[0].rkey) == 0, 0);
	own_down(&o);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	end_device();
}

/* A transfer of any shape either gives the right bytes or can't be made on demand at all. */
static void on_demand(const char *mtu, unsigned flags, bool *allowed)
{
	static const struct {
		size_t at, len;
	} shapes[] = {{0, PAGE}, {0, 8 * PAGE}, {PAGE, 3 * PAGE}, {100, 8}, {PAGE - 4, 8}, {512, PAGE}};
	size_t n = flags & PINL_VERBS_WHOLE_PAGES ? 3 : 6;
	struct own o;

	SKIP_WITHOUT_OWN_DEVICE(mtu);
	own_up(&o, flags);
	*allowed = !own_map(&o, 0);
	if (!*allowed)
		assert_non_null(strstr(pinl_error(), "ODP"));
	for (size_t i = 0; *allowed && i < n; i++) {
		size_t at = shapes[i].at, len = shapes[i].len;

		memset(o.va, 0, 8 * PAGE);
		memset(o.far.buf, 'A' + i, len);
		assert_int_equal(peer_move(&o.far, 1, 0, len, o.addrs[0].addr + at, o.addrs[0].rkey), 0);
		assert_all("before", o.va, 0, at);
		assert_all("data", o.va + at, 'A' + i, len);
		assert_all("after", o.va + at + len, 0, 8 * PAGE - at - len);
		assert_int_equal(peer_move(&o.far, 0, 0, len, o.addrs[0].addr + at, o.addrs[0].rkey), 0);
		assert_all("read", o.far.buf, 'A' + i, len);
	}
	own_down(&o);
	end_device();
}

static void on_demand_is_right_or_refused(void **state)
{
	bool allowed;

	on_demand("9000", 0, &allowed);
}

static void whole_pages_on_demand(void **state)
{
	bool allowed;

	on_demand("9000", PINL_VERBS_WHOLE_PAGES, &allowed);
	if (peer_has_odp())
		assert_true(allowed);
}

static void small_packets_on_demand(void **state)
{
	bool allowed;

	on_demand("1500", PINL_VERBS_WHOLE_PAGES, &allowed);
}

/* -------------------------------------------------------------------------------------- many -- */

#define MANY 10000

static void ten_thousand_regions(void **state)
{
	struct pinl_policy p = policy(PINL_RECALL, PINL_THEN_FAIL, 0);
	struct vrig *r = *state;
	long before = pinned_kb();
	struct pinl_lease **leases;
	struct pinl_addr *addrs;
	char *va;

	SKIP_WITHOUT_DEVICE();
	leases = calloc(MANY, sizeof *leases);
	addrs = calloc(MANY, sizeof *addrs);
	assert_int_equal(ftruncate(r->fd, MANY * PAGE), 0);
	va = mmap(NULL, MANY * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	assert_ptr_not_equal(va, MAP_FAILED);
	for (size_t i = 0; i < MANY; i++)
		assert_ok(pinl_map_range(
			r->dev, (uintptr_t)va + i * PAGE, (uintptr_t)va + (i + 1) * PAGE,
			PINL_WRITE | PINL_PIN | PINL_COOPERATIVE, &p, &addrs[i], &leases[i]));
	assert_int_equal(pinned_kb(), before + MANY * (long)PAGE / 1024);
	for (size_t i = 0; i < MANY; i += 97) {
		memset(r->far.buf, 'a' + i % 26, PAGE);
		assert_int_equal(vrig_move(r, 1, PAGE, addrs[i].addr, addrs[i].rkey), IBV_WC_SUCCESS);
		assert_all("page", va + i * PAGE, 'a' + i % 26, PAGE);
	}
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 0));
	assert_int_equal(pinned_kb(), before);
	for (size_t i = 0; i < MANY; i += 997)
		assert_int_equal(vrig_move(r, 1, PAGE, addrs[i].addr, addrs[i].rkey),
				 IBV_WC_REM_ACCESS_ERR);
	for (size_t i = 0; i < MANY; i++)
		pinl_unmap_range(leases[i]);
	munmap(va, MANY * PAGE);
	free(leases);
	free(addrs);
}

/* ---------------------------------------------------------------------------- local, bad use -- */

/* A lease that peers have no right to: only the program's own requests may use it. */
static void local_use(void **state)
{
	struct vrig *r = *state;
	struct pinl_verbs_arg arg = {.size = sizeof arg, .pd = r->here.pd};
	struct ibv_mr *there, *mine = r->here.mr;
	struct pinl_device *dev;
	char *buf = r->here.buf;

	SKIP_WITHOUT_DEVICE();
	there = ibv_reg_mr(r->far.pd, r->far.buf, LEN, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
	assert_non_null(there);
	assert_ok(pinl_device_open(r->ctx, "verbs", &arg, &dev));
	pinl_device_close(r->dev);
	r->dev = dev;
	vrig_map(r, policy(PINL_RECALL, PINL_THEN_FAIL, 0), PINL_PIN);
	memset(r->va, 'S', LEN);
	assert_int_equal(vrig_move(r, 1, PAGE, r->addrs[0].addr, r->addrs[0].rkey),
			 IBV_WC_REM_ACCESS_ERR);
	vrig_connect(r);
	r->here.buf = r->va;
	r->here.mr = &(struct ibv_mr){.lkey = pinl_lease_key(r->lease)};
	assert_int_equal(peer_move(&r->here, 1, 0, LEN, (uintptr_t)r->far.buf, there->rkey),
			 IBV_WC_SUCCESS);
	assert_all("sent", r->far.buf, 'S', LEN);
	assert_ok(pinl_ftruncate(r->ctx, r->fd, 0));
	memset(r->far.buf, 0, LEN);
	assert_int_not_equal(peer_move(&r->here, 1, 0, LEN, (uintptr_t)r->far.buf, there->rkey),
			     IBV_WC_SUCCESS);
	assert_all("not sent", r->far.buf, 0, LEN);
	r->here.buf = buf;
	r->here.mr = mine;
	ibv_dereg_mr(there);
}

static void assert_no_device(struct vrig *r, const struct pinl_verbs_arg *arg, int err)
{
	struct pinl_device *dev = NULL;

	assert_int_equal(pinl_device_open(r->ctx, "verbs", arg, &dev), err);
	assert_null(dev);
	assert_true(strlen(pinl_error()) > 20);
}

static void bad_arguments(void **state)
{
	struct vrig *r = *state;
	struct pinl_verbs_arg good = {.size = sizeof good, .pd = r->here.pd}, arg;

	SKIP_WITHOUT_DEVICE();
	assert_no_device(r, NULL, -EINVAL);
	arg = good;
	arg.size = 4;
	assert_no_device(r, &arg, -EINVAL);
	arg = good;
	arg.pd = NULL;
	assert_no_device(r, &arg, -EINVAL);
	arg = good;
	arg.access = IBV_ACCESS_ON_DEMAND;
	assert_no_device(r, &arg, -EINVAL);
	arg = good;
	arg.access = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_MW_BIND;
	assert_no_device(r, &arg, -EOPNOTSUPP);
	arg = good;
	arg.means = 0x100;
	assert_no_device(r, &arg, -EINVAL);
	arg = good;
	arg.flags = 0x100;
	assert_no_device(r, &arg, -EINVAL);
	arg = good;
	arg.means = PINL_VERBS_QP;
	assert_no_device(r, &arg, -EINVAL);
	arg.n_qps = 1;
	arg.qps = &r->far.qp; /* of another context */
	assert_no_device(r, &arg, -EINVAL);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, vrig_up, vrig_down)

int main(int argc, char **argv)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_link_deleted_while_leased),
		cmocka_unit_test(on_demand_is_right_or_refused),
		cmocka_unit_test(whole_pages_on_demand),
		cmocka_unit_test(small_packets_on_demand),
		TEST(ten_thousand_regions),
		TEST(local_use),
		TEST(bad_arguments),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
