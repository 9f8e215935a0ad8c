/* SPDX-License-Identifier: GPL-2.0 */
/*
 * exmap: what the module's source files share.
 *
 * Files, from top to bottom. A file calls what is below it in this list, never what is above
 * it (tools/arrows checks that):
 *   driver.c      the device and its open files; mmap
 *   ioctl.c       the calls of ioctl and fadvise: their arguments
 *   fdinfo.c      what /proc/PID/fdinfo/FD shows
 *   locks.c       tells lockdep the order of the locks
 *   resize.c      the pool's ceiling changes; free pages go back to the system on request
 *   trim.c        page tables go back to the system
 *   setup.c       an exmap comes and goes: its parts, SETUP, an interface's first use, the end
 *   uring.c       the commands of io_uring
 *   proxy.c       pread, pwrite and libaio on the exmap's file
 *   io.c          READ and WRITE: entries, windows, answers
 *   landing.c     the end of a window: its pages are mapped or unpinned, its entries get results
 *   transfer.c    a window's runs to or from file or device; what became of short and failed ones
 *   surface.c     the surface as a mapping: VMA, mmap, touches of absent pages
 *   memory.c      pages come to the surface: ALLOC, reserve, install, pin
 *   free.c        pages leave the surface: FREE, with its flush at once or put off
 *   prepare.c     what pages need before they come: page tables, flushes, free pages
 *   gate.c        the gate, and the kernel at work on the surface: notifier, reap
 *   refill.c      where an interface gets more free pages: depot, system, quarantine, steal, hunt
 *   reclaim.c     free pages go back to the system: the shrinker, the end of a pool
 *   quarantine.c  pages whose flush is put off
 *   shootdown.c   the flush of TLBs, and of other MMUs that follow our page tables
 *   tables.c      the page tables: the directory that finds them, and how they are made
 *   stock.c       an interface's free pages
 *   pinned.c      pages that others hold when they leave the surface
 *   reading.c     the reading index: which addresses are being read, and which had a page since
 *   pool.c        bundles, the depot, the books
 *   token.c       how a memory cgroup at its limit finds the pools it is charged for
 *   queue.c       workqueues for the rest of asynchronous calls, one per user
 *   charge.c      who pays: RLIMIT_MEMLOCK, VmPin, the resident set
 *   ksyms.c       kernel functions that are not exported
 *   arm64.c       the flush of arm64, and memory for its marks; other processors do without
 *   trace.c       tracepoints
 * Headers: this one has the structs, and the functions of all files that have no other header.
 * file.h: an open file. entry.h: entries, and their answers. pool.h: free pages, from refill.c to
 * charge.c. quarantine.h: quarantines. reading.h: the reading index. walk.h: a look into the page
 * tables. io.h: a READ or WRITE under way. version.h: the version of the kernel. compat.h: every
 * difference between kernel versions. arch.h: every difference between processors.
 *
 * Who owns what:
 *   - An open file owns a struct exmap_file. It points to the struct exmap that open made, or,
 *     after EXMAP_IOCTL_CLONE, to that of another file. Each file holds a reference. The mapping
 *     of the surface holds its file, so an exmap is freed only when no mapping, no file and no
 *     call is left.
 *   - An exmap belongs to the mm that opened it. Calls from any other mm are refused. The mm may
 *     be long gone when the last file is closed.
 *   - A page is at any time in one of these places. Only the holder of the lock that guards the
 *     place may move it:
 *       the system                not counted in pool->taken
 *       the depot                 pool->lock
 *       a bundle of an interface  interface->lock
 *       on the surface            the PTE lock (see below)
 *       unmapped, not flushed     interface->limbo, or a FREE of one page itself;
 *                                 exmap->reaped in a notifier;
 *                                 in a quarantine, after the call: its lock
 *       being read from a file    the call, in its slots. The reading index finds the slots by
 *                                 address, but moves no page
 *     We hold one reference to each page; its mapcount is 0. After a page has left the surface, it
 *     is reused or freed only if nobody else holds a reference (see pinned.c).
 *   - While the gate is open, only memory.c, free.c and quarantine.c change PTEs of the surface,
 *     under the PTE lock. While the gate is closed, no call is inside. The task that closed it,
 *     and the kernel, may then change the page tables freely.
 *
 * Locks, outermost first. A lock is taken with no other lock held, or with some of the locks in
 * its third column. The last column says whether its holder may sleep (S), and whether it may
 * allocate memory with GFP_KERNEL (A).
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
 *   i_mmap_rwsem         the kernel's; during a flush   interface->lock,               S
 *     of exmap->mapping  no MMU notifier registers,     quarantine->lock, reap_lock
 *                        and on x86-64 no other caller
 *                        of exmap_shootdown() flushes
 *   flush.join_lock      who has joined the next flush  the above
 *     spinlock
 *   PTE lock             PTEs of one page table, and    mmap_lock, interface->lock,
 *     spinlock           their marks                    quarantine->lock, reap_lock
 *   bucket of            a chain of the reading index,  mmap_lock, interface->lock,
 *     exmap->reading     stale slots                    PTE lock
 *     bit spinlock
 *   pool->lock           the depot and the books        any of the above, but i_mmap_rwsem
 *     spinlock                                          and a bucket's
 *   exmap->gate_lock     gate, closers, openings        exmap->lock, mmap_lock,
 *     spinlock                                          pool->transit (SETUP)
 *   watch->lock          watch->exmaps                  exmap->lock, mmap_lock
 *     spinlock
 *   exmap_pools_srcu     for reading: a pool that the   any whose holder may allocate  S
 *     SRCU (reclaim.c)   shrinker has from the list
 *   exmap_pools_lock     the list of pools, and what    exmap->lock, pool->transit (SETUP);
 *     spinlock           each has to spare              in the shrinker, exmap_pools_srcu
 *   lock of exmap_tokens the kernel's: the tokens       exmap->lock, pool->transit,
 *     spinlock (token.c) of a memory cgroup             exmap_pools_srcu
 *   exmap_orphans_lock   the list of orphans            mmap_lock
 *     spinlock (pinned.c)
 *   exmap_queues_lock    the list of users' queues
 *     spinlock (queue.c)
 *
 * A task that holds one interface's lock takes another's by trylock, or while it holds
 * pool->transit for writing, which only one task can.
 *
 * The MMU notifier takes interface locks and PTE locks, and the kernel may call it with mmap_lock
 * held. So the holder of an interface's lock, or of a lock that is taken inside it, must not
 * sleep for memory, for mmap_lock or for I/O.
 *
 * The shrinker runs when memory is short. Its caller may hold any lock, ours or the kernel's, whose
 * holder may allocate. It takes interface->lock > quarantine->lock > i_mmap_rwsem by trylock. It
 * waits for PTE lock, pool->lock, exmap_pools_lock and the lock of exmap_tokens, because their
 * holders never allocate.
 * synchronize_srcu(&exmap_pools_srcu) is called with no lock held.
 *
 * locks.c tells lockdep this order when the module is loaded. A new lock is added there, too.
 *
 * Glossary:
 *   bundle      one page of kernel memory that holds pointers to up to 512 free pages
 *   ceiling     the most pages that a pool may take from the system
 *   depot       the free pages of a pool that belong to no interface: in bundles, or loose
 *   entry       a user's request: a number of adjacent pages, in one struct exmap_iov
 *   gate        open while calls may use the page tables of the surface; closed while the kernel
 *               changes them
 *   interface   what one thread works with: entries, and free pages
 *   leaf        a page of the directory: it finds the page tables of 512 GiB
 *   limbo       pages that a call has unmapped and not yet flushed
 *   loose       a free page of the depot that is in no bundle
 *   orphan      a page that others still hold after its pool was drained
 *   pool        all pages of an exmap, on the surface or not
 *   quarantine  pages that FREE has unmapped and whose flush is put off beyond the call
 *               (EXMAP_FREE_DEFER); their PTEs are marked
 *   run         adjacent pages: those of one I/O, or of a part of one page table
 *   slot        a page on its way between the surface and a file
 *   stale       said of a slot: its address had another page since the READ began
 *   stock       the free pages that an interface has at hand
 *   surface     the address range on which pages are mapped
 *   surplus     the pages that a pool has beyond its ceiling, after the ceiling was lowered
 *   taken       the number of pages that a pool has from the system
 *   token       an object charged to a memory cgroup, through which the cgroup finds a pool
 *   window      the pages of a READ or WRITE whose I/O is under way at the same time
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

#include "arch.h"
#include "linux/exmap.h"

#undef pr_fmt
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

/**
 * struct exmap_charge - pages that are charged to a user and a process; see charge.c
 * @cred: the user whose RLIMIT_MEMLOCK they count against; NULL if none
 * @pages: number of pages; 0 if nothing is charged
 */
