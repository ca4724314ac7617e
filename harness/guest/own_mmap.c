// SPDX-License-Identifier: GPL-2.0-only
/*
 * A device whose driver maps its memory in its own way (own_mmap.ko): such a
 * mapping ends and comes back with all others.
 *
 *	own_mmap BDF
 *
 * Needs dmabuf_importer.ko, too, to have a reset take as long as is wanted. The
 * last test removes the driver.
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
#include <sys/syscall.h>

#include <linux/compiler.h>
#include <linux/kernel.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>
#include <libvfio/vfio_pci_dmabuf.h>

#include "kselftest_harness.h"
#include "importer.h"

#define OWN_BAR		2
#define SIZE		SZ_1M
#define PARAMETERS	"/sys/module/own_mmap/parameters/"

static const char *device_bdf;

static void read_parameter(const char *name, char *text, size_t size)
{
	char path[128];
	ssize_t length;
	int fd;

	snprintf(path, sizeof(path), PARAMETERS "%s", name);
	fd = open(path, O_RDONLY);
	VFIO_ASSERT_GE(fd, 0, "no own_mmap.ko\n");
	length = read(fd, text, size - 1);
	VFIO_ASSERT_GT(length, 0);
	text[length] = 0;
	close(fd);
}

/* How often the driver's own fault handler ran */
static unsigned long handled_faults(void)
{
	char text[32];

	read_parameter("faults", text, sizeof(text));
	return strtoul(text, NULL, 0);
}

static bool exports(void)
{
	char text[32];

	read_parameter("dmabuf", text, sizeof(text));
	return strncmp(text, "none", 4);
}

FIXTURE(own) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	off_t offset;
	size_t page, pages;

	/* All of the BAR, a part of it from the middle, and one that has moved */
	void *vaddrs[3];
};

static void own_open(FIXTURE_DATA(own) *self)
{
	self->device = vfio_pci_device_init(device_bdf, self->iommu);
	vfio_pci_cmd_set(self->device, PCI_COMMAND_MEMORY);
	self->offset = self->device->bars[OWN_BAR].info.offset;
}

FIXTURE_SETUP(own)
{
	void *to;

	self->iommu = iommu_init(default_iommu_mode);
	self->page = getpagesize();
	self->pages = SIZE / self->page;
	own_open(self);
	self->vaddrs[0] = mmap_bar(self->device->fd, SIZE, self->offset, 0);
	self->vaddrs[1] = mmap_bar(self->device->fd, SIZE, self->offset + SZ_4M + self->page,
				   self->page);
	to = mmap_reserve(SIZE, SZ_2M, 0);
	self->vaddrs[2] = mmap_bar(self->device->fd, SIZE, self->offset + SZ_8M, 0);
	self->vaddrs[2] = mremap(self->vaddrs[2], SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	ASSERT_EQ(to, self->vaddrs[2]);
}

FIXTURE_TEARDOWN(own)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(self->vaddrs); i++) {
		if (self->vaddrs[i])
			munmap_bar(self->vaddrs[i], SIZE);
	}
	vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
}

/* Their faults of all mappings, one for each page that is not mapped */
static unsigned long touch_all(FIXTURE_DATA(own) *self)
{
	unsigned long before = handled_faults();
	int i;

	for (i = 0; i < ARRAY_SIZE(self->vaddrs); i++) {
		if (try_touch(self->vaddrs[i], SIZE))
			return -1UL;
	}
	return handled_faults() - before;
}

static int touch_child(void *data, int offset)
{
	u32 value;

	return try_read32(data + offset, &value);
}

TEST_F(own, faults)
{
	ASSERT_EQ(3 * self->pages, touch_all(self));
	ASSERT_EQ(0, touch_all(self));
	WRITE_ONCE(*(u32 *)self->vaddrs[0], 0x1234);
	ASSERT_EQ(0x1234, READ_ONCE(*(u32 *)self->device->bars[OWN_BAR].vaddr));
}

TEST_F_TIMEOUT(own, suspend, 120)
{
	const struct vfio_pci_suspend *suspends[] = {
		&vfio_pci_suspend_memory, &vfio_pci_suspend_d3, &vfio_pci_suspend_low_power,
	};
	struct child child;
	u32 value;
	int i, j;

	start_child(&child, touch_child, self->vaddrs[0]);
	for (i = 0; i < ARRAY_SIZE(suspends); i++) {
		if (!suspends[i]->supported(self->device))
			continue;
		TH_LOG("%s", suspends[i]->name);
		ASSERT_NE(-1UL, touch_all(self));
		ASSERT_EQ(0, ask_child(&child, 0));

		suspends[i]->suspend(self->device);
		for (j = 0; j < ARRAY_SIZE(self->vaddrs); j++) {
			ASSERT_EQ(SIGBUS, try_read32(self->vaddrs[j], &value));
			ASSERT_EQ(SIGBUS, try_read32(self->vaddrs[j] + SIZE - 4, &value));
		}
		ASSERT_EQ(SIGBUS, ask_child(&child, 0));

		suspends[i]->resume(self->device);
		ASSERT_EQ(3 * self->pages, touch_all(self));
		ASSERT_EQ(0, ask_child(&child, 0));
		ASSERT_EQ(0, touch_all(self));
	}
	stop_child(&child);
}

/* vfio_pci_any_reset() takes this way only if there is no other */
static int hot_reset(struct vfio_pci_device *device)
{
	struct vfio_pci_hot_reset reset = { .argsz = sizeof(reset) };

	return ioctl(device->fd, VFIO_DEVICE_PCI_HOT_RESET, &reset) ? -errno : 0;
}

