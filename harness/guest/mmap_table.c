// SPDX-License-Identifier: GPL-2.0-only
/*
 * What mmap() of a vfio device fd does, for all that a user can pass, and what
 * the mappings are like. Runs in the guest of harness/vm, on this series' kernel
 * and on a stock one, and prints the same on both (harness/mmap-table compares):
 *
 *	mmap_table MEM_BDF MEM_BAR REG_BDF NVME_BDF
 *
 * One line a case: "DEVICE WAY SECTION CASE: RESULT". The sections:
 *
 *	region	VFIO_DEVICE_GET_REGION_INFO
 *	mmap	the error of mmap(), a letter for each flag and, within it, for each
 *		protection, see @flag_rows, @prots and @letters
 *	unbound, read-only, write-only: the same for devices that are not bound yet or
 *		opened for less (by group there is no such thing)
 *	life	mappings that there are, and what else can be done with them
 *	twice	of two opens of a device one is closed
 *	file	what shows the file behind a mapping: the one thing that differs
 *
 * The first and the last page that are mapped are touched: '.' all is well, B
 * SIGBUS, S SIGSEGV, '-' not tried. No register is written to.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/align.h>
#include <linux/compiler.h>
#include <linux/futex.h>
#include <linux/kernel.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>
#include <libvfio/vfio_pci_dmabuf.h>

#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE		0x08
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP	4
#endif
#ifndef __NR_mseal
#define __NR_mseal		462
#endif

#define REGION_SHIFT		40
#define REGION_SIZE		(1ULL << REGION_SHIFT)
#define NR_INDICES		(1U << (64 - REGION_SHIFT))
#define FIXED			(MAP_FIXED | MAP_FIXED_NOREPLACE)

static struct vfio_pci_device *device;
static const char *device_name, *way, *section;
static int mem_bar;
static size_t page;
static unsigned int nr_rows;

/* Addresses where nothing is, for mappings that ask for theirs */
static void *arena;
static size_t arena_size;

static void __printf(1, 2) row(const char *format, ...)
{
	va_list args;

	printf("%s %s %s ", device_name, way, section);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
	nr_rows++;
}

/* Of a system call that just returned @ret */
static const char *result(long ret)
{
	const char *name;

	if (ret != -1)
		return "ok";
	name = strerrorname_np(errno);
	return name ? name : "?";
}

static void reserve(void *vaddr, size_t size)
{
	VFIO_ASSERT_EQ((long)mmap(vaddr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED |
				  MAP_NORESERVE, -1, 0), (long)vaddr);
}

static u64 region_offset(u32 index)
{
	return (u64)index << REGION_SHIFT;
}

/* -- region ------------------------------------------------------------------ */

static u64 region_size(u32 index)
{
	struct vfio_region_info info = { .argsz = sizeof(info), .index = index };

	return ioctl(device->fd, VFIO_DEVICE_GET_REGION_INFO, &info) ? 0 : info.size;
}

static bool is_mappable(u32 index)
{
	return index < PCI_STD_NUM_BARS &&
	       (device->bars[index].info.flags & VFIO_REGION_INFO_FLAG_MMAP);
}

static void print_caps(const void *info, u32 size, u32 offset, char *text, size_t room)
{
	int used = 0;
	u32 i;

	*text = 0;
	while (offset) {
		const struct vfio_info_cap_header *head = info + offset;
		const struct vfio_region_info_cap_sparse_mmap *sparse = info + offset;

		VFIO_ASSERT_LE(offset + sizeof(*head), size);
		used += snprintf(text + used, room - used, " cap %u.%u", head->id, head->version);
		if (head->id == VFIO_REGION_INFO_CAP_SPARSE_MMAP) {
			for (i = 0; i < sparse->nr_areas; i++)
				used += snprintf(text + used, room - used, " %#llx+%#llx",
						 (unsigned long long)sparse->areas[i].offset,
						 (unsigned long long)sparse->areas[i].size);
		}
		VFIO_ASSERT_LT(used, room);
		offset = head->next;
	}
}

static void region_row(u32 index)
{
	union {
		struct vfio_region_info info;
		u8 bytes[4096];
	} u;
	char caps[1024];

	memset(&u, 0, sizeof(u));
	u.info.argsz = sizeof(u);
	u.info.index = index;
	if (ioctl(device->fd, VFIO_DEVICE_GET_REGION_INFO, &u)) {
		row("%#x: %s", index, result(-1));
		return;
	}
	print_caps(&u, sizeof(u), u.info.cap_offset, caps, sizeof(caps));
	row("%#x: argsz %u flags %#x size %#llx offset %#llx%s", index, u.info.argsz, u.info.flags,
	    (unsigned long long)u.info.size, (unsigned long long)u.info.offset, caps);
}

