"""The names of `typing` that the path of an ADD uses, without importing it.

Importing `typing`, and making its NamedTuples, takes 6 ms, as long as half of the work of an ADD
without an agent. A type checker sees typing's own names here. When the program runs, most of them
only stand in annotations, which nobody evaluates, or among the bases of a class.

Rules:
- What tools, tests and the agent alone import takes `typing` itself.
- `NamedTuple` makes what typing's makes: a class of `collections.namedtuple`, with the methods.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take this name for True

if TYPE_CHECKING:
    from typing import Any as Any
    from typing import NamedTuple as NamedTuple
    from typing import NoReturn as NoReturn
    from typing import Protocol as Protocol
    from typing import Self as Self
else:
    from collections import namedtuple

    class Any: ...

    class NoReturn: ...

    class Protocol: ...

    class Self: ...

    class _Fields(type):
        """Makes a namedtuple of a class body: annotations are its fields, with their defaults."""

        def __new__(cls, name, bases, body):
            fields = body.get("__annotations__", {})
            defaults = [body[field] for field in fields if field in body]
            made = namedtuple(name, fields, defaults=defaults, module=body["__module__"])
            made.__annotations__ = made.__new__.__annotations__ = fields
            for key, value in body.items():
                if key not in fields and key not in ("__annotations__", "__module__"):
                    setattr(made, key, value)
            return made

    NamedTuple = type.__new__(_Fields, "NamedTuple", (), {})
