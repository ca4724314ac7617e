// SPDX-License-Identifier: GPL-2.0-only
/*
 * What mappings of BARs cost the CPU. Runs in the guest of harness/vm, on this
 * series' kernel and on a stock one, as
 *
 *	bench instructions MEM_BDF MEM_BAR	with --icount: a nanosecond is an
 *						instruction then
 *	bench pages MEM_BDF MEM_BAR		the same, what has struct pages
 *	bench threads MEM_BDF MEM_BAR		with two processors, without it
 *
 * and prints "NAME VALUE" for each figure. harness/bench.md says what they are.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <linux/compiler.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>

#include <libvfio.h>
#include <libvfio/vfio_pci_dmabuf.h>
#include <mm/gup_test.h>

#define MAX_VMAS	10000
#define MAX_RANGES	4096
#define MAX_THREADS	2
#define THREAD_SIZE	SZ_1M

static struct vfio_pci_device *device;
static u32 bar;
static u64 clock_cost;

static u64 now_on(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static u64 now(void)
{
	return now_on(CLOCK_MONOTONIC);
}

static u64 since(u64 start)
{
	return now() - start - clock_cost;
}

/*
 * Of several rounds the cheapest counts: the others had an interrupt in them,
 * or an allocation that is not made every time.
 */
static void keep_least(u64 *least, u64 cost)
{
	if (cost < *least)
		*least = cost;
}

static void calibrate(void)
{
	u64 least = UINT64_MAX;
	int round;

	for (round = 0; round < 1000; round++)
		keep_least(&least, since(now()));
	clock_cost = least;
}

static void figure(u64 value, const char *name, ...)
{
	va_list args;

	VFIO_ASSERT_NE(value, UINT64_MAX, "no round of a figure was valid\n");
	va_start(args, name);
	vprintf(name, args);
	va_end(args);
	printf(" %llu\n", (unsigned long long)value);
}

static off_t bar_offset(void)
{
	return device->bars[bar].info.offset;
}

/* Replaces whatever is mapped at @vaddr */
static void map_at(void *vaddr, size_t size, int fd, off_t offset)
{
	void *mapped = mmap(vaddr, size, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_FIXED, fd, offset);

	VFIO_ASSERT_EQ((uintptr_t)mapped, (uintptr_t)vaddr);
}

static void bench_mmap(const char *name, size_t size, int fd, off_t offset)
{
	u64 start, least = UINT64_MAX;
	void *vaddr;
	int round;

	for (round = 0; round < 200; round++) {
		start = now();
		vaddr = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
		munmap(vaddr, size);
		keep_least(&least, since(start));
		VFIO_ASSERT_NE(vaddr, MAP_FAILED);
	}
	figure(least, name);
}

/* -- faults ------------------------------------------------------------------ */

static void touch(const void *vaddr, size_t size, size_t step)
{
	size_t at;

	for (at = 0; at < size; at += step)
		READ_ONCE(*(const u8 *)(vaddr + at));
}

/* The whole of it, in faults that map @step each */
static u64 first_touch(size_t size, size_t step, int fd, off_t offset, int rounds)
{
	void *vaddr = mmap_reserve(size, step, 0);
	u64 start, cost, faults, least = UINT64_MAX;

	while (rounds--) {
		map_at(vaddr, size, fd, offset);
		VFIO_ASSERT_EQ(madvise(vaddr, size, step == SZ_4K ? MADV_NOHUGEPAGE :
								    MADV_HUGEPAGE), 0);
		faults = minor_faults();
		start = now();
		touch(vaddr, size, step);
		cost = since(start);
		if (minor_faults() - faults == size / step)
			keep_least(&least, cost);
	}
	munmap_bar(vaddr, size);
	return least;
}

static void bench_faults(void)
{
	int fd = device->fd;

	figure(first_touch(SZ_64M, SZ_4K, fd, bar_offset(), 5), "touch-pte");
	figure(first_touch(SZ_64M, SZ_2M, fd, bar_offset(), 50), "touch-pmd");
	figure(first_touch(SZ_1G, SZ_1G, fd, bar_offset(), 50), "touch-pud");
}

/* -- dma-bufs ---------------------------------------------------------------- */

static struct {
	struct vfio_device_feature head;
	struct vfio_device_feature_dma_buf dma_buf;
	struct vfio_region_dma_range ranges[MAX_RANGES];
} request;

