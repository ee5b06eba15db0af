"""Train the fashion model that ships in the package, judge it, and write its weights and model card.

    apt-get install dataset-fashion-mnist
    python -m benchmarks.train_fashion [--steps 4400] [--threads 1]

Flow matching on Fashion-MNIST: the velocity from picture to noise is predicted at sigmas drawn logit-normal, classes are dropped
10 % of the time for guidance, an exponential moving average of the weights is kept and shipped. A checkpoint is written every
few hundred steps, and a run that finds one goes on from there: to another end, too, since the learning rate is constant but for
its beginning and its last third.
"""

import argparse
import copy
import datetime
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import taylorseer_fx.fashion.model as fashion_model
from benchmarks.fashion_mnist import load_fashion_mnist
from taylorseer_fx.bench.frechet import distance_of_moments, moments
from taylorseer_fx.fashion.judge import Judge
from taylorseer_fx.fashion.model import NULL_CLASS, NUM_CLASSES, class_inputs, pack
from taylorseer_fx.fashion.sampling import sample_fashion
from taylorseer_fx.half_weights import load_half, save_half

CARD = """# Model card: fashion FLUX

| | |
|---|---|
| Architecture | diffusers `FluxTransformer2DModel`: 2 joint and 4 single blocks, width 128, 4 heads, 49 image tokens of 4x4 pixels and 4 text tokens, {parameters:,} parameters, float16 on disk |
| Data | Fashion-MNIST (MIT licence; Debian's `dataset-fashion-mnist`), its {num_images:,} training pictures of 28x28 pixels, 10 classes |
| Objective | flow matching: mean squared error of the predicted velocity (noise minus picture), sigma logit-normal; class dropped 10 % of the time |
| Class | one-hot, in each text token and in the pooled vector; "no class" is an eleventh one; no weights outside the transformer |
| Recipe | {steps} steps, batch {batch}, AdamW 1e-3, constant, to zero in the last third, weight average 0.999, seed {seed} |
| Final loss | {loss:.4f} (mean of the last 200 steps) |
| Judged | of {num_samples} samples ({num_steps} Euler steps) {accuracies} are named as the class asked for |
| Judge | a convolutional network of 0.1 M parameters (`benchmarks/fit_fashion_judge.py`) fitted on the same training pictures; it names {judge:.1%} of the 10,000 held-out real ones rightly |
| Frechet distance | from the held-out real pictures in the judge's 48 features (not Inception FID): {distances}; {num_samples} of the training pictures: {real_distance:.2f} |
| Trained | {date}, {minutes:.0f} minutes of processor time on {threads} CPU thread(s), torch {torch} |
| Again | `python -m benchmarks.train_fashion` |

Made to show and test the compiler pass on FLUX's architecture, not to draw clothes: it has seen one small data set, and knows
nothing else.
"""
GUIDANCE_SCALES = (1, 2, 4)
LEARNING_RATE, WARMUP_STEPS, DECAY_SHARE = 1e-3, 200, 1 / 3