static void do_regions(void)
{
	u32 index;

	section = "region";
	for (index = 0; index <= VFIO_PCI_NUM_REGIONS + 2; index++)
		region_row(index);
	for (index = 16; index; index <<= 1) {
		region_row(index - 1);
		region_row(index);
	}
	region_row(UINT_MAX);
}

/* -- mmap -------------------------------------------------------------------- */

static const struct {
	const char *name;
	int flags;
} flag_rows[] = {
	{ "shared", MAP_SHARED },
	{ "validate", MAP_SHARED_VALIDATE },
	{ "private", MAP_PRIVATE },
	{ "neither", 0 },
	{ "droppable", MAP_DROPPABLE },
	{ "no-such-type", 0x0e },
	/* At an odd page, which no huge page is aligned with */
	{ "fixed", MAP_SHARED | MAP_FIXED },
	{ "fixed-private", MAP_PRIVATE | MAP_FIXED },
	{ "fixed-noreplace", MAP_SHARED | MAP_FIXED_NOREPLACE },
	{ "populate", MAP_SHARED | MAP_POPULATE },
	{ "locked", MAP_SHARED | MAP_LOCKED },
	{ "locked-populate", MAP_SHARED | MAP_LOCKED | MAP_POPULATE | MAP_NONBLOCK },
	{ "hugetlb", MAP_SHARED | MAP_HUGETLB },
	{ "noreserve", MAP_SHARED | MAP_NORESERVE },
	{ "growsdown", MAP_SHARED | MAP_GROWSDOWN },
	{ "stack", MAP_SHARED | MAP_STACK },
	{ "denywrite", MAP_SHARED | MAP_DENYWRITE | MAP_EXECUTABLE },
	{ "sync", MAP_SHARED_VALIDATE | MAP_SYNC },
	{ "no-such-flag", MAP_SHARED | 0x40000000 },
	{ "validate-no-such-flag", MAP_SHARED_VALIDATE | 0x40000000 },
#ifdef MAP_32BIT
	{ "32bit", MAP_SHARED | MAP_32BIT },
#endif
};

static const struct {
	const char *name;
	int prot;
} prots[] = {
	{ "none", PROT_NONE },
	{ "r", PROT_READ },
	{ "w", PROT_WRITE },
	{ "rw", PROT_READ | PROT_WRITE },
	{ "rx", PROT_READ | PROT_EXEC },
};

static const struct {
	int error;
	char letter;
} letters[] = {
	{ EINVAL, 'i' }, { ENOMEM, 'm' }, { EOVERFLOW, 'o' }, { EACCES, 'a' }, { EPERM, 'p' },
	{ EEXIST, 'e' }, { ENODEV, 'd' }, { EOPNOTSUPP, 's' }, { EBUSY, 'b' }, { EAGAIN, 'l' },
	{ EBADF, 'f' }, { ENXIO, 'x' }, { EFAULT, 't' }, { EIO, 'u' },
};

static char letter(int error)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(letters); i++) {
		if (letters[i].error == error)
			return letters[i].letter;
	}
	return '?';
}

static char try_mmap(int fd, u64 offset, u64 length, int prot, int flags)
{
	void *at = flags & FIXED ? arena + page : NULL;
	void *vaddr = mmap(at, length, prot, flags, fd, offset);
	char ret = '.';

	if (vaddr == MAP_FAILED)
		ret = letter(errno);
	else
		munmap_bar(vaddr, length);
	/* Even one that failed may have made room */
	if (at && length && length < arena_size / 2)
		reserve(at, ALIGN(length, page));
	return ret;
}

static void mmap_row(int fd, const char *region, const char *offset_name, u64 offset,
		     const char *length_name, u64 length)
{
	char cells[ARRAY_SIZE(flag_rows) * (ARRAY_SIZE(prots) + 1)], *cell = cells;
	int i, j;

	if (length > SIZE_MAX)
		return;

	for (i = 0; i < ARRAY_SIZE(flag_rows); i++) {
		for (j = 0; j < ARRAY_SIZE(prots); j++)
			*cell++ = try_mmap(fd, offset, length, prots[j].prot, flag_rows[i].flags);
		*cell++ = ' ';
	}
	cell[-1] = 0;
	row("%s at %s for %s: %s", region, offset_name, length_name, cells);
}

