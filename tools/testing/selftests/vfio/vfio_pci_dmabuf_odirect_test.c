// SPDX-License-Identifier: GPL-2.0-only
/*
 * BARs exported with pages (VFIO_DMA_BUF_FLAG_ZONE_DEVICE): O_DIRECT between a
 * block device and the BAR, and the end of it at suspend and revoke.
 *
 * $VFIO_SELFTESTS_BLKDEV names a block device that takes PCI P2PDMA pages, NVMe
 * for one, or a file on one. ITS CONTENTS ARE OVERWRITTEN, as are those of the
 * largest BAR.
 *
 * VFIO_SELFTESTS_NO_P2P=1 announces that no DMA between the two is possible, as
 * they share no switch and the kernel does not know what their root complex
 * does with it. Then all O_DIRECT to the BAR has to be refused.
 *
 * VFIO_SELFTESTS_OUT_OF_REACH=1 announces a BAR that is further away than the
 * kernel's direct map reaches. It has no pages, which is what odirect.reach is
 * about; most others fail.
 *
 * VFIO_SELFTESTS_L1TF=1 announces a CPU with the L1TF bug and a BAR in the upper
 * half of what it can address.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <linux/align.h>
#include <linux/capability.h>
#include <linux/compiler.h>
#include <linux/elf.h>
#include <linux/fs.h>
#include <linux/kernel.h>
#include <linux/mman.h>
#include <linux/nvme_ioctl.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/stddef.h>
#include <linux/vfio.h>

/* Needs the definitions of linux/stddef.h. */
#include <linux/io_uring.h>

#include <libvfio.h>
#include <libvfio/vfio_pci_dmabuf.h>

#include "kselftest_harness.h"

#define ZONE_DEVICE VFIO_DMA_BUF_FLAG_ZONE_DEVICE

static const char *device_bdf;
static const char *other_bdf;
static const char *block_path;
static bool no_p2p;
static bool out_of_reach;
static bool l1tf;

struct odirect_test {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	size_t page;

	/* The largest BAR, and its mapping through the device fd. */
	int bar;
	size_t size;
	void *vaddr;

	/* The block device, opened with O_DIRECT, and a buffer in RAM. */
	int block;
	u64 block_size;
	unsigned int metadata; /* bytes per logical block, if it is an NVMe namespace */
	void *ram;

	/* What a split has left elsewhere. */
	void *moved;
};

#define RAM_SIZE SZ_16M

static unsigned int block_metadata(void)
{
	const char *name = strrchr(block_path, '/');
	unsigned int bytes = 0;
	char path[PATH_MAX];
	FILE *file;

	snprintf(path, sizeof(path), "/sys/block/%s/metadata_bytes",
		 name ? name + 1 : block_path);
	file = fopen(path, "r");
	if (file) {
		if (fscanf(file, "%u", &bytes) != 1)
			bytes = 0;
		fclose(file);
	}

	return bytes;
}

static const char *odirect_test_setup(struct odirect_test *test, bool need_block)
{
	struct stat info;

	test->block = -1;
	test->page = getpagesize();
	test->iommu = iommu_init(default_iommu_mode);
	test->device = vfio_pci_device_init(device_bdf, test->iommu);
	vfio_pci_cmd_set(test->device, PCI_COMMAND_MEMORY);

	if (!vfio_pci_dmabuf_supported(test->device))
		return "the kernel cannot revoke dma-bufs, as announced";
	if (need_block && !block_path)
		return "VFIO_SELFTESTS_BLKDEV is not set";
	if (need_block && no_p2p)
		return "the block device cannot reach the BAR, as announced";

	test->bar = vfio_pci_largest_bar(test->device);
	if (test->bar < 0)
		return "there is no mappable BAR";
	test->size = test->device->bars[test->bar].info.size;
	test->vaddr = test->device->bars[test->bar].vaddr;

	if (!vfio_pci_bar_is_memory(test->device, test->bar))
		return "the largest BAR does not behave like memory";
	if (test->size < SZ_32M)
		return "the largest BAR is smaller than 32 MiB";

	test->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	VFIO_ASSERT_NE(test->ram, MAP_FAILED);

	if (block_path) {
		test->block = open(block_path, O_RDWR | O_DIRECT);
		VFIO_ASSERT_GE(test->block, 0, "open(%s) failed\n", block_path);
		VFIO_ASSERT_EQ(fstat(test->block, &info), 0);
		test->block_size = info.st_size;
		test->metadata = block_metadata();
		if (S_ISBLK(info.st_mode))
			ioctl_assert(test->block, BLKGETSIZE64, &test->block_size);
		VFIO_ASSERT_GE(test->block_size, SZ_64M,
			       "%s is smaller than 64 MiB\n", block_path);
	}

	return NULL;
}

static void odirect_test_teardown(struct odirect_test *test)
{
	if (test->block >= 0)
		VFIO_ASSERT_EQ(close(test->block), 0);
	vfio_pci_device_cleanup(test->device);
	iommu_cleanup(test->iommu);
}

static int export_pages(struct odirect_test *test, u64 offset, u64 length)
{
	return vfio_pci_dmabuf_export(test->device, test->bar, offset, length,
				      ZONE_DEVICE);
}

static int try_export_pages(struct odirect_test *test, int bar, u64 offset, u64 length)
{
	struct vfio_region_dma_range range = {
		.offset = offset,
		.length = length,
	};

	return __vfio_pci_dmabuf_export(test->device, bar, &range, 1,
					O_RDWR | O_CLOEXEC, ZONE_DEVICE);
}

/* Bytes transferred, or -errno. */
static ssize_t block_read(struct odirect_test *test, void *vaddr, size_t size, off_t at)
{
	ssize_t ret = pread(test->block, vaddr, size, at);

	return ret < 0 ? -errno : ret;
}

static ssize_t block_write(struct odirect_test *test, const void *vaddr, size_t size, off_t at)
{
	ssize_t ret = pwrite(test->block, vaddr, size, at);

	return ret < 0 ? -errno : ret;
}

/* Through RAM, as everybody does. */
static void block_fill(struct odirect_test *test, size_t size, off_t at, u64 seed)
{
	VFIO_ASSERT_LE(size, RAM_SIZE);
	pattern_fill(test->ram, size, seed);
	VFIO_ASSERT_EQ(block_write(test, test->ram, size, at), size);
}

static size_t block_check(struct odirect_test *test, size_t size, off_t at, u64 seed)
{
	VFIO_ASSERT_LE(size, RAM_SIZE);
	memset(test->ram, 0, size);
	VFIO_ASSERT_EQ(block_read(test, test->ram, size, at), size);

	return pattern_check(test->ram, size, seed);
}

FIXTURE(odirect) {
	struct odirect_test t;
};

FIXTURE_SETUP(odirect)
{
	const char *reason = odirect_test_setup(&self->t, false);

	if (reason)
		SKIP(return, "%s: %s", device_bdf, reason);
}

FIXTURE_TEARDOWN(odirect)
{
	odirect_test_teardown(&self->t);
}

/* With a block device. */
FIXTURE(odirect_block) {
	struct odirect_test t;
};

FIXTURE_SETUP(odirect_block)
{
	const char *reason = odirect_test_setup(&self->t, true);

	if (reason)
		SKIP(return, "%s: %s", device_bdf, reason);
}

FIXTURE_TEARDOWN(odirect_block)
{
	odirect_test_teardown(&self->t);
}

/*
 * Export and mmap
 */
TEST_F(odirect, export_errors)
{
	struct odirect_test *t = &self->t;
	struct vfio_region_dma_range two[2] = {
		{ 0, SZ_2M }, { SZ_4M + t->page, SZ_2M },
	};
	int fd, bar;

	EXPECT_EQ(-EINVAL, try_export_pages(t, t->bar, 0, t->page));
	EXPECT_EQ(-EINVAL, try_export_pages(t, t->bar, 0, SZ_1M));
	EXPECT_EQ(-EINVAL, try_export_pages(t, t->bar, t->page, SZ_2M));
	EXPECT_EQ(-EINVAL, try_export_pages(t, t->bar, SZ_1M, SZ_2M));
	EXPECT_EQ(-EINVAL, try_export_pages(t, t->bar, 0, SZ_2M + t->page));
	EXPECT_EQ(-EINVAL, try_export_pages(t, t->bar, SZ_2M, SZ_2M - t->page));
	EXPECT_EQ(-EINVAL, try_export_pages(t, t->bar, 0, 0));
	EXPECT_EQ(-EINVAL, try_export_pages(t, t->bar, t->size, SZ_2M));
	EXPECT_EQ(-EINVAL, try_export_pages(t, t->bar, t->size - SZ_2M, SZ_4M));
	EXPECT_EQ(-EINVAL, __vfio_pci_dmabuf_export(t->device, t->bar, two, 2,
						    O_RDWR, ZONE_DEVICE));
	EXPECT_EQ(-EINVAL, __vfio_pci_dmabuf_export(t->device, t->bar, two, 0,
						    O_RDWR, ZONE_DEVICE));
	EXPECT_EQ(-EINVAL, __vfio_pci_dmabuf_export(t->device, t->bar, two, 1,
						    O_RDWR, ZONE_DEVICE | 2));
	EXPECT_EQ(-ENODEV, try_export_pages(t, VFIO_PCI_ROM_REGION_INDEX, 0, SZ_2M));

	/* A BAR that is too small, with a length that fits and one that does not. */
	for (bar = 0; bar < PCI_STD_NUM_BARS; bar++) {
		u64 size = t->device->bars[bar].info.size;

		if (!size || size >= SZ_2M)
			continue;
		EXPECT_EQ(-EINVAL, try_export_pages(t, bar, 0, ALIGN(size, t->page)));
		EXPECT_EQ(-EINVAL, try_export_pages(t, bar, 0, SZ_2M));
	}

	/* Nothing of it has taken the range. */
	fd = export_pages(t, 0, SZ_8M);
	ASSERT_EQ(0, close(fd));
}

/* The kernel says so in its log when memory is added where it cannot be mapped. */
TEST_F(odirect, reach)
{
	struct odirect_test *t = &self->t;
	int fd = try_export_pages(t, t->bar, 0, SZ_8M);

	if (out_of_reach) {
		EXPECT_EQ(-ERANGE, fd);
	} else {
		ASSERT_LE(0, fd);
		ASSERT_EQ(0, close(fd));
	}
}

/* Of the thread's effective capabilities. Returns whether it had it, or is negative. */
static int set_capability(unsigned int cap, bool on)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
	u32 *effective = &data[CAP_TO_INDEX(cap)].effective;
	bool had;

	if (syscall(SYS_capget, &header, data))
		return -errno;
	had = *effective & CAP_TO_MASK(cap);
	*effective &= ~CAP_TO_MASK(cap);
	if (on)
		*effective |= CAP_TO_MASK(cap);

	return syscall(SYS_capset, &header, data) ? -errno : had;
}

/*
 * On CPUs with the L1TF bug a PROT_NONE mapping of memory far away is taken for one of
 * RAM, and only CAP_SYS_ADMIN may make some. Pages do not allow for more than that.
 */
TEST_F(odirect, prot_none)
{
	struct odirect_test *t = &self->t;
	bool refused;
	void *vaddr;
	int fd;

	if (set_capability(CAP_SYS_ADMIN, false) != 1)
		SKIP(return, "needs CAP_SYS_ADMIN, to drop it");
	vaddr = mmap(NULL, t->page, PROT_READ | PROT_WRITE, MAP_SHARED, t->device->fd,
		     t->device->bars[t->bar].info.offset);
	ASSERT_NE(MAP_FAILED, vaddr);
	ASSERT_EQ(0, try_touch(vaddr, t->page));
	refused = mprotect(vaddr, t->page, PROT_NONE);
	if (refused)
		ASSERT_EQ(EACCES, errno);
	TH_LOG("PROT_NONE is %s", refused ? "refused" : "allowed");
	EXPECT_EQ(refused, l1tf);

	fd = try_export_pages(t, t->bar, 0, SZ_8M);
	if (refused) {
		EXPECT_EQ(-EPERM, fd);
	} else {
		ASSERT_LE(0, fd);
		ASSERT_EQ(0, close(fd));
	}

	/* Who has pages all the same has been given them. */
	ASSERT_EQ(0, set_capability(CAP_SYS_ADMIN, true));
	fd = try_export_pages(t, t->bar, 0, SZ_8M);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, close(fd));
	ASSERT_EQ(0, munmap(vaddr, t->page));
}

TEST_F_TIMEOUT(odirect, order_race, 60)
{
	struct odirect_test *t = &self->t;
	int fd = export_pages(t, 0, SZ_2M);

	ASSERT_EQ(0, race_orders(fd, 0, 3000));
	vfio_pci_dmabuf_revoke(t->device, fd);
	ASSERT_EQ(0, close(fd));
}

TEST_F(odirect, export_small_bar)
{
	struct odirect_test *t = &self->t;
	struct vfio_region_dma_range range = {};
	struct vfio_pci_device *other;
	int bar;

	if (!other_bdf)
		SKIP(return, "no second device");

	other = vfio_pci_device_init(other_bdf, t->iommu);
	bar = vfio_pci_largest_bar(other);
	ASSERT_GE(bar, 0);
	range.length = other->bars[bar].info.size;
	if (range.length >= SZ_2M)
		SKIP(vfio_pci_device_cleanup(other); return, "BAR %d of %s is not small",
		     bar, other_bdf);

	ASSERT_EQ(-EINVAL, __vfio_pci_dmabuf_export(other, bar, &range, 1, O_RDWR, ZONE_DEVICE));
	vfio_pci_device_cleanup(other);
}

/* A page belongs to one page-backed buffer, but to any number of plain ones. */
TEST_F(odirect, overlap)
{
	struct odirect_test *t = &self->t;
	struct vfio_region_dma_range twice[] = {
		{ SZ_16M, SZ_4M }, { SZ_16M + SZ_2M, SZ_4M },
	};
	struct vfio_region_dma_range second_taken[] = {
		{ SZ_16M, SZ_4M }, { SZ_4M, SZ_2M },
	};
	int a, b, plain;
	void *vaddr, *pvaddr;
	u32 value;

	a = export_pages(t, SZ_4M, SZ_4M);
	EXPECT_EQ(-EBUSY, try_export_pages(t, t->bar, SZ_4M, SZ_4M));
	EXPECT_EQ(-EBUSY, try_export_pages(t, t->bar, SZ_2M, SZ_4M));
	EXPECT_EQ(-EBUSY, try_export_pages(t, t->bar, SZ_2M * 3, SZ_4M));
	EXPECT_EQ(-EBUSY, try_export_pages(t, t->bar, SZ_2M * 3, SZ_2M));
	EXPECT_EQ(-EBUSY, try_export_pages(t, t->bar, 0, SZ_16M));
	EXPECT_EQ(-EBUSY, __vfio_pci_dmabuf_export(t->device, t->bar, second_taken,
						   2, O_RDWR, ZONE_DEVICE));
	EXPECT_EQ(-EBUSY, __vfio_pci_dmabuf_export(t->device, t->bar, twice, 2,
						   O_RDWR, ZONE_DEVICE));

	/* Its neighbours are free, and what has failed has taken nothing. */
	b = export_pages(t, 0, SZ_4M);
	ASSERT_EQ(0, close(b));
	b = export_pages(t, SZ_8M, SZ_4M);
	ASSERT_EQ(0, close(b));
	b = export_pages(t, SZ_16M, SZ_8M);
	ASSERT_EQ(0, close(b));

	plain = vfio_pci_dmabuf_export(t->device, t->bar, SZ_2M, SZ_8M, 0);
	vaddr = mmap_bar(a, SZ_4M, 0, 0);
	pvaddr = mmap_bar(plain, SZ_8M, 0, 0);
	WRITE_ONCE(*(u32 *)vaddr, 0x71);
	ASSERT_EQ(0x71, READ_ONCE(*(u32 *)(pvaddr + SZ_2M)));
	ASSERT_EQ(0x71, READ_ONCE(*(u32 *)(t->vaddr + SZ_4M)));

	/* As long as the buffer lives, be it only through its mapping. */
	ASSERT_EQ(0, close(a));
	EXPECT_EQ(-EBUSY, try_export_pages(t, t->bar, SZ_4M, SZ_4M));
	ASSERT_EQ(0x71, READ_ONCE(*(u32 *)vaddr));
	munmap_bar(vaddr, SZ_4M);
	ASSERT_EQ(0, try_read32(pvaddr + SZ_2M, &value));
	a = export_pages(t, SZ_4M, SZ_4M);
	ASSERT_EQ(0, close(a));

	munmap_bar(pvaddr, SZ_8M);
	ASSERT_EQ(0, close(plain));
}

