"""The scripts of docs/many_machines.md, each with the engine that it is for: the bits of one process."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import xent_rs

PAGE = (Path(__file__).parent.parent / "docs" / "many_machines.md").read_text(encoding="utf-8")
SCRIPTS = {
    name: (needs.split(), source)
    for name, needs, source in re.findall(
        r"^<!-- script: (\S+)(?: needs ([^>]*))? -->\n```py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL
    )
}
#: They take longer than all the rest of the page.
HEAVY = {"with_ray.py", "with_spark.py"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of logits, the scripts, and what one process says."""
    folder = tmp_path_factory.mktemp("parts")
    first = re.search(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[1]
    before = Path.cwd()
    os.chdir(folder)
    try:
        names = {}
        exec(first, names)
    finally:
        os.chdir(before)
    for name, (_, source) in SCRIPTS.items():
        (folder / name).write_text(source, encoding="utf-8")
    return folder, f"{names['expected']}\n"


def test_every_script_of_the_page_is_found():
    assert len(SCRIPTS) == len(re.findall("^```py$", PAGE, re.MULTILINE)) == 7


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.exhaustive if name in HEAVY else ()) for name in SCRIPTS]
)
def test_scripts(name, folder):
    directory, expected = folder
    for needed in SCRIPTS[name][0]:
        if importlib.util.find_spec(needed) is None and shutil.which(needed) is None:
            pytest.skip(f"{name} needs {needed}")
    command = [sys.executable, name]
    if "mpirun" in SCRIPTS[name][0]:
        command = ["mpirun", "--oversubscribe", "--allow-run-as-root", "-n", "2", *command]
    package = str(Path(xent_rs.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [str(directory), package, os.environ.get("PYTHONPATH")]))
    finished = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": path, "PYSPARK_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == ("True\nTrue\n" if name == "shards_with_mpi.py" else expected), finished.stderr
