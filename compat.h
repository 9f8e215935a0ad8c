/* SPDX-License-Identifier: GPL-2.0 */
/*
 * All differences between the kernels that exmap builds for. The other files read as if only the
 * newest kernel existed.
 */
#ifndef EXMAP_COMPAT_H
#define EXMAP_COMPAT_H

/* First, because a kernel that exmap does not support may lack one of the other headers. */
#include "version.h"

#include <linux/bvec.h>
#include <linux/fs.h>
#include <linux/list_lru.h>
#include <linux/lockdep.h>
#include <linux/memcontrol.h>
#include <linux/cpuset.h>
#include <linux/mempolicy.h>
#include <linux/mm.h>
#include <linux/page_table_check.h>
#include <linux/percpu_counter.h>
#include <linux/shrinker.h>
#include <linux/slab.h>
#include <linux/swap.h>
#include <linux/uio.h>
#include <linux/workqueue.h>

#if EXMAP_KERNEL < KERNEL_VERSION(6, 8, 0)
#include <linux/io_uring.h>
#else
#include <linux/io_uring/cmd.h>
#endif

#include "arch.h"
#include "ksyms.h"

#if EXMAP_KERNEL < KERNEL_VERSION(6, 3, 0)
static inline void vm_flags_set(struct vm_area_struct *vma, vm_flags_t flags)
{
	mmap_assert_write_locked(vma->vm_mm);
	vma->vm_flags |= flags;
}
#endif

#if EXMAP_KERNEL < KERNEL_VERSION(6, 4, 0)
/* Before 6.4 a VMA has no lock of its own. mmap_lock is enough. */
static inline void vma_start_write(struct vm_area_struct *vma)
{
	mmap_assert_write_locked(vma->vm_mm);
}
#endif

/**
 * exmap_table_lock - find the PTE lock of a page table
 * @mm: the mm that owns the page table
 * @table: the struct page of the page table
 *
 * Unlike pte_lockptr(), this does not read the pmd_t again. Unlike ptep_lockptr(), it does not have
 * to find the struct page.
 *
 * Return: the lock.
 */
static inline spinlock_t *exmap_table_lock(struct mm_struct *mm, struct page *table)
{
#if EXMAP_KERNEL < KERNEL_VERSION(6, 12, 0) ? !USE_SPLIT_PTE_PTLOCKS : \
	!IS_ENABLED(CONFIG_SPLIT_PTE_PTLOCKS)
	return &mm->page_table_lock;
#elif EXMAP_KERNEL < KERNEL_VERSION(6, 6, 0)
	return ptlock_ptr(table);
#else
	return ptlock_ptr(page_ptdesc(table));
#endif
}

/*
 * EXMAP_VMA_POLICY keeps NUMA balancing away from a VMA. NUMA balancing would make the PTEs
 * PROT_NONE and cause a page fault for each page. vma_policy_mof() asks this policy and ignores one
 * set with mbind(). Returning no policy would not help, because since 6.7 the task's policy counts
 * then. The reference count is not used, because MPOL_F_SHARED is not set.
 */
#ifdef CONFIG_NUMA
static inline struct mempolicy *exmap_vma_policy(struct vm_area_struct *vma, unsigned long address
#if EXMAP_KERNEL >= KERNEL_VERSION(6, 7, 0)
						 , pgoff_t *index
#endif
						 )
{
	static struct mempolicy policy = {
		.refcnt = ATOMIC_INIT(1),
		.mode = MPOL_LOCAL,
	};

	return &policy;
}
#define EXMAP_VMA_POLICY .get_policy = exmap_vma_policy,

/*
 * Returns the NUMA node that the kernel takes the current task's pages from, or NUMA_NO_NODE if that
 * is not always the same one. Only the task itself replaces its policy. But when its cpuset changes,
 * mpol_rebind_task() changes both sets of nodes, and this may see one of them half changed. So the
 * result is a hint, and always a node that struct exmap_pool has a depot for.
 */
