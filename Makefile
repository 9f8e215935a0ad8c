# SPDX-License-Identifier: GPL-2.0
#
# make               module and programs, for the running kernel
# make install       install module, headers, library, exmap-top and man pages
# make install-dev   install everything but the module
# make dkms-install  dkms builds and installs the module for this kernel and later ones
# make dkms-remove   undo make dkms-install
# make rpm           RPM packages, in the directory above this one
# make bench-host    the paper's Figure 8 on this very machine, with the module loaded
# make style         checkpatch, kernel-doc, sparse, cppcheck, shellcheck, mandoc and the like
#
# In a throw-away machine:
# make check         the test suite
# make check-package  the test of the packages
# make vm            a shell
# make demo          the paper's Figures 8 and 10, and the example
# make figures       the paper's Figures 9 and 10, and what EXMAP_FREE_DEFER saves
#
# In a throw-away machine, and into docs/performance.md:
# make budget        what READ and WRITE cost in instructions
# make cost          what every call costs; make cost-arm64: on an emulated arm64
# make growth        does that cost grow with surface, interfaces, exmaps or pool?
# make lines         how many cache lines each call reads and writes; needs qemu-plugin.h
# make tlbi          how many TLB invalidations each freed page takes on arm64; the same need
# make contention    what two threads do compared with one
# make sharing       what threads save that share TLB flushes

KDIR ?= /lib/modules/$(shell uname -r)/build
DESTDIR ?=
PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib

# linux/exmap.h has the version. tests/shell/version compares it with debian/changelog.
VERSION = $(shell sed -n 's/^\#define EXMAP_VERSION[[:space:]]*"\(.*\)"/\1/p' linux/exmap.h)
DKMS_SOURCE = /usr/src/exmap-$(VERSION)
MODULE_SOURCES = driver.c ioctl.c fdinfo.c locks.c resize.c trim.c setup.c uring.c proxy.c io.c \
	landing.c transfer.c surface.c memory.c free.c prepare.c gate.c refill.c reclaim.c quarantine.c \
	shootdown.c tables.c stock.c pinned.c reading.c pool.c token.c queue.c charge.c ksyms.c \
	arm64.c trace.c \
	exmap.h file.h entry.h io.h pool.h quarantine.h reading.h walk.h ksyms.h trace.h compat.h arch.h \
	version.h

CFLAGS ?= -O2 -g
override CFLAGS += -std=gnu11 -Wall -Wextra -Wno-unused-parameter -D_GNU_SOURCE -I. -pthread
# For all test programs. The linker leaves out the libraries that a program does not use.
CHECK_LIBS = $(shell pkg-config --cflags --libs check liburing) -laio

