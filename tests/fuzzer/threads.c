// SPDX-License-Identifier: GPL-2.0
/*
 * Steps of several threads that disturb each other, and what each thread can check.
 *
 * own_*() are calls on the stripe of the thread, which knows their outcome. any_*() are calls on
 * what all threads share.
 */
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "fuzzer.h"

#define ROUND 300		/* steps of a thread between two pauses */

static pthread_barrier_t pause_begins, pause_ends;
static atomic_bool enough;

/* The first page after the stripes: from here on every thread maps and unmaps pages. */
static unsigned int first_shared(void)
{
	return options.threads * STRIPE;
}

static void pick_shared(const struct exmap *ex, unsigned int *page, unsigned int *len)
{
	unsigned int first = first_shared(), pages = ex->pages - first;

	*page = first + (pages ? one_in(2) ? below(HOT) : below(pages) : 0);
	*len = one_in(64) ? below(4096) : 1 + below(16);
	if (*len > ex->pages - *page)
		*len = ex->pages - *page;
}

static unsigned int shared_interface(void)
{
	return options.threads + below(SHARED);
}

/*
 * Get the generation of an exmap in which this thread knows its stripe. Returns false if the exmap
 * is being replaced.
 */
static bool enter_stripe(struct exmap *ex, unsigned int *generation)
{
	const unsigned int slot = ex - exmaps;
	struct exmap_iov *iov = interface_of(ex, me.number)->iov;

	*generation = atomic_load(&ex->generation);
	if (*generation % 2)
		return false;
	if (*generation == me.generation[slot])
		return true;
	/* A call for the last generation that came too late may have mapped pages here. */
	me.request[0] = iov[0] = (struct exmap_iov){ .page = me.number * STRIPE, .len = STRIPE };
	if (action(ex, fd_of(ex, 0), me.number, EXMAP_OP_FREE, 1, 0))
		return false;
	if (atomic_load(&ex->generation) != *generation)
		return false;
	me.generation[slot] = *generation;
	me.owned[slot] = 0;
	me.due[slot] = ~0UL;
	return true;
}

/* May a call have this result because the pool is empty? */
static bool may_be_empty(const struct exmap *ex, long ret)
{
	return ret == -ENOMEM && !ex->quota;
}

/* May the thread map these pages of its stripe as well? */
static bool within_quota(const struct exmap *ex, uint64_t mask)
{
	return !ex->quota || __builtin_popcountl(me.owned[ex - exmaps] | mask) <= (int)ex->quota;
}

/* Is it still the same exmap? Only then is a wrong result a failure. */
static bool still(struct exmap *ex, unsigned int generation)
{
	return atomic_load(&ex->generation) == generation;
}

/* A page of the stripe must hold tags of its own place; any thread may have written them. */
static void check_owned(struct exmap *ex, unsigned int generation, unsigned int page, bool is_new)
{
	struct content got;
	uint64_t between;
	int number = load(ex, page, &got, &between);

	if (!still(ex, generation))
		return;
	if (number)
		fail("page %u is mapped, but a touch got signal %d", page, number);
	check_own(ex, page, got, between);
	if ((!is_new && (!got.first || !got.last)) ||
	    (got.first && (got.first >> 20 & 0xffff) != page) ||
	    (got.last && (got.last >> 20 & 0xffff) != page))
		fail("page %u holds %#lx and %#lx, the tags of another page", page, got.first,
		     got.last);
}

/* A page of the stripe is not mapped. Until its flush, a touch may find the old page, no other. */
static void check_not_owned(struct exmap *ex, unsigned int generation, unsigned int page)
{
	bool due = me.due[ex - exmaps] >> page % STRIPE & 1;
	struct content got;
	uint64_t between;

	/* A touch by another thread may have mapped it. */
	if (ex->flags & EXMAP_PAGEFAULT_ALLOC)
		return;
	if (load(ex, page, &got, &between) || !still(ex, generation))
		return;
	if (!due)
		fail("page %u is not mapped, but a touch finds %#lx", page, got.first);
	check_own(ex, page, got, between);
	if ((got.first >> 20 & 0xffff) != page || (got.last >> 20 & 0xffff) != page)
		fail("page %u was freed, but holds %#lx and %#lx before its flush, "
		     "the tags of another page", page, got.first, got.last);
}

