"""The package as it is laid out, from the checkout and as a wheel."""

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import fastdarts
import fastdarts.kernels
from fastdarts import native

# what decodes, and the rest
BROUGHT_BY_DALI = {f"nvidia-{name}" for name in ("nvimgcodec-cu13", "nvjpeg", "nvjpeg2k-cu13", "nvtiff-cu13", "libnvcomp-cu13")}
BROUGHT_BY_DALI |= {"nvtx", "astunparse", "gast", "libcst", "makefun", "optree", "packaging", "six"}
BROUGHT_BY_TENSORBOARD = {"tensorboard-data-server", "absl-py", "grpcio", "markdown", "protobuf", "werkzeug"}
BROUGHT_BY_SUBMITIT = {"cloudpickle"}
BROUGHT_BY_MKDOCS = {
    *("mkdocs", "mkdocs-get-deps", "mkdocs-material-extensions", "pymdown-extensions", "babel", "backrefs", "certifi"),
    *("charset-normalizer", "click", "colorama", "ghp-import", "idna", "mergedeep", "paginate", "pathspec", "platformdirs"),
    *("pygments", "python-dateutil", "pyyaml_env_tag", "requests", "urllib3", "watchdog"),
}


def names(requirements):
    """Distribution names of requirement lines."""
    return {re.split(r"[=<>\[; ]", line, maxsplit=1)[0].lower() for line in requirements}


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def constraints(root):
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_kernels_are_subpackage_in_checkout():
    assert Path(fastdarts.kernels.__file__).parent.name == "kernels"
    assert "kernels" not in sys.modules


def test_every_code_folder_is_package(root):
    folders = {path.parent for path in (root / "fastdarts").rglob("*.py")} | {root / "kernels"}
    assert [str(f.relative_to(root)) for f in folders if not (f / "__init__.py").is_file()] == []


def test_constraints_pin_ci_dependencies(project, constraints):
    extras = project["project"]["optional-dependencies"]
    wanted = names(project["project"]["dependencies"]) | names(extras["dev"]) | names(extras["dali"]) | names(extras["report"])
    assert all("==" in line.partition(";")[0] for line in constraints)
    # torch brings triton, where there is one for the machine
    brought = {"triton"} | BROUGHT_BY_DALI | BROUGHT_BY_TENSORBOARD | BROUGHT_BY_SUBMITIT | BROUGHT_BY_MKDOCS
    assert names(constraints) == wanted | brought
    assert names(extras["sweep"]) <= names(extras["dev"])


def test_build_requires_tools_not_torch(project):
    required = names(project["build-system"]["requires"])
    assert "torch" not in required
    assert required <= names(project["project"]["optional-dependencies"]["dev"])  # so --no-build-isolation finds them


def test_version_has_one_source(project):
    assert project["project"]["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", fastdarts.__version__)


def test_native_sources_are_listed(root):
    listed = set(re.findall(r"csrc/[\w/]+\.(?:cpp|cu)\b", (root / "CMakeLists.txt").read_text(encoding="utf-8")))
    found = {p.relative_to(root).as_posix() for p in (root / "csrc").rglob("*") if p.suffix in (".cpp", ".cu")}
    assert listed == found


def test_package_runs_from_bare_checkout(root, tmp_path):
    """A copy without the native module: kernels import, patch_mask runs on its definition, info names the missing module."""
    for folder in ("fastdarts", "kernels"):
        for source in (root / folder).rglob("*.py"):
            target = tmp_path / source.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    (tmp_path / "CMakeLists.txt").touch()
    program = "import fastdarts.kernels as k; from fastdarts import native; print(k.__file__, native.reason())"
    out = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert out.startswith(str(tmp_path)) and "the native module is not built" in out
    info = [sys.executable, "-m", "fastdarts.info"]
    out = subprocess.run(info, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "patch_mask on cpu, float32: definition" in out


@pytest.mark.skipif(native.reason() is not None, reason=str(native.reason()))
def test_wheel_is_complete(root, tmp_path):
    """Built without isolation, unpacked elsewhere: the native module loads, the kernels are inside the package."""
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(root)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        inside = archive.namelist()
    sources = {p.relative_to(root).as_posix() for p in (root / "fastdarts").rglob("*.py")}
    assert sources <= set(inside)
    data = {"fastdarts/kernels/launch.json", "fastdarts/spaces/published.json"}
    assert {"fastdarts/_build.json", "fastdarts/kernels/__init__.py", *data} <= set(inside)
    assert f"fastdarts-{fastdarts.__version__}.dist-info/entry_points.txt" in inside  # `fastdarts NAME`
    assert not any(name.startswith(("kernels/", "tests/", "bench/")) for name in inside)
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import fastdarts.kernels, fastdarts.native; print(fastdarts.kernels.__file__, fastdarts.native.module().__file__)"
    )
    run = [sys.executable, "-I", "-c", program]
    out = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert all(path.startswith(f"{site}/fastdarts/") for path in out.split())


def test_installed_version_matches_source():
    try:
        installed = metadata.version("fastdarts")
    except metadata.PackageNotFoundError:
        pytest.skip("fastdarts is used from the checkout, not installed")
    assert installed == fastdarts.__version__
