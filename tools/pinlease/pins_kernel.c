/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The census' programs, and what they need to know of this kernel. Whatever can be refused is refused
 * here, by one sentence with the cause and the remedy.
 */
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <linux/capability.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <census.skel.h>
#include "command.h"
#include "common.h"
#include "pins.h"

#define FIRST_PID_NAMESPACE 0xeffffffcu /* PID_NS_INIT_INO */

static struct {
	char *buf;
	size_t len;
} hears;

void pins_hear(char *buf, size_t len)
{
	hears.buf = buf;
	hears.len = len;
}

void pins_say(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	if (hears.buf)
		vsnprintf(hears.buf, hears.len, fmt, ap);
	else {
		fputs("pinlease pins: ", stderr);
		vfprintf(stderr, fmt, ap);
	}
	va_end(ap);
	if (hears.buf)
		return;
	fputc('\n', stderr);
}

void *pins_add(struct pins_vec *v, const void *item)
{
	void *more;

	if (v->n == v->room) {
		v->room = v->room ? 2 * v->room : 64;
		more = realloc(v->items, v->room * v->size);
		if (!more) { /* nothing that outlives the process */
			pins_say("out of memory");
			exit(EXIT_CANT_START);
		}
		v->items = more;
	}
	return memcpy((char *)v->items + v->n++ * v->size, item, v->size);
}

void pins_order(struct pins_vec *v, int (*compare)(const void *, const void *))
{
	if (v->n) /* qsort() takes no NULL */
		qsort(v->items, v->n, v->size, compare);
}

void pins_drop_doubles(struct pins_vec *v, int (*compare)(const void *, const void *))
{
	char *items = v->items;
	size_t to = 0;

	for (size_t i = 0; i < v->n; i++) {
		const char *item = items + i * v->size;

		if (!to || compare(items + (to - 1) * v->size, item))
			memmove(items + to++ * v->size, item, v->size);
	}
	v->n = to;
}

void pins_free(struct pins_vec *v)
{
	free(v->items);
	v->items = NULL;
	v->n = v->room = 0;
}

/* --------------------------------------------------------------------------------------- layout -- */

static const struct btf_type *plain(const struct btf *btf, uint32_t id)
{
	const struct btf_type *t = btf__type_by_id(btf, id);

	while (t && (btf_is_mod(t) || btf_is_typedef(t)))
		t = btf__type_by_id(btf, t->type);
	return t;
}

/* The member by this name, also of unions and structures without one. */
static const struct btf_type *member(const struct btf *btf, const struct btf_type *t, const char *name,
				     size_t len, uint32_t *bits, uint32_t *id)
{
	const struct btf_member *m = btf_members(t);

	for (int i = 0; i < btf_vlen(t); i++, m++) {
		const char *found = btf__name_by_offset(btf, m->name_off);
		const struct btf_type *type = plain(btf, m->type), *inner;
		uint32_t offset = btf_member_bit_offset(t, i);

		if (!*found && type && btf_is_composite(type)) {
			inner = member(btf, type, name, len, bits, id);
			if (inner) {
				*bits += offset;
				return inner;
			}
		} else if (strlen(found) == len && !memcmp(found, name, len)) {
			*bits += offset;
			*id = m->type;
			return type;
		}
	}
	return NULL;
}

static long find_in(const struct btf *btf, const char *type, const char *path, uint32_t *id)
{
	int first = btf__find_by_name_kind(btf, type, BTF_KIND_STRUCT);
	const struct btf_type *t = first < 0 ? NULL : btf__type_by_id(btf, first);
	uint32_t bits = 0;

	*id = first;
	for (; t && *path; path += *path == '.') {
		size_t len = strcspn(path, ".");

		t = btf_is_composite(t) ? member(btf, t, path, len, &bits, id) : NULL;
		path += len;
	}
	return t ? (long)bits / 8 : -ENOENT;
}

