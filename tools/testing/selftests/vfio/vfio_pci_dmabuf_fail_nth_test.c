// SPDX-License-Identifier: GPL-2.0-only
/*
 * BARs as dma-bufs when the kernel runs out of memory: the allocations that a
 * system call or a page fault makes, and its copies from and to the user, fail
 * one after the other. What fails must say so, and change nothing.
 *
 * Needs CONFIG_FAILSLAB, CONFIG_FAIL_PAGE_ALLOC, CONFIG_FAULT_INJECTION_USERCOPY
 * and CONFIG_FAULT_INJECTION_DEBUG_FS. ALL OF THE SYSTEM'S SETTINGS OF FAULT
 * INJECTION ARE OVERWRITTEN.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
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

#define BAR_IOVA SZ_1G

static const char *device_bdf;

struct fail_test {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	size_t page;
	int bar;
	void *vaddr;

	/* /proc/thread-self/fail-nth */
	int fd;

	/* Which is to fail, and whether it did. */
	unsigned int nth;
	bool failed;

	/* How far next_failure() is. */
	bool begun;
	unsigned int idle;
	unsigned int sweep;
};

/* All allocations can fail, and nothing is said of it in the log. */
static bool setup_fault_injection(void)
{
	return write_text("/sys/kernel/debug/failslab/ignore-gfp-wait", "N") &&
	       write_text("/sys/kernel/debug/failslab/verbose", "0") &&
	       write_text("/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait", "N") &&
	       write_text("/sys/kernel/debug/fail_page_alloc/ignore-gfp-highmem", "N") &&
	       write_text("/sys/kernel/debug/fail_page_alloc/min-order", "0") &&
	       write_text("/sys/kernel/debug/fail_page_alloc/verbose", "0") &&
	       write_text("/sys/kernel/debug/fail_usercopy/verbose", "0");
}

static const char *fail_test_setup(struct fail_test *test, const char *mode)
{
	test->page = getpagesize();
	test->iommu = iommu_init(mode);
	test->device = vfio_pci_device_init(device_bdf, test->iommu);
	vfio_pci_cmd_set(test->device, PCI_COMMAND_MEMORY);
	test->fd = -1;

	if (!setup_fault_injection())
		return "the kernel is built without fault injection";
	test->fd = open("/proc/thread-self/fail-nth", O_RDWR);
	if (test->fd < 0)
		return "there is no fail-nth";
	if (!vfio_pci_dmabuf_supported(test->device))
		return "the kernel cannot revoke dma-bufs, as announced";

	test->bar = vfio_pci_largest_bar(test->device);
	if (test->bar < 0 || test->device->bars[test->bar].info.size < SZ_16M)
		return "there is no mappable BAR of 16 MiB";
	test->vaddr = test->device->bars[test->bar].vaddr;

	return NULL;
}

static void fail_test_teardown(struct fail_test *test)
{
	if (test->fd >= 0)
		close(test->fd);
	vfio_pci_device_cleanup(test->device);
	iommu_cleanup(test->iommu);
}

/*
 * To be asked before each run, until it says that it was the last. Nothing fails in
 * the first one; in the nth after it what comes n-th between fail() and failed(). What
 * comes where is not the same in every run, as caches fill and empty: there are two
 * sweeps, and one is over when some runs have found nothing more to fail.
 */
static bool next_failure(struct fail_test *test)
{
	if (!test->begun) {
		test->begun = true;
		return true;
	}

	test->idle = test->failed ? 0 : test->idle + 1;
	test->nth++;
	if (test->idle < 4)
		return true;

	test->nth = 1;
	test->idle = 0;
	if (++test->sweep < 2)
		return true;

	test->nth = 0;
	test->sweep = 0;
	test->begun = false;

	return false;
}

static void fail(struct fail_test *test)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%u", test->nth);

	/* Not without bounds, should something always be tried again. */
	VFIO_ASSERT_LT(test->nth, 5000);
	VFIO_ASSERT_EQ(pwrite(test->fd, text, len, 0), len);
}

