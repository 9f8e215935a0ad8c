// SPDX-License-Identifier: GPL-2.0
/*
 * The calls: ioctl, and fadvise for one range. Checks their arguments, and passes them on.
 */
#include <linux/file.h>
#include <linux/nospec.h>
#include <linux/uaccess.h>

#include "entry.h"
#include "exmap.h"
#include "file.h"
#include "pool.h"
#include "trace.h"

/* The most pages that SETUP accepts: as many as an address space has. */
#define EXMAP_MAX_PAGES (TASK_SIZE_MAX >> PAGE_SHIFT)

/* SETUP */

/*
 * A reference to the backing file, NULL if @fd is -1, or an error. Pages are found by their offset,
 * so it must be a regular file or a block device.
 */
static struct file *exmap_get_backing(int fd)
{
	struct inode *inode;
	struct file *file;
	int err = 0;

	if (fd == -1)
		return NULL;
	file = fget(fd);
	if (!file)
		return ERR_PTR(-EBADF);
	inode = file_inode(file);
	if (S_ISDIR(inode->i_mode))
		err = -EISDIR;
	else if (S_ISFIFO(inode->i_mode) || S_ISSOCK(inode->i_mode))
		err = -ESPIPE;
	else if (!(file->f_mode & FMODE_READ))
		err = -EBADF;
	else if (!S_ISREG(inode->i_mode) && !S_ISBLK(inode->i_mode))
		err = -EINVAL;
	else if (!(file->f_mode & FMODE_PREAD))
		err = -ESPIPE;
	else if (!(file->f_mode & FMODE_CAN_READ))
		err = -EINVAL;
	if (!err)
		return file;
	fput(file);
	return ERR_PTR(err);
}

/*
 * The flags of SETUP. The published module ignores this word, so programs for it leave the word
 * uninitialized. A word with an unknown bit comes from such a program, and counts as 0.
 */
static u64 exmap_setup_flags(u64 flags)
{
	return flags & ~(u64)EXMAP_PAGEFAULT_ALLOC ? 0 : flags;
}

static noinline int exmap_call_setup(struct exmap *exmap, const void __user *arg)
{
	struct exmap_ioctl_setup setup;
	struct file *file;
	int err;

	if (copy_from_user(&setup, arg, sizeof(setup)))
		return -EFAULT;
	if (setup.max_interfaces < 1 || setup.max_interfaces > EXMAP_MAX_INTERFACES ||
	    setup.buffer_size < 1 || setup.buffer_size > EXMAP_MAX_PAGES)
		return -EINVAL;
	setup.flags = exmap_setup_flags(setup.flags);
	file = exmap_get_backing(setup.fd);
	if (IS_ERR(file))
		return PTR_ERR(file);
	err = -EINTR;
	if (mutex_lock_killable(&exmap->lock))
		goto put;
	err = exmap_setup(exmap, &setup, file);
	mutex_unlock(&exmap->lock);
put:
	trace_exmap_setup(exmap, setup.max_interfaces, setup.buffer_size, setup.flags, err);
	if (file)
		fput(file);
	return err;
}

/* ACTION, and the same for one range by fadvise */

/* Whether the opcode exists, and its flags and number of entries are allowed. */
static bool exmap_action_known(const struct exmap_action_params *params)
{
	u64 flags = EXMAP_ALLOC_PROBE;

	if (unlikely(params->opcode > EXMAP_OP_WRITE))
		return params->opcode == EXMAP_OP_FLUSH && !params->flags && !params->iov_len;
	if (params->opcode == EXMAP_OP_FREE)
		flags |= EXMAP_FREE_DEFER;
	return !(params->flags & ~flags) && params->iov_len <= EXMAP_USER_INTERFACE_PAGES;
}

/* Carry out @nr entries, at least one, of which exmap_action_known() knows the opcode. */
static __always_inline long exmap_action(struct exmap *exmap, struct exmap_interface *interface,
					 struct exmap_iov *iov, unsigned int nr,
					 unsigned int opcode, u64 flags)
{
	const bool probe = flags & EXMAP_ALLOC_PROBE;

	switch (opcode) {
	case EXMAP_OP_ALLOC:
		return exmap_alloc(exmap, interface, iov, nr, probe);
	case EXMAP_OP_FREE:
		return exmap_free(exmap, interface, iov, nr, flags & EXMAP_FREE_DEFER);
	default:
		if (!exmap->file)
			return -EOPNOTSUPP;
		return exmap_io_action(exmap, interface, iov, nr, opcode, probe);
	}
}

