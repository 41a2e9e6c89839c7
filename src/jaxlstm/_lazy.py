"""Packages whose public names are listed in a stub file and imported on first use."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import lazy_loader


def attach_stub(
    package: str, file: str, synonyms: Mapping[str, str] = MappingProxyType({})
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a package.

    Unlike `lazy_loader.attach_stub`, the error for an unknown name suggests names.

    Args:
        package: the package's `__name__`.
        file: its `__file__`.
        synonyms: names that other libraries use, in lower case, and ours.
    """
    attribute, names, public = lazy_loader.attach_stub(package, file)

    def find(name: str) -> object:
        if name in public or name.startswith("_"):
            return attribute(name)
        meant = synonyms.get(name.lower())
        near = [meant] if meant else _similar(name, public)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise AttributeError(f"{package} has no {name}{hint}")

    return find, names, public


def _similar(name: str, public: list[str]) -> list[str]:
    import difflib  # takes a millisecond, and is needed for errors only

    known = {each.lower(): each for each in public}
    wanted = name.lower()
    near = [wanted] if wanted in known else difflib.get_close_matches(wanted, known)
    return [known[each] for each in near]
