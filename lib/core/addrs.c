/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Device addresses, page by page, as runs. */
#include <errno.h>
#include <pinlease/device.h>
#include <string.h>

#define PAGE 4096u

/* Everything but the address is the same: the keys, and what may be added to them. */
static int same_keys(struct pinl_addr a, struct pinl_addr b)
{
	a.addr = b.addr = 0;
	return !memcmp(&a, &b, sizeof a);
}

int pinl_addrs_coalesce(const struct pinl_addr *addrs, size_t n, struct pinl_run *runs, size_t max,
			size_t *found)
{
	struct pinl_run run = {.len = 0};
	size_t count = 0;

	if ((n && !addrs) || (max && !runs) || !found)
		return pinl_set_error(-EINVAL,
				      "addresses and a place for runs and their number are needed");
	for (size_t i = 0; i < n; i++) {
		if (run.len && addrs[i].addr == run.at.addr + run.len && addrs[i].addr &&
		    same_keys(addrs[i], run.at)) {
			run.len += PAGE;
		} else {
			run = (struct pinl_run){.at = addrs[i], .len = PAGE};
			count++;
		}
		if (count <= max)
			runs[count - 1] = run;
	}
	*found = count;
	return 0;
}