struct exmap_charge {
	const struct cred *cred;
	unsigned long pages;
};

#define EXMAP_BUNDLE_PAGES (PAGE_SIZE / sizeof(struct page *))

/* One page of kernel memory that holds pointers to free pages. */
struct exmap_bundle {
	struct page *page[EXMAP_BUNDLE_PAGES];
};

/* Why a call has failed with ENOMEM. */
enum exmap_shortage {
	EXMAP_SHORT_CEILING,	/* all pages below the ceiling are in use */
	EXMAP_SHORT_MEMORY,	/* the system or the memory cgroup has no page for the pool */
	EXMAP_SHORT_TABLES,	/* the system or the memory cgroup has none for a page table */
	EXMAP_SHORTAGES
};

/**
 * struct exmap_depot - the part of a pool's depot for one NUMA node
 * @full: stack of full bundles, linked through their struct page. The last page of each is of this
 *	node (exmap_bundle_node()), and so are most of the others
 * @loose: list of free pages of this node that are in no bundle, linked through page->lru
 * @nr_free: number of pages in both; may be read without pool->lock, which guards all fields
 */
struct exmap_depot {
	struct exmap_bundle *full;
	struct list_head loose;
	unsigned long nr_free;
};

/**
 * struct exmap_pool - the physical pages of an exmap
 * @lock: guards the fields before @transit, and @depot
 * @nr_free: number of pages in the depot; may be read without @lock
 * @empty: stack of empty bundles, linked through their struct page
 * @bundles: number of bundles that were allocated along with pages and still exist. Always enough
 *	to hold all of @taken, so that a page can be put back without allocating
 * @taken: pages taken from the system, at most @most + exmap->surplus; may be read without @lock
 * @most: @ceiling, plus the pinned pages that were replaced by fresh ones (see pinned.c); may be
 *	read without @lock
 * @pushes: counts how many times pages came to the depot, or to @pinned
 * @pinned: list of pages of @taken that others still hold, linked through page->lru
 * @nr_pinned: length of @pinned; may be read without @lock
 * @transit: held for reading while pages are between the system and an interface; held for
 *	writing to find out for certain that no page is free
 * @sibling: in reclaim.c's list of all pools, or empty; exmap_pools_lock
 * @lookers: number of those that look at the interfaces: the exmap's files together are one, and
 *	each shrinker is one. The last frees the array
 * @spare: number of pages that the shrinker last saw it could take; exmap_pools_lock. May be read
 *	without it
 * @token: through it a memory cgroup finds the pool (see token.c); @lock
 * @memcg: serial number of that memory cgroup; written under @lock, may be read without
 * @shortages: how often a call found no memory, for each cause; needs no lock
 * @ceiling: the most pages to take that nobody else holds; changed under @lock, may be read without
 * @charge: for @most and exmap->surplus, less what orphans have taken over (see pinned.c); @lock
 * @depot: for each NUMA node that the system may have
 */