/* @nr ranges of together @size, each followed by a hole so that none are merged */
static void prepare_export(size_t size, u32 nr)
{
	u64 length = size / nr;
	u32 i;

	memset(&request, 0, sizeof(request));
	request.head.argsz = sizeof(request.head) + sizeof(request.dma_buf) +
			     nr * sizeof(*request.ranges);
	request.head.flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF;
	request.dma_buf.region_index = bar;
	request.dma_buf.open_flags = O_RDWR | O_CLOEXEC;
	request.dma_buf.nr_ranges = nr;
	for (i = 0; i < nr; i++) {
		request.ranges[i].offset = i * (length + SZ_4K);
		request.ranges[i].length = length;
	}
}

static int export(void)
{
	int fd = ioctl(device->fd, VFIO_DEVICE_FEATURE, &request);

	VFIO_ASSERT_GE(fd, 0);
	return fd;
}

static void bench_export(size_t size, u32 nr)
{
	u64 start, least_export = UINT64_MAX, least_close = UINT64_MAX;
	int round, fd;

	prepare_export(size, nr);
	for (round = 0; round < 50; round++) {
		start = now();
		fd = export();
		keep_least(&least_export, since(start));
		start = now();
		close(fd);
		keep_least(&least_close, since(start));
	}
	figure(least_export, "export-%u", nr);
	figure(least_close, "close-%u", nr);
}

static void bench_ranges(u32 nr)
{
	size_t size = MAX_RANGES * SZ_4K;
	int fd;

	prepare_export(size, nr);
	fd = export();
	figure(first_touch(size, SZ_4K, fd, 0, 20) / MAX_RANGES, "fault-ranges-%u", nr);
	close(fd);
}

/* -- taking the BAR away ----------------------------------------------------- */

/* Mappings of a page each; VM_PFNMAP keeps neighbours from being merged */
static void map_pages(void *vaddr, int nr, int fd, off_t offset)
{
	size_t at;

	for (at = 0; at < (size_t)nr * SZ_4K; at += SZ_4K)
		map_at(vaddr + at, SZ_4K, fd, offset + at);
}

/* The zap of a reset, without its waits: memory decoding is turned off */
static void bench_decode(void *vaddr, int nr)
{
	u16 command = vfio_pci_config_readw(device, PCI_COMMAND);
	u64 start, least = UINT64_MAX;
	int round;

	map_pages(vaddr, nr, device->fd, bar_offset());
	for (round = 0; round < 5; round++) {
		touch(vaddr, (size_t)nr * SZ_4K, SZ_4K);
		start = now();
		vfio_pci_config_writew(device, PCI_COMMAND, command & ~PCI_COMMAND_MEMORY);
		keep_least(&least, since(start));
		vfio_pci_config_writew(device, PCI_COMMAND, command);
	}
	munmap_bar(vaddr, (size_t)nr * SZ_4K);
	figure(least, "decode-off-%d", nr);
}

/* In CPU time, as a reset mostly sleeps */
static void bench_reset(void *vaddr, int nr)
{
	u64 start, least = UINT64_MAX;
	int round;

	map_pages(vaddr, nr, device->fd, bar_offset());
	for (round = 0; round < 3; round++) {
		touch(vaddr, (size_t)nr * SZ_4K, SZ_4K);
		start = now_on(CLOCK_THREAD_CPUTIME_ID);
		vfio_pci_device_reset(device);
		keep_least(&least, now_on(CLOCK_THREAD_CPUTIME_ID) - start);
	}
	munmap_bar(vaddr, (size_t)nr * SZ_4K);
	figure(least, "reset-%d", nr);
}

static void bench_revoke(void *vaddr, int nr)
{
	u64 start, least = UINT64_MAX;
	int round, fd;

	prepare_export(SZ_64M, 1);
	for (round = 0; round < 5; round++) {
		fd = export();
		map_pages(vaddr, nr, fd, 0);
		touch(vaddr, (size_t)nr * SZ_4K, SZ_4K);
		start = now();
		vfio_pci_dmabuf_revoke(device, fd);
		keep_least(&least, since(start));
		if (nr)
			munmap_bar(vaddr, (size_t)nr * SZ_4K);
		close(fd);
	}
	figure(least, "revoke-%d", nr);
}