/* copy_from_user() of two words, without a call. Fault injection does not reach it. */
static __always_inline bool exmap_action_get(struct exmap_action_params *params,
					     const u64 __user *arg)
{
	u64 word[sizeof(*params) / sizeof(u64)];

	BUILD_BUG_ON(sizeof(*params) != 2 * sizeof(u64));
	might_fault();
	if (!user_access_begin(arg, sizeof(word)))
		return false;
	unsafe_get_user(word[0], &arg[0], fault);
	unsafe_get_user(word[1], &arg[1], fault);
	user_access_end();
	memcpy(params, word, sizeof(word));
	return true;

fault:
	user_access_end();
	return false;
}

static noinline long exmap_call_action(struct exmap *exmap, const void __user *arg)
{
	struct exmap_action_params params;
	struct exmap_interface *interface;

	if (!exmap_action_get(&params, arg))
		return -EFAULT;
	if (!exmap_ready(exmap))
		return -EBADF;
	if (!exmap_action_known(&params))
		return -EINVAL;
	interface = exmap_get_interface(exmap, params.interface);
	if (IS_ERR(interface))
		return PTR_ERR(interface);
	if (!params.iov_len)
		return params.opcode == EXMAP_OP_FLUSH ? exmap_flush(exmap, interface) : 0;
	return exmap_action(exmap, interface, interface->user->iov, params.iov_len,
			    params.opcode, params.flags);
}

/* exmap_fadvise() of what takes an entry: several pages, READ, WRITE, flags; or invalid. */
static noinline int exmap_fadvise_range(struct exmap *exmap, loff_t offset, loff_t len, int advice)
{
	const struct exmap_action_params params = {
		.iov_len = 1,
		.opcode = advice >> EXMAP_ADVICE_OPCODE_SHIFT & EXMAP_ADVICE_OPCODE_MASK,
		.flags = (advice & ~EXMAP_ADVICE_BASE) >> EXMAP_ADVICE_FLAGS_SHIFT,
	};
	struct exmap_interface *interface;
	struct exmap_iov iov;
	long ret;

	/* No bit of EXMAP_ADVICE_BASE: that is advice of POSIX, or of madvise(MADV_WILLNEED). */
	if (!(advice & EXMAP_ADVICE_BASE) || advice < 0 || !exmap_action_known(&params))
		return -EINVAL;
	if ((offset | len) & ~PAGE_MASK || (offset | len) < 0 || !len ||
	    len >> PAGE_SHIFT >= EXMAP_PAGE_MAX_PAGES)
		return -EINVAL;
	/* Last, so that an invalid call makes no interface. */
	interface = exmap_get_interface(exmap, advice & (EXMAP_MAX_INTERFACES - 1));
	if (IS_ERR(interface))
		return PTR_ERR(interface);
	iov.value = (u64)offset >> PAGE_SHIFT |
		    (u64)len << (64 - EXMAP_PAGE_LEN_BITS - PAGE_SHIFT);
	ret = exmap_action(exmap, interface, &iov, 1, params.opcode, params.flags);
	return exmap_one_result(&iov, ret);
}

/**
 * exmap_fadvise - fadvise64(2): a call on one range, with arguments and result in registers
 * @file: an open file of the device
 * @offset: where the range begins on the surface, in bytes
 * @len: its length in bytes
 * @advice: interface, opcode and flags, as EXMAP_ADVICE() packs them
 *
 * May sleep; no lock is held.
 *
 * Return: the number of pages done; or an error, if any page failed. exmap(4) lists the errors.
 */
