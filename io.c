// SPDX-License-Identifier: GPL-2.0
/*
 * READ and WRITE: entries, windows and answers. transfer.c does the I/O. proxy.c has the calls on
 * the exmap's file, and uring.c those of io_uring.
 *
 * A call handles its entries in windows. For each window it takes private pages for those that are
 * missing on the surface (READ), or pins the pages that are there (WRITE). It leaves the gate,
 * submits one request per run of adjacent pages, all under one plug, and enters the gate again when
 * the last request is done. Only then does it map the pages that were read: so nobody sees half a
 * page, and a failed read changes nothing on the surface.
 *
 * An asynchronous caller does not wait for the last window. The last request to end, often in an
 * interrupt, leaves the rest of the call to a worker, because mapping takes locks that sleep. The
 * worker ends all calls of an interface that have come by then. The caller holds its file, and so
 * the exmap, until it has its answer.
 */
#include <linux/blkdev.h>
#include <linux/bvec.h>
#include <linux/completion.h>
#include <linux/cred.h>
#include <linux/fsnotify.h>
#include <linux/percpu.h>
#include <linux/rcupdate.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uio.h>
#include <linux/workqueue.h>

#include "compat.h"
#include "entry.h"
#include "exmap.h"
#include "io.h"
#include "reading.h"
#include "trace.h"
#include "walk.h"

/*
 * Memory for entries and for windows. Each CPU keeps the last memory that a synchronous call gave
 * back, because some kernels zero all that they allocate (CONFIG_INIT_ON_ALLOC_DEFAULT_ON), which
 * takes longer than the rest of the call. Such memory stays charged to the user who allocated it.
 */
struct exmap_io_memory {
	size_t size;
	u64 data[];
};

static DEFINE_PER_CPU(struct exmap_io_memory *, exmap_io_entries);
static DEFINE_PER_CPU(struct exmap_io_memory *, exmap_io_pages);

/* Memory for one page of a window. */
#define EXMAP_IO_PAGE_SIZE (sizeof(struct exmap_slot) + sizeof(struct bio_vec) + \
			    sizeof(struct exmap_io_run))

/* The most memory that a CPU keeps: enough for 512 single pages. */
#define EXMAP_IO_KEEP (EXMAP_USER_INTERFACE_PAGES * EXMAP_IO_PAGE_SIZE)

static void *exmap_io_take(const struct exmap_io *io, struct exmap_io_memory * __percpu *kept,
			   size_t size)
{
	/* Pairs with exmap_io_give(), on the same CPU. */
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

	/* Pairs with exmap_io_take(), on the same CPU. */
	if (!io->tell && memory->size <= EXMAP_IO_KEEP)
		memory = this_cpu_xchg(*kept, memory);
	kvfree(memory);
}

/*
 * Asynchronous calls. Each CPU keeps some that have ended, linked through @idle, because it takes
 * longer to allocate and charge one than to carry it out. As above, they stay charged to whoever
 * allocated them. @room of the first is their number.
 */
static struct kmem_cache *exmap_io_calls;
static DEFINE_PER_CPU(struct exmap_io *, exmap_io_idle);

/* The most asynchronous calls that a CPU keeps. */
#define EXMAP_IO_IDLE 256

/* The allocator does not zero the objects of a cache that has a constructor. */
static void exmap_io_construct(void *io)
{
}

static void exmap_io_free_idle(struct exmap_io *io)
{
	struct exmap_io *next;

	for (; io; io = next) {
		next = io->idle;
		kmem_cache_free(exmap_io_calls, io);
	}
}

/*
 * Let this CPU keep a chain of calls. If another task has left one meanwhile, free that one. Pairs
 * with exmap_io_alloc() and exmap_io_free(), on the same CPU.
 */
static void exmap_io_keep(struct exmap_io *io)
{
	exmap_io_free_idle(this_cpu_xchg(exmap_io_idle, io));
}

/**
 * exmap_io_alloc - allocate an asynchronous call
 *
 * May sleep for memory. The call is charged to the cgroup of the current task, unless this CPU has
 * kept one.
 *
 * Return: the call, for exmap_io_begin() and exmap_io_free(); or NULL if no memory is available.
 */
struct exmap_io *exmap_io_alloc(void)
{
	/* Pairs with exmap_io_keep(). */
	struct exmap_io *io = this_cpu_xchg(exmap_io_idle, NULL);

	if (!io)
		return kmem_cache_alloc(exmap_io_calls, GFP_KERNEL);
	exmap_io_keep(io->idle);
	return io;
}

