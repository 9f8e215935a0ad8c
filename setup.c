// SPDX-License-Identifier: GPL-2.0
/*
 * The life of an exmap: open, SETUP, the first use of an interface, and the last put.
 */
#include <linux/file.h>
#include <linux/llist.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/workqueue.h>

#include "compat.h"
#include "exmap.h"
#include "pool.h"
#include "quarantine.h"
#include "reading.h"
#include "trace.h"

/**
 * exmap_locks_init - initialize all locks of an exmap
 * @exmap: is new
 *
 * lockdep tells kinds of locks apart by where they are initialized, so each has only one place.
 */
void exmap_locks_init(struct exmap *exmap)
{
	mutex_init(&exmap->lock);
	mutex_init(&exmap->reap_lock);
	spin_lock_init(&exmap->flush.join_lock);
	spin_lock_init(&exmap->gate_lock);
	spin_lock_init(&exmap->pool.lock);
	init_rwsem(&exmap->pool.transit);
}

/**
 * exmap_interface_locks_init - initialize all locks of an interface
 * @interface: is new
 */
void exmap_interface_locks_init(struct exmap_interface *interface)
{
	mutex_init(&interface->lock);
	mutex_init(&interface->quarantine.lock);
}

/**
 * exmap_create - allocate an exmap for the calling process
 *
 * May sleep for memory. The exmap has one reference and no pool, interfaces or surface yet.
 *
 * Return: the exmap, to be released with exmap_put(); or NULL if no memory is available.
 */
struct exmap *exmap_create(void)
{
	static atomic64_t last_id;
	struct exmap *exmap;

	exmap = kzalloc(struct_size(exmap, pool.depot, nr_node_ids), GFP_KERNEL_ACCOUNT);
	if (!exmap)
		return NULL;
	/* Pairs with itself: two opens at the same time get different numbers. */
	exmap->id = atomic64_inc_return(&last_id);
	/* Pairs with exmap_get_other(), which finds the exmap by its file. */
	refcount_set(&exmap->refs, 1);
	exmap_locks_init(exmap);
	init_waitqueue_head(&exmap->gate_wait);
	INIT_LIST_HEAD(&exmap->flush.joined);
	exmap->quarantine_size = EXMAP_QUARANTINE_DEFAULT;
	/* The mm stays allocated until the last file is closed, possibly by a child process. */
	exmap->mm = current->mm;
	mmgrab(exmap->mm);
	return exmap;
}

/*
 * Free the bundles and the shared page of each interface, and undo their charges. The array itself
 * stays. Nobody else uses the interfaces.
 */
static void exmap_strip_interfaces(struct exmap *exmap, struct exmap_interface *interfaces,
				   unsigned int nr)
{
	unsigned int i;

	for (i = 0; i < nr; i++) {
		exmap_uncharge_resident(exmap->mm, &interfaces[i].charge);
		exmap_uncharge_resident(exmap->mm, &interfaces[i].quarantine.charge);
		exmap_quarantine_destroy(&interfaces[i].quarantine);
		exmap_stock_destroy(&interfaces[i]);
		free_page((unsigned long)interfaces[i].user);
		interfaces[i].user = NULL;
		cond_resched();
	}
}

static void exmap_destroy(struct exmap *exmap)
{
	mmdrop(exmap->mm);
	mutex_destroy(&exmap->lock);
	mutex_destroy(&exmap->reap_lock);
	kfree(exmap);
}

/* Exmaps that have lost their last reference, pages and interfaces, and wait to be freed. */
static LLIST_HEAD(exmap_remains);

/*
 * Free these exmaps once no MMU notifier callback and no shrinker can still look at them. All
 * exmaps that arrived in the meantime share one grace period. Only this work waits for it.
 */
