/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The names of the kernel's functions. An address is of the one below it only if both are in the
 * kernel's own text, or in the same module; of all else (trampolines, programs) nothing is said, however
 * near a name may be.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "pins_live.h"

#define MODULE 56

struct symbol {
	uint64_t addr;
	char name[56], module[MODULE]; /* module: "" of the kernel */
};

struct module {
	uint64_t start, end;
	char name[MODULE];
};

static struct pins_vec symbols = {.size = sizeof(struct symbol)};
static struct pins_vec modules = {.size = sizeof(struct module)};
static uint64_t text, text_end; /* of the kernel */

static int by_address(const void *a, const void *b)
{
	const struct symbol *x = a, *y = b;

	return x->addr != y->addr ? (x->addr < y->addr ? -1 : 1) : 0;
}

static void read_symbols(void)
{
	FILE *f = fopen("/proc/kallsyms", "re");
	char line[512], type;

	symbols.n = 0;
	while (f && fgets(line, sizeof line, f)) {
		struct symbol s = {0};

		if (sscanf(line, "%lx %c %55s [%55[^]]", &s.addr, &type, s.name, s.module) < 3)
			continue;
		if (!strcmp(s.name, "_stext"))
			text = s.addr;
		else if (!strcmp(s.name, "_etext"))
			text_end = s.addr;
		else if (s.addr && strchr("tTwW", type))
			pins_add(&symbols, &s);
	}
	if (f)
		fclose(f);
	pins_order(&symbols, by_address);
}

/* True: others than before. */
static bool read_modules(void)
{
	struct pins_vec now = {.size = sizeof(struct module)};
	FILE *f = fopen("/proc/modules", "re");
	char line[4096];
	uint64_t size;
	bool changed;

	while (f && fgets(line, sizeof line, f)) {
		struct module m = {0};

		if (sscanf(line, "%55s %lu %*s %*s %*s %lx", m.name, &size, &m.start) != 3)
			continue;
		m.end = m.start + size;
		pins_add(&now, &m);
	}
	if (f)
		fclose(f);
	changed = now.n != modules.n ||
		  (now.n && memcmp(now.items, modules.items, now.n * sizeof(struct module)) != 0);
	pins_free(&modules);
	modules = now;
	return changed;
}

static bool is_in(const struct symbol *s, uint64_t addr)
{
	if (!*s->module)
		return addr >= text && addr < text_end;
	for (size_t i = 0; i < modules.n; i++) {
		const struct module *m = pins_at(&modules, struct module, i);

		if (!strcmp(m->name, s->module))
			return addr >= m->start && addr < m->end;
	}
	return false;
}

static const char *find(uint64_t addr)
{
	size_t low = 0, high = symbols.n;
	const struct symbol *s;

	while (low < high) {
		size_t mid = (low + high) / 2;

		if (pins_at(&symbols, struct symbol, mid)->addr <= addr)
			low = mid + 1;
		else
			high = mid;
	}
	if (!low)
		return NULL;
	s = pins_at(&symbols, struct symbol, low - 1);
	return is_in(s, addr) ? s->name : NULL;
}

int live_load_symbols(void)
{
	read_modules();
	read_symbols();
	if (text && text_end)
		return 0;
	pins_say("the kernel shows no addresses of its functions, so that sites are \"?\" and devices "
		 "\"other\": "
		 "kernel.kptr_restrict is 2, or CAP_SYSLOG is missing; set it to 1, and run as root");
	return -EPERM;
}

/* A module may have come since. */
const char *live_symbol(uint64_t addr)
{
	const char *name = find(addr);

	if (name || !text || !read_modules())
		return name;
	read_symbols();
	return find(addr);
}

void live_free_symbols(void)
{
	pins_free(&symbols);
	pins_free(&modules);
}
