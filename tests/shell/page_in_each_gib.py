#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""
page_in_each_gib.py COMMAND [ARGUMENT...]: run a command while a surface has the first page of each
of 512 GiB. The exit status is that of the command.
"""
import subprocess
import sys

import exmap

GIB = 1 << 18   # in pages

with exmap.Exmap(512 * GIB, 1000) as memory, memory.attach() as calls:
    for number in range(512):
        if calls.alloc(number * GIB) != 1:
            sys.exit(f"no page in GiB {number}")
    sys.exit(subprocess.run(sys.argv[1:], check=False).returncode)