int exmap_fadvise(struct file *file, loff_t offset, loff_t len, int advice)
{
	const int what = advice & ~(EXMAP_MAX_INTERFACES - 1);
	struct exmap_interface *interface;
	struct exmap *exmap;

	if (!exmap_is_ours(file))
		return -EPERM;
	exmap = exmap_of_any(file);
	if (!exmap_ready(exmap))
		return -EBADF;
	/* The short way is for interfaces that exist: the long one makes them, after all checks. */
	interface = exmap_nth_interface(exmap, advice & (EXMAP_MAX_INTERFACES - 1));
	if (interface && exmap_interface_used(interface) &&
	    len == PAGE_SIZE && !(offset & ~(LLONG_MAX & PAGE_MASK))) {
		if (what == EXMAP_ADVICE(EXMAP_OP_ALLOC, 0, 0))
			return exmap_alloc_page(exmap, interface, offset >> PAGE_SHIFT);
		if (what == EXMAP_ADVICE(EXMAP_OP_FREE, 0, 0))
			return exmap_free_page(exmap, interface, offset >> PAGE_SHIFT);
		if (what == EXMAP_ADVICE(EXMAP_OP_READ, 0, 0) && exmap->file)
			return exmap_io_read_page(exmap, interface, offset >> PAGE_SHIFT);
		if (what == EXMAP_ADVICE(EXMAP_OP_FREE, 0, EXMAP_FREE_DEFER))
			return exmap_defer_page(exmap, interface, offset >> PAGE_SHIFT);
	}
	return exmap_fadvise_range(exmap, offset, len, advice);
}

/* STATS, RESIZE, TRIM, CLONE, QUARANTINE */

static noinline long exmap_call_stats(struct exmap *exmap, void __user *arg)
{
	struct exmap_ioctl_stats stats = { };

	if (!exmap_ready(exmap))
		return -EBADF;
	stats.flags = exmap->flags;
	/* Pairs with exmap_pool_resize(). */
	stats.buffer_size = READ_ONCE(exmap->pool.ceiling);
	stats.alloc_count = exmap_mapped(exmap);
	stats.max_interfaces = exmap->max_interfaces;
	return copy_to_user(arg, &stats, sizeof(stats)) ? -EFAULT : 0;
}

static noinline long exmap_call_resize(struct exmap *exmap, struct exmap_ioctl_resize __user *arg)
{
	struct exmap_ioctl_resize resize;
	int err;

	if (copy_from_user(&resize, arg, sizeof(resize)))
		return -EFAULT;
	if (!exmap_ready(exmap))
		return -EBADF;
	if (resize.buffer_size < 1 || resize.buffer_size > EXMAP_MAX_PAGES)
		return -EINVAL;
	/* Find out first whether there is room for the answer. */
	if (put_user(resize.surplus, &arg->surplus))
		return -EFAULT;
	err = exmap_resize(exmap, resize.buffer_size);
	if (err)
		return err;
	/*
	 * If another thread takes the memory away meanwhile, that is too late for an error, which
	 * would say that nothing has changed. Pairs with exmap_pool_leave().
	 */
	(void)put_user(READ_ONCE(exmap->surplus), &arg->surplus);
	return 0;
}

/* EXMAP_TRIM_TABLES for a range of the surface. @pages is 0 for the rest of the surface. */
static long exmap_trim_range(struct exmap *exmap, u64 page, u64 pages)
{
	u64 all;

	if (!exmap_has_surface(exmap))
		return -EPROTO;
	all = (exmap->end - exmap->start) >> PAGE_SHIFT;
	if (page > all || pages > all - page)
		return -EFAULT;
	page = array_index_nospec(page, all + 1);
	if (!pages)
		pages = all - page;
	return exmap_trim_tables(exmap, exmap->start + (page << PAGE_SHIFT),
				 exmap->start + ((page + pages) << PAGE_SHIFT));
}

static noinline long exmap_call_trim(struct exmap *exmap, struct exmap_ioctl_trim __user *arg)
{
	struct exmap_ioctl_trim trim;
	long done;

	if (copy_from_user(&trim, arg, sizeof(trim)))
		return -EFAULT;
	if (!exmap_ready(exmap))
		return -EBADF;
	if (trim.flags == EXMAP_TRIM_TABLES)
		done = exmap_trim_range(exmap, trim.page, trim.pages);
	else if (!trim.flags && !trim.page)
		done = exmap_pool_give(exmap, trim.pages ?: ULONG_MAX);
	else
		done = -EINVAL;
	return done < 0 ? done : put_user(done, &arg->done);
}

/* A reference to the exmap of another open file of this process, or an error. */
static struct exmap *exmap_get_other(const struct file *mine, int fd)
{
	struct exmap_file *owner;
	struct exmap *exmap;
	struct file *file;

