// SPDX-License-Identifier: GPL-2.0-only
/*
 * Everything at once, for as long as is wanted. Runs in the guest of harness/vm,
 * started by harness/soak, as
 *
 *	soak [-r] [-s SEED] [-t SECONDS] [-w WATCHDOG_SECONDS] BDF[+BDF]...
 *
 * For each device, or devices that are reset together (BDF+BDF), there is a
 * process. It opens the device, by cdev or by group, closes it after some
 * seconds, and opens it again. Meanwhile its threads map, touch, export, revoke,
 * do O_DIRECT from and to $NVME0, fork, have the disk fail, and take the BARs away
 * in every way there is, while another one unbinds the driver now and then.
 *
 * No thread keeps another from doing anything. Descriptors that many use have
 * numbers that stay (dup2() of /dev/null closes what is behind them). What is
 * mapped is mapped far below where the kernel looks for room by itself, so that
 * whoever unmaps it, or touches it too late, harms nobody.
 *
 * What is written to memory-like BARs says where it was written: device and
 * offset. It is there from the beginning on, the disk has the same, and each
 * read must give what belongs to that place, whoever wrote it last.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <linux/compiler.h>
#include <linux/iommufd.h>
#include <linux/kernel.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>
#include <libvfio/vfio_pci_dmabuf.h>

#include "check.h"
#include "kernel_memory.h"

#define MAX_UNITS	6
#define MAX_DEVS	2
#define MAX_MEMORIES	3
#define NR_SLOTS	6
#define NR_USERS	4
#define NR_TAKERS	2
#define NR_WORKERS	(NR_USERS + NR_TAKERS)
#define NR_WATCHED	(MAX_UNITS * (NR_WORKERS + 2))
#define MAX_RANGES	64
#define PAGE		SZ_4K

/* A BAR of this size is divided: the ranges of shared slots, and of everybody's */
#define BAR_SIZE	SZ_64M
#define SLOT_PAGES	SZ_16M

#define ZONE_DEVICE	VFIO_DMA_BUF_FLAG_ZONE_DEVICE

#define OPS(_op)					\
	_op(OPEN_CDEV, "open by cdev")			\
	_op(OPEN_GROUP, "open by group")		\
	_op(CLOSE, "close the device")			\
	_op(UNBIND, "unbind the driver")		\
	_op(BIND, "bind it")				\
	_op(MMAP_BAR, "mmap the BAR")			\
	_op(MMAP_BUFFER, "mmap a dma-buf")		\
	_op(MMAP_PAGES, "mmap one with pages")		\
	_op(MUNMAP, "munmap")				\
	_op(MUNMAP_OTHER, "munmap what others use")	\
	_op(TOUCH_BAR, "touch the BAR")			\
	_op(TOUCH_BUFFER, "touch a dma-buf")		\
	_op(TOUCH_PAGES, "touch one with pages")	\
	_op(TOUCH_OTHER, "touch what others map")	\
	_op(SIGBUS_, "SIGBUS")				\
	_op(EXPORT, "export")				\
	_op(EXPORT_PAGES, "export with pages")		\
	_op(CLOSE_BUFFER, "close a dma-buf")		\
	_op(REVOKE, "revoke")				\
	_op(REVOKE_TWICE, "revoke twice at once")	\
	_op(REVOKE_EINTR, "revoke, interrupted")	\
	_op(RESET, "VFIO_DEVICE_RESET")			\
	_op(HOT_RESET, "hot reset")			\
	_op(SYSFS_RESET, "reset through sysfs")		\
	_op(MEMORY_OFF, "memory decoding off and on")	\
	_op(D3, "D3 and back")				\
	_op(LOW_POWER, "low power and back")		\
	_op(DISK_RESET, "reset the disk")		\
	_op(DISK_FAILURE, "have the disk fail")		\
	_op(FORK, "fork with mappings")			\
	_op(DONTNEED, "MADV_DONTNEED")			\
	_op(MPROTECT, "mprotect")			\
	_op(MREMAP, "mremap")				\
	_op(ODIRECT_READ, "O_DIRECT from the disk")	\
	_op(ODIRECT_WRITE, "O_DIRECT to the disk")	\
	_op(IOAS_MAP, "map in an IOAS")			\
	_op(IOAS_UNMAP, "unmap there")			\
	_op(READ, "read the region")			\
	_op(WRITE, "write it")

#define OP_ENUM(_name, _text) _name,
#define OP_TEXT(_name, _text) _text,
enum op { OPS(OP_ENUM) NR_OPS };
static const char *const op_texts[] = { OPS(OP_TEXT) };

struct device {
	const char *bdf;
	int fd;
	u32 bar;
	u64 size;
	off_t bar_offset;
	off_t config_offset;
	u8 pm;

	/* Memory-like, the nth that is; -1 for registers */
	int memory;
};

struct unit {
	struct device devs[MAX_DEVS];
	int nr_devs;
};

/* What a buffer, or a mapping of the device fd, is a window to */
struct geometry {
	struct device *dev;
	u32 flags;
	u32 nr;
	struct vfio_region_dma_range ranges[MAX_RANGES];
	u64 size;
};

struct mapping {
	struct geometry *geo;
	u64 start;
	void *vaddr;
	size_t size;
	enum op touch;
};

struct watched {
	u64 steps;
	int pid, tid;
	const char *what;
};

/* Between all processes */
static struct shared {
	u64 done[NR_OPS], failed[NR_OPS];
	int error[NR_OPS];
	struct watched watched[NR_WATCHED];
	bool stop;
	int failures_begun, failures_ended;	/* of the disk */
	int wrong;
	char first_wrong[256];
} *shared;

static struct unit units[MAX_UNITS];
static int nr_units;
static unsigned int seed;
static bool resets_at_any_time;
static int disk = -1, null_fd;

/* -- of one unit's process ------------------------------------------------------ */

struct worker {
	pthread_t thread;
	struct watched *watched;
	u64 random;
	int index;
	bool in_revoke;
};

static struct unit *unit;
static struct worker workers[NR_WORKERS], binder;
static struct {
	struct geometry geo;
	int fd;
} slots[NR_SLOTS];
static int iommufd, container, groups[MAX_DEVS], nr_groups;
static u32 ioas_id;
static bool by_cdev, unbinding;

/* Resets through sysfs, and whether there may be one now: see sysfs_reset() */
static int resets_begun, resets_ended;
static pthread_mutex_t resets_lock = PTHREAD_MUTEX_INITIALIZER;
static bool is_open;

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static u64 random_of(struct worker *w, u64 below)
{
	w->random ^= w->random << 13;
	w->random ^= w->random >> 7;
	w->random ^= w->random << 17;
	return (w->random >> 11) % below;
}

static bool one_in(struct worker *w, int n)
{
	return !random_of(w, n);
}

static void random_pause(struct worker *w)
{
	if (one_in(w, 3))
		usleep(random_of(w, one_in(w, 20) ? 20000 : 1000));
}

static int count(enum op op, int ret)
{
	if (ret < 0) {
		__atomic_fetch_add(&shared->failed[op], 1, __ATOMIC_RELAXED);
		WRITE_ONCE(shared->error[op], -ret);
	} else {
		__atomic_fetch_add(&shared->done[op], 1, __ATOMIC_RELAXED);
	}
	return ret;
}

static int result(long ret)
{
	return ret < 0 ? -errno : 0;
}

