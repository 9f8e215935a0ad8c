// SPDX-License-Identifier: GPL-2.0
/*
 * Takes all locks once in the order of the table in exmap.h, when the module is loaded. So lockdep
 * complains about a wrong order the first time that it sees one, even if nobody has taken these
 * locks in the right order before.
 *
 * Not taken here:
 *   - PTE lock: no page table is at hand that the kernel cannot free. lockdep learns the place of
 *     this lock with the first ALLOC.
 *   - i_mmap_rwsem: lockdep knows one kind of it for all files, and would take another file's for
 *     ours. exmap_shootdown() does not tell lockdep of it either.
 *   - The bit spinlocks of the reading index, because lockdep does not know bit spinlocks.
 *   - The lock of exmap_tokens: the kernel's list_lru has it, and no list exists yet.
 *   - exmap_queues_lock, because it is never held together with another lock.
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

/* Take the locks of a flush, and those that may be taken along with them. */
static void __init exmap_locks_flush(struct exmap *exmap)
{
	exmap_locks_take(&exmap->flush.join_lock);
	exmap_locks_take(&exmap->pool.lock);
}

/* Take the locks that may be taken with an interface's lock held. */
static void __init exmap_locks_inside(struct exmap *exmap, struct exmap_interface *interface)
{
	mutex_lock(&interface->quarantine.lock);
	exmap_locks_flush(exmap);
	mutex_unlock(&interface->quarantine.lock);
}

/*
 * Take the locks that the MMU notifier or the shrinker takes. They are taken as in reclaim, so that
 * lockdep complains if a holder of one of them allocates memory with GFP_KERNEL.
 */
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
	exmap_locks_flush(exmap);
	mutex_unlock(&exmap->reap_lock);
	exmap_locks_take(&exmap_orphans_lock);
	fs_reclaim_release(GFP_KERNEL);
}

/* Take all locks, from the outermost to the innermost. Nobody else has this exmap. */
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
 * If there is no memory, or the current task has no mm, this does nothing. lockdep then learns the
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
