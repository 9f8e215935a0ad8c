/* SPDX-License-Identifier: GPL-2.0 */
/*
 * All differences between processors in the tests and the benchmarks.
 *
 *   ARCH_NAME                 the name of the processor
 *   ARCH_EXECUTES             1 if the surface may be mapped executable, or 0
 *   ARCH_CALL_TRACE           what the kernel prints above a call stack
 *   ARCH_SHOOTDOWNS           what the line of /proc/interrupts says that counts the interrupts by
 *                             which a CPU makes others flush their TLBs
 *   ARCH_FLUSH_INTERRUPTS     how many of them each other CPU that uses the mm gets in a flush
 *   ARCH_ADDRESS_SPACES       how many pages user space may have. One of them is this kernel's
 *   CRC32C_TARGET             attribute of a function that uses CRC32C_STEP
 *   CRC32C_STEP(crc, word)    add a word to a CRC-32C, with one instruction
 *   arch_zero_page(page)      zero an aligned page as the kernel does
 */
#ifndef TEST_ARCH_H
#define TEST_ARCH_H

#include <stddef.h>

#if defined(__x86_64__)

#define ARCH_NAME "x86-64"
#define ARCH_EXECUTES 1
#define ARCH_CALL_TRACE "Call Trace"
#define ARCH_SHOOTDOWNS "TLB:"
#define ARCH_FLUSH_INTERRUPTS 1
#define ARCH_ADDRESS_SPACES { (1UL << 35) - 1 }	/* four levels of page tables */
#define CRC32C_TARGET __attribute__((target("sse4.2")))
#define CRC32C_STEP(crc, word) __builtin_ia32_crc32di(crc, word)

/* To -icount, each byte is an instruction. */
static inline void arch_zero_page(char *page)
{
	size_t left = 4096;

	__asm__ volatile("rep stosb" : "+D"(page), "+c"(left) : "a"(0) : "memory");
}

#elif defined(__aarch64__)

#define ARCH_NAME "arm64"
#define ARCH_EXECUTES 0
#define ARCH_CALL_TRACE "Call trace"
#define ARCH_SHOOTDOWNS "Function call interrupts"
#define ARCH_FLUSH_INTERRUPTS 0
#define ARCH_ADDRESS_SPACES { 1UL << 36, 1UL << 40 }	/* CONFIG_ARM64_VA_BITS of 48 or 52 */
#define CRC32C_TARGET __attribute__((target("+crc")))
#define CRC32C_STEP(crc, word) __builtin_aarch64_crc32cx(crc, word)

static inline void arch_zero_page(char *page)
{
	char *const end = page + 4096;
	size_t dczid, block;

	__asm__("mrs %0, dczid_el0" : "=r"(dczid));
	block = (size_t)4 << (dczid & 15);
	for (; page < end; page += block)
		__asm__ volatile("dc zva, %0" : : "r"(page) : "memory");
}

#endif

#endif /* TEST_ARCH_H */
