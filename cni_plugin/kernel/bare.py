"""pyroute2's message classes, without the rest of pyroute2.

`import pyroute2` imports all of the library, 200 ms; its message modules alone take a quarter of
that, most of it for modules that encoding a message never touches. So this is a second importer:
it executes pyroute2's own message modules as a private copy, whose `import` statements come here.

Rules:
- `sys.modules` is left alone: who imports pyroute2 in the same process gets all of it, and nothing
  of this copy; neither does another thread ever see a stand-in.
- A stand-in is late, not a fake: the real module is imported when something of it is used that the
  stand-in does not have. What a stand-in has is what the message modules touch while they load.
- Modules that neither have a stand-in nor belong to pyroute2 are imported as always.
"""

from __future__ import annotations

import _socket
import builtins
import sys
from _thread import RLock, _local, allocate_lock
from _weakref import proxy
from collections.abc import Mapping, Sequence
from functools import partial
from types import ModuleType

from cni_plugin.typed import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

_PACKAGE = "pyroute2"
_NETLINK = f"{_PACKAGE}.netlink"
_RTNL = f"{_NETLINK}.rtnl"
_CONFIG = f"{_PACKAGE}.config"
_LINK_KINDS = f"{_RTNL}.ifinfmsg.plugins"
_AF_BRIDGE = 7
_ANNOTATIONS = (
    "Any",
    "Callable",
    "Dict",
    "List",
    "Literal",
    "Optional",
    "Tuple",
    "TypeVar",
    "Union",
)


class _Annotation:
    """A name of `typing` that is only ever a part of an annotation, or makes one (TypeVar)."""

    def __call__(self, *_: object, **__: object) -> _Annotation:
        return self

    def __getitem__(self, _: object) -> _Annotation:
        return self

    def __or__(self, _: object) -> _Annotation:
        return self

    __ror__ = __or__


class _Late(ModuleType):
    """A module with the attributes it is given; for others the real one is imported."""

    def __init__(self, name: str, real: Any, has: Mapping[str, object]) -> None:
        super().__init__(name)
        self.__dict__.update(has, _real=real)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked for by the interpreter, not by the message modules
            raise AttributeError(name)
        return getattr(self._real(), name)


class _LateLogger:
    """logging.getLogger(name), which is called when something is logged."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(__import__("logging").getLogger(self._name), attribute)


class _LateClass:
    """A class of the message modules that is only ever called; its module is loaded then."""

    def __init__(self, copy: _Copy, module: str, name: str) -> None:
        self._copy, self._module, self._name = copy, module, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._class()(*args, **kwargs)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._class(), attribute)

    def _class(self) -> Any:
        return getattr(self._copy.load(self._module), self._name)


class _LateLinkKinds(ModuleType):
    """The package of a class for each kind of link: one module and class of one name per kind."""

    def __init__(self, copy: _Copy) -> None:
        super().__init__(_LINK_KINDS)
        self._copy = copy

    def __getattr__(self, kind: str) -> Any:
        if kind.startswith("__"):
            raise AttributeError(kind)
        module = f"{_LINK_KINDS}.{kind}"
        return _Late(
            module,
            partial(self._copy.load, module),
            {kind: _LateClass(self._copy, module, kind)},
        )


class _Copy:
    """A private copy of a package: its modules by name, none of them in `sys.modules`."""

    def __init__(self, package: str) -> None:
        self._package = package
        self._lock = RLock()  # a kind of link is loaded late, by whichever thread meets it
        self._builtins = {**vars(builtins), "__import__": self._import}
        self._stand_ins = self._late_modules()
        spec = _find(package, None)
        root = ModuleType(package)
        root.__path__ = list(spec.submodule_search_locations or ())
        self._modules = {package: root}

    def _late_modules(self) -> dict[str, ModuleType]:
        constants = {n: v for n, v in vars(_socket).items() if not isinstance(v, type)}
        has: dict[str, Mapping[str, object]] = {
            "importlib": {},
            "logging": {"getLogger": _LateLogger},
            "pkgutil": {},
            "socket": {**constants, "AddressFamily": int},
            "threading": {"local": _local, "Lock": allocate_lock},
            "traceback": {},
            "typing": dict.fromkeys(_ANNOTATIONS, _Annotation()),
            "weakref": {"proxy": proxy},
        }
        late: dict[str, ModuleType] = {
            name: _Late(name, partial(__import__, name), attributes)
            for name, attributes in has.items()
        }
        # nfnetlink's modules define sockets beside their messages, which nobody here opens.
        sockets = dict.fromkeys(("AsyncNetlinkSocket", "NetlinkSocket", "SyncAPI"), object)
        for name in (f"{_NETLINK}.nlsocket", f"{_NETLINK}.core"):
            late[name] = _Late(name, partial(self.load, name), sockets)
        config = {"AF_BRIDGE": _AF_BRIDGE, "data_plugins_pkgs": (), "data_plugins_path": ()}
        late[_CONFIG] = _Late(_CONFIG, partial(self.load, _CONFIG), config)
        late[_LINK_KINDS] = _LateLinkKinds(self)
        return late

    def load(self, name: str) -> ModuleType:
        """The module of that full name, executed when it is asked for first.

        Raises ModuleNotFoundError when the package has no such module.
        """
        with self._lock:
            module = self._modules.get(name)
            if module is None:
                module = self._execute(name)
        return module

    def _execute(self, name: str) -> ModuleType:
        parent_name, _, last = name.rpartition(".")
        parent = self.load(parent_name)
        spec = _find(name, parent.__path__)
        code = spec.loader.get_code(name)  # type: ignore[union-attr]
        module = ModuleType(name)
        module.__dict__["__builtins__"] = self._builtins
        module.__file__ = spec.origin
        module.__package__ = parent_name
        if spec.submodule_search_locations is not None:
            module.__package__ = name
            module.__path__ = list(spec.submodule_search_locations)
        self._modules[name] = module
        try:
            exec(code, module.__dict__)  # noqa: S102  what an import statement does
        except BaseException:
            del self._modules[name]
            raise
        setattr(parent, last, module)
        return module

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,  # noqa: A002  the names that __import__ has
        locals: Mapping[str, Any] | None = None,  # noqa: A002
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """`__import__` of the copy's modules."""
        if level:
            package = (globals or {})["__package__"].split(".")
            name = ".".join([*package[: len(package) + 1 - level], *([name] if name else [])])
        if name in self._stand_ins:
            return self._stand_ins[name]
        if name.partition(".")[0] != self._package:
            return __import__(name, globals, locals, fromlist or ())
        module = self.load(name)
        if not fromlist:
            return self._modules[self._package]
        for entry in fromlist:
            self._bind(module, f"{name}.{entry}", entry)
        return module

    def _bind(self, module: ModuleType, name: str, entry: str) -> None:
        """Make `from module import entry` find a submodule, as the interpreter would."""
        if hasattr(module, entry) or not hasattr(module, "__path__"):
            return
        if name in self._stand_ins:
            setattr(module, entry, self._stand_ins[name])
        else:
            self.load(name)


def _find(name: str, path: Sequence[str] | None) -> ModuleSpec:
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path)
        if spec is not None:
            return spec
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


_pyroute2 = _Copy(_PACKAGE)
load = _pyroute2.load
ifaddrmsg: Any = load(f"{_RTNL}.ifaddrmsg").ifaddrmsg
ifinfmsg: Any = load(f"{_RTNL}.ifinfmsg").ifinfmsg
ndmsg: Any = load(f"{_RTNL}.ndmsg").ndmsg
rtmsg: Any = load(f"{_RTNL}.rtmsg").rtmsg
