// SPDX-License-Identifier: GPL-2.0-only
/*
 * BARs exported as dma-bufs: mapped by the CPU, reached by another device
 * through iommufd, suspended, revoked, outlived by either side.
 *
 * The contents of the largest BAR are overwritten. A second device, given as a
 * second address or in $VFIO_SELFTESTS_BDF2, is needed where another exporter
 * or a device that does DMA is.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <dirent.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/align.h>
#include <linux/compiler.h>
#include <linux/kernel.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/udmabuf.h>
#include <linux/vfio.h>

#include <libvfio.h>
#include <libvfio/vfio_pci_dmabuf.h>

#include "kselftest_harness.h"

static const char *device_bdf;
static const char *other_bdf;

struct dmabuf_test {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	size_t page;

	/* The largest BAR, and its mapping through the device fd. */
	int bar;
	size_t size;
	void *vaddr;
};

static void dmabuf_test_open(struct dmabuf_test *test)
{
	test->device = vfio_pci_device_init(device_bdf, test->iommu);
	vfio_pci_cmd_set(test->device, PCI_COMMAND_MEMORY);

	test->bar = vfio_pci_largest_bar(test->device);
	if (test->bar < 0)
		return;

	test->size = test->device->bars[test->bar].info.size;
	test->vaddr = test->device->bars[test->bar].vaddr;
}

static const char *dmabuf_test_setup(struct dmabuf_test *test,
				     const char *iommu_mode, bool need_revoke)
{
	test->page = getpagesize();
	test->iommu = iommu_init(iommu_mode);
	dmabuf_test_open(test);

	if (!vfio_pci_dmabuf_exported(test->device))
		return "the kernel cannot export dma-bufs, as announced";
	if (need_revoke && !vfio_pci_dmabuf_supported(test->device))
		return "the kernel cannot revoke dma-bufs, as announced";
	if (test->bar < 0)
		return "there is no mappable BAR";
	if (!vfio_pci_bar_is_memory(test->device, test->bar))
		return "the largest BAR does not behave like memory";
	if (test->size < SZ_16M)
		return "the largest BAR is smaller than 16 MiB";

	return NULL;
}

static void dmabuf_test_teardown(struct dmabuf_test *test)
{
	vfio_pci_device_cleanup(test->device);
	iommu_cleanup(test->iommu);
}

static int dmabuf_export(struct dmabuf_test *test, u64 offset, u64 length)
{
	return vfio_pci_dmabuf_export(test->device, test->bar, offset, length, 0);
}

/* A value in each page of the BAR that tells the pages from each other. */
static void tag_pages(struct dmabuf_test *test, size_t size)
{
	size_t offset;

	for (offset = 0; offset < size; offset += test->page)
		WRITE_ONCE(*(u64 *)(test->vaddr + offset), offset ^ 0xa5a5ULL);
}

/* True if the page at @vaddr is the one at @offset of the BAR. */
static bool has_tag(const void *vaddr, u64 offset)
{
	return READ_ONCE(*(const u64 *)vaddr) == (offset ^ 0xa5a5ULL);
}

/*
 * The pages of [@vaddr, @vaddr + @size), a mapping of the buffer from @start
 * on, must be those of the ranges. Returns the offset of the first that is not.
 */
static size_t check_ranges(struct dmabuf_test *test, const void *vaddr,
			   size_t start, size_t size,
			   const struct vfio_region_dma_range *ranges, int nr)
{
	size_t offset, at = start;
	int i = 0;

	while (i < nr && at >= ranges[i].length)
		at -= ranges[i++].length;

	for (offset = 0; offset < size; offset += test->page) {
		VFIO_ASSERT_LT(i, nr);

		if (!has_tag(vaddr + offset, ranges[i].offset + at))
			break;

		at += test->page;
		if (at == ranges[i].length) {
			at = 0;
			i++;
		}
	}

	return offset;
}

static u64 ranges_size(const struct vfio_region_dma_range *ranges, int nr)
{
	u64 size = 0;

	while (nr--)
		size += ranges[nr].length;

	return size;
}

static int count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int count = 0;

	VFIO_ASSERT_NOT_NULL(dir);
	while (readdir(dir))
		count++;
	closedir(dir);

	return count;
}

/*
 * The features are there. Or they were announced to be missing; then each
 * question is answered in the same way, and nothing else is tested.
 */
FIXTURE(dmabuf_feature) {
	struct dmabuf_test t;
};

FIXTURE_SETUP(dmabuf_feature)
{
	self->t.page = getpagesize();
	self->t.iommu = iommu_init(default_iommu_mode);
	dmabuf_test_open(&self->t);
}

FIXTURE_TEARDOWN(dmabuf_feature)
{
	dmabuf_test_teardown(&self->t);
}

TEST_F(dmabuf_feature, present)
{
	struct dmabuf_test *t = &self->t;
	int bar = t->bar < 0 ? 0 : t->bar;
	struct vfio_region_dma_range range = { 0, t->page };
	bool exported = vfio_pci_dmabuf_exported(t->device);
	bool supported = vfio_pci_dmabuf_supported(t->device);
	struct vfio_device_feature_dma_buf_revoke revoke = {};
	const u32 ops[] = { VFIO_DEVICE_FEATURE_GET, VFIO_DEVICE_FEATURE_SET };
	u32 flags;
	int i;

	if (!exported) {
		EXPECT_EQ(-ENOTTY, __vfio_pci_dmabuf_export(t->device, bar, &range, 1, O_RDWR, 0));
		EXPECT_EQ(-ENOTTY, __vfio_pci_dmabuf_export(t->device, bar, &range, 1, O_RDWR,
							    VFIO_DMA_BUF_FLAG_ZONE_DEVICE));
		EXPECT_EQ(-ENOTTY, __vfio_pci_dmabuf_export(t->device, ~0U, &range, 0, 0, ~0U));
	}

	for (i = 0; i < ARRAY_SIZE(ops) && !supported; i++) {
		flags = ops[i] | VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE;
		EXPECT_EQ(-ENOTTY, __vfio_device_feature(t->device->fd, flags, &revoke,
							 sizeof(revoke)));
		flags |= VFIO_DEVICE_FEATURE_PROBE;
		EXPECT_EQ(-ENOTTY, __vfio_device_feature(t->device->fd, flags, NULL, 0));
	}

	if (exported && t->bar >= 0 && t->size >= t->page)
		ASSERT_EQ(0, close(dmabuf_export(t, 0, t->page)));
}

FIXTURE(dmabuf) {
	struct dmabuf_test t;
};

FIXTURE_SETUP(dmabuf)
{
	const char *reason = dmabuf_test_setup(&self->t, default_iommu_mode, true);

	if (reason)
		SKIP(return, "%s: %s", device_bdf, reason);
}

FIXTURE_TEARDOWN(dmabuf)
{
	dmabuf_test_teardown(&self->t);
}

/*
 * mmap()
 */

/* The buffer, the device fd and an alias are the same memory. */
TEST_F(dmabuf, coherent)
{
	struct dmabuf_test *t = &self->t;
	size_t offset = SZ_1M, size = SZ_256K;
	u64 bar_offset = t->device->bars[t->bar].info.offset;
	void *a, *b, *buf;
	int fd, alias;

	fd = dmabuf_export(t, offset, size);
	alias = dmabuf_export(t, 0, SZ_4M);
	a = mmap_bar(fd, size, 0, 0);
	b = mmap_bar(alias, SZ_4M, 0, 0);
	buf = malloc_assert(size);

	pattern_fill(a, size, 1);
	ASSERT_EQ(size, pattern_check(t->vaddr + offset, size, 1));
	ASSERT_EQ(size, pattern_check(b + offset, size, 1));
	ASSERT_EQ(size, pread(t->device->fd, buf, size, bar_offset + offset));
	ASSERT_EQ(size, pattern_check(buf, size, 1));

	pattern_fill(t->vaddr + offset, size, 2);
	ASSERT_EQ(size, pattern_check(a, size, 2));

	pattern_fill(b + offset, size, 3);
	ASSERT_EQ(size, pattern_check(a, size, 3));
	ASSERT_EQ(size, pattern_check(t->vaddr + offset, size, 3));

	/* Its neighbours belong to nobody's pattern. */
	WRITE_ONCE(*(u64 *)(t->vaddr + offset + size), 0x1234);
	pattern_fill(a, size, 4);
	ASSERT_EQ(0x1234, READ_ONCE(*(u64 *)(t->vaddr + offset + size)));

	free(buf);
	munmap_bar(a, size);
	munmap_bar(b, SZ_4M);
	ASSERT_EQ(0, close(fd));
	ASSERT_EQ(0, close(alias));
}

