// SPDX-License-Identifier: GPL-2.0-only
/*
 * mmap() of the BARs of a device through its device fd.
 *
 * Nothing but the name of a mapping differs between a kernel that can revoke
 * BAR mappings one by one and one that cannot, so all of this but maps_name,
 * what others than the user do to the device (reset_by_others, error), and a bug
 * that was mended (write_notify) passes on both. The contents of the device's BARs
 * are overwritten, unless they do not behave like memory.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/align.h>
#include <linux/compiler.h>
#include <linux/kernel.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>
#include <libvfio/vfio_pci_dmabuf.h>

#include "kselftest_harness.h"

#define REGION(_index) ((off_t)(_index) << 40)

static const char *device_bdf;

struct bar_test {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	size_t page;

	/* The largest BAR. */
	int bar;
	bool is_memory;
	size_t size;
	off_t offset;
	void *vaddr;
};

static void bar_test_setup(struct bar_test *test, const char *iommu_mode)
{
	test->page = getpagesize();
	test->iommu = iommu_init(iommu_mode);
	test->device = vfio_pci_device_init(device_bdf, test->iommu);
	vfio_pci_cmd_set(test->device, PCI_COMMAND_MEMORY);

	test->bar = vfio_pci_largest_bar(test->device);
	if (test->bar < 0)
		return;

	test->is_memory = vfio_pci_bar_is_memory(test->device, test->bar);
	test->size = test->device->bars[test->bar].info.size;
	test->offset = test->device->bars[test->bar].info.offset;
	test->vaddr = test->device->bars[test->bar].vaddr;
}

static void bar_test_teardown(struct bar_test *test)
{
	vfio_pci_device_cleanup(test->device);
	iommu_cleanup(test->iommu);
}

/* A value in each page of the BAR that tells the pages from each other. */
static void tag_pages(struct bar_test *test, size_t size)
{
	size_t offset;

	for (offset = 0; offset < size; offset += test->page)
		WRITE_ONCE(*(u64 *)(test->vaddr + offset), offset ^ 0x5a5aULL);
}

/* Offset of the first page of [@vaddr, @vaddr + @size) that is not as expected. */
static size_t check_tags(struct bar_test *test, const void *vaddr, size_t size,
			 u64 first)
{
	size_t offset;

	for (offset = 0; offset < size; offset += test->page) {
		u64 tag = READ_ONCE(*(const u64 *)(vaddr + offset));

		if (tag != ((first + offset) ^ 0x5a5aULL))
			break;
	}

	return offset;
}

FIXTURE(bar_mmap) {
	struct bar_test t;
};

FIXTURE_SETUP(bar_mmap)
{
	bar_test_setup(&self->t, default_iommu_mode);
	if (self->t.bar < 0)
		SKIP(return, "No mappable BAR on %s", device_bdf);
}

FIXTURE_TEARDOWN(bar_mmap)
{
	bar_test_teardown(&self->t);
}

/*
 * What is written to the BAR stays there.
 */
FIXTURE(bar_memory) {
	struct bar_test t;
};

FIXTURE_SETUP(bar_memory)
{
	bar_test_setup(&self->t, default_iommu_mode);
	if (self->t.bar < 0)
		SKIP(return, "No mappable BAR on %s", device_bdf);
	if (!self->t.is_memory)
		SKIP(return, "BAR %d of %s does not behave like memory",
		     self->t.bar, device_bdf);
	if (self->t.size < SZ_8M)
		SKIP(return, "BAR %d of %s is too small (%#zx)",
		     self->t.bar, device_bdf, self->t.size);
}

FIXTURE_TEARDOWN(bar_memory)
{
	bar_test_teardown(&self->t);
}

/* What is written one way is read all the others. */
TEST_F(bar_memory, coherent)
{
	struct bar_test *t = &self->t;
	size_t size = SZ_64K;
	void *other, *buf;

	other = mmap_bar(t->device->fd, size, t->offset, 0);
	buf = malloc_assert(size);

	pattern_fill(t->vaddr, size, 1);
	ASSERT_EQ(size, pattern_check(other, size, 1));
	ASSERT_EQ(size, pread(t->device->fd, buf, size, t->offset));
	ASSERT_EQ(size, pattern_check(buf, size, 1));

	pattern_fill(other, size, 2);
	ASSERT_EQ(size, pattern_check(t->vaddr, size, 2));

	pattern_fill(buf, size, 3);
	ASSERT_EQ(size, pwrite(t->device->fd, buf, size, t->offset));
	ASSERT_EQ(size, pattern_check(t->vaddr, size, 3));
	ASSERT_EQ(size, pattern_check(other, size, 3));

	free(buf);
	munmap_bar(other, size);
}

/* Parts of the BAR, at addresses aligned with it and not. */
TEST_F(bar_memory, offsets)
{
	struct bar_test *t = &self->t;
	size_t span = min_t(size_t, t->size, SZ_8M);
	size_t pages = span / t->page;
	struct {
		size_t first;
		size_t count;
		size_t skew;
	} parts[] = {
		{ 0, 1, 0 },
		{ 1, 1, 0 },
		{ pages - 1, 1, 0 },
		{ pages / 2, pages / 2, 0 },
		{ 1, pages - 1, 0 },
		{ 1, pages - 1, t->page },
		{ 1, pages - 2, 3 * t->page },
		{ 0, pages, t->page },
		{ 3, pages / 2 + 1, 5 * t->page },
	};
	int i;

	tag_pages(t, span);

	for (i = 0; i < ARRAY_SIZE(parts); i++) {
		size_t offset = parts[i].first * t->page;
		size_t size = parts[i].count * t->page;
		void *vaddr;

		vaddr = mmap_bar(t->device->fd, size, t->offset + offset,
				 parts[i].skew);
		madvise(vaddr, size, MADV_HUGEPAGE);
		ASSERT_EQ(size, check_tags(t, vaddr, size, offset)) {
			TH_LOG("part %d", i);
		}
		munmap_bar(vaddr, size);
	}
}

/* A length that is not a multiple of the page size maps the page. */
TEST_F(bar_mmap, odd_length)
{
	struct bar_test *t = &self->t;
	void *vaddr;
	u32 value;

	vaddr = mmap_bar(t->device->fd, t->page + 1, t->offset, 0);
	ASSERT_EQ(0, try_read32(vaddr, &value));
	ASSERT_EQ(0, try_read32(vaddr + 2 * t->page - 4, &value));
	munmap_bar(vaddr, 2 * t->page);
}

