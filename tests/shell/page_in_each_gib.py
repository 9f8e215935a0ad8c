#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Allocate the first page of each of 512 GiB of a surface, say so, and keep them until killed."""
import signal
import sys

import exmap

GIB = 1 << 18   # in pages

with exmap.Exmap(512 * GIB, 1000) as memory, memory.attach() as calls:
    for number in range(512):
        if calls.alloc(number * GIB) != 1:
            sys.exit(f"no page in GiB {number}")
    print("allocated", flush=True)
    signal.pause()