static inline int exmap_policy_node(void)
{
	const struct mempolicy *policy = current->mempolicy;
	const nodemask_t *nodes = &cpuset_current_mems_allowed;
	const int local = numa_mem_id();
	int first;

	if (policy && policy->mode != MPOL_LOCAL) {
		if (policy->mode != MPOL_BIND && policy->mode != MPOL_PREFERRED &&
		    policy->mode != MPOL_PREFERRED_MANY)
			return NUMA_NO_NODE;
		nodes = &policy->nodes;
	}
	if (node_isset(local, *nodes))
		return local;
	first = first_node(*nodes);
	return nodes_weight(*nodes) == 1 && first < nr_node_ids ? first : NUMA_NO_NODE;
}
#else
#define EXMAP_VMA_POLICY

static inline int exmap_policy_node(void)
{
	return NUMA_NO_NODE;
}
#endif

/**
 * exmap_rss_add - add pages to a process's resident set, or subtract them
 * @mm: the process; it may have exited, but its mm_struct must still be allocated
 * @pages: number of pages; negative to subtract
 *
 * Updates the high-water mark (VmHWM) before it subtracts pages, as generic code does. The kernel's
 * add_mm_counter() cannot be used, because it calls a tracepoint that is not exported. Does not
 * sleep.
 */
static inline void exmap_rss_add(struct mm_struct *mm, long pages)
{
	if (pages < 0)
		update_hiwater_rss(mm);
	/* Pairs with get_mm_counter() of the kernel. */
#if EXMAP_KERNEL < KERNEL_VERSION(6, 2, 0)
	atomic_long_add(pages, &mm->rss_stat.count[MM_SHMEMPAGES]);
#else
	percpu_counter_add(&mm->rss_stat[MM_SHMEMPAGES], pages);
#endif
}

/*
 * Returns all flags of a page in one read. They may change at any time; the read pairs with
 * nothing.
 */
static inline unsigned long exmap_page_flags(const struct page *page)
{
#if EXMAP_KERNEL < KERNEL_VERSION(6, 18, 0)
	return READ_ONCE(page->flags);
#else
	return READ_ONCE(page->flags.f);
#endif
}

/**
 * exmap_pte_set - write a PTE of the surface
 * @mm: the mm that owns the page table; its PTE lock is held
 * @address: the address that the entry maps
 * @pte: the entry, which is not present
 * @value: the new value
 *
 * As set_pte_at(), but without the call through paravirt_ops. A kernel with CONFIG_PAGE_TABLE_CHECK
 * counts the entries of each page, and BUGs if an entry goes away that it has not seen set. So
 * report the entry to it, as set_pte_at() does.
 *
 * The store pairs with the walk of the hardware and with fast GUP, which take no lock: the page's
 * contents come first. See exmap_install() and exmap_stock_grow().
 */
static inline void exmap_pte_set(struct mm_struct *mm, unsigned long address, pte_t *pte,
				 pte_t value)
{
#ifdef CONFIG_PAGE_TABLE_CHECK
#if EXMAP_KERNEL < KERNEL_VERSION(6, 6, 0)
	page_table_check_pte_set(mm, address, pte, value);
#elif EXMAP_KERNEL < KERNEL_VERSION(7, 0, 0)
	page_table_check_ptes_set(mm, pte, value, 1);
#else
	page_table_check_ptes_set(mm, address, pte, value, 1);
#endif
#endif
	WRITE_ONCE(*pte, value);
}

/**
 * exmap_pte_clear - clear a PTE of the surface
 * @mm: the mm that owns the page table; its PTE lock is held
 * @address: the address that the entry maps
 * @pte: the entry
 * @old: its value
 *
 * Does not flush any TLB. A plain store is enough, because the hardware sets bits only in an entry
 * that is present at that moment, and exmap does not need the bits. See exmap_pte_set() for
 * CONFIG_PAGE_TABLE_CHECK.
 *
 * The store pairs with the walk of the hardware and with fast GUP, which take no lock. The flush in
 * exmap_shootdown() comes between it and any use of the page elsewhere.
 */
static inline void exmap_pte_clear(struct mm_struct *mm, unsigned long address, pte_t *pte,
				   pte_t old)
{
	WRITE_ONCE(*pte, EXMAP_PTE_NONE);
#ifdef CONFIG_PAGE_TABLE_CHECK
#if EXMAP_KERNEL >= KERNEL_VERSION(6, 6, 0) && EXMAP_KERNEL < KERNEL_VERSION(7, 0, 0)
	page_table_check_pte_clear(mm, old);
#else
	page_table_check_pte_clear(mm, address, old);
#endif
#endif
}

