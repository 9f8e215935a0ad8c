// SPDX-License-Identifier: GPL-2.0
/*
 * The gate, and the kernel at work on the surface.
 *
 * A call is inside the gate while it holds its interface's lock and the gate is open. Inside, the
 * page tables of the surface stay in place, and only other calls map and unmap pages. The kernel
 * announces every change to a mapping to our MMU notifier, and the notifier closes the gate first.
 */
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "arch.h"
#include "compat.h"
#include "exmap.h"
#include "pool.h"
#include "quarantine.h"
#include "walk.h"

/**
 * exmap_enter_late - wait until the gate is open, then enter
 * @exmap: as for exmap_enter()
 * @interface: its lock is held; it is released while this waits
 * @gate: the value of the gate that exmap_enter() saw, which is not open
 *
 * Return: as exmap_enter().
 */
int exmap_enter_late(struct exmap *exmap, struct exmap_interface *interface, enum exmap_gate gate)
{
	while (gate != EXMAP_GATE_OPEN) {
		exmap_leave(interface);
		if (gate != EXMAP_GATE_CLOSED)
			return -EPROTO;
		/*
		 * Pairs with exmap_gate_open() and exmap_surface_kill(), which change the gate
		 * before they wake.
		 */
		if (wait_event_killable(exmap->gate_wait,
					READ_ONCE(exmap->gate) != EXMAP_GATE_CLOSED) ||
		    mutex_lock_killable(&interface->lock))
			return -EINTR;
		/* Pairs with the releases in exmap_surface_map() and exmap_gate_open(). */
		gate = smp_load_acquire(&exmap->gate);
	}
	return 0;
}

/**
 * exmap_was_closed - whether the kernel has been at work on the page tables
 * @exmap: the exmap
 * @openings: exmap->openings, read with an acquire before the page tables were looked at, while
 *	the gate was open or mmap_lock was held
 *
 * apply_to_page_range() also returns -ENOMEM if the kernel frees a table that it is looking at.
 * MADV_DONTNEED does that since 6.14.
 *
 * Return: true if the gate is closed now, or has been opened since @openings was read.
 */
bool exmap_was_closed(const struct exmap *exmap, unsigned int openings)
{
	/*
	 * What the caller has read of the page tables comes first. Pairs with the locks that order
	 * exmap_gate_close() before the kernel's work.
	 */
	smp_rmb();
	/* Pairs with exmap_gate_open(), which counts the opening before it opens the gate. */
	return smp_load_acquire(&exmap->gate) == EXMAP_GATE_CLOSED ||
		READ_ONCE(exmap->openings) != openings;
}

/*
 * exmap_walk_table() for a gate that is closed. Another thread's madvise() may be freeing an empty
 * table, and frees it by RCU. So check that the table is still in its place once it is locked, and
 * look it up again if it is not.
 */
static bool exmap_walk_table_closed(struct exmap_walk *walk, unsigned long address)
{
	bool found;
	pmd_t *pmd;

	rcu_read_lock();
	while ((found = exmap_walk_table(walk, address))) {
		pmd = exmap_pmds(walk->exmap, address) + pmd_index(address);
		/*
		 * Read again under the PTE lock. Pairs with pmd_clear(), which the kernel calls
		 * under that lock before it frees the table.
		 */
		if (walk->table == exmap_table(READ_ONCE(*pmd)))
			break;
		exmap_walk_unlock(walk);
	}
	rcu_read_unlock();
	return found;
}

/**
 * exmap_gate_close - close the gate
 * @exmap: its mmap_lock may be held, but no lock that is taken inside it
 * @gate: EXMAP_GATE_CLOSED, until exmap_gate_open(); or EXMAP_GATE_DEAD
 *
 * A flush must not be due once the gate is closed, because generic code takes the placeholder for a
 * none PTE and may free the page table. May sleep.
 *
 * Return: true if no call is inside and no flush is due; false if the surface was dead already.
 * Then its page tables may be gone and the exmap may be about to be freed, so no interface is
 * looked at.
 */
