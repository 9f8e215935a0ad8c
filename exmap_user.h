/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * exmap for programs: the calls of linux/exmap.h in a form that is hard to get wrong.
 *
 * All of it is inline, for C11 and C++17; there is nothing to link. Pages are 4 KiB
 * each, and counted from the start of the surface. What returns an int or long
 * returns a negative errno where it fails, and prints nothing. See exmap_user(3).
 *
 * A struct exmap may be used by all threads of the process that opened it, a struct
 * exmap_interface by one thread at a time.
 */
#ifndef EXMAP_USER_H
#define EXMAP_USER_H

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/exmap.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EXMAP_PAGE_SIZE ((size_t)4096)

/* The longest run that one entry can name. */
#define EXMAP_MAX_RUN ((uint64_t)EXMAP_PAGE_MAX_PAGES - 1)

/**
 * struct exmap - a surface and its pool
 * @fd: the open /dev/exmap
 * @interfaces: how many there are
 * @surface: address of page 0
 * @surface_pages: how many pages the surface has
 * @taken: a bit for each interface that exmap_attach() has given away
 * @process: the process that opened it: a child of it has neither surface nor interfaces
 */
struct exmap {
	int fd;
	unsigned int interfaces;
	char *surface;
	uint64_t surface_pages;
	uint64_t taken[EXMAP_MAX_INTERFACES / 64];
	pid_t process;
};

/**
 * struct exmap_interface - what one thread works with
 * @exmap: whose
 * @number: which of them
 * @fd: the file that its calls go to: the exmap's, or its own
 * @fd_is_own: which of these; see exmap_own_fd()
 * @nr: how many entries are in the batch
 * @ran: the batch has been carried out, and its entries hold answers
 * @defer: FREE of a page, a run or a list puts its flush off; see exmap_defer()
 * @user: the entries, shared with the kernel
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
};

/* The address of a page. */
static inline void *exmap_address(const struct exmap *exmap, uint64_t page)
{
	return exmap->surface + page * EXMAP_PAGE_SIZE;
}

/**
 * exmap_strerror - say what a failure to open an exmap or to take an interface means
 * @err: what it returned
 *
 * Return: one line without a newline: what was wrong, and what to do about it.
 */
static inline const char *exmap_strerror(int err)
{
	switch (-err) {
	case ENOENT:
		return "there is no /dev/exmap: load the module (modprobe exmap)";
	case EACCES:
		return "no permission for /dev/exmap: ask its administrator for its group";
	case ENOMEM:
		return "no memory or addresses, or pool and interfaces are above RLIMIT_MEMLOCK: raise ulimit -l, or take fewer";
	case EPERM:
		return "RLIMIT_MEMLOCK is 0 (raise ulimit -l), or this exmap is another process's (open one after fork)";
	case EBADF:
		return "the backing file is not open for reading";
	case EISDIR:
	case ESPIPE:
		return "the backing file is none: it must be a regular file or a block device";
	case EINVAL:
		return "out of range (1 to 1024 interfaces, 1 page or more, known flags), or the backing file is neither file nor block device";
	case EMFILE:
		return "too many files are open: raise ulimit -n";
	case ENXIO:
		return "there is no interface of that number";
	case EBUSY:
		return "every interface is in use: open the exmap with more of them";
	default:
		return strerror(-err);
	}
}

/* Whether the calling process has the mappings of an exmap; in a child others may be there. */
static inline int exmap_is_mine(const struct exmap *exmap)
{
	return exmap->process == getpid();
}

/*
 * Undo exmap_open(): surface and pages are gone after this. Have the interfaces detached
 * before: as long as one is there pool and interfaces count against RLIMIT_MEMLOCK. In a child
 * of the process that opened it this closes the child's descriptor, and nothing else.
 */
static inline void exmap_close(struct exmap *exmap)
{
	if (exmap->surface && exmap_is_mine(exmap))
		munmap(exmap->surface, exmap->surface_pages * EXMAP_PAGE_SIZE);
	if (exmap->fd >= 0)
		close(exmap->fd);
	exmap->surface = NULL;
	exmap->fd = -1;
}

/* A file descriptor, or a negative errno. */
static inline int exmap_open_device(void)
{
#ifdef O_CLOEXEC
	int fd = open("/dev/exmap", O_RDWR | O_CLOEXEC);

	return fd < 0 ? -errno : fd;
#else	/* ISO C has none. Who inherits it can do nothing with it, but hold the backing file. */
	int fd = open("/dev/exmap", O_RDWR);

	if (fd < 0)
		return -errno;
	fcntl(fd, F_SETFD, FD_CLOEXEC);
	return fd;
#endif
}

/**
 * exmap_open - open, set up and map an exmap
 * @exmap: filled in; after a failure there is nothing to close
 * @surface_pages: how large the surface is to be; costs next to nothing
 * @pool_pages: the most pages that can be mapped at a time
 * @interfaces: one for each thread that is going to work on it, up to 1024
 * @backing: file or block device for READ and WRITE, which may be closed after this;
 *	or -1
 * @flags: 0 or EXMAP_PAGEFAULT_ALLOC
 *
 * Return: 0 or a negative errno, which exmap_strerror() explains.
 */