static void step(struct watched *watched, const char *what)
{
	WRITE_ONCE(watched->what, what);
	WRITE_ONCE(watched->steps, watched->steps + 1);
}

static __attribute__((__format__(__printf__, 1, 2))) void wrong(const char *format, ...)
{
	va_list args;

	if (__atomic_fetch_add(&shared->wrong, 1, __ATOMIC_RELAXED))
		return;
	va_start(args, format);
	vsnprintf(shared->first_wrong, sizeof(shared->first_wrong), format, args);
	va_end(args);
}

/* -- what is in a BAR --------------------------------------------------------------- */

#define TAG_MAGIC	0x5ba7ULL
#define TAG_STEP	SZ_2K

static u64 make_tag(int memory, u64 at, u16 any)
{
	return TAG_MAGIC << 48 | (u64)memory << 40 | at / TAG_STEP << 16 | any;
}

static bool is_tag(u64 value, int memory, u64 at)
{
	return value >> 16 == make_tag(memory, at, 0) >> 16;
}

static off_t disk_offset(const struct device *dev, u64 at)
{
	return (off_t)dev->memory * BAR_SIZE + at;
}

/* Behind that there is room for each of so many threads to write what it wants. */
#define SCRATCH_SIZE	SZ_4M
#define NR_SCRATCHES	16

static off_t scratch_offset(const struct worker *w)
{
	int nr = (unit - units) * NR_USERS + w->index;

	return nr < NR_SCRATCHES ? MAX_MEMORIES * (off_t)BAR_SIZE + nr * (off_t)SCRATCH_SIZE : -1;
}

static void whole_bar(struct geometry *geo, struct device *dev)
{
	geo->dev = dev;
	geo->flags = 0;
	geo->nr = 1;
	geo->ranges[0].offset = 0;
	geo->ranges[0].length = geo->size = dev->size;
}

/* Where in the BAR a page of the buffer is */
static u64 bar_at(const struct geometry *geo, u64 at)
{
	u32 i;

	for (i = 0; at >= geo->ranges[i].length; i++)
		at -= geo->ranges[i].length;
	return geo->ranges[i].offset + at;
}

static bool reads_tag(const struct mapping *map, u64 at, u64 value)
{
	struct device *dev = map->geo->dev;

	at += map->start;
	at = bar_at(map->geo, at & -PAGE) + at % PAGE;
	if (is_tag(value, dev->memory, at))
		return true;
	wrong("%s: %#llx at %#llx of the BAR", dev->bdf, (unsigned long long)value,
	      (unsigned long long)at);
	return false;
}

/* Returns a signal. */
static int touch(struct worker *w, struct mapping *map, u64 at, bool write)
{
	struct device *dev = map->geo->dev;
	u32 value32;
	u64 value;
	int sig;

	if (dev->memory < 0) {
		sig = try_read32(map->vaddr + at, &value32);
	} else if (write) {
		u64 in_bar = map->start + at;

		in_bar = bar_at(map->geo, in_bar & -PAGE) + in_bar % PAGE;
		value = make_tag(dev->memory, in_bar, random_of(w, 0x10000));
		sig = try_memcpy(map->vaddr + at, &value, sizeof(value));
	} else {
		sig = try_memcpy(&value, map->vaddr + at, sizeof(value));
		if (!sig)
			reads_tag(map, at, value);
	}
	if (sig == SIGBUS)
		count(SIGBUS_, 0);
	else if (!sig)
		count(map->touch, 0);
	return sig;
}

/* -- windows ---------------------------------------------------------------------- */

/* Two halves: a mapping begins in the first, and may move to the second */
#define WINDOW_BASE	(1UL << (sizeof(long) == 8 ? 44 : 29))
#define WINDOW_HALF	(2UL * SZ_64M)

static void *window_of(int index)
{
	return (void *)(WINDOW_BASE + index * 2 * WINDOW_HALF);
}

static void clear_windows(void)
{
	munmap(window_of(0), NR_WORKERS * 2 * WINDOW_HALF);
}

/* A part of the buffer, mapped in the worker's window */
static int map_part(struct worker *w, struct mapping *map, struct geometry *geo, int fd, off_t base)
{
	u64 pages = geo->size / PAGE, length = one_in(w, 4) ? pages : 1 + random_of(w, pages);
	u64 start = random_of(w, pages - length + 1);
	void *vaddr = window_of(w->index);

	/* Aligned as huge pages want it, or not */
	if (one_in(w, 2))
		start &= -(SZ_2M / PAGE);
	vaddr += start * PAGE % SZ_2M;
	if (one_in(w, 4))
		vaddr += random_of(w, 512) * PAGE;

	map->geo = geo;
	map->start = start * PAGE;
	map->size = length * PAGE;
	map->vaddr = mmap(vaddr, map->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
			  fd, base + map->start);
	return map->vaddr == MAP_FAILED ? -errno : 0;
}

static void unmap(struct mapping *map)
{
	count(MUNMAP, result(munmap(map->vaddr, map->size)));
}

/* -- what is done with a mapping -------------------------------------------------- */

static void touch_some(struct worker *w, struct mapping *map, int times)
{
	u64 pages = map->size / PAGE;

	while (times--)
		touch(w, map, random_of(w, pages) * PAGE + random_of(w, 2) * TAG_STEP,
		      one_in(w, 3));
}

/*
 * Reads what the BAR is to have, which the disk has from the beginning on; writes
 * it to a place where nobody else reads.
 *
 * A reset through sysfs does not wait for I/O in flight. What reads from the BAR
 * meanwhile can get anything, as from any device; so what is on the disk then is
 * not looked at.
 */
static void do_odirect(struct worker *w, struct mapping *map)
{
	struct device *dev = map->geo->dev;
	u64 at = random_of(w, map->size / PAGE) * PAGE, length = PAGE, in_bar, in;
	u64 most = (1 + random_of(w, one_in(w, 3) ? SCRATCH_SIZE / PAGE : 32)) * PAGE;
	off_t scratch = scratch_offset(w);
	static __thread u64 *buffer;
	bool write = scratch >= 0 && one_in(w, 2);
	int resets = READ_ONCE(resets_begun);
	int failures = READ_ONCE(shared->failures_begun);
	ssize_t ret;

	in_bar = bar_at(map->geo, map->start + at);
	while (length < most && at + length < map->size &&
	       bar_at(map->geo, map->start + at + length) == in_bar + length)
		length += PAGE;

	if (READ_ONCE(resets_ended) != resets)
		resets = -1;
	if (READ_ONCE(shared->failures_ended) != failures)
		failures = -1;
	if (write)
		ret = pwrite(disk, map->vaddr + at, length, scratch);
	else
		ret = pread(disk, map->vaddr + at, length, disk_offset(dev, in_bar));
	if (READ_ONCE(resets_begun) != resets)
		resets = -1;

	if (ret >= 0 && ret < (ssize_t)length) {
		errno = EFAULT;
		ret = -1;
	}
	count(write ? ODIRECT_WRITE : ODIRECT_READ, result(ret));
	/* -EFAULT: the BAR is not there. The disk only fails when it is made to. */
	if (ret < 0 && errno != EFAULT && errno != EINTR &&
	    !(errno == EIO && READ_ONCE(shared->failures_begun) != failures))
		wrong("O_DIRECT: %s", strerror(errno));
	if (ret < 0 || !write || resets < 0)
		return;

	if (!buffer)
		VFIO_ASSERT_EQ(posix_memalign((void **)&buffer, PAGE, SCRATCH_SIZE), 0);
	if (pread(disk, buffer, length, scratch) != (ssize_t)length)
		return;
	for (in = 0; in < length; in += TAG_STEP) {
		if (!is_tag(buffer[in / sizeof(*buffer)], dev->memory, in_bar + in)) {
			wrong("%s: O_DIRECT of %#llx at %#llx of the BAR", dev->bdf,
			      (unsigned long long)buffer[in / sizeof(*buffer)],
			      (unsigned long long)(in_bar + in));
			break;
		}
	}
}

