// SPDX-License-Identifier: GPL-2.0-only
/*
 * Mappings of a BAR of 1 GiB, which one page fault can make: a PUD entry. What
 * cannot be mapped so, what becomes of a PUD entry that is split, and that it
 * goes and comes back like all others. Runs in the guest of harness/vm
 *
 *	huge BDF	with --bar-size 1G
 *
 * What shows what can be mapped how, for the device fd, passes on a stock kernel,
 * too, with VFIO_SELFTESTS_NO_DMABUF_REVOKE=1: huge.device.faults, .suspend and
 * .fork. What splits a PUD entry crashes stock 7.3.4.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>

#include <linux/compiler.h>
#include <linux/kernel.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>
#include <libvfio/vfio_pci_dmabuf.h>

#include "kselftest_harness.h"

#define SIZE		((size_t)SZ_1G)
#define MIDDLE		((size_t)SZ_512M)
#define NR_PMDS		(SIZE / SZ_2M)

static const char *device_bdf;

/* A kernel that is built for THP has PUD entries where the processor has them */
static bool has_puds(void)
{
	FILE *file = fopen("/proc/cpuinfo", "r");
	char line[4096];
	bool found = false;

	VFIO_ASSERT_TRUE(!!file);
	while (!found && fgets(line, sizeof(line), file))
		found = !strncmp(line, "flags", 5) && strstr(line, " pdpe1gb");
	fclose(file);
	return found;
}

struct huge_test {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	size_t page;
	int bar;

	/* What is mapped: the BAR through the device fd, or a dma-buf of all of it */
	int fd;
	off_t offset;
	bool is_dmabuf;

	/* What it takes to map it */
	u64 faults;

	/* And where; with nothing mapped it is address space that is reserved */
	void *vaddr;
};

/* What is in all pages: where they are in the BAR */
static u64 tag(size_t offset)
{
	return offset ^ 0xa5a5;
}

/* Returns why the test is to be skipped, or NULL */
static const char *huge_test_setup(struct huge_test *t, bool dmabuf)
{
	size_t offset;
	void *vaddr;

	if (!huge_faults_enabled())
		return "transparent huge pages are off";

	t->iommu = iommu_init(default_iommu_mode);
	t->device = vfio_pci_device_init(device_bdf, t->iommu);
	t->page = getpagesize();
	t->bar = vfio_pci_largest_bar(t->device);
	VFIO_ASSERT_GE(t->bar, 0);
	VFIO_ASSERT_EQ(t->device->bars[t->bar].info.size, SIZE);
	t->faults = has_puds() ? 1 : NR_PMDS;
	vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);

	vaddr = t->device->bars[t->bar].vaddr;
	for (offset = 0; offset < SIZE; offset += t->page)
		WRITE_ONCE(*(u64 *)(vaddr + offset), tag(offset));
	t->vaddr = mmap_reserve(SIZE, SIZE, 0);

	t->fd = t->device->fd;
	t->offset = t->device->bars[t->bar].info.offset;
	if (!dmabuf)
		return NULL;
	if (!vfio_pci_dmabuf_supported(t->device))
		return "the kernel cannot map dma-bufs";
	t->fd = vfio_pci_dmabuf_export(t->device, t->bar, 0, SIZE, 0);
	t->offset = 0;
	t->is_dmabuf = true;
	return NULL;
}

static void huge_test_teardown(struct huge_test *t)
{
	munmap_bar(t->vaddr, SIZE);
	if (t->is_dmabuf)
		VFIO_ASSERT_EQ(close(t->fd), 0);
	vfio_pci_device_cleanup(t->device);
	iommu_cleanup(t->iommu);
}

static void map_at(void *vaddr, size_t size, int prot, int fd, off_t offset, int advice)
{
	VFIO_ASSERT_EQ((long)mmap(vaddr, size, prot, MAP_SHARED | MAP_FIXED, fd, offset),
		       (long)vaddr);
	VFIO_ASSERT_EQ(madvise(vaddr, size, advice), 0);
}

