/* SPDX-License-Identifier: GPL-2.0 */
/*
 * exmap: what the module's source files share.
 *
 * Files, from top to bottom. A file calls what is below it in this list, never what is above
 * it (tools/arrows checks that):
 *   driver.c      the device: who may do what; ioctl, mmap, fdinfo
 *   locks.c       tells lockdep the order of the locks
 *   setup.c       an exmap comes and goes: its parts, SETUP, an interface's first use, the end
 *   uring.c       the commands of io_uring
 *   proxy.c       pread, pwrite and libaio on the exmap's file
 *   io.c          READ and WRITE: entries, windows, answers
 *   transfer.c    a window's runs to or from file or device; what became of short and failed ones
 *   surface.c     the surface as a mapping: VMA, mmap, touches of absent pages
 *   memory.c      pages come: ALLOC, reserve, install, pin
 *   free.c        pages go: FREE, with its flush at once or put off
 *   gate.c        the gate, and the kernel at work on the surface: notifier, reap
 *   refill.c      where an interface gets more free pages: depot, system, quarantine, steal, hunt
 *   reclaim.c     free pages go back to the system: the shrinker, the end of a pool
 *   quarantine.c  pages whose flush is put off
 *   shootdown.c   the flush, and who has to be told
 *   tables.c      the page tables: the directory that finds them, and having them made
 *   stock.c       an interface's free pages
 *   pinned.c      pages that others hold when they leave the surface
 *   reading.c     which addresses are being read, and which of them had a page since
 *   pool.c        bundles, the depot, the books
 *   queue.c       where the rest of an asynchronous call is done
 *   charge.c      who pays: RLIMIT_MEMLOCK, VmPin, the resident set
 *   ksyms.c       what the kernel does not export
 *   trace.c       tracepoints
 * Headers: this one has the structs, and what does not belong to one of the others; pool.h hands
 * out pages and takes them back; reading.h is the reading index; walk.h looks into page tables;
 * io.h is a READ or WRITE under way; compat.h is every difference between kernel versions.
 *
 * Who owns what:
 *   - An open file owns a struct exmap_file. It points to the struct exmap that
 *     came with the open, or, after EXMAP_IOCTL_CLONE, to another's; each holds
 *     a reference. The mapping of the surface holds its file, so an exmap goes
 *     only when no mapping, no file and no call is left.
 *   - An exmap belongs to the mm that opened it. Calls from any other are
 *     refused; the mm may be long gone when the last file is closed.
 *   - A page is at any time in one of these places, and only who guards the
 *     place may move it:
 *       the system                counted out of pool->taken
 *       a bundle of the depot     pool->lock
 *       a bundle of an interface  interface->lock
 *       on the surface            the PTE lock (see below)
 *       unmapped, not flushed     interface->limbo; exmap->reaped in a notifier;
 *                                 in a quarantine, after the call: its lock
 *       being read from a file    the call, in its slots; the reading index finds them by
 *                                 address, but moves no page
 *     Each has one reference of ours, and no mapcount. Once off the surface, it is let go
 *     or handed out again only while there is no other (see pinned.c).
 *   - While the gate is open, PTEs of the surface come and go in memory.c, free.c and
 *     quarantine.c only, under the PTE lock. While it is closed nobody is inside, and whoever
 *     closed it may do with the page tables what it likes.
 *
 * Locks, outermost first. A lock is taken with nothing else held, or with some of those that its
 * third column names. The last column says whether its holder may sleep (S) and allocate memory
 * that has to be waited for (A).
 *
 *   lock                 protects                       may be held when it is taken   holder may
 *   exmap->lock          SETUP and CLONE                                               S A
 *     mutex
 *   mmap_lock            the kernel's: VMAs; directory  exmap->lock                    S A
 *     of exmap->mm       and leaves as they are made
 *   pool->transit        pages between the system and   mmap_lock                      S A
 *     rw_semaphore       an interface
 *   interface->lock      the interface; its holder is   mmap_lock, transit; another    S
 *     mutex              inside the gate                interface's, see below
 *   quarantine->lock     a quarantine, and its marks    interface->lock, and what      S
 *     mutex              in PTEs                        that may be taken with
 *   exmap->reap_lock     exmap->reaped, ->unmapped;     mmap_lock                      S
 *     mutex              freeing leaves
 *   i_mmap_rwsem         for reading: no MMU notifier   interface->lock,               S
 *     of exmap->mapping  registers during a shootdown   quarantine->lock, reap_lock
 *   PTE lock             PTEs of one page table         mmap_lock, interface->lock,
 *     spinlock                                          quarantine->lock, reap_lock
 *   bucket of            a chain of the reading index,  interface->lock, PTE lock
 *     exmap->reading     stale slots
 *     bit spinlock
 *   pool->lock           the depot and the books        any of the above, but i_mmap_rwsem
 *     spinlock                                          and a bucket's
 *   exmap->gate_lock     gate, closers, openings        exmap->lock, mmap_lock
 *     spinlock
 *   watch->lock          watch->exmaps                  exmap->lock, mmap_lock
 *     spinlock
 *   exmap_pools_srcu     for reading: a pool that the   any whose holder may allocate  S
 *     SRCU (reclaim.c)   shrinker has from the list
 *   exmap_pools_lock     the list of pools, and what    exmap->lock (SETUP); in the
 *     spinlock           each has to spare              shrinker, exmap_pools_srcu
 *   exmap_orphans_lock   the list of orphans            mmap_lock
 *     spinlock (pinned.c)
 *   exmap_queues_lock    the list of users' queues
 *     spinlock (queue.c)
 *
 * One interface's lock is taken inside another's by trylock, or by the one task
 * that holds pool->transit for writing.
 *
 * The MMU notifier takes interface locks and PTE locks, and the kernel may call it with mmap_lock
 * held. So nothing that sleeps for memory, for mmap_lock or for I/O may happen under an
 * interface's lock, nor under one that is taken inside it.
 *
 * The shrinker runs when memory is short, so with any lock held, ours or the kernel's, whose
 * holder may allocate. It takes interface->lock > quarantine->lock > i_mmap_rwsem by trylock; and
 * PTE lock, pool->lock and exmap_pools_lock, which no one holds who needs memory.
 * exmap_pools_srcu is waited for with no lock held.
 *
 * locks.c tells lockdep this order when the module is loaded. A new lock goes there, too.
 *
 * Glossary:
 *   bundle      one page of kernel memory with room for 512 free pages
 *   ceiling     the most pages that a pool may take from the system
 *   depot       a pool's bundles that no interface has
 *   entry       what a user asks for: some adjacent pages, in one struct exmap_iov
 *   gate        open while calls may use the page tables of the surface; closed while the kernel is
 *               at work on them
 *   interface   what one thread works with: entries, and free pages
 *   leaf        a page of the directory: finds the page tables of 512 GiB
 *   limbo       pages that a call has unmapped and not yet flushed
 *   orphan      a page that others still hold after its pool was drained
 *   pool        all the pages of an exmap, on the surface or not
 *   quarantine  as limbo, but beyond the call (EXMAP_FREE_DEFER); its PTEs are marked
 *   run         adjacent pages: one I/O, or one stretch of a page table
 *   slot        a page on its way between the surface and a file
 *   stale       of a slot: its address had another page since the READ began
 *   stock       the free pages that an interface has at hand
 *   surface     the address range on which pages are mapped
 *   taken       how many pages a pool has from the system
 *   window      the pages of a READ or WRITE that are under way at once
 */