static void do_fork(struct worker *w, struct mapping *map)
{
	int status = 0, round;
	pid_t pid;

	pid = fork();
	if (!pid) {
		/* With another sequence than the parent's */
		for (round = random_of(w, 16); round >= 0; round--)
			random_of(w, 2);
		for (round = random_of(w, 8); round >= 0; round--) {
			touch_some(w, map, 1 + random_of(w, 16));
			usleep(random_of(w, 20000));
		}
		if (one_in(w, 2))
			munmap(map->vaddr, PAGE * (1 + random_of(w, map->size / PAGE)));
		_exit(0);
	}
	count(FORK, result(pid));
	if (pid < 0)
		return;
	touch_some(w, map, random_of(w, 32));
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (status)
		wrong("a child ended with status %#x", status);
}

static void do_mremap(struct worker *w, struct mapping *map)
{
	void *to = window_of(w->index) + WINDOW_HALF + random_of(w, 1024) * PAGE;
	void *moved = mremap(map->vaddr, map->size, map->size, MREMAP_MAYMOVE | MREMAP_FIXED, to);

	count(MREMAP, result(moved == MAP_FAILED ? -1 : 0));
	if (moved != MAP_FAILED)
		map->vaddr = moved;
}

static void play(struct worker *w, struct mapping *map)
{
	struct geometry *geo = map->geo;
	int rounds = 1 + random_of(w, 6);
	u64 at, length;

	while (rounds-- && !READ_ONCE(shared->stop)) {
		step(w->watched, op_texts[map->touch]);
		at = random_of(w, map->size / PAGE) * PAGE;
		length = PAGE * (1 + random_of(w, (map->size - at) / PAGE));
		switch (random_of(w, 10)) {
		case 0:
			count(DONTNEED, result(madvise(map->vaddr + at, length, MADV_DONTNEED)));
			break;
		case 1:
			count(MPROTECT, result(mprotect(map->vaddr + at, length, PROT_READ |
							(one_in(w, 2) ? PROT_WRITE : 0))));
			break;
		case 2:
			do_mremap(w, map);
			break;
		case 3:
			if (one_in(w, 4))
				do_fork(w, map);
			break;
		case 4:
			madvise(map->vaddr, map->size, one_in(w, 2) ? MADV_HUGEPAGE :
								      MADV_NOHUGEPAGE);
			break;
		case 5 ... 7:
			if (geo->flags & ZONE_DEVICE && geo->dev->memory >= 0)
				do_odirect(w, map);
			break;
		}
		touch_some(w, map, 1 + random_of(w, 64));
		random_pause(w);
	}
}

/* -- dma-bufs ---------------------------------------------------------------------- */

static int export(struct worker *w, const struct geometry *geo)
{
	int fd = __vfio_pci_dmabuf_export(&(struct vfio_pci_device){ .fd = geo->dev->fd },
					  geo->dev->bar, geo->ranges, geo->nr,
					  O_RDWR | O_CLOEXEC, geo->flags);

	return count(geo->flags & ZONE_DEVICE ? EXPORT_PAGES : EXPORT, fd);
}

static int try_revoke(struct worker *w, const struct device *dev, int fd)
{
	struct vfio_device_feature_dma_buf_revoke revoke = { .dmabuf_fd = fd };
	int ret;

	/* The process' main thread then interrupts it. */
	WRITE_ONCE(w->in_revoke, true);
	ret = __vfio_device_feature(dev->fd, VFIO_DEVICE_FEATURE_SET |
				    VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE, &revoke, sizeof(revoke));
	WRITE_ONCE(w->in_revoke, false);
	if (ret == -EINTR)
		count(REVOKE_EINTR, 0);
	return ret;
}

static int revoke_one(struct worker *w, const struct device *dev, int fd)
{
	int ret;

	do {
		ret = try_revoke(w, dev, fd);
	} while (ret == -EINTR);
	return count(REVOKE, ret);
}

/* Two processes at the same time; one of them at least has done it. */
static void revoke_twice(struct worker *w, const struct device *dev, int fd)
{
	int ret, status = 0, pipes[2];
	pid_t pid;
	char byte;

	if (pipe(pipes))
		return;
	pid = fork();
	if (!pid) {
		close(pipes[1]);
		ret = read(pipes[0], &byte, 1);
		do {
			ret = try_revoke(w, dev, fd);
		} while (ret == -EINTR);
		_exit(-ret);
	}
	/* Not by closing it: the children of other threads have it, too. */
	ret = write(pipes[1], "", 1);
	close(pipes[0]);
	close(pipes[1]);
	do {
		ret = try_revoke(w, dev, fd);
	} while (ret == -EINTR);
	while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (!ret || WEXITSTATUS(status) == 0)
		ret = 0;
	count(REVOKE_TWICE, ret);
}

/*
 * Single pages, large parts, in any order, more than once; or all of it. With
 * pages only in the part of the BAR that the slots leave, in units of 2 MiB.
 */
static void random_geometry(struct worker *w, struct geometry *geo, struct device *dev)
{
	u64 unit_size = PAGE, first = 0;
	u32 i;

	geo->dev = dev;
	geo->flags = dev->size >= BAR_SIZE && one_in(w, 3) ? ZONE_DEVICE : 0;
	geo->nr = one_in(w, 2) ? 1 : 1 + random_of(w, one_in(w, 4) ? MAX_RANGES : 4);
	geo->size = 0;
	if (geo->flags) {
		unit_size = SZ_2M;
		first = BAR_SIZE / 2;
		geo->nr = 1 + random_of(w, 3);
	}
	for (i = 0; i < geo->nr; i++) {
		struct vfio_region_dma_range *range = &geo->ranges[i];
		u64 units = (dev->size - first) / unit_size;
		u64 most = one_in(w, 4) ? units : 16;

		/* Not more than fits into a window */
		if (most > units / geo->nr)
			most = units / geo->nr ?: 1;
		range->length = (1 + random_of(w, most)) * unit_size;
		range->offset = first + random_of(w, units - range->length / unit_size + 1) *
				unit_size;
		geo->size += range->length;
	}
}

