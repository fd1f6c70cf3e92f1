"""The bench: real kernels, booted in QEMU, and real dumps of them.

Nothing here is part of the package; see docs/testbench.md for how to use it by
hand (`python -m tests.vm`) and dumps.py for what tests want most.
"""
