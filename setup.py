"""Drives CMake for the native module and maps kernels/ to fastdarts.kernels; all else is in pyproject.toml."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Builds fastdarts/_C and fastdarts/_build.json; lacking torch or a tool, records that sentence and goes on."""

    def run(self) -> None:
        module = Path(self.get_ext_fullpath("fastdarts._C"))
        record = module.with_name("_build.json")
        module.parent.mkdir(parents=True, exist_ok=True)
        if sentence := lacking():
            print(f"fastdarts: installing without the native module: {sentence}", file=sys.stderr)
            record.write_text(json.dumps({"skipped": sentence}) + "\n", encoding="utf-8")
            return
        build, without_cuda = build_folder(), lacking_cuda()
        failed = compiled(build, without_cuda)
        if failed and not without_cuda:
            print("fastdarts: that failed; building the native module without its CUDA kernels", file=sys.stderr)
            failed = compiled(build, "compiling them failed")
        if failed:
            raise CompileError(f"the native module failed to build: {failed}")
        for built, target in ((build / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}", module), (build / record.name, record)):
            whole = shutil.copy(built, target.with_suffix(".new"))
            os.replace(whole, target)  # never written into: a running process may have the old module mapped


def compiled(build: Path, without_cuda: str) -> str | None:
    """Configure and compile in the folder `build`; None, or the command that failed. without_cuda: as of `definitions`."""
    configure = [find("cmake"), "-S", ROOT, "-B", build, "-G", "Ninja", *definitions(without_cuda)]
    for command in ([*configure, *shlex.split(os.environ.get("CMAKE_ARGS", ""))], [find("cmake"), "--build", build]):
        if subprocess.run(command).returncode:
            return shlex.join(map(str, command))
    return None


def find(tool: str) -> str | None:
    """Return the program's path: this environment's (activated or not), else the one on PATH."""
    return shutil.which(tool, path=os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", ""))))


def lacking() -> str | None:
    """Why nothing native can be built here, or None."""
    again = "then run: pip install --no-build-isolation -e ."
    for package in ("torch", "pybind11"):
        if find_spec(package) is None:
            return f"{package} is not importable during the build; install it here, {again}"
    for tool in ("cmake", "ninja"):
        if find(tool) is None:
            return f"{tool} is not found; pip install {tool}, {again}"
    compilers = shlex.split(os.environ.get("CXX", ""))[:1] or ["c++", "g++", "clang++"]
    if not any(map(find, compilers)):
        return f"no C++ compiler is found ({', '.join(compilers)}); install one, {again}"
    return None


def lacking_cuda() -> str:
    """Why the CUDA kernels cannot be built here, or ""."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is not built for CUDA"
    compiler = nvcc()
    if compiler is None:
        return "nvcc is not found: neither CUDA_HOME nor PATH has it"
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", said)
    if release is None:
        return f"{compiler} does not say its version"
    if release[1] != torch.version.cuda.partition(".")[0]:
        return f"nvcc is of CUDA {release[1]}.{release[2]}, torch of CUDA {torch.version.cuda}"
    return ""


def nvcc() -> str | None:
    """Return the CUDA compiler: of CUDA_HOME, else the one on PATH."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin") if home else find("nvcc")


def build_folder() -> Path:
    """Where CMake works: kept, so that a second build compiles what changed; one for each Python, torch and CMAKE_ARGS."""
    import torch

    arguments = re.sub(r"[^\w=.]+", "-", os.environ.get("CMAKE_ARGS", ""))
    return ROOT / "build" / f"native-{sys.implementation.cache_tag}-torch-{torch.__version__}{arguments}"


def definitions(without_cuda: str) -> list[str]:
    """Return the definitions for CMakeLists.txt. without_cuda: why the CUDA kernels are left out, or ""."""
    import pybind11
    import torch

    home = Path(torch.__file__).parent
    native = module_from_spec(spec_from_file_location("native", ROOT / "fastdarts" / "native.py"))
    native.__spec__.loader.exec_module(native)
    includes = [home / "include", home / "include/torch/csrc/api/include", sysconfig.get_path("include")]
    git = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", "HEAD"]
    has_git = (ROOT / ".git").exists() and find("git")
    facts = {
        "CMAKE_MAKE_PROGRAM": find("ninja"),
        "MODULE_SUFFIX": sysconfig.get_config_var("EXT_SUFFIX"),
        "INCLUDES": ";".join(map(str, [pybind11.get_include(), *includes])),
        "TORCH_LIB": home / "lib",
        "TORCH_VERSION": torch.__version__,
        "TORCH_CUDA": torch.version.cuda or "",
        "PYTHON_VERSION": sysconfig.get_python_version(),
        "FASTDARTS_CUDA": "OFF" if without_cuda else "ON",
        "CUDA_SKIPPED": without_cuda,
        **({} if without_cuda else {"CMAKE_CUDA_COMPILER": nvcc()}),
        "SOURCES": native.digest(ROOT / "csrc"),
        "COMMIT": subprocess.run(git, capture_output=True, text=True).stdout.strip() if has_git else "",
    }
    return [f"-D{name}={value}" for name, value in facts.items()]


setup(
    packages=[*find_packages(include=["fastdarts", "fastdarts.*"]), "fastdarts.kernels"],
    package_dir={"fastdarts.kernels": "kernels"},
    package_data={"fastdarts": ["py.typed"], "fastdarts.spaces": ["published.json"], "fastdarts.kernels": ["launch.json"]},
    ext_modules=[Extension("fastdarts._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