static void mmap_rows(int fd, u32 index, u64 size, bool all)
{
	const struct {
		const char *name;
		u64 offset;
	} offsets[] = {
		{ "0", 0 },
		{ "far-end", REGION_SIZE - page },
		{ "page", page },
		{ "1", 1 },
		{ "middle", ALIGN_DOWN(size / 2, page) },
		{ "last", size ? ALIGN(size, page) - page : 0 },
		{ "size", ALIGN(size, page) },
		{ "size+page", ALIGN(size, page) + page },
		{ "32-bit", 1ULL << 32 },
	};
	char region[32];
	int i, j;

	snprintf_assert(region, sizeof(region), "region %#x", index);
	for (i = 0; i < (all ? ARRAY_SIZE(offsets) : 2); i++) {
		u64 offset = offsets[i].offset;
		u64 rest = offset < size ? ALIGN(size, page) - ALIGN_DOWN(offset, page) : page;
		const struct {
			const char *name;
			u64 length;
		} lengths[] = {
			{ "page", page },
			{ "2-pages", 2 * page },
			{ "1", 1 },
			{ "0", 0 },
			{ "rest", rest },
			{ "rest+1", rest + 1 },
			{ "rest+page", rest + page },
			{ "1T", 1ULL << 40 },
			{ "128T", 1ULL << 47 },
			{ "all", -1ULL },
		};

		for (j = 0; j < (all ? ARRAY_SIZE(lengths) : 2); j++)
			mmap_row(fd, region, offsets[i].name, region_offset(index) + offset,
				 lengths[j].name, lengths[j].length);
	}
}

static void do_mmap(int fd)
{
	u32 index;

	section = "mmap";
	for (index = 0; index <= VFIO_PCI_NUM_REGIONS + 2; index++)
		mmap_rows(fd, index, region_size(index), true);
	for (index = 16; index < NR_INDICES; index <<= 1) {
		mmap_rows(fd, index - 1, 0, false);
		mmap_rows(fd, index, 0, false);
	}
	mmap_rows(fd, NR_INDICES - 1, 0, false);
}

/* -- life -------------------------------------------------------------------- */

/* A mapping of a part of a BAR */
struct part {
	char name[64];
	int bar;
	u64 offset;		/* in the BAR */
	size_t size;
	int prot;
	int flags;
	bool is_memory;
	void *vaddr;
};

static u64 part_pos(const struct part *part)
{
	return region_offset(part->bar) + part->offset;
}

/* Each piece of a row is a mapping of its own: what was done to the last is gone */
static int part_map(struct part *part)
{
	void *at = part->flags & FIXED ? arena + page : NULL;
	void *vaddr = mmap(at, part->size, part->prot, part->flags, device->fd, part_pos(part));

	if (vaddr == MAP_FAILED)
		return -1;
	part->vaddr = vaddr;
	return 0;
}

static void part_unmap(struct part *part)
{
	if (part->flags & FIXED)
		reserve(part->vaddr, ALIGN(part->size, page));
	else
		munmap_bar(part->vaddr, part->size);
}

static char signal_letter(int sig)
{
	switch (sig) {
	case 0: return '.';
	case SIGBUS: return 'B';
	case SIGSEGV: return 'S';
	}
	return '?';
}

struct touched {
	char text[5];
};

/*
 * Reads of first and last page, then writes, the latter behind the pages' tags
 * and only if the BAR is memory or the mapping read-only.
 */
static struct touched touch_at(const struct part *part, void *vaddr, size_t size, int prot)
{
	struct touched ret = { "..--" };
	void *last = vaddr + ALIGN(size, page) - page;
	u32 value;

	ret.text[0] = signal_letter(try_read32(vaddr, &value));
	ret.text[1] = signal_letter(try_read32(last, &value));
	if (part->is_memory || !(prot & PROT_WRITE)) {
		ret.text[2] = signal_letter(try_write32(vaddr + 8, 1));
		ret.text[3] = signal_letter(try_write32(last + 8, 1));
	}
	return ret;
}

static struct touched touch(const struct part *part)
{
	return touch_at(part, part->vaddr, part->size, part->prot);
}

/* By a child, which prints nothing itself */
static struct touched touch_in_child(const struct part *part)
{
	struct touched ret;
	int pipes[2];
	pid_t pid;

	VFIO_ASSERT_EQ(pipe(pipes), 0);
	pid = fork();
	VFIO_ASSERT_GE(pid, 0);
	if (!pid) {
		ret = touch(part);
		_exit(write(pipes[1], &ret, sizeof(ret)) != sizeof(ret));
	}
	VFIO_ASSERT_EQ(read(pipes[0], &ret, sizeof(ret)), sizeof(ret));
	VFIO_ASSERT_EQ(waitpid(pid, NULL, 0), pid);
	close(pipes[0]);
	close(pipes[1]);
	return ret;
}