/* The faults that it takes to touch each 2 MiB; -1 for a signal */
static u64 touch_pmds(const void *vaddr, size_t size)
{
	u32 value = 0;
	size_t offset;
	u64 faults;

	/* Have the code and the data of all this mapped before */
	VFIO_ASSERT_EQ(try_read32(&value, &value), 0);
	faults = minor_faults();
	for (offset = 0; offset < size; offset += SZ_2M) {
		if (try_read32(vaddr + offset, &value))
			return -1ULL;
	}
	return minor_faults() - faults;
}

/* All of it, with every part touched; returns the number of faults */
static u64 map_all(struct huge_test *t, void *vaddr)
{
	map_at(vaddr, SIZE, PROT_READ | PROT_WRITE, t->fd, t->offset, MADV_HUGEPAGE);
	return touch_pmds(vaddr, SIZE);
}

/* How many parts of 2 MiB end with another result than @sig, at begin or end */
static int not_all(const void *vaddr, size_t size, int sig)
{
	size_t offset;
	int wrong = 0;
	u32 value;

	for (offset = 0; offset < size; offset += SZ_2M) {
		wrong += try_read32(vaddr + offset, &value) != sig ||
			 try_read32(vaddr + offset + SZ_2M - 4, &value) != sig;
	}
	return wrong;
}

/* How many pages of a mapping hold something else than those at @first in the BAR */
static int wrong_tags(const void *vaddr, size_t size, size_t first)
{
	size_t offset, page = getpagesize();
	int wrong = 0;

	for (offset = 0; offset < size; offset += page)
		wrong += READ_ONCE(*(const u64 *)(vaddr + offset)) != tag(first + offset);
	return wrong;
}

enum {
	CHILD_FAULTS,
	CHILD_TAGS,
	CHILD_NOT_READABLE,
	CHILD_NOT_SIGBUS,
};

static int huge_child(void *data, int arg)
{
	switch (arg) {
	case CHILD_FAULTS:
		return touch_pmds(data, SIZE);
	case CHILD_TAGS:
		return wrong_tags(data, SIZE, 0);
	case CHILD_NOT_READABLE:
		return not_all(data, SIZE, 0);
	}
	return not_all(data, SIZE, SIGBUS);
}

/* What the device fd's mapping and a dma-buf's have in common */
FIXTURE(huge) {
	struct huge_test t;
};

FIXTURE_VARIANT(huge) {
	bool dmabuf;
};

FIXTURE_VARIANT_ADD(huge, device) {
	.dmabuf = false,
};

FIXTURE_VARIANT_ADD(huge, dmabuf) {
	.dmabuf = true,
};

FIXTURE_SETUP(huge)
{
	const char *reason = huge_test_setup(&self->t, variant->dmabuf);

	if (reason)
		SKIP(return, "%s", reason);
}

FIXTURE_TEARDOWN(huge)
{
	huge_test_teardown(&self->t);
}

/* What only dma-bufs have */
FIXTURE(huge_dmabuf) {
	struct huge_test t;
};

FIXTURE_SETUP(huge_dmabuf)
{
	const char *reason = huge_test_setup(&self->t, true);

	if (reason)
		SKIP(return, "%s", reason);
}

FIXTURE_TEARDOWN(huge_dmabuf)
{
	huge_test_teardown(&self->t);
}

/* -- what is mapped how ------------------------------------------------------ */

