"""`xent_rs.keras`: the checks of `keras_backend.py`, on each backend in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = Path(__file__).with_name("keras_backend.py")
#: What each backend of Keras is: the package that has to be installed for it.
BACKENDS = {"jax": "jax", "numpy": "numpy", "tensorflow": "tensorflow", "torch": "torch"}


def environment(backend, home):
    return {
        **os.environ,
        "KERAS_BACKEND": backend,
        "KERAS_HOME": str(home),  # Keras writes a file of settings where there is none
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def skip_without(backend):
    if importlib.util.find_spec("keras") is None:
        pytest.skip("Keras is not installed")
    if importlib.util.find_spec(BACKENDS[backend]) is None:
        pytest.skip(f"{backend}, a backend of Keras, is not installed")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_checks_pass_on_a_backend(backend, tmp_path):
    skip_without(backend)
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", CHECKS],
        env=environment(backend, tmp_path),
        cwd=CHECKS.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    print(finished.stdout)


def test_a_backend_that_is_not_known_is_named_with_those_that_are(tmp_path):
    skip_without("numpy")
    source = (
        "import keras; keras.config.backend = lambda: 'abacus'\n"
        "try:\n    import xent_rs.keras\n"
        "except ImportError as error:\n    print(error)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", source],
        env=environment("numpy", tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout == (
        "Keras has the backend 'abacus', which xent_rs.keras does not know; expected one of jax, numpy, "
        "tensorflow, torch in the environment variable KERAS_BACKEND\n"
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_losses_load_no_backend_but_that_of_keras(backend, tmp_path):
    skip_without(backend)
    source = "import sys, xent_rs.keras; print(*sorted(name for name in sys.modules if name in %r))"
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", source % (["jax", "tensorflow", "torch"],)],
        env=environment(backend, tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    # What Keras itself loads depends on what is installed: it saves tensors of any framework.
    plain = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            source.replace("xent_rs.keras", "keras") % (["jax", "tensorflow", "torch"],),
        ],
        env=environment(backend, tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout == plain.stdout