/* Whether the first words of first and last page are what read() finds there */
static const char *compare(const struct part *part)
{
	static char text[3];
	size_t offsets[] = { 0, ALIGN(part->size, page) - page };
	u32 mapped, value;
	int i;

	for (i = 0; i < ARRAY_SIZE(offsets); i++) {
		if (try_read32(part->vaddr + offsets[i], &mapped) ||
		    pread(device->fd, &value, 4, part_pos(part) + offsets[i]) != 4)
			text[i] = '-';
		else
			text[i] = mapped == value ? '=' : '!';
		if (part->is_memory && text[i] == '=' &&
		    value != (u32)((part->offset + offsets[i]) / page))
			text[i] = '?';
	}
	return text;
}

/* Of the mapping at @vaddr: protection, offset, name, and some of smaps */
struct mapping {
	char perms[8];
	char name[256];
	unsigned long long offset;
	unsigned long rss;
	char flags[256];
};

static bool find_mapping(const void *vaddr, struct mapping *found)
{
	FILE *file = fopen("/proc/self/smaps", "r");
	unsigned long start, end;
	char line[512], perms[8];
	unsigned long long offset;
	bool here = false;
	int used;

	VFIO_ASSERT_TRUE(!!file);
	memset(found, 0, sizeof(*found));
	while (fgets(line, sizeof(line), file)) {
		line[strcspn(line, "\n")] = 0;
		if (sscanf(line, "%lx-%lx %7s %llx %*s %*u%n", &start, &end, perms, &offset,
			   &used) == 4) {
			if (here)
				break;
			here = start == (unsigned long)vaddr;
			if (!here)
				continue;
			memcpy(found->perms, perms, sizeof(perms));
			found->offset = offset;
			snprintf(found->name, sizeof(found->name), "%s",
				 line + used + strspn(line + used, " "));
		} else if (here) {
			if (sscanf(line, "Rss: %lu", &found->rss))
				continue;
			if (!strncmp(line, "VmFlags: ", 9))
				snprintf(found->flags, sizeof(found->flags), "%.200s", line + 9);
		}
	}
	fclose(file);
	return found->perms[0];
}

static void life_flags(struct part *part, const char *when)
{
	struct mapping mapping;
	unsigned char core[2] = { 9, 9 };
	u64 entry = 0;
	int fd, ret;

	VFIO_ASSERT_TRUE(find_mapping(part->vaddr, &mapping));
	ret = mincore(part->vaddr, page, core);
	fd = open("/proc/self/pagemap", O_RDONLY);
	if (fd < 0 || pread(fd, &entry, 8, (uintptr_t)part->vaddr / page * 8) != 8)
		entry = -1ULL;
	close(fd);
	row("%s %s: %s %#llx rss %lu flags %s mincore %s %d pagemap %#x", part->name, when,
	    mapping.perms, mapping.offset, mapping.rss, mapping.flags, result(ret), core[0],
	    (unsigned int)(entry >> 55));
}

static void life_mprotect(struct part *part)
{
	char text[256];
	int i, used = 0;

	for (i = 0; i < ARRAY_SIZE(prots); i++) {
		int prot = prots[i].prot, ret = mprotect(part->vaddr, part->size, prot);

		used += snprintf(text + used, sizeof(text) - used, " %s %s", prots[i].name,
				 result(ret));
		if (!ret)
			used += snprintf(text + used, sizeof(text) - used, " %s",
					 touch_at(part, part->vaddr, part->size, prot).text);
	}
	row("%s mprotect:%s", part->name, text);
}

/* One page less, one of another protection: the rest is as it was */
static void life_split(struct part *part)
{
	char text[256];
	int used = 0, ret;

	if (part->size < 8 * page)
		return;
	ret = mprotect(part->vaddr + 2 * page, page, PROT_NONE);
	used += snprintf(text, sizeof(text), " mprotect %s %s", result(ret), touch(part).text);
	used += snprintf(text + used, sizeof(text) - used, " %s",
			 touch_at(part, part->vaddr + 2 * page, page, PROT_NONE).text);
	ret = munmap(part->vaddr + 4 * page, page);
	used += snprintf(text + used, sizeof(text) - used, " munmap %s %s", result(ret),
			 touch(part).text);
	used += snprintf(text + used, sizeof(text) - used, " %s",
			 touch_at(part, part->vaddr + 4 * page, page, PROT_NONE).text);
	ret = mprotect(part->vaddr, part->size, PROT_READ);
	used += snprintf(text + used, sizeof(text) - used, " read-only %s", result(ret));
	/* What a mapping that fails replaces stays, or does not */
	ret = mmap(part->vaddr + page, page, PROT_READ, MAP_SHARED | MAP_FIXED, device->fd,
		   region_offset(part->bar) + REGION_SIZE - page) == MAP_FAILED ? -1 : 0;
	used += snprintf(text + used, sizeof(text) - used, " replace %s %s", result(ret),
			 touch_at(part, part->vaddr + page, page, PROT_READ).text);
	row("%s split:%s", part->name, text);
}

