"""An unusable native module is rejected by name and never blocks; `python -m fastdarts.info` reports it."""

import json
import logging
import subprocess
import sys

import pytest
import torch

from fastdarts import info, native, provenance
from fastdarts.logs import say_once
from fastdarts.ops import backend, patch_mask, random_resized_crop  # noqa: F401  random_resized_crop registers itself

OTHER = {"torch": "2.12.0+cu130"}


@pytest.fixture
def fresh():
    """Decisions that are made once a process are made again, now and after the test."""

    def forget():
        native.load.cache_clear()
        backend._decide.cache_clear()
        say_once.cache_clear()

    forget()
    yield
    forget()


def call(**how):
    """One small patch_mask call."""
    images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    tensors = images, torch.arange(2), torch.tensor([0]), torch.zeros(2, dtype=torch.bool), torch.zeros(3)
    settings = {"seed": 0, "stream": 0, "patch_size": 4, "num_masked": 2, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return patch_mask.patch_mask(*tensors, **settings, **how)


def run(root, *args, code=0, **environment):
    """`python ARGS` in the checkout; its standard output and standard error."""
    done = subprocess.run([sys.executable, *args], cwd=root, capture_output=True, text=True, env=environment or None)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def test_unusable_modules_give_reason():
    assert native.refusal({"torch": "2.15.0+cu132"}, "2.15.0+cu132") is None
    assert "not built" in native.refusal(None, "2.15.0")
    assert native.refusal({"torch": "2.15.0", "sources": "a"}, "2.15.0", "a") is None
    assert native.refusal({"torch": "2.15.0", "sources": "a"}, "2.15.0", None) is None  # an installed wheel
    assert "other sources" in native.refusal({"torch": "2.15.0", "sources": "a"}, "2.15.0", "b")
    assert "other sources" in native.refusal({"torch": "2.15.0"}, "2.15.0", "b")  # built before this was recorded
    assert "no C++ compiler" in native.refusal({"skipped": "no C++ compiler is found"}, "2.15.0")
    other = native.refusal(OTHER, "2.12.0+cpu")
    assert "torch 2.12.0+cu130" in other and "torch 2.12.0+cpu" in other and "pip install --no-build-isolation" in other


def test_module_of_other_torch_falls_back_to_definition(monkeypatch, fresh, caplog):
    monkeypatch.setattr(native, "build", lambda: OTHER)
    assert native.module() is None
    assert "2.12.0+cu130" in native.reason() and torch.__version__ in native.reason()
    with caplog.at_level(logging.INFO, logger="fastdarts"):
        for _ in range(3):
            assert call()[1].sum() == 4
    (message,) = caplog.messages  # once, however often it is called
    assert message.startswith("running the plain-PyTorch definitions")
    assert "the native module was built for torch 2.12.0+cu130" in message and "pip install" in message
    with pytest.raises(backend.BackendUnavailable, match=r"built for torch 2\.12\.0\+cu130"):
        call(backend="cpu")


def test_missing_module_gives_reason(monkeypatch, fresh):
    mine = {"torch": torch.__version__, "sources": native.digest(native.SOURCES)}
    monkeypatch.setattr(native, "build", lambda: mine)
    monkeypatch.setitem(sys.modules, "fastdarts._C", None)  # importing it raises ImportError
    assert native.module() is None
    assert "does not load" in native.reason()


@pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))
def test_loaded_module_reports_build_facts():
    module = native.module()
    assert torch.__version__.startswith(module.build_facts()["torch_headers"].partition("+")[0])
    assert module.threads()["intra_op"] == torch.get_num_threads()
    assert all(isinstance(value, bool) for value in module.cpu_features().values())
    assert native.build()["torch"] == torch.__version__


@pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_module_uses_torch_openmp_runtime(root):
    program = (
        "import torch; from fastdarts import native\n"
        "import re; pattern = re.compile(r'/lib(?:g|i|)omp[^/]*$')\n"
        "def runtimes(): return {line.split()[-1] for line in open('/proc/self/maps') if pattern.search(line)}\n"
        "before = runtimes(); assert native.module(); print(len(before), runtimes() == before)"
    )
    assert run(root, "-c", program)[0].split() == ["1", "True"]


@pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))
def test_older_module_is_rejected_for_newer_op():
    torch.library.define("fastdarts::of_tomorrow", "(Tensor x) -> Tensor")
    check = backend.native_cpu(torch.float32, op="of_tomorrow")
    why = check(torch.device("cpu"), torch.float32)
    assert "older checkout, without of_tomorrow" in why and "pip install --no-build-isolation" in why
    assert "not for float64" in check(torch.device("cpu"), torch.float64)


def test_describe_lists_dtypes_and_refusals():
    rows = [r for r in backend.describe() if r["op"] == "patch_mask" and r["device"] == "cpu"]
    assert [r["dtype"] for r in rows] == ["float32", "bfloat16"]
    assert rows[1]["backend"] == "definition" and "not for bfloat16" in rows[1]["refused"]["cpu"]
    (row,) = [r for r in backend.describe() if r["op"] == "random_resized_crop" and r["device"] == "cpu"]
    assert row["dtype"] == "uint8"  # the only one it has


@pytest.mark.slow
def test_info_prints_valid_json(root):
    facts = json.loads(run(root, "-m", "fastdarts.info", "--json")[0])
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["native"]["loaded"] == (facts["native"]["reason"] is None)
    assert "patch_mask" in {row["op"] for row in facts["ops"]}


def test_info_prints_text(capsys):
    assert info.main([]) == 0
    assert "patch_mask on cpu, float32" in capsys.readouterr().out


def test_require_native_fails_with_reason(monkeypatch, fresh, capsys):
    monkeypatch.setattr(native, "build", lambda: None)
    assert info.main([]) == 0
    assert info.main(["--require-native", "--json"]) == 1
    captured = capsys.readouterr()
    assert "not built" in captured.err
    assert "Traceback" not in captured.err


def test_info_survives_broken_packages(root, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch_cpu.so: cannot open shared object file')")
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (tmp_path / "triton.py").write_text("import nowhere_to_be_found")
    out, _ = run(root, "-m", "fastdarts.info", "--json", PYTHONPATH=str(tmp_path))
    facts = json.loads(out)
    assert facts["versions"]["torch"] == "not usable: libtorch_cpu.so: cannot open shared object file"
    assert facts["versions"]["torchvision"] == "not usable: operator torchvision::nms does not exist"
    assert "nowhere_to_be_found" in facts["versions"]["triton"]
    assert facts["native"]["reason"] == "torch is not usable"
    out, error = run(root, "-m", "fastdarts.info", "--require-native", code=1, PYTHONPATH=str(tmp_path))
    assert "torch is not usable" in error


def test_unrelated_apex_is_recognised(monkeypatch, tmp_path):
    package = tmp_path / "apex"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "an unrelated package" in provenance.apex()
    (package / "optimizers").mkdir()
    assert provenance.apex().startswith("NVIDIA's")


def test_digest_distinguishes_sources(tmp_path):
    (tmp_path / "cpu").mkdir()
    assert native.digest(tmp_path) is None
    (tmp_path / "cpu" / "a.cpp").write_text("int a;")
    (tmp_path / "notes.txt").write_text("not a source")
    one = native.digest(tmp_path)
    assert one == native.digest(tmp_path)
    (tmp_path / "cpu" / "a.cpp").write_text("int b;")
    assert native.digest(tmp_path) != one


@pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))
def test_idle_workspace_memory_is_freed():
    x, _ = call(backend="cpu")
    del x
    module = native.module()
    assert module.release_idle() > 0  # the output's
    assert module.release_idle() == 0
    assert call(backend="cpu")[1].sum() == 4
