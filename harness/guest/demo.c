// SPDX-License-Identifier: GPL-2.0-only
/*
 * The main job, shown: a disk's data lands in a vfio-pci BAR and goes back, with
 * nothing in between, until access is revoked. Runs in the guest of harness/vm
 * as: demo MEM_BDF MEM_BAR DISK
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <linux/limits.h>
#include <linux/sizes.h>

#include <libvfio.h>
#include <libvfio/vfio_pci_dmabuf.h>

#define REQUEST		SZ_8M
#define STREAMS		4

static int failures;
static size_t copied;		/* bytes that copy() moved */

static void check(bool ok, const char *what, ...)
{
	va_list args;

	printf("  %s  ", ok ? "ok  " : "FAIL");
	va_start(args, what);
	vprintf(what, args);
	va_end(args);
	printf("\n");
	failures += !ok;
}

static void die(const char *what)
{
	perror(what);
	printf("FAIL\n");
	exit(1);
}

/* What the CPU moves, it moves here */
static void copy(void *to, const void *from, size_t size)
{
	memcpy(to, from, size);
	copied += size;
}

static double now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

/* Seconds that all processors have spent in interrupts */
static double irq_time(void)
{
	unsigned long long irq, softirq;
	FILE *f = fopen("/proc/stat", "r");

	if (!f || fscanf(f, "cpu %*u %*u %*u %*u %*u %llu %llu", &irq, &softirq) != 2)
		die("/proc/stat");
	fclose(f);
	return (double)(irq + softirq) / sysconf(_SC_CLK_TCK);
}

struct cost {
	double elapsed, cpu;
	size_t copied;
};

static struct cost cost_now(void)
{
	return (struct cost) {
		.elapsed = now(CLOCK_MONOTONIC),
		.cpu = now(CLOCK_PROCESS_CPUTIME_ID) + irq_time(),
		.copied = copied,
	};
}

static struct cost cost_since(struct cost start)
{
	struct cost end = cost_now();

	return (struct cost) {
		.elapsed = end.elapsed - start.elapsed,
		.cpu = end.cpu - start.cpu,
		.copied = end.copied - start.copied,
	};
}

static void report(const char *what, size_t size, struct cost cost)
{
	printf("  %-34s %9zu bytes %8.0f MiB/s %7.2f ms CPU/MiB %9zu bytes copied by the CPU\n",
	       what, size, size / (double)SZ_1M / cost.elapsed,
	       cost.cpu * 1e3 / (size / (double)SZ_1M), cost.copied);
}

static void transfer(int disk, bool write, void *buf, size_t size, off_t at)
{
	size_t done;
	ssize_t n;

	for (done = 0; done < size; done += n) {
		size_t len = size - done < REQUEST ? size - done : REQUEST;

		n = write ? pwrite(disk, buf + done, len, at + done) :
			    pread(disk, buf + done, len, at + done);
		if (n <= 0)
			die(write ? "write to the disk" : "read from the disk");
	}
}

static u64 touch_all(const char *what, const void *vaddr, size_t size)
{
	u64 faults = minor_faults();
	int sig = try_touch(vaddr, size);

	faults = minor_faults() - faults;
	if (sig)
		die("touch");
	printf("  %-34s %9zu bytes %8llu page faults\n", what, size,
	       (unsigned long long)faults);
	return faults;
}

/* Lines of the kernel's list of dma-bufs */
static int count_dmabufs(void)
{
	FILE *f = fopen("/sys/kernel/debug/dma_buf/bufinfo", "r");
	char line[PATH_MAX];
	int n = -1;

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "Total %d objects", &n) == 1)
			break;
	if (f)
		fclose(f);
	return n;
}

struct stream {
	pthread_t thread;
	int disk, error;
	void *buf;
	size_t size;
	off_t at;
	atomic_size_t bytes;
};

/* Reads and writes in turn until it is not let any more */
static void *stream_fn(void *arg)
{
	struct stream *s = arg;
	size_t off;
	ssize_t n;

	for (off = 0; ; off = (off + SZ_1M) % s->size) {
		n = off & SZ_1M ? pwrite(s->disk, s->buf + off, SZ_1M, s->at + off) :
				  pread(s->disk, s->buf + off, SZ_1M, s->at + off);
		if (n < 0) {
			s->error = errno;
			return NULL;
		}
		s->bytes += n;
	}
}

static void revoke_under_traffic(struct vfio_pci_device *device, int disk,
				 int dmabuf, void *vaddr, size_t size)
{
	struct stream streams[STREAMS] = {};
	size_t bytes = 0;
	double t;
	int i, ret;

	for (i = 0; i < STREAMS; i++) {
		struct stream *s = &streams[i];

		s->disk = disk;
		s->size = size / STREAMS;
		s->buf = vaddr + i * s->size;
		s->at = i * s->size;
		if (pthread_create(&s->thread, NULL, stream_fn, s))
			die("pthread_create");
	}
	/* Every stream is to be at work */
	for (i = 0; i < STREAMS; i++)
		while (!streams[i].bytes)
			usleep(1000);

	t = now(CLOCK_MONOTONIC);
	ret = __vfio_pci_dmabuf_revoke(device, dmabuf);
	t = now(CLOCK_MONOTONIC) - t;
	for (i = 0; i < STREAMS; i++) {
		pthread_join(streams[i].thread, NULL);
		bytes += streams[i].bytes;
	}
	check(!ret, "revoked in %.1f ms under %d streams of O_DIRECT, after %zu bytes",
	      t * 1e3, STREAMS, bytes);

	for (i = 0; i < STREAMS && streams[i].error == EFAULT; i++)
		;
	check(i == STREAMS, "their next I/O failed with EFAULT");
	check(try_touch(vaddr, size) == SIGBUS, "an access by the CPU gets SIGBUS");
	check(pread(disk, vaddr, SZ_4K, 0) < 0 && errno == EFAULT,
	      "new I/O fails with EFAULT");
	check(mmap_errno(dmabuf, size, 0, PROT_READ, MAP_SHARED) == ENODEV,
	      "a new mmap() fails with ENODEV");
	check(__vfio_pci_dmabuf_revoke(device, dmabuf) == -EBADFD,
	      "revoking it again fails with EBADFD");
}