TEST_F(bar_memory, munmap_middle)
{
	struct bar_test *t = &self->t;
	size_t size = SZ_4M, hole = SZ_2M + SZ_64K;
	void *vaddr;
	u32 value;

	tag_pages(t, size);

	vaddr = mmap_bar(t->device->fd, size, t->offset, 0);
	madvise(vaddr, size, MADV_HUGEPAGE);
	ASSERT_EQ(size, check_tags(t, vaddr, size, 0));

	ASSERT_EQ(0, munmap(vaddr + hole, t->page));
	ASSERT_EQ(SIGSEGV, try_read32(vaddr + hole, &value));
	ASSERT_EQ(hole, check_tags(t, vaddr, hole, 0));
	hole += t->page;
	ASSERT_EQ(size - hole, check_tags(t, vaddr + hole, size - hole, hole));

	/* Both halves must be found. */
	vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	ASSERT_EQ(SIGBUS, try_read32(vaddr + hole, &value));
	ASSERT_EQ(SIGBUS, try_read32(vaddr + size - t->page, &value));
	vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);

	hole -= t->page;
	ASSERT_EQ(hole, check_tags(t, vaddr, hole, 0));
	hole += t->page;
	ASSERT_EQ(size - hole, check_tags(t, vaddr + hole, size - hole, hole));

	munmap_bar(vaddr, size);
}

TEST_F(bar_memory, mprotect_middle)
{
	struct bar_test *t = &self->t;
	size_t size = SZ_4M, middle = SZ_2M + SZ_64K;
	void *vaddr;
	u32 value;

	tag_pages(t, size);

	vaddr = mmap_bar(t->device->fd, size, t->offset, 0);
	madvise(vaddr, size, MADV_HUGEPAGE);
	ASSERT_EQ(size, check_tags(t, vaddr, size, 0));

	ASSERT_EQ(0, mprotect(vaddr + middle, t->page, PROT_READ));
	ASSERT_EQ(SIGSEGV, try_write32(vaddr + middle, 0));
	ASSERT_EQ(size, check_tags(t, vaddr, size, 0));
	ASSERT_EQ(0, try_write32(vaddr + middle - t->page + 8, 1));
	ASSERT_EQ(0, try_write32(vaddr + middle + t->page + 8, 1));

	vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	ASSERT_EQ(SIGBUS, try_read32(vaddr + middle, &value));
	ASSERT_EQ(SIGBUS, try_read32(vaddr + middle + t->page, &value));
	vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(size, check_tags(t, vaddr, size, 0));
	ASSERT_EQ(SIGSEGV, try_write32(vaddr + middle, 0));

	ASSERT_EQ(0, mprotect(vaddr + middle, t->page, PROT_NONE));
	ASSERT_EQ(SIGSEGV, try_read32(vaddr + middle, &value));
	ASSERT_EQ(0, mprotect(vaddr, size, PROT_READ | PROT_WRITE));
	ASSERT_EQ(size, check_tags(t, vaddr, size, 0));

	munmap_bar(vaddr, size);
}

/* What is beside a mapping, in the same 2 MiB at either end, is not mapped. */
/*
 * Whoever tracks what a process writes to has its mappings begin read-only. The first
 * write takes a fault then, and goes on.
 */
TEST_F_TIMEOUT(bar_memory, write_notify, 30)
{
	struct bar_test *t = &self->t;
	void *vaddr;
	u32 value;

	tag_pages(t, SZ_4M);

	vaddr = mmap_bar(t->device->fd, SZ_4M, t->offset, 0);
	madvise(vaddr, SZ_4M, MADV_HUGEPAGE);
	if (!write_text("/proc/self/clear_refs", "4"))
		SKIP(return, "no /proc/self/clear_refs: CONFIG_MEM_SOFT_DIRTY is not set");

	ASSERT_EQ(0, try_write32(vaddr + 8, 0x5eed0001));
	ASSERT_EQ(0, try_read32(vaddr + SZ_2M, &value));
	ASSERT_EQ(0, try_write32(vaddr + SZ_2M + 8, 0x5eed0002));
	ASSERT_EQ(0x5eed0001, READ_ONCE(*(u32 *)(t->vaddr + 8)));
	ASSERT_EQ(0x5eed0002, READ_ONCE(*(u32 *)(t->vaddr + SZ_2M + 8)));
	ASSERT_EQ(SZ_4M, check_tags(t, vaddr, SZ_4M, 0));
	munmap_bar(vaddr, SZ_4M);
}

TEST_F_TIMEOUT(bar_memory, order_race, 60)
{
	ASSERT_EQ(0, race_orders(self->t.device->fd, self->t.offset, 3000));
}

TEST_F(bar_memory, neighbours)
{
	struct bar_test *t = &self->t;
	size_t size = SZ_4M - 2 * t->page;
	void *vaddr, *base;
	u32 value;

	tag_pages(t, SZ_4M);
	base = mmap_reserve(SZ_4M, SZ_2M, 0);
	vaddr = base + t->page;
	ASSERT_EQ(vaddr, mmap(vaddr, size, PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_FIXED, t->device->fd,
			      t->offset + t->page));
	madvise(vaddr, size, MADV_HUGEPAGE);

	ASSERT_EQ(size, check_tags(t, vaddr, size, t->page));
	ASSERT_EQ(SIGSEGV, try_read32(base, &value));
	ASSERT_EQ(SIGSEGV, try_read32(vaddr + size, &value));
	munmap_bar(base, SZ_4M);
}

