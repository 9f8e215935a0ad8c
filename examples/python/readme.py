#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0 OR MIT
"""The program of the README in Python."""
import sys

import exmap

try:
    # 1 TiB of addresses, with at most 1000 pages in memory.
    memory = exmap.Exmap(surface_pages=1 << 28, pool_pages=1000)
except OSError as error:
    sys.exit(f"exmap: {error.strerror}")
with memory, memory.attach() as calls:
    print(calls.alloc(5000, 100), "mapped")
    memory.page(5000)[0] = 42
    print(calls.free(5000, 100), "freed")