/* Ranges in the order given, from every start, with and without alignment. */
static void test_ranges(struct __test_metadata *_metadata, struct dmabuf_test *t,
			const struct vfio_region_dma_range *ranges, int nr)
{
	u64 size = ranges_size(ranges, nr);
	size_t starts[] = {
		0, t->page, ALIGN_DOWN(size / 3, t->page), size - t->page,
	};
	size_t skews[] = { 0, t->page, SZ_1M };
	void *vaddr;
	int fd, i, j;

	fd = __vfio_pci_dmabuf_export(t->device, t->bar, ranges, nr, O_RDWR, 0);
	ASSERT_GE(fd, 0) {
		TH_LOG("%d ranges: %d", nr, fd);
	}
	ASSERT_EQ(size, lseek(fd, 0, SEEK_END));

	for (i = 0; i < ARRAY_SIZE(starts); i++) {
		for (j = 0; j < ARRAY_SIZE(skews); j++) {
			size_t len = size - starts[i];

			if (starts[i] >= size)
				continue;

			vaddr = mmap_bar(fd, len, starts[i], skews[j]);
			madvise(vaddr, len, MADV_HUGEPAGE);
			ASSERT_EQ(len, check_ranges(t, vaddr, starts[i], len, ranges, nr)) {
				TH_LOG("from %#zx, at %p", starts[i], vaddr);
			}
			munmap_bar(vaddr, len);
		}
	}

	ASSERT_EQ(0, close(fd));
}

TEST_F(dmabuf, ranges)
{
	struct dmabuf_test *t = &self->t;
	const u64 page = t->page;
	const struct vfio_region_dma_range unordered[] = {
		{ SZ_4M, page }, { 0, SZ_64K }, { SZ_8M, SZ_2M }, { SZ_1M, page * 3 },
	};
	const struct vfio_region_dma_range overlapping[] = {
		{ 0, SZ_4M }, { SZ_2M, SZ_4M }, { 0, SZ_4M }, { SZ_2M + page, SZ_4M },
	};
	const struct vfio_region_dma_range adjacent[] = {
		{ 0, SZ_1M }, { SZ_1M, SZ_2M }, { SZ_1M * 3, page }, { SZ_1M * 3 + page, SZ_4M },
	};
	const struct vfio_region_dma_range holes[] = {
		{ 0, SZ_1M * 3 }, { SZ_8M, SZ_1M * 3 }, { SZ_1M * 3, SZ_1M * 3 },
	};
	const struct vfio_region_dma_range backwards[] = {
		{ SZ_2M * 3, SZ_2M }, { SZ_2M * 2, SZ_2M }, { SZ_2M, SZ_2M }, { 0, SZ_2M },
	};
	const struct vfio_region_dma_range unaligned[] = {
		{ page, SZ_8M },
	};
	const struct vfio_region_dma_range single[] = {
		{ SZ_8M + page, page },
	};

	tag_pages(t, SZ_16M);

	test_ranges(_metadata, t, unordered, ARRAY_SIZE(unordered));
	test_ranges(_metadata, t, overlapping, ARRAY_SIZE(overlapping));
	test_ranges(_metadata, t, adjacent, ARRAY_SIZE(adjacent));
	test_ranges(_metadata, t, holes, ARRAY_SIZE(holes));
	test_ranges(_metadata, t, backwards, ARRAY_SIZE(backwards));
	test_ranges(_metadata, t, unaligned, ARRAY_SIZE(unaligned));
	test_ranges(_metadata, t, single, ARRAY_SIZE(single));
}

TEST_F_TIMEOUT(dmabuf, random_ranges, 120)
{
	struct vfio_region_dma_range ranges[300];
	struct dmabuf_test *t = &self->t;
	int round, i, nr;

	tag_pages(t, SZ_16M);
	srandom(1);

	for (round = 0; round < 8; round++) {
		nr = 1 + random() % ARRAY_SIZE(ranges);
		for (i = 0; i < nr; i++) {
			ranges[i].offset = random() % (SZ_16M / t->page / 2) * t->page;
			ranges[i].length = (1 + random() % 32) * t->page;
			/* Some follow the one before. */
			if (i && random() % 3 == 0 && ranges[i - 1].offset < SZ_8M)
				ranges[i].offset = ranges[i - 1].offset +
						   ranges[i - 1].length;
		}

		test_ranges(_metadata, t, ranges, nr);
	}
}

/* As many as a page of the buffer each, all in one mapping. */
TEST_F_TIMEOUT(dmabuf, many_ranges, 120)
{
	struct vfio_region_dma_range *ranges;
	struct dmabuf_test *t = &self->t;
	int nr = 4096, i;

	if (t->size < (u64)nr * t->page)
		SKIP(return, "BAR %d is too small", t->bar);

	ranges = calloc_assert(nr, sizeof(*ranges));
	tag_pages(t, nr * t->page);
	for (i = 0; i < nr; i++) {
		ranges[i].offset = (u64)(nr - 1 - i) * t->page;
		ranges[i].length = t->page;
	}

	test_ranges(_metadata, t, ranges, nr);
	free(ranges);
}

static u64 count_faults(int fd, size_t size, size_t skew)
{
	void *vaddr = mmap_bar(fd, size, 0, skew);
	u64 faults;

	VFIO_ASSERT_EQ(madvise(vaddr, size, MADV_HUGEPAGE), 0);
	faults = touch_faults(vaddr, size);
	munmap_bar(vaddr, size);

	return faults;
}

/* One fault for each 2 MiB. */
TEST_F(dmabuf, huge_faults)
{
	struct dmabuf_test *t = &self->t;
	u64 faults;
	int fd;

	if (!huge_faults_enabled())
		SKIP(return, "transparent huge pages are off");
	if (t->size < SZ_64M)
		SKIP(return, "BAR %d is smaller than 64 MiB", t->bar);

	fd = dmabuf_export(t, 0, SZ_64M);
	faults = count_faults(fd, SZ_64M, 0);
	TH_LOG("64 MiB: %lu faults", (unsigned long)faults);
	ASSERT_GT(faults, 0);
	ASSERT_LE(faults, 32);
	ASSERT_EQ(0, close(fd));
}

/* The seam of two ranges that are neighbours in the BAR is none. */
TEST_F(dmabuf, huge_fault_across_seam)
{
	const u64 page = getpagesize();
	const struct vfio_region_dma_range seam[] = {
		{ 0, SZ_1M * 3 }, { SZ_1M * 3, page }, { SZ_1M * 3 + page, SZ_1M * 5 - page },
	};
	const struct vfio_region_dma_range gap[] = {
		{ 0, SZ_1M * 3 }, { SZ_8M + SZ_1M * 3, SZ_1M * 5 },
	};
	struct dmabuf_test *t = &self->t;
	u64 faults;
	int fd;

	if (!huge_faults_enabled())
		SKIP(return, "transparent huge pages are off");

	fd = __vfio_pci_dmabuf_export(t->device, t->bar, seam, ARRAY_SIZE(seam), O_RDWR, 0);
	ASSERT_GE(fd, 0);
	faults = count_faults(fd, SZ_8M, 0);
	TH_LOG("8 MiB, seams: %lu faults", (unsigned long)faults);
	ASSERT_GT(faults, 0);
	ASSERT_LE(faults, 4);
	ASSERT_EQ(0, close(fd));

	/* Here is one: 2 MiB in pages, the rest in one piece each. */
	fd = __vfio_pci_dmabuf_export(t->device, t->bar, gap, ARRAY_SIZE(gap), O_RDWR, 0);
	ASSERT_GE(fd, 0);
	faults = count_faults(fd, SZ_8M, 0);
	TH_LOG("8 MiB, gap: %lu faults", (unsigned long)faults);
	ASSERT_GE(faults, SZ_2M / t->page);
	ASSERT_LE(faults, SZ_2M / t->page + 3);
	ASSERT_EQ(0, close(fd));
}

TEST_F(dmabuf, mmap_errors)
{
	struct dmabuf_test *t = &self->t;
	const int rw = PROT_READ | PROT_WRITE;
	const size_t size = SZ_64K;
	struct {
		const char *name;
		off_t offset;
		size_t size;
		int prot;
		int flags;
		int error;
	} rows[] = {
		{ "whole", 0, size, rw, MAP_SHARED, 0 },
		{ "validated", 0, size, rw, MAP_SHARED_VALIDATE, 0 },
		{ "read-only", 0, size, PROT_READ, MAP_SHARED, 0 },
		{ "last page", size - t->page, t->page, rw, MAP_SHARED, 0 },
		{ "private", 0, size, rw, MAP_PRIVATE, EINVAL },
		{ "private read-only", 0, size, PROT_READ, MAP_PRIVATE, EINVAL },
		{ "nothing", 0, 0, rw, MAP_SHARED, EINVAL },
		{ "odd offset", 512, t->page, rw, MAP_SHARED, EINVAL },
		{ "one page too many", 0, size + t->page, rw, MAP_SHARED, EINVAL },
		{ "across the end", size - t->page, 2 * t->page, rw, MAP_SHARED, EINVAL },
		{ "at the end", size, t->page, rw, MAP_SHARED, EINVAL },
		{ "far behind the end", 1ULL << 40, t->page, rw, MAP_SHARED, EINVAL },
	};
	int fd, i;

	fd = dmabuf_export(t, SZ_1M, size);
	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		EXPECT_EQ(rows[i].error,
			  mmap_errno(fd, rows[i].size, rows[i].offset,
				     rows[i].prot, rows[i].flags)) {
			TH_LOG("%s", rows[i].name);
		}
	}

	/* Where offset and size overflow, the VFS may say so first. */
	i = mmap_errno(fd, size, (off_t)(~0ULL << 13), rw, MAP_SHARED);
	EXPECT_TRUE(i == EINVAL || i == EOVERFLOW) {
		TH_LOG("overflow: %d", i);
	}

	ASSERT_EQ(0, close(fd));
}