/* Closed is free at once; so is revoked, with the old buffer still there. */
TEST_F_TIMEOUT(odirect, export_again, 120)
{
	struct odirect_test *t = &self->t;
	void *vaddr, *fresh;
	int fd, again, i;
	u32 value;

	for (i = 0; i < 20; i++) {
		fd = export_pages(t, 0, SZ_8M);
		vaddr = mmap_bar(fd, SZ_8M, 0, 0);
		ASSERT_EQ(0, try_touch(vaddr, SZ_8M));
		if (i & 1) {
			munmap_bar(vaddr, SZ_8M);
			ASSERT_EQ(0, close(fd));
		} else {
			ASSERT_EQ(0, close(fd));
			munmap_bar(vaddr, SZ_8M);
		}
	}

	fd = export_pages(t, 0, SZ_8M);
	vaddr = mmap_bar(fd, SZ_8M, 0, 0);
	ASSERT_EQ(0, try_touch(vaddr, SZ_8M));
	vfio_pci_dmabuf_revoke(t->device, fd);

	again = export_pages(t, 0, SZ_8M);
	fresh = mmap_bar(again, SZ_8M, 0, 0);
	ASSERT_EQ(0, try_touch(fresh, SZ_8M));
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	munmap_bar(vaddr, SZ_8M);
	ASSERT_EQ(0, close(fd));
	ASSERT_EQ(0, try_touch(fresh, SZ_8M));
	munmap_bar(fresh, SZ_8M);
	ASSERT_EQ(0, close(again));
}

/* Same rules for mmap() as for plain buffers. */
TEST_F(odirect, mmap_errors)
{
	struct odirect_test *t = &self->t;
	const int rw = PROT_READ | PROT_WRITE;
	int fd = export_pages(t, SZ_2M, SZ_4M);

	EXPECT_EQ(0, mmap_errno(fd, SZ_4M, 0, rw, MAP_SHARED));
	EXPECT_EQ(0, mmap_errno(fd, t->page, SZ_4M - t->page, rw, MAP_SHARED));
	EXPECT_EQ(EINVAL, mmap_errno(fd, SZ_4M, 0, rw, MAP_PRIVATE));
	EXPECT_EQ(EINVAL, mmap_errno(fd, SZ_4M, 0, PROT_READ, MAP_PRIVATE));
	EXPECT_EQ(EINVAL, mmap_errno(fd, SZ_4M + t->page, 0, rw, MAP_SHARED));
	EXPECT_EQ(EINVAL, mmap_errno(fd, t->page, SZ_4M, rw, MAP_SHARED));
	EXPECT_EQ(EINVAL, mmap_errno(fd, 2 * t->page, SZ_4M - t->page, rw, MAP_SHARED));

	vfio_pci_dmabuf_revoke(t->device, fd);
	EXPECT_EQ(ENODEV, mmap_errno(fd, SZ_4M, 0, rw, MAP_SHARED));
	ASSERT_EQ(0, close(fd));
}

/* One fault for each 2 MiB, without asking for huge pages. */
TEST_F(odirect, huge_faults)
{
	struct odirect_test *t = &self->t;
	void *vaddr;
	u64 faults;
	int fd;

	if (!huge_faults_enabled())
		SKIP(return, "transparent huge pages are off");
	if (t->size < SZ_64M)
		SKIP(return, "BAR %d is smaller than 64 MiB", t->bar);

	fd = export_pages(t, 0, SZ_64M);
	vaddr = mmap_bar(fd, SZ_64M, 0, 0);
	faults = touch_faults(vaddr, SZ_64M);
	TH_LOG("64 MiB: %lu faults", (unsigned long)faults);
	ASSERT_GT(faults, 0);
	ASSERT_LE(faults, 32);
	munmap_bar(vaddr, SZ_64M);
	ASSERT_EQ(0, close(fd));
}

/* In KiB. */
static long resident_file(void)
{
	char line[128];
	long size = -1;
	FILE *status;

	status = fopen("/proc/self/status", "r");
	VFIO_ASSERT_NOT_NULL(status);
	while (fgets(line, sizeof(line), status))
		sscanf(line, "RssFile: %ld", &size);
	fclose(status);
	VFIO_ASSERT_GE(size, 0);

	return size;
}

/* Resident as long as it is mapped, and not when it is a plain buffer's. */
TEST_F(odirect, resident)
{
	struct odirect_test *t = &self->t;
	long before, mapped, after;
	void *vaddr, *plain_vaddr;
	int fd, plain;

	fd = export_pages(t, 0, SZ_16M);
	plain = vfio_pci_dmabuf_export(t->device, t->bar, 0, SZ_16M, 0);
	/* One with PMDs and PTEs, if there are any of the former. */
	vaddr = mmap_bar(fd, SZ_16M, 0, 0);
	madvise(vaddr, SZ_2M, MADV_NOHUGEPAGE);
	plain_vaddr = mmap_bar(plain, SZ_16M, 0, 0);

	before = resident_file();
	ASSERT_EQ(0, try_touch(plain_vaddr, SZ_16M));
	/* What the test itself needs is some pages. */
	ASSERT_LT(resident_file() - before, 1024);
	ASSERT_EQ(0, try_touch(vaddr, SZ_16M));
	mapped = resident_file();
	ASSERT_GE(mapped - before, SZ_16M / SZ_1K);
	ASSERT_LT(mapped - before, SZ_16M / SZ_1K + 1024);

	vfio_pci_dmabuf_revoke(t->device, fd);
	after = resident_file();
	ASSERT_LT(labs(after - before), 1024);
	munmap_bar(vaddr, SZ_16M);
	ASSERT_LT(labs(resident_file() - after), 1024);

	munmap_bar(plain_vaddr, SZ_16M);
	ASSERT_EQ(0, close(plain));
	ASSERT_EQ(0, close(fd));
}

struct putter {
	void *vaddr;
	size_t page;
	u64 rounds;
	int stop;
};

static void *putter(void *data)
{
	struct putter *putter = data;

	while (!READ_ONCE(putter->stop)) {
		(void)READ_ONCE(*(u32 *)putter->vaddr);
		VFIO_ASSERT_EQ(madvise(putter->vaddr, putter->page, MADV_DONTNEED), 0);
		WRITE_ONCE(putter->rounds, putter->rounds + 1);
	}

	return NULL;
}

/*
 * The folio is given back and handed out all the time, at the same time. If one
 * was not accounted for as often as the other the revoke would not see its end,
 * or not wait for it.
 */
TEST_F_TIMEOUT(odirect, fault_and_last_put, 60)
{
	struct odirect_test *t = &self->t;
	struct putter putters[4] = {};
	pthread_t threads[4];
	int fd, round, i;

	for (round = 0; round < 10; round++) {
		fd = export_pages(t, 0, SZ_2M);
		for (i = 0; i < ARRAY_SIZE(putters); i++) {
			putters[i] = (struct putter) {
				/* Not aligned, so PTEs. */
				.vaddr = mmap_bar(fd, SZ_64K, i * SZ_64K, t->page),
				.page = t->page,
			};
			ASSERT_EQ(0, pthread_create(&threads[i], NULL, putter, &putters[i]));
		}
		usleep(100000);
		for (i = 0; i < ARRAY_SIZE(putters); i++)
			while (READ_ONCE(putters[i].rounds) < 100)
				usleep(10000);
		for (i = 0; i < ARRAY_SIZE(putters); i++)
			WRITE_ONCE(putters[i].stop, 1);
		for (i = 0; i < ARRAY_SIZE(putters); i++) {
			ASSERT_EQ(0, pthread_join(threads[i], NULL));
			munmap_bar(putters[i].vaddr, SZ_64K);
		}
		vfio_pci_dmabuf_revoke(t->device, fd);
		ASSERT_EQ(0, close(fd));
	}
}

/* Every page is the right one, whatever the alignment of the mapping. */
TEST_F_TIMEOUT(odirect, ranges, 60)
{
	struct vfio_region_dma_range ranges[] = {
		{ SZ_8M, SZ_4M }, { 0, SZ_2M }, { SZ_2M, SZ_4M }, { SZ_16M, SZ_2M },
	};
	struct odirect_test *t = &self->t;
	size_t skews[] = { 0, t->page, SZ_1M };
	size_t starts[] = { 0, t->page, SZ_4M - t->page, SZ_1M * 5 };
	size_t total = SZ_2M * 6, offset;
	int fd, i, j, r;
	void *vaddr;

	for (offset = 0; offset < SZ_32M; offset += t->page)
		WRITE_ONCE(*(u64 *)(t->vaddr + offset), offset | 1);

	fd = __vfio_pci_dmabuf_export(t->device, t->bar, ranges, ARRAY_SIZE(ranges),
				      O_RDWR, ZONE_DEVICE);
	ASSERT_GE(fd, 0);
	ASSERT_EQ(total, lseek(fd, 0, SEEK_END));

	for (i = 0; i < ARRAY_SIZE(starts); i++) {
		for (j = 0; j < ARRAY_SIZE(skews); j++) {
			size_t size = total - starts[i], at = starts[i];

			r = 0;
			while (at >= ranges[r].length)
				at -= ranges[r++].length;

			vaddr = mmap_bar(fd, size, starts[i], skews[j]);
			for (offset = 0; offset < size; offset += t->page) {
				ASSERT_EQ((ranges[r].offset + at) | 1,
					  READ_ONCE(*(u64 *)(vaddr + offset))) {
					TH_LOG("start %#zx, skew %#zx, offset %#zx",
					       starts[i], skews[j], offset);
				}
				at += t->page;
				if (at == ranges[r].length) {
					at = 0;
					r++;
				}
			}
			munmap_bar(vaddr, size);
		}
	}

	ASSERT_EQ(0, close(fd));
}

/*
 * O_DIRECT
 */
FIXTURE(odirect_io) {
	struct odirect_test t;
};

FIXTURE_VARIANT(odirect_io) {
	size_t size;
	size_t offset;
};

FIXTURE_VARIANT_ADD(odirect_io, size_4k) {
	.size = SZ_4K,
};

FIXTURE_VARIANT_ADD(odirect_io, size_64k) {
	.size = SZ_64K,
};

FIXTURE_VARIANT_ADD(odirect_io, size_64k_unaligned) {
	.size = SZ_64K,
	.offset = SZ_2M - SZ_4K * 3,
};

FIXTURE_VARIANT_ADD(odirect_io, size_8m) {
	.size = SZ_8M,
};

FIXTURE_VARIANT_ADD(odirect_io, size_8m_unaligned) {
	.size = SZ_8M,
	.offset = SZ_1M + SZ_4K,
};

FIXTURE_VARIANT_ADD(odirect_io, size_16m) {
	.size = SZ_16M,
	.offset = 0,
};

FIXTURE_SETUP(odirect_io)
{
	const char *reason = odirect_test_setup(&self->t, true);

	if (reason)
		SKIP(return, "%s: %s", device_bdf, reason);
}

FIXTURE_TEARDOWN(odirect_io)
{
	odirect_test_teardown(&self->t);
}

/* Both directions, byte by byte, seen from both mappings and from RAM. */
static void test_io(struct __test_metadata *_metadata, struct odirect_test *t,
		    size_t size, size_t offset, size_t skew, bool touched)
{
	u64 base = SZ_2M, guard = 0x6775617264ULL;
	size_t length = SZ_16M + SZ_4M;
	off_t at = SZ_1M + 512 * 3;
	u64 *before, *after;
	void *vaddr;
	int fd;

	fd = export_pages(t, base, length);
	vaddr = mmap_bar(fd, length, 0, skew);
	if (touched)
		ASSERT_EQ(0, try_touch(vaddr, length));

	/* The words next to the target. */
	before = t->vaddr + base + offset - sizeof(u64);
	after = t->vaddr + base + offset + size;
	WRITE_ONCE(*before, guard);
	WRITE_ONCE(*after, guard);

	/* Block device to BAR. */
	block_fill(t, size, at, 1);
	pattern_fill(t->vaddr + base + offset, size, 99);
	ASSERT_EQ(size, block_read(t, vaddr + offset, size, at));
	ASSERT_EQ(size, pattern_check(t->vaddr + base + offset, size, 1));
	ASSERT_EQ(size, pattern_check(vaddr + offset, size, 1));
	ASSERT_EQ(guard, READ_ONCE(*before));
	ASSERT_EQ(guard, READ_ONCE(*after));

	/* BAR to block device, written through the buffer's mapping. */
	pattern_fill(vaddr + offset, size, 2);
	ASSERT_EQ(size, block_write(t, vaddr + offset, size, at));
	ASSERT_EQ(size, block_check(t, size, at, 2));

	/* And through the device's. */
	pattern_fill(t->vaddr + base + offset, size, 3);
	ASSERT_EQ(size, block_write(t, vaddr + offset, size, at));
	ASSERT_EQ(size, block_check(t, size, at, 3));
	ASSERT_EQ(size, pattern_check(vaddr + offset, size, 3));

	vfio_pci_dmabuf_revoke(t->device, fd);
	ASSERT_EQ(-EFAULT, block_read(t, vaddr + offset, size, at));
	ASSERT_EQ(-EFAULT, block_write(t, vaddr + offset, size, at));
	ASSERT_EQ(size, pattern_check(t->vaddr + base + offset, size, 3));
	ASSERT_EQ(size, block_check(t, size, at, 3));

	munmap_bar(vaddr, length);
	ASSERT_EQ(0, close(fd));
}

TEST_F_TIMEOUT(odirect_io, touched, 60)
{
	test_io(_metadata, &self->t, variant->size, variant->offset, 0, true);
}

TEST_F_TIMEOUT(odirect_io, untouched, 60)
{
	test_io(_metadata, &self->t, variant->size, variant->offset, 0, false);
}

/* No PMD fits. */
TEST_F_TIMEOUT(odirect_io, skewed, 60)
{
	test_io(_metadata, &self->t, variant->size, variant->offset, self->t.page, false);
}

/* The seam of two ranges in the middle of one transfer. */
/* All of a large BAR in one request. */
TEST_F_TIMEOUT(odirect_block, io_64m, 120)
{
	struct odirect_test *t = &self->t;
	const u64 seed = 1ULL << 32;
	void *vaddr;
	size_t at;
	int fd;

	if (t->size < SZ_64M || t->block_size < 2 * SZ_64M)
		SKIP(return, "the BAR or the block device is too small");

	for (at = 0; at < SZ_64M; at += RAM_SIZE)
		block_fill(t, RAM_SIZE, at, seed + at / sizeof(u64));
	fd = export_pages(t, 0, SZ_64M);
	vaddr = mmap_bar(fd, SZ_64M, 0, 0);

	ASSERT_EQ(SZ_64M, block_read(t, vaddr, SZ_64M, 0));
	ASSERT_EQ(SZ_64M, pattern_check(t->vaddr, SZ_64M, seed));
	ASSERT_EQ(SZ_64M, block_write(t, vaddr, SZ_64M, SZ_64M));
	for (at = 0; at < SZ_64M; at += RAM_SIZE)
		ASSERT_EQ(RAM_SIZE, block_check(t, RAM_SIZE, SZ_64M + at,
						seed + at / sizeof(u64)));

	vfio_pci_dmabuf_revoke(t->device, fd);
	munmap_bar(vaddr, SZ_64M);
	ASSERT_EQ(0, close(fd));
}

TEST_F_TIMEOUT(odirect_block, io_ranges, 60)
{
	struct vfio_region_dma_range ranges[] = {
		{ SZ_16M, SZ_4M }, { SZ_2M, SZ_2M }, { SZ_8M, SZ_4M },
	};
	struct odirect_test *t = &self->t;
	size_t size = SZ_8M, skip = SZ_1M, done, i;
	off_t at = 0;
	void *vaddr;
	int fd;

	fd = __vfio_pci_dmabuf_export(t->device, t->bar, ranges, ARRAY_SIZE(ranges),
				      O_RDWR, ZONE_DEVICE);
	ASSERT_GE(fd, 0);
	vaddr = mmap_bar(fd, SZ_2M * 5, 0, 0);

	block_fill(t, size, at, 11);
	ASSERT_EQ(size, block_read(t, vaddr + skip, size, at));
	ASSERT_EQ(size, pattern_check(vaddr + skip, size, 11));

	/* t->ram still holds what was written to the block device. */
	for (i = 0, done = 0; i < ARRAY_SIZE(ranges); i++) {
		size_t first = i ? 0 : skip;
		size_t length = min_t(size_t, ranges[i].length - first, size - done);

		ASSERT_EQ(0, memcmp(t->vaddr + ranges[i].offset + first,
				    t->ram + done, length)) {
			TH_LOG("range %zu", i);
		}
		done += length;
	}
	ASSERT_EQ(size, done);

	pattern_fill(vaddr + skip, size, 12);
	ASSERT_EQ(size, block_write(t, vaddr + skip, size, at));
	ASSERT_EQ(size, block_check(t, size, at, 12));

	vfio_pci_dmabuf_revoke(t->device, fd);
	munmap_bar(vaddr, SZ_2M * 5);
	ASSERT_EQ(0, close(fd));
}

