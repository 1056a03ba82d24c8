"""Settings that travel inside an exported controller, as plain JSON."""

import dataclasses
import types
import typing
from typing import Any, ClassVar, Self


class Configurable:
    """A frozen dataclass that turns into a JSON-ready dict and back.

    A subclass sets `kind` (the family it is looked up in) and is found by its class
    name, so that a controller's settings never need pickling.
    """

    kind: ClassVar[str]
    version: ClassVar[int] = 1
    _registry: ClassVar[dict[tuple[str, str], type["Configurable"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "kind"):
            Configurable._registry[cls.kind, cls.__name__] = cls

    def to_config(self) -> dict[str, Any]:
        """Returns name, version and settings as JSON-ready values."""
        settings = {
            field.name: (
                value.to_config()
                if isinstance(value := getattr(self, field.name), Configurable)
                else value
            )
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
        }
        return {"name": type(self).__name__, "version": self.version, **settings}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Builds the object that `to_config` described.

        Args:
            config: What `to_config` returned.

        Raises:
            ValueError: If the name is unknown to this family, the version is not the
                one this package writes, or a setting is unknown or of another type.
        """
        settings = dict(config)
        name, version = settings.pop("name", None), settings.pop("version", None)
        known = {n: c for (kind, n), c in cls._registry.items() if kind == cls.kind}
        if name not in known:
            raise ValueError(
                f"Unknown {cls.kind}: {name!r}. Known: {sorted(known)}. A newer "
                "keras_learned_lr may know it."
            )
        found = known[name]
        if version != found.version:
            raise ValueError(
                f"{name} of version {version} cannot be read: this keras_learned_lr "
                f"reads version {found.version}."
            )
        fields = {f.name for f in dataclasses.fields(found)}  # type: ignore[arg-type]
        unknown = sorted(set(settings) - fields)
        if unknown:
            raise ValueError(
                f"{name} has no setting {unknown}. Known: {sorted(fields)}"
            )
        built = {
            key: Configurable._nested(value) if isinstance(value, dict) else value
            for key, value in settings.items()
        }
        hints = typing.get_type_hints(found)
        for key, value in built.items():
            if not _is_of(value, hints[key]):
                raise ValueError(
                    f"`{key}` of {name} must be of type {_named(hints[key])}. "
                    f"Received: {settings[key]!r}"
                )
        return found(**built)  # type: ignore[return-value]

    @staticmethod
    def _nested(config: dict[str, Any]) -> "Configurable":
        for (_, name), found in Configurable._registry.items():
            if name == config.get("name"):
                return found.from_config(config)
        raise ValueError(f"Unknown setting: {config!r}")


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value, out of JSON or TOML, is of the type that a field has."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(
            _is_of(item, options[0]) for item in value
        )
    if origin is types.UnionType:
        return any(_is_of(value, option) for option in options)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


def _named(hint: Any) -> str:
    options = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return f"list of {_named(options[0])}"
    return " or ".join(map(_named, options)) if options else hint.__name__