TEST_F(bar_memory, mremap)
{
	struct bar_test *t = &self->t;
	size_t size = SZ_4M;
	void *vaddr, *target, *moved;
	u32 value;

	tag_pages(t, size);

	vaddr = mmap_bar(t->device->fd, size, t->offset, 0);
	ASSERT_EQ(size, check_tags(t, vaddr, size, 0));

	/* Mappings of a BAR do not grow. */
	ASSERT_EQ(MAP_FAILED, mremap(vaddr, size, 2 * size, MREMAP_MAYMOVE));
	ASSERT_EQ(EFAULT, errno);

	target = mmap_reserve(size, SZ_2M, t->page);
	moved = mremap(vaddr, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, target);
	ASSERT_EQ(target, moved);
	ASSERT_EQ(SIGSEGV, try_read32(vaddr, &value));
	ASSERT_EQ(size, check_tags(t, moved, size, 0));

	vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(SIGBUS, try_read32(moved, &value));
	ASSERT_EQ(SIGBUS, try_read32(moved + size - t->page, &value));
	vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(size, check_tags(t, moved, size, 0));

	/* The second half moves away from the first. */
	vaddr = mmap_reserve(size / 2, SZ_2M, 0);
	ASSERT_EQ(vaddr, mremap(moved + size / 2, size / 2, size / 2,
				MREMAP_MAYMOVE | MREMAP_FIXED, vaddr));
	ASSERT_EQ(size / 2, check_tags(t, vaddr, size / 2, size / 2));
	ASSERT_EQ(size / 2, check_tags(t, moved, size / 2, 0));

	vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(SIGBUS, try_read32(moved, &value));
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);

	/* And shrinks. */
	ASSERT_EQ(vaddr, mremap(vaddr, size / 2, t->page, 0));
	ASSERT_EQ(t->page, check_tags(t, vaddr, t->page, size / 2));
	ASSERT_EQ(SIGSEGV, try_read32(vaddr + t->page, &value));

	munmap_bar(vaddr, t->page);
	munmap_bar(moved, size / 2);
}

enum {
	CHILD_MAP,
	CHILD_READ,
	CHILD_WRITE,
};

static int bar_child(void *data, int arg)
{
	struct bar_test *t = data;
	u32 value;
	int sig;

	switch (arg) {
	case CHILD_MAP:
		t->vaddr = mmap_bar(t->device->fd, t->page, t->offset, 0);
		return 0;
	case CHILD_READ:
		sig = try_read32(t->vaddr, &value);
		return sig ? -sig : value & 0xffff;
	case CHILD_WRITE:
		return -try_write32(t->vaddr, 0x77);
	}

	return -1;
}

static void test_with_child(struct __test_metadata *_metadata,
			    struct bar_test *t, bool map)
{
	struct child child;
	u32 value;

	WRITE_ONCE(*(u32 *)t->vaddr, 0x55);

	start_child(&child, bar_child, t);
	if (map)
		ASSERT_EQ(0, ask_child(&child, CHILD_MAP));
	ASSERT_EQ(0x55, ask_child(&child, CHILD_READ));
	WRITE_ONCE(*(u32 *)t->vaddr, 0x66);
	ASSERT_EQ(0x66, ask_child(&child, CHILD_READ));
	ASSERT_EQ(0, ask_child(&child, CHILD_WRITE));
	ASSERT_EQ(0x77, READ_ONCE(*(u32 *)t->vaddr));

	vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(-SIGBUS, ask_child(&child, CHILD_READ));
	ASSERT_EQ(-SIGBUS, ask_child(&child, CHILD_WRITE));
	ASSERT_EQ(SIGBUS, try_read32(t->vaddr, &value));

	vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0x77, ask_child(&child, CHILD_READ));
	ASSERT_EQ(0x77, READ_ONCE(*(u32 *)t->vaddr));

	stop_child(&child);
	ASSERT_EQ(0x77, READ_ONCE(*(u32 *)t->vaddr));
}

/* The child has its parent's mapping. */
TEST_F(bar_memory, fork)
{
	test_with_child(_metadata, &self->t, false);
}

/* The child maps the BAR again. */
TEST_F(bar_memory, two_processes)
{
	test_with_child(_metadata, &self->t, true);
}

/* Every BAR, at its beginning, in the middle and at its end. */
TEST_F(bar_mmap, every_bar)
{
	struct bar_test *t = &self->t;
	int bars = 0, i, j;
	u32 value;

	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		struct vfio_region_info *info = &t->device->bars[i].info;
		size_t size = ALIGN(info->size, t->page);
		size_t offsets[] = { 0, ALIGN_DOWN(size / 2, t->page), size - t->page };
		void *parts[ARRAY_SIZE(offsets)], *whole;

		if (!(info->flags & VFIO_REGION_INFO_FLAG_MMAP))
			continue;
		bars++;

		whole = mmap_bar(t->device->fd, size, info->offset, 0);
		for (j = 0; j < ARRAY_SIZE(offsets); j++) {
			parts[j] = mmap_bar(t->device->fd, t->page,
					    info->offset + offsets[j], 0);
			ASSERT_EQ(0, try_read32(parts[j], &value));
			ASSERT_EQ(0, try_read32(whole + offsets[j], &value));
		}

		vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
		for (j = 0; j < ARRAY_SIZE(offsets); j++) {
			ASSERT_EQ(SIGBUS, try_read32(parts[j], &value)) {
				TH_LOG("BAR %d at %#zx", i, offsets[j]);
			}
			ASSERT_EQ(SIGBUS, try_read32(whole + offsets[j], &value));
		}
		vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);

		for (j = 0; j < ARRAY_SIZE(offsets); j++) {
			ASSERT_EQ(0, try_read32(parts[j], &value)) {
				TH_LOG("BAR %d at %#zx", i, offsets[j]);
			}
			ASSERT_EQ(0, try_read32(whole + offsets[j], &value));
			munmap_bar(parts[j], t->page);
		}
		munmap_bar(whole, size);
	}

	ASSERT_GT(bars, 0);
}

/* A mapping can be made while there is nothing behind it. */
TEST_F(bar_mmap, map_while_off)
{
	struct bar_test *t = &self->t;
	void *vaddr;
	u32 value;

	vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
	vaddr = mmap_bar(t->device->fd, t->page, t->offset, 0);
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	ASSERT_EQ(SIGBUS, try_write32(vaddr, 0));
	vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, try_read32(vaddr, &value));
	munmap_bar(vaddr, t->page);
}