TEST_F(huge, faults)
{
	struct huge_test *t = &self->t;
	static const int advice[] = { MADV_NORMAL, MADV_HUGEPAGE, MADV_NOHUGEPAGE };
	static const size_t skews[] = { SZ_2M, SZ_4K };
	void *vaddr;
	u64 faults;
	int i;

	for (i = 0; i < ARRAY_SIZE(advice); i++) {
		map_at(t->vaddr, SIZE, PROT_READ | PROT_WRITE, t->fd, t->offset, advice[i]);
		faults = touch_pmds(t->vaddr, SIZE);
		TH_LOG("advice %d: %llu faults", advice[i], (unsigned long long)faults);
		ASSERT_EQ(advice[i] == MADV_NOHUGEPAGE ? NR_PMDS : t->faults, faults);
	}

	/* By a write */
	map_at(t->vaddr, SIZE, PROT_READ | PROT_WRITE, t->fd, t->offset, MADV_HUGEPAGE);
	ASSERT_EQ(0, try_write32(t->vaddr + MIDDLE + 8, 1));
	faults = touch_pmds(t->vaddr, SIZE);
	ASSERT_EQ(t->faults - 1, faults);
	ASSERT_EQ(0, wrong_tags(t->vaddr, SIZE, 0));

	/* Part of it, and at another address than the memory's, modulo 1 GiB */
	munmap_bar(t->vaddr, SIZE);
	map_at(t->vaddr, SIZE - SZ_2M, PROT_READ, t->fd, t->offset, MADV_HUGEPAGE);
	ASSERT_EQ(NR_PMDS - 1, touch_pmds(t->vaddr, SIZE - SZ_2M));
	for (i = 0; i < ARRAY_SIZE(skews); i++) {
		vaddr = mmap_reserve(SIZE, SIZE, skews[i]);
		map_at(vaddr, SIZE, PROT_READ, t->fd, t->offset, MADV_HUGEPAGE);
		ASSERT_EQ(NR_PMDS, touch_pmds(vaddr, SIZE));
		ASSERT_EQ(0, wrong_tags(vaddr, SZ_4M, 0));
		munmap_bar(vaddr, SIZE);
	}
}

static int export_ranges(struct huge_test *t, const struct vfio_region_dma_range *ranges,
			 u32 nr)
{
	int fd = __vfio_pci_dmabuf_export(t->device, t->bar, ranges, nr, O_RDWR, 0);

	VFIO_ASSERT_GE(fd, 0);
	return fd;
}

/* Halves of a BAR, each aligned as far as may be, but not contiguous */
TEST_F(huge_dmabuf, seam)
{
	struct huge_test *t = &self->t;
	const struct vfio_region_dma_range swapped[] = {
		{ MIDDLE, MIDDLE }, { 0, MIDDLE },
	};
	const struct vfio_region_dma_range merged[] = {
		{ 0, MIDDLE - SZ_4K }, { MIDDLE - SZ_4K, MIDDLE + SZ_4K },
	};
	const struct vfio_region_dma_range odd[] = {
		{ SZ_2M, MIDDLE + SZ_1M }, { 0, SZ_2M }, { MIDDLE + SZ_4M, MIDDLE - SZ_4M },
		{ SZ_64M, SZ_1M },
	};
	u32 value;
	int fd, i;

	fd = export_ranges(t, swapped, ARRAY_SIZE(swapped));
	map_at(t->vaddr, SIZE, PROT_READ | PROT_WRITE, fd, 0, MADV_HUGEPAGE);
	ASSERT_EQ(NR_PMDS, touch_pmds(t->vaddr, SIZE));
	ASSERT_EQ(0, wrong_tags(t->vaddr, MIDDLE, MIDDLE));
	ASSERT_EQ(0, wrong_tags(t->vaddr + MIDDLE, MIDDLE, 0));

	/* What is written goes there, too: the last word before the seam and the first after it */
	ASSERT_EQ(0, try_write32(t->vaddr + MIDDLE - 4, 0x11));
	ASSERT_EQ(0, try_write32(t->vaddr + MIDDLE + 8, 0x22));
	ASSERT_EQ(0x11, READ_ONCE(*(u32 *)(t->device->bars[t->bar].vaddr + SIZE - 4)));
	ASSERT_EQ(0x22, READ_ONCE(*(u32 *)(t->device->bars[t->bar].vaddr + 8)));

	vfio_pci_suspend_memory.suspend(t->device);
	ASSERT_EQ(0, not_all(t->vaddr, SIZE, SIGBUS));
	vfio_pci_suspend_memory.resume(t->device);
	ASSERT_EQ(NR_PMDS, touch_pmds(t->vaddr, SIZE));
	ASSERT_EQ(0, wrong_tags(t->vaddr, MIDDLE, MIDDLE));
	ASSERT_EQ(0, wrong_tags(t->vaddr + MIDDLE, MIDDLE, 0));
	vfio_pci_dmabuf_revoke(t->device, fd);
	ASSERT_EQ(0, not_all(t->vaddr, SIZE, SIGBUS));
	ASSERT_EQ(0, close(fd));

	/* A seam that is none */
	fd = export_ranges(t, merged, ARRAY_SIZE(merged));
	map_at(t->vaddr, SIZE, PROT_READ, fd, 0, MADV_HUGEPAGE);
	ASSERT_EQ(t->faults, touch_pmds(t->vaddr, SIZE));
	ASSERT_EQ(0, wrong_tags(t->vaddr, SIZE, 0));
	ASSERT_EQ(0, close(fd));

	/* Seams within 2 MiB; the second range begins in the middle of one, too */
	fd = export_ranges(t, odd, ARRAY_SIZE(odd));
	map_at(t->vaddr, SIZE, PROT_READ, fd, 0, MADV_HUGEPAGE);
	for (i = 0, value = 0; i < ARRAY_SIZE(odd); i++) {
		size_t at = (size_t)odd[i].length > SZ_4M ? SZ_4M : odd[i].length;

		/* All of it would be 130000 faults */
		ASSERT_EQ(0, wrong_tags(t->vaddr + value, at, odd[i].offset)) {
			TH_LOG("range %d", i);
		}
		value += odd[i].length;
		ASSERT_EQ(0, wrong_tags(t->vaddr + value - at, at,
					odd[i].offset + odd[i].length - at)) {
			TH_LOG("range %d", i);
		}
	}
	ASSERT_EQ(SIZE, value);
	ASSERT_EQ(0, close(fd));
}