static long find(const struct census *c, const char *type, const char *path, uint32_t *id,
		 const struct btf **btf)
{
	long offset = find_in(*btf = c->btf, type, path, id);

	for (int i = 0; offset < 0 && i < c->nr_modules; i++)
		offset = find_in(*btf = c->modules[i], type, path, id);
	return offset;
}

void pins_module(struct census *c, const char *name)
{
	char path[80];
	struct btf *btf;

	snprintf(path, sizeof path, "/sys/kernel/btf/%s", name);
	if (c->nr_modules == PINS_MODULES || access(path, R_OK))
		return;
	btf = btf__parse_split(path, c->btf);
	if (btf)
		c->modules[c->nr_modules++] = btf;
	c->places.n = 0; /* also what wasn't found */
}

/* Names are literals, so the same one is the same pointer, mostly. */
static struct pins_place *place(struct census *c, const char *type, const char *path)
{
	struct pins_place *p = c->places.items, new = {.type = type, .path = path};
	const struct btf *btf;
	uint32_t id;

	for (size_t i = 0; i < c->places.n; i++)
		if (p[i].type == type && p[i].path == path)
			return &p[i];
	new.offset = find(c, type, path, &id, &btf);
	new.size = new.offset < 0 ? new.offset : (long)btf__resolve_size(btf, id);
	return pins_add(&c->places, &new);
}

long pins_offset(struct census *c, const char *type, const char *path)
{
	return place(c, type, path)->offset;
}

long pins_offset_of(struct census *c, const char *type, const char *path, const char *other)
{
	long offset = pins_offset(c, type, path);

	return offset < 0 ? pins_offset(c, type, other) : offset;
}

long pins_size(struct census *c, const char *type, const char *path)
{
	return place(c, type, path)->size;
}

bool pins_has_function(const struct census *c, const char *name)
{
	return btf__find_by_name_kind(c->btf, name, BTF_KIND_FUNC) >= 0;
}

static int page_bit(const struct census *c, const char *name)
{
	int id = btf__find_by_name_kind(c->btf, "pageflags", BTF_KIND_ENUM);
	const struct btf_type *t = id < 0 ? NULL : btf__type_by_id(c->btf, id);

	for (int i = 0; t && i < btf_vlen(t); i++)
		if (!strcmp(btf__name_by_offset(c->btf, btf_enum(t)[i].name_off), name))
			return btf_enum(t)[i].val;
	return -ENOENT;
}

static int learn(struct census *c)
{
	int page = btf__find_by_name_kind(c->btf, "page", BTF_KIND_STRUCT),
	    head = page_bit(c, "PG_head"), lru = page_bit(c, "PG_lru"),
	    cache = page_bit(c, "PG_swapcache"), backed = page_bit(c, "PG_swapbacked");
	long tail = pins_offset_of(c, "page", "compound_head", "compound_info"),
	     mapcount = pins_offset(c, "folio", "_mapcount"),
	     refs = pins_offset(c, "folio", "_refcount"), pins = pins_offset(c, "folio", "_pincount"),
	     nr = pins_offset_of(c, "folio", "_folio_nr_pages", "_nr_pages");

	if (page < 0 || btf__resolve_size(c->btf, page) != CENSUS_PAGE_SIZE)
		pins_say("this kernel's struct page is not of %d bytes; only those can be read",
			 CENSUS_PAGE_SIZE);
	else if (head < 0 || lru < 0 || tail < 0 || mapcount < 0 || refs < 0 || pins < 0 || nr < 0)
		pins_say("this kernel's struct folio is not known (Linux 6.1 to 7.2 are): it needs a "
			 "newer pinlease");
	else {
		c->bpf->rodata->off_tail = tail;
		c->bpf->rodata->off_mapcount = mapcount;
		c->bpf->rodata->off_refcount = refs;
		c->bpf->rodata->off_pincount = pins;
		c->bpf->rodata->off_nr_pages = nr;
		c->bpf->rodata->bit_head = head;
		c->bpf->rodata->bit_lru = lru;
		c->bpf->rodata->bit_swapcache = cache < 0 ? 64 : cache;
		c->bpf->rodata->bit_swapbacked = backed < 0 ? 64 : backed;
		return 0;
	}
	return -EOPNOTSUPP;
}

