"""What the layers contract in pyproject.toml does not say."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import grimp
import pytest


def order(graph: grimp.ImportGraph) -> list[str]:
    """Return the modules so that each follows those that it imports; raises `CycleError` where that is impossible."""
    return list(
        TopologicalSorter(
            {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
        ).static_order()
    )


def test_no_imports_run_in_a_circle() -> None:
    graph = grimp.build_graph("mitoflow", exclude_type_checking_imports=False)
    order(graph)
    graph.add_import(importer="mitoflow.tracking.registry", imported="mitoflow.tracking.registration")
    with pytest.raises(CycleError):
        order(graph)
