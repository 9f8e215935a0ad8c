// SPDX-License-Identifier: GPL-2.0
/*
 * The I/O of a window of pages: to or from the backing file, or straight from the device behind
 * it. There is one request per run of adjacent pages. exmap_io_settle() finds out which pages of a
 * short or failed request were done.
 */
#include <linux/blkdev.h>
#include <linux/bvec.h>
#include <linux/completion.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/mman.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/task_io_accounting_ops.h>
#include <linux/uaccess.h>
#include <linux/uio.h>

#include "compat.h"
#include "exmap.h"
#include "io.h"
#include "ksyms.h"

/* End a request that was queued. Called from any context. */
static void exmap_io_end_run(struct exmap_io_run *run, long ret)
{
	struct exmap_io *io = run->io;

	run->ret = ret;
	/*
	 * Only the last request to end may look at @io: another may free it. Pairs with itself in
	 * the other requests, and with exmap_io_start_window(): the last sees every @ret.
	 */
	if (!atomic_dec_and_test(&io->pending))
		return;
	/* Pairs with exmap_io_start_window(). */
	if (!exmap_io_is_detached(io))
		complete(&io->done);
	/*
	 * If another call is in the list, the work of the first one is going to take this one.
	 * Pairs with llist_del_all() in exmap_io_work().
	 */
	else if (llist_add(&io->ended, &io->interface->ended))
		exmap_queue_work(io->exmap, &io->work);
}

static void exmap_io_complete(struct kiocb *iocb, long ret)
{
	struct exmap_io_run *run = container_of(iocb, struct exmap_io_run, iocb);

	if (exmap_io_writes(run->io))
		exmap_iocb_end_write(iocb);
	exmap_io_end_run(run, ret);
}

static void exmap_io_end_bio(struct bio *bio)
{
	struct exmap_io_run *run = container_of(bio, struct exmap_io_run, bio);
	int err = blk_status_to_errno(bio->bi_status);

	bio_uninit(bio);
	exmap_io_end_run(run, err ?: (long)run->nr << PAGE_SHIFT);
}

/**
 * exmap_io_bounce - read from a file that can read to user memory only
 * @file: the file
 * @bvec: the pages to fill
 * @nr: number of pages
 * @pos: offset in the file
 *
 * Reads to temporary memory in the caller's address space. That discloses nothing, because the
 * caller may read the file anyway.
 *
 * Return: as vfs_read(), but less than all pages only after an error or at the end of the file.
 */
long exmap_io_bounce(struct file *file, const struct bio_vec *bvec, unsigned int nr, loff_t pos)
{
	const unsigned long len = (unsigned long)nr << PAGE_SHIFT;
	unsigned long buffer, done = 0, copied;
	long ret;

	buffer = vm_mmap(NULL, 0, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, 0);
	if (IS_ERR_VALUE(buffer))
		return buffer;
	do {
		ret = static_call(exmap_vfs_read)(file, (char __user *)buffer + done, len - done,
						  &pos);
		done += max(ret, 0L);
	} while (ret > 0 && done < len);
	for (copied = 0; copied < done; copied += PAGE_SIZE, bvec++)
		if (copy_from_user(page_address(bvec->bv_page), (char __user *)buffer + copied,
				   min(PAGE_SIZE, done - copied)))
			ret = -EFAULT;
	vm_munmap(buffer, len);
	return ret == -EFAULT ? ret : done ?: ret;
}

/**
 * exmap_io_start - start reading or writing pages that are adjacent in the file
 * @io: the call
 * @iocb: initialized for @first. If it has no @ki_complete, this waits until the I/O is done
 * @first: the first slot
 * @nr: number of slots
 *
 * No lock is held.
 *
 * Return: as vfs_iocb_iter_read() or vfs_iocb_iter_write().
 */
