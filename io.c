// SPDX-License-Identifier: GPL-2.0
/*
 * The backing file: READ, WRITE, and the exmap's file as a proxy for it.
 *
 * A call goes through its entries in windows. For each window it takes private
 * pages for what is missing on the surface (READ) or pins what is there (WRITE),
 * leaves the gate, submits one request per run of adjacent pages, all under one
 * plug, and enters the gate again when the last is done. Only then are the pages
 * that were read mapped: nobody sees half a page, and nothing has to be undone.
 */
#include <linux/blkdev.h>
#include <linux/bvec.h>
#include <linux/completion.h>
#include <linux/highmem.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uio.h>

#include "compat.h"
#include "exmap.h"
#include "ksyms.h"

/* So many pages at most are under way for one call, or all of one entry. */
#define EXMAP_IO_WINDOW 4096

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
	struct kiocb iocb;
	struct exmap_io *io;
	unsigned int first;
	unsigned int nr;
	long ret;		/* bytes, or an error */
};

/**
 * struct exmap_io - a window under way
 * @exmap: the exmap; the call holds a file of it
 * @interface: where pages come from and go to
 * @opcode: EXMAP_OP_READ, _ALLOC or _WRITE
 * @pending: requests that are not done, and one more while they are submitted
 * @done: all are
 * @slot: the pages
 * @bvec: the same pages, for the iterator
 * @run: the requests
 * @nr_slots: how many pages
 * @nr_runs: how many requests
 */
struct exmap_io {
	struct exmap *exmap;
	struct exmap_interface *interface;
	unsigned int opcode;
	atomic_t pending;
	struct completion done;
	struct exmap_slot *slot;
	struct bio_vec *bvec;
	struct exmap_io_run *run;
	unsigned int nr_slots;
	unsigned int nr_runs;
};

/* Room for so many pages, in one piece. */
static struct exmap_io *exmap_io_alloc(struct exmap *exmap, struct exmap_interface *interface,
				       unsigned int opcode, unsigned int pages)
{
	struct exmap_io *io;

	io = kvmalloc(sizeof(*io) + pages * (sizeof(*io->slot) + sizeof(*io->bvec) +
					     sizeof(*io->run)), GFP_KERNEL_ACCOUNT);
	if (!io)
		return NULL;
	memset(io, 0, sizeof(*io));
	io->exmap = exmap;
	io->interface = interface;
	io->opcode = opcode;
	init_completion(&io->done);
	io->slot = (void *)(io + 1);
	io->bvec = (void *)(io->slot + pages);
	io->run = (void *)(io->bvec + pages);
	return io;
}

static bool exmap_io_writes(const struct exmap_io *io)
{
	return io->opcode == EXMAP_OP_WRITE;
}

static void exmap_io_put_pending(struct exmap_io *io)
{
	if (atomic_dec_and_test(&io->pending))
		complete(&io->done);
}

static void exmap_io_done(struct exmap_io_run *run, long ret)
{
	run->ret = ret;
	exmap_io_put_pending(run->io);
}

/* The end of a request that was queued. Called from any context. */
static void exmap_io_complete(struct kiocb *iocb, long ret)
{
	struct exmap_io_run *run = container_of(iocb, struct exmap_io_run, iocb);

	if (exmap_io_writes(run->io))
		exmap_iocb_end_write(iocb);
	exmap_io_done(run, ret);
}

/* Start reading or writing @nr pages from slot @first on. As vfs_iocb_iter_read(). */
static long exmap_io_start(struct exmap_io *io, struct kiocb *iocb, unsigned int first,
			   unsigned int nr)
{
	struct file *file = io->exmap->file;
	struct iov_iter iter;

	iocb->ki_pos = io->slot[first].address - io->exmap->start;
	iov_iter_bvec(&iter, exmap_io_writes(io) ? ITER_SOURCE : ITER_DEST, &io->bvec[first], nr,
		      (size_t)nr << PAGE_SHIFT);
	if (!exmap_io_writes(io))
		return vfs_iocb_iter_read(file, iocb, &iter);
	/* That would not go where the page belongs. */
	if (iocb->ki_flags & IOCB_APPEND)
		return -EINVAL;
	iocb->ki_flags |= IOCB_WRITE;
	return exmap_iocb_write(file, iocb, &iter);
}

