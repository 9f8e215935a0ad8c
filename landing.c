// SPDX-License-Identifier: GPL-2.0
/*
 * What follows when the requests of a window are done: pages that were read are mapped, pages that
 * were written are unpinned, and the entries get their results. READ of one page for a caller that
 * waits is all in here.
 */
#include <linux/cred.h>
#include <linux/fs.h>
#include <linux/fsnotify.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/workqueue.h>

#include "compat.h"
#include "exmap.h"
#include "io.h"
#include "reading.h"
#include "trace.h"
#include "walk.h"

/* The most pages whose asynchronous calls end under one lock, unless a single call has more. */
#define EXMAP_IO_LANDING EXMAP_USER_INTERFACE_PAGES

/*
 * Set an entry's result: its first error, the number of pages that were done, and the first address
 * that was not done. In a WRITE, a page that is not mapped was not done. That ends the result of
 * pwrite(), but is no error of ACTION.
 */
static void exmap_io_result(const struct exmap_io *io, struct exmap_io_entry *entry)
{
	const struct exmap_slot *slot = &io->slot[entry->first];
	unsigned long expected = entry->start;
	unsigned int i;

	entry->pages = 0;
	entry->good = entry->end;
	/* The most common result: one page, and this call has mapped it. */
	if (entry->nr == 1 && !exmap_io_writes(io) && slot->page) {
		entry->pages = 1;
		return;
	}
	for (i = 0; i < entry->nr; i++) {
		if (exmap_io_writes(io) && slot[i].address != expected)
			entry->good = min(entry->good, expected);
		expected = slot[i].address + PAGE_SIZE;
		if (!slot[i].error) {
			/* Without an error, but another page was mapped there first. */
			entry->pages += slot[i].page != NULL;
			continue;
		}
		entry->good = min(entry->good, slot[i].address);
		if (!entry->res)
			entry->res = slot[i].error;
	}
	if (exmap_io_writes(io))
		entry->good = min(entry->good, expected);
	/*
	 * The end of the file is no error if pages before it are there, whether this call has read
	 * them or another. It is one if none is there: some files cannot be read up to their size.
	 */
	if (entry->res == -ENODATA &&
	    (entry->pages || (entry->good > entry->start && entry->start - io->exmap->start <
			      i_size_read(io->exmap->file->f_mapping->host))))
		entry->res = 0;
}

/* Unpin pages that were written. */
static void exmap_io_unpin(struct exmap_io *io)
{
	unsigned int i, written = 0;

	for (i = 0; i < io->nr_slots; i++) {
		written += !io->slot[i].error;
		put_page(io->slot[i].page);
	}
	/* If the caller is being killed, it does not wait to update the statistics. */
	if (mutex_lock_killable(&io->interface->lock))
		return;
	exmap_count(&io->interface->counts.writes, written);
	exmap_leave(io->interface);
}

/*
 * Map pages that were read. The interface's lock is held and the gate is open. May leave a page
 * table locked.
 */
static __always_inline void exmap_io_map_inside(struct exmap_walk *walk, struct exmap_io *io,
						struct exmap_slot *slot, unsigned int nr)
{
	struct exmap_counts *counts = &io->interface->counts;
	unsigned int mapped = exmap_install(walk, io->interface, slot, nr);

	exmap_count(io->opcode == EXMAP_OP_READ ? &counts->reads : &counts->allocs, mapped);
}

/* Map pages that were read. */
static __always_inline void exmap_io_map(struct exmap_io *io, struct exmap_slot *slot,
					 unsigned int nr)
{
	struct exmap_walk walk = EXMAP_WALK(io->exmap);
	int err = exmap_enter(io->exmap, io->interface);

	if (err) {
		exmap_discard(io->exmap, io->interface, slot, nr, err);
		return;
	}
	exmap_io_map_inside(&walk, io, slot, nr);
	exmap_walk_leave(&walk, io->interface);
}

/*
 * READ of one page, with slot @i: take a page, read it, and map it. The caller waits. Returns 0,
 * and the slot has the result; or, with nothing read, -ENOMEM, -EPROTO or -EINTR, which the slot
 * has as its error, too.
 */
static __always_inline int exmap_io_read_slot(struct exmap_io *io, unsigned int i,
					      unsigned long address)
{
	struct exmap_walk walk = EXMAP_WALK(io->exmap);
	struct exmap_slot *slot = &io->slot[i];
	struct kiocb iocb __exmap_uninitialized;
	long ret;

	ret = exmap_enter(io->exmap, io->interface) ?:
		exmap_reserve(&walk, io->interface, address, address + PAGE_SIZE, true, false,
			      slot);
	if (ret >= 0)
		exmap_walk_leave(&walk, io->interface);
	if (ret <= 0) {
		/* An error, or a page is mapped there already. */
		*slot = (struct exmap_slot){ .address = address, .error = ret };
		return ret;
	}
	exmap_bvec_set(&io->bvec[i], slot->page);
	exmap_io_init_iocb(io, &iocb, i);
	ret = exmap_io_start_read(io, &iocb, i, 1);
	if (unlikely(ret != PAGE_SIZE))
		exmap_io_settle(io, i, 1, ret);
	exmap_io_map(io, slot, 1);
	return 0;
}

