// SPDX-License-Identifier: GPL-2.0
/*
 * Charges for the memory of an exmap, to the user's RLIMIT_MEMLOCK and the process's VmPin. Memory
 * that is allocated now also counts in the process's resident set, where the OOM killer looks.
 * docs/security.md lists what is charged to whom.
 *
 * The counters of a user and of an mm are the kernel's. Each atomic access pairs with those of
 * others who charge the same user or mm, and is not ordered with anything else.
 */
#include <linux/cred.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/sched/signal.h>
#include <linux/sched/user.h>

#include "compat.h"
#include "exmap.h"
#include "pool.h"

static bool memlock = true;
module_param(memlock, bool, 0644);
MODULE_PARM_DESC(memlock, "charge pools and interfaces against RLIMIT_MEMLOCK (default: on)");

/*
 * Add @pages to what a user has locked. Returns false if the sum would exceed @limit, in pages. The
 * cmpxchg() races with all others who charge the same user, such as io_uring.
 */
static bool exmap_charge_locked(atomic_long_t *locked, unsigned long pages, unsigned long limit)
{
	long old = atomic_long_read(locked);

	do {
		if (pages > limit || old > limit - pages)
			return false;
	} while (!atomic_long_try_cmpxchg(locked, &old, old + pages));
	return true;
}

/**
 * exmap_charge_limit - look up the caller's limit
 * @limit: set to it, in pages; or to ULONG_MAX if the caller has none
 *
 * Does not sleep.
 *
 * Return: 0; -EPERM if RLIMIT_MEMLOCK is 0.
 */
int exmap_charge_limit(unsigned long *limit)
{
	*limit = ULONG_MAX;
	/* Pairs with the module parameter in sysfs, which root may change at any time. */
	if (!READ_ONCE(memlock))
		return 0;
	if (!can_do_mlock())
		return -EPERM;
	if (!capable(CAP_IPC_LOCK))
		*limit = rlimit(RLIMIT_MEMLOCK) >> PAGE_SHIFT;
	return 0;
}

/**
 * exmap_charge_raise - charge more pages, up to a limit
 * @mm: the caller's mm
 * @pages: number of pages
 * @limit: from exmap_charge_limit(). If it is not ULONG_MAX and @charge has no user yet, what is
 *	charged so far counts against it, too
 * @charge: the caller serializes changes to it
 *
 * Neither sleeps nor allocates.
 *
 * Return: 0; or -ENOMEM if the user would exceed the limit.
 */
int exmap_charge_raise(struct mm_struct *mm, unsigned long pages, unsigned long limit,
		       struct exmap_charge *charge)
{
	if (charge->cred) {
		if (!exmap_charge_locked(&charge->cred->user->locked_vm, pages, limit))
			return -ENOMEM;
	} else if (limit != ULONG_MAX) {
		if (!exmap_charge_locked(&current_user()->locked_vm, charge->pages + pages, limit))
			return -ENOMEM;
		charge->cred = get_current_cred();
	}
	atomic64_add(pages, &mm->pinned_vm);
	charge->pages += pages;
	return 0;
}

/**
 * exmap_charge_pages - charge pages that may be taken later, as mlock(2) and io_uring do
 * @mm: the caller's mm
 * @pages: number of pages; not 0
 * @charge: has no charge yet; set to what exmap_uncharge() needs
 *
 * Neither sleeps nor allocates.
 *
 * Return: 0; -ENOMEM if the user would exceed RLIMIT_MEMLOCK; -EPERM if that limit is 0.
 */
int exmap_charge_pages(struct mm_struct *mm, unsigned long pages, struct exmap_charge *charge)
{
	unsigned long limit;

	return exmap_charge_limit(&limit) ?: exmap_charge_raise(mm, pages, limit, charge);
}

/**
 * exmap_uncharge - undo exmap_charge_pages(), if it was called and succeeded
 * @mm: as for exmap_charge_pages(); it need not be the caller's any more
 * @charge: as for exmap_charge_pages(). It tells what was charged, even if the limit, the
 *	capability or the module parameter has changed since
 */
void exmap_uncharge(struct mm_struct *mm, struct exmap_charge *charge)
{
	atomic64_sub(charge->pages, &mm->pinned_vm);
	if (charge->cred) {
		atomic_long_sub(charge->pages, &charge->cred->user->locked_vm);
		put_cred(charge->cred);
	}
	*charge = (struct exmap_charge){ };
}

/**
 * exmap_charge_more - charge more pages to the same user
 * @mm: as for exmap_charge_pages()
 * @pages: number of pages
 * @charge: a charge made with exmap_charge_pages(); the caller serializes changes to it
 *
 * Neither sleeps nor allocates.
 *
 * Return: 0; -ENOMEM if the user would exceed RLIMIT_MEMLOCK, or if the caller is another process,
 * which has a limit of its own.
 */
int exmap_charge_more(struct mm_struct *mm, unsigned long pages, struct exmap_charge *charge)
{
	unsigned long limit = rlimit(RLIMIT_MEMLOCK) >> PAGE_SHIFT;

	if (charge->cred) {
		if (current->mm != mm ||
		    !exmap_charge_locked(&charge->cred->user->locked_vm, pages, limit))
			return -ENOMEM;
	}
	atomic64_add(pages, &mm->pinned_vm);
	charge->pages += pages;
	return 0;
}

/**
 * exmap_charge_less - undo a part of exmap_charge_pages() or exmap_charge_more()
 * @mm: as for exmap_charge_pages()
 * @pages: number of pages, at most what is charged
 * @charge: as for exmap_charge_more()
 *
 * Neither sleeps nor allocates.
 */
void exmap_charge_less(struct mm_struct *mm, unsigned long pages, struct exmap_charge *charge)
{
	if (charge->cred)
		atomic_long_sub(pages, &charge->cred->user->locked_vm);
	exmap_charge_leave(mm, charge, pages);
}

/**
 * exmap_charge_leave - hand a part of a charge over to somebody else
 * @mm: as for exmap_charge_pages()
 * @charge: as for exmap_charge_more()
 * @pages: number of pages, at most what is charged
 *
 * The pages stay charged to the user of @charge->cred, and the new owner uncharges them. They no
 * longer count in the process's VmPin. Neither sleeps nor allocates.
 */
void exmap_charge_leave(struct mm_struct *mm, struct exmap_charge *charge, unsigned long pages)
{
	charge->pages -= pages;
	atomic64_sub(pages, &mm->pinned_vm);
}

/**
 * exmap_charge_resident - charge pages that are allocated for as long as they are charged
 * @mm: as for exmap_charge_pages()
 * @pages: as for exmap_charge_pages()
 * @charge: as for exmap_charge_pages()
 *
 * Also adds the pages to the resident set of the process. Neither sleeps nor allocates.
 *
 * Return: as exmap_charge_pages().
 */
int exmap_charge_resident(struct mm_struct *mm, unsigned long pages, struct exmap_charge *charge)
{
	int err = exmap_charge_pages(mm, pages, charge);

	if (!err)
		exmap_rss_add(mm, pages);
	return err;
}

/**
 * exmap_uncharge_resident - undo exmap_charge_resident(), if it was called and succeeded
 * @mm: as for exmap_uncharge()
 * @charge: as for exmap_uncharge()
 */
void exmap_uncharge_resident(struct mm_struct *mm, struct exmap_charge *charge)
{
	if (charge->pages)
		exmap_rss_add(mm, -(long)charge->pages);
	exmap_uncharge(mm, charge);
}