static void life_mremap(struct part *part)
{
	size_t size = ALIGN(part->size, page);
	void *to = arena + arena_size / 2 + 3 * page, *vaddr;
	char text[256];
	int used = 0;

	vaddr = mremap(part->vaddr, size, size + page, 0);
	used += snprintf(text, sizeof(text), " grow %s", result((long)vaddr));
	if (vaddr != MAP_FAILED)
		munmap_bar(vaddr + size, page);

	vaddr = mremap(part->vaddr, size, size + page, MREMAP_MAYMOVE);
	used += snprintf(text + used, sizeof(text) - used, " grow-move %s", result((long)vaddr));
	VFIO_ASSERT_EQ((long)vaddr, -1L);

	vaddr = mremap(part->vaddr, 0, size, MREMAP_MAYMOVE);
	used += snprintf(text + used, sizeof(text) - used, " duplicate %s", result((long)vaddr));
	if (vaddr != MAP_FAILED)
		munmap_bar(vaddr, size);

	vaddr = mremap(part->vaddr, size, size, MREMAP_MAYMOVE | MREMAP_DONTUNMAP);
	used += snprintf(text + used, sizeof(text) - used, " dontunmap %s", result((long)vaddr));
	if (vaddr != MAP_FAILED)
		munmap_bar(vaddr, size);

	vaddr = mremap(part->vaddr, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	used += snprintf(text + used, sizeof(text) - used, " move %s", result((long)vaddr));
	if (vaddr != MAP_FAILED) {
		used += snprintf(text + used, sizeof(text) - used, " %s",
				 touch_at(part, vaddr, size, part->prot).text);
		vaddr = mremap(to, size, page, 0);
		used += snprintf(text + used, sizeof(text) - used, " shrink %s %s",
				 result((long)vaddr), touch_at(part, to, page, part->prot).text);
		reserve(to, size);
		reserve(part->vaddr, size);
	}
	row("%s mremap:%s", part->name, text);
}

static void life_madvise(struct part *part)
{
	/* Those that there are but MADV_HWPOISON and MADV_SOFT_OFFLINE */
	static const int advice[] = {
		0, 1, 2, 3, 4, 8, 9, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25,
		102, 103, 10,
	};
	char text[512];
	int i, used = 0;

	for (i = 0; i < ARRAY_SIZE(advice); i++)
		used += snprintf(text + used, sizeof(text) - used, " %d %s", advice[i],
				 result(madvise(part->vaddr, part->size, advice[i])));
	row("%s madvise:%s touch %s child %s", part->name, text, touch(part).text,
	    touch_in_child(part).text);
	life_flags(part, "advised");
}

/* Who gets at the memory without a page fault of the process */
static void life_syscalls(struct part *part)
{
	size_t size = ALIGN(part->size, page);
	struct dma_region region = { .vaddr = part->vaddr, .iova = SZ_1G, .size = size };
	u32 value = 0;
	struct iovec local = { &value, 4 }, remote = { part->vaddr, 4 };
	char text[512];
	int used = 0, pipes[2], fd, ret;

#define ADD(_name, _call) do {								\
	ret = (_call);									\
	used += snprintf(text + used, sizeof(text) - used, " " _name " %s", result(ret));	\
} while (0)

	VFIO_ASSERT_EQ(pipe(pipes), 0);
	fd = open("/proc/self/mem", O_RDWR);
	VFIO_ASSERT_GE(fd, 0);

	ADD("msync", msync(part->vaddr, size, MS_SYNC));
	ADD("msync-async", msync(part->vaddr, size, MS_ASYNC));
	ADD("msync-invalidate", msync(part->vaddr, size, MS_INVALIDATE));
	ADD("mlock", mlock(part->vaddr, size));
	ADD("mlock-onfault", mlock2(part->vaddr, size, MLOCK_ONFAULT));
	ADD("munlock", munlock(part->vaddr, size));
	ADD("vm-readv", process_vm_readv(getpid(), &local, 1, &remote, 1, 0));
	ADD("mem-read", pread(fd, &value, 4, (uintptr_t)part->vaddr));
	ADD("write-from", write(pipes[1], part->vaddr, 4));
	ADD("vmsplice", vmsplice(pipes[1], &remote, 1, 0));
	ADD("futex", syscall(SYS_futex, part->vaddr, FUTEX_WAKE, 1, NULL, NULL, 0));
	if (part->is_memory) {
		VFIO_ASSERT_EQ(write(pipes[1], "same", 4), 4);
		ADD("read-to", read(pipes[0], part->vaddr + 12, 4));
		ADD("mem-write", pwrite(fd, &value, 4, (uintptr_t)part->vaddr + 12));
		ADD("vm-writev", process_vm_writev(getpid(), &local, 1, &remote, 1, 0));
	}
	/* For DMA of this and other devices */
	if (size <= 2 * page || part->prot == (PROT_READ | PROT_WRITE)) {
		errno = -__iommu_map(device->iommu, &region);
		ADD("dma", errno ? -1 : 0);
		if (!ret)
			iommu_unmap(device->iommu, &region);
	}
	close(fd);
	close(pipes[0]);
	close(pipes[1]);
	row("%s syscalls:%s", part->name, text);
}