/* True if something has failed, @ret is then what it must be. */
static bool failed(struct fail_test *test)
{
	char text[16] = {};
	ssize_t len;

	/* The copy of the answer can be what fails: nothing did before it. */
	len = pread(test->fd, text, sizeof(text) - 1, 0);
	test->failed = test->nth && len > 0 && atoi(text) == 0;
	while (pwrite(test->fd, "0", 1, 0) != 1)
		VFIO_ASSERT_EQ(errno, EFAULT);

	return test->failed;
}

static bool is_failure(long ret)
{
	return ret == -ENOMEM || ret == -EFAULT;
}

FIXTURE(fail_nth) {
	struct fail_test t;
};

FIXTURE_VARIANT(fail_nth) {
	u32 flags;
};

FIXTURE_VARIANT_ADD(fail_nth, plain) {
};

FIXTURE_VARIANT_ADD(fail_nth, pages) {
	.flags = VFIO_DMA_BUF_FLAG_ZONE_DEVICE,
};

FIXTURE_SETUP(fail_nth)
{
	const char *reason = fail_test_setup(&self->t, default_iommu_mode);

	if (reason)
		SKIP(return, "%s: %s", device_bdf, reason);
}

FIXTURE_TEARDOWN(fail_nth)
{
	fail_test_teardown(&self->t);
}

TEST_F_TIMEOUT(fail_nth, export, 300)
{
	struct vfio_region_dma_range ranges[] = {
		{ .offset = SZ_8M, .length = SZ_4M },
		{ .offset = SZ_2M, .length = SZ_2M },
	};
	struct fail_test *t = &self->t;
	unsigned int refused = 0;
	void *vaddr;
	int fd;

	/* Struct pages come by sections of (most often) 128 MiB: have parts of two. */
	if (t->device->bars[t->bar].info.size > SZ_128M)
		ranges[0].offset = SZ_128M - SZ_2M;

	while (next_failure(t)) {
		fail(t);
		fd = __vfio_pci_dmabuf_export(t->device, t->bar, ranges, ARRAY_SIZE(ranges),
					      O_RDWR | O_CLOEXEC, variant->flags);
		if (failed(t) && fd < 0) {
			ASSERT_TRUE(is_failure(fd)) {
				TH_LOG("%u: %d", t->nth, fd);
			}
			refused++;
			continue;
		}

		/* What has failed before has taken nothing. */
		ASSERT_GE(fd, 0);
		vaddr = mmap_bar(fd, SZ_4M + SZ_2M, 0, 0);
		ASSERT_EQ(0, try_touch(vaddr, SZ_4M + SZ_2M));
		munmap_bar(vaddr, SZ_4M + SZ_2M);
		ASSERT_EQ(0, close(fd));
	}
	/* In two sweeps. So many there are in one, with whatever kernel. */
	TH_LOG("%u refused", refused);
	ASSERT_GE(refused, 11);
}

