// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Lookups and scans in a SQLite database: by the extension exmap_vfs, and by SQLite's own VFS with
 * pread and with mmap. Each measurement is a process of its own, so that it starts with nothing in
 * memory. Before it counts, it fills the memory that the cgroup of the process may use, and then
 * replaces all that is in it. Rounds alternate between the ways.
 */
#include <argp.h>
#include <err.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/perf_event.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE_BYTES 4096
#define ROW_BYTES 900		/* four rows fit into a page */

static unsigned long data = 112, pool = 10, ops = 10000, rounds = 3;
static const char *path, *extension, *only_way, *only_workload;
static unsigned long rows;
static char *cgroup;	/* the path of its files */

/* How to get at the pages. */
struct way {
	const char *name;
	const char *vfs;
	bool has_cache;		/* SQLite's own cache gets the memory: pragma cache_size */
	bool has_mmap;		/* pragma mmap_size */
	bool is_random;		/* madvise() tells the kernel not to read ahead */
};

static const struct way ways[] = {
	{ "pread", "unix", .has_cache = false },
	{ "pread, large cache", "unix", .has_cache = true },
	{ "mmap", "unix", .has_mmap = true },
	{ "mmap, MADV_RANDOM", "unix", .has_mmap = true, .is_random = true },
	{ "exmap", "exmap", .has_mmap = true },
};

/* What to do. Row numbers are below @span parts in a thousand of all, or anywhere. */
struct workload {
	const char *name;
	unsigned int percent;	/* of lookups that go to these */
	unsigned int span;
	bool fits;		/* into memory: nothing is evicted */
};

static const struct workload workloads[] = {
	{ "uniform", .percent = 0 },
	{ "90/10", .percent = 90, .span = 100 },
	{ "in memory", .percent = 100, .span = 30, .fits = true },
	{ "scan", .percent = 0 },
};

/* What grows while a process works. */
struct counts {
	unsigned long calls;	/* of the system */
	unsigned long faults;
	unsigned long read;	/* from the disk, in pages */
	unsigned long evicted;	/* by exmap's pool and by the kernel, in pages */
};

struct result {
	struct counts start, end;
	double seconds;
	double cpu_seconds;
	uint64_t sum;		/* of what was found */
	unsigned long ops;
	unsigned long memory;	/* that the cgroup has in use at the end, in KiB */
};

static uint64_t next_random(uint64_t *state)
{
	*state = *state * 6364136223846793005 + 1442695040888963407;
	return *state >> 33;
}

static void must(sqlite3 *db, int rc)
{
	if (rc != SQLITE_OK)
		errx(1, "%s: %s", path, sqlite3_errmsg(db));
}

static void execute(sqlite3 *db, const char *sql)
{
	must(db, sqlite3_exec(db, sql, NULL, NULL, NULL));
}

static void pragma(sqlite3 *db, const char *name, long number)
{
	char sql[200];

	snprintf(sql, sizeof(sql), "pragma %s = %ld", name, number);
	execute(db, sql);
}

static sqlite3 *open_database(const struct way *way)
{
	sqlite3 *db;

	if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, way->vfs))
		errx(1, "%s cannot be opened: %s", path, sqlite3_errmsg(db));
	if (way->has_cache)
		pragma(db, "cache_size", -(long)(pool << 10));	/* in KiB */
	if (way->has_mmap)	/* mmap needs no memory for what it does not touch */
		pragma(db, "mmap_size",
		       (!strcmp(way->vfs, "exmap") ? pool : 2 * data) << 20);
	return db;
}

/* MADV_RANDOM for the mapping of the database. SQLite makes it at a page that is not the first. */
static void advise_random(sqlite3 *db)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	unsigned long start, end;
	char line[PATH_MAX + 100];
	bool found = false;

	execute(db, "select v from t where id = 0");
	while (maps && !found && fgets(line, sizeof(line), maps))
		found = strstr(line, path) && sscanf(line, "%lx-%lx", &start, &end) == 2;
	if (!found || madvise((void *)start, end - start, MADV_RANDOM))
		errx(1, "%s is not mapped", path);
	fclose(maps);
}

/* Load the extension, which stays. A child process has to do this after fork. */
static void load_extension(void)
{
	sqlite3 *db;
	char *error;

	must(NULL, sqlite3_open(":memory:", &db));
	sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, NULL);
	if (sqlite3_load_extension(db, extension, NULL, &error))
		errx(1, "%s", error);
	sqlite3_close(db);
}

