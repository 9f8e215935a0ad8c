// SPDX-License-Identifier: GPL-2.0
/*
 * Tests with a virtual machine of KVM that has the surface as its memory.
 */
#include <linux/kvm.h>
#include <stddef.h>

#include "worker.h"

/*
 * A guest. Its memory is 64 KiB for its code, and the surface from there on. Its program writes a
 * byte of a register to byte 16 of the surface, and returns to the host.
 */
struct guest {
	int cpu;
};

/* A machine with @low at address 0 and the surface at 64 KiB. Returns its fd. */
static int guest_vm(struct exmap *ex, void *low)
{
	struct kvm_userspace_memory_region region[2] = {
		{ .slot = 0, .memory_size = 0x10000, .userspace_addr = (uintptr_t)low },
		{ .slot = 1, .guest_phys_addr = 0x10000, .memory_size = ex->size,
		  .userspace_addr = (uintptr_t)ex->surface },
	};
	int kvm, vm;

	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	assert_ok(kvm);
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	assert_ok(vm);
	assert_ok(close(kvm));
	for (int i = 0; i < 2; i++)
		assert_ok(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region[i]));
	return vm;
}

#ifdef __x86_64__
static struct guest guest_new(struct exmap *ex)
{
	static const unsigned char code[] = { 0x88, 0x07, 0xf4 };	/* mov %al,(%bx); hlt */
	char *low = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct kvm_sregs sregs;
	struct guest guest;

	memcpy(low + 0x1000, code, sizeof(code));
	guest.cpu = ioctl(guest_vm(ex, low), KVM_CREATE_VCPU, 0);
	assert_ok(guest.cpu);
	assert_ok(ioctl(guest.cpu, KVM_GET_SREGS, &sregs));
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	sregs.ds.base = 0x10000;
	sregs.ds.selector = 0x1000;
	assert_ok(ioctl(guest.cpu, KVM_SET_SREGS, &sregs));
	return guest;
}

/* Returns what KVM_RUN returns: 0, or -1 if the guest has touched an absent page. */
static int guest_write(struct guest guest, unsigned char byte)
{
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2, .rax = byte, .rbx = 16 };

	assert_ok(ioctl(guest.cpu, KVM_SET_REGS, &regs));
	return ioctl(guest.cpu, KVM_RUN, 0);
}
#elif defined(__aarch64__)
#define SYSTEM_REGISTER(op1, crn, crm, op2) ARM64_SYS_REG(3, op1, crn, crm, op2)
#define CORE_REGISTER(member) (KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE |	\
			       offsetof(struct kvm_regs, member) / sizeof(__u32))

static void guest_set(struct guest guest, __u64 id, __u64 value)
{
	struct kvm_one_reg reg = { .id = id, .addr = (uintptr_t)&value };

	assert_ok(ioctl(guest.cpu, KVM_SET_ONE_REG, &reg));
}

/*
 * The guest caches its memory, as the host does: otherwise one could miss what the other wrote.
 * Caches need page tables: one entry, which maps the first GiB to itself.
 */
static struct guest guest_new(struct exmap *ex)
{
	static const uint32_t code[] = {
		0x39000020,	/* strb w0, [x1] */
		0x39000040,	/* strb w0, [x2] */
		0x17fffffe,	/* b to the first one */
	};
	char *low = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint64_t *table = (uint64_t *)(low + 0x2000);
	int vm = guest_vm(ex, low);
	struct kvm_vcpu_init init;
	struct guest guest;

	memcpy(low + 0x1000, code, sizeof(code));
	__builtin___clear_cache(low + 0x1000, low + 0x1000 + sizeof(code));
	/* A block, that of attribute 0, inner shareable, accessed. */
	table[0] = 1 | 3 << 8 | 1 << 10;
	guest.cpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	assert_ok(guest.cpu);
	assert_ok(ioctl(vm, KVM_ARM_PREFERRED_TARGET, &init));
	assert_ok(ioctl(guest.cpu, KVM_ARM_VCPU_INIT, &init));
	/* MAIR_EL1: attribute 0 is normal memory with write-back caches. */
	guest_set(guest, SYSTEM_REGISTER(0, 10, 2, 0), 0xff);
	/* TCR_EL1: 39 bits of address in TTBR0_EL1, cached tables, nothing in TTBR1_EL1. */
	guest_set(guest, SYSTEM_REGISTER(0, 2, 0, 2), 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23);
	guest_set(guest, SYSTEM_REGISTER(0, 2, 0, 0), 0x2000);	/* TTBR0_EL1 */
	/* SCTLR_EL1: the bits that are 1 on every processor; translate, cache data and code. */
	guest_set(guest, SYSTEM_REGISTER(0, 1, 0, 0), 0x30d00800 | 1 | 1 << 2 | 1 << 12);
	guest_set(guest, CORE_REGISTER(regs.regs[1]), 0x10000 + 16);
	/* There is no memory at this address: a write to it returns to the host. */
	guest_set(guest, CORE_REGISTER(regs.regs[2]), 0x20000000);
	guest_set(guest, CORE_REGISTER(regs.pc), 0x1000);
	return guest;
}

/*
 * Returns what KVM_RUN returns: 0, or -1 if the guest has touched an absent page. Then it writes to
 * the page again in the next call.
 */
