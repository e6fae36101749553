"""GOD: one learned discretization for all samples, the baseline that shares everything with INDIS but the instance."""

from __future__ import annotations

from dataclasses import dataclass, field

from indis.methods.indis import IndisConfig
from indis.training import FitConfig


@dataclass(frozen=True)
class GOD(IndisConfig):
    """The paper's "globally optimised discretization", same freedoms and loss. A few bare logits bear a higher rate."""

    per_instance: bool = False
    fit: FitConfig = field(default_factory=lambda: FitConfig(lr=0.05))
