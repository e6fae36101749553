"""Nodes in a stand-in for ComfyUI that keeps to its contract: what a guider is asked, and answers
with."""

import asyncio
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import indis
from indis import DiscreteVP, RectifiedFlow, Wrapped, artifact, comfy, models, noise_from_seeds
from indis.noise import ratio

ROOT = Path(__file__).parent.parent
PACK = ROOT / "indis-comfyui"


class Typed:
    """A type of ComfyUI's schema: what is asked for is remembered."""

    def __init__(self, name):
        self.name = name

    def Input(self, id, **options):
        return SimpleNamespace(id=id, type=self.name, **options)

    def Output(self, **options):
        return SimpleNamespace(type=self.name, **options)


class Output(tuple):
    def __new__(cls, *values):
        return super().__new__(cls, values)


def stand_in(monkeypatch, tmp_path, api):
    names = ("Combo", "Sampler", "Sigmas", "Model", "Noise", "Latent", "Conditioning", "String")
    io = SimpleNamespace(
        ComfyNode=object,
        Schema=SimpleNamespace,
        NodeOutput=Output,
        Custom=Typed,
        **{name: Typed(name.upper()) for name in names},
    )
    modules = {
        "comfy": {},
        "comfy.samplers": {"Sampler": object},
        "folder_paths": {"models_dir": str(tmp_path)},
        "comfy_api": {},
        f"comfy_api.{api}": {"io": io, "ComfyExtension": object},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__path__ = []
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["comfy"].samplers = sys.modules["comfy.samplers"]
    spec = importlib.util.spec_from_file_location(
        "indis_nodes", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "indis_nodes", module)
    monkeypatch.delitem(sys.modules, "indis_nodes.nodes", raising=False)
    spec.loader.exec_module(module)
    return sys.modules["indis_nodes.nodes"]


@pytest.fixture(params=["latest", "v0_0_2"])
def nodes(request, monkeypatch, tmp_path):
    return stand_in(monkeypatch, tmp_path, request.param)


class CONST:
    pass


class EDM:
    pass


class EPS:
    pass


class Guider:
    """As CFGGuider: called with (x, sigma of each sample), it answers with denoised samples.

    A model is asked in its own space: ComfyUI divides by sqrt(sigma^2 + 1) for a table of steps.
    """

    def __init__(self, kind, denoiser, condition=indis.UNCONDITIONAL, conds=None):
        self.denoiser, self.condition, self.asked = denoiser, condition, []
        self.conds = {"positive": conds or []}
        sampling = kind()
        if kind is EPS:
            t = torch.arange(1000, dtype=torch.float64)
            sampling.sigmas = ratio(denoiser.schedule, t).float()
        self.inner_model = SimpleNamespace(model_sampling=sampling)

    def __call__(self, x, sigma, model_options=None, seed=None):
        assert sigma.shape == (len(x),) and model_options == {"key": 1} and seed == 7
        self.asked.append(sigma)
        schedule, level = self.denoiser.schedule, sigma.double()
        if isinstance(schedule, RectifiedFlow):
            t = level
        else:
            t = schedule.time(-level.log())
            x = x * schedule.alpha(t).to(x)[(...,) + (None,) * (x.ndim - 1)]
        answer = self.denoiser(x, t.to(x), self.condition)
        return indis.convert(
            answer, self.denoiser.native, indis.Form.DATA, x=x, schedule=schedule, t=t
        ).float()


def sampled(nodes, sampler, guider, noise, **rest):
    (wired,) = nodes.IndisSampler.execute(sampler)
    sigmas, extra = torch.linspace(1, 0, sampler.nfe + 1), {"model_options": {"key": 1}, "seed": 7}
    with torch.no_grad():
        return wired.sample(guider, sigmas, extra, rest.pop("callback", None), noise, **rest)


def prompt(features):
    tokens = SimpleNamespace(cond=features[:, None].repeat(1, 3, 1))
    return [{"model_conds": {"c_crossattn": tokens}}]


@pytest.mark.parametrize("name", ["fashion-nfe3", "fashion-nfe5-god", "fashion-nfe5-local"])
def test_a_shipped_sampler_draws_the_same_pictures_in_comfyui(nodes, name):
    model, (sampler,) = models.load("fashion"), nodes.IndisLoad.execute(name)
    noise, condition = noise_from_seeds([0, 1, 2], model.shape), model.condition([0, 1, 2])
    guider = Guider(EDM, model, condition, prompt(condition.features))
    got = sampled(nodes, sampler, guider, noise)
    with torch.no_grad():
        expected = sampler(model, noise, condition)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert len(guider.asked) == sampler.nfe
    own_times = [float(sigma.std()) > 1e-4 for sigma in guider.asked]
    assert any(own_times) is not name.endswith("god")


def flow(x, t, condition):
    return torch.tanh(x) * (1 + t[:, None]) - 0.3 * x


@pytest.mark.parametrize("solver", ["euler", "ipndm:3", "dpmpp:2", "unipc:2"])
@pytest.mark.parametrize("kind", [CONST, EPS])
def test_plain_solvers_give_the_library_s_samples_on_flows_and_tables(nodes, solver, kind):
    if kind is CONST:
        model = Wrapped(flow, RectifiedFlow(), (4,), "velocity")
    else:
        table = DiscreteVP(prior="unit")
        model = Wrapped(lambda x, t, c: torch.tanh(x + t[:, None] / 1000), table, (4,), "noise")
    sampler = indis.heuristic(model, solver=solver, steps=4)
    noise = noise_from_seeds([0, 1, 2], (4,))
    got = sampled(nodes, sampler, Guider(kind, model), noise)
    expected = sampler(model, noise)
    end = sampler.policy.shared_plan().tau[0, -1]
    torch.testing.assert_close(
        got * float(model.schedule.alpha(end)), expected, rtol=1e-4, atol=1e-5
    )


def test_previews_count_the_network_calls(nodes):
    model = Wrapped(flow, RectifiedFlow(), (4,), "velocity")
    sampler, seen = indis.heuristic(model, solver="euler", steps=4), []
    noise = noise_from_seeds([0], (4,))
    sampled(nodes, sampler, Guider(CONST, model), noise, callback=lambda *a: seen.append(a))
    assert [(call, total) for call, _, _, total in seen] == [(k, 4) for k in range(4)]
    assert all(x.shape == denoised.shape == (1, 4) for _, denoised, x, _ in seen)


def test_what_would_give_wrong_samples_is_refused(nodes):
    model = Wrapped(flow, RectifiedFlow(), (4,), "velocity")
    sampler, noise = indis.heuristic(model, solver="euler", steps=4), noise_from_seeds([0], (4,))
    guider, (wired,) = Guider(CONST, model), nodes.IndisSampler.execute(sampler)
    with pytest.raises(ValueError, match="sigmas must be 4 steps.*got 2"):
        wired.sample(guider, torch.ones(3), {}, None, noise)
    with pytest.raises(ValueError, match="latent must be empty"):
        sampled(nodes, sampler, guider, noise, latent_image=torch.ones(1, 4))
    with pytest.raises(ValueError, match="latent must have no mask"):
        sampled(nodes, sampler, guider, noise, denoise_mask=torch.ones(1, 4))
    shipped = artifact.load("fashion-nfe3")
    with pytest.raises(ValueError, match="model must have the noise schedule"):
        sampled(nodes, shipped, guider, noise)
    edm = Guider(EDM, models.load("fashion"), conds=prompt(torch.ones(1, 9)))
    with pytest.raises(ValueError, match="must have 10 features for this sampler, got 9"):
        sampled(nodes, shipped, edm, torch.zeros(1, 1, 28, 28))
    with pytest.raises(ValueError, match="artifact must be one of"):
        nodes.IndisLoad.execute("../elsewhere")


def test_a_mask_keeps_padding_out_of_the_mean():
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [99.0, 99.0]]])
    one = {"tokens": tokens, "mask": torch.tensor([[1, 1, 0]]), "pooled": torch.ones(1, 3)}
    for wanted, expected in ((2, [2, 3]), (5, [2, 3, 1, 1, 1]), (3, [1, 1, 1])):
        sampler = SimpleNamespace(policy=SimpleNamespace(condition_dim=wanted))
        assert comfy.features_of(sampler, [one], 2).tolist() == [expected] * 2


