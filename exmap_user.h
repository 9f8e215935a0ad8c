/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * exmap for programs: the calls of linux/exmap.h in a form that is hard to get wrong.
 *
 * All functions are inline, for C11 and C++17, so there is no library to link. For other languages,
 * libexmap.so.1 has the same functions (lib/libexmap.c). A page has 4 KiB; pages are counted from
 * the start of the surface. A function that returns an int or a long returns a negative errno if it
 * fails. No function prints anything. exmap_user(3) is the reference, and lists all errors.
 *
 * All threads of the process that opened an exmap may use its struct exmap. Only one thread at
 * a time may use a struct exmap_interface.
 */
#ifndef EXMAP_USER_H
#define EXMAP_USER_H

#include "exmap_open.h"	/* which includes exmap_madvise.h */
#include "exmap_size.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The longest run that one entry can name, in pages. */
#define EXMAP_MAX_RUN ((uint64_t)EXMAP_PAGE_MAX_PAGES - 1)

/**
 * struct exmap_interface - carries the calls of one thread
 * @exmap: the exmap that it belongs to
 * @number: its number, from 0 on
 * @fd: the file that its calls go to: the exmap's, or its own
 * @fd_is_own: whether @fd is its own; see exmap_own_fd()
 * @nr: how many entries the batch has
 * @ran: the batch has been carried out, and its entries hold answers
 * @defer: FREE of a page, a run or a list defers its flush; see exmap_defer()
 * @user: the entries, shared with the kernel; NULL after exmap_detach()
 * @reserved: for later versions
 */
struct exmap_interface {
	struct exmap *exmap;
	unsigned int number;
	int fd;
	int fd_is_own;
	unsigned int nr;
	int ran;
	int defer;
	struct exmap_user_interface *user;
	uint64_t reserved[2];
};

/**
 * exmap_attach_to - take an interface by its number
 * @exmap: the exmap
 * @interface: filled in
 * @number: from 0 on; the caller makes sure that no two threads use the same number
 *
 * Takes the interface even if it is in use.
 *
 * Return: 0; -ENXIO if the exmap has no interface of that number; or another negative errno.
 * exmap_strerror() explains it.
 */
EXMAP_LIBRARY int exmap_attach_to(struct exmap *exmap, struct exmap_interface *interface,
				  unsigned int number)
{
	void *user;

	memset(interface, 0, sizeof(*interface));
	if (number >= exmap->interfaces)
		return -ENXIO;
	if (exmap->madvise && exmap->process != getpid())
		return -EPERM;
	user = mmap(NULL, sizeof(*interface->user), PROT_READ | PROT_WRITE,
		    exmap->madvise ? MAP_PRIVATE | EXMAP_MAP_ANONYMOUS : MAP_SHARED, exmap->fd,
		    exmap->madvise ? 0 : (off_t)EXMAP_OFF_INTERFACE(number));
	if (user == MAP_FAILED)
		return -errno;
	interface->exmap = exmap;
	interface->number = number;
	interface->fd = exmap->fd;
	interface->user = (struct exmap_user_interface *)user;
	__atomic_or_fetch(&exmap->taken[number / 64], UINT64_C(1) << number % 64, __ATOMIC_RELAXED);
	return 0;
}

/**
 * exmap_attach - take an interface for the calling thread
 * @exmap: the exmap
 * @interface: filled in with an interface that is not in use
 *
 * Return: 0; -EBUSY if all interfaces are in use; or another negative errno. exmap_strerror()
 * explains it.
 */
EXMAP_LIBRARY int exmap_attach(struct exmap *exmap, struct exmap_interface *interface)
{
	unsigned int number;
	uint64_t bit;
	int err;

	for (number = 0; number < exmap->interfaces; number++) {
		bit = UINT64_C(1) << number % 64;
		if (__atomic_fetch_or(&exmap->taken[number / 64], bit, __ATOMIC_ACQUIRE) & bit)
			continue;
		err = exmap_attach_to(exmap, interface, number);
		if (err)
			__atomic_and_fetch(&exmap->taken[number / 64], ~bit, __ATOMIC_RELEASE);
		return err;
	}
	return -EBUSY;
}

