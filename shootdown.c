// SPDX-License-Identifier: GPL-2.0
/*
 * The flush: when pages have been unmapped, every TLB and every other MMU that may still hold
 * them has to be told.
 */
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/rwsem.h>

#include "compat.h"
#include "exmap.h"
#include "ksyms.h"

/* Tells the ranges that exmap itself announces from those of others: only its address counts. */
const char exmap_shootdown_owner;

/**
 * exmap_shootdown - flush a range from all TLBs, and tell other MMUs
 * @exmap: has a surface; no PTE lock is held
 * @start: first address
 * @end: first address after the range
 *
 * Nobody can reach what was unmapped between @start and @end after this; a page that
 * was there may be put to another use.
 *
 * Other MMUs that follow our page tables (KVM, IOMMUs with shared addresses, GPUs) hold no
 * reference to a page, so they have to be told like the generic code tells them. That they
 * hear of it only now is early enough: until now the pages were nobody else's, and whoever
 * took one from its PTE before that was cleared, and has not installed it yet, has to look
 * again. Our own notifier knows these ranges by their owner.
 *
 * One that is registered between the two calls would be told just the end, and KVM then
 * waits for beginnings and ends to match. Registration keeps those out that hold mmap_lock, or
 * the lock of some file mapping or anonymous memory of the process
 * (mm_take_all_locks()): ours is that of the surface's file. No one who holds the lock of
 * another mapping waits for an interface, which lockdep, knowing only its kind, could not
 * tell.
 *
 * The kernel's inline wrappers would tell lockdep that memory may be reclaimed
 * under an interface's lock. That is not so: a callback is not allowed to allocate.
 */
void exmap_shootdown(struct exmap *exmap, unsigned long start, unsigned long end)
{
	struct mmu_notifier_range range = {
		.mm = exmap->mm,
		.start = start,
		.end = end,
		.flags = MMU_NOTIFIER_RANGE_BLOCKABLE,
		.event = MMU_NOTIFY_CLEAR,
		.owner = (void *)&exmap_shootdown_owner,
	};

	down_read_non_owner(&exmap->mapping->i_mmap_rwsem);
	static_call(exmap_mmu_notifier_start)(&range);
	static_call(exmap_flush_tlb_mm_range)(exmap->mm, start, end, PAGE_SHIFT, false);
	exmap_invalidate_end(&range);
	up_read_non_owner(&exmap->mapping->i_mmap_rwsem);
}

/**
 * exmap_shootdown_try - exmap_shootdown() without waiting for any lock
 * @exmap: has a surface
 * @start: first address
 * @end: first address after the range
 *
 * Notifiers that cannot do without waiting say so (-EAGAIN). The kernel has then told those
 * that could of the end.
 *
 * Return: true; or false if that did not work out, and nothing is flushed.
 */
bool exmap_shootdown_try(struct exmap *exmap, unsigned long start, unsigned long end)
{
	struct mmu_notifier_range range = {
		.mm = exmap->mm,
		.start = start,
		.end = end,
		.event = MMU_NOTIFY_CLEAR,
		.owner = (void *)&exmap_shootdown_owner,
	};
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