/*
 * Read a page again whose slot is stale: another page was mapped at its address meanwhile, and is
 * gone again, so what was read may be older than what that page wrote to the file. The number of
 * tries is limited, because another thread can make the slot stale each time.
 */
static noinline void exmap_io_read_again(struct exmap_io *io, unsigned int i)
{
	unsigned int tries;

	for (tries = 0; io->slot[i].stale && tries < EXMAP_IO_TRIES; tries++) {
		if (fatal_signal_pending(current))
			return;
		exmap_io_read_slot(io, i, io->slot[i].address);
	}
}

/**
 * exmap_io_read_one - READ of one page for a caller that waits
 * @exmap: has a backing file and a surface, and belongs to current->mm; mmap_lock is not held
 * @interface: where the page comes from; its lock is not held
 * @address: the page, on the surface
 * @ioprio: the caller's I/O priority
 * @slot: set to the result: @error, and a @page if this has mapped one
 *
 * The most common READ. It does what exmap_io_perform() does, but with no entry and no window.
 *
 * Return: 0 if it was tried, with its result in @slot; or, with nothing done, -ENOMEM, -EPROTO or
 * -EINTR.
 */
int exmap_io_read_one(struct exmap *exmap, struct exmap_interface *interface,
		      unsigned long address, unsigned short ioprio, struct exmap_slot *slot)
{
	struct exmap_io io __exmap_uninitialized;
	int err;

	io.exmap = exmap;
	io.interface = interface;
	io.opcode = EXMAP_OP_READ;
	io.ioprio = ioprio;
	io.waiter = EXMAP_IO_CALLER;
	io.slot = slot;
	io.bvec = &io.one.bvec;
	err = exmap_reading_setup(exmap) ?: exmap_io_read_slot(&io, 0, address);
	if (unlikely(err)) {
		trace_exmap_read(exmap, interface, 0, 0, err);
		return err;
	}
	if (unlikely(slot->stale))
		exmap_io_read_again(&io, 0);
	trace_exmap_read(exmap, interface, 1, slot->page != NULL, slot->error != 0);
	return 0;
}

/* Map or unpin the pages of a window. */
static void exmap_io_land(struct exmap_io *io)
{
	if (exmap_io_writes(io))
		exmap_io_unpin(io);
	else
		exmap_io_map(io, io->slot, io->nr_slots);
}

/* The tracepoint of a window that is done. */
static void exmap_io_trace(const struct exmap_io *io, unsigned long pages, unsigned int failed)
{
	const unsigned int nr = io->next - io->first;
	const long ret = io->err ?: failed;

	if (exmap_io_writes(io))
		trace_exmap_write(io->exmap, io->interface, nr, pages, ret);
	else if (io->opcode == EXMAP_OP_READ)
		trace_exmap_read(io->exmap, io->interface, nr, pages, ret);
	else
		trace_exmap_alloc(io->exmap, io->interface, nr, pages, ret);
}

/*
 * Tell fsnotify (inotify, fanotify) that the file was read or written. The file itself does so only
 * for a request that is done when vfs_iocb_iter_read() returns.
 */
static void exmap_io_notify(const struct exmap_io *io)
{
	if (exmap_io_writes(io))
		fsnotify_modify(io->exmap->file);
	else
		fsnotify_access(io->exmap->file);
}

/* Find out which pages were done, if some request of a window was short or failed. */
static void exmap_io_settle_all(struct exmap_io *io)
{
	unsigned int i;

	for (i = 0; i < io->nr_runs; i++)
		if (!exmap_io_run_is_whole(&io->run[i]))
			exmap_io_settle(io, io->run[i].first, io->run[i].nr, io->run[i].ret);
}

/* Set the results of the entries of a window. Its pages have landed. */
static void exmap_io_conclude(struct exmap_io *io)
{
	unsigned long pages = 0;
	unsigned int i, failed = 0;

	for (i = io->first; i < io->next; i++) {
		exmap_io_result(io, &io->entry[i]);
		pages += io->entry[i].pages;
		failed += io->entry[i].res < 0;
	}
	if (io->untold && pages)
		exmap_io_notify(io);
	exmap_io_trace(io, pages, failed);
}

/**
 * exmap_io_finish - map or unpin the pages of a window, and set the results of its entries
 * @io: the call; all requests of the window are done. No lock is held
 */
void exmap_io_finish(struct exmap_io *io)
{
	unsigned int i;

	exmap_io_settle_all(io);
	exmap_io_land(io);
	/* If the caller does not wait here, stale pages fail with -EBUSY. */
	if (io->opcode == EXMAP_OP_READ && io->waiter == EXMAP_IO_CALLER)
		for (i = 0; i < io->nr_slots; i++)
			if (unlikely(io->slot[i].stale))
				exmap_io_read_again(io, i);
	exmap_io_conclude(io);
}

/**
 * exmap_io_undo - release the pages of a window
 * @io: the call. No page of the window was read or written, and no lock is held
 */