/* A touch must find the page that is mapped. */
static void check_owned_table(struct exmap *ex, unsigned int generation, unsigned int page)
{
	uint64_t word;

	if (!load_by_table(ex, page, &word) || !still(ex, generation))
		return;
	if (!is_own(ex, word) || (word >> 20 & 0xffff) != page)
		fail("page %u holds %#lx, but a touch finds another page", page, word);
}

static void tag_owned(struct exmap *ex, unsigned int generation, unsigned int page)
{
	int number = store(ex, page, new_tag(ex, page));

	if (number && still(ex, generation))
		fail("page %u is mapped, but a touch got signal %d", page, number);
	if (one_in(4))
		check_owned_table(ex, generation, page);
}

/* Check an entry that succeeded, and note what it has changed in the stripe. */
static void own_entry(struct exmap *ex, unsigned int generation, unsigned int opcode, bool defer,
		      unsigned int page, unsigned int len, struct exmap_iov answer)
{
	uint64_t mask = (len < 64 ? (1UL << len) - 1 : ~0UL) << page;
	uint64_t *owned = &me.owned[ex - exmaps], *due = &me.due[ex - exmaps];
	bool fills = opcode == EXMAP_OP_ALLOC || opcode == EXMAP_OP_READ;
	uint64_t done = fills ? mask & ~*owned : mask & *owned;
	unsigned int first = me.number * STRIPE;

	/* If a touch maps pages, another thread may have mapped some of these. */
	if (answer.pages != __builtin_popcountl(done) && !(ex->flags & EXMAP_PAGEFAULT_ALLOC))
		fail("%u+%u: pages %d, expected %d", first + page, len, answer.pages,
		     __builtin_popcountl(done));
	if (opcode == EXMAP_OP_FREE)
		*owned &= ~mask;
	else if (fills)
		*owned |= mask;
	if (defer)
		*due |= done;
	else if (fills)
		*due &= ~mask;
	for (; fills && done; done &= done - 1) {
		page = first + __builtin_ctzl(done);
		if (opcode == EXMAP_OP_READ && !(ex->flags & EXMAP_PAGEFAULT_ALLOC))
			check_owned(ex, generation, page, true);
		tag_owned(ex, generation, page);
	}
}

/* Make a call on the stripe with the entries in me.request, and check its answers. */
static void own_call(struct exmap *ex, unsigned int generation, unsigned int opcode, bool defer,
		     unsigned int nr)
{
	const struct call call = { opcode, me.number, defer ? EXMAP_FREE_DEFER : 0 };
	struct exmap_iov *entries = interface_of(ex, me.number)->iov, iov[4];
	long got, failed = 0;

	if (nr == 1 && one_in(2)) {
		got = advise(ex, fd_of(ex, below(FDS)), &call, me.request[0]);
		if (got >= 0) {
			iov[0] = (struct exmap_iov){ .res = 0, .pages = got };
			got = 0;
		}
	} else {
		memcpy(entries, me.request, nr * sizeof(*iov));
		got = action(ex, fd_of(ex, below(FDS)), me.number, opcode, nr, call.flags);
		/* Copied before it is checked: the interface may be unmapped at any time. */
		memcpy(iov, entries, nr * sizeof(*iov));
	}
	if (!still(ex, generation))
		return;
	if (got < 0) {
		if ((needs_file(opcode) && ex->file < 0 ? got != -EOPNOTSUPP :
							  !may_be_empty(ex, got)) &&
		    still(ex, generation))
			fail("returned %ld", got);
		return;
	}
	for (unsigned int i = 0; i < nr; i++) {
		if (iov[i].res && (!may_be_empty(ex, iov[i].res) || iov[i].pages))
			fail("entry %u: res %d, pages %d", i, iov[i].res, iov[i].pages);
		failed += iov[i].res != 0;
		if (!iov[i].res)
			own_entry(ex, generation, opcode, defer, me.request[i].page % STRIPE,
				  me.request[i].len, iov[i]);
	}
	if (got != failed && still(ex, generation))
		fail("returned %ld, expected %ld", got, failed);
}

