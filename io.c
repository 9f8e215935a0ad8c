// SPDX-License-Identifier: GPL-2.0
/*
 * The backing file: READ, WRITE, the exmap's file as a proxy for it, io_uring.
 *
 * A call goes through its entries in windows. For each window it takes private
 * pages for what is missing on the surface (READ) or pins what is there (WRITE),
 * leaves the gate, submits one request per run of adjacent pages, all under one
 * plug, and enters the gate again when the last is done. Only then are the pages
 * that were read mapped: nobody sees half a page, and nothing has to be undone.
 *
 * An asynchronous caller does not wait for the last window. Whoever completes its
 * last request, often an interrupt, queues the rest as work: mapping takes locks
 * that sleep. Until the caller is told it holds its file, and by that the exmap.
 */
#include <linux/blkdev.h>
#include <linux/bvec.h>
#include <linux/completion.h>
#include <linux/cred.h>
#include <linux/fsnotify.h>
#include <linux/highmem.h>
#include <linux/mman.h>
#include <linux/percpu.h>
#include <linux/rcupdate.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/uio.h>
#include <linux/workqueue.h>

#include "compat.h"
#include "exmap.h"
#include "ksyms.h"
#include "trace.h"

/* So many pages at most are under way for one call; no entry has more. */
#define EXMAP_IO_WINDOW 4096

/* So often a page is tried that comes up short. */
#define EXMAP_IO_TRIES 16

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

/* A command of io_uring, with the entries that it stands for. */
struct exmap_io_command {
	struct io_uring_cmd *cmd;
	size_t len;			/* bytes, where it is a range; 0: a list */
	struct iov_iter answers;	/* where those of a list go */
	unsigned int nr;
	struct exmap_iov iov[];
};

/**
 * struct exmap_io - a call under way
 * @exmap: the exmap; the caller holds a file of it until it has its answer
 * @interface: where pages come from and go to
 * @opcode: EXMAP_OP_READ, _ALLOC or _WRITE
 * @probe: leave out entries whose first page is mapped
 * @ioprio: what the caller's I/O has
 * @nowait: the caller must not wait here for a device, and will come again with -EAGAIN
 * @flags: IOCB_DSYNC and IOCB_SYNC: what is written must have got there
 * @nr: how many entries
 * @entry: what is to be read or written
 *
 * @tell: for an asynchronous caller: gives it the result, and frees this; or NULL
 * @cred: who that is
 * @in_worker: this is not its context any more
 * @iocb: whom @tell tells, or
 * @command: the same
 *
 * @err: why entry[@next] was not tried, nor any after it: -ENOMEM, -EPROTO, -EINTR
 * @next: the first entry after the window
 * @first: the first entry of the window
 * @detached: nobody waits for this window; set before the first request is submitted
 * @queued: requests of it were: the file has told nobody of them
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
	bool nowait;
	unsigned short ioprio;
	int flags;
	unsigned int nr;
	struct exmap_io_entry *entry;

	void (*tell)(struct exmap_io *io);
	const struct cred *cred;
	bool in_worker;
	union {
		struct kiocb *iocb;
		struct exmap_io_command *command;
	};

	int err;
	unsigned int next;
	unsigned int first;
	bool detached;
	bool queued;
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

/* On the stack, where some kernels clear everything at each call: it is not small. */
#define __exmap_uninitialized __attribute__((__uninitialized__))

/*
 * Memory that calls work with. Where the caller waits it is that CPU's, which keeps
 * what was last given back: kernels that zero what they allocate would take longer for
 * that than for the rest. It stays charged to whoever was first.
 */
struct exmap_io_memory {
	size_t size;
	u64 data[];
};

static DEFINE_PER_CPU(struct exmap_io_memory *, exmap_io_entries);
static DEFINE_PER_CPU(struct exmap_io_memory *, exmap_io_pages);

/* What a page of a window takes. */
#define EXMAP_IO_PAGE_SIZE (sizeof(struct exmap_slot) + sizeof(struct bio_vec) + \
			    sizeof(struct exmap_io_run))

/* So much is kept at most: what 512 single pages take. */
#define EXMAP_IO_KEEP (EXMAP_USER_INTERFACE_PAGES * EXMAP_IO_PAGE_SIZE)

static void *exmap_io_take(const struct exmap_io *io, struct exmap_io_memory * __percpu *kept,
			   size_t size)
{
	struct exmap_io_memory *memory = io->tell ? NULL : this_cpu_xchg(*kept, NULL);

	if (!memory || memory->size < size) {
		kvfree(memory);
		memory = kvmalloc(struct_size(memory, data, size / sizeof(u64)),
				  GFP_KERNEL_ACCOUNT);
		if (!memory)
			return NULL;
		memory->size = size;
	}
	return memory->data;
}