/* Pieces of 4 KiB all over the buffer, more of them than a bio holds. */
TEST_F_TIMEOUT(odirect_block, io_vector, 60)
{
	struct odirect_test *t = &self->t;
	struct iovec iov[1024];
	size_t size = ARRAY_SIZE(iov) * SZ_4K, i;
	void *vaddr;
	int fd;

	fd = export_pages(t, 0, SZ_16M);
	vaddr = mmap_bar(fd, SZ_16M, 0, 0);
	for (i = 0; i < ARRAY_SIZE(iov); i++) {
		iov[i].iov_base = vaddr + (i * 3 + 1) * SZ_4K;
		iov[i].iov_len = SZ_4K;
	}

	block_fill(t, size, 0, 21);
	ASSERT_EQ(size, preadv(t->block, iov, ARRAY_SIZE(iov), 0));
	for (i = 0; i < ARRAY_SIZE(iov); i++) {
		ASSERT_EQ(0, memcmp(t->vaddr + (i * 3 + 1) * SZ_4K,
				    t->ram + i * SZ_4K, SZ_4K)) {
			TH_LOG("piece %zu", i);
		}
	}

	ASSERT_EQ(size, pwritev(t->block, iov, ARRAY_SIZE(iov), SZ_32M));
	ASSERT_EQ(size, block_check(t, size, SZ_32M, 21));

	vfio_pci_dmabuf_revoke(t->device, fd);
	munmap_bar(vaddr, SZ_16M);
	ASSERT_EQ(0, close(fd));
}

/*
 * Buffers that have nothing to do with each other, and RAM, in one request: whatever
 * becomes of that further down, each piece gets what belongs there.
 */
static void test_mixed(struct __test_metadata *_metadata, struct odirect_test *t,
		       void **vaddrs, size_t piece)
{
	struct iovec iov[96];
	size_t size = ARRAY_SIZE(iov) * piece;
	char *expected;
	int i;

	VFIO_ASSERT_LE(ARRAY_SIZE(iov) / 3 * piece, SZ_8M);
	expected = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, expected);
	pattern_fill(expected, size, 111);
	ASSERT_EQ(size, block_write(t, expected, size, 0));

	/* Backwards, so that no two are neighbours. */
	for (i = 0; i < ARRAY_SIZE(iov); i++) {
		iov[i].iov_base = vaddrs[i % 3] + (ARRAY_SIZE(iov) - 1 - i) / 3 * piece;
		iov[i].iov_len = piece;
		memset(iov[i].iov_base, 0, piece);
	}

	ASSERT_EQ(size, preadv(t->block, iov, ARRAY_SIZE(iov), 0));
	for (i = 0; i < ARRAY_SIZE(iov); i++) {
		ASSERT_EQ(0, memcmp(expected + i * piece, iov[i].iov_base, piece)) {
			TH_LOG("piece %d of %#zx", i, piece);
		}
	}

	ASSERT_EQ(size, pwritev(t->block, iov, ARRAY_SIZE(iov), SZ_32M));
	ASSERT_EQ(size, block_read(t, expected, size, SZ_32M));
	ASSERT_EQ(size, pattern_check(expected, size, 111));
	munmap_bar(expected, size);
}

TEST_F_TIMEOUT(odirect_block, io_mixed_buffers, 60)
{
	struct odirect_test *t = &self->t;
	void *vaddrs[3];
	int fds[2], i;

	for (i = 0; i < 2; i++) {
		fds[i] = export_pages(t, i * SZ_8M, SZ_8M);
		vaddrs[i] = mmap_bar(fds[i], SZ_8M, 0, 0);
	}
	vaddrs[2] = t->ram;

	/* Enough of them for one bio, and more. */
	test_mixed(_metadata, t, vaddrs, SZ_4K);
	test_mixed(_metadata, t, vaddrs, SZ_64K);

	for (i = 0; i < 2; i++) {
		vfio_pci_dmabuf_revoke(t->device, fds[i]);
		munmap_bar(vaddrs[i], SZ_8M);
		ASSERT_EQ(0, close(fds[i]));
	}
}

TEST_F_TIMEOUT(odirect_block, io_two_devices, 60)
{
	struct odirect_test *t = &self->t;
	struct vfio_pci_device *other;
	int fds[2], bar, i;
	void *vaddrs[3];
	u32 value;

	if (!other_bdf)
		SKIP(return, "no second device");
	other = vfio_pci_device_init(other_bdf, t->iommu);
	vfio_pci_cmd_set(other, PCI_COMMAND_MEMORY);
	bar = vfio_pci_largest_bar(other);
	if (bar < 0 || other->bars[bar].info.size < SZ_8M || !vfio_pci_bar_is_memory(other, bar))
		SKIP(vfio_pci_device_cleanup(other); return, "%s has no memory of 8 MiB",
		     other_bdf);

	fds[0] = export_pages(t, 0, SZ_8M);
	fds[1] = vfio_pci_dmabuf_export(other, bar, 0, SZ_8M, ZONE_DEVICE);
	for (i = 0; i < 2; i++)
		vaddrs[i] = mmap_bar(fds[i], SZ_8M, 0, 0);
	vaddrs[2] = t->ram;
	test_mixed(_metadata, t, vaddrs, SZ_4K);
	test_mixed(_metadata, t, vaddrs, SZ_64K);

	/* One of them goes, and takes nothing of the other one along. */
	vfio_pci_dmabuf_revoke(other, fds[1]);
	ASSERT_EQ(SIGBUS, try_read32(vaddrs[1], &value));
	ASSERT_EQ(SZ_8M, block_read(t, vaddrs[0], SZ_8M, 0));
	ASSERT_EQ(-EFAULT, block_read(t, vaddrs[1], SZ_8M, 0));

	vfio_pci_dmabuf_revoke(t->device, fds[0]);
	for (i = 0; i < 2; i++) {
		munmap_bar(vaddrs[i], SZ_8M);
		ASSERT_EQ(0, close(fds[i]));
	}
	vfio_pci_device_cleanup(other);
}

/* The default stays what it was: PFNs, which O_DIRECT cannot take. */
/*
 * One NVMe command, passed through as it is. All of its memory is mapped for DMA in the
 * way of its first page: of one kind, or not at all.
 */
static int nvme_read(struct odirect_test *t, void *vaddr, size_t size)
{
	struct nvme_passthru_cmd64 cmd = {
		.opcode = 0x02,
		.addr = (uintptr_t)vaddr,
		.data_len = size,
	};
	int block_size;

	ioctl_assert(t->block, BLKSSZGET, &block_size);
	cmd.nsid = ioctl(t->block, NVME_IOCTL_ID);
	cmd.cdw12 = size / block_size - 1;

	return ioctl(t->block, NVME_IOCTL_IO64_CMD, &cmd) ? -errno : 0;
}