bool exmap_gate_close(struct exmap *exmap, enum exmap_gate gate)
{
	struct exmap_interface *interfaces;
	unsigned int i;
	bool alive;

	spin_lock(&exmap->gate_lock);
	exmap->closers++;
	alive = exmap->gate != EXMAP_GATE_DEAD;
	/*
	 * Pairs with exmap_enter(), exmap_enter_late(), exmap_prepare_stock() and
	 * exmap_fault_alloc(), which read it under an interface's lock: the loop below waits for
	 * those who have missed this. Also pairs with exmap_was_closed(), exmap_concerns() and
	 * exmap_pool_resize().
	 */
	if (alive)
		WRITE_ONCE(exmap->gate, gate);
	interfaces = exmap->interfaces;
	spin_unlock(&exmap->gate_lock);
	if (!alive)
		return false;

	/* If SETUP adds the interfaces after this, their users find the gate closed. */
	for (i = 0; interfaces && i < exmap_nr_interfaces(exmap); i++) {
		mutex_lock(&interfaces[i].lock);
		if (exmap_quarantine_flush(exmap, &interfaces[i].quarantine, &interfaces[i]))
			exmap_stock_trim(exmap, &interfaces[i]);
		mutex_unlock(&interfaces[i].lock);
	}
	return true;
}

/**
 * exmap_gate_open - undo exmap_gate_close()
 * @exmap: the exmap
 *
 * The gate opens when the last that has closed it calls this, unless the surface is dead.
 */
void exmap_gate_open(struct exmap *exmap)
{
	spin_lock(&exmap->gate_lock);
	/*
	 * After the kernel's changes. Pairs with exmap_prepare_tables() and exmap_fault_alloc().
	 */
	smp_store_release(&exmap->openings, exmap->openings + 1);
	exmap->closers--;
	if (!exmap->closers && exmap->gate == EXMAP_GATE_CLOSED) {
		/*
		 * Open after counting, and after the kernel's changes to the page tables. Pairs
		 * with exmap_was_closed(), exmap_enter(), exmap_enter_late(),
		 * exmap_prepare_stock() and exmap_fault_alloc().
		 */
		smp_store_release(&exmap->gate, EXMAP_GATE_OPEN);
	}
	spin_unlock(&exmap->gate_lock);
	wake_up_all(&exmap->gate_wait);
}

static void exmap_reap_flush(struct exmap *exmap, unsigned long start, unsigned long end,
			     unsigned int nr)
{
	if (!nr)
		return;
	exmap_shootdown(exmap, start, end, exmap_pages_at(NULL, 0));
	/* Pairs with exmap_mapped() and exmap_fdinfo(). */
	WRITE_ONCE(exmap->unmapped, exmap->unmapped + nr);
	nr = exmap_pinned_sort(exmap, exmap->reaped->page, nr);
	exmap_pool_release(exmap, exmap->reaped->page, nr);
}

/**
 * exmap_reap_skip - skip addresses without page tables
 * @exmap: mmap_lock is held, or the kernel is at work on the surface
 * @address: the first address
 * @end: the first address after the range
 *
 * Stops at the next leaf, so that the caller can reschedule.
 *
 * Return: the first address from @address on that may have a page table according to the directory;
 * or @end if there is none.
 */
unsigned long exmap_reap_skip(const struct exmap *exmap, unsigned long address, unsigned long end)
{
	/* Pairs with the cmpxchg() in exmap_leaf_get(). A leaf made later has no pages. */
	if (READ_ONCE(exmap->directory[address >> P4D_SHIFT]) == &exmap_no_leaf)
		return min(end, (address | ~P4D_MASK) + 1);
	while (address < end && !exmap_pmds(exmap, address)) {
		address = pud_addr_end(address, end);
		if (!(address & ~P4D_MASK))
			break;
	}
	return address;
}