/* One that nobody else has: revoked, it is gone at once and for good. */
static void own_buffer(struct worker *w)
{
	struct geometry geo;
	struct mapping map = { .touch = TOUCH_BUFFER };
	int fd, sig;

	random_geometry(w, &geo, &unit->devs[random_of(w, unit->nr_devs)]);
	if (geo.flags)
		map.touch = TOUCH_PAGES;
	fd = export(w, &geo);
	if (fd < 0)
		return;
	if (count(geo.flags ? MMAP_PAGES : MMAP_BUFFER, map_part(w, &map, &geo, fd, 0))) {
		count(CLOSE_BUFFER, result(close(fd)));
		return;
	}
	play(w, &map);
	if (one_in(w, 2)) {
		if (one_in(w, 4))
			revoke_twice(w, geo.dev, fd);
		else if (!revoke_one(w, geo.dev, fd)) {
			sig = touch(w, &map, random_of(w, map.size / PAGE) * PAGE, false);
			if (!sig)
				wrong("%s: a revoked buffer is still there", geo.dev->bdf);
		}
	}
	if (one_in(w, 2)) {
		count(CLOSE_BUFFER, result(close(fd)));
		touch_some(w, &map, 4);
		unmap(&map);
	} else {
		unmap(&map);
		count(CLOSE_BUFFER, result(close(fd)));
	}
}

/* One that is everybody's: by now it may be another one of the same ranges. */
static void slot_map(struct worker *w, int i)
{
	struct geometry *geo = &slots[i].geo;
	struct mapping map = { .touch = geo->flags ? TOUCH_PAGES : TOUCH_BUFFER };

	if (count(geo->flags ? MMAP_PAGES : MMAP_BUFFER, map_part(w, &map, geo, slots[i].fd, 0)))
		return;
	play(w, &map);
	unmap(&map);
}

static void slot_export(struct worker *w, int i)
{
	int fd = export(w, &slots[i].geo);

	if (fd < 0)
		return;
	dup2(fd, slots[i].fd);
	count(CLOSE_BUFFER, result(close(fd)));
}

static void slot_revoke(struct worker *w, int i)
{
	if (one_in(w, 4))
		revoke_twice(w, slots[i].geo.dev, slots[i].fd);
	else
		revoke_one(w, slots[i].geo.dev, slots[i].fd);
}

static bool is_dmabuf(int fd)
{
	char path[64], link[64] = "";

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return readlink(path, link, sizeof(link) - 1) > 0 && !strncmp(link, "/dmabuf", 7);
}

static void slot_import(struct worker *w, int i)
{
	u64 length = PAGE * (1 + random_of(w, slots[i].geo.size / PAGE));
	struct iommu_ioas_map_file map = {
		.size = sizeof(map),
		.flags = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE |
			 IOMMU_IOAS_MAP_FIXED_IOVA,
		.ioas_id = READ_ONCE(ioas_id),
		.fd = slots[i].fd,
		.length = length,
		.iova = SZ_4G + (u64)w->index * SZ_1G,
	};
	struct iommu_ioas_unmap unmap = {
		.size = sizeof(unmap),
		.ioas_id = map.ioas_id,
		.iova = map.iova,
		.length = length,
	};

	if (!is_dmabuf(slots[i].fd) ||
	    count(IOAS_MAP, result(ioctl(iommufd, IOMMU_IOAS_MAP_FILE, &map))))
		return;
	random_pause(w);
	count(IOAS_UNMAP, result(ioctl(iommufd, IOMMU_IOAS_UNMAP, &unmap)));
}

static void use_slot(struct worker *w)
{
	int i = random_of(w, NR_SLOTS);

	switch (random_of(w, 10)) {
	case 0 ... 1:
		slot_export(w, i);
		break;
	case 2:
		slot_revoke(w, i);
		/* It would be there for nothing. */
		slot_export(w, i);
		break;
	case 3:
		if (one_in(w, 4))
			count(CLOSE_BUFFER, result(dup2(null_fd, slots[i].fd)));
		break;
	case 4 ... 5:
		if (!READ_ONCE(by_cdev))
			break;
		/* What is not one range cannot be imported. */
		if (one_in(w, 2))
			i = one_in(w, 2) ? NR_SLOTS - 1 : random_of(w, 2);
		if (!is_dmabuf(slots[i].fd) || one_in(w, 4))
			slot_export(w, i);
		slot_import(w, i);
		break;
	default:
		/* The first ones are those that the disk reaches. */
		slot_map(w, one_in(w, 2) ? i : random_of(w, 2));
	}
}

/* -- other things to do -------------------------------------------------------------- */

static void use_bar(struct worker *w)
{
	struct device *dev = &unit->devs[random_of(w, unit->nr_devs)];
	struct mapping map = { .touch = TOUCH_BAR };
	struct geometry geo;

	whole_bar(&geo, dev);
	if (count(MMAP_BAR, map_part(w, &map, &geo, dev->fd, dev->bar_offset)))
		return;
	play(w, &map);
	unmap(&map);
}

static void use_region(struct worker *w)
{
	struct device *dev = &unit->devs[random_of(w, unit->nr_devs)];
	u64 at = random_of(w, dev->size / TAG_STEP) * TAG_STEP, value;
	int ret, resets;

	if (dev->memory < 0) {
		u32 value32;

		ret = pread(dev->fd, &value32, sizeof(value32), dev->bar_offset + at);
		if (ret == sizeof(value32) || ret < 0)
			count(READ, result(ret));
		return;
	}
	if (one_in(w, 2)) {
		value = make_tag(dev->memory, at, random_of(w, 0x10000));
		if (READ_ONCE(is_open))	/* not /dev/null */
			count(WRITE, result(pwrite(dev->fd, &value, sizeof(value),
						   dev->bar_offset + at)));
		return;
	}
	resets = READ_ONCE(resets_begun);
	if (READ_ONCE(resets_ended) != resets)
		resets = -1;
	ret = pread(dev->fd, &value, sizeof(value), dev->bar_offset + at);
	/* A device that somebody resets through sysfs may answer anything. */
	if (ret == sizeof(value) && READ_ONCE(resets_begun) == resets &&
	    !is_tag(value, dev->memory, at))
		wrong("%s: read() %#llx at %#llx", dev->bdf, (unsigned long long)value,
		      (unsigned long long)at);
	if (ret == sizeof(value) || ret < 0)
		count(READ, result(ret));
}

static void disturb_others(struct worker *w)
{
	void *at = window_of(random_of(w, NR_USERS)) + random_of(w, SZ_16M / PAGE) * PAGE;
	u32 value;

	if (one_in(w, 8))
		count(MUNMAP_OTHER, result(munmap(at, PAGE * (1 + random_of(w, 16)))));
	else
		count(TOUCH_OTHER, try_read32(at, &value) ? -EFAULT : 0);
}

/* While there is no device to be used, nobody tries often. */
static bool idles(struct worker *w)
{
	if (READ_ONCE(is_open) || one_in(w, 20))
		return false;
	step(w->watched, "waiting for the device");
	usleep(10000);
	return true;
}

static void *user(void *data)
{
	struct worker *w = data;

	while (!READ_ONCE(shared->stop)) {
		if (idles(w))
			continue;
		switch (random_of(w, 12)) {
		case 0 ... 3:
			step(w->watched, "using the BAR");
			use_bar(w);
			break;
		case 4 ... 5:
			step(w->watched, "using a buffer of its own");
			own_buffer(w);
			break;
		case 6 ... 9:
			step(w->watched, "using a shared buffer");
			use_slot(w);
			break;
		case 10:
			step(w->watched, "using the region");
			use_region(w);
			break;
		default:
			step(w->watched, "disturbing others");
			disturb_others(w);
		}
		random_pause(w);
	}
	return NULL;
}

/* -- taking the BARs away -------------------------------------------------------------- */

static int config_read(const struct device *dev, int at, u16 *value)
{
	return pread(dev->fd, value, sizeof(*value), dev->config_offset + at) == sizeof(*value) ?
	       0 : -errno;
}