static void fill_database(void)
{
	sqlite3 *db = open_database(&ways[0]);
	char row[ROW_BYTES] = "";
	sqlite3_stmt *insert;
	unsigned long i;

	execute(db, "pragma journal_mode = off");
	execute(db, "create table t(id integer primary key, v blob)");
	execute(db, "begin");
	must(db, sqlite3_prepare_v2(db, "insert into t values(?, ?)", -1, &insert, NULL));
	for (i = 0; i < rows; i++) {
		memcpy(row, &i, sizeof(i));
		sqlite3_bind_int64(insert, 1, i);
		sqlite3_bind_blob(insert, 2, row, sizeof(row), SQLITE_STATIC);
		sqlite3_step(insert);
		must(db, sqlite3_reset(insert));
	}
	sqlite3_finalize(insert);
	execute(db, "commit");
	sqlite3_close(db);
}

static uint64_t first_word(sqlite3_stmt *row)
{
	uint64_t word;

	memcpy(&word, sqlite3_column_blob(row, 0), sizeof(word));
	return word;
}

/* @result->ops lookups. */
static void look_up(sqlite3 *db, const struct workload *workload, uint64_t random,
		    struct result *result)
{
	sqlite3_stmt *select;
	unsigned long i, span;

	must(db, sqlite3_prepare_v2(db, "select v from t where id = ?", -1, &select, NULL));
	for (i = 0; i < result->ops; i++) {
		span = next_random(&random) % 100 < workload->percent ?
			rows * workload->span / 1000 : rows;
		sqlite3_bind_int64(select, 1, next_random(&random) % span);
		if (sqlite3_step(select) != SQLITE_ROW)
			errx(1, "a row is missing: %s", sqlite3_errmsg(db));
		result->sum += first_word(select);
		sqlite3_reset(select);
	}
	sqlite3_finalize(select);
}

/* The first rows in their order. Each is an operation. */
static void scan(sqlite3 *db, unsigned long nr_rows, struct result *result)
{
	sqlite3_stmt *select;

	must(db, sqlite3_prepare_v2(db, "select v from t where id < ?", -1, &select, NULL));
	sqlite3_bind_int64(select, 1, nr_rows);
	for (result->ops = 0; sqlite3_step(select) == SQLITE_ROW; result->ops++)
		result->sum += first_word(select);
	must(db, sqlite3_finalize(select));
}

/* Forget what the kernel has in memory of the database. */
static void drop_cache(void)
{
	int fd = open(path, O_RDONLY);

	if (fd < 0 || fdatasync(fd) || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED))
		err(1, "%s", path);
	close(fd);
}

/* A counter of the system calls of this thread; or -1. */
static int open_counter(void)
{
	struct perf_event_attr attr = { .type = PERF_TYPE_TRACEPOINT, .size = sizeof(attr) };
	FILE *id = fopen("/sys/kernel/tracing/events/raw_syscalls/sys_enter/id", "r");
	unsigned long number;

	if (!id)
		return -1;
	if (fscanf(id, "%lu", &number) != 1)
		errx(1, "the tracepoint has no number");
	fclose(id);
	attr.config = number;
	return syscall(SYS_perf_event_open, &attr, 0, -1, -1, 0);
}

static unsigned long count_calls(int counter)
{
	uint64_t calls = 0;

	if (counter >= 0 && read(counter, &calls, sizeof(calls)) != sizeof(calls))
		err(1, "the counter of system calls");
	return calls;
}

static unsigned long count_faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt + usage.ru_majflt;
}

