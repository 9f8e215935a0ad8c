// SPDX-License-Identifier: GPL-2.0
/*
 * The flush: after pages have been unmapped, it removes them from all TLBs, and tells other MMUs
 * that may still have them. Threads that flush at the same time share one flush, unless a flush
 * interrupts no other CPU (EXMAP_FLUSH_SHARED).
 */
#include <linux/fs.h>
#include <linux/lockdep.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/rwsem.h>
#include <linux/wait.h>

#include "arch.h"
#include "compat.h"
#include "exmap.h"
#include "ksyms.h"

/* Marks the ranges that exmap announces, see exmap_is_own(). Only its address is used. */
const char exmap_shootdown_owner;

/* A range for MMU notifiers. @flags: 0, or MMU_NOTIFIER_RANGE_BLOCKABLE if they may sleep. */
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

/*
 * The lock of a flush is i_mmap_rwsem of the surface's file. If flushes are shared, the one who
 * flushes holds it for writing, otherwise all who flush hold it for reading.
 *
 * A notifier that is registered between the two calls of exmap_shootdown_send() would be told only
 * the end, and KVM waits until beginnings and ends match. mm_take_all_locks() keeps notifiers from
 * being registered while mmap_lock is held, or the lock of any file mapping or anonymous memory of
 * the process. Here it is the lock of our own file's mapping.
 *
 * lockdep is not told of it, because it knows one kind of this lock for all files, and the kernel
 * calls our notifier with that of another file held. The notifier then waits for no interface,
 * because the range is not on the surface.
 */
static __always_inline bool exmap_flush_trylock(struct exmap *exmap)
{
	bool locked;

	lockdep_off();
	locked = down_write_trylock(&exmap->mapping->i_mmap_rwsem);
	lockdep_on();
	return locked;
}

static void exmap_flush_lock(struct exmap *exmap)
{
	lockdep_off();
	down_write(&exmap->mapping->i_mmap_rwsem);
	lockdep_on();
}

static __always_inline void exmap_flush_unlock(struct exmap *exmap)
{
	lockdep_off();
	up_write(&exmap->mapping->i_mmap_rwsem);
	lockdep_on();
}

/*
 * Flush pages from all TLBs and tell other MMUs. The lock of the flush is held.
 *
 * Other MMUs that follow our page tables (KVM, IOMMUs with shared addresses, GPUs) hold no
 * reference to a page, so they must be told, as generic code does. It is early enough to tell them
 * now, because the pages have not been reused yet. An MMU that has read a PTE before it was
 * cleared, and has not installed the page yet, must read the PTE again. Our own notifier ignores
 * these ranges, which it knows by their owner.
 *
 * This does not use the kernel's inline wrappers, because they would tell lockdep that memory may
 * be reclaimed under an interface's lock. But a notifier's callback must not allocate memory.
 */
static __always_inline void exmap_shootdown_send(struct exmap *exmap, unsigned long start,
						 unsigned long end, struct exmap_pages pages)
{
	struct mmu_notifier_range range =
		exmap_shootdown_range(exmap, start, end, MMU_NOTIFIER_RANGE_BLOCKABLE);

	VM_WARN_ON_ONCE(!rwsem_is_locked(&exmap->mapping->i_mmap_rwsem));
	static_call(exmap_mmu_notifier_start)(&range);
	exmap_flush_tlb(exmap->mm, start, end, pages);
	exmap_invalidate_end(&range);
}

/*
 * Flush a range, and those of all who have joined the next flush, and wake them. The lock of the
 * flush is held for writing, and is released.
 */
static noinline void exmap_shootdown_lead(struct exmap *exmap, unsigned long start,
					  unsigned long end)
{
	struct exmap_shared_flush *flush = &exmap->flush;
	u64 begun;

	/* Pairs with exmap_shootdown_join(): their PTEs are cleared before this flush begins. */
	spin_lock(&flush->join_lock);
	start = min(start, flush->start);
	end = max(end, flush->end);
	WRITE_ONCE(flush->end, 0);
	begun = ++flush->begun;
	spin_unlock(&flush->join_lock);

	exmap_shootdown_send(exmap, start, end, exmap_pages_at(NULL, 0));

	/* Pairs with exmap_shootdown_join(): the flush is over before its caller goes on. */
	smp_store_release(&flush->done, begun);
	exmap_flush_unlock(exmap);
	wake_up_all(&flush->wait);
}

