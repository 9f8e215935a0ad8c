// SPDX-License-Identifier: GPL-2.0
/*
 * The gate, and the kernel at work on the surface.
 *
 * A call works inside the gate: it holds its interface's lock, and the gate is
 * open. There the page tables of the surface stay where they are, and nobody but
 * other calls has a page come or go. Whatever the kernel may do to a mapping it
 * announces to our MMU notifier, which closes the gate first.
 */
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "compat.h"
#include "exmap.h"
#include "walk.h"

/**
 * exmap_enter_late - enter once the gate is open
 * @exmap: as for exmap_enter()
 * @interface: its lock is held
 * @gate: what the gate was; not open
 *
 * Return: as exmap_enter().
 */
int exmap_enter_late(struct exmap *exmap, struct exmap_interface *interface, enum exmap_gate gate)
{
	while (gate != EXMAP_GATE_OPEN) {
		exmap_leave(interface);
		if (gate != EXMAP_GATE_CLOSED)
			return -EPROTO;
		if (wait_event_killable(exmap->gate_wait,
					READ_ONCE(exmap->gate) != EXMAP_GATE_CLOSED) ||
		    mutex_lock_killable(&interface->lock))
			return -EINTR;
		/* As in exmap_enter(). */
		gate = smp_load_acquire(&exmap->gate);
	}
	return 0;
}

/**
 * exmap_was_closed - whether the kernel has been at work on the page tables
 * @exmap: the exmap
 * @openings: exmap->openings, read earlier, with the gate open or mmap_lock held
 *
 * If the kernel frees a table that apply_to_page_range() is looking at (MADV_DONTNEED does,
 * since 6.14), then that says -ENOMEM, too.
 *
 * Return: whether the gate is closed now, or was opened since @openings was read.
 */
bool exmap_was_closed(const struct exmap *exmap, unsigned int openings)
{
	/* It is counted before it is open again. */
	return smp_load_acquire(&exmap->gate) == EXMAP_GATE_CLOSED ||
		READ_ONCE(exmap->openings) != openings;
}

/*
 * exmap_walk_table() with the gate closed, where madvise() elsewhere may be freeing an empty table,
 * by RCU: then it is not in its place any more once it can be locked.
 */
static bool exmap_walk_table_closed(struct exmap_walk *walk, unsigned long address)
{
	bool found;
	pmd_t *pmd;

	rcu_read_lock();
	while ((found = exmap_walk_table(walk, address))) {
		pmd = exmap_pmds(walk->exmap, address) + pmd_index(address);
		if (walk->table == exmap_table(READ_ONCE(*pmd)))
			break;
		exmap_walk_unlock(walk);
	}
	rcu_read_unlock();
	return found;
}

/*
 * Close the gate, for good or for now. Nobody is inside when it returns, and no flush
 * due: generic code would overlook what stands for one, and may free the page table. False
 * where the surface was dead already: then its page tables may be gone, too, and the exmap
 * may be about to be freed. No interface is looked at then.
 */
static bool exmap_gate_close(struct exmap *exmap, enum exmap_gate gate)
{
	struct exmap_interface *interfaces;
	unsigned int i;
	bool alive;

	spin_lock(&exmap->gate_lock);
	exmap->closers++;
	alive = exmap->gate != EXMAP_GATE_DEAD;
	if (alive)
		WRITE_ONCE(exmap->gate, gate);
	interfaces = exmap->interfaces;
	spin_unlock(&exmap->gate_lock);
	if (!alive)
		return false;

	/* An interface that comes later finds the gate closed. */
	for (i = 0; interfaces && i < exmap_nr_interfaces(exmap); i++) {
		mutex_lock(&interfaces[i].lock);
		if (exmap_quarantine_flush(exmap, &interfaces[i].quarantine, &interfaces[i]))
			exmap_stock_trim(exmap, &interfaces[i]);
		mutex_unlock(&interfaces[i].lock);
	}
	return true;
}