#ifndef EXMAP_H
#define EXMAP_H

#include <linux/atomic.h>
#include <linux/cache.h>
#include <linux/fs.h>
#include <linux/list.h>
#include <linux/list_bl.h>
#include <linux/llist.h>
#include <linux/lockdep.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/mutex.h>
#include <linux/nospec.h>
#include <linux/refcount.h>
#include <linux/rwsem.h>
#include <linux/spinlock.h>
#include <linux/uio.h>
#include <linux/wait.h>

#include "linux/exmap.h"

#undef pr_fmt
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

/**
 * struct exmap_charge - what is charged to a user and a process, see charge.c
 * @cred: whose RLIMIT_MEMLOCK, or NULL
 * @pages: how many; 0 if nothing is charged
 */
struct exmap_charge {
	const struct cred *cred;
	unsigned long pages;
};

#define EXMAP_BUNDLE_PAGES (PAGE_SIZE / sizeof(struct page *))

/* One page of kernel memory with room for free pages. */
struct exmap_bundle {
	struct page *page[EXMAP_BUNDLE_PAGES];
};

/**
 * struct exmap_pool - the physical pages of an exmap
 * @lock: guards the fields up to @transit
 * @full: full bundles, a stack linked through their struct page
 * @nr_full: how many
 * @empty: empty bundles, the same
 * @bundles: how many bundles came with pages, and are still here; never fewer than it takes to hold
 *	all of @taken, so that a page can be put back without allocating
 * @taken: pages taken from the system, at most @most; may be read without @lock
 * @most: @ceiling, and a page more for each pinned one that was replaced (see pinned.c); may be
 *	read without @lock
 * @pushes: counts full bundles, and pinned pages, that came in
 * @pinned: pages of @taken that others still hold, linked through page->lru
 * @nr_pinned: how many; may be read without @lock
 * @transit: read-held where pages are between the system and an interface,
 *	write-held to find out for certain that no page is free
 * @sibling: in the list of all pools, or empty; reclaim.c's exmap_pools_lock guards it
 * @lookers: who looks at the interfaces: the exmap's files, and shrinkers; exmap_pools_lock. The
 *	last one frees their array
 * @spare: what the shrinker last saw that it could have; exmap_pools_lock. May be read without
 * @ceiling: the most pages to take that nobody else holds; set once
 * @charge: for @most, less what orphans have taken over (see pinned.c); @lock
 */
