/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A READ or WRITE under way: what io.c, transfer.c, proxy.c and uring.c share.
 */
#ifndef EXMAP_IO_H
#define EXMAP_IO_H

#include <linux/bio.h>
#include <linux/bvec.h>
#include <linux/completion.h>
#include <linux/fs.h>
#include <linux/workqueue.h>

#include "exmap.h"

/* The most pages in a window. No entry has more. */
#define EXMAP_IO_WINDOW 4096U

/* How many times a page is tried again that was read or written in part, or is stale. */
#define EXMAP_IO_TRIES 16

/*
 * For large variables on the stack. Some kernels clear all variables at each call
 * (CONFIG_INIT_STACK_ALL_ZERO), which would cost more than the rest of the call's setup.
 */
#define __exmap_uninitialized __attribute__((__uninitialized__))

struct exmap_io;
struct exmap_uring_command;

/* A range of the surface, and its result. */
struct exmap_io_entry {
	unsigned long start;	/* first address */
	unsigned long end;	/* first address after the range */
	unsigned long good;	/* the first address that was not done */
	unsigned int first;	/* the first of its slots in the window */
	unsigned int nr;	/* number of slots */
	unsigned int pages;	/* number of pages that were read, mapped or written */
	int res;		/* 0 or an error */
};

/* One request: a run of slots whose pages are adjacent. */
struct exmap_io_run {
	struct exmap_io *io;
	unsigned int first;	/* the first slot */
	unsigned int nr;	/* number of slots */
	long ret;		/* bytes, or an error */
	union {
		struct kiocb iocb;	/* if the request goes to the file */
		struct bio bio;		/* if it goes straight to the device behind the file */
	};
};

/**
 * enum exmap_io_waiter - who waits until the requests of a window are done
 * @EXMAP_IO_CALLER: The caller, who may sleep as long as it takes. That is every window of a
 *	synchronous caller, and of an asynchronous one every window but the last. The last request
 *	to end completes @done.
 * @EXMAP_IO_NOBODY: The caller is asynchronous, and this is its last window. The last request to
 *	end puts the call into interface->ended, for a worker.
 * @EXMAP_IO_NOWAIT: As EXMAP_IO_NOBODY, but the caller must not sleep for a device either. If it
 *	would have to, the call fails with -EAGAIN, and the caller tries again from another context.
 *	All pages fit into one window. ALLOC has no requests, and its caller may be synchronous.
 * @EXMAP_IO_WORKER: The window's requests are done, and the worker has the call. The worker serves
 *	other calls as well, no user's limits apply to it, and it cannot be killed. So it must not
 *	wait for long.
 *
 * Transitions:
 *   CALLER           exmap_io_begin()
 *   CALLER > NOWAIT  exmap_io_perform_nowait(), before the first window
 *   CALLER > NOBODY  exmap_io_prepare(), once it has all pages of the last window
 *   NOBODY > CALLER  exmap_io_start_window(), if all requests end before it has submitted the last
 *   NOBODY > WORKER  exmap_io_take_calls(), exmap_io_end_calls()
 *   NOWAIT > WORKER  exmap_io_take_calls(), exmap_io_end_calls()
 *
 * Only the task that has the call changes the state, and never between the first request of a
 * window and the end of its last. The context that takes io->pending to 0 has the call from then
 * on; atomic_dec_and_test() is a full barrier. It hands the call to the worker by llist_add(),
 * which pairs with llist_del_all() in exmap_io_work(). Both are full barriers.
 */
enum exmap_io_waiter {
	EXMAP_IO_CALLER,
	EXMAP_IO_NOBODY,
	EXMAP_IO_NOWAIT,
	EXMAP_IO_WORKER,
};

