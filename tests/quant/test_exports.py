"""The public names of `rfq.quant` and `rfq.stats`."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

PACKAGES = ("rfq.quant", "rfq.stats")


@pytest.mark.parametrize("package", PACKAGES)
def test_no_name_is_a_function_and_a_module(package):
    module = importlib.import_module(package)
    submodules = {found.name for found in pkgutil.iter_modules(module.__path__)}
    assert not submodules & set(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None
    for name in submodules:
        found = importlib.import_module(f"{package}.{name}")
        assert getattr(module, name) is found


def test_every_module_can_be_the_first_that_is_imported():
    # The two packages use each other's modules.
    names = [
        f"{package}.{found.name}"
        for package in PACKAGES
        for found in pkgutil.iter_modules(importlib.import_module(package).__path__)
    ]
    code = f"""
import importlib, sys

for name in {[*PACKAGES, "rfq.taps", *names]}:
    for loaded in [m for m in sys.modules if m.partition(".")[0] == "rfq"]:
        del sys.modules[loaded]
    importlib.import_module(name)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
