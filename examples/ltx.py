"""Fit a sampler to LTX-Video, and draw inside the unmodified pipeline.

python examples/ltx.py --prompts prompts.txt --teacher-steps 7
python examples/ltx.py --tiny        # random weights and few end points, seconds on a CPU
"""

import argparse
from pathlib import Path

import diffusers
import tokenizers
import torch
import transformers

import indis


def tiny_pipeline():
    """Random weights, and a tokenizer that knows no word."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "?": 1}, unk_token="?"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")
    text = transformers.T5Config(vocab_size=9, d_model=32, d_kv=8, d_ff=32, num_layers=1)
    eight = {"block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    video = diffusers.AutoencoderKLLTXVideo(patch_size=1, latent_channels=8, **eight)
    sizes = {"in_channels": 8, "out_channels": 8, "num_attention_heads": 4, "num_layers": 1}
    sizes |= {"attention_head_dim": 8, "cross_attention_dim": 32, "caption_channels": 32}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    encoder = transformers.T5EncoderModel(text)
    network = diffusers.LTXVideoTransformer3DModel(**sizes)
    return diffusers.LTXPipeline(scheduler, video, encoder, tokenizer, network)


parser = argparse.ArgumentParser()
parser.add_argument("--tiny", action="store_true")
parser.add_argument("--prompts", type=Path, default="prompts.txt")
parser.add_argument("--teacher-steps", type=int, default=7)
args = parser.parse_args()
if args.tiny:
    pipe, prompts = tiny_pipeline(), ["a cat", "two dogs", "a sea"]
    call = {"height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 16}
else:
    pipe = diffusers.LTXPipeline.from_pretrained("Lightricks/LTX-Video", torch_dtype=torch.bfloat16)
    prompts, call = args.prompts.read_text().splitlines(), {}
denoiser = indis.diffusers.PipelineDenoiser(pipe, prompts, call, latents=True, offload=True)
denoiser.to("cuda" if torch.cuda.is_available() else "cpu")
plain = {"solver": "euler", "grid": "natural", "steps": args.teacher_steps}
teacher = indis.methods.heuristic(denoiser, **plain)
data = indis.endpoints.teach(denoiser, teacher, range(12 if args.tiny else 5000), batch=4)
recipe = indis.Recipe(**{"iterations": 4, "batch": 4, "holdout": 4} if args.tiny else {})
method, loss = indis.methods.named("indis")(steps=3, recipe=recipe), indis.losses.named("mse")
process = method.tuning(denoiser, data, loss)
for state in process.run():
    print(f"{state.step} of {state.iterations}: best held-out loss {state.best:.6f}")
with indis.diffusers.enable(pipe, process.sampler):
    frames = pipe(prompts[:1], num_inference_steps=3, output_type="np", **call).frames[0]
diffusers.utils.export_to_gif([diffusers.utils.numpy_to_pil(f)[0] for f in frames], "video.gif")