static int config_write(const struct device *dev, int at, u16 value)
{
	return pwrite(dev->fd, &value, sizeof(value), dev->config_offset + at) == sizeof(value) ?
	       0 : -errno;
}

static int config_change(const struct device *dev, int at, u16 clear, u16 set)
{
	u16 value;

	return config_read(dev, at, &value) ?: config_write(dev, at, (value & ~clear) | set);
}

static void heal(const struct device *dev)
{
	if (dev->pm)
		config_change(dev, dev->pm + PCI_PM_CTRL, PCI_PM_CTRL_STATE_MASK, 0);
	config_change(dev, PCI_COMMAND, 0, PCI_COMMAND_MEMORY);
}

static int hot_reset(const struct device *dev)
{
	struct {
		struct vfio_pci_hot_reset head;
		__s32 fds[MAX_DEVS];
	} arg = { .head.argsz = sizeof(arg) };
	int i;

	/* By cdev whoever owns all devices need not say so. */
	if (!READ_ONCE(by_cdev)) {
		arg.head.count = nr_groups;
		for (i = 0; i < nr_groups; i++)
			arg.head.group_fds[i] = groups[i];
	}
	return result(ioctl(dev->fd, VFIO_DEVICE_PCI_HOT_RESET, &arg));
}

/*
 * Not while the device is opened or closed: vfio-pci then saves and restores its
 * config space without a lock against resets, in the stock kernel as well, and may
 * save BARs that are 0 (-r shows it). Nor while the driver is being unbound, which
 * has the reset wait for the device to be closed.
 */
static int sysfs_reset(const struct device *dev)
{
	struct vfio_pci_device device = { .bdf = dev->bdf };
	int ret = -EBUSY;

	if (!resets_at_any_time)
		pthread_mutex_lock(&resets_lock);
	if (resets_at_any_time || (is_open && !unbinding)) {
		__atomic_fetch_add(&resets_begun, 1, __ATOMIC_SEQ_CST);
		ret = vfio_pci_sysfs_reset(&device);
		__atomic_fetch_add(&resets_ended, 1, __ATOMIC_SEQ_CST);
	}
	if (!resets_at_any_time)
		pthread_mutex_unlock(&resets_lock);
	return ret;
}

static void set_open(bool open)
{
	pthread_mutex_lock(&resets_lock);
	WRITE_ONCE(is_open, open);
	pthread_mutex_unlock(&resets_lock);
}

static void set_unbinding(bool value)
{
	pthread_mutex_lock(&resets_lock);
	WRITE_ONCE(unbinding, value);
	pthread_mutex_unlock(&resets_lock);
}

static int off_and_on(struct worker *w, const struct device *dev, int at, u16 clear, u16 set)
{
	int ret = config_change(dev, at, clear, set);

	usleep(random_of(w, 3000));
	return ret ?: config_change(dev, at, set, clear);
}

static int low_power(struct worker *w, const struct device *dev)
{
	int ret = __vfio_device_feature(dev->fd, VFIO_DEVICE_FEATURE_SET |
					VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY, NULL, 0);

	usleep(random_of(w, 30000));
	return ret ?: __vfio_device_feature(dev->fd, VFIO_DEVICE_FEATURE_SET |
					    VFIO_DEVICE_FEATURE_LOW_POWER_EXIT, NULL, 0);
}

/* Nobody sees more of it than that all takes longer. */
static int disk_reset(void)
{
	char path[128];

	snprintf(path, sizeof(path), "/sys/block/%s/device/reset_controller",
		 strrchr(getenv("NVME0"), '/') + 1);
	errno = 0;
	return write_text(path, "1") ? 0 : -errno;
}

/* One in five requests that are submitted within some milliseconds */
#define DISK_FAILURES "/sys/kernel/debug/fail_make_request/"

static bool disk_failure_prepare(void)
{
	char path[128];

	snprintf(path, sizeof(path), "/sys/block/%s/make-it-fail",
		 strrchr(getenv("NVME0"), '/') + 1);
	return write_text(path, "1") && write_text(DISK_FAILURES "verbose", "0") &&
	       write_text(DISK_FAILURES "times", "-1");
}

static int disk_failure(struct worker *w)
{
	int ret;

	__atomic_fetch_add(&shared->failures_begun, 1, __ATOMIC_SEQ_CST);
	errno = 0;
	ret = write_text(DISK_FAILURES "probability", "20") ? 0 : -errno;
	usleep(random_of(w, 10000));
	write_text(DISK_FAILURES "probability", "0");
	__atomic_fetch_add(&shared->failures_ended, 1, __ATOMIC_SEQ_CST);
	return ret;
}

static void *taker(void *data)
{
	struct worker *w = data;
	const struct device *dev;

	while (!READ_ONCE(shared->stop)) {
		if (idles(w))
			continue;
		dev = &unit->devs[random_of(w, unit->nr_devs)];
		switch (random_of(w, 16)) {
		case 0:
			step(w->watched, op_texts[RESET]);
			count(RESET, result(ioctl(dev->fd, VFIO_DEVICE_RESET)));
			break;
		case 1:
			step(w->watched, op_texts[HOT_RESET]);
			count(HOT_RESET, hot_reset(dev));
			break;
		case 2:
			step(w->watched, op_texts[SYSFS_RESET]);
			count(SYSFS_RESET, sysfs_reset(dev));
			break;
		case 3:
			if (one_in(w, 2)) {
				step(w->watched, op_texts[DISK_RESET]);
				count(DISK_RESET, disk_reset());
			} else {
				step(w->watched, op_texts[DISK_FAILURE]);
				count(DISK_FAILURE, disk_failure(w));
			}
			break;
		case 4:
			step(w->watched, op_texts[LOW_POWER]);
			count(LOW_POWER, low_power(w, dev));
			break;
		case 5 ... 8:
			step(w->watched, op_texts[D3]);
			if (dev->pm)
				count(D3, off_and_on(w, dev, dev->pm + PCI_PM_CTRL, 0,
						     PCI_PM_CTRL_STATE_MASK));
			break;
		default:
			step(w->watched, op_texts[MEMORY_OFF]);
			count(MEMORY_OFF, off_and_on(w, dev, PCI_COMMAND, PCI_COMMAND_MEMORY, 0));
		}
		if (!one_in(w, 16))
			heal(dev);
		/* Most of the time there is a BAR that can be used. */
		usleep(random_of(w, 40000));
	}
	return NULL;
}

/* -- the driver ------------------------------------------------------------------------ */

static int sysfs_write(const char *name, const char *bdf)
{
	char path[128];

	snprintf(path, sizeof(path), "/sys/bus/pci/%s", name);
	errno = 0;
	return write_text(path, bdf) ? 0 : -errno;
}

/* Waits until the device is closed. */
static int unbind(const char *bdf)
{
	return sysfs_write("drivers/vfio-pci/unbind", bdf);
}

static int bind(const char *bdf)
{
	return sysfs_write("drivers_probe", bdf);
}