/* For good, so that a child has to do it */
static void life_mseal(struct part *part)
{
	size_t size = ALIGN(part->size, page);
	char text[256] = "";
	int used, pipes[2];
	pid_t pid;

	VFIO_ASSERT_EQ(pipe(pipes), 0);
	pid = fork();
	VFIO_ASSERT_GE(pid, 0);
	if (!pid) {
		used = snprintf(text, sizeof(text), "mseal %s",
				result(syscall(__NR_mseal, part->vaddr, size, 0)));
		used += snprintf(text + used, sizeof(text) - used, " munmap %s",
				 result(munmap(part->vaddr, page)));
		used += snprintf(text + used, sizeof(text) - used, " mprotect %s",
				 result(mprotect(part->vaddr, page, PROT_NONE)));
		used += snprintf(text + used, sizeof(text) - used, " dontneed %s",
				 result(madvise(part->vaddr, page, MADV_DONTNEED)));
		_exit(write(pipes[1], text, used) != used);
	}
	VFIO_ASSERT_GT(read(pipes[0], text, sizeof(text) - 1), 0);
	VFIO_ASSERT_EQ(waitpid(pid, NULL, 0), pid);
	close(pipes[0]);
	close(pipes[1]);
	row("%s seal: %s", part->name, text);
}

static void life_off(struct part *part)
{
	struct part late = *part;

	row("%s before: self %s", part->name, touch(part).text);
	vfio_pci_cmd_clear(device, PCI_COMMAND_MEMORY);
	row("%s off: self %s", part->name, touch(part).text);
	row("%s off: child %s", part->name, touch_in_child(part).text);
	life_flags(part, "off");
	late.flags &= ~FIXED;
	if (part_map(&late)) {
		row("%s late: %s", part->name, result(-1));
		vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
		return;
	}
	row("%s late: off %s", part->name, touch(&late).text);
	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
	row("%s late: child %s", part->name, touch_in_child(&late).text);
	row("%s late: self %s data %s", part->name, touch(&late).text, compare(&late));
	part_unmap(&late);
	row("%s on: self %s data %s", part->name, touch(part).text, compare(part));
}

static void life_touch(struct part *part)
{
	row("%s touch: child %s", part->name, touch_in_child(part).text);
	row("%s touch: self %s data %s", part->name, touch(part).text, compare(part));
	life_flags(part, "touched");
}

/* The page faults that it takes to touch all of it, at an address as aligned as its offset */
static void life_faults(struct part *part)
{
	static const int advice[] = { MADV_NORMAL, MADV_HUGEPAGE, MADV_NOHUGEPAGE };
	void *vaddr = mmap_reserve(ALIGN(part->size, page), SZ_2M, part->offset % SZ_2M);
	unsigned long long faults[ARRAY_SIZE(advice)];
	int i;

	for (i = 0; i < ARRAY_SIZE(advice); i++) {
		VFIO_ASSERT_EQ((long)mmap(vaddr, part->size, PROT_READ, MAP_SHARED | MAP_FIXED,
					  device->fd, part_pos(part)), (long)vaddr);
		madvise(vaddr, part->size, advice[i]);
		faults[i] = touch_faults(vaddr, part->size);
	}
	munmap_bar(vaddr, part->size);
	row("%s faults: normal %llu huge %llu nohuge %llu", part->name, faults[0], faults[1],
	    faults[2]);
}

static void life_fresh(struct part *part)
{
	life_flags(part, "fresh");
}

