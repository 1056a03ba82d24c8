"""Settings that travel inside an exported controller, as plain JSON."""

import dataclasses
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
                one this package writes, or a setting is unknown.
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
        return found(**built)  # type: ignore[return-value]

    @staticmethod
    def _nested(config: dict[str, Any]) -> "Configurable":
        for (_, name), found in Configurable._registry.items():
            if name == config.get("name"):
                return found.from_config(config)
        raise ValueError(f"Unknown setting: {config!r}")