TEST_F(odirect_block, nvme_command)
{
	struct odirect_test *t = &self->t;
	void *vaddr, *area;
	int fd;

	if (ioctl(t->block, NVME_IOCTL_ID) <= 0)
		SKIP(return, "the block device is not an NVMe namespace");

	/* RAM, the BAR, RAM. */
	area = mmap(NULL, 3 * SZ_64K, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	ASSERT_NE(MAP_FAILED, area);
	fd = export_pages(t, 0, SZ_2M);
	vaddr = mmap(area + SZ_64K, SZ_64K, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	ASSERT_EQ(area + SZ_64K, vaddr);
	block_fill(t, SZ_1M, 0, 121);
	pattern_fill(t->vaddr, SZ_64K, 122);

	ASSERT_EQ(0, nvme_read(t, vaddr, SZ_64K));
	ASSERT_EQ(SZ_64K, pattern_check(t->vaddr, SZ_64K, 121));
	ASSERT_EQ(0, nvme_read(t, area, SZ_64K));
	ASSERT_EQ(SZ_64K, pattern_check(area, SZ_64K, 121));

	pattern_fill(t->vaddr, SZ_64K, 122);
	ASSERT_EQ(-EINVAL, nvme_read(t, vaddr, 2 * SZ_64K));
	ASSERT_EQ(-EINVAL, nvme_read(t, area, 2 * SZ_64K));
	ASSERT_EQ(-EINVAL, nvme_read(t, area, 3 * SZ_64K));
	ASSERT_EQ(SZ_64K, pattern_check(t->vaddr, SZ_64K, 122));

	vfio_pci_dmabuf_revoke(t->device, fd);
	ASSERT_EQ(-EFAULT, nvme_read(t, vaddr, SZ_64K));
	ASSERT_EQ(0, munmap(area, 3 * SZ_64K));
	ASSERT_EQ(0, close(fd));
}

TEST_F(odirect_block, plain_is_refused)
{
	struct odirect_test *t = &self->t;
	void *vaddr;
	int fd;

	fd = vfio_pci_dmabuf_export(t->device, t->bar, 0, SZ_4M, 0);
	vaddr = mmap_bar(fd, SZ_4M, 0, 0);
	ASSERT_EQ(0, try_touch(vaddr, SZ_4M));
	ASSERT_EQ(-EFAULT, block_read(t, vaddr, SZ_64K, 0));
	ASSERT_EQ(-EFAULT, block_write(t, vaddr, SZ_64K, 0));
	ASSERT_EQ(-EFAULT, block_read(t, t->vaddr, SZ_64K, 0));
	ASSERT_EQ(-EFAULT, block_write(t, t->vaddr, SZ_64K, 0));
	munmap_bar(vaddr, SZ_4M);
	ASSERT_EQ(0, close(fd));
}

/*
 * What is done to a mapping must not cost a reference: the revoke would wait
 * for it for ever.
 */
FIXTURE(odirect_split) {
	struct odirect_test t;
};

FIXTURE_VARIANT(odirect_split) {
	void (*split)(struct odirect_test *test, void *vaddr);
};

#define SPLIT_SIZE SZ_8M
#define SPLIT_AT (SZ_2M + SZ_64K)

static void split_nothing(struct odirect_test *test, void *vaddr)
{
}

static void split_munmap(struct odirect_test *test, void *vaddr)
{
	VFIO_ASSERT_EQ(munmap(vaddr + SPLIT_AT, test->page), 0);
}

static void split_dontneed(struct odirect_test *test, void *vaddr)
{
	size_t page = test->page;

	VFIO_ASSERT_EQ(madvise(vaddr + SPLIT_AT, page, MADV_DONTNEED), 0);
	VFIO_ASSERT_EQ(madvise(vaddr, SZ_2M, MADV_DONTNEED), 0);
	VFIO_ASSERT_EQ(madvise(vaddr + SZ_4M - page, 2 * page, MADV_DONTNEED), 0);
}

static void split_dontneed_refault(struct odirect_test *test, void *vaddr)
{
	int i;

	for (i = 0; i < 50; i++) {
		split_dontneed(test, vaddr);
		VFIO_ASSERT_EQ(try_touch(vaddr, SPLIT_SIZE), 0);
	}
}

static void split_mprotect(struct odirect_test *test, void *vaddr)
{
	size_t page = test->page;

	VFIO_ASSERT_EQ(mprotect(vaddr + SPLIT_AT, page, PROT_READ), 0);
	VFIO_ASSERT_EQ(mprotect(vaddr + SZ_4M + page, page, PROT_NONE), 0);
}

/* What has moved away is gone in the end, as what was left behind will be. */
static void split_mremap(struct odirect_test *test, void *vaddr)
{
	void *target = mmap_reserve(SZ_2M, SZ_2M, test->page);

	VFIO_ASSERT_EQ(mremap(vaddr + SPLIT_AT, SZ_2M, SZ_2M,
			      MREMAP_MAYMOVE | MREMAP_FIXED, target),
		       target);
	VFIO_ASSERT_EQ(try_touch(target, SZ_2M), 0);
	munmap_bar(target, SZ_2M);
}

/* What has moved away stays, and is to be found where it is. */
static void split_mremap_keep(struct odirect_test *test, void *vaddr)
{
	test->moved = mmap_reserve(SZ_2M, SZ_2M, test->page);
	VFIO_ASSERT_EQ(mremap(vaddr + SPLIT_AT, SZ_2M, SZ_2M,
			      MREMAP_MAYMOVE | MREMAP_FIXED, test->moved),
		       test->moved);
	VFIO_ASSERT_EQ(try_touch(test->moved, SZ_2M), 0);
}

static void split_mlock(struct odirect_test *test, void *vaddr)
{
	/* Whether it is allowed does not matter here. */
	if (!mlock(vaddr + SPLIT_AT, test->page))
		munlock(vaddr + SPLIT_AT, test->page);
	if (!mlock(vaddr, SPLIT_SIZE))
		munlock(vaddr, SPLIT_SIZE);
}

static void split_advice(struct odirect_test *test, void *vaddr)
{
	static const int advice[] = {
		MADV_NOHUGEPAGE, MADV_HUGEPAGE, MADV_COLD, MADV_PAGEOUT, MADV_FREE,
		MADV_WILLNEED, MADV_COLLAPSE, MADV_POPULATE_READ, MADV_POPULATE_WRITE,
		MADV_REMOVE, MADV_MERGEABLE, MADV_DONTFORK, MADV_DOFORK,
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(advice); i++) {
		madvise(vaddr + SPLIT_AT, test->page, advice[i]);
		madvise(vaddr, SPLIT_SIZE, advice[i]);
		VFIO_ASSERT_EQ(try_touch(vaddr, SPLIT_SIZE), 0);
	}
}

static void split_fork(struct odirect_test *test, void *vaddr)
{
	int status, pid = fork();

	VFIO_ASSERT_GE(pid, 0);
	if (!pid) {
		if (try_touch(vaddr, SPLIT_SIZE))
			_exit(1);
		if (madvise(vaddr + SPLIT_AT, test->page, MADV_DONTNEED))
			_exit(2);
		/* The rest is left to the exit. */
		_exit(0);
	}
	VFIO_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	VFIO_ASSERT_EQ(status, 0);
}

FIXTURE_VARIANT_ADD(odirect_split, nothing) {
	.split = split_nothing,
};

FIXTURE_VARIANT_ADD(odirect_split, munmap) {
	.split = split_munmap,
};

FIXTURE_VARIANT_ADD(odirect_split, dontneed) {
	.split = split_dontneed,
};

FIXTURE_VARIANT_ADD(odirect_split, dontneed_refault) {
	.split = split_dontneed_refault,
};

FIXTURE_VARIANT_ADD(odirect_split, mprotect) {
	.split = split_mprotect,
};

FIXTURE_VARIANT_ADD(odirect_split, mremap) {
	.split = split_mremap,
};

FIXTURE_VARIANT_ADD(odirect_split, mremap_keep) {
	.split = split_mremap_keep,
};

FIXTURE_VARIANT_ADD(odirect_split, mlock) {
	.split = split_mlock,
};

FIXTURE_VARIANT_ADD(odirect_split, advice) {
	.split = split_advice,
};

FIXTURE_VARIANT_ADD(odirect_split, fork) {
	.split = split_fork,
};

FIXTURE_SETUP(odirect_split)
{
	const char *reason = odirect_test_setup(&self->t, false);

	if (reason)
		SKIP(return, "%s: %s", device_bdf, reason);
}

FIXTURE_TEARDOWN(odirect_split)
{
	odirect_test_teardown(&self->t);
}

static void test_split(struct __test_metadata *_metadata, struct odirect_test *t,
		       void (*split)(struct odirect_test *test, void *vaddr), bool suspend)
{
	void *vaddr;
	u32 value;
	int fd;

	fd = export_pages(t, 0, SPLIT_SIZE);
	vaddr = mmap_bar(fd, SPLIT_SIZE, 0, 0);
	ASSERT_EQ(0, try_touch(vaddr, SPLIT_SIZE));
	split(t, vaddr);

	if (suspend) {
		vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
		ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
		vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);
		ASSERT_EQ(0, try_read32(vaddr, &value));
		ASSERT_EQ(0, try_read32(vaddr + SPLIT_AT - t->page, &value));
		if (t->moved)
			ASSERT_EQ(0, try_touch(t->moved, SZ_2M));
	}

	/* Hangs if a reference was lost. */
	vfio_pci_dmabuf_revoke(t->device, fd);
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	ASSERT_EQ(SIGBUS, try_read32(vaddr + SPLIT_AT - t->page, &value));
	if (t->moved) {
		ASSERT_EQ(SIGBUS, try_read32(t->moved, &value));
		munmap_bar(t->moved, SZ_2M);
	}
	munmap_bar(vaddr, SPLIT_SIZE);
	ASSERT_EQ(0, close(fd));

	/* And nothing is in the way of the next one. */
	fd = export_pages(t, 0, SPLIT_SIZE);
	ASSERT_EQ(0, close(fd));
}

TEST_F(odirect_split, revoke)
{
	test_split(_metadata, &self->t, variant->split, false);
}

TEST_F(odirect_split, suspend)
{
	test_split(_metadata, &self->t, variant->split, true);
}

/* Closing waits for references as well. */
TEST_F(odirect_split, close)
{
	struct odirect_test *t = &self->t;
	void *vaddr;
	int fd;

	fd = export_pages(t, 0, SPLIT_SIZE);
	vaddr = mmap_bar(fd, SPLIT_SIZE, 0, 0);
	ASSERT_EQ(0, try_touch(vaddr, SPLIT_SIZE));
	variant->split(t, vaddr);

	munmap_bar(vaddr, SPLIT_SIZE);
	ASSERT_EQ(0, close(fd));
	if (t->moved) {
		ASSERT_EQ(-EBUSY, try_export_pages(t, t->bar, 0, SPLIT_SIZE));
		munmap_bar(t->moved, SZ_2M);
	}
	fd = export_pages(t, 0, SPLIT_SIZE);
	ASSERT_EQ(0, close(fd));
}

/*
 * A process that dumps core leaves the BAR out, and no reference behind. Where
 * cores go is a setting of the whole system, and put back whatever happens.
 */
#define CORE_PATTERN "/proc/sys/kernel/core_pattern"

static char core_pattern[256];
static char core_dir[64];
static char core_path[128];

static void core_end(void)
{
	write_text(CORE_PATTERN, core_pattern);
	unlink(core_path);
	rmdir(core_dir);
}

FIXTURE(odirect_core) {
	struct odirect_test t;
	struct guard guard;
};

FIXTURE_SETUP(odirect_core)
{
	const char *reason;
	ssize_t len;
	int fd;

	fd = open(CORE_PATTERN, O_RDONLY);
	if (fd < 0 && errno == ENOENT)
		SKIP(return, "this kernel dumps no core");
	ASSERT_GE(fd, 0);
	len = read(fd, core_pattern, sizeof(core_pattern) - 1);
	ASSERT_GE(len, 0);
	core_pattern[len] = '\0';
	close(fd);

	strcpy(core_dir, "/tmp/vfio_dmabuf_core.XXXXXX");
	ASSERT_NE(NULL, mkdtemp(core_dir));
	snprintf_assert(core_path, sizeof(core_path), "%s/core", core_dir);
	start_guard(&self->guard, core_end);

	reason = odirect_test_setup(&self->t, false);
	if (reason)
		SKIP(return, "%s: %s", device_bdf, reason);
	ASSERT_TRUE(write_text(CORE_PATTERN, core_path));
}

FIXTURE_TEARDOWN(odirect_core)
{
	stop_guard(&self->guard);
	odirect_test_teardown(&self->t);
}

/* Bytes of the memory at @vaddr that the core file holds, or -1. */
static ssize_t dumped_size(int core, const void *vaddr)
{
	struct elf64_phdr phdr;
	struct elf64_hdr ehdr;
	int i;

	VFIO_ASSERT_EQ(pread(core, &ehdr, sizeof(ehdr), 0), sizeof(ehdr));
	VFIO_ASSERT_EQ(memcmp(ehdr.e_ident, ELFMAG, SELFMAG), 0);
	VFIO_ASSERT_EQ(ehdr.e_type, ET_CORE);

	for (i = 0; i < ehdr.e_phnum; i++) {
		VFIO_ASSERT_EQ(pread(core, &phdr, sizeof(phdr),
				     ehdr.e_phoff + i * sizeof(phdr)),
			       sizeof(phdr));
		if (phdr.p_type == PT_LOAD &&
		    phdr.p_vaddr <= (uintptr_t)vaddr &&
		    phdr.p_vaddr + phdr.p_memsz > (uintptr_t)vaddr)
			return phdr.p_filesz;
	}

	return -1;
}

TEST_F_TIMEOUT(odirect_core, left_out, 60)
{
	const struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	int fd, pid, status, core, control, marker = 0x1234;
	struct odirect_test *t = &self->t;
	void *vaddr, *dumped;
	struct stat stat;

	fd = export_pages(t, 0, SZ_4M);
	vaddr = mmap_bar(fd, SZ_4M, 0, 0);
	ASSERT_EQ(0, try_touch(vaddr, SZ_4M));

	/* A file that is mapped like the buffer is, and not left out. */
	control = memfd_create("core", 0);
	ASSERT_GE(control, 0);
	ASSERT_EQ(0, ftruncate(control, t->page));
	dumped = mmap_bar(control, t->page, 0, 0);
	WRITE_ONCE(*(int *)dumped, marker);

	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		/* All kinds of memory, and little of the usual one. */
		VFIO_ASSERT_TRUE(write_text("/proc/self/coredump_filter", "0x1ff"));
		munmap_bar(t->ram, RAM_SIZE);
		VFIO_ASSERT_EQ(setrlimit(RLIMIT_CORE, &unlimited), 0);
		VFIO_ASSERT_EQ(try_touch(vaddr, SZ_4M), 0);
		abort();
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_TRUE(WIFSIGNALED(status));
	ASSERT_EQ(SIGABRT, WTERMSIG(status));
	ASSERT_TRUE(WCOREDUMP(status));

	core = open(core_path, O_RDONLY);
	ASSERT_GE(core, 0);
	ASSERT_EQ(0, fstat(core, &stat));
	TH_LOG("a core of %ld KiB", (long)stat.st_size / 1024);
	ASSERT_EQ(t->page, dumped_size(core, dumped));
	ASSERT_EQ(0, dumped_size(core, vaddr));
	ASSERT_EQ(0, dumped_size(core, vaddr + SZ_4M - t->page));
	ASSERT_EQ(0, dumped_size(core, t->vaddr));
	ASSERT_LT(stat.st_size, SZ_4M);
	ASSERT_EQ(0, close(core));

	vfio_pci_dmabuf_revoke(t->device, fd);
	munmap_bar(vaddr, SZ_4M);
	ASSERT_EQ(0, close(fd));
	munmap_bar(dumped, t->page);
	ASSERT_EQ(0, close(control));
}

enum {
	CHILD_READ,
	CHILD_IO,
};

struct child_data {
	struct odirect_test *t;
	void *vaddr;
};

static int io_child(void *arg, int what)
{
	struct child_data *data = arg;
	u32 value;
	int sig;

	if (what == CHILD_IO)
		return block_read(data->t, data->vaddr, SZ_1M, 0);

	sig = try_read32(data->vaddr, &value);
	return sig ? -sig : 0;
}

TEST_F_TIMEOUT(odirect_block, fork, 60)
{
	struct odirect_test *t = &self->t;
	struct child_data data = { .t = t };
	struct child child;
	u32 value;
	int fd;

	block_fill(t, SZ_1M, 0, 31);

	fd = export_pages(t, 0, SZ_4M);
	data.vaddr = mmap_bar(fd, SZ_4M, 0, 0);
	ASSERT_EQ(0, try_touch(data.vaddr, SZ_4M));
	start_child(&child, io_child, &data);

	ASSERT_EQ(0, ask_child(&child, CHILD_READ));
	ASSERT_EQ(SZ_1M, ask_child(&child, CHILD_IO));
	ASSERT_EQ(SZ_1M, pattern_check(data.vaddr, SZ_1M, 31));

	vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(-SIGBUS, ask_child(&child, CHILD_READ));
	ASSERT_EQ(-EFAULT, ask_child(&child, CHILD_IO));
	vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(SZ_1M, ask_child(&child, CHILD_IO));
	ASSERT_EQ(0, ask_child(&child, CHILD_READ));

	vfio_pci_dmabuf_revoke(t->device, fd);
	ASSERT_EQ(-SIGBUS, ask_child(&child, CHILD_READ));
	ASSERT_EQ(-EFAULT, ask_child(&child, CHILD_IO));
	ASSERT_EQ(SIGBUS, try_read32(data.vaddr, &value));
	stop_child(&child);

	munmap_bar(data.vaddr, SZ_4M);
	ASSERT_EQ(0, close(fd));
}

/*
 * The only user of a buffer is killed in the middle of its I/O. When it is gone nothing
 * is under way any more, and its memory is there for the next one.
 */
struct killed_io {
	struct odirect_test *t;
	void *vaddr;
	u64 *done;
};

static void *killed_io_thread(void *data)
{
	struct killed_io *io = data;

	for (;;) {
		VFIO_ASSERT_EQ(block_read(io->t, io->vaddr, SZ_4M, 0), SZ_4M);
		VFIO_ASSERT_EQ(block_write(io->t, io->vaddr, SZ_4M, SZ_32M), SZ_4M);
		WRITE_ONCE(*io->done, *io->done + 1);
	}
}

TEST_F_TIMEOUT(odirect_block, killed, 120)
{
	struct odirect_test *t = &self->t;
	struct killed_io ios[4];
	pthread_t thread;
	int fd, i, round, status;
	u64 *done, deadline;
	pid_t child;

	done = mmap(NULL, t->page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, done);
	block_fill(t, SZ_4M, 0, 36);
	for (round = 0; round < 10; round++) {
		pattern_fill(t->vaddr, SZ_16M, 37);
		fd = export_pages(t, 0, SZ_16M);
		child = fork();
		ASSERT_GE(child, 0);
		if (!child) {
			for (i = 0; i < ARRAY_SIZE(ios); i++) {
				ios[i].t = t;
				ios[i].vaddr = mmap_bar(fd, SZ_4M, i * SZ_4M, 0);
				ios[i].done = &done[i];
				VFIO_ASSERT_EQ(pthread_create(&thread, NULL, killed_io_thread,
							      &ios[i]), 0);
			}
			pause();
			_exit(1);
		}
		ASSERT_EQ(0, close(fd));
		/* As soon as one of them is busy, they all soon are. */
		deadline = milliseconds() + 20000;
		while (!READ_ONCE(done[round % ARRAY_SIZE(ios)]) && milliseconds() < deadline)
			usleep(100);
		ASSERT_GT(READ_ONCE(done[round % ARRAY_SIZE(ios)]), 0);
		usleep(random() % 20000);
		ASSERT_EQ(0, kill(child, SIGKILL));
		ASSERT_EQ(child, waitpid(child, &status, 0));
		ASSERT_TRUE(WIFSIGNALED(status));
		memset(done, 0, t->page);

		fd = export_pages(t, 0, SZ_16M);
		pattern_fill(t->vaddr, SZ_16M, 38);
		usleep(20000);
		ASSERT_EQ(SZ_16M, pattern_check(t->vaddr, SZ_16M, 38));
		ASSERT_EQ(0, close(fd));
	}
}

/* The device is closed while its memory is mapped and was used for I/O. */
TEST_F_TIMEOUT(odirect_block, device_close, 60)
{
	struct odirect_test *t = &self->t;
	void *vaddr;
	u32 value;
	int fd;

	fd = export_pages(t, 0, SZ_8M);
	vaddr = mmap_bar(fd, SZ_8M, 0, 0);
	ASSERT_EQ(SZ_8M, block_read(t, vaddr, SZ_8M, 0));

	vfio_pci_device_close(t->device);
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	ASSERT_EQ(-EFAULT, block_read(t, vaddr, SZ_8M, 0));
	ASSERT_EQ(ENODEV, mmap_errno(fd, SZ_8M, 0, PROT_READ, MAP_SHARED));

	/* The next user of the device can have the same range. */
	vfio_pci_device_cleanup(t->device);
	t->device = vfio_pci_device_init(device_bdf, t->iommu);
	vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, close(export_pages(t, 0, SZ_8M)));

	munmap_bar(vaddr, SZ_8M);
	ASSERT_EQ(0, close(fd));
	ASSERT_EQ(0, close(export_pages(t, 0, SZ_8M)));
}

/*
 * I/O, mmap() and faults all the time, while the BAR comes and goes.
 */
#define STORM_SIZE SZ_4M
#define STORM_SEED 41

struct storm {
	struct odirect_test *t;
	int fd;
	void *vaddr;
	bool write;
	bool stop;

	u64 good;
	u64 partial;
	u64 refused;
	ssize_t unexpected;
};

static void *io_thread(void *data)
{
	struct storm *storm = data;
	ssize_t ret;

	while (!READ_ONCE(storm->stop)) {
		if (storm->write)
			ret = block_write(storm->t, storm->vaddr, STORM_SIZE, SZ_16M);
		else
			ret = block_read(storm->t, storm->vaddr, STORM_SIZE, 0);

		if (ret == STORM_SIZE) {
			WRITE_ONCE(storm->good, storm->good + 1);
		} else if (ret > 0) {
			WRITE_ONCE(storm->partial, storm->partial + 1);
		} else if (ret == -EFAULT) {
			WRITE_ONCE(storm->refused, storm->refused + 1);
			/* Let the others have the processors. */
			usleep(100);
		} else {
			/* Nothing at all is not the end of the device either. */
			WRITE_ONCE(storm->unexpected, ret ?: -ENODATA);
		}
	}

	return NULL;
}

static void *mmap_thread(void *data)
{
	struct storm *storm = data;
	void *vaddr, *anon;
	u32 value;
	int sig;

	while (!READ_ONCE(storm->stop)) {
		anon = mmap(NULL, SZ_64K, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		vaddr = mmap(NULL, SZ_4M, PROT_READ | PROT_WRITE, MAP_SHARED, storm->fd, 0);
		if (vaddr == MAP_FAILED) {
			if (errno == ENODEV)
				WRITE_ONCE(storm->refused, storm->refused + 1);
			else
				WRITE_ONCE(storm->unexpected, -errno);
		} else {
			sig = try_read32(vaddr + SZ_2M, &value);
			if (!sig)
				WRITE_ONCE(storm->good, storm->good + 1);
			else if (sig != SIGBUS)
				WRITE_ONCE(storm->unexpected, sig);
			munmap(vaddr, SZ_4M);
		}
		if (anon != MAP_FAILED)
			munmap(anon, SZ_64K);
	}

	return NULL;
}

/*
 * The block device's side fails while I/O is in flight: what was pinned is let go
 * of when the I/O has its end, whichever that is, and revoke waits for no more.
 */
struct disk_failure {
	const char *name;
	/* False if the kernel has no means for it. */
	bool (*begin)(void);
	void (*end)(void);
	/* I/O can fail of it, not only take longer. */
	bool visible;
	/* The block device is another one at the end. */
	bool replaced;
	/* Revoke has to wait for it, ms. */
	u64 wait;
};

/* An attribute of the block device, or of its controller (device/...). */
static void disk_attribute(char *path, size_t size, const char *attribute)
{
	const char *name = strrchr(block_path, '/');

	snprintf_assert(path, size, "/sys/block/%s/%s", name ? name + 1 : block_path,
			attribute);
}

static bool write_disk(const char *attribute, const char *text)
{
	char path[PATH_MAX];

	disk_attribute(path, sizeof(path), attribute);

	return write_text(path, text);
}

/* What the disk has to be given back at the end, and empty if it has not got it. */
static char disk_timeout[16];
static char disk_bdf[16];

static void remember_disk(void)
{
	char path[PATH_MAX], target[PATH_MAX] = {};
	FILE *file;

	disk_timeout[0] = '\0';
	disk_attribute(path, sizeof(path), "queue/io_timeout");
	file = fopen(path, "r");
	if (file) {
		if (fscanf(file, "%15s", disk_timeout) != 1)
			disk_timeout[0] = '\0';
		fclose(file);
	}

	disk_attribute(path, sizeof(path), "device/device");
	disk_bdf[0] = '\0';
	if (realpath(path, target))
		sscanf(strrchr(target, '/') + 1, "%15[0-9a-f:.]", disk_bdf);
}

/* How often, in percent, and how many times (-1: always), without a word in the log. */
static bool write_failure(const char *name, const char *percent, const char *times)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "/sys/kernel/debug/%s/verbose", name);
	if (!write_text(path, "0"))
		return false;
	snprintf(path, sizeof(path), "/sys/kernel/debug/%s/times", name);
	if (!write_text(path, times))
		return false;
	snprintf(path, sizeof(path), "/sys/kernel/debug/%s/probability", name);

	return write_text(path, percent);
}