/**
 * exmap_own_fd - give an interface a file descriptor of its own
 * @interface: is attached
 *
 * For threads that make a million calls per second, because threads that share a descriptor
 * compete for the file's reference count. Opens /dev/exmap once more.
 *
 * Return: 0; or a negative errno, with the interface as it was. exmap_strerror() explains it.
 */
EXMAP_LIBRARY int exmap_own_fd(struct exmap_interface *interface)
{
	int fd, err;

	if (interface->exmap->madvise)
		return 0;
	fd = exmap_open_device();
	if (fd < 0)
		return fd;
	if (ioctl(fd, EXMAP_IOCTL_CLONE, interface->exmap->fd)) {
		err = -errno;
		close(fd);
		return err;
	}
	if (interface->fd_is_own)
		close(interface->fd);
	interface->fd = fd;
	interface->fd_is_own = 1;
	return 0;
}

/**
 * exmap_detach - give an interface back
 * @interface: was attached; a second exmap_detach() does nothing
 *
 * Call this before exmap_close(). Pages that the interface has mapped stay mapped. In a child of
 * the process that opened the exmap, this closes the child's descriptor of exmap_own_fd(), if it
 * still is the exmap's, and unmaps nothing.
 */
EXMAP_LIBRARY void exmap_detach(struct exmap_interface *interface)
{
	const unsigned int number = interface->number;

	if (!interface->user)
		return;
	exmap_unmap(interface->exmap, interface->user, sizeof(*interface->user));
	interface->user = NULL;
	if (interface->fd_is_own)
		exmap_close_fd(interface->exmap, interface->fd);
	interface->fd_is_own = 0;
	__atomic_and_fetch(&interface->exmap->taken[number / 64], ~(UINT64_C(1) << number % 64),
			   __ATOMIC_RELEASE);
}

/* Batches: entries for one call, and their answers. */

/**
 * exmap_batch_clear - forget the batch
 * @interface: the calling thread's
 */
EXMAP_LIBRARY void exmap_batch_clear(struct exmap_interface *interface)
{
	interface->nr = 0;
	interface->ran = 0;
}

/**
 * exmap_batch_add - add a run of pages to the batch
 * @interface: the calling thread's; a batch that has been carried out is cleared first
 * @page: the first page
 * @pages: how many pages, up to EXMAP_MAX_RUN
 *
 * Return: 0; -ENOSPC if the batch has 512 entries: run it first; -EINVAL if the run is too long
 * or the page number has more than 52 bits.
 */
EXMAP_LIBRARY int exmap_batch_add(struct exmap_interface *interface, uint64_t page, uint64_t pages)
{
	if (interface->ran)
		exmap_batch_clear(interface);
	if (interface->nr == EXMAP_USER_INTERFACE_PAGES)
		return -ENOSPC;
	if (pages > EXMAP_MAX_RUN || page >> (64 - EXMAP_PAGE_LEN_BITS))
		return -EINVAL;
	interface->user->iov[interface->nr++].value =
		page | pages << (64 - EXMAP_PAGE_LEN_BITS);
	return 0;
}

/*
 * Let the kernel, or exmap_madvise.h, carry out the first @nr entries. Returns how many of them
 * failed, or a negative errno.
 */
static inline int exmap_call(struct exmap_interface *interface, unsigned int opcode,
			     unsigned int nr, uint64_t flags)
{
	const struct exmap *exmap = interface->exmap;
	struct exmap_action_params action;
	int ret;

	memset(&action, 0, sizeof(action));
	action.interface = (uint16_t)interface->number;
	action.iov_len = (uint16_t)nr;
	action.opcode = (uint16_t)opcode;
	action.flags = flags;
	if (exmap->madvise)
		return exmap->process != getpid() ? -EPERM :
			exmap_madvise_action(exmap->madvise, interface->user->iov, &action);
	ret = ioctl(interface->fd, EXMAP_IOCTL_ACTION, &action);
	return ret < 0 ? -errno : ret;
}

