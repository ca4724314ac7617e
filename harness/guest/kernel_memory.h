/* SPDX-License-Identifier: GPL-2.0-only */
/* How much memory the kernel uses, for tests that want it back afterwards */
#ifndef KERNEL_MEMORY_H
#define KERNEL_MEMORY_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <libvfio.h>
#include <libvfio/vfio_pci_dmabuf.h>

#define MAX_CACHES	512
#define BUFINFO		"/sys/kernel/debug/dma_buf/bufinfo"

struct kernel_memory {
	int nr;
	struct {
		char name[40];
		long objects;
		long size;
	} caches[MAX_CACHES];

	/* Pages that are neither a process' nor slab: page tables, stacks, vmalloc */
	long other_kib;
	char meminfo[4096];
	int dmabufs;
};

/* -1 if the kernel does not tell */
static inline int count_dmabufs(void)
{
	FILE *file = fopen(BUFINFO, "r");
	char line[256];
	int nr = -1;

	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file))
		sscanf(line, "Total %d objects", &nr);
	fclose(file);
	return nr;
}

static inline long meminfo_kib(const char *text, const char *name)
{
	const char *at = strstr(text, name);

	return at ? atol(at + strlen(name)) : 0;
}

/* Free pages that processors keep, which MemFree leaves out */
static inline long percpu_free_kib(void)
{
	FILE *file = fopen("/proc/zoneinfo", "r");
	long count, sum = 0;
	char line[256];

	while (file && fgets(line, sizeof(line), file)) {
		if (sscanf(line, " count: %ld", &count) == 1)
			sum += count;
	}
	if (file)
		fclose(file);
	return sum * (getpagesize() / 1024);
}

static inline void kernel_memory_read(struct kernel_memory *memory)
{
	char line[512], *text = memory->meminfo;
	FILE *file;
	ssize_t length;
	int fd;

	memset(memory, 0, sizeof(*memory));
	file = fopen("/proc/slabinfo", "r");
	while (file && fgets(line, sizeof(line), file) && memory->nr < MAX_CACHES) {
		if (sscanf(line, "%39s %ld %*d %ld", memory->caches[memory->nr].name,
			   &memory->caches[memory->nr].objects,
			   &memory->caches[memory->nr].size) == 3)
			memory->nr++;
	}
	if (file)
		fclose(file);

	fd = open("/proc/meminfo", O_RDONLY | O_CLOEXEC);
	length = fd < 0 ? 0 : read(fd, text, sizeof(memory->meminfo) - 1);
	text[length < 0 ? 0 : length] = 0;
	close(fd);
	memory->other_kib = meminfo_kib(text, "MemTotal:") - meminfo_kib(text, "MemFree:") -
			    meminfo_kib(text, "\nCached:") - meminfo_kib(text, "Buffers:") -
			    meminfo_kib(text, "AnonPages:") - meminfo_kib(text, "\nSlab:") -
			    percpu_free_kib();
	memory->dmabufs = count_dmabufs();
}

/*
 * What is free is to count as free: not what the caches of processors keep, nor
 * what waits for an RCU grace period or in KASAN's quarantine, which shrinking a
 * cache empties.
 */
static inline void kernel_memory_shrink(void)
{
	struct dirent *entry;
	char path[300];
	DIR *dir;

	usleep(200000);
	write_text("/proc/sys/vm/drop_caches", "3");
	dir = opendir("/sys/kernel/slab");
	while (dir && (entry = readdir(dir))) {
		snprintf(path, sizeof(path), "/sys/kernel/slab/%s/shrink", entry->d_name);
		write_text(path, "1");
	}
	if (dir)
		closedir(dir);
	write_text("/proc/sys/vm/compact_memory", "1");
}

static inline long kernel_memory_objects(const struct kernel_memory *memory)
{
	long sum = 0;
	int i;

	for (i = 0; i < memory->nr; i++)
		sum += memory->caches[i].objects;
	return sum;
}

/* Waits for it to come to rest: work that frees memory later ends at some time. */
static inline void kernel_memory_settle(struct kernel_memory *memory)
{
	long last, objects = -1, last_kib, kib = -1;
	int round;

	for (round = 0; round < 10; round++) {
		last = objects;
		last_kib = kib;
		kernel_memory_shrink();
		kernel_memory_read(memory);
		objects = kernel_memory_objects(memory);
		kib = memory->other_kib;
		if (labs(objects - last) < 20 && labs(kib - last_kib) < 64)
			break;
	}
}

static inline long kernel_memory_cache(const struct kernel_memory *memory, const char *name)
{
	int i;

	for (i = 0; i < memory->nr; i++) {
		if (!strcmp(memory->caches[i].name, name))
			return memory->caches[i].objects;
	}
	return 0;
}

/* Lines of /proc/meminfo that changed by @tell or more */
static inline void kernel_memory_tell(const struct kernel_memory *before,
				      const struct kernel_memory *after, long tell)
{
	const char *line = after->meminfo;
	char name[41];
	long kib;

	while (sscanf(line, "%39[^:]: %ld", name, &kib) == 2) {
		strcat(name, ":");
		kib -= meminfo_kib(before->meminfo, name);
		if (labs(kib) >= tell)
			printf("# %s %+ld KiB\n", name, kib);
		line = strchr(line, '\n');
		if (!line++)
			break;
	}
}

/*
 * How many objects more the cache has that grew the most, beyond what it grew by
 * between @ref[0] and @ref[1] if that is given. Caches that grew by @tell or more
 * are named.
 */
static inline long kernel_memory_growth(const struct kernel_memory *before,
					const struct kernel_memory *after,
					const struct kernel_memory *ref, long tell)
{
	long growth, most = 0;
	int i;

	for (i = 0; i < after->nr; i++) {
		const char *name = after->caches[i].name;

		growth = after->caches[i].objects - kernel_memory_cache(before, name);
		if (ref)
			growth -= kernel_memory_cache(&ref[1], name) -
				  kernel_memory_cache(&ref[0], name);
		if (growth >= tell)
			printf("# %s: %ld more objects of %ld bytes\n", name, growth,
			       after->caches[i].size);
		if (growth > most)
			most = growth;
	}
	return most;
}

#endif