/**
 * exmap_invalidate_end - tell other MMUs that an invalidation has ended
 * @range: the range, unchanged since the start of the invalidation
 *
 * Before 6.6, IOMMUs had a callback of their own for the end.
 *
 * Lockdep is off during the call. It would otherwise see notifiers called from within a notifier
 * (exmap_reap()), and under an interface's lock, which our notifier takes. Both happen, but neither
 * can deadlock: our notifier recognizes these ranges by their owner and returns, and it ignores
 * ranges of other owners outside its surface.
 */
static inline void exmap_invalidate_end(struct mmu_notifier_range *range)
{
	lockdep_off();
#if EXMAP_KERNEL < KERNEL_VERSION(6, 6, 0)
	static_call(exmap_mmu_notifier_end)(range, false);
#else
	static_call(exmap_mmu_notifier_end)(range);
#endif
	lockdep_on();
}

/**
 * exmap_shrinker_register - register a shrinker that knows memory cgroups
 * @name: its name in debugfs
 * @count: count_objects of struct shrinker
 * @scan: scan_objects of struct shrinker
 * @batch: number of objects to ask for at a time
 * @lru: zeroed; becomes the list whose objects tell the kernel which memcgs to ask about
 *
 * If memory cgroups are disabled, the shrinker is only asked about the whole system. May sleep for
 * memory.
 *
 * Return: the shrinker, for exmap_shrinker_free(); or NULL if no memory is available.
 */
static inline struct shrinker *
exmap_shrinker_register(const char *name,
			unsigned long (*count)(struct shrinker *, struct shrink_control *),
			unsigned long (*scan)(struct shrinker *, struct shrink_control *),
			long batch, struct list_lru *lru)
{
	struct shrinker *shrinker;

#if EXMAP_KERNEL < KERNEL_VERSION(6, 7, 0)
	shrinker = kzalloc(sizeof(*shrinker), GFP_KERNEL);
	if (shrinker)
		shrinker->flags = SHRINKER_MEMCG_AWARE;
#else
	shrinker = shrinker_alloc(SHRINKER_MEMCG_AWARE, "%s", name);
#endif
	if (!shrinker)
		return NULL;
	shrinker->count_objects = count;
	shrinker->scan_objects = scan;
	shrinker->batch = batch;
	shrinker->seeks = DEFAULT_SEEKS;
	/* The kernel may call the shrinker as soon as it is registered. */
	if (list_lru_init_memcg(lru, shrinker))
		goto free;
#if EXMAP_KERNEL < KERNEL_VERSION(6, 7, 0)
	if (register_shrinker(shrinker, "%s", name)) {
		list_lru_destroy(lru);
		goto free;
	}
#ifdef CONFIG_MEMCG_KMEM
	lru->shrinker_id = shrinker->flags & SHRINKER_MEMCG_AWARE ? shrinker->id : -1;
#endif
#else
	shrinker_register(shrinker);
#endif
	return shrinker;

free:
#if EXMAP_KERNEL < KERNEL_VERSION(6, 7, 0)
	kfree(shrinker);
#else
	shrinker_free(shrinker);
#endif
	return NULL;
}

/**
 * exmap_shrinker_free - undo exmap_shrinker_register()
 * @shrinker: its return value
 * @lru: its list, which is empty
 *
 * Waits until no callback is running.
 */
static inline void exmap_shrinker_free(struct shrinker *shrinker, struct list_lru *lru)
{
#if EXMAP_KERNEL < KERNEL_VERSION(6, 7, 0)
	unregister_shrinker(shrinker);
	kfree(shrinker);
#else
	shrinker_free(shrinker);
#endif
	list_lru_destroy(lru);
}

/**
 * exmap_shrinker_is_global - whether a shrinker is asked about the whole system
 * @sc: what it is asked
 *
 * Return: false if it is asked about a memory cgroup.
 */
static inline bool exmap_shrinker_is_global(const struct shrink_control *sc)
{
	return mem_cgroup_disabled() || !sc->memcg || !parent_mem_cgroup(sc->memcg);
}

/**
 * exmap_reclaimed - tell reclaim that the current task has given pages back
 * @pages: number of pages
 *
 * Since 6.4, reclaim of a memory cgroup does not count them.
 */