static void exmap_io_give(const struct exmap_io *io, struct exmap_io_memory * __percpu *kept,
			  void *data)
{
	struct exmap_io_memory *memory = container_of(data, struct exmap_io_memory, data[0]);

	if (!io->tell && memory->size <= EXMAP_IO_KEEP)
		memory = this_cpu_xchg(*kept, memory);
	kvfree(memory);
}

static void exmap_io_work(struct work_struct *work);

/*
 * Get a call ready, with room for so many entries. Where there is a @tell it is going
 * to be asynchronous. Returns 0 or -ENOMEM.
 */
static int exmap_io_begin(struct exmap_io *io, struct exmap *exmap,
			  struct exmap_interface *interface, unsigned int opcode,
			  unsigned int nr, void (*tell)(struct exmap_io *io))
{
	/* Field by field: the rest is set when it is needed. */
	io->exmap = exmap;
	io->interface = interface;
	io->opcode = opcode;
	io->probe = false;
	io->nowait = false;
	io->ioprio = get_current_ioprio();
	io->flags = 0;
	io->nr = 0;
	io->tell = tell;
	io->in_worker = false;
	if (tell) {
		if (exmap_queue_get(exmap))
			return -ENOMEM;
		io->cred = get_current_cred();
		INIT_WORK(&io->work, exmap_io_work);
	}
	io->err = 0;
	io->next = 0;
	io->slot = NULL;
	io->entry = &io->one.entry;
	if (nr > 1)
		io->entry = exmap_io_take(io, &exmap_io_entries, nr * sizeof(*io->entry));
	if (io->entry)
		return 0;
	if (tell)
		put_cred(io->cred);
	return -ENOMEM;
}

/* Undo exmap_io_begin() and exmap_io_make_room(), if that was called. */
static void exmap_io_end(struct exmap_io *io)
{
	if (io->entry != &io->one.entry)
		exmap_io_give(io, &exmap_io_entries, io->entry);
	if (io->slot && io->slot != &io->one.slot)
		exmap_io_give(io, &exmap_io_pages, io->slot);
	if (io->tell)
		put_cred(io->cred);
}

static bool exmap_io_writes(const struct exmap_io *io)
{
	return io->opcode == EXMAP_OP_WRITE;
}

static unsigned int exmap_io_size(const struct exmap_io_entry *entry)
{
	return entry->res ? 0 : (entry->end - entry->start) >> PAGE_SHIFT;
}

/* Take over the requests of ACTION. */
static void exmap_io_request(struct exmap_io *io, struct exmap_iov *iov, unsigned int nr)
{
	struct exmap_io_entry *entry;

	for (; io->nr < nr; io->nr++) {
		entry = &io->entry[io->nr];
		entry->res = exmap_request(io->exmap, READ_ONCE(iov[io->nr].value),
					   &entry->start, &entry->end);
	}
}

/* Make room for the largest window that there will be. Returns 0 or -ENOMEM. */
static int exmap_io_make_room(struct exmap_io *io)
{
	unsigned int i, pages = 0;

	for (i = 0; i < io->nr && pages < EXMAP_IO_WINDOW; i++)
		pages += exmap_io_size(&io->entry[i]);
	pages = min(pages, EXMAP_IO_WINDOW);
	io->room = pages;
	if (pages <= 1) {
		io->slot = &io->one.slot;
		io->bvec = &io->one.bvec;
		io->run = &io->one.run;
		return 0;
	}
	io->slot = exmap_io_take(io, &exmap_io_pages, pages * EXMAP_IO_PAGE_SIZE);
	if (!io->slot)
		return -ENOMEM;
	io->bvec = (void *)(io->slot + pages);
	io->run = (void *)(io->bvec + pages);
	return 0;
}