/*
 * Unmap a part of the surface and give its pages back to the system, so that generic code finds no
 * page there. The gate is closed. Generic code may be freeing empty page tables of the surface at
 * the same time, but never a table of pmd_t, which the directory refers to. (trim.c frees those,
 * with mmap_lock and the VMA locked for writing.)
 *
 * Other notifiers may not have been told of this range yet, and some are told only after the fact.
 * exmap_shootdown() therefore tells them before any page is released.
 */
static void exmap_reap(struct exmap *exmap, unsigned long start, unsigned long end)
{
	struct exmap_walk walk = EXMAP_WALK(exmap);
	unsigned long address, next;
	unsigned int nr = 0;
	pte_t *pte;

	mutex_lock(&exmap->reap_lock);
	for (address = start; address < end; address = next) {
		if (walk.region != address >> PMD_SHIFT) {
			exmap_walk_unlock(&walk);
			cond_resched();
			next = exmap_reap_skip(exmap, address, end);
			if (next != address)
				continue;
			if (!exmap_walk_table_closed(&walk, address)) {
				next = pmd_addr_end(address, end);
				continue;
			}
		}
		next = address + PAGE_SIZE;
		pte = &walk.table[pte_index(address)];
		if (!pte_present(*pte))
			continue;
		exmap->reaped->page[nr++] = pte_page(*pte);
		exmap_pte_clear(exmap->mm, address, pte, *pte);
		if (nr == EXMAP_BUNDLE_PAGES) {
			exmap_walk_unlock(&walk);
			exmap_reap_flush(exmap, start, end, nr);
			nr = 0;
		}
	}
	exmap_walk_unlock(&walk);
	exmap_reap_flush(exmap, start, end, nr);
	mutex_unlock(&exmap->reap_lock);
}

/* Close the gate for good and release all pages and leaves. No page can be mapped afterwards. */
static void exmap_surface_kill(struct exmap *exmap)
{
	if (!exmap_gate_close(exmap, EXMAP_GATE_DEAD))
		return;
	wake_up_all(&exmap->gate_wait);
	exmap_reap(exmap, exmap->start, exmap->end);
	mutex_lock(&exmap->reap_lock);
	exmap_leaves_free(exmap);
	mutex_unlock(&exmap->reap_lock);
	/* Pairs with the release in exmap_setup(): the pool is ready. */
	if (smp_load_acquire(&exmap->interfaces))
		exmap_pool_drain(exmap);
}

/*
 * Whether a range concerns an exmap. A new mapping at the surface's place after its death does not.
 * Nor do ranges that must not block: they are the OOM reaper's, which skips shared mappings.
 *
 * Events that change protection or unmap may span many VMAs, and the caller holds mmap_lock.
 *
 * Events that zap pages stay within one VMA, and the surface cannot be split. The same is true of
 * events that reach a VMA through a page's rmap; our pages have none. Such a range can still stick
 * out of the surface. 6.1 and 6.12 announce the 2 MiB around a huge page of a neighbor that they
 * split (__split_huge_pmd() for rmap), but nothing happens to the surface. No lock keeps others
 * from mapping a surface there, or SETUP from running, between the start and the end of such an
 * event. So the answer must be false for both.
 */
static bool exmap_concerns(const struct exmap *exmap, const struct mmu_notifier_range *range)
{
	/* Pairs with the release in exmap_surface_map(): @start is set. */
	const unsigned long end = smp_load_acquire(&exmap->end);

	/*
	 * The read of the gate pairs with exmap_gate_close() and exmap_watch_leave(). If it misses
	 * a death, exmap_gate_close() sees it under gate_lock.
	 */
	if (range->start >= end || range->end <= exmap->start ||
	    READ_ONCE(exmap->gate) == EXMAP_GATE_DEAD || !mmu_notifier_range_blockable(range))
		return false;
	switch (range->event) {
	case MMU_NOTIFY_UNMAP:
	case MMU_NOTIFY_PROTECTION_VMA:
	case MMU_NOTIFY_SOFT_DIRTY:
		return true;
	default:
		return range->start >= exmap->start && range->end <= end;
	}
}