struct exmap_pool {
	spinlock_t lock;
	unsigned long nr_free;
	struct exmap_bundle *empty;
	unsigned long bundles;
	unsigned long taken;
	unsigned long most;
	u64 pushes;
	struct list_head pinned;
	unsigned long nr_pinned;

	struct rw_semaphore transit;
	struct list_head sibling;
	refcount_t lookers;
	unsigned long spare;
	struct exmap_token *token;
	u64 memcg;
	atomic64_t shortages[EXMAP_SHORTAGES];

	unsigned long ceiling;
	struct exmap_charge charge;
	struct exmap_depot depot[];
};

/**
 * struct exmap_counts - what an interface has done so far
 * @allocs: pages mapped by ALLOC, or by a touch
 * @frees: pages unmapped by FREE
 * @flushes: TLB shootdowns
 * @reads: pages mapped by READ
 * @writes: pages written by WRITE
 * @steals: pages taken from other interfaces
 */
struct exmap_counts {
	u64 allocs;
	u64 frees;
	u64 flushes;
	u64 reads;
	u64 writes;
	u64 steals;
};

/* The most pages in a quarantine, unless EXMAP_IOCTL_QUARANTINE sets another number. */
#define EXMAP_QUARANTINE_DEFAULT 512

/**
 * struct exmap_quarantine - pages that FREE has unmapped and whose flush is put off
 * @lock: guards all other fields. Held from before a page is unmapped until it is in @bundle, and
 *	from before the flush until the pages are free. The holder of any interface's lock may take
 *	it and flush
 * @bundle: the pages; exmap_quarantine_page() finds each. Set once
 * @address: the address of each of them. Until the flush, its PTE is marked there
 *	(exmap_pte_mark()). The index that finds an address is behind it. Set once, after @bundle
 *	and @size
 * @nr: number of pages; may be read without @lock
 * @indexed: how many of them are in the index. The rest enters it when an address is looked for
 * @size: the most pages that it holds
 * @charge: for @bundle and what it points to; @address is in the same memory
 */
