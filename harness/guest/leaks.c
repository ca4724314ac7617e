// SPDX-License-Identifier: GPL-2.0-only
/*
 * Many of everything, and nothing of it left: what a process can make the kernel
 * allocate by mapping, exporting, splitting and forking, and whether it is back
 * afterwards. Runs in the guest of harness/vm, as
 *
 *	leaks [-d N] BDF BAR
 *
 * BAR is memory-like and at least 64 MiB in size. With -d all that is done is
 * done an Nth as often.
 *
 * The measure is the number of objects in each slab cache. What is leaked once
 * for each operation is leaked as often as that, however small it is, so the
 * slack is a fifth of the number of operations and ten; what else the kernel keeps
 * (radix tree nodes, say) does not come near it. What is not slab is measured in
 * pages.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <linux/compiler.h>
#include <linux/kernel.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>
#include <libvfio/vfio_pci_dmabuf.h>

#include "check.h"
#include "kernel_memory.h"

#define SLACK(_operations)	((_operations) / 5 + 10)
/* Lists of free pages of the processors, of which not all are emptied */
#define SLACK_KIB		1024
#define ROUNDS			3
#define BAR_SIZE		SZ_64M
#define MAX_LIVE		1000
#define MAX_VMAS		10000

static const char *device_bdf;
static struct iommu *iommu;
static struct vfio_pci_device *device;
static u32 bar;
static size_t page;

/* All BARs unmapped, but their buffers made: they stay until the device is closed. */
static void open_device(void)
{
	int i;

	device = vfio_pci_device_init(device_bdf, iommu);
	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		struct vfio_pci_bar *b = &device->bars[i];

		if (b->vaddr)
			munmap_bar(b->vaddr, b->info.size < page ? page : b->info.size);
		b->vaddr = NULL;
	}
}

static off_t bar_offset(void)
{
	return device->bars[bar].info.offset;
}

static u64 random_pages(u64 below)
{
	return random() % below;
}

/* -- nothing is left -------------------------------------------------------- */

/*
 * Does @fn(@n), which is @operations of something, more than once: the first time
 * the kernel may keep what it can use again. A leak is one each time, while
 * something else that goes on meanwhile is not.
 */
static void check_back(const char *name, void (*fn)(int n), int n, int operations)
{
	static struct kernel_memory before, after;
	long objects, kib;
	bool good = false;
	int round;

	fn(n);
	kernel_memory_settle(&before);
	for (round = 0; round < ROUNDS && !good; round++) {
		fn(n);
		kernel_memory_settle(&after);
		objects = kernel_memory_growth(&before, &after, NULL, SLACK(operations));
		kib = after.other_kib - before.other_kib;
		printf("# %d operations: at most %ld objects more in a cache, %ld KiB not of slab, %d dma-bufs\n",
		       operations, objects, kib, after.dmabufs - before.dmabufs);
		good = objects < SLACK(operations) && kib < SLACK_KIB &&
		       after.dmabufs == before.dmabufs;
		before = after;
	}
	check(good, "%s", name);
}

static void map_and_unmap(int n)
{
	while (n--) {
		size_t size = page * (1 + random_pages(16));
		off_t offset = page * random_pages((BAR_SIZE - size) / page);
		void *vaddr = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, device->fd,
				   bar_offset() + offset);

		VFIO_ASSERT_NE(vaddr, MAP_FAILED);
		/* Touching takes its time, and page tables */
		if (!(n % 16))
			VFIO_ASSERT_EQ(try_touch(vaddr, page), 0);
		munmap_bar(vaddr, size);
	}
}

