"""What stands in for typing when the program runs behaves as typing's own."""

from __future__ import annotations

import pickle
from typing import NamedTuple

import pytest

from cni_plugin import typed


class Theirs(NamedTuple):
    """A port."""

    number: int
    name: str = "any"

    @property
    def label(self) -> str:
        return f"{self.number}/{self.name}"

    @classmethod
    def web(cls) -> Theirs:
        return cls(80, "web")


class Ours(typed.NamedTuple):
    """A port."""

    number: int
    name: str = "any"

    @property
    def label(self) -> str:
        return f"{self.number}/{self.name}"

    @classmethod
    def web(cls) -> Ours:
        return cls(80, "web")


def test_a_class_is_what_typing_would_make() -> None:
    for name in ("__doc__", "__module__", "__bases__", "_fields", "_field_defaults"):
        assert getattr(Ours, name) == getattr(Theirs, name), name
    assert Ours.__qualname__ == "Ours"
    assert list(Ours.__annotations__) == list(Theirs.__annotations__)
    assert vars(Ours).keys() - {"__orig_bases__"} == vars(Theirs).keys() - {"__orig_bases__"}


def test_an_object_does_what_typings_would() -> None:
    ours, theirs = Ours(53), Theirs(53)
    assert ours == theirs == (53, "any")
    assert hash(ours) == hash(theirs)
    assert ours.label == theirs.label == "53/any"
    assert Ours.web() == Theirs.web() == (80, "web")
    assert ours._replace(name="dns") == (53, "dns")
    assert repr(ours) == "Ours(number=53, name='any')"
    assert pickle.loads(pickle.dumps(ours)) == ours
    with pytest.raises(AttributeError):
        ours.number = 54  # type: ignore[misc]


@pytest.mark.parametrize("arguments", [{}, {"port": 1}, {"number": 1, "other": 2}])
def test_wrong_arguments_are_refused_alike(arguments: dict[str, int]) -> None:
    said = []
    for cls in (Ours, Theirs):
        with pytest.raises(TypeError) as raised:
            cls(**arguments)  # type: ignore[arg-type]
        said.append(str(raised.value).replace("Theirs", "Ours"))
    assert said[0] == said[1]


def test_a_protocol_may_be_a_base() -> None:
    class Store(typed.Protocol):
        def get(self) -> int: ...

    class Fake(Store):
        def get(self) -> int:
            return 7

    assert Fake().get() == 7
