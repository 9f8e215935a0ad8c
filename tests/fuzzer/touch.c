// SPDX-License-Identifier: GPL-2.0
/*
 * Loads from and stores to the surface, which may get a signal, and the tags in its pages.
 */
#include <unistd.h>
#include <sys/uio.h>

#include "fuzzer.h"

/* Handle SIGSEGV and SIGBUS. The touch of the surface that got the signal ends, and returns it. */
void on_fault(int number, siginfo_t *info, void *context)
{
	if (!me.touching) {
		/* A bug of the fuzzer. The instruction gets the signal again, and that is fatal. */
		signal(number, SIG_DFL);
		return;
	}
	me.fault = info->si_addr;
	siglongjmp(me.jump, number);
}

char *address(const struct exmap *ex, uint64_t page)
{
	return ex->surface + page * PAGE;
}

/* Load the first, the last and another word of a page. Returns 0, or the signal that it got. */
int load(const struct exmap *ex, unsigned int page, struct content *content,
		uint64_t *between)
{
	const volatile uint64_t *words = (void *)address(ex, page);
	const unsigned int other = 1 + below(WORDS - 2);
	int number = sigsetjmp(me.jump, 0);

	me.touching = !number;
	if (!number) {
		content->first = words[0];
		content->last = words[WORDS - 1];
		*between = words[other];
	}
	me.touching = false;
	return number;
}

/* Store a tag in the first and the last word of a page. Returns 0, or the signal that it got. */
int store(const struct exmap *ex, unsigned int page, uint64_t tag)
{
	volatile uint64_t *words = (void *)address(ex, page);
	int number = sigsetjmp(me.jump, 0);

	me.touching = !number;
	if (!number) {
		words[0] = tag;
		words[WORDS - 1] = tag;
	}
	me.touching = false;
	return number;
}

/* Read the first word of the page to which the page table points, past any stale TLB entry. */
bool load_by_table(const struct exmap *ex, unsigned int page, uint64_t *word)
{
	struct iovec here = { word, sizeof(*word) }, there = { address(ex, page), sizeof(*word) };

	return process_vm_readv(getpid(), &here, 1, &there, 1, 0) == sizeof(*word);
}

/* A tag is 28 bits for the exmap, 16 for the page and 20 of a counter. These are the 28 bits. */
static uint64_t owner(const struct exmap *ex)
{
	return 0xe5aULL << 16 | me.process << 10 | ex->number;
}

uint64_t new_tag(const struct exmap *ex, unsigned int page)
{
	static __thread unsigned int counter;

	return owner(ex) << 36 | (uint64_t)page << 20 | (++counter & 0xfffff);
}

/* May this word be in a page of the exmap? */
bool is_own(const struct exmap *ex, uint64_t word)
{
	return !word || word >> 36 == owner(ex);
}

void check_own(const struct exmap *ex, unsigned int page, struct content content,
		      uint64_t between)
{
	if (!is_own(ex, content.first) || !is_own(ex, content.last) || between)
		fail("page %u holds %#lx, %#lx, %#lx, which is not from this exmap (%#lx)", page,
		     content.first, between, content.last, owner(ex));
}
