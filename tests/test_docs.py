"""The pages in docs/ build without a warning, fetch nothing, and say of every option what it is."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from nlpstack.decode import Sampling
from nlpstack.train.optim import OPTIONS, OptimConfig
from nlpstack.train.run import SECTIONS
from tests.conftest import ROOT
from tests.test_floors import FLOORS, PACKAGE

DOCS = ROOT / "docs"
PAGES = sorted(path.stem for path in DOCS.glob("*.md"))
NEEDED = ("sphinx", "myst_parser", "furo", "latex2mathml")
# Attributes by which a browser fetches something to show the page; a link that is only followed is not among them.
FETCHING = {"src", "srcset", "data", "poster", "background"}


def module_of(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generate_config() -> ModuleType:
    return module_of("generate_config")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The pages as `make docs` builds them: a warning, also of a link that leads nowhere, is an error."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        pytest.skip(f"the pages need {', '.join(missing)}: pip install 'nlpstack[docs]'")
    folder = tmp_path_factory.mktemp("docs")
    build = ["--fail-on-warning", "--keep-going", "-q", "-b", "html", "-d", folder / "doctrees", DOCS, folder / "html"]
    done = subprocess.run([sys.executable, "-m", "sphinx", *build], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder / "html"


class Fetched(HTMLParser):
    """Addresses that a browser fetches by itself when it shows a page, and the formulas on it."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.n_formulas = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.n_formulas += tag == "math"
        values = {name: value or "" for name, value in attrs}
        self.addresses += [value for name, value in values.items() if name in FETCHING]
        if tag == "link":
            self.addresses.append(values.get("href", ""))
        self.addresses += re.findall(r"url\(([^)]*)\)", values.get("style", ""))


def fetched(html: str) -> Fetched:
    parser = Fetched()
    parser.feed(html)
    return parser


def is_elsewhere(address: str) -> bool:
    return re.match(r"\s*['\"]?(\w+:)?//", address) is not None


def test_every_page_is_built_and_fetches_nothing_from_elsewhere(built):
    assert {"index", "tutorial", "data", "architecture", "config", "pretrain", "generate"} <= set(PAGES)
    assert {"contributing", "changelog"} <= set(PAGES)
    for page in PAGES:
        found = fetched((built / f"{page}.html").read_text(encoding="utf-8"))
        assert len(found.addresses) > 3  # the theme's own styles and scripts
        assert [address for address in found.addresses if is_elsewhere(address)] == []
    styles = [path.read_text(encoding="utf-8") for path in built.rglob("*.css")]
    assert styles
    for text in styles:
        called = re.findall(r"url\(([^)]*)\)|@import ([^;]*)", text)
        assert [address for pair in called for address in pair if is_elsewhere(address)] == []


def test_a_resource_from_elsewhere_would_be_found():
    page = '<link href="https://a.org/b.css"><script src="//c.org/d.js"></script><a href="https://e.org">e</a>'
    found = fetched(page + '<img src="own.png" style="background: url(\'http://f.org/g.png\')">').addresses
    assert [is_elsewhere(address) for address in found] == [True, True, False, True]


@pytest.mark.parametrize("page", ["pretrain", "generate"])
def test_formulas_are_drawn_by_the_browser_itself(built, page):
    html = (built / f"{page}.html").read_text(encoding="utf-8")
    source = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    assert fetched(html).n_formulas >= source.count("$$") // 2 >= 4
    assert "MathJax" not in html
    assert "$$" not in html


def test_the_config_page_says_of_every_key_what_it_is(built, generate_config):
    html = (built / "config.html").read_text(encoding="utf-8")
    for name, cls in SECTIONS.items():
        assert f">[{name}]<" in html
        options = generate_config.options(cls)
        assert [option.name for option in options] == list(cls.__pydantic_fields__)
        for option in options:
            assert len(option.description) > 3
            assert re.search(rf"<tr[^>]*><td><p><code[^>]*><span[^>]*>{option.name}</span></code></p></td>", html)


def test_the_config_page_lists_the_options_of_every_optimizer(built):
    text = re.sub(r"<[^>]*>", "", (built / "config.html").read_text(encoding="utf-8"))
    assert set(OPTIONS) == set(get_args(OptimConfig.__pydantic_fields__["name"].annotation))
    for name, defaults in OPTIONS.items():
        written = ", ".join(f"{option} = {json.dumps(default)}" for option, default in defaults.items())
        assert f"{name}\n{written}\n" in text


def test_the_page_on_generating_says_of_every_option_what_it_is(built, generate_config):
    html = (built / "generate.html").read_text(encoding="utf-8")
    names = [option.name for option in generate_config.options(Sampling)]
    assert names == list(Sampling.__pydantic_fields__)
    assert [name for name in names if f">{name}</span></code></p></td>" not in html] == []


def test_a_key_without_a_description_is_refused(generate_config, monkeypatch):
    monkeypatch.setattr(generate_config, "comments", lambda cls: {})
    with pytest.raises(ValueError, match="has no comment beside it"):
        generate_config.options(SECTIONS["data"])


def test_defaults_are_written_as_a_recipe_would_write_them(generate_config):
    for cls in (*SECTIONS.values(), Sampling):
        for option in generate_config.options(cls):
            if option.default == "not set":
                continue
            value = tomllib.loads(f"value = {option.default.strip('`')}")["value"]
            default = cls.__pydantic_fields__[option.name].get_default(call_default_factory=True)
            assert value == (list(default) if isinstance(default, tuple) else default)


def test_the_table_of_floors_is_the_one_that_is_tested():
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d.]+) \| ([^|]*) \|", page, flags=re.M)
    told = {name: float(floor) for floor, names in rows for name in re.findall(r"`(\w+)`", names)}
    there = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert told == {name: floor for name, floor in FLOORS.items() if name in there - {"__main__"}}


def test_paths_that_the_pages_name_exist():
    for page in PAGES:
        text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
        named = re.findall(r"`((?:nlpstack|pretrain|tests|benchmarks|docs)/[\w./-]*)`", text)
        assert [name for name in named if not (ROOT / name).exists()] == [], page


def test_pictures_have_a_bar_for_every_figure_and_say_what_is_unmeasured():
    drawn = module_of("draw_results")
    text = "# R\n## One\n| what | a / b |\n|---|--:|\n| x & y | 1.50 (1.25 to 1.75) |\n| z | unmeasured |\n\n## Two\n"
    assert drawn.bars("One", "a / b", text) == [drawn.Bar("x & y", 1.5, 1.25, 1.75), drawn.Bar("z", None)]
    picture = drawn.picture("One", "a / b", text)
    assert [picture.count(part) for part in ("<rect", ">1.50<", ">unmeasured<", "x &amp; y")] == [1, 1, 1, 1]
    for section, column in (("Two", "a / b"), ("One", "b / a"), ("Three", "a / b")):
        with pytest.raises(ValueError, match=f"no column '{column}' under '{section}'"):
            drawn.bars(section, column, text)


def test_the_page_on_performance_shows_the_figures_of_the_results(built):
    page = (built / "performance.html").read_text(encoding="utf-8")
    drawn = module_of("draw_results")
    text = drawn.RESULTS.read_text(encoding="utf-8")
    asked = drawn.PICTURE.findall((DOCS / "performance.md").read_text(encoding="utf-8"))
    assert len(asked) == page.count('<svg role="img" aria-label') == 3
    for section, column in asked:
        for bar in drawn.bars(section, column, text):
            assert bar.ratio is None or f">{bar.ratio:.2f}</text>" in page
