// SPDX-License-Identifier: GPL-2.0
/*
 * io_uring's commands: ACTION for a range of the surface, which the submission queue entry has, or
 * for a list of entries in a registered buffer.
 */
#include <linux/cred.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/uio.h>

#include "compat.h"
#include "exmap.h"
#include "io.h"

/* The entries of a command of io_uring. */
struct exmap_uring_command {
	size_t len;			/* bytes of a range; 0 if it is a list */
	struct iov_iter answers;	/* where the answers of a list go */
	unsigned int nr;		/* number of entries */
	struct exmap_iov iov[];
};

/* Make entries of a range of the surface. Returns the command or an error. */
static struct exmap_uring_command *exmap_uring_range(const struct exmap *exmap,
						     unsigned long start, unsigned long len)
{
	const unsigned long max = EXMAP_PAGE_MAX_PAGES - 1;
	unsigned long page, pages = len >> PAGE_SHIFT;
	struct exmap_uring_command *command;
	unsigned int nr;

	nr = DIV_ROUND_UP(pages, max);
	command = kvzalloc(struct_size(command, iov, nr), GFP_KERNEL_ACCOUNT);
	if (!command)
		return ERR_PTR(-ENOMEM);
	page = (start - exmap->start) >> PAGE_SHIFT;
	for (; pages; page += max, pages -= min(pages, max))
		command->iov[command->nr++] = (struct exmap_iov){
			.page = page,
			.len = min(pages, max),
		};
	command->len = len;
	return command;
}

/* Read the entries in a part of a registered buffer. Returns the command or an error. */
static struct exmap_uring_command *exmap_uring_list(struct io_uring_cmd *cmd, unsigned long start,
						    unsigned long len, unsigned int issue_flags)
{
	struct exmap_uring_command *command;
	struct iov_iter requests;
	int err;

	if (!len || len % sizeof(struct exmap_iov) || len > sizeof(struct exmap_user_interface))
		return ERR_PTR(-EINVAL);
	command = kvzalloc(sizeof(*command) + len, GFP_KERNEL_ACCOUNT);
	if (!command)
		return ERR_PTR(-ENOMEM);
	command->nr = len / sizeof(struct exmap_iov);
	err = exmap_uring_import(cmd, start, len, ITER_SOURCE, &requests, issue_flags) ?:
		exmap_uring_import(cmd, start, len, ITER_DEST, &command->answers, issue_flags);
	if (!err && copy_from_iter(command->iov, len, &requests) != len)
		err = -EFAULT;
	if (!err)
		return command;
	kvfree(command);
	return ERR_PTR(err);
}

/* ALLOC or FREE. Returns the command's result. */
static long exmap_uring_pages(struct exmap *exmap, struct exmap_interface *interface,
			      struct exmap_uring_command *command, unsigned int opcode)
{
	const unsigned long max = (EXMAP_PAGE_MAX_PAGES - 1) * PAGE_SIZE;
	unsigned int i;
	long ret;

	if (opcode == EXMAP_OP_ALLOC)
		ret = exmap_alloc(exmap, interface, command->iov, command->nr, false);
	else
		ret = exmap_free(exmap, interface, command->iov, command->nr, false);
	if (ret < 0 || !command->len)
		return ret;
	/* If an entry failed, it is not known which of its pages are done: none is counted. */
	for (i = 0; i < command->nr; i++)
		if (command->iov[i].res)
			return i ? i * max : command->iov[i].res;
	return command->len;
}

/* Put the answers of a list in place of its requests. Returns the command's result. */
static long exmap_uring_end(struct exmap_uring_command *command, long ret)
{
	size_t size = command->nr * sizeof(command->iov[0]);

	if (ret >= 0 && !command->len &&
	    copy_to_iter(command->iov, size, &command->answers) != size)
		ret = -EFAULT;
	kvfree(command);
	return ret;
}

static long exmap_uring_result(const struct exmap_io *io)
{
	struct exmap_uring_command *command = io->command;

	return command ? exmap_uring_end(command, exmap_io_answer(io, command->iov)) :
			 exmap_io_bytes(io);
}

