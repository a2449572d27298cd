/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Holds a memory region: prints its address and size; a line unmaps the memory; it ends when its input
 * does. */
#include <infiniband/verbs.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>

#define SIZE (700 * 4096ul) /* more than one page of scatterlists */

static int hold(struct ibv_context *context)
{
	struct ibv_pd *pd = ibv_alloc_pd(context);
	char *mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
	     line[16];
	struct ibv_mr *mr;

	if (!pd || mem == MAP_FAILED)
		return 2;
	madvise(mem, SIZE, MADV_NOHUGEPAGE);
	for (size_t at = SIZE; at; at -= 4096) /* so that pages don't follow each other */
		mem[at - 1] = 1;
	mr = ibv_reg_mr(pd, mem, SIZE, IBV_ACCESS_LOCAL_WRITE);
	if (!mr)
		return 3;
	printf("%lu %lu\n", (unsigned long)(uintptr_t)mem, SIZE);
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		munmap(mem, SIZE);
		puts("unmapped");
		fflush(stdout);
	}
	return ibv_dereg_mr(mr) || ibv_dealloc_pd(pd) ? 4 : 0;
}

int main(void)
{
	struct ibv_device **devices = ibv_get_device_list(NULL);
	struct ibv_context *context = devices && *devices ? ibv_open_device(*devices) : NULL;
	int status = context ? hold(context) : 1;

	if (context)
		ibv_close_device(context);
	if (devices)
		ibv_free_device_list(devices);
	return status;
}