static bool submission_begin(void)
{
	return write_failure("fail_make_request", "30", "-1") && write_disk("make-it-fail", "1");
}

static void submission_end(void)
{
	write_failure("fail_make_request", "0", "-1");
	write_disk("make-it-fail", "0");
}

/* How many of the times that write_failure() has set are left. */
static int failures_left(const char *name)
{
	char path[PATH_MAX];
	int left = -1, found;
	FILE *file;

	snprintf_assert(path, sizeof(path), "/sys/kernel/debug/%s/times", name);
	file = fopen(path, "r");
	VFIO_ASSERT_NOT_NULL(file);
	found = fscanf(file, "%d", &left);
	VFIO_ASSERT_EQ(found, 1);
	fclose(file);

	return left;
}

/*
 * Completions are lost: the driver has to find out, and what it does is up to it. It
 * may reset the disk, for which others have to arrive: a disk whose requests time out
 * while it is reset is given up. So all are lost before.
 */
static bool timeout_begin(void)
{
	u64 deadline;

	if (!disk_timeout[0] || !write_failure("fail_io_timeout", "0", "-1") ||
	    !write_disk("queue/io_timeout", "1000"))
		return false;
	/* Those that have begun go on with the old one. */
	usleep(500000);

	if (!write_disk("io-timeout-fail", "1") ||
	    !write_failure("fail_io_timeout", "100", "4"))
		return false;

	deadline = milliseconds() + 10000;
	while (failures_left("fail_io_timeout")) {
		VFIO_ASSERT_LT(milliseconds(), deadline);
		usleep(1000);
	}

	return true;
}

static void timeout_end(void)
{
	write_failure("fail_io_timeout", "0", "-1");
	write_disk("io-timeout-fail", "0");
	write_disk("queue/io_timeout", disk_timeout);
}

/* Of NVMe: all that is in flight is cancelled, and begun again afterwards. */
static pthread_t resetter;
static bool resetting;

static void *reset_controllers(void *data)
{
	while (READ_ONCE(resetting)) {
		write_disk("device/reset_controller", "1");
		usleep(20000);
	}

	return NULL;
}

static bool controller_begin(void)
{
	if (!write_disk("device/reset_controller", "1"))
		return false;
	WRITE_ONCE(resetting, true);
	VFIO_ASSERT_EQ(pthread_create(&resetter, NULL, reset_controllers, NULL), 0);

	return true;
}

static void controller_end(void)
{
	if (!READ_ONCE(resetting))
		return;
	WRITE_ONCE(resetting, false);
	VFIO_ASSERT_EQ(pthread_join(resetter, NULL), 0);
}

/*
 * Its driver is unbound, while the revoke waits for what is in flight. That comes to its
 * end; whatever is begun later fails.
 */
#define DISK_DRIVER "/sys/bus/pci/drivers/nvme/"

static pthread_t remover;
static bool removing;

static void *remove_disk(void *data)
{
	VFIO_ASSERT_TRUE(write_text(DISK_DRIVER "unbind", disk_bdf));

	return NULL;
}

static bool removal_begin(void)
{
	char path[PATH_MAX];

	snprintf_assert(path, sizeof(path), DISK_DRIVER "%s", disk_bdf);
	if (!disk_bdf[0] || access(path, F_OK))
		return false;
	removing = true;
	VFIO_ASSERT_EQ(pthread_create(&remover, NULL, remove_disk, NULL), 0);

	return true;
}

static void removal_end(void)
{
	char path[PATH_MAX];

	if (removing)
		VFIO_ASSERT_EQ(pthread_join(remover, NULL), 0);
	removing = false;
	snprintf_assert(path, sizeof(path), DISK_DRIVER "%s", disk_bdf);
	if (disk_bdf[0] && access(path, F_OK))
		write_text(DISK_DRIVER "bind", disk_bdf);
}

static const struct disk_failure submission_fails = {
	.name = "CONFIG_FAIL_MAKE_REQUEST",
	.begin = submission_begin,
	.end = submission_end,
	.visible = true,
};

static const struct disk_failure completion_lost = {
	.name = "CONFIG_FAIL_IO_TIMEOUT",
	.begin = timeout_begin,
	.end = timeout_end,
	.wait = 500,
};

static const struct disk_failure controller_reset = {
	.name = "a controller that can be reset",
	.begin = controller_begin,
	.end = controller_end,
};

static const struct disk_failure disk_removed = {
	.name = "a disk of the nvme driver",
	.begin = removal_begin,
	.end = removal_end,
	.visible = true,
	.replaced = true,
};

#define FAILING_SIZE SZ_2M
#define FAILING_SEED 71

struct failing_io {
	struct odirect_test *t;
	void *vaddr;
	int nr;
	bool write;
	bool stop;

	u64 good;
	u64 failed;
	u64 refused;
	u64 wrong;
};

static void *failing_io_thread(void *data)
{
	struct failing_io *io = data;
	off_t at = io->write ? SZ_32M + io->nr * FAILING_SIZE : 0;
	char arrived[SZ_4K];
	ssize_t ret;

	while (!READ_ONCE(io->stop)) {
		if (io->write)
			ret = block_write(io->t, io->vaddr, FAILING_SIZE, at);
		else
			ret = block_read(io->t, io->vaddr, FAILING_SIZE, at);

		if (ret == FAILING_SIZE) {
			WRITE_ONCE(io->good, io->good + 1);
			/* What has been read is right, unless it is gone already. */
			if (!io->write && !try_memcpy(arrived, io->vaddr, SZ_4K) &&
			    pattern_check(arrived, SZ_4K, FAILING_SEED) != SZ_4K)
				io->wrong++;
		} else if (ret == -EFAULT) {
			WRITE_ONCE(io->refused, io->refused + 1);
			usleep(1000);
		} else {
			WRITE_ONCE(io->failed, io->failed + 1);
		}
	}

	return NULL;
}

FIXTURE(odirect_failing) {
	struct odirect_test t;
	const struct disk_failure *failure;
	struct guard guard;
};

FIXTURE_VARIANT(odirect_failing) {
	const struct disk_failure *failure;
};

FIXTURE_VARIANT_ADD(odirect_failing, submission) {
	.failure = &submission_fails,
};

FIXTURE_VARIANT_ADD(odirect_failing, completion) {
	.failure = &completion_lost,
};

FIXTURE_VARIANT_ADD(odirect_failing, controller) {
	.failure = &controller_reset,
};

FIXTURE_VARIANT_ADD(odirect_failing, removal) {
	.failure = &disk_removed,
};

FIXTURE_SETUP(odirect_failing)
{
	const char *reason;

	if (!block_path)
		SKIP(return, "VFIO_SELFTESTS_BLKDEV is not set");
	remember_disk();
	self->failure = variant->failure;
	start_guard(&self->guard, self->failure->end);

	reason = odirect_test_setup(&self->t, true);
	if (reason)
		SKIP(return, "%s: %s", device_bdf, reason);
}

FIXTURE_TEARDOWN(odirect_failing)
{
	/* A disk that is in use keeps its name from its successor. */
	if (self->t.block >= 0)
		close(self->t.block);
	self->t.block = -1;
	stop_guard(&self->guard);
	odirect_test_teardown(&self->t);
}

/* What has taken the block device's place. */
static void odirect_test_reopen(struct odirect_test *test)
{
	u64 deadline = milliseconds() + 20000, size;

	do {
		usleep(10000);
		test->block = open(block_path, O_RDWR | O_DIRECT);
	} while (test->block < 0 && milliseconds() < deadline);
	VFIO_ASSERT_GE(test->block, 0, "%s has not come back\n", block_path);
	ioctl_assert(test->block, BLKGETSIZE64, &size);
	VFIO_ASSERT_EQ(size, test->block_size);
}

TEST_F_TIMEOUT(odirect_failing, revoke, 240)
{
	struct odirect_test *t = &self->t;
	struct failing_io ios[4];
	pthread_t threads[4];
	u64 start, deadline, slowest = 0, sum[3] = {};
	int fd, i, round;

	block_fill(t, FAILING_SIZE, 0, FAILING_SEED);
	for (round = 0; round < 4; round++) {
		memset(ios, 0, sizeof(ios));
		fd = export_pages(t, 0, SZ_8M);
		for (i = 0; i < ARRAY_SIZE(ios); i++) {
			ios[i].t = t;
			ios[i].vaddr = mmap_bar(fd, FAILING_SIZE, i * FAILING_SIZE, 0);
			ios[i].nr = i;
			ios[i].write = i & 1;
			ASSERT_EQ(0, pthread_create(&threads[i], NULL, failing_io_thread, &ios[i]));
		}

		usleep(50000);
		if (!self->failure->begin()) {
			ASSERT_EQ(0, round);
			for (i = 0; i < ARRAY_SIZE(ios); i++) {
				WRITE_ONCE(ios[i].stop, true);
				ASSERT_EQ(0, pthread_join(threads[i], NULL));
			}
			SKIP(return, "the kernel or the disk lacks %s", self->failure->name);
		}
		usleep(round * 100000);

		start = milliseconds();
		vfio_pci_dmabuf_revoke(t->device, fd);
		slowest = max(slowest, milliseconds() - start);

		if (!self->failure->replaced)
			self->failure->end();
		for (i = 0; i < ARRAY_SIZE(ios); i++) {
			/* With no disk it does not come that far. */
			deadline = milliseconds() + 20000;
			while (!self->failure->replaced && !READ_ONCE(ios[i].refused) &&
			       milliseconds() < deadline)
				usleep(10000);
			if (!self->failure->replaced)
				ASSERT_GT(ios[i].refused, 0);
			WRITE_ONCE(ios[i].stop, true);
			ASSERT_EQ(0, pthread_join(threads[i], NULL));
			ASSERT_EQ(0, ios[i].wrong);
			sum[0] += ios[i].good;
			sum[1] += ios[i].failed;
			sum[2] += ios[i].refused;
			munmap_bar(ios[i].vaddr, FAILING_SIZE);
		}
		ASSERT_EQ(0, close(fd));
		if (self->failure->replaced) {
			ASSERT_EQ(0, close(t->block));
			self->failure->end();
			odirect_test_reopen(t);
		}
		/* The pages are there for another one, and the disk for everybody. */
		ASSERT_EQ(0, close(export_pages(t, 0, SZ_8M)));
		ASSERT_EQ(FAILING_SIZE, block_check(t, FAILING_SIZE, 0, FAILING_SEED));
	}

	TH_LOG("%lu good, %lu failed, %lu refused, revoke took %lu ms at most",
	       (unsigned long)sum[0], (unsigned long)sum[1], (unsigned long)sum[2],
	       (unsigned long)slowest);
	ASSERT_GT(sum[0], 0);
	if (self->failure->visible)
		ASSERT_GT(sum[1], 0);
	ASSERT_GE(slowest, self->failure->wait);
	/* Some timeouts of a second each. */
	ASSERT_LT(slowest, 30000);
}

FIXTURE(odirect_storm) {
	struct odirect_test t;
	const struct vfio_pci_suspend *suspend;
};

FIXTURE_VARIANT(odirect_storm) {
	const struct vfio_pci_suspend *suspend;
};

FIXTURE_VARIANT_ADD(odirect_storm, memory) {
	.suspend = &vfio_pci_suspend_memory,
};

FIXTURE_VARIANT_ADD(odirect_storm, d3) {
	.suspend = &vfio_pci_suspend_d3,
};

FIXTURE_VARIANT_ADD(odirect_storm, low_power) {
	.suspend = &vfio_pci_suspend_low_power,
};

FIXTURE_SETUP(odirect_storm)
{
	const char *reason = odirect_test_setup(&self->t, true);

	self->suspend = variant->suspend;
	if (reason)
		SKIP(return, "%s: %s", device_bdf, reason);
	if (!self->suspend->supported(self->t.device))
		SKIP(return, "%s has no %s", device_bdf, self->suspend->name);
}

FIXTURE_TEARDOWN(odirect_storm)
{
	odirect_test_teardown(&self->t);
}

/* Quiet first: what is refused when, and what is the same afterwards. */
TEST_F_TIMEOUT(odirect_storm, calm, 60)
{
	struct odirect_test *t = &self->t;
	void *vaddr;
	u32 value;
	int fd;

	block_fill(t, SZ_4M, 0, 51);
	self->suspend->suspend(t->device);
	fd = export_pages(t, 0, SZ_4M);
	vaddr = mmap_bar(fd, SZ_4M, 0, 0);
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	ASSERT_EQ(-EFAULT, block_read(t, vaddr, SZ_4M, 0));

	self->suspend->resume(t->device);
	ASSERT_EQ(SZ_4M, block_read(t, vaddr, SZ_4M, 0));
	ASSERT_EQ(SZ_4M, pattern_check(vaddr, SZ_4M, 51));

	self->suspend->suspend(t->device);
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	ASSERT_EQ(-EFAULT, block_read(t, vaddr, SZ_4M, 0));
	ASSERT_EQ(-EFAULT, block_write(t, vaddr, SZ_4M, 0));
	ASSERT_EQ(-EBUSY, try_export_pages(t, t->bar, 0, SZ_4M));
	self->suspend->resume(t->device);
	ASSERT_EQ(SZ_4M, pattern_check(vaddr, SZ_4M, 51));
	ASSERT_EQ(SZ_4M, block_write(t, vaddr, SZ_4M, SZ_4M));
	ASSERT_EQ(SZ_4M, block_check(t, SZ_4M, SZ_4M, 51));

	self->suspend->suspend(t->device);
	vfio_pci_dmabuf_revoke(t->device, fd);
	self->suspend->resume(t->device);
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	ASSERT_EQ(-EFAULT, block_read(t, vaddr, SZ_4M, 0));
	munmap_bar(vaddr, SZ_4M);
	ASSERT_EQ(0, close(fd));
}

static void storm(struct __test_metadata *_metadata, struct odirect_test *t,
		  const struct vfio_pci_suspend *suspend, int rounds)
{
	struct storm storms[3] = {};
	pthread_t threads[3];
	u64 good, start;
	void *vaddr;
	u32 value;
	int fd, i;

	/* The same bytes on both sides: they stay so whatever is cut short. */
	block_fill(t, STORM_SIZE, 0, STORM_SEED);
	block_fill(t, STORM_SIZE, SZ_16M, STORM_SEED);
	fd = export_pages(t, 0, SZ_16M);
	vaddr = mmap_bar(fd, SZ_16M, 0, 0);
	pattern_fill(vaddr, STORM_SIZE, STORM_SEED);
	pattern_fill(vaddr + STORM_SIZE, STORM_SIZE, STORM_SEED);

	for (i = 0; i < 3; i++) {
		storms[i].t = t;
		storms[i].fd = fd;
		storms[i].vaddr = vaddr + (i == 1 ? STORM_SIZE : 0);
		storms[i].write = i == 1;
		ASSERT_EQ(0, pthread_create(&threads[i], NULL,
					    i == 2 ? mmap_thread : io_thread, &storms[i]));
	}

	for (i = 0; i < rounds; i++) {
		/* Every now and then a transfer gets through as a whole. */
		start = READ_ONCE(storms[i & 1].good);
		while (i % 10 == 0 && READ_ONCE(storms[i & 1].good) == start)
			usleep(1000);

		suspend->suspend(t->device);
		ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
		ASSERT_EQ(SIGBUS, try_read32(vaddr + STORM_SIZE, &value));
		usleep(random() % 2000);
		suspend->resume(t->device);
		ASSERT_EQ(0, try_read32(vaddr, &value));
		usleep(random() % 5000);
	}

	ASSERT_EQ(STORM_SIZE, pattern_check(vaddr, STORM_SIZE, STORM_SEED));
	ASSERT_EQ(STORM_SIZE, pattern_check(t->vaddr, STORM_SIZE, STORM_SEED));

	vfio_pci_dmabuf_revoke(t->device, fd);
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));

	/* From here on the memory is somebody else's. */
	pattern_fill(t->vaddr, 2 * STORM_SIZE, 77);
	good = READ_ONCE(storms[0].good);
	start = READ_ONCE(storms[0].refused);
	usleep(200000);
	ASSERT_EQ(2 * STORM_SIZE, pattern_check(t->vaddr, 2 * STORM_SIZE, 77));
	ASSERT_LE(READ_ONCE(storms[0].good), good + 1);
	ASSERT_GT(READ_ONCE(storms[0].refused), start);

	for (i = 0; i < 3; i++)
		WRITE_ONCE(storms[i].stop, true);
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, pthread_join(threads[i], NULL));
		TH_LOG("%s: %lu whole, %lu in part, %lu refused",
		       i == 2 ? "mmap" : i ? "write" : "read",
		       (unsigned long)storms[i].good, (unsigned long)storms[i].partial,
		       (unsigned long)storms[i].refused);
		ASSERT_EQ(0, storms[i].unexpected);
		ASSERT_GT(storms[i].good, 0);
		ASSERT_GT(storms[i].refused, 0);
	}

	/* What has reached the disk was the buffer's, never the next owner's. */
	ASSERT_EQ(STORM_SIZE, block_check(t, STORM_SIZE, SZ_16M, STORM_SEED));
	ASSERT_EQ(-EFAULT, block_read(t, vaddr, SZ_64K, 0));
	ASSERT_EQ(-EFAULT, block_write(t, vaddr, SZ_64K, 0));
	ASSERT_EQ(ENODEV, mmap_errno(fd, t->page, 0, PROT_READ, MAP_SHARED));
	munmap_bar(vaddr, SZ_16M);
	ASSERT_EQ(0, close(fd));
}