/**
 * exmap_io_free - undo exmap_io_alloc()
 * @io: the call; exmap_io_end() has been called for it, or exmap_io_begin() has failed
 */
void exmap_io_free(struct exmap_io *io)
{
	/* Pairs with exmap_io_keep(). */
	struct exmap_io *rest = this_cpu_xchg(exmap_io_idle, NULL);

	if (rest && rest->room >= EXMAP_IO_IDLE) {
		kmem_cache_free(exmap_io_calls, io);
		io = rest;
	} else {
		io->idle = rest;
		io->room = rest ? rest->room + 1 : 1;
	}
	exmap_io_keep(io);
}

/**
 * exmap_io_init - make the cache of asynchronous calls
 *
 * Return: 0 or -ENOMEM.
 */
int __init exmap_io_init(void)
{
	exmap_io_calls = kmem_cache_create("exmap_io", sizeof(struct exmap_io), 0,
					   SLAB_HWCACHE_ALIGN | SLAB_ACCOUNT, exmap_io_construct);
	return exmap_io_calls ? 0 : -ENOMEM;
}

/**
 * exmap_io_begin - get a call ready
 * @io: the call; not initialized
 * @exmap: has a surface, and belongs to current->mm
 * @interface: where pages come from and go to
 * @opcode: EXMAP_OP_READ, EXMAP_OP_ALLOC or EXMAP_OP_WRITE
 * @nr: the most entries that there will be
 * @ioprio: the caller's I/O priority
 * @tell: NULL; or makes the call asynchronous, see struct exmap_io
 *
 * May sleep for memory: none of our locks is held.
 *
 * Return: 0, and exmap_io_end() undoes this; or -ENOMEM.
 */
int exmap_io_begin(struct exmap_io *io, struct exmap *exmap,
		   struct exmap_interface *interface, unsigned int opcode,
		   unsigned int nr, unsigned short ioprio, void (*tell)(struct exmap_io *io))
{
	/* Field by field, because the other fields are set only when they are needed. */
	io->exmap = exmap;
	io->interface = interface;
	io->opcode = opcode;
	io->probe = false;
	io->merges = false;
	io->ioprio = ioprio;
	io->flags = 0;
	io->nr = 0;
	io->tell = tell;
	io->waiter = EXMAP_IO_CALLER;
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

/**
 * exmap_io_end - undo exmap_io_begin(), and free what exmap_io_perform() allocated
 * @io: the call; no request of it is under way
 */
void exmap_io_end(struct exmap_io *io)
{
	if (io->entry != &io->one.entry)
		exmap_io_give(io, &exmap_io_entries, io->entry);
	if (io->slot && io->slot != &io->one.slot)
		exmap_io_give(io, &exmap_io_pages, io->slot);
	if (io->tell)
		put_cred(io->cred);
}

static unsigned int exmap_io_size(const struct exmap_io_entry *entry)
{
	return entry->res ? 0 : (entry->end - entry->start) >> PAGE_SHIFT;
}

/**
 * exmap_io_request - read the entries of ACTION
 * @io: the call
 * @iov: the entries
 * @nr: number of entries; exmap_io_begin() has made room for as many
 */
void exmap_io_request(struct exmap_io *io, struct exmap_iov *iov, unsigned int nr)
{
	struct exmap_io_entry *entry;

	for (; io->nr < nr; io->nr++) {
		entry = &io->entry[io->nr];
		/* Read once: user space may be writing to the entry. */
		entry->res = exmap_request(io->exmap, READ_ONCE(iov[io->nr].value),
					   &entry->start, &entry->end);
	}
}

/**
 * exmap_io_add - add a range of the surface, in entries no larger than a window
 * @io: the call; exmap_io_begin() has made room for exmap_io_ranges() of them
 * @start: first address
 * @len: bytes. exmap_io_check_range() has returned 0 for the range
 *
 * If @io->merges, a range that begins where the last entry ends becomes a part of that entry.
 */
void exmap_io_add(struct exmap_io *io, unsigned long start, unsigned long len)
{
	struct exmap_io_entry *last = io->nr ? &io->entry[io->nr - 1] : NULL;
	unsigned long piece;

	start = exmap_io_clamp(io->exmap, start);
	if (last && io->merges && last->end == start &&
	    start + len - last->start <= EXMAP_IO_WINDOW * PAGE_SIZE) {
		last->end += len;
		return;
	}
	for (; len; start += piece, len -= piece) {
		piece = min(len, EXMAP_IO_WINDOW * PAGE_SIZE);
		io->entry[io->nr++] = (struct exmap_io_entry){
			.start = start,
			.end = start + piece,
		};
	}
}

/* Allocate memory for the largest window of the call. Returns 0 or -ENOMEM. */
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

/*
 * Take or pin the pages of as many entries as the window has room for. Returns 0, or the error that
 * kept the next entry out: -ENOMEM, -EPROTO, -EINTR.
 */
static int exmap_io_gather(struct exmap_io *io)
{
	struct exmap_walk walk = EXMAP_WALK(io->exmap);
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
		if (need_resched()) {
			exmap_walk_unlock(&walk);
			cond_resched();
		}
		if (entry->res)
			continue;
		if (exmap_io_size(entry) > io->room - io->nr_slots)
			break;
		ret = exmap_io_writes(io) ? exmap_pin(&walk, entry->start, entry->end, slot) :
			exmap_reserve(&walk, io->interface, entry->start, entry->end,
				      io->opcode == EXMAP_OP_READ, io->probe, slot);
		/* exmap_reserve() has left the interface. */
		if (ret < 0)
			return ret;
		entry->nr = ret;
		io->nr_slots += ret;
	}
	exmap_walk_leave(&walk, io->interface);
	return 0;
}