class Trainer:
    """A model in training and all that a checkpoint must hold of it."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = fashion_model.build_fashion_model()
        start_as_identity(self.model)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.step = 0
        self.cpu_seconds = 0.0
        self.losses: deque[float] = deque(maxlen=200)

    def train_step(self, pictures: Tensor, labels: Tensor, num_steps: int) -> None:
        """One batch: pictures ``[n, 1, 28, 28]`` and their classes ``[n]``."""
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate_factor(self.step, num_steps)
        loss = flow_loss(self.model, pack(pictures), labels)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        momentum = min(0.999, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - momentum)
        self.losses.append(loss.item())
        self.step += 1

    def save(self, path: Path) -> None:
        """Replaces the checkpoint at once, so that an interruption leaves the old one or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        state: dict[str, Any] = {name: getattr(self, name).state_dict() for name in ("model", "average", "optimizer")}
        state |= {"step": self.step, "cpu_seconds": self.cpu_seconds, "losses": list(self.losses), "rng": torch.get_rng_state()}
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path)
        for name in ("model", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.cpu_seconds = state["step"], state["cpu_seconds"]
        self.losses.extend(state["losses"])
        torch.set_rng_state(state["rng"])


def start_as_identity(model: FluxTransformer2DModel) -> None:
    """Set every gate and the output to zero, from where a DiT learns faster than from diffusers' defaults."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (name == "proj_out" or ("norm" in name and name.endswith(".linear"))):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def rate_factor(step: int, num_steps: int) -> float:
    """Share of the full learning rate: up in 200 steps, then constant, down to zero in the last third."""
    return min(1.0, (step + 1) / WARMUP_STEPS, (num_steps - step) / (DECAY_SHARE * num_steps))


def flow_loss(model: nn.Module, clean: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error of the velocity at one sigma a picture; ``clean`` is tokens ``[n, 49, 16]``."""
    dropped = torch.where(torch.rand(len(labels)) < 0.1, NULL_CLASS, labels)
    noise, sigma = torch.randn_like(clean), torch.randn(len(clean)).sigmoid()
    noisy = torch.lerp(clean, noise, sigma[:, None, None])
    velocity = model(noisy, timestep=sigma, return_dict=False, **class_inputs(dropped))[0]
    return mse_loss(velocity, noise - clean)


def train(trainer: Trainer, num_steps: int, batch: int, checkpoint: Path, every: int) -> None:
    """Goes on to ``num_steps`` in all; minutes are of the processor, so that a pause does not count."""
    pictures, labels = load_fashion_mnist("train")
    before = trainer.cpu_seconds - time.process_time()
    while trainer.step < num_steps:
        index = torch.randint(len(pictures), (batch,))
        trainer.train_step(pictures[index], labels[index], num_steps)
        trainer.cpu_seconds = before + time.process_time()
        if trainer.step % every == 0 or trainer.step == num_steps:
            trainer.save(checkpoint)
            minutes = trainer.cpu_seconds / 60
            print(f"step {trainer.step}/{num_steps}  loss {np.mean(trainer.losses):.4f}  {minutes:.1f} min", flush=True)


def write_card(trainer: Trainer, model: FluxTransformer2DModel, path: Path, num_steps: int = 28, **recipe: Any) -> None:
    """Judges what is shipped; of the recipe it is told the batch, the seed and the threads."""
    judge = Judge()
    mean, covariance = (tensor.double().numpy() for tensor in judge.real_moments())

    def distance(pictures: Tensor) -> float:
        return distance_of_moments(*moments(judge.features(pictures).double().numpy()), mean, covariance)

    real, _ = load_fashion_mnist("train")
    wanted = torch.arange(400) % NUM_CLASSES
    samples = {scale: sample_fashion(model, wanted, num_steps=num_steps, guidance_scale=scale) for scale in GUIDANCE_SCALES}
    card = CARD.format(
        parameters=sum(p.numel() for p in model.parameters()),
        num_images=len(real),
        steps=trainer.step,
        loss=np.mean(trainer.losses),
        num_samples=len(wanted),
        num_steps=num_steps,
        accuracies=", ".join(f"{judge.accuracy(some, wanted):.1%} at guidance {scale}" for scale, some in samples.items()),
        judge=judge.held_out_accuracy(),
        distances=", ".join(f"{distance(some):.2f} at guidance {scale}" for scale, some in samples.items()),
        real_distance=distance(real[: len(wanted)]),
        date=datetime.date.today().isoformat(),
        minutes=trainer.cpu_seconds / 60,
        torch=torch.__version__,
        **recipe,
    )
    path.write_text(card)
    print(card)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4400)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path, default=Path("build/train_fashion.pt"))
    parser.add_argument("--checkpoint-every", type=int, default=200, metavar="STEPS")
    parser.add_argument("--out", type=Path, default=fashion_model.WEIGHTS_PATH)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    trainer = Trainer(args.seed)
    if args.checkpoint.exists():
        trainer.load(args.checkpoint)
        print(f"going on from step {trainer.step} of {args.checkpoint}")
    train(trainer, args.steps, args.batch, args.checkpoint, args.checkpoint_every)
    save_half(trainer.average, args.out)
    shipped = load_half(fashion_model.build_fashion_model(), args.out)
    card = args.out.with_name("MODEL_CARD.md")
    write_card(trainer, shipped, card, batch=args.batch, seed=args.seed, threads=args.threads)


if __name__ == "__main__":
    main()