TEST_F_TIMEOUT(odirect_storm, suspend, 240)
{
	/* D3 takes its time, there and back. */
	storm(_metadata, &self->t, self->suspend,
	      self->suspend == &vfio_pci_suspend_d3 ? 20 : 100);
}

/* The same, with resets. */
static bool suspend_reset_supported(struct vfio_pci_device *device)
{
	return vfio_pci_can_reset(device);
}

static void suspend_reset(struct vfio_pci_device *device)
{
	VFIO_ASSERT_EQ(vfio_pci_any_reset(device), 0);
	vfio_pci_suspend_memory.suspend(device);
}

static void resume_reset(struct vfio_pci_device *device)
{
	vfio_pci_suspend_memory.resume(device);
	VFIO_ASSERT_EQ(vfio_pci_any_reset(device), 0);
}

static const struct vfio_pci_suspend vfio_pci_suspend_reset = {
	.name = "reset",
	.supported = suspend_reset_supported,
	.suspend = suspend_reset,
	.resume = resume_reset,
};

TEST_F_TIMEOUT(odirect_block, storm_reset, 240)
{
	if (!vfio_pci_suspend_reset.supported(self->t.device))
		SKIP(return, "%s cannot be reset", device_bdf);

	storm(_metadata, &self->t, &vfio_pci_suspend_reset, 10);
}

/* And with resets that somebody else does. */
static bool sysfs_reset_supported(struct vfio_pci_device *device)
{
	return vfio_pci_sysfs_reset(device) != -ENOENT;
}

static void suspend_sysfs_reset(struct vfio_pci_device *device)
{
	VFIO_ASSERT_EQ(vfio_pci_sysfs_reset(device), 0);
	vfio_pci_suspend_memory.suspend(device);
}

static void resume_sysfs_reset(struct vfio_pci_device *device)
{
	vfio_pci_suspend_memory.resume(device);
	VFIO_ASSERT_EQ(vfio_pci_sysfs_reset(device), 0);
}

static const struct vfio_pci_suspend vfio_pci_suspend_sysfs_reset = {
	.name = "reset by others",
	.supported = sysfs_reset_supported,
	.suspend = suspend_sysfs_reset,
	.resume = resume_sysfs_reset,
};

TEST_F_TIMEOUT(odirect_block, storm_reset_by_others, 240)
{
	if (!vfio_pci_suspend_sysfs_reset.supported(self->t.device))
		SKIP(return, "%s cannot be reset", device_bdf);

	storm(_metadata, &self->t, &vfio_pci_suspend_sysfs_reset, 10);
}

/*
 * How many pages of the pieces of a read have arrived? One has so as a whole,
 * or not at all.
 */
static int count_arrived(struct __test_metadata *_metadata, struct odirect_test *t,
			 size_t piece, u64 new, u64 old)
{
	size_t offset, at;
	int arrived = 0;

	for (offset = 0; offset < SZ_16M; offset += piece) {
		for (at = 0; at < piece / 2; at += SZ_4K) {
			void *vaddr = t->vaddr + offset + at;
			u64 words = (offset / 2 + at) / sizeof(u64);

			if (pattern_check(vaddr, SZ_4K, new + words) == SZ_4K) {
				arrived++;
				continue;
			}

			words = (offset + at) / sizeof(u64);
			ASSERT_EQ(SZ_4K, pattern_check(vaddr, SZ_4K, old + words)) {
				TH_LOG("half a page at %#zx", offset + at);
			}
		}
	}

	return arrived;
}

/*
 * Revoke meets an I/O that holds pins already and has faults before it, as well
 * as a third thread in mmap(). Over and over, at random moments.
 */
struct big_io {
	struct odirect_test *t;
	void *vaddr;
	bool write;
	ssize_t ret;
	struct iovec iov[1024];
};

static void *big_io_thread(void *data)
{
	struct big_io *io = data;
	ssize_t ret;

	if (io->write)
		ret = pwritev(io->t->block, io->iov, ARRAY_SIZE(io->iov), SZ_16M);
	else
		ret = preadv(io->t->block, io->iov, ARRAY_SIZE(io->iov), 0);
	io->ret = ret < 0 ? -errno : ret;

	return NULL;
}

TEST_F_TIMEOUT(odirect_block, revoke_in_flight, 240)
{
	struct odirect_test *t = &self->t;
	size_t size = SZ_16M, piece = size / 1024;
	struct storm mapper = { .t = t };
	const u64 new = 61, old = 1ULL << 40;
	u64 whole = 0, part = 0, none = 0, cut = 0;
	static struct big_io io;
	pthread_t threads[2];
	struct timespec delay = {};
	u64 deadline = milliseconds() + 120000;
	int round, fd, i, arrived;
	long longest = 20000000;
	u32 value;
	u64 *canary;

	block_fill(t, size, 0, new);
	block_fill(t, size, SZ_16M, new);
	srandom(2);

	/* It is not over before it has met the one case that matters most. */
	for (round = 0; round < 60 || (!cut && milliseconds() < deadline); round++) {
		fd = export_pages(t, 0, size);
		io.t = t;
		io.vaddr = mmap_bar(fd, size, 0, round % 3 ? 0 : t->page);
		io.write = round & 1;
		pattern_fill(t->vaddr, size, old);

		/* Each piece is half of what it could be: no two make one. */
		for (i = 0; i < ARRAY_SIZE(io.iov); i++) {
			io.iov[i].iov_base = io.vaddr + i * piece;
			io.iov[i].iov_len = piece / 2;
		}

		/* Some of it is mapped before, most is not. */
		for (i = 0; i < 4; i++)
			ASSERT_EQ(0, try_read32(io.vaddr + random() % (size / t->page) * t->page,
						&value));

		mapper.fd = fd;
		WRITE_ONCE(mapper.stop, false);
		ASSERT_EQ(0, pthread_create(&threads[0], NULL, big_io_thread, &io));
		ASSERT_EQ(0, pthread_create(&threads[1], NULL, mmap_thread, &mapper));

		delay.tv_nsec = random() % longest;
		nanosleep(&delay, NULL);
		vfio_pci_dmabuf_revoke(t->device, fd);
		ASSERT_EQ(SIGBUS, try_read32(io.vaddr, &value));

		/* No DMA comes late. */
		if (!io.write) {
			arrived = count_arrived(_metadata, t, piece, new, old);
			if (arrived && arrived < size / 2 / SZ_4K)
				cut++;
		}
		for (i = 0; i < 1024; i++) {
			canary = t->vaddr + i * piece;
			WRITE_ONCE(*canary, 0xca9a51);
		}
		ASSERT_EQ(0, pthread_join(threads[0], NULL));
		WRITE_ONCE(mapper.stop, true);
		ASSERT_EQ(0, pthread_join(threads[1], NULL));
		for (i = 0; i < 1024; i++) {
			canary = t->vaddr + i * piece;
			ASSERT_EQ(0xca9a51, READ_ONCE(*canary)) {
				TH_LOG("round %d, piece %d", round, i);
			}
		}

		/* Neither too late nor too early: stay where both can be. */
		if (io.ret == size / 2) {
			whole++;
			longest = max(longest - longest / 8, 20000L);
		} else if (io.ret > 0) {
			part++;
		} else {
			ASSERT_EQ(-EFAULT, io.ret);
			none++;
			longest = min(longest + longest / 8, 900000000L);
		}
		ASSERT_EQ(0, mapper.unexpected);
		munmap_bar(io.vaddr, size);
		ASSERT_EQ(0, close(fd));
	}

	TH_LOG("%lu whole, %lu in part, %lu refused; %lu reads were cut in the middle",
	       (unsigned long)whole, (unsigned long)part, (unsigned long)none,
	       (unsigned long)cut);
	ASSERT_GT(part + none, 0);
	ASSERT_GT(cut, 0);
}

/*
 * A block device that cannot reach the BAR: the pages are pinned and the I/O
 * is built before anybody notices.
 */
FIXTURE(odirect_refused) {
	struct odirect_test t;
};

FIXTURE_SETUP(odirect_refused)
{
	const char *reason = odirect_test_setup(&self->t, false);

	if (reason)
		SKIP(return, "%s: %s", device_bdf, reason);
	if (!block_path)
		SKIP(return, "VFIO_SELFTESTS_BLKDEV is not set");
	if (!no_p2p)
		SKIP(return, "the block device reaches the BAR");
}

FIXTURE_TEARDOWN(odirect_refused)
{
	odirect_test_teardown(&self->t);
}

/* By the block layer or by the DMA API, not by who looks for the pages. */
static bool is_refused(ssize_t ret)
{
	return ret == -EINVAL || ret == -EREMOTEIO;
}

TEST_F_TIMEOUT(odirect_refused, io, 60)
{
	struct odirect_test *t = &self->t;
	const size_t sizes[] = { SZ_4K, SZ_64K, SZ_8M };
	const size_t offset = SZ_2M - SZ_4K;
	struct iovec iov[2];
	ssize_t ret;
	void *vaddr;
	u64 start;
	u32 value;
	int fd, i;

	block_fill(t, SZ_8M, 0, 101);
	fd = export_pages(t, 0, SZ_16M);
	vaddr = mmap_bar(fd, SZ_16M, 0, 0);
	pattern_fill(t->vaddr, SZ_16M, 102);

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		ret = block_read(t, vaddr + offset, sizes[i], 0);
		EXPECT_TRUE(is_refused(ret)) {
			TH_LOG("read of %#zx: %zd", sizes[i], ret);
		}
		ret = block_write(t, vaddr + offset, sizes[i], 0);
		EXPECT_TRUE(is_refused(ret)) {
			TH_LOG("write of %#zx: %zd", sizes[i], ret);
		}

		/* The same is possible with RAM. */
		ASSERT_EQ(sizes[i], block_check(t, sizes[i], 0, 101));
	}

	ASSERT_EQ(SZ_16M, pattern_check(t->vaddr, SZ_16M, 102));
	ASSERT_EQ(SZ_8M, block_check(t, SZ_8M, 0, 101));

	/* What begins in RAM may end in the page cache, and with a copy by the CPU. */
	iov[0] = (struct iovec) { t->ram, SZ_64K };
	iov[1] = (struct iovec) { vaddr + offset, SZ_64K };
	ret = preadv(t->block, iov, 2, 0);
	if (ret == 2 * SZ_64K) {
		ASSERT_EQ(SZ_64K, pattern_check(t->vaddr + offset, SZ_64K,
						101 + SZ_64K / sizeof(u64)));
		pattern_fill(t->vaddr, SZ_16M, 102);
	} else if (ret != SZ_64K) {
		ASSERT_EQ(-1, ret);
		ASSERT_TRUE(is_refused(-errno));
	}

	/* Nothing has been left behind that would have to be waited for. */
	vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(SIGBUS, try_read32(vaddr + offset, &value));
	ASSERT_EQ(-EFAULT, block_read(t, vaddr + offset, SZ_64K, 0));
	vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, try_touch(vaddr, SZ_16M));

	ASSERT_TRUE(is_refused(block_read(t, vaddr + offset, SZ_8M, 0)));
	start = milliseconds();
	vfio_pci_dmabuf_revoke(t->device, fd);
	ASSERT_LT(milliseconds() - start, 5000);
	ASSERT_EQ(SIGBUS, try_read32(vaddr + offset, &value));
	ASSERT_EQ(-EFAULT, block_read(t, vaddr + offset, SZ_64K, 0));
	ASSERT_EQ(SZ_16M, pattern_check(t->vaddr, SZ_16M, 102));

	munmap_bar(vaddr, SZ_16M);
	ASSERT_EQ(0, close(fd));
	ASSERT_EQ(0, close(export_pages(t, 0, SZ_16M)));
}

static void *refused_thread(void *data)
{
	struct storm *storm = data;
	ssize_t ret;

	while (!READ_ONCE(storm->stop)) {
		if (storm->write)
			ret = block_write(storm->t, storm->vaddr, SZ_1M, SZ_16M);
		else
			ret = block_read(storm->t, storm->vaddr, SZ_1M, 0);

		if (is_refused(ret))
			WRITE_ONCE(storm->refused, storm->refused + 1);
		else if (ret != -EFAULT)
			WRITE_ONCE(storm->unexpected, ret ?: -ENODATA);
	}

	return NULL;
}

/* The same all the time, while the BAR comes and goes. */
TEST_F_TIMEOUT(odirect_refused, storm, 120)
{
	struct odirect_test *t = &self->t;
	struct storm storms[2] = {};
	pthread_t threads[2];
	void *vaddr;
	u32 value;
	u64 start;
	int fd, i;

	block_fill(t, SZ_1M, 0, 103);
	block_fill(t, SZ_1M, SZ_16M, 104);
	fd = export_pages(t, 0, SZ_4M);
	vaddr = mmap_bar(fd, SZ_4M, 0, 0);
	pattern_fill(t->vaddr, SZ_4M, 105);

	for (i = 0; i < 2; i++) {
		storms[i].t = t;
		storms[i].vaddr = vaddr + i * SZ_2M;
		storms[i].write = i;
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, refused_thread, &storms[i]));
	}

	for (i = 0; i < 50; i++) {
		start = READ_ONCE(storms[i & 1].refused);
		while (i % 10 == 0 && READ_ONCE(storms[i & 1].refused) == start &&
		       !READ_ONCE(storms[i & 1].unexpected))
			usleep(1000);

		vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
		ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
		vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);
		ASSERT_EQ(0, try_read32(vaddr, &value));
		usleep(random() % 5000);
	}

	vfio_pci_dmabuf_revoke(t->device, fd);
	for (i = 0; i < 2; i++)
		WRITE_ONCE(storms[i].stop, true);
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, pthread_join(threads[i], NULL));
		ASSERT_EQ(0, storms[i].unexpected);
		ASSERT_GT(storms[i].refused, 0);
	}

	ASSERT_EQ(SZ_4M, pattern_check(t->vaddr, SZ_4M, 105));
	ASSERT_EQ(SZ_1M, block_check(t, SZ_1M, 0, 103));
	ASSERT_EQ(SZ_1M, block_check(t, SZ_1M, SZ_16M, 104));
	munmap_bar(vaddr, SZ_4M);
	ASSERT_EQ(0, close(fd));
}

/* Two threads unmap and fault the same page: the last reference and the first. */
static void *refault_thread(void *data)
{
	struct storm *storm = data;
	u32 value;

	while (!READ_ONCE(storm->stop)) {
		if (madvise(storm->vaddr, storm->write ? getpagesize() : SZ_2M,
			    MADV_DONTNEED))
			WRITE_ONCE(storm->unexpected, -errno);
		if (try_read32(storm->vaddr, &value))
			WRITE_ONCE(storm->refused, storm->refused + 1);
		else
			WRITE_ONCE(storm->good, storm->good + 1);
	}

	return NULL;
}