/* Alive at once, some mapped, some revoked */
static void export_many(int n)
{
	static int fds[MAX_LIVE];
	static void *vaddrs[MAX_LIVE];
	int i;

	for (i = 0; i < n; i++) {
		size_t size = page * (1 + random_pages(64));

		fds[i] = vfio_pci_dmabuf_export(device, bar, i * page, size, 0);
		vaddrs[i] = mmap_bar(fds[i], page, 0, 0);
		VFIO_ASSERT_EQ(try_touch(vaddrs[i], page), 0);
	}
	for (i = 0; i < n; i++) {
		if (i % 3 == 0)
			vfio_pci_dmabuf_revoke(device, fds[i]);
		if (i % 2)
			close(fds[i]);
		munmap_bar(vaddrs[i], page);
		if (!(i % 2))
			close(fds[i]);
	}
}

/* With pages a buffer has its range for itself */
static void export_many_pages(int n)
{
	int fds[BAR_SIZE / SZ_2M], i;

	while (n--) {
		for (i = 0; i < ARRAY_SIZE(fds); i++) {
			void *vaddr;

			fds[i] = vfio_pci_dmabuf_export(device, bar, i * SZ_2M, SZ_2M,
							VFIO_DMA_BUF_FLAG_ZONE_DEVICE);
			vaddr = mmap_bar(fds[i], SZ_2M, 0, (i & 1) * page);
			VFIO_ASSERT_EQ(try_touch(vaddr, SZ_2M), 0);
			munmap_bar(vaddr, SZ_2M);
		}
		for (i = 0; i < ARRAY_SIZE(fds); i++) {
			if (i % 3 == 0)
				vfio_pci_dmabuf_revoke(device, fds[i]);
			close(fds[i]);
		}
	}
}

/* Each VMA is a page: every other one has another protection. */
static void split_mapping(int n, u32 flags)
{
	int fd = vfio_pci_dmabuf_export(device, bar, 0, BAR_SIZE, flags);
	size_t size = n * page, at;
	void *vaddr = mmap_bar(fd, size, 0, 0);
	u32 value;

	VFIO_ASSERT_EQ(try_touch(vaddr, size), 0);
	for (at = 0; at < size; at += 2 * page)
		VFIO_ASSERT_EQ(mprotect(vaddr + at, page, PROT_READ), 0);
	VFIO_ASSERT_EQ(try_touch(vaddr, size), 0);

	vfio_pci_cmd_clear(device, PCI_COMMAND_MEMORY);
	for (at = 0; at < size; at += 97 * page)
		VFIO_ASSERT_EQ(try_read32(vaddr + at, &value), SIGBUS);
	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
	VFIO_ASSERT_EQ(try_touch(vaddr, size), 0);

	for (at = page; at < size; at += 4 * page)
		munmap_bar(vaddr + at, page);
	vfio_pci_dmabuf_revoke(device, fd);
	VFIO_ASSERT_EQ(try_read32(vaddr, &value), SIGBUS);
	munmap_bar(vaddr, size);
	close(fd);
}

static void split_pfns(int n)
{
	split_mapping(n, 0);
}

static void split_pages(int n)
{
	split_mapping(n, VFIO_DMA_BUF_FLAG_ZONE_DEVICE);
}

static void map_many(int n, int fd, off_t offset)
{
	void *vaddr = mmap_reserve(n * page, SZ_2M, 0);
	size_t at;
	u32 value;

	/* Neighbours that are not contiguous are not merged. */
	for (at = 0; at < n * page; at += page)
		VFIO_ASSERT_NE(mmap(vaddr + at, page, PROT_READ | PROT_WRITE,
				    MAP_SHARED | MAP_FIXED, fd, offset + (at ^ page)), MAP_FAILED);
	VFIO_ASSERT_EQ(try_touch(vaddr, n * page), 0);
	vfio_pci_cmd_clear(device, PCI_COMMAND_MEMORY);
	VFIO_ASSERT_EQ(try_read32(vaddr, &value), SIGBUS);
	VFIO_ASSERT_EQ(try_read32(vaddr + (n - 1) * page, &value), SIGBUS);
	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
	VFIO_ASSERT_EQ(try_touch(vaddr, n * page), 0);
	munmap_bar(vaddr, n * page);
}