static void own_action(struct exmap *ex)
{
	static const uint8_t opcodes[] = {
		EXMAP_OP_ALLOC, EXMAP_OP_FREE, EXMAP_OP_ALLOC, EXMAP_OP_FREE, EXMAP_OP_READ,
		EXMAP_OP_WRITE,
	};
	unsigned int opcode = opcodes[below(sizeof(opcodes))], generation, page;
	unsigned int nr = ex->quota ? 1 : 1 + below(4), most = ex->quota ? 1 + below(2) : 8;

	if (!enter_stripe(ex, &generation))
		return;
	for (unsigned int i = 0; i < nr; i++) {
		page = below(STRIPE);
		me.request[i] = (struct exmap_iov){
			.page = me.number * STRIPE + page, .len = 1 + below(STRIPE - page) % most,
		};
		if (!within_quota(ex, ((1UL << me.request[i].len) - 1) << page))
			opcode = EXMAP_OP_FREE;
	}
	own_call(ex, generation, opcode, opcode == EXMAP_OP_FREE && one_in(2), nr);
}

/*
 * Like own_action(), but by pread, which needs no entries. So the call can use an interface at
 * which other threads free pages.
 */
static void own_proxy(struct exmap *ex)
{
	unsigned int opcode = ex->file >= 0 && one_in(4) ? EXMAP_OP_READ : EXMAP_OP_ALLOC;
	unsigned int first = below(STRIPE), len = 1 + below(STRIPE - first) % (ex->quota ? 2 : 8);
	unsigned int page = me.number * STRIPE + first, generation;
	uint64_t mask = ((1UL << len) - 1) << first, done;
	long got;

	if (!enter_stripe(ex, &generation) || !within_quota(ex, mask))
		return;
	note(ex, 0, "opcode %ld by pread, own stripe: %ld+%ld", opcode, page, len);
	got = counted(pread(fd_of(ex, below(FDS)), address(ex, page), len * PAGE,
			    opcode << 8 | shared_interface()));
	if (!still(ex, generation) || may_be_empty(ex, got))
		return;
	if (got != (long)(len * PAGE))
		fail("returned %ld, expected %lu", got, len * PAGE);
	done = mask & ~me.owned[ex - exmaps];
	me.owned[ex - exmaps] |= mask;
	me.due[ex - exmaps] &= ~mask;
	for (uint64_t left = done; left; left &= left - 1)
		tag_owned(ex, generation, me.number * STRIPE + __builtin_ctzl(left));
	/* Give other threads time to write to these pages, if a stale TLB entry still lets them. */
	for (int i = 0; i < 16; i++)
		for (uint64_t left = done; left; left &= left - 1)
			check_owned(ex, generation, me.number * STRIPE + __builtin_ctzl(left),
				    false);
}

static void own_touch(struct exmap *ex)
{
	unsigned int page, generation;

	note(ex, 0, "look at the stripe");
	if (!enter_stripe(ex, &generation))
		return;
	for (int i = 0; i < 4; i++) {
		page = below(STRIPE);
		if (me.owned[ex - exmaps] >> page & 1)
			check_owned(ex, generation, me.number * STRIPE + page, false);
		else
			check_not_owned(ex, generation, me.number * STRIPE + page);
	}
}

/* FLUSH. Afterwards no touch may find a page that was freed before. */
static void own_flush(struct exmap *ex)
{
	uint64_t was;
	unsigned int generation;
	long got;

	if (!enter_stripe(ex, &generation))
		return;
	got = action(ex, fd_of(ex, below(FDS)), me.number, EXMAP_OP_FLUSH, 0, 0);
	if (!still(ex, generation))
		return;
	if (got)
		fail("returned %ld", got);
	was = me.due[ex - exmaps];
	me.due[ex - exmaps] = 0;
	for (; was; was &= was - 1)
		check_not_owned(ex, generation, me.number * STRIPE + __builtin_ctzl(was));
}