struct exmap_quarantine {
	struct mutex lock;
	struct exmap_bundle **bundle;
	unsigned long *address;
	unsigned int nr;
	unsigned int indexed;
	unsigned int size;
	struct exmap_charge charge;
};

/**
 * struct exmap_interface - what one thread works with
 * @lock: held while a call is at work; guards all other fields
 * @user: the entries, in a page that is shared with user space; set once
 * @loaded: free pages, page[0 .. @count - 1], a stack
 * @count: number of pages in @loaded
 * @nr_full: number of bundles on @full
 * @full: more free pages: a stack of full bundles, linked through their struct page
 * @empty: an empty bundle, or NULL
 * @limbo: pages that FREE has unmapped, page[0 .. @nr_limbo - 1]. Until the flush, other threads
 *	may still write to them
 * @nr_limbo: number of pages in @limbo; 0 if @lock is not held
 * @pushes: counts how many times pages came in
 * @victim: number of the interface that the last steal was from
 * @node: the NUMA node that its pages should be of: the home of the thread that last looked for
 *	pages outside the stock. NUMA_NO_NODE if it may be any, or if there was no such thread
 * @fillers: number of tasks in exmap_stock_fill(), which may release @lock for a while. If it is
 *	not 0, the shrinker takes nothing from the stock. Needs no lock
 * @in_flight: number of pages that are being read from the file, and neither free nor mapped.
 *	Needs no lock
 * @counts: may be read without @lock. The surface holds as many pages as all interfaces have
 *	mapped, less what they and the notifier (exmap->unmapped) have unmapped
 * @ended: asynchronous calls whose requests are done, and which a worker has not taken yet; see
 *	exmap_io_work(). Needs no lock. Behind the cache lines that ALLOC and FREE write, because
 *	the CPU at which a request ends writes to it
 * @quarantine: pages that it has unmapped with EXMAP_FREE_DEFER
 * @charge: for @user, @loaded, @limbo and the first @empty
 *
 * In cache lines of its own. With one interface per thread, only stealing moves these cache lines
 * between CPUs.
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
	u16 victim;
	s16 node;
	u64 pushes;
	atomic_t fillers;
	atomic_t in_flight;
	struct exmap_counts counts;
	struct llist_head ended;
	struct exmap_quarantine quarantine;
	struct exmap_charge charge;
} ____cacheline_aligned_in_smp;

/**
 * struct exmap_watch - tells the exmaps of a process what the kernel does to its memory
 * @notifier: registered by the first SETUP, unregistered by the last close
 * @lock: guards @exmaps
 * @exmaps: list of the exmaps that are set up; the callbacks read it under SRCU
 */
