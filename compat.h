/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Every difference between the kernels that exmap builds for. The other files
 * read as if only the newest existed.
 */
#ifndef EXMAP_COMPAT_H
#define EXMAP_COMPAT_H

#include <linux/fs.h>
#include <linux/lockdep.h>
#include <linux/mempolicy.h>
#include <linux/mm.h>
#include <linux/page_table_check.h>
#include <linux/percpu_counter.h>
#include <linux/shrinker.h>
#include <linux/slab.h>
#include <linux/uio.h>
#include <linux/version.h>
#include <linux/workqueue.h>
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 8, 0)
#include <linux/io_uring.h>
#else
#include <linux/io_uring/cmd.h>
#endif

#include "ksyms.h"

/* To try another kernel: make KCFLAGS=-DEXMAP_ANY_KERNEL */
#if !defined(EXMAP_ANY_KERNEL) && \
	(LINUX_VERSION_CODE < KERNEL_VERSION(6, 1, 0) || \
	 LINUX_VERSION_CODE >= KERNEL_VERSION(7, 4, 0))
#error "exmap is made for Linux 6.1 to 7.3; make KCFLAGS=-DEXMAP_ANY_KERNEL builds it regardless"
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
static inline void vm_flags_set(struct vm_area_struct *vma, vm_flags_t flags)
{
	mmap_assert_write_locked(vma->vm_mm);
	vma->vm_flags |= flags;
}
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 4, 0)
/* A VMA has no lock of its own there. */
static inline void vma_start_write(struct vm_area_struct *vma)
{
	mmap_assert_write_locked(vma->vm_mm);
}
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 11, 0)
/* The lock of the page table that an entry is in. */
static inline spinlock_t *ptep_lockptr(struct mm_struct *mm, pte_t *pte)
{
#if !USE_SPLIT_PTE_PTLOCKS
	return &mm->page_table_lock;
#elif LINUX_VERSION_CODE < KERNEL_VERSION(6, 6, 0)
	return ptlock_ptr(virt_to_page(pte));
#else
	return ptlock_ptr(virt_to_ptdesc(pte));
#endif
}
#endif

/*
 * EXMAP_VMA_POLICY keeps NUMA balancing away from a VMA, which would make its PTEs PROT_NONE
 * and cause a page fault for each. vma_policy_mof() asks this policy, and never the one that
 * mbind() has set. No policy at all would not do: since 6.7 the task's policy counts instead.
 * The reference count is not used, because MPOL_F_SHARED is not set.
 */
#ifdef CONFIG_NUMA
static inline struct mempolicy *exmap_vma_policy(struct vm_area_struct *vma, unsigned long address
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 7, 0)
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
#else
#define EXMAP_VMA_POLICY
#endif

/**
 * exmap_rss_add - count pages in or out of a process's resident set
 * @mm: whose
 * @pages: how many; negative to take them out
 *
 * Keeps the most there ever were (VmHWM), as generic code does before it takes any out.
 * add_mm_counter() calls a tracepoint that is not exported.
 */
static inline void exmap_rss_add(struct mm_struct *mm, long pages)
{
	if (pages < 0)
		update_hiwater_rss(mm);
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 2, 0)
	atomic_long_add(pages, &mm->rss_stat.count[MM_SHMEMPAGES]);
#else
	percpu_counter_add(&mm->rss_stat[MM_SHMEMPAGES], pages);
#endif
}

/* All flags of a page at once. */
static inline unsigned long exmap_page_flags(const struct page *page)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 18, 0)
	return READ_ONCE(page->flags);
#else
	return READ_ONCE(page->flags.f);
#endif
}

/**
 * exmap_pte_set - write a PTE of the surface
 * @mm: whose page table; its PTE lock is held
 * @address: what the entry is for
 * @pte: the entry, which is not present
 * @value: what it becomes
 *
 * set_pte_at() without the detour by way of a hypervisor. A kernel with
 * CONFIG_PAGE_TABLE_CHECK counts the entries of each page, and stops where one goes
 * that it has not seen come: so it is told, as set_pte_at() would.
 */
static inline void exmap_pte_set(struct mm_struct *mm, unsigned long address, pte_t *pte,
				 pte_t value)
{
#ifdef CONFIG_PAGE_TABLE_CHECK
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 6, 0)
	page_table_check_pte_set(mm, address, pte, value);
#elif LINUX_VERSION_CODE < KERNEL_VERSION(7, 0, 0)
	page_table_check_ptes_set(mm, pte, value, 1);
