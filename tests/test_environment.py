"""pyproject.toml, constraints.txt and environment.yml describe one environment."""

import tomllib
from importlib.metadata import distributions

import yaml
from makers import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(r.name): r for r in found}


def declared():
    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    return [Requirement(line) for line in lines]


def test_every_dependency_is_pinned_inside_its_range():
    pinned = pins()
    for requirement in declared():
        pin = pinned[canonicalize_name(requirement.name)]
        (spec,) = pin.specifier
        assert spec.operator == "=="
        assert requirement.specifier.contains(spec.version, prereleases=True), requirement


def test_pins_are_public_versions_for_any_machine():
    for pin in pins().values():
        (spec,) = pin.specifier
        assert Version(spec.version).local is None, pin
        assert not pin.name.startswith("nvidia"), "CUDA is torch's"
        assert pin.url is None


def test_what_is_pinned_installs_on_the_oldest_python():
    """Debian 12 has Python 3.11.2: a patch release may not be asked for."""
    pinned, oldest = pins(), "3.11.0"
    assert SpecifierSet(PROJECT["requires-python"]).contains(oldest)
    for one in distributions():
        if canonicalize_name(one.name) in pinned:
            assert SpecifierSet(one.metadata["Requires-Python"] or "").contains(oldest), one.name


def test_conda_installs_the_same_from_the_same_lists():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, last = environment["dependencies"]
    python = next(line for line in conda if line.startswith("python="))
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.split("=")[1])
    assert "make" in conda
    assert "pip" in conda
    constraints, editable = last["pip"]
    assert constraints == "-c constraints.txt"
    assert editable.startswith("-e .[")
    assert set(editable[5:-1].split(",")) == set(EXTRAS)