static inline int exmap_open(struct exmap *exmap, uint64_t surface_pages, uint64_t pool_pages,
			     unsigned int interfaces, int backing, uint64_t flags)
{
	struct exmap_ioctl_setup setup;
	void *surface;
	int err;

	memset(exmap, 0, sizeof(*exmap));
	exmap->process = getpid();
	memset(&setup, 0, sizeof(setup));
	setup.fd = backing;
	setup.max_interfaces = (int)interfaces;
	setup.buffer_size = pool_pages;
	setup.flags = flags;

	exmap->fd = exmap_open_device();
	if (exmap->fd < 0)
		return exmap->fd;
	/* A flag that SETUP does not know would have it ignore all of them. */
	if (surface_pages == 0 || surface_pages > SIZE_MAX / EXMAP_PAGE_SIZE ||
	    flags & ~(uint64_t)EXMAP_PAGEFAULT_ALLOC) {
		err = -EINVAL;
		goto fail;
	}
	surface = mmap(NULL, surface_pages * EXMAP_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
		       exmap->fd, (off_t)EXMAP_OFF_EXMAP);
	if (surface == MAP_FAILED) {
		err = -errno;
		goto fail;
	}
	exmap->surface = (char *)surface;
	exmap->surface_pages = surface_pages;
	exmap->interfaces = interfaces;
	if (ioctl(exmap->fd, EXMAP_IOCTL_SETUP, &setup)) {
		err = -errno;
		goto fail;
	}
	return 0;
fail:
	exmap_close(exmap);
	return err;
}

/**
 * exmap_attach_to - take an interface by its number
 * @exmap: the exmap
 * @interface: filled in
 * @number: which, from 0 on; whoever gives the numbers sees to it that no two threads
 *	have the same
 *
 * Return: 0 or a negative errno, which exmap_strerror() explains.
 */