static void life_rows(int bar, const char *name, u64 offset, size_t size, int prot, int flags)
{
	static void (*const lives[])(struct part *) = {
		life_fresh, life_touch, life_mprotect, life_split, life_mremap, life_madvise,
		life_syscalls, life_mseal, life_off,
	};
	struct part part = {
		.bar = bar, .offset = offset, .size = size, .prot = prots[prot].prot,
		.flags = flag_rows[flags].flags,
		.is_memory = bar == mem_bar && !strcmp(device_name, "mem"),
	};
	int i;

	snprintf_assert(part.name, sizeof(part.name), "BAR %d %s %s %s", bar, name,
			prots[prot].name, flag_rows[flags].name);
	for (i = 0; i < ARRAY_SIZE(lives); i++) {
		if (part_map(&part)) {
			row("%s: %s", part.name, result(-1));
			return;
		}
		lives[i](&part);
		part_unmap(&part);
	}
	if (!flags && part.prot == PROT_READ)
		life_faults(&part);
}

/* What tells the pages of the BAR that is memory from each other */
static void tag_pages(void)
{
	u64 offset, size = device->bars[mem_bar].info.size;
	void *vaddr = mmap_bar(device->fd, size, region_offset(mem_bar), 0);

	for (offset = 0; offset < size; offset += page)
		WRITE_ONCE(*(u32 *)(vaddr + offset), (u32)(offset / page));
	munmap_bar(vaddr, size);
}

static void do_life(void)
{
	int bar, i, j;

	section = "life";
	if (!strcmp(device_name, "mem"))
		tag_pages();
	for (bar = 0; bar < PCI_STD_NUM_BARS; bar++) {
		u64 size = ALIGN(device->bars[bar].info.size, page);
		u64 middle = ALIGN_DOWN(size / 2, page);
		const struct {
			const char *name;
			u64 offset, size;
		} parts[] = {
			{ "page", 0, page },
			{ "byte", 0, 1 },
			{ "whole", 0, size },
			{ "half", middle, size - middle },
			{ "last", size - page, page },
		};

		if (!is_mappable(bar))
			continue;
		for (i = 0; i < ARRAY_SIZE(parts); i++) {
			if (i > 2 && size == page)
				break;
			for (j = 0; j < ARRAY_SIZE(prots); j++)
				life_rows(bar, parts[i].name, parts[i].offset, parts[i].size, j, 0);
		}
		/* With other flags it is the same, if there is a mapping at all */
		for (j = 1; j < ARRAY_SIZE(flag_rows); j++)
			life_rows(bar, "whole", 0, size, 3, j);
	}
}

/* -- twice ------------------------------------------------------------------- */

static void twice_row(const struct part *part, const struct part *other, const char *when)
{
	row("%s %s: %s data %s", part->name, when, touch(part).text, compare(part));
	if (other)
		row("%s %s: other %s", part->name, when, touch(other).text);
}

static void twice(int bar, bool map_second, bool close_second)
{
	bool small = device->bars[bar].info.size < 2 * page;
	struct part part = {
		.bar = bar, .size = small ? page : 2 * page, .prot = PROT_READ | PROT_WRITE,
		.flags = MAP_SHARED, .is_memory = bar == mem_bar && !strcmp(device_name, "mem"),
	};
	int again = vfio_pci_group_reopen(device), fd = device->fd;
	struct part other = part;

	snprintf_assert(part.name, sizeof(part.name), "BAR %d map-%d close-%d", bar, map_second + 1,
			close_second + 1);
	device->fd = map_second ? again : fd;
	VFIO_ASSERT_EQ(part_map(&part), 0);
	device->fd = map_second ? fd : again;
	VFIO_ASSERT_EQ(part_map(&other), 0);
	device->fd = fd;
	twice_row(&part, &other, "open");

	vfio_pci_group_close_one(device, again, close_second);
	twice_row(&part, &other, "closed");
	life_flags(&part, "closed");
	vfio_pci_cmd_clear(device, PCI_COMMAND_MEMORY);
	twice_row(&part, &other, "off");
	row("%s off: child %s", part.name, touch_in_child(&part).text);
	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
	twice_row(&part, &other, "on");
	part_unmap(&other);
	twice_row(&part, NULL, "alone");

	/* The mapping alone keeps the device open, as a third open finds it */
	vfio_pci_device_close(device);
	row("%s orphan: %s", part.name, touch(&part).text);
	again = vfio_pci_group_reopen(device);
	VFIO_ASSERT_EQ(dup2(again, device->fd), device->fd);
	VFIO_ASSERT_EQ(close(again), 0);
	twice_row(&part, NULL, "reopened");
	vfio_pci_cmd_clear(device, PCI_COMMAND_MEMORY);
	row("%s reopened off: %s", part.name, touch(&part).text);
	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
	twice_row(&part, NULL, "reopened on");
	part_unmap(&part);
}