/* A buffer that was exported read-only cannot be mapped for writing. */
TEST_F(dmabuf, read_only)
{
	struct vfio_region_dma_range range = { 0, SZ_64K };
	struct dmabuf_test *t = &self->t;
	void *vaddr;
	u32 value;
	int fd;

	fd = __vfio_pci_dmabuf_export(t->device, t->bar, &range, 1, O_RDONLY, 0);
	ASSERT_GE(fd, 0);
	ASSERT_EQ(EACCES, mmap_errno(fd, SZ_64K, 0, PROT_READ | PROT_WRITE, MAP_SHARED));

	vaddr = mmap(NULL, SZ_64K, PROT_READ, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, vaddr);
	ASSERT_EQ(0, try_read32(vaddr, &value));
	ASSERT_EQ(SIGSEGV, try_write32(vaddr, 0));
	ASSERT_EQ(-1, mprotect(vaddr, SZ_64K, PROT_READ | PROT_WRITE));
	ASSERT_EQ(EACCES, errno);
	munmap_bar(vaddr, SZ_64K);
	ASSERT_EQ(0, close(fd));
}

/* What is left of a mapping after a hole was made in it is still found. */
TEST_F(dmabuf, split_mapping)
{
	struct dmabuf_test *t = &self->t;
	size_t size = SZ_8M, hole = SZ_2M + SZ_64K, page = t->page;
	void *vaddr, *moved;
	u32 value;
	int fd;

	tag_pages(t, size);
	fd = dmabuf_export(t, 0, size);
	vaddr = mmap_bar(fd, size, 0, 0);
	madvise(vaddr, size, MADV_HUGEPAGE);
	ASSERT_EQ(0, try_touch(vaddr, size));

	ASSERT_EQ(0, munmap(vaddr + hole, page));
	ASSERT_EQ(0, mprotect(vaddr + SZ_4M + page, page, PROT_READ));
	moved = mmap_reserve(SZ_2M, SZ_2M, page);
	ASSERT_EQ(moved, mremap(vaddr + SZ_2M * 3, SZ_2M, SZ_2M,
				MREMAP_MAYMOVE | MREMAP_FIXED, moved));

	ASSERT_TRUE(has_tag(vaddr + hole - page, hole - page));
	ASSERT_TRUE(has_tag(vaddr + hole + page, hole + page));
	ASSERT_TRUE(has_tag(vaddr + SZ_4M + page, SZ_4M + page));
	ASSERT_EQ(SIGSEGV, try_write32(vaddr + SZ_4M + page, 0));
	ASSERT_TRUE(has_tag(moved, SZ_2M * 3));
	ASSERT_TRUE(has_tag(moved + SZ_2M - page, SZ_8M - page));

	vfio_pci_dmabuf_revoke(t->device, fd);
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	ASSERT_EQ(SIGBUS, try_read32(vaddr + hole - page, &value));
	ASSERT_EQ(SIGBUS, try_read32(vaddr + hole + page, &value));
	ASSERT_EQ(SIGBUS, try_read32(vaddr + SZ_4M, &value));
	ASSERT_EQ(SIGBUS, try_read32(vaddr + SZ_4M + page, &value));
	ASSERT_EQ(SIGBUS, try_read32(vaddr + SZ_4M + 2 * page, &value));
	ASSERT_EQ(SIGBUS, try_read32(moved, &value));
	ASSERT_EQ(SIGBUS, try_read32(moved + SZ_2M - page, &value));

	munmap_bar(vaddr, SZ_2M * 3);
	munmap_bar(moved, SZ_2M);
	ASSERT_EQ(0, close(fd));
}

static int read_child(void *data, int arg)
{
	u32 value;
	int sig = try_read32(data, &value);

	return sig ? -sig : value;
}

TEST_F(dmabuf, fork)
{
	struct dmabuf_test *t = &self->t;
	struct child child;
	void *vaddr;
	int fd;

	fd = dmabuf_export(t, 0, SZ_2M);
	vaddr = mmap_bar(fd, SZ_2M, 0, 0);
	WRITE_ONCE(*(u32 *)vaddr, 0x11);
	start_child(&child, read_child, vaddr);
	ASSERT_EQ(0x11, ask_child(&child, 0));
	WRITE_ONCE(*(u32 *)vaddr, 0x22);
	ASSERT_EQ(0x22, ask_child(&child, 0));

	vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(-SIGBUS, ask_child(&child, 0));
	vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0x22, ask_child(&child, 0));

	/* The parent's mapping and fd are not what the child's depends on. */
	munmap_bar(vaddr, SZ_2M);
	ASSERT_EQ(0x22, ask_child(&child, 0));
	vfio_pci_dmabuf_revoke(t->device, fd);
	ASSERT_EQ(-SIGBUS, ask_child(&child, 0));
	ASSERT_EQ(0, close(fd));
	ASSERT_EQ(-SIGBUS, ask_child(&child, 0));
	stop_child(&child);
}

TEST_F(dmabuf, maps_name)
{
	struct dmabuf_test *t = &self->t;
	bool found = false;
	char line[512], bar[16];
	unsigned long start;
	void *vaddr;
	FILE *maps;
	int fd;

	snprintf_assert(bar, sizeof(bar), "BAR %d", t->bar);
	fd = dmabuf_export(t, 0, SZ_64K);
	vaddr = mmap_bar(fd, SZ_64K, 0, 0);

	maps = fopen("/proc/self/maps", "r");
	ASSERT_NE(NULL, maps);
	while (fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%lx-", &start) != 1 || start != (unsigned long)vaddr)
			continue;

		found = true;
		ASSERT_TRUE(strstr(line, device_bdf) && strstr(line, bar)) {
			TH_LOG("%s", line);
		}
	}
	ASSERT_TRUE(found);
	fclose(maps);
	munmap_bar(vaddr, SZ_64K);
	ASSERT_EQ(0, close(fd));
}

/*
 * VFIO_DEVICE_FEATURE_DMA_BUF
 */
TEST_F(dmabuf, export_errors)
{
	struct dmabuf_test *t = &self->t;
	const u64 page = t->page, size = t->size;
	struct {
		const char *name;
		u32 bar;
		u32 flags;
		int nr;
		struct vfio_region_dma_range ranges[2];
		int error;
	} rows[] = {
		{ "flag 1", t->bar, 1 << 1, 1, { { 0, page } }, EINVAL },
		{ "flag 31", t->bar, 1U << 31, 1, { { 0, page } }, EINVAL },
		{ "flags 0 and 1", t->bar, 3, 1, { { 0, SZ_2M } }, EINVAL },
		{ "no range", t->bar, 0, 0, { }, EINVAL },
		{ "no length", t->bar, 0, 1, { { 0, 0 } }, EINVAL },
		{ "no length in the second", t->bar, 0, 2, { { 0, page }, { page, 0 } }, EINVAL },
		{ "odd offset", t->bar, 0, 1, { { 512, page } }, EINVAL },
		{ "odd length", t->bar, 0, 1, { { 0, page + 512 } }, EINVAL },
		{ "odd second", t->bar, 0, 2, { { 0, page }, { 1, page } }, EINVAL },
		{ "one page too many", t->bar, 0, 1, { { 0, size + page } }, EINVAL },
		{ "at the end", t->bar, 0, 1, { { size, page } }, EINVAL },
		{ "second at the end", t->bar, 0, 2, { { 0, page }, { size, page } }, EINVAL },
		{ "sum overflows", t->bar, 0, 2, { { 0, 1ULL << 63 }, { 0, 1ULL << 63 } },
		  EINVAL },
		{ "ROM", VFIO_PCI_ROM_REGION_INDEX, 0, 1, { { 0, page } }, ENODEV },
		{ "config space", VFIO_PCI_CONFIG_REGION_INDEX, 0, 1, { { 0, page } }, ENODEV },
		{ "region 100", 100, 0, 1, { { 0, page } }, ENODEV },
		{ "region -1", ~0U, 0, 1, { { 0, page } }, ENODEV },
	};
	int fds = count_fds(), ret, i;

	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		EXPECT_EQ(-rows[i].error,
			  __vfio_pci_dmabuf_export(t->device, rows[i].bar, rows[i].ranges,
						   rows[i].nr, O_RDWR | O_CLOEXEC,
						   rows[i].flags)) {
			TH_LOG("%s", rows[i].name);
		}
	}

	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		struct vfio_region_dma_range range = { 0, page };

		if (t->device->bars[i].info.size)
			continue;
		EXPECT_EQ(-ENODEV, __vfio_pci_dmabuf_export(t->device, i, &range, 1, O_RDWR, 0)) {
			TH_LOG("BAR %d", i);
		}
	}

	/* Offsets that overflow may be told apart from those that are wrong. */
	for (i = 0; i < 2; i++) {
		struct vfio_region_dma_range range = { -page, i ? 2 * page : page };

		ret = __vfio_pci_dmabuf_export(t->device, t->bar, &range, 1, O_RDWR, 0);
		EXPECT_TRUE(ret == -EINVAL || ret == -EOVERFLOW) {
			TH_LOG("offset %#llx: %d", range.offset, ret);
		}
	}

	EXPECT_EQ(fds, count_fds());
}

