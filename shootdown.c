// SPDX-License-Identifier: GPL-2.0
/*
 * The flush: after pages are unmapped, every TLB and every other MMU that may still refer to them
 * is told.
 */
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/rwsem.h>

#include "compat.h"
#include "exmap.h"
#include "ksyms.h"

/* Marks the ranges that exmap itself announces. Only its address counts. */
const char exmap_shootdown_owner;

/* The range that MMU notifiers are told. @flags: 0, or MMU_NOTIFIER_RANGE_BLOCKABLE. */
static __always_inline struct mmu_notifier_range
exmap_shootdown_range(const struct exmap *exmap, unsigned long start, unsigned long end,
		      unsigned int flags)
{
	return (struct mmu_notifier_range){
		.mm = exmap->mm,
		.start = start,
		.end = end,
		.flags = flags,
		.event = MMU_NOTIFY_CLEAR,
		.owner = (void *)&exmap_shootdown_owner,
	};
}

/**
 * exmap_shootdown - flush a range from all TLBs and tell other MMUs
 * @exmap: has a surface; no PTE lock is held
 * @start: first address
 * @end: first address after the range
 *
 * May sleep. When this returns, nobody can reach a page that was unmapped between @start and @end
 * before the call, so the page may be put to another use.
 *
 * Some MMUs follow our page tables: KVM, IOMMUs with shared addresses, and GPUs. They hold no
 * reference to a page, so they have to be told, as generic code does. Telling them only now is
 * early enough, because the pages have not been put to another use yet. An MMU that read a PTE
 * before it was cleared, and has not installed the page yet, has to read it again. Our own notifier
 * knows these ranges by their owner.
 *
 * A notifier that is registered between the two calls would be told only the end, but KVM waits for
 * starts and ends to match. mm_take_all_locks() makes a registration wait for the lock of every
 * file mapping and all anonymous memory of the process, and for mmap_lock. So this holds the lock
 * of the mapping of the surface's file.
 *
 * The lock is taken for non-owners, so that lockdep does not follow it. Lockdep knows only the kind
 * of the lock, and would report tasks that wait for an interface with the lock of another mapping
 * held. There are no such tasks.
 *
 * The kernel's inline wrappers of the notifier calls are not used. They would tell lockdep that
 * memory may be reclaimed under an interface's lock, but a callback is not allowed to allocate.
 */
void exmap_shootdown(struct exmap *exmap, unsigned long start, unsigned long end)
{
	struct mmu_notifier_range range =
		exmap_shootdown_range(exmap, start, end, MMU_NOTIFIER_RANGE_BLOCKABLE);

	down_read_non_owner(&exmap->mapping->i_mmap_rwsem);
	static_call(exmap_mmu_notifier_start)(&range);
	static_call(exmap_flush_tlb_mm_range)(exmap->mm, start, end, PAGE_SHIFT, false);
	exmap_invalidate_end(&range);
	up_read_non_owner(&exmap->mapping->i_mmap_rwsem);
}

/**
 * exmap_shootdown_try - exmap_shootdown() without waiting for a lock
 * @exmap: has a surface; no PTE lock is held
 * @start: first address
 * @end: first address after the range
 *
 * Does not sleep. A notifier that would have to wait returns -EAGAIN. The kernel then tells the end
 * to those that were told the start.
 *
 * Return: true; or false if a lock was taken or a notifier would have to wait, and nothing is
 * flushed.
 */
bool exmap_shootdown_try(struct exmap *exmap, unsigned long start, unsigned long end)
{
	struct mmu_notifier_range range = exmap_shootdown_range(exmap, start, end, 0);
	bool told;

	if (!down_read_trylock(&exmap->mapping->i_mmap_rwsem))
		return false;
	told = !static_call(exmap_mmu_notifier_start)(&range);
	if (told) {
		static_call(exmap_flush_tlb_mm_range)(exmap->mm, start, end, PAGE_SHIFT, false);
		exmap_invalidate_end(&range);
	}
	up_read(&exmap->mapping->i_mmap_rwsem);
	return told;
}
