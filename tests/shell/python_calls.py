#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Call everything in examples/python/exmap.py."""
import errno
import fcntl
import mmap
import os
import tempfile
import unittest

import exmap

PAGE = exmap.PAGE_SIZE


class Calls(unittest.TestCase):
    """Each test has a file of ten pages. Page n is full of bytes n."""

    def setUp(self):
        self.file = tempfile.NamedTemporaryFile()
        for number in range(10):
            self.file.write(bytes([number]) * PAGE)
        self.file.flush()
        self.addCleanup(self.file.close)

    def fails(self, number, call, *arguments, **named):
        """Assert that the call raises OSError with that errno."""
        with self.assertRaises(OSError) as caught:
            call(*arguments, **named)
        self.assertEqual(caught.exception.errno, number)

    def test_alloc_and_free(self):
        with exmap.Exmap(1 << 28, 10) as memory, memory.attach() as calls:
            self.assertEqual(calls.alloc((1 << 28) - 3, 3), 3)
            page = memory.page((1 << 28) - 3, 3)
            self.assertEqual(len(page), 3 * PAGE)
            page[PAGE:PAGE + 5] = b"exmap"
            self.assertEqual(bytes(memory.page((1 << 28) - 2)[:5]), b"exmap")
            self.fails(errno.ENOMEM, calls.alloc, 0, 8)
            self.fails(errno.EFAULT, calls.alloc, 1 << 28)
            self.fails(errno.EOPNOTSUPP, calls.read, 0)
            self.fails(errno.EOPNOTSUPP, memory.sync)
            self.assertEqual(calls.list(exmap.ALLOC, [7, 5, 3]), 3)
            calls.defer(True)
            self.assertEqual(calls.free(0, 100), 3)
            self.assertEqual(calls.free((1 << 28) - 100, 100), 3)
            calls.flush()
            with self.assertRaises(IndexError):
                memory.page((1 << 28) - 1, 2)

    def test_read_and_write(self):
        with exmap.Exmap(100, 20, backing=self.file) as memory, memory.attach() as calls:
            self.assertEqual(calls.read(3), 1)
            self.assertEqual(calls.done(exmap.READ, 1, 4), ([1, 2, 4], 0))
            self.assertEqual(bytes(memory.page(4)), bytes([4]) * PAGE)
            self.assertEqual(calls.done(exmap.READ, 8, 4), ([8, 9], errno.ENODATA))
            memory.page(2)[0] = 77
            self.assertEqual(calls.write(0, 10), 6)
            memory.sync()
            self.assertEqual(os.pread(self.file.fileno(), 1, 2 * PAGE), bytes([77]))

    def test_path(self):
        with exmap.Exmap(100, 20, backing=self.file.name, open_flags=os.O_RDONLY) as memory:
            with memory.attach() as calls:
                self.assertEqual(calls.read(0, 10), 10)
                self.assertEqual(memory.page(9)[0], 9)
        self.fails(errno.ENOENT, exmap.Exmap, 100, 20, backing="/no/such/file")

    def test_interfaces(self):
        memory = exmap.Exmap(100, 20, interfaces=2)
        first, second = memory.attach(), memory.attach()
        self.fails(errno.EBUSY, memory.attach)
        first.detach()
        third = memory.attach()
        self.assertEqual(third.alloc(1), 1)
        self.assertEqual(second.free(1), 1)
        memory.close()
        memory.close()
        for call in (second.alloc, third.alloc, memory.page):
            with self.assertRaises(ValueError):
                call(1)
        self.fails(errno.EINVAL, exmap.Exmap, 100, 20, interfaces=0)

    @unittest.skipIf(os.environ["EXMAP_BACKEND"] == "madvise", "needs the module")
    def test_mmap_without_the_library(self):
        """Python's mmap takes the positive offset of an interface: see linux/exmap.h."""
        device = os.open("/dev/exmap", os.O_RDWR)
        with mmap.mmap(device, 100 * PAGE) as surface:
            setup = bytearray()
            for number, size in ((-1, 4), (1, 4), (10, 8), (0, 8)):
                setup += number.to_bytes(size, "little", signed=True)
            fcntl.ioctl(device, 0x40186b01, bytes(setup))
            with mmap.mmap(device, PAGE, offset=0x6000000000000000) as entries:
                entries[:8] = (5 << 52 | 7).to_bytes(8, "little")
                fcntl.ioctl(device, 0x40106b02,
                            b"".join(n.to_bytes(2, "little") for n in (0, 1, 1, 0)) + bytes(8))
                self.assertEqual(int.from_bytes(entries[4:6], "little"), 5)
            surface[7 * PAGE] = 1
        os.close(device)


if __name__ == "__main__":
    unittest.main()