def test_sigmas_are_those_of_one_sample_and_say_what_they_drop(nodes):
    model, sampler = models.load("fashion"), artifact.load("fashion-nfe3")
    features = model.condition([0]).features
    patcher = SimpleNamespace(get_model_object={"model_sampling": EDM()}.get)
    noise = SimpleNamespace(generate_noise=lambda latent: latent["samples"])
    drawn, conds = noise_from_seeds([0], model.shape), [[features[:, None], {}]]
    levels, dropped = nodes.IndisSigmas.execute(sampler, patcher, noise, {"samples": drawn}, conds)
    torch.testing.assert_close(levels, sampler.policy(drawn, features).tau[0].float())
    assert levels.ndim == 1 and "time shifts" in dropped and "between samples" in dropped
    two = {"samples": drawn.expand(2, -1, -1, -1)}
    with pytest.raises(ValueError, match="batch of 1 for one list of sigmas, got 2"):
        nodes.IndisSigmas.execute(sampler, patcher, noise, two, conds)
    local = artifact.load("fashion-nfe3-local")
    with pytest.raises(ValueError, match="this one reads the answers"):
        nodes.IndisSigmas.execute(local, patcher, noise, {"samples": drawn}, conds)


def test_every_node_has_a_schema_a_help_page_and_a_list(nodes):
    listed = asyncio.run(asyncio.run(nodes.comfy_entrypoint()).get_node_list())
    for node in listed:
        schema = node.define_schema()
        assert schema.node_id == node.__name__ and schema.node_id.startswith("Indis")
        assert (PACK / nodes.WEB_DIRECTORY / "docs" / f"{schema.node_id}.md").is_file()
        code = node.execute.__func__.__code__
        assert {i.id for i in schema.inputs} == set(code.co_varnames[1 : code.co_argcount])
    assert "fashion-nfe3" in listed[0].define_schema().inputs[0].options