static void bench_instructions(void)
{
	bool mappable_dmabufs = vfio_device_has_feature(device, VFIO_DEVICE_FEATURE_SET,
							VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE);
	void *vaddr = mmap_reserve(MAX_VMAS * SZ_4K, SZ_2M, 0);
	int fd;

	calibrate();
	bench_mmap("mmap-4k", SZ_4K, device->fd, bar_offset());
	bench_mmap("mmap-64m", SZ_64M, device->fd, bar_offset());
	bench_faults();

	bench_decode(vaddr, 1);
	bench_decode(vaddr, 100);
	bench_decode(vaddr, MAX_VMAS);
	bench_reset(vaddr, 1);
	bench_reset(vaddr, 100);
	bench_reset(vaddr, MAX_VMAS);

	bench_export(SZ_64M, 1);
	bench_export(SZ_64M, MAX_RANGES);

	if (!mappable_dmabufs)
		return;
	prepare_export(SZ_64M, 1);
	fd = export();
	bench_mmap("dmabuf-mmap-4k", SZ_4K, fd, 0);
	figure(first_touch(SZ_64M, SZ_4K, fd, 0, 5), "dmabuf-touch-pte");
	figure(first_touch(SZ_64M, SZ_2M, fd, 0, 50), "dmabuf-touch-pmd");
	close(fd);
	bench_ranges(1);
	bench_ranges(16);
	bench_ranges(256);
	bench_ranges(MAX_RANGES);
	bench_revoke(vaddr, 0);
	bench_revoke(vaddr, 1);
	bench_revoke(vaddr, 100);
	bench_revoke(vaddr, MAX_VMAS);
}

/* -- struct pages -------------------------------------------------------------- */

#define IO_REQUESTS	100

static int disk;

/*
 * What sleeps is measured by what it leaves to others: a thread that gets what nobody
 * else wants, interrupts not counted.
 */
static clockid_t idle_clock;

static void *idle(void *data)
{
	struct sched_param param = {};

	VFIO_ASSERT_EQ(sched_setscheduler(0, SCHED_IDLE, &param), 0);
	for (;;)
		;
	return NULL;
}

static void start_idle(void)
{
	pthread_t thread;

	VFIO_ASSERT_EQ(pthread_create(&thread, NULL, idle, NULL), 0);
	VFIO_ASSERT_EQ(pthread_getcpuclockid(thread, &idle_clock), 0);
	usleep(10000);
}

static u64 busy(void)
{
	return now() - now_on(idle_clock);
}

static int export_pages(size_t size)
{
	prepare_export(size, 1);
	request.dma_buf.flags = VFIO_DMA_BUF_FLAG_ZONE_DEVICE;
	return export();
}

static void bench_export_pages(const char *name, size_t size)
{
	u64 start, least = UINT64_MAX;
	int round;

	for (round = 0; round < 5; round++) {
		start = busy();
		close(export_pages(size));
		keep_least(&least, busy() - start);
	}
	figure(least / (size / SZ_1M), name);
}

/* mmap(), a touch of each page and munmap(): all that makes memory of a BAR usable */
static void bench_map_and_touch(const char *name, int fd, size_t size, size_t step)
{
	void *vaddr = mmap_reserve(size, SZ_2M, 0);
	u64 start, least = UINT64_MAX;
	int round;

	for (round = 0; round < 20; round++) {
		start = now();
		map_at(vaddr, size, fd, 0);
		touch(vaddr, size, step);
		munmap(vaddr, size);
		keep_least(&least, since(start));
	}
	figure(least, name);
}

/* The stock kernel's way to struct pages of a BAR: p2pmem of a disk */
static void bench_p2pmem(void)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/p2pmem/allocate",
		 getenv("NVME1_BDF"));
	fd = open(path, O_RDWR);
	VFIO_ASSERT_GE(fd, 0);
	bench_map_and_touch("p2pmem-map-8m", fd, SZ_8M, SZ_4K);
	close(fd);
}

/* Memory decoding off, with 1 GiB mapped by PMDs: 512 of them, and no PUD */
static void bench_freeze(const char *name, int fd)
{
	void *vaddr = mmap_reserve(SZ_1G + SZ_2M, SZ_1G, 0) + SZ_2M;
	u16 command = vfio_pci_config_readw(device, PCI_COMMAND);
	u64 start, least = UINT64_MAX;
	int round;

	map_at(vaddr, SZ_1G, fd, 0);
	madvise(vaddr, SZ_1G, MADV_HUGEPAGE);
	for (round = 0; round < 5; round++) {
		touch(vaddr, SZ_1G, SZ_2M);
		start = now();
		vfio_pci_config_writew(device, PCI_COMMAND, command & ~PCI_COMMAND_MEMORY);
		keep_least(&least, since(start));
		vfio_pci_config_writew(device, PCI_COMMAND, command);
	}
	munmap_bar(vaddr, SZ_1G);
	figure(least, name);
}