/* The same, where a struct is not what it says. */
TEST_F(dmabuf, export_malformed)
{
	struct dmabuf_test *t = &self->t;
	size_t size = sizeof(struct vfio_device_feature) +
		      sizeof(struct vfio_device_feature_dma_buf);
	u32 get = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF;
	struct vfio_device_feature_dma_buf *dma_buf;
	struct vfio_device_feature *feature;
	int fds = count_fds();
	void *pages;

	/* Ranges are expected on a page that does not exist. */
	pages = mmap_reserve(2 * t->page, t->page, 0);
	ASSERT_EQ(0, mprotect(pages, t->page, PROT_READ | PROT_WRITE));
	feature = pages + t->page - size;
	dma_buf = (void *)feature->data;
	*feature = (struct vfio_device_feature) { .argsz = size, .flags = get };
	*dma_buf = (struct vfio_device_feature_dma_buf) {
		.region_index = t->bar,
		.open_flags = O_RDWR,
		.nr_ranges = 1,
	};
	EXPECT_EQ(-1, ioctl(t->device->fd, VFIO_DEVICE_FEATURE, feature));
	EXPECT_EQ(EFAULT, errno);

	/* More than there can be. */
	dma_buf->nr_ranges = ~0U;
	EXPECT_EQ(-1, ioctl(t->device->fd, VFIO_DEVICE_FEATURE, feature));
	EXPECT_TRUE(errno == EFAULT || errno == ENOMEM || errno == EINVAL ||
		    errno == E2BIG || errno == EOVERFLOW) {
		TH_LOG("errno %d", errno);
	}

	dma_buf->nr_ranges = 1;
	feature->argsz = size - 1;
	EXPECT_EQ(-1, ioctl(t->device->fd, VFIO_DEVICE_FEATURE, feature));
	EXPECT_EQ(EINVAL, errno);

	feature->argsz = size;
	feature->flags = VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_BUF;
	EXPECT_EQ(-1, ioctl(t->device->fd, VFIO_DEVICE_FEATURE, feature));
	EXPECT_EQ(EINVAL, errno);

	munmap_bar(pages, 2 * t->page);
	EXPECT_EQ(fds, count_fds());
}

/*
 * VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE
 */
#define REVOKE_SET (VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE)
#define REVOKE_GET (VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE)

TEST_F(dmabuf, revoke_errors)
{
	struct vfio_device_feature_dma_buf_revoke revoke;
	struct dmabuf_test *t = &self->t;
	struct vfio_device_feature *feature;
	int fds, fd, memfd, pipefd[2];
	void *vaddr, *pages;
	u32 value;

	fd = dmabuf_export(t, 0, SZ_64K);
	vaddr = mmap_bar(fd, SZ_64K, 0, 0);
	memfd = memfd_create("revoke", 0);
	ASSERT_GE(memfd, 0);
	ASSERT_EQ(0, pipe(pipefd));
	fds = count_fds();

	/* Not an fd. */
	EXPECT_EQ(-EBADF, __vfio_pci_dmabuf_revoke(t->device, -1));
	EXPECT_EQ(-EBADF, __vfio_pci_dmabuf_revoke(t->device, 0x7fffffff));
	EXPECT_EQ(-EBADF, __vfio_pci_dmabuf_revoke(t->device, -100));
	ASSERT_EQ(0, close(pipefd[1]));
	EXPECT_EQ(-EBADF, __vfio_pci_dmabuf_revoke(t->device, pipefd[1]));
	fds--;

	/* Not a dma-buf. */
	EXPECT_EQ(-EINVAL, __vfio_pci_dmabuf_revoke(t->device, memfd));
	EXPECT_EQ(-EINVAL, __vfio_pci_dmabuf_revoke(t->device, pipefd[0]));
	EXPECT_EQ(-EINVAL, __vfio_pci_dmabuf_revoke(t->device, t->device->fd));
	EXPECT_EQ(-EINVAL, __vfio_pci_dmabuf_revoke(t->device, t->iommu->iommufd ?:
						    t->iommu->container_fd));

	/* Wrong operation, too little data. */
	revoke.dmabuf_fd = fd;
	EXPECT_EQ(-EINVAL, __vfio_device_feature(t->device->fd, REVOKE_GET,
						 &revoke, sizeof(revoke)));
	EXPECT_EQ(-EINVAL, __vfio_device_feature(t->device->fd, REVOKE_SET | REVOKE_GET,
						 &revoke, sizeof(revoke)));
	EXPECT_EQ(-EINVAL, __vfio_device_feature(t->device->fd,
						 VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE,
						 &revoke, sizeof(revoke)));
	EXPECT_EQ(-EINVAL, __vfio_device_feature(t->device->fd, REVOKE_SET,
						 &revoke, sizeof(revoke) - 1));
	EXPECT_EQ(-EINVAL, __vfio_device_feature(t->device->fd, REVOKE_SET, NULL, 0));

	/* Data out of reach. */
	pages = mmap_reserve(2 * t->page, t->page, 0);
	ASSERT_EQ(0, mprotect(pages, t->page, PROT_READ | PROT_WRITE));
	feature = pages + t->page - sizeof(*feature);
	feature->argsz = sizeof(*feature) + sizeof(revoke);
	feature->flags = REVOKE_SET;
	EXPECT_EQ(-1, ioctl(t->device->fd, VFIO_DEVICE_FEATURE, feature));
	EXPECT_EQ(EFAULT, errno);
	munmap_bar(pages, 2 * t->page);

	/* A probe asks, and does nothing. */
	EXPECT_EQ(0, __vfio_device_feature(t->device->fd, VFIO_DEVICE_FEATURE_PROBE |
					   REVOKE_SET, &revoke, sizeof(revoke)));
	EXPECT_EQ(-EINVAL, __vfio_device_feature(t->device->fd, VFIO_DEVICE_FEATURE_PROBE |
						 REVOKE_GET, &revoke, sizeof(revoke)));

	/* None of this has changed anything. */
	EXPECT_EQ(0, try_read32(vaddr, &value));
	EXPECT_EQ(fds, count_fds());

	EXPECT_EQ(0, __vfio_pci_dmabuf_revoke(t->device, fd));
	EXPECT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(t->device, fd));
	EXPECT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(t->device, fd));
	EXPECT_EQ(fds, count_fds());

	munmap_bar(vaddr, SZ_64K);
	ASSERT_EQ(0, close(fd));
	EXPECT_EQ(-EBADF, __vfio_pci_dmabuf_revoke(t->device, fd));
}

/* A dma-buf that somebody else exported. */
TEST_F(dmabuf, revoke_foreign_exporter)
{
	struct udmabuf_create create = { .size = SZ_64K };
	struct dmabuf_test *t = &self->t;
	int udmabuf, memfd, fd;

	udmabuf = open("/dev/udmabuf", O_RDWR);
	if (udmabuf < 0)
		SKIP(return, "no /dev/udmabuf");

	memfd = memfd_create("udmabuf", MFD_ALLOW_SEALING);
	ASSERT_GE(memfd, 0);
	ASSERT_EQ(0, ftruncate(memfd, SZ_64K));
	ASSERT_EQ(0, fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK));
	create.memfd = memfd;
	fd = ioctl(udmabuf, UDMABUF_CREATE, &create);
	ASSERT_GE(fd, 0);

	ASSERT_EQ(-ENODEV, __vfio_pci_dmabuf_revoke(t->device, fd));
	ASSERT_EQ(0, mmap_errno(fd, SZ_64K, 0, PROT_READ, MAP_SHARED));
}