static void *bind_and_unbind(void *data)
{
	struct worker *w = data;
	const char *bdf;
	int pause;

	while (!READ_ONCE(shared->stop)) {
		/* Opening takes its time; to be kept from it each time would be no use. */
		for (pause = 1 + random_of(w, 40); pause && !READ_ONCE(shared->stop);
		     pause -= READ_ONCE(is_open)) {
			step(w->watched, "waiting to unbind");
			usleep(100000);
		}

		bdf = unit->devs[random_of(w, unit->nr_devs)].bdf;
		step(w->watched, op_texts[UNBIND]);
		set_unbinding(true);
		count(UNBIND, unbind(bdf));
		step(w->watched, op_texts[BIND]);
		count(BIND, bind(bdf));
		set_unbinding(false);
	}
	return NULL;
}

/* -- the device ------------------------------------------------------------------------ */

static void close_fd(int fd)
{
	dup2(null_fd, fd);
}

/* Moves @fd to the number that everybody uses. */
static void keep_fd(int fd, int number)
{
	dup2(fd, number);
	close(fd);
}

static void close_all(void)
{
	int i;

	for (i = 0; i < unit->nr_devs; i++)
		close_fd(unit->devs[i].fd);
	for (i = 0; i < MAX_DEVS; i++)
		close_fd(groups[i]);
	close_fd(container);
	close_fd(iommufd);
	clear_windows();
}

static int open_cdev(const struct device *dev)
{
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach) };
	char path[300];
	struct dirent *entry;
	int fd = -1, ret;
	DIR *dir;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev", dev->bdf);
	dir = opendir(path);
	if (!dir)
		return -errno;
	while (fd < 0 && (entry = readdir(dir))) {
		if (strncmp(entry->d_name, "vfio", 4))
			continue;
		snprintf(path, sizeof(path), "/dev/vfio/devices/%s", entry->d_name);
		fd = open(path, O_RDWR | O_CLOEXEC);
	}
	closedir(dir);
	if (fd < 0)
		return -ENODEV;

	ret = __vfio_device_bind_iommufd(fd, iommufd, NULL);
	attach.pt_id = ioas_id;
	ret = ret ?: result(ioctl(fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach));
	if (ret)
		close(fd);
	else
		keep_fd(fd, dev->fd);
	return ret;
}

static int open_cdevs(void)
{
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	int fd, i, ret;

	fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	keep_fd(fd, iommufd);
	ret = result(ioctl(iommufd, IOMMU_IOAS_ALLOC, &alloc));
	WRITE_ONCE(ioas_id, alloc.out_ioas_id);
	for (i = 0; i < unit->nr_devs && !ret; i++)
		ret = open_cdev(&unit->devs[i]);
	return ret;
}

static int open_groups(void)
{
	int numbers[MAX_DEVS], fd, i, j, ret;
	char path[128], link[128];

	fd = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	keep_fd(fd, container);
	nr_groups = 0;
	for (i = 0; i < unit->nr_devs; i++) {
		snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/iommu_group",
			 unit->devs[i].bdf);
		ret = readlink(path, link, sizeof(link) - 1);
		if (ret < 0)
			return -errno;
		link[ret] = 0;
		numbers[i] = atoi(strrchr(link, '/') + 1);
		for (j = 0; j < i && numbers[j] != numbers[i]; j++)
			;
		if (j < i)
			continue;	/* both devices in one */

		snprintf(path, sizeof(path), "/dev/vfio/%d", numbers[i]);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			return -errno;
		keep_fd(fd, groups[nr_groups]);
		if (ioctl(groups[nr_groups++], VFIO_GROUP_SET_CONTAINER, &container))
			return -errno;
	}
	if (ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
		return -errno;
	for (i = 0; i < unit->nr_devs; i++) {
		fd = -1;
		for (j = 0; j < nr_groups && fd < 0; j++)
			fd = ioctl(groups[j], VFIO_GROUP_GET_DEVICE_FD, unit->devs[i].bdf);
		if (fd < 0)
			return -errno;
		keep_fd(fd, unit->devs[i].fd);
	}
	return 0;
}

/* For some seconds, with signals for who revokes and sometimes for others */
static void session(struct worker *w)
{
	bool cdev = one_in(w, 2);
	double start = now(), end;
	int i;

	WRITE_ONCE(by_cdev, cdev);
	if (count(cdev ? OPEN_CDEV : OPEN_GROUP, cdev ? open_cdevs() : open_groups())) {
		/* The driver may be gone, or a mapping made too late keeps the device open. */
		close_all();
		usleep(10000);
		return;
	}
	set_open(true);
	for (i = 0; i < unit->nr_devs; i++)
		heal(&unit->devs[i]);

	/* Longer than it takes to come here */
	end = now() + 2 * (now() - start) + 0.5 + random_of(w, 4000) / 1000.0;
	do {
		step(w->watched, "the device is open");
		usleep(1000);
		for (i = 0; i < NR_USERS; i++) {
			if ((READ_ONCE(workers[i].in_revoke) && one_in(w, 2)) || one_in(w, 1000))
				pthread_kill(workers[i].thread, SIGUSR1);
		}
		if (READ_ONCE(unbinding) && one_in(w, 100))
			break;
	} while (now() < end && !READ_ONCE(shared->stop));

	step(w->watched, op_texts[CLOSE]);
	set_open(false);
	close_all();
	count(CLOSE, 0);
}

static void on_signal(int sig)
{
}

static void init_slots(struct worker *w)
{
	int i;

	for (i = 0; i < NR_SLOTS; i++) {
		struct geometry *geo = &slots[i].geo;
		struct device *dev = &unit->devs[i % unit->nr_devs];

		slots[i].fd = fcntl(null_fd, F_DUPFD_CLOEXEC, 100);
		do {
			random_geometry(w, geo, dev);
		} while (geo->flags);
		if (i < 2 * unit->nr_devs && dev->size >= BAR_SIZE) {
			geo->flags = ZONE_DEVICE;
			geo->nr = 1;
			geo->ranges[0].offset = i / unit->nr_devs * (u64)SLOT_PAGES;
			geo->ranges[0].length = geo->size = SLOT_PAGES;
		} else if (i == NR_SLOTS - 1) {
			whole_bar(geo, dev);
		}
	}
}

static void run_unit(int index, int phase)
{
	struct watched *watched = &shared->watched[index * (NR_WORKERS + 2)];
	struct sigaction action = { .sa_handler = on_signal };
	struct worker self = { .watched = watched };
	void *(*fn)(void *data);
	int i;

	unit = &units[index];
	self.random = (seed + 1ULL) * 0x9e3779b97f4a7c15ULL ^ (index * 2 + phase + 1) << 20;
	for (i = 0; i < 10; i++)
		random_of(&self, 1);

	/* No SA_RESTART: what is interrupted returns. */
	sigaction(SIGUSR1, &action, NULL);
	iommufd = fcntl(null_fd, F_DUPFD_CLOEXEC, 100);
	container = fcntl(null_fd, F_DUPFD_CLOEXEC, 100);
	for (i = 0; i < MAX_DEVS; i++) {
		groups[i] = fcntl(null_fd, F_DUPFD_CLOEXEC, 100);
		unit->devs[i].fd = fcntl(null_fd, F_DUPFD_CLOEXEC, 100);
	}
	init_slots(&self);

	watched->pid = watched->tid = getpid();
	for (i = 0; i <= NR_WORKERS; i++) {
		struct worker *w = i < NR_WORKERS ? &workers[i] : &binder;

		w->index = i;
		w->watched = &watched[i + 1];
		w->random = random_of(&self, -1ULL) | 1;
		w->watched->pid = getpid();
		fn = i == NR_WORKERS ? bind_and_unbind : i < NR_USERS ? user : taker;
		VFIO_ASSERT_EQ(pthread_create(&w->thread, NULL, fn, w), 0);
	}
	while (!READ_ONCE(shared->stop))
		session(&self);
	/* Who is still at it may need the device to be closed once more. */
	for (i = 0; i <= NR_WORKERS; i++) {
		pthread_join(i < NR_WORKERS ? workers[i].thread : binder.thread, NULL);
		(i < NR_WORKERS ? workers[i] : binder).watched->pid = 0;
	}
	watched->pid = 0;
	_exit(0);
}

