"""Results that are computed once and kept on the object that computed them."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

_Method = TypeVar("_Method", bound=Callable[..., Any])


def once(method: _Method, *, keep: int | None = None) -> _Method:
    """Compute each result of a method once, and keep the last of them on its instance.

    Caches on the class would keep every instance and its arrays forever.

    Args:
        method: Its arguments are hashable.
        keep: How many results; None for all.
    """
    name = f"{method.__name__} results"

    @functools.wraps(method)
    def call(self: Any, *args):
        if name not in self.__dict__:
            bound = functools.partial(method, self)
            self.__dict__[name] = functools.lru_cache(keep)(bound)
        return self.__dict__[name](*args)

    return cast(_Method, call)
