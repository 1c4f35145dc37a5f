"""What a search may change."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from crbg.errors import CrbgError


def guard_roles(before: Mapping[str, Tensor], after: Mapping[str, Tensor], roles: Mapping[str, str]) -> None:
    """Fail if any tensor changed by a single byte whose role does not allow it."""
    for name, old in before.items():
        allowed = roles.get(name, "frozen") in ("trained", "redrawn", "recalibrated")
        if not allowed and not torch.equal(
            old.cpu().reshape(-1).view(torch.uint8), after[name].cpu().reshape(-1).view(torch.uint8)
        ):
            raise CrbgError(
                f"the search changed {name!r}, whose role is {roles.get(name, 'frozen')!r}: its ticket is not a strong one"
            )