static void exmap_uring_tell(struct exmap_io *io)
{
	struct io_uring_cmd *cmd = io->cmd;
	long ret = exmap_uring_result(io);

	exmap_io_end(io);
	exmap_io_free(io);
	exmap_uring_done(cmd, ret, IO_URING_F_UNLOCKED);
}

/*
 * READ or WRITE of a range, or if there is a @command of its list, which this frees. Returns the
 * command's result, -EIOCBQUEUED or -EAGAIN.
 */
static long exmap_uring_transfer(struct exmap *exmap, struct exmap_interface *interface,
				 struct io_uring_cmd *cmd, struct exmap_uring_command *command,
				 unsigned long start, unsigned long len, unsigned int opcode,
				 bool nonblock)
{
	const unsigned int nr = command ? command->nr : exmap_io_ranges(len);
	struct exmap_io *io;
	long ret;

	io = exmap_io_alloc();
	ret = -ENOMEM;
	if (!io)
		goto free_command;
	ret = exmap_io_begin(io, exmap, interface, opcode, nr, get_current_ioprio(),
			     exmap_uring_tell);
	if (ret)
		goto free_io;
	io->cmd = cmd;
	io->command = command;
	if (command)
		exmap_io_request(io, command->iov, nr);
	else
		exmap_io_add(io, start, len);
	ret = nonblock ? exmap_io_perform_nowait(io) : exmap_io_perform(io);
	if (ret == -EIOCBQUEUED)
		return ret;
	if (!ret) {
		ret = exmap_uring_result(io);
		command = NULL;
	}
	exmap_io_end(io);
free_io:
	exmap_io_free(io);
free_command:
	kvfree(command);
	return ret;
}

/**
 * exmap_uring_issue - carry out IORING_OP_URING_CMD
 * @exmap: has a backing file if @opcode needs one, and belongs to current->mm; mmap_lock is not
 *	held
 * @interface: where pages come from and go to; its lock is not held
 * @cmd: the command
 * @opcode: EXMAP_OP_*
 * @issue_flags: io_uring's flags
 *
 * Return: -EIOCBQUEUED if the command has been completed, or will be; -EAGAIN if it must not wait,
 * and would have to; or, with nothing done, -EINVAL, -EFAULT, -ENOMEM or -EPROTO.
 */
int exmap_uring_issue(struct exmap *exmap, struct exmap_interface *interface,
		      struct io_uring_cmd *cmd, unsigned int opcode, unsigned int issue_flags)
{
	const struct iovec where = exmap_uring_iovec(cmd);
	const unsigned long start = (unsigned long)where.iov_base;
	const bool nonblock = issue_flags & IO_URING_F_NONBLOCK;
	const bool transfer = opcode == EXMAP_OP_READ || opcode == EXMAP_OP_WRITE;
	struct exmap_uring_command *command = NULL;
	size_t len = 0;
	long ret;

	if (!exmap_has_surface(exmap))
		return -EPROTO;
	if (cmd->flags & IORING_URING_CMD_FIXED) {
		command = exmap_uring_list(cmd, start, where.iov_len, issue_flags);
	} else {
		ret = exmap_io_check_range(exmap, start, where.iov_len);
		if (ret)
			return ret;
		/* The result, in bytes, must fit into an int. */
		len = min(where.iov_len, MAX_RW_COUNT);
		if (!transfer)
			command = exmap_uring_range(exmap, start, len);
	}
	if (IS_ERR(command))
		return PTR_ERR(command);

	if (transfer)
		ret = exmap_uring_transfer(exmap, interface, cmd, command, start, len, opcode,
					   nonblock);
	else
		ret = exmap_uring_end(command,
				      exmap_uring_pages(exmap, interface, command, opcode));
	/* If it may wait, -EAGAIN is the device's: io_uring would issue the command for ever. */
	if (ret == -EIOCBQUEUED || (ret == -EAGAIN && nonblock))
		return ret;
	exmap_uring_done(cmd, ret, issue_flags);
	return -EIOCBQUEUED;
}
