"""GOD: one learned discretization for all samples, the baseline that shares everything with INDIS
but the instance.
"""

from __future__ import annotations

from dataclasses import dataclass

from indis.methods.indis import INDIS


@dataclass(frozen=True)
class GOD(INDIS):
    """The paper's "globally optimised discretization", same freedoms and loss."""

    per_instance: bool = False  # a plan of its own for each sample; god has one for all