int main(int argc, char **argv)
{
	struct vfio_pci_device *device;
	u64 faults_plain, faults_pages;
	struct cost start, direct, bounce;
	int disk, plain_fd, pages_fd, bar, nr_dmabufs;
	void *own, *plain, *pages, *ram;
	struct iommu *iommu;
	size_t size;
	double t;

	if (argc != 4) {
		fprintf(stderr, "usage: demo MEM_BDF MEM_BAR DISK\n");
		return 2;
	}
	bar = atoi(argv[2]);

	disk = open(argv[3], O_RDWR | O_DIRECT);
	if (disk < 0)
		die(argv[3]);
	iommu = iommu_init(MODE_IOMMUFD);
	device = vfio_pci_device_init(argv[1], iommu);
	own = device->bars[bar].vaddr;
	size = device->bars[bar].info.size;
	if (size > SZ_64M)
		size = SZ_64M;
	nr_dmabufs = count_dmabufs();

	printf("Device %s, BAR %d, %zu MiB, bound to vfio-pci; disk %s, driven by nvme\n",
	       argv[1], bar, (size_t)(device->bars[bar].info.size / SZ_1M), argv[3]);

	printf("\nMapping the BAR through a dma-buf\n");
	plain_fd = vfio_pci_dmabuf_export(device, bar, 0, size, 0);
	plain = mmap_bar(plain_fd, size, 0, 0);
	faults_plain = touch_all("plain", plain, size);
	t = now(CLOCK_MONOTONIC);
	pages_fd = vfio_pci_dmabuf_export(device, bar, 0, size,
					  VFIO_DMA_BUF_FLAG_ZONE_DEVICE);
	t = now(CLOCK_MONOTONIC) - t;
	pages = mmap_bar(pages_fd, size, 0, 0);
	faults_pages = touch_all("page-backed", pages, size);
	printf("  (making the struct pages took %.1f ms)\n", t * 1e3);
	check(faults_plain <= size / SZ_2M && faults_pages <= size / SZ_2M,
	      "no more than one page fault for 2 MiB");

	ram = mmap(NULL, size, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (ram == MAP_FAILED)
		die("mmap");
	pattern_fill(ram, size, 1);
	transfer(disk, true, ram, size, 0);

	printf("\nFrom the disk into the BAR\n");
	memset(own, 0, size);
	start = cost_now();
	transfer(disk, false, pages, size, 0);
	direct = cost_since(start);
	report("O_DIRECT into the BAR", size, direct);
	check(pattern_check(own, size, 1) == size,
	      "what the device fd's own mapping shows is what was on the disk");
	check(!direct.copied, "nothing was copied by the CPU");

	memset(ram, 0, size);
	memset(own, 0, size);
	start = cost_now();
	transfer(disk, false, ram, size, 0);
	copy(plain, ram, size);
	bounce = cost_since(start);
	report("O_DIRECT into RAM, copy to the BAR", size, bounce);
	check(pattern_check(own, size, 1) == size, "the same data");
	printf("  direct: %.2f x the CPU time of the ordinary way\n",
	       direct.cpu / bounce.cpu);

	printf("\nFrom the BAR to the disk\n");
	pattern_fill(own, size, 2);
	start = cost_now();
	transfer(disk, true, pages, size, size);
	report("O_DIRECT from the BAR", size, cost_since(start));
	transfer(disk, false, ram, size, size);
	check(pattern_check(ram, size, 2) == size,
	      "what is on the disk is what the device fd's own mapping showed");
	check(pread(disk, plain, SZ_4K, 0) < 0 && errno == EFAULT,
	      "without struct pages the same fails with EFAULT");

	printf("\nRevoking it while that traffic runs\n");
	revoke_under_traffic(device, disk, pages_fd, pages, size);
	check(!try_touch(plain, size) && !try_touch(own, size),
	      "other mappings of the BAR are as they were");

	munmap_bar(pages, size);
	munmap_bar(plain, size);
	close(pages_fd);
	close(plain_fd);
	check(nr_dmabufs >= 0 && count_dmabufs() == nr_dmabufs,
	      "no dma-buf is left");
	pages_fd = vfio_pci_dmabuf_export(device, bar, 0, size,
					  VFIO_DMA_BUF_FLAG_ZONE_DEVICE);
	check(pages_fd >= 0, "the memory can be exported with pages again");
	close(pages_fd);

	vfio_pci_device_cleanup(device);
	iommu_cleanup(iommu);
	close(disk);

	printf("\n%s\n", failures ? "FAIL" : "PASS");
	return !!failures;
}