struct exmap_watch {
	struct mmu_notifier notifier;
	spinlock_t lock;
	struct list_head exmaps;
};

/**
 * struct exmap_shared_flush - flushes that threads share; see exmap_shootdown()
 * @join_lock: guards the other fields
 * @start: first address of all ranges whose owners have joined the next flush
 * @end: first address after them; 0 if nobody has joined. May be read without @join_lock; becomes
 *	0 only with the lock of the flush held (i_mmap_rwsem of exmap->mapping)
 * @nr: number of flushes that somebody had joined; changed under @join_lock with the lock of the
 *	flush held, and read under either
 * @joined: list of those who wait for the next flush
 */
struct exmap_shared_flush {
	spinlock_t join_lock;
	unsigned long start;
	unsigned long end;
	u64 nr;
	struct list_head joined;
};

enum exmap_gate {
	EXMAP_GATE_UNMAPPED,	/* no surface yet */
	EXMAP_GATE_OPEN,
	EXMAP_GATE_CLOSED,	/* the kernel changes the page tables */
	EXMAP_GATE_DEAD,	/* the surface is gone for good */
};

/*
 * Part of a surface's directory: for each GiB of 512, the table with its pmd_t, or NULL. And the
 * marks of PTEs, if the processor needs memory for them.
 */
struct exmap_leaf {
	pmd_t *pmds[PTRS_PER_PUD];
	struct exmap_leaf_marks marks;
};

/**
 * struct exmap - a surface, its pool and its interfaces
 *
 * Set by mmap under mmap_lock, before the gate opens:
 * @start: first address of the surface
 * @end: first address after it; 0 if there is no surface yet
 * @pte: the bits of its PTEs, without the page frame
 * @directory: finds page tables. For each 512 GiB of address space, counted from address 0, it has
 *	a pointer to a leaf. No memory exists before the element for @start. A leaf has, for each
 *	GiB, a pointer to the table with one pmd_t per 2 MiB, or NULL if there is none; and marks.
 *	Leaves and their elements are set under mmap_lock. trim.c clears elements, with the gate
 *	closed and mmap_lock held for writing. Leaves are freed under @reap_lock, after the
 *	surface's death
 * @leaves: the array of these pointers; its first element is that for @start
 * @mapping: of the file whose mapping the surface is; it stays as long as the surface. Its
 *	i_mmap_rwsem is the lock of a flush
 *
 * @mm: the mm that it belongs to; we keep it allocated
 * @id: number for people to tell exmaps apart; never used again
 *
 * Set by SETUP under @lock and @gate_lock, @interfaces last:
 * @interfaces: array of all interfaces, and one more at the end that serves page faults
 * @file: the backing file, or NULL
 * @flags: EXMAP_PAGEFAULT_ALLOC
 * @max_interfaces: number of interfaces that user space can name
 * @charge: for the array of @interfaces
 *
 * @deferred: some FREE has put its flush off; set once, before the first such page is unmapped
 * @quarantine_size: the most pages in a quarantine that is made from now on
 * @surplus: number of pages that pool->taken exceeds pool->most by, because the ceiling was
 *	lowered; changed under pool->lock, may be read without. It is here because every call reads
 *	it
 * @reading_shift: @reading has 1 << (64 - this) buckets; set before @reading
 * @reading: the reading index (reading.c), or NULL as long as nothing was read; set once
 *
 * @gate: changed under @gate_lock; calls read it under their interface's lock. The task that closes
 *	it then takes each interface's lock once: after that no call is inside
 * @closers: number of invalidations under way; @gate_lock
 * @openings: number of invalidations that have ended; changed under @gate_lock, before @gate
 * @gate_lock: guards @gate, @closers and @openings
 * @gate_wait: tasks that wait for the gate to open
 * @reap_lock: serializes notifiers that unmap pages
 * @reaped: pages that a notifier has unmapped and not yet flushed; @reap_lock
 * @unmapped: number of pages that notifiers have unmapped so far; @reap_lock
 *
 * @queue: workqueue for the rest of asynchronous calls; set once, by the first of them
 *
 * @refs: open files, clones included
 * @orphan: CLONE turned its file to another exmap; written under @lock
 * @lock: serializes SETUP and CLONE
 * @watch: reports when the kernel takes away the surface or a part of it; set by SETUP
 * @neighbors: in @watch's list of exmaps; @watch->lock
 * @flush: flushes that threads share
 * @pool: the pages
 * @remains: in setup.c's list of exmaps that nobody holds any more
 */
