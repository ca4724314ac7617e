// SPDX-License-Identifier: GPL-2.0
/*
 * p2pmem of an NVMe disk's controller memory buffer, as user space sees it.
 *
 *	p2pmem stock BDF DISK	what every kernel does: sysfs, mmap, O_DIRECT,
 *				unbind. The same lines on all kernels.
 *	p2pmem remove BDF DISK	the resource removed and added while in use;
 *				needs p2pmem_ctl.ko and nvme.use_cmb_sqes=0.
 *	p2pmem fail BDF DISK	adding it while allocations fail; needs the
 *				same. Memory hotplug warns of some failures
 *				(harness/vm --allow-splat).
 *
 *	p2pmem late BDF BAR	the same for a device of vfio-pci that has no
 *				p2pmem, which is then unbound. Runs on a kernel
 *				that cannot remove, too; needs p2pmem_ctl.ko.
 *
 * BDF has the buffer; DISK is the block device of another one.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define KIB	1024UL
#define MIB	(1024 * KIB)

static const char *bdf, *disk_path;
static int tests, failures;

static bool check(bool good, const char *format, ...)
{
	int error = errno;
	va_list args;

	va_start(args, format);
	printf(good ? "ok %d " : "not ok %d ", ++tests);
	vprintf(format, args);
	putchar('\n');
	if (!good) {
		printf("# errno %d (%s)\n", error, strerror(error));
		failures++;
	}
	fflush(stdout);
	va_end(args);
	return good;
}

static void die(const char *what)
{
	printf("Bail out! %s: %s\n", what, strerror(errno));
	exit(1);
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static const char *path_of(const char *name)
{
	static char path[4][128];
	static int n;
	char *p = path[n++ % 4];

	snprintf(p, sizeof(path[0]), "/sys/bus/pci/devices/%s/%s", bdf, name);
	return p;
}

/* A number in the device's sysfs directory, -1 if there is none */
static long long number(const char *name)
{
	char text[32] = "";
	int fd = open(path_of(name), O_RDONLY);

	if (fd < 0)
		return -1;
	if (read(fd, text, sizeof(text) - 1) < 0)
		text[0] = 0;
	close(fd);
	return text[0] ? atoll(text) : -1;
}

#define SIZE		number("p2pmem/size")
#define AVAILABLE	number("p2pmem/available")

static int put(const char *path, const char *format, ...)
{
	char text[128];
	va_list args;
	int fd, ret, length;

	va_start(args, format);
	length = vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		return -errno;
	ret = write(fd, text, length) == length ? 0 : -errno;
	close(fd);
	return ret;
}

#define CTL	"/sys/kernel/debug/p2pmem-ctl"

static int allocate_open(void)
{
	return open(path_of("p2pmem/allocate"), O_RDWR | O_CLOEXEC);
}

static void *map(size_t size)
{
	int fd = allocate_open();
	void *p;

	if (fd < 0)
		return MAP_FAILED;
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return p;
}

/* -- touching what may be gone -------------------------------------------- */

static sigjmp_buf touch_env;

static void on_sigbus(int signal)
{
	(void)signal;
	siglongjmp(touch_env, 1);
}

static void catch_sigbus(void)
{
	struct sigaction action = { .sa_handler = on_sigbus };

	sigaction(SIGBUS, &action, NULL);
}

/* Whether a word can be written and read back */
static bool touch(void *p)
{
	volatile uint32_t *word = p;

	if (sigsetjmp(touch_env, 1))
		return false;
	*word = 0x600d600d;
	return *word == 0x600d600d;
}

/* -- what every kernel does ----------------------------------------------- */

static void fill(char *buf, size_t size, unsigned int seed)
{
	for (size_t i = 0; i < size / 4; i++)
		((uint32_t *)buf)[i] = seed * 2654435761u + i;
}

static char *aligned(size_t size)
{
	void *p;

	if (posix_memalign(&p, 4 * KIB, size))
		die("posix_memalign");
	return p;
}

