// SPDX-License-Identifier: GPL-2.0
/*
 * What each call of exmap costs per page, and what the kernel offers instead. It is meant for a
 * clock that advances one nanosecond with each instruction (vm/run -i).
 *
 * Each figure is for 4096 pages, the best of three rounds, and includes the two readings of the
 * clock around each call. Every operation has run before, so the pages are in the pool and the
 * page tables exist; alloc-new alone is the first ALLOC.
 */
#include "batch.h"

#include <sys/syscall.h>
#include <sys/uio.h>

#include "tests/arch.h"

#define TOTAL 4096U	/* pages per round */
#define ROUNDS 3
#define MAX_STRIDE 16

/* Some releases of the C library do not have this. */
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

static struct exmap exmap;
static struct exmap_interface interface[2];
static char *anonymous;
static uint64_t spent;

/* Evaluates to the value of @call, and adds the time that it takes to @spent. */
#define timed(call) ({					\
	uint64_t start_ = bench_nanoseconds();		\
	long ret_ = (long)(call);			\
							\
	spent += bench_nanoseconds() - start_;		\
	ret_;						\
})

/* Run a batch of single pages at one interface. Only the time of the call itself counts. */
static void call(int which, unsigned int opcode, uint64_t page, unsigned int batch,
		 unsigned int stride)
{
	unsigned int i;

	exmap_batch_clear(&interface[which]);
	for (i = 0; i < batch; i++)
		exmap_batch_add(&interface[which], page + i * stride, 1);
	spent += bench_timed_action(&interface[which], opcode);
}

/* Run batches for all pages of a round. */
static void sweep(int which, unsigned int opcode, unsigned int batch, unsigned int stride)
{
	unsigned int done;

	for (done = 0; done < TOTAL; done += batch)
		call(which, opcode, (uint64_t)done * stride, batch, stride);
}

static void keep_best(uint64_t *best)
{
	if (spent < *best)
		*best = spent;
	spent = 0;
}

static void print(const char *operation, unsigned int batch, unsigned int stride, uint64_t best)
{
	printf("%s,%u,%u,%.1f\n", operation, batch, stride, (double)best / TOTAL);
	fflush(stdout);
}

/* ALLOC or READ at interface 0, and FREE at interface @free_at. */
static void alloc_and_free(const char *name, unsigned int opcode, int free_at, unsigned int batch,
			   unsigned int stride)
{
	uint64_t first = UINT64_MAX, second = UINT64_MAX;
	int round;

	spent = 0;
	for (round = 0; round <= ROUNDS; round++) {
		sweep(0, opcode, batch, stride);
		keep_best(&first);
		sweep(free_at, EXMAP_OP_FREE, batch, stride);
		keep_best(&second);
	}
	print(name, batch, stride, first);
	if (opcode == EXMAP_OP_ALLOC)
		print(free_at ? "free-elsewhere" : "free", batch, stride, second);
}

/* FREE with deferred flushes. The flushes count, and so does a FLUSH at the end of each round. */
static void free_deferred(unsigned int batch)
{
	uint64_t best = UINT64_MAX;
	int round, err;

	for (round = 0; round <= ROUNDS; round++) {
		sweep(0, EXMAP_OP_ALLOC, batch, 1);
		spent = 0;
		exmap_defer(&interface[0], 1);
		sweep(0, EXMAP_OP_FREE, batch, 1);
		exmap_defer(&interface[0], 0);
		err = timed(exmap_flush(&interface[0]));
		if (err)
			bench_fail_with("a FLUSH", err);
		keep_best(&best);
	}
	print("free-deferred", batch, 1, best);
}

/* Calls of exmap_run(), which go by fadvise64(2), over all pages. */
static void sweep_runs(unsigned int opcode, unsigned int pages)
{
	unsigned int done;

	for (done = 0; done < TOTAL; done += pages)
		if (timed(exmap_run(&interface[0], opcode, done, pages)) != pages)
			bench_fail_with("a run", -EIO);
}

/* ALLOC or READ, and FREE, of adjacent pages by fadvise64(2). */
static void runs(const char *name, unsigned int opcode, unsigned int pages)
{
	uint64_t first = UINT64_MAX, second = UINT64_MAX;
	int round;

	spent = 0;
	for (round = 0; round <= ROUNDS; round++) {
		sweep_runs(opcode, pages);
		keep_best(&first);
		sweep_runs(EXMAP_OP_FREE, pages);
		keep_best(&second);
	}
	print(name, pages, 1, first);
	if (opcode == EXMAP_OP_ALLOC)
		print("free-run", pages, 1, second);
}