/* The end of a request that was queued. Called from any context. */
static void exmap_io_end_run(struct exmap_io_run *run, long ret)
{
	struct exmap_io *io = run->io;

	run->ret = ret;
	/* Only the last one may still look at what is under way. */
	if (!atomic_dec_and_test(&io->pending))
		return;
	if (io->detached)
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

/*
 * Read from a file that reads to user memory only: by way of some of the caller's,
 * who may read the file anyway. Returns as vfs_read(), but less than all only at an
 * error or at the end.
 */
static long exmap_io_bounce(struct file *file, const struct bio_vec *bvec, unsigned int nr,
			    loff_t pos)
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

/* Start reading or writing @nr pages from slot @first on. As vfs_iocb_iter_read(). */
static long exmap_io_start(struct exmap_io *io, struct kiocb *iocb, unsigned int first,
			   unsigned int nr)
{
	struct file *file = io->exmap->file;
	struct iov_iter iter;

	iocb->ki_pos = io->slot[first].address - io->exmap->start;
	iocb->ki_ioprio = io->ioprio;
	if (!exmap_io_writes(io) && !file->f_op->read_iter)
		return exmap_io_bounce(file, &io->bvec[first], nr, iocb->ki_pos);
	iov_iter_bvec(&iter, exmap_io_writes(io) ? ITER_SOURCE : ITER_DEST, &io->bvec[first], nr,
		      (size_t)nr << PAGE_SHIFT);
	if (!exmap_io_writes(io))
		return vfs_iocb_iter_read(file, iocb, &iter);
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

	if (!io->nowait || io->nr_runs > 1)
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
	if (io->nr_slots > 1 || io->detached)
		run->iocb.ki_complete = exmap_io_complete;
	if (exmap_io_refusable(io, run))
		run->iocb.ki_flags |= IOCB_NOWAIT;
	atomic_inc(&io->pending);
	ret = exmap_io_start(io, &run->iocb, run->first, run->nr);
	if (ret == -EIOCBQUEUED) {
		io->queued = true;
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
			    (io->detached && i == border)) {
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

/*
 * Start the window. Returns false where requests are still under way and nobody is to
 * wait for them: then @io is not the caller's any more.
 */
static bool exmap_io_start_window(struct exmap_io *io)
{
	const bool detached = io->detached;

	exmap_io_divide(io);
	atomic_set(&io->pending, 1);
	init_completion(&io->done);
	if (io->nr_runs > 1)
		exmap_io_submit_runs(io);
	else if (io->nr_runs)
		exmap_io_submit(io, &io->run[0]);
	if (atomic_dec_and_test(&io->pending))
		return true;
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

/*
 * What became of a request that was not done as a whole: set the error of each of its
 * slots. One that was cut short is taken up where it ended. Of one that failed it is
 * not known which pages did: they may be different entries', or, where the block layer
 * has merged it, even another request's. So from there on pages go one by one.
 *
 * The worker is everybody's, knows no limits and cannot be killed. It tries again only
 * what a device is going to answer, and only until a page fails.
 */
static void exmap_io_settle(struct exmap_io *io, struct exmap_io_run *run)
{
	const bool over = io->in_worker && !S_ISBLK(file_inode(io->exmap->file)->i_mode);
	struct exmap_slot *slot = &io->slot[run->first];
	unsigned int i = 0, nr = run->nr, whole, tries = 0;
	bool alone = false, failed;
	long ret = run->ret;
	struct kiocb iocb;

	for (;;) {
		whole = exmap_io_whole(io, &slot[i], ret);
		i += whole;
		/* A part of a page: the file has grown meanwhile, or is growing. */
		tries = ret > 0 && !whole ? tries + 1 : 0;
		failed = !whole && (!ret || (alone && ret < 0) || tries > EXMAP_IO_TRIES);
		while (i < run->nr && (over || failed)) {
			slot[i].error = exmap_io_error(io, &slot[i], ret);
			i++;
			/* Behind the end of the file there is nothing else. */
			if (ret && !over && !io->in_worker && !fatal_signal_pending(current))
				break;
		}
		if (i == run->nr)
			break;
		nr = whole && nr > 1 ? run->nr - i : 1;
		alone = nr == 1;
		init_sync_kiocb(&iocb, io->exmap->file);
		ret = exmap_io_start(io, &iocb, run->first + i, nr);
	}
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
	/*
	 * Reading up to the end of the file is no failure, whoever has read the rest. But
	 * something has to be there: the size of some files is not what can be read.
	 */
	if (entry->res == -ENODATA &&
	    (entry->pages || (entry->good > entry->start && entry->start - io->exmap->start <
			      i_size_read(io->exmap->file->f_mapping->host))))
		entry->res = 0;
}

/*
 * Take the pages of as many entries as the window has room for. Returns 0, or why
 * the next entry could not be started: -ENOMEM, -EPROTO, -EINTR.
 */
static int exmap_io_gather(struct exmap_io *io)
{
	struct exmap_io_entry *entry;
	struct exmap_slot *slot;
	int ret;

	ret = io->opcode == EXMAP_OP_READ ? exmap_reading_setup(io->exmap) : 0;
	if (ret)
		return ret;
	ret = exmap_enter(io->exmap, io->interface);
	if (ret)
		return ret;
	for (; io->next < io->nr; io->next++) {
		entry = &io->entry[io->next];
		slot = &io->slot[io->nr_slots];
		entry->first = io->nr_slots;
		entry->nr = 0;
		cond_resched();
		if (entry->res)
			continue;
		if (exmap_io_size(entry) > io->room - io->nr_slots)
			break;
		ret = exmap_io_writes(io) ? exmap_pin(io->exmap, entry->start, entry->end, slot) :
			exmap_reserve(io->exmap, io->interface, entry->start, entry->end,
				      io->opcode == EXMAP_OP_READ, io->probe, slot);
		/* exmap_reserve() has left the interface. */
		if (ret < 0)
			return ret;
		entry->nr = ret;
		io->nr_slots += ret;
	}
	exmap_leave(io->interface);
	return 0;
}

/*
 * Take the pages for the next window. Returns -EAGAIN where it takes more than one
 * and the caller must not wait for the first, or else 0.
 */
static int exmap_io_prepare(struct exmap_io *io)
{
	io->first = io->next;
	io->nr_slots = 0;
	io->nr_runs = 0;
	io->queued = false;
	io->err = io->first && fatal_signal_pending(current) ? -EINTR : exmap_io_gather(io);
	/* What is missing may be in this window: see when it is done. */
	if (io->err == -ENOMEM && io->nr_slots) {
		if (io->nowait)
			return -EAGAIN;
		io->err = 0;
	}
	io->detached = io->tell && (io->err || io->next == io->nr);
	return 0;
}

/* Let go of what was written. */
static void exmap_io_unpin(struct exmap_io *io)
{
	unsigned int i, written = 0;

	for (i = 0; i < io->nr_slots; i++) {
		written += !io->slot[i].error;
		put_page(io->slot[i].page);
	}
	/* The statistics of a process that is being killed are not worth a wait. */
	if (mutex_lock_killable(&io->interface->lock))
		return;
	exmap_count(&io->interface->counts.writes, written);
	exmap_leave(io->interface);
}

/* Map what was read. */
static void exmap_io_map(struct exmap_io *io)
{
	struct exmap_counts *counts = &io->interface->counts;
	unsigned int mapped;
	int err;

	err = exmap_enter(io->exmap, io->interface);
	if (err) {
		exmap_discard(io->exmap, io->interface, io->slot, io->nr_slots, err);
		return;
	}
	mapped = exmap_install(io->exmap, io->interface, io->slot, io->nr_slots);
	exmap_count(io->opcode == EXMAP_OP_READ ? &counts->reads : &counts->allocs, mapped);
	exmap_leave(io->interface);
}

/* One slot: read what is to be there now, and map it. The caller waits. */
static noinline void exmap_io_read_slot(struct exmap_io *io, unsigned int i)
{
	struct exmap_io_run run = { .io = io, .first = i, .nr = 1 };
	struct exmap_slot *slot = &io->slot[i];
	const unsigned long address = slot->address;
	struct kiocb iocb;
	int ret;

	ret = exmap_enter(io->exmap, io->interface) ?:
		exmap_reserve(io->exmap, io->interface, address, address + PAGE_SIZE, true, false,
			      slot);
	if (ret >= 0)
		exmap_leave(io->interface);
	if (ret <= 0) {
		/* It failed, or another thread was first. */
		*slot = (struct exmap_slot){ .address = address, .error = ret };
		return;
	}
	bvec_set_page(&io->bvec[i], slot->page, PAGE_SIZE, 0);
	init_sync_kiocb(&iocb, io->exmap->file);
	run.ret = exmap_io_start(io, &iocb, i, 1);
	if (run.ret != PAGE_SIZE)
		exmap_io_settle(io, &run);

	ret = exmap_enter(io->exmap, io->interface);
	if (ret) {
		exmap_discard(io->exmap, io->interface, slot, 1, ret);
		return;
	}
	exmap_count(&io->interface->counts.reads,
		    exmap_install(io->exmap, io->interface, slot, 1));
	exmap_leave(io->interface);
}

/*
 * Read those pages again whose addresses had another page meanwhile that is gone again: what
 * was read may be older than what that page wrote to the file. The tries are limited, because
 * another thread can always do the same again.
 */
static void exmap_io_read_again(struct exmap_io *io)
{
	unsigned int i, tries;

	for (i = 0; i < io->nr_slots; i++)
		for (tries = 0; io->slot[i].stale && tries < EXMAP_IO_TRIES; tries++) {
			if (fatal_signal_pending(current))
				return;
			exmap_io_read_slot(io, i);
		}
}

static void exmap_io_land(struct exmap_io *io)
{
	if (exmap_io_writes(io))
		exmap_io_unpin(io);
	else
		exmap_io_map(io);
}

/* The window is done, with so many pages and failed entries: tell who traces it. */
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
 * Tell who watches the file (inotify, fanotify) that it was read or written. Of what is
 * not queued the file has told.
 */
static void exmap_io_notify(const struct exmap_io *io)
{
	if (exmap_io_writes(io))
		fsnotify_modify(io->exmap->file);
	else
		fsnotify_access(io->exmap->file);
}

/* The window is done. */
static void exmap_io_finish(struct exmap_io *io)
{
	unsigned long pages = 0;
	unsigned int i, failed = 0;

	for (i = 0; i < io->nr_runs; i++)
		if (io->run[i].ret != (long)io->run[i].nr << PAGE_SHIFT)
			exmap_io_settle(io, &io->run[i]);
	exmap_io_land(io);
	/* The worker must not wait, nor may a caller that must not: for them it is -EBUSY. */
	if (io->opcode == EXMAP_OP_READ && !io->in_worker && !io->nowait)
		exmap_io_read_again(io);
	for (i = io->first; i < io->next; i++) {
		exmap_io_result(io, &io->entry[i]);
		pages += io->entry[i].pages;
		failed += io->entry[i].res < 0;
	}
	if (io->queued && pages)
		exmap_io_notify(io);
	exmap_io_trace(io, pages, failed);
}

/* Have the window as if it had never been. */
static void exmap_io_undo(struct exmap_io *io)
{
	unsigned int i;

	for (i = 0; i < io->nr_slots; i++)
		io->slot[i].error = -EAGAIN;
	exmap_io_land(io);
}

/*
 * Carry out all entries. One with an error in @res already is left out. Returns 0
 * when that is done, well or not; -ENOMEM where nothing was; -EAGAIN where io->nowait
 * cannot be had; or -EIOCBQUEUED where io->tell will come to the end of it: then @io
 * is not the caller's any more.
 */
static int exmap_io_run(struct exmap_io *io)
{
	int err = 0;

	if (exmap_io_make_room(io))
		return -ENOMEM;
	while (!err && io->next < io->nr && !io->err) {
		err = exmap_io_prepare(io);
		if (!err && io->opcode != EXMAP_OP_ALLOC && !exmap_io_start_window(io))
			return -EIOCBQUEUED;
		if (!err && io->nowait && io->nr_runs == 1 && io->run[0].ret == -EAGAIN)
			err = -EAGAIN;
		if (!err)
			exmap_io_finish(io);
	}
	if (err)
		exmap_io_undo(io);
	return err;
}

static void exmap_io_work(struct work_struct *work)
{
	struct exmap_io *io = container_of(work, struct exmap_io, work);
	const struct cred *cred = override_creds(io->cred);

	io->in_worker = true;
	exmap_io_finish(io);
	revert_creds(cred);
	io->tell(io);
}

/*
 * Whether the caller can have it without waiting for I/O. A file system may have to read
 * before it can tell where the data is, or to wait for a page of its cache.
 */
static bool exmap_io_never_waits(const struct exmap_io *io)
{
	const struct file *file = io->exmap->file;
	unsigned long pages = 0;
	unsigned int i;

	if (io->opcode == EXMAP_OP_ALLOC)
		return true;
	if (!io->tell || !(file->f_flags & O_DIRECT) || !S_ISBLK(file_inode(file)->i_mode) ||
	    !bdev_nowait(I_BDEV(file->f_mapping->host)))
		return false;
	for (i = 0; i < io->nr; i++)
		pages += exmap_io_size(&io->entry[i]);
	return pages <= EXMAP_IO_WINDOW;
}

/* exmap_io_run() for a caller that must not wait for I/O. */
static int exmap_io_run_nowait(struct exmap_io *io)
{
	if (!exmap_io_never_waits(io))
		return -EAGAIN;
	io->nowait = true;
	return exmap_io_run(io);
}

/*
 * Put the answers of ACTION in place of the requests. Returns how many entries
 * failed; or, where not even the first was tried, why, and leaves them as they are.
 */
static long exmap_io_answer(const struct exmap_io *io, struct exmap_iov *iov)
{
	unsigned int i, failed = 0;

	if (io->err && !io->next)
		return io->err;
	for (i = 0; i < io->next; i++) {
		exmap_answer(&iov[i], io->entry[i].res, io->entry[i].pages);
		failed += io->entry[i].res < 0;
	}
	for (; i < io->nr; i++, failed++)
		exmap_answer(&iov[i], io->err, 0);
	return failed;
}

/*
 * The result of pread() and the like: bytes done, up to the first page that failed,
 * or its error. The end of the file is none.
 */
static long exmap_io_bytes(const struct exmap_io *io)
{
	const struct exmap_io_entry *entry = io->entry;
	unsigned int i;
	long done = 0;
	int err = 0;

	for (i = 0; i < io->next && !err; i++, entry++) {
		done += entry->good - entry->start;
		if (entry->good < entry->end)
			err = entry->res ?: exmap_io_writes(io) ? -EFAULT : -ENODATA;
	}
	err = err ?: io->err;
	return done || err == -ENODATA ? done : err;
}

/**
 * exmap_io_action - carry out READ or WRITE
 * @exmap: has a backing file, and belongs to current->mm; mmap_lock is not held
 * @interface: where pages come from and go to; its lock is not held
 * @iov: the entries
 * @nr: how many, 1 to EXMAP_USER_INTERFACE_PAGES
 * @opcode: EXMAP_OP_READ or EXMAP_OP_WRITE
 * @probe: leave out entries whose first page is mapped
 *
 * Return: how many entries failed, or as exmap_alloc().
 */
long exmap_io_action(struct exmap *exmap, struct exmap_interface *interface,
		     struct exmap_iov *iov, unsigned int nr, unsigned int opcode, bool probe)
{
	struct exmap_io io __exmap_uninitialized;
	long ret;

	if (!exmap_has_surface(exmap))
		return -EPROTO;
	ret = exmap_io_begin(&io, exmap, interface, opcode, nr, NULL);
	if (ret)
		return ret;
	io.probe = probe;
	exmap_io_request(&io, iov, nr);
	ret = exmap_io_run(&io) ?: exmap_io_answer(&io, iov);
	exmap_io_end(&io);
	return ret;
}

/* How many exmap_io_ranges() will be at most. */
static unsigned long exmap_io_max_ranges(const struct iov_iter *iter)
{
	/* A single buffer, most often a single page. */
	if (iov_iter_count(iter) <= PAGE_SIZE)
		return 1;
	return iter->nr_segs + iov_iter_count(iter) / (EXMAP_IO_WINDOW * PAGE_SIZE) + 1;
}

/* The ranges of an iterator, in pieces of a window. Returns 0 or an error. */
static int exmap_io_ranges(struct exmap_io *io, struct iov_iter *iter)
{
	const struct exmap *exmap = io->exmap;
	unsigned long start, len, piece;

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
			io->entry[io->nr++] = (struct exmap_io_entry){
				.start = start,
				.end = start + piece,
			};
		}
	}
	return 0;
}

/*
 * Read a page for a caller that waits, which is what most callers do: the same as
 * below with nothing to keep account of. Returns PAGE_SIZE where the page is there; 0
 * where it could not be read as a whole, or has to be read again, and is as it was before;
 * or -ENOMEM, -EPROTO, -EINTR.
 */
static long exmap_io_read_one(struct exmap *exmap, struct exmap_interface *interface,
			      unsigned long address)
{
	struct exmap_slot slot;
	struct iov_iter iter;
	struct kiocb iocb;
	struct bio_vec bvec;
	unsigned int mapped;
	int ret;

	ret = exmap_reading_setup(exmap);
	if (ret)
		return ret;
	ret = exmap_enter(exmap, interface) ?:
		exmap_reserve(exmap, interface, address, address + PAGE_SIZE, true, false, &slot);
	if (ret < 0)
		return ret;
	exmap_leave(interface);
	if (!ret)
		return PAGE_SIZE;

	bvec_set_page(&bvec, slot.page, PAGE_SIZE, 0);
	iov_iter_bvec(&iter, ITER_DEST, &bvec, 1, PAGE_SIZE);
	init_sync_kiocb(&iocb, exmap->file);
	iocb.ki_pos = address - exmap->start;
	ret = vfs_iocb_iter_read(exmap->file, &iocb, &iter);
	slot.error = ret == PAGE_SIZE ? 0 : -EIO;

	ret = exmap_enter(exmap, interface);
	if (ret) {
		exmap_discard(exmap, interface, &slot, 1, ret);
		return ret;
	}
	mapped = exmap_install(exmap, interface, &slot, 1);
	exmap_count(&interface->counts.reads, mapped);
	exmap_leave(interface);
	/* What came up short, or too late, is tried again, and then told of. */
	if (slot.error)
		return 0;
	trace_exmap_read(exmap, interface, 1, mapped, 0);
	return PAGE_SIZE;
}

static bool exmap_io_is_one(const struct exmap *exmap, struct kiocb *iocb,
			    const struct iov_iter *iter, unsigned int opcode)
{
	unsigned long address;

	if (iov_iter_count(iter) != PAGE_SIZE || exmap_iter_len(iter) != PAGE_SIZE ||
	    opcode != EXMAP_OP_READ || !is_sync_kiocb(iocb) || iocb->ki_flags & IOCB_NOWAIT ||
	    !exmap->file->f_op->read_iter)
		return false;
	address = exmap_iter_address(iter);
	return PAGE_ALIGNED(address) && address >= exmap->start && address < exmap->end;
}

static void exmap_io_tell_iocb(struct exmap_io *io)
{
	struct kiocb *iocb = io->iocb;
	long ret = exmap_io_bytes(io);

	exmap_io_end(io);
	kfree(io);
	iocb->ki_complete(iocb, ret);
}

/**
 * exmap_io_proxy - read and write on the exmap's file
 * @exmap: has a backing file, unless it is ALLOC, and belongs to current->mm;
 *	mmap_lock is not held
 * @interface: where pages come from and go to; its lock is not held
 * @iocb: the call; its position has been dealt with
 * @iter: user memory, all of it on the surface and in whole pages; what is read
 *	or written in the file follows from where that is
 * @opcode: EXMAP_OP_READ, EXMAP_OP_ALLOC (as READ, but nothing is read) or
 *	EXMAP_OP_WRITE
 *
 * Return: bytes done, up to the first page that failed (pages that are there
 * already count as read, and 0 is the end of the file); or -EINVAL where @iter is
 * not in pages, -EFAULT where it leaves the surface or a page to be written is not
 * mapped, -ENOMEM, -EPROTO, or the error of the I/O; or -EIOCBQUEUED where @iocb
 * will be completed with one of these; or -EAGAIN where it must not wait and would.
 */
ssize_t exmap_io_proxy(struct exmap *exmap, struct exmap_interface *interface,
		       struct kiocb *iocb, struct iov_iter *iter, unsigned int opcode)
{
	struct exmap_io sync __exmap_uninitialized, *io = &sync;
	ssize_t ret;

	if (!user_backed_iter(iter))
		return -EINVAL;
	if (!exmap_has_surface(exmap))
		return -EPROTO;
	if (exmap_io_is_one(exmap, iocb, iter, opcode)) {
		ret = exmap_io_read_one(exmap, interface, exmap_iter_address(iter));
		if (ret)
			return ret;
	}
	if (!is_sync_kiocb(iocb)) {
		io = kmalloc(sizeof(*io), GFP_KERNEL_ACCOUNT);
		if (!io)
			return -ENOMEM;
	}
	ret = exmap_io_begin(io, exmap, interface, opcode, exmap_io_max_ranges(iter),
			     is_sync_kiocb(iocb) ? NULL : exmap_io_tell_iocb);
	if (ret)
		goto free_io;
	io->iocb = iocb;
	io->flags = iocb->ki_flags & (IOCB_DSYNC | IOCB_SYNC);
	io->ioprio = iocb->ki_ioprio;
	ret = exmap_io_ranges(io, iter);
	if (ret)
		goto end;
	ret = iocb->ki_flags & IOCB_NOWAIT ? exmap_io_run_nowait(io) : exmap_io_run(io);
	if (ret == -EIOCBQUEUED)
		return ret;
	ret = ret ?: exmap_io_bytes(io);
end:
	exmap_io_end(io);
free_io:
	if (io != &sync)
		kfree(io);
	return ret;
}

/*
 * io_uring's commands: ACTION for a range in the submission queue entry, or for a
 * list of entries in a registered buffer.
 */

/* The entries that a range of the surface stands for. Returns them or an error. */
static struct exmap_io_command *exmap_io_range(const struct exmap *exmap, unsigned long start,
					       unsigned long len)
{
	const unsigned long max = EXMAP_PAGE_MAX_PAGES - 1;
	struct exmap_io_command *command;
	unsigned long page, pages;
	unsigned int nr;

	/* What is done must fit into the result. */
	pages = min(len, MAX_RW_COUNT) >> PAGE_SHIFT;
	if (!PAGE_ALIGNED(start) || !PAGE_ALIGNED(len))
		return ERR_PTR(-EINVAL);
	if (start < exmap->start || start > exmap->end || len > exmap->end - start)
		return ERR_PTR(-EFAULT);
	nr = DIV_ROUND_UP(pages, max);
	command = kvzalloc(struct_size(command, iov, nr), GFP_KERNEL_ACCOUNT);
	if (!command)
		return ERR_PTR(-ENOMEM);
	page = (start - exmap->start) >> PAGE_SHIFT;
	for (; pages; page += max, pages -= min(pages, max))
		command->iov[command->nr++] = (struct exmap_iov){
			.page = page,
			.len = min(pages, max),
		};
	command->len = min(len, MAX_RW_COUNT);
	return command;
}

/* The entries in a part of the registered buffer. Returns them or an error. */
static struct exmap_io_command *exmap_io_list(struct io_uring_cmd *cmd, unsigned long start,
					      unsigned long len, unsigned int issue_flags)
{
	struct exmap_io_command *command;
	struct iov_iter requests;
	int err;

	if (!len || len % sizeof(struct exmap_iov) || len > sizeof(struct exmap_user_interface))
		return ERR_PTR(-EINVAL);
	command = kvzalloc(sizeof(*command) + len, GFP_KERNEL_ACCOUNT);
	if (!command)
		return ERR_PTR(-ENOMEM);
	command->nr = len / sizeof(struct exmap_iov);
	err = exmap_uring_import(cmd, start, len, ITER_SOURCE, &requests, issue_flags) ?:
		exmap_uring_import(cmd, start, len, ITER_DEST, &command->answers, issue_flags);
	if (!err && copy_from_iter(command->iov, len, &requests) != len)
		err = -EFAULT;
	if (!err)
		return command;
	kvfree(command);
	return ERR_PTR(err);
}

/* ALLOC or FREE. Returns its result. */
static long exmap_io_command_pages(struct exmap *exmap, struct exmap_interface *interface,
				   struct exmap_io_command *command, unsigned int opcode)
{
	const unsigned long max = (EXMAP_PAGE_MAX_PAGES - 1) * PAGE_SIZE;
	unsigned int i;
	long ret;

	if (opcode == EXMAP_OP_ALLOC)
		ret = exmap_alloc(exmap, interface, command->iov, command->nr, false);
	else
		ret = exmap_free(exmap, interface, command->iov, command->nr);
	if (ret < 0 || !command->len)
		return ret;
	/* An entry that failed says nothing of which of its pages are done, if any. */
	for (i = 0; i < command->nr; i++)
		if (command->iov[i].res)
			return i ? i * max : command->iov[i].res;
	return command->len;
}

/* Tell io_uring the result, and put the answers of a list in place of the requests. */
static void exmap_io_command_end(struct exmap_io_command *command, long ret,
				 unsigned int issue_flags)
{
	struct io_uring_cmd *cmd = command->cmd;
	size_t size = command->nr * sizeof(command->iov[0]);

	if (ret >= 0 && !command->len &&
	    copy_to_iter(command->iov, size, &command->answers) != size)
		ret = -EFAULT;
	kvfree(command);
	exmap_uring_done(cmd, ret, issue_flags);
}

static long exmap_io_command_result(const struct exmap_io *io)
{
	if (io->command->len)
		return exmap_io_bytes(io);
	return exmap_io_answer(io, io->command->iov);
}

static void exmap_io_tell_command(struct exmap_io *io)
{
	struct exmap_io_command *command = io->command;
	long ret = exmap_io_command_result(io);

	exmap_io_end(io);
	kfree(io);
	exmap_io_command_end(command, ret, IO_URING_F_UNLOCKED);
}

/* READ or WRITE. Returns its result, -EIOCBQUEUED or -EAGAIN. */
static long exmap_io_command_run(struct exmap *exmap, struct exmap_interface *interface,
				 struct exmap_io_command *command, unsigned int opcode,
				 bool nonblock)
{
	struct exmap_io *io;
	long ret;

	io = kmalloc(sizeof(*io), GFP_KERNEL_ACCOUNT);
	if (!io)
		return -ENOMEM;
	ret = exmap_io_begin(io, exmap, interface, opcode, command->nr, exmap_io_tell_command);
	if (ret)
		goto free_io;
	io->command = command;
	exmap_io_request(io, command->iov, command->nr);
	ret = nonblock ? exmap_io_run_nowait(io) : exmap_io_run(io);
	if (ret == -EIOCBQUEUED)
		return ret;
	ret = ret ?: exmap_io_command_result(io);
	exmap_io_end(io);
free_io:
	kfree(io);
	return ret;
}

/**
 * exmap_io_command - carry out IORING_OP_URING_CMD
 * @exmap: has a backing file where @opcode takes one, and belongs to current->mm;
 *	mmap_lock is not held
 * @interface: where pages come from and go to; its lock is not held
 * @cmd: the command
 * @opcode: EXMAP_OP_*
 * @issue_flags: what io_uring said
 *
 * Return: -EIOCBQUEUED where the command has been completed, or will be; -EAGAIN
 * where it must not wait and would; or with nothing done -EINVAL, -EFAULT, -ENOMEM
 * or -EPROTO.
 */
int exmap_io_command(struct exmap *exmap, struct exmap_interface *interface,
		     struct io_uring_cmd *cmd, unsigned int opcode, unsigned int issue_flags)
{
	const struct iovec where = exmap_uring_iovec(cmd);
	const unsigned long start = (unsigned long)where.iov_base;
	const bool nonblock = issue_flags & IO_URING_F_NONBLOCK;
	struct exmap_io_command *command;
	long ret;

	if (!exmap_has_surface(exmap))
		return -EPROTO;
	if (cmd->flags & IORING_URING_CMD_FIXED)
		command = exmap_io_list(cmd, start, where.iov_len, issue_flags);
	else
		command = exmap_io_range(exmap, start, where.iov_len);
	if (IS_ERR(command))
		return PTR_ERR(command);
	command->cmd = cmd;

	if (opcode == EXMAP_OP_ALLOC || opcode == EXMAP_OP_FREE)
		ret = exmap_io_command_pages(exmap, interface, command, opcode);
	else
		ret = exmap_io_command_run(exmap, interface, command, opcode, nonblock);
	if (ret == -EIOCBQUEUED)
		return ret;
	/* Not a device's, which would have it come again for ever. */
	if (ret == -EAGAIN && nonblock) {
		kvfree(command);
		return ret;
	}
	exmap_io_command_end(command, ret, issue_flags);
	return -EIOCBQUEUED;
}

/**
 * exmap_io_exit - free what calls have worked with
 *
 * No exmap is left; but who has told its end may still return.
 */
void exmap_io_exit(void)
{
	int cpu;

	/* Whoever completed the last request may not have left our code. */
	synchronize_rcu_tasks();
	for_each_possible_cpu(cpu) {
		kvfree(per_cpu(exmap_io_entries, cpu));
		kvfree(per_cpu(exmap_io_pages, cpu));
	}
}