TEST_F(own, reset)
{
	ASSERT_NE(-1UL, touch_all(self));
	ASSERT_EQ(0, vfio_pci_any_reset(self->device));
	ASSERT_EQ(3 * self->pages, touch_all(self));

	/* Also by way of what resets many devices at once */
	ASSERT_EQ(0, hot_reset(self->device));
	ASSERT_EQ(3 * self->pages, touch_all(self));

	/* Not by others: they come back by themselves, and only have to work */
	ASSERT_EQ(0, vfio_pci_sysfs_reset(self->device));
	ASSERT_NE(-1UL, touch_all(self));
}

static long do_reset(void *data)
{
	return vfio_pci_any_reset(data);
}

static long do_touch(void *data)
{
	return try_touch(data, SIZE);
}

/* Not from its beginning on: a fault waits for the end, as with nvgrace-gpu */
TEST_F_TIMEOUT(own, during_reset, 120)
{
	struct job resetter, toucher;
	void *vaddr;
	int fd, importer;
	u32 value;

	if (!exports())
		SKIP(return, "no dma-bufs");

	fd = vfio_pci_dmabuf_export(self->device, OWN_BAR, 0, SZ_4M, 0);
	vaddr = mmap_bar(fd, SZ_4M, 0, 0);
	ASSERT_EQ(0, try_touch(vaddr, SZ_4M));
	ASSERT_NE(-1UL, touch_all(self));
	importer = importer_open();
	importer_assert(importer, "attach %d %s", fd, importer_bdf());
	importer_assert(importer, "slow unmap");
	importer_assert(importer, "map");

	start_job(&resetter, do_reset, self->device);
	ASSERT_TRUE(importer_is_told(importer, 1));
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	start_job(&toucher, do_touch, self->vaddrs[1]);
	EXPECT_FALSE(job_ends(&toucher, 0.3));
	EXPECT_FALSE(job_is_done(&resetter, 0));

	importer_assert(importer, "go");
	ASSERT_TRUE(job_ends(&resetter, AT_LAST));
	ASSERT_TRUE(job_ends(&toucher, AT_LAST));
	ASSERT_EQ(0, finish_job(&resetter));
	ASSERT_EQ(0, finish_job(&toucher));
	ASSERT_EQ(0, try_touch(vaddr, SZ_4M));
	munmap_bar(vaddr, SZ_4M);
	ASSERT_EQ(0, close(importer));
	ASSERT_EQ(0, close(fd));
}

/*
 * The driver says whether there are dma-bufs. None with pages, which are waited
 * for under a lock that its fault handler takes, whether it says so or not.
 */
TEST_F(own, export)
{
	struct vfio_region_dma_range range = { 0, SZ_4M };
	void *vaddr;
	u32 value;
	int fd;

	ASSERT_EQ(-EOPNOTSUPP, __vfio_pci_dmabuf_export(self->device, OWN_BAR, &range, 1, O_RDWR,
							VFIO_DMA_BUF_FLAG_ZONE_DEVICE));
	if (!exports()) {
		ASSERT_EQ(-EOPNOTSUPP, __vfio_pci_dmabuf_export(self->device, OWN_BAR, &range, 1,
								O_RDWR, 0));
		ASSERT_EQ(-EOPNOTSUPP, __vfio_pci_dmabuf_revoke(self->device, 0));
		return;
	}

	fd = vfio_pci_dmabuf_export(self->device, OWN_BAR, 0, SZ_4M, 0);
	vaddr = mmap_bar(fd, SZ_4M, 0, 0);
	ASSERT_EQ(0, try_touch(vaddr, SZ_4M));
	ASSERT_NE(-1UL, touch_all(self));
	vfio_pci_dmabuf_revoke(self->device, fd);
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	ASSERT_EQ(0, touch_all(self));
	munmap_bar(vaddr, SZ_4M);
	ASSERT_EQ(0, close(fd));
}

static long do_unbind(void *data)
{
	int fd = open("/sys/bus/pci/drivers/own_mmap/unbind", O_WRONLY);
	ssize_t length = strlen(device_bdf);
	long ret;

	ret = write(fd, device_bdf, length) == length ? 0 : -errno;
	close(fd);
	return ret;
}

/*
 * A mapping keeps the device open and thus the driver in place, a dma-buf does
 * not, and survives it.
 */
TEST_F_TIMEOUT(own, module, 120)
{
	void *vaddr = NULL;
	struct job unbinder;
	int i, fd = -1;
	u32 value;

	if (exports()) {
		fd = vfio_pci_dmabuf_export(self->device, OWN_BAR, 0, SZ_4M, 0);
		vaddr = mmap_bar(fd, SZ_4M, 0, 0);
		ASSERT_EQ(0, try_touch(vaddr, SZ_4M));
	}
	ASSERT_NE(-1UL, touch_all(self));
	vfio_pci_device_close(self->device);
	start_job(&unbinder, do_unbind, NULL);
	for (i = 0; i < ARRAY_SIZE(self->vaddrs); i++) {
		ASSERT_FALSE(job_ends(&unbinder, 0.3));
		ASSERT_EQ(0, try_touch(self->vaddrs[i], SIZE));
		if (vaddr)
			ASSERT_EQ(0, try_read32(vaddr, &value));
		munmap_bar(self->vaddrs[i], SIZE);
		self->vaddrs[i] = NULL;
	}
	ASSERT_TRUE(job_ends(&unbinder, AT_LAST));
	ASSERT_EQ(0, finish_job(&unbinder));

	ASSERT_EQ(0, syscall(__NR_delete_module, "own_mmap", 0));
	if (vaddr) {
		ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
		ASSERT_EQ(ENODEV, mmap_errno(fd, SZ_4M, 0, PROT_READ, MAP_SHARED));
		munmap_bar(vaddr, SZ_4M);
		ASSERT_EQ(0, close(fd));
	}
}

int main(int argc, char *argv[])
{
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}