TEST_F(dmabuf, revoke_foreign_device)
{
	struct dmabuf_test *t = &self->t;
	struct vfio_pci_device *other;
	void *vaddr, *mine;
	u32 value;
	int fd, bar, mine_fd;

	if (!other_bdf)
		SKIP(return, "no second device");

	other = vfio_pci_device_init(other_bdf, t->iommu);
	vfio_pci_cmd_set(other, PCI_COMMAND_MEMORY);
	bar = vfio_pci_largest_bar(other);
	ASSERT_GE(bar, 0);

	fd = vfio_pci_dmabuf_export(other, bar, 0, t->page, 0);
	vaddr = mmap_bar(fd, t->page, 0, 0);
	ASSERT_EQ(0, try_read32(vaddr, &value));
	mine_fd = dmabuf_export(t, 0, SZ_64K);
	mine = mmap_bar(mine_fd, SZ_64K, 0, 0);

	ASSERT_EQ(-ENODEV, __vfio_pci_dmabuf_revoke(t->device, fd));
	ASSERT_EQ(0, try_read32(vaddr, &value));
	ASSERT_EQ(-ENODEV, __vfio_pci_dmabuf_revoke(other, mine_fd));

	/* What happens to one device is nothing to the other. */
	vfio_pci_cmd_clear(other, PCI_COMMAND_MEMORY);
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	ASSERT_EQ(0, try_read32(mine, &value));
	vfio_pci_cmd_set(other, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, try_read32(vaddr, &value));
	ASSERT_EQ(SIGBUS, try_read32(mine, &value));
	vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);

	vfio_pci_dmabuf_revoke(other, fd);
	ASSERT_EQ(-ENODEV, __vfio_pci_dmabuf_revoke(t->device, fd));
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	ASSERT_EQ(0, try_read32(mine, &value));

	munmap_bar(vaddr, t->page);
	munmap_bar(mine, SZ_64K);
	ASSERT_EQ(0, close(fd));
	ASSERT_EQ(0, close(mine_fd));
	vfio_pci_device_cleanup(other);
}

/* Revoked is for good; other buffers do not notice. */
TEST_F_TIMEOUT(dmabuf, revoke, 60)
{
	static const struct vfio_pci_suspend * const ways[] = {
		&vfio_pci_suspend_memory,
		&vfio_pci_suspend_d3,
		&vfio_pci_suspend_low_power,
	};
	struct dmabuf_test *t = &self->t;
	int fd, alias, later, i;
	void *a, *b, *fresh;
	u32 value;

	fd = dmabuf_export(t, 0, SZ_4M);
	alias = dmabuf_export(t, 0, SZ_4M);
	a = mmap_bar(fd, SZ_4M, 0, 0);
	b = mmap_bar(alias, SZ_4M, 0, 0);
	ASSERT_EQ(0, try_touch(a, SZ_4M));
	ASSERT_EQ(0, try_touch(b, SZ_4M));
	WRITE_ONCE(*(u32 *)t->vaddr, 0x99);

	vfio_pci_dmabuf_revoke(t->device, fd);

	ASSERT_EQ(SIGBUS, try_read32(a, &value));
	ASSERT_EQ(SIGBUS, try_write32(a, 0x98));
	ASSERT_EQ(SIGBUS, try_read32(a + SZ_4M - t->page, &value));
	ASSERT_EQ(ENODEV, mmap_errno(fd, SZ_4M, 0, PROT_READ | PROT_WRITE, MAP_SHARED));
	ASSERT_EQ(ENODEV, mmap_errno(fd, t->page, 0, PROT_READ, MAP_SHARED));
	ASSERT_EQ(0, try_touch(b, SZ_4M));
	ASSERT_EQ(0, try_touch(t->vaddr, SZ_4M));
	ASSERT_EQ(0x99, READ_ONCE(*(u32 *)b));

	for (i = 0; i < ARRAY_SIZE(ways); i++) {
		if (!ways[i]->supported(t->device))
			continue;

		ways[i]->suspend(t->device);
		ASSERT_EQ(SIGBUS, try_read32(a, &value));
		ASSERT_EQ(SIGBUS, try_read32(b, &value));
		ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(t->device, fd));
		ways[i]->resume(t->device);
		ASSERT_EQ(SIGBUS, try_read32(a, &value)) {
			TH_LOG("after %s", ways[i]->name);
		}
		ASSERT_EQ(0, try_read32(b, &value));
	}

	if (vfio_pci_can_reset(t->device)) {
		ASSERT_EQ(0, vfio_pci_any_reset(t->device));
		ASSERT_EQ(SIGBUS, try_read32(a, &value));
		ASSERT_EQ(0, try_read32(b, &value));
	}

	ASSERT_EQ(ENODEV, mmap_errno(fd, t->page, 0, PROT_READ, MAP_SHARED));
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(t->device, fd));

	/* The range can be exported again. */
	later = dmabuf_export(t, 0, SZ_4M);
	fresh = mmap_bar(later, SZ_4M, 0, 0);
	ASSERT_EQ(0, try_touch(fresh, SZ_4M));
	ASSERT_EQ(SIGBUS, try_read32(a, &value));

	munmap_bar(a, SZ_4M);
	munmap_bar(b, SZ_4M);
	munmap_bar(fresh, SZ_4M);
	ASSERT_EQ(0, close(fd));
	ASSERT_EQ(0, close(alias));
	ASSERT_EQ(0, close(later));
}

/* Revoked before anybody looked at it. */
TEST_F(dmabuf, revoke_unused)
{
	struct dmabuf_test *t = &self->t;
	void *vaddr;
	u32 value;
	int fd;

	fd = dmabuf_export(t, 0, SZ_64K);
	vfio_pci_dmabuf_revoke(t->device, fd);
	ASSERT_EQ(ENODEV, mmap_errno(fd, SZ_64K, 0, PROT_READ, MAP_SHARED));
	ASSERT_EQ(0, close(fd));

	/* Mapped, but never touched. */
	fd = dmabuf_export(t, 0, SZ_64K);
	vaddr = mmap_bar(fd, SZ_64K, 0, 0);
	vfio_pci_dmabuf_revoke(t->device, fd);
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	ASSERT_EQ(0, close(fd));
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	munmap_bar(vaddr, SZ_64K);
}

struct revoker {
	struct vfio_pci_device *device;
	int fd;
	pthread_barrier_t *barrier;
	int ret;
};

static void *revoker(void *data)
{
	struct revoker *revoker = data;

	pthread_barrier_wait(revoker->barrier);
	revoker->ret = __vfio_pci_dmabuf_revoke(revoker->device, revoker->fd);

	return NULL;
}

/* Of several at once, one does it. */
TEST_F_TIMEOUT(dmabuf, revoke_race, 60)
{
	struct dmabuf_test *t = &self->t;
	struct revoker revokers[4];
	pthread_barrier_t barrier;
	pthread_t threads[4];
	int round, i, fd;
	void *vaddr;
	u32 value;

	ASSERT_EQ(0, pthread_barrier_init(&barrier, NULL, ARRAY_SIZE(threads)));

	for (round = 0; round < 20; round++) {
		int done = 0;

		fd = dmabuf_export(t, 0, SZ_4M);
		vaddr = mmap_bar(fd, SZ_4M, 0, 0);
		ASSERT_EQ(0, try_touch(vaddr, SZ_4M));

		for (i = 0; i < ARRAY_SIZE(threads); i++) {
			revokers[i].device = t->device;
			revokers[i].fd = fd;
			revokers[i].barrier = &barrier;
			ASSERT_EQ(0, pthread_create(&threads[i], NULL, revoker, &revokers[i]));
		}
		for (i = 0; i < ARRAY_SIZE(threads); i++) {
			ASSERT_EQ(0, pthread_join(threads[i], NULL));
			ASSERT_TRUE(!revokers[i].ret || revokers[i].ret == -EBADFD) {
				TH_LOG("%d", revokers[i].ret);
			}
			done += !revokers[i].ret;
		}

		ASSERT_GE(done, 1);
		ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
		munmap_bar(vaddr, SZ_4M);
		ASSERT_EQ(0, close(fd));
	}

	pthread_barrier_destroy(&barrier);
}

/*
 * The BARs are gone for a while.
 */
FIXTURE(dmabuf_suspend) {
	struct dmabuf_test t;
	const struct vfio_pci_suspend *suspend;
};

FIXTURE_VARIANT(dmabuf_suspend) {
	const struct vfio_pci_suspend *suspend;
};

FIXTURE_VARIANT_ADD(dmabuf_suspend, memory) {
	.suspend = &vfio_pci_suspend_memory,
};

FIXTURE_VARIANT_ADD(dmabuf_suspend, d3) {
	.suspend = &vfio_pci_suspend_d3,
};

FIXTURE_VARIANT_ADD(dmabuf_suspend, low_power) {
	.suspend = &vfio_pci_suspend_low_power,
};

FIXTURE_SETUP(dmabuf_suspend)
{
	const char *reason = dmabuf_test_setup(&self->t, default_iommu_mode, true);

	self->suspend = variant->suspend;
	if (reason)
		SKIP(return, "%s: %s", device_bdf, reason);
	if (!self->suspend->supported(self->t.device))
		SKIP(return, "%s has no %s", device_bdf, self->suspend->name);
}

FIXTURE_TEARDOWN(dmabuf_suspend)
{
	dmabuf_test_teardown(&self->t);
}