long exmap_io_start(struct exmap_io *io, struct kiocb *iocb, unsigned int first, unsigned int nr)
{
	struct file *file = io->exmap->file;
	struct iov_iter iter __exmap_uninitialized;

	if (!exmap_io_writes(io))
		return exmap_io_start_read(io, iocb, first, nr);
	iov_iter_bvec(&iter, ITER_SOURCE, &io->bvec[first], nr, (size_t)nr << PAGE_SHIFT);
	/* An append would not write to the page's place in the file. */
	if (iocb->ki_flags & IOCB_APPEND)
		return -EINVAL;
	iocb->ki_flags |= IOCB_WRITE | io->flags;
	return exmap_iocb_write(file, iocb, &iter);
}

/*
 * Whether the device may refuse a request instead of waiting (IOCB_NOWAIT). If the window has
 * several requests, it may not, because others may be under way when one is refused. Nor may it
 * if the device takes the request in pieces, because it always refuses such a request. Each page
 * counts as a segment, because its neighbors in the request are rarely neighbors in memory.
 */
static bool exmap_io_refusable(const struct exmap_io *io, const struct exmap_io_run *run)
{
	struct request_queue *queue;

	if (io->waiter != EXMAP_IO_NOWAIT || io->nr_runs > 1)
		return false;
	/* No device takes a page in pieces. */
	if (run->nr == 1)
		return true;
	queue = bdev_get_queue(I_BDEV(io->exmap->file->f_mapping->host));
	return run->nr <= queue_max_sectors(queue) >> PAGE_SECTORS_SHIFT &&
	       run->nr <= queue_max_segments(queue);
}

/* Submit a request to the file. Returns as exmap_io_start(). */
static long exmap_io_submit(struct exmap_io *io, struct exmap_io_run *run)
{
	long ret;

	exmap_io_init_iocb(io, &run->iocb, run->first);
	/* If the caller waits for a single page, a synchronous request costs less. */
	if (io->nr_slots > 1 || exmap_io_is_detached(io))
		run->iocb.ki_complete = exmap_io_complete;
	if (exmap_io_refusable(io, run))
		run->iocb.ki_flags |= IOCB_NOWAIT;
	/* Pairs with exmap_io_end_run(), which the request below may call at any time. */
	atomic_inc(&io->pending);
	if (exmap_io_writes(io))
		ret = exmap_io_start(io, &run->iocb, run->first, run->nr);
	else
		ret = exmap_io_start_read(io, &run->iocb, run->first, run->nr);
	if (ret == -EIOCBQUEUED) {
		io->untold = true;
		return ret;
	}
	run->ret = ret;
	/*
	 * This cannot take it to 0: exmap_io_start_window() counts 1 until it is through. Pairs
	 * with exmap_io_end_run(), which sees @ret, because exmap_io_start_window() takes the 1
	 * off with a full barrier.
	 */
	atomic_dec(&io->pending);
	return ret;
}

/*
 * The device to which requests can go straight, or NULL. That costs a fraction of a request through
 * the file. The device's page cache must be empty, because a page in it may be newer than what is
 * read, or older than what is written. Writes that must be on the device when they end go through
 * the file, which sees to that.
 *
 * The read of @nrpages pairs with __filemap_add_folio() of the kernel. A page that comes to the
 * cache later is missed.
 */
static struct block_device *exmap_io_bdev(const struct exmap_io *io)
{
	struct file *file = io->exmap->file;
	struct block_device *bdev;

	if (!(file->f_flags & O_DIRECT) || !S_ISBLK(file_inode(file)->i_mode) ||
	    READ_ONCE(file->f_mapping->nrpages))
		return NULL;
	if (exmap_io_writes(io) &&
	    (file->f_iocb_flags | io->flags) & (IOCB_DSYNC | IOCB_SYNC | IOCB_APPEND))
		return NULL;
	bdev = I_BDEV(file->f_mapping->host);
	return bdev_logical_block_size(bdev) <= PAGE_SIZE ? bdev : NULL;
}

/* Submit a request to the device. Returns false if the request leaves the device. */
static bool exmap_io_submit_bio(struct exmap_io *io, struct exmap_io_run *run,
				struct block_device *bdev)
{
	loff_t pos = io->slot[run->first].address - io->exmap->start;
	size_t size = (size_t)run->nr << PAGE_SHIFT;
	blk_opf_t op = REQ_OP_READ;