struct exmap {
	/* Read by every call, rarely written. */
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
	unsigned long surplus;
	unsigned int reading_shift;
	struct hlist_bl_head *reading;
	u64 id;
	unsigned int quarantine_size;

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
	struct list_head neighbors;
	struct llist_node remains;

	struct exmap_shared_flush flush ____cacheline_aligned_in_smp;
	struct exmap_pool pool ____cacheline_aligned_in_smp;
};

struct exmap_queue;
struct exmap_walk;
struct io_uring_cmd;
struct work_struct;

/**
 * exmap_has_surface - whether an exmap has, or had, a surface
 * @exmap: the exmap
 *
 * Return: true, and then @start and @end are set for good; or false.
 */
static inline bool exmap_has_surface(const struct exmap *exmap)
{
	/* Pairs with the release of the gate in exmap_surface_map(): the addresses are set. */
	return smp_load_acquire(&exmap->gate) != EXMAP_GATE_UNMAPPED;
}

/**
 * struct exmap_slot - a page on its way between the surface and a file
 * @address: the address that it belongs to
 * @page: the page. In a READ only the call has it until it is mapped, and NULL says that it was
 *	not mapped
 * @error: why it was not mapped, or not written; or 0
 * @reads: the slot was entered into the reading index
 * @stale: its address had another page since then. Guarded by the bucket's lock while the slot is
 *	in the index. After exmap_install() it also means that this page is gone again
 * @node: in the reading index, or unhashed; guarded by the bucket's lock. The only slot of a chain
 *	enters and leaves without the lock
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
 * exmap_count - add to a counter
 * @counter: the counter; its interface's lock is held, but it may be read without
 * @more: number to add
 */
static inline void exmap_count(u64 *counter, unsigned long more)
{
	/* Pairs with exmap_mapped() and exmap_counts_add(). */
	WRITE_ONCE(*counter, *counter + more);
}

/**
 * exmap_nr_interfaces - number of interfaces
 * @exmap: has been set up
 *
 * Return: the interfaces that user space can name, and the one that serves page faults.
 */
static inline unsigned int exmap_nr_interfaces(const struct exmap *exmap)
{
	return exmap->max_interfaces + 1;
}

/* fdinfo.c */
void exmap_fdinfo(struct seq_file *m, struct exmap *exmap);

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

/* resize.c */
unsigned long exmap_pool_give(struct exmap *exmap, unsigned long want);
int exmap_resize(struct exmap *exmap, unsigned long pages);

/* trim.c */
long exmap_trim_tables(struct exmap *exmap, unsigned long start, unsigned long end);

/* uring.c */
int exmap_uring_issue(struct exmap *exmap, struct exmap_interface *interface,
		      struct io_uring_cmd *cmd, unsigned int opcode, unsigned int issue_flags);

/* proxy.c */
ssize_t exmap_io_proxy(struct exmap *exmap, struct exmap_interface *interface,
		       struct kiocb *iocb, struct iov_iter *iter, unsigned int opcode);

/* io.c; what it shares with uring.c, proxy.c, landing.c and transfer.c only is in io.h */
int exmap_io_read_page(struct exmap *exmap, struct exmap_interface *interface, unsigned long page);
long exmap_io_action(struct exmap *exmap, struct exmap_interface *interface,
		     struct exmap_iov *iov, unsigned int nr, unsigned int opcode, bool probe);
