"""The pytest plug-in: `--steerlab-methods`, `--steerlab-edits` and `--steerlab-judges` pick what is held to the contract, and
`--full` asks for the whole product.

It loads nothing heavy, since pytest imports it in every project that has steerlab installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options."""
    group = parser.getgroup("steerlab")
    group.addoption("--steerlab-methods", default="", help="hold only these methods (commas between) to the contract")
    group.addoption(
        "--steerlab-edits", default="", help="hold only these kinds of edit (commas between) to the contract"
    )
    group.addoption(
        "--steerlab-judges", default="", help="hold only these judges (names, or .py files) to the contract"
    )
    group.addoption(
        "--full", action="store_true", help="the whole product of architectures, parts and edits, not pairwise"
    )


def _pairs(names: list[str], *, full: bool) -> list[tuple[str, str]]:
    """Methods with architectures: three of them each and every one in turn, or the whole product."""
    from steerlab.testing.tiny import ARCHITECTURES

    every = list(ARCHITECTURES)
    if full:
        return [(name, architecture) for name in names for architecture in every]
    return [(name, every[(3 * n + k) % len(every)]) for n, name in enumerate(names) for k in range(3)]


def edit_kinds(metafunc: pytest.Metafunc) -> list[str]:
    """The kinds of edit that are held to the contract, those of installed packages included."""
    from steerlab import edits, plugins

    plugins.bring()
    chosen = [n.strip() for n in str(metafunc.config.getoption("--steerlab-edits")).split(",") if n.strip()]
    if unknown := [name for name in chosen if name not in edits.kinds()]:
        raise ValueError(f"there is no edit called {', '.join(unknown)}; there are {', '.join(edits.kinds())}.")
    return chosen or list(edits.kinds())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for `method_name`, `judge_name` or a kind of edit or control runs once for each installed."""
    if "method_name" in metafunc.fixturenames:
        from steerlab import plugins

        chosen = str(metafunc.config.getoption("--steerlab-methods"))
        names = [n.strip() for n in chosen.split(",") if n.strip()] or list(plugins.names("methods"))
        if "architecture" in metafunc.fixturenames:
            metafunc.parametrize(
                ("method_name", "architecture"), _pairs(names, full=bool(metafunc.config.getoption("--full")))
            )
        else:
            metafunc.parametrize("method_name", names)
    if "judge_name" in metafunc.fixturenames:
        from steerlab import plugins

        chosen = [n.strip() for n in str(metafunc.config.getoption("--steerlab-judges")).split(",") if n.strip()]
        metafunc.parametrize("judge_name", chosen or list(plugins.names("judges")))
    if "edit_kind" in metafunc.fixturenames:
        metafunc.parametrize("edit_kind", edit_kinds(metafunc))
    if "weight_kind" in metafunc.fixturenames:
        from steerlab import deltas, edits, plugins

        plugins.bring()
        metafunc.parametrize("weight_kind", list(edits.kinds(deltas.WeightEdit.on)))
    if "control_kind" in metafunc.fixturenames:
        from steerlab import controls, plugins

        plugins.bring()
        metafunc.parametrize("control_kind", list(controls.kinds()))
