"""Frameworks that are missing or too old, and that the package does not load by itself."""

import importlib
import sys
import types

import pytest

FRAMEWORKS = {"torch": "PyTorch", "jax": "JAX", "keras": "Keras", "dask": "Dask"}
frameworks = pytest.mark.parametrize("name", FRAMEWORKS)


def replace(name, framework, monkeypatch):
    """Let `import name` find `framework`, and what imports it do so again."""
    for module in [loaded for loaded in sys.modules if loaded.startswith(f"xent_rs.{name}")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, framework)


@frameworks
def test_the_package_imports_no_framework(name, python):
    finished = python(f"import sys, xent_rs, xent_rs.cli; print({name!r} in sys.modules)")
    assert finished.stdout == "False\n"


@frameworks
def test_a_missing_framework_is_named_with_the_command_that_installs_it(name, monkeypatch):
    besides = " and one of its backends" if name == "keras" else ""
    replace(name, None, monkeypatch)
    with pytest.raises(ImportError) as caught:
        importlib.import_module(f"xent_rs.{name}")
    assert str(caught.value) == (
        f"xent_rs.{name} needs {FRAMEWORKS[name]}{besides} (import of {name} halted; None in sys.modules): "
        f"pip install xent_rs[{name}]"
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "oldest", "version"),
    [
        ("torch", "2.7", "2.6.1"),
        ("torch", "2.7", "1.13.0+cpu"),
        ("torch", "2.7", "2.6.0a0+git1234"),
        ("jax", "0.5", "0.4.38"),
        ("jax", "0.5", "0.4.36.dev20241206"),
        ("keras", "3.10", "3.9.2"),
        ("keras", "3.10", "2.15.0"),
        ("dask", "2025.5", "2025.4.1"),
    ],
)
def test_a_framework_that_is_too_old_is_named_with_its_version(name, oldest, version, monkeypatch):
    old = types.ModuleType(name)
    old.__version__ = version
    replace(name, old, monkeypatch)
    with pytest.raises(ImportError) as caught:
        importlib.import_module(f"xent_rs.{name}")
    assert str(caught.value) == (
        f"xent_rs.{name} needs {FRAMEWORKS[name]} {oldest} or newer, and this is {version}: "
        f"pip install --upgrade xent_rs[{name}]"
    )