/* A buffer that is made meanwhile comes alive with the device. */
TEST_F(dmabuf_suspend, export)
{
	struct dmabuf_test *t = &self->t;
	void *vaddr;
	u32 value;
	int fd;

	WRITE_ONCE(*(u32 *)t->vaddr, 0x31);

	self->suspend->suspend(t->device);
	fd = dmabuf_export(t, 0, SZ_64K);
	vaddr = mmap_bar(fd, SZ_64K, 0, 0);
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	ASSERT_EQ(SIGBUS, try_write32(vaddr, 0));

	self->suspend->resume(t->device);
	ASSERT_EQ(0, try_read32(vaddr, &value));
	ASSERT_EQ(0x31, value);

	self->suspend->suspend(t->device);
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	self->suspend->resume(t->device);
	ASSERT_EQ(0, try_read32(vaddr, &value));

	munmap_bar(vaddr, SZ_64K);
	ASSERT_EQ(0, close(fd));
}

/* ... unless it was revoked before. */
TEST_F(dmabuf_suspend, revoke)
{
	struct dmabuf_test *t = &self->t;
	void *vaddr;
	u32 value;
	int fd;

	fd = dmabuf_export(t, 0, SZ_64K);
	vaddr = mmap_bar(fd, SZ_64K, 0, 0);
	ASSERT_EQ(0, try_read32(vaddr, &value));

	self->suspend->suspend(t->device);
	ASSERT_EQ(0, mmap_errno(fd, SZ_64K, 0, PROT_READ, MAP_SHARED));
	vfio_pci_dmabuf_revoke(t->device, fd);
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(t->device, fd));
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	ASSERT_EQ(ENODEV, mmap_errno(fd, SZ_64K, 0, PROT_READ, MAP_SHARED));

	self->suspend->resume(t->device);
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	ASSERT_EQ(ENODEV, mmap_errno(fd, SZ_64K, 0, PROT_READ, MAP_SHARED));

	munmap_bar(vaddr, SZ_64K);
	ASSERT_EQ(0, close(fd));
}

struct toucher {
	void *vaddr;
	size_t size;
	bool stop;
	u64 good;
	u64 bad;
	int other;
};

static void *toucher(void *data)
{
	struct toucher *toucher = data;
	size_t page = getpagesize(), offset = 0;
	u32 value;

	while (!READ_ONCE(toucher->stop)) {
		switch (try_read32(toucher->vaddr + offset, &value)) {
		case 0:
			WRITE_ONCE(toucher->good, toucher->good + 1);
			break;
		case SIGBUS:
			toucher->bad++;
			break;
		default:
			toucher->other++;
		}
		offset = (offset + 7 * page) % toucher->size;
	}

	return NULL;
}

TEST_F_TIMEOUT(dmabuf_suspend, storm, 120)
{
	struct toucher touchers[2] = {};
	struct dmabuf_test *t = &self->t;
	pthread_t threads[2];
	u64 good, bad;
	void *vaddr;
	u32 value;
	int fd, i;

	fd = dmabuf_export(t, 0, SZ_4M);
	vaddr = mmap_bar(fd, SZ_4M, 0, 0);
	WRITE_ONCE(*(u32 *)vaddr, 0x41);
	for (i = 0; i < 2; i++) {
		touchers[i].vaddr = vaddr;
		touchers[i].size = SZ_4M;
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, toucher, &touchers[i]));
		while (!READ_ONCE(touchers[i].good))
			usleep(100);
	}

	for (i = 0; i < 100; i++) {
		self->suspend->suspend(t->device);
		ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
		ASSERT_EQ(SIGBUS, try_read32(vaddr + SZ_2M, &value));
		usleep(100);
		self->suspend->resume(t->device);
		ASSERT_EQ(0, try_read32(vaddr, &value));
		ASSERT_EQ(0x41, value);
		usleep(100);
	}

	vfio_pci_dmabuf_revoke(t->device, fd);
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	usleep(1000);

	for (i = 0; i < 2; i++)
		WRITE_ONCE(touchers[i].stop, true);
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, pthread_join(threads[i], NULL));
		ASSERT_EQ(0, touchers[i].other);
	}
	good = touchers[0].good + touchers[1].good;
	bad = touchers[0].bad + touchers[1].bad;
	TH_LOG("%lu accesses, %lu signals", (unsigned long)good, (unsigned long)bad);
	ASSERT_GT(good, 0);
	ASSERT_GT(bad, 0);

	munmap_bar(vaddr, SZ_4M);
	ASSERT_EQ(0, close(fd));
}

/*
 * The ends of their lives, in every order.
 */
FIXTURE(dmabuf_end) {
	struct dmabuf_test t;
};

FIXTURE_VARIANT(dmabuf_end) {
	const char *event;
};

FIXTURE_VARIANT_ADD(dmabuf_end, memory) {
	.event = "memory",
};

FIXTURE_VARIANT_ADD(dmabuf_end, reset) {
	.event = "reset",
};

FIXTURE_VARIANT_ADD(dmabuf_end, close) {
	.event = "close",
};

FIXTURE_VARIANT_ADD(dmabuf_end, export) {
	.event = "export",
};

/* Nothing but the export is needed here, which older kernels have, too. */
FIXTURE_SETUP(dmabuf_end)
{
	const char *reason = dmabuf_test_setup(&self->t, default_iommu_mode, false);

	if (reason)
		SKIP(return, "%s: %s", device_bdf, reason);
	if (!strcmp(variant->event, "reset") && !vfio_pci_can_reset(self->t.device))
		SKIP(return, "%s cannot be reset", device_bdf);
}

FIXTURE_TEARDOWN(dmabuf_end)
{
	dmabuf_test_teardown(&self->t);
}

static void dmabuf_event(struct __test_metadata *_metadata,
			 struct dmabuf_test *t, const char *event)
{
	if (!strcmp(event, "memory")) {
		vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
		vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);
	} else if (!strcmp(event, "reset")) {
		ASSERT_EQ(0, vfio_pci_any_reset(t->device));
	} else if (!strcmp(event, "close")) {
		vfio_pci_device_close(t->device);
	} else {
		ASSERT_EQ(0, close(dmabuf_export(t, 0, SZ_4M)));
	}
}

/*
 * An O_PATH descriptor keeps the buffer's dentry, but not its file: the device
 * must not look for the buffer by its file. KASAN tells if it does.
 */
TEST_F(dmabuf_end, o_path)
{
	struct dmabuf_test *t = &self->t;
	char link[64];
	int fd, path;

	fd = dmabuf_export(t, 0, SZ_4M);
	snprintf_assert(link, sizeof(link), "/proc/self/fd/%d", fd);
	path = open(link, O_PATH);
	ASSERT_GE(path, 0);
	ASSERT_EQ(0, close(fd));

	/* The file is freed after an RCU grace period. */
	usleep(300000);

	/* There is no file that could be revoked. */
	if (vfio_pci_dmabuf_supported(t->device))
		ASSERT_EQ(-EBADF, __vfio_pci_dmabuf_revoke(t->device, path));

	dmabuf_event(_metadata, t, variant->event);
	usleep(100000);
	ASSERT_EQ(0, close(path));
}

/* The buffer is gone long before. */
TEST_F(dmabuf_end, closed_before)
{
	struct dmabuf_test *t = &self->t;
	int i;

	for (i = 0; i < 100; i++)
		ASSERT_EQ(0, close(dmabuf_export(t, 0, SZ_4M)));

	dmabuf_event(_metadata, t, variant->event);
}

/* Its fd is, its mapping is not. */
TEST_F(dmabuf_end, mapped)
{
	struct dmabuf_test *t = &self->t;
	bool close_device = !strcmp(variant->event, "close");
	void *vaddr;
	u32 value;
	int fd;

	if (!vfio_pci_dmabuf_supported(t->device))
		SKIP(return, "the kernel cannot map dma-bufs");

	WRITE_ONCE(*(u32 *)t->vaddr, 0x51);
	fd = dmabuf_export(t, 0, SZ_4M);
	vaddr = mmap_bar(fd, SZ_4M, 0, 0);
	ASSERT_EQ(0, try_touch(vaddr, SZ_4M));
	ASSERT_EQ(0, close(fd));
	ASSERT_EQ(0, try_touch(vaddr, SZ_4M));

	if (!close_device) {
		vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
		ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
		vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);
		ASSERT_EQ(0, try_read32(vaddr, &value));
	}

	dmabuf_event(_metadata, t, variant->event);
	ASSERT_EQ(close_device ? SIGBUS : 0, try_read32(vaddr, &value));
	if (!close_device)
		ASSERT_EQ(0x51, value);
	munmap_bar(vaddr, SZ_4M);
}