static void do_twice(void)
{
	int bar, i;

	section = "twice";
	for (bar = 0; bar < PCI_STD_NUM_BARS; bar++) {
		for (i = 0; is_mappable(bar) && i < 4; i++)
			twice(bar, i & 1, i & 2);
	}
}

/* -- file -------------------------------------------------------------------- */

/*
 * The file of a mapping is the one thing that differs: the device's on a stock
 * kernel, the BAR's on the series'.
 */
static void do_files(void)
{
	struct part part = {
		.size = page, .prot = PROT_READ | PROT_WRITE, .flags = MAP_SHARED,
	};
	struct mapping mapping;
	char path[64];
	int fd;

	section = "file";
	for (part.bar = 0; part.bar < PCI_STD_NUM_BARS; part.bar++) {
		if (!is_mappable(part.bar))
			continue;
		VFIO_ASSERT_EQ(part_map(&part), 0);
		VFIO_ASSERT_TRUE(find_mapping(part.vaddr, &mapping));
		row("name of %s BAR %d: %s", device->bdf, part.bar, mapping.name);

		snprintf_assert(path, sizeof(path), "/proc/self/map_files/%lx-%lx",
				(unsigned long)part.vaddr, (unsigned long)part.vaddr + page);
		fd = open(path, O_RDWR);
		row("map_files of BAR %d: %s", part.bar, result(fd));
		if (fd >= 0)
			close(fd);
		row("remap_file_pages of BAR %d: %s", part.bar,
		    result(remap_file_pages(part.vaddr, page, 0, part_pos(&part) / page, 0)));
		munmap_bar(part.vaddr, page);
	}
}

/* -- ways to open a device --------------------------------------------------- */

static void open_device(const char *bdf, const char *mode)
{
	int i;

	device = vfio_pci_device_init(bdf, iommu_init(mode));
	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
	/* The mappings that libvfio made are in nobody's way, but not ours either */
	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		if (!device->bars[i].vaddr)
			continue;
		munmap_bar(device->bars[i].vaddr, ALIGN(device->bars[i].info.size, page));
		device->bars[i].vaddr = NULL;
	}
}

static void close_device(void)
{
	struct iommu *iommu = device->iommu;

	vfio_pci_device_cleanup(device);
	iommu_cleanup(iommu);
	device = NULL;
}

/* What is peculiar to the device's own file: it can be opened for less, and used too early */
static void do_cdev_mode(const char *bdf, const char *name, int mode, bool bind)
{
	struct iommu *iommu = iommu_init(MODE_IOMMUFD);
	const char *path = vfio_pci_get_cdev_path(bdf);
	int fd = open(path, mode), bar;

	way = "cdev";
	section = name;
	free((void *)path);
	VFIO_ASSERT_GE(fd, 0);
	if (bind)
		row("bind: %d", __vfio_device_bind_iommufd(fd, iommu->iommufd, NULL));
	for (bar = 0; bar < PCI_STD_NUM_BARS; bar++)
		mmap_rows(fd, bar, 0, false);
	close(fd);
	iommu_cleanup(iommu);
}

static void do_device(const char *name, const char *bdf)
{
	device_name = name;

	way = "group";
	open_device(bdf, access("/dev/vfio/vfio", F_OK) ? MODE_IOMMUFD_COMPAT_TYPE1V2 :
							  MODE_VFIO_TYPE1V2_IOMMU);
	do_regions();
	do_mmap(device->fd);
	do_life();
	do_twice();
	do_files();
	close_device();

	way = "cdev";
	open_device(bdf, MODE_IOMMUFD);
	do_regions();
	do_mmap(device->fd);
	do_life();
	do_files();
	close_device();

	do_cdev_mode(bdf, "unbound", O_RDWR, false);
	do_cdev_mode(bdf, "read-only", O_RDONLY, true);
	do_cdev_mode(bdf, "write-only", O_WRONLY, true);
}

int main(int argc, char **argv)
{
	if (argc != 5) {
		fprintf(stderr, "usage: mmap_table MEM_BDF MEM_BAR REG_BDF NVME_BDF\n");
		return 2;
	}
	page = getpagesize();
	mem_bar = atoi(argv[2]);
	/* More than what the longest mapping asks for that has room at all */
	arena_size = sizeof(size_t) > 4 ? (size_t)(4 * REGION_SIZE) : SZ_512M;
	arena = mmap_reserve(arena_size, SZ_2M, 0);

	do_device("mem", argv[1]);
	do_device("reg", argv[3]);
	do_device("nvme", argv[4]);
	printf("end %u\n", nr_rows);
	return 0;
}
