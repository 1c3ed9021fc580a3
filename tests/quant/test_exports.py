"""The lazy names of `rfq.quant` and `rfq.stats`."""

import importlib
import pkgutil
import subprocess
import sys
import types

import pytest

PACKAGES = ("rfq.quant", "rfq.stats")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_listed_name_exists_and_is_no_module(package):
    module = importlib.import_module(package)
    submodules = {found.name for found in pkgutil.iter_modules(module.__path__)}
    assert not submodules & set(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None
        assert name in dir(module)


@pytest.mark.parametrize("package", PACKAGES)
def test_names_of_modules_stay_modules(package):
    module = importlib.import_module(package)
    for name in module.__all__:
        getattr(module, name)
    for found in pkgutil.iter_modules(module.__path__):
        submodule = importlib.import_module(f"{package}.{found.name}")
        assert isinstance(submodule, types.ModuleType)
        assert getattr(module, found.name) is submodule


@pytest.mark.parametrize("package", PACKAGES)
def test_an_unknown_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = importlib.import_module(package).nothing


def test_importing_the_packages_does_not_import_jax():
    code = "import sys, rfq.quant, rfq.stats; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
