# SPDX-License-Identifier: GPL-2.0 OR MIT
"""exmap for Python: the functions of libexmap.so.1, called by ctypes.

    with exmap.Exmap(surface_pages=1 << 28, pool_pages=1000) as memory, memory.attach() as calls:
        calls.alloc(5000, 100)
        memory.page(5000)[0] = 42
        calls.free(5000, 100)

A page has 4 KiB; pages are counted from the start of the surface. Each thread needs an Interface of
its own: see Exmap.attach(). All errors are OSError. Python cannot know which pages are mapped: a
touch of one that is not ends the process with SIGSEGV, as a touch after free() does. exmap_user(3)
is the reference of the functions and their errors.
"""
import ctypes
import os

_library = ctypes.CDLL("libexmap.so.1")


def _constant(name):
    return ctypes.c_uint64.in_dll(_library, name).value


PAGE_SIZE = _constant("EXMAP_PAGE_SIZE")
READ = _constant("EXMAP_OP_READ")
ALLOC = _constant("EXMAP_OP_ALLOC")
FREE = _constant("EXMAP_OP_FREE")
WRITE = _constant("EXMAP_OP_WRITE")
PAGEFAULT_ALLOC = _constant("EXMAP_PAGEFAULT_ALLOC")
WITH_MADVISE = _constant("EXMAP_WITH_MADVISE")


def _function(name, result, *arguments):
    function = getattr(_library, name)
    function.restype = result
    function.argtypes = arguments
    return function


_POINTER, _INT, _UINT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, ctypes.c_long
_U64, _SIZE, _TEXT = ctypes.c_uint64, ctypes.c_size_t, ctypes.c_char_p
_WORDS = ctypes.POINTER(_U64)
_version = _function("exmap_version", _TEXT)
_strerror = _function("exmap_strerror", _TEXT, _INT)
_open = _function("exmap_open", _INT, _POINTER, _U64, _U64, _UINT, _INT, _U64)
_open_path = _function("exmap_open_path", _INT, _POINTER, _U64, _U64, _UINT, _TEXT, _INT, _U64)
_close = _function("exmap_close", None, _POINTER)
_address = _function("exmap_address", _POINTER, _POINTER, _U64)
_sync = _function("exmap_sync", _INT, _POINTER)
_attach = _function("exmap_attach", _INT, _POINTER, _POINTER)
_detach = _function("exmap_detach", None, _POINTER)
_run = _function("exmap_run", _LONG, _POINTER, _UINT, _U64, _U64)
_run_done = _function("exmap_run_done", _LONG, _POINTER, _UINT, _U64, _U64, _WORDS)
_list = _function("exmap_list", _LONG, _POINTER, _UINT, _WORDS, _SIZE)
_defer = _function("exmap_defer", None, _POINTER, _INT)
_flush = _function("exmap_flush", _INT, _POINTER)

VERSION = _version().decode()


def _checked(result):
    """The result of a call on pages; OSError if it is a negative errno."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def _opened(result):
    """OSError with an explanation, if the result is a negative errno."""
    if result < 0:
        raise OSError(-result, _strerror(result).decode())


class Exmap:
    """A surface and its pool. All threads of the process may use it."""

    def __init__(self, surface_pages, pool_pages, interfaces=1, backing=None, flags=0,
                 open_flags=os.O_RDWR):
        """Open an exmap.

        backing is None, a file object or descriptor, which may be closed afterwards, or a path,
        which is opened with open_flags: see exmap_open_path() in exmap_user(3).
        """
        self._exmap = None
        memory = ctypes.create_string_buffer(_constant("EXMAP_SIZE"))
        if isinstance(backing, (str, bytes, os.PathLike)):
            _opened(_open_path(memory, surface_pages, pool_pages, interfaces,
                               os.fsencode(backing), open_flags, flags))
        else:
            if backing is None:
                backing = -1
            elif not isinstance(backing, int):
                backing = backing.fileno()
            _opened(_open(memory, surface_pages, pool_pages, interfaces, backing, flags))
        self._exmap = memory
        self._attached = set()
        self.surface_pages = surface_pages

    def close(self):
        """Detach all interfaces, free all pages and unmap the surface."""
        if self._exmap is not None:
            for interface in list(self._attached):
                interface.detach()
            _close(self._exmap)
            self._exmap = None

    def opened(self):
        """What the functions of the library take; ValueError after close()."""
        if self._exmap is None:
            raise ValueError("the exmap is closed")
        return self._exmap

    def attach(self):
        """An interface for the calling thread."""
        return Interface(self, self._attached)

    def page(self, number, pages=1):
        """The memory of pages, which may or may not be mapped."""
        if number < 0 or pages < 0 or number + pages > self.surface_pages:
            raise IndexError("not on the surface")
        size = pages * PAGE_SIZE
        return memoryview((ctypes.c_ubyte * size).from_address(
            _address(self.opened(), number))).cast("B")

    def sync(self):
        """fsync() of the backing file."""
        _checked(_sync(self.opened()))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Interface:
    """Carries the calls of one thread. Calls return how many pages they did."""

    def __init__(self, exmap, attached):
        self._interface = None
        memory = ctypes.create_string_buffer(_constant("EXMAP_INTERFACE_SIZE"))
        _opened(_attach(exmap.opened(), memory))
        self._interface = memory
        # The interface has the address of the exmap.
        self._exmap = exmap
        self._attached = attached
        attached.add(self)

    def detach(self):
        """Give the interface back. Pages stay mapped."""
        if self._interface is not None:
            _detach(self._interface)
            self._interface = None
            self._attached.discard(self)

    def _taken(self):
        if self._interface is None:
            raise ValueError("the interface is detached")
        return self._interface

    def alloc(self, page, pages=1):
        """Map a page at each address that has none."""
        return _checked(_run(self._taken(), ALLOC, page, pages))

    def free(self, page, pages=1):
        """Unmap pages."""
        return _checked(_run(self._taken(), FREE, page, pages))

    def read(self, page, pages=1):
        """Map pages that are filled from the backing file."""
        return _checked(_run(self._taken(), READ, page, pages))

    def write(self, page, pages=1):
        """Write mapped pages to the backing file."""
        return _checked(_run(self._taken(), WRITE, page, pages))

    def list(self, opcode, numbers):
        """Do ALLOC, FREE, READ or WRITE on single pages."""
        numbers = list(numbers)
        return _checked(_list(self._taken(), opcode, (_U64 * len(numbers))(*numbers),
                              len(numbers)))

    def done(self, opcode, page, pages):
        """Do ALLOC, FREE, READ or WRITE. Return the numbers of the pages that were done, and an
        errno, which is 0 if no page failed."""
        words = (_U64 * ((pages + 63) // 64))()
        result = _run_done(self._taken(), opcode, page, pages, words)
        numbers = [page + i for i in range(pages) if words[i // 64] >> i % 64 & 1]
        return numbers, max(-result, 0)

    def defer(self, on):
        """Defer the TLB shootdown of free() from now on, or no longer."""
        _defer(self._taken(), bool(on))

    def flush(self):
        """Do the TLB shootdown that was deferred."""
        _checked(_flush(self._taken()))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.detach()
