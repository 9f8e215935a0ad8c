// SPDX-License-Identifier: GPL-2.0
/*
 * The flush of arm64, which the kernel has in inline functions only.
 */
#include <linux/mm.h>
#include <linux/mm_types.h>
#include <linux/mmu_notifier.h>

#include <asm/tlbflush.h>

#include "arch.h"
#include "exmap.h"
#include "ksyms.h"

#ifdef EXMAP_HAS_SECONDARY_TLBS
/* The module's own function of this name. Only the inline functions of asm/tlbflush.h call it. */
void __mmu_notifier_arch_invalidate_secondary_tlbs(struct mm_struct *mm, unsigned long start,
						   unsigned long end)
{
	static_call(exmap_secondary_tlbs)(mm, start, end);
}
#endif

#ifdef CONFIG_ARM64_ERRATUM_4193714
/* The module's own function of this name, as above. */
void sme_do_dvmsync(const struct cpumask *mask)
{
	static_call(exmap_sme_do_dvmsync)(mask);
}
#endif

/**
 * exmap_flush_tlb - flush a range from the TLBs of all CPUs
 * @mm: whose address space
 * @start: first address
 * @end: first address after the range
 *
 * Page tables stay, so it flushes the last level only. The DSB before the TLBI orders earlier
 * stores to PTEs; the one after it is a full barrier. No CPU is interrupted.
 */
void exmap_flush_tlb(struct mm_struct *mm, unsigned long start, unsigned long end)
{
	/* __flush_tlb_range() wants a VMA only for its mm. */
	struct vm_area_struct vma = { .vm_mm = mm };

#ifdef TLBF_NOWALKCACHE
	__flush_tlb_range(&vma, start, end, PAGE_SIZE, 3, TLBF_NOWALKCACHE);
#else
	__flush_tlb_range(&vma, start, end, PAGE_SIZE, true, 3);
#endif
}