/*
 * Act on the start of an event. The kernel announces all changes to the process's memory, so the
 * caller has compared the addresses. The VMA cannot be looked up instead, because munmap() has
 * already removed it from the tree.
 */
static void exmap_invalidate(struct exmap *exmap, const struct mmu_notifier_range *range)
{
	switch (range->event) {
	case MMU_NOTIFY_UNMAP:
		/*
		 * mremap() announces this too when it is about to move the surface. It then fails,
		 * but the surface is dead.
		 */
		exmap_surface_kill(exmap);
		break;
	case MMU_NOTIFY_PROTECTION_VMA:
	case MMU_NOTIFY_PROTECTION_PAGE:
	case MMU_NOTIFY_SOFT_DIRTY:
		exmap_gate_close(exmap, EXMAP_GATE_CLOSED);
		break;
	default:
		/* MADV_DONTNEED, and every other event that may zap a page */
		if (exmap_gate_close(exmap, EXMAP_GATE_CLOSED))
			exmap_reap(exmap, range->start, range->end);
	}
}

static int exmap_invalidate_range_start(struct mmu_notifier *notifier,
					const struct mmu_notifier_range *range)
{
	struct exmap_watch *watch = container_of(notifier, struct exmap_watch, notifier);
	struct exmap *exmap;

	if (exmap_is_own(range))
		return 0;
	/* Pairs with exmap_watch_join() and exmap_watch_leave(), as do the two loops below. */
	list_for_each_entry_rcu(exmap, &watch->exmaps, neighbors, true)
		if (exmap_concerns(exmap, range))
			exmap_invalidate(exmap, range);
	return 0;
}

static void exmap_invalidate_range_end(struct mmu_notifier *notifier,
				       const struct mmu_notifier_range *range)
{
	struct exmap_watch *watch = container_of(notifier, struct exmap_watch, notifier);
	struct exmap *exmap;

	if (exmap_is_own(range))
		return;
	list_for_each_entry_rcu(exmap, &watch->exmaps, neighbors, true)
		if (exmap_concerns(exmap, range))
			exmap_gate_open(exmap);
}

/* The mm exits and no thread uses it any more. Only files may still refer to the exmap. */
static void exmap_release(struct mmu_notifier *notifier, struct mm_struct *mm)
{
	struct exmap_watch *watch = container_of(notifier, struct exmap_watch, notifier);
	struct exmap *exmap;

	list_for_each_entry_rcu(exmap, &watch->exmaps, neighbors, true)
		/* Pairs with exmap_surface_map(), which no thread of this mm can be in. */
		if (READ_ONCE(exmap->end))
			exmap_surface_kill(exmap);
}

/*
 * Notifiers that have not been freed. exmap_watch_exit() waits for it to drop to 0, because the
 * kernel frees a notifier only after an SRCU grace period.
 */
static atomic_t exmap_watches = ATOMIC_INIT(0);

/**
 * exmap_watch_init - initialize what is not the notifier's
 * @watch: is new
 */
void exmap_watch_init(struct exmap_watch *watch)
{
	spin_lock_init(&watch->lock);
	INIT_LIST_HEAD(&watch->exmaps);
}

static struct mmu_notifier *exmap_watch_alloc(struct mm_struct *mm)
{
	struct exmap_watch *watch = kzalloc(sizeof(*watch), GFP_KERNEL_ACCOUNT);

	if (!watch)
		return ERR_PTR(-ENOMEM);
	/* Pairs with exmap_watch_exit(), which runs when no file is open. */
	atomic_inc(&exmap_watches);
	exmap_watch_init(watch);
	return &watch->notifier;
}

static void exmap_watch_free(struct mmu_notifier *notifier)
{
	kfree(container_of(notifier, struct exmap_watch, notifier));
	/* Pairs with exmap_watch_exit(). A full barrier, as wake_up_var() needs. */
	if (atomic_dec_and_test(&exmap_watches))
		wake_up_var(&exmap_watches);
}