/*
 * A read from a disk, interrupts included, per MiB: the one with the fewest of them. With
 * @copy_to the data goes there from @vaddr by the CPU.
 */
static void bench_io(const char *name, void *vaddr, size_t size, void *copy_to)
{
	u64 start, least = UINT64_MAX;
	ssize_t done;
	int i;

	for (i = 0; i < IO_REQUESTS; i++) {
		/* Not in step with the disk, which could be out of it for good */
		usleep(i % 16 * 100);
		start = busy();
		done = pread(disk, vaddr, size, i % 2 * SZ_64M);
		if (copy_to)
			memcpy(copy_to, vaddr, size);
		keep_least(&least, busy() - start);
		VFIO_ASSERT_EQ(done, size);
	}
	figure(least / (size / SZ_1M), name);
}

/* Page faults that it takes to touch 1 GiB */
static void bench_faults_of_1g(int fd)
{
	void *vaddr = mmap_reserve(SZ_1G, SZ_2M, 0);

	map_at(vaddr, SZ_1G, fd, 0);
	figure(touch_faults(vaddr, SZ_1G), "faults-1g");
	munmap_bar(vaddr, SZ_1G);
}

static u64 memmap_pages(void)
{
	FILE *file = fopen("/proc/vmstat", "r");
	unsigned long long nr = 0;
	char line[128];

	VFIO_ASSERT_NOT_NULL(file);
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "nr_memmap_pages %llu", &nr) == 1)
			break;
	fclose(file);
	return nr;
}

/* RAM that the struct pages of 1 GiB take */
static void bench_memmap(void)
{
	u64 before = memmap_pages();
	int fd = export_pages(SZ_1G);

	figure((memmap_pages() - before) * SZ_4K / SZ_1K, "memmap-1g");
	close(fd);
}

/*
 * Pages looked up and let go, in portions of 1 MiB, per MiB. All that is called fast is
 * without mmap_lock.
 */
#define FOLL_WRITE		1
#define FOLL_PCI_P2PDMA		(1 << 10)
#define GUP_PORTION		(SZ_1M / SZ_4K)

static void bench_gup(const char *name, unsigned long request, void *vaddr, size_t size)
{
	u64 least = UINT64_MAX;
	int i, gup;

	gup = open("/sys/kernel/debug/gup_test", O_RDWR);
	VFIO_ASSERT_GE(gup, 0);
	for (i = 0; i < 20; i++) {
		struct gup_test test = {
			.addr = (uintptr_t)vaddr,
			.size = size,
			.nr_pages_per_call = GUP_PORTION,
			.gup_flags = FOLL_WRITE | FOLL_PCI_P2PDMA,
		};

		VFIO_ASSERT_EQ(ioctl(gup, request, &test), 0);
		VFIO_ASSERT_EQ(test.size, size);
		keep_least(&least, test.get_delta_usec + test.put_delta_usec);
	}
	close(gup);
	figure(least * 1000 / (size / SZ_1M), name);
}

static void bench_gups(const char *memory, void *vaddr, size_t size)
{
	char name[64];

	snprintf(name, sizeof(name), "gup-fast-%s", memory);
	bench_gup(name, PIN_FAST_BENCHMARK, vaddr, size);
	snprintf(name, sizeof(name), "gup-slow-%s", memory);
	bench_gup(name, PIN_BASIC_TEST, vaddr, size);
}

