// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * A loadable extension of SQLite: the VFS "exmap", which gives SQLite the pages of a database
 * straight from the surface of an exmap (xFetch and xUnfetch). Everything else goes to the default
 * VFS below it. README.md says how to use it.
 *
 * Each connection has pages of its own. Somebody else may change the database file: another
 * connection or another process. Then the pages have to be forgotten before the connection reads
 * again. With a rollback journal, SQLite finds this out and calls xUnfetch(0). With a WAL, only a
 * checkpoint changes the file. SQLite does not mind, because other VFSs see the file itself. So
 * this VFS looks into the WAL-index, whose format https://sqlite.org/walformat.html defines.
 */
#include <sqlite3ext.h>
#include <stdbool.h>
#include <string.h>

#include "pages.h"

SQLITE_EXTENSION_INIT1

#define SMALLEST_PAGE 512

/* What tells the states of the database file apart, as words of the WAL-index. */
enum { SALT_1 = 32 / 4, SALT_2 = 36 / 4, BACKFILLED = 96 / 4 };
/* The locks of the WAL-index: offsets of xShmLock(). */
enum { CHECKPOINT = 1, READ_1 = 4, READERS = 4 };

/**
 * struct file - a database file
 * @base: what SQLite sees
 * @real: the file of the VFS below; it lies behind this struct
 * @name: its path
 * @limit: the last PRAGMA mmap_size, in bytes; 0 if there are no pages
 * @pages: the pages; NULL if @limit is 0
 * @error: why pages could not be opened; 0 or a negative errno
 * @index: the WAL-index; NULL if there is none
 * @blind: there is one, but it cannot be read
 * @seen: what @index said of the database file when @pages were equal to it
 */
struct file {
	sqlite3_file base;
	sqlite3_file *real;
	const char *name;
	sqlite3_int64 limit;
	struct pages *pages;
	int error;
	const volatile uint32_t *index;
	bool blind;
	uint32_t seen[3];
};

static sqlite3_vfs *below;

static struct file *file_of(sqlite3_file *base)
{
	return (struct file *)base;
}

static sqlite3_file *real_of(sqlite3_file *base)
{
	return file_of(base)->real;
}

/* Opening and closing the pages */

static void close_pages(struct file *file)
{
	if (file->pages)
		pages_close(file->pages);
	file->pages = NULL;
	file->limit = 0;
}

/* Whether the path still leads to the file that is open. */
static bool has_moved(struct file *file)
{
	int moved = 0;

	file->real->pMethods->xFileControl(file->real, SQLITE_FCNTL_HAS_MOVED, &moved);
	return moved;
}

/* PRAGMA mmap_size. @bytes is negative if it only asks. Afterwards it holds the old size. */
static void set_limit(struct file *file, sqlite3_int64 *bytes)
{
	const sqlite3_int64 limit = *bytes;

	*bytes = file->limit;
	if (limit < 0 || limit == file->limit || (file->pages && pages_pinned(file->pages)))
		return;
	close_pages(file);
	if (limit == 0)
		return;
	file->error = pages_open(&file->pages, file->name, limit);
	if (!file->error && has_moved(file)) {
		close_pages(file);
		file->error = -ESTALE;
	}
	if (file->error)
		sqlite3_log(SQLITE_WARNING, "exmap: %s: %s", file->name,
			    exmap_strerror(file->error));
	else
		file->limit = limit;
}

/* PRAGMA exmap: one line. */
static char *status(const struct file *file)
{
	const struct pages *pages = file->pages;

	if (!pages)
		return sqlite3_mprintf("off: %s", file->error ? exmap_strerror(file->error) :
				       "PRAGMA mmap_size sets the size of the pool");
	return sqlite3_mprintf("pool=%u resident=%u pinned=%lu hits=%lu reads=%lu read=%lu "
			       "evicted=%lu forgotten=%lu",
			       pages->capacity, pages->count, pages_pinned(pages),
			       pages->gets - pages->misses, pages->reads, pages->read,
			       pages->evicted, pages->forgotten);
}

/* The WAL-index */

/* What it says of the database file now. */
static void look(const struct file *file, uint32_t seen[3])
{
	seen[0] = file->index[SALT_1];
	seen[1] = file->index[SALT_2];
	seen[2] = file->index[BACKFILLED];
}

