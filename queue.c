// SPDX-License-Identifier: GPL-2.0
/*
 * Workqueues that do the rest of asynchronous calls, one per user.
 *
 * A work may have to wait: for an interface that another thread of its process holds, for a closed
 * gate, or for a device. A workqueue runs a limited number of works at a time, and a user can keep
 * all of them waiting. So the works of one user must not share a workqueue with those of another.
 */
#include <linux/cred.h>
#include <linux/list.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uidgid.h>
#include <linux/user_namespace.h>
#include <linux/workqueue.h>

#include "compat.h"
#include "exmap.h"

/* The most works of one user that run or wait on a CPU at a time. */
#define EXMAP_QUEUE_ACTIVE 32

/**
 * struct exmap_queue - the workqueue of a user
 * @sibling: in the list of all queues; guarded by exmap_queues_lock
 * @refs: number of exmaps that use the queue; guarded by exmap_queues_lock
 * @owner: the user; set once
 * @works: the workqueue; NULL if it could not be allocated. Set by @order before the queue is
 *	published
 * @order: the work that makes @works, and later the work that frees the queue
 */
struct exmap_queue {
	struct list_head sibling;
	unsigned long refs;
	kuid_t owner;
	struct workqueue_struct *works;
	struct work_struct order;
};

static LIST_HEAD(exmap_queues);
/* Guards the list and the reference counts. All users share it, so its holder must not sleep. */
static DEFINE_SPINLOCK(exmap_queues_lock);

/*
 * The workqueue on which queues are made and freed. The kernel does both under a lock that is
 * shared by all workqueues, and it may wait for a new thread there. A task that a user can keep
 * from running must not hold that lock.
 */
static struct workqueue_struct *exmap_queue_maker;

/*
 * Returns the owner of the queue for the current task. In the initial user namespace that is the
 * task's user. Otherwise it is the owner of the outermost user namespace below the initial one,
 * because a user can have tens of thousands of user IDs there, and each queue has a thread.
 */
static kuid_t exmap_queue_owner(void)
{
	const struct user_namespace *ns = current_user_ns();

	if (ns == &init_user_ns)
		return current_uid();
	while (ns->parent != &init_user_ns)
		ns = ns->parent;
	return ns->owner;
}

static void exmap_queue_make(struct work_struct *order)
{
	struct exmap_queue *queue = container_of(order, struct exmap_queue, order);

	/* WQ_MEM_RECLAIM, because a task that frees memory may be waiting for these works. */
	queue->works = alloc_workqueue("exmap-%u", WQ_MEM_RECLAIM | WQ_PERCPU, EXMAP_QUEUE_ACTIVE,
				       from_kuid(&init_user_ns, queue->owner));
}

static void exmap_queue_unmake(struct work_struct *order)
{
	struct exmap_queue *queue = container_of(order, struct exmap_queue, order);

	destroy_workqueue(queue->works);
	kfree(queue);
}

static struct exmap_queue *exmap_queue_alloc(kuid_t owner)
{
	struct exmap_queue *queue = kzalloc(sizeof(*queue), GFP_KERNEL_ACCOUNT);

	if (!queue)
		return NULL;
	queue->owner = owner;
	INIT_WORK(&queue->order, exmap_queue_make);
	queue_work(exmap_queue_maker, &queue->order);
	flush_work(&queue->order);
	if (queue->works)
		return queue;
	kfree(queue);
	return NULL;
}

static void exmap_queue_free(struct exmap_queue *queue)
{
	INIT_WORK(&queue->order, exmap_queue_unmake);
	queue_work(exmap_queue_maker, &queue->order);
}

/*
 * Returns the owner's queue, with a reference for the caller. If there is none, adds @new to the
 * list and returns it, or returns NULL if @new is NULL.
 */
static struct exmap_queue *exmap_queue_find(kuid_t owner, struct exmap_queue *new)
{
	struct exmap_queue *queue;

	spin_lock(&exmap_queues_lock);
	list_for_each_entry(queue, &exmap_queues, sibling)
		if (uid_eq(queue->owner, owner))
			goto found;
	queue = new;
	if (new)
		list_add(&new->sibling, &exmap_queues);
found:
	if (queue)
		queue->refs++;
	spin_unlock(&exmap_queues_lock);
	return queue;
}

/**
 * exmap_queue_get - make sure that an exmap has a queue
 * @exmap: belongs to current->mm; no lock of ours is held
 *
 * The queue belongs to the user who makes the exmap's first asynchronous call. May sleep for
 * memory.
 *
 * Return: 0 or -ENOMEM.
 */
int exmap_queue_get(struct exmap *exmap)
{
	struct exmap_queue *queue, *new;
	kuid_t owner;

	/* Pairs with the cmpxchg() below. */
	if (likely(smp_load_acquire(&exmap->queue)))
		return 0;
	owner = exmap_queue_owner();
	queue = exmap_queue_find(owner, NULL);
	if (!queue) {
		new = exmap_queue_alloc(owner);
		if (!new)
			return -ENOMEM;
		queue = exmap_queue_find(owner, new);
		if (queue != new)
			exmap_queue_free(new);
	}
	/* Publish the queue, unless another thread was first. Pairs with the acquire above. */
	if (cmpxchg(&exmap->queue, NULL, queue))
		exmap_queue_put(queue);
	return 0;
}

/**
 * exmap_queue_put - drop an exmap's reference to its queue
 * @queue: the queue, or NULL. Each work of the exmap has nothing left to do but return
 *
 * The last put frees the queue in another task. Does not sleep.
 */
void exmap_queue_put(struct exmap_queue *queue)
{
	bool last;

	if (!queue)
		return;
	spin_lock(&exmap_queues_lock);
	last = !--queue->refs;
	if (last)
		list_del(&queue->sibling);
	spin_unlock(&exmap_queues_lock);
	if (last)
		exmap_queue_free(queue);
}

/**
 * exmap_queue_init - allocate the workqueue on which queues are made and freed
 *
 * Return: 0 or -ENOMEM.
 */
int __init exmap_queue_init(void)
{
	exmap_queue_maker = alloc_workqueue("exmap", WQ_UNBOUND | WQ_MEM_RECLAIM, 0);
	return exmap_queue_maker ? 0 : -ENOMEM;
}

/**
 * exmap_queue_exit - wait until all queues are freed
 *
 * Called at module exit, when no exmap is left. May sleep.
 */
void exmap_queue_exit(void)
{
	destroy_workqueue(exmap_queue_maker);
}

/**
 * exmap_queue_work - queue a work of an exmap
 * @exmap: exmap_queue_get() has succeeded for it
 * @work: the work
 *
 * May be called from any context.
 */
void exmap_queue_work(struct exmap *exmap, struct work_struct *work)
{
	/* Set once. What hands the call to this context orders exmap_queue_get() before this. */
	queue_work(exmap->queue->works, work);
}
