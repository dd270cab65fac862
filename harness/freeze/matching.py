"""Finds parameters by prefix, regular expression or share, and suggests the name that was probably meant."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from harness.errors import UserError, reject


class Names:
    """The parameters of a model by name, tied ones once."""

    def __init__(self, model: nn.Module) -> None:
        """Args: the base model, before any adapter; its weights may be on the meta device."""
        self.sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        """Number of values by name, in model order: ViT, aligner, LLM from the embedding to the head."""
        first = {id(parameter): name for name, parameter in model.named_parameters()}
        everything = model.named_parameters(remove_duplicate=False)
        self._tied = {name: first[id(parameter)] for name, parameter in everything if name not in self.sizes}

    def by_keys(
        self, prefix_key: str, prefixes: Sequence[str], regex_key: str, regex: str | None
    ) -> dict[tuple[str, str], set[str]]:
        """Returns the parameters that each prefix and the pattern name, by key and value, for messages.

        Raises:
            UserError: One names nothing.
        """
        found = {(prefix_key, prefix): self._below(prefix_key, prefix) for prefix in prefixes}
        if regex is not None:
            found[regex_key, regex] = self._matching(regex_key, regex)
        return found

    def _below(self, key: str, prefix: str) -> set[str]:
        found = set(_below(self.sizes, prefix))
        if found:
            return found
        tied = list(_below(self._tied, prefix))
        if tied:
            raise self._is_tied(key, prefix, tied[0])
        raise reject(key, prefix, f"matches no parameter of the model; {self._suggest(prefix)}")

    def _matching(self, key: str, regex: str) -> set[str]:
        found = set(_search(self.sizes, regex))
        if found:
            return found
        tied = list(_search(self._tied, regex))
        if tied:
            raise self._is_tied(key, regex, tied[0])
        # What fits a text model begins with `model.`, escaped or not.
        longer = re.sub(r"^(\^?)model(\\?\.)", r"\1model\2language_model\2", regex)
        meant = f"did you mean {longer}?" if _search(self.sizes, longer) else f"names are such as {self._example()}"
        raise reject(key, regex, f"matches no parameter of the model; {meant}")

    def _is_tied(self, key: str, value: str, name: str) -> UserError:
        own = self._tied[name]
        return reject(key, value, f"{name} is tied to {own} in this model: name that one")

    def _suggest(self, prefix: str) -> str:
        """Looks for the longest end of the prefix inside the names; of several places the highest in the tree."""
        known = _modules(self.sizes)
        parts = prefix.rstrip(".").split(".")
        for start in range(len(parts)):
            end = ".".join(parts[start:])
            places = [name for name in known if name == end or name.endswith(f".{end}")]
            # An index alone says nothing.
            if places and not end.isdigit():
                return f"did you mean {min(places, key=lambda name: name.count('.'))}?"
        close = difflib.get_close_matches(prefix, known, n=1)
        return f"did you mean {close[0]}?" if close else f"names are such as {self._example()}"

    def _example(self) -> str:
        return list(self.sizes)[-1]


def bottom(sizes: Mapping[str, int], ratio: float) -> set[str]:
    """Returns the parameters at the bottom of the model that hold at most a share of its values.

    As `freeze_parameters_ratio` of ms-swift: whole parameters in model order, as many as fit into the share.

    Args:
        sizes: Number of values by parameter, in model order.
        ratio: The share, over 0 and up to 1.

    Raises:
        UserError: Not even the first parameter fits.
    """
    total, chosen, held = sum(sizes.values()), set(), 0
    for name, size in sizes.items():
        held += size
        if held > int(total * ratio):
            break
        chosen.add(name)
    if not chosen:
        first, size = next(iter(sizes.items()))
        remedy = f"is less than the first parameter, {first}, which is {size / total:.3g} of the model; give more"
        raise reject("freeze.ratio", ratio, remedy)
    return chosen


def _below(names: Iterable[str], prefix: str) -> list[str]:
    bare = prefix.rstrip(".")
    return [name for name in names if f"{name}.".startswith(f"{bare}.")]


def _search(names: Iterable[str], regex: str) -> list[str]:
    return [name for name in names if re.search(regex, name)]


def _modules(names: Iterable[str]) -> list[str]:
    """Returns the names and those of all modules above them, in model order."""
    split = (name.split(".") for name in names)
    return list(dict.fromkeys(".".join(parts[:depth]) for parts in split for depth in range(1, len(parts) + 1)))