TEST_F_TIMEOUT(odirect, refault, 120)
{
	struct odirect_test *t = &self->t;
	struct storm storms[3] = {};
	pthread_t threads[3];
	void *vaddr, *other;
	u32 value;
	int fd, i;

	fd = export_pages(t, 0, SZ_4M);
	vaddr = mmap_bar(fd, SZ_4M, 0, 0);
	other = mmap_bar(fd, SZ_4M, 0, t->page);

	for (i = 0; i < 3; i++) {
		storms[i].vaddr = i == 2 ? other : vaddr;
		storms[i].write = i;
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, refault_thread, &storms[i]));
	}

	for (i = 0; i < 50; i++) {
		usleep(10000);
		vfio_pci_cmd_clear(t->device, PCI_COMMAND_MEMORY);
		ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
		ASSERT_EQ(SIGBUS, try_read32(other, &value));
		vfio_pci_cmd_set(t->device, PCI_COMMAND_MEMORY);
	}

	vfio_pci_dmabuf_revoke(t->device, fd);
	for (i = 0; i < 3; i++)
		WRITE_ONCE(storms[i].stop, true);
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, pthread_join(threads[i], NULL));
		ASSERT_EQ(0, storms[i].unexpected);
		ASSERT_GT(storms[i].good, 0);
	}

	munmap_bar(vaddr, SZ_4M);
	munmap_bar(other, SZ_4M);
	ASSERT_EQ(0, close(fd));
}

/*
 * A read of the block device that has pinned a page of a buffer, and now waits
 * for the memory that its second part goes to: a reference that stays for as
 * long as is wanted, with no I/O that could come to its end.
 */
FIXTURE(odirect_held) {
	struct odirect_test t;

	/* The buffer that is held, and others of the device. */
	int fd;
	void *vaddr;
	int others[2];
	void *other_vaddrs[2];

	struct absent_memory memory;
	struct iovec iov[2];
	struct job reader;
};

struct held_read {
	int block;
	struct iovec *iov;
};

static long held_read(void *data)
{
	struct held_read *read = data;
	ssize_t ret = preadv(read->block, read->iov, 2, 0);

	return ret < 0 ? -errno : ret;
}

FIXTURE_SETUP(odirect_held)
{
	const char *reason = odirect_test_setup(&self->t, true);
	struct odirect_test *t = &self->t;
	static struct held_read read;
	int i;

	if (reason)
		SKIP(return, "%s: %s", device_bdf, reason);
	if (!absent_memory_init(&self->memory, t->page))
		SKIP(return, "no userfaultfd");

	/* One before it, one behind. */
	block_fill(t, 2 * t->page, 0, 81);
	pattern_fill(t->vaddr, SZ_4M, 82);
	self->others[0] = vfio_pci_dmabuf_export(t->device, t->bar, 0, SZ_8M, 0);
	self->fd = export_pages(t, 0, SZ_4M);
	self->others[1] = export_pages(t, SZ_4M, SZ_4M);
	for (i = 0; i < 2; i++) {
		self->other_vaddrs[i] = mmap_bar(self->others[i], SZ_4M, 0, 0);
		ASSERT_EQ(0, try_touch(self->other_vaddrs[i], SZ_2M));
	}

	self->vaddr = mmap_bar(self->fd, SZ_4M, 0, 0);
	self->iov[0] = (struct iovec) { self->vaddr, t->page };
	self->iov[1] = (struct iovec) { self->memory.vaddr, t->page };
	read.block = t->block;
	read.iov = self->iov;
	start_job(&self->reader, held_read, &read);
	ASSERT_TRUE(absent_memory_is_awaited(&self->memory, 10000));
}

FIXTURE_TEARDOWN(odirect_held)
{
	absent_memory_cleanup(&self->memory);
	odirect_test_teardown(&self->t);
}

/* Lets go. What is read then is not asked for, but that nothing else is. */
static void held_let_go(struct __test_metadata *_metadata,
			struct absent_memory *memory, struct job *reader)
{
	long ret;

	ASSERT_FALSE(job_is_done(reader, 0));
	absent_memory_supply(memory);
	ASSERT_TRUE(job_is_done(reader, 10000));
	ret = finish_job(reader);
	TH_LOG("the read that held the page: %ld", ret);
	ASSERT_TRUE(ret > 0 || ret == -EFAULT);
}

struct held_event {
	struct vfio_pci_device *device;
	int fd;
};

static long held_revoke(void *data)
{
	struct held_event *event = data;

	return __vfio_pci_dmabuf_revoke(event->device, event->fd);
}

static long held_reset(void *data)
{
	struct held_event *event = data;

	return vfio_pci_any_reset(event->device);
}

static long held_memory(void *data)
{
	struct held_event *event = data;

	vfio_pci_cmd_clear(event->device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(event->device, PCI_COMMAND_MEMORY);

	return 0;
}

/* True once the access is cut; at once if the event does not wait to do so. */
static bool is_cut(const void *vaddr)
{
	int ms = 10000;
	u32 value;

	while (try_read32(vaddr, &value) != SIGBUS) {
		if (!ms--)
			return false;
		usleep(1000);
	}

	return true;
}

/* Interrupted, called again, interrupted, called again. */
TEST_F_TIMEOUT(odirect_held, revoke_interrupted, 60)
{
	struct odirect_test *t = &self->t;
	struct held_event event = { .device = t->device, .fd = self->fd };
	struct job revoker;
	u32 value;
	int i;

	for (i = 0; i < 3; i++) {
		start_job(&revoker, held_revoke, &event);
		ASSERT_TRUE(is_cut(self->vaddr));
		ASSERT_FALSE(job_is_done(&revoker, 200));
		ASSERT_EQ(ENODEV, mmap_errno(self->fd, SZ_4M, 0, PROT_READ, MAP_SHARED));
		ASSERT_EQ(-EBUSY, try_export_pages(t, t->bar, 0, SZ_4M));

		/* Whoever was not interrupted is the one that ends it below. */
		if (i == 2)
			break;

		interrupt_job(&revoker);
		ASSERT_TRUE(job_is_done(&revoker, 10000));
		ASSERT_EQ(-EINTR, finish_job(&revoker));
		ASSERT_EQ(SIGBUS, try_read32(self->vaddr, &value));
		ASSERT_EQ(SIGBUS, try_read32(self->vaddr + SZ_2M, &value));
		ASSERT_EQ(ENODEV, mmap_errno(self->fd, SZ_4M, 0, PROT_READ, MAP_SHARED));
		ASSERT_EQ(-EBUSY, try_export_pages(t, t->bar, 0, SZ_4M));
	}

	held_let_go(_metadata, &self->memory, &self->reader);
	ASSERT_TRUE(job_is_done(&revoker, 10000));
	ASSERT_EQ(0, finish_job(&revoker));
	ASSERT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(t->device, self->fd));
	ASSERT_EQ(SIGBUS, try_read32(self->vaddr, &value));

	/* Whatever the read did it has done before; the range is free. */
	pattern_fill(t->vaddr, SZ_4M, 83);
	usleep(100000);
	ASSERT_EQ(SZ_4M, pattern_check(t->vaddr, SZ_4M, 83));
	ASSERT_EQ(0, close(export_pages(t, 0, SZ_4M)));
}

/* All of them wait; one of them is interrupted. */
TEST_F_TIMEOUT(odirect_held, revoke_by_many, 60)
{
	struct odirect_test *t = &self->t;
	struct held_event event = { .device = t->device, .fd = self->fd };
	struct job revokers[3];
	int i, done = 0;
	long ret;

	for (i = 0; i < ARRAY_SIZE(revokers); i++)
		start_job(&revokers[i], held_revoke, &event);
	for (i = 0; i < ARRAY_SIZE(revokers); i++)
		ASSERT_FALSE(job_is_done(&revokers[i], 100));

	interrupt_job(&revokers[1]);
	ASSERT_TRUE(job_is_done(&revokers[1], 10000));
	ASSERT_EQ(-EINTR, finish_job(&revokers[1]));
	ASSERT_FALSE(job_is_done(&revokers[0], 100));
	ASSERT_FALSE(job_is_done(&revokers[2], 100));

	held_let_go(_metadata, &self->memory, &self->reader);
	for (i = 0; i < ARRAY_SIZE(revokers); i += 2) {
		ASSERT_TRUE(job_is_done(&revokers[i], 10000));
		ret = finish_job(&revokers[i]);
		ASSERT_TRUE(!ret || ret == -EBADFD);
		done += !ret;
	}
	ASSERT_GE(done, 1);
}

/*
 * What another thread does meanwhile, with other buffers of the device and with
 * its own memory. Returns 0, or the first line that was not as expected.
 */
struct held_bystander {
	struct odirect_test *t;
	void *held;
	int *others;
	void **other_vaddrs;

	/* How an access to a BAR is to end. */
	int sig;

	/* The line that it has come to, and the one that was not as expected. */
	int at;
	int wrong;
};

#define BYSTANDER_EXPECT(_expected, _seen) do {					\
	WRITE_ONCE(bystander->at, __LINE__);					\
	if ((long)(_seen) != (long)(_expected) && !bystander->wrong)		\
		bystander->wrong = __LINE__;					\
} while (0)