/* Free a page that is in the TLB with EXMAP_FREE_DEFER, and map it again. */
static void own_defer(struct exmap *ex)
{
	unsigned int page = below(STRIPE), generation;

	if (!enter_stripe(ex, &generation) || !(me.owned[ex - exmaps] >> page & 1))
		return;
	page += me.number * STRIPE;
	tag_owned(ex, generation, page);
	me.request[0] = (struct exmap_iov){ .page = page, .len = 1 };
	own_call(ex, generation, EXMAP_OP_FREE, true, 1);
	check_not_owned(ex, generation, page);
	if (still(ex, generation))
		own_call(ex, generation, EXMAP_OP_ALLOC, false, 1);
}

/* Touch any page, also in the stripes of other threads. */
static void any_touch(struct exmap *ex)
{
	struct content got;
	unsigned int page;
	uint64_t between;

	note(ex, 0, "touch any page");
	for (int i = 0; i < 4; i++) {
		page = one_in(2) ? below(first_shared() + 64) : below(ex->pages);
		if (one_in(2))
			store(ex, page, new_tag(ex, page));
		else if (!load(ex, page, &got, &between))
			check_own(ex, page, got, between);
	}
}

/* Write to a page until it is freed, and beyond if this CPU has a stale TLB entry. */
static void any_hammer(struct exmap *ex)
{
	unsigned int page = first_shared() + below(HOT);
	uint64_t tag = new_tag(ex, page);

	note(ex, 0, "write to page %ld, over and over", page);
	for (int i = 0; i < 1000; i++)
		if (store(ex, page, tag))
			break;
}

/* Write entries into an interface that any thread, or none, will use for a call. */
static void any_entries(struct exmap *ex)
{
	struct exmap_iov *iov = interface_of(ex, shared_interface())->iov;
	unsigned int page, len;

	for (unsigned int i = 1 + below(16); i; i--) {
		pick_shared(ex, &page, &len);
		if (one_in(16))
			page = ex->pages + below(100);
		iov[one_in(4) ? below(ENTRIES) : below(16)] =
			(struct exmap_iov){ .page = page, .len = len };
	}
}

static bool may_fail_with(long ret)
{
	return ret == -ENOMEM || ret == -EPROTO || ret == -EBADF || ret == -EOPNOTSUPP ||
	       ret == -EFAULT;
}

static void any_action(struct exmap *ex)
{
	unsigned int nr = one_in(16) ? below(ENTRIES + 1) : 1 + below(8);
	unsigned int interface = shared_interface();
	unsigned int opcode = one_in(3) ? EXMAP_OP_FREE : below(4);
	uint64_t flags = below(2);
	long got;

	if (opcode == EXMAP_OP_FREE && one_in(2))
		flags |= EXMAP_FREE_DEFER;
	any_entries(ex);
	note(ex, 0, "ACTION at shared interface %ld", interface);
	got = counted(action_at(fd_of(ex, below(FDS)), interface, opcode, nr, flags));
	if (got > nr || (got < 0 && !may_fail_with(got)))
		fail("returned %ld", got);
}

/* FLUSH at any interface, which may belong to another thread. */
static void any_flush(struct exmap *ex)
{
	unsigned int interface = below(options.threads + SHARED);
	long got;

	note(ex, 0, "FLUSH at interface %ld", interface);
	got = counted(action_at(fd_of(ex, below(FDS)), interface, EXMAP_OP_FLUSH, 0, 0));
	if (got && !may_fail_with(got))
		fail("returned %ld", got);
}

static void any_proxy(struct exmap *ex)
{
	static const uint8_t opcodes[] = { EXMAP_OP_READ, EXMAP_OP_ALLOC, EXMAP_OP_WRITE };
	unsigned int opcode = opcodes[below(3)], page, len;
	uint64_t offset = opcode << 8 | shared_interface();
	long got;

	pick_shared(ex, &page, &len);
	note(ex, 0, "opcode %ld by pread or pwrite: %ld+%ld", opcode, page, len);
	if (opcode == EXMAP_OP_WRITE)
		got = pwrite(fd_of(ex, below(FDS)), address(ex, page), len * PAGE, offset);
	else
		got = pread(fd_of(ex, below(FDS)), address(ex, page), len * PAGE, offset);
	got = counted(got);
	/* READ gives up if other threads map and free a page each time that it is read. */
	if (opcode == EXMAP_OP_READ && got == -EBUSY)
		return;
	if (got > (long)(len * PAGE) || (got > 0 && got % PAGE) || (got < 0 && !may_fail_with(got)))
		fail("returned %ld", got);
}

