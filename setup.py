"""Hands libpxfast.so, which CMake builds, to setuptools. Sources and flags stand in CMakeLists.txt.

torch is no build requirement: an isolated build would fetch one of several gigabytes. Its headers
and libraries are taken from the environment that pxfast is installed into, without importing it.
Environment variables:

PXFAST_TORCH_DIR   folder of the torch package to build against, where it is not found by itself
PXFAST_CUDA        AUTO (default: CUDA kernels where there is an nvcc), ON or OFF
PXFAST_CUDA_ARCHS  CUDA architectures, such as "9.0a" (CMakeLists.txt has the default)
CMAKE_BUILD_TYPE   Release (default), RelWithDebInfo or Debug
MAX_JOBS           compilers at a time
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
MINIMUM_TORCH = (2, 11)
MINIMUM = ".".join(map(str, MINIMUM_TORCH))


def torch_folders() -> list[Path]:
    """Where torch may be installed, the likeliest first.

    Build isolation takes the target environment off ``sys.path``. pip runs the same interpreter, so
    sysconfig still names its folders; `python -m build` makes an environment of its own, and then
    only VIRTUAL_ENV tells which one is active.
    """
    spec = importlib.util.find_spec("torch")
    folders = [Path(spec.origin).parent] if spec and spec.origin else []
    packages = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if active := os.environ.get("VIRTUAL_ENV"):
        packages += [sysconfig.get_path("purelib", vars={"base": active})]
    packages += [*site.getsitepackages([sys.prefix, sys.base_prefix]), site.getusersitepackages()]
    return folders + [Path(folder) / "torch" for folder in packages]


def torch_version(folder: Path) -> str | None:
    """The version of the torch in `folder`, or None where there is none."""
    try:
        text = (folder / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE)
    return match[1] if match else None


def find_torch() -> Path:
    """Folder of the torch to build against.

    Raises:
        SystemExit: where there is none, or only one that is too old; says what to do.
    """
    given = os.environ.get("PXFAST_TORCH_DIR")
    for folder in [Path(given)] if given else torch_folders():
        version = torch_version(folder)
        if version is None:
            continue
        if tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < MINIMUM_TORCH:
            sys.exit(f"pxfast: torch {version} in {folder} is too old; install torch >= {MINIMUM}")
        return folder
    sys.exit(
        f"pxfast: no torch in {given or sys.prefix}, whose headers and libraries the build needs."
        f" Install it first (pip install 'torch>={MINIMUM}'), or set PXFAST_TORCH_DIR to the folder"
        " of the torch package, or build without isolation in the environment that has it"
        " (pip install --no-build-isolation . or python -m build --no-isolation)."
    )


def find_program(name: str, why: str) -> str:
    """Path of a program that the build runs.

    Raises:
        SystemExit: where it is not installed.
    """
    if path := shutil.which(name):
        return path
    sys.exit(f"pxfast: {name} is needed {why}; install it (pip install {name}) and try again")


def check_compiler() -> None:
    """Fail early, with advice, where there is no C++ compiler."""
    names = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    if not any(map(shutil.which, names)):
        sys.exit(
            f"pxfast: no C++ compiler found (looked for {', '.join(names)}); install GCC >= 12 or"
            " Clang >= 14 (Debian, Ubuntu: apt-get install g++; macOS: xcode-select --install)"
            " or set CXX to one"
        )


class CMakeBuild(build_ext):
    """Configures and builds with CMake and ninja, then copies the library into the package."""

    def get_ext_filename(self, ext_name: str) -> str:
        """One plain library: it holds no Python ABI, so its name carries none."""
        return os.path.join(*ext_name.split(".")) + ".so"

    def build_extension(self, ext: Extension) -> None:
        """Build one extension; there is only one."""
        cmake = find_program("cmake", "to build the kernels")
        ninja = find_program("ninja", "to build the kernels")
        check_compiler()
        build_type = os.environ.get("CMAKE_BUILD_TYPE", "Release")
        folder = ROOT / "build" / f"cmake-{build_type.lower()}"
        options = {
            "CMAKE_BUILD_TYPE": build_type,
            "CMAKE_MAKE_PROGRAM": ninja,
            "PXFAST_TORCH_DIR": find_torch(),
            "PXFAST_CUDA": os.environ.get("PXFAST_CUDA", "AUTO"),
        }
        if archs := os.environ.get("PXFAST_CUDA_ARCHS"):
            options["PXFAST_CUDA_ARCHS"] = re.sub(r"[\s,]+", ";", archs.strip())
        if ccache := shutil.which("ccache"):
            options |= {
                f"CMAKE_{language}_COMPILER_LAUNCHER": ccache for language in ("CXX", "CUDA")
            }
        settings = [f"-D{name}={value}" for name, value in options.items()]
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        subprocess.check_call([cmake, "-S", ROOT, "-B", folder, "-GNinja", "--fresh", *settings])
        subprocess.check_call([cmake, "--build", folder, *jobs])
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / "libpxfast.so", library)


class Wheel(bdist_wheel):
    """Tags the wheel for any Python 3 on this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """The tag."""
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("pxfast.libpxfast", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel},
)