/*
 * Take the pages for the next window. Returns 0; or -EAGAIN if the call needs more than one window,
 * and its caller must not wait for the first.
 */
static int exmap_io_prepare(struct exmap_io *io)
{
	io->first = io->next;
	io->nr_slots = 0;
	io->nr_runs = 0;
	io->untold = false;
	io->err = io->first && fatal_signal_pending(current) ? -EINTR : exmap_io_gather(io);
	/* The missing pages may be in this window: try again when it is done. */
	if (io->err == -ENOMEM && io->nr_slots) {
		if (io->waiter == EXMAP_IO_NOWAIT)
			return -EAGAIN;
		io->err = 0;
	}
	if (io->tell && io->waiter == EXMAP_IO_CALLER && (io->err || io->next == io->nr))
		io->waiter = EXMAP_IO_NOBODY;
	return 0;
}

/**
 * exmap_io_perform - carry out all entries
 * @io: the call, with its entries. Entries that have an error in @res already are left out
 *
 * No lock is held.
 *
 * Return: 0 if it was tried, with the results in @io; -ENOMEM if there is no memory for a window;
 * -EAGAIN if the caller must not wait (EXMAP_IO_NOWAIT), and would have to; or -EIOCBQUEUED if
 * io->tell() will be called at the end: then @io is not the caller's any more.
 */
int exmap_io_perform(struct exmap_io *io)
{
	int err = 0;

	if (exmap_io_make_room(io))
		return -ENOMEM;
	while (!err && io->next < io->nr && !io->err) {
		err = exmap_io_prepare(io);
		if (!err && io->opcode != EXMAP_OP_ALLOC && !exmap_io_start_window(io))
			return -EIOCBQUEUED;
		if (!err && io->waiter == EXMAP_IO_NOWAIT && io->nr_runs == 1 &&
		    io->run[0].ret == -EAGAIN)
			err = -EAGAIN;
		if (!err)
			exmap_io_finish(io);
	}
	if (err)
		exmap_io_undo(io);
	return err;
}

/*
 * Whether a call can be tried without waiting for I/O. Only block devices that support IOCB_NOWAIT
 * can do that, because a file system may have to read first where the data is, or to wait for a
 * page of its cache.
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

/**
 * exmap_io_perform_nowait - exmap_io_perform() for a caller that must not wait for I/O
 * @io: as for exmap_io_perform()
 *
 * Return: as exmap_io_perform().
 */
int exmap_io_perform_nowait(struct exmap_io *io)
{
	if (!exmap_io_never_waits(io))
		return -EAGAIN;
	io->waiter = EXMAP_IO_NOWAIT;
	return exmap_io_perform(io);
}

/**
 * exmap_io_answer - put the answers of ACTION in place of the requests
 * @io: the call, which is done
 * @iov: the entries
 *
 * Return: how many entries failed; or, if not even the first was tried, the error, and the entries
 * stay as they are.
 */
long exmap_io_answer(const struct exmap_io *io, struct exmap_iov *iov)
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

