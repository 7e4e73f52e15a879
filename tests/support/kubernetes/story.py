"""One test that goes through many steps on one cluster, which takes half a minute to start.

A step that fails does not keep the others from being tried, for they begin from what they find; the
test fails in the end with all of them. The first steps may be essential: without a network
nothing else is worth trying.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence

import pytest

from tests.support.kubernetes.cluster import Cluster

Step = Callable[[Cluster], None]


def tell(
    cluster: Cluster,
    steps: Sequence[Step],
    essential: int = 1,
    more: Callable[[Cluster], str] = lambda cluster: "",
) -> None:
    """Run the steps in their order; each is named by its function, and its time is printed.

    Raises AssertionError with what failed, and with the state of the cluster at that moment, which
    `more` adds to.
    """
    failures = []
    print(f"{cluster.elapsed():6.1f} s  the cluster is up")
    for number, step in enumerate(steps):
        name = step.__name__.replace("_", " ")
        began = time.monotonic()
        try:
            step(cluster)
        except pytest.skip.Exception:
            raise
        except Exception:
            failures.append(
                f"STEP {name}\n{traceback.format_exc()}\n{more(cluster)}\n{cluster.state()}"
            )
        took = time.monotonic() - began
        print(
            f"{cluster.elapsed():6.1f} s  {name}: {took:.1f} s{' FAILED' * _failed(failures, name)}"
        )
        if failures and number < essential:
            break
    assert not failures, "\n\n".join(failures)


def _failed(failures: Sequence[str], name: str) -> bool:
    return bool(failures) and failures[-1].startswith(f"STEP {name}\n")
