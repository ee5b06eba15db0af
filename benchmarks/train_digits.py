"""Train the digits model that ships in the package, judge it, and write its weights and model card.

    python -m benchmarks.train_digits [--steps 5000] [--threads 1]

Noise prediction on scikit-learn's 1,797 digits, labels dropped 10 % of the time for guidance, an exponential moving average
of the weights kept and shipped. Judged by a support-vector classifier fitted on the real digits.
"""

import argparse
import copy
import datetime
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import mse_loss
from tqdm import tqdm

import taylorseer_fx.digits.model as digits_model
from taylorseer_fx.digits.judge import Judge, load_real_digits
from taylorseer_fx.digits.sampling import NULL_CLASS, NUM_CLASSES, build_scheduler, sample_digits
from taylorseer_fx.half_weights import save_half

CARD = """# Model card: digits DiT

| | |
|---|---|
| Architecture | diffusers `DiTTransformer2DModel`: 6 blocks, width 128, 4 heads, patch 1 on 8x8 pixels (64 tokens), {parameters:,} parameters, float16 on disk |
| Data | scikit-learn's bundled digits (UCI Optical Recognition of Handwritten Digits test set), {num_images} pictures, 10 classes |
| Objective | mean squared error of the predicted noise, cosine schedule, 1,000 timesteps; class dropped 10 % of the time |
| Recipe | {steps} steps, batch {batch}, AdamW 1e-3 with cosine decay, weight average 0.999, seed {seed} |
| Final loss | {loss:.4f} (mean of the last 200 steps) |
| Judged | {accuracy:.1%} of {num_samples} samples (50 DDIM steps, guidance 2) are named as the class asked for by a support-vector classifier fitted on the real digits (its own accuracy on held-out digits: {judge:.1%}) |
| Trained | {date}, {minutes:.0f} minutes on {threads} CPU thread(s), torch {torch} |
| Again | `python -m benchmarks.train_digits` |

Made to show and test the compiler pass, not to draw digits: it has seen one small data set, and knows nothing else.
"""


def train(steps: int, batch: int, seed: int) -> tuple[torch.nn.Module, float]:
    """Returns the averaged model and the mean loss of the last 200 steps."""
    torch.manual_seed(seed)
    images, labels = load_real_digits()
    scheduler = build_scheduler()
    model = digits_model.build_digits_model()
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps, pct_start=0.05)
    losses: list[float] = []
    bar = tqdm(range(steps), desc="training", mininterval=10)
    for step in bar:
        index = torch.randint(len(images), (batch,))
        clean, label = images[index], labels[index].clone()
        label[torch.rand(batch) < 0.1] = NULL_CLASS
        noise, timestep = torch.randn_like(clean), torch.randint(1000, (batch,))
        noisy = scheduler.add_noise(clean, noise, timestep)
        predicted = model(noisy, timestep=timestep, class_labels=label, return_dict=False)[0]
        loss = mse_loss(predicted, noise)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay.step()
        momentum = min(0.999, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - momentum)
        losses.append(loss.item())
        if step % 50 == 0:
            bar.set_postfix(loss=f"{np.mean(losses[-200:]):.4f}")
    return average, float(np.mean(losses[-200:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=digits_model.WEIGHTS_PATH)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    started = time.perf_counter()
    model, loss = train(args.steps, args.batch, args.seed)
    minutes = (time.perf_counter() - started) / 60
    model.half().float()  # judge what is shipped
    wanted = torch.arange(400) % NUM_CLASSES
    judge = Judge()
    accuracy = judge.accuracy(sample_digits(model, wanted), wanted)
    save_half(model, args.out)
    card = CARD.format(
        parameters=sum(p.numel() for p in model.parameters()),
        num_images=1797,
        steps=args.steps,
        batch=args.batch,
        seed=args.seed,
        loss=loss,
        accuracy=accuracy,
        num_samples=len(wanted),
        judge=judge.held_out_accuracy(),
        date=datetime.date.today().isoformat(),
        minutes=minutes,
        threads=args.threads,
        torch=torch.__version__,
    )
    args.out.with_name("MODEL_CARD.md").write_text(card)
    print(card)


if __name__ == "__main__":
    main()
