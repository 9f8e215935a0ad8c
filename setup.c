// SPDX-License-Identifier: GPL-2.0
/*
 * An exmap comes and goes: open, SETUP, the first use of an interface, and the last put.
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
#include "trace.h"

/**
 * exmap_create - make an exmap for the calling process
 *
 * Return: the exmap, which exmap_put() frees; or NULL if there is no memory for it.
 */
struct exmap *exmap_create(void)
{
	static atomic64_t last_id;
	struct exmap *exmap;

	exmap = kzalloc(sizeof(*exmap), GFP_KERNEL_ACCOUNT);
	if (!exmap)
		return NULL;
	exmap->id = atomic64_inc_return(&last_id);
	refcount_set(&exmap->refs, 1);
	mutex_init(&exmap->lock);
	mutex_init(&exmap->reap_lock);
	spin_lock_init(&exmap->gate_lock);
	init_waitqueue_head(&exmap->gate_wait);
	/* Kept allocated until the last file is closed, which may be in a child. */
	exmap->mm = current->mm;
	mmgrab(exmap->mm);
	return exmap;
}

/* Free all that interfaces have, but not themselves. */
static void exmap_strip_interfaces(struct exmap *exmap, struct exmap_interface *interfaces,
				   unsigned int nr)
{
	unsigned int i;

	for (i = 0; i < nr; i++) {
		exmap_uncharge_resident(exmap->mm, &interfaces[i].charge);
		exmap_uncharge_resident(exmap->mm, &interfaces[i].quarantine.charge);
		exmap_stock_destroy(&interfaces[i]);
		free_page((unsigned long)interfaces[i].user);
		interfaces[i].user = NULL;
	}
}

static void exmap_destroy(struct exmap *exmap)
{
	mmdrop(exmap->mm);
	mutex_destroy(&exmap->lock);
	mutex_destroy(&exmap->reap_lock);
	kfree(exmap);
}

/* Exmaps without pages and interfaces that nobody has any more. */
static LLIST_HEAD(exmap_remains);

/*
 * Free them when no MMU notifier and no shrinker is looking at them any more: one grace period
 * for all that have come meanwhile, which no one waits for.
 */
static void exmap_bury(struct work_struct *work)
{
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
 * exmap_put - let go of an exmap
 * @exmap: the exmap; no lock is held
 *
 * All that user space can notice is gone when the last one has put it.
 */
void exmap_put(struct exmap *exmap)
{
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
	if (!exmap->interfaces)
		exmap_destroy(exmap);
	else if (llist_add(&exmap->remains, &exmap_remains))
		schedule_work(&exmap_burial);
}

/* Their locks and counters; what they need for work comes with the first use. Or an error. */
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
		mutex_init(&interfaces[i].lock);
		mutex_init(&interfaces[i].quarantine.lock);
	}
	return interfaces;
}

/**
 * exmap_setup - the rest of SETUP
 * @exmap: its lock is held; mmap_lock is not
 * @setup: the parameters, which have been checked
 * @file: the backing file, or NULL. Keeps a reference to it
 *
 * Return: 0; -EBUSY if it has been set up or is an orphan; -ENOMEM; -EPERM if RLIMIT_MEMLOCK is
 * 0; or -ERESTARTNOINTR.
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
	 * Not at open, which the misc device calls with a lock for all of them, and
	 * not at mmap: this takes mmap_lock. Without interfaces there are no pages,
	 * so there was nothing to be told so far.
	 */
	err = exmap_watch_join(exmap);
	if (err)
		goto destroy_pool;

	exmap->file = file ? get_file(file) : NULL;
	exmap->max_interfaces = setup->max_interfaces;
	exmap->flags = setup->flags;
	spin_lock(&exmap->gate_lock);
	/* Last: who sees them goes by what is set above. */
	smp_store_release(&exmap->interfaces, interfaces);
	spin_unlock(&exmap->gate_lock);
	exmap_pool_expose(exmap);
	return 0;

destroy_pool:
	exmap_pool_destroy(exmap);
	/* It gives way to any signal: deal with that, and come again. */
	if (err == -EINTR)
		err = -ERESTARTNOINTR;
free_interfaces:
	exmap_strip_interfaces(exmap, interfaces, nr);
	exmap_free_interfaces(exmap, interfaces, nr);
	return err;
}

/**
 * exmap_make_interface - give an interface what it needs for work
 * @exmap: has been set up, and belongs to current->mm
 * @interface: its lock is not held
 *
 * Return: 0, also if another thread was first; -ENOMEM, also if that would be above
 * RLIMIT_MEMLOCK; or -EINTR.
 */
int exmap_make_interface(struct exmap *exmap, struct exmap_interface *interface)
{
	struct exmap_interface new = { };
	bool used = false;
	int err = 0;

	/* Not under the lock, which the MMU notifier takes. */
	new.user = (struct exmap_user_interface *)get_zeroed_page(GFP_KERNEL_ACCOUNT);
	if (!new.user || exmap_stock_setup(&new)) {
		free_page((unsigned long)new.user);
		return -ENOMEM;
	}
	err = mutex_lock_killable(&interface->lock);
	if (err)
		goto discard;
	/* Charged under the lock: of two threads neither fails because the other has charged it. */
	if (!interface->user && exmap_charge_resident(exmap->mm, EXMAP_STOCK_PAGES + 1,
						      &interface->charge))
		err = -ENOMEM;
	if (!interface->user && !err) {
		interface->loaded = new.loaded;
		interface->limbo = new.limbo;
		interface->empty = new.empty;
		/* Last: who sees it goes by the bundles. */
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
 * exmap_setup_exit - wait until the last exmap is freed; none is left that anybody has
 */
void exmap_setup_exit(void)
{
	flush_work(&exmap_burial);
}