static void exmap_gate_open(struct exmap *exmap)
{
	spin_lock(&exmap->gate_lock);
	WRITE_ONCE(exmap->openings, exmap->openings + 1);
	exmap->closers--;
	if (!exmap->closers && exmap->gate == EXMAP_GATE_CLOSED) {
		/* After the count: see exmap_was_closed(). */
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
	exmap_shootdown(exmap, start, end);
	WRITE_ONCE(exmap->unmapped, exmap->unmapped + nr);
	nr = exmap_pinned_sort(exmap, exmap->reaped->page, nr);
	exmap_pool_release(exmap, exmap->reaped->page, nr);
}

/*
 * The first address from @address on that may have a page table, by the directory; @end if
 * none has. It looks at one leaf only.
 */
static unsigned long exmap_reap_skip(const struct exmap *exmap, unsigned long address,
				     unsigned long end)
{
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
 * Unmap a part of the surface and give its pages back to the system, so that
 * generic code finds nothing there. The gate is closed. Generic code may be
 * freeing empty page tables meanwhile, but none of the directory's.
 *
 * Other notifiers may not have heard of this yet, or, where they are told after
 * the fact, only later: so they hear it from us before a page is let go.
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

/* The surface is gone for good: nothing can be mapped on it any more. */
static void exmap_surface_kill(struct exmap *exmap)
{
	if (!exmap_gate_close(exmap, EXMAP_GATE_DEAD))
		return;
	wake_up_all(&exmap->gate_wait);
	exmap_reap(exmap, exmap->start, exmap->end);
	mutex_lock(&exmap->reap_lock);
	exmap_leaves_free(exmap);
	mutex_unlock(&exmap->reap_lock);
	/* With the pool that SETUP made ready before it. */
	if (smp_load_acquire(&exmap->interfaces))
		exmap_pool_drain(exmap);
}

/*
 * Whether a range is an exmap's business: not what is at the surface's place after its
 * death. The OOM reaper's ranges, which must not block, leave shared mappings alone.
 *
 * Who changes protection or unmaps may do so with many VMAs at once, holding mmap_lock. Who
 * zaps pages, or comes by way of a page (rmap; ours has none), does it in one VMA, and the
 * surface is not split. What sticks out of it is the 2 MiB around a huge page of a
 * neighbour, which 6.1 and 6.12 announce where they split it (__split_huge_pmd() for rmap),
 * though nothing happens to the surface. They hold no lock then that would keep others from
 * mapping one there, or from SETUP.
 */
static bool exmap_concerns(const struct exmap *exmap, const struct mmu_notifier_range *range)
{
	/* Before the start, which mmap has set first. */
	const unsigned long end = smp_load_acquire(&exmap->end);

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
 * The kernel is about to change page tables: of all the process has mapped, so
 * compare addresses. The VMA cannot be looked up here: munmap() has taken it out
 * of the tree by now.
 */
static void exmap_invalidate(struct exmap *exmap, const struct mmu_notifier_range *range)
{
	switch (range->event) {
	case MMU_NOTIFY_UNMAP:
		/* Also where mremap() is about to move it, and will fail. */
		exmap_surface_kill(exmap);
		break;
	case MMU_NOTIFY_PROTECTION_VMA:
	case MMU_NOTIFY_PROTECTION_PAGE:
	case MMU_NOTIFY_SOFT_DIRTY:
		exmap_gate_close(exmap, EXMAP_GATE_CLOSED);
		break;
	default:
		/* MADV_DONTNEED; and whatever may zap a page */
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
	list_for_each_entry_rcu(exmap, &watch->exmaps, neighbours, true)
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
	list_for_each_entry_rcu(exmap, &watch->exmaps, neighbours, true)
		if (exmap_concerns(exmap, range))
			exmap_gate_open(exmap);
}

/* The mm goes: no thread is left in it. Only files may remain elsewhere. */
static void exmap_release(struct mmu_notifier *notifier, struct mm_struct *mm)
{
	struct exmap_watch *watch = container_of(notifier, struct exmap_watch, notifier);
	struct exmap *exmap;

	list_for_each_entry_rcu(exmap, &watch->exmaps, neighbours, true)
		if (READ_ONCE(exmap->end))
			exmap_surface_kill(exmap);
}

/* For exmap_watch_exit(): their memory is freed after an SRCU grace period. */
static atomic_t exmap_watches = ATOMIC_INIT(0);

static struct mmu_notifier *exmap_watch_alloc(struct mm_struct *mm)
{
	struct exmap_watch *watch = kzalloc(sizeof(*watch), GFP_KERNEL_ACCOUNT);

	if (!watch)
		return ERR_PTR(-ENOMEM);
	atomic_inc(&exmap_watches);
	spin_lock_init(&watch->lock);
	INIT_LIST_HEAD(&watch->exmaps);
	return &watch->notifier;
}

static void exmap_watch_free(struct mmu_notifier *notifier)
{
	kfree(container_of(notifier, struct exmap_watch, notifier));
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
 * exmap_watch_join - be told what the kernel does to the surface, or will do
 * @exmap: its lock is held; mmap_lock is not
 *
 * The kernel calls every notifier of a process for each FREE at any of its exmaps, so these
 * have one between them. Who unmapped the surface before this did not announce it to us.
 *
 * Return: 0, -ENOMEM, or -EINTR where there is a signal to be dealt with.
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
		 * Nobody is at work on it, who had announced the beginning to others: the
		 * end alone would open a gate that another has closed. (Who is holds mmap_lock
		 * or the VMA's lock from beginning to end.)
		 */
		vma_start_write(vma);
	} else if (exmap->end) {
		spin_lock(&exmap->gate_lock);
		WRITE_ONCE(exmap->gate, EXMAP_GATE_DEAD);
		spin_unlock(&exmap->gate_lock);
	}
	exmap->watch = container_of(notifier, struct exmap_watch, notifier);
	spin_lock(&exmap->watch->lock);
	list_add_tail_rcu(&exmap->neighbours, &exmap->watch->exmaps);
	spin_unlock(&exmap->watch->lock);
unlock:
	mmap_write_unlock(exmap->mm);
	return err;
}

/**
 * exmap_watch_leave - undo exmap_watch_join()
 * @exmap: nobody else has it, and its surface, if it had any, is gone
 *
 * A callback that began before may still look at it, until mmu_notifier_synchronize(). It
 * finds the gate dead, or no surface, and does nothing.
 */
void exmap_watch_leave(struct exmap *exmap)
{
	struct exmap_watch *watch = exmap->watch;

	spin_lock(&exmap->gate_lock);
	WRITE_ONCE(exmap->gate, EXMAP_GATE_DEAD);
	spin_unlock(&exmap->gate_lock);
	spin_lock(&watch->lock);
	list_del_rcu(&exmap->neighbours);
	spin_unlock(&watch->lock);
	mmu_notifier_put(&watch->notifier);
}

/**
 * exmap_watch_exit - wait for what exmap_watch_leave() has left to SRCU; no exmap is left
 */
void exmap_watch_exit(void)
{
	wait_var_event(&exmap_watches, !atomic_read(&exmap_watches));
	/* And for the callback in which the last was freed: it runs with BH off. */
	synchronize_rcu();
}
