/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Functions that the kernel has but does not export, as static calls. exmap_ksyms_resolve() sets
 * their targets.
 */
#ifndef EXMAP_KSYMS_H
#define EXMAP_KSYMS_H

#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/mm_types.h>
#include <linux/mmu_notifier.h>
#include <linux/static_call.h>

#include "arch.h"

/* The static calls, each with the function that it calls. */
#define EXMAP_KSYMS(X)							\
	EXMAP_ARCH_KSYMS(X)						\
	X(exmap_vfs_read, vfs_read)					\
	X(exmap_tlb_gather_mmu, tlb_gather_mmu)				\
	X(exmap_tlb_finish_mmu, tlb_finish_mmu)				\
	X(exmap_free_pgd_range, free_pgd_range)				\
	X(exmap_mmu_notifier_start, __mmu_notifier_invalidate_range_start) \
	X(exmap_mmu_notifier_end, __mmu_notifier_invalidate_range_end)

#define EXMAP_KSYM_DECLARE(call, function) DECLARE_STATIC_CALL(call, function);
EXMAP_KSYMS(EXMAP_KSYM_DECLARE)

int exmap_ksyms_resolve(void);

#endif /* EXMAP_KSYMS_H */