#else
	page_table_check_ptes_set(mm, address, pte, value, 1);
#endif
#endif
	WRITE_ONCE(*pte, value);
}

/**
 * exmap_pte_clear - make a PTE of the surface none
 * @mm: whose page table; its PTE lock is held
 * @address: what the entry is for
 * @pte: the entry
 * @old: what it is
 *
 * The hardware sets bits only in an entry that is present at that moment, so a plain
 * store will do. See exmap_pte_set().
 */
static inline void exmap_pte_clear(struct mm_struct *mm, unsigned long address, pte_t *pte,
				   pte_t old)
{
	WRITE_ONCE(*pte, native_make_pte(0));
#ifdef CONFIG_PAGE_TABLE_CHECK
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 6, 0) && LINUX_VERSION_CODE < KERNEL_VERSION(7, 0, 0)
	page_table_check_pte_clear(mm, old);
#else
	page_table_check_pte_clear(mm, address, old);
#endif
#endif
}

/**
 * exmap_invalidate_end - tell other MMUs that an invalidation is over
 * @range: as it was at its start
 *
 * Until 6.6 the end of one had its own callback for IOMMUs.
 *
 * It makes lockdep believe that notifiers are called while a notifier is at work
 * (exmap_reap()), and under a lock that they take (an interface's). Both are so, but
 * not ours: it knows its own ranges by their owner, and leaves those of others that
 * are not on its surface alone.
 */
static inline void exmap_invalidate_end(struct mmu_notifier_range *range)
{
	lockdep_off();
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 6, 0)
	static_call(exmap_mmu_notifier_end)(range, false);
#else
	static_call(exmap_mmu_notifier_end)(range);
#endif
	lockdep_on();
}

/**
 * exmap_shrinker_register - have the kernel ask for objects when it is short of memory
 * @name: what it is called in debugfs
 * @count: as for struct shrinker
 * @scan: as for struct shrinker
 * @batch: ask for so many at a time
 *
 * Return: what exmap_shrinker_free() takes, or NULL where there is no memory.
 */
static inline struct shrinker *
exmap_shrinker_register(const char *name,
			unsigned long (*count)(struct shrinker *, struct shrink_control *),
			unsigned long (*scan)(struct shrinker *, struct shrink_control *),
			long batch)
{
	struct shrinker *shrinker;

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 7, 0)
	shrinker = kzalloc(sizeof(*shrinker), GFP_KERNEL);
#else
	shrinker = shrinker_alloc(0, "%s", name);
#endif
	if (!shrinker)
		return NULL;
	shrinker->count_objects = count;
	shrinker->scan_objects = scan;
	shrinker->batch = batch;
	shrinker->seeks = DEFAULT_SEEKS;
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 7, 0)
	if (register_shrinker(shrinker, "%s", name)) {
		kfree(shrinker);
		return NULL;
	}
#else
	shrinker_register(shrinker);
#endif
	return shrinker;
}

/**
 * exmap_shrinker_free - undo exmap_shrinker_register()
 * @shrinker: what that returned
 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 7, 0)
static inline void exmap_shrinker_free(struct shrinker *shrinker)
{
	unregister_shrinker(shrinker);
	kfree(shrinker);
}
#else
#define exmap_shrinker_free shrinker_free
#endif

/* Came with 6.2, and to later ones of 6.1. */
#ifndef ITER_SOURCE
#define ITER_SOURCE WRITE
#define ITER_DEST READ
#endif

/**
 * exmap_iter_address - where the next piece of an iterator is
 * @iter: over user memory
 *
 * Return: the address.
 */
static inline unsigned long exmap_iter_address(const struct iov_iter *iter)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 4, 0)
	if (iter_is_ubuf(iter))
		return (unsigned long)iter->ubuf + iter->iov_offset;
	return (unsigned long)iov_iter_iovec(iter).iov_base;
#else
	return (unsigned long)iter_iov_addr(iter);
#endif
}

/**
 * exmap_iter_len - how long the next piece of an iterator is
 * @iter: over user memory
 *
 * Return: bytes.
 */
static inline size_t exmap_iter_len(const struct iov_iter *iter)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 4, 0)
	return iter_is_ubuf(iter) ? iter->count : iov_iter_iovec(iter).iov_len;
#else
	return min(iter_iov_len(iter), iov_iter_count(iter));
#endif
}

/**
 * exmap_iocb_end_write - the end of a write that was queued
 * @iocb: the write
 *
 * Whoever completes it lets the file system be frozen again: that of the device's node,
 * where the file is a device. (kiocb_end_write() came with 6.6.)
 */