/* The buffer is left when the device is closed, and maybe opened again. */
TEST_F(dmabuf_end, device_first)
{
	struct dmabuf_test *t = &self->t;
	void *vaddr, *untouched;
	int fd, path, ret;
	char link[64];
	u32 value;

	if (!vfio_pci_dmabuf_supported(t->device))
		SKIP(return, "the kernel cannot map dma-bufs");

	fd = dmabuf_export(t, 0, SZ_4M);
	snprintf_assert(link, sizeof(link), "/proc/self/fd/%d", fd);
	path = open(link, O_PATH);
	ASSERT_GE(path, 0);
	vaddr = mmap_bar(fd, SZ_4M, 0, 0);
	untouched = mmap_bar(fd, SZ_4M, 0, 0);
	ASSERT_EQ(0, try_touch(vaddr, SZ_4M));

	dmabuf_event(_metadata, t, variant->event);
	if (strcmp(variant->event, "close"))
		vfio_pci_device_close(t->device);

	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	ASSERT_EQ(SIGBUS, try_read32(vaddr + SZ_4M - t->page, &value));
	ASSERT_EQ(SIGBUS, try_read32(untouched, &value));
	ASSERT_EQ(ENODEV, mmap_errno(fd, SZ_4M, 0, PROT_READ, MAP_SHARED));

	/* Another user of the device has nothing to do with it. */
	vfio_pci_device_cleanup(t->device);
	dmabuf_test_open(t);
	ASSERT_EQ(0, try_touch(t->vaddr, SZ_4M));
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	ASSERT_EQ(SIGBUS, try_read32(untouched, &value));
	ASSERT_EQ(ENODEV, mmap_errno(fd, SZ_4M, 0, PROT_READ, MAP_SHARED));

	/* Whether the device still knows it is not specified. */
	ret = __vfio_pci_dmabuf_revoke(t->device, fd);
	ASSERT_TRUE(ret == -ENODEV || ret == -EBADFD) {
		TH_LOG("%d", ret);
	}

	vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));

	munmap_bar(vaddr, SZ_4M);
	ASSERT_EQ(0, close(fd));
	ASSERT_EQ(SIGBUS, try_read32(untouched, &value));
	munmap_bar(untouched, SZ_4M);
	ASSERT_EQ(0, close(path));
}

/* The device is closed at the same time as the buffer. */
static void *closer(void *data)
{
	pthread_barrier_t **barrier = data;

	pthread_barrier_wait(*barrier);
	close(((int *)(barrier + 1))[0]);

	return NULL;
}

TEST_F_TIMEOUT(dmabuf_end, race, 120)
{
	struct {
		pthread_barrier_t *barrier;
		int fd;
	} arg;
	struct dmabuf_test *t = &self->t;
	pthread_barrier_t barrier;
	pthread_t thread;
	int i;

	ASSERT_EQ(0, pthread_barrier_init(&barrier, NULL, 2));
	arg.barrier = &barrier;

	for (i = 0; i < 20; i++) {
		arg.fd = dmabuf_export(t, 0, SZ_4M);
		ASSERT_EQ(0, pthread_create(&thread, NULL, closer, &arg));
		pthread_barrier_wait(&barrier);
		dmabuf_event(_metadata, t, variant->event);
		ASSERT_EQ(0, pthread_join(thread, NULL));

		if (!strcmp(variant->event, "close")) {
			vfio_pci_device_cleanup(t->device);
			dmabuf_test_open(t);
		}
	}
}

/*
 * Another device reaches the BAR through iommufd.
 */
struct dma_test {
	struct vfio_pci_device *device;
	struct iova_allocator *iovas;
	struct dma_region memory;

	/* Where the buffer is to be, and how the device fd sees its BAR. */
	iova_t bar_iova;
	void *bar_vaddr;
	size_t size;
};

FIXTURE(dmabuf_dma) {
	struct dmabuf_test t;
	struct dma_test dma;
};

static void region_setup(struct iommu *iommu, struct iova_allocator *iovas,
			 struct dma_region *region, u64 size)
{
	region->vaddr = mmap(NULL, size, PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	VFIO_ASSERT_NE(region->vaddr, MAP_FAILED);
	region->size = size;
	region->iova = iova_allocator_alloc(iovas, size);
	iommu_map(iommu, region);
}

FIXTURE_SETUP(dmabuf_dma)
{
	const char *reason = dmabuf_test_setup(&self->t, default_iommu_mode, true);

	if (reason)
		SKIP(return, "%s: %s", device_bdf, reason);
	if (!self->t.iommu->iommufd)
		SKIP(return, "no IOMMU: nothing can be mapped for DMA");
	if (!other_bdf)
		SKIP(return, "no second device");

	self->dma.device = vfio_pci_device_init(other_bdf, self->t.iommu);
	if (!self->dma.device->driver.ops)
		SKIP(return, "no driver for %s", other_bdf);

	self->dma.iovas = iova_allocator_init(self->t.iommu);
	region_setup(self->t.iommu, self->dma.iovas, &self->dma.memory, SZ_2M);
	region_setup(self->t.iommu, self->dma.iovas, &self->dma.device->driver.region, SZ_2M);
	self->dma.bar_iova = iova_allocator_alloc(self->dma.iovas, SZ_4M);
	vfio_pci_driver_init(self->dma.device);
	self->dma.bar_vaddr = self->t.vaddr;
	self->dma.size = min_t(u64, SZ_4K, 2 * self->dma.device->driver.max_memcpy_size);
}

FIXTURE_TEARDOWN(dmabuf_dma)
{
	vfio_pci_driver_remove(self->dma.device);
	vfio_pci_device_cleanup(self->dma.device);
	iova_allocator_cleanup(self->dma.iovas);
	dmabuf_test_teardown(&self->t);
}

/*
 * One DMA from memory into the buffer at @offset, which is the BAR's @bar_offset.
 * True if all of it arrived, false if none of it did.
 */
static bool dma_lands(struct __test_metadata *_metadata, struct dma_test *dma,
		      size_t offset, size_t bar_offset)
{
	void *target = dma->bar_vaddr + bar_offset;
	static u64 seed = 100;
	size_t arrived, kept;

	seed += 0x100000;
	pattern_fill(target, dma->size, seed);
	pattern_fill(dma->memory.vaddr, dma->size, seed + 1);

	/* Most devices do not tell that their DMA failed. */
	vfio_pci_driver_memcpy(dma->device, dma->memory.iova,
			       dma->bar_iova + offset, dma->size);

	arrived = pattern_check(target, dma->size, seed + 1);
	kept = pattern_check(target, dma->size, seed);
	EXPECT_TRUE(arrived == dma->size || kept == dma->size) {
		TH_LOG("DMA arrived in part");
	}

	return arrived == dma->size;
}

/* Both directions, at an offset of the buffer and of the BAR. */
TEST_F_TIMEOUT(dmabuf_dma, both_ways, 60)
{
	struct dmabuf_test *t = &self->t;
	size_t offset = SZ_1M;
	void *vaddr;
	int fd;

	fd = dmabuf_export(t, SZ_4M, SZ_4M);
	ASSERT_EQ(0, __iommu_map_dmabuf(t->iommu, fd, 0, SZ_4M, self->dma.bar_iova));
	vaddr = mmap_bar(fd, SZ_4M, 0, 0);

	ASSERT_TRUE(dma_lands(_metadata, &self->dma, offset, SZ_4M + offset));

	/* Out of the BAR, what was written through the buffer's mapping. */
	pattern_fill(vaddr + offset, self->dma.size, 7);
	memset(self->dma.memory.vaddr, 0, self->dma.size);
	ASSERT_EQ(0, vfio_pci_driver_memcpy(self->dma.device, self->dma.bar_iova + offset,
					    self->dma.memory.iova, self->dma.size));
	ASSERT_EQ(self->dma.size, pattern_check(self->dma.memory.vaddr, self->dma.size, 7));

	ASSERT_EQ(0, __iommu_unmap_iova(t->iommu, self->dma.bar_iova, SZ_4M));
	ASSERT_FALSE(dma_lands(_metadata, &self->dma, offset, SZ_4M + offset));
	munmap_bar(vaddr, SZ_4M);
	ASSERT_EQ(0, close(fd));
}

/* From the revoke on nothing arrives, nor can the buffer be mapped again. */
TEST_F_TIMEOUT(dmabuf_dma, revoke, 60)
{
	struct dmabuf_test *t = &self->t;
	int fd, alias;

	fd = dmabuf_export(t, SZ_4M, SZ_4M);
	ASSERT_EQ(0, __iommu_map_dmabuf(t->iommu, fd, 0, SZ_4M, self->dma.bar_iova));
	ASSERT_TRUE(dma_lands(_metadata, &self->dma, 0, SZ_4M));

	vfio_pci_dmabuf_revoke(t->device, fd);
	ASSERT_FALSE(dma_lands(_metadata, &self->dma, 0, SZ_4M));

	ASSERT_EQ(0, __iommu_unmap_iova(t->iommu, self->dma.bar_iova, SZ_4M));
	ASSERT_NE(0, __iommu_map_dmabuf(t->iommu, fd, 0, SZ_4M, self->dma.bar_iova));

	vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);
	ASSERT_NE(0, __iommu_map_dmabuf(t->iommu, fd, 0, SZ_4M, self->dma.bar_iova));
	ASSERT_FALSE(dma_lands(_metadata, &self->dma, 0, SZ_4M));