/* A mapping of 64 MiB takes one fault for each 2 MiB. */
TEST_F(bar_mmap, huge_faults)
{
	struct bar_test *t = &self->t;
	u64 faults;
	void *vaddr;

	if (!huge_faults_enabled())
		SKIP(return, "transparent huge pages are off");
	if (t->size < SZ_64M)
		SKIP(return, "BAR %d is smaller than 64 MiB", t->bar);

	vaddr = mmap_bar(t->device->fd, SZ_64M, t->offset, 0);
	ASSERT_EQ(0, madvise(vaddr, SZ_64M, MADV_HUGEPAGE));

	faults = touch_faults(vaddr, SZ_64M);
	TH_LOG("64 MiB: %lu faults", (unsigned long)faults);
	ASSERT_GT(faults, 0);
	ASSERT_LE(faults, 32);

	munmap_bar(vaddr, SZ_64M);
}

/*
 * What is possible only while the device is not open: another user of it or,
 * without an IOMMU, the end of its group's use.
 */
static int take_device(struct bar_test *t, int cdev)
{
	if (t->iommu->iommufd)
		return __vfio_device_bind_iommufd(cdev, t->iommu->iommufd, NULL);

	return ioctl(t->device->group_fd, VFIO_GROUP_UNSET_CONTAINER) ? -errno : 0;
}

/* The mapping keeps the device open, until it is gone. */
TEST_F(bar_mmap, outlives_fd)
{
	struct bar_test *t = &self->t;
	u32 before, after;
	const char *cdev;
	void *vaddr;
	int fd = -1;

	vaddr = mmap_bar(t->device->fd, 2 * t->page, t->offset, 0);
	ASSERT_EQ(0, try_read32(vaddr, &before));
	vfio_pci_device_close(t->device);

	ASSERT_EQ(0, try_read32(vaddr, &after));
	ASSERT_EQ(before, after);
	ASSERT_EQ(0, try_read32(vaddr + t->page, &after));

	if (t->iommu->iommufd) {
		cdev = vfio_pci_get_cdev_path(device_bdf);
		fd = open(cdev, O_RDWR);
		ASSERT_GE(fd, 0);
		free((void *)cdev);
	}
	ASSERT_NE(0, take_device(t, fd));

	/* Half of it is enough. */
	munmap_bar(vaddr, t->page);
	ASSERT_NE(0, take_device(t, fd));
	ASSERT_EQ(0, try_read32(vaddr + t->page, &after));

	munmap_bar(vaddr + t->page, t->page);
	ASSERT_EQ(0, take_device(t, fd));
	if (fd >= 0)
		ASSERT_EQ(0, close(fd));
}

/* Everything that mmap() refuses, and why. */
TEST_F(bar_mmap, errors)
{
	struct bar_test *t = &self->t;
	size_t bar_size = ALIGN(t->size, t->page);
	const int rw = PROT_READ | PROT_WRITE;
	struct {
		const char *name;
		off_t offset;
		size_t size;
		int prot;
		int flags;
		int error;
	} rows[] = {
		{ "page", t->offset, t->page, rw, MAP_SHARED, 0 },
		{ "whole", t->offset, bar_size, rw, MAP_SHARED, 0 },
		{ "read-only", t->offset, t->page, PROT_READ, MAP_SHARED, 0 },
		{ "no access", t->offset, t->page, PROT_NONE, MAP_SHARED, 0 },
		{ "last page", t->offset + bar_size - t->page, t->page, rw, MAP_SHARED, 0 },
		{ "nothing", t->offset, 0, rw, MAP_SHARED, EINVAL },
		{ "odd offset", t->offset + 512, t->page, rw, MAP_SHARED, EINVAL },
		{ "private", t->offset, t->page, rw, MAP_PRIVATE, EINVAL },
		{ "private read-only", t->offset, t->page, PROT_READ, MAP_PRIVATE, EINVAL },
		{ "one page too many", t->offset, bar_size + t->page, rw, MAP_SHARED, EINVAL },
		{ "across the end", t->offset + bar_size - t->page, 2 * t->page, rw,
		  MAP_SHARED, EINVAL },
		{ "at the end", t->offset + bar_size, t->page, rw, MAP_SHARED, EINVAL },
		{ "far behind the end", t->offset + (1ULL << 39), t->page, rw,
		  MAP_SHARED, EINVAL },
		{ "into the next region", t->offset + REGION(1) - t->page, 2 * t->page, rw,
		  MAP_SHARED, EINVAL },
		{ "ROM", REGION(VFIO_PCI_ROM_REGION_INDEX), t->page, PROT_READ,
		  MAP_SHARED, EINVAL },
		{ "config space", REGION(VFIO_PCI_CONFIG_REGION_INDEX), t->page, rw,
		  MAP_SHARED, EINVAL },
		{ "VGA", REGION(VFIO_PCI_VGA_REGION_INDEX), t->page, rw,
		  MAP_SHARED, EINVAL },
		{ "no such region", REGION(VFIO_PCI_NUM_REGIONS), t->page, rw,
		  MAP_SHARED, EINVAL },
		{ "no such region by far", REGION(0x7fff), t->page, rw,
		  MAP_SHARED, EINVAL },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		EXPECT_EQ(rows[i].error,
			  mmap_errno(t->device->fd, rows[i].size, rows[i].offset,
				     rows[i].prot, rows[i].flags)) {
			TH_LOG("%s", rows[i].name);
		}
	}

	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		if (t->device->bars[i].info.flags & VFIO_REGION_INFO_FLAG_MMAP)
			continue;

		EXPECT_EQ(EINVAL, mmap_errno(t->device->fd, t->page, REGION(i), rw,
					     MAP_SHARED)) {
			TH_LOG("BAR %d", i);
		}
	}
}

/* /proc/PID/maps tells which BAR of which device is mapped where. */
TEST_F(bar_mmap, maps_name)
{
	struct bar_test *t = &self->t;
	char line[512], bar[16];
	unsigned long start;
	bool found = false;
	FILE *maps;
	int i;

	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		if (!t->device->bars[i].vaddr)
			continue;

		snprintf_assert(bar, sizeof(bar), "BAR %d", i);
		found = false;

		maps = fopen("/proc/self/maps", "r");
		ASSERT_NE(NULL, maps);
		while (fgets(line, sizeof(line), maps)) {
			if (sscanf(line, "%lx-", &start) != 1 ||
			    start != (unsigned long)t->device->bars[i].vaddr)
				continue;

			found = true;
			ASSERT_NE(NULL, strstr(line, device_bdf)) {
				TH_LOG("%s", line);
			}
			ASSERT_NE(NULL, strstr(line, bar)) {
				TH_LOG("%s", line);
			}
		}
		fclose(maps);
		ASSERT_TRUE(found);
	}
}

