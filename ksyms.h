/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Functions that the kernel has but does not export, as static calls. exmap_ksyms_resolve() sets
 * their targets.
 */
#ifndef EXMAP_KSYMS_H
#define EXMAP_KSYMS_H

#include <linux/fs.h>
#include <linux/mm_types.h>
#include <linux/mmu_notifier.h>
#include <linux/static_call.h>

/* asm/tlbflush.h hides this declaration from modules. */
void flush_tlb_mm_range(struct mm_struct *mm, unsigned long start, unsigned long end,
			unsigned int stride_shift, bool freed_tables);

DECLARE_STATIC_CALL(exmap_flush_tlb_mm_range, flush_tlb_mm_range);
DECLARE_STATIC_CALL(exmap_vfs_read, vfs_read);
DECLARE_STATIC_CALL(exmap_mmu_notifier_start, __mmu_notifier_invalidate_range_start);
DECLARE_STATIC_CALL(exmap_mmu_notifier_end, __mmu_notifier_invalidate_range_end);

int exmap_ksyms_resolve(void);

#endif /* EXMAP_KSYMS_H */
