/* SPDX-License-Identifier: GPL-2.0-only */
/* dmabuf_importer.ko, as the tests use it */
#ifndef IMPORTER_H
#define IMPORTER_H

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <libvfio.h>
#include <libvfio/vfio_pci_dmabuf.h>

#define IMPORTER	"/sys/kernel/debug/dmabuf-importer"

static inline const char *importer_bdf(void)
{
	const char *bdf = getenv("NVME0_BDF");

	VFIO_ASSERT_NOT_NULL(bdf);
	return bdf;
}

static inline int importer_open(void)
{
	int importer = open(IMPORTER, O_RDWR | O_CLOEXEC);

	VFIO_ASSERT_GE(importer, 0, "no dmabuf_importer.ko\n");
	return importer;
}

/* 0 or -errno */
static inline __attribute__((__format__(__printf__, 2, 3)))
int importer_do(int importer, const char *format, ...)
{
	char text[80];
	va_list args;
	int length;

	va_start(args, format);
	length = vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	return write(importer, text, length) == length ? 0 : -errno;
}

#define importer_assert(_importer, ...) do {			\
	int __ret = importer_do(_importer, __VA_ARGS__);	\
								\
	VFIO_ASSERT_EQ(__ret, 0);				\
} while (0)

struct importer_state {
	int told, mapped, in_callback;
};

static inline struct importer_state importer_state(int importer)
{
	struct importer_state state;
	char text[64] = "";

	VFIO_ASSERT_GT(pread(importer, text, sizeof(text) - 1, 0), 0);
	VFIO_ASSERT_EQ(sscanf(text, "told %d mapped %d in_callback %d", &state.told,
			      &state.mapped, &state.in_callback), 3);
	return state;
}

/* How often it was told to let go since it attached */
static inline int importer_told(int importer)
{
	return importer_state(importer).told;
}

static inline bool importer_is_mapped(int importer)
{
	return importer_state(importer).mapped;
}

/*
 * Nobody who must not wait takes as long as SOON, nobody who has waited as long
 * as AT_LAST, which is less than the module's patience.
 */
#define SOON		10.0
#define AT_LAST		30.0

static inline double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

/* Whether it is told so often, now or soon */
static inline bool importer_is_told(int importer, int times)
{
	double end = now() + SOON;

	while (importer_told(importer) != times) {
		if (now() > end)
			return false;
		usleep(1000);
	}
	return true;
}

/* Whether a job comes to its end within so many seconds */
static inline bool job_ends(struct job *job, double seconds)
{
	double end = now() + seconds;

	while (!job_is_done(job, 0)) {
		if (now() > end)
			return false;
		usleep(1000);
	}
	return true;
}

#endif