# The tests of exmap_user.h are built as C++, too.
TESTS_CXX = $(patsubst %.c,%-cxx,$(wildcard tests/user*.c))
TESTS = test-exmap $(patsubst %.c,%,$(wildcard tests/*.c)) $(TESTS_CXX)
BENCHES = test-bench-alloc test-bench-steal test-bench-steal-same \
	$(addprefix bench/,bench-read bench-cost bench-growth bench-lines bench-tlbi)
EXAMPLES = examples/bufferpool
# What programs include, and where below include/.
USER_HEADERS = linux/exmap.h exmap_user.h exmap_open.h exmap_size.h exmap_madvise.h
LIBRARY = lib/libexmap.so.1
# If there is a compiler for Rust.
RUST_CRATE = examples/rust/libexmap.rlib
RUST_PROGRAMS = examples/rust/examples/readme tests/rust/calls
SQLITE = examples/sqlite/exmap_vfs.so examples/sqlite/bench
RUST = $(if $(shell command -v rustc),$(RUST_CRATE) $(RUST_PROGRAMS) tests/rust/outlives.log)
PROGRAMS = $(LIBRARY) $(TESTS) tests/client tests/fuzz $(BENCHES) tools/exmap-top $(EXAMPLES) $(RUST)

all: module programs

module:
	$(MAKE) -C $(KDIR) M=$(CURDIR) modules

programs: $(PROGRAMS) $(if $(shell pkg-config --silence-errors --modversion sqlite3),$(SQLITE),no-sqlite)

# No PIE, because a PIE lies in the middle of the address space, which must have room for 100 TiB.
TEST_FLAGS = -no-pie -Wl,--as-needed -DKERNEL_COMPLAINTS='"$(shell cat vm/complaints)"'
TEST_HEADERS = $(wildcard tests/*.h) $(USER_HEADERS) vm/complaints

$(TESTS_CXX): %-cxx: %.c $(TEST_HEADERS)
	$(CXX) -x c++ $(filter-out -std=%,$(CFLAGS)) -std=gnu++17 -Wno-missing-field-initializers \
		$(TEST_FLAGS) -o $@ $< -x none $(CHECK_LIBS)

$(filter-out $(TESTS_CXX),$(TESTS)): %: %.c $(TEST_HEADERS)
	$(CC) $(CFLAGS) $(TEST_FLAGS) -o $@ $< $(CHECK_LIBS)

# With the options that the Makefiles of such programs use. The rest of CFLAGS is for C.
tests/client: tests/client.cc linux/exmap.h
	$(CXX) -O2 -g -std=c++20 -Wall -Wextra -Wpedantic -I. -o $@ $<

FUZZER = $(wildcard tests/fuzzer/*.c)

tests/fuzz: $(FUZZER) $(wildcard tests/fuzzer/*.h) linux/exmap.h
	$(CC) $(CFLAGS) -o $@ $(FUZZER)

tools/exmap-top: tools/exmap-top.c
	$(CC) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) -o $@ $<

$(LIBRARY): lib/libexmap.c lib/libexmap.map $(USER_HEADERS)
	$(CC) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) -fPIC -shared -Wl,-soname,$(@F) -Wl,-z,defs \
		-Wl,--version-script=lib/libexmap.map -o $@ $<

lib/libexmap.so: $(LIBRARY)
	ln -sf $(<F) $@

RUSTC = rustc --edition=2021 -D warnings -O -L native=lib

$(RUST_CRATE): $(wildcard examples/rust/src/*.rs) lib/libexmap.so
	$(RUSTC) --crate-type=rlib --crate-name=exmap -o $@ examples/rust/src/lib.rs

$(RUST_PROGRAMS): %: %.rs $(RUST_CRATE)
	$(RUSTC) --extern exmap=$(RUST_CRATE) -o $@ $<

# What the compiler complains of. tests/shell/rust looks at it.
tests/rust/outlives.log: tests/rust/outlives.rs $(RUST_CRATE)
	! $(RUSTC) --extern exmap=$(RUST_CRATE) --emit=metadata -o $@.rmeta $< 2>$@

$(EXAMPLES): %: %.c examples/bufferpool.h $(USER_HEADERS)
	$(CC) $(CFLAGS) -o $@ $<

SQLITE_SOURCES = examples/sqlite/exmap_vfs.c examples/sqlite/pages.c

examples/sqlite/exmap_vfs.so: $(SQLITE_SOURCES) examples/sqlite/pages.h $(USER_HEADERS)
	$(CC) $(CFLAGS) -fPIC -shared -o $@ $(SQLITE_SOURCES)

examples/sqlite/bench: examples/sqlite/bench.c
	$(CC) $(CFLAGS) -o $@ $< -lsqlite3

no-sqlite:
	@echo "examples/sqlite is not built, because it needs libsqlite3-dev"

BENCH_HEADERS = bench_common.h tests/arch.h $(wildcard bench/*.h) $(USER_HEADERS)

test-bench-steal-same: test-bench-steal.c $(BENCH_HEADERS)
	$(CC) $(CFLAGS) -DSAME_THREAD -o $@ $<

bench/bench-read: LDLIBS += -luring

$(filter-out test-bench-steal-same,$(BENCHES)): %: %.c $(BENCH_HEADERS)
	$(CC) $(CFLAGS) -o $@ $< $(LDLIBS)

install: module install-dev
	$(MAKE) -C $(KDIR) M=$(CURDIR) modules_install
	depmod
	ldconfig

install-dev: tools/exmap-top $(LIBRARY)
	install -D -m 644 $(LIBRARY) $(DESTDIR)$(LIBDIR)/libexmap.so.$(VERSION)
	ln -sf libexmap.so.$(VERSION) $(DESTDIR)$(LIBDIR)/libexmap.so.1
	ln -sf libexmap.so.1 $(DESTDIR)$(LIBDIR)/libexmap.so
	install -d $(DESTDIR)$(LIBDIR)/pkgconfig
	sed 's,@PREFIX@,$(PREFIX),;s,@LIBDIR@,$(LIBDIR),;s,@VERSION@,$(VERSION),' \
		lib/libexmap.pc.in >$(DESTDIR)$(LIBDIR)/pkgconfig/libexmap.pc
	for header in $(USER_HEADERS); do \
		install -D -m 644 $$header $(DESTDIR)$(PREFIX)/include/$$header || exit; \
	done
	install -D tools/exmap-top $(DESTDIR)$(PREFIX)/bin/exmap-top
	install -D -m 644 tools/exmap.supp $(DESTDIR)$(PREFIX)/lib/valgrind/exmap.supp
	install -D -m 644 tools/exmap-top.bash \
		$(DESTDIR)$(PREFIX)/share/bash-completion/completions/exmap-top
	for page in man/*; do \
		install -D -m 644 $$page $(DESTDIR)$(PREFIX)/share/man/man$${page##*.}/$${page##*/} || exit; \
	done

# Put the sources of the module where dkms looks for them.
dkms-source:
	install -d $(DESTDIR)$(DKMS_SOURCE)/linux
	install -m 644 Kbuild $(MODULE_SOURCES) $(DESTDIR)$(DKMS_SOURCE)
	install -m 644 linux/exmap.h $(DESTDIR)$(DKMS_SOURCE)/linux
	sed 's/#MODULE_VERSION#/$(VERSION)/' dkms.conf >$(DESTDIR)$(DKMS_SOURCE)/dkms.conf

# Debian's packages of kernels and headers run the hook.
kernel-hook:
	install -D debian/kernel-hook $(DESTDIR)/etc/kernel/postinst.d/exmap
	install -D debian/kernel-hook $(DESTDIR)/etc/kernel/header_postinst.d/exmap

dkms-install: dkms-source
	[ ! -d /etc/kernel/header_postinst.d ] || $(MAKE) kernel-hook
	dkms build --force exmap/$(VERSION)
	dkms install --force exmap/$(VERSION)

dkms-remove:
	dkms remove exmap/$(VERSION) --all
	rm -r $(DKMS_SOURCE)
	rm -f /etc/kernel/postinst.d/exmap /etc/kernel/header_postinst.d/exmap

rpm:
	packaging/rpm/build

clean:
	$(MAKE) -C $(KDIR) M=$(CURDIR) clean
	rm -f $(PROGRAMS) lib/libexmap.so $(SQLITE)

demo:
	bench/demo

figures:
	bench/demo 9 10 shootdowns

budget:
	bench/budget

cost:
	bench/cost

cost-arm64:
	bench/cost --arm64

growth:
	bench/growth

# 77: skipped
lines:
	bench/lines || [ $$? = 77 ]

# 77: skipped
tlbi:
	bench/tlbi || [ $$? = 77 ]

contention:
	bench/contention

sharing:
	bench/sharing

bench-host: programs
	./bench/host

check:
	vm/check

check-package:
	vm/package $(KERNEL)

style:
	tools/style

# tools/style runs it in a root with the kernel's headers.
sparse:
	$(MAKE) -C $(KDIR) M=$(CURDIR) C=2 modules

vm:
	vm/install
	vm/run -l -- bash

.PHONY: all module programs no-sqlite install install-dev dkms-source kernel-hook dkms-install
.PHONY: dkms-remove rpm clean demo figures budget cost cost-arm64 growth lines tlbi contention
.PHONY: sharing bench-host check check-package style sparse vm