/* ----------------------------------------------------------------------------------- loading -- */

static int check_caps(void)
{
	static const struct {
		int number;
		const char *name;
	} needed[] = {{CAP_BPF, "CAP_BPF"},
		      {CAP_PERFMON, "CAP_PERFMON"},
		      {CAP_SYS_ADMIN, "CAP_SYS_ADMIN"},
		      {CAP_SYS_PTRACE, "CAP_SYS_PTRACE"},
		      {CAP_DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH"}};
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {0};
	char missing[128] = "";

	if (syscall(SYS_capget, &head, data))
		memset(data, 0, sizeof data);
	for (size_t i = 0; i < sizeof needed / sizeof *needed; i++)
		if (!(data[needed[i].number / 32].effective & 1u << needed[i].number % 32))
			tool_append(missing, sizeof missing, "%s%s", *missing ? ", " : "",
				    needed[i].name);
	if (!*missing)
		return 0;
	if (geteuid())
		pins_say("needs CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYS_PTRACE and "
			 "CAP_DAC_READ_SEARCH, since it reads the kernel's memory; run it as root");
	else
		pins_say("this root has no %s (taken away by a container or a service), without which "
			 "nobody reads the kernel's memory; run it on the host, or give it that",
			 missing);
	return -EPERM;
}

/* The kernel's programs have the numbers of processes as the first PID namespace has them. */
static int check_namespace(void)
{
	struct stat st;

	if (stat("/proc/self/ns/pid", &st) || st.st_ino == FIRST_PID_NAMESPACE)
		return 0;
	pins_say("this is another PID namespace than the machine's (a container), where processes have "
		 "other numbers; run it on the host, or in a container that shares its (--pid=host)");
	return -EPERM;
}

static bool locked_down(void)
{
	FILE *f = fopen("/sys/kernel/security/lockdown", "re");
	char line[128] = "";

	if (f) {
		if (!fgets(line, sizeof line, f))
			*line = 0;
		fclose(f);
	}
	return strstr(line, "[confidentiality]");
}

static int quiet(enum libbpf_print_level level, const char *format, va_list args)
{
	return getenv("PINLEASE_BPF_LOG") ? vfprintf(stderr, format, args) : 0;
}

static int refuse(int err)
{
	if (locked_down())
		pins_say("the kernel is locked down (lockdown=confidentiality) and lets nobody read its "
			 "memory; boot "
			 "it with lockdown=integrity or without");
	else if (err == -EPERM || err == -EACCES)
		pins_say("the kernel refuses BPF programs here (%s); a container or a security module "
			 "may forbid "
			 "bpf(2): run it on the host",
			 strerror(-err));
	else
		pins_say("the kernel doesn't take the programs of the census (%s); PINLEASE_BPF_LOG=1 "
			 "shows why",
			 strerror(-err));
	return err;
}

int pins_load(struct census *c)
{
	int err = check_namespace();

	if (!err)
		err = check_caps();
	if (err)
		return err;
	libbpf_set_print(quiet);
	c->btf = btf__load_vmlinux_btf();
	if (!c->btf) {
		pins_say("this kernel doesn't describe itself (no /sys/kernel/btf/vmlinux); it needs "
			 "CONFIG_DEBUG_INFO_BTF");
		return -EOPNOTSUPP;
	}
	c->bpf = census_bpf__open();
	if (!c->bpf)
		return refuse(-errno);
	err = learn(c);
	if (err)
		return err;
	err = census_bpf__load(c->bpf);
	if (err)
		return refuse(err);
	c->window = mmap(NULL, CENSUS_CHUNK * sizeof *c->window, PROT_READ, MAP_SHARED,
			 bpf_map__fd(c->bpf->maps.pins), 0);
	return c->window == MAP_FAILED ? refuse(-errno) : 0;
}

void pins_unload(struct census *c)
{
	if (c->window && c->window != MAP_FAILED)
		munmap(c->window, CENSUS_CHUNK * sizeof *c->window);
	if (c->bpf)
		census_bpf__destroy(c->bpf);
	while (c->nr_modules)
		btf__free(c->modules[--c->nr_modules]);
	btf__free(c->btf);
}

/* --------------------------------------------------------------------------------------- running them
 * -- */

static int run(const struct bpf_program *program)
{
	LIBBPF_OPTS(bpf_test_run_opts, opts);

	return bpf_prog_test_run_opts(bpf_program__fd(program), &opts);
}

int pins_read(struct census *c, uint64_t addr, void *buf, size_t len)
{
	char *to = buf;

	for (size_t n; len; len -= n, to += n, addr += n) {
		n = len < CENSUS_PEEK ? len : CENSUS_PEEK;
		c->bpf->bss->peek_addr = addr;
		c->bpf->bss->peek_len = n;
		c->bpf->bss->peek_err = -1;
		if (run(c->bpf->progs.peek) || c->bpf->bss->peek_err)
			return -EFAULT;
		memcpy(to, c->bpf->bss->peeked, n);
	}
	return 0;
}

uint64_t pins_word(struct census *c, uint64_t addr)
{
	uint64_t n;

	return pins_read(c, addr, &n, sizeof n) ? 0 : n;
}

uint32_t pins_half(struct census *c, uint64_t addr)
{
	uint32_t n;

	return pins_read(c, addr, &n, sizeof n) ? 0 : n;
}

int pins_string(struct census *c, uint64_t addr, char *buf, size_t len)
{
	for (size_t i = 0; i + 8 < len; i += 8) { /* it may end before a page that isn't there */
		uint64_t part;

		if (pins_read(c, addr + i, &part, sizeof part))
			return -EFAULT;
		memcpy(buf + i, &part, sizeof part);
		if (memchr(&part, 0, sizeof part))
			return 0;
	}
	buf[(len - 1) / 8 * 8] = 0;
	return 0;
}

int pins_scan_range(struct census *c, uint64_t pfn, uint64_t nr, bool everything, struct pins_vec *to)
{
	for (uint64_t part; nr; nr -= part, pfn += part) {
		part = nr < CENSUS_CHUNK ? nr : CENSUS_CHUNK;
		c->bpf->bss->first_pfn = pfn;
		c->bpf->bss->nr_pfns = part;
		c->bpf->bss->nr_pins = 0;
		c->bpf->bss->everything = everything;
		if (run(c->bpf->progs.scan))
			return refuse(-errno);
		for (uint32_t i = 0; i < c->bpf->bss->nr_pins && i < CENSUS_CHUNK; i++)
			pins_add(to, &c->window[i]);
	}
	return 0;
}

static int read_all(int fd, struct pins_vec *to)
{
	char buf[65536];
	size_t have = 0, used;
	ssize_t n;

	while ((n = read(fd, buf + have, sizeof buf - have)) != 0) {
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		have += n;
		for (used = 0; have - used >= to->size; used += to->size)
			pins_add(to, buf + used);
		memmove(buf, buf + used, have - used);
		have -= used;
	}
	return 0;
}

int pins_iterate(struct census *c, enum pins_iterator which, struct pins_vec *to)
{
	const struct bpf_program *programs[] = {c->bpf->progs.files, c->bpf->progs.vmas,
						c->bpf->progs.tasks};
	struct bpf_link *link = bpf_program__attach_iter(programs[which], NULL);
	int fd, err;

	if (!link)
		return refuse(-errno);
	fd = bpf_iter_create(bpf_link__fd(link));
	err = fd < 0 ? -errno : read_all(fd, to);
	if (fd >= 0)
		close(fd);
	bpf_link__destroy(link);
	return err ? refuse(err) : 0;
}
