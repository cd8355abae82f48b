"""Two kinds of tests, in processes of their own.

test_*_triton.py run the kernels on CPU tensors in Triton's interpreter, which has to be chosen (TRITON_INTERPRET=1)
before Triton is imported: they are collected only in a process that was started with it. test_interpreter.py starts two
for these files, so that an ordinary run covers them. By hand:

    TRITON_INTERPRET=1 python -m pytest tests/kernels/test_patch_mask_triton.py

The others compile the kernels, which the interpreter's process cannot.
"""

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

INTERPRETER = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = ["test_compile.py", "test_interpreter.py"] if INTERPRETER else ["test_*_triton.py"]


def _hasten() -> None:
    """Spare Triton's interpreter half of its time: what it computes for nothing or again at each call.

    It checks integers for overflow but ignores the outcome unless it debugs, and it patches its language at each call of a
    device function: here once, at the launch, all of it.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    patch, language = interpreter._patch_lang, SimpleNamespace(__globals__={"tl": tl, "core": tl.core})

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        return function.rewrite()(*args, **kwargs)

    builder = interpreter.interpreter_builder
    assert not builder.options.debug
    builder.options = replace(builder.options, sanitize_overflow=False)
    interpreter._patch_lang = lambda _: patch(language)
    interpreter.InterpretedFunction.__call__ = call


if INTERPRETER:
    _hasten()