/* One with pages has no PUD entries, which the kernel could not split */
TEST_F(huge_dmabuf, pages)
{
	struct huge_test *t = &self->t;
	void *vaddr = t->vaddr;
	u32 value;
	int fd;

	fd = vfio_pci_dmabuf_export(t->device, t->bar, 0, SIZE,
				    VFIO_DMA_BUF_FLAG_ZONE_DEVICE);
	map_at(vaddr, SIZE, PROT_READ | PROT_WRITE, fd, 0, MADV_HUGEPAGE);
	ASSERT_EQ(NR_PMDS, touch_pmds(vaddr, SIZE));
	ASSERT_EQ(0, wrong_tags(vaddr, SIZE, 0));
	ASSERT_EQ(0, munmap(vaddr + MIDDLE, t->page));
	ASSERT_EQ(SIGSEGV, try_read32(vaddr + MIDDLE, &value));
	ASSERT_EQ(0, wrong_tags(vaddr, MIDDLE, 0));
	vfio_pci_suspend_memory.suspend(t->device);
	ASSERT_EQ(0, not_all(vaddr, MIDDLE, SIGBUS));
	vfio_pci_suspend_memory.resume(t->device);
	ASSERT_EQ(0, wrong_tags(vaddr, MIDDLE, 0));
	vfio_pci_dmabuf_revoke(t->device, fd);
	ASSERT_EQ(0, not_all(vaddr, MIDDLE, SIGBUS));
	ASSERT_EQ(0, close(fd));
}

/* -- a PUD entry that is split ----------------------------------------------- */