static inline int exmap_attach_to(struct exmap *exmap, struct exmap_interface *interface,
				  unsigned int number)
{
	void *user;

	memset(interface, 0, sizeof(*interface));
	if (number >= exmap->interfaces)
		return -ENXIO;
	user = mmap(NULL, sizeof(*interface->user), PROT_READ | PROT_WRITE, MAP_SHARED, exmap->fd,
		    (off_t)EXMAP_OFF_INTERFACE(number));
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
 * @interface: filled in with one that nobody else has
 *
 * Return: 0, -EBUSY where all of them are taken, or another negative errno;
 * exmap_strerror() explains it.
 */
static inline int exmap_attach(struct exmap *exmap, struct exmap_interface *interface)
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
 * exmap_own_fd - have the calls of an interface go to a file descriptor of its own
 * @interface: attached to
 *
 * For threads that make very many calls: with the exmap's descriptor they fight for
 * the file's reference count. Needs /dev/exmap once more.
 *
 * Return: 0, or a negative errno, with the interface as it was; exmap_strerror()
 * explains it.
 */
static inline int exmap_own_fd(struct exmap_interface *interface)
{
	int fd = exmap_open_device();
	int err;

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

/*
 * Give an interface back, before exmap_close(); the pages that it has mapped stay. Once is
 * enough: after that there is nothing to give back. In a child of the process that opened
 * the exmap this closes the child's descriptor of exmap_own_fd(), and nothing else.
 */
static inline void exmap_detach(struct exmap_interface *interface)
{
	const unsigned int number = interface->number;

	if (!interface->user)
		return;
	if (exmap_is_mine(interface->exmap))
		munmap(interface->user, sizeof(*interface->user));
	interface->user = NULL;
	if (interface->fd_is_own)
		close(interface->fd);
	interface->fd_is_own = 0;
	__atomic_and_fetch(&interface->exmap->taken[number / 64], ~(UINT64_C(1) << number % 64),
			   __ATOMIC_RELEASE);
}

/* Batches: entries for one call, and their answers. */

/* Forget what is in the batch. */
static inline void exmap_batch_clear(struct exmap_interface *interface)
{
	interface->nr = 0;
	interface->ran = 0;
}

/**
 * exmap_batch_add - add a run of pages to the batch
 * @interface: whose batch; one that has been carried out is cleared
 * @page: the first page
 * @pages: how many, up to EXMAP_MAX_RUN
 *
 * Return: 0; -ENOSPC where the batch has 512 entries: run it first; -EINVAL where the
 * run is too long or that page's number has more than 52 bits.
 */
static inline int exmap_batch_add(struct exmap_interface *interface, uint64_t page, uint64_t pages)
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

/* Have the kernel carry out @nr entries. Returns what it returns, or a negative errno. */
static inline int exmap_call(struct exmap_interface *interface, unsigned int opcode,
			     unsigned int nr, uint64_t flags)
{
	struct exmap_action_params action;
	int ret;

	memset(&action, 0, sizeof(action));
	action.interface = (uint16_t)interface->number;
	action.iov_len = (uint16_t)nr;
	action.opcode = (uint16_t)opcode;
	action.flags = flags;
	ret = ioctl(interface->fd, EXMAP_IOCTL_ACTION, &action);
	return ret < 0 ? -errno : ret;
}

/**
 * exmap_batch_run - carry out the batch
 * @interface: whose
 * @opcode: EXMAP_OP_ALLOC, _FREE, _READ or _WRITE
 * @flags: 0 or EXMAP_ALLOC_PROBE; for EXMAP_OP_FREE also EXMAP_FREE_DEFER
 *
 * Return: how many entries failed: exmap_batch_answer() says which, and why; or a
 * negative errno, with nothing done and the batch as it was, to be run again. -EINVAL
 * where it has been carried out already: there are answers where the entries were.
 */
static inline int exmap_batch_run(struct exmap_interface *interface, unsigned int opcode,
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
 * @interface: whose batch
 * @entry: which, in the order in which they were added
 *
 * Return: how many pages were mapped, unmapped, read or written; or a negative errno.
 */
static inline int exmap_batch_answer(const struct exmap_interface *interface, unsigned int entry)
{
	const struct exmap_iov *iov = &interface->user->iov[entry];

	return iov->res ? iov->res : iov->pages;
}

/**
 * exmap_defer - have an interface put its TLB shootdowns off, or not
 * @interface: the calling thread's
 * @on: whether exmap_page(), exmap_run() and exmap_list() pass EXMAP_FREE_DEFER with
 *	EXMAP_OP_FREE from now on
 *
 * One shootdown for each 512 pages then, whatever the size of a call. Until it comes,
 * readers may still find what was there, and writes to it get lost: see exmap(4).
 */
static inline void exmap_defer(struct exmap_interface *interface, int on)
{
	interface->defer = on;
}

/**
 * exmap_flush - make up for the shootdowns that an interface has put off
 * @interface: the calling thread's
 *
 * Return: 0, and nobody can reach what it has freed; or a negative errno.
 */
static inline int exmap_flush(struct exmap_interface *interface)
{
	return exmap_call(interface, EXMAP_OP_FLUSH, 0, 0);
}

/*
 * One page, a run or a list. They return how many pages were mapped, unmapped, read or
 * written: fewer than were asked for where some of them were there (or, for FREE and
 * WRITE, were not); or the errno of one that failed. Others may be done all the same, but
 * after ENOMEM no more of the same 512: a batch tells which. They clear the interface's batch.
 */

/* What comes with an opcode. */
static inline uint64_t exmap_call_flags(const struct exmap_interface *interface,
					unsigned int opcode)
{
	return interface->defer && opcode == EXMAP_OP_FREE ? EXMAP_FREE_DEFER : 0;
}

/* Carry out the batch, and sum up its answers. */
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

/* Add an entry, and carry the batch out where it was the last one, or there is no more room. */
static inline long exmap_batch_push(struct exmap_interface *interface, unsigned int opcode,
				    uint64_t page, uint64_t pages, int last)
{
	int err = exmap_batch_add(interface, page, pages);
	long done = 0;

	if (interface->nr && (last || interface->nr == EXMAP_USER_INTERFACE_PAGES))
		done = exmap_batch_sum(interface, opcode);
	return err ? err : done;
}

/**
 * exmap_page - do something to one page
 * @interface: the calling thread's
 * @opcode: EXMAP_OP_ALLOC, _FREE, _READ or _WRITE
 * @page: which page
 *
 * Return: 1, 0 or a negative errno: see above.
 */
static inline int exmap_page(struct exmap_interface *interface, unsigned int opcode, uint64_t page)
{
	exmap_batch_clear(interface);
	return (int)exmap_batch_push(interface, opcode, page, 1, 1);
}

/**
 * exmap_run - do something to pages that follow each other
 * @interface: the calling thread's
 * @opcode: EXMAP_OP_ALLOC, _FREE, _READ or _WRITE
 * @page: the first page
 * @pages: how many
 *
 * Return: how many or a negative errno: see above. -EINVAL, with nothing done, where
 * a number has more than 52 bits.
 */
static inline long exmap_run(struct exmap_interface *interface, unsigned int opcode, uint64_t page,
			     uint64_t pages)
{
	long done, sum = 0, err = 0;
	uint64_t here;

	/* Else it would go on at page 0 after the last that there is. */
	if ((page | pages) >> (64 - EXMAP_PAGE_LEN_BITS))
		return -EINVAL;
	exmap_batch_clear(interface);
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
 * exmap_list - do something to many single pages
 * @interface: the calling thread's
 * @opcode: EXMAP_OP_ALLOC, _FREE, _READ or _WRITE
 * @page: which pages
 * @nr: how many
 *
 * Return: how many or a negative errno: see above.
 */
static inline long exmap_list(struct exmap_interface *interface, unsigned int opcode,
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