/*
 * exmap_shootdown() while another flush is under way. That flush may have passed some CPUs already,
 * so wait for the next one. The first who joins it does it for all. Only this one waits for the
 * lock: if all did, they would get it one after another, only to see that their flush is done.
 *
 * The order of memory accesses: join_lock orders the caller's cleared PTEs before the flush. The
 * flush has a full barrier. The release and the acquire of ->done order the flush before what the
 * caller does with the pages: it reads their reference counts, and reuses them.
 */
static noinline bool exmap_shootdown_join(struct exmap *exmap, unsigned long start,
					  unsigned long end)
{
	struct exmap_shared_flush *flush = &exmap->flush;
	bool first;
	u64 mine;

	/* Pairs with exmap_shootdown_lead(). */
	spin_lock(&flush->join_lock);
	first = !flush->end;
	flush->start = first ? start : min(flush->start, start);
	/* Pairs with exmap_shootdown(), which reads it without the lock. */
	WRITE_ONCE(flush->end, max(flush->end, end));
	mine = flush->begun + 1;
	spin_unlock(&flush->join_lock);

	if (first) {
		exmap_flush_lock(exmap);
		if (flush->begun < mine) {
			exmap_shootdown_lead(exmap, start, end);
			return true;
		}
		/* A caller that did not have to wait for the lock has done it. */
		exmap_flush_unlock(exmap);
		return false;
	}
	/* Pairs with exmap_shootdown_lead(). */
	wait_event(flush->wait, smp_load_acquire(&flush->done) >= mine);
	return false;
}

/**
 * exmap_shootdown - flush pages from all TLBs and tell other MMUs
 * @exmap: has a surface; no PTE lock is held
 * @start: first address of the range that has the pages
 * @end: first address after the range
 * @pages: which pages of the range
 *
 * After this, nobody can reach one of these pages that was unmapped before the call, and such a
 * page may be reused. It is a full barrier, between the stores that cleared the PTEs and all
 * accesses after the call, also if another caller does the flush.
 *
 * Callers share flushes: while one is under way, all others who come wait for the next one, and
 * one of them does it for all. This cannot deadlock. Those who wait hold locks of interfaces and
 * quarantines, reap_lock and mmap_lock. The leader waits for other CPUs to flush, for the kernel
 * at work on i_mmap_rwsem and for other notifiers. None of them waits for a lock of an interface:
 * that would deadlock with a single FREE, which holds one here. If flushes are not shared, callers
 * do not wait for each other.
 *
 * May sleep.
 *
 * Return: true; or false if another caller did the flush.
 */
bool exmap_shootdown(struct exmap *exmap, unsigned long start, unsigned long end,
		     struct exmap_pages pages)
{
	struct exmap_shared_flush *flush = &exmap->flush;

	if (!EXMAP_FLUSH_SHARED) {
		down_read_non_owner(&exmap->mapping->i_mmap_rwsem);
		exmap_shootdown_send(exmap, start, end, pages);
		up_read_non_owner(&exmap->mapping->i_mmap_rwsem);
		return true;
	}
	if (unlikely(!exmap_flush_trylock(exmap)))
		return exmap_shootdown_join(exmap, start, end);
	/*
	 * Pairs with exmap_shootdown_join(). If it misses somebody who joins now, that caller takes
	 * the lock of the flush next, and finds that nobody has done its flush.
	 */
	if (unlikely(READ_ONCE(flush->end))) {
		exmap_shootdown_lead(exmap, start, end);
		return true;
	}
	exmap_shootdown_send(exmap, start, end, pages);
	exmap_flush_unlock(exmap);
	return true;
}

/**
 * exmap_shootdown_try - exmap_shootdown() that waits for no lock, and shares no flush
 * @exmap: has a surface
 * @start: as for exmap_shootdown()
 * @end: as for exmap_shootdown()
 * @pages: as for exmap_shootdown()
 *
 * A notifier that would have to wait returns -EAGAIN. The kernel has then told the end to all
 * notifiers that had been told the beginning.
 *
 * Return: true; or false if a lock or a notifier was busy, and nothing is flushed.
 */
bool exmap_shootdown_try(struct exmap *exmap, unsigned long start, unsigned long end,
			 struct exmap_pages pages)
{
	struct mmu_notifier_range range = exmap_shootdown_range(exmap, start, end, 0);
	bool told;

	if (!down_read_trylock(&exmap->mapping->i_mmap_rwsem))
		return false;
	told = !static_call(exmap_mmu_notifier_start)(&range);
	if (told) {
		exmap_flush_tlb(exmap->mm, start, end, pages);
		exmap_invalidate_end(&range);
	}
	up_read(&exmap->mapping->i_mmap_rwsem);
	return told;
}
