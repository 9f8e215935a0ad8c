// SPDX-License-Identifier: GPL-2.0
/*
 * A plugin for QEMU that lists the cache lines that a machine reads and writes while a measurement
 * is under way. mark.h says how a program in the machine begins and ends one.
 *
 * Its argument out=FILE names the file that it writes, with a row for each line:
 *   call,measurement,line,address,read,written
 * @call counts the measurements. @line is the physical address divided by 64, and @address is the
 * first virtual address at which the line was used, both in hexadecimal. The machine has one
 * processor. Accesses by the processor to its page tables, and by devices, are not seen, nor are
 * instructions and prefetches.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <qemu-plugin.h>

#include "mark.h"
#include "plugin.h"

#define LINE_SIZE 64
#define MAX_LINES (1U << 18)	/* a power of two */

QEMU_PLUGIN_EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;

struct line {
	uint64_t number;
	uint64_t address;
	bool used, read, written;
};

/* A hash table, in which a line that finds its place taken has the next one that is free. */
static struct line lines[MAX_LINES];
static unsigned int nr_lines;
static unsigned int call;
static uint64_t measurement;	/* 0 if none is under way */
static FILE *out;

static void __attribute__((noreturn)) fail(const char *what)
{
	fprintf(stderr, "lines-plugin: %s\n", what);
	exit(1);
}

static void touch(uint64_t number, uint64_t address, bool store)
{
	unsigned int i = number * 0x9e3779b97f4a7c15ULL >> 46;

	while (lines[i].used && lines[i].number != number)
		i = (i + 1) % MAX_LINES;
	if (!lines[i].used) {
		if (++nr_lines == MAX_LINES)
			fail("a measurement uses too many lines");
		lines[i] = (struct line){ .number = number, .address = address, .used = true };
	}
	lines[i].read |= !store;
	lines[i].written |= store;
}

static void print(void)
{
	unsigned int i;

	call++;
	for (i = 0; i < MAX_LINES; i++)
		if (lines[i].used)
			fprintf(out, "%u,%" PRIu64 ",%" PRIx64 ",%" PRIx64 ",%d,%d\n", call,
				measurement, lines[i].number, lines[i].address, lines[i].read,
				lines[i].written);
	if (fflush(out))
		fail("cannot write to the file");
	memset(lines, 0, sizeof(lines));
	nr_lines = 0;
}

static void mark(uint64_t number)
{
	if (measurement)
		print();
	measurement = number;
}

/* The machine has read or written @address. */
static void access_cb(unsigned int cpu, qemu_plugin_meminfo_t info, uint64_t address, void *data)
{
	const bool store = qemu_plugin_mem_is_store(info);
	struct qemu_plugin_hwaddr *physical;
	uint64_t first, size;

	(void)cpu;
	(void)data;
	if (store && address - MARK_ADDRESS < MARK_SIZE)
		mark(address - MARK_ADDRESS);
	else if (measurement) {
		physical = qemu_plugin_get_hwaddr(info, address);
		if (!physical || qemu_plugin_hwaddr_is_io(physical))
			return;
		first = qemu_plugin_hwaddr_phys_addr(physical);
		size = 1U << qemu_plugin_mem_size_shift(info);
		touch(first / LINE_SIZE, address, store);
		if (first % LINE_SIZE + size > LINE_SIZE)
			touch(first / LINE_SIZE + 1, address + size - 1, store);
	}
}

/* QEMU is translating a block of instructions. */
static void translate_cb(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
	const size_t nr = qemu_plugin_tb_n_insns(block);
	size_t i;

	(void)id;
	for (i = 0; i < nr; i++)
		qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(block, i), access_cb,
						 QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_MEM_RW, NULL);
}

QEMU_PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc,
					   char **argv)
{
	out = plugin_output(info->system_emulation && info->system.max_vcpus == 1,
			    argc, argv,
			    "lines-plugin: needs out=FILE, and a machine with one processor");
	if (!out)
		return 1;
	qemu_plugin_register_vcpu_tb_trans_cb(id, translate_cb);
	return 0;
}
