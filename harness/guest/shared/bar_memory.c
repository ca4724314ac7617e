// SPDX-License-Identifier: GPL-2.0-only
/*
 * LD_PRELOAD: who opens $BAR_MEMORY gets the dma-buf that was inherited as
 * $BAR_MEMORY_FD, which has no name in the file system. See harness/guest/fio_bar.c.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int open_fn(const char *path, int flags, ...);

static int open_bar(const char *next, const char *path, int flags, mode_t mode)
{
	const char *bar = getenv("BAR_MEMORY"), *fd = getenv("BAR_MEMORY_FD");

	if (bar && fd && !strcmp(path, bar))
		return dup(atoi(fd));
	return ((open_fn *)dlsym(RTLD_NEXT, next))(path, flags, mode);
}

#define OPEN(_name)						\
int _name(const char *path, int flags, ...)			\
{								\
	mode_t mode = 0;					\
	va_list args;						\
								\
	if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {	\
		va_start(args, flags);				\
		mode = va_arg(args, mode_t);			\
		va_end(args);					\
	}							\
	return open_bar(#_name, path, flags, mode);		\
}

OPEN(open)
OPEN(open64)
