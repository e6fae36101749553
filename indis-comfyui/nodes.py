"""Load INDIS, INDIS Sampler and INDIS Sigmas, by ComfyUI's V3 schema."""

import os

import comfy.samplers
import folder_paths
import torch

from indis import artifact
from indis import comfy as inside

try:  # the frozen API, where there is one
    from comfy_api.v0_0_2 import ComfyExtension, io
except ImportError:
    from comfy_api.latest import ComfyExtension, io

WEB_DIRECTORY = "./web"
CATEGORY = "sampling/indis"
Indis = io.Custom("INDIS")
FOLDER = os.path.join(folder_paths.models_dir, "indis")


def artifacts():
    """Return paths by name: folders in models/indis, and what ships."""
    found = {name: name for name in artifact.shipped_names()}
    for root, _, files in os.walk(FOLDER):
        if "config.json" in files:
            found[os.path.relpath(root, FOLDER)] = root
    return found


class IndisLoad(io.ComfyNode):
    """An artifact as a value."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="IndisLoad",
            display_name="Load INDIS",
            category=CATEGORY,
            description="Load a fitted sampler from models/indis, or one that ships.",
            inputs=[io.Combo.Input("artifact", options=list(artifacts()))],
            outputs=[Indis.Output(display_name="indis")],
        )

    @classmethod
    def execute(cls, artifact):
        return io.NodeOutput(load(artifact))


def load(name):
    """Return the sampler of a name in the list."""
    known = artifacts()
    if name not in known:
        raise ValueError(f"artifact must be one of {', '.join(known)}, got {name!r}")
    return artifact.load(known[name])


class IndisSampler(io.ComfyNode):
    """A SAMPLER whose samples each have times of their own."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="IndisSampler",
            display_name="INDIS Sampler",
            category=CATEGORY,
            description=(
                "Each sample of a batch gets its own times, shifts and scales. Only the number of "
                "the sigmas is used, not their values."
            ),
            inputs=[Indis.Input("indis")],
            outputs=[io.Sampler.Output()],
        )

    @classmethod
    def execute(cls, indis):
        return io.NodeOutput(Sampling(indis))


class Sampling(comfy.samplers.Sampler):
    """What SamplerCustomAdvanced calls."""

    def __init__(self, indis):
        self.indis = indis

    def sample(
        self,
        model_wrap,
        sigmas,
        extra_args,
        callback,
        noise,
        latent_image=None,
        denoise_mask=None,
        disable_pbar=False,
    ):
        """Return the samples of unit noise (batch, channels, ...)."""
        calls = len(sigmas) - 1
        if calls != self.indis.nfe:
            raise ValueError(
                f"sigmas must be {self.indis.nfe} steps, the network calls of the sampler, "
                f"got {calls}: set steps of the scheduler to {self.indis.nfe}"
            )
        if denoise_mask is not None:
            raise ValueError("latent must have no mask: the sampler begins at noise")
        if latent_image is not None and bool(torch.count_nonzero(latent_image)):
            raise ValueError("latent must be empty: the sampler begins at noise, not at a picture")
        process = inside.process_of(model_wrap.inner_model.model_sampling, self.indis)
        prompts = [seen(one) for one in model_wrap.conds.get("positive") or []]
        features = inside.features_of(self.indis, prompts, len(noise))
        if features is not None:
            features = features.to(noise.device)
        return inside.run(self.indis, model_wrap, process, noise, features, callback, **extra_args)


def seen(cond):
    """Return tokens, mask and pooled vector of a cond inside a guider."""
    parts = {name: part.cond for name, part in cond.get("model_conds", {}).items()}
    pooled = cond.get("pooled_output", parts.get("y"))
    return {
        "tokens": parts.get("c_crossattn"),
        "mask": parts.get("attention_mask"),
        "pooled": pooled,
    }


class IndisSigmas(io.ComfyNode):
    """The sigmas of one sample."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="IndisSigmas",
            display_name="INDIS Sigmas",
            category=CATEGORY,
            description=(
                "The noise levels of one sample, for other samplers. A list drops time shifts, "
                "scales and all differences between samples; `dropped` says which."
            ),
            inputs=[
                Indis.Input("indis"),
                io.Model.Input("model"),
                io.Noise.Input("noise"),
                io.Latent.Input("latent_image"),
                io.Conditioning.Input("conditioning", optional=True),
            ],
            outputs=[io.Sigmas.Output(), io.String.Output(display_name="dropped")],
        )

    @classmethod
    def execute(cls, indis, model, noise, latent_image, conditioning=None):
        drawn = noise.generate_noise(latent_image)
        process = inside.process_of(model.get_model_object("model_sampling"), indis)
        prompts = [
            {
                "tokens": tokens,
                "mask": rest.get("attention_mask"),
                "pooled": rest.get("pooled_output"),
            }
            for tokens, rest in conditioning or []
        ]
        features = inside.features_of(indis, prompts, len(drawn))
        levels, lost = inside.list_of_sigmas(indis, process, drawn, features)
        return io.NodeOutput(levels, ", ".join(lost) or "nothing")


class IndisExtension(ComfyExtension):
    """The list of nodes."""

    async def get_node_list(self):
        return [IndisLoad, IndisSampler, IndisSigmas]


async def comfy_entrypoint():
    """What ComfyUI calls."""
    return IndisExtension()