TEST_F_TIMEOUT(fail_nth, mmap, 120)
{
	struct fail_test *t = &self->t;
	unsigned int refused = 0;
	void *vaddr;
	int fd;

	fd = vfio_pci_dmabuf_export(t->device, t->bar, SZ_2M, SZ_4M, variant->flags);
	while (next_failure(t)) {
		fail(t);
		vaddr = mmap(NULL, SZ_4M, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (failed(t) && vaddr == MAP_FAILED) {
			ASSERT_EQ(ENOMEM, errno);
			refused++;
			continue;
		}
		ASSERT_NE(MAP_FAILED, vaddr);
		ASSERT_EQ(0, try_touch(vaddr, SZ_4M));
		munmap_bar(vaddr, SZ_4M);
	}
	ASSERT_GT(refused, 0);
	ASSERT_EQ(0, close(fd));
}

/* The kernel tries again, so that nothing is refused. */
TEST_F_TIMEOUT(fail_nth, fault, 120)
{
	/* Aligned for a PMD, and not */
	const size_t skews[] = { 0, SZ_64K };
	struct fail_test *t = &self->t;
	unsigned int i, nr = 0;
	void *vaddr, *hole;
	u32 value;
	int fd;

	fd = vfio_pci_dmabuf_export(t->device, t->bar, SZ_2M, SZ_4M, variant->flags);
	WRITE_ONCE(*(u32 *)(t->vaddr + SZ_2M + SZ_64K), 0x5eed);
	/* A GiB of its own, so that page tables go with the mapping. */
	hole = mmap(NULL, SZ_2G, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(MAP_FAILED, hole);
	hole = (void *)ALIGN((uintptr_t)hole, SZ_1G);

	for (i = 0; i < ARRAY_SIZE(skews); i++) {
		while (next_failure(t)) {
			vaddr = mmap(hole + skews[i], SZ_4M, PROT_READ | PROT_WRITE,
				     MAP_SHARED | MAP_FIXED, fd, 0);
			ASSERT_EQ(hole + skews[i], vaddr);
			madvise(vaddr, SZ_4M, MADV_HUGEPAGE);
			fail(t);
			value = READ_ONCE(*(u32 *)(vaddr + SZ_64K));
			nr += failed(t);
			ASSERT_EQ(0x5eed, value);
			ASSERT_EQ(0, munmap(hole, SZ_1G));
			ASSERT_EQ(hole, mmap(hole, SZ_1G, PROT_NONE, MAP_PRIVATE | MAP_FIXED |
					     MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
		}
	}
	ASSERT_GT(nr, 1);
	ASSERT_EQ(0, close(fd));
}

TEST_F_TIMEOUT(fail_nth, iommu_map, 120)
{
	struct fail_test *t = &self->t;
	unsigned int refused = 0;
	int fd, ret;

	fd = vfio_pci_dmabuf_export(t->device, t->bar, SZ_2M, SZ_4M, variant->flags);
	while (next_failure(t)) {
		fail(t);
		ret = __iommu_map_dmabuf(t->iommu, fd, 0, SZ_4M, BAR_IOVA);
		if (failed(t) && ret) {
			ASSERT_TRUE(is_failure(ret)) {
				TH_LOG("%u: %d", t->nth, ret);
			}
			refused++;
			/* There if only the answer could not be copied. */
			__iommu_unmap_iova(t->iommu, BAR_IOVA, SZ_4M);
			continue;
		}
		ASSERT_EQ(0, ret);
		ASSERT_EQ(0, __iommu_unmap_iova(t->iommu, BAR_IOVA, SZ_4M));
	}
	ASSERT_GT(refused, 1);
	ASSERT_EQ(0, close(fd));
}

/* Either nothing happens, or all of it. */
TEST_F_TIMEOUT(fail_nth, revoke, 120)
{
	struct fail_test *t = &self->t;
	unsigned int refused = 0;
	int fd, ret, sig;
	void *vaddr;
	u32 value;

	while (next_failure(t)) {
		fd = vfio_pci_dmabuf_export(t->device, t->bar, SZ_2M, SZ_4M, variant->flags);
		vaddr = mmap_bar(fd, SZ_4M, 0, 0);
		ASSERT_EQ(0, try_touch(vaddr, SZ_4M));
		ASSERT_EQ(0, __iommu_map_dmabuf(t->iommu, fd, 0, SZ_4M, BAR_IOVA));

		fail(t);
		ret = __vfio_pci_dmabuf_revoke(t->device, fd);
		if (failed(t) && ret) {
			ASSERT_TRUE(is_failure(ret));
			refused++;
		} else {
			ASSERT_EQ(0, ret);
		}
		sig = try_read32(vaddr, &value);
		ASSERT_EQ(ret ? 0 : SIGBUS, sig);

		ASSERT_EQ(0, __iommu_unmap_iova(t->iommu, BAR_IOVA, SZ_4M));
		munmap_bar(vaddr, SZ_4M);
		ASSERT_EQ(0, close(fd));
	}
	ASSERT_GT(refused, 0);
}

static int count_dmabufs(void)
{
	FILE *file = fopen("/sys/kernel/debug/dma_buf/bufinfo", "r");
	char line[256];
	int count = -1;

	while (file && fgets(line, sizeof(line), file))
		sscanf(line, "Total %d objects", &count);
	if (file)
		fclose(file);

	return count;
}

/* Nothing can stop the end of the last reference. */
TEST_F_TIMEOUT(fail_nth, buffer_close, 120)
{
	int fd, before = count_dmabufs();
	struct fail_test *t = &self->t;
	void *vaddr;

	ASSERT_GE(before, 0);
	while (next_failure(t)) {
		fd = vfio_pci_dmabuf_export(t->device, t->bar, SZ_2M, SZ_4M, variant->flags);
		vaddr = mmap_bar(fd, SZ_4M, 0, 0);
		ASSERT_EQ(0, try_touch(vaddr, SZ_4M));
		ASSERT_EQ(0, close(fd));

		fail(t);
		munmap(vaddr, SZ_4M);
		failed(t);
		munmap_bar(vaddr, SZ_4M);
	}
	ASSERT_EQ(before, count_dmabufs());
	fd = vfio_pci_dmabuf_export(t->device, t->bar, SZ_2M, SZ_4M, variant->flags);
	ASSERT_EQ(0, close(fd));
}

/*
 * The device is closed, its group is not: that would be given its default domain,
 * and a warning, should there be no memory for it.
 */
FIXTURE(fail_nth_close) {
	struct fail_test t;
};

FIXTURE_VARIANT(fail_nth_close) {
	u32 flags;
};

FIXTURE_VARIANT_ADD(fail_nth_close, plain) {
};

FIXTURE_VARIANT_ADD(fail_nth_close, pages) {
	.flags = VFIO_DMA_BUF_FLAG_ZONE_DEVICE,
};

FIXTURE_SETUP(fail_nth_close)
{
	const char *reason = fail_test_setup(&self->t, MODE_VFIO_TYPE1V2_IOMMU);

	if (reason)
		SKIP(return, "%s: %s", device_bdf, reason);
}

FIXTURE_TEARDOWN(fail_nth_close)
{
	fail_test_teardown(&self->t);
}

TEST_F_TIMEOUT(fail_nth_close, device, 120)
{
	struct fail_test *t = &self->t;
	int fd, null, i;
	void *vaddr;
	u32 value;

	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	ASSERT_GE(null, 0);
	while (next_failure(t)) {
		fd = vfio_pci_dmabuf_export(t->device, t->bar, SZ_2M, SZ_4M, variant->flags);
		vaddr = mmap_bar(fd, SZ_4M, 0, 0);
		ASSERT_EQ(0, try_read32(vaddr, &value));
		for (i = 0; i < PCI_STD_NUM_BARS; i++) {
			struct vfio_pci_bar *bar = &t->device->bars[i];

			if (bar->vaddr)
				munmap_bar(bar->vaddr, ALIGN(bar->info.size, t->page));
			bar->vaddr = NULL;
		}

		/* Another file takes the place of the device's, which so is closed. */
		fail(t);
		i = dup2(null, t->device->fd);
		failed(t);
		ASSERT_EQ(t->device->fd, i);
		ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));

		munmap_bar(vaddr, SZ_4M);
		ASSERT_EQ(0, close(fd));
		vfio_pci_device_cleanup(t->device);
		t->device = vfio_pci_device_init(device_bdf, t->iommu);
		vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);
	}
	ASSERT_EQ(0, close(null));
}

/* What does not depend on the kind of the buffer. */
FIXTURE(fail_nth_device) {
	struct fail_test t;
};

FIXTURE_SETUP(fail_nth_device)
{
	const char *reason = fail_test_setup(&self->t, default_iommu_mode);

	if (reason)
		SKIP(return, "%s: %s", device_bdf, reason);
}

FIXTURE_TEARDOWN(fail_nth_device)
{
	fail_test_teardown(&self->t);
}

/* The first mapping of a BAR makes its buffer. */
TEST_F_TIMEOUT(fail_nth_device, mmap, 120)
{
	const char *cdev = vfio_pci_get_cdev_path(device_bdf);
	struct fail_test *t = &self->t;
	unsigned int refused = 0;
	void *vaddr;
	u64 offset;
	u32 value;
	int fd;

	offset = t->device->bars[t->bar].info.offset;
	WRITE_ONCE(*(u32 *)t->vaddr, 0x5eed);
	vfio_pci_device_cleanup(t->device);

	while (next_failure(t)) {
		fd = open(cdev, O_RDWR);
		ASSERT_GE(fd, 0);
		ASSERT_EQ(0, __vfio_device_bind_iommufd(fd, t->iommu->iommufd, NULL));

		fail(t);
		vaddr = mmap(NULL, SZ_2M, PROT_READ, MAP_SHARED, fd, offset);
		if (failed(t) && vaddr == MAP_FAILED) {
			ASSERT_EQ(ENOMEM, errno);
			refused++;
			vaddr = mmap(NULL, SZ_2M, PROT_READ, MAP_SHARED, fd, offset);
		}
		ASSERT_NE(MAP_FAILED, vaddr);
		ASSERT_EQ(0, try_read32(vaddr, &value));
		ASSERT_EQ(0x5eed, value);
		munmap_bar(vaddr, SZ_2M);
		ASSERT_EQ(0, close(fd));
	}
	ASSERT_GE(refused, 6);

	t->device = vfio_pci_device_init(device_bdf, t->iommu);
}

/* The mappings follow the device, whatever it has been possible to do to it. */
TEST_F_TIMEOUT(fail_nth_device, memory_off, 120)
{
	const u16 commands[] = { 0, PCI_COMMAND_MEMORY };
	struct fail_test *t = &self->t;
	unsigned int i, refused = 0;
	off_t at;
	u32 value;
	u16 now;

	at = t->device->config_space.offset + PCI_COMMAND;
	while (next_failure(t)) {
		bool any = false;

		for (i = 0; i < ARRAY_SIZE(commands); i++) {
			int ret;

			fail(t);
			ret = pwrite(t->device->fd, &commands[i], 2, at) == 2 ? 0 : -errno;
			if (failed(t)) {
				any = true;
				refused += !!ret;
				ASSERT_TRUE(!ret || is_failure(ret));
			} else {
				ASSERT_EQ(0, ret);
			}
			now = vfio_pci_config_readw(t->device, PCI_COMMAND);
			ASSERT_EQ(now & PCI_COMMAND_MEMORY ? 0 : SIGBUS,
				  try_read32(t->vaddr, &value));
		}
		t->failed = any;
	}
	ASSERT_GT(refused, 1);
}

TEST_F_TIMEOUT(fail_nth_device, hot_reset, 120)
{
	/* By iommufd: the devices that are reset are known from their opens. */
	struct vfio_pci_hot_reset reset = { .argsz = sizeof(reset) };
	struct fail_test *t = &self->t;
	unsigned int refused = 0;
	u32 value;
	int ret;

	if (!vfio_pci_can_reset(t->device))
		SKIP(return, "%s cannot be reset", device_bdf);

	while (next_failure(t)) {
		fail(t);
		ret = ioctl(t->device->fd, VFIO_DEVICE_PCI_HOT_RESET, &reset) ? -errno : 0;
		if (failed(t) && ret) {
			ASSERT_TRUE(is_failure(ret));
			refused++;
		} else {
			ASSERT_EQ(0, ret);
		}
		vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);
		ASSERT_EQ(0, try_read32(t->vaddr, &value));
	}
	ASSERT_GT(refused, 0);
}

int main(int argc, char *argv[])
{
	device_bdf = vfio_selftests_get_bdf(&argc, argv);

	return test_harness_run(argc, argv);
}