int exmap_io_init(void);
void exmap_io_exit(void);

/* surface.c */
extern const struct vm_operations_struct exmap_vma_ops;
void exmap_vma_protect(struct vm_area_struct *vma);
void exmap_vma_open(struct vm_area_struct *vma);
int exmap_surface_map(struct exmap *exmap, struct vm_area_struct *vma);
void exmap_surface_destroy(struct exmap *exmap);

/* memory.c */
int exmap_alloc_page(struct exmap *exmap, struct exmap_interface *interface, unsigned long page);
long exmap_alloc(struct exmap *exmap, struct exmap_interface *interface, struct exmap_iov *iov,
		 unsigned int nr, bool probe);
unsigned int exmap_map_run(struct exmap *exmap, struct exmap_interface *interface,
			   unsigned long address, struct exmap_marks marks, pte_t *pte,
			   unsigned int nr, long *mapped);
int exmap_reserve(struct exmap_walk *walk, struct exmap_interface *interface, unsigned long start,
		  unsigned long end, bool reads, bool probe, struct exmap_slot *slot);
unsigned int exmap_install(struct exmap_walk *walk, struct exmap_interface *interface,
			   struct exmap_slot *slot, unsigned int nr);
void exmap_discard(struct exmap *exmap, struct exmap_interface *interface,
		   struct exmap_slot *slot, unsigned int nr, int err);
int exmap_pin(struct exmap_walk *walk, unsigned long start, unsigned long end,
	      struct exmap_slot *slot);
u64 exmap_mapped(struct exmap *exmap);

/* free.c */
int exmap_free_page(struct exmap *exmap, struct exmap_interface *interface, unsigned long page);
int exmap_defer_page(struct exmap *exmap, struct exmap_interface *interface, unsigned long page);
long exmap_free(struct exmap *exmap, struct exmap_interface *interface, struct exmap_iov *iov,
		unsigned int nr, bool defer);
long exmap_flush(struct exmap *exmap, struct exmap_interface *interface);

/* prepare.c */
int exmap_walk_flush(struct exmap_walk *walk, struct exmap_interface *interface,
		     unsigned long address);
int exmap_prepare(struct exmap_walk *walk, struct exmap_interface *interface, unsigned long start,
		  unsigned long end);

/* gate.c */
void exmap_watch_init(struct exmap_watch *watch);
int exmap_watch_join(struct exmap *exmap);
void exmap_watch_leave(struct exmap *exmap);
void exmap_watch_exit(void);
bool exmap_was_closed(const struct exmap *exmap, unsigned int openings);
bool exmap_gate_close(struct exmap *exmap, enum exmap_gate gate);
void exmap_gate_open(struct exmap *exmap);
unsigned long exmap_reap_skip(const struct exmap *exmap, unsigned long address, unsigned long end);
int exmap_enter_late(struct exmap *exmap, struct exmap_interface *interface, enum exmap_gate gate);

/**
 * exmap_enter - take an interface's lock while the gate is open
 * @exmap: has been set up; mmap_lock is not held, because the task that closed the gate may
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
	 * Read once: another task may close the gate at any time, but then waits for our lock.
	 * Pairs with the release in exmap_surface_map() and exmap_gate_open(): start, end, pte and
	 * directory are set.
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

/* shootdown.c */
bool exmap_shootdown(struct exmap *exmap, unsigned long start, unsigned long end,
		     struct exmap_pages pages);
bool exmap_shootdown_try(struct exmap *exmap, unsigned long start, unsigned long end,
			 struct exmap_pages pages);

/* Owner of the ranges that exmap_shootdown() announces. */
extern const char exmap_shootdown_owner;

/**
 * exmap_is_own - whether a range was announced by exmap_shootdown()
 * @range: the range that an MMU notifier is told
 *
 * All exmaps of a process ignore such a range, whichever of them has announced it.
 *
 * Return: whether exmap_shootdown() has announced it.
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