/**
 * exmap_batch_run - carry out the batch
 * @interface: the calling thread's
 * @opcode: EXMAP_OP_ALLOC, _FREE, _READ or _WRITE
 * @flags: 0 or EXMAP_ALLOC_PROBE; for EXMAP_OP_FREE also EXMAP_FREE_DEFER
 *
 * Return: how many entries failed; exmap_batch_answer() says which, and why. Or a negative errno,
 * with nothing done and the batch as it was, so it can be run again. -EINVAL also if the batch has
 * been carried out already, because answers have replaced its entries.
 */
EXMAP_LIBRARY int exmap_batch_run(struct exmap_interface *interface, unsigned int opcode,
				  uint64_t flags)
{
	int failed;

	if (interface->ran)
		return -EINVAL;
	failed = exmap_call(interface, opcode, interface->nr, flags);
	if (failed >= 0)
		interface->ran = 1;
	return failed;
}

/**
 * exmap_batch_answer - what became of an entry of a batch that has been carried out
 * @interface: the calling thread's
 * @entry: number of the entry, from 0 on, in the order in which entries were added
 *
 * Return: how many pages were mapped, unmapped, read or written; or a negative errno.
 */
EXMAP_LIBRARY int exmap_batch_answer(const struct exmap_interface *interface, unsigned int entry)
{
	const struct exmap_iov *iov = &interface->user->iov[entry];

	return iov->res ? iov->res : iov->pages;
}

/**
 * exmap_batch_pages - how many pages of an entry were done, beside its error
 * @interface: the calling thread's
 * @entry: as for exmap_batch_answer()
 *
 * Return: how many pages were mapped, unmapped, read or written, even if exmap_batch_answer()
 * returns an error. exmap_run_done() says which ones.
 */
EXMAP_LIBRARY unsigned int exmap_batch_pages(const struct exmap_interface *interface,
					     unsigned int entry)
{
	return (unsigned int)interface->user->iov[entry].pages;
}

/**
 * exmap_defer - switch deferred TLB shootdowns on or off
 * @interface: the calling thread's
 * @on: whether exmap_page(), exmap_run() and exmap_list() pass EXMAP_FREE_DEFER with
 *	EXMAP_OP_FREE from now on
 *
 * With deferred shootdowns there is one for 512 pages, even if each call frees only a few;
 * exmap_quarantine() sets another number. Until the shootdown, readers may still find what was in a
 * page, and writes to it are lost: see exmap(4).
 */
EXMAP_LIBRARY void exmap_defer(struct exmap_interface *interface, int on)
{
	interface->defer = on;
}

/**
 * exmap_quarantine - set how many pages an interface can defer the shootdown of
 * @exmap: the exmap; nothing has been deferred yet
 * @pages: 1 to EXMAP_MAX_QUARANTINE, for each interface; 512 without this call
 *
 * Without the module this does nothing, as exmap_defer() does.
 *
 * Return: 0; -EBUSY if something has been deferred; or another negative errno.
 */
EXMAP_LIBRARY int exmap_quarantine(const struct exmap *exmap, unsigned int pages)
{
	if (exmap->madvise)
		return pages && pages <= EXMAP_MAX_QUARANTINE ? 0 : -EINVAL;
	return ioctl(exmap->fd, EXMAP_IOCTL_QUARANTINE, (unsigned long)pages) ? -errno : 0;
}

/**
 * exmap_flush - do the TLB shootdown that an interface has deferred
 * @interface: the calling thread's
 *
 * Return: 0, and no thread can reach the pages that the interface has freed; or a negative errno.
 */
