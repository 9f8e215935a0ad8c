// SPDX-License-Identifier: GPL-2.0
/*
 * What arm64 needs beyond arch.h: the flush, which the kernel has in inline functions only, and the
 * memory for the marks of PTEs.
 */
#include <linux/gfp.h>
#include <linux/kmemleak.h>
#include <linux/mm.h>
#include <linux/mm_types.h>
#include <linux/mmu_notifier.h>
#include <linux/pgtable.h>
#include <linux/slab.h>

#include <asm/tlbflush.h>

#include "arch.h"
#include "exmap.h"
#include "ksyms.h"
#include "pool.h"

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

/* Flush a range. Without range invalidation this is one TLBI for each of its pages, up to 511. */
static void exmap_flush_range(struct vm_area_struct *vma, unsigned long start, unsigned long end)
{
#ifdef TLBF_NOWALKCACHE
	__flush_tlb_range(vma, start, end, PAGE_SIZE, 3, TLBF_NOWALKCACHE);
#else
	__flush_tlb_range(vma, start, end, PAGE_SIZE, true, 3);
#endif
}

/* Flush a page, without waiting for the end of the flush. */
static void exmap_flush_page_nosync(struct vm_area_struct *vma, unsigned long address)
{
#ifdef TLBF_NOSYNC
	__flush_tlb_page(vma, address, TLBF_NOSYNC);
#else
	flush_tlb_page_nosync(vma, address);
#endif
}

/* Whether most pages of a range are to be flushed, so that one flush for all costs no more. */
static bool exmap_flush_is_dense(unsigned long range, unsigned int nr)
{
	/* A TLBI of a range also hits pages that stay. Without it, each of those costs a TLBI. */
	return range <= nr + (system_supports_tlb_range() ? nr : nr / 10);
}

/**
 * exmap_flush_tlb - flush pages from the TLBs of all CPUs
 * @mm: whose address space
 * @start: first address of the range that has the pages
 * @end: first address after the range
 * @pages: which pages of the range. Others may be flushed, too
 *
 * Page tables stay, so it flushes the last level only. The DSB before each TLBI orders earlier
 * stores to PTEs; the one after the last is a full barrier. If the task moves to another CPU before
 * the last DSB, the kernel's context switch has waited for its earlier TLBIs. No CPU is
 * interrupted.
 *
 * Scattered pages are flushed one by one if their addresses are known. If there are too many of
 * them for that, the TLBs lose all of the address space, unless the processor has a TLBI for a
 * range.
 */
void exmap_flush_tlb(struct mm_struct *mm, unsigned long start, unsigned long end,
		     struct exmap_pages pages)
{
	/* The kernel's functions want a VMA only for its mm. */
	struct vm_area_struct vma = { .vm_mm = mm };
	unsigned int i;

	if (!pages.nr || exmap_flush_is_dense((end - start) >> PAGE_SHIFT, pages.nr)) {
		exmap_flush_range(&vma, start, end);
	} else if (pages.address) {
		for (i = 0; i < pages.nr - 1; i++)
			exmap_flush_page_nosync(&vma, pages.address[i]);
		flush_tlb_page(&vma, pages.address[i]);
	} else if (system_supports_tlb_range()) {
		exmap_flush_range(&vma, start, end);
	} else {
		flush_tlb_mm(mm);
	}
}

/* The pages of marks for the GiB of an address, allocated if they are missing; or NULL. */
static unsigned long **exmap_marks_gib(struct exmap_leaf_marks *of, unsigned long address)
{
	unsigned long ***place = &of->gib[pud_index(address)];
	/* Pairs with the cmpxchg() below. */
	unsigned long **gib = READ_ONCE(*place), **made;

	if (likely(gib))
		return gib;
	made = kcalloc(PTRS_PER_PMD / EXMAP_MARKS_PER_PAGE, sizeof(*made), POOL_GFP);
	if (!made)
		return NULL;
	/* Publish the zeroed array. Pairs with the reads here and in exmap_marks_find(). */
	gib = cmpxchg(place, NULL, made);
	if (gib) {
		kfree(made);
		return gib;
	}
	/* The only pointer to it is in a page, where kmemleak does not look. */
	kmemleak_not_leak(made);
	return made;
}

/* See arch.h. */
int exmap_marks_make(struct exmap_leaf_marks *of, unsigned long address)
{
	unsigned long **gib = exmap_marks_gib(of, address), **place, *made;

	if (!gib)
		return -ENOMEM;
	place = &gib[pmd_index(address) / EXMAP_MARKS_PER_PAGE];
	/* Pairs with the cmpxchg() below. */
	if (READ_ONCE(*place))
		return 0;
	made = (unsigned long *)get_zeroed_page(POOL_GFP);
	if (!made)
		return -ENOMEM;
	/* Publish the zeroed page. Pairs with the reads here and in exmap_marks_find(). */
	if (!cmpxchg(place, NULL, made))
		return 1;
	free_page((unsigned long)made);
	return 0;
}

/* See arch.h. */
int exmap_marks_free(struct exmap_leaf_marks *of, unsigned long address)
{
	unsigned long **gib = of->gib[pud_index(address)];
	unsigned int i;
	int pages = 0;

	for (i = 0; gib && i < PTRS_PER_PMD / EXMAP_MARKS_PER_PAGE; i++) {
		if (!gib[i])
			continue;
		free_page((unsigned long)gib[i]);
		pages++;
	}
	kfree(gib);
	/* Nobody looks at it meanwhile. Pairs with exmap_marks_find(). */
	WRITE_ONCE(of->gib[pud_index(address)], NULL);
	return pages;
}
