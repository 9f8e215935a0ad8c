/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Every difference between the kernels that exmap builds for. The other files
 * read as if only the newest existed.
 */
#ifndef EXMAP_COMPAT_H
#define EXMAP_COMPAT_H

#include <linux/mm.h>
#include <linux/percpu_counter.h>
#include <linux/version.h>

/* To try another kernel: make KCFLAGS=-DEXMAP_ANY_KERNEL */
#if (LINUX_VERSION_CODE < KERNEL_VERSION(6, 1, 0) || \
     LINUX_VERSION_CODE >= KERNEL_VERSION(7, 4, 0)) && !defined(EXMAP_ANY_KERNEL)
#error "exmap is made for Linux 6.1 to 7.3; make KCFLAGS=-DEXMAP_ANY_KERNEL builds it regardless"
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
static inline void vm_flags_set(struct vm_area_struct *vma, vm_flags_t flags)
{
	mmap_assert_write_locked(vma->vm_mm);
	vma->vm_flags |= flags;
}
#endif

/**
 * exmap_rss_add - count pages in or out of a process's resident set
 * @mm: whose
 * @pages: how many; negative to take them out
 *
 * add_mm_counter() calls a tracepoint that is not exported.
 */
static inline void exmap_rss_add(struct mm_struct *mm, long pages)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 2, 0)
	atomic_long_add(pages, &mm->rss_stat.count[MM_SHMEMPAGES]);
#else
	percpu_counter_add(&mm->rss_stat[MM_SHMEMPAGES], pages);
#endif
}

#endif /* EXMAP_COMPAT_H */