struct exmap_pool {
	spinlock_t lock;
	struct exmap_bundle *full;
	unsigned long nr_full;
	struct exmap_bundle *empty;
	unsigned long bundles;
	unsigned long taken;
	unsigned long most;
	u64 pushes;
	struct list_head pinned;
	unsigned long nr_pinned;

	struct rw_semaphore transit;
	struct list_head sibling;
	unsigned int lookers;
	unsigned long spare;

	unsigned long ceiling;
	struct exmap_charge charge;
};

/**
 * struct exmap_counts - what an interface has done so far; in pages, but @flushes
 * @allocs: mapped by ALLOC, or by a touch
 * @frees: unmapped by FREE
 * @reads: mapped by READ
 * @writes: written by WRITE
 * @steals: taken from other interfaces
 * @flushes: TLB shootdowns
 */
struct exmap_counts {
	u64 allocs;
	u64 frees;
	u64 flushes;
	u64 reads;
	u64 writes;
	u64 steals;
};

/**
 * struct exmap_quarantine - pages that FREE has unmapped, their flush put off
 * @lock: held from before the first page is unmapped, and until those that are flushed
 *	are free pages; guards all the rest. Any interface may flush them, with its own lock held
 * @bundle: the pages, page[0 .. @nr - 1]
 * @address: where they were. There the PTE says that a flush is due, until it is done. Set
 *	once, after @bundle
 * @nr: how many; may be read without @lock
 * @charge: for @bundle and @address
 */
struct exmap_quarantine {
	struct mutex lock;
	struct exmap_bundle *bundle;
	unsigned long *address;
	unsigned int nr;
	struct exmap_charge charge;
};

/**
 * struct exmap_interface - what one thread works with
 * @lock: held while a call is at work; guards all the rest
 * @user: the entries, in the page that is shared with user space; set once
 * @loaded: free pages, page[0 .. @count - 1]; the last in is the first out
 * @count: how many of them
 * @nr_full: how many bundles are on @full
 * @full: more free pages, full bundles, a stack linked through their struct page
 * @empty: an empty bundle, or NULL
 * @limbo: pages that FREE has unmapped, page[0 .. @nr_limbo - 1]: others may
 *	still write to them, until the flush
 * @nr_limbo: how many of them; 0 where @lock is not held
 * @pushes: counts the times when pages came in
 * @victim: whom the last steal was from
 * @fillers: tasks in exmap_stock_fill(), which releases @lock now and then: the shrinker
 *	leaves alone what they have got so far. Needs no lock
 * @in_flight: pages that are neither free nor mapped, but being read from the file. Needs no
 *	lock
 * @counts: may be read without @lock; what the surface holds is what all interfaces
 *	have mapped, less what they and the notifier (exmap->unmapped) have unmapped
 * @quarantine: what it has unmapped with EXMAP_FREE_DEFER
 * @charge: for @user, @loaded, @limbo and the first @empty
 *
 * In cache lines of its own: where each thread has an interface, none of this moves
 * from one CPU to another but for a thief.
 */
