"""Fit a sampler to an unconditional latent diffusion pipeline (LSUN), and draw inside the pipeline.

python examples/sd_lsun.py --model FOLDER_OR_REPOSITORY --steps 5
python examples/sd_lsun.py --tiny        # random weights and few end points, seconds on a CPU
"""

import argparse

import diffusers
import torch

import indis


def tiny_pipeline():
    """A U-Net and a VQ decoder of random weights."""
    sizes = {"block_out_channels": (8, 16), "norm_num_groups": 4}
    unet = diffusers.UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **sizes,
    )
    blocks = {"down": ("DownEncoderBlock2D",) * 2, "up": ("UpDecoderBlock2D",) * 2}
    vae = diffusers.VQModel(
        down_block_types=blocks["down"], up_block_types=blocks["up"], latent_channels=3, **sizes
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    return diffusers.LDMPipeline(vae, unet, scheduler)


parser = argparse.ArgumentParser()
parser.add_argument("--tiny", action="store_true")
parser.add_argument("--model")
parser.add_argument("--steps", type=int, default=5)
parser.add_argument("--count", type=int, default=10_000, help="number of teacher end points")
args = parser.parse_args()
device = "cuda" if torch.cuda.is_available() else "cpu"
pipe = tiny_pipeline() if args.tiny else diffusers.DiffusionPipeline.from_pretrained(args.model)
denoiser = indis.diffusers.PipelineDenoiser(pipe, latents=args.tiny).to(device)
teacher = indis.methods.heuristic(denoiser, solver="ipndm:3", grid="natural", steps=30)
small = {"width": 8} if args.tiny else {}
recipe = {"iterations": 4, "batch": 4, "holdout": 4} if args.tiny else {}
data = indis.endpoints.teach(denoiser, teacher, range(12 if args.tiny else args.count), batch=16)
method = indis.methods.named("indis")(steps=args.steps, recipe=indis.Recipe(**recipe), **small)
loss = indis.losses.named("mse" if args.tiny else "lpips")
process = method.tuning(denoiser, data, loss)
for state in process.run():
    print(f"{state.step} of {state.iterations}: best held-out loss {state.best:.6f}")
with indis.diffusers.enable(pipe, process.sampler) as handle:
    for number, picture in enumerate(pipe(batch_size=2, num_inference_steps=args.steps).images):
        picture.save(f"picture-{number}.png")
print(handle.scheduler.timesteps)  # a row for each network call, a column for each picture