def test_the_example_workflow_is_wired_by_the_nodes_schemas(nodes):
    flow = json.loads((PACK / "example_workflows" / "indis_flux.json").read_text())
    by_id = {node["id"]: node for node in flow["nodes"]}
    for link, start, slot, end, place, kind in flow["links"]:
        assert link in by_id[start]["outputs"][slot]["links"]
        assert by_id[end]["inputs"][place]["link"] == link
        assert by_id[start]["outputs"][slot]["type"] == by_id[end]["inputs"][place]["type"] == kind
    for name in ("IndisLoad", "IndisSampler"):
        (drawn,) = (node for node in flow["nodes"] if node["type"] == name)
        schema = getattr(nodes, name).define_schema()
        assert [out["type"] for out in drawn["outputs"]] == [out.type for out in schema.outputs]


def test_the_blocks_of_the_page_run():
    page = (ROOT / "docs" / "comfyui.md").read_text(encoding="utf-8")
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(block, names)
    assert names["pictures"].shape == (2, 1, 28, 28)


@pytest.mark.skipif("COMFYUI_DIR" not in os.environ, reason="COMFYUI_DIR names no checkout")
def test_a_real_checkout_loads_the_nodes():
    code = f"""
import asyncio, importlib.util, sys
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, ".")
import comfy.options
comfy.options.enable_args_parsing()
spec = importlib.util.spec_from_file_location(
    "pack", {str(PACK / "__init__.py")!r}, submodule_search_locations=[{str(PACK)!r}])
pack = importlib.util.module_from_spec(spec)
sys.modules["pack"] = pack
spec.loader.exec_module(pack)
nodes = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
print([node.GET_SCHEMA().node_id for node in nodes])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=os.environ["COMFYUI_DIR"], capture_output=True, text=True
    )
    assert "['IndisLoad', 'IndisSampler', 'IndisSigmas']" in done.stdout, done.stderr[-2000:]