/**
 * exmap_io_bytes - the result of pread() and the like
 * @io: the call, which is done
 *
 * Return: bytes done, up to the first page that failed; or, if that is the first page, its error.
 * The end of the file is not an error.
 */
long exmap_io_bytes(const struct exmap_io *io)
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

/* READ or WRITE of any number of entries. Returns as exmap_io_action(). */
static noinline long exmap_io_windows(struct exmap *exmap, struct exmap_interface *interface,
				      struct exmap_iov *iov, unsigned int nr, unsigned int opcode,
				      bool probe)
{
	struct exmap_io io __exmap_uninitialized;
	long ret;

	ret = exmap_io_begin(&io, exmap, interface, opcode, nr, get_current_ioprio(), NULL);
	if (ret)
		return ret;
	io.probe = probe;
	exmap_io_request(&io, iov, nr);
	ret = exmap_io_perform(&io) ?: exmap_io_answer(&io, iov);
	exmap_io_end(&io);
	return ret;
}

/**
 * exmap_io_read_page - READ of one page
 * @exmap: has a backing file, and belongs to current->mm; mmap_lock is not held
 * @interface: where the page comes from; its lock is not held
 * @page: which page of the surface
 *
 * Return: how many pages it mapped, 1 or 0; -EFAULT if the page is beyond the surface; -EPROTO if
 * there is no surface; -ENOMEM; -EINTR if the caller is being killed; or the error of the I/O.
 */
int exmap_io_read_page(struct exmap *exmap, struct exmap_interface *interface, unsigned long page)
{
	struct exmap_iov iov = exmap_one_page(page);
	struct exmap_slot slot __exmap_uninitialized;
	unsigned long pages;
	int err;

	if (!exmap_has_surface(exmap))
		return -EPROTO;
	pages = (exmap->end - exmap->start) >> PAGE_SHIFT;
	/* The long way fails as well, and traces the error. */
	if (unlikely(page >= pages))
		return exmap_one_result(&iov, exmap_io_windows(exmap, interface, &iov, 1,
							       EXMAP_OP_READ, false));
	page = array_index_nospec(page, pages);
	err = exmap_io_read_one(exmap, interface, exmap->start + (page << PAGE_SHIFT),
				get_current_ioprio(), &slot) ?: slot.error;
	return err ?: slot.page != NULL;
}

/**
 * exmap_io_action - carry out READ or WRITE
 * @exmap: has a backing file, and belongs to current->mm; mmap_lock is not held
 * @interface: where pages come from and go to; its lock is not held
 * @iov: the entries
 * @nr: number of entries, 1 to EXMAP_USER_INTERFACE_PAGES
 * @opcode: EXMAP_OP_READ or EXMAP_OP_WRITE
 * @probe: leave out entries whose first page is mapped
 *
 * Return: how many entries failed, or as exmap_alloc().
 */
long exmap_io_action(struct exmap *exmap, struct exmap_interface *interface,
		     struct exmap_iov *iov, unsigned int nr, unsigned int opcode, bool probe)
{
	unsigned long number = 0;
	struct exmap_slot slot __exmap_uninitialized;
	int err;

	if (!exmap_has_surface(exmap))
		return -EPROTO;
	/* Read once: user space may be writing to the entry. */
	if (nr == 1 && opcode == EXMAP_OP_READ)
		number = exmap_single(READ_ONCE(iov->value), exmap->start >> PAGE_SHIFT,
				      (exmap->end - exmap->start) >> PAGE_SHIFT);
	if (!number)
		return exmap_io_windows(exmap, interface, iov, nr, opcode, probe);
	/* @probe does not matter: READ of one page leaves a mapped page as it is, too. */
	err = exmap_io_read_one(exmap, interface, number << PAGE_SHIFT, get_current_ioprio(),
				&slot);
	if (err)
		return err;
	exmap_answer(iov, slot.error, slot.page != NULL);
	return slot.error != 0;
}

/**
 * exmap_io_exit - free the memory that CPUs keep, and the cache of asynchronous calls
 *
 * No exmap is left. But a task that has completed the last request may still be in our code.
 */
void exmap_io_exit(void)
{
	int cpu;

	/* Wait until that task has left. */
	synchronize_rcu_tasks();
	for_each_possible_cpu(cpu) {
		kvfree(per_cpu(exmap_io_entries, cpu));
		kvfree(per_cpu(exmap_io_pages, cpu));
		exmap_io_free_idle(per_cpu(exmap_io_idle, cpu));
	}
	kmem_cache_destroy(exmap_io_calls);
}