/* Disk to the buffer to another place on the disk, and look there */
static bool round_trip(int disk, void *mem, size_t size, off_t from, off_t to,
		       unsigned int seed)
{
	char *want = aligned(size), *got = aligned(size);
	bool good;

	fill(want, size, seed);
	memset(got, 0, size);
	good = pwrite(disk, want, size, from) == (ssize_t)size &&
	       pread(disk, mem, size, from) == (ssize_t)size &&
	       pwrite(disk, mem, size, to) == (ssize_t)size &&
	       pread(disk, got, size, to) == (ssize_t)size &&
	       !memcmp(want, got, size);
	free(want);
	free(got);
	return good;
}

static void stock(int disk)
{
	long long size = SIZE, available = AVAILABLE;
	struct stat st;
	int fd, status;
	char *p, *q;
	pid_t pid;

	check(size == 64 * MIB, "size");
	check(available > 0 && available <= size, "available");
	check(number("p2pmem/published") == 1, "published");
	fd = allocate_open();
	if (!check(fd >= 0, "allocate opens"))
		return;
	check(!fstat(fd, &st) && (st.st_mode & 07777) == 0660 &&
	      st.st_size == 1LL << 40, "its mode and size");
	check(lseek(fd, 0, SEEK_END) == 1LL << 40 && lseek(fd, 4711, SEEK_SET) == 4711 &&
	      lseek(fd, -1, SEEK_SET) == -1 && errno == EINVAL, "it seeks");
	check(read(fd, &st, 1) == -1 && errno == EIO, "it cannot be read");
	check(write(fd, &st, 1) == -1 && errno == EIO, "nor written");

	check(mmap(NULL, 64 * KIB, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED &&
	      errno == EINVAL, "no private mapping");
	check(mmap(NULL, 64 * KIB, PROT_READ, MAP_SHARED, fd, 4 * KIB) == MAP_FAILED &&
	      errno == EINVAL, "no offset");
	check(mmap(NULL, 2 * size, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED &&
	      errno == ENOMEM, "no more than there is");
	check(AVAILABLE == available, "nothing was lost");

	p = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	q = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (!check(p != MAP_FAILED && q != MAP_FAILED, "two mappings"))
		return;
	check(AVAILABLE == available - 2 * (long long)MIB, "available is less");
	check(touch(p) && touch(q + MIB - 4), "the memory can be used");
	memset(q, 0, 4 * KIB);
	check(touch(p) && *(uint32_t *)q == 0, "it is not the same memory");
	check(round_trip(disk, p, 256 * KIB, 0, MIB, 1), "O_DIRECT from and to the other disk");

	pid = fork();
	if (!pid)
		_exit(!(*(uint32_t *)p && touch(p + 8)));
	check(waitpid(pid, &status, 0) == pid && !status, "a child has it, too");
	munmap(p + 64 * KIB, 64 * KIB);
	check(AVAILABLE == available - 2 * (long long)MIB + 64 * (long long)KIB,
	      "a part is given back");
	check(touch(p) && !madvise(p, 4 * KIB, MADV_DONTNEED) && !touch(p) &&
	      touch(p + 4 * KIB), "what is dropped is gone");
	munmap(p, MIB);
	check(AVAILABLE == available - (long long)MIB, "all of one is given back");

	/* The disk with the buffer goes while it is mapped */
	check(!put("/sys/bus/pci/drivers/nvme/unbind", "%s", bdf), "unbound");
	check(!touch(q), "a mapping of before is gone");
	check(SIZE == -1, "p2pmem is gone");
	check(mmap(NULL, MIB, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED &&
	      errno == ENODEV, "the file that is still open does not map");
	check(!put("/sys/bus/pci/drivers/nvme/bind", "%s", bdf), "bound again");
	for (int i = 0; i < 100 && AVAILABLE != available; i++)
		usleep(100000);
	check(SIZE == size && AVAILABLE == available && number("p2pmem/published") == 1,
	      "all is there again");
	check(!touch(q), "but not in the mapping of before");
	munmap(q, MIB);
	close(fd);
	p = map(MIB);
	check(p != MAP_FAILED && touch(p), "a new one works");
	munmap(p, MIB);
	check(AVAILABLE == available, "and nothing was lost");
}

/* -- removal --------------------------------------------------------------- */

#define BAR	2

static int remove_it(void)
{
	return put(CTL, "remove %s %d", bdf, BAR);
}

static int add_it(void)
{
	return put(CTL, "add %s %d", bdf, BAR) ?: put(CTL, "publish %s 1", bdf);
}

/* A process that touches its mapping when told: 'y' or 'n' comes back */
struct toucher {
	pid_t pid;
	int ask[2], answer[2];
};

static void toucher_start(struct toucher *t, char *inherited)
{
	if (pipe(t->ask) || pipe(t->answer))
		die("pipe");
	t->pid = fork();
	if (!t->pid) {
		char c, *p = inherited ?: map(MIB);

		if (p == MAP_FAILED)
			_exit(1);
		while (read(t->ask[0], &c, 1) == 1) {
			c = touch(p) && touch(p + MIB - 4) ? 'y' : 'n';
			if (write(t->answer[1], &c, 1) != 1)
				_exit(1);
		}
		_exit(0);
	}
}

static char toucher_ask(struct toucher *t)
{
	char c = 'x';

	if (write(t->ask[1], &c, 1) != 1 || read(t->answer[0], &c, 1) != 1)
		return '?';
	return c;
}

static void toucher_stop(struct toucher *t)
{
	kill(t->pid, SIGKILL);
	waitpid(t->pid, NULL, 0);
}

static void remove_mapped(void)
{
	long long size = SIZE;
	struct toucher child, other;
	char *p = map(MIB);
	int fd = allocate_open();

	if (!check(p != MAP_FAILED && touch(p), "mapped"))
		return;
	toucher_start(&child, p);
	toucher_start(&other, NULL);
	check(toucher_ask(&child) == 'y' && toucher_ask(&other) == 'y',
	      "by a child and by another process");
	check(AVAILABLE == size - 2 * (long long)MIB, "available is less");

	check(!remove_it(), "removed while mapped");
	check(!touch(p) && toucher_ask(&child) == 'n' && toucher_ask(&other) == 'n',
	      "no process has it any more");
	check(SIZE == -1 && AVAILABLE == -1, "nothing in sysfs");
	check(mmap(NULL, MIB, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == ENODEV,
	      "the file that is still open does not map");
	check(remove_it() == -ENOENT, "removed a second time: ENOENT");

	check(!add_it(), "added");
	check(SIZE == size && AVAILABLE == size, "all is there");
	check(number("p2pmem/published") == 1, "published");
	check(!touch(p) && toucher_ask(&child) == 'n' && toucher_ask(&other) == 'n',
	      "not in the mappings of before");
	toucher_stop(&child);
	toucher_stop(&other);
	munmap(p, MIB);
	close(fd);
	p = map(MIB);
	check(p != MAP_FAILED && touch(p), "a new one works");
	munmap(p, MIB);
	check(AVAILABLE == size, "and nothing was lost");
}

static void remove_allocated(void)
{
	double start = now(), took;
	int status;
	pid_t pid;

	check(!put(CTL, "alloc %s %lu", bdf, 64 * KIB), "the kernel has some");
	pid = fork();
	if (!pid)
		_exit(remove_it() ? 1 : 0);
	usleep(700000);
	check(waitpid(pid, &status, WNOHANG) == 0, "removal waits for it");
	check(SIZE == 0 && AVAILABLE == 0, "none is left to be had");
	check(map(4 * KIB) == MAP_FAILED && errno == ENOMEM, "by nobody");
	check(!put(CTL, "free %s %lu", bdf, 64 * KIB), "freed");
	check(waitpid(pid, &status, 0) == pid && !status, "removed");
	took = now() - start;
	printf("# after %.0f ms\n", took * 1000);
	check(SIZE == -1 && !add_it(), "and added");
}

struct load {
	volatile unsigned long good, gone, wrong;
};

/* O_DIRECT from the disk to the buffer and back to another place on it */
static void load_run(struct load *load, int number)
{
	size_t size = 256 * KIB;
	off_t from = (16 + number) * MIB, to = (32 + number) * MIB;
	char *want = aligned(size), *got = aligned(size), *mem;
	int disk = open(disk_path, O_RDWR | O_DIRECT);

	fill(want, size, number);
	if (disk < 0 || pwrite(disk, want, size, from) != (ssize_t)size)
		_exit(1);
	for (;;) {
		mem = map(size);
		if (mem == MAP_FAILED) {
			load->gone++;
			usleep(1000);
			continue;
		}
		for (;;) {
			/* Both got the same pages, or one failed */
			if (pread(disk, mem, size, from) != (ssize_t)size ||
			    pwrite(disk, mem, size, to) != (ssize_t)size) {
				load->gone++;
				break;
			}
			memset(got, 0, size);
			if (pread(disk, got, size, to) == (ssize_t)size &&
			    !memcmp(want, got, size))
				load->good++;
			else
				load->wrong++;
		}
		munmap(mem, size);
	}
}

#define LOADS	2
#define ROUNDS	12

static void remove_loaded(void)
{
	struct load *load = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
				 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	double start, took, longest = 0;
	long long size = SIZE;
	int removed = 0, added = 0;
	bool all = true;
	pid_t pid[LOADS];

	for (int i = 0; i < LOADS; i++) {
		pid[i] = fork();
		if (!pid[i])
			load_run(&load[i], i);
	}
	for (int round = 0; round < ROUNDS; round++) {
		unsigned long before = load[0].good;

		for (int i = 0; i < 100 && load[0].good == before; i++)
			usleep(50000);
		all &= load[0].good != before;
		start = now();
		removed += !remove_it();
		took = now() - start;
		longest = took > longest ? took : longest;
		if (round % 2)
			usleep(20000);
		added += !add_it();
	}
	check(removed == ROUNDS, "removed %d times under O_DIRECT", ROUNDS);
	check(added == ROUNDS, "and added");
	check(all, "I/O went on after each");
	for (int i = 0; i < LOADS; i++) {
		kill(pid[i], SIGKILL);
		waitpid(pid[i], NULL, 0);
		printf("# load %d: %lu transfers, %lu times without memory\n", i,
		       load[i].good, load[i].gone);
		check(load[i].good && load[i].gone && !load[i].wrong,
		      "data of load %d is right", i);
	}
	printf("# the longest removal took %.0f ms\n", longest * 1000);
	check(longest < 5, "no removal hung");
	check(SIZE == size && AVAILABLE == size, "nothing was lost");
}

/* Every allocation of adding fails in its turn; nothing may stay behind */
static void add_failing(int bar)
{
	const char *fail = "/proc/thread-self/fail-nth";
	int n, ret, failed = 0, survived = 0, other = 0;
	char text[64], count[16];
	bool hit = true;

	if (put("/sys/kernel/debug/failslab/ignore-gfp-wait", "N") ||
	    put("/sys/kernel/debug/failslab/verbose", "0")) {
		printf("ok %d adding with failures # SKIP no fault injection\n", ++tests);
		return;
	}
	for (n = 1; hit && n < 1000; n++) {
		int fd = open(CTL, O_WRONLY), nth = open(fail, O_RDWR);
		int length = snprintf(text, sizeof(text), "add %s %d", bdf, bar);
		int digits = snprintf(count, sizeof(count), "%d", n);

		if (write(nth, count, digits) != digits)
			die(fail);
		ret = write(fd, text, length) == length ? 0 : -errno;
		memset(count, 0, sizeof(count));
		/* Fewer than n: what is left, or it is this copy that fails */
		hit = pread(nth, count, sizeof(count) - 1, 0) > 0 && !atoi(count);
		put(fail, "0");
		close(nth);
		close(fd);
		if (ret && ret != -EFAULT)	/* the copy of the command */
			failed++;
		if ((ret && ret != -ENOMEM && ret != -EFAULT) || (ret && SIZE > 0)) {
			printf("# failure %d: %s, size %lld\n", n, strerror(-ret), SIZE);
			other++;
		}
		if (!ret && hit) {
			survived++;
			if (put(CTL, "remove %s %d", bdf, bar))
				break;	/* a kernel that cannot */
		}
	}
	put("/sys/kernel/debug/failslab/ignore-gfp-wait", "Y");
	check(!ret && failed > 3, "adding works after %d failures", failed);
	printf("# and in spite of %d more\n", survived);
	check(!other, "each was ENOMEM and left no memory in sysfs");
	check(SIZE == AVAILABLE && SIZE > 0, "all is there");
}

static void removal(int disk, bool failing)
{
	long long size = SIZE;
	char *p;

	if (access(CTL, F_OK)) {
		printf("1..0 # SKIP no p2pmem_ctl.ko\n");
		exit(4);
	}
	if (!check(size > 0 && AVAILABLE == size, "a buffer that is not in use"))
		return;
	if (failing) {
		check(!remove_it(), "removed");
		add_failing(BAR);
		goto unbind;
	}
	check(put(CTL, "remove %s 0", bdf) == -ENOENT, "a BAR that was not added: ENOENT");
	check(put(CTL, "remove %s 7", bdf) == -ENOENT, "a BAR that does not exist: ENOENT");
	remove_mapped();
	remove_allocated();
	remove_loaded();

unbind:	/* devres, whatever has been done before */
	p = map(MIB);
	check(p != MAP_FAILED && touch(p), "mapped");
	check(round_trip(disk, p, 256 * KIB, 0, MIB, 7), "O_DIRECT");
	check(!put("/sys/bus/pci/drivers/nvme/unbind", "%s", bdf), "unbound");
	check(SIZE == -1 && !touch(p), "gone");
	check(!put("/sys/bus/pci/drivers/nvme/bind", "%s", bdf), "bound");
	for (int i = 0; i < 100 && AVAILABLE != size; i++)
		usleep(100000);
	check(SIZE == size && AVAILABLE == size, "there again");
	check(!remove_it(), "removed");
	check(!put("/sys/bus/pci/drivers/nvme/unbind", "%s", bdf) &&
	      !put("/sys/bus/pci/drivers/nvme/bind", "%s", bdf), "unbound without it, and bound");
}

/* A device of vfio-pci, on any kernel: is the unbind after it good? */
static void late(int bar)
{
	add_failing(bar);
	check(!put("/sys/bus/pci/drivers/vfio-pci/unbind", "%s", bdf), "unbound");
	check(SIZE == -1, "nothing in sysfs");
}

int main(int argc, char **argv)
{
	int disk;

	if (argc == 4 && !strcmp(argv[1], "late")) {
		bdf = argv[2];
		late(atoi(argv[3]));
		printf("1..%d\n", tests);
		return failures ? 1 : 0;
	}

	if (argc != 4 || (strcmp(argv[1], "stock") && strcmp(argv[1], "remove") &&
			  strcmp(argv[1], "fail"))) {
		fprintf(stderr, "Usage: %s stock|remove|fail BDF DISK\n", argv[0]);
		return 2;
	}
	bdf = argv[2];
	disk_path = argv[3];
	disk = open(disk_path, O_RDWR | O_DIRECT);
	if (disk < 0)
		die(disk_path);
	catch_sigbus();
	if (!strcmp(argv[1], "stock"))
		stock(disk);
	else
		removal(disk, !strcmp(argv[1], "fail"));
	printf("1..%d\n", tests);
	return failures ? 1 : 0;
}