	if (pos + size > bdev_nr_bytes(bdev))
		return false;
	if (exmap_io_writes(io)) {
		/* The flags of any write past the page cache. */
		op = REQ_OP_WRITE | REQ_SYNC | REQ_IDLE;
		task_io_account_write(size);
	}
	bio_init(&run->bio, bdev, &io->bvec[run->first], run->nr, op);
	run->bio.bi_vcnt = run->nr;
	run->bio.bi_iter.bi_size = size;
	run->bio.bi_iter.bi_sector = pos >> SECTOR_SHIFT;
	run->bio.bi_ioprio = io->ioprio;
	run->bio.bi_end_io = exmap_io_end_bio;
	/* Pairs with exmap_io_end_run(), which the request may call at any time. */
	atomic_inc(&io->pending);
	submit_bio(&run->bio);
	return true;
}

/*
 * Divide the slots into runs of adjacent pages. If nobody waits, a run ends with its entry, because
 * the worker cannot always find out which of two entries an error belongs to.
 */
static void exmap_io_divide(struct exmap_io *io)
{
	unsigned int e, i = 0, border;
	struct exmap_io_run *run = NULL;
	struct exmap_slot *slot = io->slot;

	for (e = io->first; e < io->next; e++) {
		border = i;
		for (; i < io->entry[e].first + io->entry[e].nr; i++, slot++) {
			exmap_bvec_set(&io->bvec[i], slot->page);
			if (!i || slot->address != slot[-1].address + PAGE_SIZE ||
			    (exmap_io_is_detached(io) && i == border)) {
				run = &io->run[io->nr_runs++];
				run->io = io;
				run->first = i;
				run->nr = 0;
			}
			run->nr++;
		}
	}
}

/* exmap_io_divide() for a window of one page. */
static void exmap_io_divide_one(struct exmap_io *io)
{
	exmap_bvec_set(&io->bvec[0], io->slot[0].page);
	io->run[0].io = io;
	io->run[0].first = 0;
	io->run[0].nr = 1;
	io->nr_runs = 1;
}

/*
 * Submit one request per run, all under one plug. The first request always goes to the file. So
 * security modules, fanotify and access times see one read, as with preadv(), and can refuse it.
 * If they do, all other requests go to the file as well.
 *
 * Not inline, because its plug is large, and a window of one page needs none.
 */
static noinline void exmap_io_submit_runs(struct exmap_io *io)
{
	struct block_device *bdev = exmap_io_bdev(io);
	struct blk_plug plug;
	unsigned int i;
	long ret;

	blk_start_plug(&plug);
	ret = exmap_io_submit(io, &io->run[0]);
	if (ret < 0 && ret != -EIOCBQUEUED)
		bdev = NULL;
	for (i = 1; i < io->nr_runs; i++)
		if (!bdev || !exmap_io_submit_bio(io, &io->run[i], bdev))
			exmap_io_submit(io, &io->run[i]);
	blk_finish_plug(&plug);
}

/**
 * exmap_io_start_window - submit the requests of a window
 * @io: the call, with the slots of the window. No lock is held
 *
 * Return: true if all requests are done; or false if nobody waits for those that are not: then @io
 * is not the caller's any more.
 */
bool exmap_io_start_window(struct exmap_io *io)
{
	const bool detached = exmap_io_is_detached(io);

	if (io->nr_slots == 1)
		exmap_io_divide_one(io);
	else
		exmap_io_divide(io);
	/* Before the first request. Pairs with exmap_io_end_run(). */
	atomic_set(&io->pending, 1);
	if (!detached)
		init_completion(&io->done);
	if (io->nr_runs > 1)
		exmap_io_submit_runs(io);
	else if (io->nr_runs)
		exmap_io_submit(io, &io->run[0]);
	/* Pairs with exmap_io_end_run(): if this takes it to 0, every @ret is there. */
	if (atomic_dec_and_test(&io->pending)) {
		if (io->waiter == EXMAP_IO_NOBODY)
			io->waiter = EXMAP_IO_CALLER;
		return true;
	}
	if (detached)
		return false;
	/*
	 * With a timeout, because the kernel reports a task as hung that sleeps for minutes. Pairs
	 * with complete() in exmap_io_end_run().
	 */
	while (!wait_for_completion_io_timeout(&io->done, HZ))
		;
	return true;
}