TEST_F(huge, munmap_middle)
{
	struct huge_test *t = &self->t;
	size_t after = MIDDLE + t->page;
	void *vaddr = t->vaddr;
	u32 value;

	ASSERT_EQ(t->faults, map_all(t, t->vaddr));
	ASSERT_EQ(0, munmap(vaddr + MIDDLE, t->page));
	ASSERT_EQ(SIGSEGV, try_read32(vaddr + MIDDLE, &value));
	ASSERT_EQ(0, wrong_tags(vaddr, MIDDLE, 0));
	ASSERT_EQ(0, wrong_tags(vaddr + after, SIZE - after, after));
	ASSERT_EQ(0, try_write32(vaddr + MIDDLE - 4, 1));
	ASSERT_EQ(0, try_write32(vaddr + after + 8, 1));

	vfio_pci_suspend_memory.suspend(t->device);
	ASSERT_EQ(0, not_all(vaddr, MIDDLE, SIGBUS));
	ASSERT_EQ(SIGSEGV, try_read32(vaddr + MIDDLE, &value));
	ASSERT_EQ(SIGBUS, try_read32(vaddr + after, &value));
	ASSERT_EQ(0, not_all(vaddr + MIDDLE + SZ_2M, MIDDLE - SZ_2M, SIGBUS));
	vfio_pci_suspend_memory.resume(t->device);
	ASSERT_EQ(0, wrong_tags(vaddr, MIDDLE, 0));
	ASSERT_EQ(0, wrong_tags(vaddr + after, SIZE - after, after));
}

/* Two mappings, of which a child has one: nothing is zapped that could split the entry */
TEST_F(huge, madvise_middle)
{
	struct huge_test *t = &self->t;
	size_t after = MIDDLE + t->page;
	void *vaddr = t->vaddr;
	struct child child;

	ASSERT_EQ(t->faults, map_all(t, t->vaddr));
	ASSERT_EQ(0, madvise(vaddr + MIDDLE, t->page, MADV_DONTFORK));
	start_child(&child, huge_child, vaddr);
	ASSERT_EQ(1, ask_child(&child, CHILD_NOT_READABLE));
	ASSERT_EQ(0, wrong_tags(vaddr, SIZE, 0));
	vfio_pci_suspend_memory.suspend(t->device);
	ASSERT_EQ(0, not_all(vaddr, SIZE, SIGBUS));
	ASSERT_EQ(1, ask_child(&child, CHILD_NOT_SIGBUS));
	vfio_pci_suspend_memory.resume(t->device);
	ASSERT_EQ(0, wrong_tags(vaddr, MIDDLE, 0));
	ASSERT_EQ(0, wrong_tags(vaddr + after, SIZE - after, after));
	ASSERT_EQ(1, ask_child(&child, CHILD_NOT_READABLE));
	stop_child(&child);
}

TEST_F(huge, mprotect_middle)
{
	struct huge_test *t = &self->t;
	void *vaddr = t->vaddr;
	u32 value;

	ASSERT_EQ(t->faults, map_all(t, t->vaddr));
	ASSERT_EQ(0, mprotect(vaddr + MIDDLE, t->page, PROT_READ));
	ASSERT_EQ(0, wrong_tags(vaddr, SIZE, 0));
	ASSERT_EQ(SIGSEGV, try_write32(vaddr + MIDDLE, 0));
	ASSERT_EQ(SIGSEGV, try_write32(vaddr + MIDDLE + t->page - 4, 0));
	ASSERT_EQ(0, try_write32(vaddr + MIDDLE - 4, 1));
	ASSERT_EQ(0, try_write32(vaddr + MIDDLE + t->page + 8, 1));
	ASSERT_EQ(0, try_write32(vaddr + 8, 1));
	ASSERT_EQ(0, try_write32(vaddr + SIZE - 4, 1));

	vfio_pci_suspend_memory.suspend(t->device);
	ASSERT_EQ(0, not_all(vaddr, SIZE, SIGBUS));
	ASSERT_EQ(SIGSEGV, try_write32(vaddr + MIDDLE, 0));
	vfio_pci_suspend_memory.resume(t->device);
	ASSERT_EQ(0, wrong_tags(vaddr, SIZE, 0));

	ASSERT_EQ(0, mprotect(vaddr, SIZE, PROT_NONE));
	ASSERT_EQ(0, not_all(vaddr, SIZE, SIGSEGV));
	ASSERT_EQ(0, mprotect(vaddr, SIZE, PROT_READ | PROT_WRITE));
	ASSERT_EQ(0, try_read32(vaddr + MIDDLE, &value));
	ASSERT_EQ(0, try_write32(vaddr + MIDDLE + 8, 1));
	ASSERT_EQ(0, wrong_tags(vaddr, SIZE, 0));
}