/* Forget the pages if a checkpoint of somebody else has changed the file. */
static void check_index(struct file *file)
{
	uint32_t now[3] = { 0 };

	if (!file->pages)
		return;
	if (file->index)
		look(file, now);
	if (file->index && !memcmp(now, file->seen, sizeof(now)))
		return;
	pages_forget(file->pages, 0);
	memcpy(file->seen, now, sizeof(now));
}

static int x_shm_map(sqlite3_file *base, int region, int size, int extend, void volatile **index)
{
	struct file *file = file_of(base);
	int rc = real_of(base)->pMethods->xShmMap(real_of(base), region, size, extend, index);
	bool readable = rc == SQLITE_OK || rc == SQLITE_READONLY;

	if (region != 0)
		return rc;
	file->blind = !readable;
	if (readable && *index && file->index != *index && file->pages)
		pages_forget(file->pages, 0);
	file->index = readable ? *index : NULL;
	return rc;
}

static int x_shm_unmap(sqlite3_file *base, int delete)
{
	struct file *file = file_of(base);

	file->index = NULL;
	file->blind = false;
	if (file->pages)
		pages_forget(file->pages, 0);
	return real_of(base)->pMethods->xShmUnmap(real_of(base), delete);
}

/*
 * A reader has locked READ_n, or this connection begins a checkpoint: from here on, no other
 * connection can change a page of the file that this connection may read there. (What read-ahead
 * gets in the middle of a checkpoint is in the WAL, too, until that checkpoint has changed the
 * WAL-index.)
 *
 * The connection has ended a checkpoint, or begun a new WAL: the WAL-index has changed, and the
 * pages are still equal to the file, because this VFS has seen all writes.
 */
static int x_shm_lock(sqlite3_file *base, int offset, int count, int flags)
{
	const bool is_checkpoint = offset <= CHECKPOINT && offset + count > CHECKPOINT;
	struct file *file = file_of(base);
	int rc;

	if (flags == (SQLITE_SHM_UNLOCK | SQLITE_SHM_EXCLUSIVE) && file->pages && file->index &&
	    (is_checkpoint || (offset == READ_1 && count == READERS)))
		look(file, file->seen);
	rc = real_of(base)->pMethods->xShmLock(real_of(base), offset, count, flags);
	if (rc == SQLITE_OK && flags & SQLITE_SHM_LOCK &&
	    (flags & SQLITE_SHM_SHARED || is_checkpoint))
		check_index(file);
	return rc;
}

static void x_shm_barrier(sqlite3_file *base)
{
	real_of(base)->pMethods->xShmBarrier(real_of(base));
}

/* The database */

static int x_fetch(sqlite3_file *base, sqlite3_int64 offset, int amount, void **page)
{
	struct file *file = file_of(base);

	*page = file->pages && !file->blind ? pages_get(file->pages, offset, amount) : NULL;
	return SQLITE_OK;
}

static int x_unfetch(sqlite3_file *base, sqlite3_int64 offset, void *page)
{
	struct file *file = file_of(base);

	if (page)
		pages_put(file->pages, offset);
	else if (file->pages && !file->index)
		pages_forget(file->pages, 0);
	return SQLITE_OK;
}

/*
 * The header of the database, 100 bytes, always comes from the file, because it tells whether
 * somebody else changed the file.
 */
static int x_read(sqlite3_file *base, void *data, int amount, sqlite3_int64 offset)
{
	struct file *file = file_of(base);
	const void *from = NULL;

	if (file->pages && !file->blind && offset >= SMALLEST_PAGE)
		from = pages_find(file->pages, offset, amount);
	if (!from)
		return real_of(base)->pMethods->xRead(real_of(base), data, amount, offset);
	memcpy(data, from, amount);
	return SQLITE_OK;
}

static int x_write(sqlite3_file *base, const void *data, int amount, sqlite3_int64 offset)
{
	int rc = real_of(base)->pMethods->xWrite(real_of(base), data, amount, offset);
	struct file *file = file_of(base);

	if (!file->pages)
		return rc;
	if (rc == SQLITE_OK)
		pages_write(file->pages, data, offset, amount);
	else	/* some of it may have been written */
		pages_forget(file->pages, offset);
	return rc;
}

static int x_truncate(sqlite3_file *base, sqlite3_int64 size)
{
	int rc = real_of(base)->pMethods->xTruncate(real_of(base), size);
	struct file *file = file_of(base);

	if (file->pages)
		pages_forget(file->pages, size);
	return rc;
}