/*
 * The BARs are gone for a while.
 */
FIXTURE(bar_suspend) {
	struct bar_test t;
	const struct vfio_pci_suspend *suspend;
};

FIXTURE_VARIANT(bar_suspend) {
	const struct vfio_pci_suspend *suspend;
};

FIXTURE_VARIANT_ADD(bar_suspend, memory) {
	.suspend = &vfio_pci_suspend_memory,
};

FIXTURE_VARIANT_ADD(bar_suspend, d3) {
	.suspend = &vfio_pci_suspend_d3,
};

FIXTURE_VARIANT_ADD(bar_suspend, low_power) {
	.suspend = &vfio_pci_suspend_low_power,
};

FIXTURE_VARIANT_ADD(bar_suspend, wakeup) {
	.suspend = &vfio_pci_suspend_wakeup,
};

FIXTURE_SETUP(bar_suspend)
{
	bar_test_setup(&self->t, default_iommu_mode);
	self->suspend = variant->suspend;

	if (self->t.bar < 0)
		SKIP(return, "No mappable BAR on %s", device_bdf);
	if (!self->suspend->supported(self->t.device))
		SKIP(return, "%s has no %s", device_bdf, self->suspend->name);
}

FIXTURE_TEARDOWN(bar_suspend)
{
	bar_test_teardown(&self->t);
}

TEST_F(bar_suspend, access)
{
	struct bar_test *t = &self->t;
	void *late;
	u32 value;
	int i;

	if (t->is_memory)
		tag_pages(t, SZ_64K);
	ASSERT_EQ(0, try_read32(t->vaddr, &value));

	for (i = 0; i < 10; i++) {
		self->suspend->suspend(t->device);
		ASSERT_EQ(SIGBUS, try_read32(t->vaddr, &value));
		ASSERT_EQ(SIGBUS, try_write32(t->vaddr, 0));
		ASSERT_EQ(SIGBUS, try_read32(t->vaddr + t->size - t->page, &value));

		late = mmap_bar(t->device->fd, t->page, t->offset, 0);
		ASSERT_EQ(SIGBUS, try_read32(late, &value));

		self->suspend->resume(t->device);
		ASSERT_EQ(0, try_read32(t->vaddr, &value));
		ASSERT_EQ(0, try_read32(late, &value));
		ASSERT_EQ(0, try_read32(t->vaddr + t->size - t->page, &value));
		munmap_bar(late, t->page);

		if (t->is_memory)
			ASSERT_EQ(SZ_64K, check_tags(t, t->vaddr, SZ_64K, 0));
	}
}

/* Does nothing that helps, and nothing that harms. */
TEST_F(bar_suspend, twice)
{
	struct bar_test *t = &self->t;
	u32 value;

	/* Low power is an exception: the second entry is refused, or wakes up. */
	if (self->suspend == &vfio_pci_suspend_low_power ||
	    self->suspend == &vfio_pci_suspend_wakeup)
		SKIP(return, "low power is entered once");

	self->suspend->suspend(t->device);
	self->suspend->suspend(t->device);
	ASSERT_EQ(SIGBUS, try_read32(t->vaddr, &value));
	self->suspend->resume(t->device);
	ASSERT_EQ(0, try_read32(t->vaddr, &value));
	self->suspend->resume(t->device);
	ASSERT_EQ(0, try_read32(t->vaddr, &value));
}

struct toucher {
	void *vaddr;
	bool stop;
	u64 good;
	u64 bad;
	int other;
};

static void *toucher(void *data)
{
	struct toucher *toucher = data;
	u32 value;

	while (!READ_ONCE(toucher->stop)) {
		switch (try_read32(toucher->vaddr, &value)) {
		case 0:
			WRITE_ONCE(toucher->good, toucher->good + 1);
			break;
		case SIGBUS:
			toucher->bad++;
			break;
		default:
			toucher->other++;
		}
	}

	return NULL;
}

/* Another thread touches the BAR all the time. */
TEST_F_TIMEOUT(bar_suspend, storm, 120)
{
	struct toucher arg = { .vaddr = self->t.vaddr };
	struct bar_test *t = &self->t;
	pthread_t thread;
	u32 value;
	int i;

	ASSERT_EQ(0, pthread_create(&thread, NULL, toucher, &arg));
	while (!READ_ONCE(arg.good))
		usleep(100);

	for (i = 0; i < 100; i++) {
		self->suspend->suspend(t->device);
		ASSERT_EQ(SIGBUS, try_read32(t->vaddr, &value));
		usleep(100);
		self->suspend->resume(t->device);
		ASSERT_EQ(0, try_read32(t->vaddr, &value));
		usleep(100);
	}

	WRITE_ONCE(arg.stop, true);
	ASSERT_EQ(0, pthread_join(thread, NULL));
	TH_LOG("%lu accesses, %lu signals", (unsigned long)arg.good,
	       (unsigned long)arg.bad);
	ASSERT_GT(arg.good, 0);
	ASSERT_GT(arg.bad, 0);
	ASSERT_EQ(0, arg.other);
}

/*
 * A reset takes all mappings away before, and the next access brings them back.
 */
TEST_F_TIMEOUT(bar_mmap, reset, 60)
{
	struct bar_test *t = &self->t;
	u32 value;
	u64 faults;
	int i;

	if (!vfio_pci_can_reset(t->device))
		SKIP(return, "%s cannot be reset", device_bdf);

	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, try_read32(t->vaddr, &value));
		ASSERT_EQ(0, vfio_pci_any_reset(t->device));
		ASSERT_TRUE(vfio_pci_config_readw(t->device, PCI_COMMAND) &
			    PCI_COMMAND_MEMORY);

		faults = minor_faults();
		ASSERT_EQ(0, try_read32(t->vaddr, &value));
		ASSERT_NE(faults, minor_faults());
	}
}

