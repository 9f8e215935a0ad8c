// SPDX-License-Identifier: GPL-2.0
/*
 * exmap: explicit control over a piece of virtual memory.
 *
 * The device: checks who may do what, and passes calls on. See exmap.h for who owns what, and for
 * the list of files.
 */
#include <linux/file.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/nospec.h>
#include <linux/pagemap.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "arch.h"
#include "compat.h"
#include "entry.h"
#include "exmap.h"
#include "ksyms.h"
#include "pool.h"
#include "trace.h"

/* The most pages that SETUP accepts: as many as an address space has. */
#define EXMAP_MAX_PAGES (TASK_SIZE_MAX >> PAGE_SHIFT)

static const struct file_operations exmap_fops;

/* The exmap of a file, of whatever process. */
static struct exmap *exmap_of_any(const struct file *file)
{
	struct exmap_file *owner = file->private_data;

	/* Pairs with the release in exmap_call_clone(). */
	return smp_load_acquire(&owner->exmap);
}

/* The exmap of a file; or -EPERM if another process has opened the file. */
static struct exmap *exmap_of(const struct file *file)
{
	struct exmap_file *owner = file->private_data;

	if (unlikely(owner->mm != current->mm))
		return ERR_PTR(-EPERM);
	return exmap_of_any(file);
}

/* Initialize an address_space as that of a new inode. It never has a page. */
static void exmap_mapping_init(struct address_space *mapping, struct inode *inode)
{
	address_space_init_once(mapping);
	init_rwsem(&mapping->invalidate_lock);
	mapping_set_gfp_mask(mapping, GFP_HIGHUSER_MOVABLE);
	mapping->host = inode;
	mapping->a_ops = &empty_aops;
}

static int exmap_open(struct inode *inode, struct file *file)
{
	struct exmap_file *owner;
	struct exmap *exmap;

	if (!current->mm)
		return -EINVAL;
	owner = kzalloc(sizeof(*owner), GFP_KERNEL_ACCOUNT);
	if (!owner)
		return -ENOMEM;
	exmap = exmap_create();
	if (!exmap) {
		kfree(owner);
		return -ENOMEM;
	}
	owner->mm = exmap->mm;
	owner->exmap = exmap;
	exmap_mapping_init(&owner->mapping, inode);
	file->f_mapping = &owner->mapping;
	file->private_data = owner;
	/*
	 * FMODE_NOWAIT: io_uring tries a call in the caller's context before it asks a thread.
	 * FMODE_NOCMTIME: a write fault does not update the times of the device's node. 6.1 and
	 * 6.12 do not look at it there, so a touch may wait while that file system is frozen.
	 */
	file->f_mode |= FMODE_NOWAIT | FMODE_NOCMTIME;
	return 0;
}

static int exmap_fop_release(struct inode *inode, struct file *file)
{
	struct exmap_file *owner = file->private_data;

	exmap_put(owner->exmap);
	if (owner->first)
		exmap_put(owner->first);
	kfree(owner);
	return 0;
}

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

/* Whether SETUP is done, and all that it sets can be read. */
static bool exmap_ready(struct exmap *exmap)
{
	/* Pairs with the release in exmap_setup(). */
	return smp_load_acquire(&exmap->interfaces);
}

/* Interface @nr if it exists and has been used; or NULL. SETUP is done. */
static __always_inline struct exmap_interface *
exmap_find_interface(struct exmap *exmap, unsigned long nr)
{
	struct exmap_interface *interface;

	if (nr >= exmap->max_interfaces)
		return NULL;
	interface = &exmap->interfaces[array_index_nospec(nr, exmap->max_interfaces)];
	/* Pairs with the release in exmap_make_interface(): the bundles are set. */
	return likely(smp_load_acquire(&interface->user)) ? interface : NULL;
}

/*
 * Interface @nr, ready for use. SETUP is done. Returns an error if there is no such interface, or
 * no memory for it.
 */
static __always_inline struct exmap_interface *
exmap_get_interface(struct exmap *exmap, unsigned long nr)
{
	struct exmap_interface *interface = exmap_find_interface(exmap, nr);
	int err;

	if (likely(interface))
		return interface;
	if (nr >= exmap->max_interfaces)
		return ERR_PTR(-EINVAL);
	interface = &exmap->interfaces[array_index_nospec(nr, exmap->max_interfaces)];
	err = exmap_make_interface(exmap, interface);
	return err ? ERR_PTR(err) : interface;
}

