/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A picture on a terminal, or printed. Lines are made once for both. */
#include <curses.h>
#include <limits.h>
#include <locale.h>
#include <string.h>
#include <term.h>
#include <time.h>
#include <unistd.h>

#include "common.h"
#include "top.h"

static SCREEN *terminal;

/* Where lines go: rows of the terminal, or stdout where there is none. */
struct sheet {
	int row, rows, cols;
	char line[1024];
};

static void put(struct sheet *s, int attribute)
{
	if (!terminal) {
		puts(s->line);
		return;
	}
	if (s->row >= s->rows)
		return;
	attrset(attribute);
	mvaddnstr(s->row++, 0, s->line, s->cols);
	attrset(A_NORMAL);
}

/* ----------------------------------------------------------------------------------------- lines -- */

static const char *const titles[TOP_NR] = {"HOLDER", "FILE", "DEVICE"};

static void put_head(struct sheet *s, const struct top_picture *p)
{
	const struct pl_status_msg *st = &p->status;
	char bytes[24], up[24];
	time_t now = time(NULL);
	struct tm tm;

	localtime_r(&now, &tm);
	tool_size_words(st->bytes, p->exact, bytes, sizeof bytes);
	tool_age_words(tool_now() - st->since_ns, up, sizeof up);
	snprintf(s->line, sizeof s->line,
		 "pinlease top %02d:%02d:%02d, up %s: %lu lease%s of %u holder%s, %s%s", tm.tm_hour,
		 tm.tm_min, tm.tm_sec, up, (unsigned long)st->leases, tool_s(st->leases), st->holders,
		 tool_s(st->holders), bytes, p->exact ? " bytes" : "");
	put(s, A_BOLD);
	snprintf(s->line, sizeof s->line,
		 "recalls: %zu now, %lu ever; %lu quiesced, %lu forced, %lu refused; %lu held now",
		 p->n_recalls, (unsigned long)st->notices, (unsigned long)st->quiesced,
		 (unsigned long)st->forced, (unsigned long)st->refused, (unsigned long)st->held);
	put(s, A_NORMAL);
	*s->line = 0;
	put(s, A_NORMAL);
}

static void put_title(struct sheet *s, const struct top_picture *p)
{
	int w = p->exact ? 15 : 6;

	snprintf(s->line, sizeof s->line, "%7s %*s %*s %7s %7s %-*s", "LEASES", w, "LEASED", w, "PINNED",
		 "OLDEST", "RECALLS", terminal ? s->cols : 0, titles[p->by]);
	put(s, A_REVERSE);
}

static void put_group(struct sheet *s, const struct top_picture *p, const struct top_group *g)
{
	const struct pl_entry_msg *e = g->first;
	char leased[24], pinned[24], age[24], path[512];
	int w = p->exact ? 15 : 6, used;

	tool_size_words(g->leased, p->exact, leased, sizeof leased);
	tool_size_words(g->pinned, p->exact, pinned, sizeof pinned);
	tool_age_words(tool_now() - g->oldest_ns, age, sizeof age);
	used = snprintf(s->line, sizeof s->line, "%7lu %*s %*s %7s %7u ", (unsigned long)g->leases, w,
			leased, w, pinned, age, g->recalls);
	if (p->by == TOP_HOLDER)
		tool_append(s->line, sizeof s->line, "%d %s", e->pid, e->program);
	else if (p->by == TOP_DEVICE)
		tool_append(s->line, sizeof s->line, "%s", e->device);
	else {
		tool_path_words(e->path, s->cols - used, path, sizeof path);
		tool_append(s->line, sizeof s->line, "%s", path);
	}
	put(s, g->recalls ? A_BOLD : A_NORMAL);
}

