"""Small EDM networks with random weights, as files that ``indis convert edm`` would write."""

import torch

from indis.models.edm.networks import NETWORKS
from indis.storage import checksum, save_json, save_tensors

# The constructor arguments of published networks, each shrunk in width and blocks.
SMALL = {
    "ddpm++": ("SongUNet", {"model_channels": 16, "channel_mult": [2, 2, 2], "augment_dim": 9}),
    "ncsn++": (
        "SongUNet",
        {
            "model_channels": 16,
            "channel_mult": [1, 2, 2],
            "augment_dim": 9,
            "embedding_type": "fourier",
            "encoder_type": "residual",
            "channel_mult_noise": 2,
            "resample_filter": [1, 3, 3, 1],
        },
    ),
    "adm": ("DhariwalUNet", {"model_channels": 64, "channel_mult": [1, 2]}),
}


def arguments(name, *, resolution=16, label_dim=0, **changes):
    """The class of a small network, and all arguments that it is made with."""
    kind, own = SMALL[name]
    sizes = {"img_resolution": resolution, "in_channels": 3, "out_channels": 3}
    return kind, sizes | {"label_dim": label_dim, "num_blocks": 1} | own | changes


def random_network(kind, given):
    """A network whose every weight matters: published ones begin with layers near zero."""
    network = NETWORKS[kind](**given).double()
    generator = torch.Generator().manual_seed(1)
    tensors = dict(sorted(network.state_dict().items()))
    for name, value in tensors.items():
        if name.endswith("resample_filter"):
            continue
        scale = 1.0 if value.ndim == 1 else value[0].numel() ** -0.5
        scale = 16.0 if name.endswith("freqs") else scale
        value.copy_(scale * torch.randn(value.shape, generator=generator, dtype=torch.float64))
    return network.eval()


def write(folder, name="ddpm++", *, precond="edm", precond_args=None, **given):
    """Write a converted checkpoint and return its network."""
    kind, sizes = arguments(name, **given)
    network = random_network(kind, sizes).float()
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "model.safetensors", network.state_dict())
    outer = {"img_resolution": sizes["img_resolution"], "img_channels": 3}
    outer |= {"label_dim": sizes["label_dim"], "use_fp16": False} | (precond_args or {})
    config = {
        "format": 1,
        "precond": precond,
        "precond_args": outer,
        "network": kind,
        "network_args": sizes,
        "net": "ema",
        "source": {"file": "tiny.pkl", "sha256": "0" * 64},
        "tensors_sha256": checksum(folder / "model.safetensors"),
    }
    save_json(folder / "config.json", config)
    return network