static const struct mmu_notifier_ops exmap_notifier_ops = {
	.release = exmap_release,
	.invalidate_range_start = exmap_invalidate_range_start,
	.invalidate_range_end = exmap_invalidate_range_end,
	.alloc_notifier = exmap_watch_alloc,
	.free_notifier = exmap_watch_free,
};

/**
 * exmap_watch_join - start to receive the kernel's announcements about the surface
 * @exmap: exmap->lock is held, mmap_lock is not
 *
 * All exmaps of a process share one notifier, because the kernel calls every notifier of a process
 * for each FREE on any of its exmaps. An announcement made before this call did not reach us, so
 * this checks whether the surface has been unmapped. May sleep and allocate, and takes mmap_lock
 * for writing.
 *
 * Return: 0; -ENOMEM; -EINTR if a signal is pending.
 */
int exmap_watch_join(struct exmap *exmap)
{
	struct mmu_notifier *notifier;
	struct vm_area_struct *vma;
	int err = 0;

	if (mmap_write_lock_killable(exmap->mm))
		return -EINTR;
	notifier = mmu_notifier_get_locked(&exmap_notifier_ops, exmap->mm);
	if (IS_ERR(notifier)) {
		err = PTR_ERR(notifier);
		goto unlock;
	}
	vma = exmap->end ? exmap_vma(exmap) : NULL;
	if (vma) {
		/*
		 * Wait for the VMA's lock, so that no event is under way on the surface. The start
		 * of such an event was not announced to us, and its end would open a gate that
		 * another event has closed. The kernel holds mmap_lock or the VMA's lock from the
		 * start of an event to its end.
		 */
		vma_start_write(vma);
	} else if (exmap->end) {
		/*
		 * Pairs with exmap_enter(), by the release of @interfaces in exmap_setup(). No call
		 * can be inside before that.
		 */
		spin_lock(&exmap->gate_lock);
		WRITE_ONCE(exmap->gate, EXMAP_GATE_DEAD);
		spin_unlock(&exmap->gate_lock);
	}
	exmap->watch = container_of(notifier, struct exmap_watch, notifier);
	spin_lock(&exmap->watch->lock);
	/* Pairs with exmap_invalidate_range_start(): the callbacks find the exmap. */
	list_add_tail_rcu(&exmap->neighbors, &exmap->watch->exmaps);
	spin_unlock(&exmap->watch->lock);
unlock:
	mmap_write_unlock(exmap->mm);
	return err;
}

/**
 * exmap_watch_leave - undo exmap_watch_join()
 * @exmap: nobody else uses it, and its surface, if it had one, has been unmapped
 *
 * A callback that began earlier may still look at the exmap until mmu_notifier_synchronize(). It
 * finds a dead gate or no surface, and returns.
 */
void exmap_watch_leave(struct exmap *exmap)
{
	struct exmap_watch *watch = exmap->watch;

	spin_lock(&exmap->gate_lock);
	/* Pairs with exmap_concerns(). If that misses it, exmap_gate_close() sees it. */
	WRITE_ONCE(exmap->gate, EXMAP_GATE_DEAD);
	spin_unlock(&exmap->gate_lock);
	spin_lock(&watch->lock);
	/* Pairs with exmap_invalidate_range_start(). exmap_bury() waits for the callbacks. */
	list_del_rcu(&exmap->neighbors);
	spin_unlock(&watch->lock);
	mmu_notifier_put(&watch->notifier);
}

/**
 * exmap_watch_exit - wait until every notifier that exmap_watch_leave() has put is freed
 *
 * Called at module exit, when no exmap is left. May sleep.
 */
void exmap_watch_exit(void)
{
	/* Pairs with exmap_watch_alloc() and exmap_watch_free(). */
	wait_var_event(&exmap_watches, !atomic_read(&exmap_watches));
	/*
	 * exmap_watch_free() may still be running after its wake-up. It runs with BH off, so an RCU
	 * grace period waits for it.
	 */
	synchronize_rcu();
}