static inline void exmap_reclaimed(unsigned long pages)
{
#if EXMAP_KERNEL < KERNEL_VERSION(6, 4, 0)
	if (current->reclaim_state)
		current->reclaim_state->reclaimed_slab += pages;
#else
	mm_account_reclaimed_pages(pages);
#endif
}

/* Before 6.8, list_lru_add() and list_lru_del() found the list of an object by themselves. */
#if EXMAP_KERNEL < KERNEL_VERSION(6, 8, 0)
#define list_lru_add_obj list_lru_add
#define list_lru_del_obj list_lru_del
#endif

/* The parameters of a function that list_lru_walk_one() calls for each @item. */
#if EXMAP_KERNEL < KERNEL_VERSION(6, 13, 0)
#define EXMAP_LRU_WALK_ARGS(item, arg) \
	struct list_head *item, struct list_lru_one *list, spinlock_t *lock, void *arg
#else
#define EXMAP_LRU_WALK_ARGS(item, arg) \
	struct list_head *item, struct list_lru_one *list, void *arg
#endif

/* These came with 6.2. Later releases of 6.1 have them, too. */
#ifndef ITER_SOURCE
#define ITER_SOURCE WRITE
#define ITER_DEST READ
#endif

/**
 * exmap_iter_address - start of the current segment of an iterator
 * @iter: an iterator over user memory
 *
 * Return: the user address.
 */
static inline unsigned long exmap_iter_address(const struct iov_iter *iter)
{
#if EXMAP_KERNEL < KERNEL_VERSION(6, 4, 0)
	if (iter_is_ubuf(iter))
		return (unsigned long)iter->ubuf + iter->iov_offset;
	return (unsigned long)iov_iter_iovec(iter).iov_base;
#else
	return (unsigned long)iter_iov_addr(iter);
#endif
}

/**
 * exmap_iter_len - length of the current segment of an iterator
 * @iter: an iterator over user memory
 *
 * Return: bytes.
 */
static inline size_t exmap_iter_len(const struct iov_iter *iter)
{
#if EXMAP_KERNEL < KERNEL_VERSION(6, 4, 0)
	return iter_is_ubuf(iter) ? iter->count : iov_iter_iovec(iter).iov_len;
#else
	return min(iter_iov_len(iter), iov_iter_count(iter));
#endif
}

/**
 * exmap_iocb_end_write - end a write for which exmap_iocb_write() returned -EIOCBQUEUED
 * @iocb: the write
 *
 * Called by the task or interrupt that completes the write. Allows the file system to be frozen
 * again. If the file is a block device, that is the file system of the device's node. The kernel
 * has kiocb_end_write() for this since 6.6.
 */
static inline void exmap_iocb_end_write(struct kiocb *iocb)
{
	struct super_block *sb = file_inode(iocb->ki_filp)->i_sb;

	__sb_writers_acquired(sb, SB_FREEZE_WRITE);
	sb_end_write(sb);
}

/**
 * exmap_iocb_write - vfs_iocb_iter_write() with the freeze protection it has since 6.8
 * @file: as for vfs_iocb_iter_write()
 * @iocb: as for vfs_iocb_iter_write()
 * @iter: as for vfs_iocb_iter_write()
 *
 * Keeps the file system from being frozen until it returns. If it returns -EIOCBQUEUED, the
 * protection stays until exmap_iocb_end_write().
 *
 * Return: as vfs_iocb_iter_write().
 */
static inline ssize_t exmap_iocb_write(struct file *file, struct kiocb *iocb,
				       struct iov_iter *iter)
{
	/* RHEL 9 does not have this change. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 8, 0)
	struct super_block *sb = file_inode(file)->i_sb;
	ssize_t ret;

	sb_start_write(sb);
	/* Tell lockdep that another task may end the write. */
	__sb_writers_release(sb, SB_FREEZE_WRITE);
	ret = vfs_iocb_iter_write(file, iocb, iter);
	if (ret != -EIOCBQUEUED)
		exmap_iocb_end_write(iocb);
	return ret;
#else
	return vfs_iocb_iter_write(file, iocb, iter);
#endif
}