/*
 * Number of whole pages that a request has read or written. If a page that was read straddles the
 * end of the file, it counts, and its rest is set to zero. If a page that was written straddles
 * the end of a device, it counts, because a device cannot grow; a file could have.
 */
static unsigned int exmap_io_whole(const struct exmap_io *io, const struct exmap_slot *slot,
				   long ret)
{
	const struct inode *inode = io->exmap->file->f_mapping->host;
	unsigned int tail = ret % PAGE_SIZE;

	if (ret <= 0)
		return 0;
	if (!tail || slot->address - io->exmap->start + ret < i_size_read(inode))
		return ret >> PAGE_SHIFT;
	if (!exmap_io_writes(io))
		memzero_page(slot[ret >> PAGE_SHIFT].page, tail, PAGE_SIZE - tail);
	else if (!S_ISBLK(inode->i_mode))
		return ret >> PAGE_SHIFT;
	return (ret >> PAGE_SHIFT) + 1;
}

/* The error of a page that was not read or written. @ret: what its last request returned. */
static int exmap_io_error(const struct exmap_io *io, const struct exmap_slot *slot, long ret)
{
	const struct inode *inode = io->exmap->file->f_mapping->host;

	if (ret >= 0 && exmap_io_writes(io))
		return -ENOSPC;
	/* The request was cut short. Does the file end before this page? */
	if (ret > 0 && slot->address - io->exmap->start >= i_size_read(inode))
		return -ENODATA;
	/* Only a part of the page, after all tries; or a medium error, not the end of the file. */
	if (ret > 0 || ret == -ENODATA)
		return -EIO;
	return ret ?: -ENODATA;
}

/**
 * exmap_io_settle - find out which pages of an incomplete request were done
 * @io: the call. No lock is held
 * @first: the first slot of the request; sets the error of each slot
 * @nr: number of slots
 * @ret: what the request returned: bytes, or an error
 *
 * A request that was cut short is continued where it ended. If a request failed, this does not say
 * which of its pages failed: they may belong to different entries, and if the block layer has
 * merged the request with another one, the failed page may even be another request's. So from
 * there on pages are tried one by one.
 *
 * The worker serves all calls of a user, no limits apply to it, and it cannot be killed. So it
 * tries again only if the file is a device, and only until a page fails.
 */
void exmap_io_settle(struct exmap_io *io, unsigned int first, unsigned int nr, long ret)
{
	const bool worker = io->waiter == EXMAP_IO_WORKER;
	const bool over = worker && !S_ISBLK(file_inode(io->exmap->file)->i_mode);
	struct exmap_slot *slot = &io->slot[first];
	unsigned int i = 0, next = nr, whole, tries = 0;
	bool alone = false, failed;
	struct kiocb iocb __exmap_uninitialized;

	for (;;) {
		whole = exmap_io_whole(io, &slot[i], ret);
		i += whole;
		/* Only a part of a page: the file has grown meanwhile, or is growing. */
		tries = ret > 0 && !whole ? tries + 1 : 0;
		failed = !whole && (!ret || (alone && ret < 0) || tries > EXMAP_IO_TRIES);
		while (i < nr && (over || failed)) {
			slot[i].error = exmap_io_error(io, &slot[i], ret);
			i++;
			/* At the end of the file, no page after this one can be read. */
			if (ret && !worker && !fatal_signal_pending(current))
				break;
		}
		if (i == nr)
			break;
		next = whole && next > 1 ? nr - i : 1;
		alone = next == 1;
		exmap_io_init_iocb(io, &iocb, first + i);
		ret = exmap_io_start(io, &iocb, first + i, next);
	}
}