static void put_recall(struct sheet *s, const struct top_picture *p, const struct pl_entry_msg *e)
{
	uint64_t now = tool_now();
	char size[24], left[24] = "forcing", path[512];
	int used;

	if (e->state == PINL_NOTICED)
		snprintf(left, sizeof left, "%.1fs",
			 e->deadline_ns > now ? (double)(e->deadline_ns - now) / 1e9 : 0.0);
	tool_size_words(e->recall_end - e->recall_start, p->exact, size, sizeof size);
	used = snprintf(s->line, sizeof s->line, "%7d %-10.10s %7lu %*s %8s ", e->pid, e->program,
			(unsigned long)e->lease, p->exact ? 15 : 6, size, left);
	tool_path_words(e->path, s->cols - used, path, sizeof path);
	tool_append(s->line, sizeof s->line, "%s", path);
	put(s, A_BOLD);
	ps_actor_words(e, path, sizeof path);
	snprintf(s->line, sizeof s->line, "        %s", path);
	put(s, A_NORMAL);
}

static void put_recalls(struct sheet *s, const struct top_picture *p, size_t n)
{
	if (!n)
		return;
	*s->line = 0;
	put(s, A_NORMAL);
	snprintf(s->line, sizeof s->line, "%7s %-10s %7s %*s %8s %-*s", "PID", "RECALLED", "LEASE",
		 p->exact ? 15 : 6, "SIZE", "LEFT", terminal ? s->cols : 0, "FILE");
	put(s, A_REVERSE);
	for (size_t i = 0; i < n; i++)
		put_recall(s, p, &p->found.entries[i]);
}

/* ------------------------------------------------------------------------------------- the whole -- */

/* Recalls have at most half of the room, two rows each, holders what is left; the last row is for the
 * keys. */
static void put_all(struct sheet *s, const struct top_picture *p)
{
	size_t room = terminal ? (size_t)(s->rows > 5 ? s->rows - 5 : 0) : SIZE_MAX;
	size_t recalls = p->n_recalls, most = room > 4 ? (room / 2 - 2) / 2 : 0;

	if (terminal && recalls > most)
		recalls = most;
	if (terminal && recalls)
		room -= 2 * recalls + 2;
	put_head(s, p);
	put_title(s, p);
	for (size_t i = 0; i < p->n_groups && i < room; i++)
		put_group(s, p, &p->groups[i]);
	put_recalls(s, p, recalls);
}

void top_print(const struct top_picture *p)
{
	struct sheet s = {.cols = isatty(STDOUT_FILENO) ? tool_width(stdout, 120) : INT_MAX / 2};

	put_all(&s, p);
}

static bool can_show(void)
{
	bool can;
	int err;

	if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO) ||
	    setupterm(NULL, STDOUT_FILENO, &err) != OK)
		return false;
	can = cursor_address;
	del_curterm(cur_term);
	return can;
}

bool top_screen_open(void)
{
	setlocale(LC_ALL, "");
	if (!can_show())
		return false;
	terminal = newterm(NULL, stdout, stdin);
	if (!terminal)
		return false;
	cbreak();
	noecho();
	keypad(stdscr, TRUE);
	curs_set(0);
	return true;
}

void top_screen_close(void)
{
	if (!terminal)
		return;
	endwin();
	delscreen(terminal);
	terminal = NULL;
}

void top_screen_show(const struct top_picture *p)
{
	struct sheet s = {0};

	getmaxyx(stdscr, s.rows, s.cols);
	erase();
	if (p->error) {
		tool_path_words(p->error, 1000, s.line, sizeof s.line);
		put(&s, A_BOLD);
	} else {
		s.rows--;
		put_all(&s, p);
		s.rows++;
	}
	s.row = s.rows - 1;
	snprintf(s.line, sizeof s.line,
		 "h holders  f files  d devices  b exact  + - every %.1fs  space now  q quit",
		 p->delay_ms / 1000.0);
	put(&s, A_REVERSE);
	refresh();
}

int top_screen_key(unsigned ms)
{
	uint64_t begun = tool_now();
	int key;

	timeout((int)ms);
	key = getch();
	if (key != ERR)
		return key;
	return tool_now() - begun < ms * 500000ull ? -2
						   : -1; /* a terminal that has gone is at its end */
}