static void bench_pages(void)
{
	bool has_dmabufs = vfio_device_has_feature(device, VFIO_DEVICE_FEATURE_SET,
						   VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE);
	void *ram, *vaddr;
	int fd;

	calibrate();
	bench_p2pmem();
	if (has_dmabufs) {
		fd = export_pages(SZ_64M);
		bench_map_and_touch("pages-map-8m", fd, SZ_8M, SZ_4K);
		close(fd);
		prepare_export(SZ_1G, 1);
		fd = export();
		bench_freeze("freeze-plain", fd);
		close(fd);
		fd = export_pages(SZ_1G);
		bench_freeze("freeze-pages", fd);
		bench_faults_of_1g(fd);
		close(fd);
		bench_memmap();
	}

	start_idle();
	disk = open(getenv("NVME0"), O_RDONLY | O_DIRECT);
	VFIO_ASSERT_GE(disk, 0);
	ram = mmap_reserve(SZ_64M, SZ_2M, 0);
	ram = mmap(ram, SZ_64M, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	VFIO_ASSERT_NE(ram, MAP_FAILED);
	madvise(ram, SZ_64M, MADV_HUGEPAGE);
	memset(ram, 1, SZ_64M);
	vaddr = mmap_reserve(SZ_64M, SZ_2M, 0);
	map_at(vaddr, SZ_64M, device->fd, bar_offset());
	touch(vaddr, SZ_64M, SZ_4K);
	bench_gups("ram", ram, SZ_64M);
	bench_io("io-ram-1m", ram, SZ_1M, NULL);
	bench_io("io-ram-8m", ram, SZ_8M, NULL);
	bench_io("io-ram-64m", ram, SZ_64M, NULL);
	bench_io("io-copy-8m", ram, SZ_8M, vaddr);
	munmap_bar(vaddr, SZ_64M);

	if (!has_dmabufs)
		return;

	fd = export_pages(SZ_64M);
	map_at(vaddr, SZ_64M, fd, 0);
	touch(vaddr, SZ_64M, SZ_4K);
	bench_gups("bar", vaddr, SZ_64M);
	bench_io("io-bar-1m", vaddr, SZ_1M, NULL);
	bench_io("io-bar-8m", vaddr, SZ_8M, NULL);
	bench_io("io-bar-64m", vaddr, SZ_64M, NULL);
	munmap_bar(vaddr, SZ_64M);
	close(fd);
	bench_export_pages("export-pages-64m", SZ_64M);
	bench_export_pages("export-pages-1g", SZ_1G);
}

/* -- threads ----------------------------------------------------------------- */

static atomic_int nr_ready, nr_done;
static int nr_threads;

static void wait_until(atomic_int *counter, int value)
{
	while (*counter != value)
		;
}

static void *touch_together(void *vaddr)
{
	atomic_fetch_add(&nr_ready, 1);
	wait_until(&nr_ready, nr_threads);
	touch(vaddr, THREAD_SIZE, SZ_4K);
	atomic_fetch_add(&nr_done, 1);
	return NULL;
}

/* Nanoseconds for @nr threads to fault a mapping each, of the same BAR */
static u64 fault_with(int nr)
{
	pthread_t threads[MAX_THREADS];
	void *vaddr[MAX_THREADS];
	u64 start, cost;
	int i;

	nr_ready = 0;
	nr_done = 0;
	nr_threads = nr;
	for (i = 0; i < nr; i++) {
		vaddr[i] = mmap_reserve(THREAD_SIZE, SZ_2M, 0);
		map_at(vaddr[i], THREAD_SIZE, device->fd, bar_offset() + i * THREAD_SIZE);
		VFIO_ASSERT_EQ(madvise(vaddr[i], THREAD_SIZE, MADV_NOHUGEPAGE), 0);
	}
	for (i = 1; i < nr; i++)
		VFIO_ASSERT_EQ(pthread_create(&threads[i], NULL, touch_together, vaddr[i]), 0);
	/* This is one of them, and ready when the others are at work */
	wait_until(&nr_ready, nr - 1);
	start = now();
	touch_together(vaddr[0]);
	wait_until(&nr_done, nr);
	cost = since(start);

	for (i = 1; i < nr; i++)
		VFIO_ASSERT_EQ(pthread_join(threads[i], NULL), 0);
	for (i = 0; i < nr; i++)
		munmap_bar(vaddr[i], THREAD_SIZE);
	return cost;
}

static void bench_threads(void)
{
	u64 least[MAX_THREADS + 1];
	int round, nr;

	memset(least, 0xff, sizeof(least));
	/* Short and many: some are not disturbed, even where the host is busy */
	for (round = 0; round < 1000; round++)
		for (nr = 1; nr <= MAX_THREADS; nr++)
			keep_least(&least[nr], fault_with(nr));
	for (nr = 1; nr <= MAX_THREADS; nr++)
		figure(least[nr], "threads-%d", nr);
}

int main(int argc, char **argv)
{
	struct iommu *iommu;

	if (argc != 4) {
		fprintf(stderr, "usage: bench instructions|pages|threads MEM_BDF MEM_BAR\n");
		return 2;
	}
	iommu = iommu_init(MODE_IOMMUFD);
	device = vfio_pci_device_init(argv[2], iommu);
	bar = atoi(argv[3]);
	munmap_bar(device->bars[bar].vaddr, device->bars[bar].info.size);
	device->bars[bar].vaddr = NULL;

	if (!strcmp(argv[1], "threads"))
		bench_threads();
	else if (!strcmp(argv[1], "pages"))
		bench_pages();
	else
		bench_instructions();

	vfio_pci_device_cleanup(device);
	iommu_cleanup(iommu);
	return 0;
}