/* -- before and after ------------------------------------------------------------------ */

/* ivshmem's memory is the one that stays what it is whatever happens. */
static bool is_memory(struct vfio_pci_device *device, u64 size)
{
	return vfio_pci_config_readw(device, PCI_VENDOR_ID) == 0x1af4 && size == BAR_SIZE;
}

static void prepare_disk(struct device *dev)
{
	u64 at, in, *buffer;

	VFIO_ASSERT_EQ(posix_memalign((void **)&buffer, PAGE, SZ_1M), 0);
	for (at = 0; at < dev->size; at += SZ_1M) {
		memset(buffer, 0, SZ_1M);
		for (in = 0; in < SZ_1M; in += TAG_STEP)
			buffer[in / 8] = make_tag(dev->memory, at + in, 0);
		VFIO_ASSERT_EQ(pwrite(disk, buffer, SZ_1M, disk_offset(dev, at)), SZ_1M);
	}
	free(buffer);
}

static u64 disk_wrong(struct device *dev)
{
	u64 at, in, *buffer, bad = 0;

	VFIO_ASSERT_EQ(posix_memalign((void **)&buffer, PAGE, SZ_1M), 0);
	for (at = 0; at < dev->size; at += SZ_1M) {
		VFIO_ASSERT_EQ(pread(disk, buffer, SZ_1M, disk_offset(dev, at)), SZ_1M);
		for (in = 0; in < SZ_1M; in += TAG_STEP)
			bad += !is_tag(buffer[in / 8], dev->memory, at + in);
	}
	free(buffer);
	return bad;
}

/* What has to be known of it; and its memory, and its part of the disk, filled */
static void prepare(struct device *dev, int *memories)
{
	struct iommu *iommu = iommu_init(MODE_IOMMUFD);
	struct vfio_pci_device *device = vfio_pci_device_init(dev->bdf, iommu);
	u64 at;
	int fd;

	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
	dev->bar = vfio_pci_largest_bar(device);
	dev->size = device->bars[dev->bar].info.size;
	dev->bar_offset = device->bars[dev->bar].info.offset;
	dev->config_offset = device->config_space.offset;
	dev->pm = vfio_pci_find_cap(device, PCI_CAP_ID_PM);
	dev->memory = *memories < MAX_MEMORIES && is_memory(device, dev->size) ?
		      (*memories)++ : -1;
	VFIO_ASSERT_LE(dev->size, BAR_SIZE);
	printf("# %s: BAR %u of %lluK, %s%s\n", dev->bdf, dev->bar,
	       (unsigned long long)dev->size / 1024, dev->memory < 0 ? "registers" : "memory",
	       dev->pm ? ", power management" : "");

	if (dev->memory >= 0) {
		for (at = 0; at < dev->size; at += TAG_STEP)
			WRITE_ONCE(*(u64 *)(device->bars[dev->bar].vaddr + at),
				   make_tag(dev->memory, at, 0));
		prepare_disk(dev);
		fd = __vfio_pci_dmabuf_export(device, dev->bar,
					      &(struct vfio_region_dma_range){ .length = SZ_2M }, 1,
					      O_RDWR | O_CLOEXEC, ZONE_DEVICE);
		VFIO_ASSERT_GE(fd, 0);
		close(fd);
	}
	vfio_pci_device_cleanup(device);
	iommu_cleanup(iommu);
}

/* What the device says of its BAR, and what the kernel believes */
static void tell_bar(const struct device *dev)
{
	char path[128], line[128];
	FILE *file;
	u32 config[16];
	u32 i;
	int fd;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/config", dev->bdf);
	fd = open(path, O_RDONLY);
	if (read(fd, config, sizeof(config)) == sizeof(config))
		printf("# %s: command and status %#x, BAR %u %#x %x; the kernel's:\n", dev->bdf,
		       config[1], dev->bar, config[4 + dev->bar], config[5 + dev->bar]);
	close(fd);
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/resource", dev->bdf);
	file = fopen(path, "r");
	for (i = 0; file && fgets(line, sizeof(line), file); i++) {
		if (i == dev->bar)
			printf("#     %s", line);
	}
	if (file)
		fclose(file);
}

/* How much is not what belongs there, by now */
static u64 bar_wrong(struct device *dev)
{
	struct iommu *iommu = iommu_init(MODE_IOMMUFD);
	struct vfio_pci_device *device = vfio_pci_device_init(dev->bdf, iommu);
	u64 at, bad = 0;

	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY);
	VFIO_ASSERT_EQ(try_touch(device->bars[dev->bar].vaddr, dev->size), 0);
	for (at = 0; dev->memory >= 0 && at < dev->size; at += TAG_STEP)
		bad += !is_tag(READ_ONCE(*(u64 *)(device->bars[dev->bar].vaddr + at)),
			       dev->memory, at);
	if (bad)
		tell_bar(dev);
	VFIO_ASSERT_EQ(close(vfio_pci_dmabuf_export(device, dev->bar, 0, PAGE, 0)), 0);
	vfio_pci_device_cleanup(device);
	iommu_cleanup(iommu);
	return bad;
}

static void tell_file(const char *path)
{
	char line[512];
	FILE *file = fopen(path, "r");

	while (file && fgets(line, sizeof(line), file))
		printf("#     %s", line);
	if (file)
		fclose(file);
}

/* Where every thread of every process is; the kernel log has who is blocked. */
static void tell_stacks(void)
{
	struct dirent *entry, *task;
	char path[600];
	DIR *dir, *tasks;

	write_text("/proc/sysrq-trigger", "w");
	dir = opendir("/proc");
	while (dir && (entry = readdir(dir))) {
		snprintf(path, sizeof(path), "/proc/%s/task", entry->d_name);
		tasks = atoi(entry->d_name) ? opendir(path) : NULL;
		while (tasks && (task = readdir(tasks))) {
			if (!atoi(task->d_name))
				continue;
			printf("# %s/%s:\n", entry->d_name, task->d_name);
			snprintf(path, sizeof(path), "/proc/%s/task/%s/comm", entry->d_name,
				 task->d_name);
			tell_file(path);
			snprintf(path, sizeof(path), "/proc/%s/task/%s/stack", entry->d_name,
				 task->d_name);
			tell_file(path);
		}
		if (tasks)
			closedir(tasks);
	}
	if (dir)
		closedir(dir);
	write_text("/proc/sysrq-trigger", "l");
	fflush(stdout);
}

/*
 * Everything for so long. False if somebody makes no progress; the processes are left
 * as they are then.
 */
