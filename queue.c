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
#include <linux/workqueue.h>

#include "compat.h"
#include "exmap.h"

/* The most works of a user that run, or wait, on a CPU at a time. */
#define EXMAP_QUEUE_ACTIVE 32

/**
 * struct exmap_queue - a user's workqueue
 * @sibling: in the list of all of them; exmap_queues_lock
 * @refs: exmaps that use it; exmap_queues_lock
 * @uid: whose
 * @works: the works
 */
struct exmap_queue {
	struct list_head sibling;
	unsigned long refs;
	kuid_t uid;
	struct workqueue_struct *works;
};

static LIST_HEAD(exmap_queues);
/* Taken for all users, so nobody sleeps with it. */
static DEFINE_SPINLOCK(exmap_queues_lock);

static struct exmap_queue *exmap_queue_alloc(kuid_t uid)
{
	struct exmap_queue *queue = kzalloc(sizeof(*queue), GFP_KERNEL_ACCOUNT);

	if (!queue)
		return NULL;
	queue->uid = uid;
	/* Somebody may be waiting for these in order to free memory. */
	queue->works = alloc_workqueue("exmap-%u", WQ_MEM_RECLAIM | WQ_PERCPU, EXMAP_QUEUE_ACTIVE,
				       from_kuid(&init_user_ns, uid));
	if (queue->works)
		return queue;
	kfree(queue);
	return NULL;
}

static void exmap_queue_free(struct exmap_queue *queue)
{
	if (!queue)
		return;
	destroy_workqueue(queue->works);
	kfree(queue);
}

/* The user's queue, with a reference more; or @new, if there is none, and that is not NULL. */
static struct exmap_queue *exmap_queue_find(kuid_t uid, struct exmap_queue *new)
{
	struct exmap_queue *queue;

	spin_lock(&exmap_queues_lock);
	list_for_each_entry(queue, &exmap_queues, sibling)
		if (uid_eq(queue->uid, uid))
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
 * The queue is that of the user who makes the exmap's first asynchronous call.
 *
 * Return: 0 or -ENOMEM.
 */
int exmap_queue_get(struct exmap *exmap)
{
	struct exmap_queue *queue, *new;

	/* Pairs with the cmpxchg() below. */
	if (likely(smp_load_acquire(&exmap->queue)))
		return 0;
	queue = exmap_queue_find(current_uid(), NULL);
	if (!queue) {
		new = exmap_queue_alloc(current_uid());
		if (!new)
			return -ENOMEM;
		queue = exmap_queue_find(new->uid, new);
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