/* The user resets the function through its config space. */
TEST_F_TIMEOUT(bar_mmap, flr, 60)
{
	struct toucher arg = { .vaddr = self->t.vaddr };
	struct bar_test *t = &self->t;
	pthread_t thread;
	u32 value;
	u8 cap;
	int i;

	cap = vfio_pci_find_cap(t->device, PCI_CAP_ID_EXP);
	if (!cap || !(vfio_pci_config_readl(t->device, cap + PCI_EXP_DEVCAP) &
		      PCI_EXP_DEVCAP_FLR))
		SKIP(return, "%s has no FLR", device_bdf);

	ASSERT_EQ(0, pthread_create(&thread, NULL, toucher, &arg));
	for (i = 0; i < 5; i++) {
		ASSERT_EQ(0, try_read32(t->vaddr, &value));
		vfio_pci_config_writew(t->device, cap + PCI_EXP_DEVCTL,
				       vfio_pci_config_readw(t->device, cap + PCI_EXP_DEVCTL) |
				       PCI_EXP_DEVCTL_BCR_FLR);
		ASSERT_EQ(0, try_read32(t->vaddr, &value));
	}
	WRITE_ONCE(arg.stop, true);
	ASSERT_EQ(0, pthread_join(thread, NULL));
	ASSERT_GT(arg.bad, 0);
	ASSERT_EQ(0, arg.other);
}

/* Reset with the memory off leaves it off. */
TEST_F_TIMEOUT(bar_mmap, reset_while_off, 60)
{
	struct bar_test *t = &self->t;
	u32 value;

	if (!vfio_pci_can_reset(t->device))
		SKIP(return, "%s cannot be reset", device_bdf);

	vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, vfio_pci_any_reset(t->device));
	ASSERT_EQ(SIGBUS, try_read32(t->vaddr, &value));
	vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, try_read32(t->vaddr, &value));
}

TEST_F_TIMEOUT(bar_mmap, reset_storm, 120)
{
	struct toucher arg = { .vaddr = self->t.vaddr };
	struct bar_test *t = &self->t;
	pthread_t thread;
	u32 value;
	u64 good;
	int i;

	if (!vfio_pci_can_reset(t->device))
		SKIP(return, "%s cannot be reset", device_bdf);

	ASSERT_EQ(0, pthread_create(&thread, NULL, toucher, &arg));

	for (i = 0; i < 5; i++) {
		good = READ_ONCE(arg.good);
		while (READ_ONCE(arg.good) == good)
			usleep(100);

		ASSERT_EQ(0, vfio_pci_any_reset(t->device));
		ASSERT_EQ(0, try_read32(t->vaddr, &value));
	}

	WRITE_ONCE(arg.stop, true);
	ASSERT_EQ(0, pthread_join(thread, NULL));
	ASSERT_EQ(0, arg.other);
}

/*
 * A read of the device stands in the middle of its copy to the user, while the
 * device is reset and others map the BAR and touch it: no lock that the read
 * holds may be in their way, nor they, one behind the other, in its.
 */
FIXTURE(bar_slow_read) {
	struct bar_test t;
	struct absent_memory memory;
};

FIXTURE_VARIANT(bar_slow_read) {
	bool config;
};

FIXTURE_VARIANT_ADD(bar_slow_read, config) {
	.config = true,
};

FIXTURE_VARIANT_ADD(bar_slow_read, bar) {
	.config = false,
};

FIXTURE_SETUP(bar_slow_read)
{
	bar_test_setup(&self->t, default_iommu_mode);
	if (self->t.bar < 0)
		SKIP(return, "No mappable BAR on %s", device_bdf);
	if (!vfio_pci_can_reset(self->t.device))
		SKIP(return, "%s cannot be reset", device_bdf);
	if (!absent_memory_init(&self->memory, self->t.page))
		SKIP(return, "no userfaultfd");
}

FIXTURE_TEARDOWN(bar_slow_read)
{
	absent_memory_cleanup(&self->memory);
	bar_test_teardown(&self->t);
}

struct slow_read {
	int fd;
	void *vaddr;
	off_t offset;
};

static long slow_read(void *data)
{
	struct slow_read *read = data;

	return pread(read->fd, read->vaddr, 64, read->offset);
}

static long slow_read_reset(void *data)
{
	return vfio_pci_any_reset(data);
}

struct slow_read_mapper {
	struct bar_test *t;
	bool stop;
	u64 rounds;
};

/* Returns the number of mappings whose access ended as it must not. */
static long slow_read_mapper(void *data)
{
	struct slow_read_mapper *mapper = data;
	struct bar_test *t = mapper->t;
	long bad = 0;
	void *vaddr;
	u32 value;
	int sig;

	while (!READ_ONCE(mapper->stop)) {
		vaddr = mmap_bar(t->device->fd, t->page, t->offset, 0);
		sig = try_read32(vaddr, &value);
		if (sig && sig != SIGBUS)
			bad++;
		munmap_bar(vaddr, t->page);
		WRITE_ONCE(mapper->rounds, mapper->rounds + 1);
	}

	return bad;
}

static bool slow_read_progress(struct slow_read_mapper *mapper)
{
	u64 rounds = READ_ONCE(mapper->rounds);
	int ms = 10000;

	/* One may have begun before, and needed nothing any more. */
	while (READ_ONCE(mapper->rounds) < rounds + 3) {
		if (!ms--)
			return false;
		usleep(1000);
	}

	return true;
}

TEST_F_TIMEOUT(bar_slow_read, reset_and_mmap, 120)
{
	struct bar_test *t = &self->t;
	struct slow_read_mapper mappers[2] = { { .t = t }, { .t = t } };
	struct job reader, resetter, jobs[2];
	struct slow_read read = {
		.fd = t->device->fd,
		.vaddr = self->memory.vaddr,
		.offset = variant->config ? REGION(VFIO_PCI_CONFIG_REGION_INDEX) : t->offset,
	};
	int i;

	start_job(&reader, slow_read, &read);
	ASSERT_TRUE(absent_memory_is_awaited(&self->memory, 10000));

	for (i = 0; i < 2; i++)
		start_job(&jobs[i], slow_read_mapper, &mappers[i]);
	start_job(&resetter, slow_read_reset, t->device);

	for (i = 0; i < 2; i++)
		ASSERT_TRUE(slow_read_progress(&mappers[i]));
	ASSERT_TRUE(job_is_done(&resetter, 30000));
	ASSERT_EQ(0, finish_job(&resetter));
	for (i = 0; i < 2; i++)
		ASSERT_TRUE(slow_read_progress(&mappers[i]));

	/* So does a writer of the lock that resets and reads share. */
	vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);

	for (i = 0; i < 2; i++) {
		ASSERT_TRUE(slow_read_progress(&mappers[i]));
		WRITE_ONCE(mappers[i].stop, true);
		ASSERT_TRUE(job_is_done(&jobs[i], 10000));
		ASSERT_EQ(0, finish_job(&jobs[i]));
	}

	/* All the time the read was where it was. */
	ASSERT_FALSE(job_is_done(&reader, 0));
	absent_memory_supply(&self->memory);
	ASSERT_TRUE(job_is_done(&reader, 10000));
	ASSERT_EQ(64, finish_job(&reader));
	if (variant->config) {
		ASSERT_EQ(vfio_pci_config_readw(t->device, PCI_VENDOR_ID),
			  *(u16 *)self->memory.vaddr);
	}
}