static int guest_write(struct guest guest, unsigned char byte)
{
	guest_set(guest, CORE_REGISTER(regs.regs[0]), byte);
	return ioctl(guest.cpu, KVM_RUN, 0);
}
#endif

/*
 * KVM mirrors the page tables of the surface, without a reference to the pages. A guest can no
 * longer reach a page that FREE or the kernel has unmapped.
 */
TEST(guests_lose_what_is_freed, .needs = "/dev/kvm")
{
	struct exmap *ex = exmap_new(16 * PAGE, 16, 1);
	struct guest guest = guest_new(ex);

	ck_assert_int_eq(alloc(ex, 0, 0, 1), 1);
	ck_assert_int_eq(guest_write(guest, 0xaa), 0);
	ck_assert_uint_eq((unsigned char)ex->surface[16], 0xaa);
	ck_assert_int_eq(release(ex, 0, 0, 1), 1);
	ck_assert_int_eq(alloc(ex, 0, 1, 1), 1);
	ck_assert_uint_eq((unsigned char)ex->surface[PAGE + 16], 0xaa);
	ck_assert_int_eq(guest_write(guest, 0xbb), -1);
	ck_assert_uint_eq((unsigned char)ex->surface[PAGE + 16], 0xaa);

	/* If the flush is put off, the guest loses the page at the flush. */
	ck_assert_int_eq(alloc(ex, 0, 0, 1), 1);
	ck_assert_int_eq(guest_write(guest, 0xcc), 0);
	ck_assert_int_eq(defer(ex, 0, 0, 1), 1);
	ck_assert_int_eq(action(ex->fd, 0, EXMAP_OP_FLUSH, 0, 0), 0);
	ck_assert_int_eq(guest_write(guest, 0xdd), -1);
	ck_assert_int_eq(alloc(ex, 0, 2, 1), 1);
	ck_assert_uint_eq((unsigned char)ex->surface[2 * PAGE + 16], 0xcc);

	ck_assert_int_eq(alloc(ex, 0, 0, 1), 1);
	ck_assert_int_eq(guest_write(guest, 0xcc), 0);
	assert_ok(madvise(ex->surface, ex->size, MADV_DONTNEED));
	ck_assert_int_eq(guest_write(guest, 0xdd), -1);
	ck_assert_int_eq(alloc(ex, 0, 0, 1), 1);
	ck_assert_int_eq(guest_write(guest, 0xee), 0);
	ck_assert_uint_eq((unsigned char)ex->surface[16], 0xee);
	assert_ok(munmap(ex->surface, ex->size));
	ck_assert_int_eq(guest_write(guest, 0xff), -1);
}

/* Map pages and have the kernel unmap them with madvise, until @stop. */
static void *unmap_worker(void *arg)
{
	struct worker *w = arg;

	while (!atomic_load(w->stop)) {
		alloc(w->ex, w->interface, 1, w->pages);
		if (madvise(w->ex->surface, w->ex->size, MADV_DONTNEED))
			snprintf(w->error, sizeof(w->error), "madvise: errno %d", errno);
	}
	return NULL;
}

/* A guest that touches a page while the kernel unmaps the surface retries, and succeeds. */
TEST(guests_touch_while_the_kernel_unmaps, .needs = "/dev/kvm")
{
	struct exmap *ex = exmap_new_flags(4 * MIB, 1000, 1, EXMAP_PAGEFAULT_ALLOC);
	struct guest guest = guest_new(ex);
	atomic_bool stop = false;
	struct worker w = { .ex = ex, .pages = 500, .stop = &stop };

	ck_assert(!pthread_create(&w.thread, NULL, unmap_worker, &w));
	for (int round = scaled(3000); round; round--)
		ck_assert_int_eq(guest_write(guest, round), 0);
	atomic_store(&stop, true);
	ck_assert(!pthread_join(w.thread, NULL));
	ck_assert_msg(!w.error[0], "%s", w.error);
	assert_ok(madvise(ex->surface, ex->size, MADV_DONTNEED));
	ck_assert_int_eq(alloc(ex, 0, 0, 1000), 1000);
}

/*
 * KVM_CREATE_VM registers an MMU notifier while FREE runs. KVM must not be told the end of an
 * invalidation whose start it has not seen: then it would wait forever when the guest's memory
 * is set again.
 */
TEST(guests_come_while_pages_go, .needs = "/dev/kvm")
{
	struct exmap *ex = exmap_new(16 * PAGE, 16, 1);
	char *low = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	atomic_bool stop = false;
	struct worker w = { .ex = ex, .pages = 1, .stop = &stop };

	/* One machine stays: the kernel patches its code for the first one and after the last. */
	guest_vm(ex, low);
	ck_assert(!pthread_create(&w.thread, NULL, alloc_free_worker, &w));
	for (int round = scaled(100); round; round--)
		assert_ok(close(guest_vm(ex, low)));
	atomic_store(&stop, true);
	ck_assert(!pthread_join(w.thread, NULL));
	ck_assert_msg(!w.error[0], "%s", w.error);
}

int main(int argc, char **argv)
{
	return check_main(argc, argv, "Tests with a guest that has the surface as memory.");
}
