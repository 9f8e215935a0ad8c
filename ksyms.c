// SPDX-License-Identifier: GPL-2.0
/*
 * Find the functions that exmap needs and the kernel does not export.
 *
 * A kprobe tells a symbol's address. Calls go through static calls, so that they
 * are direct ones: many of these functions have lost their ENDBR, and an
 * indirect call would fault on hardware with CET.
 */
#include <linux/init.h>
#include <linux/kallsyms.h>
#include <linux/kprobes.h>

#include "exmap.h"
#include "ksyms.h"

DEFINE_STATIC_CALL_NULL(exmap_flush_tlb_mm_range, flush_tlb_mm_range);
DEFINE_STATIC_CALL_NULL(exmap_vfs_read, vfs_read);
DEFINE_STATIC_CALL_NULL(exmap_mmu_notifier_start, __mmu_notifier_invalidate_range_start);
DEFINE_STATIC_CALL_NULL(exmap_mmu_notifier_end, __mmu_notifier_invalidate_range_end);

/*
 * The probe may sit behind the function's first instruction (on an ENDBR it
 * does), so ask kallsyms how far.
 */
static void *__init exmap_resolve(const char *name)
{
	struct kprobe probe = { .symbol_name = name, .flags = KPROBE_FLAG_DISABLED };
	static char where[KSYM_SYMBOL_LEN] __initdata;
	size_t len = strlen(name);
	unsigned long offset;
	int err;

	err = register_kprobe(&probe);
	if (err) {
		pr_err("this kernel's %s cannot be found (error %d): exmap needs CONFIG_KPROBES and a kernel it knows\n",
		       name, err);
		return NULL;
	}
	sprint_symbol(where, (unsigned long)probe.addr);
	unregister_kprobe(&probe);
	if (strncmp(where, name, len) || sscanf(where + len, "+%lx/", &offset) != 1) {
		pr_err("this kernel's %s cannot be told from %s\n", name, where);
		return NULL;
	}
	return (void *)probe.addr - offset;
}

/**
 * exmap_ksyms_resolve - make the static calls of ksyms.h work
 *
 * To be called once, before any of them.
 *
 * Return: 0, or -ENOENT after a line in the kernel log that says which function is missing.
 */
int __init exmap_ksyms_resolve(void)
{
	typeof(&flush_tlb_mm_range) flush = exmap_resolve("flush_tlb_mm_range");
	typeof(&vfs_read) read = exmap_resolve("vfs_read");
	typeof(&__mmu_notifier_invalidate_range_start) start =
		exmap_resolve("__mmu_notifier_invalidate_range_start");
	typeof(&__mmu_notifier_invalidate_range_end) end =
		exmap_resolve("__mmu_notifier_invalidate_range_end");

	if (!flush || !read || !start || !end)
		return -ENOENT;
	static_call_update(exmap_flush_tlb_mm_range, flush);
	static_call_update(exmap_vfs_read, read);
	static_call_update(exmap_mmu_notifier_start, start);
	static_call_update(exmap_mmu_notifier_end, end);
	return 0;
}