/* ACTION, STATS, CLONE */

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

/*
 * fadvise64(2): a call on one range, with its arguments and its result in registers. Returns the
 * number of pages done; or an error, if any page failed.
 */
static int exmap_fadvise(struct file *file, loff_t offset, loff_t len, int advice)
{
	const int what = advice & ~(EXMAP_MAX_INTERFACES - 1);
	struct exmap *exmap = exmap_of(file);
	struct exmap_interface *interface;

	if (IS_ERR(exmap))
		return PTR_ERR(exmap);
	if (!exmap_ready(exmap))
		return -EBADF;
	/* The short way is for interfaces that exist: the long one makes them, after all checks. */
	interface = exmap_find_interface(exmap, advice & (EXMAP_MAX_INTERFACES - 1));
	if (interface && len == PAGE_SIZE && PAGE_ALIGNED(offset) && offset >= 0) {
		if (what == EXMAP_ADVICE(EXMAP_OP_ALLOC, 0, 0))
			return exmap_alloc_page(exmap, interface, offset >> PAGE_SHIFT);
		if (what == EXMAP_ADVICE(EXMAP_OP_FREE, 0, 0))
			return exmap_free_page(exmap, interface, offset >> PAGE_SHIFT);
		if (what == EXMAP_ADVICE(EXMAP_OP_FREE, 0, EXMAP_FREE_DEFER))
			return exmap_defer_page(exmap, interface, offset >> PAGE_SHIFT);
	}
	return exmap_fadvise_range(exmap, offset, len, advice);
}

static noinline long exmap_call_stats(struct exmap *exmap, void __user *arg)
{
	struct exmap_ioctl_stats stats = { };

	if (!exmap_ready(exmap))
		return -EBADF;
	stats.flags = exmap->flags;
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
static struct exmap *exmap_get_other(int fd)
{
	struct exmap_file *owner;
	struct exmap *exmap;
	struct file *file;

	file = fget(fd);
	if (!file)
		return ERR_PTR(-EBADF);
	exmap = ERR_PTR(-EINVAL);
	if (file->f_op != &exmap_fops)
		goto put;
	owner = file->private_data;
	exmap = ERR_PTR(-EPERM);
	if (owner->mm != current->mm)
		goto put;
	exmap = exmap_of_any(file);
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
static noinline long exmap_call_clone(struct exmap_file *owner, struct exmap *mine, int fd)
{
	struct exmap *other = exmap_get_other(fd);
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
	if (mine->orphan || mine->interfaces || READ_ONCE(mine->end) || owner->first ||
	    refcount_read(&mine->refs) > 1)
		goto unlock;
	err = -EINVAL;
	if (READ_ONCE(other->orphan))
		goto unlock;
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

static long exmap_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct exmap *exmap = exmap_of(file);

	if (IS_ERR(exmap))
		return PTR_ERR(exmap);
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
		return exmap_call_clone(file->private_data, exmap, arg);
	case EXMAP_IOCTL_QUARANTINE:
		return exmap_call_quarantine(exmap, arg);
	default:
		return -ENOTTY;
	}
}

/* mmap */

static int exmap_mmap_surface(struct exmap *exmap, struct vm_area_struct *vma)
{
	/* mmap_lock is held for writing, so no other mmap runs at the same time. */
	if (exmap->end || READ_ONCE(exmap->orphan))
		return -EBUSY;
	return exmap_surface_map(exmap, vma);
}

/*
 * The number of the interface at an offset of mmap, which counts pages; above any interface's if
 * the offset is not that of an interface. Offsets with and without the sign bit are the same.
 */
static unsigned long exmap_interface_at(unsigned long pgoff)
{
	const unsigned long sign = ~EXMAP_OFF_INTERFACE_POSITIVE_BASE & EXMAP_OFF_INTERFACE_BASE;

	return (pgoff | sign >> PAGE_SHIFT) - (EXMAP_OFF_INTERFACE_BASE >> PAGE_SHIFT);
}

/*
 * Map the interface's page at its first touch, not in mmap, because vm_insert_page() would set
 * VM_MIXEDMAP, and then fork copies page tables (see exmap_vma_protect()).
 */
static vm_fault_t exmap_interface_fault(struct vm_fault *vmf)
{
	struct vm_area_struct *vma = vmf->vma;
	struct exmap *exmap = vma->vm_private_data;
	unsigned long nr = exmap_interface_at(vma->vm_pgoff);

	/* A child's copy of the mapping never gets a page. */
	if (vma->vm_mm != exmap->mm)
		return VM_FAULT_SIGSEGV;
	/*
	 * exmap_mmap_interface() has called exmap_get_interface(), so the page exists. mmap_lock or
	 * the VMA's lock orders its acquire of @user before this.
	 */
	vmf->page = virt_to_page(exmap->interfaces[nr].user);
	get_page(vmf->page);
	return 0;
}

static const struct vm_operations_struct exmap_interface_ops = {
	.open = exmap_vma_open,
	.fault = exmap_interface_fault,
	EXMAP_VMA_POLICY
};

static int exmap_mmap_interface(struct exmap *exmap, struct vm_area_struct *vma, unsigned long nr)
{
	struct exmap_interface *interface;

	if (vma_pages(vma) != 1)
		return -EINVAL;
	if (!exmap_ready(exmap) || nr >= exmap->max_interfaces)
		return -ENXIO;
	interface = exmap_get_interface(exmap, nr);
	if (IS_ERR(interface))
		return PTR_ERR(interface);
	exmap_vma_protect(vma);
	vma->vm_ops = &exmap_interface_ops;
	vma->vm_private_data = exmap;
	return 0;
}

static int exmap_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct exmap *exmap = exmap_of(file);
	const unsigned long numbers =
		(EXMAP_OFF_INTERFACE_MAX - EXMAP_OFF_INTERFACE_BASE) >> PAGE_SHIFT;
	unsigned long nr;

	if (IS_ERR(exmap))
		return PTR_ERR(exmap);
	/* The kernel would copy pages of a private mapping when they are written. */
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	if (vma->vm_pgoff == EXMAP_OFF_EXMAP >> PAGE_SHIFT)
		return exmap_mmap_surface(exmap, vma);
	nr = exmap_interface_at(vma->vm_pgoff);
	if (nr < numbers)
		return exmap_mmap_interface(exmap, vma, nr);
	return -EINVAL;
}

