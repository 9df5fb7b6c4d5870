# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the end-to-end tests and benchmarks stand on: QEMU, the witness guest, networks; standard library only."""
