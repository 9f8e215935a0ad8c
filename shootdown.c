// SPDX-License-Identifier: GPL-2.0
/*
 * The flush: after pages have been unmapped, it removes them from all TLBs, and tells other MMUs
 * that may still have them. Threads that flush at the same time share one flush, unless a flush
 * interrupts no other CPU (EXMAP_FLUSH_SHARED).
 */
#include <linux/completion.h>
#include <linux/fs.h>
#include <linux/list.h>
#include <linux/lockdep.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/rwsem.h>
#include <linux/spinlock.h>

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
 * The lock of a flush is i_mmap_rwsem of the surface's file. If flushes are shared, exmap_shootdown()
 * holds it for writing. Otherwise, and in exmap_shootdown_try(), it is held for reading.
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

/* A caller that has joined the next flush; on its stack. */
struct exmap_flush_joiner {
	struct list_head node;		/* in exmap_shared_flush->joined, then in the leader's list */
	struct completion flushed;
};

/*
 * Flush a range, and those of all who have joined the next flush, and wake them. The caller holds
 * the lock of the flush for writing; this releases it.
 */
static noinline void exmap_shootdown_lead(struct exmap *exmap, unsigned long start,
					  unsigned long end)
{
	struct exmap_shared_flush *flush = &exmap->flush;
	struct exmap_flush_joiner *joiner;
	LIST_HEAD(joined);

	/* Pairs with exmap_shootdown_join(): their PTEs are cleared before this flush begins. */
	spin_lock(&flush->join_lock);
	start = min(start, flush->start);
	end = max(end, flush->end);
	WRITE_ONCE(flush->end, 0);
	flush->nr++;
	list_splice_init(&flush->joined, &joined);
	spin_unlock(&flush->join_lock);

	exmap_shootdown_send(exmap, start, end, exmap_pages_at(NULL, 0));
	exmap_flush_unlock(exmap);

	/* Pairs with exmap_shootdown_join(): this flush is over before they go on. */
	while (!list_empty(&joined)) {
		joiner = list_first_entry(&joined, struct exmap_flush_joiner, node);
		list_del(&joiner->node);
		complete(&joiner->flushed);
	}
}

/*
 * exmap_shootdown() if the lock of the flush is taken. A flush under way may have passed some CPUs
 * already, so join the next one. Of those who join it, only the first takes the lock. If all did,
 * they would get it one after another, only to see that their flush is done. With PREEMPT_RT all
 * do, because waiting for a lock lends its holder the priority of the one who waits.
 *
 * The order of memory accesses: join_lock orders the caller's cleared PTEs before the flush. The
 * flush has a full barrier. The completion, or else the lock, orders the flush before what the
 * caller does with the pages: it reads their reference counts, and reuses them.
 *
 * Return: true if the caller holds the lock now and has to flush; or false if its flush is done.
 */
static noinline bool exmap_shootdown_join(struct exmap *exmap, unsigned long start,
					  unsigned long end)
{
	struct exmap_shared_flush *flush = &exmap->flush;
	struct exmap_flush_joiner me;
	bool waits;
	u64 nr;

	init_completion(&me.flushed);
	/* Pairs with exmap_shootdown_lead(). */
	spin_lock(&flush->join_lock);
	waits = flush->end && !IS_ENABLED(CONFIG_PREEMPT_RT);
	flush->start = flush->end ? min(flush->start, start) : start;
	/* Pairs with exmap_shootdown(), which reads it without the lock. */
	WRITE_ONCE(flush->end, max(flush->end, end));
	nr = flush->nr;
	if (waits)
		list_add_tail(&me.node, &flush->joined);
	spin_unlock(&flush->join_lock);

	if (waits) {
		/* Pairs with exmap_shootdown_lead(). */
		wait_for_completion(&me.flushed);
		return false;
	}
	exmap_flush_lock(exmap);
	/* Pairs with exmap_shootdown_lead(), by the lock of the flush. */
	if (flush->nr == nr)
		return true;
	/*
	 * A caller that did not have to wait for the lock has led this flush. The next one is led by
	 * the first who has joined that: if this caller did, interrupts were a quarter more.
	 */
	exmap_flush_unlock(exmap);
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
 * Callers share flushes: those who find the lock of the flush taken join the next flush, which one
 * caller does for all. This cannot deadlock. Those who join may hold locks of interfaces and
 * quarantines, reap_lock, pool->transit and mmap_lock, and wait for the first who has joined. That
 * caller waits for the lock only. The lock's holder waits for other CPUs to flush and for other
 * notifiers, or is the kernel at work on a mapping of the file. None of them waits for a lock of an
 * interface: that would deadlock with a single FREE, which holds one here. Nor for mmap_lock, which
 * the kernel holds when it takes this lock and when it calls notifiers. If flushes are not shared,
 * callers do not wait for each other.
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
	if (unlikely(!exmap_flush_trylock(exmap)) && !exmap_shootdown_join(exmap, start, end))
		return false;
	/*
	 * Pairs with exmap_shootdown_join(). If it misses callers who join now, the first of them
	 * waits for the lock, and finds that nobody has done their flush.
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
