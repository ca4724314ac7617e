/* SPDX-License-Identifier: GPL-2.0-only */
/* TAP of programs that are one long story: a line for each thing that holds, or not. */
#ifndef CHECK_H
#define CHECK_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>

static int tests, failures;

static bool check(bool good, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	printf(good ? "ok %d " : "not ok %d ", ++tests);
	vprintf(format, args);
	putchar('\n');
	fflush(stdout);
	va_end(args);
	if (!good)
		failures++;
	return good;
}

#endif