/* The file as a proxy for the backing file, and io_uring */

/*
 * The interface in a file offset or in the opcode of an io_uring command. Sets *@opcode to the
 * opcode in it, which must be in the bit mask @opcodes. Returns the interface or an error.
 */
static struct exmap_interface *exmap_get_target(struct exmap *exmap, u64 target,
						unsigned long opcodes, unsigned int *opcode)
{
	if (!exmap_ready(exmap))
		return ERR_PTR(-EBADF);
	*opcode = target >> 8;
	if (target >> 16 || *opcode > EXMAP_OP_WRITE || !(opcodes & BIT(*opcode)))
		return ERR_PTR(-EINVAL);
	if (!exmap->file && (*opcode == EXMAP_OP_READ || *opcode == EXMAP_OP_WRITE))
		return ERR_PTR(-EOPNOTSUPP);
	return exmap_get_interface(exmap, target & 0xff);
}

static ssize_t exmap_proxy(struct kiocb *iocb, struct iov_iter *iter, unsigned long opcodes)
{
	struct exmap *exmap = exmap_of(iocb->ki_filp);
	struct exmap_interface *interface;
	unsigned int opcode;

	if (IS_ERR(exmap))
		return PTR_ERR(exmap);
	interface = exmap_get_target(exmap, iocb->ki_pos, opcodes, &opcode);
	if (IS_ERR(interface))
		return PTR_ERR(interface);
	return exmap_io_proxy(exmap, interface, iocb, iter, opcode);
}

static ssize_t exmap_read_iter(struct kiocb *iocb, struct iov_iter *iter)
{
	return exmap_proxy(iocb, iter, BIT(EXMAP_OP_READ) | BIT(EXMAP_OP_ALLOC));
}

static ssize_t exmap_write_iter(struct kiocb *iocb, struct iov_iter *iter)
{
	return exmap_proxy(iocb, iter, BIT(EXMAP_OP_WRITE));
}

