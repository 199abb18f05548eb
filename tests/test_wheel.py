"""What is built from the checkout: the wheel, the editable install and the source archive."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

import nlpstack

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("pretrain", "finetune", "eval")
SAMPLES_LIMIT = 5_000_000  # bytes, all bundled data sets together


def build_wheel(root: Path, folder: Path, version: str = "standard") -> Path:
    (path,) = WheelBuilder(str(root)).build(directory=str(folder), versions=[version])
    return Path(path)


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def recipes_of(root: Path) -> dict[str, bytes]:
    """The recipes of a checkout, under the names they have in the wheel."""
    return {
        f"nlpstack/recipes/{stage}/{path.name}": path.read_bytes()
        for stage in STAGES
        for path in (root / stage).glob("*.toml")
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def small_checkout(tmp_path: Path) -> Path:
    """A copy of the checkout with recipes, a README and a stray file in `pretrain/`, and no other stage folder."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "nlpstack", root / "nlpstack", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ["pyproject.toml", "LICENSE", ".gitignore"]:
        shutil.copy(ROOT / name, root)
    (root / "README.md").touch()
    (root / "pretrain").mkdir()
    for name in ["tiny.toml", "README.md", "stray.py"]:
        (root / "pretrain" / name).write_text("# A tiny one.\n")
    return root


def look_up(package_parent: Path, code: str) -> str:
    """What a fresh interpreter prints when it imports the nlpstack in that folder."""
    program = f"import sys; sys.path.insert(0, {str(package_parent)!r}); {code}"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_nlpstack_is_the_only_top_level_package_of_the_wheel(wheel: Path) -> None:
    tops = {name.partition("/")[0] for name in contents(wheel)}
    assert tops == {"nlpstack", f"nlpstack-{nlpstack.__version__}.dist-info"}


def test_the_wheel_holds_the_checkouts_recipes_and_nothing_else_of_the_stage_folders(wheel: Path) -> None:
    inside = {name: data for name, data in contents(wheel).items() if name.startswith("nlpstack/recipes/")}
    assert inside.pop("nlpstack/recipes/__init__.py")
    assert inside == recipes_of(ROOT)


def test_the_wheel_holds_all_code_and_samples(wheel: Path) -> None:
    names = [path for path in (ROOT / "nlpstack").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    files = {path.relative_to(ROOT).as_posix() for path in names}
    assert {"nlpstack/py.typed", "nlpstack/samples/shakespeare/input.txt"} <= files
    assert set(contents(wheel)) - set(recipes_of(ROOT)) - files == {
        f"nlpstack-{nlpstack.__version__}.dist-info/{name}"
        for name in [
            "METADATA",
            "RECORD",
            "WHEEL",
            "entry_points.txt",
            "licenses/LICENSE",
            *(
                f"licenses/nlpstack/samples/{path.parent.name}/LICENSE"
                for path in ROOT.glob("nlpstack/samples/*/LICENSE")
            ),
        ]
    }
    assert files <= set(contents(wheel))


def test_the_samples_stay_small(wheel: Path) -> None:
    sizes = [len(data) for name, data in contents(wheel).items() if name.startswith("nlpstack/samples/")]
    assert 1_000_000 < sum(sizes) <= SAMPLES_LIMIT


def test_a_stage_folder_may_be_missing(small_checkout: Path, tmp_path: Path) -> None:
    inside = contents(build_wheel(small_checkout, tmp_path / "dist"))
    assert {name: inside[name] for name in inside if "recipes/" in name and not name.endswith(".py")} == {
        "nlpstack/recipes/pretrain/tiny.toml": b"# A tiny one.\n"
    }
    assert not [name for name in inside if "stray" in name]


def test_recipes_are_found_in_an_installed_wheel(small_checkout: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    shutil.unpack_archive(build_wheel(small_checkout, tmp_path / "dist"), site, "zip")
    (site / "eval").mkdir()  # another distribution's, that happens to have one of our names
    (site / "eval" / "other.toml").touch()
    code = "from nlpstack.recipes import *; print(*[(r.full_name, str(r.path), r.summary) for r in list_recipes()])"
    expected = ("pretrain/tiny", str(site / "nlpstack/recipes/pretrain/tiny.toml"), "A tiny one.")
    assert look_up(site, code) == str(expected)
    code = "from nlpstack.samples import sample; print(sample('shakespeare'))"
    assert look_up(site, code) == str(site / "nlpstack/samples/shakespeare/input.txt")


def test_an_editable_install_is_the_checkout(small_checkout: Path, tmp_path: Path) -> None:
    inside = contents(build_wheel(small_checkout, tmp_path / "dist", "editable"))
    (path_file,) = (data for name, data in inside.items() if name.endswith(".pth"))
    assert path_file.decode().split() == [str(small_checkout)]
    assert not [name for name in inside if name.startswith("nlpstack/")]
    code = "from nlpstack.recipes import find_recipe; print(find_recipe('tiny'))"
    assert look_up(small_checkout, code) == str(small_checkout / "pretrain/tiny.toml")


def test_the_source_archive_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    (path,) = SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = (entry for entry in tmp_path.iterdir() if entry.is_dir())
    assert contents(build_wheel(unpacked, tmp_path / "dist")) == contents(wheel)
    assert {"Makefile", "constraints.txt", "tests"} <= {entry.name for entry in unpacked.iterdir()}


def test_every_direct_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    asked = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    names = {re.split(r"[\[<>=]", line)[0] for line in asked} - {"nlpstack"}
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin) for pin in pins)
    assert names <= {pin.partition("==")[0] for pin in pins}
