"""The wheel has what the package needs, the source distribution what its own tests need."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from places import REPOSITORY

import caffe2torch

pytest.importorskip("hatchling", reason="hatchling is not installed")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    code = f"import hatchling.build as b; b.build_wheel({str(folder)!r}); b.build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True)
    return folder


def files_of_the_repository(*folders: str, ignored: tuple[str, ...] = (".pyc",)) -> set[str]:
    found = (file for folder in folders for file in (REPOSITORY / folder).rglob("*") if file.is_file())
    return {file.relative_to(REPOSITORY).as_posix() for file in found if file.suffix not in ignored}


def test_the_wheel_has_every_file_of_the_package_and_its_license(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        said = Parser().parsestr(archive.read(metadata).decode())
    assert files_of_the_repository("caffe2torch") <= names
    assert not any(name.startswith(("tests/", "fixtures/", "docs/")) for name in names)
    assert said["Version"] == caffe2torch.__version__
    assert (said["License-Expression"], said["Author"]) == ("MIT", "The caffe2torch authors")
    assert metadata.replace("METADATA", "licenses/LICENSE") in names


def test_the_source_distribution_has_what_its_tests_and_its_site_need(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    needed = files_of_the_repository("caffe2torch", "tests", "fixtures", "docs", "examples", "benchmarks", "proto")
    assert needed <= names, sorted(needed - names)[:5]
    assert {"Makefile", "LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "mkdocs.yml"} <= names


def test_the_changelog_begins_with_this_version() -> None:
    text = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert text.split("\n## ")[1].splitlines()[0] == caffe2torch.__version__