/**
 * struct exmap_io - a call under way
 * @exmap: the exmap; the caller holds a file of it until it has its answer
 * @interface: where pages come from and go to
 * @opcode: EXMAP_OP_READ, EXMAP_OP_ALLOC or EXMAP_OP_WRITE
 * @probe: leave out entries whose first page is mapped
 * @merges: a range that begins where the last entry ends becomes a part of that entry
 * @ioprio: I/O priority of the caller
 * @flags: IOCB_DSYNC and IOCB_SYNC: written data must be on the device when the call ends
 * @nr: number of entries
 * @entry: the entries
 *
 * @tell: for an asynchronous caller: gives it the result, and frees this. NULL if the caller is
 *	synchronous
 * @cred: credentials of the asynchronous caller
 * @waiter: who waits for the window
 * @idle: the next call that this CPU keeps; used only while this one is not in use
 * @iocb: the caller's request that @tell completes, if it came by the exmap's file
 * @cmd: the same, if it is a command of io_uring
 * @command: the entries of @cmd, if it has a list; or NULL
 *
 * @err: why entry[@next] and all after it were not tried: -ENOMEM, -EPROTO, -EINTR; or 0
 * @next: the first entry after the window
 * @first: the first entry of the window
 * @untold: some requests went to the file, and fsnotify has not been told of them
 * @pending: number of requests that are not done, plus 1 while requests are being submitted; see
 *	enum exmap_io_waiter
 * @done: completed by the last request to end, if the caller waits
 * @ended: in interface->ended, if the caller does not wait; then in a list of the worker
 * @work: queued if @ended was the first in its list
 *
 * @room: the most pages of a window of this call
 * @nr_slots: number of pages in the window
 * @nr_runs: number of requests in the window
 * @slot: the pages
 * @bvec: the same pages, for the iterator
 * @run: the requests
 * @one: memory for one entry, and for a window of one page
 */
struct exmap_io {
	struct exmap *exmap;
	struct exmap_interface *interface;
	unsigned int opcode;
	bool probe;
	bool merges;
	unsigned short ioprio;
	int flags;
	unsigned int nr;
	struct exmap_io_entry *entry;

	void (*tell)(struct exmap_io *io);
	const struct cred *cred;
	enum exmap_io_waiter waiter;
	union {
		struct exmap_io *idle;
		struct kiocb *iocb;
		struct {
			struct io_uring_cmd *cmd;
			struct exmap_uring_command *command;
		};
	};

	int err;
	unsigned int next;
	unsigned int first;
	bool untold;
	atomic_t pending;
	struct completion done;
	struct llist_node ended;
	struct work_struct work;

	unsigned int room;
	unsigned int nr_slots;
	unsigned int nr_runs;
	struct exmap_slot *slot;
	struct bio_vec *bvec;
	struct exmap_io_run *run;
	struct {
		struct exmap_io_entry entry;
		struct exmap_slot slot;
		struct bio_vec bvec;
		struct exmap_io_run run;
	} one;
};

/**
 * exmap_io_is_detached - whether the last request to end queues the rest of the call as work
 * @io: the call; its requests are not all done
 *
 * Return: true if it does; false if the caller waits.
 */
static inline bool exmap_io_is_detached(const struct exmap_io *io)
{
	return io->waiter != EXMAP_IO_CALLER;
}

/**
 * exmap_io_writes - whether a call is a WRITE
 * @io: the call
 *
 * Return: true if it is; false for READ and ALLOC.
 */
static inline bool exmap_io_writes(const struct exmap_io *io)
{
	return io->opcode == EXMAP_OP_WRITE;
}

/**
 * exmap_io_run_is_whole - whether a request did all that it was asked to do
 * @run: the request, which is done
 *
 * Return: true if it did; false if it was short or failed.
 */
static inline bool exmap_io_run_is_whole(const struct exmap_io_run *run)
{
	return run->ret == (long)run->nr << PAGE_SHIFT;
}

/**
 * exmap_io_ranges - the most entries that exmap_io_add() makes of a range
 * @len: bytes
 *
 * Return: the number of entries.
 */
static inline unsigned int exmap_io_ranges(unsigned long len)
{
	return len / (EXMAP_IO_WINDOW * PAGE_SIZE) + 1;
}

/**
 * exmap_io_check_range - check that a buffer consists of whole pages of the surface
 * @exmap: has a surface
 * @start: first address
 * @len: bytes
 *
 * Return: 0; -EINVAL if it does not consist of whole pages; or -EFAULT if it leaves the surface.
 */
