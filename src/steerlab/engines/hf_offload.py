"""Models whose weights lie on the CPU or a disk between calls, and are put in place by accelerate's hooks as each module runs.

Meanwhile their parameters are empty (on the meta device), and new objects after every call: so nothing here keeps one, or tells
one from another by its identity. What is read of a weight is read from where it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError


def home(model: nn.Module) -> torch.device:
    """Where a model's inputs go: where its embedding runs, wherever its weights lie in between."""
    embedding: Any = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None  # pyright: ignore[reportCallIssue]
    for module in (embedding, model):
        for hook in _hooks(module):
            if (device := getattr(hook, "execution_device", None)) is not None:
                return torch.device(device)
    weight = getattr(embedding, "weight", None)
    here = weight if isinstance(weight, Tensor) else next(model.parameters())
    return here.device


def elsewhere(model: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """What brings each parameter and buffer that lies elsewhere, on the CPU, by its name; every name of a shared one."""
    found: dict[str, Callable[[], Tensor]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for store, inside in _stores(module):
            for name, t in _named(module, recurse=inside):
                if t.device.type == "meta":
                    found[f"{path}.{name}" if path else name] = partial(_bring, store, name, t.dtype)
    return found


def tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter, then every buffer, once each, under its first name: one in memory at a time where they lie on a disk.

    Raises `UnsupportedError` for one that lies nowhere.
    """
    away, again = elsewhere(model), {name for names in _same(model) for name in names[1:]}
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        if t.device.type != "meta":
            yield name, t
        elif name not in again:
            yield name, _brought(name, away)


class State(Mapping[str, Tensor]):
    """The tensors of a model's checkpoint by name; those that lie elsewhere are brought when they are asked for.

    `again` are names of tensors that have one before. Asking for a tensor that lies nowhere raises `UnsupportedError`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.shapes: Mapping[str, Tensor] = (
            model.state_dict()
        )  # with shapes and dtypes, and their numbers if they are here
        self._away = elsewhere(model)
        seen: set[object] = set()
        self.again: set[str] = set()
        names = {name: group[0] for group in _same(model) for name in group}
        for name, t in self.shapes.items():
            away = t.device.type == "meta"
            key = names.get(name, name) if away else (t.data_ptr(), tuple(t.shape)) if t.numel() else name
            if key in seen:
                self.again.add(name)
            seen.add(key)

    def __getitem__(self, name: str) -> Tensor:
        t = self.shapes[name]
        return _brought(name, self._away) if t.device.type == "meta" else t

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def check_weights(model: nn.Module) -> None:
    """Raise `UnsupportedError` for a model with weights that are nowhere."""
    away = elsewhere(model)
    for name, t in model.named_parameters():
        if t.device.type == "meta" and name not in away:
            raise UnsupportedError(f"{type(model).__name__} has no weights to run with: {_nowhere(name)}")


def own(module: nn.Module, name: str, model: nn.Module | None = None) -> Tensor | None:
    """A parameter of the module itself, from where it lies (a hook of the `model` around it may say); None where there is none.

    (An attribute of that name may be a method, in quantised modules.) Raises `UnsupportedError` for one that can't be read.
    """
    held = dict(module.named_parameters(recurse=False, remove_duplicate=False)).get(name)
    if held is None or held.device.type != "meta":
        return held
    path = next((path for path, m in model.named_modules() if m is module), "") if model is not None else ""
    return _brought(f"{path}.{name}" if path else name, elsewhere(model if path and model is not None else module))


def owners_of(model: nn.Module) -> dict[nn.Module, list[str]]:
    """For each module with a weight, all names of that one tensor in the model."""
    names = {name: group for group in _same(model) for name in group}
    found: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules():
        if "weight" in dict(module.named_parameters(recurse=False)):
            mine = f"{path}.weight" if path else "weight"
            found[module] = [name.removesuffix(".weight") for name in names[mine]]
    return found


def _same(model: nn.Module) -> list[list[str]]:
    """The names of each parameter: those that are one tensor stand together, in the order of the model."""
    places = dict(_placed(model))
    tied = _tied(model) if any(isinstance(k, str) for k in places.values()) else {}
    groups: dict[object, list[str]] = {}
    for name, key in places.items():
        groups.setdefault(places.get(tied.get(name, name), key), []).append(name)
    return list(groups.values())


def _placed(model: nn.Module) -> Iterator[tuple[str, object]]:
    """Each parameter's name, and where its numbers are: an object, a place in memory, or (on a disk) its name."""
    away = elsewhere(model)
    for name, p in model.named_parameters(remove_duplicate=False):
        if p.device.type != "meta":
            yield name, id(p)
        elif name in away and (t := _in_memory(away[name])) is not None and t.numel():
            yield name, (t.data_ptr(), tuple(t.shape))
        else:
            yield name, name


def _tied(model: nn.Module) -> dict[str, str]:
    """The name under which a tied tensor lies, by its other ones, as transformers says."""
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        said = vars(module).get("all_tied_weights_keys")
        for other, name in (cast("dict[str, str]", said) if isinstance(said, dict) else {}).items():
            found.setdefault(f"{path}.{other}" if path else other, f"{path}.{name}" if path else name)
    return found


def _hooks(module: object) -> tuple[Any, ...]:
    """The hooks of accelerate's that stand on a module."""
    hook = getattr(module, "_hf_hook", None)
    return () if hook is None else tuple(getattr(hook, "hooks", (hook,)))


def _stores(module: nn.Module) -> Iterator[tuple[Any, bool]]:
    """Where a module's weights lie, by name, and whether those of the modules inside lie there, too."""
    for hook in _hooks(module):
        if getattr(hook, "offload", False) and getattr(hook, "weights_map", None) is not None:
            yield hook.weights_map, bool(getattr(hook, "place_submodules", False))


def _named(module: nn.Module, *, recurse: bool) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=recurse, remove_duplicate=False)
    yield from module.named_buffers(recurse=recurse, remove_duplicate=False)


def _bring(store: Any, name: str, dtype: torch.dtype) -> Tensor:
    return cast("Tensor", store[name]).detach().to("cpu", dtype)


def _nowhere(name: str) -> str:
    return (
        f"{name} is on the meta device, without numbers, and no hook of accelerate's says where they lie. Load the model with"
        " its weights (from_pretrained; device_map may put them on the CPU or a disk)."
    )


def _brought(name: str, away: Mapping[str, Callable[[], Tensor]]) -> Tensor:
    if name not in away:
        raise UnsupportedError(_nowhere(name))
    return away[name]()


def _in_memory(brings: Callable[[], Tensor]) -> Tensor | None:
    """The very tensor that would be brought, where it lies in memory."""
    store, name, _ = cast("partial[Tensor]", brings).args
    while hasattr(store, "dataset") and hasattr(store, "prefix"):  # names below a module
        store, name = store.dataset, f"{store.prefix}{name}"
    held = store if isinstance(store, dict) else getattr(store, "state_dict", None)
    t = cast("dict[str, Any]", held).get(name) if isinstance(held, dict) else None
    return t if isinstance(t, Tensor) else None