static void exmap_io_submit(struct exmap_io *io, struct exmap_io_run *run)
{
	long ret;

	run->io = io;
	init_sync_kiocb(&run->iocb, io->exmap->file);
	run->iocb.ki_complete = exmap_io_complete;
	atomic_inc(&io->pending);
	ret = exmap_io_start(io, &run->iocb, run->first, run->nr);
	if (ret != -EIOCBQUEUED)
		exmap_io_done(run, ret);
}

/* One request per run of adjacent pages, all under way at once; wait for them. */
static void exmap_io_submit_all(struct exmap_io *io)
{
	struct exmap_io_run *run = NULL;
	struct blk_plug plug;
	unsigned int i;

	io->nr_runs = 0;
	for (i = 0; i < io->nr_slots; i++) {
		io->bvec[i] = (struct bio_vec){
			.bv_page = io->slot[i].page,
			.bv_len = PAGE_SIZE,
		};
		if (!i || io->slot[i].address != io->slot[i - 1].address + PAGE_SIZE) {
			run = &io->run[io->nr_runs++];
			run->first = i;
			run->nr = 0;
		}
		run->nr++;
	}

	atomic_set(&io->pending, 1);
	reinit_completion(&io->done);
	blk_start_plug(&plug);
	for (i = 0; i < io->nr_runs; i++)
		exmap_io_submit(io, &io->run[i]);
	blk_finish_plug(&plug);
	exmap_io_put_pending(io);
	wait_for_completion(&io->done);
}

/*
 * What became of a request: set the error of each of its slots. A request may be
 * cut short in the middle: go on from there, until it has an error or an end. Of a
 * page that straddles the end of the file the rest is zero.
 */
static void exmap_io_settle(struct exmap_io *io, struct exmap_io_run *run)
{
	const struct inode *inode = io->exmap->file->f_mapping->host;
	const struct exmap_slot *first = &io->slot[run->first];
	const unsigned long len = (unsigned long)run->nr << PAGE_SHIFT;
	const loff_t pos = first->address - io->exmap->start;
	const long at_end = exmap_io_writes(io) ? -ENOSPC : -ENODATA;
	unsigned long done = 0, tail;
	unsigned int i, in_vain = 0;
	long ret = run->ret;
	struct kiocb iocb;

	while (ret > 0) {
		done += ret;
		if (done >= len)
			break;
		tail = done % PAGE_SIZE;
		if (!exmap_io_writes(io) && tail && pos + done >= i_size_read(inode)) {
			memzero_page(first[done >> PAGE_SHIFT].page, tail, PAGE_SIZE - tail);
			done = round_up(done, PAGE_SIZE);
			ret = 0;
			break;
		}
		done -= tail;
		/* Not even a page: the file may have grown meanwhile, so once more. */
		if (ret == tail && in_vain++) {
			ret = exmap_io_writes(io) ? -ENOSPC : -EIO;
			break;
		}
		init_sync_kiocb(&iocb, io->exmap->file);
		i = done >> PAGE_SHIFT;
		ret = exmap_io_start(io, &iocb, run->first + i, run->nr - i);
	}
	for (i = 0; i < run->nr; i++)
		io->slot[run->first + i].error = i < done >> PAGE_SHIFT ? 0 : ret ?: at_end;
}

/*
 * Take the pages of as many entries as there are pages for. Returns 0, or why the
 * entry at *@taken could not be started: -ENOMEM, -EPROTO, -EINTR.
 */
static int exmap_io_gather(struct exmap_io *io, struct exmap_io_entry *entry, unsigned int nr,
			   bool probe, unsigned int *taken)
{
	struct exmap_slot *slot;
	int ret;

	ret = exmap_enter(io->exmap, io->interface);
	for (*taken = 0; !ret && *taken < nr; ++*taken, entry++) {
		slot = &io->slot[io->nr_slots];
		entry->first = io->nr_slots;
		entry->nr = 0;
		if (entry->res)
			continue;
		ret = exmap_io_writes(io) ? exmap_pin(io->exmap, entry->start, entry->end, slot) :
			exmap_reserve(io->exmap, io->interface, entry->start, entry->end,
				      probe, slot);
		if (ret < 0)
			break;
		entry->nr = ret;
		io->nr_slots += ret;
		ret = 0;
	}
	mutex_unlock(&io->interface->lock);
	return ret;
}