EXMAP_LIBRARY int exmap_flush(struct exmap_interface *interface)
{
	return exmap_call(interface, EXMAP_OP_FLUSH, 0, 0);
}

/*
 * One page, a run or a list. These functions return how many pages they mapped, unmapped, read or
 * wrote. ALLOC and READ do not count pages that are mapped already; FREE and WRITE do not count
 * pages that are not mapped. If something failed, they return the negative errno of one failure.
 * Other pages may have been done all the same; but after -ENOMEM nothing more is done of the same
 * call to the kernel, which takes up to 512 entries. A batch tells what became of each entry. All
 * of these functions clear the interface's batch.
 */

/* The flags that go with an opcode. */
static inline uint64_t exmap_call_flags(const struct exmap_interface *interface,
					unsigned int opcode)
{
	return interface->defer && opcode == EXMAP_OP_FREE ? EXMAP_FREE_DEFER : 0;
}

/* Carry out the batch. Returns the sum of its answers, or the negative errno of one failure. */
static inline long exmap_batch_sum(struct exmap_interface *interface, unsigned int opcode)
{
	int failed = exmap_batch_run(interface, opcode, exmap_call_flags(interface, opcode));
	long sum = 0;
	unsigned int i;
	int pages;

	for (i = 0; failed >= 0 && i < interface->nr; i++) {
		pages = exmap_batch_answer(interface, i);
		if (pages < 0)
			failed = pages;
		sum += pages;
	}
	exmap_batch_clear(interface);
	return failed < 0 ? failed : sum;
}

/*
 * Add an entry. Carry out the batch if this is the last entry, or if the batch is full. Returns the
 * sum of the answers, 0 if the batch was not carried out, or a negative errno.
 */
static inline long exmap_batch_push(struct exmap_interface *interface, unsigned int opcode,
				    uint64_t page, uint64_t pages, int last)
{
	int err = exmap_batch_add(interface, page, pages);
	long done = 0;

	if (interface->nr && (last || interface->nr == EXMAP_USER_INTERFACE_PAGES))
		done = exmap_batch_sum(interface, opcode);
	return err ? err : done;
}

/*
 * Whether one call of exmap_advise() can carry out a run of pages. If not, a batch of entries can,
 * or says what is wrong.
 */
static inline int exmap_can_advise(const struct exmap_interface *interface, unsigned int opcode,
				   uint64_t page, uint64_t pages)
{
	return interface->exmap->has_advice && opcode <= EXMAP_OP_WRITE && pages > 0 &&
		pages <= EXMAP_MAX_RUN && page <= INT64_MAX / EXMAP_PAGE_SIZE;
}

/* exmap_advise() at an interface, with its deferred flushes. */
static inline long exmap_advise_run(const struct exmap_interface *interface, unsigned int opcode,
				    uint64_t page, uint64_t pages)
{
	return exmap_advise(interface->fd, interface->number, opcode, page, pages,
			    (int)exmap_call_flags(interface, opcode));
}

/**
 * exmap_page - map, unmap, read or write one page
 * @interface: the calling thread's
 * @opcode: EXMAP_OP_ALLOC, _FREE, _READ or _WRITE
 * @page: number of the page
 *
 * Return: 1 if it was done; 0 if the page was mapped already or, for FREE and WRITE, was not
 * mapped; or a negative errno.
 */
EXMAP_LIBRARY int exmap_page(struct exmap_interface *interface, unsigned int opcode, uint64_t page)
{
	exmap_batch_clear(interface);
	if (exmap_can_advise(interface, opcode, page, 1))
		return (int)exmap_advise_run(interface, opcode, page, 1);
	return (int)exmap_batch_push(interface, opcode, page, 1, 1);
}

/**
 * exmap_run - map, unmap, read or write adjacent pages
 * @interface: the calling thread's
 * @opcode: EXMAP_OP_ALLOC, _FREE, _READ or _WRITE
 * @page: the first page
 * @pages: how many pages; not limited to EXMAP_MAX_RUN
 *
 * Return: how many pages were done, or a negative errno: see above. -EINVAL, with nothing done, if
 * @page or @pages has more than 52 bits.
 */