/* All of it: the entry is changed, not split */
TEST_F(huge, mprotect_all)
{
	struct huge_test *t = &self->t;
	void *vaddr = t->vaddr;
	u32 value;

	ASSERT_EQ(t->faults, map_all(t, t->vaddr));
	ASSERT_EQ(0, mprotect(vaddr, SIZE, PROT_READ));
	ASSERT_EQ(SIGSEGV, try_write32(vaddr, 0));
	ASSERT_EQ(SIGSEGV, try_write32(vaddr + SIZE - 4, 0));
	ASSERT_EQ(0, touch_pmds(vaddr, SIZE));
	ASSERT_EQ(0, wrong_tags(vaddr, SIZE, 0));
	ASSERT_EQ(0, mprotect(vaddr, SIZE, PROT_READ | PROT_WRITE));
	ASSERT_EQ(0, try_write32(vaddr + MIDDLE + 8, 1));
	ASSERT_EQ(0, mprotect(vaddr, SIZE, PROT_NONE));
	ASSERT_EQ(SIGSEGV, try_read32(vaddr + MIDDLE, &value));
	ASSERT_EQ(0, mprotect(vaddr, SIZE, PROT_READ));
	ASSERT_EQ(0, wrong_tags(vaddr, SIZE, 0));
}

/* The entry is for reading at first, and a write changes it or splits it */
TEST_F_TIMEOUT(huge, write_notify, 60)
{
	struct huge_test *t = &self->t;
	void *vaddr = t->vaddr;

	map_at(vaddr, SIZE, PROT_READ | PROT_WRITE, t->fd, t->offset, MADV_HUGEPAGE);
	if (!write_text("/proc/self/clear_refs", "4"))
		SKIP(return, "no /proc/self/clear_refs");
	ASSERT_EQ(0, try_write32(vaddr + MIDDLE + 8, 1));
	ASSERT_EQ(t->faults - 1, touch_pmds(vaddr, SIZE));
	ASSERT_EQ(0, try_write32(vaddr + 8, 1));
	ASSERT_EQ(0, wrong_tags(vaddr, SIZE, 0));

	vfio_pci_suspend_memory.suspend(t->device);
	ASSERT_EQ(0, not_all(vaddr, SIZE, SIGBUS));
	vfio_pci_suspend_memory.resume(t->device);
	ASSERT_EQ(t->faults, touch_pmds(vaddr, SIZE));
	ASSERT_EQ(0, try_write32(vaddr + SIZE - 4, 1));
	ASSERT_EQ(0, wrong_tags(vaddr, SIZE, 0));
}