static void exmap_bury(struct work_struct *work)
{
	/* Pairs with llist_add() in exmap_put(). */
	struct llist_node *all = llist_del_all(&exmap_remains);
	struct exmap *exmap, *next;

	mmu_notifier_synchronize();
	exmap_pool_synchronize();
	llist_for_each_entry_safe(exmap, next, all, remains) {
		exmap_destroy(exmap);
		cond_resched();
	}
}

static DECLARE_WORK(exmap_burial, exmap_bury);

/**
 * exmap_put - drop a reference to an exmap
 * @exmap: the exmap; the caller holds a reference and no lock
 *
 * May sleep. The last put tears down everything that user space can observe before it returns. The
 * struct itself is freed later, by exmap_bury().
 */
void exmap_put(struct exmap *exmap)
{
	/*
	 * Pairs with the puts of others: what they have done with the exmap comes before what the
	 * last does. exmap_get_other() takes references.
	 */
	if (!refcount_dec_and_test(&exmap->refs))
		return;
	if (exmap->interfaces) {
		exmap_watch_leave(exmap);
		trace_exmap_teardown(exmap);
		exmap_pool_destroy(exmap);
		exmap_reading_destroy(exmap);
		exmap_strip_interfaces(exmap, exmap->interfaces, exmap_nr_interfaces(exmap));
		exmap_pool_put_interfaces(exmap);
	}
	if (exmap->file)
		fput(exmap->file);
	exmap_queue_put(exmap->queue);
	exmap_surface_destroy(exmap);
	/* The llist_add() pairs with llist_del_all() in exmap_bury(). */
	if (!exmap->interfaces)
		exmap_destroy(exmap);
	else if (llist_add(&exmap->remains, &exmap_remains))
		schedule_work(&exmap_burial);
}

/*
 * Allocate @nr interfaces with their locks and zeroed counters. Each gets its memory on its first
 * use, in exmap_make_interface(). Returns an ERR_PTR() with the error of exmap_charge_resident(),
 * or -ENOMEM.
 */
static struct exmap_interface *exmap_alloc_interfaces(struct exmap *exmap, unsigned int nr)
{
	struct exmap_interface *interfaces;
	unsigned int i;
	int err;

	err = exmap_charge_resident(exmap->mm, DIV_ROUND_UP(nr * sizeof(*interfaces), PAGE_SIZE),
				    &exmap->charge);
	if (err)
		return ERR_PTR(err);
	interfaces = kvcalloc(nr, sizeof(*interfaces), GFP_KERNEL_ACCOUNT);
	if (!interfaces) {
		exmap_uncharge_resident(exmap->mm, &exmap->charge);
		return ERR_PTR(-ENOMEM);
	}
	for (i = 0; i < nr; i++) {
		exmap_interface_locks_init(&interfaces[i]);
		interfaces[i].node = NUMA_NO_NODE;
	}
	return interfaces;
}

/**
 * exmap_setup - create the pool and the interfaces of an exmap
 * @exmap: the exmap; exmap->lock is held, mmap_lock is not
 * @setup: parameters that have been checked
 * @file: the backing file, or NULL. On success the exmap takes its own reference
 *
 * May sleep, allocates, and takes mmap_lock.
 *
 * Return: 0; -EBUSY if the exmap has been set up or is an orphan of CLONE; -ENOMEM if no memory is
 * available or RLIMIT_MEMLOCK has no room; -EPERM if RLIMIT_MEMLOCK is 0; -ERESTARTNOINTR if a
 * signal is pending.
 */
