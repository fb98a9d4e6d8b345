"""Every example is run: docstrings, README, pages."""

import ast
import doctest
import importlib.util
import inspect
import operator
import os
import pkgutil
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest
import xent_rs

# The least that Keras loads.
os.environ.setdefault("KERAS_BACKEND", "jax")

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(xent_rs.__path__, "xent_rs.")
    if not module.name.endswith("__main__")
)
PUBLIC = sorted({*xent_rs.__all__} - {"__version__"}) + [
    f"probability.{name}" for name in xent_rs.probability.__all__
]
FUNCTIONS = [name for name in PUBLIC if inspect.isfunction(operator.attrgetter(name)(xent_rs))]
#: What the examples of a page or of a module need besides what the tests have, and the least version.
NEEDS = {
    "boosting.md": {"lightgbm": "4.7", "sklearn": "1.4", "xgboost": "3.2"},
    "jax.md": {"jax": "0.5"},
    "keras.md": {"keras": "3.10", "jax": "0.5"},
    "many_machines.md": {"dask": "2025.5"},
    "torch.md": {"torch": "2.7", "transformers": "4", "accelerate": "1"},
    "xent_rs.dask": {"dask": "2025.5"},
    "xent_rs.jax": {"jax": "0.5"},
    "xent_rs.keras": {"keras": "3.10", "jax": "0.5"},
    "xent_rs.torch": {"torch": "2.7"},
}
# Nobody else has a function for what these do.
OWN = {"get_num_threads", "release_memory", "set_num_threads", "show_config"}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def skip_without_needs(name):
    for package, version in NEEDS.get(name, {}).items():
        pytest.importorskip(package, version, reason=f"the examples of {name} need {package} {version}")


def is_run_alone(name, request):
    """Run the examples of Keras in a process of their own, for TensorFlow's libraries and PyTorch's clash."""
    if "keras" not in name or "XENT_RS_EXAMPLES_OF_KERAS" in os.environ:
        return False
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "", f"{Path(__file__)}::{request.node.name}"],
        env={**os.environ, "XENT_RS_EXAMPLES_OF_KERAS": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return True


def run_examples(test):
    said = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)


@pytest.mark.parametrize("name", ["xent_rs", *MODULES])
def test_examples_in_docstrings(name, tmp_path, monkeypatch, request):
    skip_without_needs(".".join(name.split(".")[:2]))
    if name.endswith("._tensorflow") and importlib.util.find_spec("tensorflow") is None:
        pytest.skip(f"the examples of {name} need TensorFlow")
    if is_run_alone(name, request):
        return
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    for test in doctest.DocTestFinder().find(module):
        run_examples(test)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name):
    """numpydoc: a summary of one sentence; functions with parameters, results, an example and a reference."""
    thing = operator.attrgetter(name)(xent_rs)
    text = inspect.getdoc(thing)
    assert text, name
    assert re.match(r"[A-Z`][^\n]*\.(\n\n|$)", text), f"{name}: {text.splitlines()[0]}"
    if inspect.isfunction(thing) and inspect.signature(thing).parameters:
        for section in ("Parameters", "Examples"):
            assert re.search(rf"^{section}\n-{{{len(section)}}}$", text, re.MULTILINE), (
                f"{name} lacks {section}"
            )
        for parameter in inspect.signature(thing).parameters:
            assert re.search(rf"^(\w+, )*{parameter}(, \w+)*( : |$)", text, re.MULTILINE), (
                f"{name} lacks {parameter}"
            )
        assert doctest.DocTestParser().get_examples(text), f"{name} lacks an example"


def test_help_begins_with_the_public_names_in_groups():
    text = xent_rs.__doc__
    listed = re.findall(r"^(\w+) +-- \S", text, re.MULTILINE)
    assert sorted(listed) == sorted(set(xent_rs.__all__) - {"__version__"} | {"io"})
    assert len(re.findall(r"^-+$", text, re.MULTILINE)) >= 6
    shown = pydoc.plain(pydoc.render_doc(xent_rs))
    assert shown.index("cross_entropy  ") < shown.index("PACKAGE CONTENTS")
    assert {"io", *xent_rs.__all__} == set(dir(xent_rs))


