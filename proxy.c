// SPDX-License-Identifier: GPL-2.0
/*
 * The exmap's file as a proxy for the backing file: pread, pwrite and libaio with buffers on the
 * surface.
 */
#include <linux/bvec.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/uio.h>

#include "compat.h"
#include "exmap.h"
#include "io.h"
#include "pool.h"
#include "trace.h"

/* The most entries that exmap_io_add_iter() makes of an iterator. */
static unsigned long exmap_io_max_ranges(const struct iov_iter *iter)
{
	/* The most common case: one buffer of one page. */
	if (iov_iter_count(iter) <= PAGE_SIZE)
		return 1;
	return iter->nr_segs + exmap_io_ranges(iov_iter_count(iter));
}

/*
 * Whether adjacent buffers may be one entry. An entry gets all of its pages or none, but if free
 * pages are scarce, the first of the buffers are to get theirs. So the interface must have enough.
 * If the caller does not wait, see exmap_io_divide().
 */
static bool exmap_io_may_merge(const struct exmap_io *io, const struct iov_iter *iter)
{
	return !io->tell && (exmap_io_writes(io) ||
		exmap_stock(io->interface) >= iov_iter_count(iter) >> PAGE_SHIFT);
}

/* Make entries of an iterator's buffers. Returns 0 or an error. */
static int exmap_io_add_iter(struct exmap_io *io, struct iov_iter *iter)
{
	unsigned long start, len;
	int err;

	io->merges = exmap_io_may_merge(io, iter);
	while (iov_iter_count(iter)) {
		start = exmap_iter_address(iter);
		len = exmap_iter_len(iter);
		if (!len) {
			iov_iter_advance(iter, 0);
			continue;
		}
		err = exmap_io_check_range(io->exmap, start, len);
		if (err)
			return err;
		iov_iter_advance(iter, len);
		exmap_io_add(io, start, len);
	}
	return 0;
}

/* Whether a call is for one page, which is on the surface. */
static bool exmap_io_is_one(const struct exmap *exmap, const struct iov_iter *iter)
{
	unsigned long address;

	if (iov_iter_count(iter) != PAGE_SIZE || exmap_iter_len(iter) != PAGE_SIZE)
		return false;
	address = exmap_iter_address(iter);
	return PAGE_ALIGNED(address) && address >= exmap->start && address < exmap->end;
}

/* Whether a call is a READ that waits for the I/O. */
static bool exmap_io_waits(struct kiocb *iocb, unsigned int opcode)
{
	return opcode == EXMAP_OP_READ && is_sync_kiocb(iocb) && !(iocb->ki_flags & IOCB_NOWAIT);
}

static void exmap_io_tell_iocb(struct exmap_io *io)
{
	struct kiocb *iocb = io->iocb;
	long ret = exmap_io_bytes(io);

	exmap_io_end(io);
	exmap_io_free(io);
	iocb->ki_complete(iocb, ret);
}

/*
 * READ, ALLOC or WRITE of any number of buffers. If they are just the page at the address @only,
 * @iter is not used. Returns as exmap_io_proxy().
 */
static noinline ssize_t exmap_io_proxy_ranges(struct exmap *exmap,
					      struct exmap_interface *interface,
					      struct kiocb *iocb, struct iov_iter *iter,
					      unsigned long only, unsigned int opcode)
{
	struct exmap_io sync __exmap_uninitialized, *io = &sync;
	ssize_t ret;

	if (!is_sync_kiocb(iocb)) {
		io = exmap_io_alloc();
		if (!io)
			return -ENOMEM;
	}
	ret = exmap_io_begin(io, exmap, interface, opcode, exmap_io_max_ranges(iter),
			     iocb->ki_ioprio, is_sync_kiocb(iocb) ? NULL : exmap_io_tell_iocb);
	if (ret)
		goto free_io;
	io->iocb = iocb;
	io->flags = iocb->ki_flags & (IOCB_DSYNC | IOCB_SYNC);
	if (only)
		io->entry[io->nr++] = (struct exmap_io_entry){
			.start = only,
			.end = only + PAGE_SIZE,
		};
	else
		ret = exmap_io_add_iter(io, iter);
	if (ret)
		goto end;
	ret = iocb->ki_flags & IOCB_NOWAIT ? exmap_io_perform_nowait(io) : exmap_io_perform(io);
	if (ret == -EIOCBQUEUED)
		return ret;
	ret = ret ?: exmap_io_bytes(io);
end:
	exmap_io_end(io);
free_io:
	if (io != &sync)
		exmap_io_free(io);
	return ret;
}

/**
 * exmap_io_proxy - read and write on the exmap's file
 * @exmap: has a backing file, unless it is ALLOC, and belongs to current->mm;
 *	mmap_lock is not held
 * @interface: where pages come from and go to; its lock is not held
 * @iocb: the call; its position is not used, because the caller has evaluated it
 * @iter: user memory: whole pages of the surface. Their place on the surface says which part of
 *	the file is read or written
 * @opcode: EXMAP_OP_READ, EXMAP_OP_ALLOC (as READ, but nothing is read) or
 *	EXMAP_OP_WRITE
 *
 * Return: bytes done, up to the first page that failed. Pages that are mapped already count as
 * read, and 0 is the end of the file. -EINVAL if @iter does not consist of whole pages; -EFAULT if
 * it leaves the surface, or a page to be written is not mapped; -ENOMEM, -EPROTO, or the error of
 * the I/O. -EIOCBQUEUED if @iocb will be completed with one of these; -EAGAIN if the call must not
 * wait, and would have to.
 */
ssize_t exmap_io_proxy(struct exmap *exmap, struct exmap_interface *interface,
		       struct kiocb *iocb, struct iov_iter *iter, unsigned int opcode)
{
	struct exmap_slot slot __exmap_uninitialized;
	unsigned long address;
	int err;

	if (!user_backed_iter(iter))
		return -EINVAL;
	if (!exmap_has_surface(exmap))
		return -EPROTO;
	if (!exmap_io_is_one(exmap, iter))
		return exmap_io_proxy_ranges(exmap, interface, iocb, iter, 0, opcode);
	address = exmap_io_clamp(exmap, exmap_iter_address(iter));
	if (opcode == EXMAP_OP_ALLOC) {
		err = exmap_alloc_page(exmap, interface, (address - exmap->start) >> PAGE_SHIFT);
		return err < 0 ? err : PAGE_SIZE;
	}
	if (!exmap_io_waits(iocb, opcode))
		return exmap_io_proxy_ranges(exmap, interface, iocb, iter, address, opcode);
	err = exmap_io_read_one(exmap, interface, address, iocb->ki_ioprio, &slot) ?: slot.error;
	if (err)
		return err == -ENODATA ? 0 : err;
	return PAGE_SIZE;
}