int exmap_setup(struct exmap *exmap, const struct exmap_ioctl_setup *setup, struct file *file)
{
	unsigned int nr = setup->max_interfaces + 1;
	struct exmap_interface *interfaces;
	int err;

	if (exmap->interfaces || exmap->orphan)
		return -EBUSY;
	interfaces = exmap_alloc_interfaces(exmap, nr);
	if (IS_ERR(interfaces))
		return PTR_ERR(interfaces);
	if (setup->flags & EXMAP_PAGEFAULT_ALLOC) {
		err = exmap_charge_resident(exmap->mm, EXMAP_STOCK_PAGES,
					    &interfaces[nr - 1].charge) ?:
		      exmap_stock_setup(&interfaces[nr - 1]);
		if (err)
			goto free_interfaces;
	}
	err = exmap_pool_setup(exmap, setup->buffer_size);
	if (err)
		goto free_interfaces;
	/*
	 * Join here, because joining takes mmap_lock. mmap is called with mmap_lock held, and open
	 * with a mutex that all misc devices share. Joining this late misses nothing, because
	 * without interfaces no page can have been mapped.
	 */
	err = exmap_watch_join(exmap);
	if (err)
		goto destroy_pool;

	exmap->file = file ? get_file(file) : NULL;
	exmap->max_interfaces = setup->max_interfaces;
	exmap->flags = setup->flags;
	/*
	 * Other threads may use the interfaces at once, but take no page from the system before the
	 * pool is exposed. Otherwise exmap_token_follow() could replace the token meanwhile.
	 */
	down_write(&exmap->pool.transit);
	spin_lock(&exmap->gate_lock);
	/*
	 * Publish the array last, because a reader that sees it relies on the fields above. Pairs
	 * with exmap_ready(), exmap_vma_fault() and exmap_surface_kill().
	 */
	smp_store_release(&exmap->interfaces, interfaces);
	spin_unlock(&exmap->gate_lock);
	exmap_pool_expose(exmap);
	up_write(&exmap->pool.transit);
	return 0;

destroy_pool:
	exmap_pool_destroy(exmap);
	/* exmap_watch_join() stops for any signal: handle it, then restart the system call. */
	if (err == -EINTR)
		err = -ERESTARTNOINTR;
free_interfaces:
	exmap_strip_interfaces(exmap, interfaces, nr);
	exmap_free_interfaces(exmap, interfaces, nr);
	return err;
}

/**
 * exmap_make_interface - allocate the bundles and the shared page of an interface
 * @exmap: has been set up, and belongs to current->mm
 * @interface: the interface; its lock is not held
 *
 * May sleep for memory and takes the interface's lock.
 *
 * Return: 0, even if another thread did it first; -ENOMEM if no memory is available or the charge
 * would exceed RLIMIT_MEMLOCK; -EINTR if the caller is being killed.
 */
int exmap_make_interface(struct exmap *exmap, struct exmap_interface *interface)
{
	struct exmap_interface new = { };
	bool used = false;
	int err = 0;

	/* Allocate before taking the lock, because the MMU notifier takes the same lock. */
	new.user = (struct exmap_user_interface *)get_zeroed_page(GFP_KERNEL_ACCOUNT);
	if (!new.user || exmap_stock_setup(&new)) {
		free_page((unsigned long)new.user);
		return -ENOMEM;
	}
	err = mutex_lock_killable(&interface->lock);
	if (err)
		goto discard;
	/*
	 * Charge under the lock, so that two racing threads cannot both charge and one of them fail
	 * at the limit.
	 */
	if (!interface->user && exmap_charge_resident(exmap->mm, EXMAP_STOCK_PAGES + 1,
						      &interface->charge))
		err = -ENOMEM;
	if (!interface->user && !err) {
		interface->loaded = new.loaded;
		interface->limbo = new.limbo;
		interface->empty = new.empty;
		/*
		 * Publish last, because a reader that sees the page relies on the bundles. Pairs
		 * with exmap_interface_used().
		 */
		smp_store_release(&interface->user, new.user);
		used = true;
	}
	mutex_unlock(&interface->lock);
discard:
	if (!used) {
		exmap_stock_destroy(&new);
		free_page((unsigned long)new.user);
	}
	return err;
}

/**
 * exmap_setup_exit - wait until exmap_bury() has freed the last exmap
 *
 * Called at module exit. No file is open, so no further exmap can arrive.
 */
void exmap_setup_exit(void)
{
	flush_work(&exmap_burial);
}