/*
 * Two opens of one device, which its group allows: what was mapped through one
 * of them depends on the device, whichever of them is closed first.
 */
FIXTURE(bar_group) {
	struct bar_test t;
	int again;
};

FIXTURE_VARIANT(bar_group) {
	bool map_second;
	bool close_second;
};

FIXTURE_VARIANT_ADD(bar_group, map_1_close_1) {
	.map_second = false,
	.close_second = false,
};

FIXTURE_VARIANT_ADD(bar_group, map_1_close_2) {
	.map_second = false,
	.close_second = true,
};

FIXTURE_VARIANT_ADD(bar_group, map_2_close_1) {
	.map_second = true,
	.close_second = false,
};

FIXTURE_VARIANT_ADD(bar_group, map_2_close_2) {
	.map_second = true,
	.close_second = true,
};

FIXTURE_SETUP(bar_group)
{
	if (!vfio_pci_has_group(device_bdf))
		SKIP(return, "no access by group: a device is opened once");

	bar_test_setup(&self->t, vfio_pci_group_iommu_mode(device_bdf));
	if (self->t.bar < 0)
		SKIP(return, "No mappable BAR on %s", device_bdf);
	self->again = vfio_pci_group_reopen(self->t.device);
}

FIXTURE_TEARDOWN(bar_group)
{
	bar_test_teardown(&self->t);
}

TEST_F_TIMEOUT(bar_group, close, 60)
{
	struct bar_test *t = &self->t;
	void *vaddr, *other;
	u32 value;
	int fd;

	vaddr = mmap_bar(variant->map_second ? self->again : t->device->fd,
			 2 * t->page, t->offset, 0);
	other = mmap_bar(variant->map_second ? t->device->fd : self->again,
			 t->page, t->offset, 0);
	ASSERT_EQ(0, try_touch(vaddr, t->page));

	/* What was not touched before is to be found as well. */
	vfio_pci_group_close_one(t->device, self->again, variant->close_second);
	ASSERT_EQ(0, try_touch(vaddr, 2 * t->page));
	ASSERT_EQ(0, try_read32(other, &value));

	vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	ASSERT_EQ(SIGBUS, try_read32(vaddr + t->page, &value));
	ASSERT_EQ(SIGBUS, try_read32(other, &value));
	vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, try_touch(vaddr, 2 * t->page));
	ASSERT_EQ(0, try_read32(other, &value));

	if (vfio_pci_can_reset(t->device)) {
		ASSERT_EQ(0, vfio_pci_any_reset(t->device));
		ASSERT_EQ(0, try_touch(vaddr, 2 * t->page));
	}

	/* The mappings alone keep the device open, any of them does. */
	vfio_pci_device_close(t->device);
	munmap_bar(other, t->page);
	ASSERT_EQ(0, try_touch(vaddr, 2 * t->page));
	munmap_bar(vaddr, t->page);
	ASSERT_EQ(0, try_read32(vaddr + t->page, &value));

	fd = vfio_pci_group_reopen(t->device);
	ASSERT_EQ(t->device->fd, dup2(fd, t->device->fd));
	vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(SIGBUS, try_read32(vaddr + t->page, &value));
	vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, try_read32(vaddr + t->page, &value));
	ASSERT_EQ(0, close(fd));
	vfio_pci_device_close(t->device);
	munmap_bar(vaddr + t->page, t->page);

	/* And it can be opened by all from the beginning. */
	fd = vfio_pci_group_reopen(t->device);
	ASSERT_EQ(0, mmap_errno(fd, t->page, t->offset, PROT_READ, MAP_SHARED));
	ASSERT_EQ(0, close(fd));
}

struct command_writer {
	struct vfio_pci_device *device;
	bool stop;
};

static void *command_writer(void *data)
{
	struct command_writer *writer = data;

	while (!READ_ONCE(writer->stop))
		vfio_pci_cmd_set(writer->device, PCI_COMMAND_MEMORY);

	return NULL;
}

/*
 * Somebody else resets the device, with config space blocked meanwhile. A write
 * to the command register waits for that. Access ends and comes back.
 */
TEST_F_TIMEOUT(bar_mmap, reset_by_others, 120)
{
	struct command_writer writer = { .device = self->t.device };
	struct toucher arg = { .vaddr = self->t.vaddr };
	struct bar_test *t = &self->t;
	pthread_t threads[2];
	u32 value;
	int i, ret;

	ret = vfio_pci_sysfs_reset(t->device);
	if (ret == -ENOENT)
		SKIP(return, "%s cannot be reset", device_bdf);
	ASSERT_EQ(0, ret);
	ASSERT_EQ(0, try_read32(t->vaddr, &value));

	ASSERT_EQ(0, pthread_create(&threads[0], NULL, toucher, &arg));
	ASSERT_EQ(0, pthread_create(&threads[1], NULL, command_writer, &writer));

	for (i = 0; i < 20; i++) {
		ASSERT_EQ(0, vfio_pci_sysfs_reset(t->device));
		ASSERT_EQ(0, try_read32(t->vaddr, &value));
	}

	WRITE_ONCE(arg.stop, true);
	WRITE_ONCE(writer.stop, true);
	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, pthread_join(threads[i], NULL));
	ASSERT_EQ(0, arg.other);
	ASSERT_GT(arg.bad, 0);

	/* Off stays off, whatever happens to the device. */
	vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, vfio_pci_sysfs_reset(t->device));
	ASSERT_EQ(SIGBUS, try_read32(t->vaddr, &value));
	vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, try_read32(t->vaddr, &value));
}