static inline int exmap_io_check_range(const struct exmap *exmap, unsigned long start,
				       unsigned long len)
{
	if (!PAGE_ALIGNED(start) || !PAGE_ALIGNED(len))
		return -EINVAL;
	if (start < exmap->start || start > exmap->end || len > exmap->end - start)
		return -EFAULT;
	return 0;
}

/**
 * exmap_io_clamp - an address on the surface, also under speculation
 * @exmap: has a surface
 * @address: has been found to be on the surface, or its end
 *
 * Return: the address.
 */
static inline unsigned long exmap_io_clamp(const struct exmap *exmap, unsigned long address)
{
	return exmap->start + array_index_nospec(address - exmap->start,
						 exmap->end - exmap->start + 1);
}

/* io.c */
struct exmap_io *exmap_io_alloc(void);
void exmap_io_free(struct exmap_io *io);
int exmap_io_begin(struct exmap_io *io, struct exmap *exmap, struct exmap_interface *interface,
		   unsigned int opcode, unsigned int nr, unsigned short ioprio,
		   void (*tell)(struct exmap_io *io));
void exmap_io_end(struct exmap_io *io);
void exmap_io_request(struct exmap_io *io, struct exmap_iov *iov, unsigned int nr);
void exmap_io_add(struct exmap_io *io, unsigned long start, unsigned long len);
int exmap_io_perform(struct exmap_io *io);
int exmap_io_perform_nowait(struct exmap_io *io);
long exmap_io_answer(const struct exmap_io *io, struct exmap_iov *iov);
long exmap_io_bytes(const struct exmap_io *io);

/* landing.c */
int exmap_io_read_one(struct exmap *exmap, struct exmap_interface *interface,
		      unsigned long address, unsigned short ioprio, struct exmap_slot *slot);
void exmap_io_finish(struct exmap_io *io);
void exmap_io_undo(struct exmap_io *io);
void exmap_io_work(struct work_struct *work);

/* transfer.c */
long exmap_io_bounce(struct file *file, const struct bio_vec *bvec, unsigned int nr, loff_t pos);
long exmap_io_start(struct exmap_io *io, struct kiocb *iocb, unsigned int first, unsigned int nr);
bool exmap_io_start_window(struct exmap_io *io);
void exmap_io_settle(struct exmap_io *io, unsigned int first, unsigned int nr, long ret);

/**
 * exmap_io_init_iocb - init_sync_kiocb() for a request to the backing file
 * @io: the call
 * @iocb: the request
 * @first: the first slot
 *
 * init_sync_kiocb() would look for the I/O priority of the current task.
 */
static inline void exmap_io_init_iocb(const struct exmap_io *io, struct kiocb *iocb,
				      unsigned int first)
{
	struct file *file = io->exmap->file;

	*iocb = (struct kiocb){
		.ki_filp = file,
		.ki_pos = io->slot[first].address - io->exmap->start,
		.ki_flags = file->f_iocb_flags,
		.ki_ioprio = io->ioprio,
	};
}

/**
 * exmap_io_start_read - start reading pages that are adjacent in the file
 * @io: the call
 * @iocb: initialized for @first. If it has no @ki_complete, this waits until the read is done
 * @first: the first slot
 * @nr: number of slots
 *
 * No lock is held.
 *
 * Return: as vfs_iocb_iter_read().
 */
static inline long exmap_io_start_read(struct exmap_io *io, struct kiocb *iocb,
				       unsigned int first, unsigned int nr)
{
	struct file *file = io->exmap->file;
	struct iov_iter iter __exmap_uninitialized;

	if (!file->f_op->read_iter)
		return exmap_io_bounce(file, &io->bvec[first], nr, iocb->ki_pos);
	iov_iter_bvec(&iter, ITER_DEST, &io->bvec[first], nr, (size_t)nr << PAGE_SHIFT);
	return vfs_iocb_iter_read(file, iocb, &iter);
}

#endif /* EXMAP_IO_H */