static void map_many_of_bar(int n)
{
	map_many(n, device->fd, bar_offset());
}

static void map_many_of_buffer(int n)
{
	int fd = vfio_pci_dmabuf_export(device, bar, 0, BAR_SIZE, 0);

	map_many(n, fd, 0);
	close(fd);
}

/* -- fork --------------------------------------------------------------------- */

#define DEPTH		4
#define CHILDREN	3
#define FAMILY		(3 + 9 + 27 + 81)
#define TREE_SIZE	SZ_1M

static void grow_tree(int depth, void *vaddrs[], int fds[], int nr)
{
	int i, j;

	for (i = 0; depth && i < CHILDREN; i++) {
		pid_t pid = fork();

		VFIO_ASSERT_GE(pid, 0);
		if (pid)
			continue;

		srandom(random() + i);
		for (j = 0; j < nr; j++) {
			size_t at = page * random_pages(TREE_SIZE / page);

			/* SIGSEGV: a page that its parents have given up */
			if (try_touch(vaddrs[j] + at, page) == SIGBUS)
				_exit(1);
			if (random() % 2)
				munmap(vaddrs[j] + at, page);
			if (random() % 4 == 0)
				close(fds[j]);
		}
		grow_tree(depth - 1, vaddrs, fds, nr);
		/* Its children may outlive it, or not */
		usleep(random() % 20000);
		_exit(0);
	}
}

static void fork_trees(int n)
{
	void *vaddrs[3];
	int fds[3], i, status, left, bad;

	while (n--) {
		fds[0] = dup(device->fd);
		fds[1] = vfio_pci_dmabuf_export(device, bar, 0, SZ_4M, 0);
		fds[2] = vfio_pci_dmabuf_export(device, bar, SZ_4M, SZ_4M,
						VFIO_DMA_BUF_FLAG_ZONE_DEVICE);
		for (i = 0; i < 3; i++) {
			vaddrs[i] = mmap_bar(fds[i], TREE_SIZE, i ? 0 : bar_offset(), 0);
			VFIO_ASSERT_EQ(try_touch(vaddrs[i], TREE_SIZE), 0);
		}
		grow_tree(DEPTH, vaddrs, fds, 3);
		for (i = 0; i < 3; i++)
			close(fds[i]);
		if (n & 1)
			for (i = 0; i < 3; i++)
				munmap_bar(vaddrs[i], TREE_SIZE);
		for (left = FAMILY, bad = 0; left && wait(&status) > 0; left--)
			bad += !!status;
		VFIO_ASSERT_EQ(left, 0);
		VFIO_ASSERT_EQ(bad, 0);
		if (!(n & 1))
			for (i = 0; i < 3; i++)
				munmap_bar(vaddrs[i], TREE_SIZE);
	}
}

/* -- what fails ---------------------------------------------------------------- */

static void fail_mmap(int n)
{
	const int rw = PROT_READ | PROT_WRITE;
	int live = vfio_pci_dmabuf_export(device, bar, 0, SZ_2M, 0);
	int revoked = vfio_pci_dmabuf_export(device, bar, 0, SZ_2M, 0);

	vfio_pci_dmabuf_revoke(device, revoked);
	for (n /= 6; n--; ) {
		VFIO_ASSERT_EQ(mmap_errno(device->fd, 2 * page, bar_offset() + BAR_SIZE - page, rw,
					  MAP_SHARED), EINVAL);
		VFIO_ASSERT_EQ(mmap_errno(device->fd, page, bar_offset() + BAR_SIZE, rw,
					  MAP_SHARED), EINVAL);
		VFIO_ASSERT_EQ(mmap_errno(device->fd, page, bar_offset(), rw, MAP_PRIVATE), EINVAL);
		VFIO_ASSERT_EQ(mmap_errno(live, SZ_2M, page, rw, MAP_SHARED), EINVAL);
		VFIO_ASSERT_EQ(mmap_errno(live, page, 0, rw, MAP_PRIVATE), EINVAL);
		VFIO_ASSERT_EQ(mmap_errno(revoked, page, 0, rw, MAP_SHARED), ENODEV);
	}
	close(live);
	close(revoked);
}