TEST_F(huge, mremap)
{
	struct huge_test *t = &self->t;
	void *to = mmap_reserve(SIZE, SIZE, 0);
	void *odd = mmap_reserve(SIZE, SIZE, t->page);
	u32 value;

	ASSERT_EQ(t->faults, map_all(t, t->vaddr));
	ASSERT_EQ(to, mremap(t->vaddr, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, to));
	ASSERT_EQ(0, not_all(t->vaddr, SIZE, SIGSEGV));
	ASSERT_EQ(0, touch_pmds(to, SIZE));
	ASSERT_EQ(0, wrong_tags(to, SIZE, 0));
	vfio_pci_suspend_memory.suspend(t->device);
	ASSERT_EQ(0, not_all(to, SIZE, SIGBUS));
	vfio_pci_suspend_memory.resume(t->device);
	ASSERT_EQ(t->faults, touch_pmds(to, SIZE));

	/* A page of it */
	ASSERT_EQ(t->vaddr, mremap(to + MIDDLE, t->page, t->page,
				   MREMAP_MAYMOVE | MREMAP_FIXED, t->vaddr));
	ASSERT_EQ(SIGSEGV, try_read32(to + MIDDLE, &value));
	ASSERT_EQ(0, wrong_tags(t->vaddr, t->page, MIDDLE));
	ASSERT_EQ(0, wrong_tags(to, MIDDLE, 0));
	munmap_bar(to, SIZE);
	ASSERT_EQ(t->faults, map_all(t, t->vaddr));
	ASSERT_EQ(to, mremap(t->vaddr, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, to));

	/* To where it cannot be one entry any more, and half of it back */
	ASSERT_EQ(odd, mremap(to, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, odd));
	ASSERT_EQ(0, not_all(to, SIZE, SIGSEGV));
	ASSERT_EQ(0, wrong_tags(odd, SZ_4M, 0));
	ASSERT_EQ(0, wrong_tags(odd + MIDDLE - SZ_2M, SZ_4M, MIDDLE - SZ_2M));
	ASSERT_EQ(t->vaddr, mremap(odd + MIDDLE, MIDDLE, MIDDLE,
				   MREMAP_MAYMOVE | MREMAP_FIXED, t->vaddr));
	ASSERT_EQ(0, wrong_tags(t->vaddr, SZ_4M, MIDDLE));
	vfio_pci_suspend_memory.suspend(t->device);
	ASSERT_EQ(0, not_all(t->vaddr, MIDDLE, SIGBUS));
	ASSERT_EQ(0, not_all(odd, MIDDLE, SIGBUS));
	vfio_pci_suspend_memory.resume(t->device);
	ASSERT_EQ(0, wrong_tags(t->vaddr, SZ_4M, MIDDLE));
	munmap_bar(odd, SIZE);
}

/* -- taken away, and given back ---------------------------------------------- */

TEST_F(huge, suspend)
{
	struct huge_test *t = &self->t;
	const struct vfio_pci_suspend *suspends[] = {
		&vfio_pci_suspend_memory, &vfio_pci_suspend_d3, &vfio_pci_suspend_low_power,
	};
	int i;

	ASSERT_EQ(t->faults, map_all(t, t->vaddr));
	for (i = 0; i < ARRAY_SIZE(suspends); i++) {
		if (!suspends[i]->supported(t->device))
			continue;
		TH_LOG("%s", suspends[i]->name);
		suspends[i]->suspend(t->device);
		ASSERT_EQ(0, not_all(t->vaddr, SIZE, SIGBUS));
		suspends[i]->resume(t->device);
		ASSERT_EQ(t->faults, touch_pmds(t->vaddr, SIZE));
		ASSERT_EQ(0, wrong_tags(t->vaddr, SIZE, 0));
	}
	ASSERT_EQ(0, vfio_pci_any_reset(t->device));
	ASSERT_EQ(t->faults, touch_pmds(t->vaddr, SIZE));
	ASSERT_EQ(0, wrong_tags(t->vaddr, SIZE, 0));
}

TEST_F(huge_dmabuf, revoke)
{
	struct huge_test *t = &self->t;
	void *other = mmap_reserve(SIZE, SIZE, 0);
	u32 value;

	ASSERT_EQ(t->faults, map_all(t, t->vaddr));
	map_at(other, SIZE, PROT_READ, t->device->fd, t->device->bars[t->bar].info.offset,
	       MADV_HUGEPAGE);
	ASSERT_EQ(t->faults, touch_pmds(other, SIZE));

	vfio_pci_dmabuf_revoke(t->device, t->fd);
	ASSERT_EQ(0, not_all(t->vaddr, SIZE, SIGBUS));
	ASSERT_EQ(SIGBUS, try_write32(t->vaddr + MIDDLE, 0));
	ASSERT_EQ(0, mprotect(t->vaddr + MIDDLE, t->page, PROT_READ));
	ASSERT_EQ(0, munmap(t->vaddr + SZ_64M, t->page));
	ASSERT_EQ(SIGBUS, try_read32(t->vaddr + MIDDLE, &value));

	/* The other mapping has not even been zapped */
	ASSERT_EQ(0, touch_pmds(other, SIZE));
	ASSERT_EQ(0, wrong_tags(other, SIZE, 0));
	munmap_bar(other, SIZE);
}