struct exmap_interface {
	struct mutex lock;
	struct exmap_user_interface *user;
	struct exmap_bundle *loaded;
	unsigned int count;
	unsigned int nr_full;
	struct exmap_bundle *full;
	struct exmap_bundle *empty;
	struct exmap_bundle *limbo;
	unsigned int nr_limbo;
	unsigned int victim;
	u64 pushes;
	atomic_t fillers;
	atomic_t in_flight;
	struct exmap_counts counts;
	struct exmap_quarantine quarantine;
	struct exmap_charge charge;
} ____cacheline_aligned_in_smp;

/**
 * struct exmap_watch - tells the exmaps of a process what the kernel does to its memory
 * @notifier: registered by the first SETUP, and gone with the last close
 * @lock: guards @exmaps
 * @exmaps: those that are set up; the callbacks read it under SRCU
 */
struct exmap_watch {
	struct mmu_notifier notifier;
	spinlock_t lock;
	struct list_head exmaps;
};

enum exmap_gate {
	EXMAP_GATE_UNMAPPED,	/* there is no surface yet */
	EXMAP_GATE_OPEN,
	EXMAP_GATE_CLOSED,	/* the kernel is at work on the page tables */
	EXMAP_GATE_DEAD,	/* the surface is gone for good */
};

/* Of a surface's directory: the tables of page tables of 512 GiB. */
struct exmap_leaf {
	pmd_t *pmds[PTRS_PER_PUD];
};

/**
 * struct exmap - a surface, its pool and its interfaces
 *
 * Set by mmap under mmap_lock, before the gate is open:
 * @start: first address of the surface
 * @end: first address after it; 0 where there is no surface yet
 * @pte: what its PTEs hold besides the page frame
 * @directory: finds page tables: for each 512 GiB of address space, counted from address 0,
 *	a leaf. A leaf has for each GiB the page table with one pmd_t per 2 MiB, or NULL if
 *	there is none yet. Such a table stays until the surface is unmapped, so leaves and
 *	what is in them are set once, under mmap_lock. Leaves are freed under @reap_lock,
 *	after the surface's death. There is no memory before the element for @start
 * @leaves: that element, the first of the array
 * @mapping: of the file whose mapping the surface is, which stays as long as that does; its
 *	i_mmap_rwsem is held where other MMUs are told of what was unmapped
 *
 * @mm: whose it is; we keep it allocated
 * @id: its number, for people: no other exmap has it, ever
 *
 * Set by SETUP under @lock and @gate_lock, @interfaces last:
 * @interfaces: all of them, and one more at the end that serves page faults
 * @file: the backing file, or NULL
 * @flags: EXMAP_PAGEFAULT_ALLOC
 * @max_interfaces: how many user space can name
 * @charge: for the array of @interfaces
 *
 * @deferred: a FREE has put its flush off; set once, before the first page is unmapped so
 * @reading_shift: @reading has 1 << (64 - this) buckets; set before @reading
 * @reading: the reading index (reading.c), or NULL as long as nothing was read; set once
 *
 * @gate: changed under @gate_lock; calls read it under their interface's lock. Whoever
 *	closes it then takes each interface's lock once: nobody is inside any more
 * @closers: invalidations that are under way; guarded by @gate_lock
 * @openings: how many have ended so far; changed under @gate_lock, before @gate
 * @gate_lock: see there
 * @gate_wait: where to wait for a closed gate
 * @reap_lock: serializes notifiers that unmap pages
 * @reaped: pages that a notifier has unmapped and not yet flushed; @reap_lock
 * @unmapped: how many pages notifiers have unmapped so far; @reap_lock
 *
 * @queue: where the rest of asynchronous calls is done; set once, by the first of them
 *
 * @refs: open files, clones included
 * @orphan: a CLONE turned its file to another exmap; written under @lock
 * @lock: serializes SETUP and CLONE
 * @watch: tells when the kernel takes the surface, or a part of it, away; set by SETUP
 * @neighbours: the other exmaps that it tells; @watch->lock
 * @pool: the pages
 * @remains: in setup.c's list of those that nobody has any more
 */
