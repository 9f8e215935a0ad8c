// SPDX-License-Identifier: GPL-2.0
/*
 * A window of pages to or from the backing file, or straight from the device behind it: one
 * request per run of adjacent pages, and what became of those that came up short or failed.
 */
#include <linux/blkdev.h>
#include <linux/bvec.h>
#include <linux/completion.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/mman.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/uaccess.h>
#include <linux/uio.h>

#include "compat.h"
#include "exmap.h"
#include "io.h"
#include "ksyms.h"

/* The end of a request that was queued. Called from any context. */
static void exmap_io_end_run(struct exmap_io_run *run, long ret)
{
	struct exmap_io *io = run->io;

	run->ret = ret;
	/* Only the last one may still look at what is under way. */
	if (!atomic_dec_and_test(&io->pending))
		return;
	if (exmap_io_is_detached(io))
		exmap_queue_work(io->exmap, &io->work);
	else
		complete(&io->done);
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
 * exmap_io_bounce - read from a file that reads to user memory only
 * @file: the file. The caller may read it anyway, so this goes through memory of the caller's
 * @bvec: pages
 * @nr: how many
 * @pos: where in the file
 *
 * Return: as vfs_read(), but less than all only at an error or at the end.
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
 * @iocb: initialized for the file; it is waited for here if it has no @ki_complete
 * @first: the first slot
 * @nr: how many slots
 *
 * No lock is held.
 *
 * Return: as vfs_iocb_iter_read().
 */
long exmap_io_start(struct exmap_io *io, struct kiocb *iocb, unsigned int first, unsigned int nr)
{
	struct file *file = io->exmap->file;
	struct iov_iter iter __exmap_uninitialized;

	if (!exmap_io_writes(io))
		return exmap_io_start_read(io, iocb, first, nr);
	iocb->ki_pos = io->slot[first].address - io->exmap->start;
	iocb->ki_ioprio = io->ioprio;
	iov_iter_bvec(&iter, ITER_SOURCE, &io->bvec[first], nr, (size_t)nr << PAGE_SHIFT);
	/* That would not go where the page belongs. */
	if (iocb->ki_flags & IOCB_APPEND)
		return -EINVAL;
	iocb->ki_flags |= IOCB_WRITE | io->flags;
	return exmap_iocb_write(file, iocb, &iter);
}

/*
 * Whether a request may be refused rather than wait. Not one of several: some would be
 * under way by then; nor one that the device takes in pieces, which always would be. (As
 * a rule no two pages of it are neighbours in memory: each is a segment.)
 */
static bool exmap_io_refusable(const struct exmap_io *io, const struct exmap_io_run *run)
{
	struct request_queue *queue;

	if (io->waiter != EXMAP_IO_NOWAIT || io->nr_runs > 1)
		return false;
	queue = bdev_get_queue(I_BDEV(io->exmap->file->f_mapping->host));
	return run->nr <= queue_max_sectors(queue) >> PAGE_SECTORS_SHIFT &&
	       run->nr <= queue_max_segments(queue);
}

/* Submit a request to the file. Returns what that did. */
static long exmap_io_submit(struct exmap_io *io, struct exmap_io_run *run)
{
	long ret;

	init_sync_kiocb(&run->iocb, io->exmap->file);
	/* A single page that is waited for costs less where the file knows of it. */
	if (io->nr_slots > 1 || exmap_io_is_detached(io))
		run->iocb.ki_complete = exmap_io_complete;
	if (exmap_io_refusable(io, run))
		run->iocb.ki_flags |= IOCB_NOWAIT;
	atomic_inc(&io->pending);
	ret = exmap_io_start(io, &run->iocb, run->first, run->nr);
	if (ret == -EIOCBQUEUED) {
		io->untold = true;
		return ret;
	}
	run->ret = ret;
	/* Not the last: exmap_io_start_window() has one more. */
	atomic_dec(&io->pending);
	return ret;
}

/*
 * The device to which reads can go straight, or NULL. That takes a fraction of what
 * the way through the file costs, but the page cache must have nothing to say.
 */
static struct block_device *exmap_io_bdev(const struct exmap_io *io)
{
	struct file *file = io->exmap->file;
	struct block_device *bdev;

	if (exmap_io_writes(io) || !(file->f_flags & O_DIRECT) ||
	    !S_ISBLK(file_inode(file)->i_mode) || READ_ONCE(file->f_mapping->nrpages))
		return NULL;
	bdev = I_BDEV(file->f_mapping->host);
	return bdev_logical_block_size(bdev) <= PAGE_SIZE ? bdev : NULL;
}

/* Submit a request to the device. Returns false where not all of it is on there. */
static bool exmap_io_submit_bio(struct exmap_io *io, struct exmap_io_run *run,
				struct block_device *bdev)
{
	loff_t pos = io->slot[run->first].address - io->exmap->start;
	size_t size = (size_t)run->nr << PAGE_SHIFT;

	if (pos + size > bdev_nr_bytes(bdev))
		return false;
	bio_init(&run->bio, bdev, &io->bvec[run->first], run->nr, REQ_OP_READ);
	run->bio.bi_vcnt = run->nr;
	run->bio.bi_iter.bi_size = size;
	run->bio.bi_iter.bi_sector = pos >> SECTOR_SHIFT;
	run->bio.bi_ioprio = io->ioprio;
	run->bio.bi_end_io = exmap_io_end_bio;
	atomic_inc(&io->pending);
	submit_bio(&run->bio);
	return true;
}

/*
 * Divide the slots into runs of adjacent pages. Where nobody waits, not across entries:
 * the worker cannot always find out which of them an error belongs to.
 */
static void exmap_io_divide(struct exmap_io *io)
{
	unsigned int e, i = 0, border;
	struct exmap_io_run *run = NULL;
	struct exmap_slot *slot = io->slot;

	for (e = io->first; e < io->next; e++) {
		border = i;
		for (; i < io->entry[e].first + io->entry[e].nr; i++, slot++) {
			bvec_set_page(&io->bvec[i], slot->page, PAGE_SIZE, 0);
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

/*
 * One request per run, all under way at once. The first goes to the file in any case:
 * whoever watches what is read of files (security modules, fanotify, access times)
 * sees one read, as of preadv(), and can refuse it.
 */
static void exmap_io_submit_runs(struct exmap_io *io)
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
 * Return: true if all of them are done; false where requests are still under way and nobody is
 * to wait for them: then @io is not the caller's any more.
 */
bool exmap_io_start_window(struct exmap_io *io)
{
	const bool detached = exmap_io_is_detached(io);

	exmap_io_divide(io);
	atomic_set(&io->pending, 1);
	init_completion(&io->done);
	if (io->nr_runs > 1)
		exmap_io_submit_runs(io);
	else if (io->nr_runs)
		exmap_io_submit(io, &io->run[0]);
	if (atomic_dec_and_test(&io->pending)) {
		if (io->waiter == EXMAP_IO_NOBODY)
			io->waiter = EXMAP_IO_CALLER;
		return true;
	}
	if (detached)
		return false;
	/* As long as it takes; but who sleeps for minutes is taken for hung. */
	while (!wait_for_completion_io_timeout(&io->done, HZ))
		;
	return true;
}

/*
 * How many whole pages a request has read or written. If a page straddles the end of the
 * file then the rest of it is zero when it was read. When it was written the page counts on a
 * device, which ends there; a file could have grown.
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

/*
 * Why a page was not read or written, from what the last request returned that should
 * have done it.
 */
static int exmap_io_error(const struct exmap_io *io, const struct exmap_slot *slot, long ret)
{
	const struct inode *inode = io->exmap->file->f_mapping->host;

	if (ret >= 0 && exmap_io_writes(io))
		return -ENOSPC;
	/* It did not get that far: because the file ends before? */
	if (ret > 0 && slot->address - io->exmap->start >= i_size_read(inode))
		return -ENODATA;
	/* A part of a page, time and again; or a medium error: no end of the file */
	if (ret > 0 || ret == -ENODATA)
		return -EIO;
	return ret ?: -ENODATA;
}

/**
 * exmap_io_settle - find out what became of a request that was not done as a whole
 * @io: the call. No lock is held
 * @first: the first of its slots; the error of each is set
 * @nr: how many slots
 * @ret: what it returned: bytes, or an error
 *
 * One that was cut short is taken up where it ended. Of one that failed it is
 * not known which pages did: they may be different entries', or, where the block layer
 * has merged it, even another request's. So from there on pages go one by one.
 *
 * The worker is everybody's, knows no limits and cannot be killed. It tries again only
 * what a device is going to answer, and only until a page fails.
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
		/* A part of a page: the file has grown meanwhile, or is growing. */
		tries = ret > 0 && !whole ? tries + 1 : 0;
		failed = !whole && (!ret || (alone && ret < 0) || tries > EXMAP_IO_TRIES);
		while (i < nr && (over || failed)) {
			slot[i].error = exmap_io_error(io, &slot[i], ret);
			i++;
			/* Behind the end of the file there is nothing else. */
			if (ret && !worker && !fatal_signal_pending(current))
				break;
		}
		if (i == nr)
			break;
		next = whole && next > 1 ? nr - i : 1;
		alone = next == 1;
		init_sync_kiocb(&iocb, io->exmap->file);
		ret = exmap_io_start(io, &iocb, first + i, next);
	}
}
