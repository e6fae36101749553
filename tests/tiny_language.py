"""Tiny diffusers pipelines that read prompts by a language model, and the larger video model."""

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, LlamaConfig, LlamaModel

from tiny_pipelines import (
    clip_config,
    clip_tokenizer,
    flat_vae,
    lively,
    ready,
    t5_model,
    t5_tokenizer,
)

CHAT = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %}{% endfor %}"
)


def language_model(size=16):
    config = LlamaConfig(
        hidden_size=size,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=1000,
        pad_token_id=1,
    )
    return LlamaModel(config)


def chat_tokenizer():
    tokenizer = clip_tokenizer(4000)
    tokenizer.chat_template = CHAT
    return tokenizer


def stable_diffusion_xl():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(4, 8),
        layers_per_block=1,
        sample_size=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
        norm_num_groups=2,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
    )
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return ready(
        StableDiffusionXLPipeline(
            unet=unet,
            vae=vae,
            scheduler=EulerDiscreteScheduler(**betas, steps_offset=1, timestep_spacing="leading"),
            text_encoder=CLIPTextModel(clip_config()),
            text_encoder_2=CLIPTextModelWithProjection(clip_config()),
            tokenizer=clip_tokenizer(),
            tokenizer_2=clip_tokenizer(),
        )
    )


def wan(**config):
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )
    vae = AutoencoderKLWan(base_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    return ready(
        WanPipeline(
            transformer=lively(transformer),
            vae=vae,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            text_encoder=t5_model(),
            tokenizer=t5_tokenizer(),
            **config,
        )
    )


def qwen_image():
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=24,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return ready(
        QwenImagePipeline(
            transformer=lively(transformer),
            vae=vae,
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            text_encoder=language_model(),
            tokenizer=clip_tokenizer(4000),
        )
    )


def flux2():
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
    )
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        sample_size=32,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    pipe = ready(
        Flux2Pipeline(
            transformer=lively(transformer),
            vae=vae,
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            text_encoder=language_model(8),
            tokenizer=chat_tokenizer(),
        )
    )
    pipe.system_message = "Draw. "  # a token a letter: the real one would fill the prompt
    return pipe


def z_image():
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        in_channels=4,
        axes_dims=[8, 4, 4],
        axes_lens=[128, 32, 32],
    )
    return ready(
        ZImagePipeline(
            transformer=lively(transformer),
            vae=flat_vae(4),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            text_encoder=language_model(),
            tokenizer=chat_tokenizer(),
        )
    )