/* Of the kernel's drivers/pci/pcie/aer_inject.c */
struct aer_error_inj {
	u8 bus;
	u8 dev;
	u8 fn;
	u32 uncor_status;
	u32 cor_status;
	u32 header_log[4];
	u32 domain;
};

/* The port at the root of the hierarchy that the device is in. */
static bool root_port_of(const char *bdf, struct aer_error_inj *port)
{
	unsigned int domain, bus, dev, fn;
	char path[PATH_MAX], *name;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s", bdf);
	name = realpath(path, NULL);
	if (!name)
		return false;

	snprintf(path, sizeof(path), "%s", name);
	free(name);
	name = strstr(path, "/pci");
	if (!name || sscanf(name, "/pci%*x:%*x/%x:%x:%x.%x/", &domain, &bus,
			    &dev, &fn) != 4 || !strchr(name + 13, '/'))
		return false;

	port->domain = domain;
	port->bus = bus;
	port->dev = dev;
	port->fn = fn;
	return true;
}

/* How many fatal errors the port has looked at, which it does not do at once. */
static unsigned long fatal_errors_of(const struct aer_error_inj *port)
{
	unsigned long nr = 0;
	char path[PATH_MAX];
	FILE *file;

	snprintf(path, sizeof(path),
		 "/sys/bus/pci/devices/%04x:%02x:%02x.%x/aer_rootport_total_err_fatal",
		 port->domain, port->bus, port->dev, port->fn);
	file = fopen(path, "r");
	if (file) {
		if (fscanf(file, "%lu", &nr) != 1)
			nr = 0;
		fclose(file);
	}

	return nr;
}

static u16 physical_command(const char *bdf)
{
	char path[128];
	u16 cmd;
	int fd;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/config", bdf);
	fd = open(path, O_RDONLY);
	VFIO_ASSERT_GE(fd, 0);
	VFIO_ASSERT_EQ(pread(fd, &cmd, sizeof(cmd), PCI_COMMAND), sizeof(cmd));
	close(fd);

	return cmd;
}

/*
 * The port above the device reports an error: the device is reset, and nobody
 * restores its BARs before the user does.
 */
TEST_F_TIMEOUT(bar_mmap, error, 120)
{
	struct aer_error_inj error = {
		.uncor_status = PCI_ERR_UNC_COMP_ABORT,
	};
	struct command_writer writer = { .device = self->t.device };
	struct bar_test *t = &self->t;
	pthread_t thread;
	u64 end, fatal, cut = 0;
	int i, fd, round;
	u32 value, good;

	fd = open("/dev/aer_inject", O_WRONLY);
	if (fd < 0)
		SKIP(return, "no /dev/aer_inject: CONFIG_PCIEAER_INJECT is not set");
	if (!root_port_of(device_bdf, &error))
		SKIP(return, "%s is not below a port", device_bdf);
	ASSERT_EQ(0, try_read32(t->vaddr, &value));

	/* One that takes nothing away. */
	ASSERT_EQ(sizeof(error), write(fd, &error, sizeof(error)));
	for (i = 0; i < 20; i++) {
		ASSERT_EQ(0, try_read32(t->vaddr, &value));
		usleep(50000);
	}
	ASSERT_TRUE(physical_command(device_bdf) & PCI_COMMAND_MEMORY);

	error.uncor_status = PCI_ERR_UNC_MALF_TLP;
	ASSERT_EQ(sizeof(error), write(fd, &error, sizeof(error)));
	for (i = 0; i < 200 && !try_read32(t->vaddr, &value); i++)
		usleep(50000);
	ASSERT_EQ(SIGBUS, try_read32(t->vaddr, &value));

	/* It is reset, which gives nothing back. */
	for (i = 0; i < 200 && physical_command(device_bdf) & PCI_COMMAND_MEMORY; i++)
		usleep(50000);
	ASSERT_FALSE(physical_command(device_bdf) & PCI_COMMAND_MEMORY);
	for (i = 0; i < 40; i++) {
		ASSERT_EQ(SIGBUS, try_read32(t->vaddr, &value));
		usleep(50000);
	}

	/* Nor does another reset, which restores what it found. */
	if (vfio_pci_can_reset(t->device)) {
		ASSERT_EQ(0, vfio_pci_any_reset(t->device));
		ASSERT_EQ(SIGBUS, try_read32(t->vaddr, &value));
	}

	/* The user turns on what was never turned off for them. */
	vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);
	ASSERT_TRUE(physical_command(device_bdf) & PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, try_touch(t->vaddr, t->page));

	/* One who is too eager for that does not see what is not there. */
	if (t->is_memory)
		ASSERT_EQ(0, try_write32(t->vaddr, 0x600dda7a));
	ASSERT_EQ(0, try_read32(t->vaddr, &good));
	ASSERT_EQ(0, pthread_create(&thread, NULL, command_writer, &writer));
	fatal = fatal_errors_of(&error);
	for (round = 0; round < 8; round++) {
		/* -EBUSY: the last one is still being looked at. */
		for (i = 0; i < 200 && write(fd, &error, sizeof(error)) < 0; i++) {
			ASSERT_EQ(EBUSY, errno);
			usleep(10000);
		}
		ASSERT_LT(i, 200);

		/* Its recovery takes some milliseconds, and begins a little later. */
		end = milliseconds() + 200;
		while (milliseconds() < end) {
			if (try_read32(t->vaddr, &value))
				cut++;
			else
				ASSERT_EQ(good, value);
		}
		for (i = 0; i < 400 && try_read32(t->vaddr, &value); i++)
			usleep(10000);
		ASSERT_LT(i, 400);
		ASSERT_EQ(good, value);
		cut += i;
	}
	ASSERT_GT(cut, 0);

	/* Who closes a device in the middle of a recovery may leave it without BARs. */
	end = milliseconds() + 10000;
	while (fatal_errors_of(&error) - fatal < round && milliseconds() < end)
		usleep(10000);
	for (i = 0; i < 50 && milliseconds() < end; i++) {
		if (try_read32(t->vaddr, &value))
			i = 0;
		usleep(10000);
	}
	WRITE_ONCE(writer.stop, true);
	ASSERT_EQ(0, pthread_join(thread, NULL));
	close(fd);
}

int main(int argc, char *argv[])
{
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}