static void any_stats(struct exmap *ex)
{
	struct exmap_ioctl_stats stats;
	unsigned int generation = atomic_load(&ex->generation), pool = ex->pool;
	long got = counted(ioctl(fd_of(ex, 0), EXMAP_IOCTL_STATS, &stats));

	note(ex, 0, "STATS");
	/*
	 * alloc_count is not checked: while calls are at work, the share of each interface may be
	 * off by one call.
	 */
	if (generation % 2 == 0 && still(ex, generation) && (got || stats.buffer_size != pool))
		fail("returned %ld, buffer_size %lu", got, stats.buffer_size);
}

static void any_madvise(struct exmap *ex)
{
	static const uint8_t advices[] = {
		MADV_DONTNEED, MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_NORMAL, MADV_RANDOM,
		MADV_COLD, MADV_PAGEOUT, MADV_FREE, MADV_REMOVE, MADV_DONTFORK, MADV_DOFORK,
		22, 23, 25,
	};
	unsigned int page, len;
	int advice = advices[below(sizeof(advices))];

	pick_shared(ex, &page, &len);
	note(ex, 0, "madvise(%ld): %ld+%ld", advice, page, len);
	counted(madvise(address(ex, page), len * PAGE, advice));
}

/* Give back free pages or page tables. Nothing else may change. */
static void any_trim(struct exmap *ex)
{
	struct exmap_ioctl_trim trim = { .flags = one_in(2) ? EXMAP_TRIM_TABLES : 0 };

	note(ex, 0, "trim(%ld)", trim.flags);
	counted(ioctl(any_fd(ex), EXMAP_IOCTL_TRIM, &trim));
}

/* While the exmap is replaced, such a call could unmap addresses that nothing reserves. */
static void any_mapping(struct exmap *ex)
{
	unsigned int page, len;

	if (pthread_rwlock_tryrdlock(&ex->lock))
		return;
	pick_shared(ex, &page, &len);
	if (len && one_in(2))
		cannot_be_split(ex, page, len);
	else if (len)
		use_mapping(ex, page, len);
	pthread_rwlock_unlock(&ex->lock);
}

static void any_clone(struct exmap *ex)
{
	if (pthread_rwlock_tryrdlock(&ex->lock))
		return;
	make_clone(ex, fd_of(ex, 0), 1 + below(FDS - 1));
	pthread_rwlock_unlock(&ex->lock);
}

static void any_fork(struct exmap *ex)
{
	if (pthread_rwlock_tryrdlock(&ex->lock))
		return;
	do_fork(ex);
	pthread_rwlock_unlock(&ex->lock);
}

/*
 * The last exmap has only stripes, and a pool of exactly the pages that the quotas of all threads
 * allow. So a call within the quota of its thread must always find free pages, wherever they are.
 */
static void shared_make(struct exmap *ex)
{
	unsigned int slot = ex - exmaps, first = first_shared();

	ex->number = slot;
	ex->quota = slot == SLOTS - 1 ? 1 + below(4) : 0;
	ex->pages = ex->quota ? first : 2 * MAX_THREADS * STRIPE + below(4096);
	ex->pool = ex->quota ? ex->quota * options.threads :
		one_in(2) ? first / 2 + below(first) : 1 + below(3000);
	ex->interfaces = options.threads + SHARED;
	ex->flags = slot == 0 ? EXMAP_PAGEFAULT_ALLOC : 0;
	ex->surface = window_of(ex) + (slot * 100 + 1) * PAGE;
	ex->file = -1;
	ex->read_only = false;
	if (slot % 2 == 0) {
		ex->file = memfd_create("test-fuzz", MFD_CLOEXEC);
		die_if(ex->file < 0 ||
		       ftruncate(ex->file, (first + below(ex->pages - first)) * PAGE + 100));
	}
	make(ex, ex->file);
	for (; ex->fds < FDS; ex->fds++)
		make_clone(ex, fd_of(ex, 0), ex->fds);
}

