"""Few-step diffusion and flow sampling with a discretization of its own for every sample.

A **noise schedule** says what t means; a **denoiser** answers at (x, t); a **discretization** (tau,
dtau, gamma) says where and how to ask; a **solver** turns tau into coefficients; a **policy** turns
(x_T, c) into a discretization; a **method** learns a policy from **teacher endpoints**.

Public names are listed in :mod:`indis.public` and imported when they are first used, so that
``indis --help`` need not wait for torch.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:
    from indis.public import *  # noqa: F403
else:

    def __getattr__(name: str) -> Any:
        """Return a submodule or a name of :mod:`indis.public`."""
        if not name.startswith("__") and find_spec(f"{__name__}.{name}") is not None:
            return import_module(f"{__name__}.{name}")
        try:
            return getattr(import_module("indis.public"), name)
        except AttributeError:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None

    def __dir__() -> list[str]:
        return sorted({*globals(), *import_module("indis.public").__all__})
