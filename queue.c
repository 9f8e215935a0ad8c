// SPDX-License-Identifier: GPL-2.0
/*
 * Where the rest of an asynchronous call is done: a workqueue for each user.
 *
 * A work may have to wait: for an interface that another thread of its process holds, for a
 * closed gate, for a device. A workqueue runs a limited number of works at a time, so the works
 * of one user, who can keep all of them waiting, must not be in the queue of another.
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

/* The most works of a user that run, or wait, on a CPU at a time. */
#define EXMAP_QUEUE_ACTIVE 32

/**
 * struct exmap_queue - a user's workqueue
 * @sibling: in the list of all of them; exmap_queues_lock
 * @refs: exmaps that use it; exmap_queues_lock
 * @owner: whose
 * @works: the works; NULL if there was no memory
 * @order: makes @works, and later frees all of it
 */
struct exmap_queue {
	struct list_head sibling;
	unsigned long refs;
	kuid_t owner;
	struct workqueue_struct *works;
	struct work_struct order;
};

static LIST_HEAD(exmap_queues);
/* Taken for all users, so nobody sleeps with it. */
static DEFINE_SPINLOCK(exmap_queues_lock);

/*
 * Where queues are made and freed. The kernel does that with a lock that is taken for all
 * workqueues, and may wait there for a new thread: a task that a user can keep from running
 * must not hold it.
 */
static struct workqueue_struct *exmap_queue_maker;

/*
 * Who owns the current task: its user; or, in user namespaces, the owner of the outermost of them,
 * since a user can have tens of thousands of user IDs there, and each queue has a thread.
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

	/* Somebody may be waiting for these works in order to free memory. */
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

/* The owner's queue, with a reference more; or @new, if there is none, and that is not NULL. */
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
 * exmap_queue_get - make sure that an exmap has a queue for its works
 * @exmap: belongs to current->mm
 *
 * The queue is that of the user who makes the exmap's first asynchronous call. May sleep.
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
	if (cmpxchg(&exmap->queue, NULL, queue))
		exmap_queue_put(queue);
	return 0;
}

/**
 * exmap_queue_put - let go of a queue
 * @queue: an exmap's, none of whose works has anything left to do but return; or NULL
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
 * exmap_queue_init - get ready to make queues
 *
 * Return: 0 or -ENOMEM.
 */
int __init exmap_queue_init(void)
{
	exmap_queue_maker = alloc_workqueue("exmap", WQ_UNBOUND | WQ_MEM_RECLAIM, 0);
	return exmap_queue_maker ? 0 : -ENOMEM;
}

/**
 * exmap_queue_exit - wait until all queues are freed; no exmap is left
 */
void exmap_queue_exit(void)
{
	destroy_workqueue(exmap_queue_maker);
}

/**
 * exmap_queue_work - have a work run in the exmap's queue
 * @exmap: exmap_queue_get() was called for it
 * @work: the work
 *
 * May be called from any context.
 */
void exmap_queue_work(struct exmap *exmap, struct work_struct *work)
{
	queue_work(exmap->queue->works, work);
}