EXMAP_LIBRARY long exmap_run(struct exmap_interface *interface, unsigned int opcode, uint64_t page,
			     uint64_t pages)
{
	long done, sum = 0, err = 0;
	uint64_t here;

	/* Without this check, a run past the last page number would wrap around to page 0. */
	if ((page | pages) >> (64 - EXMAP_PAGE_LEN_BITS))
		return -EINVAL;
	exmap_batch_clear(interface);
	if (exmap_can_advise(interface, opcode, page, pages))
		return exmap_advise_run(interface, opcode, page, pages);
	for (; pages > 0; page += here, pages -= here) {
		here = pages < EXMAP_MAX_RUN ? pages : EXMAP_MAX_RUN;
		done = exmap_batch_push(interface, opcode, page, here, here == pages);
		if (done >= 0)
			sum += done;
		else if (!err)
			err = done;
	}
	return err ? err : sum;
}

/**
 * exmap_run_done - exmap_run(), and say which pages were done
 * @interface: the calling thread's
 * @opcode: EXMAP_OP_ALLOC, _FREE, _READ or _WRITE
 * @page: the first page
 * @pages: how many pages; not limited
 * @done: a bit for each page: bit i % 64 of @done[i / 64] is set if page @page + i was done, and
 *	clear if not. The bits are right after an error, too.
 *
 * This takes an entry for each page, so exmap_run() costs less. READ still sends one request for
 * adjacent pages.
 *
 * Return: as exmap_run().
 */
EXMAP_LIBRARY long exmap_run_done(struct exmap_interface *interface, unsigned int opcode,
				  uint64_t page, uint64_t pages, uint64_t *done)
{
	const uint64_t flags = exmap_call_flags(interface, opcode);
	long ret, answer, sum = 0, err = 0;
	uint64_t at;
	unsigned int i;

	if ((page | pages) >> (64 - EXMAP_PAGE_LEN_BITS))
		return -EINVAL;
	memset(done, 0, (pages + 63) / 64 * sizeof(*done));
	for (at = 0; at < pages; at += EXMAP_USER_INTERFACE_PAGES) {
		exmap_batch_clear(interface);
		/* No surface is so large that a page which is refused here can be on it. */
		for (i = 0; i < EXMAP_USER_INTERFACE_PAGES && at + i < pages; i++)
			exmap_batch_add(interface, page + at + i, 1);
		ret = exmap_batch_run(interface, opcode, flags);
		for (i = 0; i < interface->nr; i++) {
			answer = ret < 0 ? ret : exmap_batch_answer(interface, i);
			if (answer > 0)
				done[(at + i) / 64] |= UINT64_C(1) << (at + i) % 64;
			if (answer >= 0)
				sum += answer;
			else if (!err)
				err = answer;
		}
	}
	exmap_batch_clear(interface);
	return err ? err : sum;
}

/**
 * exmap_list - map, unmap, read or write single pages
 * @interface: the calling thread's
 * @opcode: EXMAP_OP_ALLOC, _FREE, _READ or _WRITE
 * @page: numbers of the pages
 * @nr: how many pages; not limited
 *
 * Return: how many pages were done, or a negative errno: see above.
 */
EXMAP_LIBRARY long exmap_list(struct exmap_interface *interface, unsigned int opcode,
			      const uint64_t *page, size_t nr)
{
	long done, sum = 0, err = 0;
	size_t i;

	exmap_batch_clear(interface);
	for (i = 0; i < nr; i++) {
		done = exmap_batch_push(interface, opcode, page[i], 1, i + 1 == nr);
		if (done >= 0)
			sum += done;
		else if (!err)
			err = done;
	}
	return err ? err : sum;
}

#ifdef __cplusplus
}
#endif

#endif /* EXMAP_USER_H */