def test_io_is_there_after_the_import_but_not_before_it_is_used(python):
    python(
        "import sys, xent_rs; assert 'xent_rs.io' not in sys.modules and 'zipfile' not in sys.modules; "
        "assert callable(xent_rs.io.open_array); assert xent_rs.io is sys.modules['xent_rs.io']"
    )
    python("from xent_rs import io; assert callable(io.open_array)")
    with pytest.raises(AttributeError, match=r"^module 'xent_rs' has no attribute 'oi'$"):
        xent_rs.oi  # noqa: B018


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_say_where_they_come_from_and_what_they_are_called_elsewhere(name):
    if name in OWN:
        return
    text = inspect.getdoc(operator.attrgetter(name)(xent_rs)).lower()
    for section in ("returns", "raises", "references"):
        assert re.search(rf"^{section}\n-{{{len(section)}}}$", text, re.MULTILINE), f"{name} lacks {section}"
    for elsewhere in ("torch", "keras", "optax", "scikit-learn|sklearn"):
        assert re.search(elsewhere, text), f"{name} says nothing of {elsewhere}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_on_pages(page, tmp_path, monkeypatch, request):
    """The Python blocks of a page, from top to bottom, in one namespace."""
    skip_without_needs(page.name)
    if is_run_alone(page.name, request):
        return
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    names = {"__name__": "page"}
    for block in re.finditer(r"^```(?:python|pycon)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        source, line = block[1], text[: block.start()].count("\n") + 1
        if ">>>" in source:
            # globs are copied by DocTest: hand the names on.
            test = doctest.DocTestParser().get_doctest(source, names, page.name, str(page), line)
            test.globs = names
            runner = doctest.DocTestRunner(optionflags=FLAGS)
            said = []
            runner.run(test, out=said.append, clear_globs=False)
            assert runner.failures == 0, "".join(said)
        else:
            exec(compile("\n" * line + source, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_have_examples(page):
    """Or show, on the site, what has."""
    text = page.read_text(encoding="utf-8")
    shows = re.search(r"^\[[^]]*\]\(\.\./\w+\.md(#[\w-]+)?\)$", text, re.MULTILINE)
    assert "```python" in text or shows or page.name in {"explore.md", "guide.md"}


def test_the_page_of_the_package_is_that_of_readme():
    """And holds where no file lies beside it."""
    spec = importlib.util.spec_from_file_location("package_page", ROOT / "scripts" / "package_page.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = script.PAGE.read_text(encoding="utf-8")
    assert page == script.page((ROOT / "README.md").read_text(encoding="utf-8")), (
        "run scripts/package_page.py"
    )
    assert "](https://" in page
    for broken in (r"\]\((?!https://)", "<", r"\(picture\)"):
        assert not re.search(broken, page), broken


def test_links_of_pages_lead_somewhere():
    """Links within the repository: the file is there, and so is the heading."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for file, anchor in re.findall(r"\]\((?!https?://)([^()#]*)#?([^()]*)\)", text):
            target = page.parent / file if file else page
            assert target.exists(), f"{page.name} links to {file}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
                anchors = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
                assert anchor in anchors, f"{page.name} links to {file}#{anchor}"


def test_the_site_knows_the_sections_of_readme_and_has_pages_for_them():
    path = ROOT / "docs" / "_extensions" / "repository.py"
    spec = importlib.util.spec_from_file_location("repository", path)
    repository = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(repository)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target, page in repository.PAGES.items():
        file, _, section = target.partition("#")
        assert (ROOT / file).exists(), target
        assert page.startswith("examples/") or (ROOT / "docs" / page.partition("#")[0]).exists(), page
        if section:
            assert repository.section(readme, section).strip(), target


def test_every_public_name_is_in_the_reference():
    """The lists of docs/api.rst, of which the site makes a page for each name, are the modules' `__all__`."""
    package, listed, module = ROOT / "python" / "xent_rs", set(), ""
    for line in (ROOT / "docs" / "api.rst").read_text(encoding="utf-8").splitlines():
        if current := re.match(r"\.\. currentmodule:: (.*)", line):
            module = current[1]
        elif name := re.match(r"   (\w+)$", line):
            listed.add(f"{module}.{name[1]}")
    public = set()
    for file in package.rglob("*.py"):
        name = ".".join(["xent_rs", *file.relative_to(package).with_suffix("").parts]).removesuffix(
            ".__init__"
        )
        for statement in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
                public |= {f"{name}.{each}" for each in ast.literal_eval(statement.value)}
    assert listed == public - {"xent_rs.__version__", "xent_rs.probability", "xent_rs.cli.main"}


def test_every_public_function_is_in_the_tables_of_names():
    readme, names = (
        (ROOT / page).read_text(encoding="utf-8") for page in ("README.md", Path("docs", "names.md"))
    )
    for name in FUNCTIONS:
        assert re.search(rf"`(\w+\.)?{name.rpartition('.')[2]}[(`]", readme), f"README lacks {name}"
        assert re.search(rf"`{name}[(`]", names) or name in OWN, f"docs/names.md lacks {name}"