/* Map what was read, let go of what was written. */
static void exmap_io_finish(struct exmap_io *io)
{
	unsigned int i;
	int err;

	for (i = 0; i < io->nr_runs; i++)
		exmap_io_settle(io, &io->run[i]);
	if (exmap_io_writes(io)) {
		for (i = 0; i < io->nr_slots; i++)
			put_page(io->slot[i].page);
		return;
	}
	err = exmap_enter(io->exmap, io->interface);
	for (i = 0; err && i < io->nr_slots; i++)
		io->slot[i].error = err;
	exmap_install(io->exmap, io->interface, io->slot, io->nr_slots);
	mutex_unlock(&io->interface->lock);
}

/*
 * An entry's result: the first error, the pages that went well, and up to where all
 * of them did. For WRITE that is the first page that was not mapped, though ACTION
 * does not mind those.
 */
static void exmap_io_result(const struct exmap_io *io, struct exmap_io_entry *entry)
{
	const struct exmap_slot *slot = &io->slot[entry->first];
	unsigned long expected = entry->start;
	unsigned int i;

	entry->pages = 0;
	entry->good = entry->end;
	for (i = 0; i < entry->nr; i++) {
		if (exmap_io_writes(io) && slot[i].address != expected)
			entry->good = min(entry->good, expected);
		expected = slot[i].address + PAGE_SIZE;
		if (!slot[i].error) {
			/* Somebody else's page may have been there first. */
			entry->pages += slot[i].page != NULL;
			continue;
		}
		entry->good = min(entry->good, slot[i].address);
		if (!entry->res)
			entry->res = slot[i].error;
	}
	if (exmap_io_writes(io))
		entry->good = min(entry->good, expected);
	/* Reading up to the end of the file is no failure. */
	if (entry->res == -ENODATA && entry->pages)
		entry->res = 0;
}

static unsigned int exmap_io_pages(const struct exmap_io_entry *entry)
{
	return entry->res ? 0 : (entry->end - entry->start) >> PAGE_SHIFT;
}

/*
 * Read from the backing file to the surface, or write back to it
 * @exmap: has a backing file, and belongs to current->mm; mmap_lock is not held
 * @interface: whose pages to take; its lock is not held
 * @entry: the ranges, each at most EXMAP_IO_WINDOW pages, and on return their
 *	results; one with an error in @res already is left out
 * @nr: how many
 * @opcode: EXMAP_OP_READ, EXMAP_OP_ALLOC or EXMAP_OP_WRITE
 * @probe: leave out ranges whose first page is mapped
 *
 * Return: how many entries were carried out, well or not. From the next one on
 * none was tried, and its @res says why: -ENOMEM, -EPROTO or -EINTR.
 */
static unsigned int exmap_io(struct exmap *exmap, struct exmap_interface *interface,
			     struct exmap_io_entry *entry, unsigned int nr,
			     unsigned int opcode, bool probe)
{
	unsigned int i, next, pages, taken, k;
	struct exmap_io *io;
	int err;

	for (i = 0; i < nr; i += taken) {
		pages = exmap_io_pages(&entry[i]);
		for (next = i + 1; next < nr; next++) {
			if (pages + exmap_io_pages(&entry[next]) > EXMAP_IO_WINDOW)
				break;
			pages += exmap_io_pages(&entry[next]);
		}
		io = exmap_io_alloc(exmap, interface, opcode, pages);
		if (!io) {
			entry[i].res = -ENOMEM;
			break;
		}
		err = exmap_io_gather(io, &entry[i], next - i, probe, &taken);
		if (io->nr_slots && opcode != EXMAP_OP_ALLOC)
			exmap_io_submit_all(io);
		exmap_io_finish(io);
		for (k = i; k < i + taken; k++)
			exmap_io_result(io, &entry[k]);
		/* What is missing may be in this window: try again with the next. */
		if (err == -ENOMEM && io->nr_slots)
			err = 0;
		kvfree(io);
		if (fatal_signal_pending(current) && i + taken < nr)
			err = -EINTR;
		if (err) {
			i += taken;
			entry[i].res = err;
			break;
		}
	}
	return i;
}

/**
 * exmap_io_action - carry out READ or WRITE
 * @exmap: has a backing file, and belongs to current->mm; mmap_lock is not held
 * @interface: whose entries; its lock is not held
 * @nr: how many, 1 to EXMAP_USER_INTERFACE_PAGES
 * @opcode: EXMAP_OP_READ or EXMAP_OP_WRITE
 * @probe: leave out entries whose first page is mapped
 *
 * Return: how many entries failed, or as exmap_alloc().
 */