struct exmap {
	/* Read by every call, written seldom. */
	unsigned long start;
	unsigned long end;
	pteval_t pte;
	struct exmap_leaf **directory;
	struct address_space *mapping;
	struct mm_struct *mm;
	struct exmap_interface *interfaces;
	struct file *file;
	u64 flags;
	unsigned int max_interfaces;
	bool deferred;
	enum exmap_gate gate;
	unsigned int reading_shift;
	struct hlist_bl_head *reading;
	u64 id;

	struct exmap_charge charge;
	unsigned int closers ____cacheline_aligned_in_smp;
	unsigned int openings;
	spinlock_t gate_lock;
	wait_queue_head_t gate_wait;
	struct mutex reap_lock;
	struct exmap_leaf **leaves;
	struct exmap_bundle *reaped;
	s64 unmapped;

	struct exmap_queue *queue;

	refcount_t refs;
	bool orphan;
	struct mutex lock;
	struct exmap_watch *watch;
	struct list_head neighbours;
	struct llist_node remains;

	struct exmap_pool pool ____cacheline_aligned_in_smp;
};

/**
 * struct exmap_file - what an open file of /dev/exmap points to
 * @mm: who opened it
 * @exmap: what it works on; changed by CLONE, at most once
 * @first: what came with the open, if @exmap is another now: a call on another
 *	thread may still be looking at it
 * @mapping: its own, rather than that of the device: without pages, but FREE takes its
 *	i_mmap_rwsem, which other exmaps have nothing to do with
 *
 * In cache lines of its own, the first of which each call reads.
 */
struct exmap_file {
	struct mm_struct *mm;
	struct exmap *exmap;
	struct exmap *first;
	struct address_space mapping ____cacheline_aligned_in_smp;
} ____cacheline_aligned_in_smp;

struct exmap_queue;
struct exmap_walk;
struct io_uring_cmd;
struct work_struct;

/**
 * exmap_has_surface - whether there is, or was, a surface
 * @exmap: the exmap
 *
 * Return: true, and then its addresses can be relied on; or false.
 */
static inline bool exmap_has_surface(const struct exmap *exmap)
{
	/* Before the addresses, which mmap has set first. */
	return smp_load_acquire(&exmap->gate) != EXMAP_GATE_UNMAPPED;
}

/**
 * struct exmap_slot - a page on its way between the surface and a file
 * @address: where it belongs, or is
 * @page: the page; until it is mapped nobody else has it. NULL once its place
 *	turned out to be taken
 * @error: why it did not get there, or 0
 * @reads: it has been entered into the reading index
 * @stale: its address had a page since then; guarded by the bucket's lock while it is in the
 *	index. After exmap_install(): and that page is gone, too
 * @node: in the reading index, if it is there; guarded by the bucket's lock
 */
struct exmap_slot {
	unsigned long address;
	struct page *page;
	int error;
	bool reads;
	bool stale;
	struct hlist_bl_node node;
};

/**
 * exmap_request - what an entry asks for
 * @exmap: the exmap
 * @value: the entry, read just once: another thread may be writing to it
 * @start: set to the address of the first page
 * @end: set to the first address after the last
 *
 * Return: 0, or -EFAULT where the entry leaves the surface.
 */
static inline int exmap_request(const struct exmap *exmap, u64 value, unsigned long *start,
				unsigned long *end)
{
	struct exmap_iov request = { .value = value };
	unsigned long pages = (exmap->end - exmap->start) >> PAGE_SHIFT;
	unsigned long page = request.page, len = request.len;

	*start = 0;
	*end = 0;
	if (page > pages || len > pages - page)
		return -EFAULT;
	page = array_index_nospec(page, pages + 1);
	len = array_index_nospec(len, pages - page + 1);
	*start = exmap->start + (page << PAGE_SHIFT);
	*end = *start + (len << PAGE_SHIFT);
	return 0;
}

