/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the plugins of QEMU share.
 */
#ifndef BENCH_PLUGIN_H
#define BENCH_PLUGIN_H

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/*
 * Open the file that the plugin's only argument, out=FILE, names. Returns NULL after a message if it
 * cannot be opened, if the argument is another one, or if the machine does not @fit. @needs says
 * what the plugin needs.
 */
static inline FILE *plugin_output(bool fit, int argc, char **argv, const char *needs)
{
	FILE *out;

	if (!fit || argc != 1 || strncmp(argv[0], "out=", 4)) {
		fprintf(stderr, "%s\n", needs);
		return NULL;
	}
	out = fopen(argv[0] + 4, "w");
	if (!out)
		perror(argv[0] + 4);
	return out;
}

#endif /* BENCH_PLUGIN_H */