long exmap_io_action(struct exmap *exmap, struct exmap_interface *interface,
		     unsigned int nr, unsigned int opcode, bool probe)
{
	struct exmap_iov *iov = interface->user->iov;
	struct exmap_io_entry *entry;
	unsigned int i, tried;
	long failed = 0;
	int err;

	if (!exmap_has_surface(exmap))
		return -EPROTO;
	entry = kvmalloc_array(nr, sizeof(*entry), GFP_KERNEL_ACCOUNT);
	if (!entry)
		return -ENOMEM;
	for (i = 0; i < nr; i++)
		entry[i].res = exmap_request(exmap, &iov[i], &entry[i].start, &entry[i].end);
	tried = exmap_io(exmap, interface, entry, nr, opcode, probe);
	for (i = 0; i < tried; i++) {
		exmap_answer(&iov[i], entry[i].res, entry[i].pages);
		failed += entry[i].res < 0;
	}
	if (tried < nr) {
		err = entry[tried].res;
		failed = tried ? failed + nr - tried : err;
		for (i = tried; tried && i < nr; i++)
			exmap_answer(&iov[i], err, 0);
	}
	kvfree(entry);
	return failed;
}

/* The ranges of an iterator, in pieces of a window. Returns how many, or an error. */
static long exmap_io_ranges(struct exmap *exmap, struct iov_iter *iter,
			    struct exmap_io_entry *entry)
{
	unsigned long start, len, piece;
	long nr = 0;

	while (iov_iter_count(iter)) {
		start = exmap_iter_address(iter);
		len = exmap_iter_len(iter);
		if (!len) {
			iov_iter_advance(iter, 0);
			continue;
		}
		if (!PAGE_ALIGNED(start) || !PAGE_ALIGNED(len))
			return -EINVAL;
		if (start < exmap->start || start > exmap->end || len > exmap->end - start)
			return -EFAULT;
		iov_iter_advance(iter, len);
		for (; len; start += piece, len -= piece) {
			piece = min(len, EXMAP_IO_WINDOW * PAGE_SIZE);
			entry[nr++] = (struct exmap_io_entry){ .start = start, .end = start + piece };
		}
	}
	return nr;
}

/**
 * exmap_io_proxy - pread, preadv, pwrite, pwritev on the exmap's file
 * @exmap: has a backing file, unless it is ALLOC, and belongs to current->mm;
 *	mmap_lock is not held
 * @interface: whose pages to take; its lock is not held
 * @iter: user memory, all of it on the surface and in whole pages; what is read
 *	or written in the file follows from where that is
 * @opcode: EXMAP_OP_READ, EXMAP_OP_ALLOC (as READ, but nothing is read) or
 *	EXMAP_OP_WRITE
 *
 * Return: bytes done, up to the first page that failed (pages that are there
 * already count as read, and 0 is the end of the file); or -EINVAL where @iter is
 * not in pages, -EFAULT where it leaves the surface or a page to be written is not
 * mapped, -ENOMEM, -EPROTO, or the error of the I/O.
 */
ssize_t exmap_io_proxy(struct exmap *exmap, struct exmap_interface *interface,
		       struct iov_iter *iter, unsigned int opcode)
{
	unsigned long max = iter->nr_segs + iov_iter_count(iter) / (EXMAP_IO_WINDOW * PAGE_SIZE);
	struct exmap_io_entry *entry;
	unsigned int tried;
	ssize_t done = 0;
	long i, nr;
	int err = 0;

	if (!user_backed_iter(iter))
		return -EINVAL;
	if (!exmap_has_surface(exmap))
		return -EPROTO;
	entry = kvmalloc_array(max + 1, sizeof(*entry), GFP_KERNEL_ACCOUNT);
	if (!entry)
		return -ENOMEM;
	nr = exmap_io_ranges(exmap, iter, entry);
	if (nr < 0) {
		err = nr;
		goto free_entry;
	}
	tried = exmap_io(exmap, interface, entry, nr, opcode, false);
	for (i = 0; i < tried && !err; i++) {
		done += entry[i].good - entry[i].start;
		if (entry[i].good < entry[i].end)
			err = entry[i].res ?: opcode == EXMAP_OP_WRITE ? -EFAULT : -ENODATA;
	}
	if (!err && tried < nr)
		err = entry[tried].res;
free_entry:
	kvfree(entry);
	if (done || err == -ENODATA)
		return done;
	return err;
}