static double seconds(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

/* The number behind a word in a file. */
static unsigned long number_in(const char *name, const char *word)
{
	FILE *file = fopen(name, "r");
	unsigned long number;
	char first[64];

	if (!file)
		err(1, "%s", name);
	while (fscanf(file, "%63s %lu", first, &number) == 2)
		if (!strcmp(first, word)) {
			fclose(file);
			return number;
		}
	errx(1, "%s says nothing of %s", name, word);
}

/* The only number of a file in the memory cgroup, or, with @word, the number behind the word. */
static unsigned long cgroup_number(const char *file, const char *word)
{
	char name[PATH_MAX];
	unsigned long number;
	FILE *stream;

	snprintf(name, sizeof(name), "%s/%s", cgroup, file);
	if (word)
		return number_in(name, word);
	stream = fopen(name, "r");
	if (!stream || fscanf(stream, "%lu", &number) != 1)
		errx(1, "%s has no number", name);
	fclose(stream);
	return number;
}

/* What PRAGMA exmap says that the pool has evicted. Other VFSs have no such pragma: 0. */
static unsigned long count_pool_evictions(sqlite3 *db)
{
	unsigned long evicted = 0;
	sqlite3_stmt *status;
	const char *text;

	must(db, sqlite3_prepare_v2(db, "pragma exmap", -1, &status, NULL));
	if (sqlite3_step(status) == SQLITE_ROW) {
		text = strstr((const char *)sqlite3_column_text(status, 0), "evicted=");
		if (!text || sscanf(text, "evicted=%lu", &evicted) != 1)
			errx(1, "no exmap: %s", sqlite3_column_text(status, 0));
	}
	sqlite3_finalize(status);
	return evicted;
}

static unsigned long count_evictions(sqlite3 *db)
{
	return cgroup_number("memory.stat", "pgsteal") + count_pool_evictions(db);
}

static struct counts count(sqlite3 *db, int counter)
{
	return (struct counts){
		.read = number_in("/proc/self/io", "read_bytes:") / PAGE_BYTES,
		.evicted = count_evictions(db),
		.calls = count_calls(counter),
		.faults = count_faults(),
	};
}

/* Fill the memory. Go on, unless all fits into it, until as much was evicted as it can hold. */
static void warm_up(sqlite3 *db, const struct workload *workload)
{
	const unsigned long memory = cgroup_number("memory.max", NULL) / PAGE_BYTES;
	const unsigned long enough = count_evictions(db) + memory;
	struct result ignored = { .ops = 200 };
	uint64_t random = 1000;

	if (workload->fits) {
		for (int i = 0; i < 3; i++)
			scan(db, rows * workload->span / 1000, &ignored);
		return;
	}
	while (count_evictions(db) < enough)
		look_up(db, workload, random++, &ignored);
}

/* The process of a measurement. */
static struct result measure(const struct way *way, const struct workload *workload,
			     unsigned long round)
{
	struct result result = { .ops = ops };
	int counter = open_counter();
	sqlite3 *db;

	drop_cache();
	if (!strcmp(way->vfs, "exmap"))
		load_extension();
	db = open_database(way);
	/* One transaction, so that the system calls for locks do not count. */
	execute(db, "begin");
	if (way->is_random)
		advise_random(db);
	warm_up(db, workload);
	result.start = count(db, counter);
	result.seconds = -seconds(CLOCK_MONOTONIC);
	result.cpu_seconds = -seconds(CLOCK_PROCESS_CPUTIME_ID);
	if (!strcmp(workload->name, "scan"))
		scan(db, rows, &result);
	else
		look_up(db, workload, round, &result);
	result.cpu_seconds += seconds(CLOCK_PROCESS_CPUTIME_ID);
	result.seconds += seconds(CLOCK_MONOTONIC);
	result.end = count(db, counter);
	result.memory = cgroup_number("memory.current", NULL) / 1024;
	execute(db, "commit");
	sqlite3_close(db);
	return result;
}

/* Measure in a process of its own. */
static struct result measure_apart(const struct way *way, const struct workload *workload,
				   unsigned long round)
{
	struct result result;
	int ends[2], status;
	pid_t child;

	if (pipe(ends))
		err(1, "pipe");
	child = fork();
	if (child < 0)
		err(1, "fork");
	if (child == 0) {
		result = measure(way, workload, round);
		exit(write(ends[1], &result, sizeof(result)) != sizeof(result));
	}
	if (waitpid(child, &status, 0) != child || status ||
	    read(ends[0], &result, sizeof(result)) != sizeof(result))
		errx(1, "%s, %s: the measurement has failed", workload->name, way->name);
	close(ends[0]);
	close(ends[1]);
	return result;
}

static void print(const struct workload *workload, const struct way *way, unsigned long round,
		  const struct result *result)
{
	const struct counts *start = &result->start, *end = &result->end;
	const double ops = result->ops;

	printf("%s,\"%s\",%lu,%lu,%.0f,%.0f,%.3f,%.3f,%.3f,%.3f,%lu\n", workload->name, way->name,
	       round, result->ops, ops / result->seconds, result->cpu_seconds * 1e9 / ops,
	       (end->calls - start->calls) / ops, (end->faults - start->faults) / ops,
	       (end->read - start->read) / ops, (end->evicted - start->evicted) / ops,
	       result->memory);
	fflush(stdout);
}

/* One round. All ways must find the same. */
static void measure_ways(const struct workload *workload, unsigned long round)
{
	const size_t nr_ways = sizeof(ways) / sizeof(*ways);
	struct result result;
	uint64_t sum = 0;

	for (size_t i = 0; i < nr_ways; i++) {
		if (only_way && strcmp(only_way, ways[i].name))
			continue;
		result = measure_apart(&ways[i], workload, round);
		if (sum && result.sum != sum)
			errx(1, "%s found other rows", ways[i].name);
		sum = result.sum;
		print(workload, &ways[i], round, &result);
	}
}

static void measure_all(void)
{
	const size_t nr_workloads = sizeof(workloads) / sizeof(*workloads);

	puts("workload,way,round,operations,operations_per_second,cpu_nanoseconds,system_calls,faults,"
	     "pages_read,pages_evicted,memory_kib");
	fflush(stdout);		/* before fork */
	for (size_t w = 0; w < nr_workloads; w++) {
		if (only_workload && strcmp(only_workload, workloads[w].name))
			continue;
		for (unsigned long round = 0; round < rounds; round++)
			measure_ways(&workloads[w], round);
	}
}

/* Find the memory cgroup of this process, whose limit the memory has. */
static void find_cgroup(void)
{
	FILE *file = fopen("/proc/self/cgroup", "r");
	char path[PATH_MAX];

	if (!file || fscanf(file, "0::%4095s", path) != 1 ||
	    asprintf(&cgroup, "/sys/fs/cgroup%s", path) < 0)
		errx(1, "this needs version 2 of cgroups");
	fclose(file);
}

static const struct argp_option options[] = {
	{ "data", 1, "MIB", .doc = "about the size of the database (default 112)" },
	{ "pool", 2, "MIB", .doc = "memory for exmap's pages, or for SQLite's cache (default 10)" },
	{ "ops", 3, "N", .doc = "lookups in a measurement (default 10000)" },
	{ "rounds", 4, "N", .doc = "measurements of each kind (default 3); 0: only fill" },
	{ "way", 5, "NAME", .doc = "measure only this one, such as exmap" },
	{ "workload", 6, "NAME", .doc = "measure only this one, such as uniform" },
	{ }
};

static error_t option(int key, char *text, struct argp_state *state)
{
	unsigned long *const number[] = { &data, &pool, &ops, &rounds };
	char rest;

	if (key == ARGP_KEY_ARG && !path)
		path = text;
	else if (key == 5)
		only_way = text;
	else if (key == 6)
		only_workload = text;
	else if (key < 1 || key > 4)
		return ARGP_ERR_UNKNOWN;
	else if (strchr(text, '-') || sscanf(text, "%9lu%c", number[key - 1], &rest) != 1)
		errx(1, "'%s' is not a number of up to 9 digits: see --help", text);
	return 0;
}

int main(int argc, char **argv)
{
	const struct argp argp = {
		options, option, "DATABASE",
		.doc = "Measure SQLite on DATABASE, which is filled if it does not exist, with and "
		       "without exmap, in a memory cgroup with a limit. Writes CSV; the figures from "
		       "cpu_nanoseconds to pages_evicted are for one operation."
	};
	char *slash;

	argp_err_exit_status = 1;
	argp_parse(&argp, argc, argv, 0, NULL, NULL);
	if (!path || !data || !pool || !ops)
		errx(1, "DATABASE is missing, or an option is out of range: see --help");
	if (access("/dev/exmap", F_OK))
		errx(77, "/dev/exmap does not exist: load the module (modprobe exmap)");
	extension = strdup(argv[0]);
	slash = strrchr(extension, '/');
	if (!slash || asprintf((char **)&extension, "%.*s/exmap_vfs", (int)(slash - extension),
			       extension) < 0)
		errx(1, "call this program by its path");
	rows = (data << 20) / PAGE_BYTES * 4;
	if (access(path, F_OK))
		fill_database();
	if (rounds) {
		find_cgroup();
		measure_all();
	}
	return 0;
}