static int try_export(u64 offset, u64 length, u32 flags)
{
	struct vfio_region_dma_range range = { offset, length };

	return __vfio_pci_dmabuf_export(device, bar, &range, 1, O_RDWR | O_CLOEXEC, flags);
}

/* At each step of it that can: the ranges, their pages, a descriptor for the buffer */
static void fail_export(int n)
{
	int taken = vfio_pci_dmabuf_export(device, bar, 0, SZ_2M, VFIO_DMA_BUF_FLAG_ZONE_DEVICE);
	struct rlimit old, none;

	VFIO_ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &old), 0);
	none = old;
	none.rlim_cur = 0;

	for (n /= 8; n--; ) {
		VFIO_ASSERT_EQ(try_export(0, 0, 0), -EINVAL);
		VFIO_ASSERT_EQ(try_export(1, page, 0), -EINVAL);
		VFIO_ASSERT_EQ(try_export(BAR_SIZE - page, 2 * page, 0), -EINVAL);
		VFIO_ASSERT_LT(try_export(-page, 2 * page, 0), 0);
		VFIO_ASSERT_EQ(try_export(page, SZ_2M, VFIO_DMA_BUF_FLAG_ZONE_DEVICE), -EINVAL);
		VFIO_ASSERT_EQ(try_export(0, SZ_4M, VFIO_DMA_BUF_FLAG_ZONE_DEVICE), -EBUSY);
		VFIO_ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
		VFIO_ASSERT_EQ(try_export(0, page, 0), -EMFILE);
		/* Making pages takes long. */
		if (!(n % 16))
			VFIO_ASSERT_EQ(try_export(SZ_4M, SZ_2M, VFIO_DMA_BUF_FLAG_ZONE_DEVICE),
				       -EMFILE);
		VFIO_ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &old), 0);
	}
	close(taken);
}

/* Opened, used, and closed before the buffers are */
static void open_and_close(int n)
{
	struct vfio_pci_device *other = device;
	int fds[2], i;

	vfio_pci_device_cleanup(other);
	while (n--) {
		open_device();
		fds[0] = vfio_pci_dmabuf_export(device, bar, 0, SZ_2M, 0);
		fds[1] = vfio_pci_dmabuf_export(device, bar, 0, SZ_2M,
						VFIO_DMA_BUF_FLAG_ZONE_DEVICE);
		for (i = 0; i < 2; i++)
			munmap_bar(mmap_bar(fds[i], page, 0, 0), page);
		vfio_pci_device_cleanup(device);
		close(fds[0]);
		close(fds[1]);
	}
	open_device();
}

/* -- what is alive -------------------------------------------------------------- */

static void *live_maps(int n, int fd, off_t offset)
{
	void *vaddr = mmap_reserve(n * page, SZ_2M, 0);
	int i;

	/* From the end on, so that none are neighbours in both */
	for (i = 0; i < n; i++)
		VFIO_ASSERT_NE(mmap(vaddr + i * page, page, PROT_READ | PROT_WRITE,
				    MAP_SHARED | MAP_FIXED, fd, offset + (n - 1 - i) * page),
			       MAP_FAILED);
	return vaddr;
}

/*
 * So many live mappings of a BAR cost what as many of a plain file do, which is
 * their VMAs, and none makes a dma-buf.
 */