static void replace(struct exmap *ex)
{
	bool surface_first = one_in(2);

	if (pthread_rwlock_trywrlock(&ex->lock))
		return;
	atomic_fetch_add(&ex->generation, 1);
	if (one_in(2))
		unmap_interfaces(ex);
	if (surface_first)
		reserve(ex->surface, ex->pages * PAGE);
	close_fds(ex);
	if (!surface_first)
		reserve(ex->surface, ex->pages * PAGE);
	unmap_interfaces(ex);
	shared_make(ex);
	atomic_fetch_add(&ex->generation, 1);
	pthread_rwlock_unlock(&ex->lock);
}

/* Not an exmap with quotas: a late call could map pages beyond its thread's quota. */
static void any_replace(struct exmap *ex)
{
	if (!ex->quota)
		replace(ex);
}

/* All threads pause: the counters must add up, and every mapped page must hold own tags. */
static void check_sum(struct exmap *ex)
{
	const unsigned char *seen = look(ex, 0, ex->pages);
	unsigned long count = stats_count(ex, fd_of(ex, 0)), mapped = 0;
	bool flushed = one_in(2);
	struct content got;
	uint64_t between;

	for (unsigned int page = 0; page < ex->pages; page++) {
		if (!(seen[page] & 1))
			continue;
		mapped++;
		if (load(ex, page, &got, &between))
			fail("page %u is mapped, but a load got a signal", page);
		check_own(ex, page, got, between);
	}
	if (count != mapped || mapped > ex->pool)
		fail("alloc_count is %lu, but %lu pages are mapped", count, mapped);
	check_books(ex, mapped, ex->pool);
	for (unsigned int i = 0; i < ex->interfaces; i++)
		if (flushed)
			expect(ex, action_at(fd_of(ex, 0), i, EXMAP_OP_FLUSH, 0, 0), 0);
	if (flushed)
		check_books(ex, mapped, 0);
}

struct thread {
	unsigned int process, incarnation, number;
	unsigned long calls;
	pthread_t id;
};

static void *run_thread(void *argument)
{
	static const struct step steps[] = {
		{ 1500, own_touch }, { 800, any_touch }, { 1500, any_action }, { 1500, own_proxy },
		{ 200, any_hammer }, { 500, any_entries }, { 500, any_proxy }, { 200, any_stats },
		{ 60, any_madvise }, { 60, any_trim }, { 40, any_mapping }, { 20, any_clone },
		{ 2, any_fork }, { 8, any_replace }, { 300, own_flush }, { 300, own_defer }, { 100, any_flush },
		{ 10000, own_action },
	};
	const struct thread *thread = argument;

	begin_task(thread->process, thread->incarnation, thread->number);
	while (!atomic_load(&enough)) {
		for (int i = 0; i < ROUND; i++)
			run_step(steps, &exmaps[below(SLOTS)]);
		pthread_barrier_wait(&pause_begins);
		if (!me.number) {
			for (struct exmap *ex = exmaps; ex < exmaps + SLOTS; ex++)
				check_sum(ex);
			if (one_in(4))
				replace(&exmaps[SLOTS - 1]);
			atomic_store(&enough, total_calls(&progress[me.process]) >= thread->calls);
		}
		pthread_barrier_wait(&pause_ends);
	}
	return NULL;
}

void run_threads(unsigned int process, unsigned int incarnation, unsigned long calls)
{
	struct thread threads[MAX_THREADS];

	pthread_barrier_init(&pause_begins, NULL, options.threads);
	pthread_barrier_init(&pause_ends, NULL, options.threads);
	for (struct exmap *ex = exmaps; ex < exmaps + SLOTS; ex++) {
		pthread_rwlock_init(&ex->lock, NULL);
		shared_make(ex);
		atomic_store(&ex->generation, 2);
	}
	for (unsigned int i = 0; i < options.threads; i++) {
		threads[i] = (struct thread){ process, incarnation, i, calls, 0 };
		die_if(pthread_create(&threads[i].id, NULL, run_thread, &threads[i]));
	}
	for (unsigned int i = 0; i < options.threads; i++)
		pthread_join(threads[i].id, NULL);
}