void exmap_io_undo(struct exmap_io *io)
{
	unsigned int i;

	for (i = 0; i < io->nr_slots; i++)
		io->slot[i].error = -EAGAIN;
	exmap_io_land(io);
}

/*
 * The end of one asynchronous call, with I/O. Not inline, so that tests/shell/no-indirect-call finds
 * its call of @tell here.
 */
static noinline void exmap_io_work_alone(struct work_struct *work)
{
	struct exmap_io *io = container_of(work, struct exmap_io, work);
	const struct cred *cred = override_creds(io->cred);

	exmap_io_finish(io);
	revert_creds(cred);
	io->tell(io);
}

/* Queue a call's work. It is not queued, and this may be called by its own function. */
static void exmap_io_queue(struct exmap_io *io, work_func_t function)
{
	INIT_WORK(&io->work, function);
	exmap_queue_work(io->exmap, &io->work);
}

/* Whether all requests of a window were done in full. */
static bool exmap_io_is_whole(const struct exmap_io *io)
{
	unsigned int i;

	for (i = 0; i < io->nr_runs; i++)
		if (!exmap_io_run_is_whole(&io->run[i]))
			return false;
	return true;
}

static void exmap_io_work_rest(struct work_struct *work);

/*
 * Take calls off the front of a list until they have EXMAP_IO_LANDING pages. Calls that need more
 * I/O, and the rest of the list, get works of their own. So other works have their turn, of the
 * same user and of others. The first call needs no more I/O. Unpins the pages of WRITE. Returns the
 * list of calls taken. Sets *@reads to the number of pages of those that are READs.
 */
static struct llist_node *exmap_io_take_calls(struct llist_node *rest, unsigned int *reads)
{
	struct llist_node *calls = NULL, **last = &calls;
	struct exmap_io *io;
	unsigned int pages = 0;

	*reads = 0;
	while (rest && pages < EXMAP_IO_LANDING) {
		io = llist_entry(rest, struct exmap_io, ended);
		rest = rest->next;
		io->waiter = EXMAP_IO_WORKER;
		if (unlikely(!exmap_io_is_whole(io))) {
			exmap_io_queue(io, exmap_io_work_alone);
			continue;
		}
		pages += io->nr_slots;
		if (exmap_io_writes(io))
			exmap_io_unpin(io);
		else
			*reads += io->nr_slots;
		*last = &io->ended;
		last = &io->ended.next;
	}
	*last = NULL;
	if (rest)
		exmap_io_queue(llist_entry(rest, struct exmap_io, ended), exmap_io_work_rest);
	return calls;
}

/* Map the pages of all READs in a list of calls on the same interface. */
static void exmap_io_map_calls(struct llist_node *calls)
{
	struct exmap_io *io = llist_entry(calls, struct exmap_io, ended);
	struct exmap_interface *interface = io->interface;
	struct exmap_walk walk = EXMAP_WALK(io->exmap);
	int err = exmap_enter(io->exmap, interface);

	llist_for_each_entry(io, calls, ended) {
		if (exmap_io_writes(io))
			continue;
		if (err)
			exmap_discard(io->exmap, interface, io->slot, io->nr_slots, err);
		else
			exmap_io_map_inside(&walk, io, io->slot, io->nr_slots);
	}
	if (!err)
		exmap_walk_leave(&walk, interface);
}

/*
 * The end of asynchronous calls on the same interface whose requests are done. The first is the
 * one whose work this is.
 *
 * If it needs more I/O, it keeps this work, and the others get another. Otherwise it could end
 * first, and its memory could become a call of another user. The kernel would take that call's work
 * for this one, and let it wait until this one is done, which may wait for locks of this user.
 */
static void exmap_io_end_calls(struct llist_node *calls)
{
	struct exmap_io *io = llist_entry(calls, struct exmap_io, ended), *next;
	unsigned int reads;

	if (unlikely(!exmap_io_is_whole(io))) {
		if (calls->next)
			exmap_io_queue(llist_entry(calls->next, struct exmap_io, ended),
				       exmap_io_work_rest);
		io->waiter = EXMAP_IO_WORKER;
		exmap_io_work_alone(&io->work);
		return;
	}
	calls = exmap_io_take_calls(calls, &reads);
	if (reads)
		exmap_io_map_calls(calls);
	/* The exmap may be gone when the last call has its answer. */
	llist_for_each_entry_safe(io, next, calls, ended) {
		exmap_io_conclude(io);
		io->tell(io);
	}
}

static void exmap_io_work_rest(struct work_struct *work)
{
	exmap_io_end_calls(&container_of(work, struct exmap_io, work)->ended);
}

/**
 * exmap_io_work - the work of an asynchronous call that has found no other in interface->ended
 * @work: its work
 *
 * Takes all calls that have come to interface->ended. The first of them is the one whose work this
 * is: only its work takes it out, so that its interface and exmap are still there. Pairs with
 * llist_add() in exmap_io_end_run().
 */
void exmap_io_work(struct work_struct *work)
{
	struct exmap_io *io = container_of(work, struct exmap_io, work);

	exmap_io_end_calls(llist_reverse_order(llist_del_all(&io->interface->ended)));
}
