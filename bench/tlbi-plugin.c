// SPDX-License-Identifier: GPL-2.0
/*
 * A plugin for QEMU that counts the TLBI instructions that an arm64 machine executes while a
 * measurement is under way. mark.h says how a program in the machine begins and ends one.
 *
 * Its argument out=FILE names the file that it writes, with a row for each measurement:
 *   measurement,page,range,all,sync
 * These are the numbers of TLBIs of one page, of a range, and of all that the TLBs hold of an
 * address space or more. @sync counts those of the page at address 0, by which the kernel makes
 * sure that earlier TLBIs have ended, if the processor has an erratum (ARM64_ERRATUM_4118414). The
 * machine has one processor.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <qemu-plugin.h>

#include "mark.h"
#include "plugin.h"

QEMU_PLUGIN_EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;

enum kind { PAGE, RANGE, ALL, SYNC, KINDS };

static unsigned long count[KINDS];
static uint64_t measurement;	/* 0 if none is under way */
static FILE *out;

static void mark(uint64_t number)
{
	if (measurement) {
		fprintf(out, "%" PRIu64 ",%lu,%lu,%lu,%lu\n", measurement, count[PAGE],
			count[RANGE], count[ALL], count[SYNC]);
		if (fflush(out)) {
			fprintf(stderr, "tlbi-plugin: cannot write to the file\n");
			exit(1);
		}
	}
	memset(count, 0, sizeof(count));
	measurement = number;
}

/* The machine has written to @address. */
static void store_cb(unsigned int cpu, qemu_plugin_meminfo_t info, uint64_t address, void *data)
{
	(void)cpu;
	(void)info;
	(void)data;
	if (address - MARK_ADDRESS < MARK_SIZE)
		mark(address - MARK_ADDRESS);
}

/* The machine executes a TLBI of a kind. */
static void tlbi_cb(unsigned int cpu, void *data)
{
	(void)cpu;
	count[(enum kind)(uintptr_t)data]++;
}

/*
 * Whether an instruction is a TLBI, and of which kind. It is a SYS instruction, whose fields are
 * called op1, CRn, CRm and op2 in the architecture's manual. CRn is 8, or 9 with FEAT_XS.
 */
static bool is_tlbi(uint32_t instruction, enum kind *kind)
{
	const unsigned int crn = instruction >> 12 & 15, crm = instruction >> 8 & 15;
	const unsigned int op2 = instruction >> 5 & 7, rt = instruction & 31;

	if ((instruction & 0xfff80000) != 0xd5080000 || (crn != 8 && crn != 9))
		return false;
	if (!(op2 & 1))
		*kind = ALL;
	else if (crm == 2 || crm == 5 || crm == 6)
		*kind = RANGE;
	else
		*kind = rt == 31 ? SYNC : PAGE;
	return true;
}

/* QEMU is translating a block of instructions. */
static void translate_cb(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
	const size_t nr = qemu_plugin_tb_n_insns(block);
	struct qemu_plugin_insn *instruction;
	enum kind kind;
	uint32_t word;
	size_t i;

	(void)id;
	for (i = 0; i < nr; i++) {
		instruction = qemu_plugin_tb_get_insn(block, i);
		qemu_plugin_register_vcpu_mem_cb(instruction, store_cb, QEMU_PLUGIN_CB_NO_REGS,
						 QEMU_PLUGIN_MEM_W, NULL);
		if (qemu_plugin_insn_size(instruction) != sizeof(word))
			continue;
		memcpy(&word, qemu_plugin_insn_data(instruction), sizeof(word));
		if (is_tlbi(word, &kind))
			qemu_plugin_register_vcpu_insn_exec_cb(instruction, tlbi_cb,
							       QEMU_PLUGIN_CB_NO_REGS,
							       (void *)(uintptr_t)kind);
	}
}

QEMU_PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc,
					   char **argv)
{
	out = plugin_output(info->system_emulation && !strcmp(info->target_name, "aarch64") &&
			    info->system.max_vcpus == 1,
			    argc, argv,
			    "tlbi-plugin: needs out=FILE, and an arm64 machine with one processor");
	if (!out)
		return 1;
	qemu_plugin_register_vcpu_tb_trans_cb(id, translate_cb);
	return 0;
}
