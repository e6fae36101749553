"""Draw pictures by a sampler of INDIS inside the unmodified FLUX pipeline of diffusers.

python examples/flux.py --artifact my-artifact --steps 5 --prompt "a cat" "two dogs"
python examples/flux.py --tiny        # random weights and an untrained sampler, a second on a CPU
"""

import argparse

import diffusers
import torch
from diffusers import FluxPipeline

import indis


def tiny_pipeline():
    """A FLUX of 70 000 random weights that is given embeddings instead of prompts."""
    sizes = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2}
    text = {"joint_attention_dim": 32, "pooled_projection_dim": 32, "guidance_embeds": True}
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=4, attention_head_dim=16, axes_dims_rope=(4, 4, 8), **sizes, **text
    )
    channels = {"block_out_channels": (4,), "latent_channels": 1, "norm_num_groups": 1}
    vae = diffusers.AutoencoderKL(**channels, shift_factor=0.0, use_quant_conv=False)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return FluxPipeline(scheduler, vae, None, None, None, None, transformer)


def untrained_sampler(steps):
    """Times of each picture's own, from a network that has learned nothing."""
    flow = indis.RectifiedFlow()
    base, bounds = indis.grids.named("natural")(flow, steps), indis.Bounds.natural(flow)
    policy = indis.LearnedPolicy(base, flow, bounds, reads="noise", shape=(1, 16, 16))
    torch.nn.init.normal_(policy.logits.head)
    return indis.Sampler(policy, indis.solvers.named("ipndm:2"))


parser = argparse.ArgumentParser()
parser.add_argument("--tiny", action="store_true")
parser.add_argument("--model", default="black-forest-labs/FLUX.1-dev")
parser.add_argument("--artifact", default="my-artifact")
parser.add_argument("--steps", type=int, default=5)
parser.add_argument("--prompt", nargs="+", default=["a cat", "two dogs"])
args = parser.parse_args()
if args.tiny:
    pipe, artifact = tiny_pipeline(), untrained_sampler(args.steps)
    call = {"prompt_embeds": torch.randn(2, 8, 32), "pooled_prompt_embeds": torch.randn(2, 32)}
    call |= {"height": 16, "width": 16}
else:
    pipe = FluxPipeline.from_pretrained(args.model, torch_dtype=torch.bfloat16).to("cuda")
    artifact, call = args.artifact, {"prompt": args.prompt}
with indis.diffusers.enable(pipe, artifact) as handle:
    pictures = pipe(num_inference_steps=args.steps, **call).images
for number, picture in enumerate(pictures):
    picture.save(f"picture-{number}.png")
print(handle.scheduler.timesteps)  # a row for each network call, a column for each picture
