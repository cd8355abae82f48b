"""Two kinds of tests, in processes of their own.

test_*_triton.py run the kernels on CPU tensors in Triton's interpreter, which has to be chosen (TRITON_INTERPRET=1)
before Triton is imported: they are collected only in a process that was started with it. test_interpreter.py starts one
for each of these files, so that an ordinary run covers them. By hand:

    TRITON_INTERPRET=1 python -m pytest tests/kernels/test_patch_mask_triton.py

The others compile the kernels, which the interpreter's process cannot.
"""

import os

INTERPRETER = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = ["test_compile.py", "test_interpreter.py"] if INTERPRETER else ["test_*_triton.py"]
