/* SPDX-License-Identifier: GPL-2.0 */
/*
 * How bench/bench-lines tells QEMU's plugin, lines-plugin.c, what to measure: it stores to address
 * LINES_MARK + n. If n is not 0, measurement n begins, and if it is 0, the measurement ends.
 */
#ifndef BENCH_LINES_H
#define BENCH_LINES_H

#define LINES_MARK 0x6c696e657000UL
#define LINES_MARK_SIZE 4096UL	/* n is less than this */

#endif /* BENCH_LINES_H */