static bool storm(int phase, double seconds, double patience)
{
	static u64 steps[NR_WATCHED];
	static double since[NR_WATCHED];
	double start = now();
	int i, running = 0, status, bad = 0;

	WRITE_ONCE(shared->stop, false);
	fflush(stdout);
	for (i = 0; i < nr_units; i++) {
		pid_t pid = fork();

		VFIO_ASSERT_GE(pid, 0);
		if (!pid)
			run_unit(i, phase);
		running++;
	}
	for (i = 0; i < NR_WATCHED; i++)
		since[i] = start;

	while (running) {
		usleep(100000);
		if (now() - start > seconds)
			WRITE_ONCE(shared->stop, true);
		while (waitpid(-1, &status, WNOHANG) > 0) {
			running--;
			bad += !!status;
			if (status)
				printf("# a process ended with status %#x\n", status);
		}
		for (i = 0; i < NR_WATCHED; i++) {
			struct watched *watched = &shared->watched[i];

			if (!READ_ONCE(watched->pid) || READ_ONCE(watched->steps) != steps[i]) {
				steps[i] = READ_ONCE(watched->steps);
				since[i] = now();
			} else if (now() - since[i] > patience) {
				printf("# no progress: thread %d of process %d: %s\n",
				       i % (NR_WORKERS + 2), watched->pid, watched->what);
				tell_stacks();
				return false;
			}
		}
	}
	return !bad;
}

static void tell_table(void)
{
	int op;

	printf("# %-28s %10s %10s\n", "", "done", "failed");
	for (op = 0; op < NR_OPS; op++)
		printf("# %-28s %10llu %10llu  %s\n", op_texts[op],
		       (unsigned long long)shared->done[op], (unsigned long long)shared->failed[op],
		       shared->failed[op] ? strerror(shared->error[op]) : "");
	fflush(stdout);
}

static bool all_done(void)
{
	bool good = true;
	int op;

	for (op = 0; op < NR_OPS; op++) {
		if (shared->done[op])
			continue;
		/* A matter of chance: there has to be something to wait for */
		if (op == REVOKE_EINTR && shared->done[REVOKE] < 500)
			continue;
		printf("# never: %s\n", op_texts[op]);
		good = false;
	}
	return good;
}

static bool rebind(struct device *dev)
{
	int ret;

	alarm(60);	/* whoever waits for ever dies of it */
	ret = unbind(dev->bdf) ?: bind(dev->bdf);
	alarm(0);
	if (ret)
		printf("# %s: %s\n", dev->bdf, strerror(-ret));
	return !ret;
}

#define KMEMLEAK "/sys/kernel/debug/kmemleak"

static bool kmemleak_is_on(void)
{
	char text[1024] = "";
	int fd = open("/proc/cmdline", O_RDONLY);

	if (fd < 0 || read(fd, text, sizeof(text) - 1) < 0)
		text[0] = 0;
	close(fd);
	return strstr(text, "kmemleak=on") && !access(KMEMLEAK, F_OK);
}

/* What a scan suspects may be on its way through a register; not so twice. */
static bool kmemleak_finds_nothing(void)
{
	char byte;
	bool good;
	int fd;

	sleep(6);	/* the age from which on it suspects anything */
	write_text(KMEMLEAK, "scan");
	sleep(6);
	write_text(KMEMLEAK, "scan");
	fd = open(KMEMLEAK, O_RDONLY);
	good = fd >= 0 && !read(fd, &byte, 1);
	close(fd);
	if (!good)
		tell_file(KMEMLEAK);
	return good;
}

/*
 * In a second storm, the kernel has what it keeps for the next time. What is leaked
 * once in a hundred operations is found if there are some thousands of them, which
 * there are of most; the rest is kmemleak's.
 */
#define SLACK_OBJECTS	200
#define SLACK_KIB	1024

int main(int argc, char *argv[])
{
	static struct kernel_memory before, after;
	double seconds = 60, patience = 60;
	int option, i, j, memories = 0;
	u64 bad = 0, sum = 0;
	bool good = true;
	long growth;

	seed = time(NULL);
	while ((option = getopt(argc, argv, "rs:t:w:")) != -1) {
		if (option == 's')
			seed = strtoul(optarg, NULL, 0);
		else if (option == 't')
			seconds = atof(optarg);
		else if (option == 'r')
			resets_at_any_time = true;
		else if (option == 'w')
			patience = atof(optarg);
		else
			return 2;
	}
	if (optind == argc || argc - optind > MAX_UNITS || !getenv("NVME0")) {
		fprintf(stderr, "usage: soak [-r] [-s SEED] [-t SECONDS] [-w SECONDS] BDF[+BDF]...\n");
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("# %g s, seed %u\n", seconds, seed);

	null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	disk = open(getenv("NVME0"), O_RDWR | O_DIRECT | O_CLOEXEC);
	VFIO_ASSERT_GE(disk, 0);
	VFIO_ASSERT_TRUE(disk_failure_prepare(), "CONFIG_FAIL_MAKE_REQUEST is not set\n");
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	VFIO_ASSERT_NE(shared, MAP_FAILED);
	for (; optind < argc; optind++, nr_units++) {
		struct unit *u = &units[nr_units];
		char *bdf = argv[optind];

		while ((bdf = strsep(&argv[optind], "+")) && u->nr_devs < MAX_DEVS) {
			u->devs[u->nr_devs].bdf = bdf;
			prepare(&u->devs[u->nr_devs++], &memories);
		}
	}

	good = storm(0, seconds / 4, patience);
	if (good) {
		for (i = 0; i < NR_OPS; i++)
			sum += shared->done[i];
		kernel_memory_settle(&before);
		good = storm(1, seconds - seconds / 4, patience);
	}
	tell_table();
	check(good, "no thread hangs, no process dies");
	check(!shared->wrong, "what is read belongs there%s%s (%d times)",
	      shared->wrong ? ": " : "", shared->first_wrong, shared->wrong);
	if (!good) {
		printf("1..%d\n", tests);
		return 1;
	}
	kernel_memory_settle(&after);
	check(all_done(), "everything has been done");
	check(!count_dmabufs(), "no dma-buf is left");

	for (i = 0; i < nr_units; i++)
		for (j = 0; j < units[i].nr_devs; j++)
			good = rebind(&units[i].devs[j]) && good;
	check(good, "drivers can be unbound and bound");
	for (i = 0; i < nr_units && good; i++) {
		for (j = 0; j < units[i].nr_devs; j++) {
			struct device *dev = &units[i].devs[j];

			bad += bar_wrong(dev);
			if (dev->memory >= 0)
				bad += disk_wrong(dev);
		}
	}
	check(good && !bad, "devices and disk have what belongs there (%llu places do not)",
	      (unsigned long long)bad);

	for (i = 0; i < NR_OPS; i++)
		sum -= shared->done[i];
	growth = kernel_memory_growth(&before, &after, NULL, SLACK_OBJECTS);
	printf("# in %llu operations: at most %ld objects more in a cache, %ld KiB not of slab\n",
	       -(unsigned long long)sum, growth, after.other_kib - before.other_kib);
	if (after.other_kib - before.other_kib >= SLACK_KIB)
		kernel_memory_tell(&before, &after, SLACK_KIB / 2);
	check(growth < SLACK_OBJECTS && after.other_kib - before.other_kib < SLACK_KIB,
	      "kernel memory does not grow");
	if (kmemleak_is_on())
		check(kmemleak_finds_nothing(), "kmemleak finds nothing");
	else
		check(true, "kmemleak # SKIP not on");
	printf("1..%d\n", tests);
	return failures ? 1 : 0;
}