/**
 * exmap_single - look for an entry's only page
 * @request: the entry, read just once: another thread may be writing to it
 * @first: the surface's first page, in pages from address 0
 * @pages: how many pages the surface has
 *
 * Return: the page's address >> PAGE_SHIFT; or 0 if the entry has more pages, or none, or leaves
 * the surface.
 */
static __always_inline unsigned long exmap_single(u64 request, unsigned long first,
						  unsigned long pages)
{
	/* Of another length this is beyond any surface. */
	unsigned long page = request - (1UL << (64 - EXMAP_PAGE_LEN_BITS));

	return page < pages ? first + array_index_nospec(page, pages) : 0;
}

/**
 * exmap_answer - put an entry's answer in place of the request
 * @iov: the entry
 * @res: 0 or an error
 * @pages: how many pages the call did something to
 *
 * In one store, so that nobody sees half of it.
 */
static inline void exmap_answer(struct exmap_iov *iov, int res, unsigned int pages)
{
	WRITE_ONCE(iov->value, (u64)(pages & U16_MAX) << 32 | (u32)res);
}

/**
 * exmap_count - add to a counter
 * @counter: the counter; its interface's lock is held, but others may be reading it
 * @more: what is added
 */
static inline void exmap_count(u64 *counter, unsigned long more)
{
	WRITE_ONCE(*counter, *counter + more);
}

/**
 * exmap_nr_interfaces - how many interfaces there are
 * @exmap: has been set up
 *
 * Return: those that user space can name, and the one for page faults.
 */
static inline unsigned int exmap_nr_interfaces(const struct exmap *exmap)
{
	return exmap->max_interfaces + 1;
}

/* locks.c */
#ifdef CONFIG_PROVE_LOCKING
void exmap_locks_prime(void);
#else
static inline void exmap_locks_prime(void) { }
#endif

/* setup.c */
void exmap_locks_init(struct exmap *exmap);
void exmap_interface_locks_init(struct exmap_interface *interface);
struct exmap *exmap_create(void);
void exmap_put(struct exmap *exmap);
int exmap_setup(struct exmap *exmap, const struct exmap_ioctl_setup *setup, struct file *file);
int exmap_make_interface(struct exmap *exmap, struct exmap_interface *interface);
void exmap_setup_exit(void);

/* uring.c */
int exmap_uring_issue(struct exmap *exmap, struct exmap_interface *interface,
		      struct io_uring_cmd *cmd, unsigned int opcode, unsigned int issue_flags);

/* proxy.c */
ssize_t exmap_io_proxy(struct exmap *exmap, struct exmap_interface *interface,
		       struct kiocb *iocb, struct iov_iter *iter, unsigned int opcode);

/* io.c; what it shares with uring.c, proxy.c and transfer.c only is in io.h */
long exmap_io_action(struct exmap *exmap, struct exmap_interface *interface,
		     struct exmap_iov *iov, unsigned int nr, unsigned int opcode, bool probe);
void exmap_io_exit(void);

/* surface.c */
extern const struct vm_operations_struct exmap_vma_ops;
void exmap_vma_protect(struct vm_area_struct *vma);
void exmap_vma_open(struct vm_area_struct *vma);
int exmap_surface_map(struct exmap *exmap, struct vm_area_struct *vma);
void exmap_surface_destroy(struct exmap *exmap);

/* memory.c */
long exmap_alloc(struct exmap *exmap, struct exmap_interface *interface, struct exmap_iov *iov,
		 unsigned int nr, bool probe);
int exmap_walk_flush(struct exmap_walk *walk, struct exmap_interface *interface,
		     unsigned long address);
unsigned int exmap_map_run(struct exmap *exmap, struct exmap_interface *interface,
			   unsigned long address, pte_t *pte, unsigned int nr, long *mapped);
int exmap_reserve(struct exmap *exmap, struct exmap_interface *interface, unsigned long start,
		  unsigned long end, bool reads, bool probe, struct exmap_slot *slot);
