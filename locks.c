// SPDX-License-Identifier: GPL-2.0
/*
 * The order of the locks, told to lockdep before the first of them is taken in earnest: so
 * lockdep complains about a wrong order the first time that it sees one, even if nothing has
 * taken these locks in the right order before. See the table in exmap.h.
 *
 * What lockdep is not told here:
 *   - PTE lock: a page table of a process can go at any time, so there is none to lock. lockdep
 *     learns its place with the first ALLOC.
 *   - i_mmap_rwsem: lockdep knows one kind for the mappings of all files, and the kernel holds
 *     that of others when it calls the MMU notifier, which takes an interface's lock. So
 *     exmap_shootdown() does not tell lockdep either.
 *   - Bit spinlocks of the reading index, which lockdep does not know.
 *   - exmap_queues_lock: no other lock is held when it is taken, nor taken while it is held.
 */
#include <linux/init.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/srcu.h>

#include "exmap.h"
#include "pool.h"

#ifdef CONFIG_PROVE_LOCKING
static void __init exmap_locks_take(spinlock_t *lock)
{
	spin_lock(lock);
	spin_unlock(lock);
}

/* Locks that are taken with an interface's lock held. */
static void __init exmap_locks_inside(struct exmap *exmap, struct exmap_interface *interface)
{
	mutex_lock(&interface->quarantine.lock);
	exmap_locks_take(&exmap->pool.lock);
	mutex_unlock(&interface->quarantine.lock);
}

/* Locks that the MMU notifier and the shrinker take, so that none of them may wait for memory. */
static void __init exmap_locks_in_reclaim(struct exmap *exmap, struct exmap_interface *interfaces)
{
	int srcu;

	fs_reclaim_acquire(GFP_KERNEL);
	srcu = srcu_read_lock(&exmap_pools_srcu);
	exmap_locks_take(&exmap_pools_lock);
	srcu_read_unlock(&exmap_pools_srcu, srcu);
	exmap_locks_take(&exmap->gate_lock);
	mutex_lock(&interfaces[0].lock);
	exmap_locks_inside(exmap, &interfaces[0]);
	mutex_lock_nested(&interfaces[1].lock, SINGLE_DEPTH_NESTING);
	exmap_locks_take(&exmap->pool.lock);
	mutex_unlock(&interfaces[1].lock);
	mutex_unlock(&interfaces[0].lock);
	mutex_lock(&exmap->reap_lock);
	exmap_locks_take(&exmap->pool.lock);
	mutex_unlock(&exmap->reap_lock);
	exmap_locks_take(&exmap_orphans_lock);
	fs_reclaim_release(GFP_KERNEL);
}

/* All of them, from the outermost to the innermost. Nobody else knows of this exmap. */
static void __init exmap_locks_in_order(struct exmap *exmap, struct exmap_interface *interfaces,
					struct exmap_watch *watch)
{
	mutex_lock(&exmap->lock);
	exmap_locks_take(&exmap_pools_lock);
	mmap_read_lock(current->mm);
	exmap_locks_take(&watch->lock);
	exmap_locks_take(&exmap->gate_lock);
	down_read(&exmap->pool.transit);
	exmap_locks_in_reclaim(exmap, interfaces);
	up_read(&exmap->pool.transit);
	mmap_read_unlock(current->mm);
	mutex_unlock(&exmap->lock);
}

/**
 * exmap_locks_prime - tell lockdep the order of the locks
 *
 * Without memory, or from a thread that has no mm, this does nothing: lockdep then learns the
 * order as the locks are used.
 */
void __init exmap_locks_prime(void)
{
	struct exmap *exmap = kzalloc(sizeof(*exmap), GFP_KERNEL);
	struct exmap_interface *interfaces = kcalloc(2, sizeof(*interfaces), GFP_KERNEL);
	struct exmap_watch *watch = kzalloc(sizeof(*watch), GFP_KERNEL);

	if (current->mm && exmap && interfaces && watch) {
		exmap_locks_init(exmap);
		exmap_interface_locks_init(&interfaces[0]);
		exmap_interface_locks_init(&interfaces[1]);
		exmap_watch_init(watch);
		exmap_locks_in_order(exmap, interfaces, watch);
	}
	kfree(watch);
	kfree(interfaces);
	kfree(exmap);
}
#endif