static int x_control(sqlite3_file *base, int what, void *arg)
{
	struct file *file = file_of(base);
	char **pragma = arg, **name = arg;
	int rc;

	if (what == SQLITE_FCNTL_MMAP_SIZE) {
		set_limit(file, arg);
		return SQLITE_OK;
	}
	if (what == SQLITE_FCNTL_PRAGMA && !sqlite3_stricmp(pragma[1], "exmap")) {
		pragma[0] = status(file);
		return SQLITE_OK;
	}
	rc = real_of(base)->pMethods->xFileControl(real_of(base), what, arg);
	if (what == SQLITE_FCNTL_VFSNAME && rc == SQLITE_OK)
		*name = sqlite3_mprintf("exmap/%z", *name);
	return rc;
}

static int x_close(sqlite3_file *base)
{
	close_pages(file_of(base));
	return real_of(base)->pMethods->xClose(real_of(base));
}

/* What the VFS below does alone */

static int x_sync(sqlite3_file *base, int flags)
{
	return real_of(base)->pMethods->xSync(real_of(base), flags);
}

static int x_size(sqlite3_file *base, sqlite3_int64 *size)
{
	return real_of(base)->pMethods->xFileSize(real_of(base), size);
}

static int x_lock(sqlite3_file *base, int lock)
{
	return real_of(base)->pMethods->xLock(real_of(base), lock);
}

static int x_unlock(sqlite3_file *base, int lock)
{
	return real_of(base)->pMethods->xUnlock(real_of(base), lock);
}

static int x_check_reserved_lock(sqlite3_file *base, int *is_reserved)
{
	return real_of(base)->pMethods->xCheckReservedLock(real_of(base), is_reserved);
}

static int x_sector_size(sqlite3_file *base)
{
	return real_of(base)->pMethods->xSectorSize(real_of(base));
}

static int x_characteristics(sqlite3_file *base)
{
	return real_of(base)->pMethods->xDeviceCharacteristics(real_of(base));
}

static const sqlite3_io_methods methods = {
	.iVersion = 3,
	.xClose = x_close,
	.xRead = x_read,
	.xWrite = x_write,
	.xTruncate = x_truncate,
	.xSync = x_sync,
	.xFileSize = x_size,
	.xLock = x_lock,
	.xUnlock = x_unlock,
	.xCheckReservedLock = x_check_reserved_lock,
	.xFileControl = x_control,
	.xSectorSize = x_sector_size,
	.xDeviceCharacteristics = x_characteristics,
	.xShmMap = x_shm_map,
	.xShmLock = x_shm_lock,
	.xShmBarrier = x_shm_barrier,
	.xShmUnmap = x_shm_unmap,
	.xFetch = x_fetch,
	.xUnfetch = x_unfetch,
};

/* Only a database has pages. Journals and temporary files are files of the VFS below. */
static int x_open(sqlite3_vfs *vfs, sqlite3_filename name, sqlite3_file *base, int flags, int *out)
{
	struct file *file = file_of(base);
	int rc;

	if (!(flags & SQLITE_OPEN_MAIN_DB) || !name)
		return below->xOpen(below, name, base, flags, out);
	memset(file, 0, sizeof(*file));
	file->real = (sqlite3_file *)(file + 1);
	file->name = name;
	rc = below->xOpen(below, name, file->real, flags, out);
	if (rc == SQLITE_OK && file->real->pMethods->iVersion < 3) {
		file->real->pMethods->xClose(file->real);
		rc = SQLITE_CANTOPEN;
	}
	if (rc == SQLITE_OK)
		file->base.pMethods = &methods;
	return rc;
}

/* The name is that of the file, without "_" and in lower case. */
int sqlite3_exmapvfs_init(sqlite3 *db, char **error, const sqlite3_api_routines *api)
{
	static sqlite3_vfs vfs;
	int rc;

	SQLITE_EXTENSION_INIT2(api);
	if (sqlite3_vfs_find("exmap"))
		return SQLITE_OK_LOAD_PERMANENTLY;
	below = sqlite3_vfs_find(NULL);
	vfs = *below;
	vfs.pNext = NULL;
	vfs.zName = "exmap";
	vfs.szOsFile += sizeof(struct file);
	vfs.xOpen = x_open;
	rc = sqlite3_vfs_register(&vfs, 0);
	return rc == SQLITE_OK ? SQLITE_OK_LOAD_PERMANENTLY : rc;
}