static long held_bystander(void *data)
{
	struct held_bystander *bystander = data;
	struct odirect_test *t = bystander->t;
	off_t bar_offset = t->device->bars[t->bar].info.offset;
	int fd, i, sig = bystander->sig;
	void *vaddr;
	u32 value;

	/* Memory of the process, and the mapping of what is held. */
	for (i = 0; i < 20; i++) {
		vaddr = mmap(NULL, SZ_1M, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		BYSTANDER_EXPECT(true, vaddr != MAP_FAILED);
		BYSTANDER_EXPECT(0, try_touch(vaddr, SZ_1M));
		BYSTANDER_EXPECT(0, munmap(vaddr, SZ_1M));
	}
	BYSTANDER_EXPECT(0, munmap(bystander->held + SZ_2M, SZ_2M));
	BYSTANDER_EXPECT(SIGBUS, try_read32(bystander->held, &value));

	/* The BAR, and the buffers that were there before. */
	vaddr = mmap_bar(t->device->fd, SZ_2M, bar_offset, 0);
	BYSTANDER_EXPECT(sig, try_read32(vaddr, &value));
	munmap_bar(vaddr, SZ_2M);
	for (i = 0; i < 2; i++) {
		vaddr = bystander->other_vaddrs[i];
		BYSTANDER_EXPECT(sig, try_read32(vaddr, &value));
		BYSTANDER_EXPECT(sig, try_read32(vaddr + SZ_2M, &value));
		vaddr = mmap_bar(bystander->others[i], SZ_2M, SZ_2M, 0);
		BYSTANDER_EXPECT(sig, try_read32(vaddr, &value));
		munmap_bar(vaddr, SZ_2M);
	}

	/* New ones, their revoke and their end. */
	for (i = 0; i < 4; i++) {
		fd = vfio_pci_dmabuf_export(t->device, t->bar, SZ_16M, SZ_4M,
					    i & 1 ? ZONE_DEVICE : 0);
		vaddr = mmap_bar(fd, SZ_4M, 0, 0);
		BYSTANDER_EXPECT(sig, try_read32(vaddr, &value));
		if (i & 2) {
			BYSTANDER_EXPECT(0, __vfio_pci_dmabuf_revoke(t->device, fd));
			BYSTANDER_EXPECT(SIGBUS, try_read32(vaddr, &value));
		}
		munmap_bar(vaddr, SZ_4M);
		BYSTANDER_EXPECT(0, close(fd));
	}

	/* The revoke of the old ones. */
	for (i = 0; i < 2; i++) {
		fd = bystander->others[i];
		vaddr = bystander->other_vaddrs[i];
		BYSTANDER_EXPECT(0, __vfio_pci_dmabuf_revoke(t->device, fd));
		BYSTANDER_EXPECT(SIGBUS, try_read32(vaddr, &value));
		munmap_bar(vaddr, SZ_4M);
		BYSTANDER_EXPECT(0, close(fd));
	}

	return bystander->wrong;
}

static void test_held(struct __test_metadata *_metadata,
		      struct held_bystander *bystander, void *held, int fd,
		      struct absent_memory *memory, struct job *reader,
		      long (*cut)(void *data))
{
	struct odirect_test *t = bystander->t;
	struct held_event event = { .device = t->device, .fd = fd };
	struct job cutter, other;
	u32 value;

	bystander->held = held;
	start_job(&cutter, cut, &event);
	ASSERT_TRUE(is_cut(held));

	start_job(&other, held_bystander, bystander);
	ASSERT_TRUE(job_is_done(&other, 20000)) {
		TH_LOG("stuck at line %d", READ_ONCE(bystander->at));
	}
	ASSERT_EQ(0, finish_job(&other));
	ASSERT_FALSE(job_is_done(&cutter, 200));

	held_let_go(_metadata, memory, reader);
	ASSERT_TRUE(job_is_done(&cutter, 30000));
	ASSERT_EQ(0, finish_job(&cutter));

	/* All is as if nobody had waited. */
	ASSERT_EQ(0, try_touch(t->vaddr, SZ_8M));
	ASSERT_EQ(cut == held_revoke ? SIGBUS : 0, try_read32(held, &value));
	ASSERT_EQ(cut == held_revoke ? -EBADFD : 0, __vfio_pci_dmabuf_revoke(t->device, fd));
	ASSERT_EQ(SIGBUS, try_read32(held, &value));
	ASSERT_EQ(0, close(export_pages(t, 0, SZ_8M)));
}

TEST_F_TIMEOUT(odirect_held, bystander_of_revoke, 90)
{
	struct held_bystander bystander = {
		.t = &self->t,
		.others = self->others,
		.other_vaddrs = self->other_vaddrs,
	};

	test_held(_metadata, &bystander, self->vaddr, self->fd, &self->memory,
		  &self->reader, held_revoke);
}

TEST_F_TIMEOUT(odirect_held, bystander_of_memory_off, 90)
{
	struct held_bystander bystander = {
		.t = &self->t,
		.others = self->others,
		.other_vaddrs = self->other_vaddrs,
		.sig = SIGBUS,
	};

	test_held(_metadata, &bystander, self->vaddr, self->fd, &self->memory,
		  &self->reader, held_memory);
}

TEST_F_TIMEOUT(odirect_held, bystander_of_reset, 90)
{
	struct held_bystander bystander = {
		.t = &self->t,
		.others = self->others,
		.other_vaddrs = self->other_vaddrs,
		.sig = SIGBUS,
	};

	if (!vfio_pci_can_reset(self->t.device))
		SKIP(return, "%s cannot be reset", device_bdf);

	test_held(_metadata, &bystander, self->vaddr, self->fd, &self->memory,
		  &self->reader, held_reset);
}

/*
 * Reads by io_uring, and NVMe commands that it passes through. The task that has
 * submitted them takes the device away without ever looking for their completion,
 * and must not wait for itself. If it does, it may be beyond a signal's reach: each
 * of these runs in a process of its own, which is left behind then, along with the
 * device. That is why they come last.
 */

/* Few enough that some are in flight when the task leaves the submission. */
#define PASS_COMMANDS	16
#define PASS_LENGTH	SZ_128K
#define PASS_SIZE	(PASS_COMMANDS * PASS_LENGTH)
#define PASS_BUFFER	(2 * PASS_SIZE)
#define PASS_ROUNDS	6
#define PASS_TIMEOUT	60000

enum pass_kind {
	PASS_NVME,
	PASS_READ,
	PASS_READ_FIXED_FILE,
};

struct pass_ring {
	int fd;
	enum pass_kind kind;
	struct io_uring_params params;
	void *rings;
	size_t rings_size;
	void *sqes;
	size_t sqes_size;
};

/* False if the kernel is built without io_uring. */
static bool pass_ring_setup(struct pass_ring *ring, enum pass_kind kind, u32 flags)
{
	struct io_uring_params *params = &ring->params;

	if (access("/proc/sys/kernel/io_uring_disabled", F_OK))
		return false;

	memset(ring, 0, sizeof(*ring));
	ring->kind = kind;
	params->flags = IORING_SETUP_SQE128 | IORING_SETUP_CQE32 | flags;
	ring->fd = syscall(__NR_io_uring_setup, PASS_COMMANDS, params);
	VFIO_ASSERT_GE(ring->fd, 0);
	VFIO_ASSERT_TRUE(params->features & IORING_FEAT_SINGLE_MMAP);
	ring->rings_size = max_t(size_t, params->sq_off.array + params->sq_entries * sizeof(u32),
				 params->cq_off.cqes + params->cq_entries * 32);
	ring->rings = mmap(NULL, ring->rings_size, PROT_READ | PROT_WRITE,
			   MAP_SHARED, ring->fd, IORING_OFF_SQ_RING);
	VFIO_ASSERT_NE(ring->rings, MAP_FAILED);
	ring->sqes_size = params->sq_entries * 128UL;
	ring->sqes = mmap(NULL, ring->sqes_size, PROT_READ | PROT_WRITE,
			  MAP_SHARED, ring->fd, IORING_OFF_SQES);
	VFIO_ASSERT_NE(ring->sqes, MAP_FAILED);

	return true;
}

static void pass_ring_cleanup(struct pass_ring *ring)
{
	munmap_bar(ring->sqes, ring->sqes_size);
	munmap_bar(ring->rings, ring->rings_size);
	VFIO_ASSERT_EQ(close(ring->fd), 0);
}

/* Metadata, if the namespace has some, lies behind the data of all commands. */
static void pass_prepare_nvme(struct io_uring_sqe *sqe, struct odirect_test *t,
			      int generic, void *vaddr)
{
	struct nvme_uring_cmd *cmd = (void *)sqe->cmd;
	int nsid, block_size;
	u64 lba;

	nsid = ioctl(t->block, NVME_IOCTL_ID);
	VFIO_ASSERT_GT(nsid, 0);
	ioctl_assert(t->block, BLKSSZGET, &block_size);
	lba = sqe->user_data * PASS_LENGTH / block_size;

	sqe->opcode = IORING_OP_URING_CMD;
	sqe->fd = generic;
	sqe->cmd_op = NVME_URING_CMD_IO;
	cmd->opcode = 0x02; /* read */
	cmd->nsid = nsid;
	cmd->addr = (uintptr_t)vaddr + sqe->user_data * PASS_LENGTH;
	cmd->data_len = PASS_LENGTH;
	if (t->metadata) {
		cmd->metadata_len = PASS_LENGTH / block_size * t->metadata;
		cmd->metadata = (uintptr_t)vaddr + PASS_SIZE + sqe->user_data * cmd->metadata_len;
	}
	cmd->cdw10 = lba;
	cmd->cdw11 = lba >> 32;
	cmd->cdw12 = PASS_LENGTH / block_size - 1;
}

/* All reads at once, from the beginning of the block device to @vaddr. */
static void pass_ring_read(struct pass_ring *ring, struct odirect_test *t,
			   int generic, void *vaddr)
{
	u32 *array = ring->rings + ring->params.sq_off.array;
	u32 *tail = ring->rings + ring->params.sq_off.tail;
	int i;

	if (ring->kind == PASS_READ_FIXED_FILE)
		VFIO_ASSERT_EQ(syscall(__NR_io_uring_register, ring->fd, IORING_REGISTER_FILES,
				       &t->block, 1), 0);

	for (i = 0; i < PASS_COMMANDS; i++) {
		struct io_uring_sqe *sqe = ring->sqes + i * 128;

		memset(sqe, 0, 128);
		sqe->user_data = i;
		array[i] = i;
		if (ring->kind == PASS_NVME) {
			pass_prepare_nvme(sqe, t, generic, vaddr);
			continue;
		}

		sqe->opcode = IORING_OP_READ;
		sqe->fd = t->block;
		if (ring->kind == PASS_READ_FIXED_FILE) {
			sqe->fd = 0; /* of those that were registered */
			sqe->flags = IOSQE_FIXED_FILE;
		}
		sqe->addr = (uintptr_t)vaddr + i * PASS_LENGTH;
		sqe->len = PASS_LENGTH;
		sqe->off = (u64)i * PASS_LENGTH;
	}

	__atomic_store_n(tail, *tail + PASS_COMMANDS, __ATOMIC_RELEASE);
	VFIO_ASSERT_EQ(syscall(__NR_io_uring_enter, ring->fd, PASS_COMMANDS, 0,
			       0, NULL, 0), PASS_COMMANDS);
}

static u32 pass_ring_completions(struct pass_ring *ring)
{
	u32 *head = ring->rings + ring->params.cq_off.head;
	u32 *tail = ring->rings + ring->params.cq_off.tail;

	return __atomic_load_n(tail, __ATOMIC_ACQUIRE) - *head;
}

/* All of them have done what they were asked for, or none of them has. */
static void pass_ring_reap(struct pass_ring *ring, bool refused)
{
	u32 *head = ring->rings + ring->params.cq_off.head;
	u32 *mask = ring->rings + ring->params.cq_off.ring_mask;
	void *cqes = ring->rings + ring->params.cq_off.cqes;
	const int good = ring->kind == PASS_NVME ? 0 : PASS_LENGTH;
	struct io_uring_cqe *cqe;
	int i;

	while (pass_ring_completions(ring) < PASS_COMMANDS) {
		if (syscall(__NR_io_uring_enter, ring->fd, 0, PASS_COMMANDS,
			    IORING_ENTER_GETEVENTS, NULL, 0) < 0)
			VFIO_ASSERT_EQ(errno, EINTR);
	}

	for (i = 0; i < PASS_COMMANDS; i++) {
		cqe = cqes + ((*head + i) & *mask) * 32;
		VFIO_ASSERT_EQ(cqe->res != good, refused, "command %d: %d\n",
			       (int)cqe->user_data, cqe->res);
	}
	__atomic_store_n(head, *head + PASS_COMMANDS, __ATOMIC_RELEASE);
}

struct pass_buffer {
	struct odirect_test *t;
	int fd;
	void *vaddr;
};

static void pass_end_reset(struct pass_buffer *buffer)
{
	struct odirect_test *t = buffer->t;

	VFIO_ASSERT_EQ(vfio_pci_any_reset(t->device), 0);
	VFIO_ASSERT_EQ(try_touch(buffer->vaddr, PASS_SIZE), 0);
}

static void pass_end_revoke(struct pass_buffer *buffer)
{
	struct odirect_test *t = buffer->t;
	int ret, retries = 10 * PASS_COMMANDS;
	u32 value;

	/* What io_uring wants of the task can look like a signal. */
	do {
		ret = __vfio_pci_dmabuf_revoke(t->device, buffer->fd);
	} while (ret == -EINTR && retries--);
	VFIO_ASSERT_EQ(ret, 0);
	VFIO_ASSERT_EQ(try_read32(buffer->vaddr, &value), SIGBUS);
}

static void pass_end_close_buffer(struct pass_buffer *buffer)
{
	struct odirect_test *t = buffer->t;

	VFIO_ASSERT_EQ(close(buffer->fd), 0);
	munmap_bar(buffer->vaddr, PASS_BUFFER);
	buffer->fd = export_pages(t, 0, PASS_BUFFER);
	buffer->vaddr = mmap_bar(buffer->fd, PASS_BUFFER, 0, 0);
}

static void pass_end_close_device(struct pass_buffer *buffer)
{
	u32 value;

	vfio_pci_device_close(buffer->t->device);
	VFIO_ASSERT_EQ(try_read32(buffer->vaddr, &value), SIGBUS);
}

/* Returns an exit status. */
static int pass_round(const char *generic_path, enum pass_kind kind, u32 flags,
		      void (*end)(struct pass_buffer *buffer), u32 *in_flight)
{
	static struct odirect_test test;
	struct odirect_test *t = &test;
	struct pass_buffer buffer = { .t = t };
	struct pass_ring ring;
	struct vfio_pci_bar *bar;
	const char *reason;
	int generic, i;

	reason = odirect_test_setup(t, true);
	if (reason) {
		fprintf(stderr, "%s: %s\n", device_bdf, reason);
		return KSFT_SKIP;
	}

	generic = open(generic_path, O_RDWR);
	VFIO_ASSERT_GE(generic, 0);
	VFIO_ASSERT_TRUE(pass_ring_setup(&ring, kind, flags));

	block_fill(t, PASS_SIZE, 0, 91);
	buffer.fd = export_pages(t, 0, PASS_BUFFER);
	buffer.vaddr = mmap_bar(buffer.fd, PASS_BUFFER, 0, 0);
	pattern_fill(t->vaddr, PASS_SIZE, 92);

	/* Nothing is to be done any more but the last step. */
	if (end == pass_end_close_device) {
		for (i = 0; i < PCI_STD_NUM_BARS; i++) {
			bar = &t->device->bars[i];
			if (bar->vaddr)
				munmap_bar(bar->vaddr, ALIGN(bar->info.size, t->page));
			bar->vaddr = NULL;
		}
	}

	pass_ring_read(&ring, t, generic, buffer.vaddr);
	*in_flight += PASS_COMMANDS - pass_ring_completions(&ring);
	end(&buffer);

	/* What they have read is there by now, and nothing comes late. */
	if (end != pass_end_close_device) {
		if (end != pass_end_reset)
			VFIO_ASSERT_EQ(pattern_check(t->vaddr, PASS_SIZE, 91), PASS_SIZE);
		pattern_fill(t->vaddr, PASS_SIZE, 93);
	}
	pass_ring_reap(&ring, false);
	if (end != pass_end_close_device)
		VFIO_ASSERT_EQ(pattern_check(t->vaddr, PASS_SIZE, 93), PASS_SIZE);

	munmap_bar(buffer.vaddr, PASS_BUFFER);
	VFIO_ASSERT_EQ(close(buffer.fd), 0);
	pass_ring_cleanup(&ring);
	VFIO_ASSERT_EQ(close(generic), 0);
	munmap_bar(t->ram, RAM_SIZE);
	odirect_test_teardown(t);

	return 0;
}

/* Returns why there is none. /dev/nvme0n1 and /dev/ng0n1 are the same namespace. */
static const char *pass_generic_path(char *generic_path, size_t size)
{
	struct pass_ring ring;
	const char *name;
	char path[128];

	if (!block_path)
		return "VFIO_SELFTESTS_BLKDEV is not set";

	name = strrchr(block_path, '/');
	name = name ? name + 1 : block_path;
	if (strncmp(name, "nvme", 4))
		return "the block device is not an NVMe namespace";
	snprintf_assert(path, sizeof(path), "/sys/block/%s/device/ng%s", name, name + 4);
	if (access(path, F_OK))
		return "the block device has no generic device";
	snprintf_assert(generic_path, size, "/dev/ng%s", name + 4);

	if (!pass_ring_setup(&ring, PASS_NVME, 0))
		return "no io_uring";
	pass_ring_cleanup(&ring);

	return NULL;
}

/* A block device that cannot reach the BAR does not do so either. */
TEST_F_TIMEOUT(odirect_refused, passthrough, 60)
{
	struct odirect_test *t = &self->t;
	char generic_path[64];
	struct pass_ring ring;
	const char *reason;
	void *vaddr;
	u32 value;
	int generic, fd;

	reason = pass_generic_path(generic_path, sizeof(generic_path));
	if (reason)
		SKIP(return, "%s", reason);

	generic = open(generic_path, O_RDWR);
	ASSERT_GE(generic, 0);
	ASSERT_TRUE(pass_ring_setup(&ring, PASS_NVME, 0));
	block_fill(t, PASS_SIZE, 0, 106);
	fd = export_pages(t, 0, PASS_BUFFER);
	vaddr = mmap_bar(fd, PASS_BUFFER, 0, 0);
	pattern_fill(t->vaddr, PASS_SIZE, 107);

	pass_ring_read(&ring, t, generic, vaddr);
	pass_ring_reap(&ring, true);
	ASSERT_EQ(PASS_SIZE, pattern_check(t->vaddr, PASS_SIZE, 107));

	vfio_pci_dmabuf_revoke(t->device, fd);
	ASSERT_EQ(SIGBUS, try_read32(vaddr, &value));
	munmap_bar(vaddr, PASS_BUFFER);
	ASSERT_EQ(0, close(fd));

	/* The same ring, the same disk, and RAM. */
	memset(t->ram, 0, PASS_SIZE);
	pass_ring_read(&ring, t, generic, t->ram);
	pass_ring_reap(&ring, false);
	ASSERT_EQ(PASS_SIZE, pattern_check(t->ram, PASS_SIZE, 106));
	pass_ring_cleanup(&ring);
	ASSERT_EQ(0, close(generic));
}

FIXTURE(odirect_passthrough) {
	char generic_path[64];
};

FIXTURE_VARIANT(odirect_passthrough) {
	void (*end)(struct pass_buffer *buffer);
};

FIXTURE_VARIANT_ADD(odirect_passthrough, revoke) {
	.end = pass_end_revoke,
};

FIXTURE_VARIANT_ADD(odirect_passthrough, close_buffer) {
	.end = pass_end_close_buffer,
};

FIXTURE_VARIANT_ADD(odirect_passthrough, close_device) {
	.end = pass_end_close_device,
};

FIXTURE_VARIANT_ADD(odirect_passthrough, reset) {
	.end = pass_end_reset,
};

FIXTURE_SETUP(odirect_passthrough)
{
	const char *reason = pass_generic_path(self->generic_path,
					       sizeof(self->generic_path));

	if (reason)
		SKIP(return, "%s", reason);
	if (no_p2p)
		SKIP(return, "the block device cannot reach the BAR, as announced");
}

FIXTURE_TEARDOWN(odirect_passthrough)
{
}

static void test_passthrough(struct __test_metadata *_metadata, const char *generic_path,
			     enum pass_kind kind, u32 flags,
			     void (*end)(struct pass_buffer *buffer))
{
	/* A reset takes a second or so. */
	int rounds = end == pass_end_reset ? PASS_ROUNDS / 3 : PASS_ROUNDS;
	int pid, status, gone, round, ret;
	u32 in_flight = 0;
	u64 deadline;

	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		for (round = 0; round < rounds; round++) {
			ret = pass_round(generic_path, kind, flags, end, &in_flight);
			if (ret)
				_exit(ret);
		}
		/* A slow task may find all completed, unless it has to ask. */
		if (flags & IORING_SETUP_DEFER_TASKRUN)
			VFIO_ASSERT_GT(in_flight, 0);
		else
			TH_LOG("%u of %u in flight", in_flight, rounds * PASS_COMMANDS);
		_exit(0);
	}

	deadline = milliseconds() + PASS_TIMEOUT;
	while (!(gone = waitpid(pid, &status, WNOHANG)) && milliseconds() < deadline)
		usleep(10000);

	if (!gone) {
		kill(pid, SIGKILL);
		deadline = milliseconds() + 3000;
		while (!(gone = waitpid(pid, &status, WNOHANG)) && milliseconds() < deadline)
			usleep(10000);
		TH_LOG("hangs: process %d %s", pid, gone ? "was killed" :
		       "cannot be killed, and is left behind with the device");
		ASSERT_TRUE(false);
	}

	ASSERT_EQ(pid, gone);
	ASSERT_TRUE(WIFEXITED(status));
	if (WEXITSTATUS(status) == KSFT_SKIP)
		SKIP(return, "%s cannot be tested", device_bdf);
	ASSERT_EQ(0, WEXITSTATUS(status));
}

/* Completions come to the task whenever it leaves the kernel ... */
TEST_F_TIMEOUT(odirect_passthrough, ring, 120)
{
	test_passthrough(_metadata, self->generic_path, PASS_NVME, 0, variant->end);
}

/* ... or only when it asks for them. */
TEST_F_TIMEOUT(odirect_passthrough, ring_deferred, 120)
{
	test_passthrough(_metadata, self->generic_path, PASS_NVME,
			 IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SINGLE_ISSUER,
			 variant->end);
}

TEST_F_TIMEOUT(odirect_passthrough, read, 120)
{
	test_passthrough(_metadata, self->generic_path, PASS_READ, 0, variant->end);
}

TEST_F_TIMEOUT(odirect_passthrough, read_fixed_file, 120)
{
	test_passthrough(_metadata, self->generic_path, PASS_READ_FIXED_FILE,
			 IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SINGLE_ISSUER,
			 variant->end);
}

int main(int argc, char *argv[])
{
	char **bdfs;
	int nr;

	bdfs = vfio_selftests_get_bdfs(&argc, argv, &nr);
	device_bdf = bdfs[0];
	other_bdf = nr > 1 ? bdfs[1] : getenv("VFIO_SELFTESTS_BDF2");
	block_path = getenv("VFIO_SELFTESTS_BLKDEV");
	no_p2p = env_is_set("VFIO_SELFTESTS_NO_P2P");
	out_of_reach = env_is_set("VFIO_SELFTESTS_OUT_OF_REACH");
	l1tf = env_is_set("VFIO_SELFTESTS_L1TF");

	return test_harness_run(argc, argv);
}
