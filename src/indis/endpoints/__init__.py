"""Teacher endpoints: where a many-step sampler takes each seed, the only data that tuning needs.

A sample is its *seed*: noise is drawn per sample from a CPU generator, so it depends neither on
the batch size nor on the device, and a data set stores seeds instead of noise (paper, Algorithm 1:
"RNG state"). Endpoints are kept on the CPU, whatever device the teacher ran on. :func:`teach` makes
them in memory, :func:`teach_folder` on disk. A folder holds

    meta.json                    what made it, and the checksum of every finished shard
    endpoints-00000.safetensors  seeds, x_0*, condition inputs and features of one shard

Shards are written aside and renamed, so an interrupted run resumes at the first missing one.
"""

from indis.endpoints.folder import (
    TeachConfig,
    TeachProgress,
    load_endpoints,
    read_meta,
    teach_folder,
)
from indis.endpoints.memory import (
    LAST_SEED,
    Endpoints,
    check_seeds,
    endpoint_batches,
    gather,
    noise_checksum,
    noise_from_seeds,
    teach,
)

__all__ = [
    "LAST_SEED",
    "Endpoints",
    "TeachConfig",
    "TeachProgress",
    "check_seeds",
    "endpoint_batches",
    "gather",
    "load_endpoints",
    "noise_checksum",
    "noise_from_seeds",
    "read_meta",
    "teach",
    "teach_folder",
]