static int exmap_fop_uring_cmd(struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	struct exmap *exmap = exmap_of(cmd->file);
	struct exmap_interface *interface;
	unsigned int opcode;

	if (IS_ERR(exmap))
		return PTR_ERR(exmap);
	if (cmd->flags & IORING_URING_CMD_MASK & ~IORING_URING_CMD_FIXED)
		return -EINVAL;
	interface = exmap_get_target(exmap, cmd->cmd_op, ~0UL, &opcode);
	if (IS_ERR(interface))
		return PTR_ERR(interface);
	return exmap_uring_issue(exmap, interface, cmd, opcode, issue_flags);
}

static int exmap_fsync(struct file *file, loff_t start, loff_t end, int datasync)
{
	/*
	 * libaio calls this from a kernel thread, which has no mm. That does not say whose request
	 * it is, and exmap is not called when the request is submitted. So other processes that
	 * hold the file can fsync it by libaio.
	 */
	struct exmap *exmap = current->mm ? exmap_of(file) : exmap_of_any(file);

	if (IS_ERR(exmap))
		return PTR_ERR(exmap);
	if (!exmap_ready(exmap))
		return -EBADF;
	if (!exmap->file)
		return -EOPNOTSUPP;
	return vfs_fsync_range(exmap->file, start, end, datasync);
}

/*
 * /proc/PID/fdinfo/FD. The reader is any process that may look into PID, and PID may have inherited
 * the file from the exmap's process.
 */
static void exmap_show_fdinfo(struct seq_file *m, struct file *file)
{
	struct exmap *exmap = exmap_of_any(file);

	seq_printf(m, "exmap-id:\t%llu\n", exmap->id);
	if (exmap_ready(exmap))
		exmap_fdinfo(m, exmap);
}

static const struct file_operations exmap_fops = {
	.owner = THIS_MODULE,
	.read_iter = exmap_read_iter,
	.write_iter = exmap_write_iter,
	.uring_cmd = exmap_fop_uring_cmd,
	.fadvise = exmap_fadvise,
	.fsync = exmap_fsync,
	.open = exmap_open,
	.release = exmap_fop_release,
	.unlocked_ioctl = exmap_ioctl,
	.mmap = exmap_mmap,
	.show_fdinfo = exmap_show_fdinfo,
};

static struct miscdevice exmap_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "exmap",
	.mode = 0666,
	.fops = &exmap_fops,
};

/* A device node in a container outlives a reload of the module only if the number stays. */
module_param_named(minor, exmap_device.minor, int, 0444);
MODULE_PARM_DESC(minor, "minor number of /dev/exmap, 0 to 254 (default: one that is free)");

static int __init exmap_init(void)
{
	const char *problem = exmap_arch_problem();
	int err;

	if (problem) {
		pr_err("%s\n", problem);
		return -ENODEV;
	}
	if (exmap_device.minor < 0 || exmap_device.minor > MISC_DYNAMIC_MINOR) {
		pr_err("minor=%d is not a number from 0 to 254\n", exmap_device.minor);
		return -EINVAL;
	}
	exmap_locks_prime();
	err = exmap_ksyms_resolve() ?: exmap_queue_init();
	if (err)
		return err;
	err = exmap_io_init();
	if (err)
		goto queue_exit;
	err = exmap_pool_init();
	if (err)
		goto io_exit;
	err = misc_register(&exmap_device);
	if (err)
		goto pool_exit;
	return 0;

pool_exit:
	exmap_pool_exit();
io_exit:
	exmap_io_exit();
queue_exit:
	exmap_queue_exit();
	return err;
}

static void __exit exmap_exit(void)
{
	misc_deregister(&exmap_device);
	exmap_setup_exit();
	exmap_watch_exit();
	exmap_pinned_exit();
	exmap_pool_exit();
	exmap_queue_exit();
	exmap_io_exit();
}

module_init(exmap_init);
module_exit(exmap_exit);

MODULE_LICENSE("GPL");
MODULE_AUTHOR("The exmap authors");
MODULE_VERSION(EXMAP_VERSION);
MODULE_DESCRIPTION("Explicit control over a piece of virtual memory");