static void check_live_maps(int n)
{
	static struct kernel_memory file[2], ours[2];
	int fd = memfd_create("plain", MFD_CLOEXEC);
	long objects, kib;
	void *vaddr;
	int round;

	VFIO_ASSERT_GE(fd, 0);
	VFIO_ASSERT_EQ(ftruncate(fd, n * page), 0);
	for (round = 0; round < 2; round++) {
		kernel_memory_settle(&file[0]);
		vaddr = live_maps(n, fd, 0);
		kernel_memory_settle(&file[1]);
		munmap_bar(vaddr, n * page);

		kernel_memory_settle(&ours[0]);
		vaddr = live_maps(n, device->fd, bar_offset());
		kernel_memory_settle(&ours[1]);
		munmap_bar(vaddr, n * page);
	}
	close(fd);

	objects = kernel_memory_growth(&ours[0], &ours[1], file, SLACK(n));
	kib = (ours[1].other_kib - ours[0].other_kib) - (file[1].other_kib - file[0].other_kib);
	printf("# %d live mappings: a file's %ld VMAs, ours %ld; at most %ld objects more in a cache, %ld KiB not of slab, %d dma-bufs\n",
	       n, kernel_memory_cache(&file[1], "vm_area_struct") -
		  kernel_memory_cache(&file[0], "vm_area_struct"),
	       kernel_memory_cache(&ours[1], "vm_area_struct") -
	       kernel_memory_cache(&ours[0], "vm_area_struct"),
	       objects, kib, ours[1].dmabufs - ours[0].dmabufs);
	check(objects < SLACK(n) && kib < SLACK_KIB && ours[1].dmabufs == ours[0].dmabufs,
	      "%d live mappings of a BAR cost what those of a file do", n);
}

int main(int argc, char *argv[])
{
	static struct kernel_memory memory;
	struct rlimit files = { 4096, 4096 };
	int divisor = 1, option;

	while ((option = getopt(argc, argv, "d:")) != -1) {
		if (option != 'd')
			return 2;
		divisor = atoi(optarg);
	}
	if (argc - optind != 2 || divisor < 1) {
		fprintf(stderr, "usage: leaks [-d N] BDF BAR\n");
		return 2;
	}
	device_bdf = argv[optind];
	bar = atoi(argv[optind + 1]);
	page = getpagesize();
	VFIO_ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &files), 0);
	VFIO_ASSERT_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);

	kernel_memory_read(&memory);
	if (!memory.nr || memory.dmabufs < 0) {
		printf("Bail out! no /proc/slabinfo or no " BUFINFO "\n");
		return 1;
	}

	iommu = iommu_init(MODE_IOMMUFD);
	open_device();
	VFIO_ASSERT_GE(device->bars[bar].info.size, BAR_SIZE);

	check_live_maps(MAX_LIVE);
	check_back("mmap and munmap", map_and_unmap, 100000 / divisor, 100000 / divisor);
	check_back("many exports alive", export_many, MAX_LIVE, MAX_LIVE);
	check_back("many exports with pages", export_many_pages, 32 / divisor ?: 1,
		   BAR_SIZE / SZ_2M * (32 / divisor ?: 1));
	check_back("a mapping in many pieces", split_pfns, MAX_VMAS / divisor, MAX_VMAS / divisor);
	check_back("a mapping with pages in many pieces", split_pages, MAX_VMAS / divisor,
		   MAX_VMAS / divisor);
	check_back("many mappings of a BAR", map_many_of_bar, MAX_VMAS / divisor, MAX_VMAS / divisor);
	check_back("many mappings of a buffer", map_many_of_buffer, MAX_VMAS / divisor,
		   MAX_VMAS / divisor);
	check_back("trees of processes", fork_trees, 10 / divisor ?: 1, FAMILY * (10 / divisor ?: 1));
	check_back("mmap that fails", fail_mmap, 10000 / divisor, 10000 / divisor / 6);
	check_back("export that fails", fail_export, 10000 / divisor, 10000 / divisor / 8);
	check_back("a device opened and closed", open_and_close, 500 / divisor, 500 / divisor);
	printf("1..%d\n", tests);

	vfio_pci_device_cleanup(device);
	iommu_cleanup(iommu);
	return failures ? 1 : 0;
}
