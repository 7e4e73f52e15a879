"""Typed reading of decoded JSON: every error names the field by its path, the value, the remedy.

`Fields` wraps one JSON object. A key that is absent or null has its default; a value of another
type is a `CniError` of code 7. Nothing else is ever raised, whatever the JSON holds.

Below `runtimeConfig` keys are found in any mixture of cases: go-cni, which containerd is built on,
writes the names of Go's fields there ("HostPort", "IngressRate"), and Go's decoder does not mind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network
from json import dumps, loads

from cni_plugin.spec import CniError, Code, IPAddress, IPInterface, IPNetwork
from cni_plugin.typed import Any, NoReturn

_WRITTEN_BY_RUNTIMES = "runtimeConfig"
_SHOWN = 80  # characters of an offending value that a message repeats


def shown(value: object) -> str:
    """The value as JSON, shortened, for an error message."""
    try:
        text = dumps(value, ensure_ascii=False)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    except (TypeError, ValueError):
        text = repr(value)
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def invalid(path: str, value: object, wanted: str, details: str = "") -> CniError:
    """The error for a field whose value can't be used."""
    return CniError(Code.INVALID_CONFIG, f"{path}: {wanted}, got {shown(value)}", details)


def decode(data: bytes) -> Any:
    """What a JSON text says. Raises ValueError with a reason of one line for what is none: NaN,
    which the json module would take, and endless nesting included."""
    try:
        return loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        raise ValueError(str(e).partition("\n")[0] or type(e).__name__) from e


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


class Fields:
    """One JSON object of the configuration, with the path that leads to it."""

    def __init__(self, obj: Mapping[str, Any], path: str = "", any_case: bool = False) -> None:
        """`any_case` finds keys, here and below, in any mixture of cases; an exact one first."""
        self.obj = _AnyCase(obj) if any_case else obj
        self.path = path
        self._any_case = any_case

    def at(self, key: str) -> str:
        """The path of `key`, as messages show it."""
        return f"{self.path}.{key}" if self.path else key

    def has(self, key: str) -> bool:
        return self.obj.get(key) is not None

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.obj.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise invalid(self.at(key), value, "expected true or false")
        return value

    def text(self, key: str, default: str = "") -> str:
        value = self.obj.get(key)
        if value is None:
            return default
        return as_text(value, self.at(key))

    def integer(self, key: str, low: int, high: int) -> int | None:
        """The whole number at `key`, None when absent; outside [low, high] is an error."""
        value = self.obj.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise invalid(self.at(key), value, "expected a whole number")
        if not low <= value <= high:
            raise invalid(self.at(key), value, f"expected a number from {low} to {high}")
        return value

    def child(self, key: str) -> Fields:
        """The object at `key`; an empty one when absent."""
        value = self.obj.get(key)
        if value is None:
            value = {}
        return as_object(value, self.at(key), self._any_case or key == _WRITTEN_BY_RUNTIMES)

    def children(self, key: str) -> list[Fields]:
        """The objects of the list at `key`."""
        return [as_object(value, path, self._any_case) for path, value in self.items(key)]

    def texts(self, key: str) -> tuple[str, ...]:
        return tuple(as_text(value, path) for path, value in self.items(key))

    def items(self, key: str) -> Iterator[tuple[str, Any]]:
        """Path and value of each element of the list at `key`; nothing when absent."""
        value = self.obj.get(key)
        if value is None:
            return
        if not isinstance(value, list):
            raise invalid(self.at(key), value, "expected a list")
        for index, element in enumerate(value):
            yield f"{self.at(key)}[{index}]", element

    def address(self, key: str) -> IPAddress | None:
        value = self.obj.get(key)
        return None if value is None else as_address(value, self.at(key))

    def network(self, key: str) -> IPNetwork | None:
        value = self.obj.get(key)
        return None if value is None else as_network(value, self.at(key))


class _AnyCase(dict[str, Any]):
    """An object whose keys are asked for as they are documented."""

    def get(self, key: str, default: Any = None) -> Any:
        if key in self:
            return self[key]
        folded = key.lower()
        return next((value for name, value in self.items() if name.lower() == folded), default)


def as_object(value: object, path: str, any_case: bool = False) -> Fields:
    if not isinstance(value, dict):
        raise invalid(path, value, "expected an object")
    return Fields(value, path, any_case)


def as_text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise invalid(path, value, "expected a string")
    return value


def as_address(value: object, path: str) -> IPAddress:
    """An address without prefix, such as "10.244.0.5"; an IPv6 zone ("%eth0") is refused."""
    text = as_text(value, path)
    try:
        return ip_address(text.replace("%", "/"))  # a zone is refused as a prefix would be
    except ValueError:
        raise invalid(path, value, "expected an IP address such as 10.244.0.5") from None


def as_network(value: object, path: str) -> IPNetwork:
    """A CIDR whose host bits are zero, such as "10.244.0.0/24"."""
    text = as_text(value, path)
    try:
        _check_prefix(text)
        # The strict constructor is three times as fast, and right for all but mistakes.
        return (IPv6Network if ":" in text else IPv4Network)(text)
    except ValueError:
        pass
    try:
        _check_prefix(text)
        network = ip_network(text, strict=False)
    except ValueError:
        raise invalid(path, value, "expected a CIDR such as 10.244.0.0/24") from None
    raise invalid(path, value, "expected a network address", f"host bits are set; use {network}")


def as_interface(value: object, path: str) -> IPInterface:
    """An address with its prefix length, such as "10.244.0.5/24"."""
    text = as_text(value, path)
    try:
        _check_prefix(text)
        return ip_interface(text)
    except ValueError:
        raise invalid(path, value, "expected an address with prefix, as 10.244.0.5/24") from None


def _check_prefix(text: str) -> None:
    """A prefix length in digits: `ipaddress` alone would take no prefix, netmasks and zones too."""
    prefix = text.rpartition("/")[2] if "/" in text else ""
    if "%" in text or not (prefix.isascii() and prefix.isdigit()):
        raise ValueError(text)
