/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A READ or WRITE under way: what io.c, transfer.c and uring.c share.
 */
#ifndef EXMAP_IO_H
#define EXMAP_IO_H

#include <linux/bio.h>
#include <linux/bvec.h>
#include <linux/completion.h>
#include <linux/fs.h>
#include <linux/workqueue.h>

#include "exmap.h"

/* So many pages at most are under way for one call; no entry has more. */
#define EXMAP_IO_WINDOW 4096

/* So often a page is tried that comes up short. */
#define EXMAP_IO_TRIES 16

/* On the stack, where some kernels clear everything at each call: it is not small. */
#define __exmap_uninitialized __attribute__((__uninitialized__))

struct exmap_io;
struct exmap_uring_command;

/* A range of the surface, and what became of it. */
struct exmap_io_entry {
	unsigned long start;
	unsigned long end;
	unsigned long good;	/* the first address that was not done */
	unsigned int first;	/* the first of its slots in the window */
	unsigned int nr;	/* how many slots */
	unsigned int pages;	/* how many went well */
	int res;
};

/* One request: a run of slots whose pages are adjacent. */
struct exmap_io_run {
	struct exmap_io *io;
	unsigned int first;
	unsigned int nr;
	long ret;		/* bytes, or an error */
	union {
		struct kiocb iocb;	/* where it goes to the file */
		struct bio bio;		/* where it goes to the device behind it */
	};
};

/**
 * enum exmap_io_waiter - who waits until the requests of a window are done
 * @EXMAP_IO_CALLER: The caller, who may sleep as long as it takes. That is every window of a
 *	synchronous caller, and of an asynchronous one every window but the last. The last request
 *	to end completes @done.
 * @EXMAP_IO_NOBODY: The caller is asynchronous, and this is its last window. The last request to
 *	end queues @work.
 * @EXMAP_IO_NOWAIT: As EXMAP_IO_NOBODY, but the caller must not sleep for a device either. What
 *	cannot be done without fails with -EAGAIN, and the caller comes again. All pages fit into
 *	one window. ALLOC has no requests, and its caller may be a synchronous one.
 * @EXMAP_IO_WORKER: The window's requests are done, and the worker has the call. It serves other
 *	calls as well, has no user's limits and cannot be killed, so it must not wait for long.
 *
 * Transitions:
 *   CALLER           exmap_io_begin()
 *   CALLER > NOWAIT  exmap_io_perform_nowait(), before the first window
 *   CALLER > NOBODY  exmap_io_prepare(), once it has all pages of the last window
 *   NOBODY > CALLER  exmap_io_start_window(), if all requests ended while it submitted them
 *   NOBODY > WORKER  exmap_io_work()
 *   NOWAIT > WORKER  exmap_io_work()
 *
 * Only the task that has the call changes the state, and never between the first request of a
 * window and the end of its last. Then atomic_dec_and_test(&io->pending), which is a full
 * barrier, says who has the call: whoever takes it to 0. A worker gets the call from there by
 * queue_work(), which orders what was written before.
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
 * @opcode: EXMAP_OP_READ, _ALLOC or _WRITE
 * @probe: leave out entries whose first page is mapped
 * @ioprio: what the caller's I/O has
 * @flags: IOCB_DSYNC and IOCB_SYNC: what is written must have got there
 * @nr: how many entries
 * @entry: what is to be read or written
 *
 * @tell: for an asynchronous caller: gives it the result, and frees this; or NULL
 * @cred: who that is
 * @waiter: who waits for the window, see there
 * @iocb: whom @tell tells, or
 * @command: the same
 *
 * @err: why entry[@next] was not tried, nor any after it: -ENOMEM, -EPROTO, -EINTR
 * @next: the first entry after the window
 * @first: the first entry of the window
 * @untold: the file has not told whoever watches it (inotify, fanotify) of all its requests
 * @pending: requests that are not done, and one more while they are submitted
 * @done: all are, and somebody waits
 * @work: all are, and nobody does
 *
 * @room: how many pages a window has room for
 * @nr_slots: how many it has
 * @nr_runs: how many requests they are
 * @slot: the pages
 * @bvec: the same pages, for the iterator
 * @run: the requests
 * @one: room for one entry, and for a window of one page
 */
struct exmap_io {
	struct exmap *exmap;
	struct exmap_interface *interface;
	unsigned int opcode;
	bool probe;
	unsigned short ioprio;
	int flags;
	unsigned int nr;
	struct exmap_io_entry *entry;

	void (*tell)(struct exmap_io *io);
	const struct cred *cred;
	enum exmap_io_waiter waiter;
	union {
		struct kiocb *iocb;
		struct exmap_uring_command *command;
	};

	int err;
	unsigned int next;
	unsigned int first;
	bool untold;
	atomic_t pending;
	struct completion done;
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
 * exmap_io_is_detached - whether the caller does not wait for the window
 * @io: the call; its requests are not all done
 *
 * Return: true if it does not, and the last request to end queues the rest as work.
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
 * exmap_io_check_range - whether a buffer is a part of the surface, in whole pages
 * @exmap: has a surface
 * @start: first address
 * @len: bytes
 *
 * Return: 0; -EINVAL if it is not in whole pages; or -EFAULT if it leaves the surface.
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

/* io.c */
int exmap_io_begin(struct exmap_io *io, struct exmap *exmap, struct exmap_interface *interface,
		   unsigned int opcode, unsigned int nr, void (*tell)(struct exmap_io *io));
void exmap_io_end(struct exmap_io *io);
void exmap_io_request(struct exmap_io *io, struct exmap_iov *iov, unsigned int nr);
int exmap_io_read_one(struct exmap *exmap, struct exmap_interface *interface,
		      unsigned long address, unsigned short ioprio, struct exmap_slot *slot);
int exmap_io_perform(struct exmap_io *io);
int exmap_io_perform_nowait(struct exmap_io *io);
long exmap_io_answer(const struct exmap_io *io, struct exmap_iov *iov);
long exmap_io_bytes(const struct exmap_io *io);

/* transfer.c */
long exmap_io_bounce(struct file *file, const struct bio_vec *bvec, unsigned int nr, loff_t pos);
long exmap_io_start(struct exmap_io *io, struct kiocb *iocb, unsigned int first, unsigned int nr);
bool exmap_io_start_window(struct exmap_io *io);
void exmap_io_settle(struct exmap_io *io, unsigned int first, unsigned int nr, long ret);

/**
 * exmap_io_start_read - start reading pages that are adjacent in the file
 * @io: the call
 * @iocb: initialized for the file; it is waited for here if it has no @ki_complete
 * @first: the first slot
 * @nr: how many slots
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

	iocb->ki_pos = io->slot[first].address - io->exmap->start;
	iocb->ki_ioprio = io->ioprio;
	if (!file->f_op->read_iter)
		return exmap_io_bounce(file, &io->bvec[first], nr, iocb->ki_pos);
	iov_iter_bvec(&iter, ITER_DEST, &io->bvec[first], nr, (size_t)nr << PAGE_SHIFT);
	return vfs_iocb_iter_read(file, iocb, &iter);
}

#endif /* EXMAP_IO_H */