	file = fget(fd);
	if (!file)
		return ERR_PTR(-EBADF);
	exmap = ERR_PTR(-EINVAL);
	if (file->f_op != mine->f_op)
		goto put;
	owner = file->private_data;
	exmap = ERR_PTR(-EPERM);
	if (owner->mm != current->mm)
		goto put;
	exmap = exmap_of_any(file);
	/* Pairs with exmap_put(). The file has a reference, and we have one to the file. */
	refcount_inc(&exmap->refs);
put:
	fput(file);
	return exmap;
}

/*
 * Make a file that has not been used yet work on another file's exmap. Its own exmap becomes an
 * orphan, which refuses SETUP, mmap and CLONE. If two files clone each other at the same moment,
 * both may end up with an orphan: that is useless, but safe.
 */
static noinline long exmap_call_clone(struct file *file, struct exmap *mine, int fd)
{
	struct exmap *other = exmap_get_other(file, fd);
	struct exmap_file *owner = file->private_data;
	long err;

	if (IS_ERR(other))
		return PTR_ERR(other);
	err = -EINVAL;
	if (other == mine)
		goto put;

	err = -EINTR;
	if (mutex_lock_killable(&mine->lock))
		goto put;
	err = -EBUSY;
	/*
	 * @end pairs with exmap_surface_map(), which holds mmap_lock instead, and @refs with
	 * exmap_get_other(). An mmap at the same time may miss @orphan, while this misses @end.
	 * Then the orphan has a surface. That is harmless: no page comes there, because SETUP
	 * refuses an orphan. The mapping keeps the file, which keeps the orphan in @first.
	 */
	if (mine->orphan || mine->interfaces || READ_ONCE(mine->end) || owner->first ||
	    refcount_read(&mine->refs) > 1)
		goto unlock;
	err = -EINVAL;
	/* Pairs with the write below, by a CLONE on the other file. */
	if (READ_ONCE(other->orphan))
		goto unlock;
	/* Pairs with exmap_mmap_surface(), and with the read above. */
	WRITE_ONCE(mine->orphan, true);
	owner->first = mine;
	/* Pairs with the acquire in exmap_of_any(): all that @other holds is visible. */
	smp_store_release(&owner->exmap, other);
	mutex_unlock(&mine->lock);
	return 0;

unlock:
	mutex_unlock(&mine->lock);
put:
	exmap_put(other);
	return err;
}

/* Set the size of the quarantines that will be made. */
static noinline long exmap_call_quarantine(struct exmap *exmap, unsigned long pages)
{
	if (!pages || pages > EXMAP_MAX_QUARANTINE)
		return -EINVAL;
	/* Pairs with exmap_free_later(). */
	if (READ_ONCE(exmap->deferred))
		return -EBUSY;
	/* Pairs with exmap_quarantine_make(): a FREE at the same time may use either size. */
	WRITE_ONCE(exmap->quarantine_size, pages);
	return 0;
}

/**
 * exmap_ioctl - ioctl(2)
 * @file: an open file of the device
 * @cmd: EXMAP_IOCTL_...
 * @arg: a pointer, or for some calls a number
 *
 * May sleep; no lock is held.
 *
 * Return: what the call returns, or an error. exmap(4) lists them for each call.
 */
long exmap_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct exmap *exmap;

	if (!exmap_is_ours(file))
		return -EPERM;
	exmap = exmap_of_any(file);
	/* None is inlined: the others would make ACTION save registers, and take stack. */
	if (likely(cmd == EXMAP_IOCTL_ACTION))
		return exmap_call_action(exmap, (const void __user *)arg);
	switch (cmd) {
	case EXMAP_IOCTL_SETUP:
		return exmap_call_setup(exmap, (const void __user *)arg);
	case EXMAP_IOCTL_STATS:
		return exmap_call_stats(exmap, (void __user *)arg);
	case EXMAP_IOCTL_RESIZE:
		return exmap_call_resize(exmap, (struct exmap_ioctl_resize __user *)arg);
	case EXMAP_IOCTL_TRIM:
		return exmap_call_trim(exmap, (struct exmap_ioctl_trim __user *)arg);
	case EXMAP_IOCTL_CLONE:
		return exmap_call_clone(file, exmap, arg);
	case EXMAP_IOCTL_QUARANTINE:
		return exmap_call_quarantine(exmap, arg);
	default:
		return -ENOTTY;
	}
}