/* ALLOC of adjacent pages by pread(2). */
static void alloc_by_pread(unsigned int pages)
{
	const size_t size = pages * EXMAP_PAGE_SIZE;
	const off_t offset = EXMAP_OP_ALLOC << 8 | interface[0].number;
	uint64_t best = UINT64_MAX;
	unsigned int done;
	int round;

	for (round = 0; round <= ROUNDS; round++) {
		spent = 0;
		for (done = 0; done < TOTAL; done += pages)
			if (timed(pread(interface[0].fd, exmap_address(&exmap, done), size, offset)) !=
			    (ssize_t)size)
				bench_fail_with("an ALLOC by pread", -errno);
		keep_best(&best);
		sweep_runs(EXMAP_OP_FREE, pages);
	}
	print("alloc-pread", pages, 1, best);
}

/* The same with deferred flushes; these count. */
static void runs_deferred(unsigned int pages)
{
	uint64_t best = UINT64_MAX;
	int round;

	for (round = 0; round <= ROUNDS; round++) {
		sweep_runs(EXMAP_OP_ALLOC, pages);
		spent = 0;
		exmap_defer(&interface[0], 1);
		sweep_runs(EXMAP_OP_FREE, pages);
		exmap_defer(&interface[0], 0);
		if (timed(exmap_flush(&interface[0])))
			bench_fail_with("a FLUSH", -EIO);
		keep_best(&best);
	}
	print("free-run-deferred", pages, 1, best);
}

/* ALLOC at interface 0 of pages that interface 1 has freed. No other page is free. */
static void steal(unsigned int batch)
{
	uint64_t best = UINT64_MAX, discarded;
	unsigned int done;
	int round;

	for (round = 0; round <= ROUNDS; round++) {
		spent = 0;
		for (done = 0; done < TOTAL; done += batch) {
			call(0, EXMAP_OP_ALLOC, done, batch, 1);
			discarded = spent;
			call(1, EXMAP_OP_FREE, done, batch, 1);
			spent = discarded;
		}
		keep_best(&best);
	}
	print("steal", batch, 1, best);
}

/*
 * ALLOC and FREE together, in the scenarios of the paper. 1 IF and 2 IF free each batch before
 * they allocate the next. In the pool, @on_the_way pages are mapped before the first is freed.
 */
static void scenario(const char *name, int free_at, unsigned int on_the_way)
{
	uint64_t best = UINT64_MAX;
	unsigned int done, i;
	int round;

	for (round = 0; round <= ROUNDS; round++) {
		spent = 0;
		for (done = 0; done < TOTAL; done += on_the_way) {
			for (i = 0; i < on_the_way; i += 512)
				call(0, EXMAP_OP_ALLOC, done + i, 512, 1);
			for (i = 0; i < on_the_way; i += 512)
				call(free_at, EXMAP_OP_FREE, done + i, 512, 1);
		}
		keep_best(&best);
	}
	print(name, 512, 1, best);
}

/* The first write to each page after ALLOC. */
static void touch(void)
{
	uint64_t best = UINT64_MAX;
	unsigned int i;
	int round;

	for (round = 0; round < ROUNDS; round++) {
		sweep(0, EXMAP_OP_ALLOC, 512, 1);
		spent = 0;
		for (i = 0; i < TOTAL; i++)
			timed(*(volatile char *)exmap_address(&exmap, i) = 1);
		keep_best(&best);
		sweep(0, EXMAP_OP_FREE, 512, 1);
	}
	print("touch", 1, 1, best);
}

/* What the kernel offers instead, with anonymous memory. */

static void touch_anonymous(void)
{
	unsigned int i;

	for (i = 0; i < TOTAL; i++)
		*(volatile char *)(anonymous + i * EXMAP_PAGE_SIZE) = 1;
}

static void fault_and_madvise(void)
{
	uint64_t fault = UINT64_MAX, free = UINT64_MAX;
	unsigned int i;
	int round;

	for (round = 0; round < ROUNDS; round++) {
		spent = 0;
		for (i = 0; i < TOTAL; i++)
			timed(*(volatile char *)(anonymous + i * EXMAP_PAGE_SIZE) = 1);
		keep_best(&fault);
		for (i = 0; i < TOTAL; i++)
			if (timed(madvise(anonymous + i * EXMAP_PAGE_SIZE, EXMAP_PAGE_SIZE,
					  MADV_DONTNEED)))
				bench_fail_with("MADV_DONTNEED", -errno);
		keep_best(&free);
	}
	print("fault", 1, 1, fault);
	print("madvise", 1, 1, free);
}

static void populate(void)
{
	uint64_t best = UINT64_MAX;
	unsigned int i;
	int round;

	for (round = 0; round < ROUNDS; round++) {
		spent = 0;
		for (i = 0; i < TOTAL; i += 512)
			if (timed(madvise(anonymous + i * EXMAP_PAGE_SIZE, 512 * EXMAP_PAGE_SIZE,
					  MADV_POPULATE_WRITE)))
				bench_fail_with("MADV_POPULATE_WRITE", -errno);
		keep_best(&best);
		madvise(anonymous, TOTAL * EXMAP_PAGE_SIZE, MADV_DONTNEED);
	}
	print("populate", 512, 1, best);
}