static inline void exmap_iocb_end_write(struct kiocb *iocb)
{
	struct super_block *sb = file_inode(iocb->ki_filp)->i_sb;

	__sb_writers_acquired(sb, SB_FREEZE_WRITE);
	sb_end_write(sb);
}

/**
 * exmap_iocb_write - vfs_iocb_iter_write() as it is since 6.8
 * @file: as there
 * @iocb: as there
 * @iter: as there
 *
 * It keeps the file system from being frozen, until it returns, or where it returns
 * -EIOCBQUEUED until the end.
 *
 * Return: as there.
 */
static inline ssize_t exmap_iocb_write(struct file *file, struct kiocb *iocb,
				       struct iov_iter *iter)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 8, 0)
	struct super_block *sb = file_inode(file)->i_sb;
	ssize_t ret;

	sb_start_write(sb);
	/* It may be another task that ends it. */
	__sb_writers_release(sb, SB_FREEZE_WRITE);
	ret = vfs_iocb_iter_write(file, iocb, iter);
	if (ret != -EIOCBQUEUED)
		exmap_iocb_end_write(iocb);
	return ret;
#else
	return vfs_iocb_iter_write(file, iocb, iter);
#endif
}

/* Which flags user space can set: since 6.7. */
#ifndef IORING_URING_CMD_MASK
#define IORING_URING_CMD_MASK IORING_URING_CMD_FIXED
#endif

/* Work of a queue stays on its CPU: by default until 6.17. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 17, 0)
#define WQ_PERCPU 0
#endif

/* The command area of a submission queue entry. Where it is user space can write to it. */
static inline const struct iovec *__exmap_uring_iovec(const struct io_uring_cmd *cmd)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 4, 0)
	return cmd->cmd;
#elif defined(io_uring_sqe_cmd)
	return io_uring_sqe_cmd(cmd->sqe, struct iovec);
#else
	return io_uring_sqe_cmd(cmd->sqe);
#endif
}

/* In @flags, between what user space can set and what io_uring has for itself. */
#define EXMAP_URING_KNOWN (1U << 24)

/**
 * exmap_uring_iovec - what the command area of a submission queue entry says
 * @cmd: the command
 *
 * Return: what it said when the command came for the first time. Where it comes again,
 * that is no more to be had from the entry: from 6.10 to 6.13 io_uring still looks at the
 * ring, where the next one may be by then.
 */
static inline struct iovec exmap_uring_iovec(struct io_uring_cmd *cmd)
{
	struct iovec *known = (struct iovec *)cmd->pdu;
	const struct iovec *where;

	BUILD_BUG_ON(sizeof(*known) > sizeof(cmd->pdu));
	if (!(cmd->flags & EXMAP_URING_KNOWN)) {
		where = __exmap_uring_iovec(cmd);
		known->iov_base = READ_ONCE(where->iov_base);
		known->iov_len = READ_ONCE(where->iov_len);
		cmd->flags |= EXMAP_URING_KNOWN;
	}
	return *known;
}

/**
 * exmap_uring_import - have an iterator over a part of a command's registered buffer
 * @cmd: the command
 * @start: user address of that part
 * @len: bytes
 * @direction: ITER_SOURCE or ITER_DEST
 * @iter: set to it
 * @issue_flags: what io_uring said
 *
 * Return: 0, or -EFAULT where that is not in the buffer.
 */
static inline int exmap_uring_import(struct io_uring_cmd *cmd, unsigned long start,
				     unsigned long len, int direction, struct iov_iter *iter,
				     unsigned int issue_flags)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 15, 0)
	return io_uring_cmd_import_fixed(start, len, direction, iter, cmd);
#else
	return io_uring_cmd_import_fixed(start, len, direction, iter, cmd, issue_flags);
#endif
}

/**
 * exmap_uring_done - the end of a command that returns, or has returned, -EIOCBQUEUED
 * @cmd: the command
 * @ret: its result
 * @issue_flags: what io_uring said; IO_URING_F_UNLOCKED in a worker
 *
 * (Until 6.6 a positive result that is returned at once would count as a failure and
 * break links.)
 */
static inline void exmap_uring_done(struct io_uring_cmd *cmd, long ret, unsigned int issue_flags)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 18, 0)
	io_uring_cmd_done(cmd, ret, 0, issue_flags);
#else
	io_uring_cmd_done(cmd, ret, issue_flags);
#endif
}

#endif /* EXMAP_COMPAT_H */