	/* Another buffer of the same range can. */
	alias = dmabuf_export(t, SZ_4M, SZ_4M);
	ASSERT_EQ(0, __iommu_map_dmabuf(t->iommu, alias, 0, SZ_4M, self->dma.bar_iova));
	ASSERT_TRUE(dma_lands(_metadata, &self->dma, 0, SZ_4M));
	ASSERT_EQ(0, __iommu_unmap_iova(t->iommu, self->dma.bar_iova, SZ_4M));
	ASSERT_EQ(0, close(alias));
	ASSERT_EQ(0, close(fd));
}

/* Revoked while it is imported and the importer outlives the fd. */
TEST_F_TIMEOUT(dmabuf_dma, close_before_revoke, 60)
{
	struct dmabuf_test *t = &self->t;
	int fd, dup_fd;

	fd = dmabuf_export(t, SZ_4M, SZ_4M);
	dup_fd = dup(fd);
	ASSERT_EQ(0, __iommu_map_dmabuf(t->iommu, fd, 0, SZ_4M, self->dma.bar_iova));
	ASSERT_EQ(0, close(fd));
	ASSERT_TRUE(dma_lands(_metadata, &self->dma, 0, SZ_4M));
	vfio_pci_dmabuf_revoke(t->device, dup_fd);
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(t->device, dup_fd));
	ASSERT_FALSE(dma_lands(_metadata, &self->dma, 0, SZ_4M));
	ASSERT_EQ(0, close(dup_fd));
	ASSERT_EQ(0, __iommu_unmap_iova(t->iommu, self->dma.bar_iova, SZ_4M));
}

/*
 * After the BAR was gone for a while iommufd has to be told to map it again.
 */
TEST_F_TIMEOUT(dmabuf_dma, suspend, 60)
{
	struct dmabuf_test *t = &self->t;
	int fd;

	fd = dmabuf_export(t, SZ_4M, SZ_4M);
	ASSERT_EQ(0, __iommu_map_dmabuf(t->iommu, fd, 0, SZ_4M, self->dma.bar_iova));
	ASSERT_TRUE(dma_lands(_metadata, &self->dma, 0, SZ_4M));

	vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, __iommu_unmap_iova(t->iommu, self->dma.bar_iova, SZ_4M));
	ASSERT_NE(0, __iommu_map_dmabuf(t->iommu, fd, 0, SZ_4M, self->dma.bar_iova));
	vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);

	ASSERT_FALSE(dma_lands(_metadata, &self->dma, 0, SZ_4M));
	ASSERT_EQ(0, __iommu_map_dmabuf(t->iommu, fd, 0, SZ_4M, self->dma.bar_iova));
	ASSERT_TRUE(dma_lands(_metadata, &self->dma, 0, SZ_4M));

	vfio_pci_dmabuf_revoke(t->device, fd);
	ASSERT_FALSE(dma_lands(_metadata, &self->dma, 0, SZ_4M));
	ASSERT_EQ(0, close(fd));
}

/* The device that exported it is closed under the importer. */
TEST_F_TIMEOUT(dmabuf_dma, device_close, 60)
{
	struct dmabuf_test *t = &self->t;
	int fd;

	fd = dmabuf_export(t, SZ_4M, SZ_4M);
	ASSERT_EQ(0, __iommu_map_dmabuf(t->iommu, fd, 0, SZ_4M, self->dma.bar_iova));
	ASSERT_TRUE(dma_lands(_metadata, &self->dma, 0, SZ_4M));

	vfio_pci_device_close(t->device);
	vfio_pci_device_cleanup(t->device);
	dmabuf_test_open(t);
	self->dma.bar_vaddr = t->vaddr;

	ASSERT_FALSE(dma_lands(_metadata, &self->dma, 0, SZ_4M));
	ASSERT_EQ(0, __iommu_unmap_iova(t->iommu, self->dma.bar_iova, SZ_4M));
	ASSERT_NE(0, __iommu_map_dmabuf(t->iommu, fd, 0, SZ_4M, self->dma.bar_iova));
	ASSERT_EQ(0, close(fd));
}

/*
 * Two opens of one device, which its group allows: its buffers are the
 * device's, whichever made them, and end with the last of the two.
 */
FIXTURE(dmabuf_group) {
	struct dmabuf_test t;
	int again;
};

FIXTURE_VARIANT(dmabuf_group) {
	bool export_second;
	bool close_second;
};

FIXTURE_VARIANT_ADD(dmabuf_group, export_1_close_1) {
	.export_second = false,
	.close_second = false,
};

FIXTURE_VARIANT_ADD(dmabuf_group, export_1_close_2) {
	.export_second = false,
	.close_second = true,
};

FIXTURE_VARIANT_ADD(dmabuf_group, export_2_close_1) {
	.export_second = true,
	.close_second = false,
};

FIXTURE_VARIANT_ADD(dmabuf_group, export_2_close_2) {
	.export_second = true,
	.close_second = true,
};

FIXTURE_SETUP(dmabuf_group)
{
	const char *reason;

	if (!vfio_pci_has_group(device_bdf))
		SKIP(return, "no access by group: a device is opened once");

	reason = dmabuf_test_setup(&self->t, vfio_pci_group_iommu_mode(device_bdf), true);
	if (reason)
		SKIP(return, "%s: %s", device_bdf, reason);
	self->again = vfio_pci_group_reopen(self->t.device);
}

FIXTURE_TEARDOWN(dmabuf_group)
{
	dmabuf_test_teardown(&self->t);
}

TEST_F_TIMEOUT(dmabuf_group, close, 60)
{
	struct dmabuf_test *t = &self->t;
	struct vfio_pci_device second, *exporter, *revoker;
	int fds[3], fresh, i;
	void *vaddrs[3];
	u32 value;

	second = *t->device;
	second.fd = self->again;
	exporter = variant->export_second ? &second : t->device;
	revoker = variant->export_second ? t->device : &second;

	for (i = 0; i < ARRAY_SIZE(fds); i++) {
		fds[i] = vfio_pci_dmabuf_export(exporter, t->bar, 0, SZ_4M, 0);
		vaddrs[i] = mmap_bar(fds[i], SZ_4M, 0, 0);
		ASSERT_EQ(0, try_touch(vaddrs[i], SZ_2M));
	}

	/* Either of them can revoke. */
	vfio_pci_dmabuf_revoke(revoker, fds[0]);
	ASSERT_EQ(SIGBUS, try_read32(vaddrs[0], &value));
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(exporter, fds[0]));
	ASSERT_EQ(0, try_touch(vaddrs[1], SZ_4M));

	/* Touched or not, all is as it was after one has gone. */
	vfio_pci_group_close_one(t->device, self->again, variant->close_second);
	ASSERT_EQ(SIGBUS, try_read32(vaddrs[0], &value));
	ASSERT_EQ(0, try_touch(vaddrs[1], SZ_4M));
	ASSERT_EQ(0, try_touch(vaddrs[2], SZ_4M));
	ASSERT_EQ(0, mmap_errno(fds[1], SZ_4M, 0, PROT_READ, MAP_SHARED));

	vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(SIGBUS, try_read32(vaddrs[1], &value));
	ASSERT_EQ(SIGBUS, try_read32(vaddrs[2] + SZ_2M, &value));
	vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, try_touch(vaddrs[1], SZ_4M));
	ASSERT_EQ(0, try_touch(vaddrs[2], SZ_4M));

	vfio_pci_dmabuf_revoke(t->device, fds[1]);
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(t->device, fds[0]));
	ASSERT_EQ(SIGBUS, try_read32(vaddrs[1], &value));
	ASSERT_EQ(0, try_touch(vaddrs[2], SZ_4M));

	/* The last one takes all of them along. */
	vfio_pci_device_close(t->device);
	ASSERT_EQ(SIGBUS, try_read32(vaddrs[2], &value));
	ASSERT_EQ(SIGBUS, try_read32(vaddrs[2] + SZ_4M - t->page, &value));
	ASSERT_EQ(ENODEV, mmap_errno(fds[2], SZ_4M, 0, PROT_READ, MAP_SHARED));

	fresh = vfio_pci_group_reopen(t->device);
	ASSERT_EQ(t->device->fd, dup2(fresh, t->device->fd));
	ASSERT_EQ(0, close(fresh));
	ASSERT_EQ(SIGBUS, try_read32(vaddrs[2], &value));
	ASSERT_NE(0, __vfio_pci_dmabuf_revoke(t->device, fds[2]));
	ASSERT_EQ(0, close(dmabuf_export(t, 0, SZ_4M)));

	for (i = 0; i < ARRAY_SIZE(fds); i++) {
		munmap_bar(vaddrs[i], SZ_4M);
		ASSERT_EQ(0, close(fds[i]));
	}
}

int main(int argc, char *argv[])
{
	char **bdfs;
	int nr;

	bdfs = vfio_selftests_get_bdfs(&argc, argv, &nr);
	device_bdf = bdfs[0];
	other_bdf = nr > 1 ? bdfs[1] : getenv("VFIO_SELFTESTS_BDF2");

	return test_harness_run(argc, argv);
}