/* All of a page. bvec_set_page() came with 6.3, and to 6.1 after 6.1.21. */
static inline void exmap_bvec_set(struct bio_vec *bvec, struct page *page)
{
	bvec->bv_page = page;
	bvec->bv_len = PAGE_SIZE;
	bvec->bv_offset = 0;
}

/* The flags that user space can set. The kernel defines this since 6.7. */
#ifndef IORING_URING_CMD_MASK
#define IORING_URING_CMD_MASK IORING_URING_CMD_FIXED
#endif

/* Until 6.17, the works of a workqueue stay on their CPU by default. */
#if EXMAP_KERNEL < KERNEL_VERSION(6, 17, 0)
#define WQ_PERCPU 0
#endif

/* Returns the command area of a submission queue entry. User space may be writing to it. */
static inline const struct iovec *__exmap_uring_iovec(const struct io_uring_cmd *cmd)
{
#if EXMAP_KERNEL < KERNEL_VERSION(6, 4, 0)
	return cmd->cmd;
#elif defined(io_uring_sqe_cmd)
	return io_uring_sqe_cmd(cmd->sqe, struct iovec);
#else
	return io_uring_sqe_cmd(cmd->sqe);
#endif
}

/* A bit in @flags between those that user space can set and those that io_uring uses internally. */
#define EXMAP_URING_KNOWN (1U << 24)

/**
 * exmap_uring_iovec - read the command area of a submission queue entry
 * @cmd: the command
 *
 * The first call for a command copies the area into @pdu, and later calls return the copy. io_uring
 * may issue a command again. From 6.10 to 6.13 it then still refers to the ring, which may hold the
 * next entry by then.
 *
 * Return: the area's contents when the command was issued for the first time.
 */
static inline struct iovec exmap_uring_iovec(struct io_uring_cmd *cmd)
{
	struct iovec *known = (struct iovec *)cmd->pdu;
	const struct iovec *where;

	BUILD_BUG_ON(sizeof(*known) > sizeof(cmd->pdu));
	if (!(cmd->flags & EXMAP_URING_KNOWN)) {
		where = __exmap_uring_iovec(cmd);
		/* Read once: user space may be writing to it. */
		known->iov_base = READ_ONCE(where->iov_base);
		known->iov_len = READ_ONCE(where->iov_len);
		cmd->flags |= EXMAP_URING_KNOWN;
	}
	return *known;
}

/**
 * exmap_uring_import - set up an iterator over a part of a command's registered buffer
 * @cmd: the command
 * @start: user address of the part
 * @len: length of the part in bytes
 * @direction: ITER_SOURCE or ITER_DEST
 * @iter: set to the part
 * @issue_flags: the flags that io_uring passed
 *
 * Return: 0, or -EFAULT if the part is not within the buffer.
 */
static inline int exmap_uring_import(struct io_uring_cmd *cmd, unsigned long start,
				     unsigned long len, int direction, struct iov_iter *iter,
				     unsigned int issue_flags)
{
#if EXMAP_KERNEL < KERNEL_VERSION(6, 15, 0)
	return io_uring_cmd_import_fixed(start, len, direction, iter, cmd);
#else
	return io_uring_cmd_import_fixed(start, len, direction, iter, cmd, issue_flags);
#endif
}

/**
 * exmap_uring_done - complete a command that returns, or has returned, -EIOCBQUEUED
 * @cmd: the command
 * @ret: its result
 * @issue_flags: the flags that io_uring passed; IO_URING_F_UNLOCKED in a worker
 *
 * Commands complete in this way because until 6.6 a positive return value counted as a failure and
 * broke links.
 */
static inline void exmap_uring_done(struct io_uring_cmd *cmd, long ret, unsigned int issue_flags)
{
#if EXMAP_KERNEL < KERNEL_VERSION(6, 1, 22) || \
	(EXMAP_KERNEL >= KERNEL_VERSION(6, 2, 0) && EXMAP_KERNEL < KERNEL_VERSION(6, 2, 9))
	io_uring_cmd_done(cmd, ret, 0);
#elif EXMAP_KERNEL < KERNEL_VERSION(6, 18, 0)
	io_uring_cmd_done(cmd, ret, 0, issue_flags);
#else
	io_uring_cmd_done(cmd, ret, issue_flags);
#endif
}

#endif /* EXMAP_COMPAT_H */