unsigned int exmap_install(struct exmap *exmap, struct exmap_interface *interface,
			   struct exmap_slot *slot, unsigned int nr);
void exmap_discard(struct exmap *exmap, struct exmap_interface *interface,
		   struct exmap_slot *slot, unsigned int nr, int err);
int exmap_pin(struct exmap *exmap, unsigned long start, unsigned long end, struct exmap_slot *slot);
u64 exmap_mapped(struct exmap *exmap);

/* free.c */
long exmap_free(struct exmap *exmap, struct exmap_interface *interface, struct exmap_iov *iov,
		unsigned int nr, bool defer);
long exmap_flush(struct exmap *exmap, struct exmap_interface *interface);

/* gate.c */
void exmap_watch_init(struct exmap_watch *watch);
int exmap_watch_join(struct exmap *exmap);
void exmap_watch_leave(struct exmap *exmap);
void exmap_watch_exit(void);
bool exmap_was_closed(const struct exmap *exmap, unsigned int openings);
int exmap_enter_late(struct exmap *exmap, struct exmap_interface *interface, enum exmap_gate gate);

/**
 * exmap_enter - take an interface's lock while the gate is open
 * @exmap: has been set up; mmap_lock is not held, since the task that closed the gate may
 *	be waiting for it
 * @interface: the interface
 *
 * Return: 0, with the lock held: exmap_leave() releases it. With nothing held: -EPROTO if
 * there is no surface; -EINTR if the caller is being killed.
 */
static inline int exmap_enter(struct exmap *exmap, struct exmap_interface *interface)
{
	enum exmap_gate gate;

	if (mutex_lock_killable(&interface->lock))
		return -EINTR;
	/*
	 * Read once: it may change at any time, and the task that closes the gate then waits for
	 * the lock. Pairs with the release in exmap_surface_map() and exmap_gate_open(): start,
	 * end, pte and directory are set.
	 */
	gate = smp_load_acquire(&exmap->gate);
	return likely(gate == EXMAP_GATE_OPEN) ? 0 : exmap_enter_late(exmap, interface, gate);
}

/**
 * exmap_leave - undo exmap_enter()
 * @interface: its lock is held
 */
static inline void exmap_leave(struct exmap_interface *interface)
{
	mutex_unlock(&interface->lock);
}

/* quarantine.c */
int exmap_quarantine_setup(struct exmap *exmap, struct exmap_interface *interface);
void exmap_quarantine_end(struct exmap *exmap, struct exmap_quarantine *quarantine,
			  struct exmap_interface *interface, bool wait);
bool exmap_quarantine_flush(struct exmap *exmap, struct exmap_quarantine *quarantine,
			    struct exmap_interface *interface);
int exmap_quarantine_flush_killable(struct exmap *exmap, struct exmap_quarantine *quarantine,
				    struct exmap_interface *interface);
void exmap_quarantine_try_flush(struct exmap *exmap, struct exmap_quarantine *quarantine,
				struct exmap_interface *interface);
int exmap_quarantine_recall(struct exmap *exmap, struct exmap_interface *interface,
			    unsigned long address);
unsigned long exmap_quarantined(const struct exmap *exmap);

/* shootdown.c */
void exmap_shootdown(struct exmap *exmap, unsigned long start, unsigned long end);
bool exmap_shootdown_try(struct exmap *exmap, unsigned long start, unsigned long end);

/* Where the ranges come from that exmap_shootdown() announces. */
extern const char exmap_shootdown_owner;

/**
 * exmap_is_own - whether a range is one that exmap_shootdown() announces
 * @range: what an MMU notifier is told
 *
 * Of a process, for all its exmaps: what any of them has announced is no other's business.
 *
 * Return: whether it is.
 */
static inline bool exmap_is_own(const struct mmu_notifier_range *range)
{
	return range->owner == &exmap_shootdown_owner;
}

/* queue.c */
int exmap_queue_init(void);
void exmap_queue_exit(void);
int exmap_queue_get(struct exmap *exmap);
void exmap_queue_put(struct exmap_queue *queue);
void exmap_queue_work(struct exmap *exmap, struct work_struct *work);

#endif /* EXMAP_H */
