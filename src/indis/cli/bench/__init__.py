"""Commands of whole experiments: ``indis bench EXPERIMENT``."""

# What each experiment does, and where its command is.
EXPERIMENTS = {
    "compare": ("Compare methods at equal numbers of evaluations.", "bench.compare:Compare"),
    "report": ("Make a web page of a folder of results.", "bench.report:Report"),
    "paper": ("Make the paper's rows on an EDM checkpoint.", "bench.paper:Paper"),
    "curves": ("Fit to convergence, and draw how that goes.", "bench.curves:CurvesCommand"),
    "toy": ("Run the paper's study of an exact 2-D denoiser.", "bench.toy:ToyCommand"),
    "demo": ("Do the main job in a few minutes, with what ships.", "bench.demo:Demo"),
    "overhead": ("Time a sampler against a fixed plan.", "bench.overhead:Overhead"),
    "speed": (
        "Time the loop against diffusers' schedulers, fits and start-up.",
        "bench.speed:Speed",
    ),
    "foresight": ("Ask what a sample's plan can be foreseen from.", "bench.foresight:Sight"),
    "budget": ("Give every sample its own number of steps.", "bench.budget:Budget"),
    "train": ("Train the Fashion-MNIST denoiser that ships.", "bench.train:TrainModel"),
}