TEST_F(huge, fork)
{
	struct huge_test *t = &self->t;
	struct child child;

	ASSERT_EQ(t->faults, map_all(t, t->vaddr));
	start_child(&child, huge_child, t->vaddr);
	ASSERT_EQ(0, ask_child(&child, CHILD_TAGS));
	vfio_pci_suspend_memory.suspend(t->device);
	ASSERT_EQ(0, ask_child(&child, CHILD_NOT_SIGBUS));
	ASSERT_EQ(0, not_all(t->vaddr, SIZE, SIGBUS));
	vfio_pci_suspend_memory.resume(t->device);
	ASSERT_EQ(t->faults, ask_child(&child, CHILD_FAULTS));
	ASSERT_EQ(0, ask_child(&child, CHILD_TAGS));
	stop_child(&child);
	ASSERT_EQ(t->faults, touch_pmds(t->vaddr, SIZE));
}

/* What has moved is taken back also from where it was */
TEST_F(huge_dmabuf, mremap_revoke)
{
	struct huge_test *t = &self->t;
	void *odd = mmap_reserve(SIZE, SIZE, t->page);

	ASSERT_EQ(t->faults, map_all(t, t->vaddr));
	ASSERT_EQ(odd, mremap(t->vaddr, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, odd));
	vfio_pci_dmabuf_revoke(t->device, t->fd);
	ASSERT_EQ(0, not_all(t->vaddr, SIZE, SIGSEGV));
	ASSERT_EQ(0, not_all(odd, SIZE, SIGBUS));
	munmap_bar(odd, SIZE);
}

/* Threads that fault the same entry, while it is taken away and given back */
struct toucher {
	void *vaddr;
	bool stop;
	u64 good, bad;
};

static long toucher(void *data)
{
	struct toucher *toucher = data;
	size_t offset = 0;
	u64 value;
	int sig;

	while (!READ_ONCE(toucher->stop)) {
		sig = try_memcpy(&value, toucher->vaddr + offset, sizeof(value));
		if (!sig && value == tag(offset))
			WRITE_ONCE(toucher->good, toucher->good + 1);
		else if (sig == SIGBUS)
			toucher->bad++;
		else
			return -1;
		offset = (offset + 37 * SZ_2M) % SIZE;
	}
	return 0;
}

TEST_F_TIMEOUT(huge, storm, 120)
{
	struct huge_test *t = &self->t;
	struct toucher args[2] = { };
	struct job jobs[2];
	u64 good;
	int i, j;

	ASSERT_EQ(t->faults, map_all(t, t->vaddr));
	for (i = 0; i < ARRAY_SIZE(jobs); i++) {
		args[i].vaddr = t->vaddr;
		start_job(&jobs[i], toucher, &args[i]);
	}
	for (i = 0; i < 50; i++) {
		vfio_pci_suspend_memory.suspend(t->device);
		ASSERT_EQ(0, not_all(t->vaddr, SZ_16M, SIGBUS));
		vfio_pci_suspend_memory.resume(t->device);
		for (j = 0; j < ARRAY_SIZE(jobs); j++) {
			good = READ_ONCE(args[j].good);
			while (READ_ONCE(args[j].good) == good && !job_is_done(&jobs[j], 0))
				usleep(100);
		}
		/* Each time another page that is not in one entry with the rest any more */
		if (i % 10 == 9)
			ASSERT_EQ(0, mprotect(t->vaddr + SZ_1M + i * SZ_8M, t->page,
					      PROT_READ));
	}
	for (i = 0; i < ARRAY_SIZE(jobs); i++) {
		WRITE_ONCE(args[i].stop, true);
		ASSERT_EQ(0, finish_job(&jobs[i]));
		ASSERT_GT(args[i].good, 0);
		ASSERT_GT(args[i].bad, 0);
	}
}

int main(int argc, char *argv[])
{
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}