/* Before Linux 6.13 the kernel refuses this for the own process. Then no line is printed. */
static void process_madvise_batches(void)
{
	int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
	struct iovec iovec[512];
	uint64_t best = UINT64_MAX;
	unsigned int i, j;
	int round;

	for (round = 0; round < ROUNDS; round++) {
		touch_anonymous();
		spent = 0;
		for (i = 0; i < TOTAL; i += 512) {
			for (j = 0; j < 512; j++)
				iovec[j] = (struct iovec){
					/* Every other page, so that none can be merged. */
					anonymous + ((i + j) * 2) % TOTAL * EXMAP_PAGE_SIZE +
						(i + j) * 2 / TOTAL * EXMAP_PAGE_SIZE,
					EXMAP_PAGE_SIZE };
			if (timed(syscall(SYS_process_madvise, self, iovec, 512, MADV_DONTNEED, 0)) < 0)
				return;
		}
		keep_best(&best);
	}
	print("process_madvise", 512, 1, best);
	close(self);
}

static int zero(char *page)
{
	arch_zero_page(page);
	return 0;
}

/* The costs that no call can avoid: a system call, an ioctl that is refused, zeroing a page. */
static void floors(void)
{
	static char page[4096] __attribute__((aligned(4096)));
	unsigned int i;

	spent = 0;
	for (i = 0; i < TOTAL; i++)
		timed(syscall(SYS_getppid));
	print("syscall", 1, 1, spent);
	spent = 0;
	for (i = 0; i < TOTAL; i++)
		timed(ioctl(exmap.fd, _IO('k', 99), NULL));
	print("refused", 1, 1, spent);
	spent = 0;
	for (i = 0; i < TOTAL; i++)
		timed(zero(page));
	print("zeroing", 1, 1, spent);
}

static void set_up(uint64_t pool, int backing)
{
	int err, i;

	err = exmap_open(&exmap, TOTAL * MAX_STRIDE, pool, 2, backing, 0);
	for (i = 0; i < 2 && !err; i++)
		err = exmap_attach(&exmap, &interface[i]);
	if (err)
		bench_fail_with("an exmap", err);
}

static void tear_down(void)
{
	exmap_detach(&interface[0]);
	exmap_detach(&interface[1]);
	exmap_close(&exmap);
}

static void usage(void)
{
	puts("usage: bench/bench-cost [DEVICE]\n"
	     "\n"
	     "Prints what each call costs per page, as\n"
	     "  operation,batch,stride,nanoseconds_per_page\n"
	     "With the clock of vm/run -i, nanoseconds are instructions. READ is measured only if\n"
	     "a DEVICE of 256 MiB is given. make cost makes a table of the output.");
}

int main(int argc, char **argv)
{
	static const unsigned int batches[] = { 1, 8, 64, 512 };
	static const unsigned int strides[] = { 1, MAX_STRIDE };
	int backing = -1;
	unsigned int i, j;

	if (argc > 2 || (argc == 2 && argv[1][0] == '-')) {
		usage();
		return argc != 2 || strcmp(argv[1], "--help");
	}
	if (argc == 2)
		backing = open(argv[1], O_RDONLY | O_DIRECT);
	if (argc == 2 && backing < 0)
		bench_fail_with(argv[1], -errno);
	anonymous = mmap(NULL, TOTAL * EXMAP_PAGE_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (anonymous == MAP_FAILED)
		bench_fail_with("anonymous memory", -errno);
	madvise(anonymous, TOTAL * EXMAP_PAGE_SIZE, MADV_NOHUGEPAGE);

	puts("operation,batch,stride,nanoseconds_per_page");
	set_up(TOTAL, backing);
	spent = 0;
	sweep(0, EXMAP_OP_ALLOC, 512, 1);
	print("alloc-new", 512, 1, spent);
	sweep(0, EXMAP_OP_FREE, 512, 1);
	for (i = 0; i < 2; i++)
		for (j = 0; j < 4; j++)
			alloc_and_free("alloc", EXMAP_OP_ALLOC, 0, batches[j], strides[i]);
	for (j = 0; j < 4; j++)
		free_deferred(batches[j]);
	for (j = 0; j < 4; j++) {
		runs("alloc-run", EXMAP_OP_ALLOC, batches[j]);
		runs_deferred(batches[j]);
		alloc_by_pread(batches[j]);
	}
	alloc_and_free("alloc-elsewhere", EXMAP_OP_ALLOC, 1, 512, 1);
	scenario("1if", 0, 512);
	scenario("2if", 1, 512);
	scenario("pool", 1, TOTAL);
	touch();
	for (j = 0; backing >= 0 && j < 4; j++)
		alloc_and_free("read", EXMAP_OP_READ, 0, batches[j], MAX_STRIDE);
	for (j = 0; backing >= 0 && j < 4; j++)
		runs("read-run", EXMAP_OP_READ, batches[j]);
	floors();
	tear_down();

	set_up(512, -1);
	steal(512);
	steal(64);
	tear_down();

	fault_and_madvise();
	populate();
	process_madvise_batches();
	return 0;
}
